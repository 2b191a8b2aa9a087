"""Bodies one by one: the table adds up to the facts, and the outlines lie where the bodies are."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roifile
import tifffile
from measuring import discs

from assistant.measure import bodies, measure
from assistant.measurements import findings
from assistant.measurements.objects import feret, outlines, write_rois, write_table
from assistant.micrograph import Calibration, Micrograph

Maemi = Callable[..., tuple[int, str, str]]
NM = 4.0


def micrograph(nm: float | None = NM, *, bar_on_top: int = 0) -> Micrograph:
    pixels = discs(size=(200, 260))
    banner = None
    if bar_on_top:
        pixels = np.concatenate([np.zeros((bar_on_top, 260), np.uint8), pixels])
        banner = (0, bar_on_top)
    calibration = None if nm is None else Calibration(nm, "user", 1.0)
    return Micrograph(pixels, "0" * 64, calibration=calibration, banner=banner)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("nm", "unit"), [(NM, "nm"), (None, "px")])
def test_the_table_adds_up_to_the_facts(nm: float | None, unit: str, tmp_path: Path) -> None:
    """Seen failing with the table in px of the small copy, and with the outset of the outlines left out of it."""
    m = micrograph(nm)
    facts = measure(m)
    write_table(tmp_path / "t.csv", [("discs.tif", bodies(m), nm)])
    table = rows(tmp_path / "t.csv")
    assert sum(int(row["counted"]) for row in table) == facts["count"].value
    diameters = [float(row["equivalent_diameter"]) for row in table if row["measured"] == "1"]
    assert np.mean(diameters) == pytest.approx(facts["mean_diameter"].value, rel=1e-4)
    assert {row["unit"] for row in table} == {unit}
    assert all(float(row["area"]) == pytest.approx(np.pi / 4 * float(row["equivalent_diameter"]) ** 2, rel=1e-4)
               for row in table)  # fmt: skip


@pytest.mark.parametrize("bar", [0, 40])
def test_outlines_lie_on_the_bodies_and_open_in_imagej(bar: int, tmp_path: Path) -> None:
    """Seen failing with the height of a bar above the picture left out, and with x and y changed about."""
    write_rois(tmp_path / "r.zip", bodies(micrograph(bar_on_top=bar)))
    regions: Any = roifile.roiread(tmp_path / "r.zip")
    assert len(regions) == 9
    centres = np.array([(260 * (1 + k % 3) / 4, bar + 200 * (1 + k // 3) / 4) for k in range(9)])
    found = np.array([region.coordinates().mean(axis=0) for region in regions])
    assert np.hypot(*(found[:, None] - centres).T).min(axis=0).max() < 1.0
    assert sorted(region.name for region in regions) == [f"{k:04d}" for k in range(1, 10)]


def test_feret_of_a_bar_that_lies_askew() -> None:
    y, x = np.mgrid[:120, :120] - 60.0
    c, s = np.cos(0.5), np.sin(0.5)
    bar = (np.abs(c * x + s * y) < 40) & (np.abs(c * y - s * x) < 10)
    largest, least = feret(outlines(bar)[0])
    assert largest == pytest.approx(np.hypot(80, 20), abs=2)
    assert least == pytest.approx(20, abs=1.5)
    assert feret(np.array([[0.0, 0.0], [3.0, 0.0]])) == (3.0, 0.0)


def test_info_writes_the_table_and_the_outlines(maemi: Maemi, tmp_path: Path) -> None:
    tiff = tmp_path / "a.tif"
    tifffile.imwrite(tiff, discs(size=(200, 260)))
    table, rois = tmp_path / "o.csv", tmp_path / "o.zip"
    code, _, _ = maemi("info", tiff, "--objects", table, "--rois", rois)
    assert code == 0
    assert len(rows(table)) == len(roifile.roiread(rois)) == 9
    assert rows(table)[0]["file"] == str(tiff)

    code, _, err = maemi("info", tiff, tiff, "--rois", rois)
    assert code == 2
    assert err.startswith("error: one_file_only: ")

    code, _, err = maemi("info", tiff, "--objects", tiff / "o.csv")
    assert code == 2
    assert err.startswith("error: disk: ")


def test_figures_and_tables_are_made_of_one_look(maemi: Maemi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring again for each of them took a large frame twice as long."""
    looks = []
    find = findings.find
    monkeypatch.setattr(findings, "find", lambda *a, **k: looks.append(1) or find(*a, **k))
    tifffile.imwrite(tmp_path / "a.tif", discs(size=(200, 260)))
    code, _, _ = maemi(
        "info", tmp_path / "a.tif", "--overlay", tmp_path, "--objects", tmp_path / "t.csv", "--rois", tmp_path / "r.zip"
    )
    assert code == 0
    assert (tmp_path / "a.tif.objects.png").exists()
    assert len(rows(tmp_path / "t.csv")) == 9
    assert len(looks) == 1

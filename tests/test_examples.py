"""The example micrographs: read without error, small enough to ship, each with a source and a licence on its page."""

import re
from pathlib import Path

import pytest

from assistant.micrograph import find_micrographs, read_micrograph

EXAMPLES = Path(__file__).parents[1] / "examples"
PAGE = (EXAMPLES / "README.md").read_text(encoding="utf-8")
MICROGRAPHS = find_micrographs(EXAMPLES)
KNOWN = {
    "gelatine_fibres.tif": (31.0, "tag", 10.0),
    "ncm_cathode.jpg": (269.9, "banner", 20.0),
    "nanowires.tif": (24.8, "banner", None),
}
"""Pixel size [nm], its source, voltage [kV], as the page gives them; a voltage that may be read later is None."""


def rows(name: str) -> list[str]:
    return [line for line in PAGE.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]]


def test_there_are_a_dozen() -> None:
    assert len(MICROGRAPHS) == 12


@pytest.mark.parametrize("path", MICROGRAPHS, ids=lambda path: path.name)
def test_it_is_read(path: Path) -> None:
    m = read_micrograph(path)
    assert min(m.content.shape) >= 200
    if path.name in KNOWN:
        nm, source, kilovolts = KNOWN[path.name]
        assert m.calibration is not None
        assert m.calibration.nm_per_pixel == pytest.approx(nm, rel=0.01)
        assert m.calibration.source == source
        assert kilovolts is None or m.instrument.hv_kv == kilovolts


@pytest.mark.parametrize("path", sorted(p for p in EXAMPLES.iterdir() if p.is_file()), ids=lambda path: path.name)
def test_it_is_small_and_has_a_licence(path: Path) -> None:
    """Fails for a file that nobody wrote down: what it shows in one table, where it is from in the other."""
    assert path.stat().st_size < 200_000
    if path.name != "README.md":
        shows, origin = rows(path.name)
        assert shows
        (text,) = re.findall(r"\]\((LICENSES/[^)]+)\)", origin)
        assert "Permission is hereby granted, free of charge" in (EXAMPLES / text).read_text(encoding="utf-8")


def test_every_licence_is_used() -> None:
    assert {f"LICENSES/{path.name}" for path in (EXAMPLES / "LICENSES").iterdir()} == set(
        re.findall(r"\]\((LICENSES/[^)]+\.txt)\)", PAGE)
    )

"""Pictures like this one: the nearest are found, what was seen is kept, and conditions on facts hold."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import assistant.similar as similar
from assistant.conditions import read_condition
from assistant.errors import ConfigError, DatasetError, MicrographError
from assistant.measurements.facts import Fact
from assistant.similar import Found, distances, find_similar

SIDE = 128
Maemi = Callable[..., tuple[int, str, str]]


def stripes(seed: int, *, pitch: int = 12) -> np.ndarray:
    random = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * (np.arange(SIDE) + random.uniform(0, pitch)) / pitch)
    return np.clip(128 + 90 * wave[None, :] + random.normal(0, 6, (SIDE, SIDE)), 0, 255).astype(np.uint8)


def blots(seed: int) -> np.ndarray:
    from scipy import ndimage

    random = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(random.normal(0, 1, (SIDE, SIDE)), 6)
    return np.clip(128 + 60 * soft / soft.std(), 0, 255).astype(np.uint8)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures of stripes, four of blots, and an index of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "archive"
    for kind, draw in (("stripes", stripes), ("blots", blots)):
        (folder / kind).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(draw(number)).save(folder / kind / f"{kind}_{number}.png")
    return folder


def kinds(found: Found) -> list[str]:
    return [picture.path.parent.name for picture in found.pictures]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read, in order."""
    read: list[Path] = []
    plain = similar.read_micrograph

    def counted(path: Path) -> object:
        read.append(path)
        return plain(path)

    monkeypatch.setattr(similar, "read_micrograph", counted)
    return read


# ---- what is found


def test_pictures_of_its_kind_come_first_and_it_is_not_among_them(archive: Path) -> None:
    image = archive / "stripes" / "stripes_0.png"
    shutil.copy(image, archive / "blots" / "a_copy.png")
    found = find_similar(image, archive, top=4)
    assert found.pictures[0].path.name == "a_copy.png"
    assert found.pictures[0].distance == pytest.approx(0, abs=1e-3)
    assert kinds(found)[1:] == ["stripes"] * 3
    assert image not in [picture.path for picture in found.pictures]
    assert found.looked_at == 9


def test_the_search_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64, one pair at a time, over more than one block."""
    monkeypatch.setattr(similar, "_ROWS", 16)
    random = np.random.default_rng(0)
    seen, asked = random.normal(3, 1, (50, 7)).astype(np.float16), random.normal(3, 1, 7).astype(np.float16)
    mean = seen.astype(float).mean(axis=0)
    direction, expected = asked.astype(float) - mean, []
    for row in seen.astype(float) - mean:
        expected.append(1 - row @ direction / np.linalg.norm(row) / np.linalg.norm(direction))
    assert distances(asked, list(seen)) == pytest.approx(expected, abs=1e-4)


def test_one_picture_is_a_folder_too(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(archive / "blots" / "blots_0.png", tmp_path / "one")
    found = find_similar(archive / "blots" / "blots_1.png", tmp_path / "one")
    assert len(found.pictures) == 1
    assert 0 <= found.pictures[0].distance <= 2


# ---- what is kept


def test_what_was_seen_is_not_read_again(archive: Path, reads: list[Path]) -> None:
    image = archive / "stripes" / "stripes_0.png"
    first = find_similar(image, archive)
    assert len(reads) == 9
    (archive / "moved").mkdir()
    (archive / "blots" / "blots_3.png").rename(archive / "moved" / "other_name.png")
    os.utime(archive / "blots" / "blots_2.png", (1, 1))
    reads.clear()
    again = find_similar(image, archive)
    assert reads == [image]
    assert [p.distance for p in again.pictures] == [p.distance for p in first.pictures]
    assert "other_name.png" in [picture.path.name for picture in again.pictures]


def test_a_changed_picture_and_a_new_side_car_are_read_again(archive: Path, reads: list[Path]) -> None:
    image = archive / "stripes" / "stripes_0.png"
    find_similar(image, archive)
    Image.fromarray(stripes(9)).save(archive / "blots" / "blots_0.png")
    (archive / "blots" / "blots_1.txt").write_text("$CM_FORMAT JEOL/EO\n$CM_ACCEL_VOLT 15.0\n$CM_MAG 5000\n")
    reads.clear()
    found = find_similar(image, archive)
    assert sorted(path.name for path in reads) == ["blots_0.png", "blots_1.png", "stripes_0.png"]
    assert "blots_0.png" in [picture.path.name for picture in found.pictures[:4]]


def test_a_link_is_not_followed_even_to_a_picture_that_is_known(archive: Path, tmp_path: Path) -> None:
    image = archive / "stripes" / "stripes_0.png"
    find_similar(image, archive)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "link.png").symlink_to(archive / "blots" / "blots_0.png")
    found = find_similar(image, tmp_path / "links")
    assert found.pictures == ()
    assert [error.code for error in found.failed.values()] == ["not_a_file"]


def test_a_large_folder_can_be_looked_at_in_parts(archive: Path) -> None:
    image = archive / "stripes" / "stripes_0.png"
    counts = [(found.looked_at, found.left) for found in (find_similar(image, archive, most_new=3) for _ in range(4))]
    assert counts == [(3, 5), (6, 2), (8, 0), (8, 0)]


def test_what_another_network_saw_is_never_compared(
    archive: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = archive / "stripes" / "stripes_0.png"
    find_similar(image, archive)
    reads.clear()
    monkeypatch.setattr(similar, "seen_by", lambda: "another")
    monkeypatch.setattr(similar, "features_of", lambda m: np.arange(5, dtype=np.float16))
    assert len(find_similar(image, archive).pictures) == 7
    assert len(reads) == 9


def test_what_is_gone_is_forgotten(archive: Path) -> None:
    image = archive / "stripes" / "stripes_0.png"
    find_similar(image, archive)
    shutil.rmtree(archive / "blots")
    assert len(find_similar(image, archive).pictures) == 3
    kept = b"".join(file.read_bytes() for file in similar.index_place().parent.glob("similar.sqlite*"))
    assert b"stripes_1.png" in kept
    assert b"blots_1.png" not in kept


def test_a_killed_search_goes_on_where_it_stopped(archive: Path, reads: list[Path]) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
import assistant.similar as similar
plain, seen = similar.features_of, []
def features_of(m):
    seen.append(m)
    if len(seen) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(m)
similar.features_of = features_of
similar.find_similar(Path({str(archive / "stripes" / "stripes_0.png")!r}), Path({str(archive)!r}))
"""
    died = subprocess.run([sys.executable, "-c", program], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert died.returncode == -signal.SIGKILL
    found = find_similar(archive / "stripes" / "stripes_0.png", archive)
    assert len(found.pictures) == 7
    assert 1 + 8 - 4 <= len(reads) <= 1 + 8 - 3


def test_a_damaged_index_says_what_to_do(archive: Path) -> None:
    similar.index_place().parent.mkdir(parents=True)
    similar.index_place().write_bytes(b"no database at all" * 100)
    with pytest.raises(DatasetError, match="Remove it") as raised:
        find_similar(archive / "stripes" / "stripes_0.png", archive)
    assert raised.value.code == "damaged_index"


# ---- conditions on facts

MAGNIFIED = Fact("magnification", 5000.0, "x", "read", 1.0, source="tag")
DIAMETER = Fact("mean_diameter", 312.0, "nm", "m", 0.9)
ON_PICTURE = Fact("mean_diameter", 12.0, "px", "m", 0.9)
VOLTAGE = Fact("voltage", 15.3, "kV", "read", 1.0, source="tag")
PIXEL = Fact("pixel_size", 4.2, "nm", "read", 1.0, source="tag")
FIBRES = Fact("class", None, "", "head", 0.98, source="predicted", text="fibres")


@pytest.mark.parametrize(
    ("text", "fact", "holds"),
    [
        ("magnification>4999", MAGNIFIED, True),
        ("magnification > 5000", MAGNIFIED, False),
        ("magnification >= 5 kx", MAGNIFIED, True),
        ("magnification≥5,000x", MAGNIFIED, True),
        ("mean diameter < 0.4 um", DIAMETER, True),
        ("mean_diameter<300", DIAMETER, False),
        ("average size > 0.3 µm", DIAMETER, True),
        ("mean diameter = 300 nm", DIAMETER, True),  # within its tolerance
        ("mean diameter = 250 nm", DIAMETER, False),
        ("mean diameter != 250 nm", DIAMETER, True),
        ("mean diameter < 400 nm", ON_PICTURE, None),  # not calibrated, so nobody knows
        ("voltage = 15 kV", VOLTAGE, True),
        ("voltage = 16 kV", VOLTAGE, False),
        ("hv < 15400 V", VOLTAGE, True),
        ("pixel size <= 4,2 nm/px", PIXEL, True),
        ("pixel size < 4 nm", PIXEL, False),
        ("class = Fibres", FIBRES, True),
        ("class != 'fibres'", FIBRES, False),
        ("class=powder", FIBRES, False),
        ("class = fibres", None, None),
    ],
)
def test_a_condition_is_held_against_its_fact(text: str, fact: Fact | None, holds: bool | None) -> None:
    condition = read_condition(text)
    assert fact is None or condition.quantity == fact.name
    assert condition.holds(fact) is holds


@pytest.mark.parametrize(
    "text",
    ["", "magnification", "colour > 5", "magnification > high", "class > 5", "count > 5 or 6", "> 5", "count <"],
)
def test_what_is_no_condition_is_told(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_condition(text)
    assert raised.value.code == "bad_condition"


# ---- the command


def test_the_command_prints_pictures_with_their_facts_and_names_broken_files(maemi: Maemi, archive: Path) -> None:
    (archive / "broken.tif").write_bytes(b"II*\0 this is no tiff")
    image = archive / "stripes" / "stripes_0.png"
    code, out, err = maemi("similar", image, "--in", archive, "--top", 2, "--json")
    assert code == 1
    rows = json.loads(out)
    assert [Path(row["path"]).parent.name for row in rows] == ["stripes", "stripes", "archive"]
    assert rows[0].keys() == {"path", "sha256", "distance", "facts", "error"}
    assert {"contrast", "period"} <= {fact["name"] for fact in rows[0]["facts"]}
    assert rows[2]["error"]["code"] == "unreadable"
    assert "broken.tif" in err
    code, out, err = maemi("similar", image, "--in", archive / "stripes", "--top", 1)
    assert (code, err) == (0, "")
    assert "stripes_" in out
    assert "period 12" in out


def test_the_command_says_what_a_condition_left_out(maemi: Maemi, archive: Path) -> None:
    image = archive / "stripes" / "stripes_0.png"
    code, out, err = maemi("similar", image, "--in", archive, "--where", "period > 5 px", "--json")
    assert code == 0
    assert {Path(row["path"]).parent.name for row in json.loads(out)} == {"stripes"}
    assert "were left out" in err
    code, out, err = maemi("similar", image, "--in", archive, "--where", "magnification > 1", "--json")
    assert (code, json.loads(out)) == (1, [])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["gone.png", "--in", "{archive}"], "not_found"),
        (["{image}", "--in", "nowhere"], "no_folder"),
        (["{image}", "--in", "{archive}", "--where", "size"], "bad_condition"),
        (["{image}", "--in", "{empty}"], "no_images"),
    ],
)
def test_what_cannot_be_done_is_one_line(maemi: Maemi, archive: Path, arguments: list[str], code: str) -> None:
    (archive / "empty").mkdir()
    places = {"archive": archive, "image": archive / "stripes" / "stripes_0.png", "empty": archive / "empty"}
    exit_code, out, err = maemi("similar", *(argument.format(**places) for argument in arguments))
    assert (exit_code, out) == (2, "")
    assert err.startswith(f"error: {code}: ")
    assert err.count("\n") == 1


def test_a_picture_that_cannot_be_read_is_told(archive: Path) -> None:
    with pytest.raises(MicrographError):
        find_similar(archive, archive)

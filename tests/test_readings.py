"""A picture is read once, however often it is asked for, and by however many at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from measuring import write_tiff

from assistant.errors import MicrographError
from assistant.micrograph import Micrograph, read_micrograph
from serve.desk.desk import measured_false_rate
from serve.desk.readings import KeptReadings


class Counting:
    """Reads like the real one and counts; waits for `go` where it is given."""

    def __init__(self, go: threading.Event | None = None) -> None:
        self.calls, self.go = 0, go

    def __call__(
        self, source: Path | bytes, *, page: int | None = None, pixel_size_nm: float | None = None
    ) -> Micrograph:
        self.calls += 1
        if self.go:
            assert self.go.wait(30)
        return read_micrograph(source, page=page, pixel_size_nm=pixel_size_nm)


def test_a_picture_is_read_once_per_pixel_size_and_side_car(tmp_path: Path) -> None:
    counting = Counting()
    read, path = KeptReadings(counting), write_tiff(tmp_path / "a.tif", nm=None)
    assert read(path).sha256 == read(path).sha256 == read_micrograph(path).sha256
    assert counting.calls == 1
    copy = tmp_path / "folder" / "b.tif"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    assert read(copy).source == copy
    assert read(path).source == path
    assert counting.calls == 1
    assert read(path, pixel_size_nm=2.0).calibration is not None
    assert read(path).calibration is None
    assert counting.calls == 2
    path.with_name("a.txt").write_text("$CM_FORMAT JEOL\n$CM_ACCEL_VOLT 15.0\n")
    assert read(path).instrument.hv_kv == 15.0
    assert counting.calls == 3
    write_tiff(path, seed=1)
    assert read(path).sha256 != read(copy).sha256
    assert counting.calls == 4


def test_who_comes_while_a_picture_is_read_waits_for_it(tmp_path: Path) -> None:
    counting = Counting(threading.Event())
    read, path = KeptReadings(counting), write_tiff(tmp_path / "a.tif")
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(read, path) for _ in range(4)]
        assert counting.go
        counting.go.set()
        assert len({one.result().sha256 for one in asked}) == 1
    assert counting.calls == 1


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    counting, bad = Counting(), tmp_path / "bad.tif"
    bad.write_bytes(b"II*\0")
    read: Any = KeptReadings(counting)
    for calls in (1, 2):
        with pytest.raises(MicrographError):
            read(bad)
        assert counting.calls == calls
    with pytest.raises(MicrographError, match="not exist"):
        read(tmp_path / "none.tif")


def test_what_was_used_longest_ago_is_let_go(tmp_path: Path) -> None:
    paths = [write_tiff(tmp_path / f"{n}.tif", seed=n) for n in range(3)]
    one = read_micrograph(paths[0])
    counting = Counting()
    size = one.pixels.nbytes + (0 if one.sample is None else one.sample.nbytes)
    read = KeptReadings(counting, limit=2 * size)
    for path in (paths[0], paths[1], paths[0], paths[2], paths[0]):
        read(path)
    assert counting.calls == 3
    read(paths[1])
    assert counting.calls == 4


@pytest.mark.parametrize(
    ("record", "rate"),
    [
        ('{"statements": {"true": 90, "false": 6, "unsupported": 24, "withheld": 80}}', 0.05),
        ('{"statements": {"true": 0, "false": 0, "unsupported": 0}}', None),
        ('{"config": {}}', None),
        ("[]", None),
        ("{", None),
    ],
)
def test_the_rate_of_false_statements_is_told_where_it_was_measured(
    tmp_path: Path, record: str, rate: float | None
) -> None:
    (tmp_path / "run.json").write_text(record)
    assert measured_false_rate(tmp_path) == rate
    assert measured_false_rate(None) is None

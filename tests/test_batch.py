"""Captioning a folder: resumable, one row per image, whole files, whatever happens in between."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from measuring import MeasuringAssistant, write_tiff

from assistant.errors import ConfigError, MaemiError
from assistant.measure import Fact, Facts
from assistant.micrograph import read_micrograph
from serve.batch import caption_rows as rows
from serve.batch import journal as batch
from serve.batch.caption_rows import CaptionRow, csv_cell, in_groups, write_rows
from serve.batch.jobs import columns_of
from serve.batch.journal import Journal, Summary, caption_folder

TESTS = Path(__file__).parent
FIELDS = ["path", "sha256", "caption", "pixel_size_nm", "confidence", "error"]


def test_columns_hold_what_may_be_stated(tmp_path: Path) -> None:
    """A class as a word; no number that an answer would withhold. Seen failing for both."""
    label = Fact("class", None, "", "calibrated head", 0.97, source="predicted", text="powder")
    items = (label, Fact("count", 9.0, "", "threshold", 0.6), Fact("mean_diameter", 70.0, "nm", "threshold", 0.3))
    told = columns_of(read_micrograph(write_tiff(tmp_path / "a.tif")), Facts("bodies", items))
    assert {name: told[name] for name in ("class", "count")} == {"class": "powder", "count": 9.0}
    assert "mean_diameter_nm" not in told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five micrographs, one of them uncalibrated, one in a sub-folder, and one file that is none."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.tif", "b.tif", "sub/c.tif", "d.tif")):
        write_tiff(images / name, seed=number)
    write_tiff(images / "bare.tif", seed=9, nm=None)
    (images / "broken.tif").write_bytes(b"II*\0no tiff at all")
    return images


def run(folder: Path, out: Path, **options: Any) -> Summary:
    return caption_folder(folder, out, **{"load": MeasuringAssistant} | options)


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_one_row_per_image_and_failures_are_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    told: list[tuple[int, int, str]] = []
    summary = run(folder, out, progress=lambda *seen: told.append(seen))
    found = {Path(row["path"]).name: row for row in read(out)}
    assert list(read(out)[0]) == FIELDS
    assert [row["path"] for row in read(out)] == sorted(row["path"] for row in read(out))
    assert (summary.total, summary.captioned, summary.reused, len(summary.failures)) == (6, 5, 0, 1)
    assert found["a.tif"]["pixel_size_nm"] == pytest.approx(4.2)
    assert found["bare.tif"]["pixel_size_nm"] is None
    assert all((row["caption"] is None) != (row["error"] is None) for row in found.values())
    assert found["broken.tif"]["error"].split(":")[0] == summary.failures[0][1].split(":")[0]
    assert told[-1] == (6, 6, "1 failed")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_three_formats_hold_the_same_rows(folder: Path, tmp_path: Path, suffix: str) -> None:
    run(folder, tmp_path / "reference.jsonl")
    run(folder, tmp_path / f"out.{suffix}")
    expected = read(tmp_path / "reference.jsonl")
    if suffix == "parquet":
        assert pq.read_table(tmp_path / "out.parquet").to_pylist() == expected
    elif suffix == "csv":
        with (tmp_path / "out.csv").open(newline="", encoding="utf-8-sig") as file:
            found = list(csv.DictReader(file))
        assert found == [{k: "" if v is None else str(v) for k, v in row.items()} for row in expected]
    else:
        assert read(tmp_path / "out.jsonl") == expected


class _Counting(MeasuringAssistant):
    """Counts the images it was asked to caption."""

    captioned: list[str] = []  # noqa: RUF012  # shared on purpose: a new instance is made by every run

    def caption(self, images: Sequence[Any]) -> list[str]:
        self.captioned += [image.source.name for image in images]
        return super().caption(images)


def test_a_second_run_does_only_what_is_new(folder: Path, tmp_path: Path) -> None:
    """Done rows are reused by content and time; changed, new and failed files are looked at again; gone ones leave."""
    out = tmp_path / "captions.jsonl"
    _Counting.captioned.clear()
    assert run(folder, out, load=_Counting).captioned == 5
    assert sorted(_Counting.captioned) == ["a.tif", "b.tif", "bare.tif", "c.tif", "d.tif"]
    first = out.read_bytes()
    _Counting.captioned.clear()
    assert run(folder, out, load=_Counting).reused == 5
    assert _Counting.captioned == []
    assert out.read_bytes() == first
    write_tiff(folder / "a.tif", seed=77)
    write_tiff(folder / "new.tif", seed=78)
    write_tiff(folder / "broken.tif", seed=79)
    (folder / "b.tif").unlink()
    summary = run(folder, out, load=_Counting)
    assert sorted(_Counting.captioned) == ["a.tif", "broken.tif", "new.tif"]
    assert (summary.total, summary.captioned, summary.reused, summary.failures) == (6, 6, 3, [])
    assert not [row for row in read(out) if row["path"].endswith("/b.tif")]


class _Slow(MeasuringAssistant):
    """Slow enough to be killed in the middle."""

    def caption(self, images: Sequence[Any]) -> list[str]:
        time.sleep(0.05)
        return super().caption(images)


def test_kill_at_any_moment_then_the_same_command(tmp_path: Path) -> None:
    """kill -9 in the middle, several times: the output ends equal to that of an uninterrupted run, nothing is lost."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        write_tiff(images / f"{number:02d}.tif", seed=number)
    run(images, tmp_path / "whole.jsonl")
    out = tmp_path / "killed.jsonl"
    kept = 0
    for delay in (0.02, 0.08, 0.17):
        child = multiprocessing.get_context("fork").Process(
            target=run, args=(images, out), kwargs={"load": _Slow, "at_once": 2}
        )
        child.start()
        time.sleep(delay)
        assert child.pid
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert not out.exists() or len(read(out)) == 12
        reached = _journalled(out)
        assert reached >= kept
        kept = reached
    summary = run(images, out, load=_Slow)
    assert summary.captioned == 12
    assert summary.reused >= kept
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def _journalled(out: Path) -> int:
    import sqlite3

    journal = out.with_name(f".{out.name}.journal")
    if not journal.exists():
        return 0
    connection = sqlite3.connect(journal)
    try:
        return int(connection.execute("SELECT count(*) FROM results").fetchone()[0])
    except sqlite3.OperationalError:  # killed before the tables were made
        return 0
    finally:
        connection.close()


class _Fleeting(MeasuringAssistant):
    """A picture goes away after the files were listed."""

    folder: Path

    def __init__(self) -> None:
        (self.folder / "a.tif").unlink()


def test_what_cannot_be_read_is_one_row_each(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links that lead nowhere or to themselves, files that vanish before and after they are looked at, a folder that is
    named like a picture, one that cannot be listed: a failed row with its reason, and the others are captioned.

    Seen failing: the first of them ended the batch without a row, and the folders were passed over in silence.
    """
    (folder / "dangling.tif").symlink_to(folder / "nowhere.tif")
    (folder / "loop.tif").symlink_to(folder / "loop.tif")
    (folder / "named.tif").mkdir()
    write_tiff(folder / "named.tif" / "inside.tif", seed=5)
    (folder / "locked").mkdir()
    listed, scandir = batch_micrographs(folder), os.scandir

    def denied(place: Any) -> Any:
        if Path(place).name == "locked":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", denied)
    monkeypatch.setattr("assistant.micrograph.find_micrographs", lambda _: [*listed, folder / "gone.tif"])
    monkeypatch.setattr(_Fleeting, "folder", folder, raising=False)
    summary = run(folder, tmp_path / "out.jsonl", load=_Fleeting)
    codes = {Path(path).name: error.split(":")[0] for path, error in summary.failures}
    assert codes == {
        "a.tif": "not_found", "broken.tif": "unreadable", "dangling.tif": "not_found", "gone.tif": "not_found",
        "locked": "unreadable", "loop.tif": "not_found", "named.tif": "not_a_file",
    }  # fmt: skip
    captioned = [Path(row["path"]).name for row in read(tmp_path / "out.jsonl") if row["caption"]]
    assert captioned == ["b.tif", "bare.tif", "d.tif", "inside.tif", "c.tif"]
    assert (summary.total, summary.captioned) == (12, 5)
    assert all(error.endswith(".") for _, error in summary.failures)
    write_tiff(folder / "a.tif", seed=0)
    assert run(folder, tmp_path / "out.jsonl", load=_Fleeting).reused == 5


def batch_micrographs(folder: Path) -> list[Path]:
    from assistant.micrograph import find_micrographs

    return find_micrographs(folder)


DEADLY_DECODER = """
import os, signal, time
from assistant.readers import raster
def decode(data, kind, page, limits):
    if data[8:12] == b"SEGV": os.kill(os.getpid(), signal.SIGSEGV)
    if data[8:12] == b"HANG": time.sleep(600)
    return real(data, kind, page, limits)
real, raster.decode = raster.decode, decode
"""
CAPTION = """
import sys
from pathlib import Path
from measuring import MeasuringAssistant
from serve.batch import jobs
from serve.batch.journal import caption_folder
jobs.READ_S = 10.0
if __name__ == "__main__":
    summary = caption_folder(
        Path(sys.argv[1]), Path(sys.argv[2]), load=MeasuringAssistant, workers=int(sys.argv[3]))
    print(summary.captioned, summary.reused)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_decoder_that_dies_or_hangs_costs_its_row(folder: Path, tmp_path: Path, workers: int) -> None:
    """A decoder broken in every process: one row each, the others are captioned, and a rerun is not stopped either.

    Seen failing with one worker: the command died of the signal, each time anew, and would have hung for ever.
    """
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(DEADLY_DECODER)
    (hook / "run.py").write_text(CAPTION)
    codes = {"SEGV": "reader_died"} | ({"HANG": "too_slow"} if workers == 1 else {})
    for order in codes:
        (folder / f"{order}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + order.encode())
    places = os.pathsep.join(map(str, (hook, TESTS, TESTS.parent)))

    def captioned() -> list[str]:
        done = subprocess.run(
            [sys.executable, str(hook / "run.py"), str(folder), str(tmp_path / "out.jsonl"), str(workers)],
            env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert captioned() == ["5", "0"]
    failed = {
        Path(row["path"]).stem: row["error"].split(":")[0] for row in read(tmp_path / "out.jsonl") if row["error"]
    }
    assert failed == {"broken": "unreadable", **codes}
    if workers == 1:
        (folder / "HANG.png").unlink()
        assert captioned() == ["5", "5"]


class _Picky(MeasuringAssistant):
    """A model that fails on one picture, and takes its whole batch with it."""

    def caption(self, images: Sequence[Any]) -> list[str]:
        if any(image.source.name == "d.tif" for image in images):
            raise RuntimeError("out of memory at 0x7f00deadbeef")
        return super().caption(images)


def test_a_picture_that_breaks_the_model_breaks_alone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    summary = run(folder, out, load=_Picky)
    failed = {Path(path).name: error for path, error in summary.failures}
    assert sorted(failed) == ["broken.tif", "d.tif"]
    assert failed["d.tif"].startswith("caption_failed: ")
    assert "0x" not in failed["d.tif"]
    assert summary.captioned == 4


class _Deadly(MeasuringAssistant):
    """A model that kills its process on one picture."""

    def caption(self, images: Sequence[Any]) -> list[str]:
        if any(image.source.name == "d.tif" for image in images):
            os._exit(9)
        return super().caption(images)


def test_workers_do_the_same_and_survive_a_death(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes give the rows of one; a picture that kills its process costs that picture only."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    run(folder, tmp_path / "one.jsonl")
    summary = run(folder, tmp_path / "two.jsonl", load=_Deadly, workers=2, at_once=2)
    assert {Path(path).name for path, _ in summary.failures} == {"broken.tif", "d.tif"}
    one = {row["path"]: row for row in read(tmp_path / "one.jsonl")}
    two = {row["path"]: row for row in read(tmp_path / "two.jsonl")}
    assert {path for path in one if one[path] != two[path]} == {str(folder / "d.tif")}
    assert two[str(folder / "d.tif")]["error"].startswith("worker_died: ")


def test_two_jobs_never_write_one_output(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"

    class _Nested(MeasuringAssistant):
        def caption(self, images: Sequence[Any]) -> list[str]:
            with pytest.raises(ConfigError, match="out_busy"):
                run(folder, out)
            return super().caption(images)

    assert run(folder, out, load=_Nested).captioned == 5


def test_rows_of_two_models_never_meet(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    run(folder, out)
    with pytest.raises(ConfigError, match="other_model"):
        run(folder, out, load=_Picky)
    with pytest.raises(ConfigError, match="other_model"):
        run(folder, out, pixel_size_nm=3.0)


def test_a_torn_write_leaves_the_old_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disk full while the output is written: the old output stays whole, and the next run only writes."""
    out = tmp_path / "captions.jsonl"
    run(folder, out)
    before = out.read_bytes()
    write_tiff(folder / "new.tif", seed=50)

    def full(row: dict[str, Any]) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rows, "json_line", full)
        with pytest.raises(MaemiError, match="No space left"):
            run(folder, out)
    assert out.read_bytes() == before
    assert not list(tmp_path.glob(".*.partial"))
    assert run(folder, out).reused == 6
    assert len(read(out)) == 7


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_loses_nothing(folder: Path, tmp_path: Path) -> None:
    """A real full disk under journal and output: one clear error, and the run ends well once there is space."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("this machine may not mount file systems")
    try:
        ballast = small / "ballast"
        ballast.write_bytes(b"x" * 90_000)
        with pytest.raises(MaemiError, match="disk_full"):
            run(folder, small / "captions.jsonl")
        ballast.unlink()
        assert run(folder, small / "captions.jsonl").captioned == 5
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_names_survive_that_are_no_text(tmp_path: Path) -> None:
    """Newline, quote, leading '=' and bytes that are not UTF-8 in a file name come back exactly from JSONL and CSV."""
    images = tmp_path / "images"
    images.mkdir()
    names = [b"new\nline.tif", b'quo"te.tif', b"=1+1.tif", b"\xff\xfe.tif", "µm ° 图.tif".encode()]
    for seed, name in enumerate(names):
        write_tiff(Path(os.fsdecode(bytes(images) + b"/" + name)), seed=seed)
    run(images, tmp_path / "out.jsonl")
    assert {os.fsencode(Path(row["path"]).name) for row in read(tmp_path / "out.jsonl")} == set(names)
    run(images, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        assert {os.fsencode(Path(row["path"]).name) for row in csv.DictReader(file)} == set(names)
    run(images, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").num_rows == len(names)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM", "\tx", "\rx", "\nx", "\uff1d1+1"])
def test_no_cell_runs_as_a_formula(tmp_path: Path, text: str) -> None:
    out = tmp_path / "out.csv"
    write_rows(out, [CaptionRow("a.tif", "00", text, 1.0, None, None)])
    with out.open(newline="", encoding="utf-8-sig") as file:
        assert next(csv.DictReader(file))["caption"] == f"'{text}"
    assert csv_cell("plain") == "plain"
    assert csv_cell(-1.5) == -1.5


def test_a_spreadsheet_is_told_that_the_text_is_utf8(folder: Path, tmp_path: Path) -> None:
    """One mark at the beginning, as Excel wants it, also after a run over a file that has none; nowhere else one."""
    (folder / "a.tif").rename(folder / "Würfel 5µm.tif")
    out = tmp_path / "out.csv"
    run(folder, out)
    whole = out.read_bytes()
    assert whole.startswith(b"\xef\xbb\xbfpath,sha256,")
    assert whole.count(b"\xef\xbb\xbf") == 1
    out.write_bytes(whole[3:])
    assert run(folder, out).reused == 5
    assert out.read_bytes() == whole
    with out.open(newline="", encoding="utf-8-sig") as file:
        assert next(csv.reader(file)) == FIELDS
    run(folder, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes()[:1] == b"{"


def test_a_pixel_size_from_the_user_counts(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out.jsonl", pixel_size_nm=2.0)
    assert {row["pixel_size_nm"] for row in read(tmp_path / "out.jsonl") if not row["error"]} == {2.0}


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        (lambda path: path / "nowhere", "no_images"),
        (lambda path: path, "no_images"),
    ],
)
def test_a_folder_without_images_is_an_error(tmp_path: Path, prepare: Callable[[Path], Path], code: str) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match=code):
        run(prepare(tmp_path / "images"), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_an_unknown_suffix_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bad_suffix"):
        run(folder, tmp_path / "out.xlsx")


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_ray_without_the_extra_says_what_to_install(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"maemi\[ray\]"):
        run(folder, tmp_path / "out.jsonl", ray="local")


def test_groups_are_made_one_at_a_time() -> None:
    """Flat memory: grouping must not read ahead."""
    taken: list[int] = []
    groups = in_groups((taken.append(n) or n for n in range(10)), 4)
    assert next(groups) == [0, 1, 2, 3]
    assert taken == [0, 1, 2, 3]
    assert list(groups) == [[4, 5, 6, 7], [8, 9]]


def test_the_journal_keeps_the_last_word(folder: Path, tmp_path: Path) -> None:
    """Adding a result twice must not give two rows."""
    journal = Journal(tmp_path / "journal", {"model": "m"})
    job = batch._find_jobs(folder, None)[0]
    for caption in ("first", "second"):
        journal.add([batch.Result(job.name, job.size, job.mtime_ns, sha256="00", caption=caption)])
    assert [row.caption for row in journal.rows([job])] == ["second"]
    assert journal.has(job)
    journal.close()

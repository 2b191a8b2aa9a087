"""Batches behind the page: folders that may be named, zip files, stopped and continued like a command."""

from __future__ import annotations

import io
import stat
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from measuring import MeasuringAssistant, write_tiff

from assistant.errors import ConfigError
from serve.batch.archive import Bounds, unpack
from serve.batch.background import Batches, CaptionBatch
from serve.batch.caption_rows import CaptionRow
from serve.batch.journal import caption_folder, finished_rows, journal_of
from serve.batch.roots import Roots
from serve.desk.gate import Gate, Stopped
from serve.page.tables import ALL_ROWS, DOUBTFUL, FAILED, UNCALIBRATED, chosen_rows

ADA, BOB = "ada", "bob"
SUFFIXES = (".tif", ".png", ".txt")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as refusal:
        call()
    return f"{refusal.value.code}: {refusal.value.message}"


# ------------------------------------------------------------------------------------------- folders


def test_only_what_lies_in_an_allowed_folder_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "open" / "lot").mkdir(parents=True)
    (tmp_path / "open-not" / "lot").mkdir(parents=True)
    (tmp_path / "open" / "way out").symlink_to(tmp_path / "open-not")
    roots = Roots.of([tmp_path / "open"])
    for words in ("lot", "./lot", f"{tmp_path}/open/lot", "lot/../lot"):
        assert roots.find(words)[0] == tmp_path / "open" / "lot"
    told = set()
    for words in ("..", "../open-not", f"{tmp_path}/open-not", "way out/lot", "/", "/nowhere", "a\0b", "x" * 5000):
        message = refused(lambda words=words: roots.find(words))  # type: ignore[misc]
        assert message.startswith("outside: ")
        told.add(message.partition(" is no folder in ")[2])
    assert len(told) == 1  # what is there and what is not reads the same
    assert "--folders" in refused(lambda: Roots().find("lot"))
    assert refused(lambda: Roots.of([tmp_path / "gone"])).startswith("no_folder: ")


def test_a_link_in_the_folder_costs_its_row(tmp_path: Path) -> None:
    """Neither the picture behind a link nor one in a linked folder is read, wherever the link leads."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
    write_tiff(root / "in.tif")
    secret = write_tiff(outside / "secret.tif", seed=1)
    (root / "link.tif").symlink_to(secret)
    (root / "folder").symlink_to(outside)
    summary = caption_folder(root, tmp_path / "out.jsonl", load=MeasuringAssistant)
    assert [Path(path).name for path, _ in summary.failures] == ["link.tif"]
    assert summary.captioned == 1


# ------------------------------------------------------------------------------------------- zips


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def test_a_zip_gives_its_pictures_and_says_what_it_left_out(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.tif")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    picture = write_tiff(tmp_path / "a.tif").read_bytes()
    archive = zipped(
        tmp_path / "lot.zip",
        ("a.tif", picture),
        ("sub/b.TIF", picture),
        ("a.txt", b"$CM_MAG 1000"),
        ("../evil.tif", picture),
        ("/root.tif", picture),
        ("c:\\evil.tif", picture),
        ("..\\evil.tif", picture),
        (link, b"/etc/passwd"),
        ("inner.zip", b"PK"),
        ("run.exe", b"MZ"),
        ("__MACOSX/._a.tif", b"x"),
    )
    into = tmp_path / "into"
    told = unpack(archive, into, SUFFIXES)
    found = sorted(path.relative_to(into).as_posix() for path in into.rglob("*") if path.is_file())
    assert found == ["a.tif", "a.txt", "sub/b.TIF"]
    assert not [path for path in tmp_path.rglob("*") if path.name in {"evil.tif", "root.tif", "link.tif"}]
    assert not [path for path in into.rglob("*") if path.is_symlink()]
    told_of = " ".join(told)
    for words in ("4 files whose names lead out", "1 file that are links", "archives themselves", "no pictures"):
        assert words in told_of


def test_a_bomb_is_stopped_by_what_comes_out_not_by_what_it_says(tmp_path: Path) -> None:
    """Seen failing with the sizes that the archive itself tells: this one says that a file has 10 bytes."""
    archive = zipped(tmp_path / "bomb.zip", ("a.tif", bytes(5_000_000)))
    bounds = Bounds(files=3, file_bytes=2**20, all_bytes=2**21)
    assert "a file over 1 MiB" in refused(lambda: unpack(archive, tmp_path / "b1", SUFFIXES, bounds))
    assert sum(path.stat().st_size for path in (tmp_path / "b1").rglob("*.tif")) <= bounds.file_bytes
    lying = bytearray(archive.read_bytes())
    for signature, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        struct.pack_into("<L", lying, lying.index(signature) + at, 10)
    (tmp_path / "lying.zip").write_bytes(lying)
    refused(lambda: unpack(tmp_path / "lying.zip", tmp_path / "b2", SUFFIXES, bounds))
    assert sum(path.stat().st_size for path in (tmp_path / "b2").rglob("*.tif")) <= bounds.file_bytes
    many = zipped(tmp_path / "many.zip", *((f"{n}.tif", bytes(900_000)) for n in range(3)))
    assert "GiB in all" in refused(lambda: unpack(many, tmp_path / "b3", SUFFIXES, bounds))
    more = zipped(tmp_path / "more.zip", *((f"{n}.tif", b"") for n in range(4)))
    assert "more than 3 files" in refused(lambda: unpack(more, tmp_path / "b4", SUFFIXES, bounds))
    long = Bounds(list_bytes=100)
    assert "list of files" in refused(lambda: unpack(more, tmp_path / "b5", SUFFIXES, long))


@pytest.mark.parametrize("cut", [0, 4, 40, -30])
def test_a_broken_zip_is_refused_in_a_sentence(tmp_path: Path, cut: int) -> None:
    whole = zipped(tmp_path / "a.zip", ("a.tif", b"x" * 1000)).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:cut])
    assert refused(lambda: unpack(tmp_path / "cut.zip", tmp_path / "into", SUFFIXES)).startswith("bad_archive: cut.zip")


def test_an_encrypted_or_flipped_zip_ends_in_words(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "a.zip", ("a.tif", bytes(range(256)) * 40)).read_bytes()
    for place in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[place] ^= 0x55
        (tmp_path / "f.zip").write_bytes(flipped)
        try:
            unpack(tmp_path / "f.zip", tmp_path / f"into{place}", SUFFIXES)
        except ConfigError as error:
            assert error.code in {"bad_archive", "archive_too_large"}  # noqa: PT017
    secret = io.BytesIO(whole)
    buffer = bytearray(secret.getvalue())
    for signature, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        buffer[buffer.index(signature) + at] |= 1
    (tmp_path / "e.zip").write_bytes(buffer)
    assert "encrypted" in unpack(tmp_path / "e.zip", tmp_path / "e", SUFFIXES)[0]


# ------------------------------------------------------------------------------------------- batches


class Stepping(MeasuringAssistant):
    """Captions one picture for each step it is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.seen = threading.Semaphore(0), list[str]()

    def caption(self, images: Sequence[Any]) -> list[str]:
        assert self.steps.acquire(timeout=60)
        self.seen += [image.source.name for image in images]
        return super().caption(images)


def until(batches: Batches, id: str, holds: Callable[[CaptionBatch], bool]) -> CaptionBatch:
    deadline = time.monotonic() + 60
    while not holds(batch := batches.state(ADA, id)):
        assert time.monotonic() < deadline, batch
        time.sleep(0.01)
    return batch


def test_a_batch_is_stopped_continued_and_found_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "lot"
    folder.mkdir()
    for n in range(4):
        write_tiff(folder / f"{n}.tif", seed=n)
    captioner, batches = Stepping(), Batches(tmp_path / "kept")
    id = batches.begin(ADA, "lot", folder, model="m", within=folder)
    batches.run(ADA, id, lambda stop, small: captioner)
    captioner.steps.release()
    until(batches, id, lambda batch: batch.done == 1)
    assert [row.path for row in batches.rows(ADA, id)] == ["0.tif"]
    batches.run(ADA, id, lambda stop, small: captioner)  # pressed twice: nothing new
    batches.stop(ADA, id)
    captioner.steps.release()
    stopped = until(batches, id, lambda batch: not batch.running)
    assert (stopped.total, stopped.finished, stopped.error) == (4, False, "")
    again = Batches(tmp_path / "kept")  # as after a restart
    assert [(batch.id, batch.total, batch.running) for batch in again.listed(ADA)] == [(id, 4, False)]
    assert again.begin(ADA, "lot", folder, model="m", within=folder) == id
    captioner.steps.release(9)
    again.run(ADA, id, lambda stop, small: captioner)
    done = until(again, id, lambda batch: batch.finished and not batch.running)
    assert captioner.seen == ["0.tif", "1.tif", "2.tif", "3.tif"]  # none twice
    assert done.done == 4
    assert {row.facts["count"] for row in again.rows(ADA, id)} == {9.0}
    assert refused(lambda: again.rows(BOB, id)).startswith("no_batch")
    assert refused(lambda: again.state(ADA, "../../ada")).startswith("no_batch")
    assert again.begin(BOB, "lot", folder, model="m", within=folder) != id
    assert again.begin(ADA, "lot", folder, model="other", within=folder) != id
    again.delete(ADA, id)
    assert refused(lambda: again.state(ADA, id)).startswith("no_batch")


def test_a_journal_that_is_just_being_made_has_no_rows(tmp_path: Path) -> None:
    """Seen failing: a page that looked between the file and its tables got an error with a number."""
    journal_of(tmp_path / "out.jsonl").touch()
    assert finished_rows(tmp_path / "out.jsonl", tmp_path) == []


def test_a_batch_that_fails_says_so_without_the_servers_paths(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    batches = Batches(tmp_path / "kept")
    id = batches.begin(ADA, "my lot", tmp_path / "empty", model="m")
    batches.run(ADA, id, lambda stop, small: MeasuringAssistant())
    told = until(batches, id, lambda batch: bool(batch.error) and not batch.running)
    assert "my lot holds no micrographs" in told.error
    assert str(tmp_path) not in told.error


def test_a_batch_waits_for_whoever_asks_and_stops_while_it_waits() -> None:
    gate, stop, ended = Gate(), threading.Event(), list[str]()

    def work() -> None:
        try:
            with gate.patient_turn(stop):
                ended.append("ran")
        except Stopped:
            ended.append("stopped")

    with gate.turn():
        thread = threading.Thread(target=work)
        thread.start()
        stop.set()
        thread.join(10)
    assert ended == ["stopped"]
    with gate.patient_turn(threading.Event()):
        assert gate.running == 1
    assert gate.inside == 0


# ------------------------------------------------------------------------------------------- tables


def test_rows_are_filtered_and_sorted_with_gaps_last() -> None:
    rows = [
        CaptionRow("b.tif", "1", "nine discs", 4.2, 0.9, None, {"count": 9.0}),
        CaptionRow("a.tif", "2", "two rods", None, None, None, {"count": 2.0, "warnings": "No scale."}),
        CaptionRow("C.tif", None, None, None, None, "unreadable: torn", {}),
    ]

    def names(*given: str) -> str:
        return "".join(row.path[0] for row in chosen_rows(rows, *given))

    assert names("", ALL_ROWS, "path") == "abC"
    assert names("", ALL_ROWS, "-path") == "Cba"
    assert names("", ALL_ROWS, "count") == "abC"
    assert names("", ALL_ROWS, "-count") == "baC"
    assert names("", ALL_ROWS, "no such column") == "baC"
    assert names("DISCS nine", ALL_ROWS, "path") == "b"
    assert names("scale", ALL_ROWS, "path") == "a"
    assert (names("", FAILED, "path"), names("", DOUBTFUL, "path"), names("", UNCALIBRATED, "path")) == ("C", "a", "a")

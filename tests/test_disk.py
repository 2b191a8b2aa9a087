"""What must survive: files whole whatever ends the writer, locks that die with their owner, errors with a name."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from assistant import disk
from assistant.disk import disk_errors, locked, write_file
from assistant.errors import ConfigError, DatasetError, RunError
from data_gen.dataset.writer import LineWriter, SplitWriter, conversation, write_card
from data_gen.drawing.synth import write_synthetic
from data_gen.knowledge import save_sheet

ROOT = Path(__file__).parents[1]

# ----------------------------------------------------------------------------------------------------------- files


def dies_at(fatal: int, write: Callable[[], object]) -> bool:
    """Write in a child that is killed at its `fatal`-th sync or rename; True if it came to the end."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    calls = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return call

    disk.os.fsync = deadly(os.fsync)  # type: ignore[assignment]
    Path.replace = deadly(Path.replace)  # type: ignore[method-assign]
    write()
    os._exit(0)


def test_a_file_is_what_it_was_or_whole(tmp_path: Path) -> None:
    """kill -9 at every sync and rename, then the same call again."""
    file = tmp_path / "file.txt"
    for fatal in range(1, 10):
        write_file(file, "old")
        done = dies_at(fatal, lambda: write_file(file, "new" * 1000))
        assert file.read_text() in ("old", "new" * 1000)
        write_file(file, "newer")
        assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
        if done:
            break
    assert fatal == 4


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    write_file(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_file(tmp_path / "file", "new" * 100_000 + "\ud800")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def parquet(out: Path) -> None:
    writer = SplitWriter(out, "train")
    row = {"messages": conversation("Is it?", "Yes.", images=0), "references": ["Yes."], "aux": ""}
    writer.add({**dict.fromkeys(("id", "task", "facet", "label", "source", "group", "teacher"), "x"), **row,
                "provenance": "{}", "measured": "{}"}, [])  # fmt: skip
    writer.finish()
    writer.publish()


def lines(out: Path) -> None:
    writer = LineWriter(out / "rejected.jsonl")
    writer.write({"id": 1})
    writer.publish()


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda out: write_file(out / "a.txt", "a"),
    "parquet": parquet,
    "lines": lines,
    "card": lambda out: write_card(out, "# Card"),
    "sheet": lambda out: save_sheet("powder", {"size": "Small."}, out),
    "truth": lambda out: write_synthetic(out, classes=("powder",), per_class=1, size=(64, 64), workers=1),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_power_cut_finds_no_renamed_file_that_is_empty(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is on disk before its name is, and the name before the writer goes on.

    Seen failing for card, sheet, truth: renamed unsynced, which after a power cut is a file of no bytes.
    """
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        done.append(("rename", str(path)))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    WRITERS[writer](tmp_path)
    renames = [at for at, (what, _) in enumerate(done) if what == "rename"]
    assert renames
    for at in renames:
        assert ("sync", done[at][1]) in done[:at]
        assert ("sync", str(Path(done[at][1]).parent)) in done[at:]


# ----------------------------------------------------------------------------------------------------------- locks

HOLDER = """
import sys
from pathlib import Path
from assistant.disk import locked
from assistant.errors import RunError
try:
    with locked(Path(sys.argv[1]), Path("the place"), RunError, "busy"):
        print("mine", flush=True)
        sys.stdin.read()
except RunError as error:
    print(error, flush=True)
"""


def holder(file: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_process_holds_a_lock_until_it_ends(tmp_path: Path) -> None:
    """Of four at once one gets it; the others are told who; after kill -9 it is free at once."""
    file = tmp_path / "new" / "lock"
    processes = [holder(file) for _ in range(4)]
    told = [said(process) for process in processes]
    owner = processes[told.index("mine")]
    told.remove("mine")
    assert len(told) == 3
    # Whoever comes while the owner still writes its name down reads the name of nobody.
    assert all(line.startswith("busy: the place is being written by ") for line in told)
    with (
        pytest.raises(ConfigError, match=f"taken: .*process {owner.pid} on "),
        locked(file, tmp_path, ConfigError, "taken"),
    ):
        pass
    owner.kill()
    owner.wait()
    with locked(file, tmp_path, ConfigError, "taken"):
        assert file.read_text().startswith(f"process {os.getpid()} on ")
    for process in processes:
        process.kill()
        process.communicate()


# ---------------------------------------------------------------------------------------------------------- errors


def database(words: str) -> Exception:
    return OperationalError("INSERT INTO answers VALUES (:a)", {"a": "No space left on device"}, Exception(words))


@pytest.mark.parametrize(
    ("error", "named", "in_a_long_block"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full", "disk_full"),
        (RuntimeError("[enforce fail] No space left on device"), "disk_full", "disk_full"),
        (ValueError("I/O error: os error 28"), "disk_full", "disk_full"),
        (database("database or disk is full"), "disk_full", "disk_full"),
        (OSError(errno.EIO, "Input/output error"), "disk", "disk"),
        (OSError(errno.EROFS, "Read-only file system"), "disk", "disk"),
        (database("disk I/O error"), "disk", "disk"),
        (database("attempt to write a readonly database"), "disk", "disk"),
        (PermissionError(errno.EACCES, "Permission denied"), "disk", None),
        (database("database is locked"), "disk", None),
        (OSError("a model hub speaks"), "disk", None),
        (ValueError("no disk at all"), None, None),
        (RunError("diverged", "The loss is NaN."), None, None),
    ],
    ids=str,
)
def test_what_a_disk_refuses_has_one_name(
    error: Exception, named: str | None, in_a_long_block: str | None, tmp_path: Path
) -> None:
    """What a statement was to store is neither quoted nor taken for what the disk said."""
    for code, writes_only in ((named, True), (in_a_long_block, False)):
        with pytest.raises(Exception) as raised, disk_errors(tmp_path, DatasetError, writes_only=writes_only):  # noqa: PT011
            raise error
        if code is None:
            assert raised.value is error
        else:
            assert isinstance(raised.value, DatasetError)
            assert raised.value.code == code
            assert str(tmp_path) in str(raised.value)
            assert "INSERT" not in str(raised.value)
            assert raised.value.__suppress_context__


def test_sqlite_that_only_says_that_the_disk_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so where there is no room for its index of the log."""
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 4096}))
    with pytest.raises(DatasetError, match="disk_full: "), disk_errors(tmp_path / "a.sqlite", DatasetError):
        raise database("disk I/O error")

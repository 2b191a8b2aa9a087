"""A warm process that forks the real `maemi` command again and again, and kills it or takes the disk away.

Reads one JSON line for each run: {"argv", "kill_after": seconds, "at": k, "how": "kill" | "full"}; answers with
{"rc", "seconds", "calls", "err"}. `at` counts what the run does to the disk: files opened for writing, renamed, removed
or synced, and statements to its databases.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM = (
    *("datasets", "openai", "httpx2", "pyarrow.parquet", "yaml", "PIL.PngImagePlugin", "tifffile", "asyncio"),
    *("assistant.config", "assistant.micrograph", "data_gen.forget", "data_gen.pipeline", "serve.cli", "serve.consent"),
    *("serve.learning", "rich.console", "rich.table"),
)
DISK_EVENTS = {"os.rename", "os.remove", "os.mkdir", "sqlite3.connect"}


class Disk:
    """Counts what a run does to the disk, and strikes at the chosen count."""

    def __init__(self, folder: str, at: int | None, how: str, tally: int) -> None:
        self.folder, self.at, self.how, self.tally, self.calls = folder, at, how, tally, 0

    def touch(self, fail: Callable[[], BaseException]) -> None:
        self.calls += 1
        os.pwrite(self.tally, self.calls.to_bytes(8, "little"), 0)
        if self.at is not None and self.calls == self.at and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        # A disk that is full stays full.
        if self.at is not None and self.calls >= self.at and self.how == "full":
            raise fail()

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if not writes or not isinstance(path, str | os.PathLike):
                return
        elif event not in DISK_EVENTS:
            return
        if str(arguments[0]).startswith(self.folder):
            self.touch(_full)

    def watch(self) -> None:
        from sqlalchemy import Engine
        from sqlalchemy import event as events

        sys.addaudithook(self.heard)
        fsync = os.fsync

        def synced(handle: int) -> None:
            self.touch(_full)
            fsync(handle)

        os.fsync = synced

        @events.listens_for(Engine, "before_cursor_execute")
        def executed(*_: object) -> None:
            self.touch(_database_full)


def _full() -> OSError:
    return OSError(28, "No space left on device")


def _database_full() -> Exception:
    from sqlalchemy.exc import OperationalError

    return OperationalError("", {}, sqlite3.OperationalError("database or disk is full"))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Fork the command; gives how it ended."""
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as tally:
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            _command(job, told.fileno(), tally.fileno())
        status = _wait(child, job.get("kill_after"))
        told.seek(0)
        tally.seek(0)
        return {
            "rc": os.waitstatus_to_exitcode(status),
            "seconds": time.perf_counter() - started,
            "calls": int.from_bytes(tally.read(8), "little"),
            "err": told.read().decode(errors="replace"),
        }


def _wait(child: int, kill_after: float | None) -> int:
    until = time.perf_counter() + (kill_after or 1e9)
    while time.perf_counter() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _command(job: dict[str, Any], told: int, tally: int) -> None:
    """The child: never returns."""
    from serve.cli import main

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(told, 1)
    os.dup2(told, 2)
    os.environ.update(job.get("env", {}))
    sys.argv = ["maemi", *job["argv"]]
    Disk(job["folder"], job.get("at"), job.get("how", "kill"), tally).watch()
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def warm_up() -> None:
    """Import what the command imports; a fork then starts in milliseconds. Starts no thread."""
    for name in WARM:
        importlib.import_module(name)
    measure_pixels = importlib.import_module("assistant.measure").measure_pixels
    measure_pixels(importlib.import_module("tiny_micrographs").tiny_picture(0), nm_per_pixel=None)


def main() -> None:
    warm_up()
    sys.stdout.write("warm\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()

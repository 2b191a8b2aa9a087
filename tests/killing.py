"""A warm process that forks the real `maemi` command again and again, and kills it or takes the disk away.

Reads one JSON line for each run: {"argv", "folder", "kill_after": seconds, "signal", "at": k, "how": "kill" | "full" |
"broken", "typed"}; answers with {"rc", "seconds", "calls", "peak", "err", "heard"}. `at` counts what the run does to
the disk: files opened for writing, renamed, removed or synced, and statements to its databases; where `disk_faults.c`
is preloaded, every system call that changes a file of the folder. `typed` goes into a terminal that is the run's stdin,
and `heard` then tells what was executed or asked of the system.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVERY_VERB = ("datasets", "pyarrow.parquet", "yaml", "PIL.PngImagePlugin", "tifffile", "serve.cli", "rich.console")
WARM = {
    "teach": (
        *EVERY_VERB,
        "openai",
        "httpx2",
        "asyncio",
        "data_gen.dataset.forget",
        "data_gen.pipeline",
        "serve.verbs.consent",
    ),
    "train": (
        *EVERY_VERB,
        *("torch", "peft", "bitsandbytes", "assistant.adapters", "assistant.inference", "training.trainer"),
        *("transformers.models.llama.modeling_llama", "transformers.trainer", "accelerate"),
    ),
}
STOCK = "MAEMI_TEST_STOCK_TRAINER"
"""Set, `train` writes and reads its checkpoints as transformers' own Trainer does: the kills must tell it from ours."""
FAULTS = "disk_faults.so"
ASKED = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pickle.find_class"}
DISK_EVENTS = {"os.rename", "os.remove", "os.mkdir", "sqlite3.connect"}


class Maemi:
    """The command, forked from a warm process: the client's side."""

    def __init__(self, verb: str, faults: Path | None = None, **environment: str) -> None:
        from serve.verbs.command import ENVIRONMENT

        variables = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": "1"} | environment
        if faults is not None:
            variables["LD_PRELOAD"] = str(faults)
        self.process = subprocess.Popen(
            [sys.executable, __file__, verb], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "warm\n"

    def run(self, argv: list[str], out: Path, **job: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"argv": argv, "folder": str(out), **job}) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def compile_faults(folder: Path) -> Path | None:
    """The library to preload, which counts system calls; None where there is no compiler."""
    source, library = Path(__file__).with_name("disk_faults.c"), folder / FAULTS
    try:
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return library


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
        if FAULTS in os.environ.get("LD_PRELOAD", ""):
            kind = self.how if self.at is not None else "count"
            ctypes.CDLL(None).disk_faults_arm(self.folder.encode(), self.at or 0, kind.encode(), self.tally)
            return
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
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as tally, tempfile.TemporaryFile() as heard:
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            _command(job, told.fileno(), tally.fileno(), heard.fileno())
        status, peak = _wait(child, job.get("kill_after"), job.get("signal", signal.SIGKILL))
        told.seek(0)
        tally.seek(0)
        heard.seek(0)
        return {
            "rc": os.waitstatus_to_exitcode(status),
            "seconds": time.perf_counter() - started,
            "peak": peak,
            "calls": int.from_bytes(tally.read(8), "little"),
            "err": told.read().decode(errors="replace"),
            "heard": heard.read().decode(errors="replace").splitlines(),
        }


def _wait(child: int, kill_after: float | None, number: int) -> tuple[int, int]:
    """The status of a run and the most memory it had [bytes]."""
    until = time.perf_counter() + (kill_after or 1e9)
    while time.perf_counter() < until:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage.ru_maxrss * 1024
        time.sleep(0.001)
    os.kill(child, number)
    _, status, usage = os.wait4(child, 0)
    return status, usage.ru_maxrss * 1024


def _command(job: dict[str, Any], told: int, tally: int, heard: int) -> None:
    """The child: never returns."""
    from serve.cli import main

    os.dup2(_terminal(job["typed"]) if "typed" in job else os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(told, 1)
    os.dup2(told, 2)
    os.environ.update(job.get("env", {}))
    sys.argv = ["maemi", *job["argv"]]
    Disk(job["folder"], job.get("at"), job.get("how", "kill"), tally).watch()
    if "typed" in job:
        _listen(job["folder"], heard)
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


def _terminal(typed: str) -> int:
    """A terminal at which somebody has typed this."""
    person, program = os.openpty()
    os.write(person, typed.encode())
    return program


def _listen(folder: str, heard: int) -> None:
    """Write down what is executed from a folder, and every process, connection and pickle that is asked for."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        where = ""
        if event == "compile":
            where = str(arguments[1])
        elif event == "exec":
            where = str(getattr(arguments[0], "co_filename", ""))
        elif event in ("ctypes.dlopen", "import"):
            where = str(arguments[0])
        asked = event in ASKED or event.startswith(("socket.connect", "socket.getaddrinfo", "socket.sendto"))
        if asked or (where and where.startswith(folder)):
            os.write(heard, f"{event} {arguments!r}"[:300].encode() + b"\n")

    sys.addaudithook(hook)


def warm_up(verb: str) -> None:
    """Import what the command imports; a fork then starts in milliseconds. Starts no thread."""
    for name in WARM[verb]:
        importlib.import_module(name)
    if os.environ.get(STOCK):
        trainer = importlib.import_module("training.trainer")
        last = importlib.import_module("transformers.trainer_utils").get_last_checkpoint
        for name in [*vars(trainer.StudentTrainer)]:
            if name == "_save_checkpoint" or name.startswith("_load_"):
                delattr(trainer.StudentTrainer, name)
        trainer.newest_checkpoint = lambda folder: Path(found) if folder.is_dir() and (found := last(folder)) else None
    if verb != "teach":
        return
    measure_pixels = importlib.import_module("assistant.measure").measure_pixels
    measure_pixels(importlib.import_module("tiny_micrographs").tiny_picture(0), nm_per_pixel=None)


def main() -> None:
    warm_up(sys.argv[1])
    sys.stdout.write("warm\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()

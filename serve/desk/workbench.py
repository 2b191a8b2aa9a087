"""A folder of data sets and runs, where one `maemi train` or `maemi evaluate` at a time runs for people on the page.

It is a process of its own that holds a lock: whoever looks at the folder, after a restart of the server as well, sees
what runs there. A server that stops leaves it running. Knows nothing about pages.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import IO, Any

from assistant.config import Config, load_config
from assistant.disk import disk_errors, lock_at_once, write_file
from assistant.errors import ConfigError, ServerError

DEFAULTS = "tiny (the bundled student)"
"""Stands for no file of settings."""
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SETTING = re.compile(r"((training|adapter|loss|prompt)\.[a-z_.0-9]+|seed)=.*")
"""What may be set from outside; a file or a model on this machine is named by a file of settings alone."""
MOST_LISTED = 200
SCORED_ROWS = 24
"""Rows of each task that a score is made on."""
NICENESS = 5
"""Answers come first: a command yields the processors to them."""
_PLACE, _LOCK, _JOB = ".maemi", "lock", "job.json"
_LAST_ERROR = re.compile(r"^error: ([a-z_]+): (.*)$", re.MULTILINE)
_PROBES, _PROBE_S = 20, 0.02
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Settings:
    """What a fine-tuning is made with: a data set and a file of settings by name, and what differs from the file."""

    data: str
    file: str = DEFAULTS
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Running:
    """The command that runs: `check`, `train` or `evaluate`, of which run, and its process."""

    what: str
    run: str
    pid: int


@dataclass(frozen=True)
class Standing:
    """How a run stands."""

    run: str
    state: str
    """`training`, `scoring`, `done`, `stopped` (it can go on) or `failed`."""
    settings: Settings
    began_at: str
    """UTC."""
    steps: int
    error: str = ""
    log: Sequence[Mapping[str, Any]] = ()
    """Entries of `metrics.jsonl`, in order."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """What `maemi evaluate` found `before` and `after`, as far as it is there."""


class Workbench:
    """Names of data sets, files of settings and runs are names of entries of `folder`, never paths.

    Raises ConfigError for what was asked wrongly, and ServerError `busy` where something runs already.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError("no_folder", f"{folder} is not a folder. Name one of data sets and runs.")
        self.folder = folder.resolve()
        self._place = self.folder / _PLACE
        self._turn = threading.Lock()
        self._children: list[threading.Thread] = []

    # ------------------------------------------------------------------------------------------- what there is

    def datasets(self) -> list[str]:
        """Data sets of the folder."""
        return sorted(path.parent.name for path in self.folder.glob("*/data") if any(path.glob("*.parquet")))

    def files(self) -> list[str]:
        """Files of settings, the defaults first."""
        return [DEFAULTS, *sorted(path.name for path in self.folder.glob("*.yaml"))][:MOST_LISTED]

    def runs(self) -> list[str]:
        """Runs that began here, the newest first."""
        begun = sorted(self.folder.glob(f"*/{_JOB}"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.parent.name for path in begun[:MOST_LISTED]]

    def free_name(self) -> str:
        """A name that no run has yet."""
        return next(name for n in count(1) if not (self.folder / (name := f"run-{n}")).exists())

    def dataset(self, name: str) -> Path:
        """The directory of a data set. Raises ConfigError `no_dataset`."""
        if name not in self.datasets():
            raise ConfigError("no_dataset", f"There is no data set {name[:64]!r}. Choose one of the list.")
        return self.folder / name

    def configured(self, settings: Settings) -> Config:
        """The settings in full. Raises ConfigError."""
        if settings.file not in self.files():
            raise ConfigError(
                "not_found", f"There is no file of settings {settings.file[:64]!r}. Choose one of the list."
            )
        for override in settings.overrides:
            if not SETTING.fullmatch(override):
                raise ConfigError(
                    "bad_override",
                    f"{override[:80]!r} cannot be set here. Write training.steps=500 or another setting of training, "
                    "adapter, loss or prompt, one a line.",
                )
        file = None if settings.file == DEFAULTS else self.folder / settings.file
        return load_config(file, settings.overrides)

    def running(self) -> Running | None:
        """The command that runs, whoever began it."""
        try:
            with (self._place / _LOCK).open("rb") as lock:
                if not lock_at_once(lock, shared=True):
                    return Running(**json.loads(lock.read() or b"{}"))
        except (FileNotFoundError, ValueError, TypeError):  # it has just begun and says nothing yet
            pass
        return None

    def standing(self, run: str) -> Standing:
        """How a run stands. Raises ConfigError `no_run`."""
        directory, job = self._job(run)
        running = self.running()
        here = running is not None and running.run == run
        error = ""
        with contextlib.suppress(OSError):
            told = _LAST_ERROR.findall((directory / "job.log").read_text(encoding="utf-8", errors="replace"))
            error = next((message for code, message in reversed(told) if code not in ("stopped", "interrupted")), "")
        if running is not None and here:
            state = "training" if running.what == "train" else "scoring"
        else:
            state = "done" if (directory / "model").is_dir() else "failed" if error else "stopped"
        return Standing(
            run=run,
            state=state,
            settings=Settings(job["data"], job["file"], tuple(job["overrides"])),
            began_at=job["began_at"],
            steps=job["steps"],
            error=error if state == "failed" else "",
            log=_entries(directory / "metrics.jsonl"),
            scores={
                when: found for when in ("before", "after") if (found := _document(directory / f"scores-{when}.json"))
            },
        )

    def checked(self) -> tuple[Settings, Mapping[str, Any] | str] | None:
        """What the last check was about, and the document of `maemi train --check --json`, or why there is none."""
        about = _document(self._place / "check.json")
        if not about or ((running := self.running()) and running.what == "check"):
            return None
        settings = Settings(about["data"], about["file"], tuple(about["overrides"]))
        if report := _document(self._place / "checked.json"):
            return settings, report
        with contextlib.suppress(OSError):
            told = _LAST_ERROR.findall((self._place / "check.log").read_text(encoding="utf-8", errors="replace"))
            if told:
                return settings, str(told[-1][1])
        return settings, "The check was stopped before it ended. Check again."

    # ------------------------------------------------------------------------------------------- what is done

    def check(self, settings: Settings) -> None:
        """Begin to look at data, settings and memory, as before the first step."""
        arguments = self._arguments(settings)
        about = json.dumps(asdict(settings))
        self._launch("check", "", [(["train", *arguments, "--check", "--json"], "checked.json", "check.log")], {
            self._place / "check.json": about,
        })  # fmt: skip

    def start(self, run: str, settings: Settings) -> None:
        """Begin a fine-tuning under a new name."""
        if not RUN_NAME.fullmatch(run):
            raise ConfigError("bad_name", "A run's name has letters, digits, dots and dashes, at most 64. Change it.")
        if (self.folder / run).exists():
            raise ConfigError("name_taken", f"There is a {run} already. Choose another name, or resume it.")
        arguments, steps = self._arguments(settings), self.configured(settings).training.steps
        job = json.dumps({**asdict(settings), "steps": steps, "began_at": _now()})
        command = ["train", *arguments, "--out", str(self.folder / run)]
        self._launch("train", run, [(command, None, "job.log")], {self.folder / run / _JOB: job})

    def resume(self, run: str) -> None:
        """Let a fine-tuning that was stopped go on."""
        standing = self.standing(run)
        command = ["train", *self._arguments(standing.settings), "--out", str(self.folder / run)]
        self._launch("train", run, [(command, None, "job.log")], {})

    def score(self, run: str) -> None:
        """Begin to score a finished run on the test split, and before it what it started from."""
        standing = self.standing(run)
        if standing.state != "done":
            raise ConfigError("not_done", f"{run} is not finished. Let it train to its end before it is scored.")
        data, init = str(self.dataset(standing.settings.data)), self.configured(standing.settings).init
        start = [] if init == "bundled" else ["--run", str(init)]
        common = ["evaluate", "--data", data, "--limit", str(SCORED_ROWS), "--no-baselines", "--json"]
        commands = [([*common, "--run", str(self.folder / run)], "scores-after.json", "scores.log")]
        if init is not None:  # without a start there is no student to compare with
            commands.insert(0, ([*common, *start], "scores-before.json", "scores.log"))
        self._launch("evaluate", run, commands, {})

    def stop(self) -> None:
        """Ask what runs to end; a fine-tuning saves its step first."""
        running = self.running()
        if running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGTERM)

    def close(self) -> None:
        """Wait for commands that have been asked to end; what runs on is left to itself."""
        for child in self._children:
            child.join(0.1)

    # ------------------------------------------------------------------------------------------- processes

    def _arguments(self, settings: Settings) -> list[str]:
        self.configured(settings)
        arguments = ["--data", str(self.dataset(settings.data))]
        if settings.file != DEFAULTS:
            arguments += ["--config", str(self.folder / settings.file)]
        return [*arguments, *(part for override in settings.overrides for part in ("--set", override))]

    def _launch(
        self,
        what: str,
        run: str,
        commands: Sequence[tuple[list[str], str | None, str]],
        written: Mapping[Path, str],
    ) -> None:
        """Run commands one after another as long as each succeeds: arguments, file for what it prints, and its log.

        `written` are files that are laid before the first. Returns once the first runs.
        """
        home = self.folder / run if run else self._place
        with self._turn, disk_errors(home, ServerError):
            lock = self._grab()
            try:
                for file, content in written.items():
                    file.parent.mkdir(exist_ok=True)
                    write_file(file, content)
                child = self._spawn(what, run, commands[0], home, lock)
            except BaseException:
                lock.close()
                raise

            def supervise(child: subprocess.Popen[bytes]) -> None:
                with lock:
                    for following in commands[1:]:
                        if child.wait() != 0:
                            return
                        child = self._spawn(what, run, following, home, lock)
                    child.wait()

            self._children = [one for one in self._children if one.is_alive()]
            self._children.append(
                threading.Thread(target=supervise, args=(child,), daemon=True, name="maemi-workbench")
            )
            self._children[-1].start()

    def _grab(self) -> IO[bytes]:
        """The lock, held by this process and by those that it hands the file to. Raises ServerError `busy`."""
        self._place.mkdir(exist_ok=True)
        lock = (self._place / _LOCK).open("ab+", buffering=0)
        for _ in range(_PROBES):  # who looks whether something runs holds it for a moment
            if lock_at_once(lock):
                lock.truncate(0)
                return lock
            time.sleep(_PROBE_S)
        lock.close()
        running = self.running()
        told = f"{running.what} {running.run}".strip() if running else "Something"
        raise ServerError("busy", f"{told} runs already, and there is one at a time. Wait for it, or stop it.")

    def _spawn(
        self, what: str, run: str, command: tuple[list[str], str | None, str], home: Path, lock: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        arguments, printed, log = command
        with open(home / printed if printed else os.devnull, "wb") as out, (home / log).open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "serve.cli", *arguments],  # -P: nothing of the folder is imported
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                pass_fds=(lock.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path])},
                start_new_session=True,  # Ctrl-C is meant for the server
            )
        lock.truncate(0)
        lock.write(json.dumps(asdict(Running(what, run, child.pid))).encode())
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, NICENESS)
        return child

    def _job(self, run: str) -> tuple[Path, dict[str, Any]]:
        directory = self.folder / run
        job = _document(directory / _JOB) if RUN_NAME.fullmatch(run) else None
        if not job:
            raise ConfigError("no_run", f"There is no run {run[:64]!r} that began here. Choose one of the list.")
        return directory, job


def _document(file: Path) -> dict[str, Any] | None:
    """A JSON object that is whole; None for any other."""
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _entries(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that is being written."""

    def whole() -> Iterator[dict[str, Any]]:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and "step" in entry:
                    yield entry

    try:
        return list(whole())
    except OSError:
        return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

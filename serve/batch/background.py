"""Batches of captions that run behind the page: begun, watched, stopped and continued by whoever owns them.

Each has a folder of its own with what was asked for, the engine's journal and small pictures; `caption_folder` does the
work. A batch outlives the page that began it, and after a restart it is there, stopped. Knows nothing about pages.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from assistant.disk import write_file
from assistant.errors import ConfigError, MaemiError
from serve.batch.caption_rows import CaptionRow
from serve.batch.jobs import Captioner
from serve.batch.journal import caption_folder, finished_rows
from serve.desk.gate import Stopped

MOST_AT_ONCE = 4
"""Batches that run together: each has a process that reads files."""
_ID = re.compile(r"[0-9a-f]{24}")
_OUT, _ABOUT, _THUMBNAILS = "captions.jsonl", "batch.json", "thumbnails"

_log = logging.getLogger("maemi.batches")


@dataclass(frozen=True)
class CaptionBatch:
    """What was asked for, and how far it is."""

    id: str
    title: str
    folder: str
    model: str
    """What names the weights."""
    within: str | None
    """The allowed folder of the server that holds it; None where it was sent."""
    pixel_size_nm: float | None
    begun_at: str
    notes: tuple[str, ...] = ()
    """What was left out before it began."""
    done: int = 0
    total: int = 0
    """0 while pictures are looked for."""
    failed: str = ""
    """How many failed, in words."""
    finished: bool = False
    error: str = ""
    """Why it ended before its end."""
    running: bool = False
    left_s: float | None = None
    """Time until it ends, if the rest is like what was done; None where nothing is known [s]."""


class _Run:
    """A batch under way."""

    def __init__(self, batch: CaptionBatch) -> None:
        self.batch, self.stop = batch, threading.Event()
        self.began: tuple[float, int] | None = None
        """When, and with how many rows done before."""

    def tell(self, done: int, total: int, failed: str) -> None:
        if self.began is None:
            self.began = (time.monotonic(), done)
        since, before = self.began
        pace = (time.monotonic() - since) / (done - before) if done > before else None
        left = None if pace is None else pace * (total - done)
        self.batch = replace(self.batch, done=done, total=total, failed=failed, left_s=left)
        if self.stop.is_set():
            raise Stopped


class Batches:
    """Batches of all owners under one folder; an owner reaches none but their own.

    Raises ConfigError `no_batch` for one that is not there, `batch_busy` where too many run.
    """

    def __init__(self, place: Path) -> None:
        self._place, self._running, self._lock = place, dict[str, _Run](), threading.Lock()

    def begin(
        self,
        owner: str,
        title: str,
        folder: Path,
        *,
        model: str,
        within: Path | None = None,
        pixel_size_nm: float | None = None,
        notes: tuple[str, ...] = (),
    ) -> str:
        """Note a batch; gives its id, the same one for the same folder of the server with the same settings."""
        key = repr((owner, str(folder), model, pixel_size_nm)) if within else secrets.token_hex()
        id = sha256(key.encode()).hexdigest()[:24]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        outer = str(within) if within else None
        if not (self._folder(owner, id) / _ABOUT).is_file():
            self._keep(owner, CaptionBatch(id, title, str(folder), model, outer, pixel_size_nm, now, notes))
        return id

    def run(self, owner: str, id: str, captioner: Callable[[threading.Event, Path], Captioner]) -> None:
        """Work on a batch until it is done or stopped; what was finished before is not done again.

        `captioner` is given the event that stops the batch and the folder for thumbnails.
        """
        batch = self.state(owner, id)
        folder = self._folder(owner, id)
        with self._lock:
            if id in self._running:
                return
            if len(self._running) >= MOST_AT_ONCE:
                raise ConfigError("batch_busy", f"{MOST_AT_ONCE} batches run already. Wait until one is done.")
            run = self._running[id] = _Run(replace(batch, running=True, finished=False, error=""))

        def tell(done: int, total: int, failed: str) -> None:
            first = run.began is None
            run.tell(done, total, failed)
            if first:  # after a kill it is known how many there are
                self._keep(owner, replace(run.batch, running=False, left_s=None))

        def work() -> None:
            ended: dict[str, object] = {}
            try:
                ready = captioner(run.stop, folder / _THUMBNAILS)
                caption_folder(
                    Path(batch.folder),
                    folder / _OUT,
                    load=_Loader(batch.model, ready),
                    pixel_size_nm=batch.pixel_size_nm,
                    with_facts=True,
                    at_once=1,
                    progress=tell,
                )
                ended = {"finished": True}
            except Stopped:
                pass
            except MaemiError as error:
                ended = {"error": error.message.replace(batch.folder, batch.title)}
            except Exception:  # the boundary of the thread: the log has what broke, the owner its number
                number = secrets.token_hex(4)
                _log.exception("a batch failed, id %s", number)
                ended = {"error": f"Something went wrong (id {number}). The log has the details."}
            finally:
                with self._lock:
                    del self._running[id]
                    if folder.is_dir():  # else its owner deleted it
                        self._keep(owner, replace(run.batch, running=False, left_s=None, **ended))  # type: ignore[arg-type]

        threading.Thread(target=work, daemon=True, name="maemi-captions").start()

    def stop(self, owner: str, id: str) -> None:
        """Let a batch end with the picture at hand."""
        self.state(owner, id)
        with self._lock, suppress(KeyError):
            self._running[id].stop.set()

    def state(self, owner: str, id: str) -> CaptionBatch:
        """How far a batch is."""
        folder = self._folder(owner, id)
        with self._lock:
            if id in self._running and folder.is_dir():
                return self._running[id].batch
            try:
                told = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
                return CaptionBatch(**told | {"notes": tuple(told["notes"])})
            except (OSError, ValueError, TypeError, KeyError):
                raise ConfigError("no_batch", "There is no such batch, or it is somebody else's.") from None

    def listed(self, owner: str) -> list[CaptionBatch]:
        """Batches of an owner, the newest first."""
        found = []
        for path in (self._place / owner).glob(f"*/{_ABOUT}"):
            with suppress(ConfigError):
                found.append(self.state(owner, path.parent.name))
        return sorted(found, key=lambda batch: batch.begun_at, reverse=True)

    def rows(self, owner: str, id: str) -> list[CaptionRow]:
        """The rows that are finished."""
        batch = self.state(owner, id)
        return finished_rows(self._folder(owner, id) / _OUT, Path(batch.folder))

    def thumbnail(self, owner: str, id: str, sha: str | None) -> bytes | None:
        """A small JPEG of a picture by its hash."""
        try:
            return (self._folder(owner, id) / _THUMBNAILS / f"{sha}.jpg").read_bytes()
        except OSError:
            return None

    def delete(self, owner: str, id: str) -> None:
        """Stop a batch and remove all that is kept of it; its pictures stay where they are."""
        self.stop(owner, id)
        shutil.rmtree(self._folder(owner, id), ignore_errors=True)

    def close(self) -> None:
        """Let every batch end with the picture at hand."""
        with self._lock:
            for run in self._running.values():
                run.stop.set()

    def _folder(self, owner: str, id: str) -> Path:
        if not _ID.fullmatch(id):
            raise ConfigError("no_batch", "There is no such batch, or it is somebody else's.")
        return self._place / owner / id

    def _keep(self, owner: str, batch: CaptionBatch) -> None:
        folder = self._folder(owner, batch.id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / _THUMBNAILS).mkdir(exist_ok=True)
        write_file(folder / _ABOUT, json.dumps(asdict(batch)))


@dataclass(frozen=True)
class _Loader:
    """Brings a captioner that is there already; the journal knows it by its model."""

    model: str
    captioner: Captioner

    def __call__(self) -> Captioner:
        return self.captioner

    def __repr__(self) -> str:
        return self.model

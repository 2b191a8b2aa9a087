"""Reads and measures micrographs in worker processes, in order, holding a bounded number of them at a time.

Knows nothing about tasks, teachers or the data set.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from assistant.errors import DatasetError, MicrographError
from assistant.orphans import end_with_parent

if TYPE_CHECKING:
    from assistant.measure import Facts
    from assistant.micrograph import Micrograph

SIDE_CAR_BYTES = 2**20
_FEW = 8
"""Fewer jobs than this are done here: starting workers costs more."""
J = TypeVar("J")
_T = TypeVar("_T")
R = TypeVar("R")


@cache
def measurement_version() -> str:
    """Digest of the code that reads and measures: what other code measured is measured again."""
    import assistant

    root = Path(assistant.__file__).parent
    sources = [root / "measure.py", root / "micrograph.py", *root.glob("measurements/*.py"), *root.glob("readers/*.py")]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sorted(sources))).hexdigest()


def content_digest(path: Path) -> str:
    """sha256 of a file, of the side-cars that may say more about it, and of the code that measures it.

    Raises MicrographError `unreadable`.
    """
    digest = hashlib.sha256(measurement_version().encode())
    try:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
        for name in (f"{path.name}.txt", f"{path.stem}.txt", f"{path.stem}.hdr", f"{path.name}.hdr"):
            side_car = path.with_name(name)
            if side_car.is_file():
                with side_car.open("rb") as stream:
                    digest.update(name.encode() + hashlib.sha256(stream.read(SIDE_CAR_BYTES)).digest())
    except OSError as error:
        raise MicrographError("unreadable", f"{path}: {error.strerror}. Check the file.") from None
    return digest.hexdigest()


def examine_files(job: tuple[str, bool, int | None]) -> dict[str, Any]:
    """Read and measure one file -> plain JSON; {"error": {...}} where it is not a micrograph.

    `job` is (path, list it for egress?, longest side sent [px]).
    """
    from assistant.measure import measure
    from assistant.micrograph import read_micrograph
    from data_gen.hosted.egress import display_content, redact
    from data_gen.questions.filters import difference_hash

    path, listed, longest = job
    try:
        m = read_micrograph(Path(path))
        facts = measure(m)
        picture = display_content(m)
    except MicrographError as error:
        return {"error": {"code": error.code, "message": error.message}}
    height, width = picture.shape
    record = described(m, facts) | {
        "size": [width, height],
        "dhash": difference_hash(picture),
        "warnings": list(m.warnings),
    }
    if listed:
        sent = redact(m, longest=longest)
        record["sent"] = {"sha256": hashlib.sha256(sent).hexdigest(), "bytes": len(sent)}
    return record


def described(m: Micrograph, facts: Facts) -> dict[str, Any]:
    """What rows say of a micrograph, by the names that `Evidence` gives it."""
    from assistant.micrograph import INSTRUMENT_FIELDS

    return {
        "sha256": m.sha256,
        "nm_per_pixel": m.calibration.nm_per_pixel if m.calibration else None,
        # What is asked and told of the instrument: never the date.
        "instrument": {name: getattr(m.instrument, name) for name in INSTRUMENT_FIELDS if name != "date"},
        "facts": facts.as_dict(),
        "facts_line": facts.line(),
        "metadata_line": m.metadata_line(),
    }


def redacted(paths: Sequence[str], longest: int | None) -> list[bytes]:
    """The copies of the files that may leave the machine."""
    from assistant.micrograph import read_micrograph
    from data_gen.hosted.egress import redact

    return [redact(read_micrograph(Path(path), read_bar=False), longest=longest) for path in paths]


def prepared_pictures(job: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """Per file its sha256 and the PNG that goes into the data set: what the student sees, before it is resized."""
    from assistant.micrograph import read_micrograph
    from data_gen.hosted.egress import redact

    # The scale of a picture that is stored is in its row already: reading it off the bar again takes a second.
    read = [read_micrograph(Path(path), read_bar=False) for path in job]
    return [(m.sha256, redact(m)) for m in read]


class Examiner:
    """A pool of spawned workers; with one worker, or few jobs, everything is done in this process."""

    def __init__(self, workers: int | None, *, jobs: int) -> None:
        workers = min(workers or os.cpu_count() or 1, jobs)
        self._window = 4 * workers
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1 and jobs >= _FEW:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[J], R], jobs: Iterable[tuple[_T, J | None]]) -> Iterator[tuple[_T, R | None]]:
        """Pairs (tag, result) in the order of the jobs (tag, argument); an argument None has no result.

        Reads a bounded number of jobs ahead. Raises DatasetError `worker_died`.
        """
        running: deque[tuple[_T, Future[R] | None]] = deque()
        for tag, job in jobs:
            if self._pool is None:
                yield tag, None if job is None else function(job)
                continue
            running.append((tag, None if job is None else self._pool.submit(function, job)))
            if len(running) >= self._window:
                tag, future = running.popleft()
                yield tag, _result(future)
        while running:
            tag, future = running.popleft()
            yield tag, _result(future)


def _result(future: Future[R] | None) -> R | None:
    try:
        return None if future is None else future.result()
    except BrokenProcessPool:
        raise DatasetError(
            "worker_died",
            "A worker process was killed, most likely for want of memory. Run the same command again with fewer "
            "workers: what was measured is kept.",
        ) from None


def _start_worker() -> None:
    """Ctrl-C is the parent's business; and a worker whose parent was killed must not stay behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()

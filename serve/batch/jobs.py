"""What is to be captioned and what became of it: one file in, one row out, whatever happens to it.

Files are read in a process of their own, so a decoder that dies or hangs costs its row. Knows nothing about where jobs
run, the journal or the output.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from assistant.errors import MaemiError, MicrographError
from serve.desk.sandbox import Sandbox

if TYPE_CHECKING:
    from assistant.measure import Facts
    from assistant.micrograph import Micrograph

READ_S = 60.0
"""Longest time for reading one file, from a slow share as well [s]."""
READ_MEMORY = 2**32
"""Most memory of the process that reads: a whole page at the limits of the reader fits [byte]."""


INSTRUMENT = ("vendor", "model", "hv_kv", "wd_mm", "magnification", "detector")
"""What the file says of the instrument, as `Micrograph.info` names it."""
UNITS_IN_NAMES = {"%": "percent", "1/um^2": "per_um2"}


class Captioner(Protocol):
    """What a loader brings; `assistant.inference.Assistant` is one. One that has `facts_of` is asked for facts too."""

    def caption(self, images: Sequence[Any]) -> list[str]:
        """One caption per image."""


Load = Callable[[], Captioner]
"""Brings the model into a process; must be picklable where there are several."""


@dataclass(frozen=True)
class Job:
    """One file to caption, as it was when the job began."""

    folder: Path
    path: Path
    size: int
    mtime_ns: int
    pixel_size_nm: float | None = None
    problem: str | None = None
    """Why it cannot be read, "code: sentence", where that is known beforehand."""

    @property
    def name(self) -> bytes:
        """Key of the file: its path inside the folder."""
        return os.fsencode(self.path.relative_to(self.folder))


@dataclass(frozen=True)
class Result:
    """What became of one file: what the journal keeps."""

    name: bytes
    size: int
    mtime_ns: int
    sha256: str | None = None
    caption: str | None = None
    pixel_size_nm: float | None = None
    confidence: float | None = None
    error: str | None = None
    facts: str | None = None
    """JSON of the columns of facts, where the captioner measures."""


def reader() -> Sandbox:
    """What reads the files of jobs, one at a time."""
    return Sandbox(workers=1, deadline_s=READ_S, memory=READ_MEMORY)


def caption_jobs(captioner: Captioner, jobs: Sequence[Job], files: Sandbox) -> list[Result]:
    """Caption a few files; a file that fails, or fails the reader or the model, takes only itself down."""
    read = {job: _read(job, files) for job in jobs}
    good = [job for job in jobs if not isinstance(read[job], Result)]
    try:
        captions = captioner.caption([read[job] for job in good]) if good else []
        facts_of = getattr(captioner, "facts_of", None)
        facts = [json.dumps(columns_of(read[job], facts_of(read[job]))) if facts_of else None for job in good]
    except Exception as error:  # the one boundary: a model that fails on a batch is asked again image by image
        if len(jobs) == 1:
            told = f"The model failed on this image ({type(error).__name__})."
            if isinstance(error, MaemiError):
                told = error.message
            return [_failed(jobs[0], getattr(error, "code", "caption_failed"), told)]
        return [result for job in jobs for result in caption_jobs(captioner, [job], files)]
    for job, caption, known in zip(good, captions, facts, strict=True):
        calibration = read[job].calibration
        read[job] = Result(
            job.name,
            job.size,
            job.mtime_ns,
            sha256=read[job].sha256,
            caption=caption,
            pixel_size_nm=calibration.nm_per_pixel if calibration else None,
            confidence=calibration.confidence if calibration else None,
            facts=known,
        )
    return [read[job] for job in jobs]


def columns_of(micrograph: Micrograph, facts: Facts) -> dict[str, float | str]:
    """Columns of what may be stated: `class`, `hv_kv`, `mean_diameter_nm`, `coverage_percent`, `warnings` and so on.

    A quantity stands in the column of its unit, so that one of an uncalibrated picture never mixes with lengths.
    """
    info, columns = micrograph.info(), dict[str, float | str]()
    for fact in facts.likely():
        unit = UNITS_IN_NAMES.get(fact.unit, fact.unit)
        columns[f"{fact.name}_{unit}" if unit else fact.name] = fact.text or float(fact.value or 0.0)
    read = {name: info[name] for name in INSTRUMENT if info[name] is not None}
    columns |= {name: value if isinstance(value, str) else float(value) for name, value in read.items()}
    if info["warnings"]:
        columns["warnings"] = " ".join(info["warnings"])
    return columns


def _read(job: Job, files: Sandbox) -> Any:
    """The micrograph of a job, or the Result of a file that cannot be read or changed meanwhile."""
    if job.problem is not None:
        return _failed(job, *job.problem.split(": ", 1))
    try:
        micrograph = files.read(job.path, pixel_size_nm=job.pixel_size_nm)
        status = job.path.stat()
    except MicrographError as error:
        return _failed(job, error.code, error.message)
    except OSError as error:
        return _failed(job, "unreadable", error.strerror or "the file cannot be read")
    if (status.st_size, status.st_mtime_ns) != (job.size, job.mtime_ns):
        return _failed(job, "changed", "The file changed while it was read. Run the command again.")
    return micrograph


def _failed(job: Job, code: str, message: str) -> Result:
    return Result(job.name, job.size, job.mtime_ns, error=f"{code}: {message}")

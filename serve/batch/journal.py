"""Caption a folder: one row per image into JSONL, CSV or Parquet; the same command resumes after any interruption.

Every finished row is in a journal (SQLite, beside the output) before it counts as done; the output is written from
the journal, whole or not at all. Knows nothing about the model: a loader brings a captioner into each process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Engine, Float, Integer, LargeBinary, MetaData, String, Table, inspect, select
from sqlalchemy.dialects.sqlite import insert

from assistant.database import database_url, open_database, write_transaction
from assistant.disk import disk_errors, locked
from assistant.errors import ConfigError, MaemiError
from assistant.progress import Progress
from assistant.readers.files import shown
from serve.batch.caption_rows import CaptionRow, fact_columns, in_groups, write_rows, writer_for
from serve.batch.jobs import Captioner, Job, Load, Result, caption_jobs, reader
from serve.batch.workers import in_processes, on_ray

BATCH = 32
"""Images captioned together, and rows put into the journal at one time."""

_metadata = MetaData()
results = Table(
    "results",
    _metadata,
    Column("name", LargeBinary, primary_key=True),  # bytes, because a file name need not be valid text
    Column("size", Integer),
    Column("mtime_ns", Integer),
    Column("sha256", String),
    Column("caption", String),
    Column("pixel_size_nm", Float),
    Column("confidence", Float),
    Column("error", String),
)
facts = Table("facts", _metadata, Column("name", LargeBinary, primary_key=True), Column("facts", String))
"""Beside the results, because journals of earlier versions have no such column."""
settings = Table("settings", _metadata, Column("key", String, primary_key=True), Column("value", String))


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    total: int
    captioned: int
    reused: int
    """Of the captioned ones, those of an earlier run whose files have not changed since."""
    failures: list[tuple[str, str]]
    """(path, error) of each image without a caption."""


def caption_folder(
    folder: Path,
    out: Path,
    *,
    run: Path | None = None,
    load: Load | None = None,
    workers: int = 1,
    ray: str | None = None,
    pixel_size_nm: float | None = None,
    with_facts: bool = False,
    mark: bool = True,
    at_once: int = BATCH,
    progress: Progress = lambda done, total, text: None,
) -> Summary:
    """Caption every micrograph under `folder` into `out`, with a run (None: the bundled student) or what `load` brings.

    Rows whose file has not changed are reused; failed ones are tried again. `with_facts` adds columns of what was read
    and measured, `mark` puts a byte-order mark before a CSV. `progress` is told after every `at_once` pictures; what it
    raises ends the run, and what was finished stays.

    Raises ConfigError `no_images`, `bad_suffix`, `other_model`, `out_busy` or `needs_extra`, RunError, and MaemiError
    `disk_full` or `disk`.
    """
    writer_for(out)
    jobs = _find_jobs(folder, pixel_size_nm)
    lock = out.with_name(f".{out.name}.lock")
    with disk_errors(out, MaemiError), locked(lock, out, ConfigError, "out_busy"):
        model = repr(load) if load else run_digest(run)
        journal = Journal(journal_of(out), {"model": model, "pixel_size_nm": str(pixel_size_nm)})
        try:
            todo = [job for job in jobs if not journal.has(job)]
            done, failed = len(jobs) - len(todo), 0
            progress(done, len(jobs), "")
            loader = load or partial(load_assistant, run)
            for finished in _run(todo, loader, workers=workers, ray=ray, at_once=at_once):
                journal.add(finished)
                done, failed = (
                    done + len(finished),
                    failed + sum(result.error is not None for result in finished),
                )
                progress(done, len(jobs), f"{failed} failed" if failed else "")
            columns = fact_columns(journal.rows(jobs)) if with_facts else {}
            write_rows(out, journal.rows(jobs), facts=columns, mark=mark)
            failures = [(row.path, row.error) for row in journal.rows(jobs) if row.error]
        finally:
            journal.close()
    return Summary(len(jobs), len(jobs) - len(failures), len(jobs) - len(todo), failures)


def journal_of(out: Path) -> Path:
    """Where the finished rows of an output are."""
    return out.with_name(f".{out.name}.journal")


def finished_rows(out: Path, folder: Path) -> list[CaptionRow]:
    """The rows that are finished, also while others are under way; paths are those within `folder`."""
    if not journal_of(out).is_file():
        return []
    engine = open_database(database_url(journal_of(out)))
    query = select(results, facts.c.facts).outerjoin(facts, facts.c.name == results.c.name).order_by(results.c.name)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table(facts.name):  # the file is there a moment before its tables
                return []
            return [
                _caption_row(row, os.fsdecode(row.name), row.error and row.error.replace(f"{folder}/", ""))
                for row in connection.execute(query)
            ]
    finally:
        engine.dispose()


def load_assistant(run: Path | None) -> Captioner:
    """The student of a run, or the bundled one."""
    from assistant.inference import Assistant

    return Assistant.load(run)


def run_digest(run: Path | None) -> str:
    """What names the weights of a run, wherever the directory moves."""
    from assistant.checkpoint import resolve_run
    from assistant.disk import MANIFEST

    return sha256((resolve_run(run) / MANIFEST).read_bytes()).hexdigest()


class Journal:
    """Finished rows on disk: a row that was added survives a crash, and is never added twice."""

    def __init__(self, path: Path, identity: dict[str, str]) -> None:
        """Make the tables, or see that their rows were made with the same model and settings."""
        self._engine: Engine = open_database(database_url(path))
        try:
            with write_transaction(self._engine) as connection:
                _metadata.create_all(connection)
                known = {row.key: row.value for row in connection.execute(select(settings))}
                if not known:
                    connection.execute(insert(settings), [{"key": k, "value": v} for k, v in identity.items()])
                elif known != identity:
                    key = next(key for key in identity if known.get(key) != identity[key])
                    theirs, ours = known.get(key), identity[key]
                    raise ConfigError(
                        "other_model", f"{path} holds rows made with {key} {theirs}, not {ours}. Choose another --out."
                    )
        except BaseException:
            self._engine.dispose()
            raise

    def has(self, job: Job) -> bool:
        """Whether there is a caption of this file as it is now."""
        row = self._find(job)
        return bool(row and row.error is None and (row.size, row.mtime_ns) == (job.size, job.mtime_ns))

    def add(self, finished: Iterable[Result]) -> None:
        """Keep rows; when this returns they are on disk."""
        with write_transaction(self._engine) as connection:
            for result in finished:
                row = asdict(result)
                known = {"name": row["name"], "facts": row.pop("facts")}
                for table, values in ((results, row), (facts, known)):
                    connection.execute(
                        insert(table).values(**values).on_conflict_do_update(index_elements=["name"], set_=values)
                    )

    def rows(self, jobs: Iterable[Job]) -> Iterator[CaptionRow]:
        """The rows of these files, in their order."""
        for job in jobs:
            row = self._find(job)
            if row:
                yield _caption_row(row, str(job.path), row.error)

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def _find(self, job: Job) -> Any:
        with self._engine.connect() as connection:
            query = select(results, facts.c.facts).outerjoin(facts, facts.c.name == results.c.name)
            return connection.execute(query.where(results.c.name == job.name)).first()


def _caption_row(row: Any, path: str, error: str | None) -> CaptionRow:
    known = json.loads(row.facts) if row.facts else {}
    return CaptionRow(path, row.sha256, row.caption, row.pixel_size_nm, row.confidence, error, known)


def _find_jobs(folder: Path, pixel_size_nm: float | None) -> list[Job]:
    from assistant.micrograph import find_micrographs

    if not folder.is_dir():
        raise ConfigError("no_images", f"{folder} is not a folder. Name a folder with micrographs.")
    jobs = []
    for path in find_micrographs(folder):
        try:
            status = path.stat()
            jobs.append(Job(folder, path, status.st_size, status.st_mtime_ns, pixel_size_nm))
        except OSError as error:  # gone, or a link that leads nowhere: one row that says so
            reason = (error.strerror or "it cannot be looked at").lower()
            problem = f"not_found: {shown(path)} leads nowhere: {reason}. Mend or remove it."
            jobs.append(Job(folder, path, 0, 0, problem=problem))
    jobs += [Job(folder, path, 0, 0, problem=problem) for path, problem in _no_files(folder)]
    if not jobs:
        raise ConfigError(
            "no_images", f"{folder} holds no micrographs. Name a folder with TIFF, PNG, JPEG or BMP files."
        )
    return sorted(jobs, key=lambda job: job.path)


def _no_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Folders that are named like a picture or cannot be listed, each with what is wrong: nothing is left out unsaid.

    Raises ConfigError `no_images` where `folder` itself cannot be listed.
    """
    from assistant.micrograph import SUFFIXES

    denied: list[OSError] = []
    for place, folders, _ in os.walk(folder, onerror=denied.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in folders if Path(name).suffix.lower() in SUFFIXES):
            yield path, f"not_a_file: {shown(path)} is a folder that is named like a picture. Rename it."
    for error in denied:
        path, reason = Path(error.filename), (error.strerror or "it cannot be read").lower()
        if path == folder:
            raise ConfigError("no_images", f"{folder} cannot be listed: {reason}. Check its permissions.")
        yield path, f"unreadable: {shown(path)} cannot be listed: {reason}. Check its permissions."


def _run(jobs: Sequence[Job], load: Load, *, workers: int, ray: str | None, at_once: int) -> Iterator[list[Result]]:
    """Finished batches, in any order."""
    batches = in_groups(jobs, at_once)
    if ray is not None:
        yield from on_ray(batches, load, address=ray)
    elif workers > 1:
        yield from in_processes(batches, load, workers=workers)
    elif jobs:
        captioner = load()
        with reader() as files:
            for batch in batches:
                yield caption_jobs(captioner, batch, files)

"""The teacher's account book: every request, reply, attempt, cost and verdict, and every measurement, in one file.

A row is written before anything is sent and settled afterwards, one commit each, so kill -9 at any moment loses no
paid reply and never hides a possible bill. Knows nothing about images, prompts, teachers or HTTP.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from assistant.errors import DatasetError, TeacherError

SENT = "sent"
"""Verdict of a request whose reply is not known: it may have been billed."""
ACCEPTED = "accepted"


class Base(DeclarativeBase):
    """Registry of the tables that last."""


class Draft(DeclarativeBase):
    """Registry of the tables that every run derives anew."""


class Exchange(Base):
    """One request to a teacher and what became of it."""

    __tablename__ = "exchanges"
    key: Mapped[str] = mapped_column(primary_key=True)
    images: Mapped[str]
    """sha256 of each image, separated by a space."""
    prompt: Mapped[str]
    teacher: Mapped[str]
    sent_at: Mapped[str] = mapped_column(default="")
    """UTC of the latest attempt; empty where nothing was sent."""
    verdict: Mapped[str] = mapped_column(index=True)
    attempts: Mapped[int] = mapped_column(default=0)
    reply: Mapped[str] = mapped_column(default="")
    """JSON of the reply, or the raw text of one that was rejected."""
    model: Mapped[str] = mapped_column(default="")
    """The model that says it answered."""
    cost_usd: Mapped[float] = mapped_column(default=0.0)
    """Settled cost of all attempts [USD]."""
    reserved_usd: Mapped[float] = mapped_column(default=0.0)
    """Worst case of the attempt under way [USD]."""
    input_tokens: Mapped[int] = mapped_column(default=0)
    output_tokens: Mapped[int] = mapped_column(default=0)


class Measurement(Base):
    """What reading and measuring one file gave, so that a resumed run does not measure it again."""

    __tablename__ = "measurements"
    key: Mapped[str] = mapped_column(primary_key=True)
    """Digest of the file, its side-cars and the version of the measurement."""
    record: Mapped[str]


class Specimen(Draft):
    """What is known of one picture, by its position in the catalogue."""

    __tablename__ = "specimens"
    position: Mapped[int] = mapped_column(primary_key=True)
    record: Mapped[str]


class Row(Draft):
    """One candidate row of the data set."""

    __tablename__ = "rows"
    position: Mapped[int] = mapped_column(primary_key=True)
    split: Mapped[str] = mapped_column(index=True)
    question: Mapped[str]
    """What the blind test holds fixed: the item and its question, apart from the wording."""
    answer: Mapped[str]
    """What the blind test predicts."""
    record: Mapped[str]


@dataclass(frozen=True)
class Settlement:
    """Outcome of one attempt."""

    verdict: str
    reply: str = ""
    model: str = ""
    cost_usd: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0


def exchange_key(images: Sequence[str], prompt: str, model: str, params: Mapping[str, Any]) -> str:
    """sha256 over the content of a request: the same question about the same pixels is the same key."""
    content = json.dumps([list(images), prompt, model, dict(params)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


class Budget:
    """Money that may still be spent; the worst case is set aside before a request leaves, so the limit is hard."""

    def __init__(self, limit_usd: float | None, *, spent_usd: float = 0.0) -> None:
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self.reserved_usd = 0.0

    def fits(self, worst_usd: float) -> bool:
        """True where the worst case still fits under the limit (a micro-cent of rounding is forgiven)."""
        return self.limit_usd is None or (self.spent_usd + self.reserved_usd + worst_usd <= self.limit_usd + 1e-9)

    def reserve(self, worst_usd: float) -> None:
        """Set the worst case aside.

        Raises TeacherError `budget` where it does not fit.
        """
        if not self.fits(worst_usd):
            raise TeacherError(
                "budget",
                f"The next request may cost {worst_usd:.4f} USD, and {self.spent_usd:.4f} of {self.limit_usd:.4f} "
                "USD are spent. Run the same command with a larger --budget to go on.",
            )
        self.reserved_usd += worst_usd

    def settle(self, worst_usd: float, cost_usd: float) -> None:
        """Give a reservation back and book what it really cost."""
        self.reserved_usd -= worst_usd
        self.spent_usd += cost_usd


class Store:
    """An SQLite file written with one commit per call; errors of the disk are told, not raised through."""

    def __init__(self, path: Path, *, tables: type[DeclarativeBase], durable: bool) -> None:
        self._path = path
        self._engine = _open(path, durable=durable)
        with _disk_errors(path):
            tables.metadata.create_all(self._engine)

    def close(self) -> None:
        """Fold the write-ahead log into the file."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _replace(self, table: type[DeclarativeBase], rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            with self._session() as session:
                session.execute(insert(table).prefix_with("OR REPLACE"), list(rows))

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with (
            _disk_errors(self._path),
            Session(self._engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session


class Ledger(Store):
    """The account book of one data set; one writer at a time.

    Raises DatasetError `locked` where another process is writing, `disk` where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._lock = _take_lock(path.with_name(f".{path.name}.lock"))
        super().__init__(path, tables=Base, durable=True)

    def close(self) -> None:
        """Close the book and let go of the lock."""
        super().close()
        os.close(self._lock)

    def begin_attempt(self, exchange: Exchange, *, reserved_usd: float = 0.0) -> None:
        """Write the request down before it is sent; money of an attempt that never came back stays booked."""
        with self._session() as session:
            row = session.get(Exchange, exchange.key)
            if row is None:
                row = exchange
                row.attempts, row.cost_usd, row.reserved_usd = 0, 0.0, 0.0
                row.input_tokens = row.output_tokens = 0
                row.reply = row.model = ""
                session.add(row)
            row.verdict = SENT
            row.sent_at = datetime.now(UTC).isoformat(timespec="seconds")
            row.attempts += 1
            row.cost_usd += row.reserved_usd
            row.reserved_usd = reserved_usd

    def settle(self, key: str, settlement: Settlement) -> None:
        """Book the outcome of the attempt under way."""
        with self._session() as session:
            row = session.get_one(Exchange, key)
            row.verdict = settlement.verdict
            row.reply = settlement.reply
            row.model = settlement.model or row.model
            row.cost_usd += settlement.cost_usd
            row.reserved_usd = 0.0
            row.input_tokens += settlement.input_tokens
            row.output_tokens += settlement.output_tokens

    def record(self, exchanges: Sequence[Mapping[str, Any]]) -> None:
        """Book finished exchanges that cost nothing (dicts of the columns), in one commit; known ones stay."""
        if exchanges:
            free = {"attempts": 1, "cost_usd": 0.0, "reserved_usd": 0.0, "input_tokens": 0, "output_tokens": 0}
            rows = [{"sent_at": "", "verdict": ACCEPTED, **free, **exchange} for exchange in exchanges]
            with self._session() as session:
                session.execute(insert(Exchange).on_conflict_do_nothing(), rows)

    def exchange(self, key: str) -> Exchange | None:
        """The exchange of that key, detached."""
        with self._session() as session:
            return session.get(Exchange, key)

    def spent_usd(self) -> float:
        """Everything that was or may have been billed [USD]."""
        with self._session() as session:
            total = session.scalar(select(func.sum(Exchange.cost_usd + Exchange.reserved_usd)))
        return float(total or 0.0)

    def model_of(self, teacher: str) -> str | None:
        """The model string under which that teacher answered first."""
        query = select(Exchange.model).where(Exchange.teacher == teacher, Exchange.verdict == ACCEPTED).limit(1)
        with self._session() as session:
            return session.scalar(query)

    def export_replies(self, path: Path) -> int:
        """Write every accepted exchange as a line that `ReplayTeacher` reads; gives their number."""
        query = select(Exchange).where(Exchange.verdict == ACCEPTED).order_by(Exchange.key)
        count = 0
        with self._session() as session, path.open("w", encoding="utf-8") as stream:
            for row in session.scalars(query.execution_options(yield_per=200)):
                told = {"images": row.images.split(), "prompt": row.prompt, "answers": json.loads(row.reply)}
                stream.write(json.dumps(told, ensure_ascii=False) + "\n")
                count += 1
        return count

    def measurement(self, key: str) -> dict[str, Any] | None:
        """The record of a file measured before."""
        with self._session() as session:
            row = session.get(Measurement, key)
        return None if row is None else dict(json.loads(row.record))

    def add_measurement(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep what measuring one file gave."""
        self._replace(Measurement, [{"key": key, "record": json.dumps(record, sort_keys=True)}])


class Drafts(Store):
    """Specimens and candidate rows of one run, on disk because they do not fit in memory; begun empty, thrown away."""

    def __init__(self, path: Path) -> None:
        for leftover in path.parent.glob(f"{path.name}*"):
            leftover.unlink()
        super().__init__(path, tables=Draft, durable=False)

    def close(self) -> None:
        """Close and remove the file."""
        super().close()
        for leftover in self._path.parent.glob(f"{self._path.name}*"):
            leftover.unlink()

    def add_specimens(self, records: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Keep what is known of pictures, by position."""
        self._replace(Specimen, [{"position": at, "record": json.dumps(record)} for at, record in records])

    def specimen(self, position: int) -> dict[str, Any]:
        """What is known of the picture at that position."""
        with self._session() as session:
            return dict(json.loads(session.get_one(Specimen, position).record))

    def add_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add candidate rows (dicts of the columns of `Row`)."""
        self._replace(Row, rows)

    def rows(self, split: str) -> Iterator[Row]:
        """The candidate rows of a split by position, streamed."""
        with self._session() as session:
            query = select(Row).where(Row.split == split).order_by(Row.position)
            yield from session.scalars(query.execution_options(yield_per=64))

    def answer_counts(self, split: str) -> list[tuple[str, int, int, str]]:
        """Per question of the split: (question, rows, rows with the commonest answer, that answer)."""
        same = select(Row.question, Row.answer, func.count().label("n")).where(Row.split == split)
        same_answer = same.group_by(Row.question, Row.answer).order_by(Row.answer).subquery()
        # SQLite takes a bare column from the row that holds the maximum.
        c = same_answer.c
        query = select(c.question, func.sum(c.n), func.max(c.n), c.answer).group_by(c.question)
        with self._session() as session:
            counts = session.execute(query)
            return [(str(question), int(rows), int(common), str(answer)) for question, rows, common, answer in counts]


def _open(path: Path, *, durable: bool) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        # A full sync per commit: what was paid for survives even a power cut.
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")

    return engine


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        raise DatasetError(
            "disk",
            f"{path} cannot be read or written ({error.orig}). Free space or name another --out, then run the "
            "same command again: nothing that was booked is lost.",
        ) from None


def _take_lock(path: Path) -> int:
    """Lock the data set against a second writer; the kernel lets go of the lock when its owner dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise DatasetError("disk", f"{path}: {error.strerror}. Name a folder that can be written.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(handle, 64).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise DatasetError(
            "locked",
            f"{path.parent} is being written by process {owner}. Wait for it, or name another --out.",
        ) from None
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()} on {os.uname().nodename}\n".encode())
    return handle

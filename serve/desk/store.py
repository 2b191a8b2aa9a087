"""The book of answers: who asked what about which picture, and what was answered; written once, never changed.

Every entry carries the hash of the one before it, so `verify` finds an entry that was edited, reordered or removed
from between others.
Knows nothing about models, pages or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.exc import SQLAlchemyError

from assistant.errors import ServerError

GENESIS = "0" * 64
BUSY_TIMEOUT_S = 10

metadata = MetaData()
answers = Table(
    "answers",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("at_utc", String, nullable=False),
    Column("user", String, nullable=False),
    Column("model", String, nullable=False),
    Column("images", String, nullable=False),
    Column("question", String, nullable=False),
    Column("answer", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("previous", String, nullable=False),
    Column("digest", String, nullable=False),
)
GUARDS = tuple(
    f"CREATE TRIGGER IF NOT EXISTS no_{verb.lower()} BEFORE {verb} ON answers "
    "BEGIN SELECT RAISE(ABORT, 'answers are never changed'); END"
    for verb in ("UPDATE", "DELETE")
)


@dataclass(frozen=True)
class Entry:
    """One answer as it was given."""

    number: int
    at_utc: str
    user: str
    model: str
    images: list[str]
    """SHA-256 of the files, in the order of the conversation."""
    question: str
    answer: str
    outcome: str
    """`answered`, `aborted`, or the code of an error."""


class AnswerStore:
    """An append-only SQLite file; safe for threads, and for several processes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._engine = open_sqlite(path)
        with self._writing() as connection:
            metadata.create_all(connection)
            for guard in GUARDS:
                connection.execute(text(guard))
        path.chmod(0o600)

    def record(
        self,
        *,
        user: str,
        model: str,
        images: Sequence[str],
        question: str,
        answer: str,
        outcome: str = "answered",
    ) -> int:
        """Append one answer and return its number. Raises ServerError `store_failed`."""
        with self._writing() as connection:
            last = connection.execute(
                select(answers.c.number, answers.c.digest).order_by(answers.c.number.desc()).limit(1)
            ).first()
            row = {
                "number": last.number + 1 if last else 1,
                "at_utc": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "user": user,
                "model": model,
                "images": json.dumps(list(images)),
                "question": _storable(question),
                "answer": _storable(answer),
                "outcome": outcome,
                "previous": last.digest if last else GENESIS,
            }
            connection.execute(insert(answers).values(**row, digest=_digest(row)))
        return int(row["number"])

    def entries(self, *, limit: int = 100) -> list[Entry]:
        """The newest entries, newest first."""
        query = select(answers).order_by(answers.c.number.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [_entry(row._mapping) for row in connection.execute(query)]

    def verify(self) -> int | None:
        """Number of the first entry that does not follow from the one before it; None if the chain is whole."""
        previous, number = GENESIS, 0
        with self._engine.connect() as connection:
            for row in connection.execute(select(answers).order_by(answers.c.number)).mappings():
                number += 1
                content = {key: value for key, value in row.items() if key != "digest"}
                if row["number"] != number or row["previous"] != previous or row["digest"] != _digest(content):
                    return number
                previous = row["digest"]
        return None

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with write_transaction(self._engine) as connection:
                yield connection
        except SQLAlchemyError as error:
            reason = type(error).__name__
            raise ServerError(
                "store_failed", f"The book of answers cannot be written ({reason}). Check the disk."
            ) from None


def open_sqlite(path: Path) -> Engine:
    """An engine for a SQLite file whose committed transactions are on disk."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own, weaker kind
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}").close()

    return engine


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the write lock from its start, so what it reads stays true until it writes."""
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection
        connection.commit()


def _digest(row: dict[str, Any]) -> str:
    return sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def _storable(words: str) -> str:
    return words.encode("utf-8", "replace").decode()


def _entry(row: Any) -> Entry:
    fields = {key: row[key] for key in ("number", "at_utc", "user", "model", "question", "answer", "outcome")}
    return Entry(images=json.loads(row["images"]), **fields)

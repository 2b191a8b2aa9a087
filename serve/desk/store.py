"""The book of answers: who asked what about which picture, and what was answered; written once, never changed.

It is a SQLite file or lies in a PostgreSQL database. Every entry carries the hash of the one before it, so `verify`
finds an entry that was edited, reordered or removed from between others.
Knows nothing about models, pages or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, insert, inspect, select, text

from assistant.database import write_transaction
from serve.desk.database import DeskDatabase, storable

GENESIS = "0" * 64
ROWS_AT_ONCE = 500
"""Entries held in memory while the chain is verified."""

metadata = MetaData()
answers = Table(
    "answers",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
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
NEVER_CHANGED = {
    "sqlite": [
        f"CREATE TRIGGER IF NOT EXISTS no_{verb.lower()} BEFORE {verb} ON answers "
        "BEGIN SELECT RAISE(ABORT, 'answers are never changed'); END"
        for verb in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION answers_never_changed() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'answers are never changed'; END $$",
        "CREATE OR REPLACE TRIGGER never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON answers "
        "FOR EACH STATEMENT EXECUTE FUNCTION answers_never_changed()",
    ],
}
"""What makes a database itself refuse to change an entry, by its dialect."""
GUARDED = text("SELECT count(*) FROM pg_trigger WHERE tgname = 'never_changed' AND tgrelid = 'answers'::regclass")


@dataclass(frozen=True)
class StoredAnswer:
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


@dataclass(frozen=True)
class Chain:
    """What verifying the book found."""

    answers: int
    """Entries that follow one from the other, from the first on."""
    broken_at: int | None
    """Number of the entry that does not follow; None if the chain is whole."""
    digest: str
    """Of the last entry that follows: written down elsewhere, it tells whether the end was cut off since."""


class AnswerStore(DeskDatabase):
    """An append-only table; safe for threads, and for several processes.

    `place` is the path of a SQLite file or a database URL. Without `create` the book must be there already.
    Raises ConfigError `bad_database` or `needs_extra`, ServerError `store_failed` or `no_book`.
    """

    what = "The book of answers"

    def __init__(self, place: str | Path, *, create: bool = True) -> None:
        super().__init__(place, create=create)
        with self._opening() as connection:
            if create:
                self._create_table(connection)
            elif not inspect(connection).has_table("answers"):
                raise self._missing()

    def _create_table(self, connection: Connection) -> None:
        """Make the table where there is none, and see to it that nobody changes its rows."""
        dialect = connection.dialect.name
        if dialect == "postgresql" and connection.scalar(text("SHOW server_encoding")) != "UTF8":
            raise self._failed("its encoding is not UTF8, so it cannot hold every answer")
        metadata.create_all(connection)
        # A user of the server who owns neither table nor trigger may still write answers.
        if dialect == "sqlite" or not connection.scalar(GUARDED):
            for statement in NEVER_CHANGED[dialect]:
                connection.execute(text(statement))

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
        """Append one answer and return its number.

        Raises ServerError `store_failed` without the reason, which whoever asked need not know; the log has it.
        """
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            last = connection.execute(
                select(answers.c.number, answers.c.digest).order_by(answers.c.number.desc()).limit(1)
            ).first()
            row = {
                "number": last.number + 1 if last else 1,
                "at_utc": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "user": storable(user),
                "model": storable(model),
                "images": json.dumps(list(images)),
                "question": storable(question),
                "answer": storable(answer),
                "outcome": outcome,
                "previous": last.digest if last else GENESIS,
            }
            connection.execute(insert(answers).values(**row, digest=_digest(row)))
        return int(row["number"])

    def entries(self, *, limit: int = 100) -> list[StoredAnswer]:
        """The newest entries, newest first. Raises ServerError `store_failed`."""
        columns = [answers.c[field.name] for field in fields(StoredAnswer)]
        query = select(*columns).order_by(answers.c.number.desc()).limit(limit)
        with self._failures(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [StoredAnswer(**{**row._asdict(), "images": json.loads(row.images)}) for row in rows]

    def verify(self) -> Chain:
        """Follow the chain from the first entry to the last. Raises ServerError `store_failed`."""
        previous, number = GENESIS, 0
        query = select(answers).order_by(answers.c.number).execution_options(yield_per=ROWS_AT_ONCE)
        with self._failures(), self._engine.connect() as connection, connection.execute(query) as rows:
            for row in rows.mappings():
                content = {key: value for key, value in row.items() if key != "digest"}
                if (row["number"], row["previous"], row["digest"]) != (number + 1, previous, _digest(content)):
                    return Chain(number, number + 1, previous)
                previous, number = row["digest"], number + 1
        return Chain(number, None, previous)


def _digest(row: dict[str, Any]) -> str:
    """Hash of an entry's content, also of one into which somebody wrote what is no text."""
    return sha256(json.dumps(row, sort_keys=True, default=repr).encode()).hexdigest()

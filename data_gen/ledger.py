"""The teacher's account book: every request, reply, attempt, cost and verdict, and every measurement, in one file.

A row is written before anything is sent and settled afterwards, one commit each, so kill -9 at any moment loses no
paid reply and never hides a possible bill. Knows nothing about images, prompts, teachers or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, func, inspect, select, text, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import DeclarativeBase, Session

from assistant.database import Database
from assistant.disk import disk_errors, locked, replacing
from assistant.errors import DatasetError
from data_gen.tables import (
    ACCEPTED,
    DAMAGED,
    SENT,
    Adaptation,
    Adapted,
    Batch,
    Departure,
    Forgotten,
    LedgerTable,
    Measurement,
    Settlement,
    Visit,
    seal,
)  # fmt: skip

_VERSION = 3
"""Of the tables; 1 had no checksums, 2 no adaptations."""
SEALED: dict[str, type[Visit] | type[Measurement]] = {"exchanges": Visit, "measurements": Measurement}


class Ledger(Database):
    """The account book of one data set; one writer at a time.

    Raises DatasetError `locked` where another process is writing, `disk_full` or `disk` where the file cannot be
    written, `damaged_ledger` or `newer_ledger`.
    """

    damaged_file = (
        "damaged_ledger",
        "Put a copy of it back from a backup; without one, move it away and run the same command: what a hosted "
        "teacher answered is then asked, and paid for, again.",
    )

    def __init__(self, path: Path) -> None:
        self.damaged = 0
        """Rows that the disk no longer holds as they were written."""
        with ExitStack() as opened:
            opened.enter_context(disk_errors(path, DatasetError))
            opened.enter_context(locked(path.with_name(f".{path.name}.lock"), path.parent, DatasetError, "locked"))
            super().__init__(path, tables=LedgerTable, durable=True)
            opened.callback(super().close)
            self._quarantine()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close the book and let go of the lock."""
        self._opened.close()

    def _prepare(self, connection: Connection, tables: type[DeclarativeBase]) -> None:
        """Make the tables, or bring those of an older version up to this one."""
        version = int(connection.scalar(text("PRAGMA user_version")) or 0)
        if version > _VERSION:
            raise DatasetError(
                "newer_ledger",
                f"{self._path} was written by a newer version (tables {version}, known {_VERSION}). Update MAEMI.",
            )
        if version < _VERSION:
            tables.metadata.create_all(connection)
            for name, table in SEALED.items():
                # Every row gets a checksum that has none; this may be cut off and begun again at any point.
                if "digest" not in {column["name"] for column in inspect(connection).get_columns(name)}:
                    connection.execute(text(f"ALTER TABLE {name} ADD COLUMN digest VARCHAR NOT NULL DEFAULT ''"))
                for key in connection.scalars(select(table.key).where(table.digest == "")).all():
                    row = connection.execute(select(table).where(table.key == key)).one()
                    connection.execute(update(table).where(table.key == key).values(digest=seal(row._asdict())))
            connection.execute(text(f"PRAGMA user_version = {_VERSION}"))

    def _quarantine(self) -> None:
        """Set rows with a wrong checksum aside: what was measured is measured again, what was told is not used."""
        with self._session() as session:
            if session.scalar(text("PRAGMA integrity_check(1)")) != "ok":
                # An index can be made anew from its rows; where that fails the file is told to be damaged.
                session.execute(text("REINDEX"))
            for table in SEALED.values():
                rows = session.execute(select(*table.__table__.columns).execution_options(yield_per=200))
                torn = [row.key for row in rows if seal(row._asdict()) != row.digest]
                self.damaged += len(torn)
                for key in torn:
                    row = session.get_one(table, key)
                    if isinstance(row, Visit):
                        row.verdict = DAMAGED
                    else:
                        session.delete(row)

    def begin_attempt(
        self, exchange: Visit, *, reserved_usd: float = 0.0, departures: Sequence[Departure] = ()
    ) -> None:
        """Write the request down before it is sent; money of an attempt that never came back stays booked."""
        with self._session() as session:
            self._begin(session, exchange, reserved_usd, departures)

    def begin_batch(self, batch: Batch, attempts: Iterable[tuple[Visit, float, Sequence[Departure]]]) -> None:
        """Write a batch and its requests (exchange, money set aside [USD], departures) down, in one commit."""
        with self._session() as session:
            session.add(batch)
            for exchange, reserved_usd, departures in attempts:
                self._begin(session, exchange, reserved_usd, departures)

    def _begin(self, session: Session, exchange: Visit, reserved_usd: float, departures: Sequence[Departure]) -> None:
        row = session.get(Visit, exchange.key)
        if row is None:
            row = exchange
            row.attempts, row.cost_usd, row.reserved_usd = 0, 0.0, 0.0
            row.input_tokens = row.output_tokens = 0
            row.reply = row.model = ""
            session.add(row)
        row.verdict = SENT
        row.sent_at = _now()
        row.attempts += 1
        row.cost_usd += row.reserved_usd
        row.reserved_usd = reserved_usd
        session.add_all(departures)

    def settle(self, key: str, settlement: Settlement) -> None:
        """Book the outcome of the attempt under way."""
        with self._session() as session:
            row = session.get_one(Visit, key)
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
            rows = [{**row, "digest": seal(row)} for row in rows]
            with self._session() as session:
                session.execute(insert(Visit).on_conflict_do_nothing(), rows)

    def exchange(self, key: str) -> Visit | None:
        """The exchange of that key, detached."""
        with self._session() as session:
            return session.get(Visit, key)

    def spent_usd(self) -> float:
        """Everything that was or may have been billed [USD]."""
        with self._session() as session:
            total = session.scalar(select(func.sum(Visit.cost_usd + Visit.reserved_usd)))
        return float(total or 0.0)

    def model_of(self, teacher: str) -> str | None:
        """The model string under which that teacher answered first."""
        query = select(Visit.model).where(Visit.teacher == teacher, Visit.verdict == ACCEPTED).limit(1)
        with self._session() as session:
            return session.scalar(query)

    def models_of(self, teacher: str) -> dict[str, int]:
        """How many answers each model string of that teacher gave, the first of the alphabet first."""
        accepted = (Visit.teacher == teacher, Visit.verdict == ACCEPTED)
        query = select(Visit.model, func.count()).where(*accepted).group_by(Visit.model).order_by(Visit.model)
        with self._session() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def unmetered(self, teacher: str) -> int:
        """Answers of that teacher that came without the number of their tokens."""
        untold = (Visit.input_tokens == 0, Visit.output_tokens == 0)
        query = select(func.count()).where(Visit.teacher == teacher, Visit.verdict == ACCEPTED, *untold)
        with self._session() as session:
            return int(session.scalar(query) or 0)

    def adaptations(self, endpoint: str, model: str) -> list[Adaptation]:
        """What that endpoint refused for that model, as it was learnt."""
        known = select(Adapted).where(Adapted.endpoint == endpoint, Adapted.model == model)
        query = known.order_by(Adapted.at, Adapted.parameter)
        with self._session() as session:
            return [Adaptation(row.parameter, row.instead, row.reason) for row in session.scalars(query)]

    def adapt(self, endpoint: str, model: str, adaptation: Adaptation) -> None:
        """Remember what an endpoint refused."""
        row = {"endpoint": endpoint, "model": model, "at": _now(), **asdict(adaptation)}
        self._replace(Adapted, [row])

    def export_replies(self, path: Path) -> int:
        """Write every accepted exchange as a line that `ReplayTeacher` reads; gives their number."""
        query = select(Visit).where(Visit.verdict == ACCEPTED).order_by(Visit.key)
        count = 0
        with self._session() as session, replacing(path) as partial, partial.open("w", encoding="utf-8") as stream:
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
        row = {"key": key, "record": json.dumps(record, sort_keys=True)}
        self._replace(Measurement, [{**row, "digest": seal(row)}])

    def open_batches(self) -> list[Batch]:
        """Batches whose replies were not taken yet, in the order of their names."""
        with self._session() as session:
            return list(session.scalars(select(Batch).where(Batch.done.is_(False)).order_by(Batch.name)))

    def note_batch(self, name: str, *, provider_id: str = "", done: bool = False) -> None:
        """Keep what the provider calls a batch, and whether all its replies were taken."""
        with self._session() as session:
            row = session.get_one(Batch, name)
            row.provider_id, row.done = provider_id or row.provider_id, done

    def export_departures(self, path: Path) -> int:
        """Write the audit trail, one JSON line for every picture that left; gives their number."""
        count = 0
        with self._session() as session, replacing(path) as partial, partial.open("w", encoding="utf-8") as stream:
            for row in session.execute(select(Departure.__table__).order_by(Departure.id)).mappings():
                stream.write(json.dumps(dict(row)) + "\n")
                count += 1
        return count

    def forget(self, sha256: str) -> int:
        """Delete all that is known or was told about a micrograph, and never take it up again; gives the rows deleted.

        Its hash and its departures stay: that it was here, that it left, and that it was deleted can be audited.
        """
        with self._session() as session:
            about = delete(Visit).where(Visit.images.contains(sha256)).returning(Visit.key)
            named = Measurement.record.contains(f'"sha256": "{sha256}"')
            measured = delete(Measurement).where(named).returning(Measurement.key)
            gone = sum(len(session.scalars(query).all()) for query in (about, measured))
            session.merge(Forgotten(sha256=sha256, at=_now()))
        self._overwrite_deleted()
        return gone

    def forgotten(self) -> frozenset[str]:
        """sha256 of every micrograph that was deleted on request."""
        with self._session() as session:
            return frozenset(session.scalars(select(Forgotten.sha256)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

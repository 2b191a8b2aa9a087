"""An SQLite file in write-ahead mode, one commit per call; what the disk refuses is told with a remedy.

Knows nothing about what the tables hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase, Session

from assistant.errors import DatasetError

BUSY_S = 30
_DAMAGED = ("malformed", "not a database")


class Database:
    """The tables of one registry in one file."""

    def __init__(self, path: Path, *, tables: type[DeclarativeBase], durable: bool) -> None:
        self._path = path
        self._engine = _open(path, durable=durable)
        try:
            with _disk_errors(path):
                self._prepare(tables)
        except DatasetError:
            self._engine.dispose()
            raise

    def _prepare(self, tables: type[DeclarativeBase]) -> None:
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


def _open(path: Path, *, durable: bool) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        # A full sync per commit: what was paid for survives even a power cut.
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
        # What is deleted on request is overwritten, not merely let go.
        connection.execute("PRAGMA secure_delete=ON")

    return engine


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        if any(word in str(error.orig) for word in _DAMAGED):
            raise DatasetError(
                "damaged_ledger",
                f"{path} is damaged ({error.orig}). Put a copy of it back from a backup; without one, move it away "
                "and run the same command: what a hosted teacher answered is then asked, and paid for, again.",
            ) from None
        raise DatasetError(
            "disk",
            f"{path} cannot be read or written ({error.orig}). Free space or name another --out, then run the "
            "same command again: nothing that was booked is lost.",
        ) from None

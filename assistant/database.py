"""Databases that must survive: SQLite files and PostgreSQL servers, opened in one place, told apart in one place.

A file beside disk.py, because most of what must survive needs no SQLAlchemy. Knows nothing about what the tables hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Session

from assistant.disk import disk_errors
from assistant.errors import ConfigError, DatasetError

BUSY_S = 30
"""How long a writer waits for another one [s]."""
CONNECT_S = 10
"""How long a server may take to accept a connection [s]."""
WRITERS = 0x6D61656D69
"""Number of the PostgreSQL lock that our writers take in turn."""
DURABLE = text(
    "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)
"""Makes a PostgreSQL server wait for its disk before it says that something is committed, if that is not its habit."""
_DAMAGED = ("malformed", "not a database")


def database_url(place: str | Path) -> URL:
    """The database that a path or a URL names; `postgresql://` goes through psycopg.

    Raises ConfigError `bad_database`, or `needs_extra` where psycopg is not installed.
    """
    if "://" not in str(place):
        return URL.create("sqlite", database=str(place))
    try:
        url = make_url(str(place))
    except (SQLAlchemyError, ValueError):  # what it says quotes the URL, and there may be a password in it
        raise _bad_database("It cannot be read as a URL") from None
    if "@" in (url.host or ""):
        raise _bad_database("In a password @ is written as %40 and % as %25")
    if url.drivername == "sqlite" and url.database and not url.query:
        return url
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise _bad_database(f"{url.drivername}, with what follows, is not supported")
    try:
        import psycopg  # noqa: F401  # the driver may be there without the library that it stands on
    except ImportError:
        message = "PostgreSQL needs the extra. Install it with: pip install 'maemi[postgres]'."
        raise ConfigError("needs_extra", message) from None
    return url.set(drivername="postgresql+psycopg")


def shown_url(url: URL) -> str:
    """A database as an error or a log may name it: a file by its path, a server without any password."""
    if url.drivername == "sqlite":
        return str(url.database)
    return url.set(query={}).render_as_string(hide_password=True)


def open_database(url: URL, *, durable: bool = True) -> Engine:
    """An engine whose committed transactions survive a kill and, if `durable`, a power cut."""
    if url.drivername == "sqlite":
        return _open_sqlite(url, durable=durable)
    return create_engine(
        url,
        # Each statement sees what was committed before it: a writer that waited for its turn reads the newest row.
        isolation_level="READ COMMITTED",
        # A connection that a restart of the server broke is replaced before it is used.
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_S},
    )


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other one of these enters, so what it reads stays true until it writes."""
    with engine.connect().execution_options(maemi_writes=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(DURABLE)
            connection.execute(select(func.set_config("lock_timeout", f"{BUSY_S}s", True)))
            connection.execute(select(func.pg_advisory_xact_lock(WRITERS)))
        yield connection


class Database:
    """The tables of one registry in one SQLite file; one commit per call.

    Raises DatasetError `disk_full` or `disk` for what the disk refuses, and that of `damaged_file`.
    """

    damaged_file: ClassVar = ("damaged_database", "Put a copy of it back from a backup, or move it away.")
    """Code and remedy where the file is no database any more."""

    def __init__(self, path: Path, *, tables: type[DeclarativeBase], durable: bool) -> None:
        self._path = path
        self._engine = open_database(database_url(path), durable=durable)
        try:
            with self._errors(), write_transaction(self._engine) as connection:
                self._prepare(connection, tables)
        except DatasetError:
            self._engine.dispose()
            raise

    def _prepare(self, connection: Connection, tables: type[DeclarativeBase]) -> None:
        tables.metadata.create_all(connection)

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

    def _overwrite_deleted(self) -> None:
        """Leave nothing of deleted rows on the disk, neither in the file nor in the log beside it."""
        with self._errors(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM"))
            connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with self._errors(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with disk_errors(self._path, DatasetError):
            try:
                yield
            except DatabaseError as error:
                if not any(word in str(error.orig) for word in _DAMAGED):
                    raise
                code, remedy = self.damaged_file
                raise DatasetError(code, f"{self._path} is damaged ({error.orig}). {remedy}") from None


def _open_sqlite(url: URL, *, durable: bool) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own, weaker kind
        connection.execute("PRAGMA journal_mode=WAL")
        # A full sync per commit: what was paid for survives even a power cut.
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
        # What is deleted on request is overwritten, not merely let go.
        connection.execute("PRAGMA secure_delete=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") != "AUTOCOMMIT":
            # Only the immediate kind holds the write lock from its start.
            connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("maemi_writes") else "BEGIN")

    return engine


def _bad_database(problem: str) -> ConfigError:
    return ConfigError(
        "bad_database",
        f"{problem}. Name a database by the path of a SQLite file, as sqlite:///PATH, or as "
        "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE.",
    )

"""What the desk keeps in a database: opened with care for who may read it, and errors in words without a password.

Knows nothing about what the tables hold.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from assistant.database import database_url, open_database, shown_url, write_transaction
from assistant.errors import ServerError

_log = logging.getLogger("maemi.store")


class DeskDatabase:
    """A SQLite file that only its owner can read, or a PostgreSQL database; safe for threads and several processes.

    Raises ConfigError `bad_database` or `needs_extra`, ServerError `store_failed`, or `no_book` without `create`.
    """

    what: ClassVar[str]
    """What it holds, as the subject of a sentence."""

    def __init__(self, place: str | Path, *, create: bool = True) -> None:
        self._url = database_url(place)
        if self._url.drivername == "sqlite":
            path = Path(str(self._url.database))
            if not path.exists():
                if not create:
                    raise self._missing()
                # Made before SQLite does it, so that only its owner can read the file and the log beside it.
                try:
                    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
                except OSError as error:
                    raise self._failed(error.strerror or type(error).__name__) from None
        self._engine = open_database(self._url)

    def close(self) -> None:
        """Close the file, or the connections."""
        self._engine.dispose()

    @contextmanager
    def _opening(self) -> Iterator[Connection]:
        """A transaction to make tables and folders in; where that fails, the database is closed again."""
        try:
            with self._failures(), write_transaction(self._engine) as connection:
                yield connection
        except OSError as error:
            self.close()
            raise self._failed(error.strerror or type(error).__name__) from None
        except ServerError:
            self.close()
            raise

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Errors of the database in one line, for who runs the server."""
        try:
            yield
        except SQLAlchemyError as error:
            # What the database said, without a password; never the statement with what was to be stored.
            lines = str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()
            reason, url = lines[0] if lines else type(error).__name__, self._url
            for secret in filter(None, (url.password, url.query.get("password"), url.query.get("sslpassword"))):
                reason = reason.replace(str(secret), "***")
            raise self._failed(reason) from None

    @contextmanager
    def _failures_in_the_log(self) -> Iterator[None]:
        """The same for who uses the server, who need not know the reason."""
        try:
            with self._failures():
                yield
        except ServerError as error:
            _log.error("%s", error.message)
            message = f"{self.what} cannot be written. The log of the server has the reason."
            raise ServerError("store_failed", message) from None

    def _failed(self, reason: str) -> ServerError:
        check = "disk" if self._url.drivername == "sqlite" else "server, and what its user may do"
        message = f"{self.what} {shown_url(self._url)} cannot be used ({reason}). Check the {check}."
        return ServerError("store_failed", message)

    def _missing(self) -> ServerError:
        message = f"Nothing is kept at {shown_url(self._url)}. Name the --store of `maemi serve`."
        return ServerError("no_book", message)


def storable(words: str) -> str:
    """Words as every database takes them: half a surrogate pair is no UTF-8, and PostgreSQL keeps no NUL."""
    return words.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def default_place() -> Path:
    """Where the book is if nobody says otherwise: in the user's folder for what programs keep."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "maemi" / "answers.sqlite"

"""A PostgreSQL server of our own on loopback: its cluster is made in a new folder, by a user who is not root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

PASSWORD = "corréct:h/orse?&%'"
"""Every character that a URL, a shell or SQL could stumble over."""
DATABASE = "books"


def missing() -> str | None:
    """Why there can be no server here; None where there can."""
    if _programs() is None:
        return "the programs of a PostgreSQL server are not installed"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    return None


class Server:
    """A running server."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port

    def database(self, name: str, options: str = "") -> str:
        """The URL of a new database."""
        self.execute("postgres", f"CREATE DATABASE {name} {options}")
        return self.url(name)

    def emptied(self) -> str:
        """The URL of a database without a book in it."""
        self.execute(DATABASE, "DROP TABLE IF EXISTS answers", "DROP FUNCTION IF EXISTS answers_never_changed")
        return self.url(DATABASE)

    def url(self, database: str, *, user: str = "owner", password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def execute(self, database: str, *statements: str) -> None:
        """Give statements to the server directly, as its administrator."""
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="owner", password=PASSWORD, dbname=database, autocommit=True
        ) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def start(self) -> None:
        settings = ("listen_addresses=127.0.0.1", "shared_buffers=16MB", "recovery_init_sync_method=syncfs")
        options = f"-p {self.port} -k {self.folder} {' '.join(f'-c {setting}' for setting in settings)}"
        self._control("start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def crash(self) -> None:
        """Stop as in a power cut: nothing is written any more."""
        self._control("stop", "-m", "immediate", "-w")

    def _control(self, *arguments: str) -> None:
        _run("pg_ctl", *arguments, "-D", str(self.folder / "data"))


@contextmanager
def postgres_server() -> Iterator[Server]:
    """A server that is gone afterwards, with all it held."""
    # Not pytest's folder: that one only root may enter, and no server runs as root.
    folder = Path(tempfile.mkdtemp(prefix="maemi-postgres-"))
    password = folder / "password"
    password.write_text(PASSWORD)
    if os.geteuid() == 0:
        for path in (folder, password):
            shutil.chown(path, "nobody")
    server = Server(folder, free_port())
    try:
        access = ("-U", "owner", "-A", "scram-sha-256", "--pwfile", str(password))
        _run("initdb", "-D", str(folder / "data"), *access, "-E", "UTF8", "--locale=C", "--no-sync")
        server.start()
        server.database(DATABASE)
        yield server
    finally:
        subprocess.run([_program("pg_ctl"), "stop", "-m", "immediate", "-D", folder / "data"], **_caller())
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _run(program: str, *arguments: str) -> None:
    subprocess.run([_program(program), *arguments], check=True, **_caller())


def _caller() -> dict[str, object]:
    """How a program is started: quietly, in a folder everybody may enter, and not as root."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    return quiet | ({"user": "nobody", "group": "nogroup", "extra_groups": ()} if os.geteuid() == 0 else {})


def _program(name: str) -> str:
    folder = _programs()
    assert folder is not None
    return str(folder / name)


def _programs() -> Path | None:
    """The newest installed server; Debian keeps its programs off the search path."""
    found = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    return next((path for path in found if (path / "initdb").exists() and (path / "pg_ctl").exists()), None)


needs_server = pytest.mark.skipif(missing() is not None, reason=str(missing()))

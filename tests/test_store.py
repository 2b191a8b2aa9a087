"""The book of answers, held to one contract on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from postgres import DATABASE, PASSWORD, Server, needs_server
from sqlalchemy import text

from assistant.database import database_url, open_database, shown_url, write_transaction
from assistant.errors import ConfigError, MaemiError, ServerError
from serve.cli import main
from serve.desk import store as store_module
from serve.desk.store import AnswerStore

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_server)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new book may be."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/answers.sqlite"
    return str(request.getfixturevalue("server").emptied())


@pytest.fixture
def book(place: str) -> Iterator[AnswerStore]:
    store = AnswerStore(place)
    yield store
    store.close()


@pytest.fixture
def tamper(place: str) -> Callable[..., None]:
    """Give statements to the database as its administrator would, past everything of ours."""

    def execute(*statements: str) -> None:
        engine = open_database(database_url(place))
        try:
            with engine.begin() as connection:
                for statement in statements:
                    connection.exec_driver_sql(statement)
        finally:
            engine.dispose()

    return execute


def write(store: AnswerStore, count: int, **fields: Any) -> list[int]:
    entry = {"user": "ada", "model": "m", "images": ["00"], "question": "How many?", "answer": "Three."} | fields
    return [store.record(**entry) for _ in range(count)]


def unguard(place: str) -> list[str]:
    """What an administrator must do before the database lets an entry be changed."""
    if place.startswith("sqlite"):
        return ["DROP TRIGGER no_update", "DROP TRIGGER no_delete"]
    return ["DROP TRIGGER never_changed ON answers"]


# ---------------------------------------------------------------------------------------------------- the contract


def test_what_was_said_comes_back(book: AnswerStore, place: str) -> None:
    """In every alphabet; only what no database can hold is replaced. Seen failing on PostgreSQL with a NUL."""
    write(book, 1, question="Größe in µm? 图 🔬", answer="a\ud800b\0c", user="zoë\0", images=["11", "22"])
    write(book, 1, outcome="aborted")
    book.close()
    again = AnswerStore(place, create=False)
    newest, first = again.entries()
    again.close()
    assert (newest.number, newest.outcome) == (2, "aborted")
    assert (first.number, first.question, first.user) == (1, "Größe in µm? 图 🔬", "zoë\ufffd")
    assert (first.answer, first.images, first.model) == ("a?b\ufffdc", ["11", "22"], "m")


def test_the_chain_is_followed(book: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ROWS_AT_ONCE", 5)
    assert (book.verify().answers, book.verify().broken_at) == (0, None)
    write(book, 12)
    chain = book.verify()
    assert (chain.answers, chain.broken_at, len(chain.digest)) == (12, None, 64)
    assert [entry.number for entry in book.entries(limit=3)] == [12, 11, 10]


@pytest.mark.parametrize("verb", ["UPDATE answers SET answer = 'b'", "DELETE FROM answers", "TRUNCATE answers"])
def test_the_database_refuses_a_change(book: AnswerStore, place: str, tamper: Callable[..., None], verb: str) -> None:
    if verb.startswith("TRUNCATE") and place.startswith("sqlite"):
        pytest.skip("SQLite has no TRUNCATE")
    write(book, 2)
    with pytest.raises(Exception, match="never changed"):
        tamper(verb)
    assert book.verify().answers == 2


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ("UPDATE answers SET answer = 'b' WHERE number = 3", 3),
        ("UPDATE answers SET at_utc = '2020-01-01' WHERE number = 1", 1),
        ("DELETE FROM answers WHERE number = 2", 2),
        ("UPDATE answers SET number = number + 10 WHERE number = 4", 4),
    ],
)
def test_the_chain_betrays_a_change(
    book: AnswerStore, place: str, tamper: Callable[..., None], change: str, broken: int
) -> None:
    write(book, 5)
    tamper(*unguard(place), change)
    chain = book.verify()
    assert (chain.answers, chain.broken_at) == (broken - 1, broken)


def test_the_chain_betrays_bytes_where_words_belong(tmp_path: Path) -> None:
    """SQLite takes any kind of value in any column."""
    store = AnswerStore(tmp_path / "answers.sqlite")
    write(store, 2)
    with sqlite3.connect(tmp_path / "answers.sqlite") as raw:
        raw.execute("DROP TRIGGER no_update")
        raw.execute("UPDATE answers SET answer = x'00ff' WHERE number = 2")
    raw.close()
    assert store.verify().broken_at == 2
    store.close()


def test_an_end_that_was_cut_off_shows_in_the_digest(
    book: AnswerStore, place: str, tamper: Callable[..., None]
) -> None:
    """The chain alone cannot show it; a digest that was written down elsewhere does."""
    write(book, 3)
    before = book.verify()
    tamper(*unguard(place), "DELETE FROM answers WHERE number = 3")
    assert book.verify().broken_at is None
    assert book.verify().digest != before.digest


def test_a_guard_that_is_gone_comes_back(book: AnswerStore, place: str, tamper: Callable[..., None]) -> None:
    write(book, 1)
    tamper(*unguard(place))
    AnswerStore(place).close()
    with pytest.raises(Exception, match="never changed"):
        tamper("DELETE FROM answers")


def test_threads_share_one_book(place: str) -> None:
    """Four threads with two books: every number once, one chain. Seen failing without the lock of the writers."""
    stores = [AnswerStore(place) for _ in range(2)]
    threads = [threading.Thread(target=write, args=(stores[n % 2], 25)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.number for entry in stores[0].entries()] == list(range(100, 0, -1))
    assert (stores[1].verify().answers, stores[1].verify().broken_at) == (100, None)
    for store in stores:
        store.close()


WRITER = """
import sys
from serve.desk.store import AnswerStore
store = AnswerStore(sys.argv[1])
print("open", flush=True)
while True:
    print(store.record(user="u", model="m", images=[], question="q" * 2000, answer="a"), flush=True)
"""


def writer(place: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, place], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_no_answer_that_was_acknowledged_is_lost_to_a_kill(place: str) -> None:
    """Two processes begin the book at once and write into it until kill -9; the next ones go on where they were."""
    acknowledged: list[int] = []
    for lines in (1, 10):
        processes = [writer(place) for _ in range(2)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            acknowledged += [int(process.stdout.readline()) for _ in range(lines)]
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            assert process.stdout is not None
            with process.stdout as told:
                acknowledged += [int(line) for line in told.read().split("\n")[:-1]]
            process.wait()
    assert len(set(acknowledged)) == len(acknowledged)
    store = AnswerStore(place)
    chain = store.verify()
    assert chain.broken_at is None
    # At each kill at most one answer of each writer was written and not yet told.
    assert max(acknowledged) <= chain.answers <= len(acknowledged) + 4
    assert write(store, 1) == [chain.answers + 1]
    store.close()


# ------------------------------------------------------------------------------------------------------ PostgreSQL


@needs_server
def test_a_server_that_loses_power_keeps_what_was_acknowledged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """It stops as in a power cut while answers are written; the same book goes on once it is back."""
    url = server.emptied()
    store, idle = AnswerStore(url), AnswerStore(url)
    process = writer(url)
    assert process.stdout is not None
    with process.stdout as output:
        told = [output.readline() for _ in range(20)]
        server.crash()
        told += output.read().split("\n")
    assert process.wait() == 1
    with pytest.raises(ServerError, match="store_failed") as failed:
        write(store, 1)
    # Whoever asked is not told where the book is; the log is, but not with what password.
    assert "127.0.0.1" not in str(failed.value)
    assert f"127.0.0.1:{server.port}" in caplog.text
    assert PASSWORD not in caplog.text
    server.start()
    # Also one that did not meet the outage, and whose connection broke without its knowing.
    numbers = [*write(idle, 1), *write(store, 1)]
    chain = store.verify()
    for book in (store, idle):
        book.close()
    assert (chain.answers, chain.broken_at) == (numbers[1], None)
    assert numbers[1] == numbers[0] + 1
    assert numbers[0] > max(int(line) for line in told if line.strip().isdigit()) >= 19


@needs_server
def test_whoever_may_only_write_or_only_read_does_just_that(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A server may run as a user who may add answers and no more, an auditor as one who may read them."""
    url = server.emptied()
    AnswerStore(url).close()
    server.execute(
        DATABASE,
        "CREATE ROLE clerk LOGIN PASSWORD 'pw-of-clerk'", "CREATE ROLE auditor LOGIN PASSWORD 'pw-of-auditor'",
        "GRANT SELECT, INSERT ON answers TO clerk", "GRANT SELECT ON answers TO auditor",
    )  # fmt: skip
    clerk = AnswerStore(server.url(DATABASE, user="clerk", password="pw-of-clerk"))
    auditor = AnswerStore(server.url(DATABASE, user="auditor", password="pw-of-auditor"), create=False)
    write(clerk, 2)
    assert auditor.verify().answers == 2
    with pytest.raises(ServerError, match="store_failed"):
        write(auditor, 1)
    assert "permission denied" in caplog.text
    for store in (clerk, auditor):
        store.close()


@needs_server
def test_a_server_whose_default_is_not_to_wait_for_the_disk(server: Server) -> None:
    """Whatever isolation and durability the database hands out, a commit is on disk and sees what came before."""
    url = server.emptied()
    server.execute(
        DATABASE,
        f"ALTER DATABASE {DATABASE} SET synchronous_commit = off",
        f"ALTER DATABASE {DATABASE} SET default_transaction_isolation = 'repeatable read'",
    )
    stores = [AnswerStore(url) for _ in range(2)]
    threads = [threading.Thread(target=write, args=(store, 20)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (stores[0].verify().answers, stores[0].verify().broken_at) == (40, None)
    with write_transaction(stores[0]._engine) as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
    for store in stores:
        store.close()


@needs_server
def test_what_is_wrong_with_a_server_is_one_line_without_the_password(
    server: Server, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    latin = server.database("latin", "ENCODING 'LATIN1' TEMPLATE template0")
    good = server.emptied()
    wrong = {
        latin: "encoding is not UTF8",
        server.url(DATABASE, password="wr0ng-secret"): "authentication failed",
        server.url("nowhere"): "does not exist",
        good.replace(f":{server.port}/", ":1/"): "refused",
        f"{good}?sslmode=require&sslpassword=wr0ng-secret": "SSL",
        f"{good}?nonsense=wr0ng-secret": "nonsense",
    }
    for url, reason in wrong.items():
        assert maemi("serve", "--store", url) == 2
        told = capfd.readouterr()
        assert told.out == ""
        assert told.err.startswith("error: store_failed: "), told.err
        assert reason in told.err, told.err
        assert told.err.count("\n") == 1
        for secret in (PASSWORD, quote(PASSWORD), "wr0ng-secret"):
            assert secret not in told.err + caplog.text


# -------------------------------------------------------------------------------------------------------- its place


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:sec/ret@host:port/db", "mysql://u:secret@host/db", "postgresql+asyncpg://u:secret@host/db",
        "postgresql+psycopg://u:sec@ret@host/db", "sqlite://", "sqlite:///a?secret=1", "://secret", "sqlite+x:///secret",
    ],
)  # fmt: skip
def test_a_url_that_names_no_database_is_refused(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["answers", "--store", url])
    told = capfd.readouterr().err
    assert told.startswith("error: bad_database: ")
    assert "secret" not in told
    assert "ret@" not in told


def test_a_missing_driver_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"needs_extra: .*pip install 'maemi\[postgres\]'"):
        AnswerStore("postgresql://u:secret@host/db")


def test_a_server_is_shown_without_its_password() -> None:
    url = database_url("postgresql://ada:secret@db.site:5433/books?sslpassword=secret2&sslmode=require")
    assert shown_url(url) == "postgresql+psycopg://ada:***@db.site:5433/books"


def test_a_file_is_named_by_any_path(tmp_path: Path) -> None:
    """Seen failing with `?` and `%` in a name, which a URL made of the path by hand takes for its own."""
    for name in ("what?.sqlite", "100%25.sqlite", "a b#c.sqlite", "µ:@.sqlite"):
        AnswerStore(tmp_path / "new" / name).close()
        assert (tmp_path / "new" / name).is_file()
    assert len(list((tmp_path / "new").iterdir())) == 4


def test_nobody_else_can_read_the_file_or_the_log_beside_it(tmp_path: Path) -> None:
    """Seen failing for the log, which holds answers too, while the file was made by SQLite and closed afterwards."""
    store = AnswerStore(tmp_path / "answers.sqlite")
    write(store, 1)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    store.close()
    assert modes == dict.fromkeys(("answers.sqlite", "answers.sqlite-wal", "answers.sqlite-shm"), 0o600)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database " * 100)
    for place in (tmp_path / "file" / "answers.sqlite", tmp_path, tmp_path / "file"):
        with pytest.raises(MaemiError, match=r"store_failed: .*Check the disk"):
            AnswerStore(place)


# --------------------------------------------------------------------------------------------------------- the verb


def maemi(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(str(ended.value.code))


def test_the_verb_shows_and_verifies(
    book: AnswerStore, place: str, tamper: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    write(book, 3)
    assert maemi("answers", "--store", place, "--verify") == 0
    assert capfd.readouterr().out.startswith("3 answers, none changed or missing. ")
    assert maemi("answers", "--store", place, "--last", "1", "--json") == 0
    assert '"number": 3' in capfd.readouterr().out
    assert maemi("answers", "--store", place) == 0
    assert "Three." in capfd.readouterr().out
    tamper(*unguard(place), "UPDATE answers SET answer = 'Four.' WHERE number = 2")
    assert maemi("answers", "--store", place, "--verify") == 1
    assert capfd.readouterr().out.startswith("Answer 2 was changed or taken away")
    assert maemi("answers", "--store", place, "--verify", "--json") == 1
    assert '"broken_at": 2' in capfd.readouterr().out


def test_the_verb_begins_no_book(place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert maemi("answers", "--store", place, "--verify") == 2
        assert capfd.readouterr().err.startswith("error: no_book: ")
    assert list(tmp_path.iterdir()) == []


def test_the_book_is_where_the_server_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    store = AnswerStore(tmp_path / "maemi" / "answers.sqlite")
    write(store, 1)
    store.close()
    assert maemi("answers", "--verify") == 0
    assert capfd.readouterr().out.startswith("1 answer, ")

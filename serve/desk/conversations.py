"""Conversations with their pictures, kept for whoever had them until they delete them.

Rows lie in a database like the book of answers; uploaded files lie beside it, named by their hash, in a folder of their
owner. Unlike the book everything here can be changed, and what is deleted is gone. Knows nothing about pages or models.
"""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    and_,
    delete,
    false,
    insert,
    or_,
    select,
    text,
    update,
)

from assistant.chat import Message
from assistant.database import database_url, write_transaction
from assistant.disk import move_directory
from assistant.errors import ConfigError, ServerError
from serve.desk.database import DeskDatabase, default_place, storable

MAX_TITLE = 80
LISTED = 200
"""Conversations in a list; a search finds the others."""
LEFT_S = 3600
"""Age at which a picture that never joined its conversation is removed [s]."""
GOOD, BAD = 1, -1

metadata = MetaData()
conversations = Table(
    "conversations",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False, index=True),
    Column("title", String, nullable=False),
    Column("pixel_size", String, nullable=False),
    Column("current", Boolean, nullable=False),
    Column("begun_at", String, nullable=False),
    Column("changed_at", String, nullable=False),
)
exchanges = Table(
    "exchanges",
    metadata,
    Column("conversation", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("asked_at", String, nullable=False),
    Column("question", String, nullable=False),
    Column("answer", String),
    Column("model", String, nullable=False),
    Column("false_rate", Float),
    Column("statements", String, nullable=False),
    Column("warnings", String, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("rating", Integer, nullable=False),
    Column("correction", String, nullable=False),
)
pictures = Table(
    "pictures",
    metadata,
    Column("conversation", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("exchange", Integer, nullable=False),
    Column("owner", String, nullable=False),
    Column("folder", String, nullable=False),
    Column("name", String, nullable=False),
    Column("info", String, nullable=False),
    Column("facts", String, nullable=False),
    Index("pictures_of_owner", "owner", "folder"),
)


@dataclass(frozen=True)
class NewPicture:
    """A picture that joins a conversation: its file beside its side-cars, what a browser is shown, what is known."""

    path: Path
    beside: Sequence[Path]
    shown: bytes
    """PNG."""
    info: Mapping[str, Any]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class KeptPicture:
    """A picture of a conversation."""

    name: str
    path: Path
    """The uploaded file, its side-cars beside it."""
    shown: Path
    info: Mapping[str, Any]
    """As `Micrograph.info` gives it."""
    facts: Mapping[str, Any]
    """As `Facts.as_dict` gives them."""

    @property
    def given_nm(self) -> float | None:
        """The pixel size that a person gave; None where the file tells its own [nm]."""
        nm: float | None = self.info["pixel_size_nm"] if self.info["pixel_size_source"] == "user" else None
        return nm


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    number: int
    asked_at: str
    """UTC."""
    question: str
    answer: str | None
    """None while the question waits, also where its answer was stopped."""
    model: str
    false_rate: float | None
    """Share of false statements that was measured on the model's run."""
    statements: Sequence[Mapping[str, Any]]
    """As `Statement.as_dict` gives them."""
    warnings: Sequence[str]
    tries: int
    """How often it was answered."""
    rating: int
    """GOOD, BAD, or 0."""
    correction: str
    """What a person says that the answer should have said; empty for none."""
    pictures: tuple[KeptPicture, ...] = ()
    """Those that came with the question."""


@dataclass(frozen=True)
class Heading:
    """A conversation in a list."""

    id: str
    title: str
    changed_at: str


@dataclass(frozen=True)
class Dialogue:
    """All of a conversation."""

    id: str
    owner: str
    title: str
    pixel_size: str
    """As a person wrote it, for pictures that carry none."""
    begun_at: str
    exchanges: tuple[Exchange, ...] = field(default=())

    @property
    def pictures(self) -> tuple[KeptPicture, ...]:
        """All pictures in their order."""
        return tuple(picture for exchange in self.exchanges for picture in exchange.pictures)

    @property
    def waiting(self) -> Exchange | None:
        """The last question, where it has no answer."""
        return self.exchanges[-1] if self.exchanges and self.exchanges[-1].answer is None else None

    @property
    def history(self) -> tuple[Message, ...]:
        """The turns that are finished."""
        return tuple(
            message
            for exchange in self.exchanges
            if exchange.answer is not None
            for message in (
                Message("user", exchange.question, images=len(exchange.pictures)),
                Message("assistant", exchange.answer),
            )
        )


class Conversations(DeskDatabase):
    """Conversations of all owners; an owner sees and changes none but their own.

    `place` is the path of a SQLite file or a database URL, `files` the folder for uploaded files.
    Raises ConfigError `bad_database`, `needs_extra`, or `no_conversation` for one that is not there or not the owner's;
    ServerError `store_failed`.
    """

    what = "The store of conversations"

    def __init__(self, place: str | Path, files: Path, *, create: bool = True) -> None:
        super().__init__(place, create=create)
        self._files = files
        with self._opening() as connection:
            files.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in files.glob("new-*"):  # by a server that was killed
                if time.time() - left.stat().st_mtime > LEFT_S:
                    shutil.rmtree(left, ignore_errors=True)
            metadata.create_all(connection)

    # -------------------------------------------------------------------------------------------- find

    def listed(self, owner: str, search: str = "") -> list[Heading]:
        """Conversations of an owner whose title, questions or answers have every word of a search, newest first."""
        query = select(conversations.c.id, conversations.c.title, conversations.c.changed_at)
        query = query.where(conversations.c.owner == owner)
        for word in storable(search).split():
            said = or_(
                *(column.icontains(word, autoescape=True) for column in (exchanges.c.question, exchanges.c.answer))
            )
            within = select(exchanges.c.conversation).where(said)
            query = query.where(
                or_(conversations.c.title.icontains(word, autoescape=True), conversations.c.id.in_(within))
            )
        with self._failures_in_the_log(), self._engine.connect() as connection:
            found = connection.execute(query.order_by(conversations.c.changed_at.desc()).limit(LISTED))
            return [Heading(*row) for row in found]

    def current(self, owner: str) -> str | None:
        """The conversation that an owner had open last; None after they began a new one."""
        query = select(conversations.c.id).where(conversations.c.owner == owner, conversations.c.current)
        with self._failures_in_the_log(), self._engine.connect() as connection:
            return connection.scalar(query)

    def load(self, owner: str, id: str) -> Dialogue:
        """All of a conversation."""
        with self._failures_in_the_log(), self._engine.connect() as connection:
            return self._loaded(connection, owner, id)

    def said_of(self, owner: str, hashes: Collection[str]) -> dict[str, str]:
        """The latest answer to a question of an owner that came with a picture, by the SHA-256 of the file."""
        query = select(pictures.c.info, exchanges.c.answer).join(
            exchanges,
            and_(exchanges.c.conversation == pictures.c.conversation, exchanges.c.number == pictures.c.exchange),
        )
        query = query.where(
            pictures.c.owner == owner,
            exchanges.c.answer.is_not(None),
            or_(false(), *(pictures.c.info.contains(one, autoescape=True) for one in hashes)),
        )
        with self._failures_in_the_log(), self._engine.connect() as connection:
            found = connection.execute(query.order_by(exchanges.c.asked_at)).all()
        return {json.loads(info)["sha256"]: answer for info, answer in found}

    def corrected(self, owner: str | None = None) -> list[Dialogue]:
        """The conversations in which an answer was corrected, oldest first; of all owners for who runs the server."""
        query = select(conversations.c.owner, conversations.c.id).order_by(conversations.c.begun_at, conversations.c.id)
        query = query.where(
            conversations.c.id.in_(select(exchanges.c.conversation).where(exchanges.c.correction != ""))
        )
        if owner is not None:
            query = query.where(conversations.c.owner == owner)
        with self._failures(), self._engine.connect() as connection:
            return [self._loaded(connection, *row) for row in connection.execute(query).all()]

    # -------------------------------------------------------------------------------------------- say

    def ask(
        self, owner: str, id: str | None, question: str, shown: Sequence[NewPicture] = (), *, pixel_size: str = ""
    ) -> str:
        """Put a question into a conversation, a new one if `id` is None; gives its id.

        A question that still waits for its answer is replaced; its pictures stay.
        """
        laid = [self._lay(owner, picture) for picture in shown]
        try:
            with self._failures_in_the_log(), write_transaction(self._engine) as connection:
                if id is None:
                    about = f" · {shown[0].path.name}" if shown else ""
                    id = self._begin(connection, owner, question + about)
                before = self._loaded(connection, owner, id)
                number = before.waiting.number if before.waiting else len(before.exchanges)
                connection.execute(_within(delete(exchanges), exchanges, id, exchanges.c.number >= number))
                self._put(connection, id, number, question, tries=0)
                for place, (picture, partial, folder) in enumerate(
                    zip(shown, *zip(*laid, strict=True), strict=True) if laid else (), len(before.pictures)
                ):
                    self._keep(owner, partial, folder)
                    connection.execute(
                        insert(pictures).values(
                            conversation=id,
                            number=place,
                            exchange=number,
                            owner=owner,
                            folder=folder,
                            name=storable(picture.path.name),
                            info=json.dumps(picture.info),
                            facts=json.dumps(picture.facts),
                        )
                    )
                self._touch(connection, owner, id, pixel_size=storable(pixel_size))
        finally:
            for partial, _ in laid:
                shutil.rmtree(partial, ignore_errors=True)
        return id

    def ask_again(self, owner: str, id: str, question: str | None = None) -> None:
        """Let the last question wait for its answer once more, with other words if given."""
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            before = self._loaded(connection, owner, id)
            if not before.exchanges:
                raise ConfigError("no_question", "Ask something about a micrograph first.")
            last = before.exchanges[-1]
            connection.execute(_within(delete(exchanges), exchanges, id, exchanges.c.number == last.number))
            self._put(connection, id, last.number, last.question if question is None else question, tries=last.tries)
            self._touch(connection, owner, id)

    def answer(
        self,
        owner: str,
        id: str,
        said: str,
        *,
        model: str,
        statements: Sequence[Mapping[str, Any]] = (),
        warnings: Sequence[str] = (),
        false_rate: float | None = None,
    ) -> None:
        """Answer the question that waits; nothing happens where none does any more."""
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            waiting = self._loaded(connection, owner, id).waiting
            if waiting is None:
                return
            values = {"answer": storable(said), "model": storable(model), "false_rate": false_rate}
            values |= {"statements": json.dumps(list(statements)), "warnings": json.dumps(list(warnings))}
            query = _within(update(exchanges), exchanges, id, exchanges.c.number == waiting.number)
            connection.execute(query.values(**values, tries=waiting.tries + 1))
            self._touch(connection, owner, id)

    def rate(self, owner: str, id: str, number: int, rating: int) -> None:
        """Call an answer GOOD or BAD, or neither (0)."""
        self._change(owner, id, number, rating=rating)

    def correct(self, owner: str, id: str, number: int, correction: str) -> None:
        """Keep what an answer should have said; empty words take that back."""
        self._change(owner, id, number, correction=storable(correction.strip()))

    def recalibrate(self, owner: str, id: str, pixel_size: str, known: Iterable[tuple[Any, Any]]) -> None:
        """Keep another pixel size with the info and facts of every picture that follow from it."""
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            self._loaded(connection, owner, id)
            for number, (info, facts) in enumerate(known):
                query = _within(update(pictures), pictures, id, pictures.c.number == number)
                connection.execute(query.values(info=json.dumps(info), facts=json.dumps(facts)))
            self._touch(connection, owner, id, pixel_size=storable(pixel_size))

    def replace(self, owner: str, id: str, number: int, picture: NewPicture) -> None:
        """Put another reading of the picture at a place (from 0) there, with other side-cars beside the file."""
        partial, folder = self._lay(owner, picture)
        try:
            with self._failures_in_the_log(), write_transaction(self._engine) as connection:
                if number >= len(self._loaded(connection, owner, id).pictures):
                    raise ConfigError("no_picture", "This picture is not there any more. Reload the page.")
                self._keep(owner, partial, folder)
                query = _within(update(pictures), pictures, id, pictures.c.number == number)
                values = {"info": json.dumps(picture.info), "facts": json.dumps(picture.facts)}
                connection.execute(query.values(folder=folder, **values))
                self._remove_unused(connection, owner)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    # -------------------------------------------------------------------------------------------- order

    def choose(self, owner: str, id: str | None) -> None:
        """Remember which conversation is open, or that none is."""
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            self._open(connection, owner, id)

    def retitle(self, owner: str, id: str, title: str) -> None:
        """Give a conversation another title. Raises ConfigError `no_title`."""
        if not (title := _title(title)):
            raise ConfigError("no_title", "A conversation needs a title. Write a few words.")
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            self._loaded(connection, owner, id)
            connection.execute(update(conversations).where(conversations.c.id == id).values(title=title))

    def delete(self, owner: str, id: str) -> None:
        """Delete a conversation, and every file that no other one of its owner shows."""
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            self._loaded(connection, owner, id)
            for table in (exchanges, pictures):
                connection.execute(_within(delete(table), table, id))
            connection.execute(delete(conversations).where(conversations.c.id == id))
            self._remove_unused(connection, owner)
        if (
            self._engine.dialect.name == "sqlite"
        ):  # deleted rows are overwritten; the log beside the file has them still
            with self._failures_in_the_log(), self._engine.connect() as connection:
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))

    def expire(self, age_s: float) -> None:
        """Delete what nothing happened in for so long [s]."""
        before = datetime.fromtimestamp(time.time() - age_s, UTC).isoformat(timespec="milliseconds")
        query = select(conversations.c.owner, conversations.c.id).where(conversations.c.changed_at < before)
        with self._failures_in_the_log(), self._engine.connect() as connection:
            old = connection.execute(query).all()
        for owner, id in old:
            self.delete(owner, id)

    # -------------------------------------------------------------------------------------------- within a transaction

    def _loaded(self, connection: Connection, owner: str, id: str) -> Dialogue:
        known = select(conversations).where(conversations.c.id == id, conversations.c.owner == owner)
        row = connection.execute(known).mappings().first()
        if row is None:
            raise ConfigError("no_conversation", "This conversation is not there any more. Begin a new one.")
        shown: dict[int, list[KeptPicture]] = {}
        for picture in connection.execute(_within(select(pictures), pictures, id).order_by(pictures.c.number)):
            folder = self._files / owner / picture.folder
            shown.setdefault(picture.exchange, []).append(
                KeptPicture(
                    name=picture.name,
                    path=folder / "files" / picture.name,
                    shown=folder / "shown.png",
                    info=json.loads(picture.info),
                    facts=json.loads(picture.facts),
                )
            )
        said = [
            Exchange(
                **{key: value for key, value in one.items() if key not in ("conversation", "statements", "warnings")},
                statements=json.loads(one["statements"]),
                warnings=json.loads(one["warnings"]),
                pictures=tuple(shown.get(one["number"], ())),
            )
            for one in connection.execute(
                _within(select(exchanges), exchanges, id).order_by(exchanges.c.number)
            ).mappings()
        ]
        return Dialogue(id, owner, row["title"], row["pixel_size"], row["begun_at"], tuple(said))

    def _begin(self, connection: Connection, owner: str, question: str) -> str:
        id = secrets.token_hex(16)
        connection.execute(
            insert(conversations).values(
                id=id,
                owner=owner,
                title=_title(question) or "Dialogue",
                pixel_size="",
                current=False,
                begun_at=_now(),
                changed_at=_now(),
            )
        )
        return id

    def _put(self, connection: Connection, id: str, number: int, question: str, *, tries: int) -> None:
        connection.execute(
            insert(exchanges).values(
                conversation=id,
                number=number,
                asked_at=_now(),
                question=storable(question),
                answer=None,
                model="",
                false_rate=None,
                statements="[]",
                warnings="[]",
                tries=tries,
                rating=0,
                correction="",
            )
        )

    def _change(self, owner: str, id: str, number: int, **values: Any) -> None:
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            if number not in {one.number for one in self._loaded(connection, owner, id).exchanges}:
                raise ConfigError("no_answer", "This answer is not there any more. Reload the page.")
            connection.execute(_within(update(exchanges), exchanges, id, exchanges.c.number == number).values(**values))

    def _touch(self, connection: Connection, owner: str, id: str, **values: Any) -> None:
        """A conversation that something happened in: it is the newest, and the one that is open."""
        query = update(conversations).where(conversations.c.id == id)
        connection.execute(query.values(changed_at=_now(), **values))
        self._open(connection, owner, id)

    def _open(self, connection: Connection, owner: str, id: str | None) -> None:
        here = conversations.c.id == id if id is not None else False
        connection.execute(update(conversations).where(conversations.c.owner == owner).values(current=here))

    # -------------------------------------------------------------------------------------------- files

    def _lay(self, owner: str, picture: NewPicture) -> tuple[Path, str]:
        """Copy a picture with its side-cars beside its place; gives that folder, and the name it will have."""
        digest = sha256()
        try:
            (self._files / owner).mkdir(exist_ok=True, mode=0o700)
            partial = Path(tempfile.mkdtemp(prefix="new-", dir=self._files))
            (partial / "files").mkdir()
            for file in (picture.path, *sorted(picture.beside)):
                name = storable(file.name)
                with file.open("rb") as source:
                    digest.update(name.encode() + file_digest(source, "sha256").digest())
                shutil.copyfile(file, partial / "files" / name)
            (partial / "shown.png").write_bytes(picture.shown)
        except OSError as error:
            raise ServerError(
                "store_failed", f"The picture cannot be kept ({error.strerror}). Check the disk of the server."
            ) from None
        return partial, digest.hexdigest()

    def _remove_unused(self, connection: Connection, owner: str) -> None:
        """Remove the files that no conversation of an owner shows."""
        used = set(connection.scalars(select(pictures.c.folder).where(pictures.c.owner == owner)))
        for folder in self._files.glob(f"{owner}/*"):
            if folder.name not in used:
                shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, owner: str, partial: Path, name: str) -> None:
        place = self._files / owner / name
        if not place.exists():  # in the transaction: no deletion comes between the files and the row that needs them
            move_directory(partial, place)


def beside_the_book(place: str | Path) -> tuple[str | Path, Path]:
    """Where conversations and their files are kept, given where the book of answers is."""
    url = database_url(place)
    if url.drivername != "sqlite":
        return place, default_place().with_name("pictures")
    book = Path(str(url.database))
    return book.with_name(f"{book.stem}.conversations{book.suffix}"), book.with_name(f"{book.stem}.pictures")


def _within(statement: Any, table: Table, id: str, *conditions: Any) -> Any:
    """A statement about the rows of one conversation."""
    return statement.where(table.c.conversation == id, *conditions)


def _title(words: str) -> str:
    words = " ".join(storable(words).split())
    return words if len(words) <= MAX_TITLE else f"{words[: MAX_TITLE - 1]}…"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

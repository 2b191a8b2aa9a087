"""Conversations are kept, found, changed and deleted for good: on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from measuring import MeasuringAssistant, write_tiff
from postgres import needs_server

from assistant.errors import ConfigError, ServerError
from assistant.micrograph import read_micrograph
from serve.desk.conversations import BAD, Conversations, NewPicture, beside_the_book
from serve.page.uploads import shown_png

ADA, BOB = "ada0", "b0b0"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_server)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "kept" / "conversations.sqlite")
    server = request.getfixturevalue("server")
    server.execute("postgres", "DROP DATABASE IF EXISTS talks")
    return str(server.database("talks", "ENCODING 'UTF8' TEMPLATE template0"))


@pytest.fixture
def store(place: str, tmp_path: Path) -> Iterator[Conversations]:
    store = Conversations(place, tmp_path / "kept" / "pictures")
    yield store
    store.close()


def picture(folder: Path, name: str = "discs.tif", **drawn: Any) -> NewPicture:
    folder.mkdir(exist_ok=True)
    path = write_tiff(folder / name, **drawn)
    (folder / f"{name}.txt").write_text("$CM_FORMAT JEOL\n")
    micrograph = read_micrograph(path)
    facts = MeasuringAssistant().facts_of(micrograph).as_dict()
    return NewPicture(path, [folder / f"{name}.txt"], shown_png(micrograph), micrograph.info(), facts)


def kept_files(store: Conversations) -> list[Path]:
    return [path for path in store._files.rglob("*") if path.is_file()]


def test_a_conversation_is_found_again(store: Conversations, place: str, tmp_path: Path) -> None:
    """By another process too: all that was said, the pictures with what was known of them, which one was open."""
    id = store.ask(ADA, None, "How many?", [picture(tmp_path / "a")], pixel_size="4 nm")
    store.answer(ADA, id, "There are 9.", model="m", statements=[{"text": "9"}], warnings=["careful"], false_rate=0.1)
    store.ask(ADA, id, "How large?", [picture(tmp_path / "b", "more.tif", seed=1)])
    again = Conversations(place, store._files)
    found = again.load(ADA, id)
    assert again.current(ADA) == id
    assert [(one.question, one.answer, one.model) for one in found.exchanges] == [
        ("How many?", "There are 9.", "m"),
        ("How large?", None, ""),
    ]
    first = found.exchanges[0]
    assert (list(first.statements), list(first.warnings), first.false_rate) == ([{"text": "9"}], ["careful"], 0.1)
    assert [one.name for one in found.pictures] == ["discs.tif", "more.tif"]
    assert found.pictures[0].path.read_bytes() == (tmp_path / "a" / "discs.tif").read_bytes()
    assert found.pictures[0].path.with_name("discs.tif.txt").exists()
    assert found.pictures[0].shown.read_bytes()[1:4] == b"PNG"
    assert found.pictures[0].info["pixel_size_nm"] == pytest.approx(4.2)
    assert [(turn.role, turn.images) for turn in found.history] == [("user", 1), ("assistant", 0)]
    again.choose(ADA, None)
    assert again.current(ADA) is None
    again.close()


def test_an_owner_sees_and_changes_nothing_of_another(store: Conversations, tmp_path: Path) -> None:
    id = store.ask(ADA, None, "Ada's?", [picture(tmp_path / "a")])
    store.answer(ADA, id, "Yes.", model="m")
    assert (store.listed(BOB), store.current(BOB)) == ([], None)
    attempts = (
        lambda: store.load(BOB, id),
        lambda: store.ask(BOB, id, "Mine now?"),
        lambda: store.ask_again(BOB, id),
        lambda: store.answer(BOB, id, "No.", model="m"),
        lambda: store.rate(BOB, id, 0, BAD),
        lambda: store.correct(BOB, id, 0, "No."),
        lambda: store.recalibrate(BOB, id, "1 nm", []),
        lambda: store.retitle(BOB, id, "Bob's"),
        lambda: store.delete(BOB, id),
    )
    before = store.load(ADA, id)
    for attempt in attempts:
        with pytest.raises(ConfigError, match="not there"):
            attempt()
    store.choose(BOB, id)
    assert store.load(ADA, id) == before
    assert (store.current(ADA), store.current(BOB)) == (id, None)


def test_what_is_deleted_is_gone(store: Conversations, place: str, tmp_path: Path) -> None:
    """No row, no file, no word in the database's own files; a picture of another conversation stays."""
    shared, own = picture(tmp_path / "a"), picture(tmp_path / "b", "own.tif", seed=1)
    first = store.ask(ADA, None, "A first xylophone?", [shared, own])
    second = store.ask(ADA, None, "The second?", [shared])
    other = store.ask(BOB, None, "Bob's?", [own])
    store.answer(ADA, first, "A quokka.", model="m")
    store.correct(ADA, first, 0, "A wombat.")
    store.delete(ADA, first)
    assert [heading.id for heading in store.listed(ADA)] == [second]
    assert {path.name for path in kept_files(store) if ADA in path.parts} == {
        "discs.tif",
        "discs.tif.txt",
        "shown.png",
    }
    assert store.load(ADA, second).pictures[0].path.exists()
    assert store.load(BOB, other).pictures[0].path.exists()
    if not place.startswith("postgresql"):
        raw = b"".join(path.read_bytes() for path in Path(place).parent.glob("*.sqlite*"))
        assert b"The second?" in raw
        for word in (b"xylophone", b"quokka", b"wombat"):
            assert word not in raw, word


def test_a_search_finds_titles_questions_and_answers(store: Conversations) -> None:
    wires = store.ask(ADA, None, "How thick are the wires?")
    store.answer(ADA, wires, "About 50 % of 20 nm_wide.", model="m")
    powder = store.ask(ADA, None, "What is this?")
    store.answer(ADA, powder, "A Powder.", model="m")
    store.retitle(ADA, powder, "  Lot   17\n")
    assert [heading.title for heading in store.listed(ADA)] == ["Lot 17", "How thick are the wires?"]
    for search, found in {
        "WIRES": [wires],
        "powder": [powder],
        "lot this": [powder],
        "50 %": [wires],
        "%": [wires],
        "nm_w": [wires],
        "nmxw": [],
        "zebra": [],
    }.items():
        assert [heading.id for heading in store.listed(ADA, search)] == found, search
    with pytest.raises(ConfigError, match="title"):
        store.retitle(ADA, powder, " \n ")


def test_a_question_is_asked_again_in_other_words(store: Conversations, tmp_path: Path) -> None:
    """The picture stays, the answer with its judgement goes; a question nobody answered is replaced by the next."""
    id = store.ask(ADA, None, "Hwo many?", [picture(tmp_path / "a")])
    store.answer(ADA, id, "Nine.", model="m")
    store.rate(ADA, id, 0, BAD)
    store.ask_again(ADA, id, "How many?")
    (exchange,) = store.load(ADA, id).exchanges
    assert (exchange.question, exchange.answer, exchange.rating, exchange.tries) == ("How many?", None, 0, 1)
    assert len(exchange.pictures) == 1
    store.ask(ADA, id, "How large?", [picture(tmp_path / "b", "more.tif")])
    (exchange,) = store.load(ADA, id).exchanges
    assert (exchange.question, len(exchange.pictures)) == ("How large?", 2)
    with pytest.raises(ConfigError, match="not there"):
        store.rate(ADA, id, 7, BAD)


def test_any_words_can_be_kept(store: Conversations, tmp_path: Path) -> None:
    """NUL, half characters, a name of many letters: what a browser sends is stored, never an error or a path."""
    name = "\u00fcber µ'\"%00 ..tif"
    id = store.ask(ADA, None, "a\0b\ud800'; DROP TABLE answers;--", [picture(tmp_path / "a", name)], pixel_size="\0")
    store.answer(ADA, id, "\ud800\0", model="\0")
    store.correct(ADA, id, 0, "\ud800 x")
    found = store.load(ADA, id)
    assert found.exchanges[0].question == "a\ufffdb?'; DROP TABLE answers;--"
    assert found.pictures[0].path.read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_what_is_old_expires(store: Conversations) -> None:
    id = store.ask(ADA, None, "Old?")
    store.expire(3600)
    assert store.load(ADA, id)
    store.expire(-1)
    assert store.listed(ADA) == []


def test_a_folder_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError) as refusal:
        Conversations(tmp_path / "c.sqlite", tmp_path / "file" / "pictures")
    assert refusal.value.code == "store_failed"


def test_conversations_lie_beside_the_book(tmp_path: Path) -> None:
    place, files = beside_the_book(tmp_path / "answers.sqlite")
    assert (place, files) == (tmp_path / "answers.conversations.sqlite", tmp_path / "answers.pictures")
    Conversations(place, files).close()
    assert [oct(path.stat().st_mode & 0o777) for path in (Path(place), files)] == ["0o600", "0o700"]

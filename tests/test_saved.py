"""A conversation as a file: whole, alone, and never anything but text where it came from outside."""

from __future__ import annotations

import asyncio
import io
import re
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from measuring import MeasuringAssistant, write_tiff
from serving import running

from assistant.measure import Known, read_statements
from assistant.micrograph import read_micrograph
from serve.desk.conversations import BAD, Conversations, Dialogue, NewPicture
from serve.desk.desk import Desk
from serve.desk.gate import Gate
from serve.http.guard import App
from serve.page.app import build_app
from serve.page.marked import marked, marked_answer
from serve.page.saved import as_html, as_markdown_zip
from serve.page.sessions import SESSION_COOKIE
from serve.page.uploads import shown_png

HOSTILE = "<img src=x onerror=alert(1)>"
TOKEN = "t" * 43


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Conversations]:
    store = Conversations(tmp_path / "state" / "c.sqlite", tmp_path / "state" / "pictures")
    yield store
    store.close()


def talk(store: Conversations, folder: Path, owner: str = "ada0") -> Dialogue:
    """One answered question, with every word from outside hostile."""
    path = write_tiff(folder / f"{HOSTILE}|a.tif")
    micrograph = read_micrograph(path)
    facts = MeasuringAssistant().facts_of(micrograph)
    said = f"{HOSTILE} There are 9 particles, 4.2 nm apart."
    statements = [one.as_dict() for one in read_statements(said, [Known(facts)])]
    picture = NewPicture(path, [], shown_png(micrograph), micrograph.info() | {"vendor": HOSTILE}, facts.as_dict())
    id = store.ask(owner, None, f"{HOSTILE} | [x](javascript:alert(1)) `a`", [picture])
    store.answer(owner, id, said, model=HOSTILE, statements=statements, warnings=[HOSTILE], false_rate=0.25)
    store.rate(owner, id, 0, BAD)
    store.correct(owner, id, 0, f"{HOSTILE} nine")
    store.ask(owner, id, "Unanswered?")
    return store.load(owner, id)


class _Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))


def hostile(html: str) -> list[Any]:
    return [
        (tag, attrs)
        for tag, attrs in _Page(html).tags
        if tag == "script" or attrs.get("src") == "x" or any(name.startswith("on") for name in attrs)
    ]


def test_the_html_stands_alone_and_tells_everything(store: Conversations, tmp_path: Path) -> None:
    conversation = talk(store, tmp_path)
    html = as_html(conversation)
    assert not hostile(html)
    assert hostile(HOSTILE)
    sources = [attrs.get("src") or attrs.get("href") or "" for _, attrs in _Page(html).tags]
    assert [one[:22] for one in sources if one] == ["data:image/png;base64,"]
    assert not re.search(r"url\(|@import", html)
    text = unescape(html)
    (picture,) = conversation.pictures
    for told in (
        HOSTILE,
        "4.2 nm/px",
        picture.info["sha256"],
        "9 particles",
        "sure",
        "25.0% of its statements were false",
        f"Corrected by a person: {HOSTILE} nine",
        "Rated bad",
        "This question was not answered.",
        "torch 2",
    ):
        assert told in text, told
    assert str(tmp_path) not in text


def test_the_markdown_comes_with_its_pictures(store: Conversations, tmp_path: Path) -> None:
    conversation = talk(store, tmp_path)
    with zipfile.ZipFile(io.BytesIO(as_markdown_zip(conversation))) as archive:
        assert archive.namelist() == ["pictures/1.png", "conversation.md"]
        assert archive.read("pictures/1.png") == conversation.pictures[0].shown.read_bytes()
        text = archive.read("conversation.md").decode()
    assert not re.search(r"(?<!\\)<", text)
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    assert "](pictures/1.png)" in text
    assert conversation.pictures[0].info["sha256"] in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}


def test_words_in_an_answer_are_marked_and_nothing_else_is_markup(store: Conversations, tmp_path: Path) -> None:
    exchange = talk(store, tmp_path).exchanges[0]
    html = marked_answer(exchange)
    assert not hostile(html)
    marks = [attrs for tag, attrs in _Page(html).tags if tag == "span" and "maemi-fact" in str(attrs.get("class"))]
    assert marks
    assert all(attrs["tabindex"] == "0" and attrs["role"] == "button" and attrs["title"] for attrs in marks)
    assert unescape(re.sub(r"<[^>]*>", "", html)).startswith(str(exchange.answer))
    said = [{"start": 0, "stop": 99, "fact": None}, {"start": 3, "stop": 2, "fact": None}]
    assert marked("a <b", said) == "a &lt;b"  # places that are none change no word


def test_a_saved_conversation_is_its_owners_alone(
    store: Conversations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def build() -> App:
        desk = Desk(MeasuringAssistant(), Gate(), lambda text: len(text.split()), conversations=store)
        return build_app(desk)

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    owner = sha256(f"local\n{TOKEN}".encode()).hexdigest()[:24]
    conversation = talk(store, tmp_path, owner)
    with running(asyncio.run(build())) as url:

        def get(name: str, token: str = "") -> httpx.Response:
            cookie = {"cookie": f"{SESSION_COOKIE}={token}"} if token else {}
            return httpx.get(f"{url}/conversations/{name}", headers=cookie)

        nothing = get("unknown.html")
        for form, start in (("html", b"<!doctype html>"), ("zip", b"PK")):
            name = f"{conversation.id}.{form}"
            assert get(name, TOKEN).content.startswith(start)
            assert get(name, TOKEN).headers["content-disposition"].startswith("attachment;")
            for stranger in ("", "u" * 43):
                assert (get(name, stranger).status_code, get(name, stranger).content) == (404, nothing.content)

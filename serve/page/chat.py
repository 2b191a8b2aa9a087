"""What the chat does: pictures are read when they are dropped, questions answered, conversations kept and found again.

Knows nothing about where on the page things stand, or about models beyond the Answerer behind the desk.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from filecmp import cmp
from functools import cached_property
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any

import gradio as gr

from assistant.chat import CAPTION_PROMPT
from assistant.errors import ConfigError
from assistant.readers.files import sidecar_names
from data_gen.passes.corrections import Correction
from serve.desk.answering import Proof, Question
from serve.desk.conversations import BAD, GOOD, Conversations, Dialogue, Exchange, NewPicture
from serve.desk.corrected import corrections_of
from serve.page.intake import Intake, user_of
from serve.page.marked import as_text, marked_answer
from serve.page.panel import EMPTY, PREVIEW, panel, thumbnail
from serve.page.sessions import keeper_of, owner_of
from serve.page.uploads import LIFETIME_S, is_sidecar, shown_png, sidecars_of

MAX_QUESTION = 2000
REFRESH_S = 0.05
"""Shortest time between two updates of an answer that is being written [s]."""
ANEW = 0.7
"""Temperature at which an answer is drawn that was asked for again."""
PLACE = re.compile(r"[1-9][0-9]{0,3}")
FEEDBACK = {GOOD: "Like", BAD: "Dislike", 0: None}

Cards = list[tuple[str, Mapping[str, Any], Mapping[str, Any], tuple[str, str]]]
"""Title, info, facts; and for the viewer a name of the picture, and its pixel size as a person wrote it."""


class Chat:
    """What the controls do; `talk` is the conversation of the session, `page_id` that of a page without one."""

    def __init__(self, intake: Intake) -> None:
        self._intake, self._desk = intake, intake.desk

    # -------------------------------------------------------------------------------------------- ask

    def preview(self, typed: Mapping[str, Any], talk: str, size: str, request: gr.Request) -> Iterator[str]:
        """Read pictures as they are dropped: panel, also while they are being read."""
        store, keeper = self._store(request)
        cards = _kept_cards(store.load(keeper, talk)) if talk else []
        paths, lone = self._laid(typed, request)
        if lone:
            yield panel(cards, reading=[path.name for path in lone])
            lone = self._join(store, keeper, talk, lone, size, request)
            cards = _kept_cards(store.load(keeper, talk)) if talk else []
        looks = list[str]()
        strange = [f"{path.name} belongs to no picture here: a side-car has the picture's name." for path in lone]
        for number, path in enumerate(paths):
            yield panel(cards, strange, reading=[path.name for path in paths[number:]], looks=looks)
            (micrograph,) = self._intake.read([path], size)
            with self._desk.gate.turn():
                facts = self._desk.answerer.facts_of(micrograph).as_dict()
            cards.append((path.name, micrograph.info(), facts, (str(path), size)))
            looks.append(thumbnail(micrograph, PREVIEW))
        yield panel(cards, strange, looks=looks)

    def take(
        self, typed: Mapping[str, Any], talk: str, size: str, page_id: str, request: gr.Request
    ) -> Iterator[tuple[gr.MultimodalTextbox, list[Any], str]]:
        """Take a question and its files into the conversation: text field, chat, talk."""
        text, (store, keeper) = (typed.get("text") or "").strip(), self._store(request)
        id = self._known(store, keeper, talk or page_id)
        new, lone = self._laid(typed, request)
        if not new and not (id and store.load(keeper, id).pictures):
            raise ConfigError("no_picture", "Add a micrograph first, with the clip beside the text field.")
        if len(text) > MAX_QUESTION:
            raise ConfigError("too_long", f"The question has more than {MAX_QUESTION} characters. Make it shorter.")
        if lone:
            self._join(store, keeper, id, lone, size, request)
        pictures = [self._examined(path, size) for path in new]
        id = store.ask(keeper, id, text or CAPTION_PROMPT, pictures, pixel_size=size)
        box = gr.MultimodalTextbox(value={"text": "", "files": []}, submit_btn=False, stop_btn=True)
        yield box, self._messages(store.load(keeper, id), request, waiting=True), id

    def respond(self, talk: str, size: str, page_id: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Answer the question that waits: chat, talk, panel."""
        store, keeper = self._store(request)
        id = self._known(store, keeper, talk or page_id)
        conversation = store.load(keeper, id) if id else None
        if conversation is None or conversation.waiting is None:
            raise ConfigError("no_question", "Ask something about a micrograph first.")
        asked, cards = conversation.waiting, _kept_cards(conversation)
        micrographs = self._intake.read([picture.path for picture in conversation.pictures], size)
        question = Question(
            micrographs,
            asked.question,
            conversation.history,
            temperature=ANEW if asked.tries else 0.0,
            seed=asked.tries,
        )
        messages = self._messages(conversation, request, waiting=True)
        said, told_at, proof = "", time.monotonic(), Proof([], [], [], [])
        with self._desk.gate.turn():
            yield messages, id, panel(cards)
            for item in self._desk.answer(question, user=user_of(request)):
                if isinstance(item, Proof):
                    proof = item
                    continue
                said += item
                if time.monotonic() - told_at > REFRESH_S:
                    told_at = time.monotonic()
                    yield [*messages, _message("assistant", as_text(said))], gr.skip(), gr.skip()
        beside_pictures = {text for _, info, *_ in cards for text in info["warnings"]}
        warnings = [text for text in proof.warnings if text not in beside_pictures]
        store.answer(
            keeper,
            conversation.id,
            said,
            model=self._desk.answerer.name,
            statements=proof.statements,
            warnings=warnings,
            false_rate=self._desk.false_rate,
        )
        conversation = store.load(keeper, conversation.id)
        yield self._messages(conversation, request), id, _panel_of(conversation)

    def edit(self, talk: str, page_id: str, request: gr.Request, event: gr.EditData) -> tuple[list[Any], str]:
        """Put the last question in other words: chat, talk. Its answer goes."""
        store, keeper, conversation = self._open(talk, page_id, request)
        exchange = self._meant(conversation, event.index)
        words = unescape(str(event.value)).strip()
        if exchange.number != conversation.exchanges[-1].number:
            raise ConfigError("not_the_last", "Only the last question can be changed: later ones build on the others.")
        if not words or len(words) > MAX_QUESTION:
            raise ConfigError("bad_question", f"A question has 1 to {MAX_QUESTION} characters. Change it.")
        store.ask_again(keeper, conversation.id, words)
        return self._messages(store.load(keeper, conversation.id), request, waiting=True), conversation.id

    def ask_again(self, talk: str, page_id: str, request: gr.Request) -> tuple[list[Any], str]:
        """Let the last question be answered once more: chat, talk."""
        store, keeper, conversation = self._open(talk, page_id, request)
        store.ask_again(keeper, conversation.id)
        return self._messages(store.load(keeper, conversation.id), request, waiting=True), conversation.id

    def recalibrate(self, talk: str, size: str, request: gr.Request) -> Iterator[str]:
        """Show the panel with another pixel size."""
        store, keeper = self._store(request)
        if not talk:
            self._intake.read([], size)  # says what is wrong with the size
            yield EMPTY
            return
        conversation = store.load(keeper, talk)
        micrographs = self._intake.read([picture.path for picture in conversation.pictures], size)
        with self._desk.gate.turn():
            facts = [self._desk.answerer.facts_of(micrograph).as_dict() for micrograph in micrographs]
        infos = [micrograph.info() | {"path": None} for micrograph in micrographs]
        store.recalibrate(keeper, talk, size, zip(infos, facts, strict=True))
        yield _panel_of(store.load(keeper, talk))

    # -------------------------------------------------------------------------------------------- judge

    def rate(self, talk: str, page_id: str, request: gr.Request, event: gr.LikeData) -> tuple[Any, ...]:
        """Keep a thumb: chat, number of the answer to correct, form of the correction, its words."""
        store, keeper, conversation = self._open(talk, page_id, request)
        exchange = self._meant(conversation, event.index)
        rating = GOOD if event.liked is True else BAD if event.liked is False else 0
        store.rate(keeper, conversation.id, exchange.number, rating)
        rated = gr.Chatbot(feedback_value=_feedback(store.load(keeper, conversation.id)))
        words = exchange.correction or exchange.answer or ""
        return rated, exchange.number, gr.Group(visible=rating == BAD), words

    def correct(self, talk: str, page_id: str, number: int, words: str, request: gr.Request) -> tuple[Any, Any]:
        """Keep what an answer should have said: chat, form of the correction."""
        store, keeper, conversation = self._open(talk, page_id, request)
        if len(words) > MAX_QUESTION:
            raise ConfigError("too_long", f"A correction has at most {MAX_QUESTION} characters. Make it shorter.")
        exchange = next((one for one in conversation.exchanges if one.number == number), None)
        same = exchange is not None and words.strip() == (exchange.answer or "").strip()
        store.correct(keeper, conversation.id, number, "" if same else words)
        return self._messages(store.load(keeper, conversation.id), request), gr.Group(visible=False)

    # -------------------------------------------------------------------------------------------- order

    def show(self, id: str | None, search: str, request: gr.Request) -> tuple[Any, ...]:
        """Open a conversation, or begin a new one: chat, talk, page_id, panel, size, title, list, links, the
        column about it, and the form of a correction.
        """
        store, keeper = self._store(request)
        id = self._known(store, keeper, id or "")
        store.choose(keeper, id or None)
        listed, form = self.listed(search, id, request), gr.Group(visible=False)
        if not id:
            empty = gr.Chatbot(value=[], feedback_value=[])
            return empty, "", "", EMPTY, "", "", listed, "", gr.Column(visible=False), form
        conversation = store.load(keeper, id)
        chat = gr.Chatbot(value=self._messages(conversation, request), feedback_value=_feedback(conversation))
        size, title = conversation.pixel_size, conversation.title
        links, about = self._links(conversation, request), gr.Column(visible=True)
        return chat, id, id, _panel_of(conversation), size, title, listed, links, about, form

    def begin(self, search: str, request: gr.Request) -> tuple[Any, ...]:
        """Leave the open conversation for a new one, as `show` gives it."""
        return self.show(None, search, request)

    def restore(self, request: gr.Request) -> tuple[Any, ...]:
        """What was open when the page was left, as `show` gives it."""
        store, keeper = self._store(request)
        return self.show(store.current(keeper), "", request)

    def retitle(self, talk: str, title: str, search: str, request: gr.Request) -> gr.Radio:
        """Give the open conversation another title: list."""
        store, keeper = self._store(request)
        store.retitle(keeper, talk, title)
        return self.listed(search, talk, request)

    def delete(self, talk: str, search: str, request: gr.Request) -> tuple[Any, ...]:
        """Delete the open conversation with all that is kept of it: as `show` gives a new one."""
        store, keeper = self._store(request)
        store.delete(keeper, talk)
        return self.show(None, search, request)

    def listed(self, search: str, talk: str | None, request: gr.Request) -> gr.Radio:
        """The conversations that a search finds."""
        store, keeper = self._store(request)
        found = [(as_text(heading.title), heading.id) for heading in store.listed(keeper, search)]
        return gr.Radio(choices=found, value=talk if talk in {id for _, id in found} else None)

    def asked(self, talk: str, search: str, request: gr.Request) -> tuple[Any, ...]:
        """After a question: page_id, title, list, links, and the column about it."""
        store, keeper = self._store(request)
        id = self._known(store, keeper, talk)
        listed = self.listed(search, talk, request)
        if not id:
            return "", "", listed, "", gr.Column(visible=False)
        conversation = store.load(keeper, id)
        return id, conversation.title, listed, self._links(conversation, request), gr.Column(visible=True)

    def find(self, request: Any, id: str) -> Dialogue:
        """A conversation that a request may see. Raises ConfigError `no_conversation`."""
        store, keeper = self._store(request)
        return store.load(keeper, id)

    def said_of(self, hashes: Collection[str], request: gr.Request) -> dict[str, str]:
        """What whoever asks was last told of pictures, by their SHA-256."""
        store, keeper = self._store(request)
        return store.said_of(keeper, hashes)

    def corrections(self, request: gr.Request) -> Iterator[Correction]:
        """The answers that whoever asks has corrected."""
        return corrections_of(*self._store(request))

    def picture(self, request: Any, name: str) -> Path | None:
        """The file that a request may see: `CONVERSATION/NUMBER`, or the path of an upload; None for any other."""
        id, _, number = name.partition("/")
        if not id:
            return Path(name) if self._intake.workspace.owns(owner_of(request), name) else None
        try:
            return self.find(request, id).pictures[int(number) - 1].path if PLACE.fullmatch(number) else None
        except (ConfigError, IndexError):
            return None

    # -------------------------------------------------------------------------------------------- helpers

    @cached_property
    def _passing(self) -> Conversations:
        """For visitors who cannot be known again, and where nothing is kept: gone with the process."""
        kept = self._intake.workspace.kept
        kept.mkdir(mode=0o700, exist_ok=True)
        return Conversations(kept / "conversations.sqlite", kept / "pictures")

    def _store(self, request: gr.Request) -> tuple[Conversations, str]:
        """Where the conversations of a request are kept, and under whose name."""
        keeper = keeper_of(request)
        if keeper is not None and self._desk.conversations is not None:
            return self._desk.conversations, keeper
        if keeper is None:
            session = getattr(request, "session_hash", None)
            keeper = sha256(f"{owner_of(request)}\n{session}".encode()).hexdigest()[:24]
        self._passing.expire(LIFETIME_S)
        return self._passing, keeper

    def _laid(self, typed: Mapping[str, Any] | None, request: gr.Request) -> tuple[list[Path], list[Path]]:
        """The files of the text field, side by side: pictures, and side-cars that come without theirs."""
        laid = self._intake.lay((typed or {}).get("files"), request)
        new = [path for path in laid if not is_sidecar(path)]
        named = {name for path in new for name in sidecar_names(path)}
        return new, [path for path in laid if is_sidecar(path) and path.name not in named]

    def _join(
        self, store: Conversations, keeper: str, id: str | None, lone: Sequence[Path], size: str, request: gr.Request
    ) -> list[Path]:
        """Lay side-cars beside the pictures of a conversation, which are read again with them; gives those of none."""
        left = {path.name: path for path in lone}
        for number, picture in enumerate(store.load(keeper, id).pictures if id else ()):
            coming = {name: path for path in lone if (name := path.name) in sidecar_names(picture.path)}
            there = {path.name: path for path in sidecars_of(picture.path)}
            left = {name: path for name, path in left.items() if name not in coming}
            if id and any(name not in there or not cmp(path, there[name], False) for name, path in coming.items()):
                files = [picture.path, *(there | coming).values()]
                (path, *_) = self._intake.workspace.stage(files, owner_of(request))
                store.replace(keeper, id, number, self._examined(path, size))
        return list(left.values())

    def _examined(self, path: Path, size: str) -> NewPicture:
        """A picture that was laid down, with all that is known of it."""
        (micrograph,) = self._intake.read([path], size)
        with self._desk.gate.turn():
            facts = self._desk.answerer.facts_of(micrograph).as_dict()
        known = micrograph.info() | {"path": None}  # where it lay on the server is nobody's business
        return NewPicture(path, sidecars_of(path), shown_png(micrograph), known, facts)

    def _known(self, store: Conversations, keeper: str, id: str) -> str | None:
        """The id of a conversation if there is such a one, which another page may have deleted."""
        try:
            return store.load(keeper, id).id if id else None
        except ConfigError:
            return None

    def _open(self, talk: str, page_id: str, request: gr.Request) -> tuple[Conversations, str, Dialogue]:
        store, keeper = self._store(request)
        return store, keeper, store.load(keeper, talk or page_id)

    def _messages(self, conversation: Dialogue, request: gr.Request, *, waiting: bool = False) -> list[Any]:
        """The messages of a chat; `waiting`: the last question is about to be answered."""
        shown, owner = [], owner_of(request)
        for exchange in conversation.exchanges:
            for picture in exchange.pictures:
                path = self._intake.workspace.hand_out(picture.shown, owner)
                shown.append(_message("user", {"path": str(path), "alt_text": picture.name}))
            shown.append(_message("user", as_text(exchange.question)))
            if exchange.answer is not None or not waiting:
                shown.append(_message("assistant", marked_answer(exchange)))
        return shown

    def _meant(self, conversation: Dialogue, index: Any) -> Exchange:
        """The exchange that a message of the chat belongs to."""
        place = 0
        for exchange in conversation.exchanges:
            place += len(exchange.pictures) + 2
            if isinstance(index, int) and 0 <= index < place:
                return exchange
        raise ConfigError("no_answer", "This message is not there any more. Reload the page.")

    def _links(self, conversation: Dialogue, request: gr.Request) -> str:
        if keeper_of(request) is None:
            return ""
        forms = (("html", "Save as HTML"), ("zip", "Save as Markdown"))
        links = (f'<a href="conversations/{conversation.id}.{form}" download>{name}</a>' for form, name in forms)
        return f'<p class="maemi-links">{"".join(links)}</p>'


def _message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": [content]}


def _feedback(conversation: Dialogue) -> list[str | None]:
    return [FEEDBACK[exchange.rating] for exchange in conversation.exchanges]


def _kept_cards(conversation: Dialogue) -> Cards:
    return [
        (picture.name, picture.info, picture.facts, (f"{conversation.id}/{number}", conversation.pixel_size))
        for number, picture in enumerate(conversation.pictures, 1)
    ]


def _panel_of(conversation: Dialogue) -> str:
    last: Sequence[Exchange] = conversation.exchanges[-1:]
    warnings = [text for exchange in last for text in exchange.warnings]
    statements = [statement for exchange in last for statement in exchange.statements]
    return panel(_kept_cards(conversation), warnings, statements)

"""What stands beside an answer for who asks for it: pictures like this one, and what the answer rests on.

Answers come first: one of these runs at a time, and the model is lent to it for moments. Knows nothing about where on
the page things stand.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from assistant.conditions import read_condition
from assistant.errors import ConfigError, MicrographError
from assistant.explain import drawn_over
from assistant.measurements.facts import phrase
from assistant.micrograph import read_micrograph
from assistant.similar import find_similar
from serve.page.chat import Chat
from serve.page.intake import Intake
from serve.page.panel import thumbnail
from serve.page.saved import template

if TYPE_CHECKING:
    from serve.desk.conversations import Dialogue, KeptPicture

SHOWN = 6
"""Pictures that are shown."""
LOOKED_AT = 40
"""New pictures of the folder that one search looks at."""
KEPT_LOOKS = 512
"""Thumbnails that are kept."""
_SIDE = 132
"""Side of a thumbnail [px]."""


class Beside:
    """What the buttons do; `archive` is the folder that similar pictures are looked for in."""

    def __init__(self, chat: Chat, intake: Intake, archive: Path | None) -> None:
        self._chat, self._intake, self._desk = chat, intake, intake.desk
        self.archive = archive.resolve() if archive else None
        self.explains = hasattr(self._desk.answerer, "explain_answer")
        self._look = lru_cache(KEPT_LOOKS)(self._thumbnail)

    def similar(self, talk: str, page_id: str, where: str, request: gr.Request) -> Iterator[str]:
        """The pictures of the archive that are most like the newest one of the conversation."""
        if self.archive is None:
            raise ConfigError("no_archive", "There are no pictures to look through: maemi serve --archive FOLDER.")
        conversation, picture = self._shown(talk, page_id, request)
        conditions = [read_condition(text) for text in where.split(",") if text.strip()]
        yield _drawn("waiting", "Looking through the pictures …")
        (m,) = self._intake.read([picture.path], conversation.pixel_size)
        read = self._desk.read or read_micrograph
        found = find_similar(m, self.archive, top=SHOWN, where=conditions, most_new=LOOKED_AT, read=read)
        said = self._chat.said_of({one.sha256 for one in found.pictures}, request)
        rows = [
            {
                "name": one.path.relative_to(self.archive).as_posix(),
                "distance": one.distance,
                "same": one.sha256 == m.sha256,
                "facts": "; ".join(map(phrase, one.facts)),
                "said": said.get(one.sha256, ""),
                "look": "",
            }
            for one in found.pictures
        ]
        for place, one in enumerate(found.pictures):
            yield _drawn("similar", picture.name, rows, found)
            rows[place]["look"] = self._look(one.path, one.path.stat().st_mtime_ns)
        yield _drawn("similar", picture.name, rows, found)

    def evidence(self, talk: str, page_id: str, request: gr.Request) -> Iterator[str]:
        """Which parts of the newest picture the last answer rests on: its class where it names one, else its words."""
        conversation, picture = self._shown(talk, page_id, request)
        exchange = conversation.exchanges[-1]
        if not self.explains:
            raise ConfigError("no_evidence", "The model that answers here cannot say what an answer rests on.")
        if not exchange.answer:
            raise ConfigError("no_answer", "Ask something about the micrograph first.")
        yield _drawn("waiting", "Covering the picture part by part; this takes a while …")
        (m,) = self._intake.read([picture.path], conversation.pixel_size)
        answerer: Any = self._desk.answerer
        turn = self._desk.gate.patient_turn
        label = next(
            (
                statement["fact"]["text"]
                for statement in exchange.statements
                if (statement["fact"] or {}).get("name") == "class"
                and statement["image"] in (None, len(conversation.pictures))
            ),
            None,
        )
        if label:
            found = answerer.explain_label(m, [label], turn=turn)
        else:
            found = answerer.explain_answer(m, exchange.question, exchange.answer, turn=turn)
        stream = io.BytesIO()
        drawn_over(m, found).save(stream, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
        yield _drawn("evidence", picture.name, found, uri)

    def _shown(self, talk: str, page_id: str, request: gr.Request) -> tuple[Dialogue, KeptPicture]:
        id = talk or page_id
        conversation = self._chat.find(request, id) if id else None
        if conversation is None or not conversation.pictures:
            raise ConfigError("no_picture", "Ask about a micrograph first.")
        return conversation, conversation.pictures[-1]

    def _thumbnail(self, path: Path, _: int) -> str:
        try:
            return thumbnail((self._desk.read or read_micrograph)(path), _SIDE)
        except MicrographError:
            return ""


def _drawn(macro: str, *about: Any) -> str:
    return str(getattr(template("beside.html.j2").module, macro)(*about))

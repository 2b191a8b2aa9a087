"""Requests without a picture: what a chat client asks for its own housekeeping, a greeting, a question about nothing.

Titles, tags, follow-ups and search queries are made from the conversation's own words; everything else gets one honest
sentence. Knows nothing about models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

NO_PICTURE = (
    "I answer questions about electron micrographs. Attach one to your message: a TIFF, PNG, JPEG, BMP, WebP or GIF, "
    "with its side-car file if there is one."
)
FOLLOW_UPS = ("How many structures are there?", "How large are the structures?", "What is the pixel size?")
TITLE_WORDS = 6
_TASK = re.compile(r"^\s*#+\s*task\b", re.IGNORECASE)
_HISTORY = re.compile(r"<chat_history>(.*?)(?:</chat_history>|\Z)", re.IGNORECASE | re.DOTALL)
_USER_LINE = re.compile(r"^\s*(?:user|human)\s*:\s*(.+)$", re.IGNORECASE | re.MULTILINE)
_EMOJI = re.compile(r"\byour task\b.{0,200}\bemoji\b", re.IGNORECASE | re.DOTALL)
_KEY = re.compile(r'"(title|tags|follow_ups|queries|text)"\s*:')
_SAYS_TITLE = re.compile(
    r"\btitle\b.{0,80}\b(?:chat|conversation|thread)\b|\b(?:chat|conversation|thread)\b.{0,80}\btitle\b",
    re.IGNORECASE | re.DOTALL,
)


def answer_without_picture(text: str, earlier: str = "") -> str:
    """The answer to a text that comes without a picture; `earlier` is what the user said before it.

    JSON of the shape that a task of a chat client asks for, a title as plain text, or one honest sentence.
    """
    history = _HISTORY.search(text)
    said = _USER_LINE.findall(history[1] if history else text)
    words = re.findall(r"[\w'-]+", said[0] if said else earlier or text)[:TITLE_WORDS]
    subject = " ".join(words).strip() or "Micrographs"
    if _TASK.match(text):
        asked = _KEY.findall(text)
        makers: dict[str, Callable[[], object]] = {
            "title": lambda: subject,
            "tags": lambda: ["Electron microscopy"],
            "follow_ups": lambda: list(FOLLOW_UPS),
            "queries": list,
            "text": str,
        }
        if asked:
            return json.dumps({asked[0]: makers[asked[0]]()}, ensure_ascii=False)
    if _EMOJI.search(text):
        return "\N{MICROSCOPE}"
    if _SAYS_TITLE.search(text) and (said or earlier):
        return subject
    return NO_PICTURE

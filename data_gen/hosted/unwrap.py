"""The JSON in what a model wrote: out of fences, prose and thinking, where there is only one thing to find.

Nothing is completed or corrected: JSON that is cut or malformed is not found. Knows nothing about what it should hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

_T = TypeVar("_T")

MOST_STARTS = 200
"""Brackets that are tried as the beginning of a document: a page of them must not take minutes."""
_THOUGHT = r"think|thinking|thought|reasoning"
_THOUGHT_BEGINS = re.compile(rf"<\s*(?:{_THOUGHT})\s*>|\[THINK\]|◁think▷", re.IGNORECASE)
_THOUGHT_ENDS = re.compile(
    rf"</\s*(?:{_THOUGHT})\s*>|\[/THINK\]|◁/think▷|<\|channel\|>\s*final\s*<\|message\|>", re.IGNORECASE
)
_OPENS = re.compile(r"[{\[]")


def unwrap(text: str, read: Callable[[Any], _T]) -> _T:
    """What `read` makes of the JSON in a text; it raises ValueError for a document that is not the one.

    Raises ValueError where the text holds no such document, or several that differ.
    """
    text = spoken(text)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        found = []
        for document in _documents(text):
            with suppress(ValueError):
                found.append(read(document))
        if not found or any(value != found[0] for value in found):
            raise ValueError(f"{len(found)} documents that could be meant") from None
        return found[0]
    return read(whole)


def spoken(text: str) -> str:
    """What stands after a model's thinking; the whole text where thinking has no end."""
    return _THOUGHT_ENDS.split(text)[-1].strip("\ufeff \t\r\n")


def only_thought(text: str) -> bool:
    """True where thinking began and never ended."""
    return _THOUGHT_BEGINS.match(spoken(text)) is not None


def _documents(text: str) -> Iterator[Any]:
    """Every object or list in a text; of those inside one another the outermost that is whole."""
    decoder, place = json.JSONDecoder(), 0
    for _ in range(MOST_STARTS):
        start = _OPENS.search(text, place)
        if start is None:
            return
        try:
            document, place = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            place = start.end()
        else:
            yield document

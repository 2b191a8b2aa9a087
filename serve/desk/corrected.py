"""Answers that people corrected in the chat, as what a reviewer judges. Knows nothing about pages or data sets."""

from __future__ import annotations

from collections.abc import Iterator

from data_gen.passes.corrections import Correction
from serve.desk.conversations import Conversations


def corrections_of(kept: Conversations, owner: str | None = None) -> Iterator[Correction]:
    """Every corrected answer, or those of one owner, with the pictures that its question was about: the last shown.

    Without the turns before it, whose answers nobody has judged.
    """
    for conversation in kept.corrected(owner):
        shown = conversation.pictures[:0]
        for exchange in conversation.exchanges:
            shown = exchange.pictures or shown
            if exchange.correction and shown:
                yield Correction(
                    id=f"{conversation.id[:12]}-{exchange.number}",
                    question=exchange.question,
                    said=exchange.answer or "",
                    correction=exchange.correction,
                    model=exchange.model,
                    pictures=tuple((picture.path, picture.given_nm) for picture in shown),
                )

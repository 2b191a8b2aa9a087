"""Rows of a data set taught by reference: what the prompt says of their pictures, and the answers that fit to it.

A student learns to quote what stands in its prompt, and to say what is missing where it does not: facts are thinned
one by one, and an answer whose fact was thinned away gives way to what serving would say without it. Knows nothing
about models, pixels or files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from assistant.answers import composed
from assistant.measure import Known, fact_line, filled, quoted, read_statements, references_of
from assistant.quantities import QUANTITIES

PREDICTED = tuple(name for name, quantity in QUANTITIES.items() if quantity.source == "predicted")
_STATED = re.compile(rf"(?:are_|offered_)?({'|'.join(PREDICTED)})(?:_words|_answer|_phrase|_right)?(?:_([12]))?")
"""How a slot of a question or answer names a quantity that heads tell, and of which picture of two."""


class Row(Protocol):
    """The part of a row that is read here."""

    @property
    def images(self) -> tuple[bytes, ...]: ...
    @property
    def known(self) -> tuple[Known, ...]: ...
    @property
    def label(self) -> str | None: ...
    @property
    def states(self) -> Mapping[str, str]: ...


def known_of_pictures(rows: Iterable[Row]) -> dict[bytes, Known]:
    """What is known of each picture, by its digest.

    What the rows truly say of class, shape, surface and arrangement stands there as heads will say it.
    """
    known: dict[bytes, Known] = {}
    told: dict[bytes, dict[str, str]] = {}
    for row in rows:
        for number, (image, one) in enumerate(zip(row.images, row.known, strict=False), 1):
            key = digest(image)
            known.setdefault(key, one)
            words = told.setdefault(key, {})
            slots = {name: name if len(row.images) == 1 else f"{name}_{number}" for name in PREDICTED[1:]}
            words |= {name: text for name, slot in slots.items() if (text := row.states.get(slot))}
            if row.label:
                words["class"] = row.label.replace("_", " ")
    ordered = {key: {name: words[name] for name in PREDICTED if name in words} for key, words in told.items()}
    return {key: replace(one, predicted=()).with_words(ordered[key], "truth") for key, one in known.items()}


@dataclass(frozen=True)
class Prompt:
    """What a conversation's prompt says of its pictures, and what it was thinned from."""

    line: str
    """"" where the student must do without."""
    shown: tuple[Known, ...]
    all: tuple[Known, ...]


def draw_prompt(known: Sequence[Known], *, hide: bool, thin: float, random: np.random.Generator) -> Prompt:
    """The facts of pictures in shuffled order, each left out with probability `thin`; `hide` leaves out the line.

    Where there is no line, answers quote all facts all the same: they are filled in when they are shown.
    """
    if hide:
        return Prompt("", tuple(known), tuple(known))
    shown = tuple(one.without({fact.name for fact in one if random.random() < thin}) for one in known)
    return Prompt(fact_line(shown, order=random), shown, tuple(known))


def taught_answer(row: Row, question: str, answer: str, prompt: Prompt) -> str:
    """An answer by reference that its prompt supports: the row's own, or what the facts left say to the question."""
    for slot in ("class", "class_1", "class_2"):  # its phrase for a class ("a porous sponge") is the reference to it
        if phrase := row.states.get(slot):
            picture = "" if slot == "class" else f"{slot[-1]}."
            answer = answer.replace(phrase, f"{{{picture}class}}")
    quoting = quoted(answer, prompt.all)
    stated = filter(None, map(_STATED.fullmatch, row.states))  # the quantities of heads that the answer rests on
    needed = references_of(quoting) | {(int(match[2] or 1), match[1]) for match in stated}
    facts = {(n, name): prompt.shown[n - 1].get(name) for n, name in needed if n <= len(prompt.shown)}
    plain = all(fact is not None and fact.sure for fact in facts.values())
    statements = read_statements("".join(filled([quoting], prompt.shown)), prompt.shown)
    if plain and all(statement.verdict in ("true", "withheld") for statement in statements):
        return quoting
    return quoted(" ".join(text for _, text in composed(question, prompt.shown)), prompt.shown)


def digest(image: bytes) -> bytes:
    """What two copies of a picture share."""
    return hashlib.sha256(image).digest()

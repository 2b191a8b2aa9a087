"""Facts quoted by reference: `{mean_diameter}` in a prompt and in a draft, filled with the fact when it is shown.

A language model that copies digits gets most of them wrong; one that writes the name of a fact cannot (design: facts
stand in its prompt as `{mean_diameter} = 312 nm`, of the second picture as `{2.mean_diameter} = 85 nm`). Plain text
that any tokenizer takes. Knows nothing about models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from assistant.measurements.facts import Known
from assistant.measurements.statements import read_statements
from assistant.quantities import QUANTITIES

NOT_MEASURED, _DOUBT = "not measured", "uncertain"
"""What stands in a prompt for a quantity that is missing, and behind one that may be wrong."""
_REFERENCE = re.compile(r"\{(?:(\d{1,3})\.)?([a-z][a-z0-9_]*)\}")
_LONGEST = 40
"""Letters after which an open brace is no reference."""
_PLACE = {name: quantity.line for name, quantity in QUANTITIES.items() if quantity.line is not None}


def fact_entries(known: Known, *, number: int | None = None) -> list[str]:
    """The facts of a picture as they stand in a prompt, most important first; `number` where there are several.

    A quantity that is asked for and was not measured is an entry too, so that a model learns to say so.
    """
    prefix = "" if number is None else f"{number}."
    facts = {fact.name: fact.written if fact.sure else f"{fact.written} ({_DOUBT})" for fact in known}
    facts |= {name: NOT_MEASURED for name, quantity in QUANTITIES.items() if quantity.asked and name not in facts}
    names = sorted(facts, key=lambda name: _PLACE.get(name, len(QUANTITIES)))
    return [f"{{{prefix}{name}}} = {facts[name]}" for name in names]


def fact_line(known: Sequence[Known], *, before: int = 0, order: np.random.Generator | None = None) -> str:
    """The entries of pictures shown together as one line; `before` pictures were shown earlier in the conversation.

    `order` shuffles them, so that a student in training cannot count places.
    """
    alone = before == 0 and len(known) == 1
    entries = [
        entry
        for number, one in enumerate(known, before + 1)
        for entry in fact_entries(one, number=None if alone else number)
    ]
    return "; ".join(entries if order is None else (entries[place] for place in order.permutation(len(entries))))


def references_of(text: str) -> set[tuple[int, str]]:
    """The facts that a text quotes: number of the picture from 1, name of the quantity."""
    return {(int(match[1] or 1), match[2]) for match in _REFERENCE.finditer(text) if match[2] in QUANTITIES}


def reference_words() -> list[str]:
    """Every reference to a fact of a single picture: what a tokenizer of our own reads as one token each."""
    return [f"{{{name}}}" for name in QUANTITIES]


def filled(pieces: Iterable[str], known: Sequence[Known]) -> Iterator[str]:
    """The pieces of a draft with every reference replaced by its fact; one without a fact stays, to be taken out.

    Only what could still become a reference is held back.
    """
    held = ""
    for piece in pieces:
        held += piece
        while (start := held.find("{")) >= 0:
            stop = held.find("}", start)
            if stop >= 0:
                yield held[:start] + _REFERENCE.sub(lambda match: _fact(match, known), held[start : stop + 1])
                held = held[stop + 1 :]
            elif len(held) - start > _LONGEST:
                yield held[: start + 1]
                held = held[start + 1 :]
            else:
                break
        if held and start < 0:
            yield held
            held = ""
        elif start > 0:
            yield held[:start]
            held = held[start:]
    if held:
        yield held


def quoted(text: str, known: Sequence[Known]) -> str:
    """The inverse: a text with every number or word that is a fact replaced by its reference.

    What only bounds a fact ("more than 80 nm") or denies another value stays as it is.
    """
    for statement in reversed(read_statements(text, known)):
        if statement.verdict != "true" or statement.fact is None or statement.image is None:
            continue
        prefix = "" if len(known) == 1 else f"{statement.image}."
        reference = f"{{{prefix}{statement.fact.name}}}"
        candidate = text[: statement.start] + reference + text[statement.stop :]
        again = read_statements("".join(filled([candidate], known)), known)
        if all(other.verdict in ("true", "withheld") for other in again):
            text = candidate
    return text


def _fact(match: re.Match[str], known: Sequence[Known]) -> str:
    number, name = int(match[1] or 1), match[2]
    if name not in QUANTITIES or not 0 < number <= len(known):
        return match[0]
    fact = known[number - 1].get(name)
    return match[0] if fact is None else fact.written

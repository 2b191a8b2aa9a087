"""Takes the names of lots, tools, people and places out of the words that go with a picture.

Lines that a reader or a measurement wrote hold few words of a person's own: the class (the name of a folder), the model
of the instrument and whatever a truth file says. Those are searched for identifiers. Knows nothing about pixels, HTTP
or consent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from assistant.errors import EgressError
from data_gen.questions.evidence import Evidence

REDACTED = "[redacted]"
PRIVATE = frozenset(
    (
        *("batch", "customer", "date", "email", "file", "folder", "host", "id", "job", "lot", "name", "operator"),
        *("order", "owner", "path", "person", "project", "recipe", "sample", "serial", "session", "site", "station"),
        *("step", "tool", "user", "wafer"),
    )
)
"""Entries of a truth file with such a word in their name stay here whatever they say."""
_IDENTIFIERS = re.compile(
    r"""
    [\w.+-]+@[\w-]+\.[\w.]+                                                # an address of mail
    | (?:[a-z]:\\|\\\\|~?/)(?:[\w.\- ]+[\\/])+[\w.\-]*                     # a path
    | \b(?:\d{1,3}\.){3}\d{1,3}\b                                          # an address of a machine
    | \b(?:lot|wafer|batch|sample|tool|serial|s/n|user|operator|recipe|job)\b
      [\s:#=_.-]*(?:no\.?|id)?[\s:#=_.-]*[\w.-]*\w                         # what follows such a word
    | \b(?=[\w-]*[a-z])(?=[\w-]*\d[\w-]*\d[\w-]*\d[\w-]*\d)[\w-]+\b        # letters with four digits: a code
    | \b\d{5,}\b                                                           # a serial number
    """,
    re.IGNORECASE | re.VERBOSE,
)


def redact_words(text: str, names: Sequence[str] = ()) -> str:
    """The text with `names` and everything that looks like an identifier replaced."""
    for name in filter(None, names):
        text = re.sub(re.escape(name), REDACTED, text, flags=re.IGNORECASE)
    return _IDENTIFIERS.sub(REDACTED, text)


def sayable(label: str, names: Sequence[str] = ()) -> bool:
    """True where the name of a class is no identifier."""
    words = label.replace("_", " ")
    return redact_words(words, names) == words


def shareable(evidence: Evidence, names: Sequence[str] = ()) -> Evidence:
    """What may be said of a picture to somebody else; a class whose name looks like a lot's is not said at all."""
    instrument = {k: redact_words(v, names) if isinstance(v, str) else v for k, v in evidence.instrument.items()}
    # The words of the instrument are redacted in the metadata line too; its numbers are no identifiers.
    line, label = evidence.metadata_line, evidence.label
    for name, text in evidence.instrument.items():
        if isinstance(text, str) and text != instrument[name]:
            line = line.replace(text, instrument[name])
    for word in filter(None, names):
        line = re.sub(re.escape(word), REDACTED, line, flags=re.IGNORECASE)
    return replace(
        evidence,
        label=label if label and sayable(label, names) else None,
        instrument=instrument,
        metadata_line=line,
        truth={name: told for name, value in evidence.truth.items() if (told := _truth(name, value, names))},
    )


def check_words(text: str, names: Sequence[str]) -> None:
    """Raises EgressError `not_redacted` where one of `names` is in a text that is about to leave."""
    for name in filter(None, names):
        if name.casefold() in text.casefold():
            raise EgressError(
                "not_redacted",
                "A word that teach.redact names is in a question, so nothing was sent. Change the word or the prompt.",
            )


def _truth(name: str, value: Any, names: Sequence[str]) -> Any:
    if PRIVATE & set(re.split(r"[\W_]+", name.lower())):
        return None
    if isinstance(value, str):
        return redact_words(value, names)
    if isinstance(value, list):
        return [redact_words(entry, names) if isinstance(entry, str) else entry for entry in value]
    return value

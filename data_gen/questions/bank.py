"""The bank of questions as people ask them: wordings by intent, split by wording into those that teach and that test.

Knows nothing about pictures or answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_gen.questions.evidence import prompt_lines

BANK = Path(__file__).parent / "bank"
_OPEN = frozenset({"greeting", "help", "offtopic"})
"""Intents that are about no picture."""


@dataclass(frozen=True)
class Wording:
    """One way to ask."""

    text: str
    intents: tuple[str, ...]
    """What it asks for; empty where it asks for nothing that is known here."""
    part: str
    """The file it stands in."""

    @property
    def split(self) -> Literal["train", "test"]:
        """One wording of three tests and never teaches, whatever else is in the bank."""
        digest = hashlib.sha256(self.text.lower().encode()).digest()
        return "test" if digest[0] % 3 == 0 else "train"


def wordings(split: Literal["train", "test"] | None = None) -> Iterator[Wording]:
    """The wordings of a split, all of them without one, in a fixed order."""
    for path in sorted(BANK.glob("*.txt")):
        if path.stem == "README":
            continue
        for line in prompt_lines(path):
            named, bar, text = line.partition("|")
            intents = tuple(named.split()) if bar else () if path.stem == "offtopic" else (path.stem,)
            wording = Wording((text if bar else line).strip(), intents, path.stem)
            if split in (None, wording.split):
                yield wording

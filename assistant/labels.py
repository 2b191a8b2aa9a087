"""Labels as people type them: matched to the words that heads know, and ranked with "unknown". Knows no images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

UNKNOWN = "unknown"
UNKNOWN_BELOW = 0.05
"""A class is "unknown" when the student itself would say any of the given labels with less than this probability."""
SYNONYMS: Mapping[str, str] = {
    "fiber": "fibre",
    "filament": "fibre",
    "wire": "nanowire",
    "nanorod": "nanowire",
    "sponge": "porous sponge",
    "foam": "porous sponge",
    "shale": "porous shale",
    "rock": "porous shale",
    "nanoparticle": "particle",
    "film": "film or coated surface",
    "coated film": "film or coated surface",
    "film coated surface": "film or coated surface",
    "coating": "coating in cross section",
    "coating cross section": "coating in cross section",
    "mems": "mems device",
    "mems device electrode": "mems device",
    "electrode": "mems device",
    "tip": "tip",
    "afm tip": "tip",
    "pattern": "patterned surface",
    "patterned silicon": "patterned surface",
    "lithography": "patterned surface",
    "biology": "biological sample",
    "biological": "biological sample",
    "cell": "biological sample",
    "plant": "biological sample",
    "tissue": "biological sample",
    "cathode": "battery cathode",
    "composite": "nanocomposite",
    "ni superalloy": "superalloy",
    "nickel superalloy": "superalloy",
    "melt pool": "melt pool",
    "metal powder": "powder",
}
"""Other words for what a head may know."""
_FILLERS = frozenset({"a", "an", "the", "of", "image", "picture", "micrograph", "sem", "sample", "some", "material"})


def matched(label: str, words: Sequence[str]) -> str | None:
    """The word of a head that a label means, None where it means none of them."""
    known = {plain(word): word for word in words}
    asked = plain(label)
    meant = next((plain(word) for other, word in SYNONYMS.items() if plain(other) == asked), asked)
    return known.get(asked) or known.get(meant)


def plain(label: str) -> str:
    """A label in small letters and singular, without fillers: "Porous_Sponges" and "a porous sponge" are one."""
    tokens = re.findall(r"[^\W_]+", label.lower())
    return " ".join(_singular(token) for token in tokens if token not in _FILLERS)


def rank_labels(labels: Sequence[str], shares: np.ndarray, known: float, *, sure: bool) -> list[tuple[str, float]]:
    """Labels and "unknown" by probability; "unknown" leads unless one of the labels is sure enough to be said.

    `shares` [C] of the labels among themselves, `known` the probability that it is one of them at all.
    """
    ranked = sorted(zip(labels, (known * shares).tolist(), strict=True), key=lambda pair: -pair[1])
    unknown = (UNKNOWN, 1.0 - known)
    return [*ranked, unknown] if sure else [unknown, *ranked]


def _singular(token: str) -> str:
    if len(token) > 4 and token.endswith("ies"):
        return token[:-3] + "y"
    return token[:-1] if len(token) > 3 and token.endswith("s") and not token.endswith("ss") else token

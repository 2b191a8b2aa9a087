"""What a text claims in numbers: which quantity, which amount, asserted, denied or as a limit.

Knows nothing about pixels, models or what is true.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from assistant.quantities import QUANTITIES, Amount, read_amounts

NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
BY_DIMENSION = {"voltage": "voltage", "magnification": "magnification", "pixel size": "pixel_size"}
"""Dimensions that only one quantity has."""
_THINGS = r"structures?|objects?|particles?|pores?|bodies|body|grains?|fib(?:re|er)s?|wires?|holes?|cells?|pillars?"
_COUNTED = re.compile(rf"\s*(?:(?!nm\b|um\b|px\b)[a-z-]+\s+){{0,2}}?(?:{_THINGS})\b", re.IGNORECASE)
_SAMPLE_SIZE = re.compile(r"\bn\s*=\s*$", re.IGNORECASE)
_IN_WORDS = re.compile(rf"\b({'|'.join(NUMBER_WORDS[2:])})(?=\s+(?:[a-z-]+\s+){{0,2}}?(?:{_THINGS})\b)", re.IGNORECASE)
_CLAUSE = re.compile(r"[;!?\n]|\.(?=\s|$)|,\s|\s(?:and|but|while|whereas|with)\s", re.IGNORECASE)
_DENIED = re.compile(r"\b(?:not|never|no longer|cannot be)\b|n['’]t\b", re.IGNORECASE)
_ABOVE = re.compile(
    r"\b(?:more than|greater than|larger than|above|over|exceeds|exceeding|at least|>)\s*$", re.IGNORECASE
)
_BELOW = re.compile(r"\b(?:less than|fewer than|smaller than|below|under|at most|up to|<)\s*$", re.IGNORECASE)
_ABOUT = re.compile(
    r"\b(?:about|around|roughly|approximately|approx\.?|some|nearly|almost|circa|ca\.)\s*$|[~≈]\s*$", re.IGNORECASE
)


SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_IMAGE = re.compile(
    rf"\b(?:image|picture|micrograph)\s*(\d{{1,3}})\b|\b({'|'.join(_ORDINALS)})\s+(?:image|picture|micrograph|one)\b",
    re.IGNORECASE,
)
_AGAINST = re.compile(r"\b(?:against|versus|vs\.?|compared (?:to|with)|than)\s*$", re.IGNORECASE)
_IN_IMAGE = re.compile(rf"[\d.,]+[^\d;.]*?\b(?:in|of|for)\s+(?:the\s+)?((?:{_IMAGE.pattern}))", re.IGNORECASE)


@dataclass(frozen=True)
class Claim:
    """One number of a text."""

    quantity: str | None
    """Its name in `QUANTITIES`; None where the text names none of them."""
    amount: Amount
    wording: str
    limit: Literal["", "above", "below"] = ""
    denied: bool = False
    about: bool = False
    image: int | None = None
    """The picture it speaks of, from 1; None where the sentence names none."""


def read_claims(text: str) -> list[Claim]:
    """Every number of a text as a claim, in order; counts also in words ("twelve particles")."""
    claims = []
    for amount in read_amounts(text):
        # What is said of a number stands in its own clause.
        ends = [match for match in _CLAUSE.finditer(text) if not amount.start <= match.start() < amount.stop]
        start = max((match.end() for match in ends if match.end() <= amount.start), default=0)
        stop = min((match.start() for match in ends if match.start() >= amount.stop), default=len(text))
        before, after = text[start : amount.start], text[amount.stop : stop]
        limit: Literal["", "above", "below"] = (
            "above" if _ABOVE.search(before) else "below" if _BELOW.search(before) else ""
        )
        quantity = _quantity_of(amount, before, after)
        if quantity == "pixel_size":  # "4.2 nm/px" and "one pixel is 4.2 nm" are the same length
            amount = replace(amount, unit=amount.unit.removesuffix("/px"))
        claims.append(
            Claim(
                quantity,
                amount,
                text[amount.start : amount.stop].strip(),
                limit,
                denied=_DENIED.search(before.rpartition(":")[2]) is not None,  # "It is not so: the count is 24"
                about=_ABOUT.search(before) is not None,
                image=_image_of(text, amount.start),
            )
        )
    for match in _IN_WORDS.finditer(text):
        number = float(NUMBER_WORDS.index(match[1].lower()))
        amount = Amount(number, "", number, number, match.start(), match.end())
        claims.append(Claim("count", amount, match[1], image=_image_of(text, match.start())))
    return sorted(claims, key=lambda claim: claim.amount.start)


def images_named(text: str) -> list[tuple[int, int]]:
    """Where a text names pictures: (end of the name, number from 1), in order: "image 2", "the first picture"."""
    return [
        (match.end(), int(match[1]) if match[1] else _ORDINALS.index(match[2].lower()) + 1)
        for match in _IMAGE.finditer(text)
    ]


def _image_of(text: str, place: int) -> int | None:
    """The picture that a number at a place of a sentence is of: "7 in image 2", else that named last before it."""
    start = max((end.end() for end in SENTENCE_END.finditer(text, 0, place)), default=0)
    end = SENTENCE_END.search(text, place)
    sentence = text[start : end.start() if end else len(text)]
    if following := _IN_IMAGE.match(sentence, place - start):
        return images_named(following[1])[0][1]
    if _AGAINST.search(sentence, 0, place - start):  # "2.2 % against 0.36 %": the second is that of another picture
        return None
    named = images_named(sentence)
    before = [number for stop, number in named if stop <= place - start]
    return before[-1] if before else named[0][1] if named else None


def _quantity_of(amount: Amount, before: str, after: str) -> str | None:
    """By the unit where only one quantity has it; then by what is counted; then by the name nearest before or after."""
    dimension = amount.dimension
    if dimension in BY_DIMENSION:
        return BY_DIMENSION[dimension]
    if not amount.unit and (_COUNTED.match(after) or _SAMPLE_SIZE.search(before)):
        return "count"
    if dimension == "length" and re.match(r"\s*(?:per|/|a)\s*(?:px|pixel)\b", after, re.IGNORECASE):
        return "pixel_size"
    named = _named(before)
    if named:
        return max(named)[1]
    following = _named(after)
    return min(following)[1] if following else None


def _named(text: str) -> list[tuple[int, str]]:
    """Where a text names which quantity; of two names for one place the longer counts."""
    found = [
        (match.end(), match.start(), name)
        for name, quantity in QUANTITIES.items()
        if not quantity.in_words
        for match in re.finditer(rf"\b(?:{quantity.words})\b", text, re.IGNORECASE)
    ]
    longest = {stop: min(start for s, start, _ in found if s == stop) for stop, _, _ in found}
    return [(stop, name) for stop, start, name in found if start == longest[stop]]

"""An answer held against what is known of its pictures: a number in it is a fact, or is not said.

A language model words an answer; it decides no number. A sentence whose numbers are all facts stays as it is. One that
states a number which is known to be another gives way to the facts it speaks of; one that states what nobody knows, to
what is missing. Knows nothing about pixels or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from assistant.measurements.claims import Claim, read_claims
from assistant.measurements.facts import Fact, Facts
from assistant.quantities import QUANTITIES, Amount, angle_between, converted, digits, states, written

ABOUT = 0.1
""""About 300 nm" states 312 nm. Relative."""
TEACHABLE = 0.2
"""What a teacher may be off by: people estimate. Relative."""
TEACHABLE_ANGLE, TEACHABLE_SHARE = 15.0, 5.0
"""The same of directions [deg] and of shares [percentage points]."""
SUREST = 0.5
"""A fact must be at least this sure to contradict a teacher."""
PERCENTILES = {"d10_diameter": "10th", "d90_diameter": "90th"}
NOT_IN_THE_FILE = frozenset({"voltage", "working_distance", "magnification"})
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
_DETECTOR = re.compile(
    r"\bdetector(?:\s+(?:used|mode|type|name))?\s*(?:is|was|:|=)\s*(?:an?\s+|the\s+)?([\w()+/-]+)", re.I
)
_NO_NAME = frozenset({"not", "unknown", "named", "given", "no", "none"})


@dataclass(frozen=True)
class Known:
    """What is known of one picture, beside its measured facts; None where it is not."""

    facts: Facts
    hv_kv: float | None = None
    wd_mm: float | None = None
    magnification: float | None = None
    nm_per_pixel: float | None = None
    detector: str | None = None
    microscope: str | None = None
    date: str | None = None

    def value_of(self, name: str) -> tuple[float, str] | None:
        """Value and unit of a quantity; None where it is not known."""
        read = {
            "voltage": (self.hv_kv, "kV"),
            "working_distance": (self.wd_mm, "mm"),
            "magnification": (self.magnification, "x"),
            "pixel_size": (self.nm_per_pixel, "nm"),
        }
        if name in read:
            value, unit = read[name]
            return None if value is None else (value, unit)
        fact = self.facts.get(name)
        return (fact.value, fact.unit) if fact is not None and fact.value is not None and fact.confidence > 0 else None

    def values(self) -> Iterator[tuple[float, str]]:
        """Every known value with its unit."""
        yield from filter(None, map(self.value_of, QUANTITIES))


def corrected(text: str, *known: Known) -> str:
    """A text with every sentence a fact, or what is not known in its place; sentences without numbers stay.

    With several pictures a number may be that of any of them.
    """
    return "".join(corrected_stream([text], *known))


def corrected_stream(pieces: Iterable[str], *known: Known) -> Iterator[str]:
    """The pieces of an answer sentence by sentence, each held back until it is complete and checked."""
    replaced = set[str]()
    for sentence in sentences(pieces):
        yield from _checked(sentence, known, replaced)


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """A text that comes in pieces, sentence by sentence, each with the blanks behind it."""
    held = ""
    for piece in pieces:
        held += piece
        while end := _SENTENCE_END.search(held):
            yield held[: end.end()]
            held = held[end.end() :]
    if held:
        yield held


def _checked(sentence: str, known: Sequence[Known], replaced: set[str]) -> Iterator[str]:
    """The sentence, or what is said instead of it, once: with what stood between it and the next."""
    instead = _instead_of(sentence, known)
    if instead is None:
        yield sentence
        return
    fresh = [text for text in dict.fromkeys(instead) if text not in replaced]
    replaced.update(fresh)
    if fresh:
        yield " ".join(fresh) + sentence[len(sentence.rstrip()) :]


def true_claims(sentence: str, known: Sequence[Known]) -> bool:
    """Whether every number and every detector that a sentence states is that of one of the pictures."""
    return _instead_of(sentence, known) is None


def _instead_of(sentence: str, known: Sequence[Known]) -> list[str] | None:
    """What has to be said instead of a sentence; None where it may stay."""
    claims = read_claims(sentence)
    wrong_detector = list(_wrong_detector(sentence, known))
    if all(_is_true(claim, known) for claim in claims) and not wrong_detector:
        return None
    return [*(text for claim in claims for text in _facts_instead(claim, known)), *wrong_detector]


def _is_true(claim: Claim, known: Sequence[Known]) -> bool:
    if claim.quantity is None:
        return any(_states(claim, value, unit) for k in known for value, unit in k.values())
    found = [value for k in known if (value := k.value_of(claim.quantity)) is not None]
    return any(_states(claim, value, unit) for value, unit in found)


def _states(claim: Claim, value: float, unit: str) -> bool:
    """Whether a claim is true of a value; what cannot be compared is not."""
    amount = claim.amount.to(unit)
    if amount is None:
        return False
    if claim.limit:
        said = value > amount.value if claim.limit == "above" else value < amount.value
    else:
        near = claim.about and abs(amount.value - value) <= ABOUT * abs(value)
        said = near or bool(states(claim.amount, value, unit))
    return said is not claim.denied


def _facts_instead(claim: Claim, known: Sequence[Known]) -> Iterator[str]:
    if claim.quantity is None:
        yield _missing_length(claim.amount, known) or "That value was not measured in this image."
        return
    values = [k.value_of(claim.quantity) for k in known]
    for number, value in enumerate(values, 1):
        if value is not None:
            said = sentence_of(claim.quantity, *value)
            yield said if len(known) == 1 else f"Image {number}: {said[0].lower()}{said[1:]}"
    if not any(values):
        yield missing(claim.quantity, calibrated=_missing_length(claim.amount, known) is None)


def _missing_length(amount: Amount, known: Sequence[Known]) -> str | None:
    """Why a real length cannot be told, where the reason is that no picture has a scale."""
    is_length = converted(1.0, amount.unit, "nm") is not None
    return "The image is not calibrated." if is_length and all(k.nm_per_pixel is None for k in known) else None


def sentence_of(name: str, value: float, unit: str) -> str:
    """A fact as a sentence."""
    if name == "count":
        return f"{digits(value, unit)} structure{' was' if value == 1 else 's were'} counted."
    if name == "magnification":
        return f"The magnification is {value:.10g}x."
    if name in PERCENTILES:
        return f"The {PERCENTILES[name]} percentile of the diameters is {written(value, unit)}."
    shown = written(value, unit) if QUANTITIES[name].source == "measured" else f"{value:.4g} {unit}"
    return f"The {QUANTITIES[name].said} is {shown}."


def missing(name: str, *, calibrated: bool) -> str:
    """What is said of a quantity that is not known."""
    if name in NOT_IN_THE_FILE:
        return f"The file does not give the {QUANTITIES[name].said}."
    if name == "pixel_size" or not calibrated:
        return "The image is not calibrated."
    return f"The {QUANTITIES[name].said} could not be measured in this image."


def _wrong_detector(sentence: str, known: Sequence[Known]) -> Iterator[str]:
    """A detector is quoted from the file, or is not named."""
    names = [k.detector for k in known if k.detector]
    for match in _DETECTOR.finditer(sentence):
        said = match[1].casefold()
        if said in _NO_NAME or any(said in name.casefold() for name in names):
            continue
        yield (
            f"The detector is {' or '.join(dict.fromkeys(names))}." if names else "The file does not name the detector."
        )


def disagreements(answer: str, facts: Sequence[Facts], known: str = "") -> list[str]:
    """One sentence per number of a text that is far from what was measured in every picture that has the quantity.

    For texts that were not held against the facts: a teacher's. `known` is text that was given with the pictures; a
    number that stands there is not doubted.
    """
    found: list[str] = []
    for claim in read_claims(answer):
        measured = [
            f for each in facts if claim.quantity and (f := each.get(claim.quantity)) and f.confidence >= SUREST
        ]
        verdicts = [_teachable(claim, fact) for fact in measured]
        if claim.limit or not verdicts or any(verdict is not False for verdict in verdicts) or claim.wording in known:
            continue
        values = " or ".join(written(fact.value or 0.0, fact.unit) for fact in measured)
        name = QUANTITIES[claim.quantity or ""].said
        found.append(f"the answer says {claim.wording} for {name}, but {values} was measured")
    return list(dict.fromkeys(found))


def _teachable(claim: Claim, fact: Fact) -> bool | None:
    """Whether an estimate is near enough to a fact; None where the units cannot be compared."""
    assert fact.value is not None
    amount = claim.amount.to(fact.unit)
    if amount is None:
        return None
    if fact.unit == "deg":
        return angle_between(amount.value, fact.value) <= TEACHABLE_ANGLE
    least = TEACHABLE_SHARE if fact.name in ("coverage", "porosity") else 0.02
    return abs(amount.value - fact.value) <= max(TEACHABLE * abs(fact.value), least)

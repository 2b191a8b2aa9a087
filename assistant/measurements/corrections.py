"""An answer held against what is known of its pictures: a number in it is a fact, or is not said.

A language model words an answer; it decides no number. A sentence whose statements are all facts stays as it is. One
that states a number which is known to be another gives way to the facts it speaks of; one that states what nobody
knows, to what is missing. Knows nothing about pixels or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from assistant.measurements.claims import Claim, read_claims
from assistant.measurements.facts import Fact, Facts, Known
from assistant.measurements.statements import Statement, read_statements, sentences
from assistant.quantities import QUANTITIES, angle_between, converted, digits, read_amounts

__all__ = ["Known", "corrected", "corrected_stream", "disagreements", "missing", "sentence_of"]

TEACHABLE = 0.2
"""What a teacher may be off by: people estimate. Relative."""
TEACHABLE_ANGLE, TEACHABLE_SHARE = 15.0, 5.0
"""The same of directions [deg] and of shares [percentage points]."""
SUREST = 0.5
"""A fact must be at least this sure to contradict a teacher."""
PERCENTILES = {"d10_diameter": "10th", "d90_diameter": "90th"}


def corrected(text: str, *known: Known) -> str:
    """A text with every sentence a fact, or what is not known in its place; sentences without statements stay.

    With several pictures a number may be that of any of them, unless the sentence names one.
    """
    return "".join(corrected_stream([text], *known))


def corrected_stream(pieces: Iterable[str], *known: Known) -> Iterator[str]:
    """The pieces of an answer sentence by sentence, each held back until it is complete and checked."""
    replaced = set[str]()
    for sentence in sentences(pieces):
        statements = read_statements(sentence, known)
        if all(statement.verdict in ("true", "withheld") for statement in statements):
            yield sentence
            continue
        instead = (text for statement in statements for text in _instead_of(statement, sentence, known))
        fresh = [text for text in dict.fromkeys(instead) if text not in replaced]
        replaced.update(fresh)
        if fresh:
            yield " ".join(fresh) + sentence[len(sentence.rstrip()) :]


def _instead_of(statement: Statement, sentence: str, known: Sequence[Known]) -> Iterator[str]:
    """What is said in place of a statement: the facts of its quantity, or what is missing."""
    amounts = read_amounts(sentence[statement.start : statement.stop])
    is_length = any(converted(1.0, amount.unit, "nm") is not None for amount in amounts)
    uncalibrated = is_length and all(k.nm_per_pixel is None for k in known)
    if statement.name is None:
        yield "The image is not calibrated." if uncalibrated else "That value was not measured in this image."
        return
    facts = [k.get(statement.name) for k in known]
    for number, fact in enumerate(facts, 1):
        if fact is not None:
            said = sentence_of(fact)
            yield said if len(known) == 1 else f"Image {number}: {said[0].lower()}{said[1:]}"
    if not any(facts):
        yield missing(statement.name, calibrated=not uncalibrated)


def sentence_of(fact: Fact) -> str:
    """A fact as a sentence, with a word of doubt where it is not sure."""
    if fact.name == "count" and fact.value is not None:
        said = f"{digits(fact.value, fact.unit)} structure{' was' if fact.value == 1 else 's were'} counted"
    elif fact.name in PERCENTILES:
        said = f"The {PERCENTILES[fact.name]} percentile of the diameters is {fact.written}"
    else:
        said = f"The {QUANTITIES[fact.name].said} is {fact.written}"
    return f"{said}." if fact.sure else f"{said}, which is uncertain."


def missing(name: str, *, calibrated: bool) -> str:
    """What is said of a quantity that is not known, with the reason."""
    quantity = QUANTITIES[name]
    if quantity.source == "predicted":
        return f"The {quantity.said} cannot be told from this image: no classifier here is sure of it."
    if name == "pixel_size":
        return "The image is not calibrated."
    if name == "field_width":
        return "The field width cannot be told: the file gives no scale."
    if quantity.source == "read":
        named = "name of the " if name in ("microscope", "detector") else ""
        return f"The {named}{quantity.said} was not found in the file or read from its info bar."
    return f"The {quantity.said} could not be measured in this image." if calibrated else "The image is not calibrated."


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
        values = " or ".join(fact.written for fact in measured)
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

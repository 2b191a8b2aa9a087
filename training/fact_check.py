"""What an answer states: quantities with units, classes, yes or no; and whether that is the expected fact.

Knows nothing about models, images or where the truth comes from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from assistant.errors import DatasetError
from assistant.measure import NUMBER_WORDS, Claim, read_claims
from assistant.quantities import UNITS, Amount, angle_between, canonical_unit, read_amounts

FactKind = Literal["class", "word", "yes_no", "count", "size", "orientation"]

_NUMERIC = (int, float)
_VALUE_TYPES: Mapping[FactKind, tuple[type, ...]] = {
    "class": (str,),
    "word": (str,),
    "yes_no": (bool,),
    "count": _NUMERIC,
    "size": _NUMERIC,
    "orientation": _NUMERIC,
}

_TOLERANCE = 0.2
ORIENTATION_TOLERANCE = 15.0  # [deg]; a share of the angle would ask more of 5 deg than of 175 deg
COUNT_WORDS = NUMBER_WORDS[2:13]

# How an answer names one of the ten classes of the public SEM data set (Aversa et al. 2018).
CLASS_WORDS: Mapping[str, str] = {
    "biological": r"biolog\w*",
    "fibres": r"(?:micro|nano)?fib(?:re|er)s?",
    "films_coated_surface": r"(?:thin[\s-])?films?|coatings?|coated[\s-]surfaces?",
    "mems_devices_electrodes": r"mems|devices?|electrodes?",
    "nanowires": r"nano[\s-]?wires?",
    "particles": r"(?:micro|nano)?particles?",
    "patterned_surface": r"patterned[\s-](?:surface|structure|layer|substrate|array)s?",
    "porous_sponge": r"porous[\s-](?:sponge|structure|network|material)s?|sponges?|sponge-like",
    "powder": r"powders?",
    "tips": r"tips?",
}

# ---------------------------------------------------------------------------------- stated facts

_GAP = r"[^\w.;!?]+"  # between words of one sentence
_DENIED = re.compile(
    rf"\b(?:no|not|non|none|without|neither|nor|rather than|instead of){_GAP}(?:(?!but\b)\w+{_GAP}){{0,2}}$",
    re.IGNORECASE,
)
_OR = re.compile(r"\W*or\W+(?:an?\W+)?", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:no|not|none|never|without|absent|neither)\b|n['’]t\b", re.IGNORECASE)


@dataclass(frozen=True)
class FactTarget:
    """What an answer has to state: a class, a word, yes or no, a count, a size or an orientation [deg].

    `choices` are the values that were open (classes or words), `tolerance` is relative, and a number without
    unit, such as an aspect ratio, is a count.
    """

    kind: FactKind
    value: str | bool | float | None
    unit: str = ""
    tolerance: float = _TOLERANCE
    choices: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> FactTarget:
        """Read {"value", "unit"?, "name"?, "kind"?, "tolerance"?, "choices"?}; other keys are left alone.

        Without "kind", it follows from the value: a bool, "yes" or "no"; a class name; another word; a number
        with a unit or without; the fact named "orientation".
        """
        value: Any = record.get("value")
        named = str(record.get("unit") or "")
        unit = canonical_unit(named) if named else ""
        if unit is None:
            raise DatasetError("bad_fact", f"Unit {named!r} of a fact is unknown. Use one of {', '.join(UNITS)}.")
        if isinstance(value, str) and value.lower() in ("yes", "no"):
            value = value.lower() == "yes"
        kind = record.get("kind") or _kind_of(value, unit, name=str(record.get("name") or ""))
        if kind not in get_args(FactKind):
            kinds = ", ".join(get_args(FactKind))
            raise DatasetError("bad_fact", f"Kind of fact {kind!r} is unknown. Use one of {kinds}.")
        fits = value is None or isinstance(value, _VALUE_TYPES[kind])
        if not fits:
            raise DatasetError("bad_fact", f"Value {value!r} is no fact of kind {kind!r}. Correct the value.")
        choices = tuple(str(choice) for choice in record.get("choices") or ())
        return cls(kind, value, unit, float(record.get("tolerance", _TOLERANCE)), choices)


def _kind_of(value: object, unit: str, *, name: str) -> FactKind:
    if isinstance(value, bool):
        return "yes_no"
    if isinstance(value, str):
        return "class" if value in CLASS_WORDS or name in ("label", "class") else "word"
    if name == "orientation":
        return "orientation"
    return "size" if unit else "count"


def _term(choice: str) -> str:
    """Return the pattern by which a text names a class or a word, singular or plural."""
    if choice in CLASS_WORDS:
        return CLASS_WORDS[choice]
    words = [re.escape(word) for word in re.findall(r"\w+", choice.replace("_", " "))]
    if not words:
        return r"(?!)"
    stem = words[-1][:-1] if words[-1].endswith("s") and len(words[-1]) > 3 else words[-1]
    return r"\W+(?:and\W+)?".join([*words[:-1], stem]) + "(?:e?s)?"


def first_choice(text: str, choices: Sequence[str]) -> str | None:
    """Return the first of the choices a text names and does not deny; None for none or for "this or that"."""
    mentions: list[tuple[int, int, str]] = []
    for choice in choices:
        for match in re.finditer(rf"\b(?:{_term(choice)})\b", text, re.IGNORECASE):
            if not _DENIED.search(text[: match.start()]):
                mentions.append((match.start(), -match.end(), choice))
    mentions.sort()
    if not mentions:
        return None
    (_, stop, chosen), *others = mentions
    if others and others[0][2] != chosen and _OR.fullmatch(text[-stop : others[0][0]]):
        return None
    return chosen


def yes_or_no(text: str) -> bool | None:
    """Return what a text says: its leading or only yes/no, else no where it negates, else None."""
    said: list[str] = re.findall(r"\b(?:yes|no)\b", text.lower())
    if re.match(r"\W*(?:yes|no)\b", text, re.IGNORECASE) or len(set(said)) == 1:
        return said[0] == "yes"
    return False if _NEGATION.search(text) and not said else None


def _near(amount: Amount, expected: float, tolerance: float) -> bool:
    """Say whether a quantity is near enough; a range counts by its middle and may span a factor of two."""
    narrow = amount.low == amount.high or 0 < amount.high <= 2 * amount.low
    return narrow and abs(amount.value - expected) <= tolerance * abs(expected) * (1 + 1e-9)


def _count_in(answer: str) -> Amount | None:
    for amount in read_amounts(answer):
        if not amount.unit:
            return amount
    for word in re.findall(r"[a-z]+", answer.lower()):
        if word in COUNT_WORDS:
            return _count(float(COUNT_WORDS.index(word) + 2))
    return _count(0.0) if re.search(r"\b(?:no|none|zero)\b", answer, re.IGNORECASE) else None


def _count(number: float) -> Amount:
    return Amount(number, "", number, number)


def _size_in(answer: str, unit: str) -> Amount | None:
    """Return the first quantity of the asked dimension; a pixel size may leave out its "per pixel"."""
    for amount in read_amounts(answer):
        same = amount.to(unit)
        if same is None and unit.endswith("/px"):
            same = amount.to(unit.removesuffix("/px"))
        if same is not None:
            return same
    return None


def check_answer(answer: str, expected: Mapping[str, Any] | FactTarget) -> bool | None:
    """Say whether an answer states the expected fact; None where the fact is not known.

    A count or size must lie within the tolerance (20 %), a size with a unit of its dimension; the first
    number of the right sort is the one that counts, so an answer gains nothing by listing several.

    Raises: DatasetError where the expectation names an unknown kind or unit.
    """
    target = expected if isinstance(expected, FactTarget) else FactTarget.from_dict(expected)
    if target.value is None or target.value != target.value:  # NaN, where JSON allowed it
        return None
    if target.kind in ("class", "word"):
        value = str(target.value)
        known = tuple(CLASS_WORDS) if value in CLASS_WORDS else ()
        return first_choice(answer, tuple(dict.fromkeys((value, *(target.choices or known))))) == value
    if target.kind == "yes_no":
        return yes_or_no(answer) is target.value
    number = float(target.value)
    if target.kind == "orientation":
        angle = _size_in(answer, "deg")
        return angle is not None and angle_between(angle.value, number) <= ORIENTATION_TOLERANCE
    stated = _size_in(answer, target.unit) if target.kind == "size" else _count_in(answer)
    return stated is not None and _near(stated, number, target.tolerance)


def agrees(answer: str, reference: str, label: str | None) -> bool | None:
    """Whether an answer states every checkable fact of a reference; None where that states none.

    Facts are its yes or no, each number, and the class where the reference names it. Of each quantity the first number
    of the answer counts, within the tolerance; a denial, an alternative or a number of something else states nothing.
    """
    checks: list[bool | None] = []
    if re.match(r"\W*(?:yes|no)\b(?!\s+\w+s\b)", reference, re.IGNORECASE):
        checks.append(yes_or_no(answer) is yes_or_no(reference))
    stated = read_claims(answer)
    checks += [_is_stated(claim, stated) for claim in read_claims(reference)]
    if label and re.search(rf"\b(?:{_term(label)})\b", reference, re.IGNORECASE):
        checks.append(check_answer(answer, FactTarget("class", label)))
    return all(checks) if checks else None


def _is_stated(fact: Claim, stated: Sequence[Claim]) -> bool:
    same = [
        (claim, amount)
        for claim in stated
        if claim.quantity in (fact.quantity, None) and (amount := claim.amount.to(fact.amount.unit)) is not None
    ]
    if not same:
        return False
    (first, amount), expected = same[0], fact.amount.value
    if first.denied or first.limit != fact.limit:
        return False
    if fact.amount.unit == "deg":
        return angle_between(amount.value, expected) <= ORIENTATION_TOLERANCE
    return _near(amount, expected, _TOLERANCE)


def yes_no_balance(answers: Sequence[str], expected: Sequence[bool]) -> dict[str, float | None]:
    """Return how often yes is true and said, and the accuracy on either side; always-yes scores 1 and 0."""
    if len(answers) != len(expected):
        raise ValueError(f"{len(answers)} answers but {len(expected)} truths")
    pairs = [(yes_or_no(answer), truth) for answer, truth in zip(answers, expected, strict=True)]

    def share(hits: list[bool]) -> float | None:
        return sum(hits) / len(hits) if hits else None

    on_yes, on_no = share([s is True for s, t in pairs if t]), share([s is False for s, t in pairs if not t])
    return {
        "yes_expected": share([t for _, t in pairs]),
        "yes_answered": share([s is True for s, _ in pairs]),
        "accuracy_yes": on_yes,
        "accuracy_no": on_no,
        "balanced_accuracy": None if on_yes is None or on_no is None else (on_yes + on_no) / 2,
    }

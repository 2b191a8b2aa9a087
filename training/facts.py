"""What an answer states: quantities with units, classes, yes or no; and whether that is the expected fact.

Knows nothing about models, images or where the truth comes from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from assistant.errors import DatasetError

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

TOLERANCE = 0.2
ORIENTATION_TOLERANCE = 15.0  # [deg]; a share of the angle would ask more of 5 deg than of 175 deg
COUNT_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

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

# A unit and what it is worth; units convert within their dimension only.
UNIT_SCALE: Mapping[str, tuple[str, float]] = {
    "pm": ("length", 1e-3),
    "angstrom": ("length", 0.1),
    "nm": ("length", 1.0),
    "um": ("length", 1e3),
    "mm": ("length", 1e6),
    "cm": ("length", 1e7),
    "nm/px": ("pixel size", 1.0),
    "um/px": ("pixel size", 1e3),
    "V": ("voltage", 1.0),
    "kV": ("voltage", 1e3),
    "x": ("magnification", 1.0),
    "kx": ("magnification", 1e3),
}

# ---------------------------------------------------------------------------------- quantities

_NANOMETRE = r"(?:nm|nanomet(?:er|re)s?)"
_MICROMETRE = r"(?:[uµμ]m|microns?|micromet(?:er|re)s?)"
_PIXEL = r"(?:px|pix|pixels?)"
_SQUARED = r"(?:\^2|²|2)"
_AREA = rf"(?:{_MICROMETRE}{_SQUARED}|square\s+{_MICROMETRE})"
UNIT_SPELLINGS = {  # the longer reading first: "nm/px" before "nm"
    "nm/px": rf"{_NANOMETRE}\s*(?:/|per)\s*{_PIXEL}",
    "um/px": rf"{_MICROMETRE}\s*(?:/|per)\s*{_PIXEL}",
    "1/um^2": rf"(?:1?/\s?|per\s+){_AREA}|{_MICROMETRE}(?:\^-2|⁻²)",
    "um^2": _AREA,
    "nm^2": rf"{_NANOMETRE}{_SQUARED}|square\s+{_NANOMETRE}",
    "px^2": rf"{_PIXEL}{_SQUARED}|square\s+{_PIXEL}",
    "nm": _NANOMETRE,
    "um": _MICROMETRE,
    "mm": r"mm|millimet(?:er|re)s?",
    "cm": r"cm|centimet(?:er|re)s?",
    "pm": r"pm|picomet(?:er|re)s?",
    "angstrom": r"å|angstroms?",
    "px": _PIXEL,
    "%": r"%|percent|per\s+cent",
    "deg": r"°|deg|degrees?",
    "kV": r"kv|kilovolts?",
    "V": r"v|volts?",
    "kx": r"k\s?[x×](?!\s*\d)",
    "x": r"[x×](?!\s*\d)|times",
}
_UNIT = "|".join(f"(?P<u{i}>{spelling})" for i, spelling in enumerate(UNIT_SPELLINGS.values()))
_INTEGER = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?:[ \u00a0\u2009\u202f]\d{3})+|\d+)(?!\d)"
_NUMBER = rf"(?P<mantissa>[-−]?{_INTEGER}(?:[.,]\d+)?)(?:(?:e|\s*[x×]\s*10\^)(?P<power>[-+−]?\d+))?"
_QUANTITY = re.compile(rf"(?<![\w.]){_NUMBER}(?:[\s-]?(?:{_UNIT})(?![a-z\d^²⁻])|(?!\w))", re.IGNORECASE)
_DATE_OR_TIME = re.compile(r"\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}:\d{2}(?::\d{2})?\b")
_TO = re.compile(r"\s*(?:-|–|—|to)\s*", re.IGNORECASE)
_AND = re.compile(r"\s*and\s*", re.IGNORECASE)
_BETWEEN = re.compile(r"\bbetween\s*$", re.IGNORECASE)
_PLUS_MINUS = re.compile(r"\s*(?:±|\+/-|plus or minus)\s*", re.IGNORECASE)
_BY = re.compile(r"\s*(?:x|×|by)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Quantity:
    """A number in a text with its unit ("" where none stands); `low` and `high` differ for a stated range."""

    value: float
    unit: str
    low: float
    high: float

    def to(self, unit: str) -> Quantity | None:
        """Return the quantity in another unit, None where the two do not convert."""
        if self.unit == unit:
            return self
        if self.unit not in UNIT_SCALE or unit not in UNIT_SCALE:
            return None
        (dimension, scale), (asked, per) = UNIT_SCALE[self.unit], UNIT_SCALE[unit]
        if dimension != asked:
            return None
        factor = scale / per
        return Quantity(self.value * factor, unit, self.low * factor, self.high * factor)


def _number(match: re.Match[str]) -> float:
    digits = match["mantissa"].replace("−", "-")
    digits = re.sub(r"[ \u00a0\u2009\u202f]", "", digits)
    if re.fullmatch(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", digits):
        digits = digits.replace(",", "")
    power = int((match["power"] or "0").replace("−", "-"))
    return float(digits.replace(",", ".")) * 10.0 ** max(-99, min(99, power))


def _unit(match: re.Match[str]) -> str:
    return next((unit for i, unit in enumerate(UNIT_SPELLINGS) if match[f"u{i}"]), "")


def _point(value: float, unit: str) -> Quantity:
    return Quantity(value, unit, value, value)


def _range(first: Quantity, last: Quantity) -> Quantity | None:
    """Join the ends of a range; the first end may leave the unit to the last."""
    low = first.to(last.unit) if first.unit else _point(first.value, last.unit)
    if low is None or low.value > last.value:
        return None
    return Quantity((low.value + last.value) / 2, last.unit, low.value, last.value)


def parse_quantities(text: str) -> list[Quantity]:
    """Find the numbers of a text with their units, in order.

    "80-90 nm", "250 nm to 0.4 um" and "between 1 and 2 um" are one range, "312 ± 20 nm" is 312 nm,
    "10 x 20 um" are two lengths, and dates, times and names ("D10", "3D") are no quantities.
    """
    text = _DATE_OR_TIME.sub(lambda match: "#" * len(match[0]), text)
    matches = list(_QUANTITY.finditer(text))
    found: list[Quantity] = []  # from the last to the first, so a unit can reach back over "x"
    next_start = len(text)
    for match in reversed(matches):
        quantity, link = _point(_number(match), _unit(match)), text[match.end() : next_start]
        joined = None
        if found and (_TO.fullmatch(link) or (_AND.fullmatch(link) and _BETWEEN.search(text[: match.start()]))):
            joined = _range(quantity, found[-1])
        elif found and _PLUS_MINUS.fullmatch(link):
            joined = _point(quantity.value, quantity.unit or found[-1].unit)
        elif found and not quantity.unit and _BY.fullmatch(link):
            quantity = _point(quantity.value, found[-1].unit)
        if joined:
            found.pop()
        found.append(joined or quantity)
        next_start = match.start()
    return found[::-1]


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
    tolerance: float = TOLERANCE
    choices: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> FactTarget:
        """Read {"value", "unit"?, "name"?, "kind"?, "tolerance"?, "choices"?}; other keys are left alone.

        Without "kind", it follows from the value: a bool, "yes" or "no"; a class name; another word; a number
        with a unit or without; the fact named "orientation".
        """
        value: Any = record.get("value")
        unit = canonical_unit(str(record.get("unit") or ""))
        if isinstance(value, str) and value.lower() in ("yes", "no"):
            value = value.lower() == "yes"
        kind = record.get("kind") or _kind_of(value, unit, name=str(record.get("name") or ""))
        if kind not in get_args(FactKind):
            kinds = ", ".join(get_args(FactKind))
            raise DatasetError("bad_fact", f"Kind of fact {kind!r} is unknown. Use one of {kinds}.")
        if not _fits(value, kind):
            raise DatasetError("bad_fact", f"Value {value!r} is no fact of kind {kind!r}. Correct the value.")
        choices = tuple(str(choice) for choice in record.get("choices") or ())
        return cls(kind, value, unit, float(record.get("tolerance", TOLERANCE)), choices)


def canonical_unit(unit: str) -> str:
    """Return the unit as `Quantity` writes it ("µm" -> "um").

    Raises: DatasetError for a unit that no answer could state.
    """
    for name, spelling in UNIT_SPELLINGS.items():
        if unit == name or re.fullmatch(spelling, unit, re.IGNORECASE):
            return name
    if unit:
        known = ", ".join(UNIT_SPELLINGS)
        raise DatasetError("bad_fact", f"Unit {unit!r} of a fact is unknown. Use one of {known}.")
    return ""


def _fits(value: object, kind: FactKind) -> bool:
    return value is None or isinstance(value, _VALUE_TYPES[kind])


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


def _near(quantity: Quantity, expected: float, tolerance: float) -> bool:
    """Say whether a quantity is near enough; a range counts by its middle and may span a factor of two."""
    narrow = quantity.low == quantity.high or 0 < quantity.high <= 2 * quantity.low
    return narrow and abs(quantity.value - expected) <= tolerance * abs(expected) * (1 + 1e-9)


def _count_in(answer: str) -> Quantity | None:
    for quantity in parse_quantities(answer):
        if not quantity.unit:
            return quantity
    for word in re.findall(r"[a-z]+", answer.lower()):
        if word in COUNT_WORDS:
            return _point(float(COUNT_WORDS.index(word) + 2), "")
    return _point(0.0, "") if re.search(r"\b(?:no|none|zero)\b", answer, re.IGNORECASE) else None


def _size_in(answer: str, unit: str) -> Quantity | None:
    """Return the first quantity of the asked dimension; a pixel size may leave out its "per pixel"."""
    for quantity in parse_quantities(answer):
        same = quantity.to(unit)
        if same is None and unit.endswith("/px"):
            same = quantity.to(unit.removesuffix("/px"))
        if same is not None:
            return same
    return None


def _oriented(answer: str, expected: float) -> bool:
    angle = _size_in(answer, "deg")
    return angle is not None and abs((angle.value - expected + 90) % 180 - 90) <= ORIENTATION_TOLERANCE


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
        return _oriented(answer, number)
    stated = _size_in(answer, target.unit) if target.kind == "size" else _count_in(answer)
    return stated is not None and _near(stated, number, target.tolerance)


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

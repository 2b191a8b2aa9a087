"""Which numbers of an answer the measurement contradicts. Knows nothing about pixels, models or conversations.

A number is contradicted where its clause names a measured quantity, its unit can be compared, and no picture of the
conversation has a value near it. A number that no measurement speaks about is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from assistant.measurements.facts import Fact, Facts, quantity

TOLERANCE = 0.2
ANGLE_TOLERANCE = 15.0
"""[deg]"""
SHARE_TOLERANCE = 5.0
"""[percentage points]"""
SUREST = 0.5
"""A fact must be at least this sure to contradict anything."""

NAMES = {
    "nearest_neighbour": r"nearest[\s-]neighbou?r\w*|spacing",
    "line_edge_roughness": r"(?:line[\s-]?)?edge roughness|LER",
    "line_width": r"line[\s-]?widths?|lines are",
    "fibre_width": r"fib(?:re|er)[\s-](?:width|diameter)s?",
    "mean_diameter": r"mean (?:diameter|size)|average (?:diameter|size)",
    "period": r"period|pitch",
    "porosity": r"porosity|share of (?:the )?dark \w+",
    "coverage": r"coverage|area fraction",
    "orientation": r"orientation|main direction",
    "aspect_ratio": r"aspect ratio",
    "anisotropy": r"anisotropy",
    "contrast": r"contrast",
    "noise": r"noise",
    "count": r"count|number of \w+|there are",
}
SHARES = frozenset({"coverage", "porosity"})
RATIO_TOLERANCE = 0.02
NM = {"nm": 1.0, "um": 1e3, "µm": 1e3, "μm": 1e3, "mm": 1e6, "å": 0.1, "pm": 1e-3}
_NUMBER = re.compile(
    r"(?<![\w.])(\d[\d,]*(?:\.\d+)?)[\s-]?(nm|[uµμ]m|mm|pm|å|px|pixels?|%|percent|deg(?:rees?)?|°)?(?![\w.]*\d)",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"\s*(?:separate\s+)?(?:structures?|objects?|particles?|pores?|bodies)\b", re.IGNORECASE)
_LIMIT = re.compile(r"\b(?:than|above|below|over|under|exceeds|at least|at most|up to)\s+$", re.IGNORECASE)
_CLAUSE = re.compile(r"[;!?\n]|\.(?=\s|$)|,\s")


def _stated(text: str) -> Iterator[tuple[str, str, float, str]]:
    """Quantity, wording, value and unit of every number whose clause names a measured quantity.

    The name stands before the number, but what is counted after it; a limit ("more than 50") states no value.
    """
    for clause in _CLAUSE.split(text):
        for match in _NUMBER.finditer(clause):
            before, unit = clause[: match.start()], (match[2] or "").lower()
            name = "count" if not unit and _COUNTED.match(clause, match.end()) else _last_named(before)
            if name and not _LIMIT.search(before):
                yield name, match[0].strip(), float(match[1].replace(",", "")), unit


def _last_named(text: str) -> str | None:
    """The measured quantity that a text names last."""
    named = [(m.end(), name) for name, words in NAMES.items() for m in re.finditer(rf"\b(?:{words})\b", text, re.I)]
    return max(named)[1] if named else None


def _compared(fact: Fact, value: float, unit: str) -> bool | None:
    """Whether a stated value agrees with a fact; None where the units cannot be compared."""
    assert fact.value is not None
    if fact.unit == "nm" and unit in NM:
        value *= NM[unit]
    elif not (
        (fact.unit == "px" and unit.startswith(("px", "pixel")))
        or (fact.unit == "%" and unit in ("%", "percent"))
        or (fact.unit == "deg" and (unit.startswith("deg") or unit == "°"))
        or (fact.unit == "" and unit == "")
    ):
        return None
    if fact.unit == "deg":
        return abs((value - fact.value + 90) % 180 - 90) <= ANGLE_TOLERANCE
    least = SHARE_TOLERANCE if fact.name in SHARES else RATIO_TOLERANCE
    return abs(value - fact.value) <= max(TOLERANCE * abs(fact.value), least)


def disagreements(answer: str, facts: Sequence[Facts], known: str = "") -> list[str]:
    """One sentence per number of an answer that contradicts what was measured in every picture that has the quantity.

    `known` is text that was given with the pictures; a number that stands there is not doubted.
    """
    found: list[str] = []
    for name, wording, value, unit in _stated(answer):
        measured = [fact for f in facts if (fact := f.get(name)) is not None and fact.confidence >= SUREST]
        verdicts = [_compared(fact, value, unit) for fact in measured]
        if not verdicts or any(verdict is not False for verdict in verdicts) or wording in known:
            continue
        values = " or ".join(quantity(fact.value or 0.0, fact.unit) for fact in measured)
        found.append(f"the answer says {wording} for {name.replace('_', ' ')}, but {values} was measured")
    return list(dict.fromkeys(found))

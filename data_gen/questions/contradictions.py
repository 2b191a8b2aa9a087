"""Does what a teacher says contradict what was measured, or the class of the sample? Knows nothing about teachers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from assistant.measure import Facts, disagreements, read_claims

COUNT_TOLERANCE = 0.2
_FEWEST = 3
"""Fewer are said of parts and sides as often as of objects ("two phases")."""
SURE_ENOUGH = 0.5
"""A measured fact must be at least this sure to contradict anything, or to be told of a class."""
_NAMED = (
    r"\b(?:class|category|type|kind|shows?|is|are|of|depicts?|displays?|contains?)\s+"
    r"(?:of\s+)?(?:an?\s+|the\s+)?(?:[\w-]+\s+)?"
)


def claim_verdict(
    wordings: Sequence[str], *, facts: Sequence[Mapping[str, Any]], label: str | None, classes: Sequence[str]
) -> str | None:
    """Why an answer about a picture (or pair) may not be taught: `measured_disagrees`, `count_disagrees`,
    `label_disagrees`; or None.

    `facts` are `Facts.as_dict()` of each picture, `label` the class if all of them have the same, `classes` all labels.
    """
    measured = [Facts.from_dict(record) for record in facts]
    for wording in wordings:
        if _miscounts(wording, measured):
            return "count_disagrees"
        if disagreements(wording, measured):
            return "measured_disagrees"
        if label is not None and _names_another(wording, label, classes):
            return "label_disagrees"
    return None


def _miscounts(text: str, measured: Sequence[Facts]) -> bool:
    found = [fact.value for facts in measured if (fact := facts.get("count")) and fact.confidence >= SURE_ENOUGH]
    counts = [value for value in found if value is not None]
    return bool(counts) and any(
        claim.quantity == "count"
        and claim.amount.value >= _FEWEST
        and all(abs(claim.amount.value - count) > COUNT_TOLERANCE * count + 0.5 for count in counts)
        for claim in read_claims(text)
    )


def _names_another(text: str, label: str, classes: Sequence[str]) -> bool:
    """True where a text says that the sample is of another class and does not name its own."""

    def names(name: str) -> bool:
        return re.search(_NAMED + re.escape(name.replace("_", " ")) + r"\b", text, re.IGNORECASE) is not None

    own = re.search(rf"\b{re.escape(label.replace('_', ' '))}\b", text, re.IGNORECASE)
    return own is None and any(names(other) for other in classes if other != label)

"""What a hosted teacher says against what was measured and against the class of the sample."""

from __future__ import annotations

from typing import Any

import pytest

from data_gen.questions.contradictions import claim_verdict

CLASSES = ("nanowires", "particles", "porous_sponge", "powder")


def facts(**values: tuple[float, str]) -> dict[str, Any]:
    items = [
        {"name": name, "value": value, "unit": unit, "method": "m", "confidence": 0.9, "note": ""}
        for name, (value, unit) in values.items()
    ]
    return {"kind": "particles", "items": items}


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("The mean diameter is 300 nm.", None),
        ("The mean diameter is 0.31 um.", None),
        ("The mean diameter is 310 um.", "measured_disagrees"),
        ("The mean diameter is 84 nm.", "measured_disagrees"),
        ("There are 84 particles.", None),
        ("About 80 bright round particles lie apart.", None),
        ("Twelve particles lie apart.", "count_disagrees"),
        ("The picture holds 300 particles.", "count_disagrees"),
        ("Two phases meet along one line.", None),
        ("The picture shows particles on a flat ground.", None),
        ("This is a powder.", "label_disagrees"),
        ("The image shows a porous sponge.", "label_disagrees"),
        ("The sample is of the class nanowires.", "label_disagrees"),
        ("A powder of particles is shown.", None),
    ],
)
def test_an_answer_against_facts_and_class(text: str, verdict: str | None) -> None:
    """Numbers with their unit, counts in digits or words, and the name of another class; what nobody measured passes.

    Fails if a number only has to stand somewhere in the facts: 84 is the count, not a diameter.
    """
    known = facts(count=(84, ""), mean_diameter=(312, "nm"))
    assert claim_verdict([text], facts=[known], label="particles", classes=CLASSES) == verdict


def test_any_wording_and_any_picture_of_a_pair() -> None:
    """The worst wording decides; a number of a pair may be that of either picture; a mixed pair has no class."""
    one, two = facts(count=(12, "")), facts(count=(84, ""))
    say = ["There are 84 particles.", "There are 12 particles."]
    assert claim_verdict(say, facts=[one, two], label=None, classes=CLASSES) is None
    assert claim_verdict(say, facts=[one], label=None, classes=CLASSES) == "count_disagrees"
    assert claim_verdict(["This is a powder."], facts=[one, two], label=None, classes=CLASSES) is None

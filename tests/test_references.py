"""References: what a model writes by name is filled with the fact, and nothing else is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.answers import checked
from assistant.measure import Fact, Facts, Known, fact_entries, fact_line, filled, quoted

KNOWN = Known(
    Facts("particles", (Fact("count", 24.0, "", "m", 0.9), Fact("mean_diameter", 312.0, "nm", "m", 0.9))),
    hv_kv=20.0,
    nm_per_pixel=4.2,
    detector="SE2",
    predicted=(Fact("class", None, "", "head", 0.97, source="predicted", text="porous shale"),),
)
OTHER = Known(Facts("particles", (Fact("count", 7.0, "", "m", 0.9),)))


def test_the_facts_stand_in_the_prompt_by_name() -> None:
    line = fact_line([KNOWN])
    assert line.startswith("{count} = 24; {mean_diameter} = 312 nm; ")
    assert {"{voltage} = 20 kV", "{detector} = SE2", "{class} = porous shale"} <= set(fact_entries(KNOWN))
    assert "{period} = not measured" in line
    both = fact_line([KNOWN, OTHER])
    assert "{1.count} = 24" in both
    assert "{2.count} = 7" in both
    assert fact_line([OTHER], before=1).startswith("{2.count} = 7")


@pytest.mark.parametrize(
    ("draft", "shown"),
    [
        ("The mean diameter is {mean_diameter}.", "The mean diameter is 312 nm."),
        ("{count} structures, taken at {voltage} with {detector}.", "24 structures, taken at 20 kV with SE2."),
        ("Image 2 has {2.count} structures.", "Image 2 has 7 structures."),
        ("It shows {class}.", "It shows porous shale."),
        ("{porosity} {nonsense} {2.mean_diameter} {9.count}", "{porosity} {nonsense} {2.mean_diameter} {9.count}"),
        ("a { brace, {count} and {", "a { brace, 24 and {"),
        ("{" * 60, "{" * 60),
    ],
)
def test_references_are_filled_however_the_draft_comes(draft: str, shown: str) -> None:
    assert "".join(filled([draft], [KNOWN, OTHER])) == shown
    assert "".join(filled(list(draft), [KNOWN, OTHER])) == shown


def test_a_stream_waits_for_no_more_than_a_reference() -> None:
    pieces = filled(["The count ", "is {co", "unt} here."], [KNOWN])
    assert next(pieces) == "The count "
    assert next(pieces) == "is "
    assert next(pieces) == "24"


def test_an_answer_quotes_by_reference_and_never_shows_one_that_has_no_fact() -> None:
    said = "".join(checked(["{count} structures were counted."], "How many structures are there?", [KNOWN]))
    assert said == "24 structures were counted."
    said = "".join(checked(["The porosity is {porosity}."], "Is it porous?", [KNOWN]))
    assert said.startswith("The class is porous shale. The porosity could not be measured in this image. ")
    said = "".join(checked(["It shows {class}."], "What is this?", [KNOWN]))
    assert said.startswith("It shows porous shale.")


@pytest.mark.parametrize(
    ("text", "references"),
    [
        ("There are 24 structures of 312 nm.", "There are {count} structures of {mean_diameter}."),
        ("It was taken at 20 kV.", "It was taken at {voltage}."),
        ("More than 20 structures.", "More than 20 structures."),
        ("The mean diameter is 99 nm.", "The mean diameter is 99 nm."),
        ("It shows porous shale.", "It shows {class}."),
        ("The detector is SE2.", "The detector is {detector}."),
    ],
)
def test_what_is_a_fact_is_quoted(text: str, references: str) -> None:
    assert quoted(text, [KNOWN]) == references


@given(st.integers(1, 9999), st.floats(0.5, 9e4), st.sampled_from(["nm", "px"]), st.floats(0.1, 99.0))
@settings(max_examples=100, deadline=None)
def test_quoting_and_filling_give_the_facts_back(count: int, diameter: float, unit: str, share: float) -> None:
    facts = (
        Fact("count", float(count), "", "m", 0.9),
        Fact("mean_diameter", diameter, unit, "m", 0.9),
        Fact("coverage", share, "%", "m", 0.9),
    )
    known = [Known(Facts("particles", facts))]
    text = f"{facts[0].written} structures; mean diameter {facts[1].written}; coverage {facts[2].written}."
    by_reference = quoted(text, known)
    assert not any(letter.isdigit() for letter in by_reference)
    assert "".join(filled([by_reference], known)) == text

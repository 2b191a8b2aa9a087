"""What a question asks for: read rightly in wordings that no rule was made for."""

from collections import Counter

import pytest

from assistant.questions import asked_for, follows_on, intents_of
from data_gen.questions.bank import wordings


def test_the_bank_has_many_wordings_of_every_intent_and_tests_on_others_than_it_teaches() -> None:
    per_part = Counter(wording.part for wording in wordings())
    assert all(per_part[part] >= 60 for part in per_part.keys() - {"mixed"})
    train = {wording.text.lower() for wording in wordings("train")}
    test = {wording.text.lower() for wording in wordings("test")}
    assert not train & test
    assert len(test) > 300


def test_what_is_asked_is_understood_in_wordings_held_apart() -> None:
    """The rules before these understood 73 % of the wordings by their facts."""
    rows = list(wordings("test"))
    right = Counter(w.part for w in rows if set(intents_of(w.text)) == set(w.intents))
    per_part = Counter(w.part for w in rows)
    assert right.total() / len(rows) >= 0.95
    assert all(right[part] / per_part[part] >= 0.85 for part in per_part), right


@pytest.mark.parametrize(
    ("question", "facts"),
    [
        ("What is the pixel size?", ["pixel_size"]),
        ("At which voltage, and with which detector?", ["voltage", "detector"]),
        ("What is the median diameter?", ["median_diameter"]),
        ("What is the D90?", ["d90_diameter"]),
        ("waht is the avarage size of teh partcles?", ["mean_diameter"]),
        ("Number of pores and their mean diameter?", ["count", "mean_diameter"]),
        ("How wide are the lines?", ["line_width"]),
        ("Which image has the thicker fibres?", ["fibre_width"]),
        ("Which has the wider lines?", ["line_width"]),
        ("What is the pitch?", ["period"]),
        ("What is the field of view?", ["field_width"]),
        ("How wide is the image?", ["field_width"]),
        ("Are the particles monodisperse?", ["d10_diameter", "d90_diameter"]),
        ("How many nanowires are there?", ["count"]),
        ("Kannst du die Teilchen zählen?", ["count"]),
        ("¿A qué aumento se tomó?", ["magnification"]),
        ("Quelle est la tension d'accélération ?", ["voltage"]),
        ("Wie groß ist der Bildausschnitt?", ["field_width"]),
        ("¿Qué tipo de muestra es?", ["class"]),
        ("Wie hoch ist die Vergrößerung?", ["magnification"]),
        ("How thick are the cell walls?", ["wall_thickness"]),
        ("Is it made of silicon?", []),
        ("Hello", []),
        ("Describe this micrograph.", []),
    ],
)
def test_only_the_quantities_are_asked_for_that_a_question_names(question: str, facts: list[str]) -> None:
    assert asked_for(question) == facts


@pytest.mark.parametrize(
    ("question", "follows"),
    [
        ("and in micrometres?", True),
        ("in nm please", True),
        ("How large is it in nm?", False),
        ("And how many?", False),
    ],
)
def test_a_unit_alone_asks_for_what_was_asked_before(question: str, follows: bool) -> None:
    assert follows_on(question) is follows

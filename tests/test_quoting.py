"""What a student is taught by reference: its prompt as in serving, thinned, and answers that the prompt supports."""

import re
from dataclasses import dataclass, field

import numpy as np
import pytest

from assistant.answers import checked
from assistant.config import TrainingConfig
from assistant.measure import Fact, Facts, Known, fact_line, reference_words, references_of
from tests.instruction_data import stripes
from training.data import Example, TrainingSet
from training.pretrain import train_tokenizer
from training.quoting import Prompt, draw_prompt, known_of_pictures, taught_answer

MEASURED = Known(
    Facts("particles", (Fact("count", 24.0, "", "m", 0.9), Fact("mean_diameter", 312.0, "nm", "m", 0.9))),
    hv_kv=20.0,
    nm_per_pixel=4.2,
)
ROUGH = Fact("surface", None, "", "truth", 1.0, source="predicted", text="rough")
KNOWN = MEASURED.with_class("porous_sponge")


@dataclass(frozen=True)
class Taught:
    images: tuple[bytes, ...] = (b"one",)
    known: tuple[Known, ...] = (MEASURED,)
    label: str | None = "porous_sponge"
    states: dict[str, str] = field(default_factory=dict)


def prompt(*shown: Known, all: tuple[Known, ...] = (KNOWN,)) -> Prompt:
    return Prompt(fact_line(shown), shown, all)


def test_what_rows_truly_say_stands_there_as_heads_will_say_it() -> None:
    rows = [Taught(states={"surface": "rough"}), Taught(states={"shape": "round", "class": "a porous sponge"})]
    (known,) = known_of_pictures(rows).values()
    assert {fact.name: fact.text for fact in known.predicted} == {
        "class": "porous sponge",
        "shape": "round",
        "surface": "rough",
    }
    two = Taught((b"one", b"two"), (MEASURED, MEASURED), None, {"surface_1": "rough", "surface_2": "smooth"})
    first, second = known_of_pictures([two]).values()
    assert first.get("surface").text == "rough"
    assert second.get("surface").text == "smooth"


@pytest.mark.parametrize(
    ("states", "question", "answer", "taught"),
    [
        ({}, "How many?", "24 structures were counted.", "{count} structures were counted."),
        ({}, "How large?", "Their mean diameter is 312 nm.", "Their mean diameter is {mean_diameter}."),
        ({"class": "a porous sponge"}, "What is this?", "We see a porous sponge.", "We see {class}."),
        ({"class_answer": "It shows porous sponge."}, "Which class?", "It shows porous sponge.", "It shows {class}."),
        ({}, "How wide?", "The line width could not be measured.", "The line width could not be measured."),
    ],
)
def test_an_answer_quotes_the_facts_it_rests_on(
    states: dict[str, str], question: str, answer: str, taught: str
) -> None:
    assert taught_answer(Taught(states=states), question, answer, prompt(KNOWN)) == taught


@pytest.mark.parametrize(
    ("gone", "states", "question", "answer", "said"),
    [
        ("count", {}, "How many structures are there?", "24 structures were counted.", "could not"),
        ("mean_diameter", {}, "Are they larger than 80 nm?", "Yes, larger than 80 nm on average.", "could not"),
        ("voltage", {}, "At which voltage was it taken?", "It was taken at 20 kV.", "was not found in the file"),
        ("class", {"class": "a porous sponge"}, "What is this?", "We see a porous sponge.", "class cannot be told"),
        ("surface", {"surface": "rough"}, "Is the surface smooth?", "No, it looks rough.", "surface cannot be told"),
    ],
)
def test_where_its_fact_was_thinned_away_an_answer_is_what_serving_says(
    gone: str, states: dict[str, str], question: str, answer: str, said: str
) -> None:
    known = Known(MEASURED.facts, hv_kv=20.0, nm_per_pixel=4.2, predicted=(*KNOWN.predicted, ROUGH))
    left = known.without({gone})
    taught = taught_answer(Taught(states=states), question, answer, prompt(left, all=(known,)))
    assert said in taught
    served = "".join(checked([taught], question, [left]))
    assert served == "".join(checked([""], question, [left]))


def test_an_uncertain_fact_is_taught_with_its_doubt() -> None:
    unsure = Known(Facts("particles", (Fact("count", 24.0, "", "m", 0.6),)))
    assert "{count} = 24 (uncertain)" in fact_line([unsure])
    taught = taught_answer(Taught(), "How many are there?", "There are 24 structures.", prompt(unsure, all=(unsure,)))
    assert taught == "{count} structures were counted, which is uncertain."


def test_every_picture_of_several_is_quoted_by_its_number() -> None:
    other = Known(Facts("particles", (Fact("count", 7.0, "", "m", 0.9),)))
    pair = Taught((b"one", b"two"), (MEASURED, other), None)
    both = (MEASURED, other)
    taught = taught_answer(pair, "Which has more?", "Image 1: 24 structures, image 2: 7.", prompt(*both, all=both))
    assert references_of(taught) == {(1, "count"), (2, "count")}
    left = (MEASURED, other.without({"count"}))
    taught = taught_answer(pair, "How many are there?", "Image 1: 24, image 2: 7.", prompt(*left, all=both))
    assert "{1.count}" in taught
    assert "Image 2: " in taught
    assert "{2.count}" not in taught


def test_thinning_depends_on_its_generator_alone() -> None:
    drawn = [
        draw_prompt([KNOWN], hide=False, thin=0.3, random=np.random.default_rng(seed)).line
        for seed in (5, 5, *range(40))
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 30
    kept = sum("{count} = 24" in line for line in drawn[2:])
    assert 18 <= kept <= 38
    assert draw_prompt([KNOWN], hide=True, thin=0.3, random=np.random.default_rng(0)).line == ""


def conversations(thin: float, epoch: int = 0) -> TrainingSet:
    row = {"images": (stripes(3, vertical=True),), "references": (), "aux": "20 kV; count 24", "task": "vqa"}
    about = {"facet": "count", "label": "porous_sponge", "group": "g", "source": "s", "known": (MEASURED,)}
    rows = [
        Example(id="1", question="How many?", answer="24 structures were counted.", **row, **about),
        Example(id="2", question="How large?", answer="The mean diameter is 312 nm.", **row, **about),
    ]
    settings = TrainingConfig(aux_dropout=0, fact_dropout=thin, augment=False)
    found = TrainingSet(rows, image_size=32, settings=settings, seed=1, references=True)
    found.set_epoch(epoch)
    return found


def test_the_prompt_of_training_is_that_of_serving_but_for_its_order() -> None:
    """One function builds both; what training adds is an order of its own."""
    taught = conversations(thin=0)[0].conversation.messages[0].aux
    assert sorted(taught.split("; ")) == sorted(fact_line([KNOWN]).split("; "))
    assert len({conversations(thin=0, epoch=epoch)[0].conversation.messages[0].aux for epoch in range(5)}) > 3


def test_no_reference_is_taught_that_its_prompt_does_not_hold() -> None:
    quotes = 0
    for epoch in range(30):
        messages = conversations(thin=0.5, epoch=epoch)[0].conversation.messages
        held = references_of(" ".join(re.findall(r"(\{\w+\}) = (?!not)", messages[0].aux)))
        for message in messages[1::2]:
            assert references_of(message.text) <= held
            quotes += len(references_of(message.text))
    assert quotes > 10


def test_a_tokenizer_of_our_own_reads_a_reference_as_one_token() -> None:
    tokenizer = train_tokenizer(["The mean diameter is large."] * 5, whole=reference_words())
    for word in reference_words():
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1
    text = "The mean diameter is {mean_diameter}, of {count}."
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text

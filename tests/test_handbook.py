"""General questions: answered by an entry as it stands, and never taken for a question about the picture at hand."""

from itertools import combinations

import numpy as np
import pytest

from assistant.answers import checked, composed
from assistant.handbook import Entry, entries, entry_for, is_entry
from assistant.inference import Assistant
from assistant.measure import Facts, Known
from assistant.micrograph import Micrograph
from assistant.questions import intents_of
from data_gen.questions.bank import wordings
from serve.desk.answering import Proof, Question, answer
from serve.wording import statement_row

KNOWN = Known(Facts("particles", (), 0.9))
OTHERWISE = {
    "what's an SEM?": "What is a scanning electron microscope?",
    "can you explain what charging is": "What is charging?",
    "what are back-scattered electrons": "What are backscattered electrons?",
    "define working distance": "What is working distance?",
    "how can i prevent charging": "How can I avoid charging?",
    "whats the difference between sem and tem": "What is the difference between SEM and TEM?",
    "SEM vs TEM": "What is the difference between SEM and TEM?",
    "what does EDX stand for": "What is EDS?",
    "What is astigmatizm?": "What is astigmatism?",
    "What is meant by depth of field?": "What is depth of field?",
    "How is a TEM lamella prepared?": "What is a lamella?",
    "can maemi work offline": "Does MAEMI need the internet?",
    "Why do edges appear bright in SEM?": "Why do edges look bright?",
}
ABOUT_THE_PICTURE = (
    "What is the porosity?", "What is the working distance?", "What is the pixel size?", "What is the aspect ratio?",
    "How thick is the coating?", "Is there charging?", "Is this a nanowire?", "Are these nanotubes?", "what is this",
    "Which detector was used?", "What is the contrast?", "What is the grain size?", "What is the magnification?",
)  # fmt: skip
NOT_KNOWN = (
    "What is the capital of France?", "What is a laser?", "Who invented the electron microscope?", "What is 2+2?",
    "What is the melting point of nickel?", "How is graphene made?", "What is the thickness of graphene?", "hello", "",
)  # fmt: skip


def test_every_wording_finds_its_own_entry_and_no_two_entries_share_one() -> None:
    assert len(entries()) > 200
    lost = [text for entry in entries() for text in entry.questions if entry_for(text) is not entry]
    assert not lost
    asked = [{text.lower() for text in entry.questions} for entry in entries()]
    assert not [both for one, other in combinations(asked, 2) if (both := one & other)]
    assert len({entry.answer for entry in entries()}) == len(entries())
    assert all(entry.answer.endswith(".") and len(entry.answer) < 300 for entry in entries())


@pytest.mark.parametrize(("asked", "wording"), OTHERWISE.items())
def test_other_wordings_find_it_too(asked: str, wording: str) -> None:
    found = entry_for(asked)
    assert found is not None
    assert wording in found.questions


@pytest.mark.parametrize("question", [*ABOUT_THE_PICTURE, *NOT_KNOWN])
def test_what_is_about_a_picture_or_unknown_has_no_entry(question: str) -> None:
    assert entry_for(question) is None


def test_no_wording_of_the_bank_about_a_picture_is_taken_for_a_general_one() -> None:
    """The bank was written without the handbook in mind, so it is a fair sample of what people ask about pictures."""
    taken = [w.text for w in wordings() if w.intents and w.part != "help" and entry_for(w.text)]
    assert not taken


def test_an_entry_is_the_answer_and_the_model_is_not_asked() -> None:
    def draft() -> list[str]:
        raise AssertionError("no draft is wanted")

    question = "What is charging?"
    assert "quality" in intents_of(question)  # without the handbook the picture's noise would be told
    said = "".join(checked(iter(lambda: draft(), None), question, [KNOWN]))  # type: ignore[arg-type]
    entry = entry_for(question)
    assert isinstance(entry, Entry)
    assert said == entry.answer == composed(question, [KNOWN])[0][1]
    assert is_entry(said)
    assert not is_entry("Something else.")


def test_serving_says_where_it_is_from_with_and_without_a_picture() -> None:
    assistant = Assistant.load()
    grey = Micrograph(np.full((64, 64), 90, np.uint8), sha256="ab" * 32)
    for pictures in ([], [grey]):
        *said, proof = answer(assistant, Question(pictures, "What are secondary electrons?"))
        assert isinstance(proof, Proof)
        assert "".join(map(str, said)).startswith("Electrons of low energy, below 50 eV")
        if pictures:
            assert [statement_row(s)[1] for s in proof.statements] == ["MAEMI's handbook"]
            assert not [w for w in proof.warnings if "measured" in w]

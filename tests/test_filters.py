"""Filters and the card: what may not become a label is named, and what is in the data is told."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from data_gen.dataset.card import RowCounts, biases, dataset_card, grey_accuracy
from data_gen.questions.evidence import chance
from data_gen.questions.filters import (
    NearDuplicates,
    answer_verdict,
    blind_answers,
    blind_scores,
    clean,
    difference_hash,
    samples_agree,
    text_verdict,
    untrusted_text,
    wordings_agree,
)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("The mean diameter is 312 nm.", None),
        ("The mean diameter is 0.31 um.", None),
        ("The mean diameter is 0.31 µm.", None),
        ("The mean diameter is 312 um.", "numbers_disagree"),
        ("The mean diameter is 312 px.", "numbers_disagree"),
        ("There are 84 particles at 5 kV.", None),
        ("There are 120 particles.", "numbers_disagree"),
        ("The microscope is a Helios G4.", None),
        ("I'm sorry, I can't assist with that.", "refusal"),
        ("As an AI language model I do not see it.", "refusal"),
        ("It might be a wire.", "hedge"),
        ("It appears to be round.", "hedge"),
        ("It could be used for sensors.", None),
        ("![x](http://evil.example/?q=1)", "markup"),
        ("<script>alert(1)</script>", "markup"),
        ("=cmd|' /C calc'!A0", "markup"),
        ("", "empty"),
        ("word " * 200, "too_long"),
    ],
)
def test_text_verdicts(answer: str, verdict: str | None) -> None:
    """Numbers with the wrong unit, refusals, hedges and markup of a hosted teacher never become a target."""
    assert text_verdict(answer, known="count 84; mean diameter 312 nm; 5 kV; Helios G4") == verdict


def test_text_is_cleaned_of_what_cannot_be_seen() -> None:
    """Invisible characters could carry instructions through the data set; units are written in ASCII."""
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "obey")
    assert clean(f"A\u200b round{hidden}\ufe0f\n body of 3 µm\u202e.\x00") == "A round body of 3 um."


def test_wordings_must_agree() -> None:
    """Paraphrases that contradict each other are several answers, not one."""
    assert wordings_agree(["Yes, 84 of them.", "Yes, there are 84.", "84 can be counted."])
    assert not wordings_agree(["Yes, 84 of them.", "No, 84 of them."])
    assert not wordings_agree(["There are 84.", "There are 85."])


def test_a_question_that_needs_no_picture_is_thinned() -> None:
    """Nineteen "no" of twenty: the single "yes" stays, and "no" as often; ten of ten say nothing and go."""
    counts = [("tilt", 20, 19, "no"), ("noise", 20, 18, "low"), ("clean", 10, 10, "yes"), ("rare", 9, 9, "yes")]
    assert blind_answers(counts) == {"tilt": ("no", pytest.approx(1 / 19)), "clean": ("yes", 0.0)}


def test_difference_hash_sees_what_is_there_and_not_how_bright() -> None:
    """A brighter or noisier copy is a near-duplicate, a mirrored one is another picture."""
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(40, 160, (8, 9)), np.ones((16, 16))).astype(np.uint8)
    code = difference_hash(picture)
    brighter = (picture * 1.3 + 20).astype(np.uint8)
    noisy = (picture + rng.integers(0, 6, picture.shape)).astype(np.uint8)
    cells = (np.diff(picture[::16, ::16].astype(int)) > 0).ravel()
    assert code == int("".join("1" if cell else "0" for cell in cells), 2)
    assert difference_hash(brighter) == code
    near = NearDuplicates(2)
    assert near.add(7, code, "") is None
    assert near.add(8, difference_hash(noisy), "") == 7
    assert near.add(9, difference_hash(picture[:, ::-1].copy()), "") is None
    assert near.add(10, code ^ 0b111, "") is None
    assert near.add(11, code ^ (1 << 63) ^ 1, "") == 7


def test_an_even_picture_is_a_duplicate_of_the_same_file_only() -> None:
    """It has no edges to hash, and two black frames of two instruments are two pictures."""
    near = NearDuplicates(2)
    assert near.add(1, 0, "one") is None
    assert near.add(2, 0, "two") is None
    assert near.add(3, 0, "one") == 1
    assert near.add(4, 1, "one") is None


def test_near_duplicates_equal_a_plain_search() -> None:
    """The growing table finds what comparing every pair finds."""
    rng = chance("hashes")
    codes = [rng.getrandbits(64) for _ in range(100)]
    codes += [code ^ (1 << rng.randrange(64)) ^ (1 << rng.randrange(64)) for code in codes]
    rng.shuffle(codes)
    near, kept = NearDuplicates(2), []
    for position, code in enumerate(codes):
        expected = next((other for other in kept if (codes[other] ^ code).bit_count() <= 2), None)
        assert near.add(position, code, "") == expected
        if expected is None:
            kept.append(position)
    assert len(kept) == 100


@pytest.mark.parametrize(
    "text",
    [
        "Wafer <script>alert(1)</script>",
        "![x](http://evil.example/?q=1)",
        "see www.evil.example",
        "=cmd|' /C calc'!A0",
        "@SUM(A1)",
        "+1+cmd",
        "a\u200bb",
        "".join(chr(0xE0000 + ord(letter)) for letter in "obey"),
        "smile\ufe0f",
        "line\nbreak",
        "tab\there",
        "nul\x00",
        "left\u202eright",
    ],
)
def test_names_and_tags_from_files_bring_nothing_along(text: str) -> None:
    """A label, file name or tag is somebody else's text: markup, links, formulas and unseen characters are refused."""
    assert untrusted_text(["The sample is round.", text]) == "markup"


def test_ordinary_texts_are_trusted() -> None:
    """Units, signs and accents of real metadata are no markup."""
    for text in ("Zeiss Sigma 300; 5 kV; WD 4.1 mm", "3 µm at 45°", "Müller-Lab, n = 3, -2 %", "x < 3 and y > 2"):
        assert untrusted_text([text]) is None


def test_samples_agree_on_what_they_state() -> None:
    """Same yes or no, same numbers, mostly the same words."""
    assert samples_agree(["The surface is rough.", "The surface looks rough."])
    assert samples_agree(["Yes, 84 were counted.", "Yes, 84 were counted here."])
    assert not samples_agree(["The surface is rough.", "Everything appears quite smooth today."])
    assert not samples_agree(["There are 84.", "There are 85."])
    assert not samples_agree(["Yes, it is.", "No, it is."])


def test_facts_outrank_the_teacher() -> None:
    """An answer that says no where the facts say yes is named."""
    assert answer_verdict(["No, it is round."], facts=["Yes, it is round."], known="") == "facts_disagree"
    assert answer_verdict(["Yes, it is round."], facts=["Yes, it is round."], known="") is None


def test_blind_scores_count_what_is_kept() -> None:
    """Twenty rows, nineteen alike: one of them stays beside the other, so a blind reader is right in half."""
    counts = [("tilt: Is it?", 20, 19, "no"), ("count: How many?", 10, 2, "84"), ("count: Else?", 10, 3, "9")]
    scores = blind_scores([*counts, ("rare: Once?", 1, 1, "9")])
    assert scores == {"tilt": (2, 1), "count": (20, 5)}


# ------------------------------------------------------------------------------------------------------------ the card


def row(
    number: int, *, label: str = "particles", task: str = "vqa", answer: str = "Yes, it is.", grey: float = 50.0
) -> dict[str, Any]:
    measured = {"items": [{"name": name, "value": grey} for name in ("mean_grey", "contrast", "noise")]}
    return {
        "id": f"{number}",
        "source": f"{number}.tif",
        "task": task,
        "facet": "surface",
        "label": label,
        "aux": "SEC SNE-4500M; 5 kV; WD 5 mm; not calibrated",
        "references": [answer],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "text": None}, {"type": "text", "text": "Is it <b>|x|</b>?"}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
        "provenance": json.dumps({"sha256": [f"{number:064x}"]}),
        "measured": json.dumps(measured),
    }


def tallied() -> RowCounts:
    tally = RowCounts()
    for number in range(24):
        label, split = ("particles", "tips")[number % 4 == 0], ("train", "test")[number >= 16]
        answer = "No, it is not." if number % 8 == 0 else "Yes, it is."
        tally.add(split, row(number, label=label, answer=answer, grey=20.0 + 60.0 * (label == "tips")), [b""])
    return tally


def test_the_card_counts_and_explains() -> None:
    """Rows by task and facet, pictures by class, reasons, cost, and an example that cannot break out of its place."""
    tally = tallied()
    text = dataset_card(
        tally,
        images=24,
        teacher="offline",
        rejected={"blind_answerable": 7, "markup": 1},
        checksums={"train": "a1", "test": "b2"},
        cost_usd=1.5,
        blind={"surface": (20, 15)},
        examples=[(row(0), ["examples/1a.jpg"])],
    )
    assert "| vqa | surface | 24 | 75% |" in text
    assert "| particles | 12 | 6 |" in text
    assert "* 7 blind_answerable: answered as well without the picture" in text
    assert "cost: 1.5000 USD" in text
    assert "![vqa](examples/1a.jpg)" in text
    assert "&lt;b&gt;\\|x\\|&lt;/b&gt;" in text
    assert "<b>" not in text


def test_the_card_names_its_biases() -> None:
    """Exposure that gives the class away, one instrument per class, missing scales and a leaning to yes are told."""
    told = "\n".join(biases(tallied()))
    assert "name the class of 100% of the held-out pictures (always the commonest class: 75%)" in told
    assert "One instrument at one voltage for all pictures of particles, tips" in told
    assert "100% of the pictures are not calibrated" in told
    assert re.search(r"Of 24 answers that begin with yes or no, 88% say yes", told)


def test_exposure_that_says_nothing_scores_like_chance() -> None:
    """Classes of equal exposure cannot be told apart by it."""
    rng = np.random.default_rng(0)
    known = [
        (split, label, list(rng.normal(size=3))) for split in ("train", "test") for label in "ab" for _ in range(300)
    ]
    found = grey_accuracy(known)
    assert found is not None
    assert 0.4 < found[0] < 0.6
    assert grey_accuracy(known[:300]) is None

"""Scores against hand arithmetic, the libraries that define them, and changes that must not matter."""

import cProfile
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.errors import DatasetError
from training.metrics import (
    TEXT_METRICS,
    FactTarget,
    bootstrap_interval,
    check_answer,
    classification_scores,
    expected_calibration_error,
    majority_answers,
    nearest_question_answers,
    text_scores,
    yes_no_balance,
)

words = st.lists(
    st.sampled_from(["a", "round", "grey", "particles", "particle", "showing", "312", "nm", ".", ","]),
    max_size=14,
)


def one(hypothesis: str, *references: str) -> dict[str, float]:
    return text_scores([hypothesis], [references]).as_dict()


# ---------------------------------------------------------------------------------- BLEU, ROUGE, METEOR


def test_bleu_by_hand() -> None:
    """Guards the n-gram arithmetic and the brevity penalty.

    Hypothesis "the cat sat on mat" (5 tokens), reference "the cat sat on the mat" (6): unigrams 5/5, bigrams
    the-cat, cat-sat, sat-on of 4 = 3/4, trigrams 2/3, 4-grams 1/2; brevity exp(1 - 6/5).
    """
    scores = one("the cat sat on mat", "the cat sat on the mat")
    brevity = math.exp(1 - 6 / 5)
    assert scores["bleu2"] == pytest.approx(brevity * (1 * 3 / 4) ** (1 / 2), abs=1e-12)
    assert scores["bleu4"] == pytest.approx(brevity * (1 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4), abs=1e-12)


def test_bleu_clips_repeats_and_smooths_missing_orders() -> None:
    """Guards against repeated words scoring twice, and pins the smoothing.

    "the the the" against "the cat": unigrams clipped to 1/3, bigrams 0/2 -> 1/(2*2) (first halving), trigrams
    0/1 -> 1/(4*1); there is no 4-gram, so the effective order of BLEU-4 is 3.
    """
    scores = one("the the the", "the cat")
    assert scores["bleu2"] == pytest.approx((1 / 3 * 1 / 4) ** (1 / 2), abs=1e-12)
    assert scores["bleu4"] == pytest.approx((1 / 3 * 1 / 4 * 1 / 4) ** (1 / 3), abs=1e-12)


def test_all_references_count_at_once_in_bleu() -> None:
    """Guards against scoring only one wording: each half of the text stands in another reference."""
    scores = one("round grains on glass", "round grains in rows", "tips stand on glass")
    assert scores["bleu2"] == pytest.approx(math.sqrt(4 / 4 * 2 / 3), abs=1e-12)
    assert scores["bleu2_single"] == pytest.approx(math.sqrt(2 / 4 * 1 / 3), abs=1e-12)


def test_rouge_by_hand() -> None:
    """Guards the F1 forms.

    "the cat sat on mat" (5) and "the cat sat on the mat" (6): 5 shared unigrams -> 10/11; 3 shared bigrams
    of 4 and 5 -> 6/9; longest common subsequence 5 -> 10/11.
    """
    scores = one("the cat sat on mat", "the cat sat on the mat")
    assert scores["rouge1"] == pytest.approx(10 / 11)
    assert scores["rouge2"] == pytest.approx(6 / 9)
    assert scores["rougeL"] == pytest.approx(10 / 11)
    assert one("a b c d", "d c b a")["rougeL"] == pytest.approx(1 / 4)


def test_meteor_by_hand() -> None:
    """Guards stem matches, fragmentation and the absence of synonyms.

    "the cats sat" and "on a mat the cat sat": matches the, cat (stem), sat in one chunk: P = 3/3, R = 3/6,
    F = PR / (0.9 P + 0.1 R) = 0.5/0.95, penalty 0.5 * (1/3)^3.
    """
    scores = one("the cats sat", "on a mat the cat sat")
    assert scores["meteor_exact_stem"] == pytest.approx(0.5 / 0.95 * (1 - 0.5 / 27))
    assert one("car", "automobile")["meteor_exact_stem"] == 0


@given(words, words)
@settings(max_examples=60, deadline=None)
def test_rouge_equals_the_reference_package(hypothesis: list[str], reference: list[str]) -> None:
    """Guards the bit-parallel subsequence and the n-gram counts against rouge_score on any pair of texts."""
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(" ".join(reference), " ".join(hypothesis))
    ours = one(" ".join(hypothesis), " ".join(reference))
    for name, score in theirs.items():
        assert ours[name] == pytest.approx(score.fmeasure, abs=1e-12)


@given(words, st.lists(words, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_bleu_equals_sacrebleu_at_each_order(hypothesis: list[str], references: list[list[str]]) -> None:
    """Guards the reuse of one n-gram count for BLEU-2 and BLEU-4."""
    from sacrebleu.metrics import BLEU

    text, wordings = " ".join(hypothesis), [" ".join(reference) for reference in references]
    ours = one(text, *wordings)
    for order in (2, 4):
        bleu = BLEU(lowercase=True, effective_order=True, max_ngram_order=order)
        assert ours[f"bleu{order}"] == pytest.approx(bleu.sentence_score(text, wordings).score / 100, abs=1e-9)
        assert 0 <= ours[f"bleu{order}"] <= 1


@pytest.mark.parametrize("text", ["yes", "Round particles.", "mean diameter 312 nm, 84 particles in the frame"])
def test_identical_texts_score_one(text: str) -> None:
    """Guards against short perfect answers losing points to n-grams they cannot have."""
    scores = one(text, "something else entirely", text)
    assert (scores["bleu2"], scores["bleu4"], scores["rouge1"], scores["rougeL"]) == (1, 1, 1, 1)
    assert scores["bleu2_single"] == 0


@pytest.mark.parametrize(
    ("text", "reference"), [("tips", "round grey powder"), ("", "powder"), ("powder", ""), ("", "")]
)
def test_disjoint_and_empty_texts_score_zero(text: str, reference: str) -> None:
    """Guards against smoothing or division giving credit, or an exception, where nothing matches."""
    assert {one(text, reference)[name] for name in TEXT_METRICS} == {0.0}


def test_means_deviations_and_order_of_items() -> None:
    """Guards mean, population deviation and bit-equality under a permutation of the items."""
    rng = random.Random(3)
    vocabulary = ["round", "grey", "powder", "tips", "fibres", "312", "nm", "with"]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 9))) for _ in range(40)]
    references = [[" ".join(rng.choices(vocabulary, k=6)) for _ in range(rng.randint(1, 3))] for _ in texts]
    scores = text_scores(texts, references)
    assert scores.n == 40
    for name in TEXT_METRICS:
        assert scores.mean[name] == pytest.approx(np.mean(scores.items[name]))
        assert scores.std[name] == pytest.approx(np.std(scores.items[name]))
        assert scores.as_dict()[f"{name}_single"] == scores.single[name] <= scores.mean[name]
    order = rng.sample(range(40), 40)
    shuffled = text_scores([texts[i] for i in order], [references[i] for i in order])
    assert shuffled.as_dict() == scores.as_dict()


def test_bad_text_input_is_named() -> None:
    """Guards against a string passed as its own list of one-letter references, and against empty splits."""
    with pytest.raises(DatasetError, match="nothing_to_score"):
        text_scores([], [])
    for references in ("powder", []):
        with pytest.raises(DatasetError, match="no_reference: Text 0"):
            text_scores(["powder"], [references])
    with pytest.raises(ValueError, match="1 texts but 2"):
        text_scores(["a"], [["a"], ["b"]])


def test_the_cost_of_scores_grows_with_the_number_of_texts() -> None:
    """Guards the evaluation of a whole split: ten times the texts may cost no more than fifteen times the calls."""
    rng = random.Random(0)
    vocabulary = [f"{stem}{ending}" for stem in ("grain", "particl", "edge", "bright") for ending in ("", "s", "ed")]
    texts = [" ".join(rng.choices(vocabulary, k=35)) for _ in range(200)]
    references = [[" ".join(rng.choices(vocabulary, k=35)) for _ in range(5)] for _ in texts]
    text_scores(texts[:1], references[:1])  # the imports are not what is counted
    made = []
    for count in (len(texts) // 10, len(texts)):
        calls = cProfile.Profile()  # calls, not seconds: they are the same on a busy machine
        calls.runcall(text_scores, texts[:count], references[:count])
        made.append(sum(entry.callcount for entry in calls.getstats()))
    assert made[1] < 15 * made[0]


# ---------------------------------------------------------------------------------- classes


def test_classification_by_hand() -> None:
    """Guards top-k, macro means and purity.

    Labels 0 0 1 2, predictions 0 1 1 1. Precision 1, 1/3, 0; recall 1/2, 1, 0; F1 2/3, 1/2, 0. Class 3 never
    occurs. Rows 2 and 4 have their label second, so top-2 is 1.
    """
    p = [[0.7, 0.1, 0.1, 0.1], [0.3, 0.6, 0.1, 0.0], [0.1, 0.8, 0.1, 0.0], [0.0, 0.5, 0.4, 0.1]]
    scores = classification_scores(p, [0, 0, 1, 2], classes=["a", "b", "c", "d"]).as_dict()
    assert (scores["top1"], scores["top2"], scores["top3"], scores["top5"]) == (0.5, 1, 1, 1)
    assert scores["macro_precision"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert scores["macro_recall"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scores["purity"] == {"a": 1.0, "b": pytest.approx(1 / 3), "c": None, "d": None}


def test_calibration_error_by_hand() -> None:
    """Guards the binning: two at 0.9 of which one is right, one right at 0.35 -> (|1 - 1.8| + 0.65) / 3.

    A confidence on a bin's upper edge (1.0, 1/15) belongs to that bin, not to the next.
    """
    error = expected_calibration_error(np.array([0.9, 0.9, 0.35]), np.array([True, False, True]))
    assert error == pytest.approx((0.8 + 0.65) / 3)
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    edge = expected_calibration_error(np.array([1 / 15, 1 / 15 + 0.01]), np.array([True, False]))
    assert edge == pytest.approx((1 - 1 / 15 + 1 / 15 + 0.01) / 2)


def test_calibration_tells_honest_from_boastful() -> None:
    """Guards the meaning of ECE: confidence 0.6 at 60 % accuracy scores 0, certainty scores 0.4."""
    honest = np.tile([0.6, 0.4], (10, 1))
    labels = [0] * 6 + [1] * 4
    assert classification_scores(honest, labels).ece == pytest.approx(0, abs=1e-12)
    assert classification_scores(np.tile([1.0, 0.0], (10, 1)), labels).ece == pytest.approx(0.4)


def test_classification_does_not_depend_on_the_order_of_items() -> None:
    """Guards against position leaking into any score."""
    rng = np.random.default_rng(5)
    p = rng.dirichlet(np.ones(6), size=200)
    y = rng.integers(0, 6, 200)
    order = rng.permutation(200)
    ours, shuffled = (
        classification_scores(p, y).as_dict(),
        classification_scores(p[order], y[order]).as_dict(),
    )
    assert shuffled.pop("ece") == pytest.approx(ours.pop("ece"))
    assert shuffled == ours


@pytest.mark.parametrize(
    ("p", "y"),
    [
        ([[0.5, 0.5]], [2]),
        ([[0.5, 0.5]], [-1]),
        ([[3.0, -2.0]], [0]),
        ([[math.nan, 1.0]], [0]),
        ([], []),
        ([[1.0]], [0, 0]),
    ],
)
def test_bad_probabilities_are_refused(p: list[list[float]], y: list[int]) -> None:
    """Guards against logits, NaN or misaligned labels being scored as if they were probabilities."""
    with pytest.raises(DatasetError, match="bad_scores"):
        classification_scores(p, y)


# ---------------------------------------------------------------------------------- facts


SIZE = {"name": "mean_diameter", "value": 1200.0, "unit": "nm", "method": "segmentation", "confidence": 0.9}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The mean diameter is about 1.2 um.", True),
        ("1200 nm", True),
        ("0.0012 mm", True),
        ("1440 nm", True),
        ("1445 nm", False),
        ("955 nm", False),
        ("1.2", False),
        ("1200 px", False),
        ("1.2 nm", False),
        ("1.0 to 1.4 um", True),
        ("between 200 and 2200 nm", False),
        ("300 nm or 1200 nm", False),
        ("", False),
    ],
)
def test_size_needs_value_and_unit(answer: str, right: bool) -> None:
    """Guards the 20 % band, unit conversion, missing units, wide ranges and lists of guesses."""
    assert check_answer(answer, SIZE) is right


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("About 84 particles", {"name": "count", "value": 80, "unit": ""}, True),
        ("At 5 kV some 120 particles of 84 nm", {"name": "count", "value": 80, "unit": ""}, False),
        ("three tips", {"name": "count", "value": 3}, True),
        ("none", {"name": "count", "value": 0}, True),
        ("many", {"name": "count", "value": 12}, False),
        ("35 %", {"name": "coverage", "value": 30.0, "unit": "%"}, True),
        ("35", {"name": "coverage", "value": 30.0, "unit": "%"}, False),
        ("aspect ratio 1.5", {"name": "aspect_ratio", "value": 1.4, "unit": ""}, True),
        ("along 175 deg", {"name": "orientation", "value": 2.0, "unit": "deg"}, True),
        ("along 90 deg", {"name": "orientation", "value": 2.0, "unit": "deg"}, False),
        ("The pixel size is 4.2 nm.", {"name": "pixel_size", "value": 4.2, "unit": "nm/px"}, True),
        ("4.2 nm/px, grains of 310 nm", {"name": "mean_diameter", "value": 312, "unit": "nm"}, True),
        ("20 kx", {"name": "magnification", "value": 20000, "unit": "x"}, True),
        ("312 nm", {"name": "mean_diameter", "value": None, "unit": "nm"}, None),
        ("312 nm", {"name": "mean_diameter", "value": math.nan, "unit": "nm"}, None),
    ],
)
def test_counts_and_other_numbers(answer: str, expected: dict[str, object], right: bool | None) -> None:
    """Guards kinds of numbers against one another, and unknown truth against counting as wrong."""
    assert check_answer(answer, expected) is right


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        ("This micrograph shows particles.", "particles", True),
        ("A porous sponge with open cells", "porous_sponge", True),
        ("Fiber mats", "fibres", True),
        ("MEMS devices and electrodes", "mems_devices_electrodes", True),
        ("Nanoparticles on a thin film", "particles", True),
        ("A thin film with particles", "particles", False),
        ("These are not particles but tips.", "tips", True),
        ("These are not particles but tips.", "particles", False),
        ("No. Particles are shown.", "particles", True),
        ("particles or powder", "particles", False),
        ("a grey image", "powder", False),
        ("", "powder", False),
    ],
)
def test_class_words(answer: str, label: str, right: bool) -> None:
    """Guards against hedging, denial and another class's name passing as the class."""
    assert check_answer(answer, {"value": label}) is right


def test_words_among_choices() -> None:
    """Guards descriptive words: the first un-denied choice counts, in singular or plural."""
    target = FactTarget("word", "spheres", choices=("rods", "cubes"))
    assert check_answer("Mostly spheres, few rods", target) is True
    assert check_answer("A sphere", target) is True
    assert check_answer("rods beside spheres", target) is False
    assert check_answer("crack-free", {"name": "class", "value": "scratch_line", "choices": ["crack"]}) is False


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("Yes, there are no defects.", True),
        ("No, it is smooth.", False),
        ("There are no visible pores", False),
        ("The grains aren't touching", False),
        ("The answer is yes.", True),
        ("smooth", None),
    ],
)
def test_yes_and_no(answer: str, says: bool | None) -> None:
    """Guards the reading of yes/no answers; silence is right for neither."""
    assert check_answer(answer, {"value": True}) is (says is True)
    assert check_answer(answer, {"value": "no"}) is (says is False)


def test_always_yes_is_exposed() -> None:
    """Guards against a constant answer looking good on unbalanced questions."""
    balance = yes_no_balance(["Yes."] * 4, [True, True, True, False])
    assert balance == {
        "yes_expected": 0.75,
        "yes_answered": 1.0,
        "accuracy_yes": 1.0,
        "accuracy_no": 0.0,
        "balanced_accuracy": 0.5,
    }
    assert yes_no_balance([], [])["balanced_accuracy"] is None


@pytest.mark.parametrize(
    "expected",
    [
        {"value": 3.0, "unit": "parsec"},
        {"kind": "mood", "value": "x"},
        {"kind": "size", "value": "big", "unit": "nm"},
    ],
)
def test_unreadable_expectation_is_refused(expected: dict[str, object]) -> None:
    """Guards against a malformed truth silently marking every answer wrong."""
    with pytest.raises(DatasetError, match="bad_fact"):
        check_answer("3 nm", expected)


# ---------------------------------------------------------------------------------- intervals, baselines


def test_bootstrap_widens_with_groups() -> None:
    """Guards resampling by group: 100 copies of each of 8 values are 8 observations, not 800.

    The mean of 8 equal-sized groups of a fair coin has standard error sqrt(0.25 / 8) = 0.177; single values
    would give 0.018.
    """
    values = np.repeat([0.0, 1.0] * 4, 100)
    groups = np.repeat(list("abcdefgh"), 100).tolist()
    low, high = bootstrap_interval(values, groups, seed=0)
    assert high - low == pytest.approx(2 * 1.96 * 0.177, rel=0.15)
    alone_low, alone_high = bootstrap_interval(values, [str(i) for i in range(800)], seed=0)
    assert alone_high - alone_low == pytest.approx(2 * 1.96 * 0.0177, rel=0.15)
    assert low <= 0.5 <= high


def test_bootstrap_is_reproducible_and_free_of_order() -> None:
    """Guards the seed, the order of items, constants and a single group."""
    rng = np.random.default_rng(1)
    values, groups = rng.random(60), [f"lot{i % 7}" for i in range(60)]
    interval = bootstrap_interval(values, groups, seed=4)
    order = rng.permutation(60)
    assert bootstrap_interval(values[order], [groups[i] for i in order], seed=4) == pytest.approx(interval)
    assert bootstrap_interval(values, groups, seed=5) != interval
    assert bootstrap_interval([0.3] * 4, list("aabb"), seed=0) == pytest.approx((0.3, 0.3))
    assert bootstrap_interval([0.1, 0.9], ["a", "a"], seed=0) == (0.1, 0.9)
    with pytest.raises(DatasetError, match="nothing_to_score"):
        bootstrap_interval([], [], seed=0)


def test_majority_answers() -> None:
    """Guards the pooling by question, the fallback and ties."""
    questions = ["What shape?", "what shape", "What shape?", "Any pores?", "Any pores?"]
    answers = ["round", "round", "cubic", "yes", "no"]
    asked = ["What  shape?", "Any pores?", "Unseen?"]
    assert majority_answers(questions, answers, asked) == ["round", "no", "round"]


def test_nearest_question_answers() -> None:
    """Guards the similarity against an exhaustive cosine, duplicates, unseen words and single letters."""
    questions = [
        "what is the mean diameter",
        "are there pores in the film",
        "what is the mean diameter",
        "x y",
    ]
    answers = ["312 nm", "yes", "500 nm", "letters"]
    asked = ["mean diameter of the grains?", "PORES?", "y", "zebra"]
    assert nearest_question_answers(questions, answers, asked, chunk=3) == [
        "312 nm",
        "yes",
        "letters",
        "312 nm",
    ]
    assert nearest_question_answers(["?", "!"], ["b", "a"], ["why"]) == ["a"]
    assert nearest_question_answers(questions, answers, []) == []
    with pytest.raises(DatasetError, match="nothing_to_copy"):
        nearest_question_answers([], [], ["why"])

"""Plain heads beside the fused one: each counts for what held-out groups bear out, none is surer than they allow."""

from typing import Any

import numpy as np
import pytest
import torch

from assistant.config import load_config
from assistant.plain import CONSTANT, FUSED, fit_plain, pooled, softmax, supported
from assistant.predictor import Predicted, Prediction, Predictor, Target
from training.applied import reason_in_words
from training.fit import fit_rows
from training.labelled import LabelledRow, LabelledSet
from training.trust import FEWEST, crossed, trusted

QUICK = ("fit.dim=16", "fit.heads=2", "fit.least_steps=5", "fit.most_steps=5", "fit.batch_size=16")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def logits(truth: np.ndarray, right: float, *, seed: int, sharp: float = 4.0, classes: int = 3) -> np.ndarray:
    """What a head says that is right in a share of the rows."""
    random = np.random.default_rng(seed)
    said = np.where(random.random(len(truth)) < right, truth, random.integers(0, classes, len(truth)))
    found: np.ndarray = sharp * np.eye(classes)[said] + random.normal(0, 0.3, (len(truth), classes))
    return found


def test_the_better_head_has_the_say() -> None:
    truth = np.random.default_rng(0).integers(0, 3, 200)
    told = {FUSED: logits(truth, 0.4, seed=1), "image": logits(truth, 0.95, seed=2), CONSTANT: np.zeros((200, 3))}
    trust = trusted(told, truth, [f"g{n // 4}" for n in range(200)])
    assert trust.shares["image"] >= 0.7
    assert sum(trust.shares.values()) == pytest.approx(1.0)
    assert "linear head on image" in trust.sentence


def test_two_heads_that_err_in_different_rows_share() -> None:
    truth = np.random.default_rng(0).integers(0, 3, 300)
    told = {FUSED: logits(truth, 0.7, seed=1), "image": logits(truth, 0.7, seed=2), CONSTANT: np.zeros((300, 3))}
    trust = trusted(told, truth, [f"g{n}" for n in range(300)])
    assert min(trust.shares.get(FUSED, 0), trust.shares.get("image", 0)) >= 0.2
    assert CONSTANT not in trust.shares
    assert trust.sentence.startswith("Heads speak together, by shares: ")


def test_a_group_counts_once_however_many_rows_it_has() -> None:
    """Seen failing with every row alike: one wafer of 300 pictures outvoted twenty others."""
    truth = np.zeros(320, dtype=int)
    groups = ["big"] * 300 + [f"g{n}" for n in range(20)]
    wrong, right = np.tile([0.0, 3.0], (320, 1)), np.tile([3.0, 0.0], (320, 1))
    told = {FUSED: np.where(np.arange(320)[:, None] < 300, wrong, right), CONSTANT: np.zeros((320, 2))}
    told["image"] = np.where(np.arange(320)[:, None] < 300, right, wrong)
    assert trusted(told, truth, groups).shares.get(FUSED, 0.0) >= 0.8


def test_with_few_groups_there_is_no_choice() -> None:
    truth = np.arange(20) % 3
    told = {FUSED: logits(truth, 0.3, seed=1), "image": logits(truth, 1.0, seed=2)}
    assert trusted(told, truth, [f"g{n % (FEWEST - 1)}" for n in range(20)]).shares == {FUSED: 1.0}


def test_numbers_are_shared_by_their_error() -> None:
    truth = np.random.default_rng(0).normal(0, 1, 100)
    told = {FUSED: np.zeros((100, 1)), "table": truth[:, None] + 0.05, CONSTANT: np.ones((100, 1))}
    trust = trusted(told, truth, [f"g{n}" for n in range(100)])
    assert trust.shares["table"] >= 0.9
    assert trust.losses["table"] == pytest.approx(0.05)
    assert np.abs(trust.said(told)[:, 0] - truth).mean() < 0.1


def test_nobody_is_judged_by_a_choice_in_which_he_had_a_say() -> None:
    """Seen failing where temperatures and quantiles come from the same rows: noise then looks like knowledge."""
    random = np.random.default_rng(0)
    truth, groups = random.normal(0, 1, 60), [f"g{n}" for n in range(60)]
    told = {FUSED: np.zeros((60, 1))} | {f"noise {n}": random.normal(0, 0.3, (60, 1)) for n in range(40)}
    inside = np.abs(trusted(told, truth, groups).said(told)[:, 0] - truth).mean()
    outside = np.abs(crossed(told, truth, groups)[:, 0] - truth).mean()
    assert inside < np.abs(truth).mean() < outside


@pytest.mark.parametrize("groups", [0, 1, 9, 1000])
@pytest.mark.parametrize("classes", [2, 3, 20])
def test_no_probability_is_higher_than_the_groups_bear_out(groups: int, classes: int) -> None:
    """Seen failing before: a fit with three held-out groups said 1.00."""
    sure = np.eye(classes)[:2]
    bounded = supported(sure, groups)
    assert bounded.max() <= max((groups + 0.5) / (groups + 1), 0.1 + 0.9 / classes) + 1e-9
    assert bounded.sum(axis=1) == pytest.approx(1.0)
    assert (bounded.argmax(axis=1) == sure.argmax(axis=1)).all()
    even = np.full((1, classes), 1.0 / classes)
    assert supported(even, groups) == pytest.approx(even)


def test_a_head_that_lacks_its_modality_has_no_say() -> None:
    told = {FUSED: np.array([[0.8, 0.2], [0.8, 0.2]]), "image": np.array([[0.1, 0.9], [np.nan, np.nan]])}
    assert pooled(told, {"image": 1.0}).tolist() == [[0.1, 0.9], [0.8, 0.2]]
    assert pooled(told, {"image": 0.5, FUSED: 0.5})[1].tolist() == [0.8, 0.2]


def test_plain_heads_learn_and_classes_that_no_row_taught_are_not_said() -> None:
    random = np.random.default_rng(0)
    rows, truth = random.normal(0, 1, (90, 4)), random.integers(0, 2, 90)
    rows[:, 0] += 3.0 * truth
    rows[:5] = np.nan
    heads = fit_plain({"image": rows}, truth, 3)
    assert set(heads) == {CONSTANT, "image"}
    said = softmax(heads["image"].outputs({"image": rows}, 90))
    assert np.isnan(said[:5]).all()
    assert (said[5:].argmax(axis=1) == truth[5:]).mean() > 0.9
    assert said[5:, 2].max() < 1e-6
    assert softmax(heads[CONSTANT].outputs({}, 1))[0, :2].sum() == pytest.approx(1.0, abs=1e-6)


def rows_of(count: int, *, classes: bool) -> list[LabelledRow]:
    """Rows whose vector tells the target in a straight line; four of a group; every ninth has no vector."""
    random = np.random.default_rng(0)
    rows = []
    for n in range(count):
        x = random.normal(0, 1, 6)
        truth: Any = "ab"[int(x[0] > 0)] if classes else float(100 + 10 * x[0])
        values: dict[str, Any] = {"table": {"kv": float(random.normal())}}
        if n % 9:
            values["texture"] = x
        rows.append(LabelledRow(f"r{n}", None, values, {"y": truth}, f"g{n // 4}", ""))
    return rows


@pytest.mark.parametrize("classes", [True, False])
def test_a_user_is_no_worse_off_than_with_a_linear_head(classes: bool, tmp_path: Any) -> None:
    """Seen failing before: five steps of the fused head were all there was. Written and read, it says the same."""
    rows = rows_of(360, classes=classes)
    parts = {"train": rows[:200], "calibration": rows[200:280]}
    labelled = LabelledSet(rows, {"y": ""}, {"y": ("a", "b")} if classes else {}, {}, [], [])
    predictor = fit_rows(labelled, parts, load_config(None, QUICK))
    told = [p.targets[0] for p in predictor.predict([row.values for row in rows[280:]])]
    here = [n for n, row in enumerate(rows[280:]) if "texture" in row.values]
    if classes:
        right = [max(zip(told[n].probabilities, "ab", strict=True))[1] == rows[280 + n].truth["y"] for n in here]
        assert np.mean(right) > 0.9
        assert max(max(one.probabilities) for one in told) <= 20.5 / 21 + 1e-9
    else:
        assert np.mean([abs(float(told[n].value or 0) - float(rows[280 + n].truth["y"] or 0)) for n in here]) < 2.0
    assert "texture" in predictor.about["heads"]["y"]["sentence"]
    predictor.save(tmp_path / "head", predictor.about)
    again = Predictor.load(tmp_path / "head")
    assert again.about["heads"]["y"]["shares"] == again.targets[0].shares
    first, second = (p.predict([row.values for row in rows[280:300]]) for p in (predictor, again))
    for one, other in zip(first, second, strict=True):
        assert (one.targets[0].weights, one.targets[0].value) == (other.targets[0].weights, other.targets[0].value)
        assert one.targets[0].probabilities == pytest.approx(other.targets[0].probabilities, abs=1e-9)
        assert sum(one.targets[0].weights.values()) == pytest.approx(1.0)


def test_each_target_rests_on_its_own_modalities_and_the_sentence_says_those_of_the_first() -> None:
    """Seen failing before: the sentence named the first target and quoted the mean over all."""
    rows = rows_of(360, classes=True)
    for row in rows:
        row.truth["z"] = 7.0 * row.values["table"]["kv"]
    parts = {"train": rows[:200], "calibration": rows[200:280]}
    labelled = LabelledSet(rows, {"y": "", "z": ""}, {"y": ("a", "b")}, {}, [], [])
    predictor = fit_rows(labelled, parts, load_config(None, QUICK))
    (prediction,) = predictor.predict([rows[281].values])
    first, second = prediction.targets
    assert first.weights["texture"] > 0.4  # a head on both looks at both alike
    assert second.weights["table"] > 0.8
    assert f"texture ({first.weights['texture']:.0%})" in reason_in_words(prediction, {})
    told = {"texture": [{"name": "y", "verdict": "b", "probability": 0.7}]}
    assert reason_in_words(prediction, told).endswith("; without texture it would be b, 0.70.")


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.5), (0.5, 0.3, 0.2), (0.6, 0.3, 0.096, 0.004)])
def test_every_modality_that_counts_is_named_with_its_share(weights: tuple[float, ...]) -> None:
    shares = dict(zip(("image", "table", "text", "crystal"), weights, strict=False))
    first = Predicted(Target("width", "nm"), value=312.0, weights=shares)
    said = reason_in_words(Prediction((first, Predicted(Target("z"), value=1.0, weights={"other": 1.0})), 0.5), {})
    assert said.startswith("width 312 nm; rests on image")
    assert [name for name in shares if f"{name} ({shares[name]:.0%})" in said] == [n for n in shares if n != "crystal"]
    assert "other" not in said

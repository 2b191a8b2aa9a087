"""Evaluation: the report has every score with its blind twin, and facts are judged as a reader would."""

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from instruction_data import write_dataset
from PIL import Image as Picture
from students import tiny_run

from assistant.config import TrainingConfig
from assistant.heads import Judgement
from assistant.inference import Assistant
from assistant.micrograph import read_micrograph
from data_gen.drawing.synth import write_synthetic
from training.data import TrainingSet, load_split
from training.evaluate import (
    answer_examples,
    as_served,
    classification_report,
    encode_examples,
    evaluate_assistant,
    with_truth,
)
from training.fact_check import agrees
from training.quoting import known_of_pictures
from training.scores import class_report, score_answers, shown_answers, statement_report, verdict_report

TEXT = ("bleu2", "bleu4", "rouge1", "rouge2", "rougeL", "meteor_exact_stem")


def test_the_report_has_the_promised_shape(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", per_class=2)
    assistant = Assistant(tiny_run(tmp_path / "base"))
    report = evaluate_assistant(assistant, data, baselines=False)
    for task in ("caption", "vqa"):
        assert {f"{name}{suffix}" for name in TEXT for suffix in ("", "_blind")} <= report[task].keys()
    assert {"top1", "top2", "coverage", "macro_f1", "recall", "likelihood_top1"} <= report["classification"].keys()
    assert {"top1", "top3", "ece"} <= report["classification"]["likelihood"].keys()
    assert {"accuracy", "without_aux", "blind"} <= report["factual"].keys()
    assert report["statements"]["false"] == report["statements"]["unsupported"] == 0, "what is shown is fact"
    assert report["statements"]["true"] + report["statements"]["withheld"] > 0
    assert report["n"]["images"] == 4
    assert report["baselines"]["vqa_bleu2_majority"] > report["vqa"]["bleu2"], "an untrained student must lose"


def test_statements_of_drafts_and_of_what_is_shown_are_counted(tmp_path: Path) -> None:
    """A draft is counted as it was worded, the answer as a person gets it."""
    rows = load_split(write_dataset(tmp_path / "data", per_class=1), "test")[:4]
    drafts = [
        "There are 12 particles.",
        "There are 30 particles.",
        "The period is 40 nm.",
        f"It shows {rows[3].label}.",
    ]
    asked = [replace(row, question="How many?") for row in rows]
    counted = statement_report(asked, drafts, shown_answers(asked, drafts))
    worded = {"true": 2, "false": 1, "unsupported": 1, "withheld": 0, "false_rate": 0.5}
    assert worded.items() <= counted["drafted"].items()
    low, high = counted["drafted"]["false_rate_interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert (counted["true"], counted["false"], counted["unsupported"]) == (4, 0, 0)


def test_a_student_that_quotes_by_reference_is_trained_and_asked_with_facts_by_name(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", per_class=2)
    examples = [e for e in load_split(data, "train") if e.task == "caption"]
    settings = TrainingConfig(turns=1, aux_dropout=0.0, fact_dropout=0.0)
    shown = replace(examples[0], answer="It shows 12 bodies, taken at 5 kV.")
    item = TrainingSet([shown], image_size=32, settings=settings, seed=0, references=True)[0]
    question, answer = item.conversation.messages
    assert "{count} = 12" in question.aux
    assert "{voltage} = 5 kV" in question.aux
    assert answer.text == "It shows {count} bodies, taken at {voltage}."


def test_references_are_filled_as_where_somebody_asks_and_blind_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen failing before: a blind student was lent the facts, and no class was known of any picture."""
    rows = load_split(write_dataset(tmp_path / "data", per_class=1), "test")[:1]
    assistant, draft = Assistant(tiny_run(tmp_path / "base")), "It is {class}, at {voltage}."
    monkeypatch.setattr(assistant, "complete", lambda asked, shown, **_: [draft] * len(asked))
    heads = (Judgement("class", "a foreign word", 0.99, "", {}, "head"),)
    looks = {png: replace(look, verdicts=heads) for png, look in encode_examples(assistant, rows).items()}
    served = as_served(rows, looks)
    assert answer_examples(assistant, served, looks, with_aux=True, blind=False) == ["It is a foreign word, at 5 kV."]
    assert answer_examples(assistant, served, looks, with_aux=False, blind=True) == [draft]
    judged = statement_report(with_truth(rows, known_of_pictures(rows)), [f"It shows {rows[0].label}."], [""])
    assert judged["drafted"]["true"] == 1, "what heads say is no truth to be judged by"


@pytest.mark.parametrize(
    ("answer", "reference", "label", "verdict"),
    [
        ("Yes, it is rough.", "Yes, the surface is rough.", None, True),
        ("No, it is smooth.", "Yes, the surface is rough.", None, False),
        ("The mean diameter is 0.33 um.", "The mean diameter is 310 nm.", None, True),
        ("The mean diameter is 400 nm.", "The mean diameter is 310 nm.", None, False),
        ("The mean diameter is 310.", "The mean diameter is 310 nm.", None, False),
        ("About 14 of them.", "There are 12 objects.", None, True),
        ("It shows powder.", "It shows nanowires.", "nanowires", False),
        ("These are nanowires.", "It shows nanowires.", "nanowires", True),
        ("Rough.", "The surface is rough.", "nanowires", None),
        ("It is not a powder.", "It shows powder.", "powder", False),
        ("These are nanofibres, not particles.", "It shows fibres.", "fibres", True),
        ("It shows nano-wires.", "It shows nanowires.", "nanowires", True),
        ("320 nm; or 100 nm; or 5 nm.", "The mean diameter is 100 nm.", None, False),
        ("The mean diameter is not 100 nm.", "The mean diameter is 100 nm.", None, False),
        ("The period is 100 nm.", "The mean diameter is 100 nm.", None, False),
        ("61 to 140 nm, 85 nm in the mean.", "The mean diameter is 85 nm.", None, False),
    ],
)
def test_facts_are_judged(answer: str, reference: str, label: str | None, verdict: bool | None) -> None:
    assert agrees(answer, reference, label) is verdict


def test_everything_is_told_by_facet_and_class_and_the_worst_come_first(tmp_path: Path) -> None:
    rows = load_split(write_dataset(tmp_path / "data", per_class=2), "test")
    answers = ["It shows powder." if row.label == "nanowires" and row.task == "caption" else row.answer for row in rows]
    told = score_answers(rows, {"seen": answers})
    assert told["classes"]["powder"]["accuracy"] == 1.0
    assert told["classes"]["nanowires"]["accuracy"] < 1.0
    assert told["classes"]["nanowires"]["false"] == 2
    assert told["facets"]["caption"]["n"] == 4
    assert told["facets"]["surface"]["bleu2_interval"][1] == 1.0
    assert "bleu2_blind" not in told["facets"]["surface"], "what was not asked is not told"
    assert [(one["class"], one["facet"]) for one in told["worst"]] == [("nanowires", "caption")] * 2
    assert told["worst"][0]["shown"] == "It shows powder."


def test_confusion_reliability_and_risk_are_those_of_the_probabilities() -> None:
    """Four pictures, two classes, in closed form."""
    p = [[0.95, 0.05], [0.85, 0.15], [0.35, 0.65], [0.25, 0.75]]
    told = class_report(p, [0, 1, 1, 1], ["a", "b"], ["1", "2", "3", "4"])
    assert told["confusion"] == [[1, 0], [1, 2]]
    assert told["reliability"] == [
        {"confidence": c, "accuracy": a, "n": 1} for c, a in ((0.65, 1.0), (0.75, 1.0), (0.85, 0.0), (0.95, 1.0))
    ]
    assert told["risk_coverage"] == [[0.25, 0.0], [0.5, 0.5], [0.75, 0.3333], [1.0, 0.25]]
    assert told["purity"] == {"a": 0.5, "b": 1.0}
    low, high = told["top1_interval"]
    assert low < told["top1"] == 0.75 < high


def test_a_class_is_scored_as_it_is_shown() -> None:
    """Five pictures, two classes: "unknown" is missed but never false; what is named is calibrated by itself."""
    ranked = [
        [("a", 0.9), ("b", 0.05), ("unknown", 0.05)],
        [("a", 0.7), ("b", 0.1), ("unknown", 0.2)],
        [("unknown", 0.4), ("b", 0.6), ("a", 0.0)],
        [("b", 0.8), ("a", 0.0), ("unknown", 0.2)],
        [("unknown", 1.0), ("a", 0.0), ("b", 0.0)],
    ]
    told = verdict_report(ranked, ["a", "b", "b", "b", "a"], ["a", "b"], list("12345"))
    assert told["labels"] == ["a", "b", "unknown"]
    assert told["confusion"] == [[1, 0, 1], [1, 1, 1], [0, 0, 0]]
    assert (told["top1"], told["top2"], told["coverage"], told["named_right"]) == (0.4, 1.0, 0.6, 0.6667)
    assert told["purity"] == {"a": 0.5, "b": 1.0}
    assert told["recall"] == {"a": 0.5, "b": 0.3333}
    assert told["ece"] == pytest.approx((0.1 + 0.7 + 0.2) / 3, abs=1e-4)
    assert told["risk_coverage"] == [[0.2, 0.0], [0.4, 0.0], [0.6, 0.3333]]
    silent = verdict_report(ranked[4:], ["a"], ["a", "b"], ["1"])
    assert (silent["coverage"], silent["reliability"], silent.get("ece")) == (0.0, [], None)


def test_the_class_that_is_scored_is_the_one_that_classify_names(tmp_path: Path) -> None:
    """Not what the language model is likeliest to say: nobody is ever told that."""
    write_synthetic(tmp_path / "drawn", classes=("particles", "tips"), per_class=3, size=(192, 256), workers=1)
    truth = [json.loads(line) for line in (tmp_path / "drawn" / "truth.jsonl").read_text().splitlines()]
    (row, *_) = load_split(write_dataset(tmp_path / "data", per_class=1), "test")
    rows = [
        replace(row, images=(_png(tmp_path / "drawn" / one["path"]),), label=one["label"], group=one["group"])
        for one in truth
    ]
    assistant = Assistant(tiny_run(tmp_path / "base"))
    told = classification_report(assistant, rows, encode_examples(assistant, rows))
    shown = assistant.classify([row.images[0] for row in rows], ["particles", "tips"])
    named = Counter((row.label, ranked[0][0]) for row, ranked in zip(rows, shown, strict=True))
    assert {
        (truth, said): count
        for truth, line in zip(told["labels"], told["confusion"], strict=True)
        for said, count in zip(told["labels"], line, strict=True)
        if count
    } == named
    assert told["coverage"] > 0, "the heads know these"


def _png(file: Path) -> bytes:
    stream = io.BytesIO()
    Picture.fromarray(read_micrograph(file).pixels).save(stream, "PNG")
    return stream.getvalue()

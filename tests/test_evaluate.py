"""Evaluation: the report has every score with its blind twin, and facts are judged as a reader would."""

from pathlib import Path

import pytest
from instruction_data import write_dataset
from students import tiny_run

from assistant.inference import Assistant
from training.evaluate import evaluate_assistant
from training.facts import agrees

TEXT = ("bleu2", "bleu4", "rouge1", "rouge2", "rougeL", "meteor_exact_stem")


def test_the_report_has_the_promised_shape(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", per_class=2)
    assistant = Assistant(tiny_run(tmp_path / "base"))
    report = evaluate_assistant(assistant, data, baselines=False)
    for task in ("caption", "vqa"):
        assert {f"{name}{suffix}" for name in TEXT for suffix in ("", "_blind")} <= report[task].keys()
    assert {"top1", "top2", "top3", "top5", "macro_f1", "ece"} <= report["classification"].keys()
    assert {"accuracy", "without_aux", "blind"} <= report["factual"].keys()
    assert report["n"]["images"] == 4
    assert report["baselines"]["vqa_bleu2_majority"] > report["vqa"]["bleu2"], "an untrained student must lose"


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

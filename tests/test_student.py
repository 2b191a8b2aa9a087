"""The whole recipe of a student on a base: words, then pictures, with facts by reference, in a few steps."""

import json
from pathlib import Path

import pytest
import torch

from assistant.checkpoint import load_run
from assistant.config import load_config
from assistant.handbook import entry_for
from assistant.inference import Assistant
from data_gen.questions.asked import questions_as_asked
from data_gen.questions.bank import wordings
from data_gen.questions.evidence import Evidence
from serve.batch.keep import keep
from tests.instruction_data import write_dataset
from training.evaluate import evaluate_assistant
from training.trainer import start_student, train

RECIPE = Path(__file__).parent.parent / "configs" / "student.yaml"
FEW = [
    "decoder.base=null",
    "decoder.quantization=nf4",
    "decoder.cross_attention_every=1",
    "training.steps=2",
    "training.language_steps=2",
    "training.alignment_steps=2",
    "training.batch_size=4",
    "training.save_every=1",
]


@pytest.mark.filterwarnings("ignore")  # PEFT 0.21 looks for the base of the bundled student
def test_the_recipe_runs_through_all_stages_and_counts_its_references(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", per_class=2)
    config = load_config(RECIPE, FEW)
    before = {name: p.clone() for name, p in start_student(config).student.named_parameters()}
    out = train(config, data, tmp_path / "run")
    run = load_run(out / "model")
    after = dict(run.student.named_parameters())
    moved = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert any("lora_B" in name for name in moved)
    assert not any(name.startswith("decoder.lm.") and "lora" not in name for name in moved)
    assert not (out / "language").exists()
    assert not (out / "alignment").exists()
    gate = run.student.grounded.blocks[0].cross_gate
    assert abs(float(gate)) > 0.5
    report = evaluate_assistant(Assistant(run), data, limit=2, baselines=False)
    assert report["references"]["n"] > 0
    assert set(report["references"]) == {"rows_right", "n", "right", "wrong", "left_out"}
    assert json.dumps(report["references"])


def evidence(split: str) -> Evidence:
    facts = {"kind": "particles", "kind_confidence": 0.9, "items": []}
    return Evidence(
        "a.png", "ab" * 32, "nanowires", "g", split, (64, 64), {"surface": "rough"}, None, 4.0, {}, facts, "", ""
    )


@pytest.mark.parametrize(("split", "half"), [("train", "train"), ("validation", "test"), ("test", "test")])
def test_pictures_held_apart_are_asked_in_wordings_held_apart(split: str, half: str) -> None:
    asked = questions_as_asked(evidence(split), seed=1, count=6)
    assert {q.text for q in asked if q.facet == "asked"} <= {w.text for w in wordings(half)}
    assert all(question.answers[0] for question in asked)
    general = entry_for(asked[-1].text)
    assert general is not None
    assert asked[-1].answers == (general.answer,)
    assert asked == questions_as_asked(evidence(split), seed=1, count=6)


def test_kept_answers_go_on_after_an_interruption(tmp_path: Path) -> None:
    out, said = tmp_path / "kept.jsonl", []

    def answer(question: str) -> str:
        said.append(question)
        return f"About {question}"

    assert keep(["a", "b"], answer, out) == 2
    out.write_text(out.read_text() + '{"question": "c", "ans')
    assert keep(["a", "b", "c"], answer, out) == 3
    assert said == ["a", "b", "c"]
    assert [json.loads(line)["answer"] for line in out.read_text().splitlines()] == ["About a", "About b", "About c"]
    asked = {questions_as_asked(evidence("train"), seed=seed, count=1, kept=out)[-1].text for seed in range(12)}
    assert asked & {"a", "b", "c"}
    assert asked - {"a", "b", "c"}

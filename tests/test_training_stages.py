"""Stages of a training: what learns in each and what does not; answers that are scored while it trains; its logs."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from instruction_data import write_dataset
from safetensors.torch import load_file
from students import conversation, tiny_config, write_tiny_base
from test_trainer import interrupted, weights

from assistant.config import Config
from training import stages, validation
from training.data import held_out_split, load_split
from training.preflight import Preflight
from training.stages import InstructionStage, LanguageStage, planned
from training.trainer import adapter_parameters, prepare, start_student, train
from training.validation import AnswerScores

pytestmark = pytest.mark.filterwarnings("ignore:.*use_cpu.*", "ignore:.*lr_scheduler.step.*")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), splits=("train", "validation"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


def settings(base: Path, *more: str) -> Config:
    return tiny_config(base, "adapter.r_min=2", "adapter.r_max=4", "training.steps=2", *more)


def moved(run: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in run.student.named_parameters() if not torch.equal(p, before[name])}


def test_each_stage_moves_what_it_says(data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words move adapters alone; the alignment encoders and grounding, nothing of the language model."""
    config = settings(base, "training.language_steps=2", "training.alignment_steps=2", "training.learning_rate=0.01")
    seen: dict[str, set[str]] = {}

    def watched(name: str, learn: Any) -> Any:
        def run_and_look(run: Any, *args: Any, **kwargs: Any) -> None:
            before = {name: p.detach().clone() for name, p in run.student.named_parameters()}
            learn(run, *args, **kwargs)
            seen[name] = moved(run, before)

        return run_and_look

    from training import trainer

    for name in ("learn_words", "align"):
        monkeypatch.setattr(trainer, name, watched(name, getattr(trainer, name)))
    told: list[Preflight] = []
    out = train(config, data, tmp_path / "run", device="cpu", told=told.append)
    assert seen["learn_words"]
    assert all(".lora_B." in name for name in seen["learn_words"])
    assert any(name.startswith(("matching", "grounded")) for name in seen["align"])
    assert any(name.startswith("hnf.") for name in seen["align"])
    assert not any(name.startswith("decoder.") for name in seen["align"])
    assert [one["stage"] for one in told[0].stages] == ["language", "alignment", "instruction", "heads"]
    assert not [name for name in ("language", "alignment", "checkpoints") if (out / name).exists()]
    assert "| alignment | 2 | itm |" in (out / "README.md").read_text()


def test_words_computed_by_like_length_are_those_of_the_whole_batch(base: Path) -> None:
    """Loss and gradients; seen failing with every part divided by its own answers."""
    run = start_student(settings(base), device="cpu")
    said = [conversation("word " * count, answer="yes " * (count % 5 + 1)) for count in (40, 3, 17, 1, 25)]
    batch = run.processor(said)
    adapter = adapter_parameters(run.student.decoder.lm)
    for parameter in adapter:
        torch.nn.init.normal_(parameter, std=0.02)
    stage = LanguageStage(run.student).train()

    def learned(words: dict[str, torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
        loss = stage(**words)["loss"]
        return float(loss.detach()), [grad.clone() for grad in torch.autograd.grad(loss, adapter)]

    loss, gradients = learned(batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "ALIKE", len(said))
        whole, expected = learned(batch)
    assert loss == pytest.approx(whole, rel=1e-5)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_stages_that_are_not_asked_for_are_not_planned(base: Path) -> None:
    assert [one["stage"] for one in planned(settings(base))] == ["instruction", "heads"]
    assert planned(settings(base, "loss.itm=0", "loss.itc=1"))[0]["losses"] == ["lm", "itc"]


def test_a_run_that_is_killed_in_any_stage_ends_bit_identical(data: Path, base: Path, tmp_path: Path) -> None:
    config = settings(base, "training.language_steps=2", "training.alignment_steps=2", "training.save_every=1",
                      "training.validate_every=0")  # fmt: skip
    train(config, data, tmp_path / "whole", device="cpu")
    for _ in range(3):  # each time after its first step: of the words, of the alignment, of the instructions
        interrupted(config, data, tmp_path / "torn", after=1)
        interrupted(config, data, tmp_path / "torn", after=2)
    train(config, data, tmp_path / "torn", device="cpu")
    whole, torn = weights(tmp_path / "whole"), weights(tmp_path / "torn")
    assert [name for name in whole if not torch.equal(whole[name], torn[name])] == []


# ---------------------------------------------------------------------------------- scores while it trains


def test_scoring_answers_changes_no_bit_of_the_training(data: Path, base: Path, tmp_path: Path) -> None:
    looks = ("decoder.quantization=nf4", "training.steps=4", "training.validate_every=1")
    for name, count in (("scored", 4), ("not", 0)):
        train(settings(base, *looks, f"training.score_on={count}"), data, tmp_path / name, device="cpu")
    scored, other = weights(tmp_path / "scored"), weights(tmp_path / "not")
    assert [name for name in scored if not torch.equal(scored[name], other[name])] == []
    log = [json.loads(line) for line in (tmp_path / "scored" / "metrics.jsonl").read_text().splitlines()]
    looked = [entry for entry in log if "validation_loss" in entry]
    assert len(looked) == 4
    assert all("score_agrees" in entry for entry in looked)
    assert "agree with what is known, at the last look" in (tmp_path / "scored" / "README.md").read_text()
    assert (tmp_path / "scored" / "scores.svg").is_file()
    assert not (tmp_path / "not" / "scores.svg").exists()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("There are 12 particles.", {"score_drafted_true": 1.0, "score_shown_false": 0.0}),
        ("There are 57 particles.", {"score_drafted_true": 0.0}),
        ("I do not know.", {}),
    ],
)
def test_a_score_is_what_was_said_held_against_the_facts(
    data: Path, base: Path, monkeypatch: pytest.MonkeyPatch, answer: str, expected: dict[str, float]
) -> None:
    """The facts say 12. Fails if a made-up number counts as true, or silence as anything."""
    config = settings(base)
    run, *_ = prepare(config, load_split(data, "train"), device="cpu")
    scores = AnswerScores(held_out_split(data, "validation"), run, 3)
    assert len(scores.rows) == 3
    monkeypatch.setattr(validation, "answer_examples", lambda assistant, rows, *_, **__: [answer] * len(rows))
    stage = InstructionStage(run.student, config.loss).train()
    found = scores.measure(stage)
    assert stage.training
    assert {name: found[name] for name in expected} == expected
    if not expected:
        assert "score_drafted_true" not in found


def test_the_log_for_tensorboard_has_each_step_once(data: Path, base: Path, tmp_path: Path) -> None:
    """Resumed, too: what was logged after the checkpoint is taken back there as well."""
    pytest.importorskip("tensorboardX")
    config = settings(base, "training.tensorboard=true", "training.steps=4", "training.validate_every=1")
    interrupted(config, data, tmp_path / "run", after=3)
    train(config, data, tmp_path / "run", device="cpu")
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [(entry["step"], entry["validation_loss"]) for entry in log if "validation_loss" in entry]
    shown = scalars(tmp_path / "run" / "tensorboard", "validation/loss")
    assert [step for step, _ in shown] == [1, 2, 3, 4]
    assert [loss for _, loss in shown] == pytest.approx([loss for _, loss in expected], rel=1e-5)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Every value of a tag in the order of the file: its records are length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.iterdir()
    content, at, found = file.read_bytes(), 0, []
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + size])
        found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
        at += size + 16
    return found


# ---------------------------------------------------------------------------------- moments in 8 bits


def test_moments_in_8_bits_take_a_quarter_and_survive_a_kill(data: Path, base: Path, tmp_path: Path) -> None:
    config = settings(base, "training.moments=8bit", "training.steps=3", "training.save_every=1",
                      "training.validate_every=0", "text_encoder.dim=64")  # fmt: skip
    train(config, data, tmp_path / "whole", device="cpu")
    interrupted(config, data, tmp_path / "torn", after=2)
    newest = tmp_path / "torn" / "checkpoints" / "checkpoint-1"
    moments = {name: t for name, t in load_file(newest / "optimizer.safetensors").items() if name.endswith("state1")}
    large = [t for t in moments.values() if t.numel() > 4096]  # smaller ones stay in float32, as the library has it
    assert large
    assert {t.dtype for t in large} == {torch.uint8}
    train(config, data, tmp_path / "torn", device="cpu")
    whole, torn = weights(tmp_path / "whole"), weights(tmp_path / "torn")
    assert [name for name in whole if not torch.equal(whole[name], torn[name])] == []

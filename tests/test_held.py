"""A frozen encoder in 16 bit: half the memory, the same training step, in training and in the plan."""

from pathlib import Path

import pytest
import torch
from counting import storages
from instruction_data import write_dataset
from students import tiny_config, write_tiny_base

from assistant.checkpoint import load_run
from training.data import load_split
from training.planning.memory import plan_here
from training.stages import InstructionStage
from training.trainer import parameter_groups, prepare, train

pytestmark = pytest.mark.filterwarnings("ignore:.*use_cpu.*", "ignore:.*lr_scheduler.step.*")


def test_the_step_is_the_same_bit_for_bit_and_the_encoder_half_as_large(tmp_path: Path) -> None:
    base, data = write_tiny_base(tmp_path / "base"), write_dataset(tmp_path / "data", per_class=1)
    steps, sizes, planned = [], [], []
    for held in ("fp32", "bf16"):
        frozen = ("vit.trainable=false", "vit.dim=32", "vit.depth=3", f"training.frozen_towers={held}")
        config = tiny_config(base, *frozen, "training.precision=bf16")
        run, dataset, collator = prepare(config, load_split(data, "train"), device="cpu")
        parameter_groups(run)
        stage = InstructionStage(run.student, config.loss)
        with torch.autocast("cpu", torch.bfloat16):
            loss = stage(**collator([dataset[0]]))["loss"]
        loss.backward()
        gradients = {n: p.grad for n, p in stage.named_parameters() if p.grad is not None}
        steps.append((loss, gradients))
        sizes.append(storages(run.student.vit.parameters()))
        planned.append(plan_here(config, "cpu").parts["encoders, grounding, cross-attention"])
    assert steps[0][0] == steps[1][0]
    assert steps[0][1].keys() == steps[1][1].keys()
    assert all(torch.equal(gradient, steps[1][1][name]) for name, gradient in steps[0][1].items())
    assert sizes[1] < 0.6 * sizes[0]
    assert planned[0] - planned[1] == pytest.approx(sizes[0] - sizes[1], rel=0.15)


def test_a_run_keeps_the_encoder_it_was_trained_with_and_answers_in_float32(tmp_path: Path) -> None:
    settings = ("vit.trainable=false", "training.frozen_towers=bf16", "training.precision=bf16", "training.steps=2")
    config = tiny_config(write_tiny_base(tmp_path / "base"), *settings, "training.score_on=2")
    data = write_dataset(tmp_path / "data", per_class=1, splits=("train", "validation", "test"))
    run = train(config, data, tmp_path / "run", device="cpu")
    loaded = load_run(run, device="cpu").student.vit
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    weight = loaded.project.weight
    assert torch.equal(weight, weight.to(torch.bfloat16).float())


def test_where_training_computes_in_float32_nothing_is_rounded(tmp_path: Path) -> None:
    config = tiny_config(
        write_tiny_base(tmp_path / "base"), "vit.trainable=false", "training.frozen_towers=bf16", "training.steps=1"
    )
    run, *_ = prepare(config, load_split(write_dataset(tmp_path / "data", per_class=1), "train"), device="cpu")
    assert {weight.dtype for weight in run.student.vit.parameters()} == {torch.float32}

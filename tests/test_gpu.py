"""The parts on a CUDA GPU against the same on the processor; `make gpu` runs them, -m slow a CPU against itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from instruction_data import write_dataset
from students import conversation, open_gates, picture, tiny_config, tiny_run, write_tiny_base

from assistant.hnf import HNF
from assistant.inference import Assistant
from training.trainer import train

pytestmark = pytest.mark.filterwarnings("ignore:.*use_cpu.*", "ignore:.*lr_scheduler.step.*")
on_each_device = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)


@on_each_device
def test_hnf_sees_the_same(device: str) -> None:
    """States and gradients, in float32."""
    torch.manual_seed(0)
    mine = HNF(64, (16, 32), 32, steps=2)
    there = copy.deepcopy(mine).to(device)
    pixels = torch.rand(2, 1, 64, 64)
    states = []
    for model, seen in ((mine, pixels), (there, pixels.to(device))):
        found = model(seen)
        (found.scales.sum() + found.tokens.sum()).backward()
        states.append(found.scales.detach().cpu())
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4)
    for ours, its in zip(mine.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(its.grad.cpu(), ours.grad, rtol=1e-2, atol=1e-3)


@on_each_device
def test_the_student_predicts_the_same(device: str, tmp_path: Path) -> None:
    """Encoders, grounded text and the decoder's cross-attention together, in float32."""
    run = tiny_run(tmp_path)
    open_gates(run.student)
    batch = run.processor([conversation("What is it?", "Big.")], [[picture(0)]])
    names = ("input_ids", "attention_mask", "pixel_values", "image_mask", "question_ids", "question_mask")
    wanted = {name: batch[name] for name in (*names, "turn_images", "image_index", "turn_index")}
    with torch.no_grad():
        mine = run.student(**wanted).logits
        student = run.student.float().to(device)
        its = student(**{name: tensor.to(device) for name, tensor in wanted.items()}).logits.cpu()
    torch.testing.assert_close(its, mine, rtol=1e-2, atol=1e-3)


@on_each_device
def test_a_training_goes_on_and_its_run_answers(device: str, tmp_path: Path) -> None:
    """NF4, dynamic ranks, a stop between two checkpoints: the end is that of a run nobody stopped, but for rounding."""
    data = write_dataset(tmp_path / "data", splits=("train", "validation"))
    overrides = ("decoder.quantization=nf4", "adapter.r_min=2", "adapter.r_max=4", "training.steps=6")
    config = tiny_config(write_tiny_base(tmp_path / "base"), *overrides)

    def stop(done: int, total: int, text: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, data, tmp_path / "torn", device=device, progress=stop)
    for name in ("torn", "whole"):
        train(config, data, tmp_path / name, device=device)
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("torn", "whole")]
    torn, whole = ([json.loads(line) for line in lines] for lines in logs)
    assert [entry["step"] for entry in torn] == [entry["step"] for entry in whole]
    for mine, its in zip(torn, whole, strict=True):
        name = "loss" if "loss" in mine else "validation_loss"
        assert mine[name] == pytest.approx(its[name], rel=0.02)
    assistant = Assistant.load(tmp_path / "torn", device)
    assert assistant.student.device.type == device
    shown = assistant.blind_look()
    assert isinstance(assistant.complete([conversation("What is it?", "")][:1], [[shown]], max_new_tokens=4)[0], str)

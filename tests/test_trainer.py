"""Training: what should move moves, what is frozen stays, and an interrupted run ends as an uninterrupted one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from instruction_data import write_dataset
from safetensors.torch import load_file
from students import tiny_config, tiny_run, write_tiny_base

from assistant.checkpoint import attach_adapter
from assistant.config import Config
from assistant.errors import DatasetError, RunError
from training.data import Collator, Conversations, augment, counter_generator, load_split
from training.stages import InstructionStage, PretrainStage, VisionStage
from training.trainer import checkpoints, newest_checkpoint, parameter_groups, train

pytestmark = pytest.mark.filterwarnings("ignore:.*use_cpu.*", "ignore:.*lr_scheduler.step.*")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


def settings(base: Path, *more: str) -> Config:
    return tiny_config(base, "decoder.quantization=nf4", "adapter.r_min=2", "adapter.r_max=4", *more)


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = [run / "model" / "student.safetensors", run / "model" / "adapter" / "adapter_model.safetensors"]
    return {f"{file.parent.name}/{name}": t for file in files for name, t in load_file(file).items()}


def stop_at(step: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, text: str) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_run_ends_bit_identical(data: Path, base: Path, tmp_path: Path) -> None:
    """Augmentation, turns, dropout of the facts, ranks and held moments must all depend on the step alone."""
    train(settings(base), data, tmp_path / "whole")
    for step in (1, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            train(settings(base), data, tmp_path / "torn", progress=stop_at(step))
    train(settings(base), data, tmp_path / "torn")
    whole, torn = weights(tmp_path / "whole"), weights(tmp_path / "torn")
    assert whole.keys() == torn.keys()
    assert [name for name in whole if not torch.equal(whole[name], torn[name])] == []


def test_a_damaged_checkpoint_is_passed_over(data: Path, base: Path, tmp_path: Path) -> None:
    """The stock trainer trusts the newest directory and can never resume from a half-written one."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(settings(base), data, out, progress=stop_at(5))
    newest = checkpoints(out / "checkpoints")[-1]
    (newest / "optimizer.pt").write_bytes(b"torn")
    assert newest_checkpoint(out / "checkpoints") == checkpoints(out / "checkpoints")[-2]
    train(settings(base), data, out)
    train(settings(base), data, tmp_path / "whole")
    whole, torn = weights(tmp_path / "whole"), weights(out)
    assert all(torch.equal(whole[name], torn[name]) for name in whole)


def test_frozen_stays_and_trained_moves(data: Path, base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "start")
    attach_adapter(run.student, settings(base).adapter)
    train(settings(base, "training.steps=2"), data, tmp_path / "run")
    trained = weights(tmp_path / "run")
    assert any("lora_B" in name and t.abs().sum() > 0 for name, t in trained.items())
    base_files = [tmp_path / "run" / "model" / "base" / "model.safetensors", base / "model.safetensors"]
    before, after = (load_file(file) for file in base_files)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_is_bound_to_its_settings_and_data(data: Path, base: Path, tmp_path: Path) -> None:
    train(settings(base, "training.steps=1"), data, tmp_path / "run")
    with pytest.raises(RunError, match="other_run"):
        train(settings(base, "training.steps=2"), data, tmp_path / "run")


def test_the_log_has_every_loss(data: Path, base: Path, tmp_path: Path) -> None:
    train(settings(base, "training.steps=10"), data, tmp_path / "run")
    entry = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"step", "loss", "lm", "itm", "learning_rate"} <= entry.keys()


@pytest.mark.parametrize("kind", ["instruction", "vision", "pretrain"])
def test_the_loss_falls_on_one_batch(data: Path, tmp_path: Path, kind: str) -> None:
    run = tiny_run(tmp_path)
    run.student.requires_grad_(True)
    examples = load_split(data, "train")
    dataset = Conversations(examples, image_size=32, settings=run.config.training, seed=0)
    collator = Collator(run.processor, max_tokens=200, labels=["nanowires", "powder"])
    batch = collator([dataset[i] for i in range(4)])
    stage = {
        "instruction": lambda: InstructionStage(run.student, run.config.loss),
        "vision": lambda: VisionStage(run.student, 2),
        "pretrain": lambda: PretrainStage(run.student, run.config.loss, 2),
    }[kind]()
    optimizer = torch.optim.AdamW(stage.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = stage(**batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_parameter_groups_leave_the_language_model_frozen(base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    attach_adapter(run.student, settings(base).adapter)
    groups = parameter_groups(run)
    grouped = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    trainable = {name for name, p in run.student.named_parameters() if p.requires_grad}
    assert len(trainable) == len(grouped)
    assert all("lora_B" in name for name in trainable if name.startswith("decoder.lm."))


def test_items_depend_on_seed_epoch_and_image_alone(data: Path) -> None:
    examples = load_split(data, "train")
    make: dict[str, Any] = {"image_size": 32, "settings": tiny_config("x").training, "seed": 3}
    one, other = Conversations(examples, **make), Conversations(list(reversed(examples)), **make)
    other[0], other[3]  # a different history of draws
    for dataset in (one, other):
        dataset.set_epoch(2)
    for index in range(len(one)):
        assert one[index].conversation.messages[0].images == 1
        np.testing.assert_array_equal(one[index].images[0], other[index].images[0])
    one.set_epoch(3)
    assert any(not np.array_equal(one[i].images[0], other[i].images[0]) for i in range(len(one)))


def test_augmentation_keeps_size_range_and_place() -> None:
    image = np.zeros((64, 64), np.float32)
    image[16:48, 20:52] = 1.0
    changed = augment(image, counter_generator(0, 0, "x"))
    assert changed.shape == (64, 64)
    assert 0.0 <= changed.min() <= changed.max() <= 1.0
    assert np.corrcoef(changed.ravel(), image.ravel())[0, 1] > 0.5


def test_missing_and_torn_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no_dataset"):
        load_split(tmp_path, "train")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DatasetError, match="damaged_dataset"):
        load_split(tmp_path, "train")

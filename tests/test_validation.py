"""Validation while a student trains, the best step kept, and steps computed in parts: the same step, less memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from instruction_data import write_dataset
from safetensors.torch import load_file
from students import tiny_config, write_tiny_base
from test_trainer import interrupted, weights

from assistant.checkpoint import checkpoints
from assistant.config import Config, parse_config
from assistant.errors import ConfigError
from training.data import held_out_split, load_split
from training.stages import InstructionStage, counts_of
from training.trainer import parameter_groups, prepare, run_stage, train
from training.validation import Validation

pytestmark = pytest.mark.filterwarnings("ignore:.*use_cpu.*", "ignore:.*lr_scheduler.step.*")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), splits=("train", "validation", "test"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


def settings(base: Path, *more: str) -> Config:
    return tiny_config(base, "adapter.r_min=2", "adapter.r_max=4", *more)


def log_of(run: Path, key: str) -> dict[int, float]:
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {entry["step"]: entry[key] for entry in entries if key in entry}


# ---------------------------------------------------------------------------------- a step in parts


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_step_in_parts_is_the_step(data: Path, base: Path, tmp_path: Path, accumulate: int) -> None:
    """2 x 4 and 4 x 2 equal 1 x 8 in float64: a mean of means weighs tokens by the part they happen to be in.

    Over an epoch's end too, whose last step is smaller. The parts' answers are of different lengths.
    """
    trained = []
    for parts in (1, accumulate):
        config = settings(base, "loss.itm=0", "training.batch_size=8", "training.steps=3", "training.turns=3",
                          f"training.accumulate={parts}")  # fmt: skip
        run, dataset, collator = prepare(config, load_split(data, "train")[:15], device="cpu")
        run.student.double()

        def doubled(items: Any, collator: Any = collator) -> dict[str, torch.Tensor]:
            return {n: t.double() if t.is_floating_point() else t for n, t in collator(items).items()}

        dataset.singles = dataset.singles[:5] * 2 + dataset.singles[:1]  # 11 of them: 8, then 3
        groups = parameter_groups(run)
        stage = InstructionStage(run.student, config.loss).double()
        run_stage(stage, run, dataset, doubled, groups, tmp_path / str(parts))  # type: ignore[arg-type]
        trained.append({name: p.detach().clone() for name, p in run.student.named_parameters() if p.requires_grad})
    whole, parted = trained
    assert any("lora_B" in name and tensor.abs().sum() > 0 for name, tensor in whole.items())
    assert max(float((whole[name] - parted[name]).abs().max()) for name in whole) < 1e-6


def test_parts_weigh_every_loss_by_what_it_is_a_mean_of(data: Path, base: Path) -> None:
    """Each loss of the parts, given the counts of the whole, adds up: tokens for words, conversations for matching."""
    config = settings(base, "loss.itm.pairs=all")
    run, dataset, collator = prepare(config, load_split(data, "train"), device="cpu")
    stage = InstructionStage(run.student, config.loss).eval()
    parts = [collator([dataset[i] for i in part]) for part in ((0, 1, 2), (3,))]
    counts = torch.stack([counts_of(part) for part in parts]).sum(0)
    alone = [stage(**part) for part in parts]
    given = [stage(**part, counts=counts) for part in parts]
    answers = [counts_of(part)[0] for part in parts]
    expected = sum(n * losses["lm"] for n, losses in zip(answers, alone, strict=True)) / sum(answers)
    torch.testing.assert_close(sum(losses["lm"] for losses in given), expected)
    expected = (3 * alone[0]["itm"] + 1 * alone[1]["itm"]) / 4
    torch.testing.assert_close(sum(losses["itm"] for losses in given), expected)


def test_accumulate_divides_the_batch(base: Path) -> None:
    with pytest.raises(ConfigError, match="accumulate 3 does not divide batch_size 8"):
        settings(base, "training.batch_size=8", "training.accumulate=3")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_interrupted_in_a_later_epoch_ends_bit_identical(
    data: Path, base: Path, tmp_path: Path, accumulate: int
) -> None:
    """In the middle of an epoch, and in parts. After the first epoch it went on with that one's augmentation."""
    steps = ("training.batch_size=4", f"training.accumulate={accumulate}", "training.save_every=1", "training.steps=5")
    config = settings(base, *steps)
    train(config, data, tmp_path / "whole", device="cpu")
    for step in (3, 4):
        interrupted(config, data, tmp_path / "torn", after=step)
    train(config, data, tmp_path / "torn", device="cpu")
    whole, torn = weights(tmp_path / "whole"), weights(tmp_path / "torn")
    assert [name for name in whole if not torch.equal(whole[name], torn[name])] == []
    assert log_of(tmp_path / "whole", "validation_loss") == log_of(tmp_path / "torn", "validation_loss")
    assert len(log_of(tmp_path / "whole", "validation_loss")) == 5


# ---------------------------------------------------------------------------------- looks at the validation split


def test_a_look_changes_nothing_and_is_the_same_twice(data: Path, base: Path) -> None:
    """Random numbers, the state of the stage and its gradients stay; pictures come as they are, facts and all."""
    config = settings(base, "training.validate_on=5")
    run, _, collator = prepare(config, load_split(data, "train"), device="cpu")
    stage = InstructionStage(run.student, config.loss).train()
    validation = Validation(held_out_split(data, "validation"), config, collator)
    assert 3 <= validation.conversations <= 5
    before = torch.random.get_rng_state()
    one, other = validation.losses(stage), validation.losses(stage)
    assert one == other
    assert torch.equal(before, torch.random.get_rng_state())
    assert stage.training
    assert {"loss", "lm", "itm"} <= one.keys()


def test_training_is_the_same_with_and_without_looks(data: Path, base: Path, tmp_path: Path) -> None:
    """Up to the step that is kept."""
    looking, blind = ("training.validate_every=1", "training.patience=0"), ("training.validate_every=0",)
    for name, more in (("looking", looking), ("blind", blind)):
        config = settings(base, "training.steps=4", *more)
        interrupted(config, data, tmp_path / name, after=3)
    newest = [checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("looking", "blind")]
    one, other = (load_file(folder.with_name("checkpoint-2") / "stage.safetensors") for folder in newest)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_model_is_the_best_step(data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four looks the second is best: its weights are the model, its checkpoint outlives the newest two."""
    told = iter([3.0, 1.0, 2.0, 2.5, 2.6, 2.7])
    monkeypatch.setattr(Validation, "losses", lambda self, stage: {"loss": next(told)})
    kept: list[list[str]] = []
    config = settings(base, "training.validate_every=1", "training.save_every=1", "training.steps=6")
    out = tmp_path / "run"

    def seen(done: int, total: int, text: str) -> None:
        kept.append([path.name for path in checkpoints(out / "checkpoints")])

    best: dict[str, torch.Tensor] = {}

    def remember(done: int, total: int, text: str) -> None:
        seen(done, total, text)
        if done == 3:
            best.update(load_file(out / "checkpoints" / "checkpoint-2" / "student.safetensors"))

    train(config, data, out, device="cpu", progress=remember)
    assert kept[-1] == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    model = load_file(out / "model" / "student.safetensors")
    assert all(torch.equal(model[name], best[name]) for name in best)
    record = json.loads((out / "run.json").read_text())
    assert record["kept"] == {"step": 2, "steps": 6, "validation_loss": 1.0}
    card = (out / "README.md").read_text()
    assert "The model is that of step 2 of 6, with the lowest validation loss, 1.0000." in card
    assert "| validation | 24 | 8 | 8 |" in card
    assert "<polyline" in (out / "loss.svg").read_text()


def test_patience_ends_a_training_and_the_end_survives_a_kill(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two looks without a better one end it at step 4 of 6; killed before its model, it takes no further step."""
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}
    looks: list[float] = []

    def look(self: Validation, stage: Any) -> dict[str, float]:
        looks.append(losses[len(looks) + 1])
        return {"loss": looks[-1]}

    monkeypatch.setattr(Validation, "losses", look)
    config = settings(base, "training.validate_every=1", "training.steps=6", "training.patience=2")
    with monkeypatch.context() as killed:
        killed.setattr("training.trainer.save_model", None)
        with pytest.raises(TypeError):
            train(config, data, tmp_path / "run", device="cpu")
    assert len(looks) == 4
    steps: list[int] = []
    train(config, data, tmp_path / "run", device="cpu", progress=lambda done, total, text: steps.append(done))
    assert steps == []
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["kept"] == {"step": 2, "steps": 4, "validation_loss": 1.0}
    assert "Training ended before step 6" in (tmp_path / "run" / "README.md").read_text()


def test_a_run_of_a_version_without_these_settings_goes_on(data: Path, base: Path, tmp_path: Path) -> None:
    """What its record lacks stands at its default."""
    import yaml

    config = settings(base)
    interrupted(config, data, tmp_path / "run", after=3)
    file = tmp_path / "run" / "run.json"
    record = json.loads(file.read_text())
    tree = yaml.safe_load(record["config"])
    for name in ("accumulate", "validate_every", "validate_on", "patience"):
        del tree["training"][name]
    assert parse_config(tree, origin="test") == config
    del record["processes"]
    file.write_text(json.dumps(record | {"config": yaml.safe_dump(tree, sort_keys=False)}))
    assert (train(config, data, tmp_path / "run", device="cpu") / "model").is_dir()

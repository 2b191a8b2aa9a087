"""Training: what should move moves, what is frozen stays, and an interrupted run ends as an uninterrupted one."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from instruction_data import write_dataset
from safetensors.torch import load_file, save_file
from students import tiny_config, tiny_run, write_tiny_base

from assistant import precision
from assistant.checkpoint import attach_adapter, checkpoints, newest_checkpoint
from assistant.config import Config
from assistant.errors import DatasetError, RunError, Stopped
from training.data import Collator, TrainingSet, augment, counter_generator, load_split
from training.stages import InstructionStage, PretrainStage, VisionStage
from training.trainer import parameter_groups, train

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


def interrupted(config: Config, data: Path, out: Path, *, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, data, out, device="cpu", progress=stop_at(after))


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
    (newest / "optimizer.safetensors").write_bytes(b"torn")
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
    dataset = TrainingSet(examples, image_size=32, settings=run.config.training, seed=0)
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
    one, other = TrainingSet(examples, **make), TrainingSet(list(reversed(examples)), **make)
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


# ---------------------------------------------------------------------------------- runs that go wrong


def poisoned(monkeypatch: pytest.MonkeyPatch, step: int, value: float = float("nan")) -> None:
    """Every loss from a step on is multiplied by `value`."""
    forward = InstructionStage.forward
    seen = {"steps": 0}

    def call(self: InstructionStage, **batch: Any) -> dict[str, torch.Tensor]:
        losses = forward(self, **batch)
        seen["steps"] += 1
        return losses if seen["steps"] < step else losses | {"loss": losses["loss"] * value}

    monkeypatch.setattr(InstructionStage, "forward", call)


@pytest.mark.parametrize(
    "step", [1, pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(6, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("matching", [1.0, 0.0])
def test_a_loss_that_is_not_finite_ends_the_run_and_saves_nothing(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, matching: float
) -> None:
    """Before, step 4 of 6 was saved with NaN, and the run was lost for ever, or delivered as a success."""
    config = settings(base, f"loss.itm.weight={matching}")
    with monkeypatch.context() as broken:
        poisoned(broken, step)
        for _ in range(2):  # the same command again says the same
            with pytest.raises(RunError, match=r"diverged: the loss of step \d is nan"):
                train(config, data, tmp_path / "run", device="cpu")
            broken.undo()
            poisoned(broken, 1)
    saved = [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")]
    assert saved == [f"checkpoint-{n}" for n in range(2, step, 2)]
    assert not (tmp_path / "run" / "model").exists()
    if saved:  # another run, of other settings, goes on from it
        start = tmp_path / "run" / "checkpoints" / saved[-1]
        other = settings(base, f"init={start}", "training.steps=1", "training.learning_rate=1e-4")
        assert (train(other, data, tmp_path / "other", device="cpu") / "model").is_dir()
    train(config, data, tmp_path / "run", device="cpu")  # and without the fault this one ends
    for name, tensor in load_file(tmp_path / "run" / "model" / "student.safetensors").items():
        assert torch.isfinite(tensor).all(), name


def test_weights_that_are_not_finite_are_never_saved(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient can be NaN where the loss is not: the step that spoils the weights must not reach the disk."""

    def spoil(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> None:
        self.param_groups[0]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    with pytest.raises(RunError, match="diverged"):
        train(settings(base, "training.save_every=1"), data, tmp_path / "run", device="cpu")
    assert checkpoints(tmp_path / "run" / "checkpoints") == []


@pytest.mark.parametrize("place", ["gradient", "similarity", "inputs"])
def test_what_is_not_finite_before_the_loss_is_named_too(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A gradient spoils the weights behind a sound loss; a similarity the draw of negatives before there is one."""
    from assistant.model import MaemiForConditionalGeneration

    def spoiled(self: Any, pixels: torch.Tensor) -> Any:
        states = encode(self, pixels * (float("nan") if place == "inputs" else 1.0))
        if place == "similarity":
            states.cls[:] = float("inf")
        if place == "gradient":
            states.memory.register_hook(lambda gradient: gradient * float("nan"))
        return states

    encode = MaemiForConditionalGeneration.encode_images
    with monkeypatch.context() as broken:
        broken.setattr(MaemiForConditionalGeneration, "encode_images", spoiled)
        with pytest.raises(RunError, match=r"diverged: the (loss|gradient) of step 1 is nan"):
            train(settings(base, "training.save_every=1"), data, tmp_path / "run", device="cpu")
    assert checkpoints(tmp_path / "run" / "checkpoints") == []


def test_a_base_that_a_run_only_names_is_part_of_it(data: Path, base: Path, tmp_path: Path) -> None:
    """A run that starts from another run is bound to the language model that one names, where it does not travel."""
    import shutil

    from test_checkpoint import sign

    mine = Path(shutil.copytree(base, tmp_path / "base"))
    train(settings(mine, "training.steps=1"), data, tmp_path / "first", device="cpu")
    shutil.rmtree(tmp_path / "first" / "model" / "base")
    sign(tmp_path / "first" / "model")
    config = settings(mine, f"init={tmp_path / 'first'}")
    interrupted(config, data, tmp_path / "second", after=3)
    weights = mine / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"other_run: .*model\.safetensors has changed"):
        train(config, data, tmp_path / "second", device="cpu")


def test_base_weights_are_hashed_once(data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have gigabytes; a file that looks as it did is not read again."""
    interrupted(settings(base), data, tmp_path / "run", after=1)
    monkeypatch.setattr("training.claim.fingerprint", None)
    interrupted(settings(base), data, tmp_path / "run", after=1)


def test_other_base_weights_are_another_run(data: Path, base: Path, tmp_path: Path) -> None:
    """Weights changed in place between kill and resume went unnoticed."""
    import shutil

    mine = Path(shutil.copytree(base, tmp_path / "base"))
    config = settings(mine)
    interrupted(config, data, tmp_path / "run", after=3)
    weights = mine / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunError, match=r"other_run: .* of other base weights"):
        train(config, data, tmp_path / "run", device="cpu")


def test_a_checkpoint_holds_no_pickle(data: Path, base: Path, tmp_path: Path) -> None:
    interrupted(settings(base), data, tmp_path / "run", after=3)
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    kinds = {path.suffix for path in newest.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".yaml", ".safetensors", ".jinja"}


def test_a_checkpoint_with_a_pickle_is_passed_over(data: Path, base: Path, tmp_path: Path) -> None:
    """What an older version wrote, or somebody put there, is not read."""
    from test_checkpoint import sign

    interrupted(settings(base), data, tmp_path / "run", after=5)
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    (newest / "optimizer.pt").write_bytes(b"\x80\x04")
    sign(newest)
    assert newest_checkpoint(newest.parent) == newest.with_name("checkpoint-2")


@pytest.mark.parametrize(
    "file", ["optimizer.safetensors", "training_state.json", "trainer_state.json", "stage.safetensors"]
)
def test_a_checkpoint_that_fits_its_manifest_and_nothing_else_is_named(
    data: Path, base: Path, tmp_path: Path, file: str
) -> None:
    from test_checkpoint import sign

    interrupted(settings(base), data, tmp_path / "run", after=3)
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    if file.endswith(".json"):
        (newest / file).write_text('{"odd": 1}')
    else:
        save_file({"odd": torch.zeros(1)}, newest / file)
    sign(newest)
    with pytest.raises(RunError, match=r"damaged_run: .*checkpoint-2"):
        train(settings(base), data, tmp_path / "run", device="cpu")


def test_a_run_that_only_lacks_its_model_takes_no_further_step(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its last checkpoint and its model; and once the model is there, checkpoints go."""
    out = tmp_path / "run"
    with monkeypatch.context() as killed:
        killed.setattr("training.trainer.save_model", stop_at(0))
        with pytest.raises(TypeError):
            train(settings(base), data, out, device="cpu")
    steps: list[int] = []
    train(settings(base), data, out, device="cpu", progress=lambda done, total, text: steps.append(done))
    assert steps == []
    (out / "checkpoints" / "checkpoint-6").mkdir(parents=True)
    train(settings(base), data, out, device="cpu")
    assert not (out / "checkpoints").exists()


def test_the_log_holds_every_step_once(data: Path, base: Path, tmp_path: Path) -> None:
    """Lines behind the checkpoint that training goes on from are taken back, and one that a kill has cut."""
    log = tmp_path / "run" / "metrics.jsonl"
    config = settings(base, "training.steps=12", "training.save_every=4")
    interrupted(config, data, tmp_path / "run", after=11)
    assert log.read_text().startswith('{"step": 10')
    log.write_text(log.read_text() + '{"step": 11, "lo')
    train(config, data, tmp_path / "run", device="cpu")
    (entry,) = map(json.loads, log.read_text().splitlines())
    assert entry["step"] == 10
    assert 0 < entry["step_s"] < 60


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_at_hand(
    data: Path, base: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """SIGTERM lost everything since the last checkpoint; now the step at hand is saved, and the end is the same."""
    config = settings(base, "training.save_every=100")

    def stop(done: int, total: int, text: str) -> None:
        if done == 2:
            signal.raise_signal(number)

    with pytest.raises(Stopped) as stopped:
        train(config, data, tmp_path / "run", device="cpu", progress=stop)
    assert stopped.value.exit_code == status
    saved = [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")]
    assert saved in (["checkpoint-2"], ["checkpoint-3"])
    train(config, data, tmp_path / "run", device="cpu")
    train(config, data, tmp_path / "whole", device="cpu")
    ended, whole = (load_file(tmp_path / name / "model" / "student.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ended[name], whole[name]) for name in whole)


def test_precision_is_decided_once(data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that began in float32 goes on in float32 on a processor that is made for bfloat16."""
    config = settings(base, "training.precision=auto")
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset())
    interrupted(config, data, tmp_path / "run", after=3)
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset({"amx_bf16"}))
    train(config, data, tmp_path / "run", device="cpu")
    assert "precision: fp32" in (tmp_path / "run" / "model" / "config.yaml").read_text()


@pytest.mark.parametrize("said", ["os", "safetensors", "torch"])
def test_a_full_disk_is_said_so(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """Whatever library meets it, and the same command goes on once there is space."""
    import errno

    from training import trainer

    def full(*args: Any) -> None:
        if said == "os":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise RuntimeError("[enforce fail] No space left on device" if said == "torch" else "I/O error (os error 28)")

    with monkeypatch.context() as broken:
        broken.setattr(trainer, "save_training_state", full)
        with pytest.raises(RunError, match="disk_full"):
            train(settings(base), data, tmp_path / "run", device="cpu")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert (train(settings(base), data, tmp_path / "run", device="cpu") / "model").is_dir()

"""A run between two ends, and one without its adapter: the ends bit for bit, the middle in closed form, no loss."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from instruction_data import write_dataset
from safetensors.torch import load_file
from students import tiny_config, write_tiny_base
from transformers import AutoModelForCausalLM

from assistant.adapters import AdapterError
from assistant.bases import Base
from assistant.chat import Conversation, Message
from assistant.checkpoint import Run, load_run, save_model
from assistant.errors import ConfigError, DatasetError, RunError
from training import merge
from training.merge import choose, fold, interpolate, line_between
from training.trainer import start_student, train

pytestmark = pytest.mark.filterwarnings("ignore:.*use_cpu.*", "ignore:.*lr_scheduler.step.*")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), per_class=2, splits=("train", "validation", "test"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and one that went on from it."""
    folder = tmp_path_factory.mktemp("runs")
    base = write_tiny_base(folder / "base")
    rates = ("adapter.r_max=4", "training.steps=2", "training.learning_rate=0.05", "training.validate_every=0")
    first = train(tiny_config(base, *rates), data, folder / "first", device="cpu")
    return first, train(tiny_config(base, *rates, f"init={first}"), data, folder / "second", device="cpu")


@pytest.fixture(autouse=True)
def few_general_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "GENERAL", 4)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    model = run / "model"
    return load_file(model / "student.safetensors") | load_file(model / "adapter" / "adapter_model.safetensors")


def asked(run: Run) -> dict[str, torch.Tensor]:
    talk = Conversation((Message("user", "And the surface?"), Message("assistant", "Yes, it is rough.")))
    return run.processor([talk])


def logits(run: Run) -> torch.Tensor:
    batch = asked(run)
    places = {name: batch[name] for name in ("image_index", "turn_index", "attention_mask")}
    with torch.no_grad():
        found: torch.Tensor = run.student.decoder(batch["input_ids"], context=None, **places).logits
    return found


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


# ---------------------------------------------------------------------------------- between the ends


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_are_start_and_run_bit_for_bit(
    runs: tuple[Path, Path], data: Path, tmp_path: Path, share: float
) -> None:
    start, run = runs
    assert differing(tensors(start), tensors(run)), "the run has learned something"
    interpolate(run, data, tmp_path / "out", share=share, shares=(), limit=1, device="cpu")
    assert differing(tensors(tmp_path / "out"), tensors(run if share else start)) == []


def test_between_them_every_tensor_lies_on_the_line_and_so_does_what_the_adapter_adds(
    runs: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    """Factors of a LoRA whose A learns would add share^2 and cross terms to the product."""
    start, run = runs
    out = tmp_path / "out"
    interpolate(run, data, out, share=0.25, shares=(), limit=1, device="cpu")
    first, last, between = tensors(start), tensors(run), tensors(out)
    for name, tensor in between.items():
        torch.testing.assert_close(tensor, 0.75 * first[name] + 0.25 * last[name], rtol=1e-5, atol=1e-7)
    ends = [load_run(path, device="cpu").student.decoder.lm for path in (start, out, run)]
    layers = [lm.get_submodule("base_model.model.model.layers.0.mlp.down_proj") for lm in ends]
    for rank in (2, 4):
        added = []
        for layer in layers:
            layer.current_rank = rank
            added.append(layer.get_delta_weight("default"))
        assert (added[0] - added[2]).abs().max() > 1e-3
        torch.testing.assert_close(added[1], 0.75 * added[0] + 0.25 * added[2], rtol=1e-4, atol=1e-6)


def test_what_is_written_says_where_it_comes_from_and_how_every_share_scored(
    runs: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    start, run = runs
    found = interpolate(run, data, tmp_path / "out", share=0.7, shares=(0.5,), limit=1, device="cpu")
    told = json.loads((tmp_path / "out" / "run.json").read_text())["merge"]
    assert told | {"out": found["out"]} == found
    assert [row["share"] for row in told["scores"]] == [0.0, 0.5, 0.7, 1.0]
    assert told["scores"][0]["general_kept"] == 1.0, "what it started from forgets nothing"
    assert all({"general_loss", "agrees"} <= row.keys() for row in told["scores"])
    assert told["start"]["path"] == str(start / "model")
    assert told["run"]["path"] == str(run / "model")
    assert "0.7" in (tmp_path / "out" / "model" / "README.md").read_text()
    with pytest.raises(RunError, match="other_run"):
        interpolate(run, data, tmp_path / "out", share=0.7, device="cpu")


def test_a_fresh_start_is_drawn_again_and_a_named_one_must_be_the_right_one(
    runs: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    first, second = runs
    interpolate(first, data, tmp_path / "fresh", share=0.0, shares=(), limit=1, device="cpu")
    fresh = tensors(tmp_path / "fresh")
    assert all(not tensor.any() for name, tensor in fresh.items() if "lora_B" in name)
    torch.manual_seed(99)
    stranger = start_student(load_run(first, device="cpu").config, device="cpu")
    for name, weight in stranger.student.named_parameters():
        if ".lora_B." in name:
            weight.data.normal_()
    save_model(stranger, tmp_path / "stranger")
    with pytest.raises(RunError, match="other_start"):
        interpolate(second, data, tmp_path / "out", start=tmp_path / "stranger", share=0.5, device="cpu")
    run = load_run(second, device="cpu")
    save_model(replace(run, config=run.config.model_copy(update={"init": "nowhere"})), tmp_path / "moved")
    with pytest.raises(RunError, match=r"other_start.*--start"):
        interpolate(tmp_path / "moved", data, tmp_path / "out", share=0.5, device="cpu")
    interpolate(tmp_path / "moved", data, tmp_path / "named", start=first, share=0.0, shares=(), limit=1, device="cpu")
    assert differing(tensors(tmp_path / "named"), tensors(first)) == []


def test_the_share_that_forgets_least_among_those_as_good_is_chosen() -> None:
    def row(share: float, agrees: float, kept: float) -> dict[str, float]:
        return {"share": share, "agrees": agrees, "general_kept": kept}

    table = [row(0.0, 0.2, 1.0), row(0.5, 0.79, 0.9), row(0.75, 0.8, 0.9), row(1.0, 0.8, 0.7)]
    assert choose(table)[0] == 0.5
    assert choose([*table, row(0.9, 0.9, 0.8)])[0] == 0.9, "a better one shuts out what is worse than it"
    with pytest.raises(DatasetError, match="nothing_known"):
        choose([{"share": 1.0, "general_kept": 1.0}])


def test_shares_and_data_that_cannot_be_used_are_named(runs: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bad_share"):
        interpolate(runs[1], data, tmp_path / "out", share=1.5, device="cpu")
    bare = write_dataset(tmp_path / "bare", per_class=1, splits=("train", "test"))
    with pytest.raises(DatasetError, match="no_validation"):
        interpolate(runs[1], bare, tmp_path / "out", share=0.5, device="cpu")


# ---------------------------------------------------------------------------------- into the base


def trained(tmp_path: Path, quantization: str, kind: str = "dyqlora_fa") -> tuple[Path, Run]:
    """A run whose adapter does much: B is drawn, not learned."""
    config = tiny_config(
        write_tiny_base(tmp_path / "base"), f"decoder.quantization={quantization}", f"adapter.kind={kind}"
    )
    run = start_student(config, device="cpu")
    torch.manual_seed(3)
    for name, weight in run.student.named_parameters():
        if ".lora_B." in name:
            weight.data.normal_(std=0.05)
    save_model(run, tmp_path / "run")
    return tmp_path / "run", load_run(tmp_path / "run", device="cpu")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_merged_model_says_what_the_adapted_one_says(data: Path, tmp_path: Path, quantization: str) -> None:
    """Against the base as the adapter was trained on it: a base of 4 bits is not exchanged for another."""
    path, adapted = trained(tmp_path, quantization)
    fold(path, data, tmp_path / "out", drop=1.0, limit=1, device="cpu")
    merged = load_run(tmp_path / "out", device="cpu")
    assert not hasattr(merged.student.decoder.lm, "peft_config")
    assert {t.dtype for t in load_file(tmp_path / "out" / "model" / "base" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    with adapted.student.decoder.lm.disable_adapter():
        plain = logits(adapted)
    wanted, found = logits(adapted), logits(merged)
    assert (wanted - plain).abs().max() > 0.1, "the adapter matters"
    assert (wanted - found).abs().max() < 0.02 * (wanted - plain).abs().max()
    words = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model" / "base", dtype=torch.float32)
    assert torch.equal(words(asked(merged)["input_ids"]).logits, found), "other programs read the language part alone"


def test_a_merge_that_answers_worse_is_refused_with_its_figures(
    data: Path, tmp_path: Path, maemi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = trained(tmp_path, "none")
    told: list[dict[str, Any]] = [{"agrees": 0.9, "shown_false": 0.1}, {"agrees": 0.86, "shown_false": 0.1}] * 3
    monkeypatch.setattr(merge, "scores_of", lambda run, rows: told.pop(0))
    with pytest.raises(RunError, match=r"worse.*agrees 0\.9000 -> 0\.8600"):
        fold(path, data, tmp_path / "out", drop=0.03, device="cpu")
    assert not (tmp_path / "out" / "model").exists()
    command = ("merge", "--run", path, "--data", data, "--into-base", "--out", tmp_path / "out", "--allow-drop")
    assert maemi(*command, "0.03")[0] == 2
    code, out, _ = maemi(*command, "0.05")
    assert code == 0
    assert "0.86" in out
    assert (tmp_path / "out" / "model" / "base").is_dir()


def test_experts_that_depend_on_the_token_are_not_merged(data: Path, tmp_path: Path) -> None:
    path, _ = trained(tmp_path, "none", "dya_mope")
    with pytest.raises(AdapterError, match="routed_experts"):
        fold(path, data, tmp_path / "out", limit=1, device="cpu")


def test_ends_on_different_language_models_are_refused(tmp_path: Path) -> None:
    _, one = trained(tmp_path / "one", "none")
    _, other = trained(tmp_path / "other", "none")
    assert line_between(one, other).start.keys() == line_between(one, one).run.keys()
    file = tmp_path / "other" / "run" / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(RunError, match="other_start"):
        line_between(one, replace(other, base=Base("other", file.parent)))

"""Every file in configs/ablations turns one switch of tiny.yaml, and a student with it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from instruction_data import write_dataset
from students import tiny_config, write_tiny_base

from assistant.adapters import draw_ranks, hold_inactive, precondition
from assistant.checkpoint import attach_adapter, new_run
from assistant.config import Config, load_config
from training.data import Collator, TrainingSet, load_split
from training.stages import InstructionStage
from training.trainer import parameter_groups

FILES = sorted((Path(__file__).parents[1] / "configs" / "ablations").glob("*.yaml"))
FRESH = {"init", "decoder.base"}
"""What a switch that changes shapes needs: a student from nothing."""


def settings_of(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings by dotted keys."""
    found = {}
    for key, value in tree.items():
        found |= settings_of(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ablations")
    return write_tiny_base(folder / "base"), write_dataset(folder / "data", per_class=1)


def step(config: Config, data: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss before one optimizer step, and what the step has changed."""
    torch.manual_seed(0)
    run = new_run(config, device="cpu")
    attach_adapter(run.student, config.adapter)
    lm, stage = run.student.decoder.lm, InstructionStage(run.student, config.loss).train()
    rows = TrainingSet(load_split(data, "train"), image_size=config.image_size, settings=config.training, seed=0)
    batch = Collator(run.processor, max_tokens=config.training.max_tokens)([rows[0], rows[1]])
    optimizer = torch.optim.AdamW(parameter_groups(run))
    if any(settings.precondition for settings in lm.peft_config.values()):
        precondition(lm, optimizer)
    hold_inactive(lm, optimizer)
    draw_ranks(lm, 0, 0)
    before = {name: p.detach().clone() for name, p in stage.named_parameters() if p.requires_grad}
    losses = stage(**batch)
    losses["loss"].backward()
    optimizer.step()
    changed = {name: p.detach() for name, p in stage.named_parameters() if name in before and (p != before[name]).any()}
    return losses["loss"].item(), changed


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_ablation_turns_one_switch_and_trains(file: Path, parts: tuple[Path, Path]) -> None:
    """Seen failing with a switch that no part reads: its step was that of the file it is read against."""
    tree = settings_of(yaml.safe_load(file.read_text()))
    assert load_config(file)
    kind = {"adapter.kind"} if file.stem != "experts" else set()
    switches = {key: value for key, value in tree.items() if key not in FRESH | kind}
    reference = {key: value for key, value in tree.items() if key in kind}
    if file.stem == "experts-top-2-unscaled":
        reference["adapter.top_k"] = switches.pop("adapter.top_k")
    assert len(switches) == (file.stem != "fresh")

    def trained(settings: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
        base, data = parts
        return step(tiny_config(base, *(f"{key}={value}" for key, value in settings.items())), data)

    loss, changed = trained(reference | switches)
    assert 0 < loss < 100
    assert any("lora_B" in name for name in changed)
    assert any("hnf" in name for name in changed)
    if not switches:
        return
    _, usual = trained(reference)
    assert changed.keys() != usual.keys() or any((changed[name] != usual[name]).any() for name in changed)

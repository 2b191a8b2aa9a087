"""Writes a DyQLoRA-FA adapter as a stock PEFT LoRA, for software that does not know dynamic rank."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.constants import CONFIG_NAME
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import save_file
from torch import Tensor, nn

from assistant.adapters.config import AdapterError, DynamicRankConfig
from assistant.adapters.layer import DynamicRankLayer
from assistant.adapters.rank import adapter_layers
from assistant.disk import replacing

_WEIGHTS = "adapter_model.safetensors"


def export_lora(model: nn.Module, rank: int, out_dir: Path | str, *, adapter_name: str | None = None) -> None:
    """Write the active (or named) adapter, truncated to `rank`, as a PEFT LoRA with r = rank and the same alpha.

    A DyA-MoPE of one expert without MoV is such a LoRA too.
    Raises AdapterError (a ValueError) `bad_rank`, `routed_experts`, `no_adapter` or `which_adapter`.
    """
    rank = operator.index(rank)
    tuner = next((module for module in model.modules() if isinstance(module, BaseTuner)), None)
    root = model if tuner is None else tuner.model  # inside the tuner, whose names a LoRA of that model uses
    name = adapter_name or _active_adapter(model)
    tensors: dict[str, Tensor] = {}
    for key, module in root.named_modules():
        if isinstance(module, DynamicRankLayer) and name in module.settings:
            _check_exportable(module.settings[name], name, rank)
            a = module.lora_A[name].detach().flatten(0, -2)[:rank]  # [b, d_in]
            b = module.lora_B[name].detach()
            b = (b[0] if b.dim() == 3 else b)[:, :rank]  # [d_out, b]
            tensors[f"base_model.model.{key}.lora_A.weight"] = a.cpu().contiguous()
            tensors[f"base_model.model.{key}.lora_B.weight"] = b.cpu().contiguous()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            saved = module.adapter_state_dict(name, module.state_dict())
            tensors |= {f"base_model.model.{key}.{part}": tensor for part, tensor in saved.items()}
    config, out = _lora_config(root, name, rank), Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    # Weights under their name only once they are whole, the config last: a torn export does not load.
    with replacing(out / _WEIGHTS) as partial:
        save_file(tensors, str(partial), metadata={"format": "pt"})
        # From here on what an earlier export left is not whole either.
        (out / CONFIG_NAME).unlink(missing_ok=True)
    config.save_pretrained(str(out))


def _active_adapter(model: nn.Module) -> str:
    layers = adapter_layers(model)
    if not layers:
        raise AdapterError("no_adapter", "the model has no DyQLoRA-FA layer. Load a run that was trained with one.")
    names = layers[0].active_names()
    if len(names) != 1:
        raise AdapterError("which_adapter", f"{len(names)} adapters are active. Name one by adapter_name.")
    return names[0]


def _check_exportable(config: DynamicRankConfig, name: str, rank: int) -> None:
    if config.is_routed:
        raise AdapterError(
            "routed_experts",
            f"adapter {name!r} weighs experts anew for every token; no LoRA equals it. Export a DyQLoRA-FA adapter.",
        )
    if not config.r_min <= rank <= config.r_max:
        raise AdapterError("bad_rank", f"rank {rank} is outside {config.r_min}..{config.r_max}. Choose one inside.")


def _lora_config(root: nn.Module, name: str, rank: int) -> LoraConfig:
    configs: Any = root.peft_config
    config: DynamicRankConfig = configs[name]
    alpha = float(config.alpha)
    return LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # other loaders expect an integer
        lora_dropout=0.0,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )

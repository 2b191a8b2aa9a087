"""The two adapters as PEFT tuners: which layers they take, and how PEFT's shared machinery treats them.

Knows nothing about training or files; saving, loading, switching and deleting adapters are PEFT's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NoReturn

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from torch import nn

from assistant.adapter_kinds import AdapterSettings
from assistant.adapters.config import AdapterError, DyAMoPEConfig, DynamicRankConfig, DyQLoRAFAConfig
from assistant.adapters.layer import DyAMoPELinear, DynamicRankLayer, DyQLoRAFALinear
from assistant.adapters.nf4 import prepare_nf4
from assistant.families import FAMILIES


class DynamicRankModel(BaseTuner):
    """Puts adapter layers around the linear layers of a model; subclasses name the classes of config and layer."""

    prefix = "lora_"
    tuner_layer_cls = DynamicRankLayer
    config_class: type[DynamicRankConfig]
    layer_class: type[DynamicRankLayer]

    def _prepare_adapter_config(self, peft_config: DynamicRankConfig, model_config: dict[str, Any]) -> Any:
        return peft_config  # default targets are found in `_prepare_model`, which sees the modules

    def _prepare_model(self, peft_config: DynamicRankConfig, model: nn.Module) -> None:
        prepare_nf4(model)
        if peft_config.target_modules is None:
            peft_config.target_modules = decoder_linears(model)

    def _create_and_replace(
        self,
        peft_config: DynamicRankConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target
        if not isinstance(layer, DynamicRankLayer):
            if not isinstance(target, nn.Linear):
                kind = type(target).__name__
                raise AdapterError("not_linear", f"{current_key} is a {kind}. Name linear layers in target_modules.")
            layer = self.layer_class(target, current_key)
            self._replace_module(parent, target_name, layer, target)
        elif type(layer) is not self.layer_class:
            there, wanted = type(layer).__name__, self.layer_class.__name__
            raise AdapterError(
                "mixed_kinds",
                f"{current_key} has a {there}, so it cannot take a {wanted}. Put adapters of two kinds on different "
                "modules, or delete the first.",
            )
        layer.update_layer(adapter_name, peft_config)
        BaseTunerLayer.set_adapter(layer, self.active_adapters, inference_mode=peft_config.inference_mode)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Adapters stay in the base's compute dtype: PEFT's lift to float32 doubles what a layer keeps."""

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: adapters with different A have no weighted sum of the same rank. Raises `not_combinable`."""
        raise AdapterError(
            "not_combinable", "adapters of dynamic rank cannot be combined. Combine what export_lora writes of them."
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse one adapter per row of a batch, which PEFT would drop without a word."""
        if kwargs.get("adapter_names") is not None:
            raise AdapterError(
                "mixed_batch", "adapter_names is not supported: all rows use the active adapter. Split the batch."
            )
        yield


class DyQLoRAFAModel(DynamicRankModel):
    """Tuner of peft_type DYQLORAFA."""

    config_class = DyQLoRAFAConfig
    layer_class = DyQLoRAFALinear


class DyAMoPEModel(DynamicRankModel):
    """Tuner of peft_type DYAMOPE."""

    config_class = DyAMoPEConfig
    layer_class = DyAMoPELinear

    def _prepare_model(self, peft_config: DyAMoPEConfig, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        keys = [name for name, _ in model.named_modules()]
        for mov in peft_config.mov_modules:
            named = [key for key in keys if key == mov or key.endswith(f".{mov}")]
            if not any(check_target_module_exists(peft_config, key) for key in named):
                raise AdapterError("unknown_mov", f"mov_modules: {mov!r} is no target of the adapter. Name a target.")

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        for module in self.model.modules():
            if isinstance(module, DyAMoPELinear):
                for name in module.active_names():
                    module.get_delta_weight(name)


def decoder_linears(model: nn.Module) -> list[str]:
    """Names of all linear layers inside decoder layers (q, k, v, o, gate, up, down for Llama), never the output head.

    Short names where they are unambiguous. Raises AdapterError `no_decoder_layers` for a model of no known family.
    """
    layer_classes = {family.layer_class for family in FAMILIES.values()}
    linears, stacks = set(), []
    for name, module in model.named_modules():
        if type(module).__name__ in layer_classes:
            stacks.append(f"{name}.")
        elif isinstance(module, nn.Linear | DynamicRankLayer):
            linears.add(name.removesuffix(".base_layer"))
    inside = {name for name in linears if name.startswith(tuple(stacks))}
    if not inside:
        kind = type(model).__name__
        raise AdapterError(
            "no_decoder_layers", f"{kind} has no decoder layers of a known family. Name target_modules in the config."
        )
    short = {name.rpartition(".")[2] for name in inside}
    outside = {name.rpartition(".")[2] for name in linears - inside}
    return sorted(inside if short & outside else short)


def register() -> None:
    """Make PEFT know every kind by name. Its own registration takes only names of a closed enumeration."""
    for tuner in DynamicRankModel.__subclasses__():
        name = tuner.config_class.peft_name
        PEFT_TYPE_TO_CONFIG_MAPPING[name] = tuner.config_class
        PEFT_TYPE_TO_TUNER_MAPPING[name] = tuner
        PEFT_TYPE_TO_PREFIX_MAPPING[name] = tuner.prefix


@contextmanager
def base_alone(lm: nn.Module) -> Iterator[None]:
    """The language model as it was before its adapter, for as long as this lasts; merged weights stay merged."""
    layers = [layer for layer in lm.modules() if isinstance(layer, BaseTunerLayer) and not layer.disable_adapters]
    for layer in layers:
        layer._disable_adapters = True  # PEFT's own switch walks every weight and thaws what it switches on
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def peft_config(settings: AdapterSettings) -> DynamicRankConfig:
    """The PEFT config of a kind's settings."""
    config: DynamicRankConfig = PEFT_TYPE_TO_CONFIG_MAPPING[settings.peft_name](**asdict(settings))
    return config

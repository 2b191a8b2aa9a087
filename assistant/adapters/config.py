"""The settings of both adapters as PEFT configs. Knows nothing about layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PeftConfig

from assistant.adapter_kinds import AdapterError as AdapterError
from assistant.adapter_kinds import DyAMoPESettings, DynamicRankSettings, DyQLoRAFASettings
from assistant.retired import without_retired


class PeftName(str):
    """A kind as PEFT names its own: it reads `.value` and compares with plain strings."""

    @property
    def value(self) -> str:
        return str(self)


@dataclass
class DynamicRankConfig(DynamicRankSettings, PeftConfig):
    """What both configs share: PEFT's own choice of modules beside the settings of the kind."""

    target_modules: Any = None
    """Names of linear layers, a regular expression, or "all-linear"; None takes all linears of the decoder layers."""
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    """Modules outside the adapter that are trained in full and saved with it."""

    def __post_init__(self) -> None:
        PeftConfig.__post_init__(self)
        super().__post_init__()
        self.peft_type = PeftName(self.peft_name)
        # sorted lists, so that the same settings always save as the same bytes
        self.target_modules = _names(self.target_modules)
        self.exclude_modules = _names(self.exclude_modules)

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> Any:
        """A config from what a saved adapter says. Raises AdapterError `retired` where a setting of it is no more."""
        try:
            known = without_retired("adapter", kwargs)
        except ValueError as error:
            raise AdapterError("retired", f"{error}, and train the adapter anew.") from None
        return super().from_peft_type(**known)


@dataclass
class DyQLoRAFAConfig(DyQLoRAFASettings, DynamicRankConfig):
    """DyQLoRA-FA: dynamic rank, frozen A, any base precision."""


@dataclass
class DyAMoPEConfig(DyAMoPESettings, DynamicRankConfig):
    """DyA-MoPE: E matrices B_e over one frozen A, mixed token by token by a router on z = A x."""


def _names(names: list[str] | tuple[str, ...] | set[str] | str | None) -> list[str] | str | None:
    return names if names is None or isinstance(names, str) else sorted(names)

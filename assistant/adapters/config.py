"""Settings of the two adapters, as PEFT configs. Knows nothing about layers.

DyQLoRA-FA (MAEMI, 2408.13248) joins DyLoRA (2210.07558: a rank drawn per step), LoRA-FA (2308.03303: A frozen) and
QLoRA (2305.14314: a 4-bit base). DyA-MoPE (sLAVA, 2408.15305) mixes E such adapters by a router, after MoLoRA and MoV
(2309.05444).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from peft import PeftConfig

from assistant.errors import ConfigError


class AdapterError(ConfigError, ValueError):
    """An adapter cannot do what was asked; also a ValueError, which is what callers of PEFT expect."""


class AdapterKind(str, enum.Enum):  # noqa: UP042 - PEFT reads `.value` and compares with plain strings, as with its own
    """The names under which PEFT knows the two adapters."""

    DYQLORAFA = "DYQLORAFA"
    DYAMOPE = "DYAMOPE"


@dataclass
class DynamicRankConfig(PeftConfig):
    """What both adapters share: y = base(x) + (alpha / b) B[:, :b] A[:b] x with b in r_min..r_max, A frozen."""

    r_min: int = 4
    """Smallest rank that is trained."""
    r_max: int = 16
    """Rank of the stored matrices, and the rank that is used until `set_rank` names another."""
    alpha: float = 16.0
    """A truncation at rank b is a LoRA of rank b with this alpha."""
    rslora: bool = False
    """Scale by alpha / sqrt(b) instead of alpha / b, which keeps the size of the update when b grows (2312.03732)."""
    rank_per_layer: bool = False
    """Let `draw_ranks` draw a rank for each layer instead of one for all."""
    rank_update: str = "prefix"
    """Which columns of B a step at rank b trains: "prefix" all b of them, "last" column b alone (DyLoRA's frozen mode).
    """
    z_dropout: float = 0.0
    """Dropout on z = A[:b] x. On x it would have to keep x for the backward pass, which is what freezing A avoids."""
    target_modules: list[str] | str | None = None
    """Names of linear layers, a regular expression, or "all-linear"; None takes all linears of the decoder layers."""
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    """Modules outside the adapter that are trained in full and saved with it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.r_min <= self.r_max:
            raise AdapterError(
                "bad_rank_range", f"r_min {self.r_min}, r_max {self.r_max}: need 1 <= r_min <= r_max. Correct them."
            )
        if not 0.0 <= self.z_dropout < 1.0:
            raise AdapterError("bad_dropout", f"z_dropout {self.z_dropout} is outside [0, 1). Correct it.")
        if self.rank_update not in ("prefix", "last"):
            raise AdapterError("bad_update", f"rank_update {self.rank_update!r}: write 'prefix' or 'last'.")
        # sorted lists, so that the same settings always save as the same bytes
        self.target_modules = _names(self.target_modules)
        self.exclude_modules = _names(self.exclude_modules)

    def scale(self, rank: int) -> float:
        """The factor of the adapter's product at a rank."""
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)

    def trained_columns(self, rank: int) -> slice:
        """Columns of B that a step at this rank trains."""
        return slice(rank - 1 if self.rank_update == "last" else 0, rank)


@dataclass
class DyQLoRAFAConfig(DynamicRankConfig):
    """DyQLoRA-FA: dynamic rank, frozen A, any base precision."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = AdapterKind.DYQLORAFA


@dataclass
class DyAMoPEConfig(DynamicRankConfig):
    """DyA-MoPE: E matrices B_e over one frozen A, mixed token by token by a router on z = A x."""

    experts: int = 4
    top_k: int | None = None
    """Experts a token uses; None mixes all (soft merging)."""
    renormalise: bool = True
    """Make the gates of the top k sum to 1 again. 2309.05444 does not, and its tokens then get less than one LoRA."""
    expert_dropout: float = 0.0
    """Share of experts a token goes without in training; the gates of the others sum to 1, and one always stays."""
    router_input: str = "z"
    """What the router reads: "z", all r_max numbers of A x, or "x", the layer's input, as 2309.05444 does.
    A router on x keeps x for the backward pass and so gives up the memory that freezing A saves."""
    expert_A: bool = False
    """Give each expert a frozen A of its own; its gate then reads its own projection."""
    mov_modules: tuple[str, ...] = ()
    """Targets whose output is also scaled by a mixture of vectors (MoV), for example k_proj, v_proj, up_proj.
    Their output must be kept for the backward pass, so this gives up part of the memory saved."""
    router_std: float = 0.02
    """Spread of the router's initial weights; it alone breaks the symmetry between experts that share A."""
    balance_loss: float = 0.0
    """Weight of the load-balance loss, 1 at even use (Switch Transformer, 2101.03961)."""
    z_loss: float = 0.0
    """Weight of the squared log-partition of the router (ST-MoE, 2202.08906)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = AdapterKind.DYAMOPE
        self.mov_modules = tuple(self.mov_modules)
        if self.experts < 1:
            raise AdapterError("bad_experts", f"experts {self.experts} is below 1. Correct it.")
        if not 0.0 <= self.expert_dropout < 1.0:
            raise AdapterError("bad_dropout", f"expert_dropout {self.expert_dropout} is outside [0, 1). Correct it.")
        if self.router_input not in ("z", "x"):
            raise AdapterError("bad_router", f"router_input {self.router_input!r}: write 'z' or 'x'.")
        if self.top_k is not None and not 1 <= self.top_k <= self.experts:
            raise AdapterError("bad_top_k", f"top_k {self.top_k} is outside 1..{self.experts} experts. Correct it.")

    @property
    def is_routed(self) -> bool:
        """Whether the weight that is added depends on the token, so that no single matrix can replace it."""
        return self.experts > 1 or bool(self.mov_modules)


def _names(names: list[str] | tuple[str, ...] | set[str] | str | None) -> list[str] | str | None:
    return names if names is None or isinstance(names, str) else sorted(names)

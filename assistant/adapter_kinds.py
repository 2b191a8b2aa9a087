"""The kinds of adapters: their settings, written once for YAML and for PEFT, and what they cost. Knows no layers.

A kind is a class of settings in `KINDS`, and in `assistant/adapters` a PEFT config made of it, a layer and a tuner.
DyQLoRA-FA (MAEMI, 2408.13248) joins DyLoRA (2210.07558: a rank drawn per step), LoRA-FA (2308.03303: A frozen) and
QLoRA (2305.14314: a 4-bit base). DyA-MoPE (sLAVA, 2408.15305) mixes E such adapters by a router, after MoLoRA and MoV
(2309.05444). Settings need no torch: a plan and a teacher read them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter

from assistant.errors import ConfigError
from assistant.retired import without_retired

Rank = Annotated[int, Field(gt=0, le=16_384)]
Experts = Annotated[int, Field(gt=0, le=1024)]
Weight = Annotated[float, Field(ge=0.0)]
Linears = Mapping[str, tuple[int, int]]
"""Inputs and outputs of the linear layers of one decoder layer, by name."""
SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}  # layers that read one tensor
_FP32 = 4  # bytes


class AdapterError(ConfigError, ValueError):
    """An adapter cannot do what was asked; also a ValueError, which is what callers of PEFT expect."""


@dataclass
class AdapterSettings:
    """What every kind has; as it is, the kind that adapts nothing."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    kind: ClassVar[str] = "none"
    peft_name: ClassVar[str] = ""
    """What PEFT calls the kind; empty for one that it has nothing to do with."""

    def parameters(self, linears: Linears) -> tuple[int, int]:
        """Trained and frozen parameters in one decoder layer."""
        return 0, 0

    def kept(self, linears: Linears, *, itemsize: int) -> int:
        """Bytes that one decoder layer's adapters keep per token for backward, at this many bytes a number."""
        return 0


@dataclass
class DynamicRankSettings(AdapterSettings):
    """What both adapters share: y = base(x) + (alpha / b) B[:, :b] A[:b] x with b in r_min..r_max, A frozen."""

    r_min: Rank = 4
    """Smallest rank that is trained."""
    r_max: Rank = 16
    """Rank of the stored matrices, and the rank that is used until `set_rank` names another."""
    alpha: float = 16.0
    """A truncation at rank b is a LoRA of rank b with this alpha."""
    rank_update: Literal["prefix", "last"] = "prefix"
    """Which columns of B a step at rank b trains: "prefix" all b of them, "last" column b alone (DyLoRA's frozen mode).
    """
    precondition: bool = False
    """Whether training corrects the gradient of B for the geometry of the frozen A (LoRA-FA)."""
    z_dropout: float = 0.0
    """Dropout on z = A[:b] x. On x it would have to keep x for the backward pass, which is what freezing A avoids."""
    target_modules: tuple[str, ...] | None = None
    """Names of linear layers; None takes all linear layers of the decoder layers."""

    def __post_init__(self) -> None:
        if not 1 <= self.r_min <= self.r_max:
            raise AdapterError(
                "bad_rank_range", f"r_min {self.r_min} is below 1 or larger than r_max {self.r_max}. Correct them."
            )
        if not 0.0 <= self.z_dropout < 1.0:
            raise AdapterError("bad_dropout", f"z_dropout {self.z_dropout} is outside [0, 1). Correct it.")
        if self.rank_update not in ("prefix", "last"):
            raise AdapterError("bad_update", f"rank_update {self.rank_update!r}: write 'prefix' or 'last'.")
        if self.precondition and self.rank_update == "last":
            raise AdapterError("bad_update", "precondition needs rank_update 'prefix'. Turn one of them off.")

    @property
    def is_routed(self) -> bool:
        """Whether the weight that is added depends on the token, so that no single matrix can replace it."""
        return False

    def scale(self, rank: int) -> float:
        """The factor of the adapter's product at a rank."""
        return self.alpha / rank

    def trained_columns(self, rank: int) -> slice:
        """Columns of B that a step at this rank trains."""
        return slice(rank - 1 if self.rank_update == "last" else 0, rank)

    def adapted(self, linears: Linears) -> Linears:
        """Those of the linear layers that get an adapter."""
        return {name: sizes for name, sizes in linears.items() if name in (self.target_modules or linears)}


@dataclass
class DyQLoRAFASettings(DynamicRankSettings):
    """DyQLoRA-FA: dynamic rank, frozen A, any base precision."""

    kind = "dyqlora_fa"
    peft_name = "DYQLORAFA"

    def parameters(self, linears: Linears) -> tuple[int, int]:
        """B, and A."""
        sizes = self.adapted(linears).values()
        return sum(self.r_max * d_out for _, d_out in sizes), sum(self.r_max * d_in for d_in, _ in sizes)

    def kept(self, linears: Linears, *, itemsize: int) -> int:
        """z alone."""
        return len(self.adapted(linears)) * self.r_max * itemsize


@dataclass
class DyAMoPESettings(DynamicRankSettings):
    """DyA-MoPE: E matrices B_e over one frozen A, mixed token by token by a router on z = A x."""

    kind = "dya_mope"
    peft_name = "DYAMOPE"
    experts: Experts = 4
    top_k: Experts | None = None
    """Experts a token uses; None mixes all (soft merging)."""
    renormalise: bool = True
    """Make the gates of the top k sum to 1 again. 2309.05444 does not, and its tokens then get less than one LoRA."""
    router_input: Literal["z", "x"] = "z"
    """What the router reads: "z", all r_max numbers of A x, or "x", the layer's input, as 2309.05444 does.
    A router on x keeps x for the backward pass and so gives up the memory that freezing A saves."""
    expert_A: bool = False
    """Give each expert a frozen A of its own; its gate then reads its own projection."""
    mov_modules: tuple[str, ...] = ()
    """Targets whose output is also scaled by a mixture of vectors (MoV), for example k_proj, v_proj, up_proj.
    Their output must be kept for the backward pass, so this gives up part of the memory saved."""
    balance_loss: Weight = 0.0
    """Weight of the load-balance loss, 1 at even use (Switch Transformer, 2101.03961)."""
    z_loss: Weight = 0.0
    """Weight of the squared log-partition of the router (ST-MoE, 2202.08906)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mov_modules = tuple(self.mov_modules)
        if self.experts < 1:
            raise AdapterError("bad_experts", f"experts {self.experts} is below 1. Correct it.")
        if self.router_input not in ("z", "x"):
            raise AdapterError("bad_router", f"router_input {self.router_input!r}: write 'z' or 'x'.")
        if self.top_k is not None and not 1 <= self.top_k <= self.experts:
            raise AdapterError("bad_top_k", f"top_k {self.top_k} is outside 1..{self.experts} experts. Correct it.")

    @property
    def is_routed(self) -> bool:
        return self.experts > 1 or bool(self.mov_modules)

    def parameters(self, linears: Linears) -> tuple[int, int]:
        """All B_e, routers and MoV's vectors, and A."""
        trained = frozen = 0
        for name, (d_in, d_out) in self.adapted(linears).items():
            frozen += self.r_max * d_in * (self.experts if self.expert_A else 1)
            trained += self.experts * (self.r_max * d_out + (self.r_max if self.router_input == "z" else d_in))
            trained += self.experts * d_out if name in self.mov_modules else 0
        return trained, frozen

    def kept(self, linears: Linears, *, itemsize: int) -> int:
        """z, and the gates, also in fp32.

        MoV keeps its layer's output and the mixture that scales it, a router on x each distinct input but that of
        o_proj, which attention keeps anyway.
        """
        adapted = self.adapted(linears)
        gates = self.experts * (_FP32 + (itemsize if itemsize != _FP32 else 0))
        latents = self.r_max * itemsize * (self.experts if self.expert_A else 1)
        scaled = sum(2 * itemsize * d_out for name, (_, d_out) in adapted.items() if name in self.mov_modules)
        read = {SAME_INPUT.get(name, name): itemsize * d_in for name, (d_in, _) in adapted.items() if name != "o_proj"}
        inputs = sum(read.values()) if self.router_input == "x" else 0
        return len(adapted) * (latents + gates) + scaled + inputs


KINDS: Mapping[str, type[AdapterSettings]] = MappingProxyType(
    {kind.kind: kind for kind in (DyQLoRAFASettings, DyAMoPESettings, AdapterSettings)}
)
"""The one registry: what a configuration may name, a plan count, a run hold and PEFT load."""
SETTINGS = ("kind", *dict.fromkeys(field.name for kind in KINDS.values() for field in fields(kind)))
"""Keys that some kind knows."""


def read_settings(given: Any) -> AdapterSettings:
    """The settings of a mapping whose `kind` says which; what only another kind knows is left aside.

    So a file of settings serves every kind that it is switched to. Raises ValueError, of pydantic or our own.
    """
    if isinstance(given, AdapterSettings):
        return given
    if not isinstance(given, Mapping):
        raise ValueError("write `kind: ...` and the settings of that kind")
    given = without_retired("adapter", given)
    kind = KINDS.get(str(given.get("kind", DyQLoRAFASettings.kind)))
    if kind is None:
        raise ValueError(f"kind {given['kind']!r} is none of {', '.join(KINDS)}")
    others = set(SETTINGS) - {field.name for field in fields(kind)}
    return TypeAdapter(kind).validate_python({key: value for key, value in given.items() if key not in others})


def write_settings(settings: AdapterSettings) -> dict[str, Any]:
    """What `read_settings` reads back."""
    return {"kind": settings.kind, **asdict(settings)}

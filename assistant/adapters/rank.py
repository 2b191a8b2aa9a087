"""The rank of a training step: what it is, which layers use it, what must not move outside it. Knows no files."""

from __future__ import annotations

import hashlib
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from assistant.adapters.config import AdapterError
from assistant.adapters.layer import DynamicRankLayer


def adapter_layers(model: nn.Module) -> list[DynamicRankLayer]:
    """Every adapter layer of a model, in module order."""
    return [module for module in model.modules() if isinstance(module, DynamicRankLayer)]


def rank_at(seed: int, step: int, r_min: int, r_max: int) -> int:
    """The rank of an optimizer step, uniform over r_min..r_max: a pure function of seed and step.

    No generator holds state, so a resumed run, every micro-batch and every data-parallel process draw the same.
    """
    if not 1 <= r_min <= r_max:
        raise AdapterError("bad_rank_range", f"r_min {r_min}, r_max {r_max}: need 1 <= r_min <= r_max. Correct them.")
    key = f"rank/{operator.index(seed)}/{operator.index(step)}"
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return r_min + int.from_bytes(digest, "big") % (r_max - r_min + 1)


def set_rank(model: nn.Module, rank: int | None) -> None:
    """Make every adapter layer compute with its first `rank` columns until further notice; None restores r_max.

    Set it before the forward pass and leave it until after the backward pass. Nothing changes if any layer refuses.
    Raises AdapterError (a ValueError) `bad_rank`, `merged` or `no_adapter`.
    """
    rank = None if rank is None else operator.index(rank)
    layers = _some_adapter_layers(model)
    _assign(layers, [rank] * len(layers))


def draw_ranks(model: nn.Module, seed: int, step: int) -> None:
    """Set the rank of an optimizer step, `rank_at` of its adapter's range, for all layers.

    Raises as `set_rank` does, which takes the same care.
    """
    layers = _some_adapter_layers(model)
    ranks: list[int | None] = []
    for layer in layers:
        names = layer.active_names()
        config = layer.settings[names[0]] if names else None
        ranks.append(None if config is None else rank_at(seed, step, config.r_min, config.r_max))
    _assign(layers, ranks)


def hold_inactive(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Keep columns outside the current rank exactly as they are in every later `optimizer.step()`.

    Their gradient is zero, yet momentum and weight decay would still move them. Their values and every optimizer state
    of the parameter's shape (both AdamW moments) are put back after the step. Call it once per process, before or after
    accelerate wraps the optimizer, before or after its state is loaded. Block-quantised 8-bit states are put back as
    stored; the scale of a block they share with active columns may move. A state of another shape, as Adafactor's
    means over rows, is left to the optimizer.
    """
    held: list[_Held] = []

    def remember(stepping: torch.optim.Optimizer, *_: Any) -> None:
        held[:] = _inactive_columns(model, stepping)

    def restore(stepping: torch.optim.Optimizer, *_: Any) -> None:
        for columns in held:
            columns.put_back(stepping)
        held.clear()

    inner = innermost(optimizer)
    inner.register_step_pre_hook(remember)
    inner.register_step_post_hook(restore)


class _Held(NamedTuple):
    """Columns of a parameter and of its optimizer states, as they were before a step."""

    parameter: nn.Parameter
    columns: slice
    value: Tensor
    states: dict[str, Tensor]

    @torch.no_grad()
    def put_back(self, optimizer: torch.optim.Optimizer) -> None:
        self.parameter[..., self.columns] = self.value
        for key, state in _column_states(optimizer, self.parameter).items():
            old: Tensor | int | None = self.states.get(key)
            if old is None:
                # A state that the step created has never seen these columns: it starts at zero. For bitsandbytes'
                # 8-bit `state1` that is the code nearest to zero in the book `qmap1`.
                book = optimizer.state[self.parameter].get(key.replace("state", "qmap"))
                old = book.abs().argmin() if state.dtype == torch.uint8 and book is not None else 0
            state[..., self.columns] = old


def _inactive_columns(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[_Held]:
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    held = []
    for layer in adapter_layers(model):
        for name, parameter in layer.lora_B.items():
            if id(parameter) not in stepped:
                continue
            trained = layer.trained_columns(name)
            states = _column_states(optimizer, parameter)
            for columns in (slice(0, trained.start), slice(trained.stop, parameter.shape[-1])):
                if columns.start < columns.stop:
                    copies = {key: state[..., columns].clone() for key, state in states.items()}
                    held.append(_Held(parameter, columns, parameter.detach()[..., columns].clone(), copies))
    return held


def _column_states(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    state = optimizer.state.get(parameter, {})
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape}


def innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer whose `step` does the work; wrappers such as accelerate's keep it as `optimizer`."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def _some_adapter_layers(model: nn.Module) -> list[DynamicRankLayer]:
    layers = adapter_layers(model)
    if not layers:
        raise AdapterError("no_adapter", "the model has no DyQLoRA-FA or DyA-MoPE layer. Add one by get_peft_model.")
    return layers


def _assign(layers: list[DynamicRankLayer], ranks: list[int | None]) -> None:
    """Give each layer its rank, or raise before any has changed."""
    for layer, rank in zip(layers, ranks, strict=True):
        for name in layer.active_names():
            config = layer.settings[name]
            if rank is not None and not config.r_min <= rank <= config.r_max:
                raise AdapterError(
                    "bad_rank",
                    f"rank {rank} is outside {config.r_min}..{config.r_max} of adapter {name!r}. "
                    "Choose one in that range.",
                )
        if layer.merged and layer.current_rank != rank:
            raise AdapterError("merged", f"rank {rank}: the adapter is merged at another rank. Unmerge it first.")
    for layer, rank in zip(layers, ranks, strict=True):
        layer.current_rank = rank

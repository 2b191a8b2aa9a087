"""Counting what autograd keeps: the measure the memory plan and the adapters are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def storages(tensors: Sequence[Tensor]) -> int:
    """Bytes of distinct storages behind tensors."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def kept_tensors(model: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """What autograd keeps while `run` goes forward, the model's own tensors left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = run()
    del output
    return kept


def kept_for_backward(model: nn.Module, run: Callable[[], object]) -> int:
    """Bytes of `kept_tensors`."""
    return storages(kept_tensors(model, run))

"""RMSNorm and SwiGLU of a Llama that give the same numbers and keep less for backward. Knows nothing about adapters.

Letters: T tokens, D width, F inner width of the feed-forward.

Beside frozen linear layers, which keep nothing, these two are most of what a decoder layer keeps: an fp32 copy of both
norms' inputs, and silu(gate) beside gate and up. Here a norm keeps its input as it came and SwiGLU keeps gate and up;
the rest is computed again. For Llama-2-7B that is 91 instead of 129 KiB per token and layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LeanRMSNorm(nn.Module):
    """`LlamaRMSNorm` with the same weight: fp32 inside, the input's dtype outside."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.variance_epsilon = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        normalised: Tensor = _RMSNorm.apply(x, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return normalised


class LeanMLP(nn.Module):
    """`LlamaMLP` around the same three linear layers: down(silu(gate x) * up x)."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        inner: Tensor = _SwiGLU.apply(self.gate_proj(x), self.up_proj(x))  # type: ignore[no-untyped-call]
        z: Tensor = self.down_proj(inner)
        return z


def keep_less(lm: Any) -> None:
    """Put both in the place of a Llama-family model's own, before adapters come; other kinds of layers stay."""
    for parent in list(lm.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm") and hasattr(child, "variance_epsilon"):
                setattr(parent, name, LeanRMSNorm(child))
            elif _is_swiglu(child):
                setattr(parent, name, LeanMLP(child))


def _is_swiglu(module: Any) -> bool:
    names = {name for name, _ in module.named_children()}
    return names == {"gate_proj", "up_proj", "down_proj", "act_fn"} and type(module.act_fn).__name__.startswith("SiLU")


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(_wide(x))
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)  # [.., 1]
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        normal = x.to(scale.dtype) * scale
        slope = (grad * weight).to(scale.dtype)
        grad_x = (slope - normal * (slope * normal).mean(-1, keepdim=True)) * scale
        grad_weight = (grad * normal.to(x.dtype)).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return grad_x.to(x.dtype), grad_weight, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)

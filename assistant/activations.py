"""RMSNorm and gated feed-forward that give the same numbers and keep less for backward. Knows nothing about adapters.

Letters: T tokens, D width, F inner width of the feed-forward.

Beside frozen linear layers, which keep nothing, these two are most of what a decoder layer keeps: an fp32 copy of its
norms' inputs, and act(gate) beside gate and up. Here a norm keeps its input as it came, the feed-forward keeps gate and
up, and the rest is computed again. For Llama-2-7B that is 91 instead of 129 KiB per token and layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from assistant.families import family_of


class LeanRMSNorm(nn.Module):
    """A family's RMSNorm with the same weight: fp32 inside, the input's dtype outside, or that of an autocast.

    Linear layers follow it, each of which would make that copy for itself.
    """

    def __init__(self, norm: Any, *, centred: bool = False) -> None:
        super().__init__()
        self.weight = norm.weight
        self.epsilon = norm.eps if centred else norm.variance_epsilon
        self.product: Any = _CentredRMSNorm if centred else _RMSNorm

    def forward(self, x: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        normalised: Tensor = self.product.apply(x, self.weight, self.epsilon)
        kind = x.device.type
        return normalised.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else normalised


class LeanMLP(nn.Module):
    """A family's gated feed-forward around the same three linear layers: down(act(gate x) * up x)."""

    def __init__(self, mlp: Any, *, activation: str = "silu") -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.product = PRODUCTS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        inner: Tensor = self.product.apply(self.gate_proj(x), self.up_proj(x))
        z: Tensor = self.down_proj(inner)
        return z


def keep_less(lm: Any) -> None:
    """Put both in the place of a language model's own, before adapters come. Raises ConfigError `unknown_family`.

    A feed-forward with another activation than its family's stays as it is.
    """
    family = family_of(type(lm).__name__, getattr(getattr(lm, "config", None), "model_type", None))
    usual = type(ACT2FN[family.activation])
    for parent in list(lm.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child).__name__
            if kind == family.norm_class:
                setattr(parent, name, LeanRMSNorm(child, centred=family.centred_norms))
            elif kind == family.mlp_class and isinstance(child.act_fn, usual):
                setattr(parent, name, LeanMLP(child, activation=family.activation))


class _RMSNorm(torch.autograd.Function):
    """w * n in the input's dtype, n = x / sqrt(mean x^2 + epsilon)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide, scale = _scaled(x, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        grad_x = _slope(x, scale, (grad * weight).to(scale.dtype))
        normal = (x.to(scale.dtype) * scale).to(x.dtype)
        grad_weight = (grad * normal).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None


class _CentredRMSNorm(torch.autograd.Function):
    """(1 + w) * n in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide, scale = _scaled(x, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return ((wide * scale) * (1.0 + weight.to(scale.dtype))).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        wide = grad.to(scale.dtype)
        grad_x = _slope(x, scale, wide * (1.0 + weight.to(scale.dtype)))
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None
        return grad_x, (wide * (x.to(scale.dtype) * scale)).flatten(0, -2).sum(0).to(weight.dtype), None


def _scaled(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x [.., D] in at least fp32, and 1 / sqrt(mean x^2 + epsilon) [.., 1]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide, torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)


def _slope(x: Tensor, scale: Tensor, slope: Tensor) -> Tensor:
    """The gradient of x, from that of n."""
    normal = x.to(scale.dtype) * scale
    return ((slope - normal * (slope * normal).mean(-1, keepdim=True)) * scale).to(x.dtype)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)


class _GeGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.gelu(gate, approximate="tanh") * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.gelu_backward(grad * up, gate, approximate="tanh")
        return grad_gate, grad * F.gelu(gate, approximate="tanh")


PRODUCTS: Mapping[str, Any] = {"silu": _SwiGLU, "gelu_pytorch_tanh": _GeGLU}
"""act(gate) * up, by the name of the activation."""

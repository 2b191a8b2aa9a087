"""The adapted linear layers: DyQLoRA-FA and DyA-MoPE. Knows nothing about models, optimisers or files.

Letters: d_in, d_out widths of the base layer, r = r_max, b current rank, E experts.
A is used detached, whatever its `requires_grad` says, so that no path through PEFT and no loop over parameters can thaw
it, and autograd keeps z = A[:b] x for the backward pass, never x (LoRA-FA, 2308.03303).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from assistant.adapters.config import AdapterError, DyAMoPEConfig, DyQLoRAFAConfig
from assistant.adapters.nf4 import dequantized, requantized

ROUTER_STD = 0.02
"""Spread of a router's first weights (2309.05444); it alone tells apart experts that share A."""


class MixExperts(torch.autograd.Function):
    """scale * sum_e g_e B_e z_e as one product of rank E*b, the gates folded into the rank axis.

    Keeps z and g; the products g*z and the folded matrices are built again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, gates: Tensor, experts: Tensor, scale: float) -> Tensor:
        """z [..., 1 or E, b], gates [..., E], experts [E, d_out, b] -> [..., d_out]."""
        ctx.save_for_backward(z, gates, experts)
        ctx.scale = scale
        return F.linear(_folded_latent(z, gates, scale), _folded_experts(experts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        z, gates, experts = ctx.saved_tensors
        e, d_out, b = experts.shape
        grad_z = grad_gates = grad_experts = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            grad_latent = torch.unflatten(grad @ _folded_experts(experts), -1, (e, b)) * ctx.scale  # [..., E, b]
            grad_gates = (grad_latent * z).sum(-1)
            grad_z = grad_latent * gates.unsqueeze(-1)
            if z.shape[-2] != e:
                grad_z = grad_z.sum(-2, keepdim=True)  # [..., 1, b]
        if ctx.needs_input_grad[2]:
            latent = _folded_latent(z, gates, ctx.scale).reshape(-1, e * b)
            grad_experts = (grad.reshape(-1, d_out).T @ latent).view(d_out, e, b).transpose(0, 1)  # [E, d_out, b]
        return grad_z, grad_gates, grad_experts, None


def _folded_latent(z: Tensor, gates: Tensor, scale: float) -> Tensor:
    return (z * (gates * scale).unsqueeze(-1)).flatten(-2)  # [..., E * b]


def _folded_experts(experts: Tensor) -> Tensor:
    return experts.transpose(0, 1).flatten(1)  # [d_out, E * b]


mix_experts: Callable[[Tensor, Tensor, Tensor, float], Tensor] = MixExperts.apply


class DynamicRankLayer(nn.Module, BaseTunerLayer):
    """A linear layer with adapters by name; subclasses say what an adapter holds and computes."""

    adapter_layer_names: tuple[str, ...] = ("lora_B",)
    other_param_names: tuple[str, ...] = ("lora_A", "settings")

    def __init__(self, base_layer: nn.Linear, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        self.settings: dict[str, Any] = {}
        self.current_rank: int | None = None
        """Rank of the step in progress, None for r_max. It lives here and not in a context around the forward pass,
        because gradient checkpointing runs the layer again during the backward pass."""
        self.merged_adapters: list[str] = []
        self._weight_before_merge: list[Tensor] = []

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add an adapter, fresh: A random and frozen, B zero, so that the output is the base layer's."""
        raise NotImplementedError

    def active_names(self) -> list[str]:
        """Adapters of this layer that are active, in order."""
        names: Any = self.active_adapters
        return [name for name in names if name in self.settings]

    def rank_of(self, adapter_name: str) -> int:
        """The rank an adapter computes with now."""
        r_max: int = self.settings[adapter_name].r_max
        return r_max if self.current_rank is None else min(self.current_rank, r_max)

    def trained_columns(self, adapter_name: str) -> slice:
        """Columns of B that the step in progress trains."""
        columns: slice = self.settings[adapter_name].trained_columns(self.rank_of(adapter_name))
        return columns

    def active_matrix(self, adapter_name: str) -> Tensor:
        """B[..., :b], with a gradient for the columns that are trained now."""
        matrix: Tensor = self.lora_B[adapter_name][..., : self.rank_of(adapter_name)]
        first = self.trained_columns(adapter_name).start
        if first == 0:
            return matrix
        return torch.cat([matrix[..., :first].detach(), matrix[..., first:]], dim=-1)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [..., d_in] -> [..., d_out]."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y
        for name in self.active_names():
            y = self.adapt(name, x, y)
        return y

    def adapt(self, adapter_name: str, x: Tensor, y: Tensor) -> Tensor:
        """Input [..., d_in] and output so far [..., d_out] -> output with this adapter."""
        raise NotImplementedError

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """What the adapter adds to the base weight at its current rank [d_out, d_in], at least float32.

        Raises AdapterError `routed_experts` where that depends on the token.
        """
        raise NotImplementedError

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight at their current rank. A 4-bit weight is quantised again, which rounds.

        Raises AdapterError `routed_experts`, `not_finite` (with safe_merge) or `not_mergeable`.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.lora_A:
                self._add_to_weight(self.get_delta_weight(name), check=safe_merge)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Undo `merge`: to rounding, for a 4-bit weight bit for bit."""
        if self._weight_before_merge:
            self.base_layer.weight = self._weight_before_merge.pop()
            self.merged_adapters.clear()
        while self.merged_adapters:
            self._add_to_weight(-self.get_delta_weight(self.merged_adapters.pop()), check=False)

    def _add_to_weight(self, delta: Tensor, *, check: bool) -> None:
        base = self.base_layer
        quantized = isinstance(base, Linear4bit)
        if not quantized and not base.weight.is_floating_point():
            kind = type(base).__name__
            raise AdapterError("not_mergeable", f"a {kind} cannot take a merged weight. Keep the adapter apart.")
        weight = (dequantized(base) if quantized else base.weight.data).to(delta.dtype) + delta
        if check and not weight.isfinite().all():
            raise AdapterError("not_finite", "the merged weight is not finite. Keep the adapter apart.")
        if quantized:
            old: Any = base.weight
            self._weight_before_merge = self._weight_before_merge or [old]
            base.weight = requantized(base, weight.to(old.quant_state.dtype))
        else:
            base.weight.data.copy_(weight)

    def _place(self) -> tuple[torch.device, torch.dtype]:
        """Device of the base layer and the dtype it computes in, which for a 4-bit layer may not be known yet."""
        place: Any = self._get_base_layer_device_and_dtype
        device, dtype = place(self.base_layer)
        # a quantised weight is stored as integers
        return device, dtype if dtype is not None and dtype.is_floating_point else torch.float32

    def _zeros(self, *shape: int) -> Tensor:
        device, dtype = self._place()
        return torch.zeros(shape, device=device, dtype=dtype)

    def _kaiming(self, *shape: int) -> Tensor:
        weight = self._zeros(*shape)
        nn.init.kaiming_uniform_(weight.view(-1, shape[-1]), a=math.sqrt(5))
        return weight

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter in place. PEFT's own way wraps the moved tensors as new parameters, which thaws A."""
        base_device, dtype = self._place()
        for parameters in self.children():
            if isinstance(parameters, nn.ParameterDict) and adapter_name in parameters:
                parameter = parameters[adapter_name]
                if not parameter.is_meta:
                    parameter.data = parameter.data.to(device or base_device, dtype=dtype)


class DyQLoRAFALinear(DynamicRankLayer):
    """y = base(x) + (alpha / b) B[:, :b] (A[:b] x)."""

    def update_layer(self, adapter_name: str, config: DyQLoRAFAConfig) -> None:
        d_in, d_out, r = self.base_layer.in_features, self.base_layer.out_features, config.r_max
        self.settings[adapter_name] = config
        self.lora_A[adapter_name] = nn.Parameter(self._kaiming(r, d_in), requires_grad=False)
        self.lora_B[adapter_name] = nn.Parameter(self._zeros(d_out, r))

    def adapt(self, adapter_name: str, x: Tensor, y: Tensor) -> Tensor:
        config: DyQLoRAFAConfig = self.settings[adapter_name]
        b = self.rank_of(adapter_name)
        a = self.lora_A[adapter_name].detach()[:b]
        z = F.linear(_as(a.dtype, x), a)  # [..., b]
        z = F.dropout(z, config.z_dropout, self.training) * config.scale(b)
        return y + F.linear(z, self.active_matrix(adapter_name)).to(y.dtype)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        config: DyQLoRAFAConfig = self.settings[adapter_name]
        b = self.rank_of(adapter_name)
        return low_rank_product(self.lora_A[adapter_name], self.lora_B[adapter_name], b) * config.scale(b)


@dataclass
class Routing:
    """What a router did in the last training pass."""

    usage: Tensor
    """Mean gate of each expert [E]."""
    loss: Tensor | None
    """Weighted balance and z loss of this layer; None where both weights are 0."""


class DyAMoPELinear(DynamicRankLayer):
    """y = base(x) + (alpha / b) sum_e g_e B_e[:, :b] z[:b] with z = A x and g = softmax(router z).

    Where MoV is asked for, y is then scaled by sum_e g_e l_e, with l_e starting as ones.
    """

    adapter_layer_names = ("lora_B", "lora_router", "lora_mov")
    other_param_names = ("lora_A", "settings", "routing")

    def __init__(self, base_layer: nn.Linear, name: str) -> None:
        super().__init__(base_layer, name)
        self.lora_router = nn.ParameterDict()
        self.lora_mov = nn.ParameterDict()
        self.routing: dict[str, Routing] = {}
        self.real_tokens: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # the last pass hangs on an autograd graph, which can be neither copied nor pickled
        return {**self.__dict__, "routing": {}, "real_tokens": None}

    def update_layer(self, adapter_name: str, config: DyAMoPEConfig) -> None:
        d_in, d_out, r, e = self.base_layer.in_features, self.base_layer.out_features, config.r_max, config.experts
        a = self._kaiming(e, r, d_in) if config.expert_A else self._kaiming(r, d_in)
        self.settings[adapter_name] = config
        self.lora_A[adapter_name] = nn.Parameter(a, requires_grad=False)
        self.lora_B[adapter_name] = nn.Parameter(self._zeros(e, d_out, r))
        router = self._zeros(e, r if config.router_input == "z" else d_in)
        self.lora_router[adapter_name] = nn.Parameter(nn.init.normal_(router, std=ROUTER_STD))
        if any(name == self.name or self.name.endswith(f".{name}") for name in config.mov_modules):
            self.lora_mov[adapter_name] = nn.Parameter(self._zeros(e, d_out) + 1)

    def adapt(self, adapter_name: str, x: Tensor, y: Tensor) -> Tensor:
        config: DyAMoPEConfig = self.settings[adapter_name]
        b = self.rank_of(adapter_name)
        a = self.lora_A[adapter_name].detach()
        z = torch.unflatten(F.linear(_as(a.dtype, x), a.flatten(0, -2)), -1, (-1, config.r_max))  # [..., 1 or E, r]
        gates = self._route(adapter_name, x, z).to(z.dtype)  # [..., E]
        latent = F.dropout(z[..., :b], config.z_dropout, self.training)
        experts = self.active_matrix(adapter_name).to(z.dtype)
        y = y + mix_experts(latent, gates, experts, config.scale(b)).to(y.dtype)
        if adapter_name in self.lora_mov:
            # gates sum to 1, so this is y * sum_e g_e l_e, and exactly y while all l_e are ones
            y = y + y * (gates @ (self.lora_mov[adapter_name].to(z.dtype) - 1)).to(y.dtype)
        return y

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        config: DyAMoPEConfig = self.settings[adapter_name]
        b = self.rank_of(adapter_name)
        if config.is_routed:
            raise AdapterError(
                "routed_experts",
                f"adapter {adapter_name!r} weighs its {config.experts} experts anew for every token, so no one matrix "
                "equals it. Keep it apart from the base, or train DyQLoRA-FA to merge or export.",
            )
        a, matrix = self.lora_A[adapter_name].flatten(0, -2), self.lora_B[adapter_name][0]
        return low_rank_product(a, matrix, b) * config.scale(b)

    def _route(self, adapter_name: str, x: Tensor, z: Tensor) -> Tensor:
        """x [..., d_in], z [..., 1 or E, r] -> gates [..., E]; leaves the losses and the usage in `routing`."""
        config: DyAMoPEConfig = self.settings[adapter_name]
        router = self.lora_router[adapter_name].to(z.dtype)  # [E, r or d_in]
        if config.router_input == "x":
            logits = F.linear(x.to(z.dtype), router)
        elif config.expert_A:
            logits = torch.einsum("...er,er->...e", z, router)
        else:
            logits = F.linear(z.squeeze(-2), router)
        gates: Tensor = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        dispatched = gates
        if config.top_k is not None:
            dispatched = torch.zeros_like(gates).scatter_(-1, gates.topk(config.top_k, dim=-1).indices, 1.0)
        if self.training:
            # A recomputation of a checkpointed layer comes with the tokens of its own pass, or with other shapes.
            real = self.real_tokens if self.real_tokens is not None and self.real_tokens.shape == x.shape[:-1] else ...
            loss = router_loss(logits[real], gates[real], dispatched[real], config)
            self.routing[adapter_name] = Routing(_mean_over_tokens(gates[real].detach()), loss)
        else:
            self.routing.pop(adapter_name, None)
        if config.top_k is None:
            return gates
        kept: Tensor = gates * dispatched
        return kept / kept.sum(-1, keepdim=True) if config.renormalise else kept


def _as(dtype: torch.dtype, x: Tensor) -> Tensor:
    """x in the dtype of what it meets; an autocast brings both to its own by itself."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(dtype)


def low_rank_product(a: Tensor, matrix: Tensor, b: int) -> Tensor:
    """A [r, d_in], B [d_out, r] -> B[:, :b] A[:b] [d_out, d_in], at least float32."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return matrix.detach()[:, :b].to(dtype) @ a.detach()[:b].to(dtype)


def router_loss(logits: Tensor, gates: Tensor, dispatched: Tensor, config: DyAMoPEConfig) -> Tensor | None:
    """Weighted balance loss E sum_e f_e p_e and z loss mean(logsumexp^2), over all tokens of the batch [..., E]."""
    loss = None
    if config.balance_loss:
        share = _mean_over_tokens(dispatched)  # [E]
        loss = config.balance_loss * config.experts * (share / share.sum() * _mean_over_tokens(gates)).sum()
    if config.z_loss:
        z_loss = config.z_loss * logits.to(gates.dtype).logsumexp(-1).square().mean()
        loss = z_loss if loss is None else loss + z_loss
    return loss


def _mean_over_tokens(gates: Tensor) -> Tensor:
    return gates.reshape(-1, gates.shape[-1]).mean(0)  # [E]

"""The gradient of B corrected for the geometry of the frozen A (LoRA-FA, 2308.03303, as PEFT's optimizer does).

A step dB changes the weight by s dB A. The dB whose product comes closest to a full gradient G is
`G A^T (A A^T)^-1 / s`, and since the gradient of B is `s G A^T`, that is `grad_B (A A^T)^-1 / s^2`. A never changes, so
one Cholesky factor per layer serves all ranks: the leading block of the factor of A A^T is the factor of A_b A_b^T.
Knows nothing about which optimizer steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from assistant.adapters.config import AdapterError
from assistant.adapters.layer import DynamicRankLayer
from assistant.adapters.rank import adapter_layers, innermost

JITTER = 1e-8


def precondition(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Correct the gradients of all B matrices before every later `optimizer.step()`, after any clipping.

    Call it once per process. It adds nothing to the optimizer's state: a factor is computed again where A is replaced
    or moved, so checkpoints resume as without it. With a freshly drawn A the correction is slight (its condition
    number is near 1); it matters for an A that comes from data.
    Raises AdapterError `bad_update` where `rank_update` trains single columns, which have no such geometry.
    """
    if any(config.rank_update == "last" for layer in adapter_layers(model) for config in layer.settings.values()):
        raise AdapterError("bad_update", "a preconditioner needs rank_update 'prefix'. Turn one of them off.")
    factors: dict[int, tuple[tuple[Any, ...], Tensor]] = {}

    def correct(stepping: torch.optim.Optimizer, *_: Any) -> None:
        stepped = {id(parameter) for group in stepping.param_groups for parameter in group["params"]}
        for layer in adapter_layers(model):
            for name, matrix in layer.lora_B.items():
                if id(matrix) in stepped and matrix.grad is not None:
                    factor = _cached_factor(factors, layer.lora_A[name])
                    _correct_gradient(layer, name, matrix.grad, factor)

    innermost(optimizer).register_step_pre_hook(correct)


def gram_factor(a: Tensor) -> Tensor:
    """A [..., r, d_in] -> lower Cholesky factor of A A^T [..., r, r], in at least float32."""
    wide = a.detach().to(torch.promote_types(a.dtype, torch.float32))
    gram = wide @ wide.mT
    factor: Tensor = torch.linalg.cholesky(gram + JITTER * torch.eye(gram.shape[-1], device=a.device, dtype=gram.dtype))
    return factor


def _cached_factor(factors: dict[int, tuple[tuple[Any, ...], Tensor]], a: Tensor) -> Tensor:
    state = (a.data_ptr(), a._version, a.device)
    known = factors.get(id(a))
    if known is None or known[0] != state:
        factors[id(a)] = known = (state, gram_factor(a))
    return known[1]


def _correct_gradient(layer: DynamicRankLayer, name: str, gradient: Tensor, factor: Tensor) -> None:
    """gradient [(E,) d_out, r], in place: its columns up to the rank b times (A_b A_b^T)^-1 / s^2."""
    b = layer.rank_of(name)
    active = gradient[..., :b]
    solved = torch.cholesky_solve(active.mT.to(factor.dtype), factor[..., :b, :b])  # [(E,) b, d_out]
    active.copy_(solved.mT / layer.settings[name].scale(b) ** 2)

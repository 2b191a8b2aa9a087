"""The gradient of B corrected for the geometry of the frozen A (LoRA-FA, 2308.03303, as PEFT's optimizer does).

A step dB changes the weight by s dB A. The dB whose product comes closest to a full gradient G is
`G A^T (A A^T)^-1 / s`, and since the gradient of B is `s G A^T`, that is `grad_B (A A^T)^-1 / s^2`. A never changes, so
one Cholesky factor per layer serves all ranks: the leading block of the factor of A A^T is the factor of A_b A_b^T.
Knows nothing about which optimizer steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from assistant.adapters.config import AdapterError
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
    factors: dict[tuple[int, str], Factor] = {}

    def correct(stepping: torch.optim.Optimizer, *_: Any) -> None:
        stepped = {id(parameter) for group in stepping.param_groups for parameter in group["params"]}
        for layer in adapter_layers(model):
            for name, matrix in layer.lora_B.items():
                if id(matrix) not in stepped or matrix.grad is None:
                    continue
                key, a = (id(layer), name), layer.lora_A[name]
                if key not in factors or not factors[key].belongs_to(a):
                    factors[key] = Factor(a, a.data_ptr(), a._version, gram_factor(a))
                # Columns up to the rank b, in place, times (A_b A_b^T)^-1 / s^2.
                b, lower = layer.rank_of(name), factors[key].lower
                active = matrix.grad[..., :b]  # [(E,) d_out, b]
                solved = torch.cholesky_solve(active.mT.to(lower.dtype), lower[..., :b, :b])  # [(E,) b, d_out]
                active.copy_(solved.mT / layer.settings[name].scale(b) ** 2)

    innermost(optimizer).register_step_pre_hook(correct)


class Factor(NamedTuple):
    """The Cholesky factor of a matrix A, and how to tell whether A is still the same."""

    a: Tensor
    address: int
    version: int
    lower: Tensor

    def belongs_to(self, a: Tensor) -> bool:
        return a is self.a and (a.data_ptr(), a._version) == (self.address, self.version)


def gram_factor(a: Tensor) -> Tensor:
    """A [..., r, d_in] -> lower Cholesky factor of A A^T [..., r, r], in at least float32."""
    wide = a.detach().to(torch.promote_types(a.dtype, torch.float32))
    gram = wide @ wide.mT
    factor: Tensor = torch.linalg.cholesky(gram + JITTER * torch.eye(gram.shape[-1], device=a.device, dtype=gram.dtype))
    return factor

"""What the routers of a DyA-MoPE model tell the trainer: their losses and how evenly experts are used."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from assistant.adapters.config import AdapterError
from assistant.adapters.layer import DyAMoPELinear, Routing


def has_routers(model: nn.Module) -> bool:
    """Whether a model has routers, whose losses belong to the loss."""
    return any(isinstance(module, DyAMoPELinear) for module in model.modules())


def router_losses(model: nn.Module) -> Tensor:
    """Sum over layers of the weighted balance and z losses of the last training pass, to be added to the loss.

    Zero where the weights are 0, and for a model without routers. Call it after each forward pass, before `backward`.
    Raises AdapterError `reentrant_checkpointing` where the losses carry no gradient.
    """
    losses = [routing.loss for routing in _routings(model) if routing.loss is not None]
    if not losses:
        device = next((parameter.device for parameter in model.parameters()), None)
        return torch.zeros((), device=device)
    if torch.is_grad_enabled() and not any(loss.requires_grad for loss in losses):
        raise AdapterError(
            "reentrant_checkpointing",
            "the router losses carry no gradient: their layers ran without one, as in reentrant checkpointing. "
            "Checkpoint with use_reentrant=False, or set both loss weights to 0.",
        )
    return torch.stack([loss.to(losses[0].device) for loss in losses]).sum()


def count_tokens(model: nn.Module, mask: Tensor | None) -> None:
    """Let router losses and usage count the tokens that `mask` [B, T] keeps, until further notice; None counts all.

    Padding would else pull the balance towards whatever expert it happens to go to. Set it before the forward pass and
    leave it until after the backward pass: a checkpointed layer is computed again.
    """
    for module in model.modules():
        if isinstance(module, DyAMoPELinear):
            module.real_tokens = None if mask is None else mask.bool()


def expert_usage_entropy(model: nn.Module) -> float | None:
    """Mean over layers of the entropy of the mean gates over its maximum log E: 1 is even use, 0 is one expert.

    None before the first training pass, and for a model without several experts.
    """
    usages = [routing.usage.float() for routing in _routings(model) if len(routing.usage) > 1]
    if not usages:
        return None
    entropies = [torch.special.entr(usage).sum() / torch.tensor(float(len(usage))).log() for usage in usages]
    return float(torch.stack([entropy.cpu() for entropy in entropies]).mean())


def _routings(model: nn.Module) -> list[Routing]:
    layers = [module for module in model.modules() if isinstance(module, DyAMoPELinear)]
    return [layer.routing[name] for layer in layers for name in layer.active_names() if name in layer.routing]

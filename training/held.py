"""A frozen image encoder held in 16 bit: half the memory and the same products. Knows nothing about training."""

from __future__ import annotations

import torch
from torch import nn

from assistant.config import Config
from assistant.precision import device_of, number_format


def holds_in_bf16(config: Config, device: str) -> bool:
    """Whether the frozen image encoder is held in bfloat16: it is to be, and training computes in it on the device."""
    asked = config.training.frozen_towers == "bf16" and not config.vit.trainable
    return asked and number_format(config.training.precision, device_of(device)).precision == "bf16"


def hold_in_bf16(encoder: nn.Module) -> None:
    """Round the matrices that products are made with to bfloat16, which such products round them to in any case.

    Biases, norms and positions stay as they are, and so does the sum that runs through the layers.
    """
    for module in encoder.modules():
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention) and weight.dim() > 1:
                setattr(module, name, nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False))
    device = next(encoder.parameters()).device.type
    encoder.forward = torch.autocast(device, torch.bfloat16)(encoder.forward)

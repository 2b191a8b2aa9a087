"""Attention of a language model that computes in bfloat16 on a processor: fused, and in float32.

The fused kernel's backward in bfloat16 takes a processor up to five times as long as in float32, and rounds more; plain
attention holds a matrix of all pairs of tokens in memory, which is what long conversations wait for.
Knows nothing about what the tokens are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SDPA_FLOAT32 = "sdpa_float32"
"""Its name for `set_attn_implementation`."""


def sdpa_in_float32(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Queries, keys and values [B, h, T, d], of which keys and values may have fewer heads -> [B, T, h, d]."""
    with torch.autocast(query.device.type, enabled=False):
        mixed, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return mixed.to(value.dtype), None


AttentionInterface.register(SDPA_FLOAT32, sdpa_in_float32)
AttentionMaskInterface.register(SDPA_FLOAT32, sdpa_mask)

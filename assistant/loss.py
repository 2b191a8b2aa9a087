"""Cross-entropy of the next token without the logits of a whole batch. Knows nothing about the model but its head.

Letters: B batch, T tokens, n answer tokens, D width, V vocabulary.

Logits of a Llama-2-7B cost 375 KiB per token in the forms a plain loss keeps. Here only answer tokens reach the head,
a chunk at a time, and a chunk's logits are computed again for its gradient, so nothing of width V is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED_LABEL = -100
CHUNK = 512
"""Answer tokens whose logits exist at one time."""

OutputLayer = Callable[[Tensor], Tensor]


def next_token_loss(
    hidden: Tensor, labels: Tensor, head: OutputLayer, *, chunk: int = CHUNK, count: Tensor | int | None = None
) -> Tensor:
    """Mean cross-entropy over answer tokens; 0 where there are none.

    hidden [B, T, D] goes through `head` to logits; labels [B, T] hold -100 outside answers. `count` is what the sum
    is divided by, where that is not this batch's own number of answer tokens (gradient accumulation).
    """
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)  # [B, T]
    answered = following != IGNORED_LABEL
    states, targets = hidden[answered], following[answered]  # [n, D], [n]
    total = hidden.sum() * 0.0  # keeps the graph where no token is an answer
    for part, wanted in zip(states.split(chunk), targets.split(chunk), strict=True):
        total = total + checkpoint(_summed, part, wanted, head, use_reentrant=False)
    return total / (max(len(targets), 1) if count is None else count)


def _summed(states: Tensor, targets: Tensor, head: OutputLayer) -> Tensor:
    logits = head(states)  # [n, V]
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")

"""The chunked loss against `F.cross_entropy` on all logits: value, gradients, and what is kept for backward."""

import pytest
import torch
import torch.nn.functional as F
from counting import kept_tensors
from torch import Tensor, nn

from assistant.loss import IGNORED_LABEL, next_token_loss

VOCABULARY = 37


def reference(hidden: Tensor, labels: Tensor, head: nn.Module) -> Tensor:
    logits = head(hidden)[:, :-1].flatten(0, 1).to(torch.promote_types(hidden.dtype, torch.float32))
    return F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL)


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, nn.Linear]:
    torch.manual_seed(0)
    hidden = torch.randn(3, 11, 8, dtype=dtype, requires_grad=True)
    labels = torch.randint(VOCABULARY, (3, 11))
    labels[torch.rand(3, 11) < 0.4] = IGNORED_LABEL
    labels[1] = IGNORED_LABEL
    return hidden, labels, nn.Linear(8, VOCABULARY, bias=False, dtype=dtype)


@pytest.mark.parametrize("chunk", [1, 5, 13, 512])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_chunks_sum_to_the_whole(chunk: int, dtype: torch.dtype) -> None:
    """Value and gradients of states and head, ragged chunks included. Seen failing with a mean in each chunk."""
    hidden, labels, head = example(dtype)
    wanted = reference(hidden, labels, head)
    found = next_token_loss(hidden, labels, head, chunk=chunk)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
    pairs = zip(*(torch.autograd.grad(loss, [hidden, head.weight]) for loss in (found, wanted)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_no_answer_at_all_is_no_loss() -> None:
    """A batch without answers must not put NaN into the weights, as the mean over nothing would."""
    hidden, labels, head = example()
    loss = next_token_loss(hidden, torch.full_like(labels, IGNORED_LABEL), head)
    loss.backward()
    assert loss.item() == 0.0
    assert not hidden.grad.any()


def test_nothing_as_wide_as_the_vocabulary_is_kept() -> None:
    """Seen failing without the checkpoint: logits and their softmax stay."""
    hidden, labels, head = example(torch.float32)
    kept = kept_tensors(head, lambda: next_token_loss(hidden, labels, head, chunk=4))
    assert kept
    assert all(VOCABULARY not in tensor.shape for tensor in kept)
    assert any(VOCABULARY in tensor.shape for tensor in kept_tensors(head, lambda: reference(hidden, labels, head)))


def test_micro_batches_weigh_by_their_answers() -> None:
    """Two micro-batches divided by the answers of both give the loss of the whole batch."""
    hidden, labels, head = example()
    count = int((labels[:, 1:] != IGNORED_LABEL).sum())
    parts = [next_token_loss(hidden[rows], labels[rows], head, count=count) for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(sum(parts), next_token_loss(hidden, labels, head))

"""Likelihoods or distances of labels to probabilities, and "unknown" where none fits. Knows nothing about images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

UNKNOWN_BELOW = 0.05
"""A class is "unknown" when the student itself would say any of the given labels with less than this probability."""


def prototype_scores(summary: Tensor, prototypes: Tensor, temperature: float = 0.05) -> Tensor:
    """Log-probability [C] of each prototype [C, D'] for one image vector [D'], by cosine similarity."""
    similarity = torch.nn.functional.cosine_similarity(summary[None], prototypes, dim=-1)
    return (similarity / temperature).log_softmax(-1).cpu()


def rank_labels(labels: Sequence[str], log_likelihood: Tensor) -> list[tuple[str, float]]:
    """Labels and "unknown" by probability, best first.

    While the labels together are likely answers, "unknown" holds what they leave over; below `UNKNOWN_BELOW` they
    share that little, and "unknown" leads.
    """
    likelihood = log_likelihood.double().exp()
    total = float(likelihood.sum())
    known = likelihood / total if total >= UNKNOWN_BELOW else likelihood
    ranked = sorted(zip(labels, known.tolist(), strict=True), key=lambda pair: -pair[1])
    return ranked if total >= UNKNOWN_BELOW else [("unknown", max(0.0, 1.0 - total)), *ranked]

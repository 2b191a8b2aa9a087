"""What all encoders of modalities share: a value of a row becomes an item once, items become vectors many times.

Knows nothing about any modality, and nothing about what the vectors are fused with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

Item = dict[str, Tensor]
"""A value of a row as tensors; rows may differ in length."""


class Encoder(nn.Module, ABC):
    """One modality: items of B rows to vectors [B, D], normalised. Statistics of the training rows are buffers."""

    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(cls, values: Sequence[Any], dim: int) -> Self:
        """An encoder with the vocabulary and the scale of the values of training rows, its weights still random."""

    @abstractmethod
    def item(self, value: Any) -> Item:
        """A value as tensors. Raises DatasetError where it is none of this modality."""

    @property
    def fixed_width(self) -> int:
        """Width of `fixed`."""
        return 0

    def fixed(self, items: Sequence[Item]) -> Tensor:
        """What is known of items before anything is learned [B, F], scaled; nothing where there is no such vector."""
        return torch.zeros(len(items), self.fixed_width)

    @abstractmethod
    def forward(self, items: Sequence[Item]) -> Tensor:
        """Items of B rows -> [B, D]."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What builds this encoder again, as JSON: `cls(**settings)`, then its state."""


def perceptron(d_in: int, dim: int, dropout: float = 0.1) -> nn.Sequential:
    """A fixed vector [.., d_in] to [.., D]: two layers and a norm."""
    return nn.Sequential(
        nn.Linear(d_in, 2 * dim), nn.SiLU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim), nn.LayerNorm(dim)
    )


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors [T_i, ...] -> [B, T, ...] with zeros at the end, and a mask [B, T] of what is real."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), mask


class Standard(nn.Module):
    """Columns to mean 0 and deviation 1 by the training rows, cut at `LIMIT` deviations; NaN stays NaN."""

    LIMIT = 6.0
    mean: Tensor
    scale: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("scale", torch.ones(columns))

    def learn(self, rows: Tensor) -> None:
        """Take mean and deviation of rows [I, F], NaN left out; a constant column keeps its scale of 1."""
        known = rows.isfinite()
        count = known.sum(0).clamp_min(1)
        mean = rows.where(known, 0.0).sum(0) / count
        deviation = ((rows - mean).where(known, 0.0).square().sum(0) / count).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(deviation.where(deviation > 1e-6 * mean.abs().clamp_min(1e-6), 1.0))

    def forward(self, rows: Tensor) -> Tensor:
        """[B, F] -> [B, F]."""
        return ((rows - self.mean) / self.scale).clamp(-self.LIMIT, self.LIMIT)

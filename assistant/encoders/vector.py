"""Encoder of a vector that is computed once per picture: texture descriptors, or what a frozen network sees.

Knows nothing about pictures; the vectors come from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from assistant.encoders.encoder import Encoder, Item, Standard, perceptron
from assistant.errors import DatasetError


class VectorEncoder(Encoder):
    """z-scored, then two layers."""

    kind = "vector"

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.width, self.dim = width, dim
        self.standard, self.layers = Standard(width), perceptron(width, dim)

    @classmethod
    def fit(cls, values: Sequence[Any], dim: int) -> Self:
        """Vectors [F] of training rows."""
        encoder = cls(len(values[0]), dim)
        encoder.standard.learn(torch.stack([encoder.item(value)["vector"] for value in values]))
        return encoder

    def item(self, value: Any) -> Item:
        """A vector [F] as a tensor. Raises DatasetError `bad_vector`."""
        vector = torch.as_tensor(value, dtype=torch.float32)
        if vector.shape != (self.width,):
            raise DatasetError("bad_vector", f"{vector.numel()} numbers where {self.width} were learned. Fit again.")
        return {"vector": vector}

    @property
    def fixed_width(self) -> int:
        """All of it."""
        return self.width

    def fixed(self, items: Sequence[Item]) -> Tensor:
        """The vectors, scaled [B, F]."""
        scaled: Tensor = self.standard(torch.stack([item["vector"] for item in items])).nan_to_num()
        return scaled

    def forward(self, items: Sequence[Item]) -> Tensor:
        """[B, D]."""
        vectors: Tensor = self.layers(self.fixed(items))
        return vectors

    def settings(self) -> dict[str, Any]:
        """Widths."""
        return {"width": self.width, "dim": self.dim}

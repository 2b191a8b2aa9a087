"""Encoder of table columns, numeric and categorical: one token per column, attention among them (FT-Transformer).

Gorishniy et al. 2021. A missing number has a learned token of its own, and so has a missing or new category: nothing
is imputed. Knows nothing about where the columns come from.

Letters: B rows, F numeric columns, G categorical columns, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from assistant.attention import Block
from assistant.encoders.encoder import Encoder, Item, Standard

_HEADS, _DEPTH = 4, 2


class TableEncoder(Encoder):
    """Columns by name: `numeric` names, and for each categorical name its known categories."""

    kind = "table"

    def __init__(self, numeric: Sequence[str], categories: Mapping[str, Sequence[str]], dim: int) -> None:
        super().__init__()
        self.numeric, self.dim = list(numeric), dim
        self.categories = {name: list(known) for name, known in categories.items()}
        bound = dim**-0.5
        self.standard = Standard(len(self.numeric))
        self.slope, self.offset, self.missing = (
            nn.Parameter(torch.empty(len(self.numeric), dim).uniform_(-bound, bound)) for _ in range(3)
        )
        self.embeddings = nn.ModuleList(nn.Embedding(1 + len(known), dim) for known in self.categories.values())
        self.summary = nn.Parameter(torch.empty(1, 1, dim).uniform_(-bound, bound))
        self.blocks = nn.ModuleList(Block(dim, _HEADS, mlp_ratio=2) for _ in range(_DEPTH))
        self.norm = nn.LayerNorm(dim)

    @classmethod
    def fit(cls, values: Sequence[Any], dim: int) -> Self:
        """Rows as mappings of column -> number, word or None; a column is numeric where all it holds are numbers."""
        numeric, categories = [], {}
        for name in dict.fromkeys(name for row in values for name in row):
            held = [row[name] for row in values if row.get(name) is not None]
            if all(isinstance(value, int | float) for value in held):
                numeric.append(name)
            else:
                categories[name] = sorted({str(value) for value in held})
        encoder = cls(numeric, categories, dim)
        encoder.standard.learn(torch.stack([encoder.item(row)["numbers"] for row in values]))
        return encoder

    def item(self, value: Any) -> Item:
        """A row: numbers [F] with NaN where there is none, places of its categories [G], 0 where missing or new."""
        numbers = [value.get(name) for name in self.numeric]
        known = [isinstance(number, int | float) and math.isfinite(number) for number in numbers]
        places = [
            1 + names.index(str(value[column])) if str(value.get(column)) in names else 0
            for column, names in self.categories.items()
        ]
        return {
            "numbers": torch.tensor(
                [float(n) if here else math.nan for n, here in zip(numbers, known, strict=True)], dtype=torch.float32
            ),
            "places": torch.tensor(places, dtype=torch.long),
        }

    @property
    def fixed_width(self) -> int:
        """Of the numeric columns."""
        return len(self.numeric)

    def fixed(self, items: Sequence[Item]) -> Tensor:
        """The numbers, scaled, 0 where there is none [B, F]."""
        scaled: Tensor = self.standard(torch.stack([item["numbers"] for item in items])).nan_to_num()
        return scaled

    def forward(self, items: Sequence[Item]) -> Tensor:
        """[B, D]."""
        numbers = self.standard(torch.stack([item["numbers"] for item in items]))  # [B, F]
        places = torch.stack([item["places"] for item in items])  # [B, G]
        known = numbers.isfinite()[..., None]
        tokens = torch.where(known, numbers.nan_to_num()[..., None] * self.slope + self.offset, self.missing)
        named = [embed(place)[:, None] for embed, place in zip(self.embeddings, places.T, strict=True)]
        x = torch.cat([self.summary.expand(len(items), -1, -1), tokens, *named], dim=1)  # [B, 1 + F + G, D]
        for block in self.blocks:
            x = block(x)
        vectors: Tensor = self.norm(x[:, 0])
        return vectors

    def settings(self) -> dict[str, Any]:
        """Columns and width."""
        return {"numeric": self.numeric, "categories": self.categories, "dim": self.dim}

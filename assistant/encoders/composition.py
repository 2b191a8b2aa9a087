"""Encoder of a chemical composition: statistics of element properties, and attention among the elements.

`elements.csv` holds the properties of elements 1 to 103, written down from the periodic table of pymatgen 2026.10.16
(MIT; its sources are NIST, WebElements and Shannon 1976): group, period, Mendeleev number, mass [u],
Pauling electronegativity, atomic and ionic radius [A], first ionization energy and electron affinity [eV], melting and
boiling point [K], molar volume [cm3], bulk modulus [GPa], thermal conductivity [W/mK], electrons in the open shells
and common oxidation states. A property that is not known is that of the average element.
Knows nothing about crystals.

Letters: B rows, E elements of a formula, P properties, D width.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from assistant.attention import Block
from assistant.encoders.encoder import Encoder, Item, Standard, padded, perceptron
from assistant.errors import DatasetError

_LONGEST = 400
"""Characters of a formula that are read."""
_HEADS, _DEPTH = 4, 2
BY_NAME = 0.1
"""Deviation of what stands for an element by its name before anything is learned: small, so that what elements have in
common is learned from their properties, and only the rest by name."""
_PART = re.compile(r"([A-Z][a-z]?)(\d*\.?\d*)|([(\[])|[)\]](\d*\.?\d*)")


@cache
def element_table() -> tuple[dict[str, int], np.ndarray]:
    """Symbol -> atomic number, and properties [104, P], z-scored over the elements; row 0 is the average element."""
    with files("assistant.encoders").joinpath("elements.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in rows[0] if name != "symbol"]
    values = np.array([[float(row[name] or "nan") for name in names] for row in rows])
    values = (values - np.nanmean(values, axis=0)) / np.nanstd(values, axis=0)
    return {row["symbol"]: int(row["number"]) for row in rows}, np.vstack([np.zeros(len(names)), np.nan_to_num(values)])


def parse_formula(formula: str) -> dict[int, float]:
    """Atomic number -> fraction of the atoms of a formula, such as "Ag(AuS)2" or "Fe0.62Ni0.38".

    Raises DatasetError `bad_formula`.
    """
    symbols, _ = element_table()
    stack: list[dict[int, float]] = [{}]
    text, place = formula.strip().replace(" ", ""), 0
    while place < len(text) <= _LONGEST:
        part = _PART.match(text, place)
        if part is None or (part[1] and part[1] not in symbols) or part[2] == "." or part[4] == ".":
            break
        opens, closes = bool(part[3]), not part[1] and not part[3]
        if closes and len(stack) == 1:
            break
        place = part.end()
        inner = {} if opens else stack.pop() if closes else {symbols[part[1]]: 1.0}
        for number, count in inner.items():
            stack[-1][number] = stack[-1].get(number, 0.0) + count * float(part[4 if closes else 2] or 1)
        if opens:
            stack.append({})
    total = sum(stack[0].values())
    if place < len(text) or len(text) > _LONGEST or len(stack) > 1 or not total > 0:
        raise DatasetError("bad_formula", f"{formula[:40]!r} is no chemical formula. Write it like Ag(AuS)2.")
    return {number: count / total for number, count in stack[0].items() if count > 0}


def composition_statistics(fractions: Mapping[int, float]) -> np.ndarray:
    """Mean, deviation, least, largest, range of every property, and the spread of the fractions [5 P + 3]."""
    _, table = element_table()
    share = np.array(list(fractions.values()))
    rows = table[list(fractions)]  # [E, P]
    mean = share @ rows
    deviation = np.sqrt(share @ (rows - mean) ** 2)
    low, high = rows.min(axis=0), rows.max(axis=0)
    spread = [len(share), -(share * np.log(share)).sum(), share.max()]
    return np.concatenate([mean, deviation, low, high, high - low, spread]).astype(np.float32)


class CompositionEncoder(Encoder):
    """Statistics through two layers, plus elements that attend to one another, pooled by their fraction."""

    kind = "composition"

    def __init__(self, dim: int) -> None:
        super().__init__()
        _, table = element_table()
        self.dim = dim
        width = 5 * table.shape[1] + 3 + len(table)
        self.standard, self.layers = Standard(width), perceptron(width, dim)
        self.register_buffer("properties", torch.tensor(table, dtype=torch.float32), persistent=False)
        self.properties: Tensor
        self.element = nn.Linear(table.shape[1], dim)
        self.name = nn.Embedding(len(table), dim)
        nn.init.normal_(self.name.weight, std=BY_NAME)
        self.share = nn.Linear(2, dim)
        self.blocks = nn.ModuleList(Block(dim, _HEADS, mlp_ratio=2) for _ in range(_DEPTH))
        self.norm = nn.LayerNorm(dim)

    @classmethod
    def fit(cls, values: Sequence[Any], dim: int) -> Self:
        """Formulas of training rows."""
        encoder = cls(dim)
        encoder.standard.learn(torch.stack([encoder.item(value)["vector"] for value in values]))
        return encoder

    def item(self, value: Any) -> Item:
        """A formula as its statistics with the fraction of every element, and its elements with theirs.

        Raises DatasetError `bad_formula`.
        """
        fractions = parse_formula(str(value))
        numbers, shares = torch.tensor(list(fractions)), torch.tensor(list(fractions.values()), dtype=torch.float32)
        every = torch.zeros(len(self.properties)).index_put((numbers,), shares)
        return {
            "vector": torch.cat([torch.from_numpy(composition_statistics(fractions)), every]),
            "numbers": numbers,
            "shares": shares,
        }

    @property
    def fixed_width(self) -> int:
        """Of the statistics, and of the fraction of every element."""
        return len(self.standard.mean)

    def fixed(self, items: Sequence[Item]) -> Tensor:
        """The statistics, scaled [B, F]."""
        scaled: Tensor = self.standard(torch.stack([item["vector"] for item in items]))
        return scaled

    def forward(self, items: Sequence[Item]) -> Tensor:
        """[B, D]."""
        whole = self.layers(self.fixed(items))
        numbers, mask = padded([item["numbers"] for item in items])  # [B, E]
        shares, _ = padded([item["shares"] for item in items])
        amounts = torch.stack([shares, shares.clamp_min(1e-5).log()], dim=-1)
        x = self.element(self.properties[numbers]) + self.name(numbers) + self.share(amounts)
        for block in self.blocks:
            x = block(x, mask)
        pooled = (x * shares[..., None]).sum(dim=1)  # [B, D]; a padded place has no share
        vectors: Tensor = self.norm(whole + pooled)
        return vectors

    def settings(self) -> dict[str, Any]:
        """Width."""
        return {"dim": self.dim}

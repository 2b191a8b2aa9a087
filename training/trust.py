"""How far each of several heads is to be trusted: temperatures and shares, chosen on held-out groups.

Every group counts once. Knows nothing about how a head came to what it says.

Letters: N rows, K outputs, C classes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from assistant.evidence import fit_temperature
from assistant.plain import CONSTANT, FUSED, pooled, softmax

ROUNDS = 10
"""Of choosing: shares are tenths."""
FEWEST = 6
"""Held-out groups below which there is no choice, and the fused head speaks alone."""
_FOLDS = 5
_LEAST = 1e-4
"""Probability below which a miss is not counted as a greater one."""


@dataclass(frozen=True)
class Trust:
    """What was chosen."""

    shares: dict[str, float]
    """By head, together 1."""
    temperatures: dict[str, float]
    """By head; empty for numbers."""
    losses: dict[str, float]
    """By head, on the rows it was chosen on: -log probability of the truth, or absolute error."""

    def said(self, told: Mapping[str, np.ndarray]) -> np.ndarray:
        """What heads say together: probabilities [N, C] of their logits, or numbers [N, 1]."""
        return pooled(_opinions(told, self.temperatures), self.shares)

    @property
    def sentence(self) -> str:
        """Who speaks, in words."""
        if len(self.shares) == 1:
            (name,) = self.shares
            if name == FUSED:
                return "The fused head speaks alone."
            return f"A linear head on {name} speaks alone: the fused head brought nothing on held-out groups."
        parts = [f"{name} {share:.0%}" for name, share in sorted(self.shares.items(), key=lambda pair: -pair[1])]
        plain = min(self.losses.keys() - {FUSED}, key=lambda name: self.losses[name])
        better = self.losses[plain] <= self.losses[FUSED]
        held = f"; a linear head on {plain} alone was as good as the fused head on held-out groups" if better else ""
        return f"Heads speak together, by shares: {', '.join(parts)}{held}."


def trusted(told: Mapping[str, np.ndarray], truth: np.ndarray, groups: Sequence[str]) -> Trust:
    """Temperatures, then shares by adding the head that helps most, ten times over (Caruana et al. 2004).

    `told` has logits [N, C] or numbers [N, 1] by head; `truth` [N] is of integers for classes.
    """
    sizes = Counter(groups)
    weights = np.array([1.0 / (sizes[group] * len(sizes)) for group in groups])
    temperatures: dict[str, float] = {}
    if truth.dtype.kind == "i":
        for name, logits in told.items():
            here = np.isfinite(logits).all(axis=1)
            temperatures[name] = (
                1.0
                if name == CONSTANT or not here.any()
                else fit_temperature(*(torch.from_numpy(part[here]) for part in (logits, truth, weights)))
            )
    opinions = _opinions(told, temperatures)
    losses = {name: _loss(pooled(opinions, {name: 1.0}), truth, weights) for name in told}
    if len(set(groups)) < FEWEST:
        return Trust({FUSED: 1.0}, temperatures, losses)
    chosen: list[str] = []
    best, shares = np.inf, {FUSED: 1.0}
    for _ in range(ROUNDS):
        tried = {name: _loss(pooled(opinions, _shares([*chosen, name])), truth, weights) for name in told}
        chosen.append(min(tried, key=lambda name: tried[name]))
        if tried[chosen[-1]] < best:
            best, shares = tried[chosen[-1]], _shares(chosen)
    return Trust(shares, temperatures, losses)


def crossed(told: Mapping[str, np.ndarray], truth: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """What heads say together of rows, each by a choice in which its group had no say: to calibrate on."""
    order = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    fold = np.array([order.index(group) % _FOLDS for group in groups])
    said: dict[int, np.ndarray] = {}
    for number in sorted(set(fold.tolist())):
        rest, out = fold != number, fold == number
        if not rest.any():
            rest = out
        trust = trusted(
            {name: told[name][rest] for name in told}, truth[rest], [g for g, r in zip(groups, rest, strict=True) if r]
        )
        for row, one in zip(np.flatnonzero(out), trust.said({n: told[n][out] for n in told}), strict=True):
            said[int(row)] = one
    return np.stack([said[row] for row in range(len(fold))])


def _opinions(told: Mapping[str, np.ndarray], temperatures: Mapping[str, float]) -> dict[str, np.ndarray]:
    return {name: softmax(out / temperatures[name]) if temperatures else out for name, out in told.items()}


def _shares(chosen: Sequence[str]) -> dict[str, float]:
    return {name: count / len(chosen) for name, count in Counter(chosen).items()}


def _loss(said: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    if truth.dtype.kind == "i":
        miss = -np.log(np.maximum(said[np.arange(len(truth)), truth], _LEAST))
    else:
        miss = np.abs(said[:, 0] - truth)
    return float(weights @ miss)

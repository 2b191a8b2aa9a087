"""Whether two samples of grouped rows come from the same source: energy distance, with p by permuting whole groups.

Rows of one group (a wafer, a lot) are alike, so any new group differs from all the others row by row; only whole groups
may change places. Knows nothing about pictures or models.

Letters: I rows, F features, G groups of both samples, M permutations.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from assistant.conformal import distances_between

PERMUTATIONS = 1999
_TIE = 1e-9
"""What floating point does to equal distances, relative."""


@dataclass(frozen=True)
class Difference:
    """How far two samples lie apart."""

    distance: float
    """Energy distance of rows scaled by the spread of both samples together, every group counting once; 0 for equal."""
    p: float
    """Share of the ways to deal out the groups that part them as far or farther."""
    least: float
    """The smallest p that so few groups can give."""


def difference(
    ours: np.ndarray,
    our_groups: Sequence[Hashable],
    theirs: np.ndarray,
    their_groups: Sequence[Hashable],
    *,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> Difference:
    """Compare rows [I, F] with others [I', F]; all ways to deal out the groups are tried where they are few enough."""
    names = [("ours", group) for group in our_groups] + [("theirs", group) for group in their_groups]
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    members = np.array([places[name] for name in names])[None] == np.arange(len(places))[:, None]
    shares = members / members.sum(axis=1, keepdims=True)
    apart = shares @ _lengths(np.concatenate([ours, theirs]).astype(np.float64)) @ shares.T  # [G, G]
    count = len(set(our_groups))
    every = math.comb(len(places), count)
    observed = np.zeros((1, len(places)), bool)
    observed[0, :count] = True
    seen = _energy(apart, observed)[0]
    if every <= permutations:
        dealt = _energy(apart, _masks(combinations(range(len(places)), count), len(places)))
        return Difference(float(seen), float((dealt >= seen * (1 - _TIE)).mean()), 1 / every)
    random = np.random.default_rng(seed)
    drawn = (random.permutation(len(places))[:count] for _ in range(permutations))
    dealt = _energy(apart, _masks(drawn, len(places)))
    reached = int((dealt >= seen * (1 - _TIE)).sum())
    return Difference(float(seen), (1 + reached) / (1 + permutations), 1 / (1 + permutations))


def holm(p: Sequence[float]) -> list[float]:
    """p values of several tests, raised so that one of them is below a level by chance no more often than one test."""
    raised, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(np.argsort(p, kind="stable")):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        raised[place] = highest
    return raised


def _masks(chosen: Iterator[Sequence[int]] | Iterator[np.ndarray], groups: int) -> np.ndarray:
    rows = np.array(list(chosen))
    masks = np.zeros((len(rows), groups), bool)
    np.put_along_axis(masks, rows, True, axis=1)
    return masks


def _energy(apart: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """Energy distance [M] of the groups that masks [M, G] choose to the others, from distances [G, G] of groups."""
    one = ours / ours.sum(axis=1, keepdims=True)
    other = ~ours / (~ours).sum(axis=1, keepdims=True)
    gap = one - other
    energy: np.ndarray = -((gap @ apart) * gap).sum(axis=1)
    return energy


def _lengths(rows: np.ndarray) -> np.ndarray:
    """Euclidean distances [I, I] of rows [I, F] scaled to spread 1, by the root of F."""
    spread = rows.std(axis=0)
    scaled = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    lengths = distances_between(scaled, scaled) / math.sqrt(max(rows.shape[1], 1))
    np.fill_diagonal(lengths, 0.0)
    return lengths

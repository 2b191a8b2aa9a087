"""Sets and intervals that hold the truth as often as they promise, and what is too far from all that was learned.

Split-conformal prediction with the finite-sample quantile, over held-out groups: rows of one group (a wafer, a lot)
are alike, so each group counts once (Lee, Barber and Willett 2023). Knows nothing about models.

Letters: I held-out rows, G groups, C classes, F features.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

_FARTHEST = 99.0
"""Percentile of the training rows' distances beyond which a row is unknown."""
_NEIGHBOURS = 3
COMPONENTS = 32


def quantile_by_group(scores: np.ndarray, groups: Sequence[Hashable], coverage: float) -> float:
    """The score [I] that a row of a new group stays below with probability `coverage`.

    Every group has weight 1 / (G + 1), shared by its rows, and the new one stands at infinity: with groups of one row
    that is the ceil((I + 1) coverage)-th smallest score. inf where there are too few groups to promise anything.
    """
    sizes = Counter(groups)
    order = np.argsort(scores, kind="stable")
    weights = np.array([1.0 / sizes[groups[i]] for i in order])
    reached = np.cumsum(weights) >= coverage * (len(sizes) + 1) - 1e-9
    return float(scores[order[np.argmax(reached)]]) if reached.any() else math.inf


def groups_needed(coverage: float) -> int:
    """The fewest held-out groups that let a coverage be promised."""
    return math.ceil(coverage / (1.0 - coverage) - 1e-9)


def class_scores(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How strange the true class is [I]: 1 - its probability, of probabilities [I, C]."""
    strange: np.ndarray = 1.0 - probabilities[np.arange(len(truth)), truth]
    return strange


def class_set(probabilities: np.ndarray, quantile: float) -> list[int]:
    """Classes [C] that are no stranger than the quantile, the most probable first; none where all are."""
    return [int(c) for c in np.argsort(-probabilities, kind="stable") if 1.0 - probabilities[c] <= quantile]


def number_scores(values: np.ndarray, deviations: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How far off a value is [I], in its own predicted deviations."""
    off: np.ndarray = np.abs(truth - values) / deviations
    return off


@dataclass(frozen=True)
class Familiarity:
    """How far a row's features lie from those of training: the mean distance to the nearest, in whitened components."""

    centre: np.ndarray  # [F]
    axes: np.ndarray  # [F, K], scaled to deviation 1
    known: np.ndarray  # [I, K]
    limit: float
    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # [I, F]
    """Those of the training rows themselves; none in what an older version wrote."""
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0))  # [I]
    """Rows with one number are of one group."""

    @classmethod
    def of(cls, features: np.ndarray, groups: Sequence[Hashable]) -> Familiarity:
        """Learn from training features [I, F]; the limit is that of rows against those of other groups."""
        centre = features.mean(axis=0)
        _, spread, axes = np.linalg.svd(features - centre, full_matrices=False)
        deviations = spread / math.sqrt(max(len(features) - 1, 1))
        count = min(COMPONENTS, int((deviations > 1e-3 * deviations[:1].max(initial=1e-12)).sum()))
        scaled = (axes[:count] / deviations[:count, None]).T
        known = (features - centre) @ scaled
        codes = {group: place for place, group in enumerate(dict.fromkeys(groups))}
        marks = np.array([codes[group] for group in groups])
        lengths = distances_between(known, known)
        lengths[marks[:, None] == marks[None]] = np.inf
        near = np.sort(lengths, axis=1)[:, :_NEIGHBOURS]
        near = near[np.isfinite(near).all(axis=1)]
        limit = float(np.percentile(near.mean(axis=1), _FARTHEST)) if len(near) else math.inf
        return cls(centre, scaled, known, limit, features, marks)

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Distance of rows [I, F] from training, in units of the limit: above 1 is unknown."""
        lengths = distances_between(self.components(features), self.known)
        near: np.ndarray = np.sort(lengths, axis=1)[:, :_NEIGHBOURS].mean(axis=1)
        return near / self.limit

    def components(self, features: np.ndarray) -> np.ndarray:
        """Rows [I, F] in the whitened components of training [I, K]."""
        whitened: np.ndarray = (features - self.centre) @ self.axes
        return whitened


def distances_between(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Euclidean distances [I, J] of rows [I, K] to others [J, K]."""
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(rows, others))  # not by a product, whose rounding parts equal rows

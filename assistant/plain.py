"""Plain heads, linear on what is known of a row before anything is learned: the bar that a fused head has to clear.

Logistic for classes, ridge for numbers; the majority and the mean are the head that looks at nothing. A predictor holds
them beside its own head and gives each the share that held-out groups bear out. Knows nothing about encoders.

Letters: N rows, F width of the vectors, K outputs, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

FUSED, CONSTANT = "fused", "constant"
"""The name of the head behind the fusion, and of the one that looks at nothing."""
_STRENGTH = 1.0
"""Inverse of the penalty on the weights of a logistic head."""
_RIDGE = 10.0
"""Penalty on the weights of a ridge, times the number of vectors' columns over the number of rows."""
_NEVER = -30.0
"""Logit of a class that no row taught."""


@dataclass(frozen=True)
class PlainHead:
    """One linear layer on the vectors of some modalities."""

    modalities: tuple[str, ...]
    """None for what looks at nothing."""
    weight: np.ndarray  # [F, K]
    bias: np.ndarray  # [K]

    def outputs(self, vectors: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        """Logits of classes, or numbers [N, K]; NaN in a row that lacks a modality (its vector [F] is NaN)."""
        if not self.modalities:
            return np.tile(self.bias, (count, 1))
        told: np.ndarray = np.concatenate([vectors[name] for name in self.modalities], axis=1) @ self.weight + self.bias
        return told

    def softened(self, temperature: float) -> PlainHead:
        """This head with its outputs divided by a temperature."""
        return replace(self, weight=self.weight / temperature, bias=self.bias / temperature)


def fit_plain(vectors: Mapping[str, np.ndarray], truth: np.ndarray, classes: int) -> dict[str, PlainHead]:
    """A plain head on each modality's vectors [N, F], on all of them, and on nothing.

    `truth` [N] has places of classes, or scaled numbers where `classes` is 0. Rows with NaN in them teach nothing.
    """
    used: list[tuple[str, ...]] = [(), *((name,) for name in vectors)]
    if len(vectors) > 1:
        used.append(tuple(vectors))
    heads = {}
    for names in used:
        rows = np.concatenate([vectors[name] for name in names] or [np.zeros((len(truth), 0))], axis=1)
        here = np.isfinite(rows).all(axis=1)
        head = (_logistic if classes else _ridge)(names, rows[here], truth[here], classes)
        if head is not None:
            heads[" + ".join(names) or CONSTANT] = head
    return heads


def pooled(told: Mapping[str, np.ndarray], shares: Mapping[str, float]) -> np.ndarray:
    """The mean of what heads say [N, K], by their shares.

    A head has no say where it said NaN; where no head with a share has, the fused one speaks alone.
    """
    names = [name for name, share in shares.items() if share > 0]
    said = np.stack([told[name] for name in names])  # [H, N, K]
    weight = np.array([shares[name] for name in names])[:, None] * np.isfinite(said).all(axis=2)  # [H, N]
    total = weight.sum(axis=0)[:, None]
    mean = (weight[..., None] * np.nan_to_num(said)).sum(axis=0) / np.maximum(total, 1e-12)
    together: np.ndarray = np.where(total > 0, mean, told[FUSED])
    return together


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, C] of logits; NaN stays NaN."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = raised / raised.sum(axis=-1, keepdims=True)
    return probabilities


def supported(probabilities: np.ndarray, groups: int) -> np.ndarray:
    """Probabilities [N, C], none above what so many held-out groups can bear out: (G + 1/2) / (G + 1).

    That is how likely the next of G + 1 is right where all of G were, by the rule of Jeffreys, Krichevsky and Trofimov.
    What is taken away goes to all classes alike, so their order stays.
    """
    classes = probabilities.shape[-1]
    if classes < 2:
        return probabilities
    even = min(0.9, 0.5 * classes / ((classes - 1) * (groups + 1)))
    bounded: np.ndarray = (1.0 - even) * probabilities + even / classes
    return bounded


def _logistic(names: tuple[str, ...], rows: np.ndarray, truth: np.ndarray, classes: int) -> PlainHead | None:
    from sklearn.linear_model import LogisticRegression

    taught, counts = np.unique(truth, return_counts=True)
    if not len(taught) or (names and len(taught) < 2):
        return None
    weight, bias = np.zeros((rows.shape[1], classes)), np.full(classes, _NEVER)
    if not names:
        bias[taught] = np.log(counts / counts.sum())
        return PlainHead(names, weight, bias)
    fitted = LogisticRegression(C=_STRENGTH, max_iter=3000).fit(rows, truth)
    slopes, starts = fitted.coef_, fitted.intercept_
    if len(taught) == 2:  # one row of weights stands for two classes
        slopes, starts = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-starts, starts]) / 2
    weight[:, taught], bias[taught] = slopes.T, starts
    return PlainHead(names, weight, bias)


def _ridge(names: tuple[str, ...], rows: np.ndarray, truth: np.ndarray, classes: int) -> PlainHead | None:
    from sklearn.linear_model import Ridge

    if not len(truth):
        return None
    if not names:
        return PlainHead(names, np.zeros((0, 1)), np.array([np.median(truth)]))
    fitted = Ridge(alpha=_RIDGE).fit(rows, truth)
    return PlainHead(names, fitted.coef_[:, None], np.array([fitted.intercept_]))

"""How much a prediction rests on: evidence for classes (Dirichlet) and for numbers (normal-inverse-gamma).

Sensoy et al. 2018; Amini et al. 2020. Knows nothing about what is predicted.

Letters: B rows, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MISSING = -1


@dataclass(frozen=True)
class ClassEvidence:
    """A Dirichlet over the classes: alpha = softplus(logits) + 1, p = alpha / S, uncertainty u = C / S in 0..1."""

    alpha: Tensor  # [B, C]
    probability: Tensor  # [B, C]
    uncertainty: Tensor  # [B]

    def verdict(self, threshold: float) -> Tensor:
        """Most probable class [B], or MISSING where the uncertainty is above the threshold."""
        return self.probability.argmax(dim=-1).masked_fill(self.uncertainty > threshold, MISSING)


def evidence(logits: Tensor) -> ClassEvidence:
    """Class logits [B, C] as evidence."""
    alpha = F.softplus(logits) + 1.0
    strength = alpha.sum(dim=-1, keepdim=True)  # [B, 1]
    return ClassEvidence(alpha, alpha / strength, logits.shape[-1] / strength.squeeze(-1))


def evidential_loss(logits: Tensor, labels: Tensor, *, annealing: float) -> Tensor:
    """Expected squared error under the Dirichlet, and `annealing` times the divergence of wrong evidence from none.

    Sensoy et al., equation 5 and the regulariser after it; let `annealing` rise from 0 to 1 over the first epochs.
    """
    given = evidence(logits)
    target = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)  # [B, C]
    strength = given.alpha.sum(dim=-1, keepdim=True)
    variance = given.probability * (1.0 - given.probability) / (strength + 1.0)
    error = ((target - given.probability) ** 2 + variance).sum(dim=-1)  # [B]
    wrong = target + (1.0 - target) * given.alpha
    return (error + annealing * divergence_from_uniform(wrong)).mean()


def divergence_from_uniform(alpha: Tensor) -> Tensor:
    """KL(Dir(alpha) || Dir(1)) of [B, C] -> [B]."""
    strength = alpha.sum(dim=-1)
    classes = torch.tensor(float(alpha.shape[-1]), dtype=alpha.dtype, device=alpha.device)
    normaliser = strength.lgamma() - classes.lgamma() - alpha.lgamma().sum(dim=-1)
    spread = (alpha - 1.0) * (alpha.digamma() - strength.digamma()[..., None])
    return normaliser + spread.sum(dim=-1)


@dataclass(frozen=True)
class NumberEvidence:
    """A normal with unknown mean and variance: normal-inverse-gamma with parameters gamma, v, alpha > 1, beta."""

    mean: Tensor  # [B], gamma
    v: Tensor  # [B]
    alpha: Tensor  # [B]
    beta: Tensor  # [B]

    @property
    def noise(self) -> Tensor:
        """Expected variance of the data [B], beta / (alpha - 1): what more data would not mend."""
        return self.beta / (self.alpha - 1.0)

    @property
    def doubt(self) -> Tensor:
        """Variance of the mean [B], beta / (v (alpha - 1)): what more data would mend."""
        return self.noise / self.v

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of a value [B]."""
        return (self.noise + self.doubt).sqrt()


def number_evidence(raw: Tensor) -> NumberEvidence:
    """Four outputs of a head [B, 4] as evidence."""
    mean, v, alpha, beta = raw.unbind(-1)
    return NumberEvidence(mean, F.softplus(v) + 1e-4, F.softplus(alpha) + 1.0 + 1e-2, F.softplus(beta) + 1e-6)


def number_likelihood_loss(given: NumberEvidence, truth: Tensor) -> Tensor:
    """Negative log-likelihood [B] of values under the evidence, a Student t (Amini et al., equation 8)."""
    omega = 2.0 * given.beta * (1.0 + given.v)
    return (
        0.5 * (math.pi / given.v).log()
        - given.alpha * omega.log()
        + (given.alpha + 0.5) * ((truth - given.mean) ** 2 * given.v + omega).log()
        + given.alpha.lgamma()
        - (given.alpha + 0.5).lgamma()
    )


def number_loss(raw: Tensor, truth: Tensor, *, regularisation: float = 0.01) -> Tensor:
    """Absolute error of the mean, plus the likelihood of the spread around it, plus evidence where the mean is wrong.

    The likelihood does not move the mean: its gradient there fades where the spread is large, and what is hard to
    learn would not be learned.
    """
    given = number_evidence(raw)
    error = (truth - given.mean).abs()
    fixed = NumberEvidence(given.mean.detach(), given.v, given.alpha, given.beta)
    wrong = error.detach() * (2.0 * given.v + given.alpha)
    return (error + number_likelihood_loss(fixed, truth) + regularisation * wrong).mean()


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities [B, C] of logits divided by a temperature."""
    return (logits / temperature).softmax(dim=-1)


def fit_temperature(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """The temperature under which held-out logits [B, C] are most likely, between 0.05 and 20 (Guo et al. 2017).

    Rows count by their weights [B], or all alike.
    """
    counted = weights if weights is not None else torch.full((len(labels),), 1.0 / max(len(labels), 1))
    low, high = math.log(0.05), math.log(20.0)
    ratio = (math.sqrt(5.0) - 1.0) / 2.0

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log_temperature), labels, reduction="none") @ counted.to(logits))

    with torch.no_grad():
        for _ in range(40):  # golden section: the loss is convex in 1 / T, so it has one valley in log T
            left, right = high - ratio * (high - low), low + ratio * (high - low)
            low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp((low + high) / 2.0)

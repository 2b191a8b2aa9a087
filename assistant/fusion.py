"""Modality vectors into one: early, intermediate, late or gated, whichever of them a row has. Knows no encoder.

Letters: B rows, M modalities, S streams, C classes, D width, h heads.

An absent modality is behind a mask, with a learned null in its place where a network has no mask: what stands there is
never read, not even NaN. In training, modalities that are there are dropped too, and what was dropped has to be told
from what stayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.attention import CrossAttention, feed_forward
from assistant.errors import ConfigError

Strategy = Literal["early", "intermediate", "late", "gated"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


@dataclass(frozen=True)
class Fused:
    """What a row's modalities became. A head predicts from every stream, and predictions are mixed by `shares`."""

    streams: Tensor  # [B, S, D]: one, or with late fusion one per modality
    shares: Tensor  # [B, S], rows sum to 1
    weights: Tensor  # [B, M], rows sum to 1, 0 where absent
    tokens: Tensor  # [B, M, D], the modalities as they were fused, 0 where absent
    present: Tensor  # [B, M], after dropping
    reconstruction: Tensor  # [], 1 - cosine between what was dropped and what was told of it
    disorder: Tensor  # [], how far the weights are from even: 0 for even ones, 1 for one modality alone

    @property
    def vector(self) -> Tensor:
        """The streams in one [B, D]."""
        return (self.shares[:, None] @ self.streams).squeeze(1)


class Fusion(nn.Module):
    """Fuses `modalities` vectors of width `dim`.

    `experts` > 0 puts that many networks behind the fusion, of which each row uses the `top_k` that its noisy router
    prefers. Raises ConfigError `strategy`, `heads` or `experts`.
    """

    def __init__(
        self,
        dim: int,
        modalities: int,
        strategy: str = "intermediate",
        *,
        heads: int = 4,
        depth: int = 1,
        experts: int = 0,
        top_k: int = 2,
    ) -> None:
        super().__init__()
        if strategy not in STRATEGIES:
            raise ConfigError("strategy", f"{strategy!r} is no fusion strategy. Choose {', '.join(STRATEGIES)}.")
        if dim % heads:
            raise ConfigError("heads", f"The width {dim} is not a multiple of {heads} heads. Change either.")
        if experts and not 0 < top_k <= experts:
            raise ConfigError("experts", f"{top_k} of {experts} experts cannot be chosen. Change either.")
        self.modalities = modalities
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(modalities))
        makers: dict[str, Any] = {
            "early": lambda: Early(dim, modalities),
            "intermediate": lambda: Intermediate(dim, modalities, heads, depth),
            "late": lambda: Late(dim, modalities),
            "gated": lambda: ModalityGate(dim, modalities),
        }
        self.join = makers[strategy]()
        self.experts = NoisyExperts(dim, experts, top_k) if experts else None
        self.reconstruct = nn.Linear(dim, modalities * dim)

    def forward(self, vectors: Tensor, present: Tensor, *, drop: float = 0.0) -> Fused:
        """Vectors [B, M, D] and presence [B, M], one at least in a row; `drop` is a probability, used in training."""
        kept = present & surviving(present, drop) if self.training and drop > 0 else present
        given = vectors.masked_fill(~present[..., None], 0.0)
        normed = torch.stack([norm(v) for norm, v in zip(self.norms, given.unbind(1), strict=True)], dim=1)
        tokens = normed.masked_fill(~kept[..., None], 0.0)
        streams, shares, weights = self.join(tokens, kept)
        if self.experts is not None:
            streams = self.experts(streams)
        fused = (shares[:, None] @ streams).squeeze(1)
        told = self.reconstruct(fused).unflatten(-1, (self.modalities, -1))  # [B, M, D]
        missed = 1.0 - F.cosine_similarity(told, normed.detach(), dim=-1)
        dropped = present & ~kept
        return Fused(
            streams,
            shares,
            weights,
            tokens,
            kept,
            (missed * dropped).sum() / dropped.sum().clamp_min(1),
            disorder(weights, kept),
        )


def surviving(present: Tensor, drop: float) -> Tensor:
    """Which modalities [B, M] survive when each is dropped with a probability; a row that would lose all keeps all."""
    kept = torch.rand(present.shape, device=present.device) >= drop
    return kept | ~(kept & present).any(dim=1, keepdim=True)


def drop_probability(progress: float, highest: float = 0.3) -> float:
    """Probability of dropping a modality: from 0 up to `highest` at half of the training, then constant."""
    return highest * min(1.0, 2.0 * progress)


def disorder(weights: Tensor, present: Tensor) -> Tensor:
    """Mean over the rows of 1 - entropy / largest entropy of the weights [B, M]; rows with one modality count 0."""
    count = present.sum(dim=1).to(weights.dtype)
    entropy = -(weights * weights.clamp_min(1e-12).log()).sum(dim=1)  # torch.special.entr has no slope at 0
    return torch.where(count > 1, 1.0 - entropy / count.clamp_min(2).log(), torch.zeros_like(entropy)).mean()


Joined = tuple[Tensor, Tensor, Tensor]
"""Streams [B, S, D], shares [B, S], weights [B, M]."""


class Early(nn.Module):
    """All vectors side by side, nulls in their places, through one network."""

    def __init__(self, dim: int, modalities: int) -> None:
        super().__init__()
        self.nulls = nn.Parameter(torch.randn(modalities, dim) * dim**-0.5)
        self.layers = nn.Sequential(
            nn.Linear(modalities * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim), nn.LayerNorm(dim)
        )

    def forward(self, tokens: Tensor, present: Tensor) -> Joined:
        """Tokens [B, M, D], presence [B, M]."""
        joined = self.layers(torch.where(present[..., None], tokens, self.nulls).flatten(1))
        return joined[:, None], *_even(tokens, present)


class Late(nn.Module):
    """A stream of its own per modality; predictions of those that are there count alike."""

    def __init__(self, dim: int, modalities: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(feed_forward(dim, 2), nn.LayerNorm(dim)) for _ in range(modalities))

    def forward(self, tokens: Tensor, present: Tensor) -> Joined:
        """Tokens [B, M, D], presence [B, M]."""
        streams = [layer(token) for layer, token in zip(self.layers, tokens.unbind(1), strict=True)]
        _, weights = _even(tokens, present)
        return torch.stack(streams, dim=1), weights, weights


class ModalityGate(nn.Module):
    """Input-dependent mixture of modality vectors (dynamic fusion): a softmax over those that are there."""

    def __init__(self, dim: int, modalities: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(modalities, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.bias = nn.Parameter(torch.zeros(modalities))

    def forward(self, tokens: Tensor, present: Tensor) -> Joined:
        """Tokens [B, M, D], presence [B, M]."""
        scores = (tokens * self.weight).sum(dim=-1) + self.bias  # [B, M]
        weights = scores.masked_fill(~present, float("-inf")).softmax(dim=-1)
        return weights[:, None] @ tokens, weights.new_ones(len(weights), 1), weights


class Intermediate(nn.Module):
    """Every modality looks at all others and is looked at by them (MultiFusion-LLM, MatMMFuse), then a gate mixes.

    With two modalities that is cross-attention in both directions.
    """

    def __init__(self, dim: int, modalities: int, heads: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CrossModalBlock(dim, modalities, heads) for _ in range(depth))
        self.gate = ModalityGate(dim, modalities)

    def forward(self, tokens: Tensor, present: Tensor) -> Joined:
        """Tokens [B, M, D], presence [B, M]."""
        for layer in self.layers:
            tokens = layer(tokens, present)
        joined: Joined = self.gate(tokens, present)
        return joined


class CrossModalBlock(nn.Module):
    """x_m + Attention(LN x_m; LN x_others), then a feed-forward; each modality with weights of its own."""

    def __init__(self, dim: int, modalities: int, heads: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(dim)
        self.cross = nn.ModuleList(CrossAttention(dim, heads) for _ in range(modalities if modalities > 1 else 0))
        self.norm, self.mlp = nn.LayerNorm(dim), feed_forward(dim, 2)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Tokens [B, M, D], presence [B, M] -> [B, M, D]."""
        normed, looked = self.before(tokens), []
        for m, cross in enumerate(self.cross):
            others = [other for other in range(tokens.shape[1]) if other != m]
            seen = cross(normed[:, m, None], normed[:, others], present[:, others])
            looked.append(seen * present[:, others].any(dim=1)[:, None, None])  # nobody there: nothing is added
        x = tokens + torch.cat(looked, dim=1) if looked else tokens
        changed: Tensor = x + self.mlp(self.norm(x))
        return changed


class NoisyExperts(nn.Module):
    """Several networks, of which each vector uses the k that a router prefers (Shazeer et al. 2017).

    In training the router's scores carry noise of a learned scale; the chosen ones are weighed by a softmax.
    """

    def __init__(self, dim: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.experts = nn.ModuleList(feed_forward(dim, 2) for _ in range(experts))
        self.router, self.noise = nn.Linear(dim, experts), nn.Linear(dim, experts)

    def gates(self, x: Tensor) -> Tensor:
        """[.., D] -> [.., E]: k of them positive, together 1."""
        scores = self.router(x)
        if self.training:
            scores = scores + torch.randn_like(scores) * F.softplus(self.noise(x))
        best = scores.topk(self.top_k, dim=-1)
        return torch.full_like(scores, float("-inf")).scatter(-1, best.indices, best.values).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)  # [.., E, D]
        mixed: Tensor = x + (self.gates(x)[..., None, :] @ outputs).squeeze(-2)
        return mixed


class ClassTexts(nn.Module):
    """Class logits from what texts say of all classes (MultiFusion-LLM, arXiv 2408.13661).

    A row always meets the texts of all classes, never that of its own class alone: one text would tell the label.
    A class is scored from its own text by weights all classes share, so the order of the classes does not matter and
    a class can be added by its text. `attention=False` is the paper's ablation: the texts enter as they are.
    """

    def __init__(self, dim: int, heads: int = 4, *, attention: bool = True) -> None:
        super().__init__()
        self.row_to_texts = CrossAttention(dim, heads) if attention else None
        self.text_to_row = CrossAttention(dim, heads) if attention else None
        self.score = nn.Sequential(nn.Linear(4 * dim, dim), nn.GELU(), nn.Linear(dim, 1))

    def forward(self, vectors: Tensor, tokens: Tensor, present: Tensor, texts: Tensor) -> Tensor:
        """Fused [B, D], modalities [B, M, D], which are there [B, M] and class texts [C, D] -> logits [B, C].

        A class sees the row, what the row took from all texts, and its own text with what it took from the row's
        modalities, and the product of row and text, by which a linear layer can compare the two.
        """
        known = texts.expand(len(vectors), -1, -1)  # [B, C, D]
        looked, seen = known.mean(dim=1, keepdim=True), known
        if self.row_to_texts is not None and self.text_to_row is not None:
            looked = self.row_to_texts(vectors[:, None], known)
            seen = known + self.text_to_row(known, tokens, present)
        row = vectors[:, None].expand_as(seen)  # [B, C, D]
        logits: Tensor = self.score(torch.cat((row, looked.expand_as(seen), seen, row * seen), dim=-1)).squeeze(-1)
        return logits


def _even(tokens: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of one stream [B, 1], and weights [B, M] alike for all that are there."""
    there = present.to(tokens.dtype)
    return tokens.new_ones(len(tokens), 1), there / there.sum(dim=1, keepdim=True)

"""MultiFusion head: image vectors x knowledge texts of all classes -> class logits. Knows nothing about encoders.

Letters: B images, L scales, C classes, T knowledge tokens, M modalities, D width, Dt text width, h heads.

MultiFusion-LLM (arXiv 2408.13661). An image always meets the texts of all classes, never that of its own class alone:
one text would tell the label. A class is scored from its own text state by weights all classes share, so the order
of the classes does not matter and a class can be added by its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.attention import CrossAttention
from assistant.errors import ConfigError

UNKNOWN = -1


class AttentionPooling(nn.Module):
    """Softmax attention over the tokens of a text: a_i = softmax_i(u^T tanh(W t_i)), sum_i a_i t_i."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.key = nn.Linear(dim, dim, bias=False)
        self.query = nn.Linear(dim, 1, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token states [C, T, Dt], mask [C, T] False at padding -> one vector per text [C, Dt]."""
        scores = self.query(self.key(tokens).tanh()).squeeze(-1)  # [C, T]
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        pooled: Tensor = (scores.softmax(dim=-1)[:, None] @ tokens).squeeze(1)  # [C, Dt]
        return pooled


class ModalityGate(nn.Module):
    """Input-dependent mixture of modality vectors; an absent modality has weight 0."""

    def __init__(self, dim: int, modalities: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(modalities, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.bias = nn.Parameter(torch.zeros(modalities))

    def forward(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [B, M, D] and presence [B, M], one at least in a row -> mixture [B, D] and weights [B, M]."""
        scores = (vectors * self.weight).sum(dim=-1) + self.bias  # [B, M]
        weights = scores.masked_fill(~present, float("-inf")).softmax(dim=-1)
        return (weights[:, None] @ vectors).squeeze(1), weights


class MultiFusion(nn.Module):
    """Class logits from the image at all scales, the knowledge texts of all classes, and further modality vectors.

    Three switches reproduce the ablation of the paper. `use_hnf=False`: `fused` is a plain image vector; there is no
    hierarchy for the texts to attend to, and `scales` is not read. `use_text=False`: no knowledge, a linear layer
    over `classes` scores. `use_mha=False`: the class texts enter as they are and as their mean, without attention.
    `modalities` counts the vectors beside the image. Raises ConfigError `heads`, and `modalities` where as many
    vectors do not come.
    """

    def __init__(
        self,
        dim: int,
        text_dim: int,
        classes: int,
        heads: int = 4,
        *,
        modalities: int = 0,
        use_hnf: bool = True,
        use_text: bool = True,
        use_mha: bool = True,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError("heads", f"MultiFusion width {dim} is not a multiple of {heads} heads. Change either.")
        self.modalities = modalities
        self.image_norm = nn.LayerNorm(dim)
        self.gate = ModalityGate(dim, 1 + modalities) if modalities else None
        self.modality_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(modalities))
        self.linear = None if use_text else nn.Linear(dim, classes)
        if use_text:
            self.pooling = AttentionPooling(text_dim)
            self.text = nn.Sequential(nn.Linear(text_dim, dim), nn.LayerNorm(dim))
            self.image_to_text = CrossAttention(dim, heads) if use_mha else None
            self.text_to_image = CrossAttention(dim, heads) if use_mha and use_hnf else None
            self.score = nn.Sequential(nn.Linear(4 * dim, dim), nn.GELU(), nn.Linear(dim, 1))

    def forward(
        self,
        fused: Tensor,
        scales: Tensor,
        knowledge: Tensor,
        knowledge_mask: Tensor | None = None,
        *,
        extras: Sequence[Tensor] = (),
        present: Tensor | None = None,
    ) -> Tensor:
        """Fused vector [B, D], scale vectors [B, L, D], knowledge tokens [C, T, Dt] with mask [C, T] -> logits [B, C].

        `extras` are the further modality vectors [B, D]; `present` [B, M] tells which a row has (None: all).
        """
        image = self.image_norm(fused)
        image, _ = self.mix(image, extras, present)
        if self.linear is not None:
            logits: Tensor = self.linear(image)
            return logits
        texts = self.text(self.pooling(knowledge, knowledge_mask))  # [C, D]
        return self._score(image, scales, texts.expand(len(image), -1, -1))

    def mix(self, image: Tensor, extras: Sequence[Tensor], present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Image vector [B, D] with its further modalities -> mixture [B, D] and weights [B, 1 + M], image first."""
        if len(extras) != self.modalities:
            raise ConfigError(
                "modalities", f"{len(extras)} modality vectors for {self.modalities} modalities. Give one for each."
            )
        if self.gate is None:
            return image, image.new_ones(len(image), 1)
        if present is None:
            present = torch.ones(len(image), self.modalities, dtype=torch.bool, device=image.device)
        # What stands in an absent place may be anything, also NaN: it is blanked before it meets a weight.
        given = [extra.masked_fill(~here[:, None], 0.0) for extra, here in zip(extras, present.T, strict=True)]
        normed = [norm(extra) for norm, extra in zip(self.modality_norms, given, strict=True)]
        vectors = torch.stack([image, *normed], dim=1)  # [B, 1 + M, D]
        mixed: tuple[Tensor, Tensor] = self.gate(vectors, F.pad(present, (1, 0), value=True))
        return mixed

    def _score(self, image: Tensor, scales: Tensor, texts: Tensor) -> Tensor:
        """Image [B, D], its scales [B, L, D] and class texts [B, C, D] -> logits [B, C].

        A class sees the image, what the image took from all texts (v'), and its own text (t') with its product with
        the image, by which a linear layer can compare the two.
        """
        looked, seen = texts.mean(dim=1, keepdim=True), texts  # [B, 1, D], [B, C, D]
        if self.image_to_text is not None:
            looked = self.image_to_text(image[:, None], texts)
        if self.text_to_image is not None:
            seen = texts + self.text_to_image(texts, self.image_norm(scales))
        image = image[:, None].expand_as(seen)  # [B, C, D]
        features = torch.cat((image, looked.expand_as(seen), seen, image * seen), dim=-1)  # [B, C, 4 D]
        logits: Tensor = self.score(features).squeeze(-1)  # [B, C]
        return logits


@dataclass(frozen=True)
class ClassEvidence:
    """A Dirichlet over the classes: alpha = softplus(logits) + 1, p = alpha / S, uncertainty u = C / S in 0..1."""

    alpha: Tensor  # [B, C]
    probability: Tensor  # [B, C]
    uncertainty: Tensor  # [B]

    def verdict(self, threshold: float) -> Tensor:
        """Most probable class [B], or UNKNOWN where the uncertainty is above the threshold."""
        return self.probability.argmax(dim=-1).masked_fill(self.uncertainty > threshold, UNKNOWN)


def evidence(logits: Tensor) -> ClassEvidence:
    """Class logits [B, C] as evidence (Sensoy et al. 2018)."""
    alpha = F.softplus(logits) + 1.0
    strength = alpha.sum(dim=-1, keepdim=True)  # [B, 1]
    return ClassEvidence(alpha, alpha / strength, logits.shape[-1] / strength.squeeze(-1))


def evidential_loss(logits: Tensor, labels: Tensor, *, annealing: float) -> Tensor:
    """Expected squared error under the Dirichlet, and `annealing` times the divergence of wrong evidence from none.

    Sensoy et al. 2018, equation 5 and the regulariser after it; let `annealing` rise from 0 to 1 over the first epochs.
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

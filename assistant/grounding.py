"""Text encoder, image-grounded text encoder, and the losses that match images and texts. Knows nothing about pixels.

Letters: B texts, T text tokens with the two states, N visual tokens, D text width, Dv visual width, h heads.

The encoders are the text half of MAEMI (arXiv 2408.13248) and MVaEMa (2409.07463), after BLIP's mixture of encoders;
the gates are Flamingo's: zero at the start, so a fresh grounded encoder passes the text states through unchanged by
the image.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.attention import Block, CrossAttention, SelfAttention, feed_forward
from assistant.errors import ConfigError

CLS, ENC = 0, 1
"""Positions of the two learned states in front of a text: summary of the text alone, summary of text and image."""
STATES = 2

WEIGHT_FLOOR = 1e-4
SHUT = 0.01
"""A gate nearer to zero than this has learned nothing: shut gates stay at 0.001 after a hundred steps."""


class GroundedBlock(nn.Module):
    """Self-attention, then gated cross-attention to the image, then a gated feed-forward layer.

    s = x + Attention(LN x);  c = s + tanh(a) XAttn(LN s, V);  c + tanh(b) FFN(LN c);  a = b = 0 at the start.
    """

    def __init__(self, dim: int, heads: int, image_dim: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(dim), SelfAttention(dim, heads)
        self.cross_norm, self.cross = nn.LayerNorm(dim), CrossAttention(dim, heads, image_dim)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), feed_forward(dim)
        self.cross_gate = nn.Parameter(torch.zeros(()))
        self.mlp_gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, mask: Tensor, visual: Tensor, visual_mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask)
        x = x + self.cross_gate.tanh() * self.cross(self.cross_norm(x), visual, visual_mask)
        z: Tensor = x + self.mlp_gate.tanh() * self.mlp(self.mlp_norm(x))
        return z

    def looks(self, x: Tensor, mask: Tensor, visual: Tensor, visual_mask: Tensor | None) -> Tensor:
        """The cross-attention of `forward` as a map [B, h, T, N]."""
        x = x + self.attention(self.attention_norm(x), mask)
        return self.cross.weights(self.cross_norm(x), visual, visual_mask)


class GroundedTextEncoder(nn.Module):
    """Bidirectional transformer over question and auxiliary text, with learned positions.

    Raises ConfigError `heads`, and `text_too_long` for more than `max_tokens` tokens.
    """

    def __init__(
        self, vocab_size: int, dim: int, depth: int, heads: int, *, max_tokens: int = 192, pad_id: int = 0
    ) -> None:
        super().__init__()
        _check_heads(dim, heads)
        self.max_tokens = max_tokens
        self.tokens = nn.Embedding(vocab_size, dim, padding_idx=pad_id)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.states = nn.Parameter(torch.empty(1, STATES, dim).normal_(std=0.02))
        self.positions = nn.Parameter(torch.empty(1, max_tokens, dim).normal_(std=0.02))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask [B, T] (False at padding) -> states [B, T + 2, D], [CLS] and [ENC] first."""
        batch, length = ids.shape
        if length > self.max_tokens:
            raise ConfigError(
                "text_too_long",
                f"The text encoder got {length} tokens and takes {self.max_tokens}. "
                "Shorten the text or raise text_encoder.max_tokens.",
            )
        x = self.tokens(ids) + self.positions[:, :length]  # [B, T, D]
        x = torch.cat((self.states.expand(batch, -1, -1), x), dim=1)  # [B, T + 2, D]
        mask = F.pad(mask, (STATES, 0), value=True)
        for block in self.blocks:
            x = block(x, mask)
        encoded: Tensor = self.norm(x)
        return encoded


class GroundedEncoder(nn.Module):
    """Image-grounded text encoder: text states that have looked at the image.

    Raises ConfigError `heads`.
    """

    def __init__(self, dim: int, depth: int, heads: int, image_dim: int) -> None:
        super().__init__()
        _check_heads(dim, heads)
        self.visual_norm = nn.LayerNorm(image_dim)
        self.blocks = nn.ModuleList(GroundedBlock(dim, heads, image_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, text: Tensor, text_mask: Tensor, visual: Tensor, visual_mask: Tensor | None = None) -> Tensor:
        """States [B, T, D] with mask [B, T]; visual tokens [B, N, Dv], their mask [B, N] or None -> [B, T, D]."""
        visual = self.visual_norm(visual)
        x = text
        for block in self.blocks:
            x = block(x, text_mask, visual, visual_mask)
        grounded: Tensor = self.norm(x)
        return grounded

    @torch.no_grad()
    def open_gates(self, start: float) -> None:
        """Set gates that are still shut to `start`; gates that have learned keep their place."""
        for block in map(_as_block, self.blocks):
            for gate in (block.cross_gate, block.mlp_gate):
                if abs(float(gate)) < SHUT:
                    gate.fill_(start)

    @torch.no_grad()
    def attention(self, text: Tensor, text_mask: Tensor, visual: Tensor, visual_mask: Tensor | None = None) -> Tensor:
        """Where every block looks, from what `forward` gets: [B, blocks, h, T, N], rows sum to one."""
        visual, x = self.visual_norm(visual), text
        maps: list[Tensor] = []
        for block in self.blocks:
            maps.append(_as_block(block).looks(x, text_mask, visual, visual_mask))
            x = block(x, text_mask, visual, visual_mask)
        return torch.stack(maps, dim=1)


class MatchingHead(nn.Module):
    """Image-text matching: the logit that a text belongs to the image it was grounded in."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, grounded: Tensor) -> Tensor:
        """Grounded states [B, T, D] -> logits [B], read from [ENC]."""
        logits: Tensor = self.score(grounded[:, ENC]).squeeze(-1)
        return logits


def matching_loss(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy over the pairs [B] that `mask` keeps; 0 where it keeps none."""
    mask = torch.ones_like(logits) if mask is None else mask.to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return (losses * mask).sum() / mask.sum().clamp(min=1.0)


def similarity_of(image_vec: Tensor, text_vec: Tensor, temperature: float) -> Tensor:
    """Cosines of images (rows) and texts (columns) over the temperature: [B, D] twice -> [B, B]."""
    cosines: Tensor = F.normalize(image_vec, dim=-1) @ F.normalize(text_vec, dim=-1).mT
    return cosines / temperature


def contrastive_loss(similarity: Tensor, same_caption: Tensor) -> Tensor:
    """Symmetric image-text contrast over a batch of pairs, from `similarity_of`; 0 for no pairs.

    Pairs of different rows with the same caption (`same_caption` [B, B]) are no negatives of each other.
    """
    target = torch.arange(len(similarity), device=similarity.device)
    paired = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    similarity = similarity.masked_fill((same_caption | same_caption.mT) & ~paired, float("-inf"))
    both = torch.cat((similarity, similarity.mT))  # [2 B, B]
    return F.cross_entropy(both, target.repeat(2), reduction="sum") / max(len(both), 1)


@torch.no_grad()
def hard_negatives(
    similarity: Tensor, same_caption: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one hard negative image per text and one hard negative text per image, the likelier the more similar.

    similarity [B, B] of images (rows) and texts (columns); same_caption [B, B] marks pairs that are no negatives.
    Returns image_for_text [B], text_for_image [B] and the mask [B] of rows that have a legal negative; the others
    hold their own index. Weights are softmax(similarity) + 1e-4 (BLIP): equal similarities draw any legal pair.
    Without a generator torch's own draws.
    """
    paired = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    legal = ~(same_caption | same_caption.mT | paired)
    valid = legal.any(dim=-1)  # [B], the same for images and texts: legal is symmetric
    fallback = paired & ~valid[:, None]
    text_for_image = _draw(similarity, legal, fallback, generator)
    image_for_text = _draw(similarity.mT, legal, fallback, generator)
    return image_for_text, text_for_image, valid


def _draw(similarity: Tensor, legal: Tensor, fallback: Tensor, generator: torch.Generator | None) -> Tensor:
    """One column per row; rows without a legal one give their own index."""
    # What is not finite draws as zero would: the loss, not finite either, is what tells of it.
    weights = (similarity.float().softmax(dim=-1).nan_to_num() + WEIGHT_FLOOR) * legal + fallback
    if not len(weights):  # multinomial refuses to draw from nothing
        return torch.arange(0, device=weights.device)
    if generator is None:
        return weights.multinomial(1).squeeze(-1)
    drawn = weights.to(generator.device).multinomial(1, generator=generator)
    return drawn.squeeze(-1).to(similarity.device)


def _as_block(module: nn.Module) -> GroundedBlock:
    return cast("GroundedBlock", module)


def _check_heads(dim: int, heads: int) -> None:
    if dim % heads:
        raise ConfigError("heads", f"Text width {dim} is not a multiple of {heads} heads. Change either.")

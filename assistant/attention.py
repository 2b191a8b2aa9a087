"""The attention that image, text, class and language-model parts share. Knows nothing about what the tokens are.

Letters: B batch, T tokens that look, N tokens that are looked at, D width, Dc width of what is looked at, h heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head attention of all tokens to one another; `mask` [B, T] is False at tokens that nobody sees."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)  # [B, h, T, D / h]
        mixed: Tensor = self.out(attend(q, k, v, over_keys(mask)))
        return mixed


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context of `context_dim`; blind where the mask hides all of it."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim if context_dim is None else context_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, D], context [B, N, Dc] and its mask [B, N] -> [B, T, D]."""
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).transpose(1, 3).unbind(2)  # [B, h, N, D / h]
        mixed: Tensor = self.out(attend(split_heads(self.q(x), self.heads), k, v, over_keys(mask)))
        return mixed

    def weights(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Where each token (rows) looks in the context (columns): [B, h, T, N], rows sum to one."""
        q = split_heads(self.q(x), self.heads)
        k = self.kv(context).unflatten(-1, (2, self.heads, -1))[:, :, 0].transpose(1, 2)  # [B, h, N, D / h]
        scores = q @ k.mT * q.shape[-1] ** -0.5
        shown: Tensor = scores if mask is None else scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        return shown.softmax(dim=-1).nan_to_num()  # a context hidden whole is looked at nowhere


class Block(nn.Module):
    """Pre-LN transformer block: z' = z + Attention(LN z); z' + MLP(LN z')."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(dim), SelfAttention(dim, heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), feed_forward(dim, mlp_ratio)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, D], mask [B, T] -> [B, T, D]."""
        x = x + self.attention(self.attention_norm(x), mask)
        z: Tensor = x + self.mlp(self.mlp_norm(x))
        return z


def feed_forward(dim: int, ratio: int = 4) -> nn.Sequential:
    """Two linear layers around a GELU, `ratio` times as wide inside."""
    return nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, D] -> [B, h, T, D / h]."""
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def attend(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None = None) -> Tensor:
    """Queries [B, h, T, D / h], keys and values [B, h, N, D / h], `visible` [B, 1, 1 or T, N] -> [B, T, D]."""
    mixed: Tensor = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
    return mixed.transpose(1, 2).flatten(2)


def over_keys(mask: Tensor | None) -> Tensor | None:
    """A mask [B, N] of what is looked at as one of queries and keys [B, 1, 1, N]."""
    return None if mask is None else mask[:, None, None, :]

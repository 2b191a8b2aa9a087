"""Encoder of texts: trained by masked language modelling on the texts at hand, or a frozen one from a local directory.

Its token states are pooled by attention. Numbers are read digit by digit. Knows nothing about what the texts tell.

Letters: B texts, T tokens, H width of a frozen encoder, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.attention import Block
from assistant.encoders.encoder import Encoder, Item, padded
from assistant.errors import ConfigError

PAD, _UNKNOWN, MASK = 0, 1, 2
SPECIAL = ("[PAD]", "[UNK]", "[MASK]")
_VOCABULARY, MOST_TOKENS = 2000, 96
_HEADS, _DEPTH = 4, 2
MASKED = 0.15
_STEPS, BATCH, RATE = 200, 32, 1e-3
"""Of masked language modelling."""


class AttentionPooling(nn.Module):
    """Softmax attention over the tokens of a text: a_i = softmax_i(u^T tanh(W t_i)), sum_i a_i t_i."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.key = nn.Linear(dim, dim, bias=False)
        self.query = nn.Linear(dim, 1, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token states [B, T, D], mask [B, T] False at padding -> one vector per text [B, D]."""
        scores = self.query(self.key(tokens).tanh()).squeeze(-1)  # [B, T]
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        pooled: Tensor = (scores.softmax(dim=-1)[:, None] @ tokens).squeeze(1)
        return pooled


class WordPieceEncoder(Encoder):
    """A small bidirectional transformer over word pieces learned from the texts themselves."""

    kind = "text"

    def __init__(self, tokenizer: str, dim: int) -> None:
        super().__init__()
        from tokenizers import Tokenizer

        self.tokenizer, self.dim = Tokenizer.from_str(tokenizer), dim
        self.embedding = nn.Embedding(self.tokenizer.get_vocab_size(), dim, padding_idx=PAD)
        self.positions = nn.Parameter(torch.randn(MOST_TOKENS, dim) * 0.02)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.blocks = nn.ModuleList(Block(dim, _HEADS, mlp_ratio=2) for _ in range(_DEPTH))
        self.last, self.pooling, self.norm = nn.LayerNorm(dim), AttentionPooling(dim), nn.LayerNorm(dim)

    @classmethod
    def fit(cls, values: Sequence[Any], dim: int, steps: int = _STEPS) -> Self:
        """Word pieces from the texts of training rows, then weights by predicting masked ones."""
        texts = [str(value) for value in values]
        encoder = cls(learn_pieces(texts), dim)
        encoder.pretrain(texts, steps)
        return encoder

    def item(self, value: Any) -> Item:
        """A text as numbers of its pieces [T], cut at `MOST_TOKENS`."""
        numbers = self.tokenizer.encode(str(value)).ids[:MOST_TOKENS] or [_UNKNOWN]
        return {"tokens": torch.tensor(numbers)}

    def states(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pieces [B, T] -> [B, T, D]."""
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        seen: Tensor = self.last(x)
        return seen

    def forward(self, items: Sequence[Item]) -> Tensor:
        """[B, D]."""
        tokens, mask = padded([item["tokens"] for item in items])
        vectors: Tensor = self.norm(self.pooling(self.states(tokens, mask), mask))
        return vectors

    def pretrain(self, texts: Sequence[str], steps: int = _STEPS) -> list[float]:
        """Predict masked pieces of the texts; the loss [nat per masked piece] of every step."""
        items = [self.item(text)["tokens"] for text in texts]
        optimizer = torch.optim.AdamW(self.parameters(), lr=RATE, weight_decay=0.01)
        losses = []
        for _ in range(steps):
            chosen = torch.randint(len(items), (BATCH,)).tolist()
            tokens, mask = padded([items[i] for i in chosen])
            shown, hidden = mask_pieces(tokens, mask, self.embedding.num_embeddings)
            if not hidden.any():
                continue
            logits = self.states(shown, mask)[hidden] @ self.embedding.weight.T
            loss = F.cross_entropy(logits, tokens[hidden])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def settings(self) -> dict[str, Any]:
        """The tokenizer in its own JSON, and the width."""
        return {"tokenizer": self.tokenizer.to_str(), "dim": self.dim}


class FrozenTextEncoder(Encoder):
    """Token states of a Hugging Face encoder in a local directory, which stays as it is; pooling is learned."""

    kind = "frozen_text"

    def __init__(self, path: str, dim: int) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        self.path, self.dim = path, dim
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            # In a list, so that its weights stay out of the state of this encoder: the directory has them.
            self._frozen = [AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True).eval()]
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).split("\n")[0]
            raise ConfigError("no_encoder", f"{path} holds no text encoder ({reason}). Name its directory.") from None
        width = self._frozen[0].config.hidden_size
        self.pooling, self.out = AttentionPooling(width), nn.Sequential(nn.Linear(width, dim), nn.LayerNorm(dim))

    @classmethod
    def fit(cls, values: Sequence[Any], dim: int, path: str = "") -> Self:
        """Nothing is learned beforehand: the directory at `path` knows its words."""
        return cls(path, dim)

    @torch.no_grad()
    def item(self, value: Any) -> Item:
        """A text as the states [T, H] of its tokens."""
        encoded = self.tokenizer(str(value), truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
        return {"states": self._frozen[0](**encoded).last_hidden_state[0]}

    def forward(self, items: Sequence[Item]) -> Tensor:
        """[B, D]."""
        states, mask = padded([item["states"] for item in items])
        vectors: Tensor = self.out(self.pooling(states, mask))
        return vectors

    def settings(self) -> dict[str, Any]:
        """The directory and the width."""
        return {"path": self.path, "dim": self.dim}


def learn_pieces(texts: Sequence[str]) -> str:
    """A word-piece tokenizer learned from texts, as its JSON; every digit stands alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL[_UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.BertPreTokenizer()]
    )
    trainer = trainers.WordPieceTrainer(
        vocab_size=_VOCABULARY, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def mask_pieces(tokens: Tensor, mask: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Hide 15 % of the pieces [B, T]: of these 80 % become [MASK], 10 % another piece, 10 % stay. Shown, hidden."""
    hidden = (torch.rand(tokens.shape) < MASKED) & mask
    how = torch.rand(tokens.shape)
    shown = tokens.masked_fill(hidden & (how < 0.8), MASK)
    other = torch.randint(len(SPECIAL), max(vocabulary, len(SPECIAL) + 1), tokens.shape)
    return torch.where(hidden & (how >= 0.9), other, shown), hidden

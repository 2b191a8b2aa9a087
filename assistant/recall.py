"""Conversations the language model has read, kept so that the next question of one reads what is new alone.

Knows nothing about models: a conversation is its encoded tokens and the keys and values they left in a cache.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from assistant.chat import Encoded

_KEPT_BYTES = 512 * 1024**2
"""Keys and values kept in all: one conversation of 1024 tokens with Llama-2-7B in 16 bit."""

Images = tuple[Hashable, ...]


@dataclass(frozen=True)
class Recalled:
    images: Images
    encoded: Encoded
    cache: Any
    """A `DynamicCache` of one row."""

    @property
    def nbytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


class Recall:
    """The conversations that were read last, within a limit of bytes; safe to share between threads."""

    def __init__(self, limit: int = _KEPT_BYTES) -> None:
        self.limit = limit
        self._kept: list[Recalled] = []
        self._lock = threading.Lock()

    def take(self, images: Images, encoded: Encoded) -> Any:
        """The cache with the longest beginning of a conversation, cut to it, or None. It is the caller's from now on.

        At least one token is left to be read, for there is no answer without its logits.
        """
        with self._lock:
            lengths = [common_beginning(kept, images, encoded) for kept in self._kept]
            longest = min(max(lengths, default=0), len(encoded.input_ids) - 1)
            if longest == 0:
                return None
            cache = self._kept.pop(lengths.index(max(lengths))).cache
        cache.crop(longest - cache.get_seq_length())
        return cache

    def keep(self, images: Images, encoded: Encoded, said: Sequence[int], cache: Any) -> None:
        """Keep what was read: a prompt and the part of its answer that is in the cache."""
        length = cache.get_seq_length()

        def and_said(indices: list[int]) -> list[int]:
            return [*indices, *indices[-1:] * len(said)][:length]

        tokens = [*encoded.input_ids, *said][:length]
        read = Encoded(tokens, [], and_said(encoded.image_index), and_said(encoded.turn_index), encoded.questions)
        with self._lock:
            self._kept.append(Recalled(images, read, cache))
            while sum(kept.nbytes for kept in self._kept) > self.limit:
                self._kept.pop(0)


def common_beginning(kept: Recalled, images: Images, encoded: Encoded) -> int:
    """Tokens at the start of both conversations that look at the same: same token, turn, question and images."""
    if kept.images[: len(images)] != images[: len(kept.images)]:
        return 0
    alike = (one == other for one, other in zip(_seen(kept.encoded), _seen(encoded), strict=False))
    return sum(1 for _ in takewhile(bool, alike))


def _seen(encoded: Encoded) -> list[tuple[Any, ...]]:
    """All that decides what a token becomes, beside the tokens before it."""
    shown = dict(zip(encoded.turn_index, encoded.image_index, strict=True))  # images up to the end of each turn
    return [
        (token, image, turn, encoded.questions[turn - 1], shown[turn])
        for token, image, turn in zip(encoded.input_ids, encoded.image_index, encoded.turn_index, strict=True)
    ]

"""Continuing conversations token by token: one as a stream, or many in slots that are refilled as answers end.

Letters: R rows under way, T tokens a row holds (padded on the left), V vocabulary.

A row is its keys and values in the language model and its visual context, both computed once; a step reads one token
of every row. Greedy answers do not depend on a row's neighbours. Knows nothing about files, prompts or words.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicLayer

from assistant.decoder import VisualContext
from assistant.model import MaemiForConditionalGeneration
from assistant.precision import weights_dtype

SLOTS = 32
"""Conversations continued at one time."""
ROOM = 64
"""Tokens a cache makes room for at a time."""
TokenBatch = Mapping[str, Tensor]
"""Left-padded tensors from `MaemiProcessor`."""
Prepare = Callable[[Sequence[int]], tuple[TokenBatch, VisualContext | None]]
"""Numbers of conversations -> their batch and visual context."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


GREEDY = Sampling()


@dataclass(frozen=True)
class Token:
    """A token that was chosen, with its log-probability and the likeliest in its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


def observed(logits: Tensor, token: int, top: int, text_of: Callable[[int], str]) -> Token:
    """What was chosen from the logits [1, V] of one step; probabilities at temperature 1."""
    scores = logits[0].float().log_softmax(-1)
    best = scores.topk(top)
    likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Token(text_of(token), float(scores[token]), tuple((text_of(index), score) for index, score in likeliest))


class RoomyLayer(DynamicLayer):
    """Keys and values with room for the tokens to come, so that a step copies one token and not all before it."""

    keys: Tensor
    values: Tensor
    room: tuple[Tensor, Tensor] | tuple[()] = ()
    """Storage whose beginning `keys` and `values` are."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [R, h, t, W] -> all of them [R, h, T + t, W]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held, length = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        # The room is made anew where it is full or the keys are no longer its beginning: other methods replace them.
        if not self.room or length > self.room[0].shape[2] or self.room[0].data_ptr() != self.keys.data_ptr():
            self.room = (
                key_states.new_empty(*key_states.shape[:2], length + ROOM, key_states.shape[-1]),
                value_states.new_empty(*value_states.shape[:2], length + ROOM, value_states.shape[-1]),
            )
            if held:
                self.room[0][:, :, :held], self.room[1][:, :, :held] = self.keys, self.values
        keys, values = self.room
        keys[:, :, held:length], values[:, :, held:length] = key_states, value_states
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        return self.keys, self.values


@dataclass(frozen=True)
class Rows:
    """Conversations under way: what the language model has read of them, and what they look at."""

    cache: Cache
    mask: Tensor  # [R, T]: 1 where the cache holds a token, 0 where it holds padding
    image_index: Tensor  # [R, 1] of the last token, and so of every token to come
    turn_index: Tensor  # [R, 1]
    context: VisualContext | None

    def select(self, rows: Sequence[int]) -> Rows:
        """Some rows, in this order, without padding that none of them needs. The old rows must not be used again."""
        index = torch.tensor(rows, device=self.mask.device)
        mask = self.mask[index]
        padding = int(mask.any(0).int().argmax())  # columns that are padding in every row
        self.cache.batch_select_indices(index)
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, padding:], layer.values[:, :, padding:]
        context = self.context.select(index) if self.context is not None else None
        return Rows(self.cache, mask[:, padding:], self.image_index[index], self.turn_index[index], context)

    def joined(self, other: Rows) -> Rows:
        """The rows of both, the shorter ones padded on the left. The old rows must not be used again."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        for mine, its in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_longer(mine.keys, length, -2), _longer(its.keys, length, -2)])
            mine.values = torch.cat([_longer(mine.values, length, -2), _longer(its.values, length, -2)])
        context = self.context
        if context is not None and other.context is not None:
            context = context.joined(other.context)
        return Rows(
            self.cache,
            torch.cat([_longer(self.mask, length, -1), _longer(other.mask, length, -1)]),
            torch.cat([self.image_index, other.image_index]),
            torch.cat([self.turn_index, other.turn_index]),
            context,
        )


@contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Without gradients, in the format of the device's weights. Leave it before every `yield`."""
    in_bfloat16 = weights_dtype(str(device)) == torch.bfloat16
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
        yield


def read(
    student: MaemiForConditionalGeneration,
    batch: TokenBatch,
    context: VisualContext | None,
    cache: Cache | None = None,
) -> tuple[Rows, Tensor]:
    """Read prompts [R, T] -> rows and the logits [R, V] of what follows; `cache` holds what was read before."""
    cache = Cache(layer_class_to_replicate=RoomyLayer) if cache is None else cache
    mask = batch["attention_mask"]
    ids = batch["input_ids"][:, cache.get_seq_length() :]
    images, turns = batch["image_index"], batch["turn_index"]
    logits = _logits(student, ids, mask, images, turns, context, cache, keep=1)
    return Rows(cache, mask, images[:, -1:], turns[:, -1:], context), logits[:, -1]


def advance(student: MaemiForConditionalGeneration, rows: Rows, tokens: Tensor) -> tuple[Rows, Tensor]:
    """Read one token [R] of every row -> the rows with it and the logits [R, V] of what follows."""
    mask = F.pad(rows.mask, (0, 1), value=1)
    logits = _logits(student, tokens[:, None], mask, rows.image_index, rows.turn_index, rows.context, rows.cache)
    return replace(rows, mask=mask), logits[:, -1]


def complete(
    student: MaemiForConditionalGeneration,
    count: int,
    prepare: Prepare,
    *,
    max_new_tokens: int,
    end: int,
    slots: int = SLOTS,
) -> list[list[int]]:
    """Greedy continuations of `count` conversations, in order, each with its end token if it came to one.

    A row that ends frees its slot; once a quarter of the slots are free, waiting conversations are read into them
    together, so the prompts are batched too.
    """
    said: list[list[int]] = [[] for _ in range(count)]
    waiting, owners = deque(range(count)), list[int]()
    rows: Rows | None = None

    def note(logits: Tensor, speakers: Sequence[int]) -> None:
        for number, token in zip(speakers, logits.argmax(-1).tolist(), strict=True):
            said[number].append(token)

    def ended(number: int) -> bool:
        return said[number][-1] == end or len(said[number]) >= max_new_tokens

    with computing(student.device):
        while waiting or owners:
            going = [row for row, number in enumerate(owners) if not ended(number)]
            if not going or len(owners) - len(going) >= max(1, slots // 4):
                rows = rows.select(going) if rows is not None and going else None
                owners = [owners[row] for row in going]
                fresh = [waiting.popleft() for _ in range(min(slots - len(owners), len(waiting)))]
                if fresh:
                    new, logits = read(student, *prepare(fresh))
                    rows = new if rows is None else rows.joined(new)
                    note(logits, fresh)
                    owners += fresh
            elif rows is not None:
                tokens = torch.tensor([said[number][-1] for number in owners], device=student.device)
                rows, logits = advance(student, rows, tokens)
                note(logits[going], [owners[row] for row in going])
    return said


def likelihoods(
    student: MaemiForConditionalGeneration, rows: Rows, logits: Tensor, answers: Sequence[Sequence[int]]
) -> Tensor:
    """Log-probability [C] of each answer after the one prompt of `rows`, whose last logits are given."""
    longest = max(map(len, answers))
    present = torch.tensor([[1] * len(a) + [0] * (longest - len(a)) for a in answers], device=logits.device)
    tokens = torch.tensor([[*a, *[0] * (longest - len(a))] for a in answers], device=logits.device)  # [C, A]
    rows = rows.select([0] * len(answers))
    mask = torch.cat([rows.mask, present[:, :-1]], dim=1)
    later = _logits(student, tokens[:, :-1], mask, rows.image_index, rows.turn_index, rows.context, rows.cache)
    said = torch.cat([logits[:, None].expand(len(answers), -1, -1), later], dim=1)  # [C, A, V]
    chosen = said.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]  # [C, A]
    return (chosen * present).sum(-1)


def next_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Logits [R, V] -> tokens [R]: the best one, or a draw from the smallest set of tokens that holds `top_p`."""
    if sampling.temperature <= 0.0:
        return logits.argmax(-1)
    probabilities, order = (logits.float() / sampling.temperature).softmax(-1).sort(-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    kept[:, 0] = probabilities[:, 0]
    return order.gather(-1, torch.multinomial(kept, 1, generator=generator))[:, 0]


def _logits(
    student: MaemiForConditionalGeneration,
    ids: Tensor,
    mask: Tensor,
    image_index: Tensor,
    turn_index: Tensor,
    context: VisualContext | None,
    cache: Cache,
    *,
    keep: int = 0,
) -> Tensor:
    """Logits [R, T', V] after the last `keep` of some tokens [R, T], or after all of them."""
    output = student(
        ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
        image_index=image_index,
        turn_index=turn_index,
        context=context,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
    )
    logits: Tensor = output.logits
    return logits


def _longer(tensor: Tensor, length: int, dim: int) -> Tensor:
    """Padded with zeros at the start of a dimension, counted from the end."""
    gap = length - tensor.shape[dim]
    return F.pad(tensor, [0, 0] * (-1 - dim) + [gap, 0]) if gap else tensor

"""A causal language model with gated cross-attention to the visual memory. Knows nothing about images or questions.

Letters: B batch, T text tokens, M memory tokens, D width of the language model, W bottleneck width, h heads.

Image tokens never enter the language model's sequence: before every n-th decoder layer a block attends to the memory,
`y <- y + tanh(a) XAttn(LN y, M)`, then `y <- y + tanh(b) FFN(LN y)` (MAEMI, arXiv 2408.13248; gates as in Flamingo).
Both gates start at zero, so an untrained student equals its base model exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.attention import attend, split_heads
from assistant.errors import MaemiError, RunError
from assistant.families import PARTS_INSIDE, family_of, language_settings

ANY_TURN = 0
PADDING = -1


@dataclass(frozen=True)
class VisualMemory:
    """What the decoder may attend to, token by token.

    A text token of image index k and turn t sees a memory token when its image index is in 0..k and its turn is t
    or `ANY_TURN`; `PADDING` as image index hides it from everything.
    """

    tokens: Tensor  # [B, M, Dm]
    image_index: Tensor  # [B, M]
    turn_index: Tensor  # [B, M]

    def compacted(self) -> VisualMemory:
        """The same memory without padding that no row needs: tokens keep their order, padding moves to the end."""
        present = self.image_index != PADDING
        order = (~present).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(present.sum(1).max())]  # [B, M']
        tokens = self.tokens.gather(1, order[..., None].expand(-1, -1, self.tokens.shape[-1]))
        return VisualMemory(tokens, self.image_index.gather(1, order), self.turn_index.gather(1, order))


@dataclass(frozen=True)
class VisualContext:
    """Keys and values of a visual memory for every cross-attention block: computed once, attended to at every step."""

    keys: tuple[Tensor, ...]  # per block [B, h, 1 + M, W / h]
    values: tuple[Tensor, ...]
    image_index: Tensor  # [B, M]
    turn_index: Tensor  # [B, M]

    def visible(self, image_index: Tensor, turn_index: Tensor) -> Tensor:
        """Mask [B, 1, T, 1 + M] of what text tokens of these indices [B, T] see; slot 0, the sink, is always seen."""
        image, turn = self.image_index[:, None], self.turn_index[:, None]  # [B, 1, M]
        shown = (image != PADDING) & (image <= image_index[..., None])
        current = (turn == ANY_TURN) | (turn == turn_index[..., None])
        return F.pad(shown & current, (1, 0), value=True)[:, None]  # [B, 1, T, 1 + M]

    def select(self, rows: Tensor) -> VisualContext:
        """Some rows, in this order; a row may come several times, for beams and several samples."""
        keys, values = (tuple(tensor[rows] for tensor in tensors) for tensors in (self.keys, self.values))
        return VisualContext(keys, values, self.image_index[rows], self.turn_index[rows])

    def joined(self, other: VisualContext) -> VisualContext:
        """The rows of both; the shorter memory is padded at its end, where nothing sees it."""

        def join(one: Tensor, its: Tensor, dim: int, value: int) -> Tensor:
            longest = max(one.shape[dim], its.shape[dim])
            ends = [0, 0] * (-1 - dim)
            return torch.cat([F.pad(t, [*ends, 0, longest - t.shape[dim]], value=value) for t in (one, its)])

        return VisualContext(
            tuple(join(*pair, -2, 0) for pair in zip(self.keys, other.keys, strict=True)),
            tuple(join(*pair, -2, 0) for pair in zip(self.values, other.values, strict=True)),
            join(self.image_index, other.image_index, -1, PADDING),
            join(self.turn_index, other.turn_index, -1, ANY_TURN),
        )


class GatedCrossAttention(nn.Module):
    """Bottleneck cross-attention and feed-forward, each behind a tanh gate that starts closed."""

    def __init__(self, dim: int, *, memory_dim: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, width, bias=False)
        self.key_value = nn.Linear(memory_dim, 2 * width, bias=False)
        self.out = nn.Linear(width, dim, bias=False)
        self.sink = nn.Parameter(torch.randn(width) * 0.02)
        self.gate = nn.Parameter(torch.zeros(1))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * width), nn.GELU(), nn.Linear(2 * width, dim)
        )
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def keys_values(self, memory: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Memory [B, M, Dm] and index embedding [B, M, W] -> keys and values [B, h, 1 + M, W / h]."""
        keys, values = self.key_value(memory).chunk(2, dim=-1)  # [B, M, W]
        sink = self.sink.to(keys.dtype).expand(len(memory), 1, -1)
        keys = torch.cat([sink, keys + index], dim=1)  # [B, 1 + M, W]
        values = F.pad(values, (0, 0, 1, 0))
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, index: Tensor, visible: Tensor) -> Tensor:
        """x [B, T, D], index embedding [B, T, W], visible [B, 1, T, 1 + M] -> [B, T, D]."""
        queries = split_heads(self.query(self.norm(x)) + index, self.heads)  # [B, h, T, W / h]
        x = x + self.gate.tanh() * self.out(attend(queries, keys, values, visible))
        z: Tensor = x + self.feed_forward_gate.tanh() * self.feed_forward(x)
        return z


class Decoder(nn.Module):
    """Wires a language model to gated cross-attention before every n-th of its layers.

    The blocks enter through forward pre-hooks, so the module names of the language model stay its own: adapters,
    quantisation and checkpoints of the plain model fit unchanged. The visual context travels as a keyword argument,
    never as state, so gradient checkpointing recomputes with the same memory.
    """

    lm: Any
    """The language model, or a PEFT model around it."""

    def __init__(self, lm: Any, *, memory_dim: int, width: int, heads: int, every: int, max_images: int) -> None:
        super().__init__()
        self.lm = lm
        layers = decoder_layers(lm)
        dim = lm.config.hidden_size
        attended = range(0, len(layers), every)
        self.blocks = nn.ModuleList(
            GatedCrossAttention(dim, memory_dim=memory_dim, width=width, heads=heads) for _ in attended
        )
        self.index = nn.Embedding(max_images + 1, width)
        nn.init.normal_(self.index.weight, std=0.02)
        self.max_images = max_images
        for position, layer in enumerate(layers):
            block = position // every if position in attended else None
            layer.register_forward_pre_hook(self._attend_before(block), with_kwargs=True)

    def context(self, memory: VisualMemory) -> VisualContext:
        """Keys and values of every block for a visual memory."""
        index = self.index(memory.image_index.clamp(0, self.max_images))  # [B, M, W]
        blocks: list[Any] = list(self.blocks)
        pairs = [block.keys_values(memory.tokens, index) for block in blocks]
        keys, values = zip(*pairs, strict=True)
        return VisualContext(keys, values, memory.image_index, memory.turn_index)

    def forward(
        self,
        input_ids: Tensor,
        *,
        context: VisualContext | None,
        image_index: Tensor,
        turn_index: Tensor,
        with_logits: bool = True,
        **lm_arguments: Any,
    ) -> Any:
        """Token ids, image and turn indices [B, T] -> the language model's output; no context, no cross-attention.

        `with_logits=False` stops before the output head, at the last hidden states [B, T, D].
        """
        visual = None
        if context is not None:
            index = self.index(image_index.clamp(0, self.max_images))  # [B, T, W]
            visual = (context, index, context.visible(image_index, turn_index))
        lm = self.lm if with_logits else self.lm.get_decoder()
        return lm(input_ids=input_ids, visual=visual, **lm_arguments)

    def _attend_before(self, block: int | None) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            visual = kwargs.pop("visual", None)
            if block is None or visual is None:
                return args, kwargs
            context, index, visible = visual
            hidden: Tensor = self.blocks[block](args[0], context.keys[block], context.values[block], index, visible)
            return (hidden.to(args[0].dtype), *args[1:]), kwargs

        return hook


def decoder_layers(lm: nn.Module) -> nn.ModuleList:
    """The list of decoder layers of a language model. Raises ConfigError `unknown_family`."""
    family = family_of(type(lm).__name__, getattr(getattr(lm, "config", None), "model_type", None))
    layers = lm.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def load_language_model(source: str, *, quantization: str, device: str, dtype: torch.dtype) -> Any:
    """`AutoModelForCausalLM` from a local directory or hub id, frozen, quantised tensor by tensor while it loads.

    `quantization="nf4"`: 4-bit NormalFloat with double quantisation (QLoRA), computing in `dtype`. Weights are read
    from safetensors alone.
    Raises ConfigError `unknown_family`, and RunError `no_model` where it cannot be loaded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}, "use_safetensors": True}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        whole = AutoConfig.from_pretrained(source, trust_remote_code=False)
        settings = language_settings(source, whole)
        if settings is not whole:
            options |= {"config": settings, "key_mapping": PARTS_INSIDE}
        lm, loaded = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, output_loading_info=True, **options
        )
        lm.config._name_or_path = source
        if loaded["missing_keys"]:  # which would be drawn at random without a word
            raise ValueError(f"it has no {sorted(loaded['missing_keys'])[0]}.")
    except MaemiError:
        raise
    except Exception as error:  # every loader below has exceptions of its own
        reason = str(error).split("\n")[0]
        where = "a local directory" if Path(source).exists() else "a hub id (needs --online) or a local directory"
        raise RunError("no_model", f"language model {source!r} cannot be loaded: {reason} Give {where}.") from None
    return lm.requires_grad_(False).eval()


def align_index(index: Tensor, *, past: int, length: int) -> Tensor:
    """The part of a prompt's index [B, T] that belongs to tokens past..past + length.

    Generated tokens, beyond the prompt, belong to its last image and its last turn.
    """
    missing = past + length - index.shape[1]
    if missing > 0:
        index = torch.cat([index, index[:, -1:].expand(-1, missing)], dim=1)
    return index[:, past : past + length]

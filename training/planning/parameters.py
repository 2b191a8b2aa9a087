"""Numbers of parameters of a student's own parts, from its settings alone: a plan needs no torch and no weights.

Mirrors the constructors of `assistant/`; a test builds students of many settings and holds every count against them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from assistant.config import Config, HNFConfig, TextEncoderConfig
from training.planning.shapes import ImageEncoderSizes, LanguageModelShape, image_encoder_sizes

_STATES = 2  # learned states of the text encoder, as in assistant/grounding.py


@dataclass(frozen=True)
class StudentParameters:
    """Parameters of everything but the language model and its adapter."""

    vit: int
    rest: int


def student_parameters(config: Config, shape: LanguageModelShape) -> StudentParameters:
    """Parameters of encoders, grounding and cross-attention. Raises ConfigError `unknown_tower`."""
    text, decoder = config.text_encoder, config.decoder
    vit, dim = image_encoder_sizes(config.vit), decoder.cross_attention_dim
    projections = linear(vit.dim, dim) + linear(config.hnf.dim, dim) + linear(text.dim, dim)
    matching = linear(text.dim, 1) + linear(vit.dim, text.dim) + linear(text.dim, text.dim)
    attended = math.ceil(shape.layers / decoder.cross_attention_every)
    cross = attended * cross_attention(shape.hidden, dim) + (decoder.max_images + 1) * dim
    rest = hnf(config.image_size, config.hnf) + text_encoders(text, shape.vocab, image_dim=dim)
    return StudentParameters(
        image_encoder(config.image_size, vit, tower=config.vit.tower is not None),
        rest + projections + matching + cross,
    )


def linear(d_in: int, d_out: int, *, bias: bool = True) -> int:
    return d_out * (d_in + bias)


def norm(dim: int) -> int:
    return 2 * dim


def feed_forward_parameters(dim: int) -> int:
    return linear(dim, 4 * dim) + linear(4 * dim, dim)


def transformer_block(dim: int) -> int:
    """Self-attention and MLP, each behind a norm."""
    return 2 * norm(dim) + linear(dim, 3 * dim) + linear(dim, dim) + feed_forward_parameters(dim)


def image_encoder(image_size: int, vit: ImageEncoderSizes, *, tower: bool) -> int:
    """A plain ViT on one channel. A tower sees three, has no bias on its patches and a norm before its blocks."""
    channels = 3 if tower else 1
    patches = linear(channels * vit.patch_size**2, vit.dim, bias=not tower)
    positions = ((image_size // vit.patch_size) ** 2 + 1) * vit.dim
    norms = norm(vit.dim) * (2 if tower else 1)
    return patches + vit.dim + positions + vit.depth * transformer_block(vit.dim) + norms


def hnf(image_size: int, settings: HNFConfig) -> int:
    """Every scale with its patches, two directions of its ODE, graph and gate; class token and virtual node."""
    dim = settings.dim
    if settings.dynamics == "fields":
        direction = linear(dim, 4 * dim) + 4 * dim + linear(2 * dim, dim)
    else:  # a field of two layers and a GRU cell, whose three gates have two biases each
        direction = 2 * linear(dim, dim) + 2 * linear(dim, 3 * dim)
    ode = 2 * direction + linear(2 * dim, dim)
    graph = settings.order * dim**2 + dim + norm(dim)
    gate = linear(2 * dim, dim)
    patches = sum(linear(p**2, dim) + (image_size // p) ** 2 * dim for p in settings.patch_sizes)
    return patches + len(settings.patch_sizes) * (ode + graph + gate) + 2 * dim


def text_encoders(settings: TextEncoderConfig, vocabulary: int, *, image_dim: int) -> int:
    """Text encoder, and image-grounded encoder with a gate on what it saw and one on its MLP."""
    dim = settings.dim
    plain = (vocabulary + _STATES + settings.max_tokens) * dim + settings.depth * transformer_block(dim) + norm(dim)
    seeing = 2 * linear(dim, dim) + linear(image_dim, 2 * dim) + norm(dim) + 2
    grounded = norm(image_dim) + settings.grounded_depth * (transformer_block(dim) + seeing) + norm(dim)
    return plain + grounded


def cross_attention(hidden: int, width: int) -> int:
    """One gated block of the decoder: bottleneck attention without biases, a sink, an MLP, two gates."""
    query, key_value, out = hidden * width, width * 2 * width, width * hidden
    attention = norm(hidden) + query + key_value + out + width
    return attention + norm(hidden) + linear(hidden, 2 * width) + linear(2 * width, hidden) + 2

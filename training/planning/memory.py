"""Predicted memory of one fine-tuning step, part by part, and the settings that would make it fit a card.

Arithmetic on shapes: nothing is downloaded and no weights are made. Knows nothing about how much memory there is.

Letters: D width and F inner width of the language model, T tokens of the batch, V vocabulary, r rank, E experts.
Sizes are in bytes; p is the size of one number in the compute dtype (2 for bfloat16).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from assistant.adapter_kinds import AdapterSettings
from assistant.config import Config, HNFConfig
from assistant.errors import ConfigError
from assistant.families import FAMILIES
from assistant.precision import number_format
from assistant.starts import BUNDLED, Start, start_of
from training.planning.parameters import student_parameters
from training.planning.shapes import (
    BUNDLED_SHAPE,
    LanguageModelShape,
    image_encoder_sizes,
    language_model_shape,
    shape_in,
)

GIB = 1024**3
CARDS = (6, 8, 12, 16, 24)  # [GiB]
USABLE = 0.93  # share of a card that one process can fill before fragmentation stops it
CUDA_CONTEXT = int(0.45 * GIB)  # driver context, libraries and their workspaces
PROCESS = int(0.9 * GIB)  # Python with torch, transformers, PEFT and datasets, and what allocators hold
FP32, BF16 = 4, 2
NF4_BLOCK, SCALE_BLOCK = 64, 256
LOSS_CHUNK = 512  # answer tokens whose logits exist at one time, as in assistant/loss.py
MOMENTS = {"fp32": 2.0 * FP32, "8bit": 2.0 * (1 + FP32 / 256)}  # of one weight; a block of 256 has a scale
NF4_CODES = 16 * FP32 + 256 * FP32  # code books of weights and of scales, once per tensor

# ---------------------------------------------------------------------------------- weights


def nf4_bytes(parameters: int) -> int:
    """Size of one tensor in NF4 with double quantisation (QLoRA, 2305.14314): 4.127 bit per weight and code books."""
    blocks = math.ceil(parameters / NF4_BLOCK)
    scales = blocks + math.ceil(blocks / SCALE_BLOCK) * FP32 + FP32  # 8-bit scales, their scales, their offset
    return math.ceil(parameters / 2) + scales + NF4_CODES


def linear_bytes(shape: LanguageModelShape, quantization: str, *, p: int) -> int:
    """Size of all linear layers inside the decoder layers."""
    if quantization == "none":
        return shape.linear_parameters * p
    return shape.layers * sum(nf4_bytes(d_in * d_out) for d_in, d_out in shape.linears.values())


def planned_adapter_parameters(shape: LanguageModelShape, adapter: AdapterSettings) -> tuple[int, int]:
    """Trained and frozen parameters of an adapter, as its kind counts them."""
    trained, frozen = adapter.parameters(shape.linears)
    return shape.layers * trained, shape.layers * frozen


# ---------------------------------------------------------------------------------- activations


def layer_activations(shape: LanguageModelShape, adapter: AdapterSettings, *, p: int, masked_tokens: int = 0) -> int:
    """Bytes one decoder layer keeps per token for backward, its base frozen.

    Kept are the inputs of all norms and their fp32 scales, q, k, v, the attention's output and log-sums, and two of
    the inner width: gate and up (`assistant/activations.py`). An adapter adds what its kind keeps. Attention under a
    padding mask (`masked_tokens` in a row) also keeps its copy of the mask, and k and v repeated for every query head.
    """
    kv = shape.query_width if masked_tokens else shape.kv_width
    attention = p * (2 * shape.query_width + 2 * kv + masked_tokens) + FP32 * shape.heads
    family = FAMILIES[shape.family]
    norms = family.layer_norms * (p * shape.hidden + FP32)
    if family.head_norms:
        norms += p * (shape.query_width + shape.kv_width) + FP32 * (shape.heads + shape.kv_heads)
    return attention + norms + 2 * p * shape.intermediate + adapter.kept(shape.linears, itemsize=p)


def cross_attention_activations(hidden: int, width: int, heads: int, *, p: int) -> int:
    """Bytes one cross-attention block keeps per text token: two fp32 norms over D, their outputs, both gated sums."""
    norms = 2 * (FP32 * hidden + 2 * FP32 + p * hidden)
    attention = 3 * p * width + FP32 * heads
    return norms + attention + 2 * p * hidden + 2 * p * 2 * width


def block_activations(dim: int, heads: int, *, p: int) -> int:
    """Bytes a pre-LN transformer block with a four times wider MLP keeps per token; its residual stream is fp32."""
    norms = 2 * (FP32 * dim + 2 * FP32 + p * dim)
    return norms + p * (3 * dim + dim) + FP32 * heads + 2 * p * 4 * dim


def hnf_activations(image_size: int, hnf: HNFConfig, *, p: int) -> int:
    """Bytes HNF keeps per image: every evaluation of both token fields, then graph and gate, scale by scale.

    An upper bound for the dynamics "ode_rnn", whose fields are smaller.
    """
    dim, heads = hnf.dim, hnf.heads or max(1, hnf.dim // 64)
    total = 0
    for patch in hnf.patch_sizes:
        patches = (image_size // patch) ** 2
        tokens = patches + 1
        field = FP32 * dim + 2 * FP32 + p * 8 * dim + FP32 * heads
        solved = 4 * hnf.steps * 2 * tokens * field
        graph = tokens * (2 * p * dim + FP32 * dim) + 2 * FP32 * tokens**2
        total += solved + graph + p * (patches * patch**2 + 2 * dim * tokens)
    return total


def grounding_activations(config: Config, *, texts: int, tokens: int, p: int) -> int:
    """Bytes text encoder and image-grounded encoder keep for `texts` of `tokens` in all, one image to each text."""
    text, visual = config.text_encoder, config.decoder.cross_attention_dim
    block = block_activations(text.dim, text.heads, p=p)
    cross = FP32 * text.dim + 2 * FP32 + p * 5 * text.dim + FP32 * text.heads  # norm, q, mixture, two gated sums
    seen = image_tokens(config) * (FP32 * visual + 2 * FP32 + p * visual + text.grounded_depth * 2 * p * text.dim)
    return tokens * (text.depth * block + text.grounded_depth * (block + cross)) + texts * seen


def image_tokens(config: Config) -> int:
    """Tokens of one image in the visual memory: ViT's, the scale vectors and the last scale's patches of HNF."""
    patch, size = image_encoder_sizes(config.vit).patch_size, config.image_size
    patches = (size // config.hnf.patch_sizes[-1]) ** 2
    return (size // patch) ** 2 + 1 + len(config.hnf.patch_sizes) + patches


def vision_activations(config: Config, *, p: int) -> int:
    """Bytes encoders, question encoder and image-text matching keep for a batch of one-image conversations.

    An upper bound: questions and auxiliary texts are taken as long as the conversation or the encoder allows.
    """
    training, size = config.training, config.image_size
    vit = image_encoder_sizes(config.vit)
    seen = hnf_activations(size, config.hnf, p=p)
    if config.vit.trainable:
        seen += ((size // vit.patch_size) ** 2 + 1) * vit.depth * block_activations(vit.dim, vit.heads, p=p)
    longest = config.text_encoder.max_tokens
    asked = grounding_activations(
        config, texts=training.turns, tokens=min(training.turns * longest, training.max_tokens), p=p
    )
    # Matching reads a text with its image, a wrong image, and a wrong text.
    matching = config.loss.itm.weight or config.loss.itc.weight
    matched = grounding_activations(config, texts=3, tokens=3 * longest, p=p) if matching else 0
    return training.batch_size // training.accumulate * (seen + asked + matched)


def loss_peak(shape: LanguageModelShape, tokens: int, *, p: int) -> int:
    """Bytes of the loss: the states of answer tokens with their gradient, and one chunk's logits.

    A chunk holds its log-softmax and two gradients in fp32 at the same time. All tokens are taken to be answers.
    """
    return 2 * tokens * shape.hidden * p + min(tokens, LOSS_CHUNK) * shape.vocab * 3 * FP32


# ---------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class CardVerdict:
    """Whether a card of `gib` holds the step; where not, overrides that make it fit, None if there are none."""

    gib: float
    fits: bool
    settings: tuple[str, ...] | None


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted bytes per part of one fine-tuning step, and what that means for cards."""

    parts: Mapping[str, int]
    cards: tuple[CardVerdict, ...]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def table(self) -> list[tuple[str, int]]:
        """Rows of part and bytes, the total last."""
        return [*self.parts.items(), ("total", self.total)]

    def as_dict(self) -> dict[str, Any]:
        return {
            "parts": dict(self.parts),
            "total": self.total,
            "total_gib": round(self.total / GIB, 3),
            "cards": [asdict(card) for card in self.cards],
        }


def plan_memory(config: Config, *, gpu_gib: float | None) -> MemoryPlan:
    """Predict the peak of one fine-tuning step on a GPU and judge the usual cards, or the one given [GiB].

    Raises: ConfigError where the language model or the image tower is not known.
    """
    start = start_of(config)
    config, shape = start.config, _base_shape(start)
    parts = step_parts(config, shape)
    verdicts = []
    for gib in CARDS if gpu_gib is None else (gpu_gib,):
        fits = sum(parts.values()) <= USABLE * gib * GIB
        verdicts.append(CardVerdict(gib, fits, () if fits else fitting_settings(config, shape, gib)))
    return MemoryPlan(parts, tuple(verdicts))


def plan_here(config: Config, device: str) -> MemoryPlan:
    """Predict the peak of one step on the device it will run on, precision included; judges no cards.

    Raises ConfigError as `plan_memory` does.
    """
    start, gpu = _start_on(config, device), device.startswith("cuda")
    return MemoryPlan(step_parts(start.config, _base_shape(start), on_gpu=gpu), ())


def fitting_settings_here(config: Config, device: str, room: float) -> tuple[str, ...] | None:
    """The overrides that make a step fit into `room` [byte] on a device; None where there are none."""
    start, gpu = _start_on(config, device), device.startswith("cuda")
    return fitting_settings(start.config, _base_shape(start), room / (USABLE * GIB), on_gpu=gpu)


def _start_on(config: Config, device: str) -> Start:
    """The student that a configuration starts from, with the precision that the device will compute in."""
    precision = number_format(config.training.precision, device).precision
    return start_of(config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})}))


def step_parts(config: Config, shape: LanguageModelShape, *, on_gpu: bool = True) -> dict[str, int]:
    """Predicted bytes per part at the peak of one step.

    A GPU's language model computes in bfloat16; a processor keeps its weights in float32 whatever it computes in.
    """
    training, decoder = config.training, config.decoder
    at_once = training.batch_size // training.accumulate
    tokens = at_once * training.max_tokens
    q = FP32 if training.precision == "fp32" else BF16  # what autocast gives the parts around the language model
    p, weight = (BF16, BF16) if on_gpu else (q, FP32)
    trained, frozen = planned_adapter_parameters(shape, config.adapter)
    student = student_parameters(config, shape)
    thawed = student.rest + (student.vit if config.vit.trainable else 0)
    masked = training.max_tokens if at_once > 1 else 0
    layer = layer_activations(shape, config.adapter, p=p, masked_tokens=masked) * tokens
    cross = tokens * cross_attention_activations(
        shape.hidden, decoder.cross_attention_dim, decoder.cross_attention_heads, p=q
    )
    blocks = math.ceil(shape.layers / decoder.cross_attention_every)
    boundary = shape.layers * tokens * shape.hidden * p
    checkpointed = training.gradient_checkpointing
    final_norm = tokens * (p * shape.hidden + FP32)
    loss = loss_peak(shape, tokens, p=p)
    states = tokens * (4 * p * shape.intermediate + 2 * FP32 * shape.hidden)
    dequantised = shape.hidden * shape.intermediate * p if decoder.quantization == "nf4" else 0
    backward = states + dequantised + ((layer + cross) if checkpointed else 0)
    copies = thawed * BF16 if q == BF16 else 0
    if weight > q and decoder.quantization == "none" and not checkpointed:  # which backward multiplies by
        copies += shape.linear_parameters * BF16
    kept = final_norm + (boundary if checkpointed else shape.layers * layer + blocks * cross)
    gradients = trained * weight + thawed * FP32
    if at_once == training.batch_size:  # none is left from another part of the step: each takes the place of what
        gradients = max(0, gradients - copies - kept - max(0, loss - backward))  # backward has done with
    held = BF16 if training.frozen_towers == "bf16" and not config.vit.trainable and q == BF16 else FP32
    return {
        f"language model, linear layers ({decoder.quantization})": linear_bytes(shape, decoder.quantization, p=weight),
        "language model, embeddings, norms, head": shape.other_parameters * weight,
        "adapter weights": (trained + frozen) * weight,
        "encoders, grounding, cross-attention": student.vit * held + student.rest * FP32,
        "gradients, beyond what they take the place of": gradients,
        "optimizer moments": math.ceil(MOMENTS[training.moments] * (trained + thawed)),
        "copies of weights in bfloat16": copies,
        "activations, language model": final_norm + (boundary if checkpointed else shape.layers * layer),
        "activations, cross-attention": 0 if checkpointed else blocks * cross,
        "activations, encoders and grounding": vision_activations(config, p=q),
        "logits and loss": loss,
        "one layer in backward, beyond the loss": max(0, backward - loss),
        **({"CUDA context": CUDA_CONTEXT} if on_gpu else {"Python and its libraries": PROCESS}),
    }


def _base_shape(start: Start) -> LanguageModelShape:
    if start.whole and start.directory is not None and (start.directory / "config.json").is_file():
        return shape_in(start.directory / "config.json")
    if start.config.decoder.base is not None:
        return language_model_shape(start.config.decoder.base)
    if start.directory == BUNDLED:
        return BUNDLED_SHAPE
    raise ConfigError("unknown_base", f"{start.directory} does not say what its language model is. Set decoder.base.")


def fitting_settings(
    config: Config, shape: LanguageModelShape, gib: float, *, on_gpu: bool = True
) -> tuple[str, ...] | None:
    """Return the overrides that make a step fit, adding what costs least first; None where all together do not."""
    values: dict[str, Any] = {}
    for key, value in _savings(config):
        values[key] = value
        section, _, name = key.partition(".")
        part = getattr(config, section).model_copy(update={name: value})
        config = config.model_copy(update={section: part})
        if sum(step_parts(config, shape, on_gpu=on_gpu).values()) <= USABLE * gib * GIB:
            return tuple(f"{name}={json.dumps(setting)}" for name, setting in values.items())
    return None


def _savings(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield settings that save memory: first those that keep the result, then those that change it."""
    training = config.training
    if config.decoder.quantization == "none":
        yield "decoder.quantization", "nf4"
    if not training.gradient_checkpointing:
        yield "training.gradient_checkpointing", True
    batch = training.batch_size
    yield from (("training.accumulate", n) for n in range(training.accumulate + 1, batch + 1) if batch % n == 0)
    if training.moments == "fp32":
        yield "training.moments", "8bit"
    if config.vit.trainable:
        yield "vit.trainable", False
    if training.frozen_towers == "fp32" and training.precision != "fp32":
        yield "training.frozen_towers", "bf16"
    yield from (("training.max_tokens", tokens) for tokens in _halves(training.max_tokens, 256))
    if config.init is None:  # a student that starts from a run has the shapes of that run
        every = config.decoder.cross_attention_every
        yield from (("decoder.cross_attention_every", every * factor) for factor in (2, 4))


def _halves(start: int, stop: int) -> Iterator[int]:
    while start // 2 >= stop:
        start //= 2
        yield start

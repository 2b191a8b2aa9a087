"""Shapes of known language models and image towers, by name or from a config.json. Knows nothing about weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from assistant.bases import BASES, BUNDLED_BASE, canonical
from assistant.config import ViTConfig
from assistant.errors import ConfigError
from assistant.families import FAMILIES, family_of

BIASED: Mapping[str, tuple[str, ...]] = {
    "attention_bias": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp_bias": ("gate_proj", "up_proj", "down_proj"),
}
"""Which layers have a bias where a config.json says so."""


@dataclass(frozen=True)
class LanguageModelShape:
    """Sizes of a language model; what its family decides is asked of the family."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int | None = None
    """None: hidden / heads."""
    tied: bool = False
    """Whether the output head is the embedding table."""
    family: str = "llama"
    """A key of `assistant.families.FAMILIES`."""
    biases: tuple[str, ...] = ()
    """Linear layers that have a bias in this model, beside those that always have one in its family."""

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden // self.heads

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one decoder layer."""
        d, f, q, kv = self.hidden, self.intermediate, self.query_width, self.kv_width
        return {
            "q_proj": (d, q),
            "k_proj": (d, kv),
            "v_proj": (d, kv),
            "o_proj": (q, d),
            "gate_proj": (d, f),
            "up_proj": (d, f),
            "down_proj": (f, d),
        }

    @property
    def linear_parameters(self) -> int:
        return self.layers * sum(d_in * d_out for d_in, d_out in self.linears.values())

    @property
    def other_parameters(self) -> int:
        """Embeddings, norms, biases and output head: what quantisation leaves alone."""
        family = FAMILIES[self.family]
        tables = self.vocab * self.hidden * (1 if self.tied else 2)
        biases = sum(self.linears[name][1] for name in {*family.biases, *self.biases})
        norms = family.layer_norms * self.hidden + (2 * self.head_width if family.head_norms else 0)
        return tables + self.layers * (biases + norms) + self.hidden


_LLAMA_2_7B = LanguageModelShape(4096, 11008, 32, 32, 32, 32000)
_LLAMA_2_13B = LanguageModelShape(5120, 13824, 40, 40, 40, 32000)
_TINYLLAMA = LanguageModelShape(2048, 5632, 22, 32, 4, 32000)
_LLAMA_32_1B = LanguageModelShape(2048, 8192, 16, 32, 8, 128256, tied=True)
_LLAMA_32_3B = LanguageModelShape(3072, 8192, 28, 24, 8, 128256, tied=True)
_LLAMA_3_8B = LanguageModelShape(4096, 14336, 32, 32, 8, 128256)
_SMOLLM2_135M = LanguageModelShape(576, 1536, 30, 9, 3, 49152, tied=True)
_SMOLLM2_360M = LanguageModelShape(960, 2560, 32, 15, 5, 49152, tied=True)
_SMOLLM2_1_7B = LanguageModelShape(2048, 8192, 24, 32, 32, 49152, tied=True)
_QWEN25_1_5B = LanguageModelShape(1536, 8960, 28, 12, 2, 151936, tied=True, family="qwen2")
_QWEN25_7B = LanguageModelShape(3584, 18944, 28, 28, 4, 152064, family="qwen2")
_QWEN3_0_6B = LanguageModelShape(1024, 3072, 28, 16, 8, 151936, 128, tied=True, family="qwen3")
_QWEN3_1_7B = LanguageModelShape(2048, 6144, 28, 16, 8, 151936, 128, tied=True, family="qwen3")
_QWEN3_4B = LanguageModelShape(2560, 9728, 36, 32, 8, 151936, 128, tied=True, family="qwen3")
_QWEN3_8B = LanguageModelShape(4096, 12288, 36, 32, 8, 151936, 128, family="qwen3")
_GEMMA_3_270M = LanguageModelShape(640, 2048, 18, 4, 1, 262144, 256, tied=True, family="gemma3_text")
_GEMMA_3_1B = LanguageModelShape(1152, 6912, 26, 4, 1, 262144, 256, tied=True, family="gemma3_text")
_GEMMA_3_4B = LanguageModelShape(2560, 10240, 34, 8, 4, 262208, 256, tied=True, family="gemma3_text")
_MISTRAL_V1 = LanguageModelShape(4096, 14336, 32, 32, 8, 32000)
_MISTRAL_V3 = LanguageModelShape(4096, 14336, 32, 32, 8, 32768)

SHAPES: Mapping[str, LanguageModelShape] = {
    "meta-llama/Llama-2-7b-hf": _LLAMA_2_7B,
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA_2_7B,
    "meta-llama/Llama-2-13b-hf": _LLAMA_2_13B,
    "meta-llama/Llama-2-13b-chat-hf": _LLAMA_2_13B,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _TINYLLAMA,
    "TinyLlama/TinyLlama_v1.1": _TINYLLAMA,
    "meta-llama/Llama-3.2-1B": _LLAMA_32_1B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA_32_1B,
    "meta-llama/Llama-3.2-3B": _LLAMA_32_3B,
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA_32_3B,
    "meta-llama/Meta-Llama-3-8B": _LLAMA_3_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_3_8B,
    "meta-llama/Llama-3.1-8B": _LLAMA_3_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_3_8B,
    "mistralai/Mistral-7B-v0.1": _MISTRAL_V1,
    "mistralai/Mistral-7B-Instruct-v0.2": _MISTRAL_V1,
    "mistralai/Mistral-7B-v0.3": _MISTRAL_V3,
    "mistralai/Mistral-7B-Instruct-v0.3": _MISTRAL_V3,
    "HuggingFaceTB/SmolLM2-135M": _SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-360M": _SMOLLM2_360M,
    "HuggingFaceTB/SmolLM2-360M-Instruct": _SMOLLM2_360M,
    "HuggingFaceTB/SmolLM2-1.7B": _SMOLLM2_1_7B,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _SMOLLM2_1_7B,
    "Qwen/Qwen2.5-1.5B": _QWEN25_1_5B,
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN25_1_5B,
    "Qwen/Qwen2.5-7B": _QWEN25_7B,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN25_7B,
    "Qwen/Qwen3-0.6B": _QWEN3_0_6B,
    "Qwen/Qwen3-1.7B": _QWEN3_1_7B,
    "Qwen/Qwen3-4B": _QWEN3_4B,
    "Qwen/Qwen3-8B": _QWEN3_8B,
    "google/gemma-3-270m-it": _GEMMA_3_270M,
    "google/gemma-3-1b-it": _GEMMA_3_1B,
    "google/gemma-3-4b-it": _GEMMA_3_4B,
}
BUNDLED_SHAPE = LanguageModelShape(256, 704, 4, 4, 4, 2048)
"""The bundled student's language model, where its files are not there to be read."""


@dataclass(frozen=True)
class ImageEncoderSizes:
    """Sizes of a plain vision transformer."""

    dim: int
    depth: int
    heads: int
    patch_size: int


TOWERS: Mapping[str, ImageEncoderSizes] = {  # open_clip's
    "ViT-B-32": ImageEncoderSizes(768, 12, 12, 32),
    "ViT-B-16": ImageEncoderSizes(768, 12, 12, 16),
    "ViT-L-14": ImageEncoderSizes(1024, 24, 16, 14),
}


def language_model_shape(base: str) -> LanguageModelShape:
    """Return the shape of a named base or known hub id, or the one a local directory's config.json states.

    Raises: ConfigError `unknown_base` or `bad_base`.
    """
    named = BASES.get(canonical(base))
    directory = BUNDLED_BASE if named and named.hub is None else Path(base)
    if (directory / "config.json").is_file():
        return shape_in(directory / "config.json")
    known = {name.lower(): shape for name, shape in SHAPES.items()}
    known |= {name.partition("/")[2]: shape for name, shape in known.items()}
    base = named.hub if named and named.hub else base
    if base.lower() not in known:
        raise ConfigError(
            "unknown_base",
            f"decoder.base {base!r} is not a known model. Give a local directory with a config.json, or one of "
            f"{', '.join(BASES)}.",
        )
    return known[base.lower()]


def shape_in(file: Path) -> LanguageModelShape:
    """The shape a config.json states. Raises: ConfigError `unknown_family` or `bad_base`."""
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        stated = stated.get("text_config") or stated
        name = stated.get("model_type", "llama")
        stated = {**family_of(str(file.parent), name).unsaid, **stated}
        return LanguageModelShape(
            hidden=int(stated["hidden_size"]),
            intermediate=int(stated["intermediate_size"]),
            layers=int(stated["num_hidden_layers"]),
            heads=int(stated["num_attention_heads"]),
            kv_heads=int(stated.get("num_key_value_heads") or stated["num_attention_heads"]),
            vocab=int(stated["vocab_size"]),
            head_dim=stated.get("head_dim"),
            tied=bool(stated.get("tie_word_embeddings", False)),
            family=name,
            biases=tuple(layer for key, layers in BIASED.items() if stated.get(key) for layer in layers),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            "bad_base", f"{file} does not state the shape of a language model: {reason}. Name another directory."
        ) from None


def image_encoder_sizes(vit: ViTConfig) -> ImageEncoderSizes:
    """Return the sizes of the image encoder that is configured. Raises: ConfigError `unknown_tower`."""
    if vit.tower is None:
        return ImageEncoderSizes(vit.dim, vit.depth, vit.heads, vit.patch_size)
    if vit.tower not in TOWERS:
        known = ", ".join(TOWERS)
        raise ConfigError("unknown_tower", f"The sizes of vit.tower {vit.tower!r} are not known. Plan with {known}.")
    return TOWERS[vit.tower]

"""Shapes of known language models and image towers, by name or from a config.json. Knows nothing about weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from assistant.config import ViTConfig
from assistant.errors import ConfigError
from assistant.families import check_family


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama-family language model."""

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
    biased: bool = False
    """Whether q, k and v have biases, as Qwen2's do."""

    @property
    def query_width(self) -> int:
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def kv_width(self) -> int:
        return self.query_width // self.heads * self.kv_heads

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
        tables = self.vocab * self.hidden * (1 if self.tied else 2)
        biases = self.layers * (self.query_width + 2 * self.kv_width) if self.biased else 0
        return tables + biases + self.hidden * (2 * self.layers + 1)


_LLAMA_2_7B = LlamaShape(4096, 11008, 32, 32, 32, 32000)
_LLAMA_2_13B = LlamaShape(5120, 13824, 40, 40, 40, 32000)
_TINYLLAMA = LlamaShape(2048, 5632, 22, 32, 4, 32000)
_LLAMA_32_1B = LlamaShape(2048, 8192, 16, 32, 8, 128256, tied=True)
_LLAMA_32_3B = LlamaShape(3072, 8192, 28, 24, 8, 128256, tied=True)
_LLAMA_3_8B = LlamaShape(4096, 14336, 32, 32, 8, 128256)
_SMOLLM2_135M = LlamaShape(576, 1536, 30, 9, 3, 49152, tied=True)
_SMOLLM2_360M = LlamaShape(960, 2560, 32, 15, 5, 49152, tied=True)
_SMOLLM2_1_7B = LlamaShape(2048, 8192, 24, 32, 32, 49152, tied=True)
_QWEN25_1_5B = LlamaShape(1536, 8960, 28, 12, 2, 151936, tied=True, biased=True)
_QWEN25_7B = LlamaShape(3584, 18944, 28, 28, 4, 152064, biased=True)
_MISTRAL_V1 = LlamaShape(4096, 14336, 32, 32, 8, 32000)
_MISTRAL_V3 = LlamaShape(4096, 14336, 32, 32, 8, 32768)

SHAPES: Mapping[str, LlamaShape] = {
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
}
BUNDLED_SHAPE = LlamaShape(256, 704, 4, 4, 4, 2048)
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


def language_model_shape(base: str) -> LlamaShape:
    """Return the shape of a known hub id, or the one a local directory's config.json states.

    Raises: ConfigError `unknown_base` or `bad_base`.
    """
    directory = Path(base)
    if (directory / "config.json").is_file():
        return shape_in(directory / "config.json")
    known = {name.lower(): shape for name, shape in SHAPES.items()}
    known |= {name.partition("/")[2]: shape for name, shape in known.items()}
    if base.lower() not in known:
        raise ConfigError(
            "unknown_base", f"decoder.base {base!r} is not a known model. Give a local directory with a config.json."
        )
    return known[base.lower()]


def shape_in(file: Path) -> LlamaShape:
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        stated = stated.get("text_config") or stated
        check_family(str(file.parent), stated.get("model_type", "llama"))
        return LlamaShape(
            hidden=int(stated["hidden_size"]),
            intermediate=int(stated["intermediate_size"]),
            layers=int(stated["num_hidden_layers"]),
            heads=int(stated["num_attention_heads"]),
            kv_heads=int(stated.get("num_key_value_heads") or stated["num_attention_heads"]),
            vocab=int(stated["vocab_size"]),
            head_dim=stated.get("head_dim"),
            tied=bool(stated.get("tie_word_embeddings", False)),
            biased=stated.get("model_type") == "qwen2",
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            "bad_base", f"{file} does not state a Llama-family shape: {reason}. Name another directory."
        ) from None


def image_encoder_sizes(vit: ViTConfig) -> ImageEncoderSizes:
    """Return the sizes of the image encoder that is configured. Raises: ConfigError `unknown_tower`."""
    if vit.tower is None:
        return ImageEncoderSizes(vit.dim, vit.depth, vit.heads, vit.patch_size)
    if vit.tower not in TOWERS:
        known = ", ".join(TOWERS)
        raise ConfigError("unknown_tower", f"The sizes of vit.tower {vit.tower!r} are not known. Plan with {known}.")
    return TOWERS[vit.tower]

"""Families of language models: all that differs between them, one entry each. Knows nothing about weights.

A family is an entry of `FAMILIES`. Decoder, lean activations, adapters, memory plan and prompt ask it; what an entry
does not say is as in Llama: rotary attention without biases, two RMSNorms and a SwiGLU per layer, a head of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from assistant.errors import ConfigError


@dataclass(frozen=True)
class Template:
    """The text around the words of a conversation: first, question, answer, its reply, following, question, answer."""

    first: str
    """Before the first question."""
    following: str
    """Between the end of a reply and the next question."""
    answer: str
    """Between a question and its reply."""
    end: str | None = None
    """The token that ends a reply; None is the tokenizer's own end of text."""
    gap: str = ""
    """Before the words of a question, where the text before them does not end in a space or a line."""
    reply_gap: str = ""
    """Before the words of a reply, likewise."""
    begins: bool = True
    """Whether the tokenizer's begin-of-text token, if it has one, stands before all this."""


LLAMA_2 = Template("[INST]", "[INST]", " [/INST]", gap=" ", reply_gap=" ")
CHATML = Template(
    "<|im_start|>user\n", "\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", begins=False
)
GEMMA = Template(
    "<start_of_turn>user\n",
    "\n<start_of_turn>user\n",
    "<end_of_turn>\n<start_of_turn>model\n",
    "<end_of_turn>",
)


@dataclass(frozen=True)
class Family:
    """What a language model's architecture decides, named as Transformers names it."""

    layer_class: str
    norm_class: str
    mlp_class: str
    template: Template
    """For a model whose tokenizer brings no chat template; one that does is asked in its own."""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """What a chat template of this family is told, so that a prompt is the same on every day and holds no thoughts."""
    layers: str = "model.layers"
    """Path of the list of decoder layers."""
    activation: str = "silu"
    """Of the gate in the feed-forward."""
    centred_norms: bool = False
    """Whether a norm multiplies by 1 + w, in fp32, instead of w."""
    layer_norms: int = 2
    """Norms of the full width in a decoder layer."""
    head_norms: bool = False
    """Whether the queries and keys of each head have norms as well."""
    biases: tuple[str, ...] = ()
    """Linear layers that always have a bias."""
    unsaid: Mapping[str, Any] = field(default_factory=dict)
    """What a config.json of this family may leave out, and then means."""
    inside: str | None = None
    """`model_type` of models for pictures and text whose language model is of this family; that alone is loaded."""


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(
            "LlamaDecoderLayer",
            "LlamaRMSNorm",
            "LlamaMLP",
            LLAMA_2,
            template_arguments={"date_string": "26 Jul 2024"},  # Llama 3 would write today's
        ),
        "mistral": Family("MistralDecoderLayer", "MistralRMSNorm", "MistralMLP", LLAMA_2),
        "qwen2": Family("Qwen2DecoderLayer", "Qwen2RMSNorm", "Qwen2MLP", CHATML, biases=("q_proj", "k_proj", "v_proj")),
        "qwen3": Family(
            "Qwen3DecoderLayer",
            "Qwen3RMSNorm",
            "Qwen3MLP",
            CHATML,
            template_arguments={"enable_thinking": False},
            head_norms=True,
            unsaid={"head_dim": 128},
        ),
        "gemma3_text": Family(
            "Gemma3DecoderLayer",
            "Gemma3RMSNorm",
            "Gemma3MLP",
            GEMMA,
            activation="gelu_pytorch_tanh",
            centred_norms=True,
            layer_norms=4,
            head_norms=True,
            unsaid={
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "vocab_size": 262_208,
                "tie_word_embeddings": True,
            },
            inside="gemma3",
        ),
    }
)
"""By `model_type`. Gemma 3's scaled embeddings and sliding windows are Transformers' own business."""


PARTS_INSIDE = {r"^(model\.)?language_model\.(model\.)?": "model."}
"""Names of a language model's weights inside a model for pictures and text, as it calls them itself."""


def language_settings(source: str, settings: Any) -> Any:
    """The settings of the language model in a model's Transformers settings. Raises ConfigError `unknown_family`."""
    inside = any(family.inside == settings.model_type for family in FAMILIES.values())
    language = settings.get_text_config() if inside else settings
    family_of(source, language.model_type)
    return language


def family_of(source: str, model_type: str | None) -> Family:
    """The family of an architecture. Raises ConfigError `unknown_family` for one that has no entry.

    `source` names the model in the message.
    """
    if model_type is None or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(
            "unknown_family", f"{source} is a {model_type!r} model, of no family that is known ({known}). Take another."
        )
    return FAMILIES[model_type]

"""Families of language models: the architectures the cross-attention and the adapters have been proved on."""

from __future__ import annotations

from assistant.errors import ConfigError

FAMILY = frozenset({"llama", "mistral", "qwen2"})
"""Architectures (`model_type`) with Llama's decoder layer: RMSNorm, rotary attention, SwiGLU, one head on top."""


def check_family(source: str, model_type: str | None) -> None:
    """Raise ConfigError `unknown_family` for an architecture the cross-attention has not been proved on."""
    if model_type not in FAMILY:
        known = ", ".join(sorted(FAMILY))
        raise ConfigError(
            "unknown_family", f"{source} is a {model_type!r} model, none of the Llama family ({known}). Take one of it."
        )

"""What a configuration starts from: `init` brings the vision parts, `decoder.base` the language model if it is set.

Plan, training and the claim of a run directory share it, so a student is predicted as it is built. Knows nothing about
weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from assistant.bases import canonical
from assistant.config import Config, load_config
from assistant.disk import MANIFEST
from assistant.errors import ConfigError

BUNDLED = Path(__file__).parent / "weights"
VISION = ("image_size", "vit", "hnf")
"""Settings that the vision parts of a start decide."""
_WHOLE = (*VISION, "text_encoder", "decoder")
"""Settings that a student decides that is taken as it is."""


@dataclass(frozen=True)
class Start:
    """Where a student comes from, and its configuration with the shapes that it has from there."""

    directory: Path | None
    """Model directory of the start; None for fresh parts."""
    whole: bool
    """Whether its language model, adapter and cross-attention are taken too, or its vision parts alone."""
    config: Config


def start_of(config: Config) -> Start:
    """Resolve `init` and `decoder.base` against each other. Raises ConfigError `no_start`."""
    if config.init is None:
        return Start(None, False, config)
    directory = BUNDLED if config.init == "bundled" else Path(config.init)
    if not directory.is_dir():
        raise ConfigError("no_start", f"init {config.init!r} is not a directory. Name a run or set it to null.")
    directory = directory if (directory / MANIFEST).is_file() else directory / "model"
    if not (directory / "config.yaml").is_file():
        return Start(directory, True, config)  # loading it says what is wrong
    start, wanted = load_config(directory / "config.yaml"), config.decoder.base
    whole = wanted is None or (start.decoder.base is not None and canonical(wanted) == canonical(start.decoder.base))
    brought = _WHOLE if whole else VISION
    if whole and "prompt" not in config.model_fields_set:
        brought = (*brought, "prompt")  # it was taught to read its facts that way
    return Start(directory, whole, config.model_copy(update={name: getattr(start, name) for name in brought}))

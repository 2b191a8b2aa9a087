"""What is known of a picture before anything is learned from it: its texture, what a student sees, its instrument.

Computed once per file and kept by the file's hash. Knows nothing about labels or heads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assistant.disk import fingerprint, replacing
from assistant.micrograph import Micrograph, read_micrograph, to_model_input

VERSION = "1"
"""Of what is computed; another one is not read back."""
INSTRUMENT = ("hv_kv", "wd_mm", "magnification", "detector", "vendor")
See = Callable[[Micrograph], np.ndarray]


@dataclass(frozen=True)
class Sight:
    """A frozen network that looks at a micrograph: its name, which tells its vectors from those of others."""

    name: str
    see: See


def picture_values(path: Path, sight: Sight | None = None, *, cache: Path | None = None) -> dict[str, Any]:
    """The modalities of a picture: `texture` [F], `sight` [F'] where a network looks, `instrument` as columns.

    Raises MicrographError.
    """
    if not path.is_file():
        return computed(read_micrograph(path), sight)  # which says what is wrong with the path
    cache = cache or vector_cache()
    name = "-".join((fingerprint(path), VERSION, *((sight.name,) if sight else ())))
    kept = _kept(cache / f"{name}.npz")
    if kept is not None:
        return kept
    values = computed(read_micrograph(path), sight)
    cache.mkdir(parents=True, exist_ok=True)
    with replacing(cache / f"{name}.npz") as partial, partial.open("wb") as stream:
        arrays = {key: value for key, value in values.items() if key != "instrument"}
        np.savez(stream, instrument=np.array(json.dumps(values["instrument"])), **arrays)
    return values


def vector_cache() -> Path:
    """Where vectors are kept: `maemi/vectors` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maemi" / "vectors"


def student_sight(run: Path | None = None) -> Sight:
    """The student's own image vector (ViT and HNF). Raises RunError."""
    from assistant.inference import Assistant

    assistant = Assistant.load(run)

    def see(micrograph: Micrograph) -> np.ndarray:
        vector: np.ndarray = assistant.encode([micrograph])[1][0].float().cpu().numpy()
        return vector

    return Sight(f"student-{assistant.name}".replace("/", "_"), see)


def computed(micrograph: Micrograph, sight: Sight | None) -> dict[str, Any]:
    """`picture_values` of a micrograph, computed anew."""
    from assistant.encoders.texture import SIDE, texture_descriptors

    values: dict[str, Any] = {"texture": texture_descriptors(to_model_input(micrograph, SIDE)[0])}
    if sight is not None:
        values["sight"] = sight.see(micrograph)
    told = {name: getattr(micrograph.instrument, name) for name in INSTRUMENT}
    if micrograph.calibration is not None:
        told["pixel_size_nm"] = micrograph.calibration.nm_per_pixel
    values["instrument"] = {name: value for name, value in told.items() if value is not None}
    return values


def _kept(file: Path) -> dict[str, Any] | None:
    """What was kept of a picture; None where nothing was, or it cannot be read."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            values: dict[str, Any] = {key: stored[key] for key in stored.files if key != "instrument"}
            values["instrument"] = json.loads(str(stored["instrument"]))
    except (OSError, ValueError, KeyError, EOFError):
        return None
    return values

"""What is known of a picture before anything is learned from it: its texture, what a student sees, its instrument.

Computed once per file and kept by the file's hash. Knows nothing about labels or heads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from assistant.config import TOWER_SIDE
from assistant.disk import fingerprint, replacing
from assistant.micrograph import Micrograph, ReadLimits, read_micrograph, to_model_input
from assistant.readers.files import sidecar_texts
from assistant.towers import WEIGHTS_SHA256, load_tower, see

_VERSION = "1"
"""Of what is computed; another one is not read back."""
INSTRUMENT = ("hv_kv", "wd_mm", "magnification", "detector", "vendor")
See = Callable[[Micrograph], np.ndarray]


@dataclass(frozen=True)
class FeatureExtractor:
    """A frozen network that looks at a micrograph: its name, which tells its vectors from those of others."""

    name: str
    see: See


def picture_values(
    path: Path, extractor: FeatureExtractor | None = None, *, cache: Path | None = None
) -> dict[str, Any]:
    """The modalities of a picture: `texture` [F], `image` [F'] where a network looks, `instrument` as columns.

    Raises MicrographError.
    """
    if not path.is_file():
        return computed(read_micrograph(path), extractor)  # which says what is wrong with the path
    cache = cache or vector_cache()
    # The key is of the file, what stands beside it about its instrument, and who looked.
    digest = hashlib.sha256(fingerprint(path).encode())
    for _, text in sidecar_texts(path, ReadLimits().max_sidecar_bytes):
        digest.update((text or "").encode())
    name = "-".join((digest.hexdigest(), _VERSION, *((extractor.name,) if extractor else ())))
    kept = _kept(cache / f"{name}.npz")
    if kept is not None:
        return kept
    values = computed(read_micrograph(path), extractor)
    arrays = {key: value for key, value in values.items() if key != "instrument"}
    with suppress(OSError):  # whatever cannot be kept is computed again
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(cache / f"{name}.npz") as partial, partial.open("wb") as stream:
            np.savez(stream, instrument=np.array(json.dumps(values["instrument"])), **arrays)
    return values


def vector_cache() -> Path:
    """Where vectors are kept: `maemi/vectors` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maemi" / "vectors"


def extractor_of(kind: Literal["tower", "student"] | None = None) -> FeatureExtractor:
    """The network that looks: by default the frozen tower, or the student where no tower is installed.

    Raises RunError, `no_tower` where there is none and it was asked for.
    """
    if kind == "student" or (kind is None and load_tower() is None):
        return student_features()
    return tower_features()


def tower_features() -> FeatureExtractor:
    """The stage statistics of the frozen tower, named by its weights. Raises RunError `no_tower`."""

    def look(micrograph: Micrograph) -> np.ndarray:
        vector: np.ndarray = see([to_model_input(micrograph, TOWER_SIDE)[0]])[0]
        return vector

    return FeatureExtractor(f"tower-{WEIGHTS_SHA256[:16]}", look)


def student_features(run: Path | None = None) -> FeatureExtractor:
    """The student's own image vector (ViT and HNF), named by its weights. Raises RunError."""
    from assistant.checkpoint import STUDENT, resolve_run
    from assistant.inference import Assistant

    assistant, weights = Assistant.load(run), fingerprint(resolve_run(run) / STUDENT)

    def see(micrograph: Micrograph) -> np.ndarray:
        vector: np.ndarray = assistant.encode([micrograph])[1][0].float().cpu().numpy()
        return vector

    return FeatureExtractor(f"student-{weights[:16]}", see)


def computed(micrograph: Micrograph, extractor: FeatureExtractor | None) -> dict[str, Any]:
    """`picture_values` of a micrograph, computed anew."""
    from assistant.encoders.texture import SIDE, texture_descriptors

    values: dict[str, Any] = {"texture": texture_descriptors(to_model_input(micrograph, SIDE)[0])}
    if extractor is not None:
        values["image"] = extractor.see(micrograph)
    told = {name: getattr(micrograph.instrument, name) for name in INSTRUMENT}
    if micrograph.calibration is not None:
        told["pixel_size_nm"] = micrograph.calibration.nm_per_pixel
    values["instrument"] = {name: value for name, value in told.items() if value is not None}
    return values


def _kept(file: Path) -> dict[str, Any] | None:
    """What was kept of a picture; None where nothing was, or it cannot be read."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            values: dict[str, Any] = {key: stored[key] for key in stored.files if key != "instrument"}
            values["instrument"] = json.loads(str(stored["instrument"]))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    return values

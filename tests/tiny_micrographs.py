"""Many small procedural pictures at a millisecond each, for tests that need many files rather than micrographs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

SIDE_PX = 48


def tiny_picture(number: int) -> np.ndarray:
    """Bright discs on a dark ground [48, 48] uint8, different for every number."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    grey = np.full((SIDE_PX, SIDE_PX), 60.0)
    for cx, cy, radius in zip(*rng.uniform(6, 42, (2, 5)), rng.uniform(3, 6, 5), strict=True):
        grey[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = 180
    return (grey + rng.normal(0, 5, grey.shape)).clip(0, 255).astype(np.uint8)


def draw_tiny(
    folder: Path, count: int, *, classes: tuple[str, ...] = ("particles", "powder"), per_sample: int = 4
) -> Path:
    """Write pictures into one folder per class, some of each sample; gives the folder."""
    for number in range(count):
        label = classes[number % len(classes)]
        sample, view = divmod(number // len(classes), per_sample)
        path = folder / label / f"s{sample:04d}x_{view}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny_picture(number)).save(path, compress_level=1)
    return folder


def pixels_of(png: bytes) -> np.ndarray:
    """The grey values of a PNG."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("L"))

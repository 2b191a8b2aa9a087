"""The grey window: which values are shown as black and white, and the mapping to 0..1.

Knows nothing about files. Training, serving and the viewer all map grey through these two functions.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from assistant.arrays import Pixels

_PERCENTILES = (0.1, 99.9)
_ROWS_AT_ONCE = 256  # keeps the float64 copy of a large image small
_COUNTED_AT_ONCE = 2**20


@dataclass(frozen=True)
class Window:
    """The grey values shown as black and white, in the file's own units."""

    low: float
    high: float


def window_of(pixels: Pixels) -> Window:
    """The 0.1 and 99.9 percentiles of the finite values; the full range where these coincide; (0, 0) without any."""
    if pixels.dtype in (np.uint8, np.uint16):
        return _from_histogram(pixels)
    values = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels.flatten()
    if values.size == 0:
        return Window(0.0, 0.0)
    bottom, top = float(values.min()), float(values.max())
    values = values.astype(np.float32) if values.dtype == np.float16 else values
    with np.errstate(all="ignore"):
        low, high = (float(value) for value in np.percentile(values, _PERCENTILES, overwrite_input=True))
    return Window(low, high) if high > low else Window(bottom, top)


def _from_histogram(pixels: Pixels) -> Window:
    """The same as numpy's linear percentile, from how often each value of an 8- or 16-bit image occurs."""
    counts = level_counts(pixels)
    reached = np.cumsum(counts)
    ends = []
    for percent in _PERCENTILES:
        place = percent / 100 * (pixels.size - 1)
        below, above = np.searchsorted(reached, [math.floor(place), math.ceil(place)], side="right").tolist()
        ends.append(below + (above - below) * (place - math.floor(place)))
    if not ends[1] > ends[0]:
        used = np.flatnonzero(counts)
        ends = [int(used[0]), int(used[-1])]
    return Window(float(ends[0]), float(ends[1]))


def level_counts(pixels: Pixels) -> Pixels:
    """How often each value of an 8- or 16-bit image occurs."""
    if pixels.dtype == np.uint8:
        from PIL import Image

        return np.array(Image.fromarray(np.atleast_2d(pixels)).histogram())  # bincount takes eight times as long
    flat, counts = pixels.ravel(), np.zeros(np.iinfo(pixels.dtype).max + 1, np.int64)
    for start in range(0, flat.size, _COUNTED_AT_ONCE):  # bincount widens its input eightfold
        counts += np.bincount(flat[start : start + _COUNTED_AT_ONCE], minlength=counts.size)
    return counts


def windowed(pixels: Pixels, window: Window) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 in 0..1 of the same shape: order is kept, values outside the window and infinities become 0 or 1.

    NaN becomes 0, and so does all of a constant image.
    """
    if not window.high > window.low:
        return np.zeros(pixels.shape, np.float32)
    if pixels.dtype in (np.uint8, np.uint16):
        table = _scaled(np.arange(np.iinfo(pixels.dtype).max + 1), window)
        return np.asarray(table[pixels])
    out = np.empty(pixels.shape, np.float32)
    for top in range(0, len(pixels), _ROWS_AT_ONCE):
        out[top : top + _ROWS_AT_ONCE] = _scaled(pixels[top : top + _ROWS_AT_ONCE], window)
    return out


def _scaled(values: Pixels, window: Window) -> np.ndarray[Any, np.dtype[np.float32]]:
    """In float64: float32 would merge neighbours among large integers before the window spreads them."""
    with np.errstate(all="ignore"):
        scaled = (values.astype(np.float64) - window.low) / (window.high - window.low)
    return np.clip(np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0), 0, 1).astype(np.float32)

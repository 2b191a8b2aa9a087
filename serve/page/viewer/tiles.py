"""A micrograph of any depth as a pyramid of tiles in 8 bit, windowed as a viewer asks for them.

A level is reduced once, a tile is cut and windowed when it is asked for: no tile costs more than its own pixels. Knows
nothing about files, browsers or who may see what.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from assistant.arrays import Pixels
from assistant.errors import ConfigError
from assistant.readers.window import Window, windowed

TILE = 512
"""Side of a tile [px]."""
_BINS = 256
_ROWS = 512
"""Rows that are reduced at once, so that the sums of a large frame stay small."""
_SAMPLES = 2**20
"""Pixels that a histogram is made of, about."""


@dataclass(frozen=True)
class Histogram:
    """How often grey values occur; what lies outside `low` .. `high` is left out."""

    low: float
    high: float
    counts: tuple[int, ...]
    least: float
    greatest: float
    """Smallest and largest finite value of the frame."""


class Pyramid:
    """A frame [H, W] and its reduced copies, each half as large as the one before: the mean of 2 x 2 pixels.

    Level 0 is the frame itself; the last level fits into one tile. Sides are rounded up.
    """

    def __init__(self, pixels: Pixels) -> None:
        self._levels = [pixels]
        while max(self._levels[-1].shape) > TILE:
            self._levels.append(_halved(self._levels[-1]))

    @property
    def levels(self) -> int:
        """How many there are."""
        return len(self._levels)

    @property
    def nbytes(self) -> int:
        """What all levels take up [byte]."""
        return sum(level.nbytes for level in self._levels)

    def tile(self, level: int, column: int, row: int, window: Window) -> bytes:
        """One tile as a PNG, at most TILE px a side. Raises ConfigError `no_such_tile`."""
        import imagecodecs

        part = self._levels[level][row * TILE :, column * TILE :] if 0 <= level < self.levels else None
        if part is None or min(column, row) < 0 or part.size == 0:
            raise ConfigError("no_such_tile", "The picture has no such tile. Reload the viewer.")
        tile = part[:TILE, :TILE]
        counted = tile.dtype in (np.uint8, np.uint16)
        shown = _table(tile.dtype.str, window)[tile] if counted else _in_8_bit(tile, window)
        room = 2 * shown.size + len(shown) + 4096  # what the encoder takes by itself is too little for a narrow tile
        return bytes(imagecodecs.png_encode(np.ascontiguousarray(shown), level=1, out=room))

    def histogram(self, window: Window) -> Histogram:
        """The grey values in and around a window: as much again on both sides, as far as there are values."""
        frame = self._levels[0]
        step = max(1, round((frame.size / _SAMPLES) ** 0.5))
        sample = frame[::step, ::step]
        sample = sample[np.isfinite(sample)].astype(np.float64)
        least, greatest = _range(frame)
        span = max(window.high - window.low, 1e-12 * max(abs(window.high), 1.0))
        low, high = max(least, window.low - span), min(greatest, window.high + span)
        if frame.dtype.kind != "f":  # every bar holds equally many of the whole numbers
            low, wide = np.ceil(low) - 0.5, max(1, -(-(np.floor(high) - np.ceil(low) + 1) // _BINS))
            edges = np.arange(low, np.floor(high) + 0.5 + wide, wide)
        else:
            edges = np.linspace(low, high, _BINS + 1) if low < high else np.array([low - 0.5, low + 0.5])
        counts, _ = np.histogram(sample, edges)
        return Histogram(float(edges[0]), float(edges[-1]), tuple(counts.tolist()), least, greatest)


def _halved(frame: Pixels) -> Pixels:
    """Means of 2 x 2 pixels, of fewer at the lower and right border; whole numbers of 8 and 16 bit stay such."""
    whole = frame.dtype in (np.uint8, np.uint16)
    out = np.empty([-(-side // 2) for side in frame.shape], frame.dtype if whole else np.float32)
    sums = np.uint32 if whole else np.float64
    for top in range(0, len(frame), _ROWS):
        part = frame[top : top + _ROWS]
        if part.shape[0] % 2 or part.shape[1] % 2:
            part = np.pad(part, [(0, side % 2) for side in part.shape], mode="edge")
        with np.errstate(all="ignore"):
            rows = np.add(part[0::2], part[1::2], dtype=sums)
            total = rows[:, 0::2] + rows[:, 1::2]
            out[top // 2 : top // 2 + len(total)] = (total + 2) // 4 if whole else total / 4
    return out


@lru_cache(maxsize=64)
def _table(dtype: str, window: Window) -> Pixels:
    """What every value of 8 or 16 bit is shown as."""
    return _in_8_bit(np.arange(np.iinfo(dtype).max + 1, dtype=dtype), window)


def _in_8_bit(values: Pixels, window: Window) -> Pixels:
    return np.asarray(np.rint(windowed(values, window) * 255), dtype=np.uint8)


def _range(frame: Pixels) -> tuple[float, float]:
    """Smallest and largest finite value; 0, 0 where there is none."""
    if frame.dtype.kind != "f":
        return float(frame.min()), float(frame.max())
    finite = np.isfinite(frame)
    if not finite.any():
        return 0.0, 0.0
    least = float(np.min(frame, where=finite, initial=np.inf))
    return least, float(np.max(frame, where=finite, initial=-np.inf))

"""Raw pixels -> one Picture: grey levels 0..1, an anti-aliased small copy, the noise. Knows nothing of structures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from scipy import ndimage

from assistant.arrays import F32 as F32
from assistant.arrays import F64 as F64
from assistant.arrays import I32 as I32
from assistant.arrays import Mask as Mask
from assistant.arrays import Pixels as Pixels

Levels = TypeVar("Levels", F32, F64)

SMALL_SIDE = 768
"""Longest side of the small copy [px]."""
CROP = 640
"""Side of the full-resolution centre crop for noise, sharpness and fine periods [px]."""
SMALLEST = 32
"""Below this side a picture holds too little to measure structures [px]."""
GLOW = 0.4
"""Share of the glow of an edge by which the level of the outline is raised."""
HIGHEST_EDGE = 0.9
LOW_PERCENTILE, HIGH_PERCENTILE = 0.1, 99.9
MAD_TO_SIGMA = 1 / 0.6745


@dataclass(frozen=True, eq=False)
class Picture:
    """The content of a micrograph as measurement sees it."""

    grey: F32
    """[H, W] windowed grey levels, 0..1"""
    small: F32
    """[h, w] means of `factor` x `factor` blocks of `grey`"""
    factor: int
    black: float = 0.0
    """grey level of no signal at all, where pixels are 0: at most 0"""

    @cached_property
    def crop(self) -> F32:
        """The centre at full resolution, at most CROP px a side."""
        return centre(self.grey, CROP)

    @cached_property
    def noise(self) -> float:
        """Standard deviation of the pixel noise, as a share of the window."""
        return noise_sigma(self.crop)

    @cached_property
    def small_noise(self) -> float:
        """The same in the small copy."""
        return self.noise if self.factor == 1 else noise_sigma(self.small)

    @cached_property
    def sigma(self) -> float:
        """Blur that calms the noise of the small copy before segmentation [px]."""
        return 1.0 if self.small_noise < 0.04 else 1.5 if self.small_noise < 0.1 else 2.0

    @cached_property
    def calm(self) -> F32:
        """The small copy, denoised. [h, w]"""
        return blurred(self.small, self.sigma)

    @cached_property
    def gradients(self) -> tuple[F32, F32]:
        """Horizontal and vertical gradient of the denoised small copy. [h, w] each"""
        gy, gx = np.gradient(self.calm)
        return np.asarray(gx, dtype=np.float32), np.asarray(gy, dtype=np.float32)

    @cached_property
    def slope(self) -> F32:
        """Gradient magnitude of the denoised small copy. [h, w]"""
        return np.hypot(*self.gradients)


def blurred(image: F32, sigma: float) -> F32:
    """Gaussian blur, cut at 3 sigma."""
    return np.asarray(ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0), dtype=np.float32)


def running_mean(image: F32, width: int) -> F32:
    """Mean over a square window, taken twice so that it falls off smoothly."""
    once = ndimage.uniform_filter(image, width, mode="reflect")
    return np.asarray(ndimage.uniform_filter(once, width, mode="reflect"), dtype=np.float32)


def centre(image: F32, side: int) -> F32:
    """The central part of at most `side` px a side."""
    top, left = (max(n - side, 0) // 2 for n in image.shape)
    return image[top : top + side, left : left + side]


def noise_sigma(image: F32) -> float:
    """Noise from the median of a second difference across both axes, blind to edges.

    J. Immerkaer, Comput. Vis. Image Underst. 64, 300 (1996), with the median in place of the mean.
    """
    if min(image.shape) < 3:
        return 0.0
    down = image[2:] + image[:-2] - 2 * image[1:-1]
    curl = down[:, 2:] + down[:, :-2] - 2 * down[:, 1:-1]
    return float(np.median(np.abs(curl, out=curl), overwrite_input=True)) * MAD_TO_SIGMA / 6.0


def halved(picture: Picture) -> Picture:
    """The same picture with a small copy of half the size, for a rough look."""
    return replace(picture, small=block_mean(picture.small, 2), factor=2 * picture.factor)


def block_mean(image: F32, factor: int) -> F32:
    """Means of `factor` x `factor` blocks; the last incomplete row and column of blocks are left out."""
    if factor == 1:
        return image
    rows, columns = (n // factor for n in image.shape)
    total = np.zeros((rows, columns), np.float32)
    for dy in range(factor):
        for dx in range(factor):
            total += image[dy : rows * factor : factor, dx : columns * factor : factor]
    return np.asarray(total / np.float32(factor * factor), dtype=np.float32)


def eroded(mask: Mask) -> Mask:
    """Pixels whose four neighbours are set too; the frame's border erodes nothing."""
    out = mask.copy()
    out[1:] &= mask[:-1]
    out[:-1] &= mask[1:]
    out[:, 1:] &= mask[:, :-1]
    out[:, :-1] &= mask[:, 1:]
    return out


def opened(mask: Mask) -> Mask:
    """Erosion and dilation by the four neighbours: specks and hairlines go."""
    return ~eroded(~eroded(mask))


def edge_level(ground: float, body: float, crest: float) -> float:
    """Grey level at which an outline is taken.

    Midway between ground and body in a plain image. In secondary electrons edges glow, and the outline lies under the
    crest of the glow rather than at its outer foot, so the level is raised with the glow.
    """
    return float(edge_levels(*(np.array([level], np.float64) for level in (ground, body, crest)))[0])


def edge_levels(ground: Levels, body: Levels, crest: Levels) -> Levels:
    """The same of many outlines. [N]"""
    return np.minimum((ground + crest) / 2 + GLOW * (crest - body), ground + HIGHEST_EDGE * (crest - ground))


def grey_window(pixels: Pixels) -> tuple[float, float]:
    """The 0.1 and 99.9 percentiles of the finite pixels; 0, 0 where there are none."""
    if pixels.dtype in (np.uint8, np.uint16) and pixels.size:
        below = np.cumsum(np.bincount(pixels.ravel()))
        ranks = (pixels.size - 1) * np.array([LOW_PERCENTILE, HIGH_PERCENTILE]) / 100
        low, high = np.searchsorted(below, np.rint(ranks), side="right")
        return float(low), float(high)
    finite = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels
    if finite.size == 0:
        return 0.0, 0.0
    low, high = np.percentile(finite, [LOW_PERCENTILE, HIGH_PERCENTILE])
    return float(low), float(high)


def picture_of(pixels: Pixels, low: float, high: float) -> Picture | None:
    """Window the pixels; None where they are too few or all alike. The median stands in for what is not finite."""
    if pixels.ndim != 2 or min(pixels.shape) < SMALLEST or not high > low:
        return None
    grey = pixels.astype(np.float32)
    if pixels.dtype.kind == "f":
        bad = ~np.isfinite(pixels)
        if bad.mean() > 0.5:
            return None
        if bad.any():
            grey[bad] = np.median(grey[~bad])
    grey -= np.float32(low)
    grey *= np.float32(1.0 / (high - low))
    np.clip(grey, 0.0, 1.0, out=grey)
    factor = max(1, -(-max(grey.shape) // SMALL_SIDE))
    picture = Picture(grey, block_mean(grey, factor), factor, black=min(0.0, -low / (high - low)))
    return picture if float(picture.small.std()) > 1e-4 else None

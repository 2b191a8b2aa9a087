"""Fibres and wires: is the picture made of long thin bodies, and how wide are they. Knows nothing about separate objects.

The measure of "long" is persistence: how well the grey level at the middle of a body foretells the one a few widths
further along the local direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from assistant.measurements.picture import F32, Mask, Picture, running_mean
from assistant.measurements.segmentation import otsu, separability
from assistant.measurements.texture import tensor

REACHES = (2.5, 3.5)
"""Distances along the fibre at which persistence is looked for, in fibre widths."""
PERSISTENT = 0.45
SMALLEST_PIECE = 60
LONGEST_SKELETON = 4000
WIDEST_SHARE = 0.12
"""Of the shorter side; a wider body is no fibre."""


@dataclass(frozen=True)
class Fibres:
    """Long thin bodies of one polarity [px of the small copy]."""

    width: float
    spread: float
    """interquartile range of the width over its median"""
    persistence: float
    coverage: float
    """share of the frame"""
    separability: float
    bright: bool


def _pieces(mask: Mask) -> Mask:
    labels, count = ndimage.label(ndimage.binary_opening(mask))
    area = np.bincount(labels.ravel(), minlength=count + 1)
    area[0] = 0
    return np.asarray((area > SMALLEST_PIECE)[labels], dtype=np.bool_)


def _persistence(
    relief: F32, image: F32, rows: np.ndarray, columns: np.ndarray, *, width: float, sigma: float
) -> float:
    """Mean correlation of the relief with itself a few widths along the local direction, at the given places."""
    xx, xy, yy = tensor(image, sigma=max(sigma, 1.0), window=int(2 * width) | 1)
    along = 0.5 * np.arctan2(2 * xy[rows, columns], (xx - yy)[rows, columns]) + np.pi / 2
    here, scores = relief[rows, columns], []
    for reach in REACHES:
        for sign in (-1, 1):
            y = np.rint(rows + sign * reach * width * np.sin(along)).astype(np.intp)
            x = np.rint(columns + sign * reach * width * np.cos(along)).astype(np.intp)
            seen = (y >= 0) & (y < relief.shape[0]) & (x >= 0) & (x < relief.shape[1])
            if seen.mean() < 0.2:
                return 0.0
            scores.append(float(relief[y[seen], x[seen]].mean()) / max(float(here[seen].mean()), 1e-6))
    return float(np.mean(scores))


def find_fibres(picture: Picture, *, bright: bool) -> Fibres | None:
    """Fibres of one polarity, None where the bodies are not thin or do not persist."""
    from skimage.morphology import skeletonize

    calm = picture.calm
    level = otsu(calm[::2, ::2])
    mask = _pieces((calm > level) if bright else (calm < level))
    skeleton = skeletonize(mask)
    rows, columns = np.nonzero(skeleton)
    if len(rows) < 2 * SMALLEST_PIECE:
        return None
    distance = ndimage.distance_transform_edt(mask)
    widths = 2 * distance[rows, columns] - 1
    width = float(np.median(widths))
    if width > WIDEST_SHARE * min(mask.shape):
        return None
    relief = (calm - running_mean(calm, int(2.5 * max(width, 4.0)) * 2 + 1)) * (1 if bright else -1)
    step = max(1, len(rows) // LONGEST_SKELETON)
    persistence = _persistence(
        np.asarray(relief, np.float32), picture.small, rows[::step], columns[::step], width=max(width, 4.0),
        sigma=picture.sigma,
    )  # fmt: skip
    if persistence < PERSISTENT:
        return None
    low, high = np.percentile(widths, [25, 75])
    return Fibres(
        _deblurred(width, picture.sigma), float(high - low) / max(width, 1.0), persistence, float(mask.mean()),
        separability(calm, level), bright,
    )  # fmt: skip


def _deblurred(width: float, sigma: float) -> float:
    """Take the denoising blur, of full width 2.355 sigma, off a width at half height; it matters for thin wires only."""
    return float(max(width**2 - (1.2 * sigma) ** 2, 1.0) ** 0.5)

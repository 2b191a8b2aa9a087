"""Fibres and wires: is the picture made of long thin bodies, and how wide are they. Knows nothing about other objects.

The measure of "long" is persistence: how well the grey level at the middle of a body foretells the one a few widths
further along the local direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from assistant.measurements.picture import F32, Mask, Picture, eroded, opened, running_mean
from assistant.measurements.segmentation import Candidate
from assistant.measurements.texture import gradients

REACHES = (2.5, 3.5)
"""Distances along the fibre at which persistence is looked for, in fibre widths."""
PERSISTENT = 0.4
SMALLEST_PIECE = 60
MOST_PLACES = 4000
THIN = 8.0
"""Width under which the threshold's outline is too coarse [px of the small copy]."""
NOISY_SIGMA = 2.0
"""Denoising blur from which thin wires swell [px]."""
BLURRED = 5.5
"""Width, in blurs, from which they do not."""
DENSE = 0.4
"""Share of the frame from which fibres are a mat."""
STEP = 1.12
"""Mean length of a skeleton pixel over all directions [px]."""
WIDEST_SHARE, WIDEST_DARK = 0.08, 0.05
"""Of the shorter side; a wider body is no fibre, and a wider dark one is a crack or a band."""


@dataclass(frozen=True)
class Fibres:
    """Long thin bodies of one polarity [px of the small copy]."""

    width: float
    persistence: float
    coverage: float
    """share of the frame"""
    separability: float
    resolved: bool
    """whether the width is more than what denoising leaves of a thin line"""
    bright: bool
    mask: Mask
    """[h, w]"""


def _pieces(mask: Mask) -> Mask:
    labels, count = ndimage.label(opened(mask))
    area = np.bincount(labels.ravel(), minlength=count + 1)
    area[0] = 0
    return np.asarray((area > SMALLEST_PIECE)[labels], dtype=np.bool_)


def _ridge(distance: F32) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places where the distance map is highest across the body in at least one direction."""
    inner = distance[1:-1, 1:-1]
    across = (inner >= distance[1:-1, :-2]) & (inner > distance[1:-1, 2:])
    down = (inner >= distance[:-2, 1:-1]) & (inner > distance[2:, 1:-1])
    rows, columns = np.nonzero((across | down) & (inner > 1))
    return rows + 1, columns + 1


def _persistence(
    relief: F32, picture: Picture, rows: NDArray[np.intp], columns: NDArray[np.intp], width: float
) -> float:
    """Mean correlation of the relief with itself a few widths along the local direction, at the given places."""
    gx, gy = gradients(picture)
    window = int(2 * width) | 1
    xx, xy, yy = (ndimage.uniform_filter(part, window)[rows, columns] for part in (gx * gx, gx * gy, gy * gy))
    along = 0.5 * np.arctan2(2 * xy, xx - yy) + np.pi / 2
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


def find_fibres(picture: Picture, phases: Candidate, *, bright: bool) -> Fibres | None:
    """Fibres of one polarity, None where the bodies are not thin or do not persist."""
    calm = picture.calm
    mask = _pieces((calm > phases.threshold) if bright else (calm < phases.threshold))
    distance = np.asarray(ndimage.distance_transform_edt(mask), dtype=np.float32)
    rows, columns = _ridge(distance)
    if len(rows) < 2 * SMALLEST_PIECE:
        return None
    widest = (WIDEST_SHARE if bright else WIDEST_DARK) * min(mask.shape)
    width = float(np.median(2 * distance[rows, columns] - 1))
    if width > widest:
        return None
    step = max(1, len(rows) // MOST_PLACES)
    reach = max(width, 4.0)
    relief = (calm - running_mean(calm, 2 * int(2.5 * reach) + 1)) * np.float32(1 if bright else -1)
    persistence = _persistence(relief, picture, rows[::step], columns[::step], reach)
    if persistence < PERSISTENT:
        return None
    drawn, width = _widths(mask, distance, relief, picture)
    if width > widest:
        return None
    share = _coverage(picture, mask, width / drawn, bright=bright)
    resolved = drawn > BLURRED * picture.sigma or picture.sigma < NOISY_SIGMA
    return Fibres(width, persistence, share, phases.separability, resolved, bright, mask)


def _coverage(picture: Picture, mask: Mask, thinner: float, *, bright: bool) -> float:
    """Share of the frame; a dense mat reaches into the shadows, where Li's threshold follows and Otsu's does not."""
    share = float(mask.mean())
    if share < DENSE or not bright:
        return share * thinner
    from skimage.filters import threshold_li

    calm = picture.calm[::2, ::2]
    return float((calm > threshold_li(calm, tolerance=0.01)).mean())


def _widths(mask: Mask, distance: F32, relief: F32, picture: Picture) -> tuple[float, float]:
    """Median width along the skeleton, as drawn and as measured.

    For thin wires the latter is not above their brightness per length over that of the middle.
    """
    from skimage.morphology import skeletonize

    skeleton = skeletonize(mask)
    width = float(np.median(2 * distance[skeleton] - 1))
    if width > THIN:
        return width, width
    around = ~eroded(eroded(~mask))
    length = STEP * float(skeleton.sum())
    # The raw copy: the denoising blur spreads a thin wire, and what it takes from the crest it adds to the flanks.
    raw = (picture.small - picture.calm) * np.float32(1 if relief[skeleton].mean() > 0 else -1) + relief
    ground = float(np.median(raw[~around])) if not around.all() else 0.0
    crest = float(raw[skeleton].mean()) - ground
    total = float((raw[around] - ground).sum())
    return width, min(width, total / max(length * crest, 1e-6))

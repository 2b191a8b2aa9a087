"""What measurement and model see in place of what is no sample. Knows nothing about files, text or drawings."""

from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[Any]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

NEAR = 12  # [px] up to which a gap takes the nearest pixel; further in it is ground
BINS = 256
BLOCK, WHOLE = 16, 0.7  # [px] of the grid on which large gaps are looked for, and the share of a block that is sample


def filled(pixels: Pixels, sample: Mask) -> Pixels:
    """`pixels` [H, W] with what is no sample made like the specimen beside it, or, far from any, like its ground.

    Ground is the commonest level with its own noise: nothing is found there, and nothing of the specimen is changed.
    """
    from scipy import ndimage

    out = pixels.copy()
    distance, (rows, columns) = ndimage.distance_transform_edt(~sample, return_indices=True)
    near = (distance > 0) & (distance <= NEAR)
    out[near] = pixels[rows[near], columns[near]]
    far = distance > NEAR
    if far.any():
        ground = _ground(pixels[sample])
        out[far] = np.random.default_rng(0).choice(ground, int(far.sum()))
    return out


def _ground(values: Pixels) -> Pixels:
    """The values around the commonest level, a tenth of all on either side of it."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if finite.size == 0:
        return values
    ordered = np.sort(finite[:: max(1, finite.size // 200_000)])
    step = max(1, len(ordered) // 5)
    widths = ordered[step:].astype(np.float64) - ordered[:-step]  # the narrowest fifth of all values
    first = int(widths.argmin()) if len(widths) else 0
    return np.asarray(ordered[first : first + step])


def largest_rectangle(sample: Mask) -> tuple[slice, slice]:
    """Rows and columns of the largest rectangle without a large gap; small drawings in it do not count."""
    grid = [np.linspace(0, side, max(1, side // BLOCK) + 1).round().astype(int) for side in sample.shape]
    sums = np.add.reduceat(np.add.reduceat(sample.astype(np.int32), grid[0][:-1], axis=0), grid[1][:-1], axis=1)
    whole = sums >= WHOLE * np.outer(np.diff(grid[0]), np.diff(grid[1]))  # [rows, columns] of blocks
    best, heights = (0, 0, 0, 0, 0), np.zeros(whole.shape[1], int)
    for row, line in enumerate(whole):
        heights = np.where(line, heights + 1, 0)
        for left in range(len(heights)):
            lowest = np.minimum.accumulate(heights[left:])
            areas = lowest * np.arange(1, len(lowest) + 1)
            wide = int(areas.argmax())
            if areas[wide] > best[0]:
                best = (int(areas[wide]), row + 1 - int(lowest[wide]), row + 1, left, left + wide + 1)
    if best[0] == 0:
        return slice(0, sample.shape[0]), slice(0, sample.shape[1])
    _, top, bottom, first, last = best
    return slice(int(grid[0][top]), int(grid[0][bottom])), slice(int(grid[1][first]), int(grid[1][last]))

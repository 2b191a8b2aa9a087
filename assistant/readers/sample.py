"""What measurement and model see in place of what is no sample. Knows nothing about files, text or drawings."""

import numpy as np

from assistant.arrays import Mask, Pixels

_NEAR = 12  # [px] half the width of a gap up to which it takes the nearest pixels; a wider one is ground
ROWS = 1024  # of the picture that are enough to know its ground
_BLOCK, _WHOLE = 48, 0.5  # [px] of the grid on which large gaps are looked for, and the share of a block that is sample


def without_gaps(pixels: Pixels, sample: Mask) -> Pixels:
    """`pixels` [H, W] with what is no sample made like the specimen beside it, or, in a wide gap, like its ground.

    Ground is the commonest level with the picture's noise: nothing is found there, and no specimen is changed.
    """
    from scipy import ndimage

    out = pixels.copy()
    gaps, margin = ~sample, _NEAR + 1
    sides = [np.flatnonzero(gaps.any(axis=axis)) for axis in (1, 0)]
    place = tuple(slice(max(0, int(side[0]) - margin), int(side[-1]) + 1 + margin) for side in sides)
    gap, there = gaps[place], out[place]
    distance, (rows, columns) = ndimage.distance_transform_edt(gap, return_indices=True)
    names, count = ndimage.label(gap)
    deepest = ndimage.maximum(distance, names, np.arange(count + 1))
    wide = (np.asarray(deepest) > _NEAR)[names] & gap
    thin = gap & ~wide
    there[thin] = there[rows[thin], columns[thin]]
    if wide.any():
        there[wide] = _ground(pixels, sample, int(wide.sum()))
    return out


def _ground(pixels: Pixels, sample: Mask, count: int) -> Pixels:
    """So many values around the commonest level, with the noise that neighbouring pixels have."""
    every = max(1, len(pixels) // ROWS)
    pixels, sample = pixels[::every], sample[::every]
    values = pixels[sample]
    values = (values[np.isfinite(values)] if values.dtype.kind == "f" else values)[:: max(1, values.size // 200_000)]
    ordered = np.sort(values.astype(np.float64))
    step = max(1, len(ordered) // 5)
    first = int((ordered[step:] - ordered[:-step]).argmin()) if len(ordered) > step else 0
    level = float(np.median(ordered[first : first + step]))
    beside = pixels[:, 1:].astype(np.float64) - pixels[:, :-1]
    beside = beside[sample[:, 1:] & sample[:, :-1]]
    noise = float(np.median(np.abs(beside[np.isfinite(beside)]))) / (0.6745 * np.sqrt(2)) if beside.size else 0.0
    drawn = np.random.default_rng(0).normal(level, noise, count).clip(ordered[0], ordered[-1])
    return np.asarray(np.rint(drawn) if pixels.dtype.kind in "iu" else drawn).astype(pixels.dtype)


def largest_rectangle(sample: Mask) -> tuple[slice, slice]:
    """Rows and columns of the largest rectangle without a large gap; small drawings in it do not count."""
    grid = [np.linspace(0, side, max(1, side // _BLOCK) + 1).round().astype(int) for side in sample.shape]
    sums = np.add.reduceat(np.add.reduceat(sample, grid[0][:-1], axis=0, dtype=np.int32), grid[1][:-1], axis=1)
    whole = sums >= _WHOLE * np.outer(np.diff(grid[0]), np.diff(grid[1]))  # [rows, columns] of blocks
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

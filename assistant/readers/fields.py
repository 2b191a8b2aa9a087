"""Tells whether a frame holds several pictures: detectors side by side, the parts of a montage.

A specimen goes on from one column of pixels to the next. Where two pictures meet, it does not: the two columns have
nothing to do with each other over their whole length, or a strip of one level lies between them. Knows nothing about
files, text or scales.
"""

import numpy as np

from assistant.arrays import Pixels
from assistant.readers.drawings import Box, eight_bits, many_levels
from assistant.readers.window import level_counts

SMALLEST_SIDE, SMALLEST_SHARE = 64, 0.15  # of a field: [px], and of the frame's side
SLENDER = 4.0  # a field is at most this many times as long as wide: an info bar is none, nor is a line of a grating
_ALIKE = 0.1  # area of the smallest field, as a share of the largest: what is smaller lies beside a box with text
MOST_CUTS, MOST_FIELDS = 5, 36
GUTTER_SHARE = 0.08  # widest strip between two fields, as a share of the side; wider, it is a gap in the specimen
GUTTER_RANGE = 16  # [levels of 256] that JPEG spreads a strip of one level over
_BLACK, _WHITE = 16, 239  # levels up to and from which a strip that JPEG spoilt is paper
OTHER_BESIDE = 0.5  # share of what lies beside a strip that has another level, or its ends are not straight
LINES = 240  # averaged rows that are enough to compare two columns
_BLOCK = 16  # of these between which slow changes do not count: fields of one specimen are shaded alike
_APART = 0.4  # correlation of the columns beside a seam, as a share of that of neighbours near by
TOGETHER = 0.4  # correlation from which neighbours tell anything: of columns of noise 0
_STEP, STEPPED = 4.0, 0.9  # a change of level as a multiple of the usual one, and the share of blocks that have it
TELLING, FEWEST_BLOCKS = 0.4, 6  # share of the blocks, and blocks, in which they must
AROUND = 24  # columns on both sides that tell how alike neighbours are here
LINE_WIDTH = 8  # [px] of a line drawn between two fields, at most
TEXTURE = 4.0  # [levels of 256] standard deviation from which there is a picture in a field


def fields_of(pixels: Pixels) -> list[Box]:
    """The pictures that a frame [H, W] was put together from, in reading order; one box where it is one picture."""
    grey = eight_bits(pixels)
    whole = Box(0, 0, grey.shape[1], grey.shape[0])
    if min(grey.shape) < 2 * SMALLEST_SIDE or not many_levels(level_counts(grey)):
        return [whole]
    found = [box for box in _cut(grey, whole, MOST_CUTS) if _is_field(grey, box)]
    largest = max((box.area for box in found), default=0)
    found = [box for box in found if box.area >= _ALIKE * largest]
    return found if 2 <= len(found) <= MOST_FIELDS else [whole]


def _is_field(grey: Pixels, box: Box) -> bool:
    high, wide = box.bottom - box.top, box.right - box.left
    large = high >= max(SMALLEST_SIDE, SMALLEST_SHARE * grey.shape[0]) and wide >= max(
        SMALLEST_SIDE, SMALLEST_SHARE * grey.shape[1]
    )
    if not large or max(high, wide) > SLENDER * min(high, wide):
        return False
    counts, levels = level_counts(grey[box.rows, box.columns]), np.arange(256)
    mean = np.average(levels, weights=counts)
    return bool(np.average((levels - mean) ** 2, weights=counts) >= TEXTURE**2)


def _cut(grey: Pixels, box: Box, cuts: int) -> list[Box]:
    """The box, or the fields it falls into at straight cuts from edge to edge, and those into theirs."""
    if cuts == 0:
        return [box]
    part = grey[box.rows, box.columns]
    for upright, turned in ((part, False), (part.T, True)):
        gaps = _gutters(upright) or _seams(upright)
        edges = [0, *(edge for gap in gaps for edge in gap), upright.shape[1]]
        pieces = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]
        if pieces == [(0, upright.shape[1])]:
            continue
        boxes = [
            Box(box.left, box.top + a, box.right, box.top + b)
            if turned
            else Box(box.left + a, box.top, box.left + b, box.bottom)
            for a, b in pieces
        ]
        return [field for piece in boxes for field in _cut(grey, piece, cuts - 1)]
    return [box]


def _gutters(grey: Pixels) -> list[tuple[int, int]]:
    """Columns [first, stop) of strips of one level, margins included, if pictures end at them along a straight edge."""
    few = grey[:: max(1, len(grey) // _BLOCK)]
    likely = np.flatnonzero(np.ptp(few, axis=0) <= 2 * GUTTER_RANGE)
    part, half = grey[:, likely], len(grey) // 2 - 1
    constant = np.ptp(part, axis=0) == 0
    paper = (np.count_nonzero(part <= _BLACK, axis=0) >= half) | (np.count_nonzero(part >= _WHITE, axis=0) >= half)
    likely, constant = likely[constant | paper], constant[constant | paper]
    if len(likely) == 0:
        return []
    low, level, high = np.percentile(grey[:, likely], [2, 50, 98], axis=0, method="nearest")
    flat = constant | ((high - low <= GUTTER_RANGE) & ((level <= _BLACK) | (level >= _WHITE)))
    columns, levels = likely[flat], level[flat]
    found = []
    for run in np.split(np.arange(len(columns)), np.flatnonzero(np.diff(columns) > 1) + 1):
        if len(run) == 0:
            continue
        first, stop, shade = int(columns[run[0]]), int(columns[run[-1]]) + 1, int(np.median(levels[run]))
        margin = first == 0 or stop == grey.shape[1]
        beside = [grey[:, column] for column in (first - 2, stop + 1) if 0 <= column < grey.shape[1]]
        straight = all((np.abs(line.astype(np.int16) - shade) > GUTTER_RANGE).mean() >= OTHER_BESIDE for line in beside)
        if straight and (margin or stop - first <= GUTTER_SHARE * grey.shape[1]):
            found.append((first, stop))
    return found


def _seams(grey: Pixels) -> list[tuple[int, int]]:
    """Columns [first, stop) at which one picture ends and another begins: between them, or a drawn line."""
    step = max(1, len(grey) // LINES)
    blocks = len(grey) // step // _BLOCK
    if blocks < FEWEST_BLOCKS or grey.shape[1] < 2 * SMALLEST_SIDE:
        return []
    lines = grey[: blocks * _BLOCK * step].reshape(blocks * _BLOCK, step, -1).mean(axis=1, dtype=np.float32)
    pairs = (lines[:, :-1] + lines[:, 1:]).reshape(blocks, _BLOCK, -1)  # JPEG and noise part single columns
    pairs -= pairs.mean(axis=1, keepdims=True)
    apart = np.flatnonzero(_likeness(pairs, 2) <= _APART) + 2
    apart = apart[(apart >= SMALLEST_SIDE) & (apart <= grey.shape[1] - SMALLEST_SIDE)]
    found = []
    for run in np.split(apart, np.flatnonzero(np.diff(apart) > LINE_WIDTH) + 1):
        if len(run) == 0 or run[-1] - run[0] > LINE_WIDTH:
            continue
        first, stop = int(run[0]), int(run[-1])
        near = pairs[..., first - SMALLEST_SIDE : stop + SMALLEST_SIDE]
        if _likeness(near, stop - first + 4)[SMALLEST_SIDE - 3] <= _APART:  # beyond both sides of a line
            found.append((first, stop))
    return found or _halves(lines.reshape(blocks, _BLOCK, -1).mean(axis=1))


def _halves(levels: Pixels) -> list[tuple[int, int]]:
    """The middle, if all the levels [blocks, columns] change there and nowhere beside it: two detectors' noise."""
    middle = levels.shape[1] // 2
    near = levels[:, middle - AROUND : middle + AROUND].astype(np.float64)
    steps = np.abs(near[:, 4:] + near[:, 3:-1] - near[:, 1:-3] - near[:, :-4])
    usual = np.median(steps, axis=1)
    stand_out = (steps >= _STEP * usual[:, None] + 4).mean(axis=0) >= STEPPED
    where = np.flatnonzero(stand_out) + 3 - AROUND
    return [(middle, middle)] if 1 <= len(where) <= 4 and np.abs(where - 0.5).min() <= 1.5 else []


def _likeness(blocks: Pixels, lag: int) -> Pixels:
    """How alike each column is to the one `lag` to its right, of 1, which is as alike as such columns are near by.

    `blocks` is [blocks, rows, columns]. Only blocks in which columns are alike at all count; where these are few, all
    is 1.
    """
    from scipy import ndimage

    power = np.einsum("brc,brc->bc", blocks, blocks)
    product = np.einsum("brc,brc->bc", blocks[..., :-lag], blocks[..., lag:])
    both = np.sqrt(power[:, :-lag] * power[:, lag:])
    alike = np.divide(product, both, out=np.zeros_like(product), where=both > 0)
    usual = ndimage.uniform_filter1d(alike, 2 * AROUND + 1, axis=1)
    telling = usual >= TOGETHER
    enough = telling.sum(axis=0) >= max(FEWEST_BLOCKS, TELLING * len(blocks))
    expected = (usual * telling).sum(axis=0)
    return np.asarray(np.divide((alike * telling).sum(axis=0), expected, out=np.ones_like(expected), where=enough))

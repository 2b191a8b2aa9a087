"""Masks -> bodies: labels, their geometry, and the cut between bodies that touch. Knows nothing about grey levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from assistant.measurements.picture import F32, F64, I32, Mask

SMALLEST_AREA = 16
"""Area under which a body is a speck [px2]."""
NECK = 0.8
"""Bodies joined by a neck wider than this share of the smaller one are one object."""

BAR = 0.92
"""Compactness from which a long body is one straight bar and no chain."""


@dataclass(frozen=True)
class Geometry:
    """Geometry of labelled bodies in px of the labelled image, one entry per label. [N] each"""

    area: F64
    x: F64
    y: F64
    major: F64
    minor: F64
    angle: F64
    """of the long axis [deg, counter-clockwise from x]"""

    @property
    def compactness(self) -> F64:
        """Area over that of the ellipse with the same second moments: 1 for ellipses, 0.95 for squares."""
        return self.area / (np.pi / 4 * self.major * self.minor)

    @property
    def diameter(self) -> F64:
        """Diameter of the circle of equal area."""
        return 2 * np.sqrt(self.area / np.pi)


Runs = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]


def runs_of(labels: I32) -> Runs:
    """Stretches of one label along the rows, which are far fewer than pixels: flat start, length and label. [R] each"""
    new = np.empty(labels.shape, np.bool_)
    new[:, 0] = True
    np.not_equal(labels[:, 1:], labels[:, :-1], out=new[:, 1:])
    starts = np.flatnonzero(new)
    return starts, np.diff(starts, append=labels.size), labels.ravel()[starts].astype(np.intp)


def geometry_of(labels: I32, count: int, runs: Runs | None = None) -> Geometry:
    """Area, centre and the ellipse of equal second moments of each label 1..count; `runs` where they are known."""
    starts, lengths, index = runs or runs_of(labels)
    used = index > 0
    starts, lengths, index = starts[used], lengths[used], index[used] - 1
    rows, columns = np.divmod(starts, labels.shape[1])
    y, n = rows.astype(np.float64), lengths.astype(np.float64)
    x = columns + (n - 1) / 2
    sums = (n, n * x, n * y, n * x**2 + (n**3 - n) / 12, n * y**2, n * x * y)
    area, *moments = (np.bincount(index, v, count).astype(np.float64) for v in sums)
    cx, cy, xx, yy, xy = (moment / np.maximum(area, 1) for moment in moments)
    # 1/12 is the second moment of a pixel itself.
    xx, yy, xy = xx - cx**2 + 1 / 12, yy - cy**2 + 1 / 12, xy - cx * cy
    spread, middle = np.hypot((xx - yy) / 2, xy), (xx + yy) / 2
    angle = np.rad2deg(-0.5 * np.arctan2(2 * xy, xx - yy)) % 180
    major, minor = 4 * np.sqrt(middle + spread), 4 * np.sqrt(np.maximum(middle - spread, 1 / 12))
    return Geometry(area, cx, cy, major, minor, angle)


def perimeters(labels: I32, count: int) -> F64:
    """Crofton perimeter of each label from crossings in four directions [px]. [count]"""
    padded = np.pad(labels, 1)

    def crossings(a: I32, b: I32) -> F64:
        differ = a != b
        both = np.concatenate([a[differ], b[differ]])
        return np.bincount(both, minlength=count + 1)[1:].astype(np.float64)

    straight = crossings(padded[:, 1:], padded[:, :-1]) + crossings(padded[1:], padded[:-1])
    slanted = crossings(padded[1:, 1:], padded[:-1, :-1]) + crossings(padded[1:, :-1], padded[:-1, 1:])
    return np.asarray(np.pi / 8 * (straight + slanted / np.sqrt(2)))


def own_outline(labels: I32, count: int) -> F64:
    """Share of each label's outline that borders on background; the frame's border does not count. [count]"""
    total, own = np.zeros(count + 1), np.zeros(count + 1)
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])):
        differ = a != b
        for inner, outer in ((a[differ], b[differ]), (b[differ], a[differ])):
            total += np.bincount(inner, minlength=count + 1)
            own += np.bincount(inner[outer == 0], minlength=count + 1)
    return np.asarray(own[1:] / np.maximum(total[1:], 1))


def label(mask: Mask) -> tuple[I32, int]:
    labels, count = ndimage.label(mask)
    return np.asarray(labels, dtype=np.int32), int(count)


def _distance(mask: Mask) -> F32:
    return np.asarray(ndimage.distance_transform_edt(mask), dtype=np.float32)


def _touching(labels: I32, distance: F32) -> tuple[I32, I32, F64]:
    """Pairs of labels that touch, and the half-width of the widest neck between them. [M] each"""
    first, second, width = [], [], []
    here, there = (slice(1, None), slice(None)), (slice(None, -1), slice(None))
    for one, other in ((here, there), (here[::-1], there[::-1])):
        differ = (labels[one] != labels[other]) & (labels[one] > 0) & (labels[other] > 0)
        first.append(np.minimum(labels[one][differ], labels[other][differ]))
        second.append(np.maximum(labels[one][differ], labels[other][differ]))
        width.append(np.minimum(distance[one][differ], distance[other][differ]))
    pairs, index = np.unique(np.stack([np.concatenate(first), np.concatenate(second)]), axis=1, return_inverse=True)
    neck = np.zeros(pairs.shape[1])
    np.maximum.at(neck, index.ravel(), np.concatenate(width))
    return pairs[0], pairs[1], neck


def split(mask: Mask) -> tuple[I32, int]:
    """Cut bodies at their necks: watershed of the distance map, then join across wide necks."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from skimage.segmentation import watershed

    distance = np.asarray(ndimage.gaussian_filter(_distance(mask), 1.0) * mask, dtype=np.float32)
    peaks = (distance == ndimage.maximum_filter(distance, 5)) & (distance > 1.5)
    markers, count = ndimage.label(peaks, np.ones((3, 3)))
    labels = np.asarray(watershed(-distance, markers, mask=mask), dtype=np.int32)
    if count < 2:
        return labels, int(count)
    a, b, neck = _touching(labels, distance)
    peak = np.asarray(ndimage.maximum(distance, labels, np.arange(1, count + 1)))
    wide = neck > NECK * np.minimum(peak[a - 1], peak[b - 1])
    graph = coo_matrix((np.ones(int(wide.sum())), (a[wide] - 1, b[wide] - 1)), shape=(count, count))
    joined, number = connected_components(graph, directed=False)
    return np.concatenate([[0], number + 1]).astype(np.int32)[labels], int(joined)


def _split_coarse(mask: Mask) -> tuple[I32, int]:
    """`split` on every second pixel, spread back over the mask; for large masks with large bodies."""
    coarse, count = split(mask[::2, ::2])
    labels = np.repeat(np.repeat(coarse, 2, axis=0), 2, axis=1)[: mask.shape[0], : mask.shape[1]]
    labels = np.where(mask, labels, 0)
    missing = mask & (labels == 0)
    for _ in range(2):
        spread = ndimage.maximum_filter(labels, 3)
        labels = np.where(missing & (labels == 0), spread, labels)
    return labels.astype(np.int32), count


def separate(mask: Mask) -> tuple[I32, int]:
    """Label the bodies; those that are not compact are cut at their necks."""
    labels, count = label(mask)
    shape = geometry_of(labels, count)
    bar = (shape.compactness > BAR) & (shape.major > 4 * shape.minor)
    doubtful = ((shape.compactness < 0.93) | (shape.major > 1.25 * shape.minor)) & ~bar
    clumped = np.concatenate([[False], doubtful & (shape.area > 4 * SMALLEST_AREA)])
    part: Mask = clumped[labels]
    if not part.any():
        return labels, count
    thick = float(np.percentile(_distance(part[::2, ::2])[part[::2, ::2]], 90)) > 4
    cut, pieces = _split_coarse(part) if thick else split(part)
    renumber = np.concatenate([[0], np.cumsum(~clumped[1:])]) * ~clumped
    simple = renumber[labels].astype(np.int32)
    return np.where(part, np.where(cut > 0, cut + int(renumber.max()), 0), simple).astype(np.int32), int(
        renumber.max()
    ) + pieces


def at_border(labels: I32, count: int) -> Mask:
    touched = np.zeros(count + 1, np.bool_)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touched[edge] = True
    return touched[1:]


def spanning(labels: I32, count: int) -> Mask:
    """Labels that reach from one border to the opposite one: layers and lines, not objects. [count]"""
    out = np.zeros(count + 1, np.bool_)
    for one, other in ((labels[0], labels[-1]), (labels[:, 0], labels[:, -1])):
        out[np.intersect1d(one, other)] = True
    return out[1:]


def centre_inside(labels: I32, shape: Geometry, border: Mask) -> Mask:
    """Whether each object's centre lies in the frame. [N]

    A disc that a border cuts has its centre inside if it is at least half as deep as it is long at the border; an
    elongated object, if at least half the usual area is in sight.
    """
    inside = ~border
    whole = inside & (shape.area >= SMALLEST_AREA)
    aspect = shape.major / shape.minor
    elongated = bool(whole.any()) and float(np.median(aspect[whole])) > 1.5
    usual = float(np.median(shape.area[whole])) if whole.any() else 0.0
    boxes = ndimage.find_objects(labels)
    for index in np.flatnonzero(border):
        box = boxes[index]
        if box is None:
            continue
        if elongated:
            inside[index] = shape.area[index] >= 0.5 * usual
            continue
        (top, bottom), (left, right) = ((side.start, side.stop) for side in box)
        height, width = bottom - top, right - left
        upright = top == 0 or bottom == labels.shape[0]
        lying = left == 0 or right == labels.shape[1]
        inside[index] = (not upright or height >= 0.5 * width) and (not lying or width >= 0.5 * height)
    return inside

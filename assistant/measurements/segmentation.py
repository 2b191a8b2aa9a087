"""Picture -> objects: threshold, polarity, split of touching bodies, and per-object geometry.

Several thresholds are tried in both polarities; the one whose outlines lie on edges and enclose compact bodies is kept.
Knows nothing about units or what the objects are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from assistant.measurements.picture import F32, F64, I32, Mask, Picture

COARSE = 2
"""The thresholds are compared on every second pixel of the small copy."""
COMPACT = 0.87
"""Area over that of the ellipse with the same moments, from which a body counts as one compact object."""
CUT_COMPACT = 0.9
OWN_OUTLINE = 0.45
"""Least share of an object's outline that is edge of the foreground, not a cut between neighbours."""
NECK = 0.8
"""Bodies joined by a neck wider than this share of the smaller one are one object."""
LARGEST = 0.45
"""Share of the frame above which a body is background or a support."""
SMALLEST_AREA = 16
DEBRIS = 0.2
"""Objects thinner than this share of the area-weighted diameter are debris."""
GAUSSIAN_SEPARABILITY = 2 / np.pi
"""Otsu's criterion of a single Gaussian, which has nothing to separate."""


@dataclass(frozen=True)
class Candidate:
    """One way of telling foreground from background, and how good it looks."""

    threshold: float
    bright: bool
    filled: bool
    share: float
    """of the frame that is foreground"""
    separability: float
    """between-class share of the variance, 0..1 (Otsu 1979)"""
    edge: float
    """mean gradient along the outlines over the mean gradient of the picture"""
    compact: float
    """share of the foreground in compact bodies before any split"""

    @property
    def evidence(self) -> float:
        """How clearly there are two phases with edges between them; about 0 for a texture, 1 and more for objects."""
        separated = (self.separability - GAUSSIAN_SEPARABILITY) / 0.25
        return separated + (self.edge - 2.0) / 2.0 + (self.compact - 0.7) / 0.6

    @property
    def rank(self) -> float:
        """What the thresholds of one polarity compete by."""
        return self.edge * (0.3 + self.compact)


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


@dataclass(frozen=True)
class Objects:
    """Objects of one polarity as they were found in the small copy."""

    candidate: Candidate
    foreground: Mask
    labels: I32
    geometry: Geometry
    perimeter: F64
    good: Mask
    """[N] compact bodies with an outline of their own"""
    whole: Mask
    """[N] objects that no border cuts"""
    inside: Mask
    """[N] objects whose centre lies in the frame"""

    @property
    def share_good(self) -> float:
        """Share of the foreground that good objects make up."""
        area = self.geometry.area
        return float(area[self.good].sum() / max(float(area.sum()), 1.0))


def otsu(image: F32) -> float:
    """Otsu's threshold of a calm image."""
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(image))


def separability(image: F32, threshold: float) -> float:
    """Share of the variance that lies between the two classes."""
    above = image > threshold
    share = float(above.mean())
    if not 0 < share < 1:
        return 0.0
    gap = float(image[above].mean()) - float(image[~above].mean())
    return share * (1 - share) * gap**2 / max(float(image.var()), 1e-12)


def geometry_of(labels: I32, count: int) -> Geometry:
    """Area, centre and the ellipse of equal second moments of each label 1..count."""
    used = np.flatnonzero(labels)
    index = labels.ravel()[used] - 1
    rows, columns = np.divmod(used, labels.shape[1])
    x, y = columns.astype(np.float64), rows.astype(np.float64)
    area = np.bincount(index, minlength=count).astype(np.float64)
    some = np.maximum(area, 1)
    cx, cy = (np.bincount(index, v, count) / some for v in (x, y))
    x -= cx[index]
    y -= cy[index]
    # 1/12 is the second moment of a pixel itself.
    xx, yy = (np.bincount(index, v * v, count) / some + 1 / 12 for v in (x, y))
    xy = np.bincount(index, x * y, count) / some
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


def _own_outline(labels: I32, count: int) -> F64:
    """Share of each label's outline that borders on background; the frame's border does not count. [count]"""
    total, own = np.zeros(count + 1), np.zeros(count + 1)
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])):
        differ = a != b
        for inner, outer in ((a[differ], b[differ]), (b[differ], a[differ])):
            total += np.bincount(inner, minlength=count + 1)
            own += np.bincount(inner[outer == 0], minlength=count + 1)
    return np.asarray(own[1:] / np.maximum(total[1:], 1))


def _label(mask: Mask) -> tuple[I32, int]:
    labels, count = ndimage.label(mask)
    return np.asarray(labels, dtype=np.int32), int(count)


def _fill(mask: Mask) -> Mask:
    return np.asarray(ndimage.binary_fill_holes(mask), dtype=np.bool_)


def _thresholds(calm: F32) -> list[float]:
    """Otsu, Li and the two levels of a three-class Otsu, those that nearly coincide only once."""
    from skimage.filters import threshold_li, threshold_multiotsu

    sample = calm[::2, ::2]
    levels = [otsu(sample)]
    try:
        levels += [
            float(threshold_li(sample, tolerance=0.01)),
            *map(float, threshold_multiotsu(sample, 3, 64)),
        ]
    except ValueError:
        pass  # fewer than three grey levels
    kept: list[float] = []
    for level in levels:
        if all(abs(level - other) > 0.02 for other in kept):
            kept.append(level)
    return kept


def _assess(mask: Mask, gradient: F32) -> tuple[float, float, float] | None:
    """Share, edge and compactness of a coarse foreground; None where it is next to nothing or nearly all."""
    share = float(mask.mean())
    if not 0.001 < share < 0.93:
        return None
    labels, count = _label(mask)
    shape = geometry_of(labels, count)
    large = shape.area > LARGEST * mask.size
    compact = shape.area[(shape.compactness > COMPACT) & ~large].sum() / shape.area.sum()
    outline = mask ^ ndimage.binary_erosion(mask, border_value=1)
    return share, float(gradient[outline].mean() / max(float(gradient.mean()), 1e-9)), float(compact)


def candidates(picture: Picture) -> Iterator[Candidate]:
    """Every threshold, polarity and filling of holes that leaves something to look at."""
    calm = picture.calm[::COARSE, ::COARSE]
    gy, gx = np.gradient(picture.calm)
    gradient = np.hypot(gx, gy)[::COARSE, ::COARSE]
    for level in _thresholds(calm):
        apart = separability(calm, level)
        for bright in (True, False):
            mask = (calm > level) if bright else (calm < level)
            whole = _fill(mask)
            for filled in (False, True):
                if filled and whole.sum() < 1.02 * mask.sum():
                    continue
                found = _assess(whole if filled else mask, gradient)
                if found is not None:
                    share, edge, compact = found
                    yield Candidate(level, bright, filled, share, apart, edge, compact)


def foreground(picture: Picture, candidate: Candidate) -> Mask:
    """The foreground of a candidate in the small copy, without specks."""
    calm = picture.calm
    mask = (calm > candidate.threshold) if candidate.bright else (calm < candidate.threshold)
    mask = np.asarray(ndimage.binary_opening(mask), dtype=np.bool_)
    return _fill(mask) if candidate.filled else mask


def _distance(mask: Mask) -> F32:
    return np.asarray(ndimage.distance_transform_edt(mask), dtype=np.float32)


def _watershed(distance: F32, mask: Mask) -> tuple[I32, int]:
    from skimage.segmentation import watershed

    peaks = (distance == ndimage.maximum_filter(distance, 5)) & (distance > 1.5)
    markers, count = ndimage.label(peaks, np.ones((3, 3)))
    return np.asarray(watershed(-distance, markers, mask=mask), dtype=np.int32), int(count)


def _touching(labels: I32, distance: F32) -> tuple[I32, I32, F64]:
    """Pairs of labels that touch, and the half-width of the widest neck between them. [M] each"""
    first, second, width = [], [], []
    here, there = (slice(1, None), slice(None)), (slice(None, -1), slice(None))
    for one, other in ((here, there), (here[::-1], there[::-1])):
        differ = (labels[one] != labels[other]) & (labels[one] > 0) & (labels[other] > 0)
        first.append(np.minimum(labels[one][differ], labels[other][differ]))
        second.append(np.maximum(labels[one][differ], labels[other][differ]))
        width.append(np.minimum(distance[one][differ], distance[other][differ]))
    pairs, index = np.unique(
        np.stack([np.concatenate(first), np.concatenate(second)]), axis=1, return_inverse=True
    )
    neck = np.zeros(pairs.shape[1])
    np.maximum.at(neck, index.ravel(), np.concatenate(width))
    return pairs[0], pairs[1], neck


def split(mask: Mask) -> tuple[I32, int]:
    """Cut bodies at their necks: watershed of the distance map, then join across wide necks."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    distance = np.asarray(ndimage.gaussian_filter(_distance(mask), 1.0) * mask, dtype=np.float32)
    labels, count = _watershed(distance, mask)
    if count < 2:
        return labels, count
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


def _separate(mask: Mask) -> tuple[I32, int]:
    """Label the bodies; those that are not compact are cut at their necks."""
    labels, count = _label(mask)
    shape = geometry_of(labels, count)
    clumped = np.concatenate([[False], (shape.compactness < 0.93) & (shape.area > 4 * SMALLEST_AREA)])
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


def _at_border(labels: I32, count: int) -> Mask:
    touched = np.zeros(count + 1, np.bool_)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touched[edge] = True
    return touched[1:]


def _centre_inside(labels: I32, count: int, border: Mask) -> Mask:
    """Whether each object's centre lies in the frame: a cut object is widest inside it, not at the border."""
    inside = ~border
    if not border.any():
        return inside
    cut = np.concatenate([[False], border])[labels]
    distance = np.where(cut, _distance(labels > 0), 0)
    peak = np.asarray(ndimage.maximum(distance, labels, np.arange(1, count + 1)))
    inner = labels.copy()
    inner[2:-2, 2:-2], rim = 0, inner
    edge = np.asarray(ndimage.maximum(distance, rim, np.arange(1, count + 1)))
    return np.asarray(inside | (border & (edge < 0.97 * peak)), dtype=np.bool_)


def objects_of(picture: Picture, candidate: Candidate) -> Objects | None:
    """Segment the small copy as the candidate says; None where nothing is left."""
    mask = foreground(picture, candidate)
    if not mask.any():
        return None
    labels, count = _separate(mask)
    shape = geometry_of(labels, count)
    own = _own_outline(labels, count)
    compact = shape.compactness > np.where(own > 0.9, COMPACT, CUT_COMPACT)
    sized = (shape.area >= SMALLEST_AREA) & (shape.area < LARGEST * mask.size)
    good = compact & sized & (own > OWN_OUTLINE)
    if good.any():
        diameter = shape.diameter
        typical = float(np.average(diameter[good], weights=shape.area[good]))
        good &= diameter > DEBRIS * typical
    border = _at_border(labels, count)
    inside = _centre_inside(labels, count, border)
    return Objects(candidate, mask, labels, shape, perimeters(labels, count), good, ~border, inside)


def best_of(found: list[Candidate], *, bright: bool) -> Candidate | None:
    """The best candidate of one polarity."""
    return max((c for c in found if c.bright == bright), key=lambda c: c.rank, default=None)


def two_phases(picture: Picture) -> Candidate:
    """Plain Otsu in the small copy, the bright phase in front."""
    calm = picture.calm
    level = otsu(calm[::2, ::2])
    mask = calm > level
    gy, gx = np.gradient(calm)
    found = _assess(mask[::COARSE, ::COARSE], np.hypot(gx, gy)[::COARSE, ::COARSE])
    share, edge, compact = found or (float(mask.mean()), 0.0, 0.0)
    return replace(
        Candidate(level, True, False, share, 0.0, edge, compact), separability=separability(calm, level)
    )

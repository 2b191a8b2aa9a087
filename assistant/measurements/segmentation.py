"""Picture -> objects: threshold, polarity, split of touching bodies, and per-object geometry.

Several thresholds are tried in both polarities; the one whose outlines lie on edges and enclose compact bodies is kept.
Knows nothing about units or what the objects are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from assistant.measurements.picture import F32, F64, I32, Mask, Picture, edge_level, eroded, opened

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
GAP = 0.25
"""A hole whose level is nearer than this to the background's, on the way to the foreground's, is a gap and stays."""
SHELLS = 4
FEWEST_IN_SHELL = 50
SHELL_WIDTH = 0.85
"""Mean thickness of a layer that an erosion by four neighbours takes off, over all directions [px]."""
MOST_OUTSET = 1.5
DEBRIS = 0.2
"""Objects thinner than this share of the area-weighted diameter are debris."""
SMALL_BODY = 60.0
"""Area-weighted mean area below which bodies are too small for the coarse look [coarse px2]."""
CLEAR = 1.2
"""Evidence from which the coarse look is enough."""
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
    typical: float
    """area-weighted mean area of the bodies [coarse px2]"""

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
    outset: float
    """how far the drawn outlines lie outside the true ones [px]"""
    good: Mask
    """[N] compact bodies with an outline of their own"""
    sized: Mask
    """[N] neither specks and debris nor a support"""
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


def _fill(mask: Mask, image: F32) -> Mask:
    """The mask without its dim interiors: holes that are less like the open background than a gap would be."""
    background, count = ndimage.label(~mask)
    area = np.maximum(np.bincount(background.ravel(), minlength=count + 1), 1)
    level = np.bincount(background.ravel(), image.ravel(), count + 1) / area
    outer = np.zeros(count + 1, np.bool_)
    for edge in (background[0], background[-1], background[:, 0], background[:, -1]):
        outer[edge] = True
    outer[0] = False
    if not outer.any():
        return mask
    ground = float(np.average(level[outer], weights=area[outer]))
    gap = abs(level - ground) < GAP * abs(level[0] - ground)
    kept = outer | (gap & (area > SMALLEST_AREA))
    kept[0] = False
    return np.asarray(~kept[background], dtype=np.bool_)


def _thresholds(calm: F32) -> list[float]:
    """Otsu, Li and the two levels of a three-class Otsu, those that nearly coincide only once."""
    from skimage.filters import threshold_li, threshold_multiotsu

    sample = calm[::2, ::2]
    levels = [otsu(sample)]
    with contextlib.suppress(ValueError):  # fewer than three grey levels
        levels += [
            float(threshold_li(sample, tolerance=0.01)),
            *map(float, threshold_multiotsu(sample, 3, 64)),
        ]
    kept: list[float] = []
    for level in levels:
        if all(abs(level - other) > 0.02 for other in kept):
            kept.append(level)
    return kept


def _assess(mask: Mask, gradient: F32) -> tuple[float, float, float, float] | None:
    """Share, edge, compactness and body size of a foreground; None where it is next to nothing or nearly all."""
    share = float(mask.mean())
    if not 0.001 < share < 0.93:
        return None
    labels, count = _label(mask)
    shape = geometry_of(labels, count)
    large = shape.area > LARGEST * mask.size
    compact = shape.area[(shape.compactness > COMPACT) & ~large].sum() / shape.area.sum()
    outline = mask & ~eroded(mask)
    typical = float((shape.area**2).sum() / shape.area.sum())
    return share, float(gradient[outline].mean() / max(float(gradient.mean()), 1e-9)), float(compact), typical


def gradient_of(picture: Picture) -> F32:
    """Gradient magnitude of the denoised small copy. [h, w]"""
    gy, gx = np.gradient(picture.calm)
    return np.asarray(np.hypot(gx, gy), dtype=np.float32)


def candidates(picture: Picture) -> Iterator[Candidate]:
    """Every threshold, polarity and filling of holes that leaves something to look at."""
    calm = picture.calm[::COARSE, ::COARSE]
    gradient = gradient_of(picture)[::COARSE, ::COARSE]
    for level in _thresholds(calm):
        apart = separability(calm, level)
        for bright in (True, False):
            mask = (calm > level) if bright else (calm < level)
            whole = _fill(mask, calm)
            for filled in (False, True):
                if filled and whole.sum() < 1.02 * mask.sum():
                    continue
                found = _assess(whole if filled else mask, gradient)
                if found is not None:
                    share, edge, compact, typical = found
                    yield Candidate(level, bright, filled, share, apart, edge, compact, typical)


def foreground(picture: Picture, candidate: Candidate) -> Mask:
    """The foreground of a candidate in the small copy, without specks."""
    calm = picture.calm
    mask = (calm > candidate.threshold) if candidate.bright else (calm < candidate.threshold)
    mask = opened(mask)
    return _fill(mask, calm) if candidate.filled else mask


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
    pairs, index = np.unique(np.stack([np.concatenate(first), np.concatenate(second)]), axis=1, return_inverse=True)
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
    doubtful = (shape.compactness < 0.93) | (shape.major > 1.25 * shape.minor)
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


def _at_border(labels: I32, count: int) -> Mask:
    touched = np.zeros(count + 1, np.bool_)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touched[edge] = True
    return touched[1:]


def _centre_inside(labels: I32, shape: Geometry, border: Mask) -> Mask:
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


def _shells(mask: Mask, count: int) -> list[Mask]:
    """The outermost layers of a mask, one pixel thick, from the outside in; what is left comes last."""
    layers = []
    for _ in range(count):
        inner = eroded(mask)
        layers.append(mask & ~inner)
        mask = inner
    return [*layers, mask]


def _outset(picture: Picture, mask: Mask) -> float:
    """How far the drawn outlines lie outside the edge level of the mean grey profile across them [px].

    The profile runs from the ground through shells around the outlines to the core of the objects; the crest of a glow
    lies on its bright side, which for pores is the outer one.
    """
    layers = [*_shells(~mask, SHELLS)[::-1], *_shells(mask, SHELLS)]
    if min(int(layer.sum()) for layer in layers[:-1]) < FEWEST_IN_SHELL:
        return 0.0
    profile = np.array([float(picture.calm[layer].mean()) for layer in layers if layer.any()])
    low, body = sorted((profile[0], profile[-1]))
    level = edge_level(low, body, float(max(profile.max(), body)))
    at = np.arange(len(profile)) - SHELLS - 0.5
    crossed = np.flatnonzero((profile[:-1] > level) != (profile[1:] > level))
    if not len(crossed):
        return 0.0
    where = at[crossed] + (level - profile[crossed]) / (profile[crossed + 1] - profile[crossed])
    return float(np.clip(SHELL_WIDTH * where[np.abs(where).argmin()], -MOST_OUTSET, MOST_OUTSET))


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
        sized &= diameter > DEBRIS * typical
        good &= sized
    border = _at_border(labels, count)
    inside = _centre_inside(labels, shape, border)
    outset = _outset(picture, mask)
    return Objects(candidate, mask, labels, shape, perimeters(labels, count), outset, good, sized, ~border, inside)


def best_of(picture: Picture, found: list[Candidate], *, bright: bool) -> Candidate | None:
    """The best candidate of one polarity; small bodies are looked at again on all pixels."""
    best = max((c for c in found if c.bright == bright), key=lambda c: c.rank, default=None)
    if best is None or best.typical > SMALL_BODY or best.evidence > CLEAR:
        return best
    mask = foreground(picture, best)
    again = _assess(mask, gradient_of(picture))
    return best if again is None else replace(best, share=again[0], edge=again[1], compact=again[2])


def two_phases(picture: Picture) -> Candidate:
    """Plain Otsu in the small copy, the bright phase in front."""
    calm = picture.calm
    level = otsu(calm[::2, ::2])
    mask = calm > level
    return Candidate(level, True, False, float(mask.mean()), separability(calm, level), 0.0, 0.0, 0.0)

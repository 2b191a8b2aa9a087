"""Bodies that touch and overlap -> one label each. Knows nothing about units or what the bodies are.

Ground and bodies are told apart at the steepest grey level next to the ground. Dark seams and necks cut the bodies into
parts, more than there are; neighbouring parts are joined again, the likeliest pair first, while they are more likely
one body than two. What speaks for one body: together they are rounder than apart, they meet on a long border, and no
seam or edge runs along it. `benchmarks/joining.py` fitted how much each of these counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from assistant.measurements.bodies import SMALLEST_AREA
from assistant.measurements.picture import F32, F64, I32, Mask, Picture, eroded, opened
from assistant.measurements.segmentation import Candidate, Objects, assembled, fill_interiors, separability

_LEVELS = 48
"""Grey levels at which the slope of the outlines is compared."""
LEAST_GROUND, LEAST_BRIGHT_GROUND, MOST_GROUND = 0.05, 0.25, 0.85
"""Share of the frame that a ground takes up; less of what is bright are the edges of bodies."""
STEEPEST = 2.8
"""Least slope on the outlines over that of the picture: less is relief on one body."""
FALL = 0.87
"""The slope is at its crest where it then falls below this share of it."""
SEAM = 0.14
"""Curvature of a seam [contrasts per px2]."""
_DOUBT = 1.0
"""How much surer and less sure a join must be for the two other counts [log-odds]."""
EVIDENCE = ("shape", "seam", "seam over inside", "border", "grey", "size", "edge over inside", "roundness", "free")
SEAM_WEIGHTS = np.array(
    [1.9, 1.63, -7.21, 0.11, -1.05, 1.49, -0.38, 1.65, -4.56, -0.68, -1.74, -1.11, 1.47, 0.02, -0.49, 1.88]
)
BIAS = 6.64


@dataclass(frozen=True, eq=False)
class Ground:
    """The level that tells bodies from their ground."""

    level: float
    mask: Mask
    """[h, w] where bodies are"""
    contrast: float
    """mean grey of the bodies minus that of the ground"""


@dataclass(frozen=True, eq=False)
class Touching:
    """Bodies as they were told apart."""

    ground: Ground
    labels: I32
    count: int
    most: int
    """bodies if only the surest joins were made"""
    least: int
    """bodies if doubtful joins were made as well"""
    doubt: float
    """mean of p (1 - p) over the joins made and not made, where p is the probability of one body"""


def ground_of(calm: F32, slope: F32, least: float = LEAST_GROUND) -> Ground | None:
    """Find the ground on the dark side; None where no level stands out from those beside it.

    `least` is the share of the frame that a ground takes up at least.

    The mean slope along the isolines of each grey level has a crest where the isolines are outlines of bodies.
    """
    at = np.minimum((calm * _LEVELS).astype(np.intp), _LEVELS - 1).ravel()
    size = np.bincount(at, minlength=_LEVELS).astype(np.float64)
    steep = np.bincount(at, slope.ravel(), _LEVELS)
    smooth = np.array([1.0, 2.0, 1.0])
    curve = np.convolve(steep, smooth, "same") / np.maximum(np.convolve(size, smooth, "same"), 1)
    below = np.cumsum(size) / calm.size
    mean = float(slope.mean())
    found = _first_crest(curve, below, least=least, mean=mean)
    if found is None:
        return None
    level = (found + 0.5) / _LEVELS
    mask = fill_interiors(opened(calm > level), calm, rings=False)
    outline = mask & ~eroded(mask)
    if not outline.any() or float(slope[outline].mean()) < STEEPEST * mean:
        return None
    return Ground(level, mask, float(calm[mask].mean()) - float(calm[~mask].mean()))


def _first_crest(curve: F64, below: F64, *, least: float, mean: float) -> int | None:
    for i in range(1, _LEVELS - 4):
        if below[i] > MOST_GROUND:
            return None
        if below[i] < least or curve[i] < max(mean, curve[i - 1]) or curve[i] <= curve[i + 1]:
            continue
        after = curve[i + 1 :]
        fallen = np.flatnonzero(after <= FALL * curve[i])
        higher = np.flatnonzero(after > curve[i])
        if len(fallen) and (not len(higher) or fallen[0] < higher[0]):
            return i
    return None


def seams_of(calm: F32) -> F32:
    """The curvature across the darkest line through each pixel, 0 where that is no valley. [h, w]"""
    gx = np.gradient(calm, axis=1)
    yy, xx = np.zeros_like(calm), np.zeros_like(calm)
    yy[1:-1] = calm[2:] - 2 * calm[1:-1] + calm[:-2]
    xx[:, 1:-1] = calm[:, 2:] - 2 * calm[:, 1:-1] + calm[:, :-2]
    xy = np.gradient(gx, axis=0)
    return np.maximum((xx + yy) / 2 + np.hypot((xx - yy) / 2, xy), 0).astype(np.float32)


def cut_apart(ground: Ground, seams: F32) -> tuple[I32, int]:
    """Cut the bodies at seams and necks, into more parts than there are bodies: one for each deepest place."""
    inner = opened(ground.mask & (seams < SEAM * ground.contrast))
    depth = np.asarray(ndimage.distance_transform_edt(inner), dtype=np.float32)
    smooth = np.asarray(ndimage.gaussian_filter(depth, 1.0, truncate=3.0), dtype=np.float32)
    return _basins(smooth, ground.mask)


def _basins(height: F32, mask: Mask) -> tuple[I32, int]:
    """Label each pixel of a mask by the summit that the steepest way up from it ends on; a fast watershed."""
    wide = mask.shape[1] + 2
    level = np.pad(np.where(mask, height, np.float32(-1)), 1, constant_values=-1).ravel()
    place = np.flatnonzero(level >= 0)
    up, best = place.copy(), level[place]
    for step in (-1, 1, -wide, wide, -wide - 1, -wide + 1, wide - 1, wide + 1):
        neighbour = level[place + step]
        higher = neighbour > best
        best = np.where(higher, neighbour, best)
        up = np.where(higher, place + step, up)
    goal = np.arange(level.size)
    goal[place] = up
    while (goal[up] != up).any():
        up = goal[up]
        goal[place] = up
    summits, index = np.unique(up, return_inverse=True)
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = index + 1
    return labels, len(summits)


class Parts:
    """Parts of bodies and their borders, as sums that add up when two parts are joined."""

    def __init__(self, labels: I32, count: int, *, calm: F32, slope: F32, seams: F32, contrast: float) -> None:
        used = np.flatnonzero(labels)
        index = labels.ravel()[used] - 1
        rows, columns = np.divmod(used, labels.shape[1])
        y, x = rows - labels.shape[0] / 2, columns - labels.shape[1] / 2
        weights = (np.ones(len(used)), x, y, x * x + y * y, *(part.ravel()[used] for part in (calm, seams, slope)))
        self.sums: F64 = np.stack([np.bincount(index, w, count) for w in weights])
        """[7, N] area, x, y, x2 + y2, grey, seam, slope"""
        self.outline = np.zeros(count)
        """[N] pixel edges around each part"""
        self.contrast = contrast
        self.joined = np.arange(count)
        """[count] which part each of the first parts belongs to"""
        self._find_borders(labels, count, slope=slope, seams=seams)

    def _find_borders(self, labels: I32, count: int, *, slope: F32, seams: F32) -> None:
        keys, lines, edges = [], [], []
        outline = np.zeros(count + 1)
        here, there = (slice(1, None), slice(None)), (slice(None, -1), slice(None))
        for one, other in ((here, there), (here[::-1], there[::-1])):
            border = labels[one] != labels[other]
            a, b = labels[one][border], labels[other][border]
            outline += np.bincount(a, minlength=count + 1) + np.bincount(b, minlength=count + 1)
            inside = (a > 0) & (b > 0)
            keys.append(np.minimum(a, b)[inside].astype(np.int64) * (count + 1) + np.maximum(a, b)[inside])
            lines.append(np.maximum(seams[one][border], seams[other][border])[inside])
            edges.append(np.maximum(slope[one][border], slope[other][border])[inside])
        pairs, index = np.unique(np.concatenate(keys), return_inverse=True)
        self.outline = outline[1:]
        self.a, self.b = pairs // (count + 1) - 1, pairs % (count + 1) - 1
        weights = (np.ones(len(index)), np.concatenate(lines), np.concatenate(edges))
        self.border: F64 = np.stack([np.bincount(index, w, len(pairs)) for w in weights])
        """[3, M] length, seam and slope along the border of parts a and b"""

    def evidence(self) -> F64:
        """What speaks for and against one body, for each pair of neighbours. [9, M], see EVIDENCE"""
        one, other = self.sums[:, self.a], self.sums[:, self.b]
        both = one + other
        small = np.minimum(one[0], other[0])
        smaller = np.where(one[0] < other[0], self.a, self.b)
        missing = _out_of_round(self.sums)
        together = _out_of_round(both)
        length, seam, edge = self.border
        return np.stack(
            [
                np.clip((together - missing[self.a] - missing[self.b]) / small, -1, 1.5),
                10 * np.clip(seam / length / self.contrast, 0, 1),
                np.clip(np.log((seam / length + 1e-4) / (both[5] / both[0] + 1e-4)), -1, 3),
                np.minimum(length / np.sqrt(small * 4 / np.pi), 1.5),
                np.minimum(np.abs(one[4] / one[0] - other[4] / other[0]) / self.contrast, 1),
                np.log(np.maximum(one[0], other[0]) / small) / 4,
                np.clip(np.log((edge / length + 1e-4) / (both[6] / both[0] + 1e-4)), -1, 2),
                together / both[0],
                np.clip(1 - length / np.maximum(self.outline[smaller], 1), 0, 1),
            ]
        )

    def join(self, odds: F64) -> bool:
        """Join the pairs whose odds [log] are above 0 and higher than those of all their neighbours; False: none."""
        best = np.full(len(self.joined), -np.inf)
        np.maximum.at(best, self.a, odds)
        np.maximum.at(best, self.b, odds)
        chosen = np.flatnonzero((odds > 0) & (odds >= best[self.a]) & (odds >= best[self.b]))
        if not len(chosen):
            return False
        _, first = np.unique(np.stack([self.a[chosen], self.b[chosen]], axis=1).ravel(), return_index=True)
        chosen = chosen[np.bincount(first // 2, minlength=len(chosen)) == 2]  # of equal odds, one pair at a time
        into, gone = self.a[chosen], self.b[chosen]
        self.outline[into] += self.outline[gone] - 2 * self.border[0, chosen]
        self.sums[:, into] += self.sums[:, gone]
        self.sums[:, gone] = 0
        renamed = np.arange(len(self.joined))
        renamed[gone] = into
        self.joined = renamed[self.joined]
        a, b = renamed[self.a], renamed[self.b]
        apart = a != b
        low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
        pairs, index = np.unique(low * len(renamed) + high, return_inverse=True)
        self.a, self.b = pairs // len(renamed), pairs % len(renamed)
        self.border = np.stack([np.bincount(index, w, len(pairs)) for w in self.border[:, apart]])
        return True

    def bodies(self) -> int:
        """How many parts are large enough for a body."""
        return int((self.sums[0] >= SMALLEST_AREA).sum())


def _out_of_round(sums: F64) -> F64:
    """The area of each part that a disc of the same polar moment does not explain: 0 for a disc. [N]"""
    area, x, y, square = sums[:4]
    moment = square - (x * x + y * y) / np.maximum(area, 1) + area / 6  # 1/6 is the polar moment of a pixel itself
    return np.asarray(area * (1 - np.minimum(area**2 / (2 * np.pi * np.maximum(moment, 1e-9)), 1)))


def terms(evidence: F64) -> F64:
    """The evidence and the products of it that count together. [16, M]"""
    shape, seam, over, border, _, size, _, _, _ = evidence
    both = (shape * seam, shape * border, seam * border, shape * over, border * size, shape**2, over * border)
    return np.stack([*evidence, *both])


def seam_log_odds(parts: Parts) -> F64:
    """How likely each pair of neighbours is one body. [M]"""
    return np.asarray(SEAM_WEIGHTS @ terms(parts.evidence()) + BIAS)


def touching_objects(picture: Picture) -> Objects | None:
    """The bodies of a picture on a darker ground, else on a brighter one; None where there is no ground."""
    for bright in (True, False):
        least = LEAST_GROUND if bright else LEAST_BRIGHT_GROUND
        found = tell_apart(picture.calm if bright else 1 - picture.calm, picture.slope, least)
        if found is None:
            continue
        # The foreground in the terms of the ones that are tried for bodies that lie apart.
        mask, level = found.ground.mask, found.ground.level if bright else 1 - found.ground.level
        outline = mask & ~eroded(mask)
        edge = float(picture.slope[outline].mean() / max(float(picture.slope.mean()), 1e-9))
        apart = separability(picture.calm, level)
        candidate = Candidate(level, bright, True, float(mask.mean()), apart, edge, compact=0.0, typical=0.0)
        objects = assembled(picture, candidate, mask, found.labels, found.count)
        return replace(objects, agreement=found.least / max(found.most, 1), doubt=found.doubt, way="joined")
    return None


def tell_apart(calm: F32, slope: F32, least: float = LEAST_GROUND) -> Touching | None:
    """Find bodies on a darker ground and tell them apart; None where there is no such ground."""
    ground = ground_of(calm, slope, least)
    if ground is None:
        return None
    seams = seams_of(calm)
    labels, count = cut_apart(ground, seams)
    if count == 0:
        return None
    parts = Parts(labels, count, calm=calm, slope=slope, seams=seams, contrast=ground.contrast)
    counts = []
    names, doubt = parts.joined, 0.0
    for demand in (_DOUBT, 0.0, -_DOUBT):
        odds = seam_log_odds(parts)
        while parts.join(odds - demand):
            odds = seam_log_odds(parts)
        counts.append(parts.bodies())
        if demand == 0.0:
            names = parts.joined
            sure = 1 / (1 + np.exp(-odds))
            doubt = float((sure * (1 - sure)).sum() / max(counts[-1], 1))
    kept, index = np.unique(names, return_inverse=True)
    labels = np.concatenate([[0], index + 1]).astype(np.int32)[labels]
    return Touching(ground, labels, len(kept), counts[0], counts[2], doubt)

"""Picture -> objects: threshold, polarity, split of touching bodies, and per-object geometry.

Several thresholds are tried in both polarities; the one whose outlines lie on edges and enclose compact bodies is kept.
Knows nothing about units or what the objects are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from assistant.measurements.bodies import (
    SMALLEST_AREA,
    Geometry,
    at_border,
    centre_inside,
    geometry_of,
    label,
    own_outline,
    perimeters,
    runs_of,
    separate,
    spanning,
)
from assistant.measurements.picture import F32, F64, I32, Mask, Picture, edge_level, eroded, opened

COARSE = 2
"""The thresholds are compared on every second pixel of the small copy."""
COMPACT = 0.87
"""Area over that of the ellipse with the same moments, from which a body counts as one compact object."""
CUT_COMPACT = 0.9
OWN_OUTLINE = 0.45
"""Least share of an object's outline that is edge of the foreground, not a cut between neighbours."""
_LARGEST = 0.45
"""Share of the frame above which a body is background or a support."""
GAP = 0.25
"""A hole whose level is nearer than this to the background's, on the way to the foreground's, is a gap and stays."""
RING = 0.92
"""Compactness of a filled body from which its holes belong to it whatever their level."""
SHELLS = 4
FEWEST_IN_SHELL = 50
SHELL_WIDTH = 0.85
"""Mean thickness of a layer that an erosion by four neighbours takes off, over all directions [px]."""
MOST_OUTSET = 1.5
DEBRIS, DARK_DEBRIS = 0.2, 0.1
"""Objects thinner than this share of the area-weighted diameter are debris; crumbs are bright, small holes holes."""
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


Way = Literal["necks", "joined", "patches", "nested"]
"""Cut at necks; parts between seams joined by their evidence (`touching`); not at all, each patch is one (`crowds`);
each enclosed by an outline of its own level (`nested`)."""


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
    way: Way = "necks"
    """how bodies that touch were told apart"""
    agreement: float = 1.0
    """fewest over most bodies, as seams are doubtful or the threshold is a little off"""
    doubt: float = 0.0
    """uncertain pairs of parts per body; of enclosed ones the open share of their outlines"""
    clear: float = 0.0
    """of enclosed bodies: their share of the frame with how steep their outlines are"""

    @property
    def counted(self) -> Mask:
        """[N] objects that count: neither debris nor a support, with their centre in the frame."""
        return self.sized & self.inside

    @property
    def count(self) -> int:
        """How many objects count."""
        return int(self.counted.sum())

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
    mean, bright = float(image.mean()), float(image[above].mean())
    gap = (bright - mean) / (1 - share)  # to the mean of what is not above
    return share * (1 - share) * gap**2 / max(float(image.var()), 1e-12)


def fill_interiors(mask: Mask, image: F32, *, rings: bool, rest: tuple[I32, int] | None = None) -> Mask:
    """The mask without its dim interiors.

    A hole as dark as the open background is a gap between bodies and stays; with `rings` it goes where what surrounds
    it is one round ring. `rest` are the labels of what is not in the mask, where they are known.
    """
    background, count = label(~mask) if rest is None else rest
    outer = np.append(False, at_border(background, count))
    if not outer.any() or outer[1:].all():
        return mask
    starts, lengths, index = runs_of(background)
    area = np.maximum(np.bincount(index, lengths, count + 1), 1)
    level = np.bincount(index, np.add.reduceat(image.ravel(), starts), count + 1) / area
    ground = float(np.average(level[outer], weights=area[outer]))
    gap = (abs(level - ground) < GAP * abs(level[0] - ground)) & (area > SMALLEST_AREA) & ~outer
    gap[0] = False
    if not (rings and gap.any()):
        return np.repeat(~(outer | gap)[index], lengths).reshape(mask.shape)
    filled = np.repeat(~outer[index], lengths).reshape(mask.shape)
    labels, count = label(filled)
    round_ones = np.append(False, geometry_of(labels, count).compactness > RING)
    return np.asarray(filled & (round_ones[labels] | ~gap[background]), dtype=np.bool_)


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


def _assess(
    mask: Mask, gradient: F32, parts: tuple[I32, int] | None = None
) -> tuple[float, float, float, float] | None:
    """Share, edge, compactness and body size of a foreground; None where it is next to nothing or nearly all."""
    share = float(mask.mean())
    if not 0.001 < share < 0.93:
        return None
    labels, count = label(mask) if parts is None else parts
    shape = geometry_of(labels, count)
    large = shape.area > _LARGEST * mask.size
    compact = shape.area[(shape.compactness > COMPACT) & ~large].sum() / shape.area.sum()
    outline = mask & ~eroded(mask)
    typical = float((shape.area**2).sum() / shape.area.sum())
    return share, float(gradient[outline].mean() / max(float(gradient.mean()), 1e-9)), float(compact), typical


def candidates(picture: Picture) -> Iterator[Candidate]:
    """Every threshold, polarity and filling of holes that leaves something to look at."""
    calm = picture.calm[::COARSE, ::COARSE]
    gradient = picture.slope[::COARSE, ::COARSE]
    for level in _thresholds(calm):
        apart = separability(calm, level)
        above = calm > level
        parts = {True: label(above), False: label(~above)}  # what is background to one polarity is body to the other
        for bright in (True, False):
            mask = above if bright else ~above
            whole = fill_interiors(mask, calm, rings=True, rest=parts[not bright])
            for filled in (False, True):
                if filled and whole.sum() < 1.02 * mask.sum():
                    continue
                found = _assess(whole, gradient) if filled else _assess(mask, gradient, parts[bright])
                if found is not None:
                    share, edge, compact, typical = found
                    yield Candidate(level, bright, filled, share, apart, edge, compact, typical)


def foreground(picture: Picture, candidate: Candidate, *, rings: bool = True) -> Mask:
    """The foreground of a candidate in the small copy, without specks."""
    calm = picture.calm
    mask = (calm > candidate.threshold) if candidate.bright else (calm < candidate.threshold)
    mask = opened(mask)
    return fill_interiors(mask, calm, rings=rings) if candidate.filled else mask


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
    labels, count = separate(mask)
    objects = assembled(picture, candidate, mask, labels, count)
    shape, own = objects.geometry, own_outline(labels, count)
    compact = shape.compactness > np.where(own > 0.9, COMPACT, CUT_COMPACT)
    good, sized = objects.good & compact & (own > OWN_OUTLINE), objects.sized
    if good.any():
        typical = float(np.average(shape.diameter[good], weights=shape.area[good]))
        sized = sized & (shape.diameter > (DEBRIS if candidate.bright else DARK_DEBRIS) * typical)
    covered = foreground(picture, candidate, rings=False) if candidate.filled else mask
    return replace(objects, foreground=covered, good=good & sized, sized=sized)


def assembled(picture: Picture, candidate: Candidate, mask: Mask, labels: I32, count: int) -> Objects:
    """Bodies with all that is measured of them; good and sized is what is neither a speck nor a support."""
    shape = geometry_of(labels, count)
    border = at_border(labels, count)
    sized = (shape.area >= SMALLEST_AREA) & (shape.area < _LARGEST * mask.size) & ~spanning(labels, count)
    inside, outset = centre_inside(labels, shape, border), _outset(picture, mask)
    return Objects(candidate, mask, labels, shape, perimeters(labels, count), outset, sized, sized, ~border, inside)


def best_of(picture: Picture, found: list[Candidate], *, bright: bool) -> Candidate | None:
    """The best candidate of one polarity; small bodies are looked at again on all pixels."""
    best = max((c for c in found if c.bright == bright), key=lambda c: c.rank, default=None)
    if best is None or best.typical > SMALL_BODY or best.evidence > CLEAR:
        return best
    mask = foreground(picture, best)
    again = _assess(mask, picture.slope)
    return best if again is None else replace(best, share=again[0], edge=again[1], compact=again[2])


def two_phases(picture: Picture) -> Candidate:
    """Plain Otsu in the small copy, the bright phase in front."""
    calm = picture.calm
    level = otsu(calm[::2, ::2])
    mask = calm > level
    return Candidate(level, True, False, float(mask.mean()), separability(calm, level), 0.0, 0.0, 0.0)

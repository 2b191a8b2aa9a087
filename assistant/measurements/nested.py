"""Bodies that a closed outline of their own grey level tells apart: cells in walls, precipitates, agglomerates.

No single threshold outlines the cells of a tissue, whose floors are dark here and grey there, or precipitates beside
the glow of an edge. So the picture is cut at many levels. The dark areas at a level lie inside those at the next, which
makes them a tree (J. Matas et al., Image Vis. Comput. 22, 761 (2004)), and of every branch the areas are taken whose
outlines are steep and closed all round. The same at half the resolution says how far to trust them. Knows nothing of
kinds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from assistant.measurements.bodies import Geometry, at_border, geometry_of, label, runs_of
from assistant.measurements.picture import F32, F64, I32, Mask, Picture, block_mean, eroded, opened
from assistant.measurements.segmentation import Candidate, Objects, assembled, separability

LEVELS, FEW_LEVELS = 14, 10
"""Grey levels that are tried, and in the rough look."""
SMALLEST, LARGEST = 6, 0.15
"""Area of a body, least [px of the half copy] and most [share of the frame]."""
STEEP = 1.1
"""Gradient along an outline over that of the picture, from which it speaks for a body."""
EDGE = 0.8
"""The same of a single pixel of an outline, from which the outline is closed there."""
CLOSED = (0.55, 0.85)
"""Closed share of an outline that speaks for no body at all, and fully."""
COMPACT = (0.5, 0.85)
"""The same of the compactness: branched areas are the ground between bodies."""
CRUMBS = 0.35
"""Bodies under this share of the mean diameter by area are crumbs: gaps between cells, specks."""
BESIDE, BESIDE_AREA = 2.5, 0.06
"""What a border cuts though it is so many times as large, and so much of the frame, lies beside the specimen."""
LEAST_AGREEMENT = 0.75
"""Least ratio of the sizes at two scales: in a texture there are smaller bodies the closer one looks."""
CLEAR = 0.12
"""Share of the frame in bodies times how steep their outlines are: up to 0.08 in textures, from 0.17 in tissues."""
FEWEST = 8
"""Whole bodies from which a mean size means something."""


@dataclass(frozen=True, eq=False)
class _Level:
    """The connected areas below one grey level. [N] each"""

    level: float
    labels: I32
    shape: Geometry
    inside: NDArray[np.intp]
    """the area of this level, from 0, that each area of the level below lies in; [M]"""
    steep: F64
    """mean gradient along the outline over that of the picture"""
    closed: F64
    """share of the outline that is an edge"""

    @property
    def worth(self) -> F64:
        """What speaks for each area as one body; that of the areas inside it competes with it."""
        share = (
            np.clip((found - low) / (high - low), 0, 1)
            for found, (low, high) in ((self.closed, CLOSED), (self.shape.compactness, COMPACT))
        )
        sized = (self.shape.area >= SMALLEST) & (self.shape.area < LARGEST * self.labels.size)
        worth = np.sqrt(self.shape.area) * np.maximum(self.steep - STEEP, 0) * np.prod(list(share), axis=0)
        return np.where(sized, worth, 0.0)


@dataclass(frozen=True, eq=False)
class _Bodies:
    """The bodies that were taken, in px of the copy that was looked at."""

    labels: I32
    level: F64
    steep: F64
    closed: F64
    """of each [N]"""

    @property
    def clear(self) -> float:
        """Area with how steep its outlines are: what speaks for this polarity."""
        area = np.bincount(self.labels.ravel(), minlength=len(self.level) + 1)[1:]
        return float((area * (self.steep - STEEP)).sum()) / self.labels.size

    @property
    def size(self) -> float:
        """Mean diameter of the whole ones by area; 0 without any."""
        count = len(self.level)
        if count == 0:
            return 0.0
        return by_area(geometry_of(self.labels, count).diameter[~at_border(self.labels, count)])


def by_area(diameter: F64) -> float:
    """Mean of diameters, each counting by its area; 0 of none."""
    return float((diameter**3).sum() / max((diameter**2).sum(), 1e-9))


def nested_objects(picture: Picture) -> Objects | None:
    """Bodies of the polarity that has more of them; None where there are too few, or two scales do not agree."""
    grey, slope = block_mean(picture.calm, 2), block_mean(picture.slope, 2)
    sides = {True: 1 - grey, False: grey}
    looks = {bright: _taken(block_mean(side, 2), block_mean(slope, 2), FEW_LEVELS) for bright, side in sides.items()}
    bright = looks[True].clear > looks[False].clear
    rough = looks[bright]
    if len(rough.level) < FEWEST or rough.clear < CLEAR:
        return None
    found = _taken(sides[bright], slope, LEVELS)
    size, rough_size = found.size, 2 * rough.size
    count = len(found.level)
    least = max(np.pi / 4 * (BESIDE * size) ** 2, BESIDE_AREA * grey.size)
    beside = np.append(False, at_border(found.labels, count) & (geometry_of(found.labels, count).area > least))
    found = replace(found, labels=np.where(beside[found.labels], 0, found.labels).astype(np.int32))
    agreement = min(size, rough_size) / max(size, rough_size, 1e-9)
    if agreement < LEAST_AGREEMENT or len(found.level) < FEWEST:
        return None
    calm = 1 - picture.calm if bright else picture.calm
    labels = _at_full_size(found, calm)
    mask = labels > 0
    level = float(np.median(found.level))
    parted = separability(calm, level)
    steep = float(np.median(found.steep))
    candidate = Candidate(1 - level if bright else level, bright, True, float(mask.mean()), parted, steep, 0.0, 0.0)
    objects = assembled(picture, candidate, mask, labels, len(found.level))
    diameter = objects.geometry.diameter
    sized = objects.sized & (diameter > CRUMBS * by_area(diameter[objects.sized & objects.whole]))
    if int((sized & objects.whole).sum()) < FEWEST:
        return None
    return replace(
        objects,
        good=sized,
        sized=sized,
        way="nested",
        agreement=agreement,
        clear=rough.clear,
        doubt=1 - float(np.average(found.closed, weights=np.maximum(objects.geometry.area, 1e-9))),
    )


def _taken(grey: F32, slope: F32, number: int) -> _Bodies:
    """The areas that are worth more than those inside them, from the inside out, and than those around them."""
    levels = _levels(grey, slope, number)
    best: list[F64] = []
    own: list[Mask] = []
    for at, here in enumerate(levels):
        within = np.bincount(here.inside, best[at - 1], len(here.steep)) if at else np.zeros(len(here.steep))
        own.append((here.worth > 0) & (here.worth >= within))
        best.append(np.maximum(here.worth, within))
    labels, count = np.zeros(grey.shape, np.int32), 0
    kept: list[tuple[F64, F64, F64]] = [(np.zeros(0), np.zeros(0), np.zeros(0))]
    covered = np.zeros(0, np.bool_)
    for at in range(len(levels) - 1, -1, -1):
        here = levels[at]
        around = covered[levels[at + 1].inside] if at + 1 < len(levels) else np.zeros(len(here.steep), np.bool_)
        taken = own[at] & ~around
        names = np.append(0, np.where(taken, np.cumsum(taken) + count, 0)).astype(np.int32)
        labels = np.maximum(labels, names[here.labels])
        count += int(taken.sum())
        kept.append((np.full(int(taken.sum()), here.level), here.steep[taken], here.closed[taken]))
        covered = around | taken
    return _Bodies(_filled(labels), *(np.concatenate(some) for some in zip(*kept, strict=True)))


def _levels(grey: F32, slope: F32, number: int) -> list[_Level]:
    typical = max(float(slope.mean()), 1e-9)
    edges = grey[slope > STEEP * typical]  # levels where outlines may lie
    if not len(edges):
        return []
    found: list[_Level] = []
    first = np.zeros(0, np.intp)
    for level in np.quantile(edges, (np.arange(number) + 0.5) / number):
        mask = opened(grey < level)
        labels, count = label(mask)
        outline = (mask & ~eroded(mask)).ravel()
        whose, gradient = labels.ravel()[outline], slope.ravel()[outline]
        long = np.maximum(np.bincount(whose, minlength=count + 1)[1:], 1)
        steep = np.bincount(whose, gradient, count + 1)[1:] / (long * typical)
        closed = np.bincount(whose, gradient > EDGE * typical, count + 1)[1:] / long
        inside = labels.ravel()[first].astype(np.intp) - 1
        runs = starts, _, names = runs_of(labels)
        found.append(_Level(float(level), labels, geometry_of(labels, count, runs), inside, steep, closed))
        first = np.zeros(count + 1, np.intp)
        first[names[::-1]] = starts[::-1]  # of several the first stays
        first = first[1:]
    return found


def _filled(labels: I32) -> I32:
    """The bodies with what they surround."""
    ground, count = label(labels == 0)
    around = ndimage.maximum_filter(labels, 3)
    edge = (ground > 0) & (around > 0)
    holes, names = ground[edge], around[edge]
    most, least = np.zeros(count + 1, np.int32), np.full(count + 1, np.iinfo(np.int32).max, np.int32)
    np.maximum.at(most, holes, names)
    np.minimum.at(least, holes, names)
    most[1:][at_border(ground, count) | (most != least)[1:]] = 0
    most[0] = 0
    return np.where(labels == 0, most[ground], labels).astype(np.int32)


def _at_full_size(found: _Bodies, calm: F32) -> I32:
    """The labels in the small copy, their outlines at the level of each body."""
    core = np.where(ndimage.minimum_filter(found.labels, 3) == found.labels, found.labels, 0)
    wide = np.where(found.labels > 0, found.labels, ndimage.maximum_filter(found.labels, 3))
    rows, columns = (-(-n // 2) for n in calm.shape)
    grown = [
        np.pad(part, ((0, rows - part.shape[0]), (0, columns - part.shape[1])), mode="edge")
        .repeat(2, axis=0)
        .repeat(2, axis=1)[: calm.shape[0], : calm.shape[1]]
        for part in (core, wide)
    ]
    level = np.append(np.float32(-1), found.level.astype(np.float32))
    return np.where((grown[0] > 0) | (calm < level[grown[1]]), grown[1], 0).astype(np.int32)

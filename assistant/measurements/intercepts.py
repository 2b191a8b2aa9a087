"""Sizes that need no outline of single bodies: mean chords of two phases, and the thickness of walls between cells.

A mean chord (mean linear intercept) is the mean length of the pieces that straight lines of every direction have in a
phase (E. E. Underwood, Quantitative Stereology (1970), chapter 4; for grains ASTM E112). It is no diameter: that of
discs is pi/4 of theirs. Knows nothing of kinds or units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from assistant.measurements.picture import I32, Mask, Picture, block_mean, eroded, opened
from assistant.measurements.segmentation import otsu, separability

WOBBLE = 0.15
"""Shift of the threshold, in contrasts, under which chords should not change."""
FEWEST_CHORDS = 30
"""Chords along rows, and along columns, from which a mean is one."""
LONGEST = 0.2
"""Longest mean chord [share of the shorter side]: what is longer, the frame cuts."""
PARTED = 0.7
"""Least separability of two phases; that of a single Gaussian is 0.64, of a texture up to 0.67."""
THINNEST = 2.0
"""Thinnest wall [px of the small copy]."""


@dataclass(frozen=True, eq=False)
class Phases:
    """Two phases of a picture and how long lines run in each."""

    bright: Mask
    """[h, w] where the bright phase is, in the small copy"""
    chords: tuple[float, float]
    """mean chord of the bright and of the dark phase [px of the full picture]"""
    agreement: tuple[float, float]
    """of either: shorter over longer mean chord, at half the resolution and at thresholds a little off"""
    separability: float
    edge: float
    """mean gradient along the border of the phases over that of the picture"""


def mean_chord(phase: Mask) -> float:
    """Mean length of the pieces of rows, columns and both diagonals within a phase [px]; inf where none ends."""
    area = float(phase.sum())
    straight = [float((phase[1:] != phase[:-1]).sum()), float((phase[:, 1:] != phase[:, :-1]).sum())]
    slanted = [float((phase[1:, 1:] != phase[:-1, :-1]).sum()), float((phase[1:, :-1] != phase[:-1, 1:]).sum())]
    ends = (sum(straight) + sum(slanted) / np.sqrt(2)) / 4  # per unit of length, diagonal steps are longer
    return 2 * area / ends if ends else float("inf")


def phases_of(picture: Picture) -> Phases | None:
    """The phases on both sides of Otsu's threshold; None where one is next to nothing or runs across the frame."""
    calm = picture.calm
    level = otsu(calm[::2, ::2])
    bright = opened(~opened(calm <= level))
    if not 0.03 < bright.mean() < 0.97:
        return None
    crossings = [int((bright[1:] != bright[:-1]).sum()), int((bright[:, 1:] != bright[:, :-1]).sum())]
    chords = mean_chord(bright), mean_chord(~bright)
    parted = separability(calm, level)
    if parted < PARTED or min(crossings) < 2 * FEWEST_CHORDS or max(chords) > LONGEST * min(bright.shape):
        return None
    step = WOBBLE * float(calm[bright].mean() - calm[~bright].mean())
    rough = block_mean(calm, 2)
    others = [(opened(calm > level + shift), 1) for shift in (-step, step)] + [(opened(rough > level), 2)]
    seen = [(size * mean_chord(mask), size * mean_chord(~mask)) for mask, size in others]
    outline = bright & ~eroded(bright)
    first, second = (
        min(min(chord, other[k]) / max(chord, other[k]) for other in seen) for k, chord in enumerate(chords)
    )
    edge = float(picture.slope[outline].mean() / max(float(picture.slope.mean()), 1e-9))
    scaled = chords[0] * picture.factor, chords[1] * picture.factor
    return Phases(bright, scaled, (first, second), parted, edge)


def wall_thickness(labels: I32) -> float:
    """Median distance between neighbouring bodies across the ground [px of the labels]; 0 where no two are neighbours.

    Taken half way between two bodies, where the nearest one changes: the distances to both.
    """
    distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    whose = labels[nearest[0], nearest[1]]
    found = []
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        change = (whose[one] != whose[other]) & (labels[one] == 0) & (labels[other] == 0)
        found.append((distance[one] + distance[other])[change])
    across = np.concatenate(found)
    return float(np.median(across)) if len(across) else 0.0

"""Chords -> fibres and wires: how wide they are, how widths and directions spread. Knows nothing about other objects.

The axes are the middles of chords that lie side by side; crossings have none and are left out. Across each axis the
grey levels are averaged along a stretch of the fibre, at the full resolution where it is thin, and the width is taken
between the levels of its two outlines. Each place counts by the length of axis that it stands for, as in DiameterJ
(N. Hotaling et al., Biomaterials 61, 327 (2015)) and GIFT (PLoS ONE 17, e0275528 (2022)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from assistant.measurements.chords import Chords, find_chords
from assistant.measurements.picture import F32, F64, Mask, Picture, centre, edge_levels

MOST_PLACES = 1500
FEWEST_PLACES = 12
FINE = 12.0
"""Width under which the profile is taken from the full resolution [px of the full picture]."""
CLOSE = 448
"""Side of the crop in which thin fibres of a reduced picture are looked for [px]."""
_STRETCH = (-1.0, -0.67, -0.33, 0.0, 0.33, 0.67, 1.0)
"""Where along the axis profiles are averaged [widths]."""
FAR, _STEPS = 1.25, 40
"""Profiles reach so far to both sides [widths], in so many steps."""
BODY, INSIDE, OUTSIDE = 0.2, 0.55, 1.0
"""Up to where the profile is the middle of the body, up to where its crest is looked for, and its ground [widths]."""
QUARTILES_TO_SIGMA = 1 / 1.349
_SURE, MOST_SURE = (-1.49, -4.18, 0.66, 0.22, -2.5), 0.95
"""Bias and weights of the confidence, and its limit."""
MOST_SPREAD = 0.6
"""Relative spread from which more says nothing more: two sorts of bodies were followed."""
CHANGE = 0.6
"""Most relative difference between the width by the outlines and that by the steepest edges."""


@dataclass(frozen=True, eq=False)
class Fibres:
    """Long bodies of one polarity [px of the full picture]."""

    width: float
    """median along the axes"""
    spread: float
    """standard deviation of the widths, from their quartiles"""
    orientation: float
    """mean direction of the axes [deg, 0..180, counter-clockwise from x]"""
    alignment: float
    """0 (all directions alike) .. 1 (all parallel), by the doubled angle"""
    length: float
    """of all axes, in square roots of the frame's area"""
    firm: float
    """share of the chords' area that lies beside alike chords again and again"""
    gaps: float
    """the same of the other polarity over it [log]: few gaps of a mat are long, those between wrinkles all are"""
    bright: bool
    swelling: float
    """by how much the denoised copy shows them wider than they are, as a factor"""
    places: F64
    """where widths were taken: x, y, width and direction of the axis [rad, y down]. [N, 4]"""

    @property
    def evidence(self) -> F64:
        """What the confidence rests on: relative spread, and logarithms of the places, the firm share and the swelling.

        Few places, many widths or next to no long bodies say that edges of something else were followed; a body that
        is as thin as the blur was hardly resolved.
        """
        spread = min(self.spread / self.width, MOST_SPREAD)
        return np.array([spread, *np.log([len(self.places), self.firm + 0.01, self.swelling])])

    @property
    def confidence(self) -> float:
        """That a person would find the same width, by the logistic model that `benchmarks/fibres.py` fits."""
        return min(1 / (1 + float(np.exp(-_SURE[0] - self.evidence @ _SURE[1:]))), MOST_SURE)

    @property
    def turn(self) -> float:
        """Standard deviation of the directions [deg]."""
        return float(np.rad2deg(np.sqrt(-2 * np.log(max(self.alignment, 1e-6))) / 2))


def fibres_of(picture: Picture, found: tuple[Chords, Chords], *, bright: bool) -> Fibres | None:
    """The fibres of one polarity that bright and dark chords show, None where there is no place to take a width."""
    chords, gaps = found if bright else found[::-1]
    axes = chords[chords.steady]
    axes = axes[np.arange(0, len(axes), max(1, -(-len(axes) // MOST_PLACES)))]
    width, measured = _widths(picture, axes, bright=bright)
    if measured.sum() < FEWEST_PLACES:
        return None
    axes, width = axes[measured], width[measured] * picture.factor
    order = np.argsort(width)
    below = np.cumsum(axes.length[order], dtype=np.float64) - axes.length[order] / 2
    quartiles = np.interp((0.25, 0.5, 0.75), below / axes.length.sum(), width[order])  # each by its length of axis
    low, middle, high = (float(v) for v in quartiles)
    mean = np.average(np.exp(-2j * axes.along), weights=axes.length)
    frame = picture.calm.size**0.5
    x, y = ((at + 0.5) * picture.factor - 0.5 for at in (axes.x, axes.y))
    return Fibres(
        width=middle,
        spread=(high - low) * QUARTILES_TO_SIGMA,
        orientation=float(np.rad2deg(np.angle(mean)) / 2 % 180),
        alignment=float(abs(mean)),
        length=float(chords.length[chords.steady].sum()) / frame,
        firm=chords.share(chords.firm),
        gaps=float(np.log((gaps.share(gaps.firm) + 0.01) / (chords.share(chords.firm) + 0.01))),
        bright=bright,
        swelling=max(1.0, float(np.median(axes.width)) * picture.factor / middle),
        places=np.stack([x, y, width, axes.along], axis=1).astype(np.float64),
    )


def fibres_closer(picture: Picture, *, bright: bool) -> Fibres | None:
    """The same for fibres too thin for the small copy, from the centre of the picture at full resolution."""
    crop = centre(picture.grey, CLOSE)
    close = Picture(crop, crop, 1)
    found = fibres_of(close, find_chords(close), bright=bright)
    if found is not None:
        top, left = ((n - m) // 2 for n, m in zip(picture.grey.shape, crop.shape, strict=True))
        found.places[:, :2] += (left, top)
    return found


def _widths(picture: Picture, axes: Chords, *, bright: bool) -> tuple[F64, Mask]:
    """Width at each place between the two outlines [px of the small copy], and whether both were found."""
    width = np.zeros(len(axes))
    fine = axes.width * picture.factor < FINE
    for some, image, factor in ((fine, picture.grey, picture.factor), (~fine, picture.small, 1)):
        profiles = _profiles(image, axes[some], factor) * np.float32(1 if bright else -1)
        body = np.median(profiles[:, np.abs(_ACROSS) < BODY], axis=1)
        sides = [_half_width(half, body) for half in (profiles[:, _STEPS // 2 :], profiles[:, _STEPS // 2 :: -1])]
        width[some] = (sides[0] + sides[1]) * axes.width[some]
    change = np.abs(width / np.maximum(axes.width, 1e-6) - 1)
    return width, np.asarray(np.isfinite(width) & (change < CHANGE), dtype=np.bool_)


_ACROSS: F32 = np.linspace(-FAR, FAR, _STEPS + 1, dtype=np.float32)


def _profiles(image: F32, axes: Chords, factor: int) -> F32:
    """Grey levels across each axis, averaged along it, from an image of `factor` times the small copy's side. [N, U]"""
    c, s = np.cos(axes.along)[:, None] * factor, np.sin(axes.along)[:, None] * factor
    x, y = ((at[:, None] + 0.5) * factor - 0.5 for at in (axes.x, axes.y))
    across = _ACROSS * axes.width[:, None]
    height, width = image.shape
    flat = image.ravel()
    total = np.zeros(across.shape, np.float32)
    for stretch in _STRETCH:
        along = stretch * axes.width[:, None]
        down, right = y - across * c + along * s, x + across * s + along * c
        # Values between pixels, linear; beyond the frame those of its border.
        top, left = (
            np.floor(down).astype(np.int32).clip(0, height - 2),
            np.floor(right).astype(np.int32).clip(0, width - 2),
        )
        down, right = (down - top).clip(0, 1), (right - left).clip(0, 1)
        at = top * width + left
        upper = flat[at] * (1 - right) + flat[at + 1] * right
        total += upper * (1 - down) + (flat[at + width] * (1 - right) + flat[at + width + 1] * right) * down
    return total / np.float32(len(_STRETCH))


def _half_width(profile: F32, body: F32) -> F64:
    """How far from the axis a profile that runs outward falls through the level of the outline; NaN if never. [N]"""
    at = np.linspace(0, FAR, profile.shape[1])
    inside = profile[:, at <= INSIDE]
    crest, peak = np.maximum(inside.max(axis=1), body), inside.argmax(axis=1)
    ground = profile[:, (at > INSIDE) & (at < OUTSIDE)].min(axis=1)
    level = edge_levels(ground, body, crest)
    below = (profile < level[:, None]) & (np.arange(len(at)) > peak[:, None])
    rows, first = np.arange(len(profile)), below.argmax(axis=1)
    before, after = profile[rows, first - 1], profile[rows, first]
    part = (before - level) / np.maximum(before - after, 1e-6)
    return np.where(below.any(axis=1), at[first - 1] + part * at[1], np.nan)

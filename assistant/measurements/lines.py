"""Line patterns: width and edge roughness at full resolution, across a known period. Knows nothing about segmentation.

The picture is sampled along and across the lines; in every short stretch each edge is where the grey level crosses the
middle between line and space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from assistant.measurements.picture import F32, F64, Picture, edge_level
from assistant.measurements.texture import Period

STRETCH = 4
"""Rows along the line that are averaged for one edge position [px]."""
LONGEST_SAMPLE = 640
FEWEST_LINES = 3
FEWEST_STRETCHES = 12
FOUND_SHARE = 0.8
"""Share of the stretches in which an edge must be found."""
WIDTH_SCATTER = 0.25
"""Largest relative difference between the widths of the lines."""


@dataclass(frozen=True)
class Lines:
    """Bright lines of a pattern [px of the full picture]."""

    width: float
    roughness: float
    """3 sigma of the edge positions, without the share of the noise"""
    count: int
    share: float
    """of the pitch that is line"""
    edges: tuple[F64, ...]
    """the tracks of the edges in the picture, two to a line; [M, 2] each, x and y [px of the full picture]"""


def _sample(image: F32, orientation: float) -> F32:
    """The centred square that fits, turned so that the lines run along the rows' axis. [along, across]"""
    angle = np.deg2rad(orientation)
    c, s = np.cos(angle), np.sin(angle)
    side = min(int(min(image.shape) / (abs(c) + abs(s))), LONGEST_SAMPLE) - 2
    steps = np.arange(side) - (side - 1) / 2
    middle = [(n - 1) / 2 for n in image.shape]
    # Along the line x grows with cos and y, which counts downwards, falls with sin; across is a right angle further.
    y = middle[0] - steps[:, None] * s + steps[None, :] * c
    x = middle[1] + steps[:, None] * c + steps[None, :] * s
    return np.asarray(ndimage.map_coordinates(image, [y, x], order=1, mode="nearest"), dtype=np.float32)


def _in_picture(track: F64, sample: tuple[int, ...], image: F32, orientation: float) -> F64:
    """The track of an edge in a turned sample, back in the picture. [M, 2] as x, y"""
    seen = np.isfinite(track)
    along = (np.flatnonzero(seen) + 0.5) * STRETCH - 0.5 - (sample[0] - 1) / 2
    across = track[seen] - (sample[1] - 1) / 2
    c, s = np.cos(np.deg2rad(orientation)), np.sin(np.deg2rad(orientation))
    x = (image.shape[1] - 1) / 2 + along * c + across * s
    return np.stack([x, (image.shape[0] - 1) / 2 - along * s + across * c], axis=1)


def _middle(profile: F64) -> tuple[float, float]:
    """Level of the spaces, and the level midway between spaces and lines."""
    middle = float(profile.min() + profile.max()) / 2
    low = float(np.median(profile[profile <= middle]))
    return low, (low + float(np.median(profile[profile > (low + middle) / 2]))) / 2


def _pairs(profile: F64, level: float, pitch: float) -> list[tuple[float, float]]:
    """Rising and falling edge of every line that is between a tenth and nine tenths of the pitch wide."""
    above = profile > level
    rise, fall = np.flatnonzero(~above[:-1] & above[1:]), np.flatnonzero(above[:-1] & ~above[1:])
    # Where the level is crossed, between samples.
    rising, falling = (i + (level - profile[i]) / (profile[i + 1] - profile[i]) for i in (rise, fall))
    pairs = []
    for start in rising:
        later = falling[falling > start]
        if len(later) and 0.1 * pitch < later[0] - start < 0.9 * pitch:
            pairs.append((float(start), float(later[0])))
    return pairs


def _outline(profile: F64, pairs: list[tuple[float, float]], low: float) -> float:
    """Level at which an edge is taken: a line that is brighter at its edges than in its middle glows there."""
    bodies = [profile[round((start + stop) / 2)] for start, stop in pairs]
    crests = [profile[int(start) : int(stop) + 2].max() for start, stop in pairs]
    return edge_level(low, float(np.median(bodies)), float(np.median(crests)))


def _edge_track(stretches: F32, level: float, position: float, *, reach: float, rising: bool) -> F64:
    """Position of one edge in every stretch, NaN where the level is not crossed near it. [stretches]"""
    low, high = max(int(position - reach), 0), min(int(position + reach) + 2, stretches.shape[1])
    part = stretches[:, low:high].astype(np.float64)
    sign = 1 if rising else -1
    left, right = sign * (part[:, :-1] - level), sign * (part[:, 1:] - level)
    crossed = (left <= 0) & (right > 0)
    where = low + np.arange(part.shape[1] - 1) + left / np.where(crossed, left - right, 1)
    off = np.where(crossed, np.abs(where - position), np.inf)
    best = off.argmin(axis=1)
    rows = np.arange(len(part))
    return np.where(np.isfinite(off[rows, best]), where[rows, best], np.nan)


def _roughness(track: F64) -> float:
    """Variance of an edge about its straight line, from neighbouring stretches, so that white noise drops out."""
    seen = np.isfinite(track)
    at = np.flatnonzero(seen)
    rest = np.full(track.shape, np.nan)
    rest[at] = track[at] - np.polyval(np.polyfit(at, track[at], 1), at)
    one, two = (float(np.nanmean(rest[lag:] * rest[:-lag])) for lag in (1, 2))
    # Linear extrapolation of the autocovariance to lag 0, never above the plain variance.
    return min(max(2 * one - two, one, 0.0), float(np.nanvar(rest)))


def measure_lines(picture: Picture, period: Period) -> Lines | None:
    """Width and roughness of the bright lines; None where they cannot be followed."""
    sample = _sample(picture.grey, period.orientation)
    stretches = len(sample) // STRETCH
    if stretches < FEWEST_STRETCHES or sample.shape[1] < FEWEST_LINES * period.length or period.length < 4:
        return None
    rows = sample[: stretches * STRETCH].reshape(stretches, STRETCH, -1).mean(axis=1)
    rows = np.asarray(ndimage.gaussian_filter1d(rows, min(1.0, period.length / 12), axis=1), dtype=np.float32)
    profile = rows.mean(axis=0, dtype=np.float64)
    if np.ptp(profile) < 2 * picture.noise / STRETCH**0.5:
        return None
    low, middle = _middle(profile)
    pairs = _pairs(profile, middle, period.length)
    if len(pairs) < FEWEST_LINES:
        return None
    level = _outline(profile, pairs, low)
    widths, variances, followed = [], [], []
    for start, stop in pairs:
        reach = min(0.45 * (stop - start), 0.45 * (period.length - stop + start), 0.3 * period.length) + 1
        edges = [
            _edge_track(rows, level, at, reach=reach, rising=rising) for at, rising in ((start, True), (stop, False))
        ]
        if min(float(np.isfinite(edge).mean()) for edge in edges) < FOUND_SHARE:
            continue
        widths.append(float(np.nanmean(edges[1] - edges[0])))
        variances += [_roughness(edge) for edge in edges]
        followed += edges
    if len(widths) > 1.3 * sample.shape[1] / period.length:  # the two bright edges of a line pass for two lines
        return None
    if len(widths) < FEWEST_LINES or np.std(widths) > WIDTH_SCATTER * np.mean(widths):
        return None
    width = float(np.median(widths))
    tracks = tuple(_in_picture(track, sample.shape, picture.grey, period.orientation) for track in followed)
    return Lines(width, 3 * float(np.median(variances)) ** 0.5, len(widths), width / period.length, tracks)

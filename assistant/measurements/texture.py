"""Grey levels, sharpness, direction and dominant period of a picture. Knows nothing about objects."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from assistant.measurements.picture import F32, F64, Picture, block_mean, blurred, centre, running_mean

TENSOR_BLOCK = 8
"""Scale over which the local direction is averaged [px]."""
SHARPNESS_CROP = 448
REBLUR = 11
"""Width of the re-blur of the sharpness measure [px]."""

HIGHEST_FREQUENCY = 1 / 3
LEAST_POWER = 0.02
"""Share of the picture's power in the peak of a period that can be seen; less is a trace of the scan or of JPEG."""
FEWEST_PERIODS = 5
PERIOD_CROP = 448
FINE_PERIOD = 6.0
"""Periods shorter than this many px of the small copy are taken from the full resolution."""
PEAK_OVER_RING = 300.0
"""Power of a true spatial period over the median at the same frequency in other directions."""
PEAK_OVER_SECTOR = 40.0
"""The same over the 95th percentile at neighbouring frequencies in the same direction."""
FUNDAMENTAL_SHARE = 0.02
"""A lower peak with this share of the strongest peak's power is the fundamental."""
FUNDAMENTAL_OVER_RING = 60.0
FUNDAMENTAL_OVER_SECTOR = 8.0
LATTICE_STRICTER = 2.0
PEAK_APART = 3
"""Bins between two peaks that count as two."""
SHARPEST = 6
"""How many of the strongest peaks are tested."""


@dataclass(frozen=True)
class Direction:
    """How strongly one direction dominates, and which."""

    anisotropy: float
    """0 (all directions alike) .. 1 (one direction only)"""
    orientation: float
    """direction along which the picture changes least [deg, 0..180, counter-clockwise from the x axis]"""
    right_angled: float = 0.0
    """0 (edges run everywhere) .. 1 (along one direction or two at right angles), as those of what was etched do"""


@dataclass(frozen=True)
class Period:
    """A spatial period and the direction in which it repeats."""

    length: float
    """[px of the full picture]"""
    orientation: float
    """direction of the lines, at right angles to the repetition [deg, 0..180]"""
    strength: float
    """power of the peak over what surrounds it"""


def contrast(picture: Picture) -> float:
    """Standard deviation of the grey levels without the share of the noise."""
    off = picture.grey.ravel() - picture.grey.mean()
    return float(max(float(np.dot(off, off)) / off.size - picture.noise**2, 0.0) ** 0.5)


def structure(picture: Picture) -> float:
    """How many times more the smoothed picture varies than white noise would; about 1 where there is nothing."""
    halved = blurred(block_mean(picture.small, 2), 1.0)
    side = (min(halved.shape) // 4) | 1
    varied = float(np.std(halved - running_mean(halved, side), dtype=np.float64))
    expected = picture.small_noise / (4.0 * float(np.sqrt(np.pi)))
    return varied / max(expected, 2e-4)


def sharpness(picture: Picture) -> float:
    """1 minus the blur annoyance: how much of the grey-level change between neighbours a further blur destroys.

    F. Crete et al., Proc. SPIE 6492, 64920I (2007); on the lightly denoised centre at full resolution.
    """
    image = blurred(centre(picture.grey, SHARPNESS_CROP), 0.8)
    blurs = []
    for axis in (0, 1):
        reblurred = ndimage.uniform_filter1d(image, REBLUR, axis=axis)
        change = np.abs(np.diff(image, axis=axis))
        lost = np.maximum(change - np.abs(np.diff(reblurred, axis=axis)), 0)
        blurs.append(1.0 - float(lost.sum()) / max(float(change.sum()), 1e-12))
    return 1.0 - max(blurs)


def direction(picture: Picture) -> Direction:
    """Dominant direction from the structure tensor, each place weighted by how clear its own direction is.

    The local eigenvalue difference leaves out isotropic noise, so that noise does not hide an alignment.
    """
    gx, gy = picture.gradients
    c, s, power = gx * gx - gy * gy, 2 * gx * gy, gx * gx + gy * gy
    xx_yy, xy2 = block_mean(c, TENSOR_BLOCK), block_mean(s, TENSOR_BLOCK)
    clear = float(np.hypot(xx_yy, xy2).sum(dtype=np.float64))
    along_x, along_y = float(xx_yy.sum(dtype=np.float64)), float(xy2.sum(dtype=np.float64))
    along = (90.0 - np.rad2deg(np.arctan2(along_y, along_x)) / 2) % 180
    # Angles counted four times over, so that directions at right angles add up instead of cancelling.
    inverse = 1 / np.maximum(power, np.float32(1e-12))
    c4, s4 = float(((c * c - s * s) * inverse).sum()), float((2 * c * s * inverse).sum())
    crossed = float(np.hypot(c4, s4)) / max(float(power.sum()), 1e-12)
    return Direction(float(np.hypot(along_x, along_y)) / max(clear, 1e-12), float(along), crossed)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Frequencies of a spectrum of one shape, and its bins in the order of their distance from zero."""

    fy: F64
    fx: F64
    radius: F64
    used: NDArray[np.intp]
    """flat indices of the bins between the lowest and the highest frequency of interest, by radius"""
    radii: F64
    y: F64
    x: F64


@lru_cache(maxsize=4)
def _grid(shape: tuple[int, int], lowest: float) -> _Grid:
    fy: F64 = scipy.fft.fftfreq(shape[0])[:, None]
    fx: F64 = scipy.fft.rfftfreq(shape[1])[None, :]
    radius = np.hypot(fy, fx)
    used = np.flatnonzero((radius > 0.4 * lowest) & (radius < 0.5))
    used = used[np.argsort(radius.ravel()[used])]
    rows, columns = np.divmod(used, radius.shape[1])
    return _Grid(fy, fx, radius, used, radius.ravel()[used], fy[rows, 0], fx[0, columns])


class Spectrum:
    """Power spectrum of one image with its frequencies, and the tests for a peak that is a true period."""

    def __init__(self, image: F32) -> None:
        height, width = image.shape
        side = min(height, width)
        flat = image - running_mean(image, (side // 4) | 1)
        taper = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
        shape = (scipy.fft.next_fast_len(height, real=True), scipy.fft.next_fast_len(width, real=True))
        transform = scipy.fft.rfft2(flat * taper, s=shape)
        self.power: F32 = transform.real**2 + transform.imag**2
        self.step = 1.0 / side
        self.lowest = FEWEST_PERIODS * self.step
        self.grid = _grid((shape[0], shape[1]), self.lowest)
        self._sorted = self.power.ravel()[self.grid.used]

    def peaks(self, count: int = 24) -> list[tuple[int, int]]:
        """The strongest local maxima, strongest first."""
        radius = self.grid.radius
        power = np.where((radius > self.lowest) & (radius < HIGHEST_FREQUENCY), self.power, 0)
        rows, columns = np.nonzero(power > 0.5 * FUNDAMENTAL_SHARE * power.max())
        order = np.argsort(-power[rows, columns])[: 12 * count]
        rows, columns = rows[order], columns[order]
        found: list[tuple[int, int]] = []
        while len(rows) and len(found) < count:
            found.append((int(rows[0]), int(columns[0])))
            away = np.abs(rows - rows[0])
            away = np.maximum(np.minimum(away, len(power) - away), np.abs(columns - columns[0]))
            rows, columns = rows[away > PEAK_APART], columns[away > PEAK_APART]
        return found

    def vector(self, peak: tuple[int, int]) -> tuple[float, float, float]:
        """Vertical and horizontal frequency of a bin, and its distance from zero."""
        fy, fx = float(self.grid.fy[peak[0], 0]), float(self.grid.fx[0, peak[1]])
        return fy, fx, float(np.hypot(fy, fx))

    def share(self, peak: tuple[int, int]) -> float:
        """Share of all power that lies in a peak and the bins next to it."""
        rows = [(peak[0] + step) % len(self.power) for step in (-1, 0, 1)]
        part = self.power[rows, max(peak[1] - 1, 0) : peak[1] + 2]
        return float(part.sum() / max(float(self.power.sum()), 1e-30))

    def prominence(self, peak: tuple[int, int]) -> tuple[float, float]:
        """Power of a peak over the median of its ring, and over the 95th percentile of its sector."""
        fy, fx, f = self.vector(peak)
        grid = self.grid
        low, high = np.searchsorted(grid.radii, (0.55 * f, 1.7 * f))
        y, x, radii, power = grid.y[low:high], grid.x[low:high], grid.radii[low:high], self._sorted[low:high]
        along = np.abs(y * (fy / f) + x * (fx / f))
        across = np.abs(y * (fx / f) - x * (fy / f))
        away = np.hypot(along - f, across) > 3 * self.step
        ring = (np.abs(radii - f) < max(0.15 * f, 2 * self.step)) & away
        sector = (along > 0.55 * f) & (along < 1.7 * f) & (across < np.maximum(0.2 * along, 2 * self.step)) & away
        if not ring.any() or not sector.any():
            return 0.0, 0.0
        height = float(self.power[peak])
        floor = 1e-12 + 1e-9 * height
        return (
            height / max(float(np.median(power[ring])), floor),
            height / max(float(np.percentile(power[sector], 95)), floor),
        )

    def frequency(self, peak: tuple[int, int]) -> tuple[float, float]:
        """Vertical and horizontal frequency of a peak [1/px], between bins by a parabola through the log power."""
        row, column = peak
        fy, fx, _ = self.vector(peak)
        rows, columns = self.power.shape
        dy = _vertex(*(float(self.power[(row + d) % rows, column]) for d in (-1, 0, 1)))
        dx = _vertex(*(float(self.power[row, abs(column + d)]) for d in (-1, 0, 1))) if column + 1 < columns else 0.0
        return fy + dy * float(self.grid.fy[1, 0]), fx + dx * float(self.grid.fx[0, 1])


def _vertex(left: float, middle: float, right: float) -> float:
    """Offset of the maximum of a parabola through the logarithms of three neighbouring powers."""
    a, b, c = (float(np.log(max(value, 1e-30))) for value in (left, middle, right))
    bend = a - 2 * b + c
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (a - c) / bend, -0.5, 0.5))


def _is_subharmonic(whole: tuple[float, float, float], part: tuple[float, float, float]) -> bool:
    """Whether a frequency vector is a half, a third, ... of another."""
    ratio = whole[2] / part[2]
    order = round(ratio)
    sine = abs(whole[0] * part[1] - whole[1] * part[0]) / (whole[2] * part[2])
    return 2 <= order <= 6 and abs(ratio - order) < 0.04 * order and sine < 0.06


def _fundamental(spectrum: Spectrum) -> tuple[tuple[int, int], float] | None:
    """The strongest sharp peak or, where that is one of its harmonics, the peak of the fundamental."""
    peaks = spectrum.peaks()
    for peak in peaks[:SHARPEST]:
        ring, sector = spectrum.prominence(peak)
        if ring > PEAK_OVER_RING and sector > PEAK_OVER_SECTOR and spectrum.share(peak) > LEAST_POWER:
            break
    else:
        return None
    whole = spectrum.vector(peak)
    lower = [p for p in peaks if spectrum.vector(p)[2] < 0.9 * whole[2]]
    for candidate in sorted(lower, key=lambda p: spectrum.vector(p)[2]):
        over = spectrum.prominence(candidate)
        # A lattice has its shortest vector in another direction than the strongest peak; that one must be sharp itself.
        harmonic = _is_subharmonic(whole, spectrum.vector(candidate))
        strict = 1.0 if harmonic else LATTICE_STRICTER
        if over[0] > strict * FUNDAMENTAL_OVER_RING and over[1] > strict * FUNDAMENTAL_OVER_SECTOR:
            return candidate, sector
    return peak, sector


def _period(image: F32, factor: int) -> Period | None:
    """The fundamental of the sharp peaks of an image, None where no peak is sharp."""
    spectrum = Spectrum(image)
    found = _fundamental(spectrum)
    if found is None:
        return None
    peak, strength = found
    fy, fx = spectrum.frequency(peak)
    # The lines run at right angles to the wave vector; rows count downwards.
    along = (np.rad2deg(np.arctan2(-fy, fx)) + 90.0) % 180
    return Period(factor / float(np.hypot(fy, fx)), float(along), strength)


def period(picture: Picture) -> Period | None:
    """The dominant spatial period where the picture repeats sharply.

    Fine ones are looked for at full resolution: block means drown them, or fold them into coarse ones.
    """
    if min(picture.small.shape) < 4 * FEWEST_PERIODS:
        return None
    if picture.factor > 1:
        fine = _period(centre(picture.grey, PERIOD_CROP), 1)
        if fine is not None and fine.length < FINE_PERIOD * picture.factor:
            return fine
    return _period(picture.small, picture.factor)

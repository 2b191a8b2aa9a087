"""Grey levels, sharpness, direction and dominant period of a picture. Knows nothing about objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy import ndimage

from assistant.measurements.picture import F32, F64, Picture, blurred, centre, running_mean

TENSOR_SIGMA = 1.5
TENSOR_WINDOW = 9
"""Scale over which the local direction is averaged [px]."""
SHARPNESS_CROP = 448
REBLUR = 11
"""Width of the re-blur of the sharpness measure [px]."""

HIGHEST_FREQUENCY = 0.42
FEWEST_PERIODS = 4
PEAK_OVER_RING = 300.0
"""Power of a true spatial period over the median at the same frequency in other directions."""
PEAK_OVER_SECTOR = 40.0
"""The same over the 95th percentile at neighbouring frequencies in the same direction."""
FUNDAMENTAL_SHARE = 0.02
"""A lower peak with this share of the strongest peak's power is the fundamental."""
FUNDAMENTAL_OVER_RING = 60.0
FUNDAMENTAL_OVER_SECTOR = 8.0
SHARPEST = 6
"""How many of the strongest peaks are tested."""


@dataclass(frozen=True)
class Direction:
    """How strongly one direction dominates, and which."""

    anisotropy: float
    """0 (all directions alike) .. 1 (one direction only)"""
    orientation: float
    """direction along which the picture changes least [deg, 0..180, counter-clockwise from the x axis]"""


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
    variance = float(np.var(picture.grey, dtype=np.float64))
    return max(variance - picture.noise**2, 0.0) ** 0.5


def structure(picture: Picture) -> float:
    """How many times more the smoothed picture varies than smoothed white noise would; about 1 where there is nothing."""
    smoothed = blurred(picture.small, 2.0)
    side = (min(smoothed.shape) // 4) | 1
    varied = float(np.std(smoothed - running_mean(smoothed, side), dtype=np.float64))
    expected = picture.small_noise / (2 * 2.0 * np.sqrt(np.pi))
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


def tensor(image: F32, *, sigma: float = TENSOR_SIGMA, window: int = TENSOR_WINDOW) -> tuple[F32, F32, F32]:
    """Structure tensor Jxx, Jxy, Jyy averaged over a square window. [h, w] each"""
    gx = ndimage.gaussian_filter(image, sigma, order=(0, 1), truncate=3.0)
    gy = ndimage.gaussian_filter(image, sigma, order=(1, 0), truncate=3.0)
    return tuple(ndimage.uniform_filter(part, window) for part in (gx * gx, gx * gy, gy * gy))  # type: ignore[return-value]


def direction(picture: Picture) -> Direction:
    """Dominant direction from the structure tensor, each place weighted by how clear its own direction is.

    The local eigenvalue difference leaves out isotropic noise, so that noise does not hide an alignment.
    """
    xx, xy, yy = tensor(picture.small, sigma=max(TENSOR_SIGMA, picture.sigma))
    clear = float(np.hypot(xx - yy, 2 * xy).sum(dtype=np.float64))
    c, s = float((xx - yy).sum(dtype=np.float64)), 2 * float(xy.sum(dtype=np.float64))
    along = (90.0 - np.rad2deg(np.arctan2(s, c)) / 2) % 180
    return Direction(float(np.hypot(c, s)) / max(clear, 1e-12), float(along))


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
        self.fy: F64 = scipy.fft.fftfreq(shape[0])[:, None]
        self.fx: F64 = scipy.fft.rfftfreq(shape[1])[None, :]
        self.radius: F64 = np.hypot(self.fy, self.fx)
        self.step = 1.0 / side
        self.lowest = FEWEST_PERIODS * self.step
        used = np.flatnonzero((self.radius > 0.4 * self.lowest) & (self.radius < 0.5))
        used = used[np.argsort(self.radius.ravel()[used])]
        rows, columns = np.divmod(used, self.power.shape[1])
        self._radii, self._power = self.radius.ravel()[used], self.power.ravel()[used]
        self._y, self._x = self.fy[rows, 0], self.fx[0, columns]

    def peaks(self, count: int = 24) -> list[tuple[int, int]]:
        """The strongest local maxima, strongest first."""
        searched = (self.radius > self.lowest) & (self.radius < HIGHEST_FREQUENCY)
        power = np.where(searched, self.power, 0)
        padded = np.pad(power, ((3, 3), (0, 0)), mode="wrap")
        highest = ndimage.maximum_filter(padded, 7, mode="nearest")[3:-3]
        rows, columns = np.nonzero((power == highest) & (power > FUNDAMENTAL_SHARE * 0.5 * power.max()))
        order = np.argsort(-power[rows, columns])[:count]
        return [(int(rows[i]), int(columns[i])) for i in order]

    def prominence(self, peak: tuple[int, int]) -> tuple[float, float]:
        """Power of a peak over the median of its ring, and over the 95th percentile of its sector."""
        fy, fx = float(self.fy[peak[0], 0]), float(self.fx[0, peak[1]])
        f = float(np.hypot(fy, fx))
        low, high = np.searchsorted(self._radii, (0.5 * f, 1.8 * f))
        y, x, power = self._y[low:high], self._x[low:high], self._power[low:high]
        along = np.abs(y * (fy / f) + x * (fx / f))
        across = np.abs(y * (fx / f) - x * (fy / f))
        away = np.hypot(along - f, across) > 3 * self.step
        ring = (np.abs(self._radii[low:high] - f) < max(0.15 * f, 2 * self.step)) & away
        sector = (
            (along > 0.55 * f) & (along < 1.7 * f) & (across < np.maximum(0.2 * along, 2 * self.step)) & away
        )
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
        rows, columns = self.power.shape
        dy = _vertex(*(float(self.power[(row + d) % rows, column]) for d in (-1, 0, 1)))
        dx = (
            _vertex(*(float(self.power[row, abs(column + d)]) for d in (-1, 0, 1)))
            if column + 1 < columns
            else 0.0
        )
        return float(self.fy[row, 0]) + dy * float(self.fy[1, 0]), float(self.fx[0, column]) + dx * float(
            self.fx[0, 1]
        )


def _vertex(left: float, middle: float, right: float) -> float:
    """Offset of the maximum of a parabola through the logarithms of three neighbouring powers."""
    a, b, c = (float(np.log(max(value, 1e-30))) for value in (left, middle, right))
    bend = a - 2 * b + c
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (a - c) / bend, -0.5, 0.5))


def _fundamental(spectrum: Spectrum) -> tuple[tuple[int, int], float] | None:
    """The peak of lowest frequency among those that are harmonics of one another, if any of the strongest is sharp."""
    peaks = spectrum.peaks()
    for peak in peaks[:SHARPEST]:
        ring, sector = spectrum.prominence(peak)
        if ring > PEAK_OVER_RING and sector > PEAK_OVER_SECTOR:
            break
    else:
        return None
    lower = [p for p in peaks if spectrum.radius[p] < 0.8 * spectrum.radius[peak]]
    for candidate in sorted(lower, key=lambda p: float(spectrum.radius[p])):
        over = spectrum.prominence(candidate)
        if over[0] > FUNDAMENTAL_OVER_RING and over[1] > FUNDAMENTAL_OVER_SECTOR:
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
    """The dominant spatial period where the picture repeats sharply; fine ones are looked for at full resolution."""
    if min(picture.small.shape) < 2 * FEWEST_PERIODS:
        return None
    found = _period(picture.small, picture.factor)
    if found is None and picture.factor > 1:
        found = _period(picture.crop, 1)
    return found

"""How large the bodies of a packing are without telling them apart: from how far its grey levels resemble each other.

Knows nothing about kinds of pictures. The covariance of a packing falls to a given share of its variance at a distance
that goes with the size of its bodies, the large ones counting by their area; the ratio of the two is nearly the same
for spheres, splinters and plates (J. Serra, Image Analysis and Mathematical Morphology (1982), chapter IX).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft

from assistant.measurements.picture import F64, Picture

SHARE = 0.35
"""Share of the variance at which the distance is taken."""
SIZE_OVER_DISTANCE = 4.8
"""Mean diameter by area over that distance: 5.3 in the outlined powders, 4.0 to 5.5 in drawn beds, grain by grain."""
NEAR, FAR = 0.7, 0.2
"""Shares at which the shape of the fall is looked at."""


@dataclass(frozen=True)
class Covariance:
    """How the resemblance of grey levels falls with distance."""

    near: float
    middle: float
    far: float
    """distances at which it has fallen to NEAR, SHARE and FAR of the variance [px of the small copy]"""
    deepest: float
    """its least value, in variances: below 0 where bodies and gaps follow one another"""
    edges: float
    """mean slope of the grey levels over the middle distance, in standard deviations: few where there are few bodies"""
    skew: float
    """of the grey levels: above 0 for a few bright bodies, below 0 for a few dark holes"""

    @property
    def size(self) -> float:
        """Mean diameter of the bodies, weighted by their area [px of the small copy]."""
        return SIZE_OVER_DISTANCE * self.middle


def covariance_of(picture: Picture) -> Covariance | None:
    """The covariance of the small copy over all directions; None where it does not fall far enough in the frame."""
    grey = picture.small - picture.small.mean()
    power = np.abs(scipy.fft.rfft2(grey)) ** 2
    reach = min(grey.shape) // 3
    plane = scipy.fft.irfft2(power, s=grey.shape)[:reach, :reach] / grey.size
    distance = np.rint(np.hypot(*np.mgrid[:reach, :reach])).astype(np.int32).ravel()
    fall: F64 = (np.bincount(distance, plane.ravel()) / np.bincount(distance))[:reach]
    variance = max(float(fall[0]) - picture.small_noise**2, float(fall[1]))
    fall /= max(variance, 1e-12)
    fall[0] = 1.0
    near, middle, far = (_first_below(fall, share) for share in (NEAR, SHARE, FAR))
    if near is None or middle is None or far is None:
        return None
    spread = max(float(picture.calm.std()), 1e-6)
    edges = float(picture.slope.mean()) * middle / spread
    skew = float((((picture.calm - picture.calm.mean()) / spread) ** 3).mean())
    return Covariance(near, middle, far, float(fall.min()), edges, skew)


def _first_below(fall: F64, level: float) -> float | None:
    below = np.flatnonzero(fall < level)
    if not len(below):
        return None
    k = int(below[0])
    return k - 1 + float((fall[k - 1] - level) / (fall[k - 1] - fall[k]))

"""How large the bodies of a packing are without telling them apart: from how far its grey levels resemble each other.

Knows nothing about kinds of pictures. The covariance of a packing falls to a given share of its variance at a distance
that goes with the size of its bodies, the large ones counting by their area; the ratio of the two is nearly the same
for spheres, splinters and plates (J. Serra, Image Analysis and Mathematical Morphology (1982), chapter IX).
"""

from __future__ import annotations

import numpy as np
import scipy.fft

from assistant.measurements.picture import F64, Picture

SHARE = 0.35
"""Share of the variance at which the distance is taken."""
SIZE_OVER_DISTANCE = 4.8
"""Mean diameter by area over that distance: 5.3 in outlined powders, 4.0 to 5.5 in drawn beds of any shape of grain."""

FEWEST_ACROSS = 3
"""So many bodies fit across the frame at least: what resembles itself further is the tone of a region."""


def grain_size(picture: Picture) -> float | None:
    """Mean diameter of the bodies of a packing, weighted by their area [px of the full picture].

    None where the grey levels resemble each other across the frame, as at the edge of a sheet that ends in it.
    """
    grey = picture.small - picture.small.mean()
    power = np.abs(scipy.fft.rfft2(grey)) ** 2
    reach = min(grey.shape) // 3
    plane = scipy.fft.irfft2(power, s=grey.shape)[:reach, :reach] / grey.size
    distance = np.rint(np.hypot(*np.mgrid[:reach, :reach])).astype(np.int32).ravel()
    fall: F64 = (np.bincount(distance, plane.ravel()) / np.bincount(distance))[:reach]
    variance = max(float(fall[0]) - picture.small_noise**2, float(fall[1]))
    below = np.flatnonzero(fall < SHARE * variance)
    if not len(below) or below[0] == 0:
        return None
    k = int(below[0])
    middle = k - 1 + float((fall[k - 1] - SHARE * variance) / (fall[k - 1] - fall[k]))
    size = SIZE_OVER_DISTANCE * middle
    return size * picture.factor if FEWEST_ACROSS * size <= min(grey.shape) else None

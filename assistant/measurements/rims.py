"""Dark bodies and their rims: are they openings or dark matter, and where does an opening end. Knows nothing of kinds.

In secondary electrons the edge of an opening is convex and glows, while the ground next to a body that stands on it is
shaded. Where the side walls of an opening slope they glow too, and its mouth is the crest of that glow.
L. Reimer, Scanning Electron Microscopy (1998), sections 4.1 and 6.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from assistant.measurements.picture import F32, F64, Mask, Picture

STEP, _REACH = 0.5, 8.25
"""Width of a layer, and how far from the outline the layers go [px of the small copy]."""
FEWEST_IN_LAYER = 200
_NEAR, _FAR = (2.0, 4.0), (7.0, 18.0)
"""Distances at which the ground is beside a body, and away from it [px of the small copy]."""
FEWEST_BESIDE = 50
SHADED = -0.12
"""Darkening of the ground beside a body, in contrasts, from which the body stands on it."""
GLOWING, GLOWING_FOAM = 0.08, 0.03
"""Share of the crest that is glow from which side walls are looked for; in a foam all of a wall's top glows."""
SHARP, SHARP_PER_BLUR = 1.5, 0.7
"""Widest rise of a wall that does not slope [px], and what the denoising blur adds to it."""
MOUTH = 0.99
"""Level of the outline of an opening with sloping walls, from its floor (0) to the crest (1)."""
MIDDLE, MOST_RAISED, RAISED = 0.5, 0.15, 0.5
"""Level of a sharp outline, and how far it is raised with the glow."""


@dataclass(frozen=True, eq=False)
class Rim:
    """Around the dark bodies of a picture."""

    shade: float
    """grey beside the bodies minus that away from them, over the contrast of bodies and ground"""
    outset: float
    """how far the true outline lies outside the drawn one [px of the small copy]"""
    opening: Mask
    """[h, w] the bodies up to their true outline"""

    @property
    def stands(self) -> bool:
        """Whether the ground is shaded beside the bodies, which then are matter and not openings."""
        return self.shade < SHADED


def _profile(calm: F32, distance: F32) -> tuple[F64, F64]:
    """Mean grey level by distance from the outline, layers with too few pixels left out. [N] each"""
    count = int(2 * _REACH / STEP)
    layer = np.floor((distance + _REACH) / STEP).astype(np.int32)
    seen = (layer >= 0) & (layer < count)
    size = np.bincount(layer[seen], minlength=count)
    total = np.bincount(layer[seen], calm[seen], count)
    kept = size >= FEWEST_IN_LAYER
    at = (np.arange(count) + 0.5) * STEP - _REACH
    return np.asarray(at[kept], dtype=np.float64), np.asarray(total[kept] / size[kept], dtype=np.float64)


def _last_crossing(at: F64, profile: F64, level: float) -> float:
    """Where a profile last rises through a level before its crest; 0 where it does not."""
    rises = np.flatnonzero((profile[:-1] <= level) & (profile[1:] > level))
    if not len(rises):
        return 0.0
    i = int(rises[-1])
    return float(at[i] + (level - profile[i]) / (profile[i + 1] - profile[i]) * (at[i + 1] - at[i]))


def _outset(at: F64, profile: F64, sigma: float, *, sloping: bool) -> float:
    if len(at) < 6:
        return 0.0
    crest = int(profile.argmax())
    floor, top = float(profile[0]), float(profile[crest])
    if crest < 3 or top - floor < 1e-3:
        return 0.0
    glow = (top - float(profile[-1])) / (top - floor)
    rising = slice(0, crest + 1)

    def reached(share: float) -> float:
        return _last_crossing(at[rising], profile[rising], floor + share * (top - floor))

    slow = reached(0.8) - reached(0.2) > SHARP + SHARP_PER_BLUR * sigma
    if (slow and glow > GLOWING) or (sloping and glow > GLOWING_FOAM):
        return reached(MOUTH)
    return reached(MIDDLE + min(MOST_RAISED, RAISED * max(glow, 0.0)))


def rim_of(picture: Picture, dark: Mask, *, sloping: bool = False) -> Rim:
    """Look around the dark bodies of the small copy; `sloping` where their walls are known to slope."""
    outside = np.asarray(ndimage.distance_transform_edt(~dark), dtype=np.float32)
    inside = np.asarray(ndimage.distance_transform_edt(dark), dtype=np.float32)
    # To the outline of the bodies, negative inside them.
    distance = np.where(dark, np.float32(0.5) - inside, outside - np.float32(0.5)).astype(np.float32)
    outset = _outset(*_profile(picture.calm, distance), picture.sigma, sloping=sloping)
    near, far = ((distance > low) & (distance <= high) for low, high in (_NEAR, _FAR))
    parts, shade = (near, far, distance < -_NEAR[0] / 2), 0.0
    if min(int(part.sum()) for part in parts) >= FEWEST_BESIDE:
        beside, away, body = (float(np.median(picture.calm[part])) for part in parts)
        shade = (beside - away) / max(away - body, 1e-3)
    return Rim(shade, outset, np.asarray(distance < outset, dtype=np.bool_))

"""Electron optics: geometry and material in, detector signal out. Knows nothing about classes, vendors or files.

The order is that of the instrument: emission at the specimen (secondary yield rises as 1/cos of the local slope,
cavities hold electrons back, a detector at one side sees slopes that face it), projection at the tilt, then the
column and the detector (charging, beam blur, scan-line jitter, gain, shot noise). Seiler, J. Appl. Phys. 54, R1
(1983) for the yield law.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal import lfilter

from assistant.arrays import F32, I32, Mask

EDGE_LIMIT = 3.2
INVERTED_GLOW = 0.4
"""a weaker edge effect where compositional contrast is inverted, or it would cancel it on thin structures"""
EVEN_CONTRAST = 0.05
VISIBLE_SHARE = 0.25


Words = dict[str, str | list[str]]
"""What is said of a scene: facets to words."""


@dataclass
class DrawnObjects:
    """What was drawn, one entry per label 1, 2, ...: centre [px], drawn area [px2], aspect ratio."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    area: list[float] = field(default_factory=list)
    aspect: list[float] = field(default_factory=list)

    def add(self, x: float, y: float, *, area: float, aspect: float = 1.0) -> int:
        """Append one object and return its label."""
        self.x.append(float(x))
        self.y.append(float(y))
        self.area.append(float(area))
        self.aspect.append(float(aspect))
        return len(self.x)

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class Scene:
    """One field of view before imaging; all lengths of the maps are in pixels, so slopes have no unit."""

    height: F32
    """[H, W] surface height [px]"""
    material: F32
    """[H, W] secondary yield at normal incidence, about 0..1"""
    feature: Mask
    """[H, W] what coverage, porosity and polarity speak about"""
    nm_per_pixel: float
    words: dict[str, str | list[str]]
    numbers: dict[str, float] = field(default_factory=dict)
    """ground truth known from the drawing alone"""
    area_fact: str = "coverage"
    """the Fact name under which the feature's area share is filed"""
    labels: I32 | None = None
    """[H, W] 0 where there is no object, else 1 + index into `objects`"""
    objects: DrawnObjects = field(default_factory=DrawnObjects)
    count_objects: bool = True
    size_objects: bool = True
    tilt_deg: float = 0.0
    projected: bool = False
    """True where the drawing already is the tilted view"""
    shadow: F32 | None = None
    """[H, W] share of electrons that escape from depth; unlike the yield it never inverts"""
    glow: float = 1.0
    """how strongly slopes brighten here; under 1 for shallow relief"""


@dataclass(frozen=True)
class Optics:
    """One instrument as it was set for one sample."""

    backscattered: bool
    inverted: bool
    edge: float
    escape_px: float
    shade: float
    shade_deg: float
    cavity: float
    blur_px: float
    dose: float
    """electrons per pixel at white"""
    jitter_px: float
    streak: float
    halo: float
    black: float
    white: float
    gamma: float
    lean: tuple[float, float]
    """fall of the collection efficiency across the frame, x and y"""


def draw_optics(rng: np.random.Generator, *, style: str) -> Optics:
    """Draw the settings of one instrument; `site` is the noisier back-scattered one."""
    charging = rng.random() < (0.75 if style == "site" else 0.3)
    house = Optics(
        backscattered=False,
        inverted=False,
        edge=rng.uniform(0.7, 1.15),
        escape_px=rng.uniform(0.7, 1.8),
        shade=rng.uniform(0.05, 0.4),
        shade_deg=rng.uniform(0, 360),
        cavity=rng.uniform(0.5, 1.0),
        blur_px=rng.uniform(0.4, 1.1),
        dose=float(np.exp(rng.uniform(np.log(40), np.log(500)))),
        jitter_px=rng.uniform(0.0, 0.25),
        streak=charging * rng.uniform(0.02, 0.1),
        halo=charging * rng.uniform(0.05, 0.25),
        black=rng.uniform(0.02, 0.3),
        white=rng.uniform(0.7, 0.98),
        gamma=rng.uniform(0.6, 1.2),
        lean=(rng.normal(0, 0.05), rng.normal(0, 0.05)),
    )
    if style != "site":
        return house
    return replace(
        house,
        backscattered=True,
        inverted=bool(rng.random() < 0.65),
        edge=rng.uniform(0.35, 0.55),
        shade=rng.uniform(0.0, 0.15),
        cavity=rng.uniform(0.35, 0.7),
        blur_px=rng.uniform(0.7, 1.4),
        dose=float(np.exp(rng.uniform(np.log(14), np.log(60)))),
        jitter_px=rng.uniform(0.1, 0.45),
        streak=charging * rng.uniform(0.06, 0.2),
        halo=charging * rng.uniform(0.1, 0.35),
    )


def box_blur(image: F32, radius: float) -> F32:
    """Blur twice with a running mean, a fast stand-in for a wide Gaussian."""
    width = max(1, 2 * round(radius) + 1)
    once = ndimage.uniform_filter(image, width, mode="nearest")
    return np.asarray(ndimage.uniform_filter(once, width, mode="nearest"), dtype=np.float32)


def blur(image: F32, sigma: float) -> F32:
    """Gaussian blur, cut at 2.5 sigma."""
    return np.asarray(ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=2.5), dtype=np.float32)


def emission(scene: Scene, optics: Optics) -> F32:
    """Electrons that leave the specimen and reach the detector, noise-free. [H, W]"""
    height = scene.height
    gy, gx = np.gradient(height)
    norm = np.sqrt(1.0 + gx * gx + gy * gy)
    edge = np.minimum(norm**optics.edge, EDGE_LIMIT) - 1.0
    glow = scene.glow * (INVERTED_GLOW if optics.inverted else 1.0)
    edge = 1.0 + glow * blur(edge.astype(np.float32), optics.escape_px)
    angle = np.deg2rad(optics.shade_deg)
    lit = 1.0 + optics.shade * (gx * np.cos(angle) + gy * np.sin(angle)) / norm
    depth = (height - box_blur(height, 4)) / 6.0 + (height - box_blur(height, 14)) / 20.0
    cavity = np.exp(np.clip(optics.cavity * depth, -1.6, 0.35))
    material = scene.material
    if optics.backscattered:
        material = 0.5 + (material - 0.5) * (-0.95 if optics.inverted else 1.25)
    escape = cavity if scene.shadow is None else cavity * scene.shadow
    return np.asarray(np.maximum(material, 0.03) * edge * lit * escape, dtype=np.float32)


def canvas_size(size: tuple[int, int], tilt_deg: float, *, relief: float = 0.0) -> tuple[int, int]:
    """Rows and columns of specimen that fill `size` once seen at `tilt_deg`.

    Structures up to `relief` [px] high that stand in front of the frame reach up into it, so that ground is drawn too.
    """
    if tilt_deg == 0:
        return size
    tilt = np.deg2rad(tilt_deg)
    return int(np.ceil((size[0] + relief * np.sin(tilt)) / np.cos(tilt))) + 2, size[1]


def project(scene: Scene, signal: F32, *, rows: int, wall_gain: float = 1.25) -> tuple[F32, Mask, I32 | None]:
    """Look at the specimen from the front at its tilt: y' = y cos t - h sin t, nearer ground hides farther. [rows, W]

    For each screen row the nearest specimen row whose projection lies above it is seen; where it falls between two rows
    that are far apart on the screen, the surface is a wall and its face is shown.
    """
    tilt = np.deg2rad(scene.tilt_deg)
    lines, columns = signal.shape
    screen = np.arange(lines, dtype=np.float32)[:, None] * np.cos(tilt) - scene.height * np.sin(tilt)
    horizon = np.minimum.accumulate(screen[::-1], axis=0)[::-1]
    bins = np.clip(np.ceil(horizon), 0, rows).astype(np.int64)
    hits = np.bincount((bins * columns + np.arange(columns)).ravel(), minlength=(rows + 1) * columns)
    seen = np.cumsum(hits.reshape(rows + 1, columns)[:rows], axis=0) - 1
    seen = np.clip(seen, 0, lines - 1)
    across = np.arange(columns)
    near = np.minimum(seen + 1, lines - 1)
    gap = screen[near, across] - screen[seen, across]
    wall = gap > 2.0
    down = np.clip((np.arange(rows)[:, None] - screen[seen, across]) / np.maximum(gap, 1e-3), 0, 1)
    picture = signal[seen, across]
    face = np.minimum(scene.material[seen, across] * wall_gain, 1.3) * (1.0 - 0.55 * down)
    picture = np.where(wall, face, picture).astype(np.float32)
    labels = None if scene.labels is None else scene.labels[seen, across]
    return picture, scene.feature[seen, across], labels


def _recursive(values: NDArray[np.floating[Any]], keep: float) -> F32:
    """Running sum along the last axis in which each step keeps a share of what came before."""
    return np.asarray(lfilter(np.array([1.0]), np.array([1.0, -keep]), values), dtype=np.float32)


def _charge(signal: F32, optics: Optics, rng: np.random.Generator) -> F32:
    """Charging: bright matter leaves a dark trail along the scan line and a halo around it; lines differ in offset."""
    if optics.streak <= 0 and optics.halo <= 0:
        return signal
    excess = np.maximum(signal - 0.55, 0.0)
    trail = _recursive(0.04 * excess, 0.96)
    halo = box_blur(excess, 18)
    offsets = _recursive(rng.standard_normal((signal.shape[0],)), 0.7)
    flashes = offsets * (np.abs(offsets) > 2.0) + 0.3 * offsets
    return np.asarray(
        signal - 2.5 * optics.streak * trail - optics.halo * halo + 0.18 * optics.streak * flashes[:, None],
        dtype=np.float32,
    )


def _jitter(signal: F32, amount_px: float, rng: np.random.Generator) -> F32:
    """Shift each scan line sideways by a little, correlated from line to line. [H, W]"""
    if amount_px <= 0:
        return signal
    shift = amount_px * 0.6 * _recursive(rng.standard_normal((signal.shape[0],)), 0.5)
    columns = np.arange(signal.shape[1], dtype=np.float32)
    source = np.clip(columns[None, :] + shift[:, None], 0, signal.shape[1] - 1.001)
    left = source.astype(np.int64)
    part = (source - left).astype(np.float32)
    first = np.take_along_axis(signal, left, axis=1)
    second = np.take_along_axis(signal, left + 1, axis=1)
    return np.asarray(first + part * (second - first), dtype=np.float32)


def normalise(signal: F32) -> F32:
    """Scale the signal so that its 0.5 and 99.5 percentiles are 0 and 1. [H, W]"""
    low, high = np.percentile(signal[::3, ::3], [0.5, 99.5])
    return np.asarray((signal - low) / max(float(high - low), 1e-6), dtype=np.float32)


def detect(signal: F32, optics: Optics, rng: np.random.Generator) -> F32:
    """Column and detector: charging, blur, jitter, gain and shot noise; result in 0..1. [H, W]"""
    y = np.linspace(-1, 1, signal.shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, signal.shape[1], dtype=np.float32)[None, :]
    signal = signal * (1 + np.float32(optics.lean[0]) * x + np.float32(optics.lean[1]) * y)
    signal = _charge(signal, optics, rng)
    signal = blur(_jitter(signal, optics.jitter_px, rng), optics.blur_px)
    signal = np.clip(signal, 0.0, 1.15) ** optics.gamma
    signal = optics.black + (optics.white - optics.black) * signal
    counts = rng.poisson(signal * optics.dose).astype(np.float32)
    return np.asarray(np.clip(counts / np.float32(optics.dose), 0.0, 1.0), dtype=np.float32)


def polarity(signal: F32, feature: Mask) -> str:
    """The word for how the feature stands against the rest in the noise-free picture."""
    share = float(feature.mean())
    if not 0.0 < share < 1.0:
        return "even"
    difference = float(signal[feature].mean()) - float(signal[~feature].mean())
    if abs(difference) < EVEN_CONTRAST:
        return "even"
    return "bright on dark" if difference > 0 else "dark on bright"

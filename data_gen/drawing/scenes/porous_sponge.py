"""Porous sponges: foams of round or polygonal pores and bicontinuous networks. Knows nothing about optics."""

from __future__ import annotations

import numpy as np

from assistant.arrays import F32
from data_gen.drawing.scenes.geometry import (
    Rng,
    band,
    cells,
    drawn_pixel_size,
    fractal,
    log_uniform,
    pick,
    scratch,
    whole_cells,
)
from data_gen.drawing.scenes.imaging import DrawnObjects, Scene, Words, blur


def _carve(
    view: Rng, height: F32, labels: np.ndarray, objects: DrawnObjects, *, radius: float, depth: float
) -> None:  # fmt: skip
    """Remove one spherical void whose centre lies `depth` [px] above (positive) or below the surface."""
    size = height.shape
    cy, cx = view.uniform(-radius, size[0] + radius), view.uniform(-radius, size[1] + radius)
    y0, y1 = max(int(cy - radius), 0), min(int(cy + radius) + 2, size[0])
    x0, x1 = max(int(cx - radius), 0), min(int(cx + radius) + 2, size[1])
    if y0 >= y1 or x0 >= x1:
        return
    y, x = np.ogrid[y0:y1, x0:x1]
    inner = radius**2 - (y - cy) ** 2 - (x - cx) ** 2
    floor = depth - np.sqrt(np.maximum(inner, 0))
    here = np.s_[y0:y1, x0:x1]
    cut = (inner > 0) & (floor < height[here]) & (depth > -radius)
    open_above = cut & (height[here] < depth + np.sqrt(np.maximum(inner, 0)))
    rim = float(np.sqrt(max(radius**2 - depth**2, 1.0)))
    label = objects.add(cx, cy, area=np.pi * rim**2)
    height[here][open_above] = floor[open_above]
    labels[here][open_above] = label


def _foam(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Round pores cut open by the surface, with windows into deeper pores."""
    scale = max(size[1] / 640, 0.35)
    nm_per_pixel = drawn_pixel_size(sample, 20.0, 1500.0, width=size[1])
    mean = log_uniform(sample, 16, 42) * scale
    broad = sample.random() < 0.5
    spread = 0.4 if broad else 0.08
    fill = sample.uniform(1.3, 2.4)
    height = 0.3 * fractal(view, size, beta=1.2, longest=30)
    labels, objects = np.zeros(size, np.int32), DrawnObjects()
    for layer in (0, 1):
        number = int(fill * (1.0 - 0.35 * layer) * size[0] * size[1] / (np.pi * mean**2 * np.exp(2 * spread**2)))
        for _ in range(number):
            radius = float(np.clip(mean * np.exp(spread * view.standard_normal()), 4, 2.6 * mean)) * (1 - 0.4 * layer)
            depth = view.uniform(-0.45, 0.5) * radius - layer * view.uniform(0.7, 1.3) * mean
            _carve(view, height, labels, objects, radius=radius, depth=depth)
    feature = height < -0.12 * mean
    labels = np.where(feature, labels, 0).astype(np.int32)
    return _finish(
        sample, view, height, feature, nm_per_pixel, mean, shape="rounded", arrangement="random", broad=broad,
        touching="fused", labels=labels, objects=objects, fade=1.1 * mean,
    )  # fmt: skip


def _cellular(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Honeycomb-like freeze-dried foam: thin walls around polygonal pores."""
    scale = max(size[1] / 640, 0.35)
    nm_per_pixel = drawn_pixel_size(sample, 50.0, 1500.0, width=size[1])
    pitch = log_uniform(sample, 34, 90) * scale
    wall = sample.uniform(0.025, 0.07) * pitch + 0.8
    broad = sample.random() < 0.5
    tiles, labels, objects = whole_cells(
        view,
        size,
        pitch=pitch,
        disorder=0.98 if broad else 0.6,
        warp=0.06 * pitch,
        inside=lambda t: (t.second - t.first) / 2 >= wall,
    )
    gap = (tiles.second - tiles.first) / 2
    floor = view.uniform(0.35, 1.0, tiles.count).astype(np.float32)[tiles.number] * pitch
    height = np.where(gap < wall, 0.0, -np.minimum((gap - wall) * 6.0, floor))
    deep = cells(view, size, pitch=0.55 * pitch, disorder=0.8)
    strut = (deep.second - deep.first) < 0.12 * pitch
    height = np.where((height < -0.3 * pitch) & ~strut, height - 0.5 * pitch, height)
    height = height + 0.5 * (1 - np.clip(gap / wall, 0, 1)) * wall
    feature = gap >= wall
    return _finish(
        sample, view, height.astype(np.float32), feature, nm_per_pixel, pitch / 2, shape="polygonal",
        arrangement="network", broad=broad, touching="touching", labels=labels, objects=objects, fade=0.7 * pitch,
    )  # fmt: skip


def _bicontinuous(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Dealloyed or phase-separated network: ligaments and channels of one length."""
    scale = max(size[1] / 640, 0.35)
    nm_per_pixel = drawn_pixel_size(sample, 1.5, 60.0, width=size[1])
    wavelength = log_uniform(sample, 22, 60) * scale
    level = sample.uniform(-0.25, 0.35)
    field = band(view, size, wavelength=wavelength, width=0.22) + 0.25 * band(view, size, wavelength=wavelength * 2)
    below = band(view, size, wavelength=wavelength * 0.9, width=0.22)
    ligament = np.maximum(field - level, 0.0)
    top = 0.32 * wavelength * np.minimum(np.sqrt(ligament), 1.1)
    under = 0.3 * wavelength * np.sqrt(np.maximum(below, 0)) - 0.75 * wavelength
    feature = field <= level
    height = np.where(feature, under, top)
    return _finish(
        sample, view, height.astype(np.float32), feature, nm_per_pixel, wavelength / 3, shape="irregular",
        arrangement="network", broad=False, touching="fused", labels=None, objects=DrawnObjects(),
        fade=0.5 * wavelength, numbers={"period": wavelength * nm_per_pixel},
    )  # fmt: skip


def _finish(
    sample: Rng, view: Rng, height: F32, feature: np.ndarray, nm_per_pixel: float, mean: float, *, shape: str,
    arrangement: str, broad: bool, touching: str, labels: np.ndarray | None, objects: DrawnObjects, fade: float,
    numbers: dict[str, float] | None = None,
) -> Scene:  # fmt: skip
    """Roughen the walls, darken with depth, add defects, and name everything."""
    rough = sample.random() < 0.4
    tone = sample.uniform(0.5, 0.75)
    defects: list[str] = []
    size = (height.shape[0], height.shape[1])
    if view.random() < 0.15:
        groove = scratch(view, size, width=0.25 * mean)
        height = height - 1.6 * mean * groove * (height > -0.2 * mean)
        feature = feature | (groove > 0.6)
        defects.append("crack")
    if rough:
        height = height + 0.09 * mean * fractal(view, size, beta=0.7, longest=mean * 0.5)
    shadow = np.exp(np.clip(height, -4 * fade, 0) / fade)
    words: Words = {
        "shape": shape, "surface": "rough" if rough else "smooth", "arrangement": arrangement,
        "distribution": "broad" if broad else "uniform", "touching": touching, "defects": defects,
    }  # fmt: skip
    return Scene(
        blur(height.astype(np.float32), 0.6), np.full(size, tone, np.float32), feature, nm_per_pixel,
        words, numbers=numbers or {}, labels=None if labels is None else labels.astype(np.int32), objects=objects,
        area_fact="porosity", shadow=np.maximum(shadow, 0.05).astype(np.float32),
    )  # fmt: skip


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view of a sponge."""
    kind = {"rounded": _foam, "polygonal": _cellular, "irregular": _bicontinuous}
    return kind[pick(sample, "rounded", "polygonal", "irregular")](sample, view, size)

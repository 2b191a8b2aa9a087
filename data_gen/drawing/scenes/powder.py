"""Powder: a bed of grains that fills the frame, piled over one another. Knows nothing about optics."""

from __future__ import annotations

from functools import partial

import numpy as np

from data_gen.drawing.scenes.geometry import (
    Bank,
    Rng,
    Sheet,
    Stamp,
    drawn_pixel_size,
    ellipsoid,
    flake,
    fractal,
    log_uniform,
    pick,
    polyhedron,
    shard,
)
from data_gen.drawing.scenes.imaging import Scene, blur

COVER = 2.8
"""how many times over the grains would cover the frame if they did not overlap"""
GAP_PERCENTILE = 12


def _grain(rng: Rng, radius: float, *, shape: str) -> Stamp:
    if shape == "spherical":
        return ellipsoid(radius, aspect=rng.uniform(1.0, 1.15), angle=rng.uniform(0, 180), lift=0.8)
    if shape == "faceted":
        return polyhedron(rng, radius)
    if shape == "flake-like":
        return flake(rng, radius * 1.25)
    return shard(rng, radius)


def _pile(
    view: Rng, sheet: Sheet, bank: Bank, *, mean: float, spread: float, material: float, satellites: bool
) -> None:
    """Drop grains one after another; each comes to rest partly sunk among those below it."""
    rows, columns = sheet.shape
    count = int(COVER * rows * columns / (np.pi * mean**2 * np.exp(1.2 * spread**2)))
    radii = np.clip(mean * np.exp(spread * view.standard_normal((count,))), 0.35 * mean, 2.4 * mean)
    for k, radius in enumerate(radii.tolist()):
        x, y = view.uniform(-radius, columns + radius), view.uniform(-radius, rows + radius)
        base = max(sheet.base_at(x, y) - 0.75 * radius, 0.0) + 0.3 * mean * k / count
        grain = sheet.place(bank.take(view, radius), x, y, material=material * view.uniform(0.85, 1.12), base=base)
        if satellites and view.random() < 0.4:
            way, small = view.uniform(0, 6.28), radius * view.uniform(0.18, 0.3)
            sx, sy = x + 0.75 * radius * np.cos(way), y + 0.75 * radius * np.sin(way)
            sheet.place(ellipsoid(small), sx, sy, material=material, base=base + 1.2 * radius, label=grain)


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view of a powder bed."""
    nm_per_pixel = drawn_pixel_size(sample, 20.0, 1500.0, width=size[1])
    shape = pick(sample, "spherical", "faceted", "irregular", "irregular", "flake-like")
    broad = sample.random() < 0.65
    mean = log_uniform(sample, 15, 38) * max(size[1] / 640, 0.35)
    rough = shape in ("irregular", "spherical") and sample.random() < 0.55
    fused = shape in ("irregular", "spherical") and sample.random() < 0.3
    satellites = shape == "spherical" and sample.random() < 0.6
    material = sample.uniform(0.45, 0.8)
    spread = sample.uniform(0.35, 0.5) if broad else 0.07

    sheet = Sheet(size, material=0.12)
    bank = Bank(partial(_grain, shape=shape))
    _pile(view, sheet, bank, mean=mean, spread=spread, material=material, satellites=satellites)
    height = sheet.height
    if fused:  # sintering fills the necks between grains and rounds their edges
        height = blur(np.maximum(height, blur(height, 0.14 * mean)), min(0.05 * mean, 1.5))
    if rough:
        height = height + np.float32(0.045 * mean) * fractal(view, size, beta=0.8, longest=mean * 0.7)
    depth = np.clip(height / np.percentile(height[::4, ::4], 90), 0.0, 1.1)
    gaps = height < np.percentile(height[::4, ::4], GAP_PERCENTILE)
    words: dict[str, str | list[str]] = {
        "shape": shape,
        "surface": "rough" if rough else "smooth",
        "arrangement": "random",
        "distribution": "broad" if broad else "uniform",
        "touching": "fused" if fused else "overlapping",
        "defects": ["satellite"] if satellites else [],
    }
    return Scene(
        height,
        sheet.material,
        (sheet.labels > 0) & ~gaps,
        nm_per_pixel,
        words,
        labels=sheet.labels,
        objects=sheet.objects,
        shadow=(0.3 + 0.7 * depth).astype(np.float32),
    )

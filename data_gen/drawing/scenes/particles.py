"""Particles: separate or clustered bodies lying on a flat support. Knows nothing about optics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from assistant.arrays import F32
from data_gen.drawing.scenes.geometry import (
    Rng,
    Sheet,
    Stamp,
    capsule,
    drawn_pixel_size,
    ellipsoid,
    fractal,
    hard_core,
    log_uniform,
    lump,
    pick,
    polyhedron,
    scratch,
    spot,
)
from data_gen.drawing.scenes.imaging import Scene

ParticlePlace = tuple[float, float, float]
_CLEAR = {"spherical": 1.12, "faceted": 1.3, "rod-like": 2.25, "irregular": 1.45}
"""distance of centres, in sums of radii, at which two bodies of a shape cannot touch"""
TOUCHING_GAP = 1.05


@dataclass(frozen=True)
class ParticleSpecimen:
    """What is the same in all fields of view of one particle sample; lengths in pixels."""

    nm_per_pixel: float
    shape: str
    arrangement: str
    broad: bool
    rough: bool
    mean: float
    cover: float
    gap: float
    """distance of neighbours on a lattice, in diameters"""
    body: float
    support: float
    grain: float


def _specimen(sample: Rng, size: tuple[int, int]) -> ParticleSpecimen:
    scale = max(size[1] / 640, 0.35)
    shape = pick(sample, "spherical", "faceted", "rod-like", "irregular")
    arrangement = pick(sample, "random", "random", "clustered", "isolated")
    if shape == "spherical" and sample.random() < 0.4:
        arrangement = "periodic"
    mean = log_uniform(sample, 32, 64) if arrangement == "isolated" else log_uniform(sample, 10, 30)
    light, dark = sample.uniform(0.55, 0.9), sample.uniform(0.12, 0.34)
    heavy_support = sample.random() < 0.3
    return ParticleSpecimen(
        nm_per_pixel=drawn_pixel_size(sample, 0.5, 20.0, width=size[1]),
        shape=shape,
        arrangement=arrangement,
        broad=arrangement in ("random", "clustered") and sample.random() < 0.5,
        rough=shape != "faceted" and sample.random() < 0.45,
        mean=mean * scale,
        cover=sample.uniform(0.1, 0.38),
        gap=1.0 if sample.random() < 0.5 else sample.uniform(1.15, 1.4),
        body=dark * 0.7 if heavy_support else light,
        support=light if heavy_support else dark,
        grain=sample.uniform(0.0, 1.2),
    )


def body(rng: Rng, shape: str, radius: float) -> Stamp:
    """One body of the named shape whose circle of equal area has about `radius` [px]."""
    if shape == "spherical":
        return ellipsoid(radius, aspect=rng.uniform(1.0, 1.08), angle=rng.uniform(0, 180))
    if shape == "faceted":
        return polyhedron(rng, radius)
    if shape == "rod-like":
        return capsule(radius * 3.4, radius * 0.55, angle=rng.uniform(0, 180))
    return lump(rng, radius, rough=0.3)


def _radii(rng: Rng, count: int, it: ParticleSpecimen) -> F32:
    spread = 0.38 if it.broad else 0.05
    return np.maximum(it.mean * np.exp(spread * rng.standard_normal((count,))), 3.0).astype(np.float32)


def _clusters(rng: Rng, size: tuple[int, int], radii: F32) -> list[ParticlePlace]:
    """Grow clusters: each body is laid against one that is already there, without overlap where possible."""
    placed: list[ParticlePlace] = []
    members: list[ParticlePlace] = []
    left = 0
    for radius in radii.tolist():
        if left == 0:
            left = int(rng.integers(4, 16))
            members = [(rng.uniform(0, size[1]), rng.uniform(0, size[0]), radius)]
            placed.append(members[0])
        for _ in range(30):
            x, y, other = members[int(rng.integers(len(members)))]
            way, reach = rng.uniform(0, 2 * np.pi), (radius + other) * 0.97
            new = (x + reach * np.cos(way), y + reach * np.sin(way), radius)
            if all(np.hypot(new[0] - a, new[1] - b) > 0.93 * (radius + c) for a, b, c in placed):
                members.append(new)
                placed.append(new)
                break
        left -= 1
    return placed


def _places(view: Rng, size: tuple[int, int], it: ParticleSpecimen) -> tuple[list[ParticlePlace], list[str]]:
    """Where the bodies of one field of view lie [px], and the defects of that arrangement."""
    if it.arrangement == "periodic":
        empty = 0.04 if view.random() < 0.5 else 0.0
        turn, step = view.uniform(0, np.pi / 3), 2 * it.mean * it.gap
        n = int(np.hypot(*size) / step) + 2
        i, j = np.mgrid[-n:n, -n:n]
        u, v = step * (i + 0.5 * (j % 2)).ravel(), step * (np.sqrt(0.75) * j).ravel()
        x = size[1] / 2 + u * np.cos(turn) - v * np.sin(turn) + view.normal(0, 0.015 * step, u.shape)
        y = size[0] / 2 + u * np.sin(turn) + v * np.cos(turn) + view.normal(0, 0.015 * step, u.shape)
        keep = (x > -it.mean) & (x < size[1] + it.mean) & (y > -it.mean) & (y < size[0] + it.mean)
        keep &= view.random(u.shape) >= empty
        lattice = [(float(a), float(b), it.mean) for a, b in zip(x[keep], y[keep], strict=True)]
        return lattice, ["vacancy"] if empty else []
    if it.arrangement == "isolated":
        inner = (int(size[0] - 2 * it.mean), int(size[1] - 2 * it.mean))
        few = hard_core(
            view, inner, _radii(view, int(view.integers(2, 6)), it), gap=_CLEAR[it.shape], tries=60, border=0.0
        )
        return [(x + it.mean, y + it.mean, r) for x, y, r in few], []
    area = np.pi * it.mean**2 * (1.3 if it.broad else 1.0)
    radii = _radii(view, int(it.cover * size[0] * size[1] / area) + 4, it)
    if it.arrangement == "clustered":
        return _clusters(view, size, radii), []
    return hard_core(view, size, radii, gap=_CLEAR[it.shape]), []


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view of a particle sample."""
    it = _specimen(sample, size)
    sheet = Sheet(size, material=it.support)
    places, defects = _places(view, size, it)
    for x, y, radius in places:
        sheet.place(body(view, it.shape, radius), x, y, material=it.body * view.uniform(0.93, 1.07))
    if it.arrangement == "random" and view.random() < 0.2:
        cx, cy = view.uniform(0.25, 0.75) * sheet.shape[1], view.uniform(0.25, 0.75) * sheet.shape[0]
        for _ in range(int(view.integers(14, 26))):
            x, y = view.normal(cx, 1.6 * it.mean), view.normal(cy, 1.6 * it.mean)
            heaped = body(view, it.shape, it.mean * view.uniform(0.8, 1.1))
            sheet.place(heaped, x, y, material=it.body, base=0.7 * sheet.base_at(x, y))
        defects.append("agglomerate")
    feature = sheet.labels > 0
    if view.random() < 0.15:
        sheet.material *= 1 - 0.45 * spot(view, size, radius=0.16 * size[1])
        defects.append("contamination")
    if view.random() < 0.15:
        sheet.height -= np.where(feature, 0, 9 * scratch(view, size, width=2.6)).astype(np.float32)
        defects.append("scratch")
    bumps = fractal(view, size, beta=0.9, longest=it.mean * 0.8)
    sheet.height += np.where(feature, bumps * (0.075 * it.mean * it.rough), bumps * 0.25 * it.grain).astype(np.float32)
    touching = it.arrangement == "clustered" or (it.arrangement == "periodic" and it.gap < TOUCHING_GAP)
    words: dict[str, str | list[str]] = {
        "shape": it.shape,
        "surface": "rough" if it.rough else "smooth",
        "arrangement": it.arrangement,
        "distribution": "broad" if it.broad else "uniform",
        "touching": "touching" if touching else "separate",
        "defects": defects,
    }
    numbers = {"period": 2 * it.mean * it.gap * np.sqrt(0.75) * it.nm_per_pixel} if it.arrangement == "periodic" else {}
    return Scene(
        sheet.height,
        sheet.material,
        feature,
        it.nm_per_pixel,
        words,
        numbers=numbers,
        labels=sheet.labels,
        objects=sheet.objects,
    )

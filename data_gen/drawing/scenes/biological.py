"""Biological specimens: bacteria on a filter, red blood cells, pollen and diatoms. Knows nothing about optics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from assistant.arrays import F32
from data_gen.drawing.scenes.geometry import (
    Rng,
    Sheet,
    Stamp,
    band,
    capsule,
    drawn_pixel_size,
    ellipsoid,
    fractal,
    grid,
    hard_core,
    log_uniform,
    pick,
)  # fmt: skip
from data_gen.drawing.scenes.imaging import Scene, Words, blur


def red_cell(rng: Rng, radius: float, *, collapsed: bool) -> Stamp:
    """Biconcave disc, or a shrunken one with a scalloped rim (an echinocyte)."""
    y, x = grid(radius * 1.2)
    squeeze = rng.uniform(0.72, 1.0)
    way = rng.uniform(0, 180)
    a = np.deg2rad(way)
    u, v = x * np.cos(a) - y * np.sin(a), (x * np.sin(a) + y * np.cos(a)) / squeeze
    theta = np.arctan2(v, u)
    rim = radius * (1 + (0.09 * np.cos(9 * theta + rng.uniform(0, 6)) if collapsed else 0.0 * theta))
    q = np.hypot(u, v) / rim
    profile = np.sqrt(np.maximum(1 - q**2, 0)) * (0.12 + 2.0 * q**2 - 1.12 * q**4)
    z = radius * (0.1 + 0.95 * profile)
    if collapsed:
        z = z + 0.1 * radius * np.cos(7 * theta) * np.sin(4 * q) * (q < 1)
    return Stamp(z.astype(np.float32), q < 1, 1 / squeeze)


def pollen(rng: Rng, radius: float) -> Stamp:
    """Sphere with spines set on a golden spiral, each a small cone along the local normal."""
    y, x = grid(radius * 1.3)
    inner = radius**2 - x**2 - y**2
    z = np.where(inner > 0, radius + np.sqrt(np.maximum(inner, 0)), 0.0)
    inside = inner > 0
    count = int(rng.integers(90, 190))
    k = np.arange(count)
    up = 1 - 2 * (k + 0.5) / count
    around = k * 2.39996 + rng.uniform(0, 6)
    foot, length = radius * 0.095, radius * rng.uniform(0.13, 0.22)
    for nz, a in zip(up.tolist(), around.tolist(), strict=True):
        if nz < -0.25:
            continue
        nr = np.sqrt(1 - nz * nz)
        for step in np.linspace(0.0, 1.0, 5):
            reach, width = radius + length * step, foot * (1 - 0.85 * step)
            cx, cy, cz = reach * nr * np.cos(a), reach * nr * np.sin(a), reach * nz
            r0, c0 = round(cy) + len(y) // 2, round(cx) + len(y) // 2
            w = int(width) + 1
            win = np.s_[max(r0 - w, 0) : r0 + w + 1, max(c0 - w, 0) : c0 + w + 1]
            gap = width**2 - (x[:, win[1]] - cx) ** 2 - (y[win[0], :] - cy) ** 2
            knob = radius + cz + np.sqrt(np.maximum(gap, 0))
            over = (gap > 0) & (knob > z[win])
            z[win][over] = knob[over]
            inside[win] |= gap > 0
    return Stamp(z.astype(np.float32), inside)


def diatom(rng: Rng, radius: float) -> Stamp:
    """Centric diatom: a shallow disc with a raised rim and rows of pores in rings and spokes."""
    y, x = grid(radius * 1.02)
    q, theta = np.hypot(x, y) / radius, np.arctan2(y, x)
    rings = max(5, int(radius / rng.uniform(5.5, 9.5)))
    per_ring = np.maximum(6, np.round(5.6 * np.ceil(q * rings)))
    holes = np.maximum(np.cos(per_ring * theta), 0) * np.maximum(-np.cos(2 * np.pi * rings * q), 0)
    pores = (holes > 0.22) & (q < 0.88) & (q > 0.1)
    z = radius * (0.16 + 0.1 * np.exp(-(((q - 0.94) / 0.05) ** 2)) + 0.06 * q**2)
    z = np.where(pores, z - 0.09 * radius, z)
    return Stamp(np.maximum(z, 0.2).astype(np.float32), q < 1)


def bacterium(rng: Rng, shape: str, radius: float, *, pair: bool) -> list[tuple[Stamp, float, float]]:
    """One cell, or two that have just divided, as stamps with offsets [px]."""
    angle = rng.uniform(0, 180)
    c, s = np.cos(np.deg2rad(angle)), -np.sin(np.deg2rad(angle))
    if shape == "rod-like":
        length = radius * rng.uniform(3.0, 5.0)
        rod = capsule(length, radius, angle=angle, bend=rng.normal(0, 0.25 * radius))
        if not pair:
            return [(rod, 0.0, 0.0)]
        half = (length + 2 * radius) / 2
        return [(rod, 0.0, 0.0), (rod, 2 * half * c, 2 * half * s)]
    ball = ellipsoid(radius, aspect=rng.uniform(1.0, 1.12), angle=angle)
    if not pair:
        return [(ball, 0.0, 0.0)]
    return [(ball, 0.0, 0.0), (ball, 1.8 * radius * c, 1.8 * radius * s)]


def _filter(rng: Rng, sheet: Sheet, *, radius: float, count: int) -> None:
    """Track-etched membrane: round pores strewn over a flat support."""
    y, x = np.ogrid[: sheet.shape[0], : sheet.shape[1]]
    for _ in range(count):
        cy, cx = rng.uniform(0, sheet.shape[0]), rng.uniform(0, sheet.shape[1])
        hole = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        sheet.height[hole] = -2.0 * radius
        sheet.material[hole] = 0.03


def _colony(sample: Rng, view: Rng, size: tuple[int, int], *, shape: str) -> tuple[Sheet, float, Words]:
    """Bacteria, rods or cocci, on a membrane."""
    scale = max(size[1] / 640, 0.35)
    nm_per_pixel = drawn_pixel_size(sample, 14.0, 60.0, width=size[1])
    radius = log_uniform(sample, 9, 20) * scale * (1.35 if shape == "spherical" else 1.0)
    clustered = sample.random() < 0.5
    dividing = 0.4 if sample.random() < 0.5 else 0.0
    membrane = sample.random() < 0.6
    material = sample.uniform(0.5, 0.75)
    wrinkled = sample.random() < 0.35
    support = sample.uniform(0.18, 0.32)
    if not membrane and sample.random() < 0.4:  # uncoated cells on a metal foil
        material, support = 0.45 * material, 2.2 * support
    sheet = Sheet(size, material=support)
    if membrane:
        _filter(view, sheet, radius=radius * 0.9, count=int(view.integers(6, 18)))
    number = int(view.integers(14, 40))
    paired = False
    cx, cy = view.uniform(0.3, 0.7) * size[1], view.uniform(0.3, 0.7) * size[0]
    if clustered:
        where = [(view.normal(cx, 5.5 * radius), view.normal(cy, 4.0 * radius)) for _ in range(number)]
    else:
        reach = (3.8 if shape == "rod-like" else 1.15) * (1.5 if dividing else 1.0)
        radii = np.full(number, radius * reach, np.float32)
        where = [(x, y) for x, y, _ in hard_core(view, size, radii, gap=1.02)]
    for x, y in where:
        base = 0.55 * max(sheet.base_at(x, y), 0.0) if clustered else 0.0
        pair = view.random() < dividing
        paired |= pair
        for stamp, dx, dy in bacterium(view, shape, radius * view.uniform(0.9, 1.1), pair=pair):
            sheet.place(stamp, x + dx, y + dy, material=material * view.uniform(0.9, 1.1), base=base)
    skin = (
        band(view, size, wavelength=max(0.7 * radius, 4)) if wrinkled else fractal(view, size, beta=1.0, longest=radius)
    )
    amount = 0.07 * radius if wrinkled else 0.15
    sheet.height += np.where(sheet.labels > 0, amount * skin, 0.2 * skin).astype(np.float32)
    words: Words = {
        "shape": shape, "surface": "wrinkled" if wrinkled else "smooth",
        "arrangement": "clustered" if clustered else "random", "distribution": "uniform",
        "touching": "overlapping" if clustered else "touching" if paired else "separate", "defects": [],
    }  # fmt: skip
    return sheet, nm_per_pixel, words


def _blood(sample: Rng, view: Rng, size: tuple[int, int]) -> tuple[Sheet, float, Words]:
    """Red blood cells, some of them collapsed, lying over one another or apart."""
    scale = max(size[1] / 640, 0.35)
    radius = log_uniform(sample, 30, 62) * scale
    nm_per_pixel = drawn_pixel_size(sample, 0.96 * 3600 / radius, 1.04 * 3600 / radius, width=size[1])
    crowded = sample.random() < 0.6
    sick = sample.random() < 0.4
    material = sample.uniform(0.5, 0.7)
    sheet = Sheet(size, material=sample.uniform(0.15, 0.28))
    number = int(size[0] * size[1] * (0.75 if crowded else 0.34) / (np.pi * radius**2))
    if crowded:
        where = [(view.uniform(0, size[1]), view.uniform(0, size[0])) for _ in range(number)]
    else:
        where = [(x, y) for x, y, _ in hard_core(view, size, np.full(number, radius, np.float32), gap=1.03)]
    collapsed_any = False
    for x, y in where:
        collapsed = sick and view.random() < 0.25
        collapsed_any |= collapsed
        stamp = red_cell(view, radius * view.uniform(0.92, 1.06), collapsed=collapsed)
        sheet.place(stamp, x, y, material=material * view.uniform(0.93, 1.07), base=0.8 * sheet.base_at(x, y))
    sheet.height += 0.15 * fractal(view, size, beta=1.2, longest=20)
    words: Words = {
        "shape": "biconcave", "surface": "smooth", "arrangement": "clustered" if crowded else "random",
        "distribution": "uniform", "touching": "overlapping" if crowded else "separate",
        "defects": ["collapsed cell"] if collapsed_any else [],
    }  # fmt: skip
    return sheet, nm_per_pixel, words


def _large(
    sample: Rng, view: Rng, size: tuple[int, int], *, shape: str, make: Callable[[Rng, float], Stamp]
) -> tuple[Sheet, float, Words]:  # fmt: skip
    """A few pollen grains or diatoms, large in the frame."""
    scale = max(size[1] / 640, 0.2)
    radius = log_uniform(sample, 55, 125) * scale
    nm = 15000 if shape == "spiny" else 12000
    nm_per_pixel = drawn_pixel_size(sample, 0.7 * nm / radius, 1.4 * nm / radius, width=size[1])
    material = sample.uniform(0.45, 0.7)
    dirty = view.random() < 0.35
    sheet = Sheet(size, material=sample.uniform(0.12, 0.25))
    number = max(1, int(view.uniform(0.15, 0.5) * size[0] * size[1] / (np.pi * radius**2)))
    radii = (radius * view.uniform(0.88, 1.08, number)).astype(np.float32)
    places = hard_core(view, size, radii, gap=1.22 if shape == "spiny" else 1.05, tries=60, border=-0.4)
    for x, y, r in places or [(size[1] * 0.5, size[0] * 0.5, radius)]:
        sheet.place(make(view, r), x, y, material=material * view.uniform(0.93, 1.07))
    if dirty:
        debris(view, sheet, radius=4 * max(scale, 0.4))
    grain = fractal(view, size, beta=1.1, longest=12)
    sheet.height += np.where(sheet.labels > 0, 0.25, 0.5) * grain
    few = len(places) <= 3
    words: Words = {
        "shape": shape, "surface": "spiny" if shape == "spiny" else "porous",
        "arrangement": "isolated" if few else "random", "distribution": "uniform", "touching": "separate",
        "defects": ["debris"] if dirty else [],
    }  # fmt: skip
    return sheet, nm_per_pixel, words


def debris(rng: Rng, sheet: Sheet, *, radius: float) -> None:
    """Strew small bright crumbs that belong to no object."""
    for _ in range(int(rng.integers(8, 20))):
        x, y = rng.uniform(0, sheet.shape[1]), rng.uniform(0, sheet.shape[0])
        stamp = ellipsoid(radius * rng.uniform(0.6, 1.6), aspect=rng.uniform(1, 1.8), angle=rng.uniform(0, 180))
        sheet.place(stamp, x, y, material=0.9, base=max(sheet.base_at(x, y), 0.0), label=0)


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view of a biological specimen."""
    shape = pick(sample, "rod-like", "rod-like", "spherical", "biconcave", "spiny", "disc-like")
    if shape in ("rod-like", "spherical"):
        sheet, nm_per_pixel, words = _colony(sample, view, size, shape=shape)
    elif shape == "biconcave":
        sheet, nm_per_pixel, words = _blood(sample, view, size)
    elif shape == "spiny":
        sheet, nm_per_pixel, words = _large(sample, view, size, shape=shape, make=pollen)
    else:
        sheet, nm_per_pixel, words = _large(sample, view, size, shape=shape, make=diatom)
    height: F32 = blur(sheet.height, 0.5)
    return Scene(
        height, sheet.material, sheet.labels > 0, nm_per_pixel, words,
        labels=sheet.labels, objects=sheet.objects,
    )  # fmt: skip

"""Tips: sharpened needles, cones and pyramids on cantilevers, and emitter arrays. Knows nothing about optics."""

from __future__ import annotations

import numpy as np

from assistant.arrays import F32
from data_gen.drawing.scenes.geometry import Rng, Sheet, drawn_pixel_size, fractal, log_uniform, lump, pick
from data_gen.drawing.scenes.imaging import DrawnObjects, Scene, Words, canvas_size


def _axis_frame(size: tuple[int, int], x: float, y: float, angle: float) -> tuple[F32, F32]:
    """Distance behind an apex at (x, y) that points to `angle` [deg, counter-clockwise], and offset from the axis."""
    row, column = np.mgrid[: size[0], : size[1]].astype(np.float32)
    dx, dy = column - x, row - y
    c, s = np.float32(np.cos(np.deg2rad(angle))), np.float32(np.sin(np.deg2rad(angle)))
    return -(dx * c - dy * s), dx * s + dy * c


def _words(shape: str, surface: str, *, arrangement: str, defects: list[str]) -> Words:
    return {
        "shape": shape, "surface": surface, "arrangement": arrangement, "distribution": "uniform",
        "touching": "separate", "defects": defects,
    }  # fmt: skip


def _apex_defect(view: Rng) -> str:
    return pick(view, "blunt apex", "bent apex", "debris") if view.random() < 0.4 else ""


def _needle(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """An etched wire seen from the side: a hyperboloid apex that opens into the shank, before a dark background."""
    nm_per_pixel = drawn_pixel_size(sample, 8.0, 400.0, width=size[1])
    half_angle = np.deg2rad(sample.uniform(3.5, 11))
    apex = log_uniform(sample, 1.5, 6.0) * max(size[1] / 640, 0.4)
    shank = sample.uniform(0.16, 0.32) * size[0]
    heading = float(pick(sample, "90", "90", "0", "180", "270")) + sample.normal(0, 6)
    surface = pick(sample, "smooth", "rough", "striated")
    tone, back = sample.uniform(0.5, 0.75), sample.uniform(0.03, 0.14)
    cloud = 0.35
    if sample.random() < 0.25:
        tone, back, cloud = 0.5 * tone, 1.2 * tone, 0.05
    defect = _apex_defect(view)
    radius = apex * (4.0 if defect == "blunt apex" else 1.0)
    way = np.deg2rad(heading)
    x = size[1] * (0.5 + 0.3 * np.cos(way)) + view.normal(0, 0.04) * size[1]
    y = size[0] * (0.5 - 0.32 * np.sin(way)) + view.normal(0, 0.04) * size[0]
    behind, offset = _axis_frame(size, x, y, heading)
    if defect == "bent apex":
        reach = 0.2 * size[0]
        offset = offset - 0.22 * reach * np.clip(1 - behind / reach, 0, None) ** 2
    start = radius / np.tan(half_angle) ** 2
    width = np.tan(half_angle) * np.sqrt(np.maximum((behind + start) ** 2 - start**2, 0.0))
    width = shank * np.tanh(width / shank)
    inner = width**2 - offset**2
    feature = (inner > 0) & (behind > 0)
    height = np.where(feature, np.sqrt(np.maximum(inner, 0)), 0.0)
    height = height + np.where(feature, 10.0, 0.0)
    height += _texture(view, size, surface, offset, behind, width) * feature
    material = np.where(feature, tone, back * (1 + cloud * fractal(view, size, beta=2.0, longest=300)))
    sheet = Sheet(size, material=material.astype(np.float32))
    sheet.height = height.astype(np.float32)
    defects = [defect] if defect else []
    if defect == "debris":
        _crumbs(view, sheet, x, y, way=way)
    labels = feature.astype(np.int32)
    objects = DrawnObjects()
    objects.add(x, y, area=float(feature.sum()))
    numbers = {
        "tip_radius": radius * nm_per_pixel, "cone_angle": float(np.rad2deg(2 * half_angle)),
        "orientation": heading % 180, "count": 1.0,
    }  # fmt: skip
    return Scene(
        sheet.height, sheet.material, feature, nm_per_pixel,
        _words("needle-like", surface, arrangement="isolated", defects=defects), numbers=numbers, labels=labels,
        objects=objects, count_objects=False, projected=True,
    )  # fmt: skip


def _texture(view: Rng, size: tuple[int, int], surface: str, offset: F32, behind: F32, width: F32) -> F32:
    """Relief on the shank: etch roughness, or grooves along the drawn wire."""
    if surface == "rough":
        return 1.5 * fractal(view, size, beta=0.9, longest=12)
    if surface == "striated":
        across = np.arcsin(np.clip(offset / np.maximum(width, 1.0), -1, 1))
        waves = np.cos(11 * across + 0.5 * np.sin(behind / 60)) + 0.7 * np.cos(23 * across + 1.0)
        return np.asarray(0.035 * width * waves, dtype=np.float32)
    return 0.12 * fractal(view, size, beta=0.9, longest=8)


def _crumbs(view: Rng, sheet: Sheet, x: float, y: float, *, way: float) -> None:
    """Dirt stuck near the apex."""
    for _ in range(int(view.integers(2, 6))):
        back = view.uniform(0.0, 0.12) * sheet.shape[0]
        cx = x - back * np.cos(way) + view.normal(0, 3)
        cy = y + back * np.sin(way) + view.normal(0, 3)
        crumb = lump(view, view.uniform(4, 10) * max(sheet.shape[1] / 640, 0.4))
        sheet.place(crumb, cx, cy, material=0.9, base=sheet.base_at(cx, cy), label=0)


def _cantilever(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """A probe seen from below or at a slant: a beam that ends in a triangle, with a pyramid or cone near its end."""
    nm_per_pixel = drawn_pixel_size(sample, 40.0, 400.0, width=size[1])
    conical = sample.random() < 0.5
    beam = sample.uniform(0.16, 0.3) * size[0]
    foot = beam * sample.uniform(0.5, 0.78)
    steep = sample.uniform(1.2, 1.9)
    heading = float(pick(sample, "0", "180", "90")) + sample.normal(0, 7)
    surface = pick(sample, "smooth", "rough")
    tone = sample.uniform(0.42, 0.6)
    defect = _apex_defect(view)
    way = np.deg2rad(heading)
    x = size[1] * (0.5 + 0.32 * np.cos(way)) + view.normal(0, 0.03) * size[1]
    y = size[0] * (0.5 - 0.32 * np.sin(way)) + view.normal(0, 0.03) * size[0]
    behind, offset = _axis_frame(size, x, y, heading)
    plate = (np.abs(offset) < np.minimum(beam, 0.9 * behind + 0.25 * beam)) & (behind > 0)
    along, across = behind - 1.1 * beam, offset
    if defect == "bent apex":
        along = along + 0.3 * foot
    away = np.hypot(along, across) if conical else np.maximum(np.abs(along + across), np.abs(along - across)) / 1.25
    rise = foot - away
    cut = 0.45 * foot if defect == "blunt apex" else 0.05 * foot
    cone = plate & (rise > 0)
    height = np.where(plate, 14.0, 0.0) + np.where(cone, steep * np.minimum(rise, foot - cut), 0.0)
    grain = fractal(view, size, beta=0.9, longest=10)
    height += np.where(plate, 1.1 if surface == "rough" else 0.1, 0.0) * grain
    material = np.where(plate, tone, 0.07 * (1 + 0.4 * fractal(view, size, beta=2.0, longest=300)))
    material = np.where(cone, tone * 1.15, material)
    sheet = Sheet(size, material=material.astype(np.float32))
    sheet.height = height.astype(np.float32)
    if defect == "debris":
        _crumbs(view, sheet, x - 1.1 * beam * np.cos(way), y + 1.1 * beam * np.sin(way), way=way)
    objects = DrawnObjects()
    objects.add(x - 1.1 * beam * np.cos(way), y + 1.1 * beam * np.sin(way), area=float(cone.sum()))
    numbers = {"line_width": 2 * beam * nm_per_pixel, "orientation": heading % 180, "count": 1.0}
    words = _words(
        "conical" if conical else "pyramidal",
        surface,
        arrangement="isolated",
        defects=[defect] if defect else [],
    )
    return Scene(
        sheet.height, sheet.material, plate, nm_per_pixel, words, numbers=numbers, labels=cone.astype(np.int32),
        objects=objects, count_objects=False,
    )  # fmt: skip


def _array(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Rows of sharp emitters on a wafer, seen at a tilt."""
    nm_per_pixel = drawn_pixel_size(sample, 15.0, 200.0, width=size[1])
    scale = max(size[1] / 640, 0.35)
    tilt = float(pick(sample, "45", "52", "60"))
    conical = sample.random() < 0.6
    foot = sample.uniform(20, 46) * scale
    tall = foot * sample.uniform(1.8, 2.8)
    pitch = foot * sample.uniform(2.6, 3.8)
    sharp = sample.uniform(0.75, 1.35)
    tone, floor = sample.uniform(0.5, 0.7), sample.uniform(0.2, 0.32)
    ground = canvas_size(size, tilt, relief=tall)
    apart = pitch * np.array([1.0, 1.25 / np.cos(np.deg2rad(tilt))])
    height = 0.15 * fractal(view, ground, beta=0.9, longest=10)
    labels, objects = np.zeros(ground, np.int32), DrawnObjects()
    blunt = view.random() < 0.3
    x0, y0 = view.uniform(0, pitch), view.uniform(0, pitch)
    axis = np.arange(-int(foot) - 1, int(foot) + 2, dtype=np.float32)
    away = np.hypot(axis[:, None], axis[None, :]) if conical else np.maximum(abs(axis)[:, None], abs(axis)[None, :])
    profile = np.clip(1 - away / foot, 0, 1)
    cone = tall * profile**sharp
    sites = [
        (x, y)
        for y in np.arange(y0 - pitch, ground[0] + pitch, apart[1])
        for x in np.arange(x0 - pitch, ground[1] + pitch, apart[0])
    ]  # fmt: skip
    dull = set(view.choice(len(sites), size=max(1, len(sites) // 6)).tolist()) if blunt else set()
    for k, (x, y) in enumerate(sites):
        solid = np.minimum(cone, 0.55 * tall) if k in dull else cone
        r, c, h = round(y), round(x), len(axis) // 2
        r0, r1, c0, c1 = max(r - h, 0), min(r + h + 1, ground[0]), max(c - h, 0), min(c + h + 1, ground[1])
        label = objects.add(c, r, area=float((profile > 0).sum()))
        if r0 >= r1 or c0 >= c1:
            continue
        part = np.s_[r0 - r + h : r1 - r + h, c0 - c + h : c1 - c + h]
        height[r0:r1, c0:c1] = np.where(profile[part] > 0, solid[part], height[r0:r1, c0:c1])
        labels[r0:r1, c0:c1] = np.where(profile[part] > 0, label, labels[r0:r1, c0:c1])
    feature = labels > 0
    material = np.where(feature, tone, floor)
    numbers = {"period": pitch * nm_per_pixel, "line_width": 2 * foot * nm_per_pixel}
    words = _words(
        "conical" if conical else "pyramidal", "smooth", arrangement="periodic",
        defects=["blunt apex"] if blunt else [],
    )  # fmt: skip
    return Scene(
        height.astype(np.float32), material.astype(np.float32), feature, nm_per_pixel, words, numbers=numbers,
        labels=labels, objects=objects, tilt_deg=tilt,
    )  # fmt: skip


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view of a tip."""
    kinds = {"needle": _needle, "cantilever": _cantilever, "array": _array}
    return kinds[pick(sample, "needle", "needle", "cantilever", "array")](sample, view, size)

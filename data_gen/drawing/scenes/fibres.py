"""Fibres: a mat of long filaments that cross the frame in layers. Knows nothing about optics."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data_gen.drawing.scenes.geometry import (
    Rng,
    Sheet,
    drawn_pixel_size,
    ellipsoid,
    fractal,
    log_uniform,
    pick,
    smooth_line,
)
from data_gen.drawing.scenes.imaging import F32, Scene, blur

STEEP = 45.0
LAYER = 3.2
"""height of the whole mat, in mean diameters"""


@dataclass
class Course:
    """Centre line of one fibre [px]: y over x, or x over y where it is steep."""

    centre: F32
    steep: bool

    @property
    def slope(self) -> F32:
        return np.asarray(np.gradient(self.centre), dtype=np.float32)

    def angles(self) -> F32:
        """Direction at each step [deg, 0..180, counter-clockwise from x]."""
        run, rise = (self.slope, np.float32(-1.0)) if self.steep else (np.float32(1.0), -self.slope)
        return np.asarray(np.rad2deg(np.arctan2(rise, run)) % 180, dtype=np.float32)

    def lengths(self) -> F32:
        """Length of each step [px]."""
        return np.asarray(np.hypot(1.0, self.slope), dtype=np.float32)


@dataclass
class Mat:
    """What the fibres drawn so far are, for the ground truth."""

    widths: list[float] = field(default_factory=list)
    courses: list[Course] = field(default_factory=list)

    def axis(self) -> tuple[float, float]:
        """Dominant direction [deg, 0..180] and how strongly it dominates (0..1), by the doubled-angle mean."""
        angles = np.concatenate([course.angles() for course in self.courses])
        weights = np.concatenate([course.lengths() for course in self.courses])
        mean = np.average(np.exp(2j * np.deg2rad(angles)), weights=weights)
        return float(np.rad2deg(np.angle(mean)) / 2 % 180), float(abs(mean))


def _course(rng: Rng, size: tuple[int, int], angle: float, *, wave: float) -> Course:
    """A fibre at `angle` [deg] that wanders by `wave` [px] to either side."""
    angle = angle % 180
    steep = STEEP < angle < 180 - STEEP
    length, breadth = size if steep else size[::-1]
    slope = -1 / np.tan(np.deg2rad(angle)) if steep else -np.tan(np.deg2rad(angle))
    along = np.arange(length, dtype=np.float32)
    centre = rng.uniform(-0.15, 1.15) * breadth + slope * (along - length / 2)
    if wave > 0:
        centre = centre + wave * smooth_line(rng, length * 2, correlation=length * 0.28)[:length]
    return Course(np.asarray(centre, dtype=np.float32), steep)


def _beaded(rng: Rng, half: F32) -> F32:
    """Swell the fibre at one place, as a jet does that breaks up into drops."""
    along = np.arange(len(half), dtype=np.float32)
    width = 2 * float(half[0])
    swelling = np.exp(-(((along - rng.uniform(0, len(half))) / (1.6 * width)) ** 2))
    return np.asarray(half * (1 + 1.3 * swelling), dtype=np.float32)


def _grooves(sheet: Sheet, course: Course, half: F32, *, label: int) -> None:
    """Cut grooves along one fibre where it is on top."""
    height, labels = (a.T if course.steep else a for a in (sheet.height, sheet.labels))
    reach = int(half.max()) + 1
    row = np.round(course.centre).astype(np.int64)[None, :] + np.arange(-reach, reach + 1)[:, None]
    column = np.broadcast_to(np.arange(len(half)), row.shape)
    ok = (row >= 0) & (row < height.shape[0])
    row, column = row[ok], column[ok]
    mine = labels[row, column] == label
    row, column = row[mine], column[mine]
    across = np.clip((row - course.centre[column]) / half[column], -1, 1)
    height[row, column] += (0.16 * half[column] * np.cos(9.0 * np.arcsin(across))).astype(np.float32)


def _crumbs(rng: Rng, sheet: Sheet, mean: float) -> None:
    for _ in range(int(rng.integers(6, 14))):
        x, y = rng.uniform(0, sheet.shape[1]), rng.uniform(0, sheet.shape[0])
        crumb = ellipsoid(mean * rng.uniform(0.4, 0.9), aspect=1.3, angle=rng.uniform(0, 180))
        sheet.place(crumb, x, y, material=0.95, base=sheet.base_at(x, y) + mean, label=0)


def _finish(view: Rng, sheet: Sheet, mean: float, *, fused: bool, rough: bool) -> F32:
    """Weld the crossings or roughen the skin."""
    height: F32 = sheet.height
    if fused:
        height = blur(np.maximum(height, blur(height, 0.3 * mean)), 0.12 * mean)
    if rough:
        skin = fractal(view, sheet.shape, beta=0.7, longest=mean * 0.6)
        height = np.where(sheet.labels > 0, height + np.float32(0.11 * mean) * skin, height)
    return height


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view of a fibre mat."""
    nm_per_pixel = drawn_pixel_size(sample, 15.0, 500.0, width=size[1])
    shape = pick(sample, "straight", "curved", "curved")
    arrangement = pick(sample, "random", "random", "aligned", "network")
    broad = sample.random() < 0.4
    surface = pick(sample, "smooth", "smooth", "rough", "striated")
    mean = log_uniform(sample, 8, 26) * max(size[1] / 640, 0.3)
    lead, cover = sample.uniform(0, 180), sample.uniform(1.0, 2.6)
    beads = sample.random() < 0.25
    material, depth = sample.uniform(0.45, 0.75), sample.uniform(0.45, 0.8)

    sheet, mat = Sheet(size, material=0.05), Mat()
    count = max(6, int(cover * size[0] / mean))
    swollen = False
    for k in range(count):
        rank = (k + 1) / count
        angle = lead + view.normal(0, 9) if arrangement == "aligned" else view.uniform(0, 180)
        wander = view.uniform(0.03, 0.07 if arrangement == "aligned" else 0.16)
        course = _course(view, size, angle, wave=size[0] * wander if shape == "curved" else 0.0)
        width = mean * (np.exp(0.42 * view.standard_normal()) if broad else view.uniform(0.93, 1.07))
        width = float(np.clip(width, min(4.0, mean), 3 * mean))
        half = np.full(len(course.centre), width / 2, np.float32)
        bead = beads and view.random() < 0.5
        half = _beaded(view, half) if bead else half
        swollen |= bead
        base = rank * LAYER * mean + 0.5 * mean * smooth_line(view, len(half), correlation=len(half) * 0.2)
        label = sheet.objects.add(0, 0, area=width * len(half))
        sheet.ribbon(course.centre, half, base=base, material=material, label=label, across=course.steep)
        if surface == "striated":
            _grooves(sheet, course, half, label=label)
        mat.widths.append(width)
        mat.courses.append(course)
    defects = ["bead"] if swollen else []
    if view.random() < 0.15:
        _crumbs(view, sheet, mean)
        defects.append("debris")
    fused = arrangement == "network"
    height = _finish(view, sheet, mean, fused=fused, rough=surface == "rough")
    shadow = (1 - depth * (1 - np.clip(height / (LAYER * mean), 0, 1))).astype(np.float32)
    orientation, anisotropy = mat.axis()
    seen = np.bincount(sheet.labels.ravel(), minlength=count + 1)[1:]
    numbers = {
        "fibre_width": float(np.average(mat.widths, weights=seen + 1e-9)) * nm_per_pixel,
        "anisotropy": anisotropy,
    }
    if arrangement == "aligned":
        numbers["orientation"] = orientation
    words: dict[str, str | list[str]] = {
        "shape": shape,
        "surface": surface,
        "arrangement": arrangement,
        "distribution": "broad" if broad else "uniform",
        "touching": "fused" if fused else "overlapping",
        "defects": defects,
    }
    return Scene(
        height,
        sheet.material,
        sheet.labels > 0,
        nm_per_pixel,
        words,
        numbers=numbers,
        labels=sheet.labels,
        objects=sheet.objects,
        count_objects=False,
        shadow=shadow,
    )

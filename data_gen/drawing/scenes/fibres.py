"""Fibres: a mat of long filaments that cross the frame in layers. Knows nothing about optics."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from assistant.arrays import F32, I32
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
from data_gen.drawing.scenes.imaging import Scene, blur

_STEEP = 45.0
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

    def numbers(self, labels: I32, nm_per_pixel: float, *, oriented: bool) -> dict[str, float]:
        """Ground truth: the width of what is in sight, how aligned the fibres lie, and along which direction."""
        seen = np.bincount(labels.ravel(), minlength=len(self.widths) + 1)[1:]
        width = float(np.average(self.widths, weights=seen + 1e-9)) * nm_per_pixel
        orientation, anisotropy = self.axis()
        return {"fibre_width": width, "anisotropy": anisotropy} | ({"orientation": orientation} if oriented else {})


def _course(rng: Rng, size: tuple[int, int], angle: float, *, wave: float) -> Course:
    """A fibre at `angle` [deg] that wanders by `wave` [px] to either side."""
    angle = angle % 180
    steep = _STEEP < angle < 180 - _STEEP
    length, breadth = size if steep else size[::-1]
    slope = -1 / np.tan(np.deg2rad(angle)) if steep else -np.tan(np.deg2rad(angle))
    along = np.arange(length, dtype=np.float32)
    centre = rng.uniform(-0.15, 1.15) * breadth + slope * (along - length / 2)
    if wave > 0:
        centre = centre + wave * smooth_line(rng, length * 2, correlation=length * 0.28)[:length]
    return Course(np.asarray(centre, dtype=np.float32), steep)


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


@dataclass
class FibreSpecimen:
    """What all fields of view of one mat share; lengths in pixels."""

    shape: str
    arrangement: str
    broad: bool
    surface: str
    mean: float
    lead: float
    cover: float
    beads: bool
    material: float


def _lay_mat(view: Rng, sheet: Sheet, it: FibreSpecimen) -> tuple[Mat, bool]:
    """Lay the fibres one over the other; also whether one of them has a bead, where the jet broke up into drops."""
    mat, swollen, aligned = Mat(), False, it.arrangement == "aligned"
    count = max(6, int(it.cover * sheet.shape[0] / it.mean))
    for k in range(count):
        angle = it.lead + view.normal(0, 9) if aligned else view.uniform(0, 180)
        wander = view.uniform(0.03, 0.07 if aligned else 0.16)
        course = _course(view, sheet.shape, angle, wave=sheet.shape[0] * wander if it.shape == "curved" else 0.0)
        width = it.mean * (np.exp(0.42 * view.standard_normal()) if it.broad else view.uniform(0.93, 1.07))
        width = float(np.clip(width, min(4.0, it.mean), 3 * it.mean))
        half = np.full(len(course.centre), width / 2, np.float32)
        if it.beads and view.random() < 0.5:
            along = np.arange(len(half), dtype=np.float32)
            swelling = np.exp(-(((along - view.uniform(0, len(half))) / (1.6 * width)) ** 2))
            half, swollen = (half * (1 + 1.3 * swelling)).astype(np.float32), True
        level = (k + 1) / count * LAYER * it.mean
        base = level + 0.5 * it.mean * smooth_line(view, len(half), correlation=len(half) * 0.2)
        label = sheet.objects.add(0, 0, area=width * len(half))
        sheet.ribbon(course.centre, half, base=base, material=it.material, label=label, across=course.steep)
        if it.surface == "striated":
            _grooves(sheet, course, half, label=label)
        mat.widths.append(width)
        mat.courses.append(course)
    return mat, swollen


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view of a fibre mat."""
    nm_per_pixel = drawn_pixel_size(sample, 15.0, 500.0, width=size[1])
    it = FibreSpecimen(
        shape=pick(sample, "straight", "curved", "curved"),
        arrangement=pick(sample, "random", "random", "aligned", "network"),
        broad=sample.random() < 0.4,
        surface=pick(sample, "smooth", "smooth", "rough", "striated"),
        mean=log_uniform(sample, 8, 26) * max(size[1] / 640, 0.3),
        lead=sample.uniform(0, 180),
        cover=sample.uniform(1.0, 2.6),
        beads=sample.random() < 0.25,
        material=sample.uniform(0.45, 0.75),
    )
    depth = sample.uniform(0.45, 0.8)
    sheet = Sheet(size, material=0.05)
    mat, swollen = _lay_mat(view, sheet, it)
    defects = ["bead"] if swollen else []
    if view.random() < 0.15:
        for _ in range(int(view.integers(6, 14))):
            x, y = view.uniform(0, size[1]), view.uniform(0, size[0])
            crumb = ellipsoid(it.mean * view.uniform(0.4, 0.9), aspect=1.3, angle=view.uniform(0, 180))
            sheet.place(crumb, x, y, material=0.95, base=sheet.base_at(x, y) + it.mean, label=0)
        defects.append("debris")
    height, feature, fused = sheet.height, sheet.labels > 0, it.arrangement == "network"
    if fused:  # the crossings are welded
        height = blur(np.maximum(height, blur(height, 0.3 * it.mean)), 0.12 * it.mean)
    if it.surface == "rough":
        skin = fractal(view, size, beta=0.7, longest=it.mean * 0.6)
        height = np.where(feature, height + np.float32(0.11 * it.mean) * skin, height)
    shadow = (1 - depth * (1 - np.clip(height / (LAYER * it.mean), 0, 1))).astype(np.float32)
    words: dict[str, str | list[str]] = {
        "shape": it.shape, "surface": it.surface, "arrangement": it.arrangement,
        "distribution": "broad" if it.broad else "uniform", "touching": "fused" if fused else "overlapping",
        "defects": defects,
    }  # fmt: skip
    return Scene(
        height, sheet.material, feature, nm_per_pixel, words,
        numbers=mat.numbers(sheet.labels, nm_per_pixel, oriented=it.arrangement == "aligned"),
        labels=sheet.labels, objects=sheet.objects, count_objects=False, shadow=shadow,
    )  # fmt: skip

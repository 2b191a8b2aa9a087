"""MEMS devices and electrodes: combs, cantilevers, meanders, suspended plates and gears. Knows nothing about
optics.

A device is laid out with rectangles on an unrotated plan whose unit is the pixel and whose origin is the middle of
the frame; the plan is then turned into the field of view. When the view is tilted, the repeated parts follow one
another along x, the tilt axis, so that their period is not foreshortened.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from assistant.arrays import F32, I32
from data_gen.drawing.scenes.geometry import Rng, Sheet, drawn_pixel_size, fractal, log_uniform, lump, pick, scratch
from data_gen.drawing.scenes.imaging import DrawnObjects, Scene, Words, blur, canvas_size

METAL, PIT = 1.0, -1.0


class Plan:
    """The layout: level of each point (1 metal, 0 substrate, -1 pit) and the label of its repeated part."""

    def __init__(self, half: int) -> None:
        self.half = half
        self.level: F32 = np.zeros((2 * half, 2 * half), np.float32)
        self.labels: I32 = np.zeros((2 * half, 2 * half), np.int32)
        self.objects = DrawnObjects()
        self.numbers: dict[str, float] = {}
        self.defects: list[str] = []

    def box(self, x0: float, y0: float, x1: float, y1: float, *, level: float = METAL, label: int = 0) -> None:
        """Fill a rectangle; the y axis points down."""
        r0, r1, c0, c1 = (int(np.clip(round(v) + self.half, 0, 2 * self.half)) for v in (y0, y1, x0, x1))
        self.level[r0:r1, c0:c1] = level
        self.labels[r0:r1, c0:c1] = label

    def part(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Fill a rectangle that counts as one repeated part."""
        wide, high = abs(x1 - x0), abs(y1 - y0)
        aspect = max(wide, high) / max(min(wide, high), 1.0)
        label = self.objects.add((x0 + x1) / 2, (y0 + y1) / 2, area=wide * high, aspect=aspect)
        self.box(x0, y0, x1, y1, label=label)

    def ring(self, radius: float, inner: float, *, teeth: int = 0, tooth: float = 0.0, level: float = METAL) -> None:
        """Fill a ring around the origin, with teeth on its rim."""
        axis = np.arange(-self.half, self.half, dtype=np.float32)
        q, theta = np.hypot(axis[None, :], axis[:, None]), np.arctan2(axis[:, None], axis[None, :])
        rim = radius + tooth * np.clip(4 * np.cos(teeth * theta), -0.5, 0.5)
        self.level[(q < rim) & (q >= inner)] = level


def _comb(rng: Rng, view: Rng, plan: Plan, size: tuple[int, int]) -> None:
    """Interdigitated electrodes: two buses with fingers that mesh, and a pad at either end."""
    wide, high = 0.62 * size[1], 0.62 * size[0]
    width = log_uniform(rng, 6, 16) * max(size[1] / 640, 0.3)
    gap = width * rng.uniform(0.6, 1.4)
    pitch = width + gap
    count = int(wide / pitch)
    bus = 3.0 * width
    left, top, bottom = -count * pitch / 2, -high / 2, high / 2
    plan.box(left - pitch, top - bus, -left + pitch, top)
    plan.box(left - pitch, bottom, -left + pitch, bottom + bus)
    pad = 0.11 * size[1]
    plan.box(left - pitch - 3 * pad, top - bus - 0.4 * pad, left - pitch, top + pad)
    plan.box(-left + pitch, bottom - pad, -left + pitch + 3 * pad, bottom + bus + 0.4 * pad)
    broken = int(view.integers(2, count - 2)) if view.random() < 0.3 else -1
    for k in range(count):
        x = left + k * pitch
        upper = k % 2 == 0
        y0, y1 = (top, bottom - 2 * gap) if upper else (top + 2 * gap, bottom)
        if k == broken:
            middle = view.uniform(-0.2, 0.2) * high
            y0, y1 = (y0, middle) if upper else (middle, y1)
            plan.defects.append("broken finger")
        plan.part(x, y0, x + width, y1)
    plan.numbers |= {"period": pitch, "line_width": width}


def _cantilevers(rng: Rng, view: Rng, plan: Plan, size: tuple[int, int]) -> None:
    """A row of beams that reach from an anchor over a pit."""
    width = log_uniform(rng, 14, 34) * max(size[1] / 640, 0.3)
    pitch = width * rng.uniform(1.7, 2.6)
    count = int(rng.integers(4, 11))
    longest = rng.uniform(0.4, 0.62) * size[0]
    ramp = rng.uniform(0.0, 0.55)
    left, top = -(count - 1) * pitch / 2 - width / 2, -0.3 * size[0]
    plan.box(-3 * size[1], top - 3 * size[0], 3 * size[1], top)
    plan.box(-3 * size[1], top + 1.25 * longest, 3 * size[1], 3 * size[0])
    plan.box(-3 * size[1], top, left - pitch, top + 1.25 * longest)
    plan.box(-left + pitch, top, 3 * size[1], top + 1.25 * longest)
    plan.level[plan.level == 0] = PIT
    broken = int(view.integers(0, count)) if view.random() < 0.3 else -1
    for k in range(count):
        length = longest * (1 - ramp * k / max(count - 1, 1))
        if k == broken:
            length *= view.uniform(0.2, 0.5)
            plan.defects.append("broken beam")
        plan.part(left + k * pitch, top, left + k * pitch + width, top + length)
    plan.numbers |= {"period": pitch, "line_width": width}


def _serpentine(rng: Rng, view: Rng, plan: Plan, size: tuple[int, int]) -> None:
    """A meandering heater or resistor between two pads."""
    width = log_uniform(rng, 6, 14) * max(size[1] / 640, 0.3)
    pitch = width * rng.uniform(1.8, 2.8)
    count = max(4, int(rng.uniform(0.4, 0.6) * size[1] / pitch) // 2 * 2)
    high = rng.uniform(0.35, 0.55) * size[0]
    left, top, bottom = -count * pitch / 2, -high / 2, high / 2
    cut = int(view.integers(1, count - 1)) if view.random() < 0.25 else -1
    for k in range(count):
        x = left + k * pitch
        plan.part(x, top, x + width, bottom)
        if k + 1 < count:
            y0, y1 = (bottom - width, bottom) if k % 2 == 0 else (top, top + width)
            plan.box(x, y0, x + pitch + width, y1)
        if k == cut:
            plan.box(x - 1, -1.5 * width, x + width + 1, 1.5 * width, level=0.0)
            plan.defects.append("broken beam")
    pad = rng.uniform(0.14, 0.2) * size[1]
    plan.box(left - pad, top - 0.3 * pad, left, top + width)
    plan.box(left - 2 * pad, top - 0.3 * pad, left - 0.3 * pad, top + 0.8 * pad)
    right = left + (count - 1) * pitch + width
    plan.box(right, top - 0.3 * pad, right + pad, top + width)
    plan.box(right + 0.3 * pad, top - 0.3 * pad, right + 2 * pad, top + 0.8 * pad)
    plan.numbers |= {"period": pitch, "line_width": width}


def _bridge(rng: Rng, view: Rng, plan: Plan, size: tuple[int, int]) -> None:
    """A plate with etch holes, hung over a pit by four arms."""
    plate = rng.uniform(0.15, 0.22) * size[0]
    pit = plate * rng.uniform(1.7, 2.2)
    arm = plate * rng.uniform(0.14, 0.3)
    plan.level[:] = METAL
    plan.box(-pit, -pit, pit, pit, level=PIT)
    plan.box(-plate, -plate, plate, plate)
    cut = int(view.integers(4)) if view.random() < 0.25 else -1
    for k, (sx, sy) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        x0, x1 = sorted((sx * plate * 0.98, sx * pit * 1.02))
        y0, y1 = sorted((sy * plate * 0.98, sy * pit * 1.02))
        ends = (
            x0 - arm / 2 * (sx == 0),
            y0 - arm / 2 * (sy == 0),
            x1 + arm / 2 * (sx == 0),
            y1 + arm / 2 * (sy == 0),
        )
        plan.part(*ends)
        if k == cut:
            mx, my = sx * (plate + pit) / 2, sy * (plate + pit) / 2
            plan.box(mx - arm, my - arm, mx + arm, my + arm, level=PIT)
            plan.defects.append("broken beam")
    holes = int(rng.integers(3, 7))
    step = 2 * plate / holes
    for i in range(holes):
        for j in range(holes):
            x, y = -plate + (i + 0.5) * step, -plate + (j + 0.5) * step
            plan.box(x - 0.17 * step, y - 0.17 * step, x + 0.17 * step, y + 0.17 * step, level=PIT)
    plan.numbers |= {"period": step, "line_width": arm}


def _gear(rng: Rng, view: Rng, plan: Plan, size: tuple[int, int]) -> None:
    """A toothed wheel with a hub and spokes."""
    radius = rng.uniform(0.27, 0.38) * size[0]
    teeth = int(rng.integers(14, 30))
    spokes = int(rng.integers(3, 6))
    band_ = rng.uniform(0.22, 0.34) * radius
    plan.ring(radius, radius - band_, teeth=teeth, tooth=0.13 * radius)
    axis = np.arange(-plan.half, plan.half, dtype=np.float32)
    q, theta = np.hypot(axis[None, :], axis[:, None]), np.arctan2(axis[:, None], axis[None, :])
    turn = view.uniform(0, 6.28)
    for k in range(spokes):
        off = q * np.sin(theta - turn - 6.2832 * k / spokes)
        ahead = np.cos(theta - turn - 6.2832 * k / spokes) > 0
        plan.level[(np.abs(off) < 0.08 * radius) & ahead & (q < radius - 0.5 * band_)] = METAL
    plan.ring(0.26 * radius, 0.0)
    plan.ring(0.1 * radius, 0.0, level=0.0)
    wheel = plan.level > 0
    plan.labels[wheel] = plan.objects.add(0.0, 0.0, area=float(wheel.sum()))
    plan.numbers |= {"mean_diameter": 2 * radius, "teeth": float(teeth)}


PLANS: dict[str, Callable[[Rng, Rng, Plan, tuple[int, int]], None]] = {
    "comb": _comb,
    "cantilever": _cantilevers,
    "serpentine": _serpentine,
    "bridge": _bridge,
    "gear": _gear,
}


def _turned(plan: Plan, ground: tuple[int, int], angle: float, shift: tuple[float, float]) -> tuple[F32, I32]:
    """Lay the plan into the field of view, turned counter-clockwise, and move its parts along. [H, W] each"""
    y, x = np.mgrid[: ground[0], : ground[1]].astype(np.float32)
    y, x = y - ground[0] / 2 - shift[1], x - ground[1] / 2 - shift[0]
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    u = np.clip(np.round(x * c - y * s) + plan.half, 0, 2 * plan.half - 1).astype(np.int32)
    v = np.clip(np.round(x * s + y * c) + plan.half, 0, 2 * plan.half - 1).astype(np.int32)
    objects = plan.objects
    for k in range(len(objects)):
        px, py = objects.x[k], objects.y[k]
        objects.x[k] = px * c + py * s + ground[1] / 2 + shift[0]
        objects.y[k] = -px * s + py * c + ground[0] / 2 + shift[1]
    return plan.level[v, u], plan.labels[v, u]


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view of a device."""
    nm_per_pixel = drawn_pixel_size(sample, 50.0, 800.0, width=size[1])
    shape = pick(sample, *PLANS)
    tilt = float(pick(sample, "0", "0", "30", "45"))
    thick = sample.uniform(4, 9) * (1.6 if tilt else 1.0)
    pit = sample.uniform(14, 26)
    angle = 0.0 if tilt else float(pick(sample, "0", "0", "90", "45")) + sample.normal(0, 2)
    metal_bright = sample.random() < 0.7
    grainy = sample.random() < 0.35
    metal, substrate = sample.uniform(0.6, 0.85), sample.uniform(0.18, 0.35)
    if not metal_bright:
        metal, substrate = substrate, metal
    ground = canvas_size(size, tilt, relief=thick)
    plan = Plan(int(np.hypot(*ground) / 2) + 4)
    PLANS[shape](sample, view, plan, size)
    level, labels = _turned(plan, ground, angle, (view.normal(0, 0.05) * size[1], view.normal(0, 0.04) * size[0]))
    feature = level > 0
    height = np.where(feature, thick, np.where(level < 0, -pit, 0.0)).astype(np.float32)
    material = np.where(feature, metal, np.where(level < 0, 0.55 * substrate, substrate)).astype(np.float32)
    sheet = Sheet(ground, material=material)
    sheet.height = height
    if view.random() < 0.25:
        for _ in range(int(view.integers(3, 10))):
            x, y = view.uniform(0, ground[1]), view.uniform(0, ground[0])
            crumb = lump(view, view.uniform(3, 9) * max(size[1] / 640, 0.4))
            sheet.place(crumb, x, y, material=0.9, base=max(sheet.base_at(x, y), 0.0), label=0)
        plan.defects.append("debris")
    if view.random() < 0.12:
        sheet.height -= 4 * scratch(view, ground, width=2.0)
        plan.defects.append("scratch")
    grain = fractal(view, ground, beta=0.6, longest=5)
    sheet.height += np.where(feature, 0.75 if grainy else 0.1, 0.1).astype(np.float32) * grain
    lengths = {k: v * (1.0 if k == "teeth" else nm_per_pixel) for k, v in plan.numbers.items()}
    if shape in ("comb", "cantilever", "serpentine"):
        lengths["orientation"] = (90.0 + angle) % 180
    words: Words = {
        "shape": shape, "surface": "granular" if grainy else "smooth",
        "arrangement": "periodic" if shape in ("comb", "cantilever", "serpentine") else "isolated",
        "distribution": "uniform", "touching": "touching" if shape in ("serpentine", "bridge") else "separate",
        "defects": sorted(set(plan.defects)),
    }  # fmt: skip
    return Scene(
        blur(sheet.height, 0.5) if not tilt else sheet.height, sheet.material, feature, nm_per_pixel, words,
        numbers=lengths, labels=labels, objects=plan.objects, size_objects=False,
        tilt_deg=tilt,
    )  # fmt: skip

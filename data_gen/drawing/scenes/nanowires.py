"""Nanowires: thin single-crystal rods, strewn on a support or standing as a forest. Knows nothing about optics."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data_gen.drawing.scenes.geometry import (
    Rng,
    Sheet,
    capsule,
    drawn_pixel_size,
    ellipsoid,
    fractal,
    log_uniform,
    pick,
)
from data_gen.drawing.scenes.imaging import Scene, Words

TAPER = {"straight": 0.0, "tapered": 0.75}
TRIES = 12


@dataclass(frozen=True)
class WireSpecimen:
    """What is the same in all fields of view of one nanowire sample; lengths in pixels."""

    nm_per_pixel: float
    shape: str
    arrangement: str
    apart: bool
    broad: bool
    rough: bool
    droplet: bool
    radius: float
    length: float
    lead: float
    """direction of combed wires [deg]"""
    number: float
    material: float
    support: float

    def wire_radius(self, rng: Rng) -> float:
        spread = np.exp(0.3 * rng.standard_normal()) if self.broad else rng.uniform(0.95, 1.05)
        return float(np.clip(self.radius * spread, 1.3, 2.5 * self.radius))


@dataclass
class Wires:
    """What has been drawn, for the ground truth: mean width and length [px], direction [deg]."""

    width: list[float] = field(default_factory=list)
    length: list[float] = field(default_factory=list)
    angle: list[float] = field(default_factory=list)

    def add(self, radius: float, length: float, angle: float, *, taper: float) -> None:
        self.width.append(2 * radius * (1 - taper / 2))
        self.length.append(length)
        self.angle.append(angle)

    def numbers(self, nm_per_pixel: float, *, oriented: bool) -> dict[str, float]:
        mean = np.average(np.exp(2j * np.deg2rad(self.angle)), weights=self.length)
        out = {
            "fibre_width": float(np.mean(self.width)) * nm_per_pixel,
            "aspect_ratio": float(np.mean(np.array(self.length) / np.array(self.width))),
            "anisotropy": float(abs(mean)),
        }
        return out | ({"orientation": float(np.rad2deg(np.angle(mean)) / 2 % 180)} if oriented else {})


def _specimen(sample: Rng, size: tuple[int, int], arrangement: str) -> WireSpecimen:
    scale = max(size[1] / 640, 0.3)
    apart = arrangement != "network" and sample.random() < 0.45
    dense = {"network": (90.0, 170.0)}.get(arrangement, (12.0, 24.0) if apart else (26.0, 55.0))
    light, dark = sample.uniform(0.7, 0.95), sample.uniform(0.12, 0.34)
    heavy_support = arrangement != "network" and sample.random() < 0.2
    return WireSpecimen(
        nm_per_pixel=drawn_pixel_size(sample, 4.0, 40.0, width=size[1]),
        shape=pick(sample, "straight", "straight", "tapered"),
        arrangement=arrangement,
        apart=apart,
        broad=sample.random() < 0.4,
        rough=sample.random() < 0.3,
        droplet=sample.random() < 0.45,
        radius=max(log_uniform(sample, 2.1, 3.8) * scale, 1.5),
        length=log_uniform(sample, 100, 200 if apart else 300) * scale,
        lead=sample.uniform(0, 180),
        number=sample.uniform(*dense),
        material=dark * 0.6 if heavy_support else light,
        support=light if heavy_support else dark,
    )


def _tip(angle: float, reach: float) -> tuple[float, float]:
    """Step of `reach` [px] along a direction, as x, y with y down."""
    return reach * float(np.cos(np.deg2rad(angle))), -reach * float(np.sin(np.deg2rad(angle)))


def _lay(view: Rng, sheet: Sheet, it: WireSpecimen, wires: Wires, *, rank: float) -> None:
    """Lay one wire flat, clear of the others where the sample wants it so."""
    radius, span = it.wire_radius(view), it.length * view.uniform(0.7, 1.25)
    taper = TAPER[it.shape]
    for _ in range(TRIES):
        angle = it.lead + view.normal(0, 7) if it.arrangement == "aligned" else view.uniform(0, 180)
        x, y = view.uniform(0, sheet.shape[1]), view.uniform(0, sheet.shape[0])
        room = capsule(span + 4 * radius, 3 * radius + 2, angle=angle)
        if not it.apart or sheet.is_free(room, x, y):
            break
    else:
        return
    mat = it.arrangement == "network"
    base = rank * 4 * it.radius if mat else 0.3 * len(wires.width)
    tone = it.material * view.uniform(0.92, 1.05)
    label = sheet.place(capsule(span, radius, angle=angle, taper=taper), x, y, material=tone, base=base)
    if it.droplet:
        dx, dy = _tip(angle, span / 2)
        bead = ellipsoid(radius * (1.25 if taper else 1.75))
        sheet.place(bead, x + dx, y + dy, material=min(1.3 * tone, 1.0), base=base + radius, label=label)
    wires.add(radius, span + 2 * radius, angle, taper=taper)


def _litter(rng: Rng, sheet: Sheet, it: WireSpecimen) -> list[str]:
    """Perhaps stumps of broken wires, perhaps a knot of grown-together droplets."""
    defects = []
    if it.arrangement != "network" and not it.apart and rng.random() < 0.25:
        for _ in range(int(rng.integers(8, 16))):
            piece = capsule(0.12 * it.length * rng.uniform(0.4, 1.0), it.radius, angle=rng.uniform(0, 180))
            x, y = rng.uniform(0, sheet.shape[1]), rng.uniform(0, sheet.shape[0])
            sheet.place(piece, x, y, material=it.material, label=0)
        defects.append("broken wire")
    if rng.random() < 0.2:
        cx, cy = rng.uniform(0.2, 0.8) * sheet.shape[1], rng.uniform(0.2, 0.8) * sheet.shape[0]
        for _ in range(30):
            x, y = rng.normal(cx, 5 * it.radius), rng.normal(cy, 5 * it.radius)
            ball = ellipsoid(it.radius * rng.uniform(1.5, 3.0))
            sheet.place(ball, x, y, material=0.85, base=0.6 * sheet.base_at(x, y), label=0)
        defects.append("agglomerate")
    return defects


def _scattered(sample: Rng, view: Rng, size: tuple[int, int], arrangement: str) -> Scene:
    """Wires lying flat: sparse and random, combed into one direction, or a tangled mat."""
    it = _specimen(sample, size, arrangement)
    sheet, wires = Sheet(size, material=it.support), Wires()
    number = int(it.number * (0.7 + 0.6 * view.random()))
    for k in range(number):
        _lay(view, sheet, it, wires, rank=(k + 1) / number)
    defects = _litter(view, sheet, it)
    feature = sheet.labels > 0
    skin = np.where(feature, (0.28 if it.rough else 0.05) * it.radius, 0.15).astype(np.float32)
    sheet.height += skin * fractal(view, size, beta=0.7, longest=8)
    depth = np.clip(sheet.height / (4 * it.radius), 0, 1) if arrangement == "network" else np.ones(size)
    words: Words = {
        "shape": it.shape,
        "surface": "rough" if it.rough else "smooth",
        "arrangement": arrangement,
        "distribution": "broad" if it.broad else "uniform",
        "touching": "separate" if it.apart else "overlapping",
        "defects": defects,
    }
    return Scene(
        sheet.height,
        sheet.material,
        feature,
        it.nm_per_pixel,
        words,
        numbers=wires.numbers(it.nm_per_pixel, oriented=arrangement == "aligned"),
        labels=sheet.labels,
        objects=sheet.objects,
        count_objects=arrangement != "network",
        size_objects=False,
        shadow=(0.35 + 0.65 * depth).astype(np.float32),
    )


def _forest(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Wires standing on the substrate, seen at a tilt; drawn row by row from the back."""
    it = _specimen(sample, size, "aligned")
    tilt = float(pick(sample, "30", "45", "52"))
    length, pitch = it.length * sample.uniform(0.7, 1.0), it.radius * sample.uniform(5, 10)
    lean, droplet = sample.uniform(1.0, 6.0), sample.random() < 0.7
    flat, seen = float(np.cos(np.deg2rad(tilt))), length * float(np.sin(np.deg2rad(tilt)))
    taper = 0.8 * TAPER[it.shape]
    sheet, wires = Sheet(size, material=0.2), Wires()
    for row in range(int(np.ceil((size[0] + 1.3 * seen) / (pitch * flat)))):
        for column in range(int(np.ceil(size[1] / pitch)) + 2):
            x = (column - 1 + view.uniform(0.1, 0.9)) * pitch
            y = (row + view.uniform(0.1, 0.9)) * pitch * flat
            radius, share, angle = it.wire_radius(view), view.uniform(0.8, 1.15), 90 + view.normal(0, lean)
            stem = capsule(seen * share, radius, angle=angle, taper=taper)
            dx, dy = _tip(angle, seen * share)
            base = 2.0 * it.radius * row  # nearer rows have the higher base and hide farther ones
            label = sheet.place(stem, x + dx / 2, y + dy / 2, material=0.75, base=base)
            if droplet:
                bead = ellipsoid(radius * (1.0 if taper else 1.6))
                sheet.place(bead, x + dx, y + dy, material=1.0, base=base + 2, label=label)
            wires.add(radius, length * share, angle, taper=taper)
    words: Words = {
        "shape": it.shape,
        "surface": "smooth",
        "arrangement": "aligned",
        "distribution": "broad" if it.broad else "uniform",
        "touching": "overlapping",
        "defects": [],
    }
    return Scene(
        sheet.height,
        sheet.material,
        sheet.labels > 0,
        it.nm_per_pixel,
        words,
        numbers=wires.numbers(it.nm_per_pixel, oriented=True),
        labels=sheet.labels,
        objects=sheet.objects,
        count_objects=False,
        tilt_deg=tilt,
        projected=True,
    )


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view of a nanowire sample."""
    kind = pick(sample, "random", "random", "aligned", "network", "forest")
    return _forest(sample, view, size) if kind == "forest" else _scattered(sample, view, size, kind)

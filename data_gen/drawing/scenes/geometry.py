"""Drawing primitives: random fields, cells, stamps of solid bodies, wires and rectangles. Knows nothing about
classes or optics.

All lengths are in pixels. A stamp is a small height map with its outline; a Sheet is the field of view it is
pressed into.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft

from assistant.arrays import F32, I32, Mask
from data_gen.drawing.scenes.imaging import DrawnObjects

Rng = np.random.Generator
NICE = (1.0, 2.0, 5.0)
BAR_SHARE = 0.17


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """One number whose logarithm is uniform between those of `low` and `high`."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def pick(rng: Rng, *options: str) -> str:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def nice_length(target: float) -> float:
    """The number 1, 2 or 5 times a power of ten nearest to `target` on a logarithmic scale."""
    power = 10.0 ** np.floor(np.log10(target))
    choices = [step * power for step in NICE] + [10.0 * power]
    return float(min(choices, key=lambda value: abs(np.log(value / target))))


def drawn_pixel_size(rng: Rng, low: float, high: float, *, width: int) -> float:
    """A pixel size [nm] in low..high at which a round length, a sixth of `width` [px] or so, is whole pixels."""
    wanted = log_uniform(rng, low, high)
    length = nice_length(wanted * BAR_SHARE * width)
    return length / round(length / wanted)


@lru_cache(maxsize=16)
def _frequencies(rows: int, columns: int) -> F32:
    fy = np.fft.fftfreq(rows)[:, None]
    fx = np.fft.rfftfreq(columns)[None, :]
    radius: F32 = np.hypot(fy, fx).astype(np.float32)
    radius[0, 0] = 1.0
    return radius


def _filtered(rng: Rng, shape: tuple[int, int], gain: F32, padded: tuple[int, int]) -> F32:
    white = rng.standard_normal(padded, dtype=np.float32)
    spectrum = fft.rfft2(white) * gain
    spectrum[0, 0] = 0.0
    noise = fft.irfft2(spectrum, s=padded)[: shape[0], : shape[1]]
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-9), dtype=np.float32)


def fractal(rng: Rng, shape: tuple[int, int], *, beta: float = 1.6, longest: float = 200.0) -> F32:
    """Random rough field, amplitude ~ frequency^-beta, flat above `longest` [px]; mean 0, deviation 1. [H, W]"""
    padded = fft.next_fast_len(shape[0], real=True), fft.next_fast_len(shape[1], real=True)
    gain = np.maximum(_frequencies(*padded), 1.0 / longest) ** np.float32(-beta)
    return _filtered(rng, shape, gain, padded)


def band(rng: Rng, shape: tuple[int, int], *, wavelength: float, width: float = 0.25) -> F32:
    """Random field of one dominant wavelength [px], relative band `width`; mean 0, deviation 1. [H, W]"""
    padded = fft.next_fast_len(shape[0], real=True), fft.next_fast_len(shape[1], real=True)
    centre = 1.0 / wavelength
    gain = np.exp(-0.5 * ((_frequencies(*padded) - centre) / (width * centre)) ** 2)
    return _filtered(rng, shape, gain.astype(np.float32), padded)


def smooth_line(rng: Rng, length: int, *, correlation: float) -> F32:
    """Random curve of `length` points, correlation length [px], mean 0, deviation 1."""
    frequency = np.fft.rfftfreq(length)
    gain = np.exp(-((np.pi * correlation * frequency) ** 2) / 2)
    gain[0] = 0.0
    curve = np.fft.irfft(np.fft.rfft(rng.standard_normal(length)) * gain, n=length)
    return np.asarray(curve / max(float(curve.std()), 1e-9), dtype=np.float32)


@dataclass
class Cells:
    """Worley cells: distance to the nearest and second nearest seed [px] and the nearest seed's number. [H, W] each"""

    first: F32
    second: F32
    number: I32
    count: int


def cells(
    rng: Rng, shape: tuple[int, int], *, pitch: float, disorder: float = 0.75, warp: float = 0.0,
    stretch: float = 1.0,
) -> Cells:  # fmt: skip
    """Divide the sheet among seeds near a staggered grid of `pitch` [px].

    `warp` [px] bends the borders, `stretch` lengthens cells in y. Only the 3 x 3 seeds around a pixel's own site are
    compared (Worley, SIGGRAPH 1996): exact at small disorder, a good likeness above it.
    """
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    if warp > 0:
        x = x + warp * fractal(rng, shape, beta=2.4, longest=pitch)
        y = y + warp * fractal(rng, shape, beta=2.4, longest=pitch)
    x, y = x / pitch + 3, y / (pitch * stretch) + 3
    rows, columns = int(np.ceil(y.max())) + 3, int(np.ceil(x.max())) + 3
    stagger = 0.5 * (np.arange(rows, dtype=np.float32) % 2)
    seeds = 0.5 + disorder * (rng.random((2, rows, columns), dtype=np.float32) - 0.5)
    seeds[0] += np.arange(rows, dtype=np.float32)[:, None]
    seeds[1] += np.arange(columns, dtype=np.float32)[None, :] + stagger[:, None]
    row = np.clip(y, 1, rows - 2).astype(np.int32)
    home = row * columns + np.clip(x - stagger[row], 1, columns - 2).astype(np.int32)
    first = np.full(shape, np.inf, np.float32)
    second = first.copy()
    number = np.zeros(shape, np.int32)
    seed_y, seed_x = seeds[0].ravel(), seeds[1].ravel()
    for step in [dy * columns + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
        index = home + np.int32(step)
        distance = (y - seed_y[index]) ** 2 + (x - seed_x[index]) ** 2
        nearer = distance < first
        second = np.minimum(second, np.where(nearer, first, distance))
        number = np.where(nearer, index, number)
        first = np.minimum(first, distance)
    near, far = (np.asarray(np.sqrt(square) * pitch, dtype=np.float32) for square in (first, second))
    return Cells(near, far, number.astype(np.int32), rows * columns)


def whole_cells(
    rng: Rng,
    shape: tuple[int, int],
    *,
    pitch: float,
    disorder: float,
    warp: float,
    inside: Callable[[Cells], Mask],
) -> tuple[Cells, I32, DrawnObjects]:
    """Cells of a frame with the true areas and centres of those that its edge cuts, from a margin drawn and cropped.

    `inside` says which pixels of a cell belong to the object (not to its border). Returns cells, labels [H, W], table.
    """
    pad = int(0.8 * pitch) + 1
    wide = (shape[0] + 2 * pad, shape[1] + 2 * pad)
    tiles = cells(rng, wide, pitch=pitch, disorder=disorder, warp=warp)
    flat = np.where(inside(tiles), tiles.number + 1, 0).ravel()
    area = np.bincount(flat, minlength=tiles.count + 1)
    y, x = np.indices(wide, dtype=np.float32)
    cy, cx = (
        np.bincount(flat, weights=axis.ravel(), minlength=tiles.count + 1) / np.maximum(area, 1) for axis in (y, x)
    )
    lookup, objects = np.zeros(tiles.count + 1, np.int32), DrawnObjects()
    for index in (np.flatnonzero(area[1:]) + 1).tolist():
        lookup[index] = objects.add(cx[index] - pad, cy[index] - pad, area=area[index])
    frame = np.s_[pad : pad + shape[0], pad : pad + shape[1]]
    cropped = Cells(tiles.first[frame], tiles.second[frame], tiles.number[frame], tiles.count)
    return cropped, lookup[flat.reshape(wide)[frame]], objects


@dataclass
class Stamp:
    """One solid body seen from above: height over its base [px], its outline, and its length over its width."""

    z: F32
    inside: Mask
    aspect: float = 1.0

    @property
    def area(self) -> float:
        return float(self.inside.sum())


def grid(radius: float) -> tuple[F32, F32]:
    half = int(np.ceil(radius)) + 1
    axis = np.arange(-half, half + 1, dtype=np.float32)
    return axis[:, None], axis[None, :]


def _turn(y: F32, x: F32, angle_deg: float) -> tuple[F32, F32]:
    """Coordinates along and across an axis at `angle_deg`, counter-clockwise from x with y pointing down."""
    c, s = np.float32(np.cos(np.deg2rad(angle_deg))), np.float32(np.sin(np.deg2rad(angle_deg)))
    return x * c - y * s, x * s + y * c


def ellipsoid(radius: float, *, aspect: float = 1.0, angle: float = 0.0, lift: float = 1.0) -> Stamp:
    """Ellipsoid resting on its base; `radius` is that of the circle of equal area."""
    long, short = radius * np.sqrt(aspect), radius / np.sqrt(aspect)
    y, x = grid(long)
    u, v = _turn(y, x, angle)
    inner = 1.0 - (u / long) ** 2 - (v / short) ** 2
    z = short * (lift + np.sqrt(np.maximum(inner, 0.0)))
    return Stamp(z.astype(np.float32), inner > 0, aspect)


def capsule(length: float, radius: float, *, angle: float, taper: float = 0.0, bend: float = 0.0) -> Stamp:
    """Rod with round ends, `length` [px] between the ends' centres; `taper` 0..1 thins one end, `bend` [px] bows it."""
    y, x = grid(length / 2 + radius + abs(bend))
    u, v = _turn(y, x, angle)
    v = v - bend * (1 - (2 * u / max(length, 1.0)) ** 2) * (np.abs(u) <= length / 2)
    along = np.clip(u, -length / 2, length / 2)
    local = radius * (1 - taper * (along / max(length, 1.0) + 0.5))
    inner = local**2 - (u - along) ** 2 - v**2
    z = radius + np.sqrt(np.maximum(inner, 0.0))
    return Stamp(z.astype(np.float32), inner > 0, (length + 2 * radius) / (2 * radius))


def polyhedron(rng: Rng, radius: float, *, facets: int = 9, flat: float = 1.0) -> Stamp:
    """Convex crystal: the lower envelope of random planes over a polygonal outline of about `radius`."""
    y, x = grid(radius * 1.25)
    turn = rng.uniform(0, 2 * np.pi)
    sides = int(rng.integers(5, 8))
    around = turn + (np.arange(sides) + rng.uniform(-0.18, 0.18, sides)) * 2 * np.pi / sides
    reach = radius * rng.uniform(0.82, 1.08, sides)
    rim = np.min([r - x * np.cos(a) - y * np.sin(a) for a, r in zip(around, reach, strict=True)], axis=0)
    top = np.full(rim.shape, radius * rng.uniform(0.75, 1.0) * flat, np.float32)
    slopes = rng.uniform(0.35, 1.3, facets - 3)
    tilts = turn + rng.uniform(0, 2 * np.pi) + np.arange(facets - 3) * 2 * np.pi / max(facets - 3, 1)
    for slope, a in zip(slopes, tilts, strict=True):
        offset = radius * rng.uniform(0.75, 1.15) * flat
        top = np.minimum(top, offset + 0.35 * radius - slope * flat * (x * np.cos(a) + y * np.sin(a)))
    z = radius * 0.6 * flat + np.minimum(top, 2.2 * rim)
    return Stamp(np.maximum(z, 0.1).astype(np.float32), rim > 0)


def lump(rng: Rng, radius: float, *, rough: float = 0.22, flat: float = 0.9) -> Stamp:
    """Irregular grain: a wavy outline with a bumpy dome."""
    y, x = grid(radius * 1.5)
    turn = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    k = np.arange(2, 8)[:, None]
    waves = rng.normal(0, 1, (6, 1)) / k**1.4 * np.cos(k * turn + rng.uniform(0, 2 * np.pi, (6, 1)))
    reach = (radius * np.clip(1 + rough * 1.6 * waves.sum(axis=0), 0.6, 1.45)).astype(np.float32)
    sector = (np.arctan2(y, x) * np.float32(64 / np.pi)).astype(np.int32) % 128
    distance = np.hypot(x, y) / reach[sector]
    dome = np.sqrt(np.maximum(1 - distance**2, 0.0))
    kx, ky, phase = rng.normal(0, 2.2 / radius, 2), rng.normal(0, 2.2 / radius, 2), rng.uniform(0, 6.28, 2)
    bumps = np.cos(kx[0] * x + ky[0] * y + phase[0]) + np.cos(kx[1] * x + ky[1] * y + phase[1])
    z = radius * flat * (0.5 + dome + rough * 0.5 * bumps * dome)
    return Stamp(np.maximum(z, 0.1).astype(np.float32), distance < 1)


def shard(rng: Rng, radius: float) -> Stamp:
    """Crushed grain: an elongated crystal whose edges are worn and whose faces are not flat."""
    y, x = grid(radius * 1.6)
    stretch, way = rng.uniform(1.0, 1.5), rng.uniform(0, 180)
    u, v = _turn(y, x, way)
    u, v = u / np.sqrt(stretch), v * np.sqrt(stretch)
    planes = 7
    around = rng.uniform(0, 6.28) + (np.arange(planes) + rng.uniform(-0.35, 0.35, planes)) * 2 * np.pi / planes
    reach = radius * rng.uniform(0.75, 1.15, planes)
    rim = np.min([r - u * np.cos(a) - v * np.sin(a) for a, r in zip(around, reach, strict=True)], axis=0)
    top = np.full(rim.shape, radius * 0.9, np.float32)
    for a in rng.uniform(0, 6.28, 4):
        slope = rng.uniform(0.3, 1.1)
        top = np.minimum(top, radius * rng.uniform(0.55, 1.0) - slope * (u * np.cos(a) + v * np.sin(a)))
    soft = 0.12 * radius
    flank = 1.6 * rim
    z = 0.5 * (top + flank - np.sqrt((top - flank) ** 2 + soft**2))
    z = z + 0.05 * radius * np.cos(rng.normal(0, 4 / radius) * x + rng.normal(0, 4 / radius) * y + rng.uniform(0, 6.28))
    return Stamp(np.maximum(z + 0.6 * radius, 0.1).astype(np.float32), rim > 0, stretch)


def flake(rng: Rng, radius: float) -> Stamp:
    """Thin tilted polygonal plate."""
    y, x = grid(radius * 1.3)
    sides = int(rng.integers(4, 8))
    around = rng.uniform(0, 6.28) + (np.arange(sides) + rng.uniform(-0.25, 0.25, sides)) * 6.2832 / sides
    reach = radius * rng.uniform(0.6, 1.1, sides)
    rim = np.min([r - x * np.cos(a) - y * np.sin(a) for a, r in zip(around, reach, strict=True)], axis=0)
    lean, way = rng.uniform(0.05, 0.55), rng.uniform(0, 6.28)
    z = radius * (0.25 + lean) + lean * (x * np.cos(way) + y * np.sin(way)) + np.minimum(rim, 1.5)
    return Stamp(np.maximum(z, 0.1).astype(np.float32), rim > 0)


class Bank:
    """Bodies of one kind, made once per size step and variant and then turned or mirrored: piles need hundreds."""

    def __init__(self, make: Callable[[Rng, float], Stamp], *, variants: int = 8, step: float = 0.07) -> None:
        self.make, self.variants, self.step = make, variants, step
        self.shelf: dict[tuple[int, int], Stamp] = {}

    def take(self, rng: Rng, radius: float) -> Stamp:
        """A body whose size is within half a step (3.5 %) of `radius` [px]."""
        size, variant, turn = round(np.log(radius) / self.step), int(rng.integers(self.variants)), int(rng.integers(8))
        if (size, variant) not in self.shelf:
            self.shelf[size, variant] = self.make(rng, float(np.exp(size * self.step)))
        stamp = self.shelf[size, variant]
        z, inside = np.rot90(stamp.z, turn % 4), np.rot90(stamp.inside, turn % 4)
        return Stamp(z[::-1], inside[::-1], stamp.aspect) if turn > 3 else Stamp(z, inside, stamp.aspect)


class Sheet:
    """The field of view while it is drawn: height, material and label of the topmost body at each pixel."""

    def __init__(self, shape: tuple[int, int], *, material: float | F32) -> None:
        self.shape = shape
        self.height: F32 = np.zeros(shape, np.float32)
        self.material: F32 = np.zeros(shape, np.float32) + np.float32(material)
        self.labels: I32 = np.zeros(shape, np.int32)
        self.objects = DrawnObjects()

    def base_at(self, x: float, y: float) -> float:
        """Height of what already lies at a point, clipped into the frame."""
        row, column = np.clip(round(y), 0, self.shape[0] - 1), np.clip(round(x), 0, self.shape[1] - 1)
        return float(self.height[row, column])

    def is_free(self, stamp: Stamp, x: float, y: float) -> bool:
        """Whether a body laid at a point would cover nothing that already has a label."""
        frame, part = self._overlap(stamp, x, y)
        return not bool((stamp.inside[part] & (self.labels[frame] > 0)).any())

    def _overlap(self, stamp: Stamp, x: float, y: float) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part of the frame a stamp at a point covers, and the part of the stamp that lies in the frame."""
        rows, columns = stamp.z.shape
        top, left = round(y) - rows // 2, round(x) - columns // 2
        y0, y1 = min(max(top, 0), self.shape[0]), max(min(top + rows, self.shape[0]), 0)
        x0, x1 = min(max(left, 0), self.shape[1]), max(min(left + columns, self.shape[1]), 0)
        return np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]

    def place(
        self, stamp: Stamp, x: float, y: float, *, material: float, base: float = 0.0, label: int | None = None
    ) -> int:  # fmt: skip
        """Press a body into the sheet where it stands higher; returns its label (a new one unless given)."""
        if label is None:
            label = self.objects.add(round(x), round(y), area=stamp.area, aspect=stamp.aspect)
        frame, part = self._overlap(stamp, x, y)
        z = stamp.z[part] + np.float32(base)
        over = stamp.inside[part] & (z > self.height[frame])
        self.height[frame][over] = z[over]
        self.material[frame][over] = material
        self.labels[frame][over] = label
        return label

    def ribbon(self, centre: F32, half_width: F32, *, base: F32, material: float, label: int, across: bool) -> None:
        """Draw a round wire along a curve: its centre for each column (for each row if `across`), half width [px]."""
        height, stuff, labels = (a.T if across else a for a in (self.height, self.material, self.labels))
        slope = np.gradient(centre)
        squeeze = 1.0 / np.sqrt(1.0 + slope**2)
        reach = int(np.ceil(float((half_width / squeeze).max()))) + 1
        offset = np.arange(-reach, reach + 1)
        row = np.round(centre).astype(np.int64)[None, :] + offset[:, None]
        column = np.broadcast_to(np.arange(len(centre)), row.shape)
        distance = (row - centre[None, :]) * squeeze
        inner = half_width**2 - distance**2
        z = base + half_width + np.sqrt(np.maximum(inner, 0))
        ok = (inner > 0) & (row >= 0) & (row < height.shape[0])
        row, column, z = row[ok], column[ok], z[ok].astype(np.float32)
        over = z > height[row, column]
        row, column = row[over], column[over]
        height[row, column] = z[over]
        stuff[row, column] = material
        labels[row, column] = label


def hard_core(
    rng: Rng, shape: tuple[int, int], radii: F32, *, gap: float, tries: int = 25, border: float = 1.0
) -> list[tuple[float, float, float]]:  # fmt: skip
    """Put discs down one by one, largest first, so that none comes nearer to another than `gap` times touching.

    Centres may lie outside the frame by `border` radii.
    """
    xs, ys, rs = np.empty(len(radii)), np.empty(len(radii)), np.empty(len(radii))
    n = 0
    for radius in sorted(radii.tolist(), reverse=True):
        for _ in range(tries):
            edge = border * radius
            x, y = rng.uniform(-edge, shape[1] + edge), rng.uniform(-edge, shape[0] + edge)
            near = np.hypot(xs[:n] - x, ys[:n] - y) < gap * (rs[:n] + radius)
            if not near.any():
                xs[n], ys[n], rs[n] = x, y, radius
                n += 1
                break
    return list(zip(xs[:n].tolist(), ys[:n].tolist(), rs[:n].tolist(), strict=True))


def scratch(rng: Rng, shape: tuple[int, int], *, width: float) -> F32:
    """Profile of a long straight groove across the sheet, 1 in its middle, 0 outside. [H, W]"""
    y, x = np.ogrid[: shape[0], : shape[1]]
    angle = rng.uniform(0, np.pi)
    middle_y, middle_x = rng.uniform(0.25, 0.75) * shape[0], rng.uniform(0.25, 0.75) * shape[1]
    distance = (y - middle_y) * np.cos(angle) - (x - middle_x) * np.sin(angle)
    wander = 0.25 * width * np.sin(0.02 * (x * np.cos(angle) + y * np.sin(angle)))
    return np.asarray(np.exp(-0.5 * ((distance + wander) / width) ** 2), dtype=np.float32)


def spot(rng: Rng, shape: tuple[int, int], *, radius: float) -> F32:
    """A soft-edged round stain, 1 inside, 0 outside, somewhere in the middle of the sheet. [H, W]"""
    y, x = np.ogrid[: shape[0], : shape[1]]
    cy, cx = rng.uniform(0.25, 0.75) * shape[0], rng.uniform(0.25, 0.75) * shape[1]
    distance = np.hypot(y - cy, x - cx) / radius
    return np.asarray(1.0 / (1.0 + np.exp(np.clip((distance - 1) * 10, -30, 30))), dtype=np.float32)

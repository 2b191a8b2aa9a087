"""Patterned surfaces: lithographic lines, pillars, holes and grids on a regular lattice. Knows nothing about
optics.
"""

from __future__ import annotations

import numpy as np

from assistant.arrays import F32, Mask
from data_gen.drawing.scenes.geometry import Rng, drawn_pixel_size, fractal, log_uniform, pick, smooth_line, spot
from data_gen.drawing.scenes.imaging import DrawnObjects, Scene, Words, blur, canvas_size

RELIEF = 1.0


def _tones(sample: Rng, light: float, dark: float) -> tuple[float, float]:
    """Yield of the structure and of the ground: metal on silicon, or resist on metal."""
    return (0.6 * dark, light) if sample.random() < 0.35 else (light, dark)


def _frame(size: tuple[int, int], angle: float) -> tuple[F32, F32]:
    """Coordinates along and across lines at `angle` [deg, counter-clockwise], zero at the middle. [H, W] each"""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    y, x = y - size[0] / 2, x - size[1] / 2
    c, s = np.float32(np.cos(np.deg2rad(angle))), np.float32(np.sin(np.deg2rad(angle)))
    return x * c - y * s, x * s + y * c


class _Lines:
    """Edges of parallel lines: a nominal position plus a correlated random displacement along each edge [px]."""

    def __init__(self, rng: Rng, count: int, *, reach: int, pitch: float, width: float, sigma: float) -> None:
        self.centre = (np.arange(count) - count // 2) * pitch
        correlation = 22.0
        self.rough = np.stack([sigma * smooth_line(rng, 2 * reach, correlation=correlation) for _ in range(2 * count)])
        self.reach, self.pitch, self.width, self.count = reach, pitch, width, count

    def distance(self, along: F32, across: F32) -> tuple[F32, np.ndarray]:
        """Signed depth inside the nearest line [px] (positive inside) and that line's number."""
        index = np.clip(np.round(across / self.pitch).astype(np.int64) + self.count // 2, 0, self.count - 1)
        step = np.clip(np.round(along).astype(np.int64) + self.reach, 0, 2 * self.reach - 1)
        offset = across - self.centre[index]
        left = offset + self.width / 2 + self.rough[2 * index, step]
        right = self.width / 2 + self.rough[2 * index + 1, step] - offset
        return np.minimum(left, right).astype(np.float32), index


def _line_defects(
    rng: Rng, lines: _Lines, along: F32, across: F32, depth: F32, index: np.ndarray
) -> tuple[F32, list[str]]:  # fmt: skip
    """Take a line away, cut one, or join two."""
    middle = lines.count // 2 + int(rng.integers(-2, 3))
    at = rng.uniform(-0.25, 0.25) * lines.reach
    kind = pick(rng, "missing line", "bridge", "broken line")
    if kind == "missing line":
        return np.where(index == middle, -lines.pitch / 2, depth).astype(np.float32), [kind]
    if kind == "broken line":
        cut = np.abs(along - at) - 0.8 * lines.width
        return np.where(index == middle, np.minimum(depth, cut), depth).astype(np.float32), [kind]
    centre = float(lines.centre[middle])
    span = (across > centre) & (across < centre + lines.pitch)
    bar = 0.6 * lines.width - np.abs(along - at)
    return np.where(span, np.maximum(depth, bar), depth).astype(np.float32), [kind]


def _draw_lines(sample: Rng, view: Rng, size: tuple[int, int], *, scale: float) -> Scene:
    nm_per_pixel = drawn_pixel_size(sample, 0.6, 12.0, width=size[1])
    pitch = log_uniform(sample, 16, 60) * scale
    duty = sample.uniform(0.38, 0.62)
    width = duty * pitch
    rough = sample.random() < 0.5
    sigma = (sample.uniform(1.1, 2.0) if rough else sample.uniform(0.15, 0.5)) * min(1.0, pitch / 24)
    angle = float(pick(sample, "0", "90", "90", "45", "135")) + sample.normal(0, 1.5)
    tall = sample.uniform(5, 14)
    tones = _tones(sample, sample.uniform(0.5, 0.75), sample.uniform(0.2, 0.4))
    along, across = _frame(size, angle)
    across = across + view.uniform(-0.5, 0.5) * pitch
    reach = int(np.hypot(*size) / 2) + 2
    lines = _Lines(view, 2 * int(reach / pitch) + 5, reach=reach, pitch=pitch, width=width, sigma=sigma)
    depth, index = lines.distance(along, across)
    defects: list[str] = []
    if view.random() < 0.35:
        depth, defects = _line_defects(view, lines, along, across, depth, index)
    feature: Mask = depth > 0
    height = tall * np.clip(depth / 1.6 + 0.5, 0, 1)
    material = np.where(feature, tones[0], tones[1]).astype(np.float32)
    numbers = {
        "period": pitch * nm_per_pixel,
        "line_width": width * nm_per_pixel,
        "line_edge_roughness": 3 * float(lines.rough.std()) * nm_per_pixel,
        "orientation": angle % 180,
    }
    words: Words = {
        "shape": "lines", "surface": "rough" if rough else "smooth", "arrangement": "periodic",
        "distribution": "uniform", "touching": "fused" if "bridge" in defects else "separate", "defects": defects,
    }  # fmt: skip
    return Scene(
        blur(height.astype(np.float32), 0.5), material, feature, nm_per_pixel, words, numbers=numbers,
        count_objects=False,
    )  # fmt: skip


def _sites(
    size: tuple[int, int], pitch: float, *, hexagonal: bool, angle: float, shift: tuple[float, float]
) -> np.ndarray:  # fmt: skip
    """Lattice points in and around the frame. [N, 2] as x, y"""
    n = int(np.hypot(*size) / pitch) + 3
    i, j = np.mgrid[-n:n, -n:n]
    u = pitch * (i + 0.5 * (j % 2) * hexagonal).ravel() + shift[0]
    v = pitch * (j * (np.sqrt(0.75) if hexagonal else 1.0)).ravel() + shift[1]
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    x, y = size[1] / 2 + u * c + v * s, size[0] / 2 - u * s + v * c
    keep = (x > -pitch) & (x < size[1] + pitch) & (y > -pitch) & (y < size[0] + pitch)
    return np.stack([x[keep], y[keep]], axis=1)


def _stamp_sites(
    labels: np.ndarray, depth: F32, objects: DrawnObjects, sites: np.ndarray, radius: float, *, square: bool
) -> None:  # fmt: skip
    """Draw one disc (or rounded square) at each site into the label map and the depth-inside map."""
    half = int(radius * 1.3) + 3
    axis = np.arange(-half, half + 1, dtype=np.float32)
    for x, y in sites.tolist():
        r0, c0 = round(y), round(x)
        dy, dx = axis[:, None] + (r0 - y), axis[None, :] + (c0 - x)
        near = (dx**4 + dy**4) ** 0.25 if square else np.hypot(dx, dy)
        inside = radius - near
        top, left = r0 - half, c0 - half
        y0, y1 = max(top, 0), min(r0 + half + 1, labels.shape[0])
        x0, x1 = max(left, 0), min(c0 + half + 1, labels.shape[1])
        label = objects.add(x, y, area=float((inside > 0).sum()))
        if y0 >= y1 or x0 >= x1:
            continue
        part = inside[y0 - top : y1 - top, x0 - left : x1 - left]
        here = np.s_[y0:y1, x0:x1]
        depth[here] = np.maximum(depth[here], part)
        labels[here][part > 0] = label


def _draw_sites(sample: Rng, view: Rng, size: tuple[int, int], *, scale: float, shape: str) -> Scene:
    nm_per_pixel = drawn_pixel_size(sample, 1.5, 50.0, width=size[1])
    pitch = log_uniform(sample, 22, 64) * scale
    radius = pitch * sample.uniform(0.24, 0.38)
    hexagonal = sample.random() < 0.5
    square = sample.random() < 0.3
    tilt = float(pick(sample, "0", "0", "30", "45")) if shape == "pillars" else 0.0
    angle = 0.0 if tilt else sample.uniform(-12, 12) if sample.random() < 0.5 else 0.0
    tall = radius * sample.uniform(1.2, 2.4) * (1.6 if tilt else 1.0)
    tones = _tones(sample, sample.uniform(0.5, 0.75), sample.uniform(0.25, 0.4))
    ground = canvas_size(size, tilt, relief=tall)
    shift = (view.uniform(-0.5, 0.5) * pitch, view.uniform(-0.5, 0.5) * pitch)
    sites = _sites(ground, pitch, hexagonal=hexagonal, angle=angle, shift=shift)
    defects: list[str] = []
    if view.random() < 0.35:
        inner = np.abs(sites - np.array([ground[1] / 2, ground[0] / 2])) < 0.42 * np.array([size[1], size[0]])
        gone = view.choice(np.flatnonzero(inner.all(axis=1)), size=int(view.integers(1, 4)))
        sites = np.delete(sites, gone, axis=0)
        defects.append("missing pillar" if shape == "pillars" else "missing hole")
    labels, depth, objects = np.zeros(ground, np.int32), np.full(ground, -9.0, np.float32), DrawnObjects()
    _stamp_sites(labels, depth, objects, sites, radius, square=square)
    rise = np.clip(depth / 1.5 + 0.5, 0, 1) * tall
    feature = labels > 0
    height = rise if shape == "pillars" else -rise
    material = np.where(
        feature, tones[0] if shape == "pillars" else 0.12, tones[1] if shape == "pillars" else max(tones)
    ).astype(np.float32)
    if view.random() < 0.15:
        material *= 1 - 0.4 * spot(view, ground, radius=0.14 * size[1])
        defects.append("contamination")
    numbers = {"period": pitch * (np.sqrt(0.75) if hexagonal else 1.0) * nm_per_pixel}
    words: Words = {
        "shape": shape, "surface": "smooth", "arrangement": "periodic", "distribution": "uniform",
        "touching": "separate", "defects": defects,
    }  # fmt: skip
    return Scene(
        height.astype(np.float32), material, feature, nm_per_pixel, words, numbers=numbers,
        labels=labels, objects=objects, tilt_deg=tilt, area_fact="porosity" if shape == "holes" else "coverage",
    )  # fmt: skip


def _draw_grid(sample: Rng, view: Rng, size: tuple[int, int], *, scale: float) -> Scene:
    """Two sets of lines that cross: a mesh of bars."""
    nm_per_pixel = drawn_pixel_size(sample, 2.0, 60.0, width=size[1])
    pitch = log_uniform(sample, 34, 85) * scale
    width = pitch * sample.uniform(0.18, 0.4)
    angle = float(pick(sample, "0", "45")) + sample.normal(0, 2.0)
    tall = sample.uniform(6, 14)
    tones = _tones(sample, sample.uniform(0.5, 0.75), sample.uniform(0.15, 0.35))
    along, across = _frame(size, angle)
    along, across = along + view.uniform(0, pitch), across + view.uniform(0, pitch)
    edge = [width / 2 - np.abs((v + pitch / 2) % pitch - pitch / 2) for v in (along, across)]
    depth = np.maximum(edge[0], edge[1])
    feature = depth > 0
    height = tall * np.clip(depth / 1.6 + 0.5, 0, 1)
    words: Words = {
        "shape": "grid", "surface": "smooth", "arrangement": "periodic", "distribution": "uniform",
        "touching": "fused", "defects": [],
    }  # fmt: skip
    numbers = {"period": pitch * nm_per_pixel, "line_width": width * nm_per_pixel}
    if tones[0] > tones[1]:
        numbers["porosity"] = 100.0 * float((~feature).mean())
    labels, objects = _openings(along, across, feature, pitch=pitch, width=width)
    material = np.where(feature, tones[0], tones[1]).astype(np.float32)
    return Scene(
        height.astype(np.float32),
        material,
        feature,
        nm_per_pixel,
        words,
        numbers=numbers,
        labels=labels,
        objects=objects,
    )


def _openings(along: F32, across: F32, feature: Mask, *, pitch: float, width: float) -> tuple[np.ndarray, DrawnObjects]:
    """The openings of a mesh: their label map and table."""
    row, column = (np.floor(v / pitch).astype(np.int64) for v in (across, along))
    cell = (row - row.min()) * (int(np.ptp(column)) + 1) + column - column.min()
    used, labels = np.unique(np.where(feature, -1, cell), return_inverse=True)
    labels = labels.reshape(feature.shape) + (1 if used[0] >= 0 else 0)
    objects = DrawnObjects()
    # The frame turns rigidly, so a centre follows from the coordinates along and across at three corners.
    axes = np.array([[along[0, 1] - along[0, 0], along[1, 0] - along[0, 0]],
                     [across[0, 1] - across[0, 0], across[1, 0] - across[0, 0]]])  # fmt: skip
    for number in used[used >= 0].tolist():
        i, j = divmod(number, int(np.ptp(column)) + 1)
        middle = np.array([(j + int(column.min()) + 0.5) * pitch - along[0, 0],
                           (i + int(row.min()) + 0.5) * pitch - across[0, 0]])  # fmt: skip
        x, y = np.linalg.solve(axes, middle).tolist()
        objects.add(x, y, area=(pitch - width) ** 2)
    return labels.astype(np.int32), objects


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view of a patterned surface."""
    scale = max(size[1] / 640, 0.4)
    shape = pick(sample, "lines", "lines", "pillars", "holes", "grid")
    grain = sample.uniform(0.05, 0.3)
    if shape == "lines":
        scene = _draw_lines(sample, view, size, scale=scale)
    elif shape == "grid":
        scene = _draw_grid(sample, view, size, scale=scale)
    else:
        scene = _draw_sites(sample, view, size, scale=scale, shape=shape)
    scene.height += grain * fractal(view, scene.height.shape, beta=0.8, longest=10)
    return scene

"""Films and coated surfaces: grains, mud cracks, wrinkles, a plain film with pinholes, a cross-section. Knows
nothing about optics.
"""

from __future__ import annotations

import numpy as np

from assistant.arrays import F32, Mask
from data_gen.drawing.scenes.geometry import (
    Rng,
    band,
    cells,
    drawn_pixel_size,
    ellipsoid,
    fractal,
    log_uniform,
    pick,
    scratch,
    smooth_line,
    spot,
    whole_cells,
)  # fmt: skip
from data_gen.drawing.scenes.imaging import DrawnObjects, Scene, Words, blur


def _words(shape: str, surface: str, arrangement: str, *, broad: bool, touching: str, defects: list[str]) -> Words:
    return {
        "shape": shape, "surface": surface, "arrangement": arrangement,
        "distribution": "broad" if broad else "uniform", "touching": touching, "defects": defects,
    }  # fmt: skip


def _stain_and_scratch(view: Rng, height: F32, material: F32) -> tuple[F32, F32, list[str]]:
    defects = []
    if view.random() < 0.18:
        material = material * (1 - 0.4 * spot(view, height.shape, radius=view.uniform(0.08, 0.18) * height.shape[1]))
        defects.append("contamination")
    if view.random() < 0.18:
        height = height - 6 * scratch(view, height.shape, width=2.5)
        defects.append("scratch")
    return height.astype(np.float32), material.astype(np.float32), defects


def _grains(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Polycrystalline film: faceted crystals with channelling contrast, or rounded domes."""
    nm_per_pixel = drawn_pixel_size(sample, 1.5, 25.0, width=size[1])
    scale = max(size[1] / 640, 0.35)
    pitch = log_uniform(sample, 16, 48) * scale
    rounded = sample.random() < 0.5
    broad = sample.random() < 0.4
    channel = sample.uniform(0.08, 0.35)
    disorder, warp = 0.98 if broad else 0.6, (0.07 if rounded else 0.02) * pitch
    tiles, labels, objects = whole_cells(
        view, size, pitch=pitch, disorder=disorder, warp=warp, inside=lambda drawn: np.ones(drawn.first.shape, bool)
    )
    lean = view.normal(0, 0.28, (2, tiles.count)).astype(np.float32)
    tone = (1 + channel * view.uniform(-1, 1, tiles.count)).astype(np.float32)
    rim = np.clip((tiles.second - tiles.first) / pitch, 0, 1)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    if rounded:
        height = pitch * 0.5 * np.sqrt(np.clip(rim * 1.6, 0, 1)) + 0.1 * pitch * tone[tiles.number]
        height += 0.02 * pitch * fractal(view, size, beta=0.8, longest=pitch * 0.5)
    else:
        height = 0.3 * pitch * tone[tiles.number]
        slope = lean[0][tiles.number] * x + lean[1][tiles.number] * y
        total, pixels = (
            np.bincount(tiles.number.ravel(), weights=weights, minlength=tiles.count)
            for weights in (slope.ravel(), None)
        )
        middle = (total / np.maximum(pixels, 1))[tiles.number].astype(np.float32)
        height = height + slope - middle - 2.0 * np.exp(-rim * pitch / 2.0)
    material = 0.55 * tone[tiles.number]
    feature = (tiles.second - tiles.first) > 0.12 * pitch
    height, material, defects = _stain_and_scratch(view, blur(height.astype(np.float32), 0.7), material)
    words = _words(
        "rounded" if rounded else "faceted",
        "granular",
        "random",
        broad=broad,
        touching="touching",
        defects=defects,
    )
    return Scene(
        height,
        material,
        feature,
        nm_per_pixel,
        words,
        labels=labels.astype(np.int32),
        objects=objects,
        glow=0.9,
    )


def _cracked(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Dried coating broken into plates by a network of cracks; some plates have curled or gone."""
    nm_per_pixel = drawn_pixel_size(sample, 5.0, 100.0, width=size[1])
    scale = max(size[1] / 640, 0.35)
    pitch = log_uniform(sample, 60, 130) * scale
    width = log_uniform(sample, 2.5, 9) * scale
    broad = sample.random() < 0.5
    thick = sample.uniform(6, 14)
    lost = sample.random() < 0.4
    tone = sample.uniform(0.45, 0.7)
    tiles, labels, objects = whole_cells(
        view,
        size,
        pitch=pitch,
        disorder=0.98 if broad else 0.6,
        warp=0.06 * pitch,
        inside=lambda t: t.second - t.first >= width * 1.6,
    )
    gap = (tiles.second - tiles.first) < width * 1.6
    height = thick + 0.4 * fractal(view, size, beta=1.2, longest=30)
    height += 0.25 * thick * np.exp(-(tiles.second - tiles.first) / (0.15 * pitch))
    material = np.full(size, tone, np.float32)
    gone = gap.copy()
    defects: list[str] = []
    if lost:
        missing = view.random(tiles.count) < 0.06
        gone |= missing[tiles.number]
        defects += ["delamination"] if bool(missing[np.unique(tiles.number)].any()) else []
    height = np.where(gone, 0.25 * fractal(view, size, beta=1.0, longest=10), height)
    material[gone] = 0.25
    material[gap] = 0.06
    labels = np.where(gone, 0, labels).astype(np.int32)
    height, material, extra = _stain_and_scratch(view, height.astype(np.float32), material)
    words = _words("plate-like", "cracked", "network", broad=broad, touching="separate", defects=defects + extra)
    return Scene(height, material, ~gone, nm_per_pixel, words, labels=labels, objects=objects)


def _wrinkled(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Film buckled under stress: worm-like or parallel wrinkles of one wavelength."""
    nm_per_pixel = drawn_pixel_size(sample, 4.0, 80.0, width=size[1])
    scale = max(size[1] / 640, 0.35)
    wavelength = log_uniform(sample, 20, 55) * scale
    aligned = sample.random() < 0.45
    lead = sample.uniform(0, 180)
    tone = sample.uniform(0.4, 0.65)
    if aligned:
        y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
        c, s = np.cos(np.deg2rad(lead)), np.sin(np.deg2rad(lead))
        phase = 2 * np.pi * (x * s + y * c) / wavelength + 1.3 * fractal(view, size, beta=2.4, longest=6 * wavelength)
        wave = np.sin(phase)
    else:
        wave = np.tanh(1.4 * band(view, size, wavelength=wavelength, width=0.13))
    height = 0.2 * wavelength * wave + 0.2 * fractal(view, size, beta=1.0, longest=12)
    material = np.full(size, tone, np.float32)
    height, material, defects = _stain_and_scratch(view, height.astype(np.float32), material)
    numbers = {"period": wavelength * nm_per_pixel}
    if aligned:
        numbers["orientation"] = lead
    words = _words(
        "continuous",
        "wrinkled",
        "aligned" if aligned else "network",
        broad=False,
        touching="fused",
        defects=defects,
    )
    return Scene(height, material, wave > 0, nm_per_pixel, words, numbers=numbers, count_objects=False)


def _plain(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Almost featureless film with round pinholes."""
    nm_per_pixel = drawn_pixel_size(sample, 2.0, 60.0, width=size[1])
    scale = max(size[1] / 640, 0.35)
    mean = log_uniform(sample, 4, 12) * scale
    broad = sample.random() < 0.5
    tone = sample.uniform(0.45, 0.7)
    grain = sample.uniform(0.25, 0.7)
    height = grain * fractal(view, size, beta=0.9, longest=14)
    material = np.full(size, tone, np.float32) * (1 + 0.06 * fractal(view, size, beta=2.0, longest=300))
    labels, objects = np.zeros(size, np.int32), DrawnObjects()
    y, x = np.ogrid[: size[0], : size[1]]
    for _ in range(int(view.integers(5, 26))):
        radius = mean * (np.exp(0.45 * view.standard_normal()) if broad else 1.0)
        cy, cx = view.uniform(0, size[0]), view.uniform(0, size[1])
        stamp = ellipsoid(radius)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        labels[inside & (labels == 0)] = objects.add(cx, cy, area=stamp.area)
    feature: Mask = labels > 0
    height = np.where(feature, -1.6 * mean, height)
    material = np.where(feature, 0.08, material)
    height, material, extra = _stain_and_scratch(view, height.astype(np.float32), material.astype(np.float32))
    words = _words("continuous", "smooth", "random", broad=broad, touching="separate", defects=["pinhole", *extra])
    return Scene(height, material, feature, nm_per_pixel, words, labels=labels, objects=objects, area_fact="porosity")


def _section(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Cleaved cross-section: substrate, a columnar film and perhaps a cap layer, vacuum above."""
    nm_per_pixel = drawn_pixel_size(sample, 2.0, 30.0, width=size[1])
    scale = max(size[1] / 640, 0.35)
    thick = sample.uniform(0.2, 0.42) * size[0]
    cap = sample.uniform(0.05, 0.14) * size[0] * (sample.random() < 0.6)
    column = log_uniform(sample, 9, 24) * scale
    tones = sample.permutation([0.34, 0.6, 0.85])
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    lean = view.normal(0, 0.01)
    floor = size[0] * view.uniform(0.66, 0.78) + lean * x + 0.8 * smooth_line(view, size[1], correlation=30)
    top = floor - thick + column * 0.1 * smooth_line(view, size[1], correlation=column * 0.6)
    roof = top - cap
    film, lid, base = (y < floor) & (y >= top), (y < top) & (y >= roof), y >= floor
    tiles = cells(view, size, pitch=column, disorder=0.8, warp=0.15 * column, stretch=6.0)
    edge = np.exp(-(tiles.second - tiles.first) / 1.6)
    rough = fractal(view, size, beta=1.0, longest=16)
    tilt = view.normal(0, 0.22, tiles.count).astype(np.float32)[tiles.number]
    height = np.where(film, 12 + tilt * (x % 40) * 0.2 - 2.5 * edge + 0.4 * rough, 0.0)
    height = np.where(base, 12 + 0.25 * rough, height)
    height = np.where(lid, 13 + 0.5 * rough, height)
    material = np.where(film, tones[1], np.where(base, tones[0], np.where(lid, tones[2], 0.05)))
    material = np.where(film, material * (1 + 0.5 * tilt), material)
    # Columns stand across the layers; along the layers the picture as a whole changes least.
    lie = float(-np.rad2deg(np.arctan(lean)) % 180)
    numbers = {"thickness": float((floor - top).mean()) * nm_per_pixel, "orientation": lie}
    words = _words("columnar", "striated", "layered", broad=False, touching="touching", defects=[])
    return Scene(
        height.astype(np.float32), material.astype(np.float32), film, nm_per_pixel, words, numbers=numbers,
        count_objects=False, shadow=np.where(y < roof, 0.08, 1.0).astype(np.float32),
    )  # fmt: skip


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view of a film."""
    kinds = {
        "grains": _grains,
        "cracked": _cracked,
        "wrinkled": _wrinkled,
        "plain": _plain,
        "section": _section,
    }
    return kinds[pick(sample, "grains", "grains", "cracked", "wrinkled", "plain", "section")](sample, view, size)

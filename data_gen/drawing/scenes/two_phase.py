"""Polished two-phase metals: precipitates in a matrix, phases grown into each other. Knows nothing about optics."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from data_gen.drawing.scenes.geometry import Rng, band, drawn_pixel_size, fractal, hard_core, log_uniform, whole_cells
from data_gen.drawing.scenes.imaging import DrawnObjects, Scene, Words, blur


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view; the objects are the precipitates, those of a second, much smaller kind are none."""
    scale = max(size[1] / 640, 0.35)
    nm_per_pixel = drawn_pixel_size(sample, 4.0, 60.0, width=size[1])
    pitch = log_uniform(sample, 30, 100) * scale
    grown = sample.random() < 0.3
    contrast = sample.uniform(0.04, 0.25) * (1 if sample.random() < 0.7 else -1)
    labels, objects = np.zeros(size, np.int32), DrawnObjects()
    if grown:
        field = band(view, size, wavelength=pitch, width=0.25) + 0.3 * band(view, size, wavelength=2 * pitch)
        phase = field > sample.uniform(-0.3, 0.3)
    else:
        channel, lobes = sample.uniform(0.05, 0.16) * pitch, sample.uniform(0.0, 0.12) * pitch
        smooth = sample.uniform(0.02, 0.06) * pitch
        _, labels, objects = whole_cells(
            view, size, pitch=pitch, disorder=sample.uniform(0.5, 0.98), warp=lobes,
            inside=lambda t: blur(np.asarray((t.second - t.first) / 2, np.float32), smooth) >= channel,
        )  # fmt: skip
        phase = labels > 0
        if sample.random() < 0.5:
            phase = phase | _second_kind(view, ~phase, radius=0.04 * pitch + 1)
    edge = np.abs(blur(phase.astype(np.float32), 1.5) - 0.5) < 0.3
    height = 0.6 * sample.random() * blur(edge.astype(np.float32), 1.5) + 0.15 * fractal(view, size, longest=40)
    tone = 0.55 + contrast * (0.5 - blur(phase.astype(np.float32), sample.uniform(0.5, 1.5)))
    words: Words = {
        "shape": "irregular", "surface": "smooth", "arrangement": "network" if grown else "random",
        "distribution": "broad", "touching": "fused" if grown else "separate", "defects": [],
    }  # fmt: skip
    return Scene(
        height.astype(np.float32), tone.astype(np.float32), phase, nm_per_pixel, words, labels=labels, objects=objects,
        count_objects=not grown, area_fact="coverage", glow=0.3,
    )  # fmt: skip


def _second_kind(view: Rng, free: np.ndarray, *, radius: float) -> np.ndarray:
    """Specks between the precipitates, clear of them."""
    room = ndimage.distance_transform_edt(free)
    seeds = np.zeros(free.shape, np.bool_)
    shape = (free.shape[0], free.shape[1])
    for x, y, _ in hard_core(view, shape, np.full(500, radius, np.float32), gap=1.5, tries=3, border=0.0):
        place = min(int(y), shape[0] - 1), min(int(x), shape[1] - 1)
        seeds[place] = room[place] > 1.6 * radius
    return np.asarray(ndimage.distance_transform_edt(~seeds) <= radius) if seeds.any() else seeds

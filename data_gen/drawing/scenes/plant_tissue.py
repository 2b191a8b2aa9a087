"""Cut plant tissue: a closed network of walls round cells with floors of any depth. Knows nothing about optics."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from assistant.arrays import I32, Mask
from data_gen.drawing.scenes.geometry import Rng, band, drawn_pixel_size, fractal, log_uniform, whole_cells
from data_gen.drawing.scenes.imaging import DrawnObjects, Scene, Words, blur


def draw(sample: Rng, view: Rng, size: tuple[int, int]) -> Scene:
    """Draw one field of view of a stem; the objects are the lumens, the small gaps where walls meet are none."""
    scale = max(size[1] / 640, 0.35)
    nm_per_pixel = drawn_pixel_size(sample, 80.0, 1200.0, width=size[1])
    pitch = log_uniform(sample, 30, 95) * scale
    wall = sample.uniform(0.04, 0.16) * pitch + 0.8
    broad = sample.random() < 0.5
    roundness = sample.uniform(0.03, 0.1) * pitch
    labels, objects = _cells(view, size, pitch=pitch, wall=wall, roundness=roundness, disorder=0.95 if broad else 0.6)
    outside = np.zeros(size, np.bool_)
    if broad and sample.random() < 0.7:  # wide cells beside narrow ones
        wide, others = _cells(view, size, pitch=2.2 * pitch, wall=wall, roundness=roundness, disorder=0.8)
        part = _side(view, size, share=view.uniform(0.2, 0.5))
        wide = _without(wide, ~part)
        near = ndimage.distance_transform_edt(wide == 0) <= 2 * wall
        labels = _without(labels, near | part)
        labels = np.where(wide > 0, wide + len(objects), labels).astype(np.int32)
        for x, y, area in zip(others.x, others.y, others.area, strict=True):
            objects.add(x, y, area=area)
    if sample.random() < 0.4:  # the edge of the stem
        outside = _side(view, size, share=view.uniform(0.1, 0.3))
        labels = _without(labels, ndimage.distance_transform_edt(~outside) <= 2 * wall)
    lumen = labels > 0
    gaps = _meeting(labels, view, radius=sample.uniform(0.1, 0.35) * wall) & ~lumen & ~outside
    floor = view.uniform(0.15, 1.0, len(objects) + 1).astype(np.float32)[labels] * pitch
    rise = np.asarray(ndimage.distance_transform_edt(lumen), np.float32) * sample.uniform(1.5, 6.0)
    height = np.where(lumen, -np.minimum(rise, floor), np.where(gaps, -wall, 0.0)).astype(np.float32)
    height = np.where(outside, -1.5 * pitch, height).astype(np.float32)
    # Torn walls hang into the cells as flaps.
    flaps = (band(view, size, wavelength=0.3 * pitch) > sample.uniform(1.6, 3.0)) & lumen
    height = np.where(flaps & (rise < 0.5 * pitch), 0.0, height)
    height = height + sample.uniform(0.0, 0.05) * pitch * fractal(view, size, beta=1.2, longest=pitch)
    shadow = np.exp(np.clip(height, -2 * pitch, 0) / (sample.uniform(0.4, 1.2) * pitch))
    words: Words = {
        "shape": "polygonal", "surface": "rough", "arrangement": "network",
        "distribution": "broad" if broad else "uniform", "touching": "touching", "defects": [],
    }  # fmt: skip
    return Scene(
        blur(height.astype(np.float32), 0.7), np.full(size, sample.uniform(0.5, 0.75), np.float32), lumen | gaps,
        nm_per_pixel, words, labels=labels, objects=objects, area_fact="porosity",
        shadow=np.maximum(shadow, 0.05).astype(np.float32),
    )  # fmt: skip


def _cells(
    view: Rng, size: tuple[int, int], *, pitch: float, wall: float, roundness: float, disorder: float
) -> tuple[I32, DrawnObjects]:
    _, labels, objects = whole_cells(
        view, size, pitch=pitch, disorder=disorder, warp=0.05 * pitch,
        inside=lambda t: blur(np.asarray((t.second - t.first) / 2, np.float32), roundness) >= wall,
    )  # fmt: skip
    return labels, objects


def _side(view: Rng, size: tuple[int, int], *, share: float) -> Mask:
    """What lies beyond a wavy line across the frame."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    angle = view.uniform(0, 2 * np.pi)
    across = x * np.cos(angle) + y * np.sin(angle) + 0.03 * max(size) * fractal(view, size, beta=2.4, longest=max(size))
    return np.asarray(across > np.quantile(across, 1 - share))


def _without(labels: I32, taken: Mask) -> I32:
    """The cells that nothing else has a part of."""
    gone = np.zeros(int(labels.max()) + 1, np.bool_)
    gone[labels[taken]] = True
    return np.where(gone[labels], 0, labels).astype(np.int32)


def _meeting(labels: I32, view: Rng, *, radius: float) -> Mask:
    """Discs where three cells or more meet, some of them."""
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    number = labels[nearest[0], nearest[1]]
    corners = np.stack([number[:-1, :-1], number[1:, :-1], number[:-1, 1:], number[1:, 1:]])
    corners.sort(axis=0)
    three = np.zeros(number.shape, np.bool_)
    three[1:, 1:] = ((corners[1:] != corners[:-1]).sum(axis=0) >= 2) & (view.random(corners.shape[1:]) < 0.7)
    away = ndimage.distance_transform_edt(~three) if three.any() else np.full(number.shape, np.inf)
    return np.asarray(away <= radius)

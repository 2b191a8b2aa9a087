"""Ground truth of a drawn scene, from its label map and table of objects. Knows nothing about the noisy picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from assistant.arrays import I32, Mask
from data_gen.drawing.scenes.imaging import VISIBLE_SHARE, DrawnObjects, Scene


def visible(labels: I32, objects: DrawnObjects, *, tilt_deg: float = 0.0) -> np.ndarray:
    """Indices of the objects that count: centre inside the frame and at least a quarter of the drawn area in sight.

    Under a tilt the centre is that of the pixels in sight, and the drawn area is foreshortened.
    """
    count = len(objects)
    if count == 0:
        return np.zeros(0, np.int64)
    seen = np.bincount(labels.ravel(), minlength=count + 1)[1 : count + 1]
    area = np.asarray(objects.area) * np.cos(np.deg2rad(tilt_deg))
    enough = seen >= np.maximum(VISIBLE_SHARE * area, 4)
    if tilt_deg:
        return np.flatnonzero(enough)
    x, y = np.asarray(objects.x), np.asarray(objects.y)
    inside = (x >= 0) & (x < labels.shape[1]) & (y >= 0) & (y < labels.shape[0])
    return np.flatnonzero(enough & inside)


def as_seen(labels: I32, objects: DrawnObjects) -> DrawnObjects:
    """The objects with centre and area of their pixels in sight; an area that a border cuts is not a number."""
    count = len(objects)
    flat = labels.ravel()
    area = np.bincount(flat, minlength=count + 1)[1:].astype(np.float64)
    rows, columns = np.divmod(np.arange(flat.size), labels.shape[1])
    x, y = (np.bincount(flat, at, count + 1)[1:] / np.maximum(area, 1) for at in (columns, rows))
    cut = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    area[cut[cut > 0] - 1] = np.nan
    return DrawnObjects(x.tolist(), y.tolist(), area.tolist(), objects.aspect)


def truth_of(scene: Scene, feature: Mask, labels: I32 | None, *, polarity: str) -> dict[str, Any]:
    """All that is known of the scene as it is seen: Fact names (lengths in nm) and words."""
    truth: dict[str, Any] = {}
    if scene.count_objects and labels is not None:
        index = visible(labels, scene.objects, tilt_deg=scene.tilt_deg)
        # Under a tilt the picture shows bodies from the side, and their sizes and distances are those of the picture.
        objects = as_seen(labels, scene.objects) if scene.tilt_deg else scene.objects
        truth["count"] = float(len(index))
        area = np.asarray(objects.area)[index]
        area = area[np.isfinite(area)]
        if len(area) and scene.size_objects:
            diameter = 2 * np.sqrt(area / np.pi) * scene.nm_per_pixel
            truth["mean_diameter"] = float(diameter.mean())
            for name, share in (("median_diameter", 50), ("d10_diameter", 10), ("d90_diameter", 90)):
                truth[name] = float(np.percentile(diameter, share))
        if len(index):
            aspect = np.asarray(scene.objects.aspect)[index]
            if float(aspect.mean()) > 1.2:
                truth["aspect_ratio"] = float(aspect.mean())
        if len(index) >= 3:
            points = np.stack([np.asarray(objects.x)[index], np.asarray(objects.y)[index]], axis=1)
            distance = np.asarray(cKDTree(points).query(points, k=2)[0])
            truth["nearest_neighbour"] = float(distance[:, 1].mean()) * scene.nm_per_pixel
    truth[scene.area_fact] = 100.0 * float(feature.mean())
    truth |= scene.numbers
    truth = {name: round(value, 4) for name, value in truth.items()}
    return truth | scene.words | {"polarity": polarity, "tilt_deg": scene.tilt_deg}

"""Real pictures in which a person outlined the bodies, and drawn ones with the same truth. Fits and scores nothing.

`powder` are gas-atomised metal powders with an outline of every particle, `crops` nanocomposites with a mask of the
agglomerates, both of the folder `more_sem` beside the checkout; `drawn` are scenes of `data_gen.drawing.synth`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from assistant.measurements.bodies import SMALLEST_AREA, at_border, geometry_of, perimeters

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "more_sem"
FIRST_SEED = {"development": 90 << 20, "test": 91 << 20, "calibration": 92 << 20}
VIEWS_PER_GROUP = 4
DOSES = (400.0, 80.0, 20.0)
UNNAMED = {"image.png": "Sc1Tile_001-001-000_0-000.png"}
"""A name in the outlines that is not that of the file."""
FEWEST = 3
"""Bodies from which a mean of their shapes means something."""
SMALLEST_AGGLOMERATE = 64
"""Area below which a patch of a mask is a speck [px2]."""


@dataclass(frozen=True, eq=False)
class Annotated:
    """A picture and what a person, or the drawing, says of it."""

    name: str
    pixels: np.ndarray
    truth: dict[str, float]
    """fact names to values; lengths in px"""
    labels: np.ndarray | None
    """[H, W] int32, the bodies"""


def powder(split: str) -> Iterator[Annotated]:
    """AMPIS powders of the split "train" (4) or "test" (1)."""
    from PIL import Image

    file = {"train": "training", "test": "validation"}[split]
    outlines = json.loads((FOLDER / "powder" / f"via_powder_particle_masks_{file}.json").read_text())
    for entry in outlines["_via_img_metadata"].values():
        name = UNNAMED.get(entry["filename"], entry["filename"])
        pixels = np.asarray(Image.open(FOLDER / "powder" / name).convert("L"))
        shapes = [region["shape_attributes"] for region in entry["regions"]]
        polygons = [np.array([s["all_points_x"], s["all_points_y"]], dtype=float).T for s in shapes]
        labels = _map(polygons, pixels.shape)
        truth = _of_polygons(polygons, pixels.shape) | _shapes(labels) | _chords(labels > 0, "bright on dark")
        yield Annotated(f"powder/{name}", pixels, truth, labels)


def _of_polygons(polygons: Sequence[np.ndarray], shape: tuple[int, ...]) -> dict[str, float]:
    """Counted are bodies with their centre in the frame, sized those that no border cuts."""
    count, diameters = 0, []
    for x, y in (polygon.T for polygon in polygons):
        upright, lying = y.min() <= 2 or y.max() >= shape[0] - 3, x.min() <= 2 or x.max() >= shape[1] - 3
        width, height = np.ptp(x), np.ptp(y)
        count += (not upright or height >= 0.5 * width) and (not lying or width >= 0.5 * height)
        if not (upright or lying):
            area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
            diameters.append(2 * np.sqrt(area / np.pi))
    return {"count": float(count)} | _sizes(np.array(diameters))


def _sizes(diameters: np.ndarray) -> dict[str, float]:
    d10, d50, d90 = np.percentile(diameters, [10, 50, 90])
    by_area = float(np.average(diameters, weights=diameters**2))
    mean = float(diameters.mean())
    sizes = {"mean_diameter": mean, "median_diameter": d50, "d10_diameter": d10, "d90_diameter": d90}
    return sizes | {"area_weighted_diameter": by_area}


def _shapes(labels: np.ndarray) -> dict[str, float]:
    """How long, how round and how far apart the bodies are, of those that no border cuts."""
    count = int(labels.max())
    shape, border = geometry_of(labels, count), at_border(labels, count)
    seen = shape.area >= SMALLEST_AREA
    whole = seen & ~border
    if whole.sum() < FEWEST:
        return {}
    round_ = np.minimum(4 * np.pi * shape.area[whole] / perimeters(labels, count)[whole] ** 2, 1)
    points = np.stack([shape.x, shape.y], axis=1)[seen]
    nearest = cKDTree(points).query(points, k=2)[0][:, 1]
    return {
        "aspect_ratio": float((shape.major / shape.minor)[whole].mean()),
        "circularity": float(round_.mean()),
        "nearest_neighbour": float(nearest.mean()),
        "grain_size": float(np.average(shape.diameter[seen], weights=shape.area[seen])),
    }


def _map(polygons: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image, ImageDraw

    drawn = Image.new("I", shape[::-1])
    pen = ImageDraw.Draw(drawn)
    for index, polygon in enumerate(polygons, 1):
        pen.polygon([tuple(point) for point in polygon.tolist()], fill=index)
    return np.asarray(drawn, dtype=np.int32)


def crops(split: str) -> Iterator[Annotated]:
    """Nanocomposites: the share that agglomerates take up, how many there are, and their size.

    Split as the whole pictures of the same filling and treatment are: 2 % filler untreated is for testing.
    """
    from PIL import Image
    from scipy import ndimage

    for path in sorted((FOLDER / "nanocomposite" / "crops").glob("*.jpg")):
        if path.stem.startswith("2un") != (split == "test"):
            continue
        mask = np.asarray(Image.open(path.with_name(f"{path.stem}_MASK.png")).convert("L")) < 128
        labels, count = ndimage.label(ndimage.binary_fill_holes(mask), np.ones((3, 3)))
        area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        whole = area >= SMALLEST_AGGLOMERATE
        truth = {"count": float(whole.sum()), "coverage": 100 * float(mask.mean())} | _chords(mask, "bright on dark")
        whole[border[border > 0] - 1] = False
        truth |= _sizes(2 * np.sqrt(area[whole] / np.pi)) if whole.any() else {}
        labels = labels.astype(np.int32)
        truth |= _shapes(np.where(np.append(False, area >= SMALLEST_AGGLOMERATE)[labels], labels, 0))
        yield Annotated(f"crops/{path.stem}", np.asarray(Image.open(path).convert("L")), truth, labels)


def drawn(split: str, *, classes: Sequence[str], scenes: Sequence[int]) -> Iterator[Annotated]:
    """Scenes of each class by number, each at one of three doses in turn."""
    from data_gen.drawing.synth import render_at_doses

    for label in classes:
        for k in scenes:
            seed = FIRST_SEED[split] + VIEWS_PER_GROUP * k
            image = render_at_doses(label, [DOSES[k % len(DOSES)]], seed=seed)[0]
            truth = {}
            for name, value in image.truth.items():
                if isinstance(value, float):
                    truth[name] = value / image.nm_per_pixel if _is_length(name) else value
            if "count" in truth and image.labels is not None:
                truth = _shapes(image.labels) | truth
            if "mean_diameter" in truth and image.labels is not None:
                truth |= _whole(image.labels, cells=label == "plant_tissue")
            truth |= _chords(image.feature, str(image.truth["polarity"]))
            yield Annotated(f"{label}/{image.truth['shape']}/{k}", image.pixels, truth, image.labels)


def _whole(labels: np.ndarray, *, cells: bool) -> dict[str, float]:
    """The mean diameter by area of bodies that no border cuts, and the thickness of the walls between cells."""
    count = int(labels.max())
    shape = geometry_of(labels, count)
    diameter = shape.diameter[(shape.area >= SMALLEST_AREA) & ~at_border(labels, count)]
    truth = {"area_weighted_diameter": float(np.average(diameter, weights=diameter**2))} if len(diameter) else {}
    if cells:
        # Every cell grown to half of the wall around it; what was added is wall, along the borders between the cells.
        distance, nearest = distance_transform_edt(labels == 0, return_indices=True)
        whose = labels[nearest[0], nearest[1]]
        sides = [
            (distance[one] + distance[other])[whose[one] != whose[other]]
            for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1]))
        ]
        truth["wall_thickness"] = float(np.median(np.concatenate(sides)))
    return truth


def _chords(feature: np.ndarray, polarity: str) -> dict[str, float]:
    """Mean chords of both phases, from the lengths of all pieces of rows, columns and diagonals."""
    if polarity not in ("bright on dark", "dark on bright") or not 0.01 < feature.mean() < 0.99:
        return {}
    bright = feature if polarity == "bright on dark" else ~feature
    return {f"mean_chord_of_the_{name}_phase": _chord(part) for name, part in (("bright", bright), ("dark", ~bright))}


def _chord(phase: np.ndarray) -> float:
    """Total length of the pieces over half the number of their ends, the four directions alike."""
    ends = 0.0
    for turned in (phase, phase.T):
        ends += np.mean([np.count_nonzero(np.diff(line.astype(np.int8))) / line.size for line in turned])
        turned = turned[:, ::-1]
        diagonals = [np.diagonal(turned, k) for k in range(-turned.shape[0] + 1, turned.shape[1])]
        crossed = sum(np.count_nonzero(np.diff(line.astype(np.int8))) for line in diagonals)
        ends += crossed / (np.sqrt(2) * turned.size)
    return 2 * float(phase.mean()) / (ends / 4)


def _is_length(name: str) -> bool:
    words = ("diameter", "thickness", "chord", "grain_size", "neighbour", "period", "width", "roughness")
    return any(word in name for word in words)


def index_of(folder: Path = FOLDER) -> dict[str, str]:
    """Path to split of every picture of the folder."""
    with (folder / "index.csv").open() as file:
        return {row["path"]: row["split"] for row in csv.DictReader(file)}

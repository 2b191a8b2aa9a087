"""The bodies of a picture one by one: a table for statistics and outlines that ImageJ opens. Knows nothing of kinds.

The table holds exactly what the facts are made of: `counted` bodies add up to the count, and the mean diameter is that
of the `measured` ones, which no border cuts.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from assistant.measurements.picture import F64, Mask
from assistant.measurements.segmentation import Objects

SMOOTHING = 0.8
"""Blur of an outline [px of the small copy]."""
LENGTHS = ("x", "y", "equivalent_diameter", "feret_max", "feret_min")
COLUMNS = (
    "file",
    "object",
    "x",
    "y",
    "area",
    *LENGTHS[2:],
    "aspect_ratio",
    "orientation",
    "counted",
    "measured",
    "unit",
)


@dataclass(frozen=True, eq=False)
class Body:
    """One body; lengths in px of the full picture, from its upper left corner."""

    x: float
    y: float
    area: float
    equivalent_diameter: float
    """of the disc of equal area"""
    feret_max: float
    """largest distance between two parallel tangents"""
    feret_min: float
    aspect_ratio: float
    """of the ellipse of equal second moments"""
    orientation: float
    """of its long axis [deg, counter-clockwise from x]"""
    counted: bool
    """its centre lies in the frame"""
    measured: bool
    """no border cuts it"""
    outline: F64
    """[N, 2] as x, y"""


def bodies_of(objects: Objects, *, factor: int, corner: tuple[int, int]) -> list[Body]:
    """The bodies that count or are measured; `corner` is the row and column of the content in the frame."""
    shape = objects.geometry
    measured = objects.good & objects.whole & objects.sized
    boxes = ndimage.find_objects(objects.labels)
    bodies = []
    for index in np.flatnonzero(objects.counted | measured):
        edge = outlines(objects.labels[boxes[index]] == index + 1)
        top, left = boxes[index][0].start, boxes[index][1].start
        outline = _in_frame(max(edge, key=len) + np.array([left, top]), factor, corner)
        largest, least = feret(outline)
        inset = 2 * objects.outset * factor
        diameter = max(factor * float(shape.diameter[index]) - inset, 0.0)
        x, y = _in_frame(np.array([[shape.x[index], shape.y[index]]]), factor, corner)[0].tolist()
        bodies.append(
            Body(
                x,
                y,
                np.pi / 4 * diameter**2,
                diameter,
                max(largest - inset, 0.0),
                max(least - inset, 0.0),
                float(shape.major[index] / shape.minor[index]),
                float(shape.angle[index]),
                bool(objects.counted[index]),
                bool(measured[index]),
                outline,
            )
        )
    return bodies


def _in_frame(points: F64, factor: int, corner: tuple[int, int]) -> F64:
    return (points + 0.5) * factor - 0.5 + [corner[1], corner[0]]


def outlines(mask: Mask) -> list[F64]:
    """The outlines of a mask between its pixels. [M, 2] each, as x, y"""
    from skimage.measure import find_contours

    soft = ndimage.gaussian_filter(np.pad(mask, 2).astype(np.float32), SMOOTHING)
    return [contour[:, ::-1] - 2 for contour in find_contours(soft, 0.5)]


def feret(outline: F64) -> tuple[float, float]:
    """The largest and the least distance between two parallel tangents of an outline. [N, 2]"""
    from scipy.spatial import ConvexHull, QhullError
    from scipy.spatial.distance import pdist

    try:
        hull = outline[ConvexHull(outline).vertices]
    except QhullError:  # fewer than three points apart
        return float(np.ptp(outline, axis=0).max()), 0.0
    edges = np.roll(hull, -1, axis=0) - hull
    across = np.stack([-edges[:, 1], edges[:, 0]], axis=1) / np.hypot(edges[:, 0], edges[:, 1])[:, None]
    return float(pdist(hull).max()), float(np.ptp(across @ hull.T, axis=1).min())


def write_table(path: Path, bodies: Iterable[tuple[str, Sequence[Body], float | None]]) -> None:
    """Write a CSV with one line a body, for each file its name, bodies and nm per pixel; px where that is None.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, found, nm_per_pixel in bodies:
            scale, unit = (1.0, "px") if nm_per_pixel is None else (nm_per_pixel, "nm")
            for number, body in enumerate(found, 1):
                x, y, *sizes = (f"{getattr(body, length) * scale:.6g}" for length in LENGTHS)
                area = f"{body.area * scale**2:.6g}"
                ratios = f"{body.aspect_ratio:.4g}", f"{body.orientation:.4g}"
                seen = int(body.counted), int(body.measured)
                writer.writerow([name, number, x, y, area, *sizes, *ratios, *seen, unit])


def write_rois(path: Path, bodies: Sequence[Body]) -> None:
    """Write the outlines as a zip file of ImageJ regions of interest, named by their number in the table.

    Raises:
        OSError: the file cannot be written.
    """
    from roifile import ImagejRoi, roiwrite

    regions = []
    for number, body in enumerate(bodies, 1):
        points = body.outline[:-1] + 0.5  # ImageJ counts from the corner of the first pixel, not from its middle
        regions.append(ImagejRoi.frompoints(points, name=f"{number:04d}"))
    roiwrite(path, regions, mode="w")

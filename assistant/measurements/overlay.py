"""What was measured, drawn over the micrograph: one figure per measurement. Knows nothing about files or vendors.

A figure shows the very pixels a number comes from (outlines, edges, skeletons), so that a person can see at a glance
whether to believe it. What does not apply to a picture has no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from assistant.measurements.canvas import AMBER, INK, MARGIN, ROSE, TEAL, WHITE, Canvas, hue, ramp
from assistant.measurements.facts import Fact, Facts
from assistant.measurements.findings import Findings
from assistant.measurements.marks import Marks, Strokes
from assistant.measurements.objects import outlines
from assistant.measurements.picture import CROP, F32, F64, block_mean
from assistant.quantities import QUANTITIES, typeset

if TYPE_CHECKING:
    from PIL import Image

FIGURES: dict[str, tuple[str, ...]] = {
    figure: tuple(quantity.name for quantity in QUANTITIES.values() if quantity.figure == figure)
    for figure in (
        *("objects", "grains", "neighbours", "share", "phases"),
        *("direction", "period", "lines", "fibres", "grey"),
    )
}
"""Each figure with the facts it shows."""
TICKS = 44
"""Direction marks along the longer side."""
CROSSINGS = 300
"""Most widths drawn across fibres."""
MOST_GRID_LINES = 80
_BINS = 96


@dataclass(frozen=True, eq=False)
class Drawing:
    """What a figure is made from."""

    surface: Canvas | Marks
    found: Findings
    facts: Facts

    def full(self, x: F64, y: F64) -> F64:
        """Points of the small copy in the full picture. [N, 2]"""
        return (np.stack([x, y], axis=-1) + 0.5) * self.found.picture.factor - 0.5


def _draw_objects(it: Drawing) -> None:
    objects = it.found.objects
    assert objects is not None
    diameter = objects.geometry.diameter
    sized = objects.good & objects.whole & objects.sized
    low, high = (diameter[sized].min(), diameter[sized].max()) if sized.any() else (0.0, 1.0)
    boxes = ndimage.find_objects(objects.labels)
    for index in np.flatnonzero(objects.counted | sized):
        box = boxes[index]
        colour = ramp((diameter[index] - low) / max(high - low, 1e-9)) if sized[index] else WHITE
        for contour in outlines(objects.labels[box] == index + 1):
            xy = it.full(contour[:, 0] + box[1].start, contour[:, 1] + box[0].start)
            it.surface.polyline(xy, colour, width=2.0 if sized[index] else 1.4, opacity=255 if sized[index] else 150)


def _key_of_sizes(canvas: Canvas, it: Drawing) -> None:
    """Colours of the outlines, from the smallest to the largest object; white are those a border cuts."""
    objects, mean = it.found.objects, it.facts["mean_diameter"]
    assert objects is not None
    sized = objects.good & objects.whole & objects.sized
    if mean.value is None or sized.sum() < 2:
        return
    per_pixel = mean.value / float(objects.geometry.diameter[objects.good & objects.whole].mean() - 2 * objects.outset)
    low, high = (f(objects.geometry.diameter[sized]) - 2 * objects.outset for f in (np.min, np.max))
    ends = [typeset(float(v) * per_pixel, mean.unit) for v in (low, high)]
    left, wide = MARGIN, 150
    canvas.plate(left, MARGIN, left + wide + 28, MARGIN + 46)
    for step in range(wide):
        x = left + 14 + step
        box = tuple(2 * v for v in (x, MARGIN + 10, x + 1, MARGIN + 17))
        canvas.pen.rectangle(box, fill=ramp(step / (wide - 1)))
    canvas.text(left + 14, MARGIN + 36, ends[0], size=14)
    canvas.text(left + 14 + wide, MARGIN + 36, ends[1], size=14, anchor="rs")


def _draw_neighbours(it: Drawing) -> None:
    from scipy.spatial import cKDTree

    assert it.found.objects is not None
    shape, counted = it.found.objects.geometry, it.found.objects.counted
    points = it.full(shape.x[counted], shape.y[counted])
    _, nearest = cKDTree(points).query(points, k=2)
    for here, there in enumerate(np.asarray(nearest)[:, 1]):
        it.surface.polyline(points[[here, there]], AMBER, width=2.0)
    for x, y in points.tolist():
        it.surface.dot(x, y, TEAL, radius=3.2)


def _draw_grains(it: Drawing) -> None:
    """Discs of the measured size, side by side, to be held against the bodies."""
    size = it.found.grain_size
    assert size is not None
    height, width = it.found.picture.grey.shape
    rows, columns = (np.arange(max(1, int(n / size / 2))) for n in (height, width))
    for y in ((rows + 0.5) * height / len(rows)).tolist():
        for x in ((columns + 0.5) * width / len(columns)).tolist():
            it.surface.circle(x, y, size / 2, AMBER, width=1.6)


def _draw_share(it: Drawing) -> None:
    if it.found.phase is not None:
        it.surface.tint(it.found.phase, TEAL)
        for contour in outlines(it.found.phase):
            it.surface.polyline(it.full(contour[:, 0], contour[:, 1]), TEAL, width=1.2)
    elif it.found.lines is not None:
        _draw_lines(it)


def _draw_phases(it: Drawing) -> None:
    assert it.found.phases is not None
    it.surface.tint(it.found.phases.bright, TEAL)
    for contour in outlines(it.found.phases.bright):
        it.surface.polyline(it.full(contour[:, 0], contour[:, 1]), TEAL, width=1.2)


def _draw_direction(it: Drawing) -> None:
    gx, gy = it.found.picture.gradients
    cell = max(8, -(-max(gx.shape) // TICKS))
    xx, xy, yy = (block_mean(part, cell) for part in (gx * gx, gx * gy, gy * gy))
    clear = np.hypot(xx - yy, 2 * xy)
    strength = np.sqrt(np.clip(clear / max(float(np.percentile(clear, 95)), 1e-12), 0, 1))
    along = 90 - np.rad2deg(np.arctan2(2 * xy, xx - yy)) / 2
    for row, column in np.argwhere(strength > 0.12).tolist():
        angle, half = float(along[row, column]), 0.46 * cell * float(strength[row, column])
        reach = half * np.array([np.cos(np.deg2rad(angle)), -np.sin(np.deg2rad(angle))])
        ends = np.array([(column + 0.5) * cell, (row + 0.5) * cell]) + np.stack([-reach, reach])
        it.surface.polyline(it.full(ends[:, 0], ends[:, 1]), hue(angle), width=2.2)


def _key_of_direction(canvas: Canvas, it: Drawing) -> None:
    """The main direction, in a round plate at the upper left."""
    main = it.facts["orientation"].value
    if main is None:
        return
    middle, radius = MARGIN + 44.0, 44.0
    x0, y0, x1, y1 = (2 * v for v in (middle - radius, middle - radius, middle + radius, middle + radius))
    canvas.pen.ellipse((x0, y0, x1, y1), fill=(*INK, 205), outline=(90, 102, 118), width=2)
    c, s = np.cos(np.deg2rad(main)), np.sin(np.deg2rad(main))
    needle = [(2 * (middle + sign * 34 * c), 2 * (middle - sign * 34 * s)) for sign in (-1, 1)]
    canvas.pen.line(needle, fill=hue(main), width=9)


def _draw_period(it: Drawing) -> None:
    period = it.found.period
    assert period is not None
    grey = it.found.picture.grey
    height, width = grey.shape
    angle = np.deg2rad(period.orientation)
    along, across = np.array([np.cos(angle), -np.sin(angle)]), np.array([np.sin(angle), np.cos(angle)])
    reach = float(np.hypot(width, height)) / 2
    middle = np.array([width, height]) / 2
    # How far from the middle of the picture the nearest crest of the wave lies, in periods.
    wave = across / period.length
    x, y = (np.exp(-2j * np.pi * f * (np.arange(n) - n / 2)) for f, n in zip(wave, (width, height), strict=True))
    crest = float(-np.angle(y @ (grey - grey.mean()) @ x) / (2 * np.pi))
    middle = middle + crest * period.length * across
    every = max(1, int(np.ceil(2 * reach / period.length / MOST_GRID_LINES)))
    steps = every * np.arange(-(MOST_GRID_LINES // 2) - 1, MOST_GRID_LINES // 2 + 2)
    for k in steps.tolist():
        centre = middle + k * period.length * across
        it.surface.polyline(np.stack([centre - reach * along, centre + reach * along]), TEAL, width=1.6, opacity=170)
    count = max(1, round(40 / (period.length * it.surface.scale)))
    it.surface.arrow(middle, middle + count * period.length * across, AMBER)


def _draw_lines(it: Drawing) -> None:
    assert it.found.lines is not None
    it.surface.polylines(it.found.lines.edges[0::2], TEAL, width=1.8)
    it.surface.polylines(it.found.lines.edges[1::2], AMBER, width=1.8)


def _draw_fibres(it: Drawing) -> None:
    """The widths that were taken, across the fibres, and a piece of each axis."""
    assert it.found.fibres is not None
    places = it.found.fibres.places
    order = np.random.default_rng(0).permutation(len(places))[:CROSSINGS]
    for x, y, width, along in places[order]:
        middle, axis = np.array([x, y]), np.array([np.cos(along), np.sin(along)]) * width / 2
        across = np.array([-axis[1], axis[0]])
        it.surface.polyline(np.stack([middle - axis, middle + axis]), ROSE, width=1.4, opacity=180)
        it.surface.polyline(np.stack([middle - across, middle + across]), AMBER, width=1.8)


def _draw_grey(it: Drawing) -> None:
    """The crop that noise and sharpness come from."""
    height, width = it.found.picture.grey.shape
    if max(height, width) > CROP:
        rows, columns = min(height, CROP), min(width, CROP)
        corner = [(width - columns) // 2, (height - rows) // 2]
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * [columns - 1, rows - 1] + corner
        it.surface.polyline(corners.astype(np.float64), AMBER, width=1.4)


def _key_of_grey(canvas: Canvas, it: Drawing) -> None:
    """The histogram, with mean and spread."""
    grey = it.found.picture.grey
    counts, _ = np.histogram(grey, _BINS, (0.0, 1.0))
    bars: F32 = np.asarray(np.sqrt(counts / max(counts[1:-1].max(), 1)), dtype=np.float32)
    wide, high = 3 * _BINS, 110
    left, base = MARGIN + 14, MARGIN + high + 16
    canvas.plate(MARGIN, MARGIN, left + wide + 14, base + 14)
    for k, bar in enumerate(np.minimum(bars, 1.0).tolist()):
        level = round(60 + 195 * k / _BINS)
        box = tuple(2 * v for v in (left + 3 * k, base - bar * high, left + 3 * k + 2.5, base))
        canvas.pen.rectangle(box, fill=(level, level, level))
    mean = float(grey.mean())
    spread = (it.facts["contrast"].value or 0.0) / 100
    for share, colour in ((mean, AMBER), (mean - spread, TEAL), (mean + spread, TEAL)):
        x = left + wide * float(np.clip(share, 0, 1))
        canvas.pen.line([(2 * x, 2 * (base - high)), (2 * x, 2 * base)], fill=colour, width=4)


DRAWN: dict[str, Callable[[Drawing], None]] = {
    "objects": _draw_objects,
    "grains": _draw_grains,
    "neighbours": _draw_neighbours,
    "share": _draw_share,
    "phases": _draw_phases,
    "direction": _draw_direction,
    "period": _draw_period,
    "lines": _draw_lines,
    "fibres": _draw_fibres,
    "grey": _draw_grey,
}
"""What lies on the picture."""
KEYS: dict[str, Callable[[Canvas, Drawing], None]] = {
    "objects": _key_of_sizes,
    "direction": _key_of_direction,
    "grey": _key_of_grey,
}
"""What is told beside it."""


def drawn_figures(
    display: NDArray[np.uint8], found: Findings, facts: Facts, *, nm_per_pixel: float | None
) -> dict[str, Image.Image]:
    """One figure for each measurement that applies, by its name in FIGURES; RGB, at most SIDE px a side.

    `display` is what `found` was found in, windowed to 8 bit. [H, W]
    """
    made = {}
    for name, applied in _applied(facts):
        canvas = Canvas(display)
        drawing = Drawing(canvas, found, facts)
        DRAWN[name](drawing)
        if name in KEYS:
            KEYS[name](canvas, drawing)
        unit, per_pixel = ("px", 1.0) if nm_per_pixel is None else ("nm", nm_per_pixel)
        canvas.scale_bar(unit, per_pixel)
        said = [(fact.name.replace("_", " "), fact.value, fact.unit) for fact in applied[:3]]
        title = "   ".join(f"{name} {typeset(value, unit)}" for name, value, unit in said if value is not None)
        canvas.caption(title[:1].upper() + title[1:], f"{applied[0].method}, {applied[0].confidence:.0%} sure")
        made[name] = canvas.finished()
    return made


def drawn_marks(found: Findings, facts: Facts, *, corner: tuple[int, int]) -> dict[str, list[Strokes]]:
    """The same figures as paths in px of the full frame; `corner` is the row and column of what was measured in it."""
    made = {}
    for name, _ in _applied(facts):
        marks = Marks(found.picture.grey.shape, corner)
        DRAWN[name](Drawing(marks, found, facts))
        made[name] = marks.strokes
    return made


def _applied(facts: Facts) -> Iterator[tuple[str, list[Fact]]]:
    """Every figure that shows something of a picture, with the facts that it shows."""
    for name, shown in FIGURES.items():
        applied = [fact for fact in facts.applicable() if fact.name in shown]
        if applied:
            yield name, applied

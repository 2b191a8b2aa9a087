"""Marks on a micrograph as paths instead of pixels, for viewers that zoom. Knows nothing about measurements.

`Marks` takes what a `Canvas` takes; what it records lies in px of the full frame, from its upper left corner.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from assistant.measurements.canvas import FIGURE_SIDE, INK, RGB
from assistant.measurements.objects import outlines
from assistant.measurements.picture import F64, Mask

_SIMPLE = 0.35
"""How far a simplified outline of a tint may lie from the true one [px of the mask]."""
_ALMOST_NOTHING = 0.01
"""Length of a line whose round ends are a dot [px]."""


@dataclass
class Strokes:
    """All marks of one look, in SVG's path language."""

    colour: RGB
    width: float
    """[px of the screen]; 0 for an area"""
    opacity: float
    """0..1"""
    pieces: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        """What an SVG path or a canvas draws."""
        return "".join(self.pieces)


class Marks:
    """A surface that remembers; `corner` is the row and column of the picture in the frame."""

    def __init__(self, shape: tuple[int, ...], corner: tuple[int, int]) -> None:
        self.scale = FIGURE_SIDE / max(shape)
        """px of a figure per px of the picture, by which arrows and gaps are sized"""
        self._shape, self._corner = shape, np.array([corner[1], corner[0]])
        self._strokes: dict[tuple[RGB, float, float], Strokes] = {}

    @property
    def strokes(self) -> list[Strokes]:
        """What was drawn, first things first."""
        return list(self._strokes.values())

    def polyline(self, xy: F64, colour: RGB, *, width: float = 1.6, opacity: int = 255) -> None:
        """A line through points of the picture."""
        self._add(xy, colour, width, opacity / 255)

    def polylines(self, many: Iterable[F64], colour: RGB, *, width: float = 1.6, opacity: int = 255) -> None:
        """Several such lines."""
        for xy in many:
            self.polyline(xy, colour, width=width, opacity=opacity)

    def dot(self, x: float, y: float, colour: RGB, *, radius: float = 2.6) -> None:
        """A filled dot with a dark rim."""
        for ink, reach in ((INK, radius + 0.8), (colour, radius)):
            self._add(np.array([[x, y], [x + _ALMOST_NOTHING, y]]), ink, 2 * reach, 1.0)

    def circle(self, x: float, y: float, radius: float, colour: RGB, *, width: float = 1.4) -> None:
        """A circle; its radius is in px of the picture."""
        turn = np.linspace(0, 2 * np.pi, 33)
        self.polyline(np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1), colour, width=width)

    def tint(self, mask: Mask, colour: RGB, *, opacity: float = 0.42) -> None:
        """Lay a colour over the part of the picture that a mask of any size shows."""
        from skimage.measure import approximate_polygon

        larger = np.array(self._shape[::-1]) / mask.shape[::-1]
        for outline in outlines(mask):
            self._add((approximate_polygon(outline, _SIMPLE) + 0.5) * larger - 0.5, colour, 0.0, opacity)

    def arrow(self, start: F64, stop: F64, colour: RGB, *, width: float = 2.2) -> None:
        """A dimension line with a bar across each end, over a dark shadow."""
        along = (stop - start) / max(float(np.hypot(*(stop - start))), 1e-9)
        across = np.array([-along[1], along[0]]) * 7 / self.scale
        ends = [np.stack([end - across, end + across]) for end in (start, stop)]
        for ink, wide in ((INK, width + 2.4), (colour, width)):
            self.polylines([np.stack([start, stop]), *ends], ink, width=wide)

    def _add(self, xy: F64, colour: RGB, width: float, opacity: float) -> None:
        look = (colour, width, round(opacity, 2))
        points = np.asarray(xy, dtype=np.float64).reshape(-1, 2) + 0.5 + self._corner
        path = "L".join(f"{x:.2f} {y:.2f}" for x, y in points.tolist())
        self._strokes.setdefault(look, Strokes(*look)).pieces.append(f"M{path}{'' if width else 'Z'}")

"""Which parts of a picture a verdict, a value or an answer rests on, by covering it tile by tile.

found = explain(square, score, what="log-odds of fibres")
drawn_over(micrograph, found).save("why.png")

Whatever gives a number for a square picture can be explained; knows nothing about what it is.

Letters: S side of the square, T tiles of a side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assistant.disk import disk_errors
from assistant.errors import ConfigError
from assistant.micrograph import Micrograph, model_square
from assistant.readers.window import windowed

if TYPE_CHECKING:
    from PIL import Image

TILES = 7
"""Tiles of a side."""
FAINT = 0.1
"""Share of the score below which a part does not carry it by itself; what falls by less is drawn fainter."""
NOT_A_CAUSE = (
    "It shows where the score changes when a part is blurred, not why: parts that can stand in for one another look "
    "unimportant, and a blurred part is something that no micrograph has."
)
_PLACES = (
    ("at the upper left", "at the top", "at the upper right"),
    ("at the left", "in the middle", "at the right"),
    ("at the lower left", "at the bottom", "at the lower right"),
)
AT_ONCE = 10
"""Squares that are scored at a time."""
ScoreOf = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Scores [N] of squares [S, S] float32 in 0..1."""
Turn = Callable[[], AbstractContextManager[object]]
"""What is waited for before something is computed, and given back after it."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """How much a score falls with each tile covered."""

    what: str
    """What the score is, in words: "log-odds of fibres"."""
    baseline: float
    """The score of the whole picture."""
    falls: np.ndarray
    """[T, T]: by how much the score falls with this tile blurred; negative where it rises."""

    @property
    def shares(self) -> np.ndarray:
        """[T, T] in -1..1: shares of the largest fall, or of what is faint if that is larger: noise stays faint."""
        largest = max(float(np.abs(self.falls).max()), FAINT * abs(self.baseline), 1e-12)
        return np.clip(self.falls / largest, -1, 1)

    def sentence(self) -> str:
        """What it rests on, in words, with what that does not mean."""
        row, column = np.unravel_index(int(self.falls.argmax()), self.falls.shape)
        most, carried = float(self.falls.max()), np.maximum(self.falls, 0.0)
        if most <= FAINT * abs(self.baseline):
            return (
                f"No single part carries the {self.what}: it is {self.baseline:.2f}, and falls by at most "
                f"{max(most, 0.0):.2f} with one part blurred. {NOT_A_CAUSE}"
            )
        where = _PLACES[_third(row, len(self.falls))][_third(column, len(self.falls))]
        share = most / float(carried.sum())
        spread = "mostly one part" if share > 0.5 else "several parts" if share > 0.15 else "the whole picture evenly"
        return (
            f"The {self.what} is {self.baseline:.2f} and falls most, by {most:.2f}, with a part {where} blurred; it "
            f"rests on {spread}. {NOT_A_CAUSE}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: {"what", "baseline", "falls": rows of numbers, "sentence"}."""
        falls = [[float(fall) for fall in row] for row in self.falls]
        return {"what": self.what, "baseline": self.baseline, "falls": falls, "sentence": self.sentence()}


def explain(
    square: np.ndarray, score: ScoreOf, *, what: str, tiles: int = TILES, turn: Turn = nullcontext
) -> Explanation:
    """Cover each tile of a square [S, S] in turn by its blurred self, and see how far the score falls.

    Scores are asked for a few at a time, each time within a `turn`, between which others may have theirs.
    """
    squares, scores = [square, *covered(square, tiles)], list[float]()
    for start in range(0, len(squares), AT_ONCE):
        with turn():
            scores += map(float, score(squares[start : start + AT_ONCE]))
    whole, *without = scores
    return Explanation(what, whole, whole - np.array(without).reshape(tiles, tiles))


def covered(square: np.ndarray, tiles: int = TILES) -> list[np.ndarray]:
    """The square [S, S] with one tile blurred by half its side, row by row: structure goes, the mean grey stays."""
    from scipy.ndimage import gaussian_filter

    edges = np.linspace(0, len(square), tiles + 1).astype(int)
    blurred = gaussian_filter(square.astype(np.float32), len(square) / tiles / 2, mode="reflect")
    without = []
    for top, bottom in pairwise(edges):
        for left, right in pairwise(edges):
            copy = square.copy()
            copy[top:bottom, left:right] = blurred[top:bottom, left:right]
            without.append(copy)
    return without


def drawn_over(m: Micrograph, found: Explanation) -> Image.Image:
    """The explanation over its micrograph, at most 1024 px a side: amber carries the score, teal speaks against it."""
    from PIL import Image

    from assistant.measurements.canvas import AMBER, TEAL, Canvas

    canvas = Canvas(np.rint(windowed(m.specimen, m.window()) * 255).astype(np.uint8))
    rows, columns = model_square(m)
    side = rows.stop - rows.start
    for sign, colour in ((1, AMBER), (-1, TEAL)):
        share = np.maximum(sign * found.shares, 0).astype(np.float32)
        veil = np.zeros(m.specimen.shape, np.float32)
        veil[rows, columns] = np.asarray(Image.fromarray(share).resize((side, side), Image.Resampling.BICUBIC))
        canvas.tint(np.clip(veil, 0, 1), colour, opacity=0.6)
    corners = [(columns.start, rows.start), (columns.stop, rows.start), (columns.stop, rows.stop)]
    corners += [(columns.start, rows.stop), (columns.start, rows.start)]
    canvas.polyline(np.array(corners, dtype=np.float64) - 0.5, AMBER, width=1.2, opacity=140)
    if m.calibration is not None:
        canvas.scale_bar("nm", m.calibration.nm_per_pixel)
    under = (
        f"{found.baseline:.2f}; falls by up to {max(found.falls.max(), 0.0):.2f} where amber is blurred. Not a cause."
    )
    canvas.caption(f"What the {found.what} rests on", under)
    return canvas.finished()


def save_over(m: Micrograph, found: Explanation, folder: Path) -> Path:
    """Write the figure to `NAME-HASH-why.png` in a folder, so that two pictures of one name have one each.

    Raises ConfigError `disk` or `disk_full`.
    """
    file = folder / f"{m.source.stem if m.source else 'picture'}-{m.sha256[:8]}-why.png"
    with disk_errors(folder, ConfigError):
        folder.mkdir(parents=True, exist_ok=True)
        drawn_over(m, found).save(file)
    return file


def _third(place: Any, tiles: int) -> int:
    return min(2, int(3 * (int(place) + 0.5) / tiles))

"""A micrograph as a drawing surface: outlines, tints, a caption and a scale bar. Knows nothing about measurements.

Drawn at twice the size and reduced, so that every line is smooth; lengths on the canvas are in px of the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from assistant.measurements.picture import F64, Mask
from assistant.quantities import typeset

RGB = tuple[int, int, int]
TEAL, AMBER, ROSE, WHITE, INK = (45, 212, 191), (255, 184, 77), (255, 99, 132), (245, 247, 250), (11, 15, 22)
SIZES: tuple[RGB, ...] = ((86, 130, 255), (45, 212, 191), (190, 232, 96), (255, 184, 77), (255, 112, 96))
"""From small to large."""
FIGURE_SIDE = 1024
"""Longest side of a figure [px]."""
SMOOTH = 2
"""Times as large as the figure while it is drawn."""
DIMMED = 0.86
PLATE = 205
"""Opacity of the plate under a text, of 255."""
_BAR_SHARE = 0.2
"""Length of the scale bar in widths of the figure, about."""
MARGIN = 14


def ramp(share: float, colours: Sequence[RGB] = SIZES) -> RGB:
    """A colour between the first (0) and the last (1) of a list."""
    place = float(np.clip(share, 0, 1)) * (len(colours) - 1)
    first = min(int(place), len(colours) - 2)
    mixed = np.array(colours[first]) + (place - first) * (np.array(colours[first + 1]) - np.array(colours[first]))
    red, green, blue = np.rint(mixed).astype(int).tolist()
    return red, green, blue


def hue(angle: float) -> RGB:
    """A colour for a direction [deg]; 0 and 180 have the same."""
    phase = 2 * np.deg2rad(angle) - np.array([0, 2 * np.pi / 3, 4 * np.pi / 3])
    red, green, blue = np.rint(255 * (0.62 + 0.38 * np.cos(phase))).astype(int).tolist()
    return red, green, blue


def round_length(target: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `target`."""
    power = 10.0 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1, 2, 5) if step * power <= target * 1.0001))


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SMOOTH)


class Canvas:
    """A windowed micrograph [H, W] uint8 to draw on, in the coordinates of the picture [px, pixel centres whole]."""

    def __init__(self, grey: NDArray[np.uint8]) -> None:
        self.scale = FIGURE_SIDE / max(grey.shape)
        """figure px per picture px"""
        height, width = (max(1, round(n * self.scale)) for n in grey.shape)
        self.size = (width, height)
        large = Image.fromarray(grey).resize((width * SMOOTH, height * SMOOTH), Image.Resampling.BICUBIC)
        self.image = large.point([DIMMED * v for v in range(256)]).convert("RGB")
        self.pen = ImageDraw.Draw(self.image, "RGBA")

    def to(self, xy: F64) -> list[tuple[float, float]]:
        """Points of the picture on the canvas. [N, 2] as x, y"""
        moved = (np.asarray(xy, dtype=np.float64).reshape(-1, 2) + 0.5) * self.scale * SMOOTH
        return [(x, y) for x, y in moved.tolist()]

    def polyline(self, xy: F64, colour: RGB, *, width: float = 1.6, opacity: int = 255) -> None:
        """A line through points of the picture."""
        self.pen.line(self.to(xy), fill=(*colour, opacity), width=round(width * SMOOTH), joint="curve")

    def polylines(self, many: Iterable[F64], colour: RGB, *, width: float = 1.6, opacity: int = 255) -> None:
        """Several such lines."""
        for xy in many:
            self.polyline(xy, colour, width=width, opacity=opacity)

    def dot(self, x: float, y: float, colour: RGB, *, radius: float = 2.6) -> None:
        """A filled dot with a dark rim."""
        self.circle(x, y, (radius + 0.8) / self.scale, INK, fill=colour, width=1.0)

    def circle(
        self, x: float, y: float, radius: float, colour: RGB, *, width: float = 1.4, fill: RGB | None = None
    ) -> None:
        """A circle; its radius is in px of the picture."""
        ((cx, cy),) = self.to(np.array([[x, y]]))
        r = radius * self.scale * SMOOTH
        self.pen.ellipse((cx - r, cy - r, cx + r, cy + r), outline=colour, fill=fill, width=round(width * SMOOTH))

    def tint(self, mask: Mask, colour: RGB, *, opacity: float = 0.42) -> None:
        """Lay a colour over the part of the picture that a mask of any size shows."""
        veil = Image.fromarray(np.asarray(mask * (255 * opacity), dtype=np.uint8))
        veil = veil.resize(self.image.size, Image.Resampling.BILINEAR)
        self.image.paste(Image.new("RGB", self.image.size, colour), mask=veil)

    def arrow(self, start: F64, stop: F64, colour: RGB, *, width: float = 2.2) -> None:
        """A dimension line with a bar across each end, over a dark shadow."""
        along = (stop - start) / max(float(np.hypot(*(stop - start))), 1e-9)
        across = np.array([-along[1], along[0]]) * 7 / self.scale
        for ink, wide in ((INK, width + 2.4), (colour, width)):
            self.polyline(np.stack([start, stop]), ink, width=wide)
            for end in (start, stop):
                self.polyline(np.stack([end - across, end + across]), ink, width=wide)

    def plate(self, left: float, top: float, right: float, bottom: float) -> None:
        """A dark, rounded ground for text [figure px]."""
        box = tuple(SMOOTH * v for v in (left, top, right, bottom))
        self.pen.rounded_rectangle(box, 8 * SMOOTH, fill=(*INK, PLATE))

    def text(self, x: float, y: float, words: str, *, size: int = 20, colour: RGB = WHITE, anchor: str = "ls") -> None:
        """Words at a place of the figure [figure px]."""
        plain = words.replace("µ", "u")
        self.pen.text((x * SMOOTH, y * SMOOTH), plain, font=_font(size), fill=colour, anchor=anchor)
        left = x - {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * self.text_width(plain, size)
        # The font that comes with Pillow has no micro sign: a u gets its stem.
        for at in (place for place, letter in enumerate(words) if letter == "µ"):
            stem = left + self.text_width(plain[:at], size) + 0.075 * size
            box = tuple(SMOOTH * v for v in (stem, y - 0.3 * size, stem + 0.085 * size, y + 0.2 * size))
            self.pen.rectangle(box, fill=colour)

    def text_width(self, words: str, size: int) -> float:
        """How wide words are [figure px]."""
        return float(self.pen.textlength(words.replace("µ", "u"), font=_font(size))) / SMOOTH

    def caption(self, title: str, under: str) -> None:
        """What the figure shows, at its lower left: a title with a smaller line under it."""
        title, under = self._fitted(title, 22), self._fitted(under, 14)
        width = max(self.text_width(title, 22), self.text_width(under, 14))
        base = self.size[1] - MARGIN
        self.plate(MARGIN, base - 62, MARGIN + width + 28, base)
        self.text(MARGIN + 14, base - 34, title, size=22)
        self.text(MARGIN + 14, base - 13, under, size=14, colour=(176, 188, 202))

    def _fitted(self, words: str, size: int) -> str:
        room = self.size[0] - 2 * MARGIN - 28
        while len(words) > 4 and self.text_width(words, size) > room:
            words = words[:-2].rstrip(" .…,;") + "…"
        return words

    def scale_bar(self, unit: str, per_pixel: float) -> None:
        """A round length at the upper right; `per_pixel` is the size of a picture px in `unit`."""
        length = round_length(max(_BAR_SHARE * self.size[0] / self.scale * per_pixel, 1e-12))
        long, words = length / per_pixel * self.scale, typeset(length, unit)
        right, top = self.size[0] - MARGIN, MARGIN
        wide = max(long, self.text_width(words, 16)) + 24
        self.plate(right - wide, top, right, top + 46)
        middle = right - wide / 2
        box = (middle - long / 2, top + 32, middle + long / 2, top + 37)
        self.pen.rectangle(tuple(SMOOTH * v for v in box), fill=WHITE)
        self.text(middle, top + 23, words, size=16, anchor="ms")

    def finished(self) -> Image.Image:
        """The figure, reduced to its size. RGB"""
        return self.image.resize(self.size, Image.Resampling.LANCZOS)

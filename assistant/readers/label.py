"""Puts a drawn scale bar and the text around it together: which label belongs to it, and whether the rest agrees.

Knows nothing about files or vendors. A wrong calibration is worse than none, so every doubt ends without one: the label
must be a round length beside the bar, must read the same twice, and the magnification or field width in the same info
bar, where there is one, must fit it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from assistant.arrays import Pixels
from assistant.readers.bar_text import magnifications, tidy
from assistant.readers.ocr import Line, read_line, read_lines
from assistant.readers.record import SMALLEST_PIXEL, length_nm, positive
from assistant.readers.scale_bar import ScaleBar, find_bars, length_between_edges, normalised

SHORTEST_READ = 50  # [px]: one pixel of a bar this long is 2 %, the most a pixel size may be off
SHORTEST_CONFIRMED = 24  # [px]: ... where the magnification or the field's width says the same
_ROUND = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 7.5, 8.0, 9.0)
_FARTHEST = 0.2  # between bar and label, as a share of the width
NEXT_BEST = 2.0  # another label must be this many times as far
DISPLAY_MM = (60.0, 700.0)  # field width x magnification: a polaroid is 89 to 127 wide, a screen or print up to 500
USUAL_DISPLAYS_MM = (120.0, 127.0)  # JEOL's; Hitachi's and Thermo's
BLURRED = 2.5  # [px] by which JPEG moves the ends of coloured ink
_CLOSE = 0.7  # letter heights between two letters of one word, at most
SAME_FIELD = 0.03  # a field width is written with three digits
CONFIRMED, UNCONFIRMED = 0.9, 0.7

_LABEL = re.compile(r"(\d{1,4}(?:\.\d{1,2})?) ?(nm|[uµ]m|mm)(?![\w./])")
_ANY_LENGTH = re.compile(r"(\.?\d[\d.]*) ?(nm|[uµ]m|mm)")
_LENGTH = re.compile(r"(?<![\w.])(\d{1,4}(?:\.\d{1,4})?) ?(nm|[uµ]m|mm)(?![\w./])")


@dataclass(frozen=True)
class BarReading:
    """What an info bar says about the scale: the bar's length, its label, and how sure that is."""

    pixels: float
    nm: float
    confidence: float
    """0 where the rest of the info bar contradicts the label."""
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Left, top, right and bottom of bar and label together, in the band [px]."""

    @property
    def nm_per_pixel(self) -> float:
        return self.nm / self.pixels


def is_round(nm: float, *, within: float) -> bool:
    """True where a label could say this length to a relative `within`."""
    mantissas = [*_ROUND, 10.0]
    scaled = nm / 10.0 ** np.floor(np.log10(nm))
    return any(abs(scaled / mantissa - 1) <= within for mantissa in mantissas)


def read_scale(
    band: Pixels, *, magnification: float | None = None, width: int | None = None, edges: Sequence[Pixels] = ()
) -> BarReading | None:
    """The scale bar of an info bar [R, W] with its label, or None where either cannot be had beyond doubt.

    `magnification` is what the metadata say; that of the info bar itself is read too. `width` is that of the whole
    picture where the band is a piece of it [px], `edges` the pictures in which its ends can be
    seen where the band is only ink: the grey one, and for coloured ink how colourful it is.
    """
    width = width or band.shape[1]
    bars = find_bars(band, width=width)
    if not bars:
        return None
    ink = ink_of(band)
    lines = [replace(line, text=tidy(line.text)) for line in read_lines(ink)]
    found = _matched(bars, [*lines, *_numbers_with_units(lines)], width)
    if found is None or not _reads_so(ink, found[1], found[2]):
        return None
    bar, line, nm = found
    length = _clear_length(bar, edges)
    if length is None:
        return None
    box = (min(bar.left, line.left), min(bar.top, line.top), max(bar.right, line.right), max(bar.bottom, line.bottom))
    return BarReading(length, nm, _confidence(nm / length * width, lines, magnification), box)


def ink_of(band: Pixels) -> Pixels:
    """An info bar as uint8, its ink light on a dark ground."""
    return np.asarray(np.rint(normalised(band) * 255), np.uint8)


def cut(grey: Pixels, line: Line) -> Pixels:
    """The part of a picture that a line of text fills."""
    return grey[max(0, line.top) : line.bottom + 1, max(0, line.left) : line.right + 1]


def _clear_length(bar: ScaleBar, edges: Sequence[Pixels]) -> float | None:
    """The bar's length between clear ends [px]; of coloured ink both pictures must say so, or it must be long.

    JPEG keeps half of a colour's detail, which leaves two pixels open.
    """
    if not edges:
        return bar.length
    lengths = [length_between_edges(picture, bar) for picture in edges]
    grey, last = lengths[0], lengths[-1]
    if last is None or len(edges) == 1 or (grey is not None and abs(grey - last) <= BLURRED):
        return grey if last is not None else None
    return last if last >= 2 * SHORTEST_READ else None


def _reads_so(ink: Pixels, line: Line, nm: float) -> bool:
    """Whether a line says that length again, and no other where ink goes on to its left: "5 µm" may end "0.5 µm"."""
    if _length(tidy(read_line(cut(ink, line)))) != nm:
        return False
    left = max(0, line.left - round(_CLOSE * (line.bottom - line.top)))
    if not (ink[max(0, line.top) : line.bottom + 1, left : max(0, line.left)] > 127).any():
        return True
    more = tidy(read_line(cut(ink, replace(line, left=left))))
    return all(length_nm(positive(f"0{number}"), unit) == nm for number, unit in _ANY_LENGTH.findall(more))


def _numbers_with_units(lines: Sequence[Line]) -> Iterator[Line]:
    """A number and the unit right behind it that were taken for two lines: the space between large letters is wide."""
    for number in lines:
        for unit in lines:
            high = number.bottom - number.top
            level = abs(unit.bottom - number.bottom) < high / 2
            behind = abs(unit.left - number.right) < high
            if level and behind and number.text.replace(".", "").isdigit() and unit.text[:1].isalpha():
                top, bottom = min(number.top, unit.top), max(number.bottom, unit.bottom)
                yield Line(f"{number.text} {unit.text}", number.left, top, unit.right, bottom)


def _matched(bars: Sequence[ScaleBar], lines: Sequence[Line], width: int) -> tuple[ScaleBar, Line, float] | None:
    """The bar and label that lie closest together, unless another pair is about as close."""
    pairs = sorted(
        (
            (_distance(bar, line), -bar.length, bar, line, nm)
            for bar in bars
            for line in lines
            if (nm := _length(line.text)) is not None and not _inside(bar, line)
        ),
        key=lambda pair: pair[:2],
    )
    if not pairs or pairs[0][0] > _FARTHEST * width:
        return None
    distance, _, bar, line, nm = pairs[0]
    rivals = [p for p in pairs[1:] if p[0] <= max(NEXT_BEST * distance, 4) and p[4] / p[2].length != nm / bar.length]
    return None if rivals else (bar, line, nm)


def _distance(bar: ScaleBar, line: Line) -> float:
    across = max(0, line.left - bar.right, bar.left - line.right)
    down = max(0, line.top - bar.bottom, bar.top - line.bottom)
    return float(across + down)


def _inside(bar: ScaleBar, line: Line) -> bool:
    """True where the strokes are part of the text itself: they do not reach beyond it."""
    down = min(bar.bottom, line.bottom) - max(bar.top, line.top)
    return line.left <= bar.left and bar.right <= line.right and down > 0.6 * (bar.bottom - bar.top)


def _length(text: str) -> float | None:
    """The round length [nm] that a line of text begins with, or None."""
    found = _LABEL.match(text)
    if found is None or float(found[1]) <= 0:
        return None
    nm = float(f"{length_nm(float(found[1]), found[2]):.9g}")
    return nm if is_round(nm, within=1e-6) else None


def _confidence(field_nm: float, lines: Sequence[Line], magnification: float | None) -> float:
    """Whether the field width or magnification that stands elsewhere fits.

    A display of an unknown maker has an unknown width: that rules out a slip of ten, and confirms nothing.
    """
    lengths = [length_nm(float(number), unit) for line in lines for number, unit in _LENGTH.findall(line.text)]
    widths = [length for length in lengths if length is not None and length > SMALLEST_PIXEL]
    if any(abs(length / field_nm - 1) <= SAME_FIELD for length in widths):
        return CONFIRMED
    stated = [magnification] if magnification else list(magnifications(lines))
    if not stated:
        return UNCONFIRMED
    displays = [field_nm * times / 1e6 for times in stated]
    if any(abs(display / usual - 1) <= SAME_FIELD for display in displays for usual in USUAL_DISPLAYS_MM):
        return CONFIRMED
    return UNCONFIRMED if any(DISPLAY_MM[0] <= display <= DISPLAY_MM[1] for display in displays) else 0.0

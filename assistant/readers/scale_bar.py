"""Measures the scale bar drawn in an info bar to a fraction of a pixel. Knows nothing about text, files or vendors.

Makers draw five kinds: a solid block (JEOL), a line with end caps (Zeiss), a ruler with ticks (SEC, TESCAN), two
halves with the label between them (Thermo) and ticks without a line (Hitachi). The label stands for the distance
between the centres of the end marks; the outer length has their thickness too, which is 2 to 6 % of a short bar.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from assistant.arrays import Pixels

SHORTEST = 12  # length of a bar [px]
_WIDEST = 0.65  # ... as a share of the width: what is longer is a frame
FULL_ROW = 0.97  # share of a line's length that is ink in its fullest row
_SLENDER = 2.0  # a bar is at least this many times as long as high, caps and ticks included: no letter, no logo is
BLOCK = 3  # rows of a line without caps from which it is a block; thinner at the edge, it is what JPEG leaves there
DRIFT = 3  # [px] between the end of the ink and its edge
_CLEAR = 10  # grey levels from ink and from specimen to the edge between them
_SOLID = 0.9  # share of a tick's box that is ink
TALLER = 1.5  # an end cap is this many times as tall as the line is thick, and two pixels taller
CAP_STARTS = 3  # a cap may be rounded: its full height is reached within so many columns
_TICKS = (11, 21)  # ten or twenty steps: other numbers of strokes occur in text, or have lost one at an end
TICK_SPREAD = 0.04  # how far ticks may lie from an even spacing, as a share of it or 1 px
MOST_PARTS = 4000  # connected pieces of ink: a bar with text has a few hundred


@dataclass(frozen=True)
class ScaleBar:
    """A drawn scale bar: its length between the centres of its end marks and the box it lies in."""

    length: float
    """[px], good to about one pixel."""
    left: int
    top: int
    right: int
    """Exclusive, as is `bottom`; rows and columns of the info bar [px]."""
    bottom: int


@dataclass(frozen=True)
class _Part:
    """One connected piece of ink: its box and, where one row is ink from end to end, the rows of that line."""

    left: int
    top: int
    right: int
    bottom: int
    ink: Pixels  # [h, w] bool
    line: tuple[int, int] | None  # rows [first, stop) within the box

    @property
    def wide(self) -> int:
        return self.right - self.left


def find_bars(band: Pixels, *, width: int | None = None) -> list[ScaleBar]:
    """Everything in an info bar [R, W] that is drawn like a scale bar, longest first.

    `width` is that of the whole picture where the band is a piece of it [px].
    """
    grey = normalised(band)
    parts = list(_parts(grey > 0.5, longest=_WIDEST * (width or grey.shape[1])))
    lines = [part for part in parts if part.line is not None]
    halves = _halves(lines)
    used = {id(part) for pair in halves for part in pair}
    bars = [_joined(grey, pair) for pair in halves]
    bars += [_joined(grey, (part, part)) for part in lines if id(part) not in used]
    bars += _combs([part for part in parts if part.line is None], grey)
    return sorted(bars, key=lambda bar: -bar.length)


def length_between_edges(grey: Pixels, bar: ScaleBar) -> float | None:
    """The length of a block [px] from the picture [R, W] itself, None where its ends have no clear edge.

    Ink that JPEG smeared is cut short where it is told from the specimen by its level; the edge is half way between.
    """
    profile = grey[(3 * bar.top + bar.bottom) // 4 : -(-(bar.top + 3 * bar.bottom) // 4)].mean(axis=0)
    middle = slice(bar.left + (bar.right - bar.left) // 4, bar.right - (bar.right - bar.left) // 4)
    inside = float(np.median(profile[middle]))
    ends = []
    for end, step in ((bar.left, -1), (bar.right - 1, 1)):
        places = np.arange(end - 4 * step, end + 10 * step, step)
        places = places[(places >= 0) & (places < len(profile))]
        levels = profile[places]
        half = (inside + float(np.median(levels[-4:]))) / 2
        beyond = np.flatnonzero(np.sign(levels - half) != np.sign(inside - half))
        if len(beyond) == 0 or beyond[0] == 0 or abs(inside - half) < _CLEAR or beyond[0] > 4 + DRIFT:
            return None
        if np.abs(levels[4 + DRIFT :] - inside).min() < abs(inside - half):  # a bar that JPEG broke goes on
            return None
        k = int(beyond[0])
        share = (levels[k - 1] - half) / (levels[k - 1] - levels[k])
        ends.append(float(places[k - 1] + step * share))
    return ends[1] - ends[0]


def normalised(band: Pixels) -> Pixels:
    """The info bar as contrast with its fill, float32 [R, W] in 0..1: ink is 1 whether it is light or dark."""
    wide = np.nan_to_num(band.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if band.dtype in (np.uint8, np.uint16):
        fill = float(np.bincount(band.ravel()).argmax())
    else:
        values, counts = np.unique(wide, return_counts=True)
        fill = float(values[counts.argmax()])
    contrast = np.abs(wide - fill)
    top = float(contrast.max(initial=0))
    return np.asarray(contrast / top if top > 0 else contrast)


def _parts(ink: Pixels, *, longest: float) -> Iterator[_Part]:
    """Connected pieces of ink shaped like a bar or a tick; frames touch two sides of the bar or span most of it."""
    from scipy import ndimage

    rows, columns = ink.shape
    names, count = ndimage.label(ink, np.ones((3, 3)))
    if count > MOST_PARTS:
        return
    areas = np.bincount(names.ravel())
    for name, box in enumerate(ndimage.find_objects(names), start=1):
        (top, bottom), (left, right) = ((side.start, side.stop) for side in box)
        touched = (top == 0) + (bottom == rows) + (left == 0) + (right == columns)
        high, wide = bottom - top, right - left
        like_line = wide >= max(SHORTEST, _SLENDER * high)
        like_tick = high >= 2 * wide and areas[name] > _SOLID * high * wide
        if touched < 2 and wide <= longest and (like_line or like_tick):
            piece = names[box] == name
            full = np.flatnonzero(piece.mean(axis=1) >= FULL_ROW)
            line = (int(full[0]), int(full[-1]) + 1) if like_line and full.size else None
            at_edge = line is not None and (top + line[0] == 0 or top + line[1] == rows)  # ticks may reach it
            if line is None or line[1] - line[0] >= BLOCK or not at_edge:
                yield _Part(left, top, right, bottom, piece, line)


def _halves(lines: Sequence[_Part]) -> list[tuple[_Part, _Part]]:
    """Pairs of equal lines on the same rows with a gap between them, each capped at its outer end alone."""
    pairs = []
    for a in lines:
        for b in lines:
            level = a.line is not None and b.line is not None and a.top + a.line[0] == b.top + b.line[0]
            like = abs(a.wide - b.wide) <= max(2, 0.05 * a.wide) and a.bottom - a.top == b.bottom - b.top
            if level and like and a.right < b.left and _cap(a, 0) and _cap(b, -1) and not _cap(a, -1):
                pairs.append((a, b))
    return pairs


def _cap(part: _Part, end: int) -> int:
    """Thickness [px] of the cap at the left (0) or right (-1) end of a line; 0 where it has none."""
    assert part.line is not None
    thick = part.line[1] - part.line[0]
    tall = part.ink.sum(axis=0)[:: 1 if end == 0 else -1] >= max(TALLER * thick, thick + 2)
    first = int(tall.argmax())
    if first >= CAP_STARTS or not tall[first] or tall[first:].all():
        return 0
    return 2 * first + int(tall[first:].argmin())  # as far behind its middle as before it


def _joined(grey: Pixels, ends: tuple[_Part, _Part]) -> ScaleBar:
    """The bar from the left end of the first part to the right end of the second.

    A block is as long as it is; the bare end of a thin line counts as a mark of one pixel.
    """
    a, b = ends
    assert a.line is not None
    rows = slice(a.top + a.line[0], a.top + a.line[1])
    profile = grey[rows].mean(axis=0)
    outer = _crossing(profile[::-1], len(profile) - b.right) + _crossing(profile, a.left)
    block = a is b and a.bottom - a.top >= BLOCK and not _cap(a, 0) and not _cap(a, -1)
    caps = 0.0 if block else (max(1, _cap(a, 0)) + max(1, _cap(b, -1))) / 2
    length = len(profile) - outer - caps
    return ScaleBar(length, a.left, min(a.top, b.top), b.right, max(a.bottom, b.bottom))


def _crossing(profile: Pixels, first: int) -> float:
    """Where the profile rises through one half at its `first` inked pixel, as a pixel edge [px]."""
    inside, outside = float(profile[first]), float(profile[first - 1]) if first else 0.0
    return first + 0.5 - (inside + outside - 0.5) if inside < 1 or outside > 0 else float(first)


def _combs(parts: Sequence[_Part], grey: Pixels) -> list[ScaleBar]:
    """Rows of evenly spaced upright ticks that share their upper or lower end."""
    ticks = [part for part in parts if part.bottom - part.top >= 2 * part.wide]
    found: dict[tuple[int, int], ScaleBar] = {}
    for side in ("top", "bottom"):
        for level in {getattr(tick, side) for tick in ticks}:
            row = sorted((t for t in ticks if getattr(t, side) == level), key=lambda t: t.left)
            if len(row) not in _TICKS:
                continue
            places = [_centre(tick, grey) for tick in row]
            steps = np.diff(places)
            mean = float(steps.mean())
            if mean >= 2 and np.abs(steps - mean).max() <= max(1.0, TICK_SPREAD * mean):
                bottom = max(t.bottom for t in row)
                found[row[0].left, row[-1].right] = ScaleBar(
                    places[-1] - places[0], row[0].left, min(t.top for t in row), row[-1].right, bottom
                )
    return list(found.values())


def _centre(tick: _Part, grey: Pixels) -> float:
    """The ink's centre of mass across a tick [px]."""
    left, right = max(0, tick.left - 1), tick.right + 1
    profile = grey[tick.top : tick.bottom, left:right].sum(axis=0)
    return float(left + (profile * np.arange(len(profile))).sum() / profile.sum())

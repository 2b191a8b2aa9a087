"""Picture -> chords: lines across bodies from one edge to the opposite one. Knows nothing about what the bodies are.

From an edge a ray runs along the grey-level gradient into the body until the gradient turns back; the two edges are
the ends of a chord (stroke width transform: B. Epshtein et al., CVPR 2010, 2963). Widths of a factor of two are looked
for at each scale, so that a rim or a groove on a wide body is no body of its own.

Chords of a long body lie side by side and are alike (`steady`); those of a round one share their middle and point in
all directions (`round`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from assistant.measurements.picture import F32, F64, Mask, Picture, block_mean, blurred

_SCALES = 3
MOST_RAYS = 2500
"""Rays per scale; of more edges those of evenly spread tiles are taken."""
_TILE = 64
"""Side of a tile [px of the scale]."""
REACH = 16
"""Longest ray [px of the scale]."""
NARROWEST, NARROW = 2.0, 6.0
"""Least width at the finest scale, and at the others, where the finer one sees narrower bodies [px of the scale]."""
OVER_NOISE, OVER_PICTURE = 4.0, 0.3
"""An edge is so many times steeper than noise, and so much of what the steep places of the picture are."""
LIKE_EDGES = 0.5
"""Least ratio of the gradients at the two ends."""
OPPOSITE = 0.85
"""Least cosine between the ray and the gradient at its end."""
STANDS_OUT, THIN_STANDS_OUT = 0.15, 0.4
"""Least contrast of a body against its brighter side, in ranges of the picture. A thin one needs more: the glowing rim
of a wide body is thin, and bright against one side only."""
ONE_SIDED, THIN_ONE_SIDED = 0.2, 0.6
"""Least ratio of the contrasts against the two sides."""
_ALIKE = 0.15
"""Largest relative difference between the widths of neighbours."""
SAME_AXIS = 20.0
"""Angle up to which a narrow chord inside a wide one is a rim or groove of the same body [deg]."""
PART = 1.5
"""How much wider that one is."""
ALIKE_PIXELS = 0.8
BESIDE_WIDTHS = (0.6, 0.8, 1.0, 1.2, 1.5)
BESIDE = 3.0
"""So far to either side of a chord its body is taken to go on [px of the small copy]."""
CELL = 2
"""Middles up to so far apart, or one and a half of it, count as one [px of the scale]."""
FEWEST_EDGES = 30
STEEP = 95
"""Percentile of the gradient that stands for the steep places of the picture."""
LEFT_BY_HALVING = 0.3
"""Share of the noise's gradient that is left in the next scale."""
ROUND_EVENNESS, ROUND_COVER = 0.6, 0.25
"""Least spread of directions about a common middle, and least share of the outline, of a round body."""


@dataclass(frozen=True, eq=False)
class Chords:
    """Chords of one polarity [px of the small copy]. [N] each"""

    x: F32
    y: F32
    width: F32
    along: F32
    """direction at right angles to the chord, that of the axis of a long body [rad, 0..pi, y down]"""
    length: F32
    """of the edge that a chord stands for"""
    contrast: F32
    """of the body against its brighter side, in ranges of the picture"""
    steady: Mask
    """whether neighbours on both sides along the axis are as wide"""
    firm: Mask
    """whether those neighbours are steady themselves"""
    round: Mask
    """whether chords in many directions share the middle"""

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, chosen: Mask | NDArray[np.intp]) -> Chords:
        return Chords(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def share(self, chosen: Mask) -> float:
        """Share of the area under all chords that the chosen ones cover."""
        area = self.width * self.length
        return float(area[chosen].sum() / max(float(area.sum()), 1e-9))


def find_chords(picture: Picture) -> tuple[Chords, Chords]:
    """The chords of bright and those of dark bodies at every scale, without parts of wider bodies."""
    span = float(np.subtract(*np.percentile(picture.calm[::2, ::2], [95, 5])))
    steps = [scale for scale in _scales(picture) if len(scale.rows) >= FEWEST_EDGES]
    return _of_polarity(steps, span, picture, sign=1), _of_polarity(steps, span, picture, sign=-1)


@dataclass(frozen=True, eq=False)
class _Scale:
    """The picture at one scale, with its edges."""

    grey: F32
    gx: F32
    gy: F32
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    """of the edges [E]"""
    step: float
    """edges that one of these stands for"""
    size: int
    """of its pixel [px of the small copy]"""

    def nearest(self, y: F32, x: F32) -> NDArray[np.intp]:
        """Flat indices of the nearest pixels; beyond the frame those of its border."""
        rows, columns = _pixels(self.grey.shape, y, x)
        return np.asarray(rows * self.grey.shape[1] + columns)


def _scales(picture: Picture) -> Iterator[_Scale]:
    """The small copy, and halved again and again."""
    grey, size, (gx, gy), steep = picture.calm, 1, picture.gradients, picture.slope
    noise = picture.small_noise / (2 * np.sqrt(2 * np.pi) * picture.sigma**2)  # of the gradient of blurred noise
    for _ in range(_SCALES):
        if min(grey.shape) < 2 * REACH:
            return
        if size > 1:
            gy, gx = (np.asarray(part, dtype=np.float32) for part in np.gradient(grey))
            steep = np.hypot(gx, gy)
        rows, columns = _edges(gx, gy, steep, OVER_NOISE * noise)
        step = max(1, -(-len(rows) // MOST_RAYS))
        # Whole tiles, for a chord is judged by its neighbours.
        some = (rows // _TILE * 5 + columns // _TILE * 3) % step == 0
        yield _Scale(grey, gx, gy, rows[some], columns[some], len(rows) / max(int(some.sum()), 1), size)
        grey, noise, size = block_mean(blurred(grey, 1.0), 2), LEFT_BY_HALVING * noise, 2 * size


def _edges(gx: F32, gy: F32, steep: F32, floor: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pixels where the gradient is steep and steepest along its own direction."""
    floor = max(floor, OVER_PICTURE * float(np.percentile(steep[::4, ::4], STEEP)))
    inner = np.zeros(steep.shape, np.bool_)
    np.greater(steep[1:-1, 1:-1], floor, out=inner[1:-1, 1:-1])
    at, values, wide = np.flatnonzero(inner), steep.ravel(), steep.shape[1]
    here = values[at]
    across, down = (np.rint(part.ravel()[at] / here).astype(np.intp) for part in (gx, gy))
    step = down * wide + across
    rows, columns = np.divmod(at[(here > values[at + step]) & (here >= values[at - step])], wide)
    return rows, columns


def _of_polarity(steps: list[_Scale], span: float, picture: Picture, *, sign: int) -> Chords:
    found = [_chords(scale, span, sign) for scale in steps]
    joined = Chords(*(np.concatenate([getattr(some, f.name) for some in found] or [_NONE]) for f in fields(Chords)))
    return joined[~_is_part(joined, picture.calm.shape)]


_NONE: F32 = np.zeros(0, np.float32)


def _chords(it: _Scale, span: float, sign: int) -> Chords:
    """The chords at one scale, from every edge whose ray ends at an edge alike."""
    gx, gy = (part[it.rows, it.columns] * np.float32(sign) for part in (it.gx, it.gy))
    steep = np.hypot(gx, gy)
    nx, ny = gx / steep, gy / steep
    width, ends = _across(it, nx, ny, steep, sign)
    ends &= (width >= (NARROWEST if it.size == 1 else NARROW)) & (width < REACH - 1)
    nx, ny, width = nx[ends], ny[ends], width[ends]
    x, y = it.columns[ends] + nx * width / 2, it.rows[ends] + ny * width / 2
    weaker, stronger = _contrasts(it, x, y, nx * width, ny * width, sign)
    thin = it.size == 1
    clear = weaker > (THIN_STANDS_OUT if thin else STANDS_OUT) * span
    clear &= weaker > (THIN_ONE_SIDED if thin else ONE_SIDED) * stronger
    x, y, width, along = x[clear], y[clear], width[clear], (np.arctan2(nx, -ny) % np.pi)[clear]
    steady, firm = _are_steady(it.grey.shape, x, y, width, along)
    rounded = _are_round(it, x, y, width, along)
    # A chord is found from either end.
    length = np.full(len(x), it.step * it.size / 2, np.float32)
    shift = np.float32((it.size - 1) / 2)
    return Chords(x * it.size + shift, y * it.size + shift, width * it.size, along, length,
                  (weaker / max(span, 1e-6))[clear], steady, firm, rounded)  # fmt: skip


def _across(it: _Scale, nx: F32, ny: F32, steep: F32, sign: int) -> tuple[F32, Mask]:
    """Length of the ray from each edge to the opposite one, and whether it ends at one. [E] each

    A ray ends where the grey level is back at that of its start, or at a gradient alike that is turned against it.
    """
    reach = np.arange(1, REACH + 1, dtype=np.float32)
    starts = (part.astype(np.float32)[:, None] for part in (it.rows, it.columns))
    y, x = (start + part[:, None] * reach for start, part in zip(starts, (ny, nx), strict=True))
    seen = (y > -0.5) & (y < it.grey.shape[0] - 0.5) & (x > -0.5) & (x < it.grey.shape[1] - 0.5)
    at = it.nearest(y, x)
    gx, gy, grey = (part.ravel()[at] * np.float32(sign) for part in (it.gx, it.gy, it.grey))
    slope = gx * nx[:, None] + gy * ny[:, None]
    start = it.grey[it.rows, it.columns] * np.float32(sign)
    stop = (grey < start[:, None]) | ~seen
    turned = slope < -LIKE_EDGES * steep[:, None]
    stop[:, 1:-1] |= (turned & (slope <= np.roll(slope, 1, 1)) & (slope <= np.roll(slope, -1, 1)))[:, 1:-1]
    rays, first = np.arange(len(y)), stop.argmax(axis=1)
    near = (first[:, None] + np.arange(-2, 3)).clip(0, REACH - 1)
    end = near[rays, np.take_along_axis(slope, near, 1).argmin(axis=1)]
    there = slope[rays, end]
    good = stop.any(axis=1) & seen[rays, first] & seen[rays, end]
    good &= (there < -LIKE_EDGES * steep) & (there > -steep / LIKE_EDGES)
    good &= -there > OPPOSITE * np.hypot(gx[rays, end], gy[rays, end])
    before, after = slope[rays, (end - 1).clip(0)], slope[rays, (end + 1).clip(max=REACH - 1)]
    bend = before - 2 * there + after
    between = np.where(bend > 1e-9, 0.5 * (before - after) / np.maximum(bend, 1e-9), 0).clip(-0.5, 0.5)
    return reach[end] + between.astype(np.float32), np.asarray(good, dtype=np.bool_)


def _contrasts(it: _Scale, x: F32, y: F32, dx: F32, dy: F32, sign: int) -> tuple[F32, F32]:
    """How far a body stands out against its two sides, the lesser first."""

    def levels(*places: float) -> list[F32]:
        return [it.grey.ravel()[it.nearest(y + t * dy, x + t * dx)] * np.float32(sign) for t in places]

    body = np.mean(levels(-0.25, 0, 0.25), axis=0)
    one, other = np.min(levels(0.7, 0.85, 1.0), axis=0), np.min(levels(-0.7, -0.85, -1.0), axis=0)
    return body - np.maximum(one, other), body - np.minimum(one, other)


def _are_steady(shape: tuple[int, ...], x: F32, y: F32, width: F32, along: F32) -> tuple[Mask, Mask]:
    """Whether there are chords of like width about a width away in both directions, and such that this is true of."""
    order = np.argsort(width)
    rows, columns = _pixels(shape, y, x)

    def beside(some: Mask) -> Mask:
        drawn = np.zeros((shape[0] + 2, shape[1] + 2), np.float32)
        at = order[some[order]]
        for down in range(3):  # a pixel to every side
            for right in range(3):
                drawn[rows[at] + down, columns[at] + right] = width[at]
        drawn = drawn[1:-1, 1:-1]
        both = np.ones(len(x), np.bool_)
        for sign in (-1, 1):
            found = np.zeros(len(x), np.bool_)
            for away in BESIDE_WIDTHS:
                step = sign * np.maximum(away * width, 2.0)
                there = drawn[_pixels(shape, y + step * np.sin(along), x + step * np.cos(along))]
                found |= np.abs(there - width) <= np.maximum(_ALIKE * width, ALIKE_PIXELS)
            both &= found
        return both

    steady = beside(np.ones(len(x), np.bool_))
    return steady, steady & beside(steady)


def _pixels(shape: tuple[int, ...], y: F32 | F64, x: F32 | F64) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the nearest pixels within the frame."""
    rows, columns = (np.clip(np.rint(v), 0, n - 1).astype(np.intp) for v, n in zip((y, x), shape, strict=True))
    return rows, columns


def _are_round(it: _Scale, x: F32, y: F32, width: F32, along: F32) -> Mask:
    """Whether the chords about the same middle point in all directions and would make up much of an outline."""
    shape = tuple(-(-n // CELL) for n in it.grey.shape)
    rows, columns = _pixels(shape, y / np.float32(CELL), x / np.float32(CELL))
    at, step = rows * shape[1] + columns, (-1, 0, 1)
    down, right = ((v[:, None] + step).clip(0, n - 1) for v, n in zip((rows, columns), shape, strict=True))
    near = down[:, :, None] * shape[1] + right[:, None, :]

    def around(values: F32 | None) -> F32:
        total = np.bincount(at, values, shape[0] * shape[1])
        return np.asarray(total[near].sum(axis=(1, 2)), dtype=np.float32)

    many, c, s = around(None), around(np.cos(2 * along)), around(np.sin(2 * along))
    even = np.hypot(c, s) < (1 - ROUND_EVENNESS) * many
    return np.asarray(even & (many > ROUND_COVER * np.pi * width), dtype=np.bool_)


def _is_part(chords: Chords, shape: tuple[int, ...]) -> Mask:
    """Whether a chord lies inside a steady one that is wider and has the same axis: it crosses a rim or a groove."""
    wide = chords[np.flatnonzero(chords.steady)]
    wide = wide[np.argsort(wide.width)]
    width, along = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    c, s = np.cos(wide.along)[:, None], np.sin(wide.along)[:, None]
    across = np.linspace(-0.49, 0.49, 15, dtype=np.float32) * wide.width[:, None]
    for beside in (-1.0, 0.0, 1.0):
        step = beside * np.minimum(wide.length, BESIDE)[:, None]
        y, x = wide.y[:, None] - across * c + step * s, wide.x[:, None] + across * s + step * c
        rows, columns = _pixels(shape, y, x)
        new = width[rows, columns] < wide.width[:, None]
        width[rows[new], columns[new]] = np.broadcast_to(wide.width[:, None], rows.shape)[new]
        along[rows[new], columns[new]] = np.broadcast_to(wide.along[:, None], rows.shape)[new]
    rows, columns = _pixels(shape, chords.y, chords.x)
    turn = np.abs((along[rows, columns] - chords.along + np.pi / 2) % np.pi - np.pi / 2)
    return np.asarray((width[rows, columns] > PART * chords.width) & (turn < np.deg2rad(SAME_AXIS)), dtype=np.bool_)

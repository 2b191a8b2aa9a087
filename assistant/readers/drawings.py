"""Finds what was drawn over a picture: strokes of one pure level or colour, letters in a row, scale bars, flat boxes.

A specimen has noise and soft edges. A drawing has one level, edges of a pixel, and right angles. Knows nothing about
files, vendors or what letters say.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from assistant.arrays import Mask, Pixels
from assistant.readers.frame import VIVID, vividness
from assistant.readers.sample import largest_rectangle
from assistant.readers.window import level_counts

NEAR = 12  # [levels of 256]: how far JPEG takes a pure level off
SOFT = 0.3  # of the range below the pure level over which ink fades out: smoothed edges of letters
_EMPTY = 0.003  # pixels per level near the pure one, as a share of those at it, where the specimen never comes near
_FEWEST, LARGEST_SHARE = 20, 0.05  # pixels of such a drawing, and the largest share of the frame
_ROWS_AT_ONCE = 256  # so that the float64 copy of a large frame stays small
FEWEST_LEVELS = 32  # levels of 256 that a picture has which is not itself a drawing
MOST_COLOUR = 0.25  # share of vivid pixels from which the whole picture is coloured
MOST_PIECES, MOST_GLYPHS = 6000, 600
LETTER_PX, LETTER_SHARE = 7, 0.08  # height of a letter: least [px] and largest [of the frame]
BAR_PX, _BAR_SHARE = 24, 0.65  # length of a scale bar: least [px] and largest [of the width]
_STEEP, ALL_AROUND = 50, 0.95  # grey levels between ink and what lies two pixels off, and how much of its rim has them
MUCH_AROUND = 0.88  # ... where the outline is that of an arrow: it may end on something of its own level
LINE = 0.97  # share of a line's length, or of an end mark's height, that is ink
_SLENDER = 4.0  # a bar is so many times as long as high
SOLID, SMEARED = 0.85, 0.75  # share of a bar's box that is ink, and of a coloured one: JPEG keeps half of its colour
BOX_WIDTH, BOX_ROWS, BOX_HEIGHT = 0.15, 10, 0.35  # of a flat box: least share of the width, rows, largest share
BOX_SHARE = 0.005  # of the frame
FLAT_EDGE, FLAT_INSIDE, OTHER_OUTSIDE = 0.85, 0.5, 0.5
FEWEST_CORNERS = 40  # of a grey stroke: places where four pixels have its level
SMOOTH_SHARE = 0.02  # share of a picture that may be as flat as a stroke: in noise hardly any is
GREY_INK = (24, 232)  # levels that no specimen is clipped to
STROKE_RING, STROKE_CONTRAST, STROKE_EDGE = 4, 6, 0.75  # [px] around a stroke; levels by which how much of it differs
MOST_STROKES = 100
SHORTEST_ARROW, _ARROW_SHARE = 32, 0.4  # length of an arrow: least [px] and largest [of the frame's width]
ARROW_SLENDER = 1.5  # an arrow is at least so many times as long as its head is wide
SHAFT_SHARE, SHAFT_SPREAD = 0.3, 0.35  # of an arrow's length: its shaft, at least; how much the shaft's width varies
_STRAIGHT, STRAIGHT_SHARE = 0.7, 0.05  # how far its middle line may leave a straight one: [px], or of the head's width
NARROWEST_HEAD, HEAD_OVER_SHAFT = 9.0, 1.8  # [px], and as a multiple of the shaft's width
TAPER = 0.15  # how far off a straight line the head may taper, as a share of its width
RIM = 3  # [px] around a drawing that smoothing and JPEG reach
TILE_SIDE = 15  # [px] a missing tile has at least
TILE_SHARE, TILE_FILLED = 0.01, 0.98  # of a missing tile: least share of the frame, and of its box that is constant
TILE_OF_PIECE = 0.8  # share of a constant piece that is its largest rectangle: of a round pore 0.64
THINNED = 2048  # [px] of a frame in which every pixel is looked at for missing tiles
MOST_TILES, TILE_LONG = 3, 4


@dataclass(frozen=True)
class Box:
    """A rectangle of rows [top, bottom) and columns [left, right) [px]."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.right)

    @property
    def high(self) -> int:
        return self.bottom - self.top

    @property
    def wide(self) -> int:
        return self.right - self.left

    @property
    def area(self) -> int:
        return self.high * self.wide

    def grown(self, by: int, shape: tuple[int, ...]) -> "Box":
        """The box with `by` more pixels on every side, within a picture of `shape`."""
        return Box(
            max(0, self.left - by),
            max(0, self.top - by),
            min(shape[1], self.right + by),
            min(shape[0], self.bottom + by),
        )

    def moved(self, step: int, place: "Box") -> "Box":
        """The same box where every pixel became `step` pixels a side, seen from the frame that holds `place`."""
        left, top, right, bottom = (step * edge for edge in (self.left, self.top, self.right, self.bottom))
        return Box(left + place.left, top + place.top, right + place.left, bottom + place.top)


@dataclass(frozen=True, eq=False)
class Ink:
    """The pixels of one pure level: light, dark or vivid."""

    mask: Mask  # [H, W]
    soft: Pixels  # [H, W] uint8: the ink light on a dark ground, its smoothed edges between
    grey: Pixels | None  # [H, W] uint8
    """The picture in which ink of one grey level was found; None for ink that is a colour."""
    alone: bool
    """True where the specimen never comes near this level: then all of it was drawn."""

    @cached_property
    def pieces(self) -> "tuple[Pixels, Pixels, Pixels]":
        """Names [H, W] of connected pieces, their boxes [N, 4] (left, top, right, bottom) and areas [N]."""
        from scipy import ndimage

        names, count = ndimage.label(self.mask, np.ones((3, 3)))
        if count == 0 or count > MOST_PIECES:
            return names, np.zeros((0, 4), int), np.zeros(0, int)
        boxes = [(c.start, r.start, c.stop, r.stop) for r, c in ndimage.find_objects(names)]
        return names, np.array(boxes), np.bincount(names[self.mask])[1:]

    @cached_property
    def bars(self) -> list[Box]:
        """Slender solid rectangles that lie clear of the frame's edge, longest first."""
        names, boxes, areas = self.pieces
        high, wide = self.mask.shape
        found = []
        for name, ((left, top, right, bottom), area) in enumerate(zip(boxes.tolist(), areas.tolist(), strict=True), 1):
            w, h = right - left, bottom - top
            inside = left > 0 and top > 0 and right < wide and bottom < high
            if inside and BAR_PX <= w <= _BAR_SHARE * wide and 2 <= h <= w / _SLENDER:
                box = Box(left, top, right, bottom)
                if area >= (SOLID if self.grey is not None else SMEARED) * w * h or _is_ruler(
                    names[box.rows, box.columns] == name
                ):
                    found.append(box)
        return sorted(found, key=lambda box: box.left - box.right)

    @cached_property
    def lines(self) -> list[tuple[Box, int]]:
        """Rows of at least three letters, each with the number of its letters, most letters first."""
        _, boxes, areas = self.pieces
        if len(boxes) == 0:
            return []
        w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        like = (h >= LETTER_PX) & (h <= LETTER_SHARE * self.mask.shape[0]) & (w <= 2.2 * h) & (areas >= 0.12 * w * h)
        letters = boxes[like]
        if not 3 <= len(letters) <= MOST_GLYPHS:
            return []
        found = []
        for group in _neighbours(letters):
            (left, top), (right, bottom) = letters[group][:, :2].min(axis=0), letters[group][:, 2:].max(axis=0)
            found.append((Box(int(left), int(top), int(right), int(bottom)), len(group)))
        return sorted(found, key=lambda line: -line[1])

    @cached_property
    def arrows(self) -> Mask | None:
        """Where arrows are drawn [H, W], None where none are: a shaft of one width, then a head that tapers."""
        names, boxes, areas = self.pieces
        sides = boxes[:, 2:] - boxes[:, :2]
        longest = np.hypot(*sides.T)
        like = (longest >= SHORTEST_ARROW) & (longest <= _ARROW_SHARE * self.mask.shape[1]) & (areas >= FEWEST_CORNERS)
        out = np.zeros(self.mask.shape, bool)
        for name in (np.flatnonzero(like) + 1).tolist():
            box = Box(*boxes[name - 1].tolist())
            piece = names[box.rows, box.columns] == name
            if _is_arrow(piece) and self.is_sharp(box, piece, rim=MUCH_AROUND):
                out[box.rows, box.columns] |= piece
        return out if out.any() else None

    def is_sharp(self, box: Box, piece: Mask | None = None, rim: float = ALL_AROUND) -> bool:
        """Whether the ink in a box, or a piece of it, ends within a pixel all around, as nothing in focus does.

        `rim` is how much of what lies around must be unlike it.
        """
        from scipy import ndimage

        if self.grey is None:
            return True
        place = box.grown(4, self.mask.shape)
        ink = self.mask[place.rows, place.columns]
        if piece is not None:
            ink = np.zeros_like(ink)
            ink[box.top - place.top : box.bottom - place.top, box.left - place.left : box.right - place.left] = piece
        grey = self.grey[place.rows, place.columns].astype(np.int16)
        ring = ndimage.binary_dilation(ink, iterations=3) & ~ndimage.binary_dilation(ink, iterations=1)
        if not ring.any() or not ink.any():
            return False
        return bool((np.abs(grey[ring] - float(np.median(grey[ink]))) >= _STEEP).mean() >= rim)

    def on_row(self, line: Box) -> int:
        """The number of letters on the row of a line: an info bar's words stand far apart."""
        near = 0.3 * (line.bottom - line.top)
        return sum(letters for box, letters in self.lines if abs(box.bottom - line.bottom) <= near)


def _is_ruler(piece: Mask) -> bool:
    """Whether a piece is one straight line with marks that are upright at both of its ends."""
    full = piece.mean(axis=1) >= LINE
    ends = piece[:, :2].any(axis=1).mean(), piece[:, -2:].any(axis=1).mean()
    return bool(full.any()) and min(ends) >= LINE and int(full.sum()) <= max(2, len(piece) // 3)


def _is_arrow(piece: Mask) -> bool:
    """Whether a piece has the outline of an arrow, filled or open, in any direction.

    That is a straight shaft of one width, then a head that begins wide and ends in a point.
    """
    points = np.argwhere(piece).astype(np.float64)
    points -= points.mean(axis=0)
    _, axes = np.linalg.eigh(points.T @ points)
    across, along = (points @ axes).T
    order = np.argsort(along)
    steps = np.floor(along[order] - along.min()).astype(int)
    starts, long = np.flatnonzero(np.diff(steps, prepend=-1)), int(steps[-1]) + 1
    if long < SHORTEST_ARROW or len(starts) != long:
        return False
    high, low = (side.reduceat(across[order], starts) for side in (np.maximum, np.minimum))
    widths, middle, place = high - low + 1, (high + low) / 2, np.arange(long)
    bend = middle - np.polyval(np.polyfit(place, middle, 1), place)
    if bend.std() > max(_STRAIGHT, STRAIGHT_SHARE * widths.max()):
        return False
    for width in (widths, widths[::-1]):
        widest = int(width.argmax())
        wide = float(width[widest])
        shaft, head = width[1 : round(SHAFT_SHARE * long)], width[widest:]
        usual = float(np.median(shaft))
        if (
            SHAFT_SHARE * long <= widest <= long - 4
            and long >= ARROW_SLENDER * wide
            and np.ptp(np.percentile(shaft, [15, 85])) <= max(2.0, SHAFT_SPREAD * usual)
            and wide >= max(NARROWEST_HEAD, HEAD_OVER_SHAFT * usual)
            and np.abs(head - np.linspace(wide, 1, len(head))).mean() <= TAPER * wide
        ):
            return True
    return False


def inks(pixels: Pixels, colour: Pixels | None) -> Iterator[Ink]:
    """The vivid, light and dark ink that a picture [H, W] may have been drawn on with, the purest first."""
    if colour is not None:
        vivid = vividness(colour)
        mask = vivid >= VIVID
        if _FEWEST <= np.count_nonzero(mask) <= MOST_COLOUR * mask.size:
            yield Ink(mask, np.minimum(255, vivid.astype(np.uint16) * 2).astype(np.uint8), grey=None, alone=True)
    grey = eight_bits(pixels)
    counts = level_counts(grey)
    used = np.flatnonzero(counts)
    for level, inward in ((int(used[-1]), -1), (int(used[0]), 1)):
        if counts[level] < _FEWEST or counts[level] > LARGEST_SHARE * grey.size:
            continue
        near = counts[[level + inward * step for step in range(1, NEAR + 1) if 0 <= level + inward * step < 256]]
        alone = (level >= 250 or level <= 5) and near.mean() <= _EMPTY * counts[level] and many_levels(counts)
        mask = np.asarray(grey == level)
        yield Ink(mask, mask.astype(np.uint8) * np.uint8(255), grey=grey, alone=bool(alone))
        if not alone:
            # What JPEG or smoothing took off its level: near it more than half, so that strokes stay apart.
            distance = (np.arange(256) - level) * inward
            fade = np.rint(np.interp(distance, [0, NEAR, 255 * SOFT], [255, 130, 0])).astype(np.uint8)
            yield Ink(np.asarray((distance <= NEAR)[grey]), fade[grey], grey=grey, alone=False)


def many_levels(counts: Pixels) -> bool:
    """Whether there is a picture beside the drawing."""
    return int(np.count_nonzero(counts > 1e-5 * counts.sum())) >= FEWEST_LEVELS


def eight_bits(pixels: Pixels) -> Pixels:
    """uint8 [H, W] over the full range of finite values; eight-bit pictures as they are."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:  # there are fewer levels than pixels
        low, high = float(pixels.min(initial=0xFFFF)), float(pixels.max(initial=0))
        steps = (np.arange(0x10000, dtype=np.float64) - low) / max(high - low, 1) * 255
        return np.asarray(steps.clip(0, 255).astype(np.uint8)[pixels])
    parts = [slice(top, top + _ROWS_AT_ONCE) for top in range(0, len(pixels), _ROWS_AT_ONCE)]
    ends = [(float(wide.min()), float(wide.max())) for part in parts if (wide := _finite(pixels[part])).size]
    low, high = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (0.0, 0.0)
    grey = np.zeros(pixels.shape, np.uint8)
    for part in parts if high > low else ():
        grey[part] = (_finite(pixels[part]) - low) / (high - low) * 255
    return grey


def _finite(pixels: Pixels) -> Pixels:
    wide = pixels.astype(np.float64)
    return np.where(np.isfinite(wide), np.clip(wide, -1e30, 1e30), 0.0)


def _neighbours(letters: Pixels) -> Iterator[Pixels]:
    """Groups of at least three boxes [N, 4] that stand side by side on one line, as indices."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    left, top, right, bottom = letters.T
    high = bottom - top
    taller = np.maximum(high[:, None], high[None])
    level = np.abs(bottom[:, None] - bottom[None]) <= 0.3 * taller
    alike = np.minimum(high[:, None], high[None]) >= 0.45 * taller
    gap = np.maximum(left[:, None], left[None]) - np.minimum(right[:, None], right[None])
    count, group = connected_components(csr_array(level & alike & (gap <= 1.5 * taller)), directed=False)
    for name in range(count):
        members = np.flatnonzero(group == name)
        if len(members) >= 3:
            yield members


def flat_strokes(pixels: Pixels) -> Mask | None:
    """Strokes of one exact grey level in a picture [H, W] whose specimen has noise; None where there are none.

    Nothing is told in a picture that is smooth in more than a few places: there a specimen has such areas too. JPEG
    spoils the level, so that nothing is found there either.
    """
    from scipy import ndimage

    grey = eight_bits(pixels)
    same = (grey[1:, 1:] == grey[:-1, :-1]) & (grey[1:, 1:] == grey[1:, :-1]) & (grey[1:, 1:] == grey[:-1, 1:])
    if not _FEWEST <= np.count_nonzero(same) <= SMOOTH_SHARE * same.size:
        return None
    names, _ = ndimage.label(same)
    large = np.flatnonzero(np.bincount(names[same]) >= FEWEST_CORNERS)[:MOST_STROKES].tolist()
    if not large:
        return None
    boxes = ndimage.find_objects(names, max_label=large[-1])
    out = np.zeros(grey.shape, bool)
    for name in large:
        rows, columns = boxes[name - 1]
        place = Box(columns.start, rows.start, columns.stop, rows.stop).grown(STROKE_RING + 1, same.shape)
        piece = names[place.rows, place.columns] == name
        corner = np.ones((2, 2), bool)  # stands for the four pixels it touches
        ink = ndimage.binary_dilation(np.pad(piece, ((0, 1), (0, 1))), corner, origin=(-1, -1))
        around = grey[place.top : place.bottom + 1, place.left : place.right + 1].astype(np.int16)
        level = int(np.median(around[ink]))
        if not GREY_INK[0] <= level <= GREY_INK[1]:
            continue
        near = ndimage.binary_dilation(ink, iterations=2)
        ring = ndimage.binary_dilation(near, iterations=STROKE_RING - 2) & ~near
        if (np.abs(around[ring] - level) >= STROKE_CONTRAST).mean() >= STROKE_EDGE:
            out[place.top : place.bottom + 1, place.left : place.right + 1] |= ndimage.binary_dilation(
                ink, iterations=RIM
            )
    return out if out.any() else None


def flat_boxes(pixels: Pixels) -> list[Box]:
    """Rectangles filled with one level, text on them included, that are something else than what lies around them."""
    grey = eight_bits(pixels)
    counts = level_counts(grey)
    found: list[Box] = []
    if not many_levels(counts):
        return found
    for level in np.argsort(counts)[-3:][::-1].tolist():
        if counts[level] < BOX_SHARE * grey.size:
            continue
        same = grey == level
        beside_itself = (same[:, 1:] & same[:, :-1]).mean(axis=1)  # of each row; in noise it seldom is
        if np.count_nonzero(beside_itself >= BOX_WIDTH / 3) >= BOX_ROWS:
            found += [box for box in _boxes_of(grey, level) if not any(_overlap(box, other) for other in found)]
    return found


def _boxes_of(grey: Pixels, level: int) -> Iterator[Box]:
    from scipy import ndimage

    high, wide = grey.shape
    fill = np.abs(grey.astype(np.int16) - level) <= 3
    joined = ndimage.binary_dilation(fill[::2, ::2], np.ones((3, 3), bool))  # over the rules between a bar's cells
    names, count = ndimage.label(joined)
    if count > MOST_PIECES:
        return
    for rows, columns in ndimage.find_objects(names):
        box = Box(2 * columns.start, 2 * rows.start, min(wide, 2 * columns.stop), min(high, 2 * rows.stop))
        if box.wide < BOX_WIDTH * wide or not BOX_ROWS <= box.high <= BOX_HEIGHT * high:
            continue
        part = fill[box.rows, box.columns]
        owned = np.flatnonzero(part.mean(axis=1) >= FLAT_EDGE), np.flatnonzero(part.mean(axis=0) >= FLAT_INSIDE)
        if min(len(side) for side in owned) < 4:
            continue
        (top, bottom), (left, right) = ((int(side[0]), int(side[-1]) + 1) for side in owned)
        tight = Box(left, top, right, bottom).moved(1, box)  # without what the fill does not own at the sides
        if _stands_apart(fill, tight):
            yield tight


def _stands_apart(fill: Mask, box: Box) -> bool:
    """Whether the box is flat, has text, and is not flat beyond any edge that is not the frame's."""
    high, wide = fill.shape
    inside = fill[box.rows, box.columns]
    if box.bottom - box.top < BOX_ROWS or box.right - box.left < BOX_WIDTH * wide or not 0.3 <= inside.mean() <= 0.995:
        return False
    beyond = []
    if box.top > 2:
        beyond.append(fill[max(0, box.top - 8) : box.top - 1, box.columns].all(axis=0).mean())
    if box.bottom < high - 2:
        beyond.append(fill[box.bottom + 1 : box.bottom + 8, box.columns].all(axis=0).mean())
    if box.left > 2:
        beyond.append(fill[box.rows, max(0, box.left - 8) : box.left - 1].all(axis=1).mean())
    if box.right < wide - 2:
        beyond.append(fill[box.rows, box.right + 1 : box.right + 8].all(axis=1).mean())
    return all(share <= 1 - OTHER_OUTSIDE for share in beyond)


def _overlap(a: Box, b: Box) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom


def constant_parts(pixels: Pixels) -> Mask | None:
    """Page margins and missing tiles: large rectangles of one exact level, True there; None where there are none."""
    if not np.isfinite(pixels[::16, ::16]).all() or min(pixels.shape) < 64:
        return None
    out = np.zeros(pixels.shape, bool)
    inner = _without_margins(pixels)
    out[:] = True
    out[inner.rows, inner.columns] = False
    part = pixels[inner.rows, inner.columns]
    step = -(-max(part.shape) // THINNED)
    for level in {part.dtype.type(0), part.min(), part.max()}:
        for rows, columns in _tiles(part[::step, ::step] == level):
            scaled = slice(step * rows.start, step * rows.stop), slice(step * columns.start, step * columns.stop)
            out[inner.rows, inner.columns][scaled] = True
    return out if out.any() and out.mean() < 0.95 else None


def _tiles(same: Mask) -> list[tuple[slice, slice]]:
    """The rectangles that missing tiles leave; a pattern of many, or of long ones, is specimen."""
    from scipy import ndimage

    if not TILE_SHARE <= same.mean() <= 0.9:
        return []
    core = ndimage.minimum_filter(same, TILE_SIDE)  # the specimen beside a gap may have its level too
    names, _ = ndimage.label(ndimage.maximum_filter(core, TILE_SIDE))
    found = []
    for name, box in enumerate(ndimage.find_objects(names), start=1):
        piece = names[box] == name
        rows, columns = largest_rectangle(piece)
        tile = piece[rows, columns]
        if tile.size >= max(TILE_SHARE * same.size, TILE_OF_PIECE * piece.sum()) and tile.mean() >= TILE_FILLED:
            found.append(
                (
                    slice(box[0].start + rows.start, box[0].start + rows.stop),
                    slice(box[1].start + columns.start, box[1].start + columns.stop),
                )
            )
    alike = [max(_sides(tile)) <= TILE_LONG * min(_sides(tile)) for tile in found]
    return found if len(found) <= MOST_TILES and all(alike) else []


def _sides(tile: tuple[slice, slice]) -> tuple[int, int]:
    return tile[0].stop - tile[0].start, tile[1].stop - tile[1].start


def _without_margins(pixels: Pixels) -> Box:
    """What is left after every edge row and column of one level was taken off; all of it where that is nearly all."""
    high, wide = pixels.shape
    left, top, right, bottom = 0, 0, wide, high
    flat_rows = pixels.max(axis=1) == pixels.min(axis=1)
    while top < bottom and flat_rows[top]:
        top += 1
    while bottom > top and flat_rows[bottom - 1]:
        bottom -= 1
    if bottom - top < 32:
        return Box(0, 0, wide, high)
    flat_columns = pixels[top:bottom].max(axis=0) == pixels[top:bottom].min(axis=0)
    while left < right and flat_columns[left]:
        left += 1
    while right > left and flat_columns[right - 1]:
        right -= 1
    return Box(left, top, right, bottom) if right - left >= 32 else Box(0, 0, wide, high)

"""Finds the burnt-in info bar from pixels alone. Knows nothing about files or vendors.

A specimen has noise, so no grey level owns a row of it. A drawn bar is a flat fill with text on it: one exact level
owns most of each row, the fill starts at a straight edge across the whole width, and what lies above the edge is
something else in nearly every column.
"""

import numpy as np

from assistant.arrays import Pixels

SEARCHED = 0.3  # the bar lies within this part of the height
_COLUMNS = 2048  # a wider picture is thinned out: rows are what is looked for
SMALLEST_ROWS = 48  # a picture this small has no room for readable text
FLAT_ROW = 0.25  # share of a row that has the fill's level, text included
EDGE_ROW = 0.9  # ... in the first two rows of the bar, above its text
OTHER_ABOVE = 0.8  # share of columns in which the rows above the edge are not the fill
ABOVE = 8  # rows looked at above the edge
RULES = 4  # drawn lines across the bar, rows thick at most
_INK = (0.003, 0.6)  # share of the bar that contrasts with the fill: text and scale bar
RINGING = 0.01  # share of the fill that is a little off: never so in a lossless picture


def find_banner(pixels: Pixels) -> tuple[int, int] | None:
    """Rows [first, stop) of the info bar at the bottom or top of [H, W] pixels, or None."""
    height, width = pixels.shape
    if height < SMALLEST_ROWS or width < SMALLEST_ROWS:
        return None
    pixels = pixels[:, :: max(1, width // _COLUMNS)]
    first = _edge(_levels(pixels[-int(SEARCHED * height) :]))
    if first is not None:
        return height - int(SEARCHED * height) + first, height
    first = _edge(_levels(pixels[int(SEARCHED * height) - 1 :: -1]))
    return None if first is None else (0, int(SEARCHED * height) - first)


def _levels(pixels: Pixels) -> tuple[Pixels, int, float]:
    """The pixels, how far off a level still counts as that level, and from where on a difference is ink.

    Eight bits may have been through JPEG, which rings; deeper pictures are lossless, so their fill is exact. That
    matters where 12-bit data share a 16-bit file with a 16-bit bar: on the bar's scale all of the specimen is black.
    """
    if pixels.dtype == np.uint8:
        return pixels.astype(np.int32), 4, 64.0
    if pixels.dtype.itemsize < 4 and pixels.dtype.kind in "iu":
        exact = pixels.astype(np.int32)
    else:
        wide = pixels.astype(np.float64)
        exact = np.where(np.isfinite(wide), np.clip(wide, -1e30, 1e30), 0)
    low, high = np.percentile(exact[::2, ::2], [1, 99])
    return exact, 0, 0.16 * float(high - low)


def _edge(levels: tuple[Pixels, int, float]) -> int | None:
    """The row where a bar at the bottom of the pixels begins, or None."""
    rows, tolerance, ink = levels
    strip = rows[-max(8, len(rows) // 12) : -3]
    values, counts = np.unique(strip, return_counts=True)
    contrast = np.abs(rows - values[counts.argmax()])  # [R, W]
    near = contrast <= tolerance
    fill = near.mean(axis=1)
    top = _topmost_flat(rows, fill, tolerance)
    for row in range(max(top, ABOVE + RULES + 1), len(rows) - max(6, len(rows) // 20)):
        if fill[row] < EDGE_ROW or fill[row + 1] < EDGE_ROW or fill[row - 1] >= EDGE_ROW:
            continue
        first = _above_rule(rows, row, tolerance, ink)
        others = (~near[first - ABOVE : first]).any(axis=0).mean()
        text = contrast[first:][fill[first:] >= FLAT_ROW]  # drawn lines alone are stripes, not text
        if others >= OTHER_ABOVE and _INK[0] <= (text > ink).mean() <= _INK[1]:
            return first if first < row else _above_ringing(contrast, row, tolerance)
    return None


def _above_ringing(contrast: Pixels, row: int, tolerance: int) -> int:
    """The first row of the JPEG block that `row` was found in: the specimen's edge rings into the fill above it."""
    inside = contrast[row:]
    if (inside[inside <= tolerance] > 0).mean() < RINGING:
        return row
    for above in range(row - 1, row - ABOVE, -1):
        if (contrast[above] <= 8 * tolerance).mean() < EDGE_ROW:
            return above + 1
    return row


def _topmost_flat(rows: Pixels, fill: Pixels, tolerance: int) -> int:
    """Climbs from the bottom while rows belong to the fill, are drawn lines, or are a gap of at most four rows."""
    top, gap = len(rows), 0
    for row in range(len(rows) - 1, -1, -1):
        if fill[row] >= FLAT_ROW:
            top, gap = row, 0
        elif _is_rule(rows[row], tolerance):
            gap = 0
        else:
            gap += 1
        if gap > RULES:
            break
    return top


def _is_rule(row: Pixels, tolerance: int) -> bool:
    """True where one level owns nine tenths of a row."""
    spare = len(row) // 20
    ordered = np.partition(row, (spare, len(row) - spare - 1))
    return bool(ordered[len(row) - spare - 1] - ordered[spare] <= 2 * tolerance)


def _above_rule(rows: Pixels, row: int, tolerance: int, ink: float) -> int:
    """The first row of a line drawn along the bar's edge, or `row`: a line stands out from the row above it."""
    for thick in range(1, RULES):
        above = row - thick
        if not _is_rule(rows[above], tolerance):
            contrast = np.abs(rows[above + 1] - rows[above]) > ink / 2
            return above + 1 if thick > 1 and contrast.mean() >= OTHER_ABOVE else row
    return row

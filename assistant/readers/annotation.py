"""What is written on a picture and where: its info bar, text over the specimen, scale bars; and what is left as sample.

The info bar is found by its shape; where a shape could also be specimen, the words on it decide. Knows nothing about
files, vendors or units.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from assistant.arrays import Mask, Pixels
from assistant.readers.banner import find_banner
from assistant.readers.bar_text import read_instrument, tells_instrument
from assistant.readers.drawings import RIM, SOLID, Box, Ink, constant_parts, flat_boxes, flat_strokes, inks
from assistant.readers.fields import fields_of
from assistant.readers.frame import Frame
from assistant.readers.label import cut, ink_of, read_scale
from assistant.readers.ocr import Line, read_line, read_lines
from assistant.readers.record import Instrument
from assistant.readers.scale_bar import find_bars

INFO_LETTERS, ROW_LETTERS = 8, 14  # letters in a word, or in words on one row, that may be an info bar
LEGIBLE = 5  # things read on a strip from which no other ink is tried
WIDE_BOX = 0.5  # share of the width from which a flat box with text is an info bar
_ABOVE, _BELOW = 3.0, 1.5  # letter heights around a row of text in which its scale bar lies
MOST_TEXTS = 20  # rows of letters looked at per ink
MOST_BARS = 6  # scale bars looked at
_LONGEST_SIDE = 3072  # [px] of a frame in which every pixel is looked at
_REACH = 90  # [px] around a scale bar in which its label lies, or three of its heights
AGAIN = 4  # [px] more on every side when a line is read for the second time


@dataclass(frozen=True, eq=False)
class Strip:
    """A part of the picture with something written on it."""

    box: Box
    band: Pixels  # [R, W] as the box, its ink unlike its ground
    source: str
    """"banner" for an info bar, "scale_bar" for a scale bar drawn over the picture."""
    edges: tuple[Pixels, ...] = ()  # [R, W] each
    """Where the band is only ink: pictures in which the ends of the bar may be clear, the best first."""
    step: int = 1
    """Pixels of the picture to one of the band."""

    @cached_property
    def lines(self) -> list[Line]:
        return read_lines(ink_of(self.band))

    def instrument(self) -> Instrument:
        """What the text says of the microscope, read twice."""
        grey = ink_of(self.band)
        again = []
        for line in self.lines:
            near = Line(line.text, line.left - AGAIN, line.top - AGAIN, line.right + AGAIN, line.bottom + AGAIN)
            text = read_line(cut(grey, near)) if any(c.isdigit() for c in line.text) else line.text
            again.append(Line(text, line.left, line.top, line.right, line.bottom))
        return read_instrument(self.lines, again)


@dataclass
class Annotation:
    """Everything that was written on one picture."""

    banner: tuple[int, int] | None = None
    strips: list[Strip] = field(default_factory=list)
    """What is worth reading, the info bar first."""
    boxes: list[Box] = field(default_factory=list)
    """What is no sample: boxes with text, drawn scale bars and their labels."""
    ink: Mask | None = None
    """What is no sample in `place`: strokes on a level or in a colour that the specimen does not have."""
    fields: list[Box] = field(default_factory=list)
    """The pictures that the frame was put together from; one where it is one picture."""
    place: Box = field(default_factory=lambda: Box(0, 0, 0, 0))
    """The field that is read, without its info bar."""

    def remarks(self) -> list[str]:
        """What a person must know of the fields."""
        if len(self.fields) < 2:
            return []
        first, second = self.fields[:2]
        if len(self.fields) > 2:
            how, which = (
                f"{len(self.fields)} pictures",
                f"the one that begins at column {self.place.left}, row {self.place.top}",
            )
        elif first.right <= second.left:
            how, which = (
                "two pictures side by side",
                "the left one" if self.place.left < second.left else "the right one",
            )
        else:
            how, which = (
                "two pictures, one above the other",
                "the upper one" if self.place.top < second.top else "the lower one",
            )
        return [f"The frame holds {how}: only {which} is read and measured. Crop the others to measure them."]


def annotation_of(frame: Frame, *, scan_rows: int | None) -> Annotation:
    """What is written on a frame; `scan_rows` is where the info bar begins by the metadata, if they say so."""
    height, width = frame.pixels.shape
    told = (scan_rows, height) if scan_rows is not None else find_banner(frame.pixels)
    found = Annotation(told)
    place = Box(0, 0, width, height)
    if told is not None:
        place = _beside_bar(found, frame, place, told)
    found.fields = [box.moved(1, place) for box in fields_of(frame.pixels[place.rows, place.columns])]
    place = max(found.fields, key=lambda box: round(box.area / place.area, 1))  # of equal ones the first
    if len(found.fields) > 1 and told is None and (own := find_banner(frame.pixels[place.rows, place.columns])):
        place = _beside_bar(found, frame, place, own)
    found.place = place
    step = -(-max(height, width) // _LONGEST_SIDE)  # what is drawn on a larger frame is larger
    shown = (slice(place.top, place.bottom, step), slice(place.left, place.right, step))
    rest = Frame(frame.pixels[shown], colour=None if frame.colour is None else frame.colour[shown])
    more = _written_over(rest, bar_known=bool(found.strips))
    if more.banner is not None:
        found.banner = (place.top + step * more.banner[0], place.top + step * more.banner[1])
    found.boxes += [box.moved(step, place) for box in more.boxes]
    found.strips += [replace(strip, box=strip.box.moved(step, place), step=step) for strip in more.strips]
    if more.ink is not None:
        found.ink = np.repeat(np.repeat(more.ink, step, axis=0), step, axis=1)[: place.high, : place.wide]
    return found


def _beside_bar(found: Annotation, frame: Frame, place: Box, rows: tuple[int, int]) -> Box:
    """Notes the info bar in these rows of a place; what is left is the larger part of it."""
    bar = Box(place.left, place.top + rows[0], place.right, place.top + rows[1])
    found.strips.append(Strip(bar, _contrast(frame, bar), "banner"))
    found.boxes.append(bar)
    return _larger_part(place, (bar.top, bar.bottom))


def _larger_part(place: Box, bar: tuple[int, int]) -> Box:
    """What of a place lies above or below an info bar in these rows of the frame, whichever is more."""
    if bar[0] - place.top >= place.bottom - bar[1]:
        return replace(place, bottom=min(place.bottom, bar[0]))
    return replace(place, top=max(place.top, bar[1]))


def _written_over(frame: Frame, *, bar_known: bool) -> Annotation:
    """What is written on the specimen itself, in the rows and columns of this frame."""
    from scipy import ndimage

    found, drawn = Annotation(), list(inks(frame.pixels, frame.colour))
    if not bar_known:
        _add_boxes(found, frame)
        if found.banner is None:
            _add_lettering(found, frame, drawn)
    _add_scale_bars(found, frame, drawn)
    for ink in drawn:
        if not ink.alone:  # the specimen has this level too: only sharp edges say that letters and bars were drawn
            boxes = [box for box, _ in ink.lines[:MOST_TEXTS]] + ink.bars[:MOST_BARS]
            found.boxes += [box.grown(RIM, ink.mask.shape) for box in boxes if ink.is_sharp(box)]
    found.ink = flat_strokes(frame.pixels)
    sure = [mask for ink in drawn if (mask := ink.mask if ink.alone else ink.arrows) is not None]
    if sure:  # with the rim that smoothing and JPEG reach
        grown = ndimage.binary_dilation(np.logical_or.reduce(sure), np.ones((3, 3), bool), iterations=RIM)
        found.ink = np.asarray(grown if found.ink is None else grown | found.ink)
    return found


def sample_of(frame: Frame, found: Annotation) -> Mask | None:
    """True where the specimen is [H, W]; None where all of the frame is specimen."""
    sample = np.ones(frame.pixels.shape, bool)
    if len(found.fields) > 1:
        sample[:] = False
        sample[found.place.rows, found.place.columns] = True
    if found.banner is not None and not any(box.rows == slice(*found.banner) for box in found.boxes):
        sample[slice(*found.banner)] = False
    for box in found.boxes:
        sample[box.rows, box.columns] = False
    if found.ink is not None:
        inner = sample[found.place.rows, found.place.columns]
        inner[: found.ink.shape[0], : found.ink.shape[1]] &= ~found.ink
    clear = found.place if found.banner is None else _larger_part(found.place, found.banner)
    constant = constant_parts(frame.pixels[clear.rows, clear.columns])
    if constant is not None:
        sample[clear.rows, clear.columns] &= ~constant
    if frame.opaque is not None:
        sample &= frame.opaque
    return None if sample.all() or not sample.any() else sample


def _contrast(frame: Frame, box: Box) -> Pixels:
    """A box of the picture in which its fill is dark and any ink light, whatever the colours of the two."""
    if frame.colour is None:
        return frame.pixels[box.rows, box.columns]
    part = frame.colour[box.rows, box.columns].astype(np.int16)
    fill = [int(np.bincount(part[..., channel].ravel(), minlength=256).argmax()) for channel in range(3)]
    return np.asarray(np.abs(part - np.array(fill)).max(axis=2), np.uint8)


def _add_boxes(found: Annotation, frame: Frame) -> None:
    """Flat boxes inside the frame; a wide one is the info bar, a small one may hold a scale bar."""
    boxes = flat_boxes(frame.pixels)
    while pair := next(((a, b) for a in boxes for b in boxes if a is not b and _on_one_row(a, b)), None):
        around = Box(
            min(box.left for box in pair), min(box.top for box in pair),
            max(box.right for box in pair), max(box.bottom for box in pair),
        )  # fmt: skip
        boxes = [box for box in boxes if box not in pair] + [around]
    for box in boxes:
        wide = box.right - box.left >= WIDE_BOX * frame.pixels.shape[1]
        if wide and found.banner is None:
            found.banner = (box.top, box.bottom)
        found.boxes.append(box)
        found.strips.append(Strip(box, _contrast(frame, box), "banner" if wide else "scale_bar"))


def _on_one_row(a: Box, b: Box) -> bool:
    shared = min(a.bottom, b.bottom) - max(a.top, b.top)
    return shared > 0.5 * min(a.bottom - a.top, b.bottom - b.top)


def _add_lettering(found: Annotation, frame: Frame, drawn: Sequence[Ink]) -> None:
    """Text written over the picture, or on a ground as dark as the specimen's: the words decide whether it is a bar."""
    best: tuple[int, Strip] | None = None
    for ink in drawn:
        lines = [box for box, letters in ink.lines if letters >= INFO_LETTERS or ink.on_row(box) >= ROW_LETTERS]
        if not lines or (best is not None and best[0] >= LEGIBLE):
            continue
        high, (rows, width) = lines[0].high, ink.mask.shape
        top, bottom = round(lines[0].top - _ABOVE * high), round(lines[0].bottom + _BELOW * high)
        box = Box(0, max(0, top), width, min(rows, bottom))
        strip = Strip(box, ink.soft[box.rows, box.columns], "banner")
        if tells_instrument(strip.lines) and (best is None or _legible(strip) > best[0]):
            best = _legible(strip), strip
    if best is None:
        return
    strip = best[1]
    found.strips.append(strip)
    bars = [(bar.top, bar.bottom) for bar in find_bars(strip.band)[:1]]
    texts = [(line.top, line.bottom) for line in strip.lines if len(line.text) > 2]
    top = strip.box.top + min(first for first, _ in texts + bars) - RIM
    bottom = strip.box.top + max(last for _, last in texts + bars) + RIM
    margin, height = bottom - top, len(frame.pixels)  # the bar goes on to the frame's edge where that is near
    found.banner = (0 if top <= margin else top, height if bottom >= height - margin else bottom)


def _legible(strip: Strip) -> int:
    """How many things can be read on a strip."""
    return len(strip.instrument().sources) + 2 * (read_scale(strip.band) is not None)


def _add_scale_bars(found: Annotation, frame: Frame, drawn: Sequence[Ink]) -> None:
    """Scale bars drawn over the specimen, each with the window in which its label lies."""
    taken = list(found.boxes)
    if found.banner is not None:
        taken.append(Box(0, found.banner[0], frame.pixels.shape[1], found.banner[1]))
    bars = [
        (ink, bar)
        for ink in drawn
        for bar in ink.bars
        if not any(box.top <= bar.top < box.bottom and box.left <= bar.left < box.right for box in taken)
    ]
    for ink, bar in bars[:MOST_BARS]:
        window = bar.grown(max(_REACH, 3 * (bar.bottom - bar.top)), ink.mask.shape)
        area = (bar.right - bar.left) * (bar.bottom - bar.top)
        block = np.count_nonzero(ink.mask[bar.rows, bar.columns]) >= SOLID * area
        soft, grey = (whole[window.rows, window.columns] for whole in (ink.soft, frame.pixels))
        edges = (grey, soft) if ink.grey is None else (grey,) if block else ()  # JPEG keeps half of a colour's detail
        found.strips.append(Strip(window, soft, "scale_bar", edges))

"""Which pixel size counts: the user's, the metadata's, or that of the burnt-in scale bar; and what contradicts it.

Knows nothing about files or any one vendor.
"""

from collections.abc import Sequence
from dataclasses import replace

from assistant.arrays import Pixels
from assistant.readers.annotation import Annotation, Strip
from assistant.readers.drawings import Box
from assistant.readers.label import (
    CONFIRMED,
    SHORTEST_CONFIRMED,
    SHORTEST_READ,
    BarReading,
    is_round,
    read_scale,
)
from assistant.readers.record import LARGEST_PIXEL, SMALLEST_PIXEL, Calibration, Record
from assistant.readers.scale_bar import find_bars

Sourced = tuple[Record, str]
"""A record and where it came from, in words."""

MISMATCH, MISMATCH_PX = 0.02, 2.0  # two pixel sizes disagree beyond 2 %, two bar lengths also beyond 2 px
UNREAD = "A scale bar is drawn in the picture and could not be read: lengths are in pixels."
DOUBTFUL = 0.5  # confidence in a pixel size that another source contradicts


def calibrate(
    records: Sequence[Sourced], found: Annotation, *, width: int, user_nm: float | None, read_bar: bool | None
) -> tuple[Calibration | None, list[str]]:
    """The pixel size and what a person must know of it; `found` is what is written on the picture, `width` px wide.

    The label beside a scale bar is read where nothing else calibrates, and where the info bar's is no round length at
    the pixel size that was stated. `read_bar` True reads it always, False never.
    """
    stated, notes = _stated(records, user_nm)
    band = found.strips[0].band if found.strips and found.strips[0].source == "banner" else None
    odd = (
        stated is not None and band is not None and (_unlike_sidecar(records, band, notes) or _odd_length(stated, band))
    )
    wanted = stated is None or odd if read_bar is None else read_bar
    reading, strip = _first_scale(records, found, width) if wanted else (None, None)
    if stated is None:
        from_bar = _from_bar(reading, strip, notes)
        if from_bar is None and not notes:
            drawn = any(strip.source != "banner" or find_bars(strip.band) for strip in found.strips)
            notes.append(UNREAD if drawn else "No pixel size with a unit was found: lengths are in pixels.")
        return from_bar, notes
    return _compared(stated, reading, notes), notes


def _first_scale(records: Sequence[Sourced], found: Annotation, width: int) -> tuple[BarReading | None, Strip | None]:
    """The first scale bar that can be read; bar and label of one drawn over the specimen are no sample."""
    magnification = next((r.instrument.magnification for r, _ in records if r.instrument.magnification), None)
    for strip in found.strips:
        reading = read_scale(strip.band, magnification=magnification, width=-(-width // strip.step), edges=strip.edges)
        if reading is not None:
            left, top, right, bottom = (edge * strip.step for edge in reading.box)
            first = strip.box
            found.boxes.append(Box(first.left + left, first.top + top, first.left + right, first.top + bottom))
            reading = replace(reading, pixels=reading.pixels * strip.step)
            return reading, strip
    return None, None


def _stated(records: Sequence[Sourced], user_nm: float | None) -> tuple[Calibration | None, list[str]]:
    """The user's word, else the first record's; every other source is compared with it."""
    sized = [(record, where) for record, where in records if record.nm_per_pixel is not None]
    others = [(record.nm_per_pixel, where) for record, where in sized]
    others += [(size, f"another entry of {where}") for record, where in records for size in record.second_opinions]
    if user_nm is not None:
        chosen, whose = Calibration(float(user_nm), "user", 1.0), "the user"
    elif sized:
        record, whose = sized[0]
        chosen = Calibration(float(record.nm_per_pixel or 0), record.source, record.confidence)
    else:
        return None, []
    against = [(s, w) for s, w in others if s and abs(s / chosen.nm_per_pixel - 1) > MISMATCH]
    notes = [
        f"Pixel size: {whose} says {chosen.nm_per_pixel:.4g} nm, {where} {size:.4g} nm; check it."
        for size, where in against
    ]
    return (_doubted(chosen) if against else chosen), notes


def _doubted(calibration: Calibration) -> Calibration:
    return calibration if calibration.source == "user" else replace(calibration, confidence=DOUBTFUL)


def _unlike_sidecar(records: Sequence[Sourced], band: Pixels, notes: list[str]) -> bool:
    """True, with a note, where the drawn bar has another length than the side-car says: they do not belong together."""
    expected = next((r.bar_px for r, _ in records if r.bar_px is not None), None)
    bars = find_bars(band) if expected else []
    if expected is None or not bars or abs(bars[0].length - expected) <= max(MISMATCH_PX, MISMATCH * expected):
        return False
    notes.append(
        f"The burnt-in scale bar is {bars[0].length:.0f} px long, the side-car says {expected:.1f} px: "
        "check the pixel size."
    )
    return True


def _odd_length(stated: Calibration, band: Pixels) -> bool:
    """True where the drawn bar would stand for no round length: then the picture was resized, or the tag is wrong."""
    bars = find_bars(band)
    if not bars:
        return False
    within = max(MISMATCH, MISMATCH_PX / bars[0].length)
    return not is_round(bars[0].length * stated.nm_per_pixel, within=within)


def _from_bar(reading: BarReading | None, strip: Strip | None, notes: list[str]) -> Calibration | None:
    """The calibration that the scale bar gives, or None with the reason."""
    if reading is None or strip is None:
        return None
    if reading.confidence == 0:
        notes.append(
            f"The scale bar reads {reading.nm:g} nm, which its magnification contradicts: lengths are in pixels."
        )
    elif reading.pixels < (SHORTEST_READ if reading.confidence < CONFIRMED else SHORTEST_CONFIRMED):
        notes.append(
            f"The scale bar ({reading.nm:g} nm) is {reading.pixels:.0f} px long, too short to calibrate to 2 %: "
            "lengths are in pixels."
        )
    elif SMALLEST_PIXEL <= reading.nm_per_pixel <= LARGEST_PIXEL:
        return Calibration(float(f"{reading.nm_per_pixel:.5g}"), strip.source, reading.confidence)
    return None


def _compared(stated: Calibration, reading: BarReading | None, notes: list[str]) -> Calibration:
    """The stated pixel size, doubted where a legible scale bar contradicts it."""
    if reading is None or reading.confidence == 0:
        return stated
    expected = reading.nm / stated.nm_per_pixel
    if abs(reading.pixels - expected) <= max(MISMATCH_PX, MISMATCH * expected):
        return stated
    notes.append(
        f"Pixel size: the {'user' if stated.source == 'user' else 'metadata'} says {stated.nm_per_pixel:.4g} nm, the "
        f"burnt-in scale bar ({reading.nm:g} nm in {reading.pixels:.0f} px) {reading.nm_per_pixel:.4g} nm; check it."
    )
    return _doubted(stated)

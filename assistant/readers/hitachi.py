"""Hitachi: a `.txt` side-car with a `[SemImageFile]` section, often UTF-16. Knows nothing about pixels."""

import re
import unicodedata

from assistant.readers.record import (
    Instrument,
    Record,
    iso_date,
    length_nm,
    name,
    parse_ini,
    positive,
    square_pixel,
    stated_quantity,
    two_readings,
    whole,
)

VENDOR = "hitachi", "Hitachi"
_SECTIONS = ("SemImageFile", "TemImageFile")


def from_text(text: str, size: tuple[int, int]) -> Record | None:
    """The record of a Hitachi side-car for an image of `size` (width, height), or None; PixelSize is in nm."""
    ini = parse_ini(unicodedata.normalize("NFKC", text))  # some systems write full-width letters and digits
    entries = next((ini[section] for section in _SECTIONS if section in ini), None)
    if entries is None:
        return None
    columns, _, rows = entries.get("DataSize", "").lower().partition("x")
    width, height = whole(columns), whole(rows)
    side = stated_quantity(entries.get("PixelSize"))
    pixel, warnings = square_pixel(length_nm(side[0], side[1] or "nm") if side and side[0] > 0 else None, None)
    warnings += two_readings(entries.get("PixelSize"))
    condition = entries.get("Condition", "")  # the S-4700 generation packs "Vacc=10kV   Mag=x15.0k   WD=8.1mm" in one
    distance = stated_quantity(entries.get("WorkingDistance") or _inside(condition, "WD"))
    # A bare number is in micrometres, as the vendor's own files write it.
    wd_nm = length_nm(distance[0], distance[1] or "um") if distance and distance[0] > 0 else None
    instrument = Instrument(
        vendor="hitachi",
        model=name(entries.get("InstructName") or entries.get("InstrumentName")),
        hv_kv=_kilovolts(entries.get("AcceleratingVoltage") or _inside(condition, "Vacc")),
        wd_mm=None if wd_nm is None else wd_nm / 1e6,
        magnification=positive(entries.get("Magnification")),
        detector=name(entries.get("SignalName") or entries.get("Signal")),
        date=iso_date(f"{entries.get('Date', '')} {entries.get('Time', '')}"),
    )
    second = (pixel * width / size[0],) if pixel and width else ()
    scan_rows = height if width == size[0] else None
    return Record(instrument, "sidecar", pixel, second, confidence=0.97, scan_rows=scan_rows, warnings=warnings)


def _kilovolts(text: str | None) -> float | None:
    found = stated_quantity(text)
    scale = {"volt": 1e-3, "v": 1e-3, "": 1e-3, "kv": 1.0}.get(found[1].lower()) if found and found[0] > 0 else None
    return found[0] * scale if found and scale else None


def _inside(condition: str, key: str) -> str | None:
    found = re.search(rf"{key}=(\S+)", condition)
    return found[1] if found else None

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
    width, height = _data_size(entries.get("DataSize"))
    pixel, warnings = square_pixel(_pixel_nm(entries.get("PixelSize")), None)
    warnings += two_readings(entries.get("PixelSize"))
    condition = entries.get("Condition", "")  # the S-4700 generation packs "Vacc=10kV   Mag=x15.0k   WD=8.1mm" in one
    instrument = Instrument(
        vendor="hitachi",
        model=name(entries.get("InstructName") or entries.get("InstrumentName")),
        hv_kv=_kilovolts(entries.get("AcceleratingVoltage") or _inside(condition, "Vacc")),
        wd_mm=_millimetres(entries.get("WorkingDistance") or _inside(condition, "WD")),
        magnification=positive(entries.get("Magnification")),
        detector=name(entries.get("SignalName") or entries.get("Signal")),
        date=iso_date(f"{entries.get('Date', '')} {entries.get('Time', '')}"),
    )
    second = (pixel * width / size[0],) if pixel and width else ()
    scan_rows = height if width == size[0] else None
    return Record(instrument, "sidecar", pixel, second, confidence=0.97, scan_rows=scan_rows, warnings=warnings)


def _pixel_nm(text: str | None) -> float | None:
    found = stated_quantity(text)
    return length_nm(found[0], found[1] or "nm") if found and found[0] > 0 else None


def _data_size(text: str | None) -> tuple[int | None, int | None]:
    width, _, height = (text or "").lower().partition("x")
    return whole(width), whole(height)


def _kilovolts(text: str | None) -> float | None:
    found = stated_quantity(text)
    scale = {"volt": 1e-3, "v": 1e-3, "": 1e-3, "kv": 1.0}.get(found[1].lower()) if found and found[0] > 0 else None
    return found[0] * scale if found and scale else None


def _millimetres(text: str | None) -> float | None:
    """A bare number is in micrometres, as the vendor's own files write it."""
    found = stated_quantity(text)
    length = length_nm(found[0], found[1] or "um") if found and found[0] > 0 else None
    return None if length is None else length / 1e6


def _inside(condition: str, key: str) -> str | None:
    found = re.search(rf"{key}=(\S+)", condition)
    return found[1] if found else None

"""ImageJ / Fiji: `unit=` in the TIFF ImageDescription, pixels per unit in XResolution. Knows nothing about pixels."""

from collections.abc import Mapping

from assistant.readers.record import (
    STATED,
    Instrument,
    Record,
    TagBytes,
    decode_text,
    length_nm,
    parse_ini,
    square_pixel,
    without_print_resolution,
)

VENDOR = "imagej", "ImageJ"
DESCRIPTION = 270


def from_tags(tags: TagBytes, resolution: Mapping[str, float]) -> Record | None:
    """The record of an ImageJ TIFF, or None; `resolution` holds "x" and "y" in pixels per unit."""
    text = decode_text(tags.get(DESCRIPTION, b""))
    if not text.startswith("ImageJ="):
        return None
    entries = parse_ini(text)[""]
    unit = entries.get("unit")
    x = _size(resolution.get("x", 0.0), unit)
    y = _size(resolution.get("y", 0.0), entries.get("yunit", unit))  # `yunit` stands where it differs from `unit`
    pixel, warnings = square_pixel(x, STATED if y is None else y)
    pixel, printed = without_print_resolution(pixel)
    return Record(Instrument(vendor="imagej"), "tag", pixel, confidence=0.9, warnings=warnings + printed)


def _size(per_unit: float, unit: str | None) -> float | None:
    return length_nm(1 / per_unit, unit) if per_unit > 0 else None

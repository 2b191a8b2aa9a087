"""ImageJ / Fiji: `unit=` in the TIFF ImageDescription, pixels per unit in XResolution. Knows nothing about pixels."""

from collections.abc import Mapping

from assistant.readers.record import (
    Instrument,
    Record,
    TagBytes,
    decode_text,
    length_nm,
    parse_ini,
    square_pixel,
)

VENDOR = "imagej", "ImageJ"
DESCRIPTION = 270


def from_tags(tags: TagBytes, resolution: Mapping[str, float]) -> Record | None:
    """The record of an ImageJ TIFF, or None; `resolution` holds "x" and "y" in pixels per unit."""
    text = decode_text(tags.get(DESCRIPTION, b""))
    if not text.startswith("ImageJ="):
        return None
    unit = _unescaped(parse_ini(text)[""].get("unit"))
    sizes = [length_nm(1 / value, unit) if (value := resolution.get(axis, 0.0)) > 0 else None for axis in "xy"]
    pixel, warnings = square_pixel(*sizes)
    return Record(Instrument(vendor="imagej"), "tag", pixel, confidence=0.9, warnings=warnings)


def _unescaped(unit: str | None) -> str | None:
    """ImageJ writes the micro sign as a Java escape."""
    return None if unit is None else unit.replace("\\u00B5", "µ").replace("\\u00b5", "µ")

"""OME-TIFF: XML in the ImageDescription. Knows nothing about pixels."""

import xml.etree.ElementTree as ET

from assistant.readers.record import (
    STATED,
    Instrument,
    Record,
    TagBytes,
    iso_date,
    length_nm,
    name,
    positive,
    square_pixel,
    two_readings,
    without_print_resolution,
)

VENDOR = "ome", "OME"
_DESCRIPTION = 270
_DEFAULT_UNIT = "µm"  # by the OME schema, where PhysicalSizeXUnit is left out


def from_tags(tags: TagBytes, size: tuple[int, int]) -> Record | None:
    """The record of an OME-TIFF of `size` (width, height), or None; the first image of that size speaks for all."""
    data = tags.get(_DESCRIPTION, b"").strip(b"\0 \r\n\t")
    if b"<OME" not in data[:2000] or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        return None
    root = ET.fromstring(data)
    pixels = [p for p in root.iterfind("{*}Image/{*}Pixels") if p.get("SizeX") == str(size[0])]
    pixel, warnings = _pixel(pixels[0]) if pixels else (None, ())
    microscope, detector = root.find(".//{*}Microscope"), root.find(".//{*}Detector")
    instrument = Instrument(
        vendor="ome",
        model=None if microscope is None else name(microscope.get("Model")),
        detector=None if detector is None else name(detector.get("Model")),
        date=iso_date(root.findtext("{*}Image/{*}AcquisitionDate")),
    )
    return Record(instrument, "tag", pixel, confidence=0.95, warnings=warnings)


def _pixel(pixels: ET.Element) -> tuple[float | None, tuple[str, ...]]:
    texts = [pixels.get(f"PhysicalSize{axis}") for axis in "XY"]
    units = [pixels.get(f"PhysicalSize{axis}Unit", _DEFAULT_UNIT) for axis in "XY"]
    x, y = (length_nm(positive(text), unit) for text, unit in zip(texts, units, strict=True))
    pixel, warnings = square_pixel(x, STATED if y is None and texts[1] else y)
    pixel, printed = without_print_resolution(pixel)
    return pixel, (*warnings, *two_readings(*texts), *printed)

"""OME-TIFF: XML in the ImageDescription. Knows nothing about pixels."""

import xml.etree.ElementTree as ET

from assistant.readers.record import (
    Instrument,
    Record,
    TagBytes,
    iso_date,
    length_nm,
    name,
    positive,
    square_pixel,
)

VENDOR = "ome", "OME"
DESCRIPTION = 270
_DEFAULT_UNIT = "µm"  # by the OME schema, where PhysicalSizeXUnit is left out


def from_tags(tags: TagBytes, size: tuple[int, int]) -> Record | None:
    """The record of an OME-TIFF of `size` (width, height), or None; the first image of that size speaks for all."""
    data = tags.get(DESCRIPTION, b"").strip(b"\0 \r\n\t")
    if b"<OME" not in data[:2000] or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        return None
    root = ET.fromstring(data)
    pixels = [p for p in root.iterfind("{*}Image/{*}Pixels") if p.get("SizeX") == str(size[0])]
    pixel, warnings = (None, ()) if not pixels else square_pixel(*(_length(pixels[0], axis) for axis in "XY"))
    microscope, detector = root.find(".//{*}Microscope"), root.find(".//{*}Detector")
    instrument = Instrument(
        vendor="ome",
        model=None if microscope is None else name(microscope.get("Model")),
        detector=None if detector is None else name(detector.get("Model")),
        date=iso_date(root.findtext("{*}Image/{*}AcquisitionDate")),
    )
    return Record(instrument, "tag", pixel, confidence=0.95, warnings=warnings)


def _length(pixels: ET.Element, axis: str) -> float | None:
    unit = pixels.get(f"PhysicalSize{axis}Unit", _DEFAULT_UNIT)
    return length_nm(positive(pixels.get(f"PhysicalSize{axis}")), unit)

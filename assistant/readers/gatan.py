"""DigitalMicrograph's TIFF export: pixel size and unit in private TIFF tags. Knows nothing about pixels."""

from assistant.readers.record import (
    STATED,
    Instrument,
    Record,
    TagBytes,
    decode_text,
    length_nm,
    positive,
    square_pixel,
    two_readings,
)

VENDOR = "gatan", "Gatan"
UNITS_XY, SCALES_XY = (65003, 65004), (65009, 65010)


def from_tags(tags: TagBytes, size: tuple[int, int]) -> Record | None:
    """The record of a TIFF that DigitalMicrograph exported, or None; `size` plays no part."""
    texts = [decode_text(tags.get(tag, b"")) for tag in SCALES_XY]
    units = [decode_text(tags.get(tag, b"")).strip("\0 ") for tag in UNITS_XY]
    if not all(texts) or not any(units):  # JEOL's own software keeps something else under the scales' numbers
        return None
    x, y = (length_nm(positive(text.lstrip("-")), unit) for text, unit in zip(texts, units, strict=True))
    pixel, warnings = square_pixel(x, STATED if y is None else y)
    return Record(Instrument(vendor="gatan"), "tag", pixel, warnings=warnings + two_readings(*texts))

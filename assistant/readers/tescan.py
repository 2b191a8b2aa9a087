"""TESCAN: `key=value` lines in TIFF tag 50431 or in a `.hdr` side-car. Knows nothing about pixels."""

import re

from assistant.readers.record import (
    Instrument,
    Record,
    TagBytes,
    iso_date,
    name,
    positive,
    square_pixel,
    two_readings,
    whole,
)

VENDOR = "tescan", "TESCAN"
TESCAN = 50431
_ENTRY = re.compile(r"(?:^|[^\w])(\w+)=([^\r\n]*)", re.MULTILINE)
_METRE, _MILLI, _KILO = 1e9, 1e3, 1e-3


def from_tags(tags: TagBytes, size: tuple[int, int]) -> Record | None:
    """The record of a TESCAN TIFF of `size` (width, height), or None."""
    data = tags.get(TESCAN, b"")
    start = data.find(b"AccFrames=")  # what stands before is a JPEG 2000 thumbnail
    return _record(data[max(start, 0) :].decode("cp1252", errors="replace"), size, "tag") if data else None


def from_text(text: str, size: tuple[int, int]) -> Record | None:
    """The record of a `.hdr` side-car, or None."""
    return _record(text, size, "sidecar") if "[MAIN]" in text else None


def _record(text: str, size: tuple[int, int], source: str) -> Record | None:
    entries: dict[str, str] = {}
    for key, value in _ENTRY.findall(text):
        entries.setdefault(key, value.strip())
    if "PixelSizeX" not in entries and "Device" not in entries:
        return None
    texts = [entries.get(f"PixelSize{axis}") for axis in "XY"]
    pixel, warnings = square_pixel(*(positive(text, _METRE) for text in texts))
    warnings += two_readings(*texts)
    instrument = Instrument(
        vendor="tescan",
        model=name(entries.get("Device", "").removeprefix("TESCAN ") or entries.get("DeviceModel")),
        hv_kv=positive(entries.get("HV") or entries.get("AcceleratorVoltage"), _KILO),
        wd_mm=positive(entries.get("WD"), _MILLI),
        magnification=positive(entries.get("Magnification")),
        detector=name(entries.get("Detector") or entries.get("Detector0")),
        date=iso_date(f"{entries.get('Date', '')} {entries.get('Time', '')}"),
    )
    strip = whole(entries.get("ImageStripSize"))
    scan_rows = size[1] - strip if strip and strip < size[1] else None
    return Record(instrument, source, pixel, scan_rows=scan_rows, warnings=warnings)

"""JEOL SEM: a `.txt` side-car of `$CM_KEY value` lines. Knows nothing about pixels.

`$$SM_MICRON_BAR` is the scale bar's length in pixels of the full scan `$CM_FULL_SIZE` (1280 wide where it is not
given), whatever the width of the file beside it; `$$SM_MICRON_MARKER` is the length that bar stands for.
"""

from assistant.readers.record import (
    Instrument,
    Record,
    iso_date,
    length_nm,
    name,
    positive,
    square_pixel,
    stated_quantity,
)

VENDOR = "jeol", "JEOL"
_USUAL_SCAN = (1280.0, 960.0)


def from_text(text: str, size: tuple[int, int]) -> Record | None:
    """The record of a JEOL side-car for an image of `size` (width, height), or None."""
    entries: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key.startswith("$"):
            entries.setdefault(key.lstrip("$"), value.strip())
    if not any(key.startswith(("CM_", "SM_")) for key in entries):
        return None
    sides = [positive(part) for part in entries.get("CM_FULL_SIZE", "").split()]
    scan = (sides[0], sides[1]) if len(sides) == 2 and sides[0] and sides[1] else _USUAL_SCAN
    scanned_px, marker = positive(entries.get("SM_MICRON_BAR")), stated_quantity(entries.get("SM_MICRON_MARKER"))
    bar_px = None if scanned_px is None else scanned_px * (size[0] / scan[0])  # in this file
    bar_nm = length_nm(marker[0], marker[1]) if marker and marker[0] > 0 else None
    pixel, warnings = square_pixel(bar_nm / bar_px if bar_px and bar_nm else None, None)
    instrument = Instrument(
        vendor="jeol",
        model=name(entries.get("CM_INSTRUMENT")),
        hv_kv=positive(entries.get("CM_ACCEL_VOLT")),
        wd_mm=positive(entries.get("SM_WD")),
        magnification=positive(entries.get("CM_MAG")),
        detector=name(entries.get("CM_SIGNAL") or entries.get("CM_SIGNAL_NAME") or entries.get("CM_DETECTOR_NAME")),
        date=iso_date(f"{entries.get('CM_DATE', '')} {entries.get('CM_TIME', '')}"),
    )
    scan_rows = round(size[0] * scan[1] / scan[0])
    return Record(instrument, "sidecar", pixel, confidence=0.95, scan_rows=scan_rows, bar_px=bar_px, warnings=warnings)

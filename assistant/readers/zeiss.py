"""Zeiss SmartSEM: text in TIFF tag 34118, one `AP_NAME` line followed by a `Label = value unit` line.

Knows nothing about pixels. AP_PIXEL_SIZE is a pixel of the operator's monitor and is never read; the image's is
AP_IMAGE_PIXEL_SIZE.
"""

import re

from assistant.readers.record import (
    Instrument,
    Record,
    TagBytes,
    iso_date,
    length_nm,
    name,
    positive,
    square_pixel,
    stated_quantity,
    two_readings,
)

VENDOR = "zeiss", "Zeiss"
CZ_SEM = 34118
_ENTRY = re.compile(r"^((?:AP|DP|SV)_\w+)[ \t]*\r?\n([^\r\n]*)", re.MULTILINE)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NM_PER_MM, _NM_PER_M = 1e6, 1e9
_HEAD_PIXEL, _MONITOR_WIDTH = 3, 1024


def from_tags(tags: TagBytes, size: tuple[int, int]) -> Record | None:
    """The record of a SmartSEM TIFF of `size` (width, height), or None."""
    text = tags.get(CZ_SEM, b"").decode("cp1252", errors="replace")
    lines = _ENTRY.findall(text)
    entries = {key: re.split(r"\s*[=:]\s*", line, maxsplit=1)[-1].strip() for key, line in lines}
    if not entries:
        return None
    pixel, field = _length(entries.get("AP_IMAGE_PIXEL_SIZE")), _length(entries.get("AP_WIDTH"))
    across = None if field is None else field / size[0]
    doubt = two_readings(entries.get("AP_IMAGE_PIXEL_SIZE"))
    stated = None if doubt else pixel or across or _head_pixel(tags[CZ_SEM], size[0])
    checked, warnings = square_pixel(stated, None)
    wd, times = _length(entries.get("AP_WD")), stated_quantity(entries.get("AP_MAG"))
    thousands = 1000 if times and times[1].upper().startswith("K") else 1
    instrument = Instrument(
        vendor="zeiss",
        model=name(entries.get("DP_SEM") or entries.get("SV_SERIAL_NUMBER")),
        hv_kv=_kilovolts(entries.get("AP_ACTUALKV") or entries.get("AP_MANUALKV")),
        wd_mm=None if wd is None else wd / _NM_PER_MM,
        magnification=times[0] * thousands if times and times[0] > 0 else None,
        detector=name(entries.get("DP_DETECTOR_CHANNEL") or entries.get("DP_DETECTOR_TYPE")),
        date=_date(entries),
    )
    second = (across,) if pixel and across else ()
    confidence = 0.99 if pixel else 0.9 if across else 0.8
    return Record(instrument, "tag", checked, second, confidence=confidence, warnings=(*doubt, *warnings))


def _head_pixel(data: bytes, width: int) -> float | None:
    """[nm] from the numbers before the first key, for files without the usual ones: the fourth is a monitor pixel [m].

    A monitor shows every image 1024 pixels wide, so the image's own pixel follows from its width.
    """
    lines = data[:400].decode("cp1252", errors="replace").splitlines()
    monitor = positive(lines[_HEAD_PIXEL], _NM_PER_M) if len(lines) > _HEAD_PIXEL else None
    return None if monitor is None else monitor * _MONITOR_WIDTH / width


def _length(text: str | None) -> float | None:
    """[nm]"""
    found = stated_quantity(text)
    return length_nm(*found) if found and found[0] > 0 else None


def _kilovolts(text: str | None) -> float | None:
    found = stated_quantity(text)
    scale = {"kv": 1.0, "v": 1e-3}.get(found[1].lower()) if found and found[0] > 0 else None
    return found[0] * scale if found and scale else None


def _date(entries: dict[str, str]) -> str | None:
    """ "23 Dec 2015" and "9:40:32" as ISO 8601."""
    found = re.match(r"(\d{1,2}) (\w{3})\w* (\d{4})", entries.get("AP_DATE", ""))
    if found is None or found[2].lower() not in _MONTHS:
        return None
    month = _MONTHS.index(found[2].lower()) + 1
    return iso_date(f"{found[3]}-{month}-{found[1]} {entries.get('AP_TIME', '')}")

"""SEC tabletop SEM (SNE series): a `.jpg.txt` side-car of `Key : value` lines. Knows nothing about pixels.

Its "Pixel Size" has no unit and belongs to the live scan, not to the stored picture, so no pixel size is taken from it.
"""

from assistant.readers.record import (
    Instrument,
    Record,
    iso_date,
    length_nm,
    name,
    parse_ini,
    positive,
    stated_quantity,
)

VENDOR = "sec", "SEC"


def from_text(text: str, size: tuple[int, int]) -> Record | None:
    """The record of an SEC side-car, or None; `size` plays no part."""
    sections = parse_ini(text, separator=":")
    image = sections.get("Image Info")
    if image is None or "Model" not in image:
        return None
    distance = stated_quantity(sections.get("- Working Distance", {}).get("Working Distance"))
    length = length_nm(*distance) if distance and distance[0] > 0 else None
    volts = stated_quantity(image.get("Acceleated Voltage") or image.get("Accelerated Voltage"))  # sic
    instrument = Instrument(
        vendor="sec",
        model=name(image["Model"]),
        hv_kv=volts[0] if volts and volts[0] > 0 and volts[1].lower() == "kv" else None,
        wd_mm=None if length is None else length / 1e6,
        magnification=positive(image.get("Magnification")),
        detector=name(image.get("Detector Mode")),
        date=iso_date(f"{image.get('Date', '').split(' ')[0]} {image.get('Time', '')}"),
    )
    stated = sections.get("Active Scan", {}).get("Pixel Size")
    unused = (f'The side-car\'s "Pixel Size : {name(stated)}" has no unit and is not used.',) if stated else ()
    return Record(instrument, "sidecar", warnings=unused)

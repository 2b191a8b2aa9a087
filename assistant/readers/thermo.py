"""Thermo Fisher / FEI: INI text in TIFF tags 34680 or 34682, XML in tag 34683. Knows nothing about pixels."""

import xml.etree.ElementTree as ET

from assistant.quantities import canonical_unit, converted
from assistant.readers.record import (
    STATED,
    Instrument,
    Record,
    TagBytes,
    decode_text,
    iso_date,
    length_nm,
    name,
    parse_ini,
    positive,
    square_pixel,
    two_readings,
    whole,
)

VENDOR = "thermo", "Thermo Fisher"
SFEG, HELIOS, TITAN_XML = 34680, 34682, 34683
_LOOSE_WITHIN = 2**17  # bytes from either end of the file
_METRE, _KILO, _MILLI = 1e9, 1e-3, 1e3


def from_tags(tags: TagBytes, size: tuple[int, int]) -> Record | None:
    """The record of a Thermo / FEI TIFF of `size` (width, height), or None; XML fills what the INI text leaves open."""
    ini = next((r for tag in (HELIOS, SFEG) if (r := _from_ini(tags.get(tag), size))), None)
    xml = _from_xml(tags.get(TITAN_XML), size)
    if ini is None or xml is None:
        return ini or xml
    second = (*ini.second_opinions, *xml.second_opinions)
    if ini.nm_per_pixel is None:
        return Record(
            _merged(ini, xml), "tag", xml.nm_per_pixel, second, scan_rows=ini.scan_rows, warnings=xml.warnings
        )
    second += () if xml.nm_per_pixel is None else (xml.nm_per_pixel,)
    return Record(_merged(ini, xml), "tag", ini.nm_per_pixel, second, scan_rows=ini.scan_rows, warnings=ini.warnings)


def loose_block(data: bytes) -> bytes:
    """INI text that older systems write before or behind the image instead of into a tag; empty where there is none."""
    for piece in (data[-_LOOSE_WITHIN:], data[:_LOOSE_WITHIN]):
        start = piece.find(b"[User]\r\n")
        if start >= 0:
            return piece[start:].split(b"\0", 1)[0]
    return b""


def loose_xml(data: bytes) -> bytes:
    """The XML that a Phenom writes into a JPEG, or behind the picture; empty where there is none."""
    for piece in (data[:_LOOSE_WITHIN], data[-_LOOSE_WITHIN:]):
        start, stop = piece.find(b"<FeiImage"), piece.find(b"</FeiImage>")
        if 0 <= start < stop:
            return piece[start : stop + len(b"</FeiImage>")]
    return b""


def _from_ini(data: bytes | None, size: tuple[int, int]) -> Record | None:
    sections = parse_ini(decode_text(data)) if data else {}
    if not {"System", "Beam", "Scan", "Image", "User"} & sections.keys():
        return None  # tag 34680 may instead hold a base64 blob
    beam = sections.get("Beam", {})
    column = sections.get(beam.get("Beam", "EBeam"), beam)
    scan = sections.get("Scan") or sections.get(beam.get("Scan", "EScan"), {})  # navigation camera frames have none
    stage = sections.get("Stage", {})
    texts = [scan.get("PixelWidth"), scan.get("PixelHeight")]
    pixel, warnings = square_pixel(*(positive(text, _METRE) for text in texts))
    warnings += two_readings(*texts)
    field = positive(scan.get("HorFieldsize"), _METRE)
    wd = column.get("WD") or stage.get("WorkingDistance")
    # TimeOfCreation stands day first on every system; [User] Date follows the locale, so it is passed on as it is.
    created = iso_date(sections.get("PrivateFei", {}).get("TimeOfCreation"), order="dmy")
    user, image = sections.get("User", {}), sections.get("Image", {})
    instrument = Instrument(
        vendor="thermo",
        model=name(sections.get("System", {}).get("SystemType")),
        hv_kv=positive(column.get("HV") or beam.get("HV"), _KILO),
        wd_mm=positive(wd, _MILLI),
        detector=name(sections.get("Detectors", {}).get("Name")),
        date=created or name(f"{user.get('Date', '')} {user.get('Time', '')}"),
    )
    second = () if field is None else (field / size[0],)
    # The file is taller than the scan by exactly the info bar, provided it was not resized since.
    scan_rows = whole(image.get("ResolutionY")) if whole(image.get("ResolutionX")) == size[0] else None
    return Record(instrument, "tag", pixel, second, scan_rows=scan_rows, warnings=warnings)


def _from_xml(data: bytes | None, size: tuple[int, int]) -> Record | None:
    if not data or b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # microscopes write none; entity bombs need one
        return None
    root = ET.fromstring(data.strip(b"\0 \r\n\t"))
    if root.tag.rpartition("}")[2] == "FeiImage":
        return _from_phenom(root, size)
    sizes = [_pixel_nm(root.find(f"{{*}}BinaryResult/{{*}}PixelSize/{{*}}{axis}")) for axis in "XY"]
    pixel, warnings = square_pixel(*sizes)
    field = positive(_text(root, "Optics/ScanFieldOfView/X"), _METRE)
    instrument = Instrument(
        vendor="thermo",
        model=name(_text(root, "Instrument/InstrumentClass") or _text(root, "Instrument/InstrumentModel")),
        hv_kv=positive(_text(root, "Optics/AccelerationVoltage"), _KILO),
        wd_mm=positive(_text(root, "Optics/WorkingDistance"), _MILLI),
        magnification=positive(_text(root, "Optics/NominalMagnification")),
        detector=name(_text(root, "Detectors/ScanningDetector/DetectorName")),
        date=iso_date(_text(root, "Acquisition/AcquisitionDatetime")),
    )
    return Record(instrument, "tag", pixel, () if field is None else (field / size[0],), warnings=warnings)


def _from_phenom(root: ET.Element, size: tuple[int, int]) -> Record:
    """A Phenom desktop microscope: every quantity has its unit as an attribute."""
    sizes = [_pixel_nm(root.find(f".//{{*}}pixel{side}")) for side in ("Width", "Height")]
    pixel, warnings = square_pixel(*sizes)
    texts = [root.findtext(f".//{{*}}pixel{side}") for side in ("Width", "Height")]
    bar, voltage = whole(root.findtext(".//{*}databarHeight")), root.find(".//{*}highVoltage")
    volts = kilo = None
    if voltage is not None:
        volts = positive((voltage.text or "").strip().lstrip("-"))  # negative where that of the cathode is meant
        kilo = converted(1.0, canonical_unit(voltage.get("unit", "")) or "", "kV")
    distance = _pixel_nm(root.find(".//{*}workingDistance"))
    instrument = Instrument(
        vendor="thermo",
        model=name(root.findtext("{*}instrument/{*}edition") or root.findtext("{*}instrument/{*}type")),
        hv_kv=None if volts is None or kilo is None else float(f"{volts * kilo:.9g}"),
        wd_mm=float(f"{distance / 1e6:.9g}") if distance and distance > 0 else None,
        detector=name(root.findtext(".//{*}detector")),
        date=iso_date(root.findtext(".//{*}time")),
    )
    scan_rows = size[1] - bar if bar and bar < size[1] else None
    return Record(instrument, "tag", pixel, scan_rows=scan_rows, warnings=warnings + two_readings(*texts))


def _pixel_nm(element: ET.Element | None) -> float | None:
    """[nm], `STATED` where the element is there without a length."""
    if element is None:
        return None
    if element.get("unitPrefixPower", "1") != "1":  # any other power has no known meaning
        return STATED
    length = length_nm(positive(element.text), element.get("unit"))
    return STATED if length is None else length


def _text(root: ET.Element, path: str) -> str | None:
    return root.findtext("/".join(f"{{*}}{step}" for step in path.split("/")))


def _merged(first: Record, second: Record) -> Instrument:
    a, b = first.instrument, second.instrument
    return Instrument(
        vendor=a.vendor,
        model=a.model or b.model,
        hv_kv=a.hv_kv or b.hv_kv,
        wd_mm=a.wd_mm or b.wd_mm,
        magnification=a.magnification or b.magnification,
        detector=a.detector or b.detector,
        date=a.date or b.date,
    )

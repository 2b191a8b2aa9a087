"""What a vendor reader hands back, and the small parsers all of them need: units, numbers, names, INI text.

Knows nothing about files, pixels or any one vendor.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from assistant.quantities import UNITS, canonical_unit

TagBytes = Mapping[int, bytes]
"""Bytes of the TIFF tags a vendor reader may want, by tag number; a number stands as decimal text."""

Ini = dict[str, dict[str, str]]

SMALLEST_PIXEL, LARGEST_PIXEL = 1e-4, 1e6  # [nm]: from far below atomic resolution to 1 mm per pixel
SQUARE_WITHIN = 0.01

NM_PER_INCH = 25.4e6
PRINT_DPI = (72, 86.4, 90, 96, 100, 120, 144, 150, 180, 200, 220, 240, 300, 350, 360, 400, 500, 600, 720, 1200, 2400)
PRINT_WITHIN = 2e-3
STATED = math.nan
"""Stands for a pixel size that a file states in something that is no length."""

_METRES = {"m": 1e9, "meter": 1e9, "metre": 1e9, "meters": 1e9, "metres": 1e9, "fm": 1e-6}
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_MICRO = re.compile(r"^(?:&micro;|&mu;|&#181;|&#956;|Âµ|Î¼|ƒÊ|¦Ì|æ|\?|\ufffd{1,2})(?=m)")
_ANGSTROM = re.compile(r"^(?:&Aring;|&#197;|Ã…|\?ngstr|\ufffdngstr)")
_NUMBER = re.compile(r"[xX]?\s*([-+]?(?:\d[\d.,]*|[.,]\d+)(?:[eE][-+]?\d+)?)(?![\d.,])\s*(.*)", re.DOTALL)
_AMBIGUOUS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?(?:[eE][-+]?\d+)?")
_SAFE = re.compile(r"[^\w .,:;+\-/()'°µ#&%]")
_NAME_LENGTH = 60


@dataclass(frozen=True)
class Calibration:
    """How large a pixel is, who said so and how sure that is."""

    nm_per_pixel: float
    source: str
    """"tag", "sidecar", "banner", "scale_bar" or "user"."""
    confidence: float
    """0..1."""


@dataclass(frozen=True)
class Instrument:
    """What the file says about its microscope; None where it says nothing."""

    vendor: str | None = None
    model: str | None = None
    hv_kv: float | None = None
    wd_mm: float | None = None
    magnification: float | None = None
    detector: str | None = None
    date: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where each field that is known comes from: "tag", "sidecar", or "banner", which is less sure than the others."""


@dataclass(frozen=True)
class Record:
    """One vendor's account of one image."""

    instrument: Instrument
    source: str
    """"tag" or "sidecar"."""
    nm_per_pixel: float | None = None
    second_opinions: tuple[float, ...] = ()
    """Pixel sizes [nm] that other entries of the same metadata imply."""
    confidence: float = 0.99
    scan_rows: int | None = None
    """Rows of the scan itself; rows below are a burnt-in info bar."""
    bar_px: float | None = None
    """Length the burnt-in scale bar must have [px] if side-car and picture belong together."""
    warnings: tuple[str, ...] = field(default=())


class VendorReader(Protocol):
    """A module of this folder that reads what one vendor writes."""

    VENDOR: tuple[str, str]
    """Its key in `Instrument.vendor`, and its name for people."""


class TagReader(VendorReader, Protocol):
    """One that reads TIFF tags."""

    def from_tags(self, tags: TagBytes, size: tuple[int, int]) -> Record | None:
        """The record of a TIFF of `size` (width, height); None where the tags are not of this vendor."""


class SidecarReader(VendorReader, Protocol):
    """One that reads the text file beside an image."""

    def from_text(self, text: str, size: tuple[int, int]) -> Record | None:
        """The record of an image of `size` (width, height); None where the text is not of this vendor."""


def length_nm(value: float | None, unit: str | None) -> float | None:
    """A length in nm; None without a value or a known real-space unit (so "1/nm", "inch" and "pixel" give None)."""
    if value is None or unit is None:
        return None
    known = plain_unit(unit)
    if known in ("Mm", "MM", "M"):  # case carries meaning only where it would turn mm into megametres
        return None
    if (metres := _METRES.get(known.lower())) is not None:
        return value * metres
    spelled = UNITS.get(canonical_unit(known) or "")
    return value * spelled.scale if spelled is not None and spelled.dimension == "length" else None


def plain_unit(text: str) -> str:
    """A unit as it was meant: Java and HTML escapes undone, and a micro sign or ring that lost its encoding.

    Behind each lost sign stands how UTF-8, Shift-JIS, GBK or code page 437 look when they are read as cp1252.
    """
    plain = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text.strip().strip("\0").strip("\"'[]() "))
    plain = _ANGSTROM.sub(lambda match: "Å" if match[0][-1] != "r" else "angstr", _MICRO.sub("µ", plain))
    return unicodedata.normalize("NFKC", plain)  # also one character that stands for "µm"


def stated_quantity(text: str | None) -> tuple[float, str] | None:
    """ "14.8 mm" -> (14.8, "mm"), "x500" -> (500.0, ""), "12,5" -> (12.5, ""); None where no finite number leads.

    A comma is decimal unless digits in groups of three say otherwise; "1,250" could be either, and is refused.
    """
    match = _NUMBER.match(text.strip()) if text else None
    plain = None if match is None else _decimal_point(match[1])
    if match is None or plain is None:
        return None
    value = float(plain)
    return (value, match[2].strip().strip("\0").strip()) if math.isfinite(value) else None


def two_readings(*texts: str | None) -> tuple[str, ...]:
    """A warning for each number that a comma makes ambiguous."""
    numbers = [(text, _NUMBER.match(text.strip())) for text in texts if text]
    found = dict.fromkeys(name(text) for text, number in numbers if number and _AMBIGUOUS.fullmatch(number[1]))
    return tuple(
        f'The pixel size "{text}" can be read in two ways (decimal or thousands comma); it is not used.'
        for text in found
    )


def _decimal_point(number: str) -> str | None:
    """The number with a decimal point and no other separator, None where its commas and points leave that open."""
    commas, points = number.count(","), number.count(".")
    if commas == 0:
        return number if points <= 1 else None
    if points == 0 and commas == 1:
        return None if _AMBIGUOUS.fullmatch(number) else number.replace(",", ".")
    swapped = points and number.rfind(",") > number.rfind(".")  # "1.250,5"
    english = number.translate(str.maketrans(".,", ",.")) if swapped else number
    return english.replace(",", "") if _GROUPED.fullmatch(english) else None


def positive(text: str | None, scale: float = 1.0) -> float | None:
    """The leading number of `text` times `scale`, rounded to 9 digits; None unless above zero."""
    found = stated_quantity(text)
    if found is None or found[0] <= 0 or not math.isfinite(found[0] * scale):
        return None
    return float(f"{found[0] * scale:.9g}")


def whole(text: str | None) -> int | None:
    """A positive integer, or None."""
    value = positive(text)
    return int(value) if value is not None and value < 1e9 else None


def name(text: str | None) -> str | None:
    """A name fit for a page or a prompt: one line, no markup, no control or invisible characters, at most 60 long."""
    if not text:
        return None
    flat = unicodedata.normalize("NFC", text).replace("\0", " ")
    seen = "".join(c if not unicodedata.category(c).startswith(("C", "Z")) else " " for c in flat)
    return " ".join(_SAFE.sub("", seen).split())[:_NAME_LENGTH].strip() or None


def square_pixel(x_nm: float | None, y_nm: float | None) -> tuple[float | None, tuple[str, ...]]:
    """The pixel size [nm] if it is plausible and equal in x and y within 1 %, else None and a warning.

    None is an axis that is not stated, `STATED` one in a unit that is no length.
    """
    if x_nm is None or math.isnan(x_nm):
        return None, ()
    if not SMALLEST_PIXEL <= x_nm <= LARGEST_PIXEL:
        return None, (f"The recorded pixel size of {x_nm:.4g} nm is not plausible; lengths stay in pixels.",)
    if y_nm is not None and math.isnan(y_nm):
        return None, (f"The pixel is {x_nm:.4g} nm wide, but its height is no length; lengths stay in pixels.",)
    if y_nm is not None and abs(y_nm / x_nm - 1) > SQUARE_WITHIN:
        return None, (f"The pixel is not square ({x_nm:.4g} x {y_nm:.4g} nm); lengths stay in pixels.",)
    return float(f"{x_nm:.9g}"), ()


def without_print_resolution(pixel_nm: float | None) -> tuple[float | None, tuple[str, ...]]:
    """The pixel size [nm], or None and a warning where it is that of a print: an editor kept the dots per inch as one.

    Dots per inch are also kept as dots per centimetre, with three digits or as a whole number.
    """
    if pixel_nm is None:
        return None, ()
    per_inch, per_cm = NM_PER_INCH / pixel_nm, 1e7 / pixel_nm
    for dpi in PRINT_DPI:
        rounded = abs(per_cm - round(dpi / 2.54)) < 1e-3 * per_cm
        if rounded or abs(per_inch / dpi - 1) < PRINT_WITHIN:
            told = f"The recorded pixel size of {pixel_nm:.4g} nm is a print resolution ({dpi:g} dpi): it is not used."
            return None, (told,)
    return pixel_nm, ()


def decode_text(data: bytes) -> str:
    """Text of unknown encoding: by its byte-order mark, by its zero bytes (UTF-16), as UTF-8, else as cp1252."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    if data[:400].count(0) > len(data[:400]) // 3:
        order = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
        return data.decode(order, errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def parse_ini(text: str, separator: str = "=") -> Ini:
    """`[section]` / `key<separator>value` lines; the first of two equal keys wins; anything else is skipped."""
    sections: Ini = {"": {}}
    section = sections[""]
    for line in text.splitlines():
        stripped = line.strip().strip("\0")
        if stripped.startswith("[") and stripped.endswith("]"):
            section = sections.setdefault(stripped[1:-1].strip(), {})
        elif separator in stripped:
            key, value = stripped.split(separator, 1)
            section.setdefault(key.strip(), value.strip())
    return sections


def iso_date(text: str | None, *, order: str = "ymd") -> str | None:
    """A date with optional time as ISO 8601: `order` says how the three numbers stand ("ymd" or "dmy")."""
    found = re.search(r"(\d{1,4})[-./: ](\d{1,2})[-./: ](\d{1,4})(?:[T ,]+(\d{1,2}:\d{2}:\d{2}))?", text or "")
    if found is None:
        return None
    parts = dict(zip(order, found.groups()[:3], strict=True))
    year, month, day = (int(parts[letter]) for letter in "ymd")
    if not (1900 <= year <= 2200 and 1 <= month <= 12 and 1 <= day <= 31):
        return None
    clock = f"T{found[4]:0>8}" if found[4] else ""
    return f"{year:04d}-{month:02d}-{day:02d}{clock}"

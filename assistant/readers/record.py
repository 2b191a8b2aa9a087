"""What a vendor reader hands back, and the small parsers all of them need: units, numbers, names, INI text.

Knows nothing about files, pixels or any one vendor.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

TagBytes = Mapping[int, bytes]
"""Raw bytes of the TIFF tags a vendor reader may want, by tag number."""

Ini = dict[str, dict[str, str]]

NM_PER_UNIT = {
    "fm": 1e-6,
    "pm": 1e-3,
    "å": 0.1,
    "angstrom": 0.1,
    "nm": 1.0,
    "nanometer": 1.0,
    "µm": 1e3,
    "um": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "micrometer": 1e3,
    "mm": 1e6,
    "millimeter": 1e6,
    "cm": 1e7,
    "centimeter": 1e7,
    "m": 1e9,
    "meter": 1e9,
}
"""Real-space length units. No inch: in a TIFF that is a print resolution, not a specimen length."""

SMALLEST_PIXEL, LARGEST_PIXEL = 1e-4, 1e6  # [nm]: from far below atomic resolution to 1 mm per pixel
SQUARE_WITHIN = 0.01

_NUMBER = re.compile(r"[xX]?\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\d.,])\s*(.*)", re.DOTALL)
_SAFE = re.compile(r"[^\w .,:;+\-/()'°µ#&%]")
_NAME_LENGTH = 60


@dataclass(frozen=True)
class Calibration:
    """How large a pixel is, who said so and how sure that is."""

    nm_per_pixel: float
    source: str
    """"tag", "sidecar", "banner" or "user"."""
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


class Reader(Protocol):
    """A module of this folder that reads what one vendor writes."""

    VENDOR: tuple[str, str]
    """Its key in `Instrument.vendor`, and its name for people."""


class TagReader(Reader, Protocol):
    """One that reads TIFF tags."""

    def from_tags(self, tags: TagBytes, size: tuple[int, int]) -> Record | None:
        """The record of a TIFF of `size` (width, height); None where the tags are not of this vendor."""


class SidecarReader(Reader, Protocol):
    """One that reads the text file beside an image."""

    def from_text(self, text: str, size: tuple[int, int]) -> Record | None:
        """The record of an image of `size` (width, height); None where the text is not of this vendor."""


def length_nm(value: float | None, unit: str | None) -> float | None:
    """A length in nm; None without a value or a known real-space unit (so "1/nm", "inch" and "pixel" give None)."""
    if value is None or unit is None:
        return None
    known = unit.strip().replace("μ", "µ")
    if known not in ("Mm", "MM", "M"):  # case carries meaning only where it would turn mm into megametres
        known = known.lower()
    scale = NM_PER_UNIT.get(known)
    return None if scale is None else value * scale


def quantity(text: str | None) -> tuple[float, str] | None:
    """ "14.8 mm" -> (14.8, "mm"), "x500" -> (500.0, ""); None where no plain finite number leads the text.

    A comma makes a number ambiguous (decimal or thousands), so such text is refused.
    """
    match = _NUMBER.match(text.strip()) if text else None
    if match is None:
        return None
    value = float(match[1])
    return (value, match[2].strip().strip("\0").strip()) if math.isfinite(value) else None


def positive(text: str | None, scale: float = 1.0) -> float | None:
    """The leading number of `text` times `scale`, rounded to 9 digits; None unless above zero."""
    found = quantity(text)
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
    """The pixel size [nm] if it is plausible and equal in x and y within 1 %, else None and a warning."""
    if x_nm is None:
        return None, ()
    if not SMALLEST_PIXEL <= x_nm <= LARGEST_PIXEL:
        return None, (f"The recorded pixel size of {x_nm:.4g} nm is not plausible; lengths stay in pixels.",)
    if y_nm is not None and abs(y_nm / x_nm - 1) > SQUARE_WITHIN:
        return None, (f"The pixel is not square ({x_nm:.4g} x {y_nm:.4g} nm); lengths stay in pixels.",)
    return float(f"{x_nm:.9g}"), ()


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

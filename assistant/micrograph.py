"""Reads a micrograph: pixels, calibration, instrument, info bar; and turns it into model input.

Knows nothing about models, datasets or prompts. Formats live in `readers/`, one file each.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import MicrographError
from assistant.readers import (
    gatan,
    hitachi,
    imagej,
    jeol,
    ome,
    raster,
    rosettasciio,
    sec,
    tescan,
    thermo,
    tiff,
    zeiss,
)
from assistant.readers.banner import find_banner
from assistant.readers.calibration import calibrate
from assistant.readers.files import file_bytes, shown, sidecar_texts
from assistant.readers.frame import DECODER_ERRORS, Frame, ReadLimits
from assistant.readers.record import LARGEST_PIXEL, SMALLEST_PIXEL, Calibration, Instrument, Record
from assistant.readers.window import Window, window_of, windowed

__all__ = [
    "Calibration",
    "Instrument",
    "Micrograph",
    "MicrographError",
    "ReadLimits",
    "Window",
    "find_micrographs",
    "read_micrograph",
    "to_model_input",
]

Pixels = np.ndarray[Any, np.dtype[Any]]

SUFFIXES = frozenset({".tif", ".tiff", *raster.SUFFIXES, *rosettasciio.SUFFIXES})
VENDOR_NAMES = {
    "thermo": "Thermo",
    "zeiss": "Zeiss",
    "tescan": "TESCAN",
    "jeol": "JEOL",
    "hitachi": "Hitachi",
    "sec": "SEC",
    "gatan": "Gatan",
}

_TAG_READERS = (thermo.from_tags, zeiss.from_tags, tescan.from_tags, gatan.from_tags, ome.from_tags)
_SIDECAR_READERS = (jeol.from_text, hitachi.from_text, sec.from_text, tescan.from_text)


@dataclass(frozen=True, eq=False)
class Micrograph:
    """One image as its instrument meant it: display values, upright, with what is known about scale and origin."""

    pixels: Pixels  # [H, W], the file's own depth
    sha256: str
    """Of the file's bytes."""
    source: Path | None = None
    page: int = 0
    calibration: Calibration | None = None
    instrument: Instrument = field(default_factory=Instrument)
    banner: tuple[int, int] | None = None
    """Rows [first, stop) of the burnt-in info bar."""
    warnings: tuple[str, ...] = ()
    pages: int = 1

    @property
    def content(self) -> Pixels:
        """The pixels outside the info bar [H', W], the larger part where the bar splits the frame."""
        if self.banner is None:
            return self.pixels
        above: Pixels = self.pixels[: self.banner[0]]
        below: Pixels = self.pixels[self.banner[1] :]
        return above if len(above) >= len(below) else below

    def window(self) -> Window:
        """The 0.1 and 99.9 percentiles of the finite content; the full range where these two coincide."""
        return self._window

    @cached_property
    def _window(self) -> Window:
        return window_of(self.content)

    def to_display(self) -> Pixels:
        """The whole frame, info bar included, windowed to uint8 [H, W]."""
        grey = windowed(self.pixels, self.window())
        return np.asarray(np.rint(grey * 255), dtype=np.uint8)

    def metadata_line(self) -> str:
        """One short line for a person or a prompt: instrument; voltage; working distance; ...; pixel size."""
        i = self.instrument
        scale = None if self.calibration is None else f"{self.calibration.nm_per_pixel:.4g} nm/px"
        parts = (
            _instrument_name(i),
            None if i.hv_kv is None else f"{i.hv_kv:.4g} kV",
            None if i.wd_mm is None else f"WD {i.wd_mm:.3g} mm",
            None if i.magnification is None else f"mag {i.magnification:.6g}x",
            i.detector,
            scale or "not calibrated",
        )
        return "; ".join(part for part in parts if part)

    def info(self) -> dict[str, Any]:
        """What `maemi info --json` prints for this image."""
        c, i, window = self.calibration, self.instrument, self.window()
        return {
            "path": None if self.source is None else str(self.source),
            "sha256": self.sha256,
            "width": self.pixels.shape[1],
            "height": self.pixels.shape[0],
            "dtype": str(self.pixels.dtype),
            "pages": self.pages,
            "pixel_size_nm": None if c is None else c.nm_per_pixel,
            "pixel_size_source": None if c is None else c.source,
            "pixel_size_confidence": None if c is None else c.confidence,
            "vendor": i.vendor,
            "model": i.model,
            "hv_kv": i.hv_kv,
            "wd_mm": i.wd_mm,
            "magnification": i.magnification,
            "detector": i.detector,
            "banner": None if self.banner is None else list(self.banner),
            "window": {"low": window.low, "high": window.high},
            "warnings": list(self.warnings),
        }


def find_micrographs(root: Path) -> list[Path]:
    """All files under `root` with a known suffix, sorted; hidden names and symlinked folders are left out."""
    found = []
    for folder, folders, files in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, f) for f in files if not f.startswith(".") and Path(f).suffix.lower() in SUFFIXES]
    return sorted(found)


def read_micrograph(
    source: Path | bytes,
    *,
    page: int | None = None,
    limits: ReadLimits = ReadLimits(),  # noqa: B008  (frozen)
    pixel_size_nm: float | None = None,
    read_bar: bool | None = None,
) -> Micrograph:
    """A micrograph from a file or its bytes; `pixel_size_nm` [nm] overrides what the file says.

    The label of the burnt-in scale bar is read (extra `ocr`) where no metadata calibrate or the bar makes their pixel
    size doubtful; `read_bar` True reads and compares it always, False never.

    Raises MicrographError with a code: not_found, not_a_file, empty_file, too_large, too_many_pages, no_such_page,
    unsupported_format, needs_extra, unreadable, bad_pixel_size.
    """
    if pixel_size_nm is not None and not SMALLEST_PIXEL <= pixel_size_nm <= LARGEST_PIXEL:
        message = f"A pixel size of {pixel_size_nm!r} nm is not possible. Give nanometres per pixel."
        raise MicrographError("bad_pixel_size", message)
    path = None if isinstance(source, bytes | bytearray | memoryview) else Path(source)
    data = bytes(source) if path is None else file_bytes(path, limits)
    try:
        frame, records = _decoded(data, path, page, limits)
    except MicrographError as error:
        raise MicrographError(error.code, f"{shown(path)}: {error.message}") from error
    return _assembled(frame, records, data, path, pixel_size_nm, read_bar)


def to_model_input(m: Micrograph, size: int) -> tuple[np.ndarray[Any, np.dtype[np.float32]], Window]:
    """The centred square of the content as float32 [size, size] in 0..1, and the window that maps grey to it.

    The window is the whole content's, so it does not depend on `size`; shrinking averages over area.
    """
    from PIL import Image

    content, window = m.content, m.window()
    side = min(content.shape)
    top, left = (content.shape[0] - side) // 2, (content.shape[1] - side) // 2
    square = windowed(content[top : top + side, left : left + side], window)  # [side, side]
    if side != size:
        resized = Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
        square = np.clip(np.asarray(resized), 0, 1)  # [size, size]
    return np.ascontiguousarray(square, dtype=np.float32), window


def _decoded(
    data: bytes, path: Path | None, page: int | None, limits: ReadLimits
) -> tuple[Frame, list[tuple[Record, str]]]:
    """The page and every record about it, each with where it came from; the most trustworthy record is first."""
    if not data:
        raise MicrographError("empty_file", "The file is empty. Copy it again.")
    if len(data) > limits.max_bytes:
        raise MicrographError("too_large", f"{len(data)} bytes were given; the limit is {limits.max_bytes}.")
    records: list[tuple[Record, str]] = []
    kind = raster.kind_of(data)
    if kind is not None:
        frame = raster.decode(data, kind, page, limits)
        if block := thermo.loose_xml(data):
            frame = replace(frame, tags={thermo.TITAN_XML: block})
    elif data.startswith(tiff.MAGIC):
        frame = tiff.decode(data, page, limits)
        if not frame.tags.keys() & tiff.VENDOR_TAGS and (block := thermo.loose_block(data)):
            frame = replace(frame, tags={thermo.SFEG: block})
    elif (vendor := rosettasciio.kind_of(data, path.suffix.lower() if path else "")) is not None:
        frame, record = rosettasciio.decode(path, vendor, page, limits)
        records.append((record, "the file"))
    else:
        raise MicrographError(
            "unsupported_format", "The bytes are no TIFF, PNG, JPEG, BMP, WebP or GIF. Export the image as TIFF."
        )
    notes = list(frame.warnings)
    records += _tag_records(frame, notes)
    if path is not None:
        records += _sidecar_records(path, frame, limits, notes)
    return replace(frame, warnings=tuple(notes)), records


def _tag_records(frame: Frame, notes: list[str]) -> Iterator[tuple[Record, str]]:
    size = frame.pixels.shape[::-1]
    for reader in _TAG_READERS:
        try:
            record = reader(frame.tags, (size[0], size[1]))
        except DECODER_ERRORS:
            vendor = reader.__module__.rsplit(".", 1)[-1]
            notes.append(f"The {VENDOR_NAMES.get(vendor, vendor)} tag cannot be parsed; it is ignored.")
            continue
        if record is not None:
            yield record, "the file's tags"
    record = imagej.from_tags(frame.tags, frame.resolution)
    if record is not None:
        yield record, "the ImageJ description"


def _sidecar_records(path: Path, frame: Frame, limits: ReadLimits, notes: list[str]) -> Iterator[tuple[Record, str]]:
    """The first side-car that a vendor reader recognises."""
    size = frame.pixels.shape[::-1]
    for name, text in sidecar_texts(path, limits.max_sidecar_bytes):
        if text is None:
            notes.append(f"The side-car {shown(Path(name))} is over {limits.max_sidecar_bytes} bytes; it is ignored.")
            continue
        record = next((r for read in _SIDECAR_READERS if (r := read(text, (size[0], size[1])))), None)
        if record is not None:
            yield record, f"the side-car {shown(Path(name))}"
            return


def _assembled(
    frame: Frame,
    records: list[tuple[Record, str]],
    data: bytes,
    path: Path | None,
    pixel_size_nm: float | None,
    read_bar: bool | None,
) -> Micrograph:
    notes = [*frame.warnings, *(note for record, _ in records for note in record.warnings)]
    banner = _banner(frame, records)
    band = None if banner is None else frame.pixels[slice(*banner)]
    calibration, remarks = calibrate(records, band, user_nm=pixel_size_nm, read_bar=read_bar)
    notes += remarks
    if frame.pixels.dtype.kind == "f" and (bad := int(frame.pixels.size - np.isfinite(frame.pixels).sum())):
        notes.append(f"{bad} pixel(s) are NaN or infinite; they are left out of the window.")
    micrograph = Micrograph(
        pixels=frame.pixels,
        sha256=hashlib.sha256(data).hexdigest(),
        source=path,
        page=frame.page,
        calibration=calibration,
        instrument=_instrument(records),
        banner=banner,
        pages=frame.pages,
    )
    window = micrograph.window()
    if window.low == window.high:
        notes.append("The image is constant: there is nothing to see.")
    finished = replace(micrograph, warnings=tuple(dict.fromkeys(notes)))
    finished.__dict__["_window"] = window  # the costliest thing about most images, and everyone asks for it next
    return finished


def _banner(frame: Frame, records: list[tuple[Record, str]]) -> tuple[int, int] | None:
    """From the scan height where the metadata tells it and the file is taller, else from the pixels."""
    height = len(frame.pixels)
    told = next((r.scan_rows for r, _ in records if r.scan_rows is not None and r.scan_rows < height), None)
    if told is not None and told >= height // 2 and not frame.turned:
        return told, height
    return find_banner(frame.pixels)


def _instrument(records: list[tuple[Record, str]]) -> Instrument:
    """The first account by a microscope; one by an editor (ImageJ, OME) only where there is no other."""
    if not records:
        return Instrument()
    ranked = sorted((record.instrument for record, _ in records), key=lambda i: i.vendor in ("imagej", "ome", None))
    return ranked[0]


def _instrument_name(instrument: Instrument) -> str | None:
    vendor = VENDOR_NAMES.get(instrument.vendor or "")
    if vendor is None or (instrument.model or "").lower().startswith(vendor.lower()):
        return instrument.model
    return f"{vendor} {instrument.model or ''}".strip()

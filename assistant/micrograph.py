"""Reads a micrograph: pixels, calibration, instrument, info bar; and turns it into model input.

Knows nothing about models, datasets or prompts. Formats live in `readers/`, one file each.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from assistant.arrays import Mask, Pixels
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
from assistant.readers.annotation import Annotation, annotation_of, sample_of
from assistant.readers.calibration import calibrate
from assistant.readers.files import file_bytes, shown, sidecar_texts
from assistant.readers.frame import DECODER_ERRORS, Frame, ReadLimits
from assistant.readers.record import (
    LARGEST_PIXEL,
    SMALLEST_PIXEL,
    Calibration,
    Instrument,
    Record,
    SidecarReader,
    TagReader,
    VendorReader,
)
from assistant.readers.sample import largest_rectangle, without_gaps
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


SUFFIXES = frozenset({".tif", ".tiff", *raster.SUFFIXES, *rosettasciio.SUFFIXES})
INSTRUMENT_FIELDS = ("vendor", "model", "hv_kv", "wd_mm", "magnification", "detector", "date")
_COUNTER = re.compile(r"[\s._-]*\d+$")
_TAG_READERS: tuple[TagReader, ...] = (thermo, zeiss, tescan, gatan, ome)
_SIDECAR_READERS: tuple[SidecarReader, ...] = (jeol, hitachi, sec, tescan)
_EDITORS = (imagej.VENDOR[0], ome.VENDOR[0])
"""Programs that write a file for a microscope of any maker."""
_READERS: tuple[VendorReader, ...] = (*_TAG_READERS, *_SIDECAR_READERS, imagej, rosettasciio)
VENDOR_NAMES = dict(reader.VENDOR for reader in _READERS)


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
    sample: Mask | None = None  # [H, W]
    """True where the specimen is, None where all outside the info bar is; drawings, margins and gaps are not."""

    @cached_property
    def part(self) -> tuple[slice, slice]:
        """Rows and columns of the smallest rectangle with all of the sample: the larger part where a bar splits it."""
        height, width = self.pixels.shape
        sample = np.broadcast_to(True, (height, width)) if self.sample is None else self.sample
        rows, columns = slice(0, height), slice(0, width)
        if self.banner is not None and (self.sample is None or not sample[slice(*self.banner)].any()):
            sides = slice(0, self.banner[0]), slice(self.banner[1], height)
            rows = max(sides, key=lambda side: np.count_nonzero(sample[side]))
        if self.sample is None:
            return rows, columns
        high, wide = (np.flatnonzero(sample[rows].any(axis=axis)) for axis in (1, 0))
        if len(high) == 0:
            return rows, columns
        return slice(rows.start + int(high[0]), rows.start + int(high[-1]) + 1), slice(int(wide[0]), int(wide[-1]) + 1)

    @property
    def content(self) -> Pixels:
        """The pixels of `part`, as they are [H', W']."""
        return self.pixels[self.part]

    @property
    def content_sample(self) -> Mask | None:
        """Where in `content` the specimen is, None where all of it is."""
        mask = None if self.sample is None else self.sample[self.part]
        return None if mask is None or mask.all() else mask

    @cached_property
    def specimen(self) -> Pixels:
        """`content` with everything that is no sample made like the specimen around it [H', W']."""
        return self.content if self.content_sample is None else without_gaps(self.content, self.content_sample)

    @property
    def sample_fraction(self) -> float:
        """Share of the frame that is sample."""
        if self.sample is not None:
            return float(self.sample.mean())
        return 1.0 if self.banner is None else 1 - (self.banner[1] - self.banner[0]) / len(self.pixels)

    def window(self) -> Window:
        """The 0.1 and 99.9 percentiles of the finite content; the full range where these two coincide."""
        return self._window

    @cached_property
    def _window(self) -> Window:
        mask = self.content_sample
        return window_of(self.content if mask is None else self.content[mask])

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
            "date": i.date,
            "banner": None if self.banner is None else list(self.banner),
            "sample_fraction": round(self.sample_fraction, 4),
            "window": {"low": window.low, "high": window.high},
            "warnings": list(self.warnings),
        }


def group_of_name(name: str | Path) -> str:
    """Folder and file name without its trailing counter: "lot7/edge_0012.tif" and "lot7/edge_0013.tif" are of one."""
    path = Path(name)
    return (path.parent / (_COUNTER.sub("", path.stem) or path.stem)).as_posix()


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
    """The centred square of the sample as float32 [size, size] in 0..1, and the window that maps grey to it.

    Of a sample with large gaps the largest rectangle without one counts. The window is the whole sample's, so it does
    not depend on `size`; shrinking averages over area.
    """
    from PIL import Image

    window, seen = m.window(), m.specimen[model_square(m)]
    square, side = windowed(seen, window), len(seen)  # [side, side]
    if side != size:
        resized = Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
        square = np.clip(np.asarray(resized), 0, 1)  # [size, size]
    return np.ascontiguousarray(square, dtype=np.float32), window


def model_square(m: Micrograph) -> tuple[slice, slice]:
    """Rows and columns of `specimen` that a model sees: the centred square of its largest rectangle without a gap."""
    mask = m.content_sample
    rows, columns = (slice(0, n) for n in m.specimen.shape) if mask is None else largest_rectangle(mask)
    high, wide = rows.stop - rows.start, columns.stop - columns.start
    side = min(high, wide)
    top, left = rows.start + (high - side) // 2, columns.start + (wide - side) // 2
    return slice(top, top + side), slice(left, left + side)


def _decoded(
    data: bytes, path: Path | None, page: int | None, limits: ReadLimits
) -> tuple[Frame, list[tuple[Record, str]]]:
    """The page and every record about it, each with where it came from; the most trustworthy record is first."""
    if not data:
        raise MicrographError("empty_file", "The file is empty. Copy it again.")
    if len(data) > limits.max_bytes:
        raise MicrographError("too_large", f"{len(data)} bytes were given; the limit is {limits.max_bytes}.")
    records: list[tuple[Record, str]] = []
    kind = raster.raster_kind(data)
    if kind is not None:
        frame = raster.decode(data, kind, page, limits)
        if block := thermo.loose_xml(data):
            frame = replace(frame, tags={thermo.TITAN_XML: block})
    elif data.startswith(tiff.MAGIC):
        frame = tiff.decode(data, page, limits)
        if not frame.tags.keys() & tiff.VENDOR_TAGS and (block := thermo.loose_block(data)):
            frame = replace(frame, tags={thermo.SFEG: block})
    elif (vendor := rosettasciio.container_kind(data, path.suffix.lower() if path else "")) is not None:
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
            record = reader.from_tags(frame.tags, (size[0], size[1]))
        except DECODER_ERRORS:
            notes.append(f"The {reader.VENDOR[1]} tag cannot be parsed; it is ignored.")
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
        record = next((r for reader in _SIDECAR_READERS if (r := reader.from_text(text, (size[0], size[1])))), None)
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
    height, width = frame.pixels.shape
    told = next((r.scan_rows for r, _ in records if r.scan_rows is not None and r.scan_rows < height), None)
    scan_rows = told if told is not None and told >= height // 2 and not frame.turned else None
    found = annotation_of(frame, scan_rows=scan_rows)
    calibration, remarks = calibrate(records, found, width=width, user_nm=pixel_size_nm, read_bar=read_bar)
    notes += [*remarks, *found.remarks()]
    if frame.pixels.dtype.kind == "f" and (bad := int(frame.pixels.size - np.isfinite(frame.pixels).sum())):
        notes.append(f"{bad} pixel(s) are NaN or infinite; they are left out of the window.")
    micrograph = Micrograph(
        pixels=frame.pixels,
        sha256=hashlib.sha256(data).hexdigest(),
        source=path,
        page=frame.page,
        calibration=calibration,
        instrument=_instrument(records, found, read_bar=read_bar),
        banner=found.banner,
        sample=sample_of(frame, found),
        pages=frame.pages,
    )
    window = micrograph.window()
    if window.low == window.high:
        notes.append("The image is constant: there is nothing to see.")
    finished = replace(micrograph, warnings=tuple(dict.fromkeys(notes)))
    finished.__dict__["_window"] = window  # the costliest thing about most images, and everyone asks for it next
    return finished


def _instrument(records: list[tuple[Record, str]], found: Annotation, *, read_bar: bool | None) -> Instrument:
    """The first account by a microscope, one by an editor (ImageJ, OME) only where there is no other.

    What it leaves open is read off the info bar, if it names no voltage, or the bar was read anyhow.
    """
    ranked = sorted(records, key=lambda r: r[0].instrument.vendor in (*_EDITORS, None))
    told, source = (ranked[0][0].instrument, ranked[0][0].source) if ranked else (Instrument(), "")
    known = {name: source for name in INSTRUMENT_FIELDS if getattr(told, name) is not None}
    strip = found.strips[0] if found.strips and found.strips[0].source == "banner" else None
    if strip is not None and read_bar is not False and (told.hv_kv is None or "lines" in strip.__dict__):
        said = strip.instrument()
        open_fields = (name for name in INSTRUMENT_FIELDS if name not in known)
        more = {name: value for name in open_fields if (value := getattr(said, name)) is not None}
        return replace(told, **more, sources={**known, **dict.fromkeys(more, "banner")})
    return replace(told, sources=known)


def _instrument_name(instrument: Instrument) -> str | None:
    """Maker and model; the first word of the maker's name is enough for a prompt."""
    if instrument.vendor is None or instrument.vendor in _EDITORS:
        return instrument.model
    maker = VENDOR_NAMES.get(instrument.vendor, instrument.vendor).split()[0]
    model = instrument.model or ""
    return model if model.lower().startswith(maker.lower()) else f"{maker} {model}".strip()

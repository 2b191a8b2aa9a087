"""Gatan dm3/dm4, emd, ser/emi and mrc through RosettaSciIO, where the user installed the optional `vendor` extra.

Knows nothing about TIFF or side-cars. RosettaSciIO is GPL-3 and therefore never a dependency.
"""

import importlib
import importlib.util
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import MicrographError
from assistant.readers.frame import DECODER_ERRORS, Frame, ReadLimits, check_size, undecodable
from assistant.readers.record import Instrument, Record, length_nm, name, square_pixel
from assistant.remarks import heard

VENDOR = "gatan", "Gatan"
SUFFIXES = {
    ".dm3": "DigitalMicrograph",
    ".dm4": "DigitalMicrograph",
    ".emd": "EMD",
    ".ser": "TIA",
    ".emi": "TIA",
    ".mrc": "MRC",
}


def container_kind(data: bytes, suffix: str) -> str | None:
    """RosettaSciIO's name for the format if the first bytes are one of these, else None."""
    if data[:4] in (b"\0\0\0\x03", b"\0\0\0\x04") and suffix in ("", ".dm3", ".dm4"):
        return "DigitalMicrograph"
    if data[:8] == b"\x89HDF\r\n\x1a\n":
        return "EMD"
    if data[:4] == b"II\x97\x01" or (data[:2] == b"JK" and suffix == ".emi"):
        return "TIA"
    return "MRC" if data[208:212] in (b"MAP ", b"MAP\0") else None


def decode(source: Path | None, kind: str, page: int | None, limits: ReadLimits) -> tuple[Frame, Record]:
    """The first (or `page`-th) image of the file. Raises MicrographError, "needs_extra" without the extra."""
    if importlib.util.find_spec("rsciio") is None:
        message = f'{kind} files need RosettaSciIO. Install it with: pip install "maemi[vendor]".'
        raise MicrographError("needs_extra", message)
    if source is None:
        raise MicrographError("unsupported_format", f"{kind} data can only be read from a file. Save it to disk first.")
    logging.getLogger("rsciio").addHandler(logging.NullHandler())  # else its remarks go to the screen
    remarks: list[str] = []
    try:
        with heard(remarks):
            reader = importlib.import_module(f"rsciio.{kind.lower()}")
            if kind == "EMD":
                _refuse_links(source)
            return _frame(reader.file_reader(str(source), lazy=True), page, limits)
    except ImportError as error:
        message = f'{kind} files need {error.name}. Install it with: pip install "maemi[vendor]".'
        raise MicrographError("needs_extra", message) from error
    except DECODER_ERRORS as error:
        raise undecodable(f"{kind} file", error) from error


def _refuse_links(source: Path) -> None:
    """An HDF5 file may point at other files, and would hand out what is in them."""
    import h5py

    def look(name: str, link: Any) -> str | None:
        item = None if isinstance(link, h5py.ExternalLink) else file.get(name)
        stored_here = not isinstance(item, h5py.Dataset) or not (item.is_virtual or item.external)
        return None if stored_here and not isinstance(link, h5py.ExternalLink) else name

    with h5py.File(source, "r") as file:
        if file.visititems_links(look) is not None:
            message = "The EMD file points at other files. Save it with its data inside."
            raise MicrographError("unsupported_format", message)


def _frame(signals: list[dict[str, Any]], page: int | None, limits: ReadLimits) -> tuple[Frame, Record]:
    images = [s for s in signals if len(s["axes"]) == 2]
    index = page or 0
    if not 0 <= index < len(images):
        raise MicrographError("no_such_page", f"Image {index} was asked for; the file holds {len(images)}.")
    chosen = images[index]
    height, width = chosen["data"].shape
    check_size(width, height, channels=1, itemsize=chosen["data"].dtype.itemsize, limits=limits)
    pixels = np.asarray(chosen["data"])
    if pixels.dtype.kind not in "buif":
        raise MicrographError("unsupported_format", f"Pixels of type {pixels.dtype} are not supported.")
    return Frame(np.ascontiguousarray(pixels), page=index, pages=len(images)), _record(chosen)


def _record(signal: Mapping[str, Any]) -> Record:
    """Only a length with a unit counts: diffraction patterns come in 1/nm, uncalibrated data without unit."""
    steps = [(axis.get("scale"), axis.get("units")) for axis in signal["axes"]]
    y_nm, x_nm = (
        length_nm(abs(float(step)), unit) if step is not None and isinstance(unit, str) else None
        for step, unit in steps
    )
    pixel, warnings = square_pixel(x_nm, y_nm)
    metadata = signal.get("metadata", {})
    microscope = metadata.get("Acquisition_instrument", {})
    column = microscope.get("TEM") or microscope.get("SEM") or {}
    wd = column.get("working_distance")
    instrument = Instrument(
        vendor="gatan" if "ImageList" in signal.get("original_metadata", {}) else None,
        model=name(column.get("microscope")),
        hv_kv=_positive(column.get("beam_energy")),
        wd_mm=_positive(wd),
        magnification=_positive(column.get("magnification")),
        date=name(metadata.get("General", {}).get("date")),
    )
    return Record(instrument, "tag", pixel, warnings=warnings)


def _positive(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None

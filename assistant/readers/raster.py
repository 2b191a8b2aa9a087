"""PNG, JPEG, BMP, WebP and GIF pixels through Pillow, one named format at a time. Knows nothing about vendors."""

import io
from typing import TYPE_CHECKING

import numpy as np

from assistant.arrays import Pixels
from assistant.errors import MicrographError
from assistant.readers.frame import (
    DECODER_ERRORS,
    Frame,
    ReadLimits,
    check_size,
    colour_of,
    luminance,
    opaque_part,
    undecodable,
    upright,
)
from assistant.remarks import heard

if TYPE_CHECKING:
    from PIL import Image


_MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"GIF87a": "GIF", b"GIF89a": "GIF"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
_CHANNELS = {"RGB": 3, "YCbCr": 3, "LAB": 3, "RGBA": 4, "RGBX": 4, "CMYK": 4, "LA": 2, "PA": 2}
_BYTES = {"I": 4, "F": 4}
_EXIF_ORIENTATION = 0x0112
_PNG_DEPTH = 24  # where the header chunk holds the bits per channel
_START_OF_SCAN = b"\xff\xda"
_METADATA_MARKERS = (0xE0, 0xFE)  # APP0 to COM
_MAX_METADATA = 2**22  # bytes of a JPEG before its picture: Pillow joins segments in quadratic time
_MAX_SCANNED = 2**31  # pixels times progressive scans: every scan of a JPEG goes over the whole picture again


def raster_kind(data: bytes) -> str | None:
    """The format that the first bytes name, None for none of these."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)


def decode(data: bytes, kind: str, page: int | None, limits: ReadLimits) -> Frame:
    """The picture, of a moving one the first, as upright grey values. Raises MicrographError."""
    if page not in (None, 0):
        raise MicrographError("no_such_page", f"Page {page} was asked for; a {kind} has only page 0.")
    from PIL import Image

    if kind == "JPEG" and metadata_bytes(data) > _MAX_METADATA:
        raise MicrographError("too_large", "The JPEG carries more metadata than picture. Save it without them.")
    remarks: list[str] = []
    try:
        with heard(remarks), Image.open(io.BytesIO(data), formats=[kind]) as image:
            _refuse(image, data, kind, limits)
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
            narrowed = kind == "PNG" and data[_PNG_DEPTH] == 16 and image.mode in ("RGB", "RGBA", "LA")
            grey, channels = _deep(data) if narrowed else _decoded(image)
    except Image.DecompressionBombError as error:
        raise MicrographError("too_large", f"The {kind} header names too many pixels. Bin it first.") from error
    except DECODER_ERRORS as error:
        raise undecodable(kind, error) from error
    notes = [f"The {kind} is irregular ({len(remarks)} remark(s) while decoding)."] if remarks else []
    turned = isinstance(orientation, int) and orientation in range(2, 9)
    straight = orientation if turned else 1
    colour = opaque = None
    if channels is not None:
        colour = colour_of(channels)
        opaque = opaque_part(channels[..., -1]) if channels.shape[2] in (2, 4) else None
    return Frame(
        upright(grey, straight),
        colour=None if colour is None else upright(colour, straight),
        opaque=None if opaque is None else upright(opaque, straight),
        turned=turned,
        warnings=tuple(notes),
    )


def metadata_bytes(data: bytes) -> int:
    """Total length of the application and comment segments before the first scan of a JPEG."""
    place, total = 2, 0
    while place + 4 <= len(data) and data[place] == 0xFF and data[place : place + 2] != _START_OF_SCAN:
        length = 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        total += length if _METADATA_MARKERS[0] <= data[place + 1] <= _METADATA_MARKERS[1] else 0
        place += length
    return total


def _refuse(image: "Image.Image", data: bytes, kind: str, limits: ReadLimits) -> None:
    deep = image.mode.startswith("I;16") or (kind == "PNG" and data[_PNG_DEPTH] == 16)
    itemsize = _BYTES.get(image.mode, 2 if deep else 1)
    check_size(*image.size, channels=_CHANNELS.get(image.mode, 1), itemsize=itemsize, limits=limits)
    if kind == "JPEG" and data.count(_START_OF_SCAN) * image.size[0] * image.size[1] > _MAX_SCANNED:
        raise MicrographError("too_large", "The JPEG has too many scans for its size. Save it as baseline JPEG.")


def _deep(data: bytes) -> "tuple[Pixels, Pixels]":
    """Grey and channels of a PNG with 16 bits per channel, of which Pillow would keep 8."""
    import imagecodecs

    channels = np.asarray(imagecodecs.png_decode(data))  # [H, W, 2 to 4] uint16
    return luminance(channels) if channels.shape[2] > 2 else np.ascontiguousarray(channels[..., 0]), channels


def _decoded(image: "Image.Image") -> "tuple[Pixels, Pixels | None]":
    """[H, W] of the file's own depth, colour as BT.601 luminance, 1-bit as 0 and 255; and [H, W, 2 to 4] of colour."""
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        pixels = np.array(image)
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False), None
    if image.mode == "1":
        return np.array(image.convert("L")), None
    if image.mode in ("CMYK", "LAB", "YCbCr", "PA") or (image.mode == "P" and "transparency" not in image.info):
        image = image.convert("RGBA" if image.mode == "PA" else "RGB")
    elif image.mode == "P":
        image = image.convert("RGBA")
    return np.array(image.convert("L")), np.asarray(image)

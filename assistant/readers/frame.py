"""What a decoder hands back, the limits it keeps, and the pixel arithmetic all decoders share.

Knows nothing about any file format.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from assistant.errors import MicrographError

DECODER_ERRORS: tuple[type[Exception], ...] = (
    ValueError,  # TiffFileError, UnicodeError and most of Pillow's and tifffile's own
    OSError,  # UnidentifiedImageError, BadGzipFile, truncated files
    RuntimeError,  # the errors of imagecodecs, NotImplementedError, RecursionError
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    BufferError,
    EOFError,
    ImportError,
    MemoryError,
    SyntaxError,  # Pillow's word for a broken PNG, ElementTree's for broken XML
    struct.error,
    zlib.error,
)
"""Every type that a decoder or metadata parser was seen to raise on damaged bytes."""

VIVID = 80  # difference of the channels, of 255, from which a pixel has a colour
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in Pillow's mode "L"
_ROWS_AT_ONCE = 256  # keeps the float copy of a colour image small


@dataclass(frozen=True)
class ReadLimits:
    """What is refused before any pixel is decoded."""

    max_bytes: int = 2**28
    """Size of the file [bytes]."""
    max_pixels: int = 2**27
    """Width times height of one page."""
    max_decoded_bytes: int = 2**28
    """Width x height x channels x bytes of one page."""
    max_pages: int = 1000
    max_sidecar_bytes: int = 2**20


@dataclass(frozen=True)
class Frame:
    """One decoded page: upright grey display values and the raw metadata that came with them."""

    pixels: np.ndarray[Any, np.dtype[Any]]  # [H, W]
    page: int = 0
    pages: int = 1
    tags: Mapping[int, bytes] = field(default_factory=dict)
    resolution: Mapping[str, float] = field(default_factory=dict)
    """"x" and "y" in pixels per unit, as TIFF tags 282 and 283 give them."""
    colour: np.ndarray[Any, np.dtype[np.uint8]] | None = None  # [H, W, 3]
    """Eight bits of each channel where the picture has a colour in it; None where all of it is grey."""
    opaque: np.ndarray[Any, np.dtype[np.bool_]] | None = None  # [H, W]
    """False where the picture is fully transparent; None where none of it is."""
    turned: bool = False
    """True where an orientation entry moved rows, so that row numbers in the metadata no longer apply."""
    warnings: tuple[str, ...] = ()


def check_size(width: int, height: int, *, channels: int, itemsize: float, limits: ReadLimits) -> None:
    """Refuses a page by its header. Raises MicrographError "too_large" or "unreadable"."""
    if width < 1 or height < 1:
        raise MicrographError("unreadable", f"The header says {width} x {height} pixels. Check the file.")
    if width * height > limits.max_pixels or width * height * channels * itemsize > limits.max_decoded_bytes:
        raise MicrographError(
            "too_large",
            f"The header says {width} x {height} pixels, {channels} channel(s) of {itemsize:g} bytes; the limit is "
            f"{limits.max_pixels} pixels and {limits.max_decoded_bytes} bytes. Crop or bin the image first.",
        )


def undecodable(what: str, error: Exception) -> MicrographError:
    """What a person is told of a decoder's exception, in words of ours: its own may quote the file."""
    if isinstance(error, MemoryError):
        return MicrographError("too_large", f"The {what} needs more memory than there is. Crop or bin the image first.")
    message = f"The {what} cannot be decoded ({type(error).__name__}). Export the image again."
    return MicrographError("unreadable", message)


def upright(pixels: np.ndarray[Any, np.dtype[Any]], orientation: int) -> np.ndarray[Any, np.dtype[Any]]:
    """[H, W] or [H, W, C] as it is meant to be seen: undoes TIFF / EXIF orientation 1..8; other values count as 1."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def inverted(pixels: np.ndarray[Any, np.dtype[Any]], bits: int) -> np.ndarray[Any, np.dtype[Any]]:
    """MinIsWhite as MinIsBlack: integers mirrored over the `bits` they use, floats over their finite range."""
    if pixels.dtype.kind == "f":
        finite = pixels[np.isfinite(pixels)]
        with np.errstate(all="ignore"):
            mirrored = pixels if finite.size == 0 else finite.min() + finite.max() - pixels
        return np.asarray(mirrored, dtype=pixels.dtype)
    if pixels.dtype.kind == "i" or bits >= pixels.dtype.itemsize * 8:
        return np.asarray(np.invert(pixels))
    return np.asarray((1 << bits) - 1 - pixels, dtype=pixels.dtype)


def luminance(colour: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """[H, W, >=3] RGB -> [H, W] grey of the same dtype; a grey picture stored as RGB comes back unchanged."""
    grey = np.empty(colour.shape[:2], colour.dtype)
    for top in range(0, len(colour), _ROWS_AT_ONCE):
        rows = colour[top : top + _ROWS_AT_ONCE, :, :3]
        mixed = rows @ _LUMA
        if colour.dtype.kind != "f":
            mixed = np.rint(mixed)
        same = (rows[..., 0] == rows[..., 1]) & (rows[..., 0] == rows[..., 2])
        grey[top : top + _ROWS_AT_ONCE] = np.where(same, rows[..., 0], mixed.astype(colour.dtype))
    return grey


def colour_of(channels: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """[H, W, >=3] unsigned RGB in eight bits, None where no pixel is plainly coloured: JPEG tints grey a little."""
    if channels.dtype.kind != "u" or channels.shape[2] < 3:
        return None
    shift = 8 * (channels.dtype.itemsize - 1)
    rgb = (channels[..., :3] >> shift).astype(np.uint8, copy=False)
    return rgb if vividness(rgb).max(initial=0) >= VIVID else None


def vividness(rgb: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The difference of the largest and the smallest channel [H, W]."""
    red, green, blue = (rgb[..., channel] for channel in range(3))
    return np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)


def opaque_part(alpha: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """True where `alpha` [H, W] lets something be seen; None where it does everywhere, or nowhere."""
    seen = alpha > 0
    return None if seen.all() or not seen.any() else np.asarray(seen)


def cmyk_to_rgb(inks: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """[H, W, 4] inks (0 = none) -> [H, W, 3] RGB of the same unsigned dtype."""
    white = float(np.iinfo(inks.dtype).max)
    rgb = np.empty((*inks.shape[:2], 3), inks.dtype)
    for top in range(0, len(inks), _ROWS_AT_ONCE):
        light = white - inks[top : top + _ROWS_AT_ONCE, :, :4].astype(np.float64)
        rgb[top : top + _ROWS_AT_ONCE] = np.rint(light[..., :3] * light[..., 3:] / white).astype(inks.dtype)
    return rgb

"""TIFF and BigTIFF pixels: the directories are walked and judged here, tifffile decodes the one page that is chosen.

Knows nothing about vendors; it hands their tags on as raw bytes.
"""

import io
import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from assistant.errors import MicrographError
from assistant.readers.frame import (
    DECODER_ERRORS,
    Frame,
    ReadLimits,
    check_size,
    cmyk_to_rgb,
    colour_of,
    inverted,
    luminance,
    opaque_part,
    undecodable,
    upright,
)

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NUMBER_TAGS = (65009, 65010)
VENDOR_TAGS = (270, 34118, 34680, 34682, 34683, 50431, 65003, 65004, *NUMBER_TAGS)

_WIDTH, _HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, ORIENTATION = 256, 257, 258, 259, 262, 273, 274
SAMPLES, STRIP_ROWS, COUNTS, X_RESOLUTION, Y_RESOLUTION, PLANAR, PALETTE = 277, 278, 279, 282, 283, 284, 320
SUBFILE, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, EXTRA_SAMPLES, SAMPLE_FORMAT = (
    254,
    322,
    323,
    324,
    325,
    338,
    339,
)
_STRUCTURE = {*range(256, 260), 262, 273, 274, 277, 278, 279, 282, 283, 284, 320, 254, *range(322, 326), 338, 339}

UNCOMPRESSED, JPEG = 1, 7
CODECS = {1, 2, 3, 4, 5, JPEG, 8, 32773, 32946, 50000}  # none, CCITT, LZW, JPEG, Deflate, PackBits, Zstandard
WHITE_IS_ZERO, RGB_COLOUR, PALETTE_COLOUR, SEPARATED, YCBCR, CIELAB, ICCLAB = 0, 2, 3, 5, 6, 8, 9
ALPHA = {1, 2}  # extra samples that are transparency
MASK_SUBFILE = 4

MAX_ENTRIES, MAX_SEGMENTS, MAX_TAG_BYTES = 512, 2**16, 2**23
SAME_SIZE = 0.8  # an info bar adds at most a quarter, so pages within 0.8 of the largest show the same frame
JPEG_BLOCK = 64  # how far a JPEG segment may pass its strip: one block row of any subsampling
_BYTES_OF_TYPE = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_CODE_OF_TYPE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


@dataclass(frozen=True)
class Directory:
    """One image file directory: where each tag's bytes lie, read only when asked for."""

    data: memoryview
    order: str
    entries: dict[int, tuple[int, int, int]]  # tag -> (type, count, offset)

    def raw(self, tag: int) -> bytes:
        """The bytes of a tag; empty where it is missing, outside the file or over 8 MiB."""
        kind, count, offset = self.entries.get(tag, (1, 0, 0))
        size = count * _BYTES_OF_TYPE.get(kind, 1)
        return bytes(self.data[offset : offset + size]) if size <= MAX_TAG_BYTES else b""

    def integers(self, tag: int, *, first: int | None = None) -> "np.ndarray[Any, np.dtype[Any]]":
        """All or the first values of an integer tag; empty where it is missing or of another type."""
        kind, count, offset = self.entries.get(tag, (0, 0, 0))
        code = _CODE_OF_TYPE.get(kind)
        if code is None or count * _BYTES_OF_TYPE[kind] > MAX_TAG_BYTES:
            return np.empty(0, np.uint8)
        itemsize, wanted = _BYTES_OF_TYPE[kind], count if first is None else min(first, count)
        raw = self.data[offset : offset + wanted * itemsize]
        return np.frombuffer(raw[: len(raw) // itemsize * itemsize], np.dtype(f"{self.order}{code}"))

    def integer(self, tag: int, default: int) -> int:
        values = self.integers(tag, first=1)
        return int(values[0]) if values.size else default

    def ratio(self, tag: int) -> float:
        """A rational tag as a float; 0 where it is missing or has no denominator."""
        raw = self.raw(tag)
        if self.entries.get(tag, (0, 0, 0))[0] != 5 or len(raw) < 8:
            return 0.0
        above, below = struct.unpack(f"{self.order}II", raw[:8])
        return above / below if below else 0.0

    def text(self, tag: int) -> bytes:
        """The bytes of a tag; of a tag with numbers the first one, as decimal text."""
        code = {**_CODE_OF_TYPE, 11: "f", 12: "d"}.get(self.entries.get(tag, (0, 0, 0))[0])
        raw = self.raw(tag)
        if tag not in NUMBER_TAGS or code is None or len(raw) < struct.calcsize(code):
            return raw
        return repr(struct.unpack_from(self.order + code, raw)[0]).encode()

    @property
    def size(self) -> tuple[int, int]:
        return self.integer(_WIDTH, 0), self.integer(_HEIGHT, 0)

    @property
    def bits(self) -> int:
        return max((int(value) for value in self.integers(BITS, first=8)), default=1)

    @property
    def tiled(self) -> bool:
        return TILE_OFFSETS in self.entries

    @property
    def segment_size(self) -> tuple[int, int]:
        """Width and height of a strip or tile."""
        width, height = self.size
        if self.tiled:
            return self.integer(TILE_WIDTH, 0), self.integer(TILE_HEIGHT, 0)
        return width, min(height, self.integer(STRIP_ROWS, height) or height)


def decode(data: bytes, page: int | None, limits: ReadLimits) -> Frame:
    """One page as upright grey values. Raises MicrographError; `page=None` takes the deepest of the largest size."""
    directories = walk(data, limits)
    index = choose_page(directories) if page is None else page
    if not 0 <= index < len(directories):
        raise MicrographError("no_such_page", f"Page {index} was asked for; pages are 0 to {len(directories) - 1}.")
    chosen = directories[index]
    refuse(chosen, len(data), limits)
    notes: list[str] = []
    if page is None and len(directories) > 1:
        notes.append(f"{len(directories)} pages: page {index} was read, the deepest of the largest size.")
    with _heard(notes):
        pixels = _pixels(data, index, chosen, limits)
    first = directories[0]
    shared = {tag: first.text(tag) for tag in VENDOR_TAGS} if first.size[0] == chosen.size[0] else {}
    tags = {**shared, **{tag: chosen.text(tag) for tag in VENDOR_TAGS if tag in chosen.entries}}
    orientation = chosen.integer(ORIENTATION, 1)
    colour = colour_of(pixels) if pixels.ndim == 3 and chosen.integer(PHOTOMETRIC, 1) == RGB_COLOUR else None
    opaque = _opaque(pixels, chosen) if pixels.ndim == 3 else None
    return Frame(
        upright(_grey(pixels, chosen, notes), orientation),
        colour=None if colour is None else upright(colour, orientation),
        opaque=None if opaque is None else upright(opaque, orientation),
        page=index,
        pages=len(directories),
        tags={tag: raw for tag, raw in tags.items() if raw},
        resolution={"x": chosen.ratio(X_RESOLUTION), "y": chosen.ratio(Y_RESOLUTION)},
        turned=orientation in range(2, 9),
        warnings=tuple(notes),
    )


def walk(data: bytes, limits: ReadLimits) -> list[Directory]:
    """All image file directories in file order. Raises MicrographError on a loop, too many pages or a torn chain."""
    order, big = ("<" if data[:2] == b"II" else ">"), data[2:4] in (b"+\0", b"\0+")
    head, count, entry, link = ("Q", "Q", "HHQ8s", 8) if big else ("I", "H", "HHI4s", 4)
    view, seen = memoryview(data), set[int]()
    found: list[Directory] = []
    try:
        (offset,) = struct.unpack_from(order + head, data, 8 if big else 4)
        while offset:
            if offset in seen:
                raise MicrographError("unreadable", "The TIFF page chain is a loop. The file is damaged.")
            if len(found) >= limits.max_pages:
                message = f"The TIFF has more than {limits.max_pages} pages. Split it, or raise max_pages."
                raise MicrographError("too_many_pages", message)
            seen.add(offset)
            if offset > len(data):
                raise MicrographError("unreadable", "The TIFF ends inside its page chain. Copy the file again.")
            (entries,) = struct.unpack_from(order + count, data, offset)
            if entries > MAX_ENTRIES:
                raise MicrographError("unreadable", f"A TIFF page claims {entries} tags. The file is damaged.")
            start, step = offset + struct.calcsize(order + count), struct.calcsize(order + entry)
            found.append(Directory(view, order, dict(_entries(data, order + entry, start, entries, link))))
            (offset,) = struct.unpack_from(order + head, data, start + entries * step)
    except struct.error:
        raise MicrographError("unreadable", "The TIFF ends inside its page chain. Copy the file again.") from None
    if not found:
        raise MicrographError("unreadable", "The TIFF holds no page. Check the file.")
    return found


def _entries(
    data: bytes, layout: str, start: int, count: int, inline: int
) -> Iterator[tuple[int, tuple[int, int, int]]]:
    step = struct.calcsize(layout)
    for place in range(start, start + count * step, step):
        tag, kind, values, field = struct.unpack_from(layout, data, place)
        if tag not in _STRUCTURE and tag not in VENDOR_TAGS:
            continue
        size = values * _BYTES_OF_TYPE.get(kind, 1)
        where = place + step - inline if size <= inline else struct.unpack(layout[0] + "IQ"[inline == 8], field)[0]
        yield tag, (kind, values, where)


def choose_page(directories: list[Directory]) -> int:
    """The deepest page of the largest size: raw data before an 8-bit copy that an info bar makes a little taller."""
    areas = [d.size[0] * d.size[1] * (not d.integer(SUBFILE, 0) & MASK_SUBFILE) for d in directories]
    frames = [i for i, area in enumerate(areas) if area >= SAME_SIZE * max(areas)]
    return max(frames, key=lambda i: (directories[i].bits, areas[i], -i))


def refuse(directory: Directory, file_size: int, limits: ReadLimits) -> None:
    """Judges a page by its directory alone. Raises MicrographError."""
    width, height = directory.size
    channels, bits = directory.integer(SAMPLES, 1), directory.bits
    check_size(width, height, channels=channels, itemsize=max(bits / 8, 1), limits=limits)
    wide, high = directory.segment_size
    check_size(wide, high, channels=channels, itemsize=max(bits / 8, 1), limits=limits)
    codec = directory.integer(COMPRESSION, UNCOMPRESSED)
    if codec not in CODECS:
        message = f"TIFF compression {codec} is not supported. Save the image with LZW, Deflate or no compression."
        raise MicrographError("unsupported_format", message)
    if any(value in (5, 6) for value in directory.integers(SAMPLE_FORMAT, first=8)):
        raise MicrographError("unsupported_format", "The TIFF holds complex numbers. Save their magnitude instead.")
    _refuse_segments(directory, file_size)
    if codec != JPEG:
        return
    # A JPEG segment sizes its own output, so its frame header must agree with the strip or tile it fills.
    tags = (TILE_OFFSETS, TILE_COUNTS) if directory.tiled else (OFFSETS, COUNTS)
    for offset, count in zip(*(directory.integers(tag).tolist() for tag in tags), strict=False):
        size = jpeg_size(directory.data[offset : offset + count])
        if size is None or size[0] > wide + JPEG_BLOCK or size[1] > high + JPEG_BLOCK:
            raise MicrographError("unreadable", "A JPEG strip in the TIFF does not fit its place. Check the file.")


def _refuse_segments(directory: Directory, file_size: int) -> None:
    """Every strip or tile must lie inside the file and hold something: tifffile would fill a gap with zeros."""
    tags = (TILE_OFFSETS, TILE_COUNTS) if directory.tiled else (OFFSETS, COUNTS)
    (wide, high), (width, height) = directory.segment_size, directory.size
    needed = -(-width // wide) * -(-height // high)
    if needed > MAX_SEGMENTS:
        raise MicrographError("too_large", f"The image is cut into {needed} pieces. Save it with larger strips.")
    offsets, counts = (directory.integers(tag).astype(np.uint64) for tag in tags)
    if offsets.size < needed or not offsets[:needed].all():
        raise MicrographError("unreadable", "The TIFF lacks some of its image data. Copy the file again.")
    if counts.size == 0 and directory.integer(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED:
        row = width * directory.bits * directory.integer(SAMPLES, 1) // 8
        counts = np.full(offsets.shape, row * high // (1 if needed == 1 else high), np.uint64)
    if counts.size < needed or not counts[:needed].all():
        raise MicrographError("unreadable", "The TIFF lacks some of its image data. Copy the file again.")
    if (
        max(int(offsets.max()), int(counts.max())) > file_size
        or int((offsets[:needed] + counts[:needed]).max()) > file_size
    ):
        raise MicrographError("unreadable", "The TIFF ends before its image data does. Copy the file again.")


def jpeg_size(data: memoryview) -> tuple[int, int] | None:
    """Width and height in the first JPEG frame header, or None."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, place + 5)
            return width, height
        standalone = marker == 0xFF or 0xD0 <= marker <= 0xD8
        place += 1 if marker == 0xFF else 2 if standalone else 2 + struct.unpack_from(">H", data, place + 2)[0]
    return None


def _pixels(data: bytes, index: int, directory: Directory, limits: ReadLimits) -> "np.ndarray[Any, np.dtype[Any]]":
    import tifffile

    try:
        # Only standard pages: the special cases for other instruments' files walk the file again without limits.
        with tifffile.TiffFile(io.BytesIO(data), is_lsm=False, is_scanimage=False, is_ndpi=False) as tif:
            page = tif.pages[index]
            _refuse_contradiction(page, directory, limits)
            pixels = page.asarray(maxworkers=1)
            pixels = np.moveaxis(pixels, 0, -1) if page.axes.startswith("S") else pixels
    except DECODER_ERRORS as error:
        raise undecodable("TIFF", error) from error
    if pixels.dtype.kind not in "buif" or pixels.ndim not in ((2,) if pixels.dtype.kind == "b" else (2, 3)):
        raise MicrographError("unsupported_format", f"TIFF pixels of type {pixels.dtype} are not supported.")
    return np.asarray(pixels)


def _opaque(
    channels: "np.ndarray[Any, np.dtype[Any]]", directory: Directory
) -> "np.ndarray[Any, np.dtype[Any]] | None":
    """Where something is to be seen, by the alpha channel that follows the colours, or None."""
    colours = 3 if directory.integer(PHOTOMETRIC, 1) == RGB_COLOUR else 1
    alpha = ALPHA & set(directory.integers(EXTRA_SAMPLES, first=1).tolist())
    if not alpha or channels.shape[2] != colours + 1:
        return None
    return opaque_part(channels[..., colours])


def _refuse_contradiction(page: Any, directory: Directory, limits: ReadLimits) -> None:
    """tifffile must see the page that was judged: a tag that stands twice can be read in two ways."""
    tile = (page.tilewidth, page.tilelength) if page.is_tiled else None
    if (
        (page.imagewidth, page.imagelength) != directory.size
        or tile != (directory.segment_size if directory.tiled else None)
        or page.compression != directory.integer(COMPRESSION, UNCOMPRESSED)
        or page.bitspersample != directory.bits
        or page.nbytes > limits.max_decoded_bytes
    ):
        raise MicrographError("unreadable", "The TIFF page contradicts itself. The file is damaged.")
    if page.imagedepth != 1:
        raise MicrographError("unsupported_format", "The TIFF page is a volume. Save it as one page per slice.")


def _grey(
    pixels: "np.ndarray[Any, np.dtype[Any]]", directory: Directory, notes: list[str]
) -> "np.ndarray[Any, np.dtype[Any]]":
    photometric, bits = directory.integer(PHOTOMETRIC, 1), directory.bits
    if pixels.dtype.kind == "b" or (bits == 1 and pixels.ndim == 2):
        grey = np.where(pixels, np.uint8(255), np.uint8(0))
        return np.invert(grey) if photometric == WHITE_IS_ZERO else grey
    if photometric == PALETTE_COLOUR and pixels.ndim == 2:
        return _mapped(pixels, directory.integers(PALETTE), bits)
    if pixels.ndim == 3:
        pixels = _one_channel(pixels, directory, notes)
    return inverted(pixels, bits) if photometric == WHITE_IS_ZERO else pixels


def _one_channel(
    pixels: "np.ndarray[Any, np.dtype[Any]]", directory: Directory, notes: list[str]
) -> "np.ndarray[Any, np.dtype[Any]]":
    photometric, channels = directory.integer(PHOTOMETRIC, 1), pixels.shape[2]
    jpeg_colour = directory.integer(COMPRESSION, UNCOMPRESSED) == JPEG and photometric == YCBCR  # decoded to RGB
    if (photometric == RGB_COLOUR or jpeg_colour) and channels >= 3:
        return luminance(pixels)
    if photometric == SEPARATED and channels >= 4 and pixels.dtype.kind == "u":
        return luminance(cmyk_to_rgb(pixels))
    if photometric not in (YCBCR, CIELAB, ICCLAB) and channels > 2:
        notes.append(f"{channels} channels: the first was read.")
    return np.ascontiguousarray(pixels[..., 0])  # Y of YCbCr and L of Lab are the grey value


def _mapped(
    pixels: "np.ndarray[Any, np.dtype[Any]]", palette: "np.ndarray[Any, np.dtype[Any]]", bits: int
) -> "np.ndarray[Any, np.dtype[Any]]":
    """Palette indices as 8-bit grey. A palette's entries are 16 bits wide; some writers fill only the lower 8."""
    size = 1 << bits
    if palette.size < 3 * size or bits > 16:
        raise MicrographError("unreadable", "The TIFF's palette is too short. The file is damaged.")
    table = palette[: 3 * size].reshape(3, size).T
    table = (table if table.max(initial=0) < 256 else table >> 8).astype(np.uint8)  # [size, 3]
    return np.asarray(luminance(table[None])[0][pixels])


@contextmanager
def _heard(notes: list[str]) -> Iterator[None]:
    """Keeps tifffile's log lines of this thread off the screen; the first one becomes a note."""
    logger, thread = logging.getLogger("tifffile"), threading.get_ident()
    lines: list[str] = []

    def listen(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        if record.levelno >= logging.WARNING:
            lines.append(record.getMessage())
        return False

    logger.addFilter(listen)
    try:
        yield
    finally:
        logger.removeFilter(listen)
    if lines:
        notes.append(f"The TIFF is irregular ({len(lines)} remark(s) while decoding); check the picture.")

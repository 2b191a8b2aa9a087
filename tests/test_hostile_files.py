"""Damaged and malicious files by the thousand: each is read or refused with a code, in time, within memory.

The files are read in the server's sandbox, whose limits are the measure: a crash would come back as `reader_died`, a
hang as `too_slow`, more than 1 GiB as a memory error.
"""

import io
import random
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from assistant.errors import MicrographError
from assistant.micrograph import find_micrographs, read_micrograph, to_model_input
from data_gen.drawing.vendor_files import HOUSE, SITE, instrument_of, write_vendor
from serve.desk.sandbox import Sandbox

DATA = Path(__file__).parents[2] / "shared" / "data"
LARGEST_SEED = 1_600_000
WITHOUT_OCR = (
    "import sys\nfrom assistant.readers import ocr\nocr._models = lambda: None\n"
    "from serve.desk.sandbox import main\nmain(int(sys.argv[1]), int(sys.argv[2]))\n"
)
"""Decoders and parsers are what is under test; loading the recogniser alone takes seconds."""
KNOWN = {
    "empty_file", "too_large", "too_many_pages", "no_such_page", "unsupported_format", "needs_extra", "unreadable",
}  # fmt: skip


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def seeds(folder: Path) -> list[bytes]:
    """A small file of every format, depth, codec and vendor."""
    rng = np.random.default_rng(3)
    grey = rng.integers(0, 256, (70, 90)).astype(np.uint8)
    deep, colour = grey.astype(np.uint16) * 257, np.stack([grey] * 3, -1)
    found = [
        tiff(deep), tiff(deep, byteorder=">"), tiff(deep, bigtiff=True), tiff(grey.astype(np.float16)),
        tiff(grey.astype(np.float64)), tiff(deep, compression="lzw", rowsperstrip=7, predictor=True),
        tiff(deep, compression="zlib", tile=(32, 32)), tiff(deep, compression="zstd"),
        tiff(grey, compression="packbits"), tiff(grey > 99, photometric="miniswhite"),
        tiff(colour, photometric="rgb", compression="jpeg"), tiff(colour, photometric="rgb", planarconfig="separate"),
        tiff(np.stack([deep] * 3), photometric="minisblack", description="ImageJ=1.54\nunit=nm\nimages=3\n"),
        tiff(deep, description='<?xml version="1.0"?><OME><Image><Pixels SizeX="90"/></Image></OME>'),
        tiff(grey, photometric="palette", colormap=np.arange(768, dtype=np.uint16).reshape(3, 256)),
        encoded(Image.fromarray(deep), "PNG"), encoded(Image.fromarray(grey).convert("P"), "PNG"),
        encoded(Image.fromarray(colour).convert("RGBA"), "PNG"), encoded(Image.fromarray(grey), "JPEG"),
        encoded(Image.fromarray(colour), "JPEG", progressive=True),
        encoded(Image.fromarray(colour).convert("CMYK"), "JPEG"),
        encoded(Image.fromarray(grey), "BMP"), encoded(Image.fromarray(colour), "BMP"),
        bytes(208) + b"MAP " + bytes(900), b"\0\0\0\x03" + bytes(900), b"\x89HDF\r\n\x1a\n" + bytes(900),
        b"II\x97\x01" + bytes(900),
    ]  # fmt: skip
    for kind in (*HOUSE, *SITE):
        info = instrument_of(kind, rng, width=90, nm_per_pixel=4.0, backscattered=False)
        bits = deep if kind in ("thermo16", "tescan16") else grey
        found.append(write_vendor(folder / kind, bits, kind=kind, nm_per_pixel=4.0, instrument=info).path.read_bytes())
    if DATA.is_dir():
        real = [p for p in find_micrographs(DATA / "vendor_meta") if p.stat().st_size <= LARGEST_SEED]
        found += [p.read_bytes() for p in real[::4]]
    return found


def mutant(data: bytes, rng: random.Random) -> bytes:
    """One kind of damage: bytes, numbers, a lost end, a lost, doubled or foreign piece; headers are hit more often."""
    out = bytearray(data)
    reach = rng.choice((64, 400, 4000, len(out)))
    place = rng.randrange(min(reach, len(out)))
    match rng.randrange(6):
        case 0:
            for _ in range(rng.choice((1, 2, 8, 32))):
                out[rng.randrange(min(reach, len(out)))] = rng.randrange(256)
        case 1:
            number = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(2**32)))
            out[place : place + 4] = struct.pack(rng.choice("<>") + "I", number)
        case 2:
            del out[rng.randrange(len(out)) :]
        case 3:
            del out[place : place + rng.choice((1, 2, 16, 500))]
        case 4:
            out[place:place] = out[place : place + rng.choice((1, 2, 16, 500))]
        case _:
            out[place : place + 16] = rng.randbytes(16)
    return bytes(out)


def survived(folder: Path, count: int) -> tuple[Counter[str], int]:
    """How `count` mutants ended, and the most memory that their reader held [KiB].

    Fails at the first that ends in another way than read or refused with a known code.
    """
    rng, ends, originals, most = random.Random(11), Counter[str](), seeds(folder), 0
    with Sandbox(workers=1, deadline_s=5, program=(sys.executable, "-B", "-c", WITHOUT_OCR)) as sandbox:
        for number in range(count):
            data = mutant(originals[number % len(originals)], rng)
            end = "read"
            try:
                to_model_input(sandbox.read(data), 16)
            except MicrographError as error:
                end = error.code
            assert end in {"read", *KNOWN}, f"mutant {number}: {end}"
            ends[end] += 1
            if number % 50 == 49:
                most = max(most, held_by_children())
    return ends, most


def held_by_children() -> int:
    """The most memory that any living child of this process has held [KiB]."""
    children = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    states = [Path(f"/proc/{pid}/status").read_text() for pid in children]
    return max((int(line.split()[1]) for state in states for line in state.splitlines() if "VmHWM" in line), default=0)


def test_mutants(tmp_path: Path) -> None:
    """Fails if an exception of a decoder escapes, as the worker then dies."""
    ends, most = survived(tmp_path, 200)
    assert ends["read"] > 20
    assert ends["unreadable"] > 20
    assert 2**14 < most < 2**20  # [KiB]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_mutants(tmp_path: Path) -> None:
    ends, most = survived(tmp_path, 10_000)
    assert sum(ends.values()) == 10_000
    assert most < 2**20  # [KiB]
    print(dict(ends))  # noqa: T201  (the figure for the report)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def directory(entries: dict[int, tuple[int, int, int]], following: int = 0) -> bytes:
    body = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def page(
    width: int, height: int, *, samples: int = 1, bits: int = 8, strips: int = 1, codec: int = 1
) -> dict[int, tuple[int, int, int]]:
    return {
        256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, bits), 259: (3, 1, codec), 262: (3, 1, 1),
        273: (4, strips, 8), 277: (3, 1, samples), 278: (4, 1, max(1, height // strips)), 279: (4, strips, 100),
    }  # fmt: skip


def bombs() -> Iterator[tuple[str, bytes]]:
    """Files that are small and claim to be large, or that never end."""
    sides = [(30_000, 30_000), (2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (2**20, 2**20), (60_000, 4_000)]
    sides += [(12_000, 12_000), (17, 2**24)]
    for width, height in sides:
        for depth, colour in ((1, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 3), (8, 4), (8, 6), (16, 6)):
            yield f"png {width}x{height} {depth}/{colour}", png(width, height, depth, colour)
        for samples, bits in ((1, 1), (1, 8), (1, 16), (1, 64), (3, 8), (4, 16), (1000, 8), (65535, 8)):
            for order, codec in ((b"II*\0\x08\0\0\0", 1), (b"II*\0\x08\0\0\0", 8)):
                entries = page(width, height, samples=samples, bits=bits, codec=codec)
                yield f"tiff {width}x{height} {samples}x{bits} {codec}", order + directory(entries)
        yield (
            f"bmp {width}x{height}",
            b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, width, height, 1, 24, *[0] * 6),
        )
    for samples in (8, 100, 60_000):
        yield f"samples {samples}", b"II*\0\x08\0\0\0" + directory(page(8000, 8000, samples=samples))
    for count in (1001, 5000, 20_000, 60_000):
        chain = b"".join(struct.pack("<HI", 0, 8 + 6 * (i + 1)) for i in range(count))
        yield f"{count} pages", b"II*\0" + struct.pack("<I", 8) + chain
    for back in (8, 0x7FFFFFFF, 9, 4):
        yield f"next page at {back}", b"II*\0\x08\0\0\0" + directory(page(8, 8), back)
    for strips in (70_000, 2**20, 2**31, 2**32 - 1):
        yield f"{strips} strips", b"II*\0\x08\0\0\0" + directory(page(1000, 2**17, strips=strips))
    for entries in (513, 65535):
        yield f"{entries} tags", b"II*\0\x08\0\0\0" + struct.pack("<H", entries) + bytes(12 * entries)
    for size in (10**6, 60 * 10**6):
        stream = zlib.compress(bytes(size), 9)
        yield (
            f"deflate {size}",
            b"II*\0\x08\0\0\0"
            + directory(page(64, 64, codec=8) | {273: (4, 1, 200), 279: (4, 1, len(stream))}).ljust(192, b"\0")
            + stream,
        )
    stream = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    scan = stream[stream.rindex(b"\xff\xda") : -2]
    for scans in (200, 1000):
        yield f"{scans} scans", stream[:-2] + scan * scans + stream[-2:]
    for size in ((65_500, 65_500), (65_500, 3000)):
        frame = stream.index(b"\xff\xc2") + 5
        yield f"jpeg {size}", stream[:frame] + struct.pack(">HH", *size) + stream[frame + 4 :]


def ancillary() -> Iterator[tuple[str, bytes]]:
    """Small pictures that carry a large lump beside their pixels."""
    lump = zlib.compress(bytes(60_000_000), 9)
    for name, body in ((b"zTXt", b"k\0\0" + lump), (b"iTXt", b"k\0\1\0\0\0" + lump), (b"iCCP", b"k\0\0" + lump)):
        for times in (1, 20, 50):
            yield f"{times} {name.decode()}", png(30, 30, 8, 0, *[chunk(name, body)] * times)
    exif = encoded(Image.new("L", (30, 30)), "JPEG")
    marker = b"\xff\xe1" + struct.pack(">H", 65_535) + b"Exif\0\0" + bytes(65_527)
    yield "500 EXIF segments", exif[:2] + marker * 500 + exif[2:]
    entries = page(30, 30) | {270: (2, 2**31, 8), 34682: (2, 2**31, 8), 700: (1, 2**32 - 1, 8)}
    yield "tags of 2 GiB", b"II*\0\x08\0\0\0" + directory(entries) + bytes(1000)


def test_two_hundred_bombs() -> None:
    """From the header, each in under a second of CPU. Seen failing without `check_size`."""
    told = dict(bombs())
    assert len(told) >= 200
    slow = []
    for name, data in told.items():
        start = time.thread_time()
        with pytest.raises(MicrographError) as caught:
            read_micrograph(data)
        assert caught.value.code in ({"too_large"} if name.startswith(("png", "bmp", "jpeg")) else KNOWN), name
        slow += [name] if time.thread_time() - start > 1 else []
    assert slow == []


def test_ancillary_bombs() -> None:
    """The pixels are small: they are read, or the file is refused, and the lump is never unpacked."""
    for name, data in ancillary():
        start, grown, end = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "read"
        try:
            assert read_micrograph(data).pixels.shape == (30, 30)
        except MicrographError as error:
            end = error.code
        assert end in {"read", *KNOWN}, name
        assert time.thread_time() - start < 1, name
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown < 200 * 2**10, name  # [KiB]

"""The micrograph reader: decoding, limits, windowing, model input, info bar; hostile files end in one exception."""

import io
import json
import logging
import os
import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

from assistant.errors import MicrographError
from assistant.micrograph import (
    Calibration,
    Instrument,
    Micrograph,
    ReadLimits,
    Window,
    find_micrographs,
    read_micrograph,
    to_model_input,
)

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real micrographs are not beside the checkout")
LABELLED = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)  # no symmetry maps it onto itself


def noise(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(110, 25, (height, width)).clip(0, 255).astype(np.uint8)


def with_bar(content: np.ndarray, *, rows: int = 40, fill: int = 0, ink: int = 255, top: bool = False) -> np.ndarray:
    """`content` with a drawn info bar: text, a scale bar, nothing else."""
    bar = Image.new("L", (content.shape[1], rows), fill)
    pen = ImageDraw.Draw(bar)
    pen.text((8, 12), "10.0 kV  WD 4.1 mm  SE", fill=ink)
    pen.rectangle((content.shape[1] - 120, 8, content.shape[1] - 21, 11), fill=ink)
    parts = (np.asarray(bar), content) if top else (content, np.asarray(bar))
    return np.vstack(parts)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff_bytes(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def code_of(source: Path | bytes, **options: object) -> str:
    with pytest.raises(MicrographError) as caught:
        read_micrograph(source, **options)
    message = caught.value.message
    assert message.endswith(".")
    assert "\n" not in message
    assert "\x1b" not in message
    return caught.value.code


@pytest.fixture
def alarm() -> Iterator[None]:
    """Fails a test that hangs, even inside C code that holds no signal."""
    timer = threading.Timer(20, os._exit, (70,))
    timer.start()
    yield
    timer.cancel()


class TestPixels:
    """What the file's samples mean as display values."""

    @pytest.mark.parametrize(
        "pixels",
        [
            np.arange(64 * 48, dtype=np.uint8).reshape(48, 64),
            np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21,
            np.arange(64 * 48, dtype=np.int16).reshape(48, 64) - 1000,
            np.arange(64 * 48, dtype=np.uint32).reshape(48, 64) * 1_000_000,
            np.linspace(-1, 1, 64 * 48, dtype=np.float32).reshape(48, 64),
            np.linspace(-1, 1, 64 * 48, dtype=np.float64).reshape(48, 64),
            np.linspace(0, 1, 64 * 48).astype(np.float16).reshape(48, 64),
        ],
        ids=lambda p: str(p.dtype),
    )
    @pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}], ids=["", "big", "msb"])
    def test_depth_is_kept(self, pixels: np.ndarray, options: dict[str, object]) -> None:
        """A 16-bit or float image went through an 8-bit intermediate and came out white."""
        m = read_micrograph(tiff_bytes(pixels, photometric="minisblack", **options))
        assert m.pixels.dtype == pixels.dtype
        np.testing.assert_array_equal(m.pixels, pixels)

    @pytest.mark.parametrize("codec", ["lzw", "zlib", "packbits", "zstd"])
    def test_lossless_codecs(self, codec: str) -> None:
        pixels = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21
        data = tiff_bytes(pixels, compression=codec, predictor=codec in ("lzw", "zlib"), rowsperstrip=5)
        np.testing.assert_array_equal(read_micrograph(data).pixels, pixels)

    def test_tiles(self) -> None:
        pixels = np.arange(100 * 70, dtype=np.uint16).reshape(70, 100)
        np.testing.assert_array_equal(read_micrograph(tiff_bytes(pixels, tile=(32, 32))).pixels, pixels)

    def test_jpeg_in_tiff(self) -> None:
        """Colour JPEG in TIFF is YCbCr; read as RGB the grey would come from the wrong channels."""
        smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
        rgb = np.stack([smooth, smooth // 2, 255 - smooth], axis=-1)
        data = tiff_bytes(rgb, photometric="rgb", compression="jpeg", compressionargs={"level": 98})
        expected = rgb @ np.array([0.299, 0.587, 0.114])
        assert np.abs(read_micrograph(data).pixels - expected).max() < 6

    def test_png_16_bit(self) -> None:
        """Pillow's convert() clips 16-bit grey to 8 bits."""
        pixels = np.array([[300, 4095], [65535, 0]], np.uint16)
        m = read_micrograph(encoded(Image.fromarray(pixels), "PNG"))
        assert m.pixels.dtype == np.uint16
        np.testing.assert_array_equal(m.pixels, pixels)

    @pytest.mark.parametrize("channels", [2, 3, 4])
    def test_deep_colour_png(self, channels: int) -> None:
        """300 and 301 of 65535 stay apart; Pillow would keep eight of the sixteen bits."""
        import imagecodecs

        grey = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21
        picture = np.dstack([grey] * channels)
        picture[..., channels - 1] = 65535 if channels != 3 else grey
        m = read_micrograph(imagecodecs.png_encode(picture))
        assert m.pixels.dtype == np.uint16
        assert np.array_equal(m.pixels, grey)

    @pytest.mark.parametrize("kind", ["PNG", "BMP"])
    @pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "RGBA"])
    def test_modes(self, kind: str, mode: str) -> None:
        """Grey saved as colour, palette or one bit comes back as the same grey."""
        grey = Image.fromarray(np.array([[0, 255, 255], [255, 0, 255]], np.uint8))
        image = grey.convert("RGB").convert("RGBA") if mode == "RGBA" else grey.convert(mode)
        np.testing.assert_array_equal(read_micrograph(encoded(image, kind)).pixels, np.asarray(grey))

    def test_jpeg_cmyk(self) -> None:
        """Ink and light are opposites: CMYK read as RGBA comes out negative."""
        image = Image.new("CMYK", (32, 32), (0, 0, 0, 200))
        assert abs(int(read_micrograph(encoded(image, "JPEG")).pixels[16, 16]) - 55) <= 3

    def test_tiff_cmyk(self) -> None:
        inks = np.zeros((8, 8, 4), np.uint8)
        inks[..., 3] = 200
        assert (read_micrograph(tiff_bytes(inks, photometric="separated")).pixels == 55).all()

    def test_colour_is_luminance(self) -> None:
        rgb = np.zeros((4, 6, 3), np.uint8)
        rgb[:, :2, 0] = rgb[:, 2:4, 1] = rgb[:, 4:, 2] = 255
        for data in (tiff_bytes(rgb, photometric="rgb"), encoded(Image.fromarray(rgb), "PNG")):
            np.testing.assert_array_equal(read_micrograph(data).pixels[0], [76, 76, 150, 150, 29, 29])

    def test_planar_rgb(self) -> None:
        rgb = np.zeros((3, 40, 60), np.uint8)
        rgb[1] = 255
        m = read_micrograph(tiff_bytes(rgb, photometric="rgb", planarconfig="separate"))
        assert m.pixels.shape == (40, 60)
        assert (m.pixels == 150).all()

    def test_min_is_white(self) -> None:
        """A negative: bright particles become holes."""
        for pixels in (LABELLED, LABELLED.astype(np.uint16) * 100):
            m = read_micrograph(tiff_bytes(pixels, photometric="miniswhite"))
            np.testing.assert_array_equal(m.pixels, np.iinfo(pixels.dtype).max - pixels)

    def test_one_bit_tiff_both_ways(self) -> None:
        bits = np.array([[True] * 8 + [False] * 8] * 4)
        for photometric, left in (("minisblack", 255), ("miniswhite", 0)):
            m = read_micrograph(tiff_bytes(bits, photometric=photometric))
            assert m.pixels.dtype == np.uint8
            assert (m.pixels[:, :8] == left).all()
            assert (m.pixels[:, 8:] == 255 - left).all()

    def test_palette(self) -> None:
        """Palette indices are not grey values: this table is a negative."""
        table = np.stack([np.arange(255, -1, -1, dtype=np.uint16) * 257] * 3)
        m = read_micrograph(tiff_bytes(LABELLED, photometric="palette", colormap=table))
        np.testing.assert_array_equal(m.pixels, 255 - LABELLED)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation(self, orientation: int) -> None:
        """All eight ways of storing one picture read as that picture. Oracle: the definition in the TIFF 6 text,
        by which side row 0 and column 0 stand for."""
        stored = {
            1: LABELLED,
            2: LABELLED[:, ::-1],
            3: LABELLED[::-1, ::-1],
            4: LABELLED[::-1],
            5: LABELLED.T,
            6: np.rot90(LABELLED, 1),
            7: LABELLED.T[::-1, ::-1],
            8: np.rot90(LABELLED, -1),
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = tiff_bytes(np.ascontiguousarray(stored), extratags=[(274, 3, 1, orientation, True)])
        png = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
        np.testing.assert_array_equal(read_micrograph(data).pixels, LABELLED)
        np.testing.assert_array_equal(read_micrograph(png).pixels, LABELLED)

    def test_complex_is_refused(self) -> None:
        assert code_of(tiff_bytes(np.ones((8, 8), np.complex64))) == "unsupported_format"

    def test_volume_is_refused(self) -> None:
        data = tiff_bytes(np.zeros((32, 32, 32), np.uint8), tile=(16, 16, 16), volumetric=True)
        assert code_of(data) == "unsupported_format"


class TestPages:
    """One explicit page, and the reader says which."""

    def test_raw_before_its_8_bit_copy(self, tmp_path: Path) -> None:
        """JEM-2100 files lead with an 8-bit picture that is taller by its burnt-in bar; the raw data is page 1."""
        raw = np.arange(300 * 400, dtype=np.uint16).reshape(300, 400)
        with tifffile.TiffWriter(tmp_path / "two.tif") as writer:
            writer.write(with_bar(noise(300, 400), rows=30))
            writer.write(raw)
            writer.write(np.zeros((30, 40), np.float32))  # a thumbnail, however deep, is not the image
        m = read_micrograph(tmp_path / "two.tif")
        assert (m.page, m.pages) == (1, 3)
        np.testing.assert_array_equal(m.pixels, raw)
        assert any("3 pages: page 1" in warning for warning in m.warnings)

    def test_asked_page(self) -> None:
        stack = np.arange(5, dtype=np.uint8)[:, None, None] + np.zeros((5, 20, 30), np.uint8)
        data = tiff_bytes(stack, photometric="minisblack")
        assert (read_micrograph(data, page=3).pixels == 3).all()
        assert (read_micrograph(data).pixels == 0).all()
        assert code_of(data, page=5) == "no_such_page"
        assert code_of(data, page=-1) == "no_such_page"
        assert code_of(encoded(Image.fromarray(LABELLED), "PNG"), page=1) == "no_such_page"


class TestWindow:
    """Percentiles 0.1-99.9 of the content, the same everywhere."""

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
    def test_is_numpys_percentile(self, dtype: type) -> None:
        """The histogram shortcut must agree with numpy on odd sizes, where percentiles fall between two values."""
        pixels = np.random.default_rng(1).integers(3, 250, (37, 53)).astype(dtype)
        window = Micrograph(pixels, "").window()
        low, high = np.percentile(pixels.astype(np.float64), [0.1, 99.9])
        assert window == Window(pytest.approx(low), pytest.approx(high))

    def test_depths_stay_distinct(self) -> None:
        """300, 4095 and 65535 all became 255."""
        pixels = np.repeat(np.array([300, 4095, 65535], np.uint16), 400).reshape(30, 40)
        m = read_micrograph(tiff_bytes(pixels))
        assert m.window() == Window(300, 65535)
        assert np.unique(to_model_input(m, 30)[0]).size == 3
        shown = np.unique(m.to_display())
        assert shown.tolist() == [0, round(255 * 3795 / 65235), 255]

    def test_order_is_kept(self) -> None:
        """A 16-bit ramp keeps all its ranks but for the clipped 0.2 %."""
        ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        values, _ = to_model_input(Micrograph(ramp, ""), 256)
        steps = np.diff(values.ravel())
        assert (steps >= 0).all()
        assert np.unique(values).size > 65536 * 0.998

    def test_large_integers_do_not_merge(self) -> None:
        """float32 has 24 bits: two 32-bit values that differ by one would fall together before the window."""
        pixels = (np.arange(400, dtype=np.uint32) + 4_000_000_000).reshape(20, 20)
        assert np.unique(to_model_input(Micrograph(pixels, ""), 20)[0]).size >= 398

    def test_nan_and_infinities(self) -> None:
        """One NaN made the percentiles, and with them the whole picture, NaN."""
        pixels = np.linspace(0, 1, 3600, dtype=np.float32).reshape(60, 60)
        pixels[0, 0], pixels[1, 1], pixels[2, 2] = np.nan, np.inf, -np.inf
        m = read_micrograph(tiff_bytes(pixels))
        values, window = to_model_input(m, 60)
        assert 0 <= window.low < 0.01
        assert 0.99 < window.high <= 1
        assert np.isfinite(values).all()
        assert (values[1, 1], values[2, 2]) == (1, 0)
        assert any("3 pixel(s) are NaN" in warning for warning in m.warnings)

    @pytest.mark.parametrize("value", [0, 7, np.nan])
    def test_constant(self, value: float) -> None:
        m = read_micrograph(tiff_bytes(np.full((50, 60), value, np.float32)))
        assert (to_model_input(m, 16)[0] == 0).all()
        assert any("constant" in warning for warning in m.warnings)
        json.dumps(m.info(), allow_nan=False)

    def test_rare_signal_is_not_constant(self) -> None:
        """Both percentiles fall on the background where less than 0.1 % of the pixels are bright."""
        pixels = np.full((100, 100), 5, np.uint8)
        pixels[50, 50:53] = 200
        assert Micrograph(pixels, "").window() == Window(5, 200)

    @pytest.mark.filterwarnings("error")
    def test_extreme_floats_warn_nobody(self) -> None:
        pixels = np.array([[-1.7e308, 1.7e308], [0, 1]])
        m = read_micrograph(tiff_bytes(pixels, photometric="miniswhite"))
        assert np.isfinite(to_model_input(m, 2)[0]).all()


class TestModelInput:
    """Content, centred square, anti-aliased."""

    def test_identity_at_equal_size(self) -> None:
        pixels = noise(64, 64)
        values, window = to_model_input(Micrograph(pixels, ""), 64)
        expected = ((pixels - window.low) / (window.high - window.low)).clip(0, 1)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected, atol=1e-6)

    def test_centre_of_the_content_without_the_bar(self) -> None:
        pixels = np.zeros((120, 200), np.uint8)
        pixels[:100, 50:150] = 255
        pixels[:100, ::7] //= 2
        m = Micrograph(pixels, "", banner=(100, 120))
        values, _ = to_model_input(m, 100)
        np.testing.assert_allclose(values, pixels[:100, 50:150] / 255, atol=1e-6)

    def test_bar_does_not_move_the_window(self) -> None:
        """A white bar would set the upper end and leave the specimen dark."""
        content = noise(200, 300)
        m = Micrograph(np.vstack([content, np.full((30, 300), 255, np.uint8)]), "", banner=(200, 230))
        assert m.window() == Micrograph(content, "").window()

    @pytest.mark.parametrize("size", [16, 50, 100])
    def test_fine_stripes_average(self, size: int) -> None:
        """Picking every n-th pixel turns stripes of one pixel into black, white or moire; averaging makes them grey."""
        pixels = np.tile(np.array([0, 255], np.uint8), (200, 100))
        values, _ = to_model_input(Micrograph(pixels, ""), size)
        inner = values[2:-2, 2:-2]
        assert np.abs(inner - 0.5).max() < 0.1

    def test_mean_is_kept(self) -> None:
        pixels = noise(500, 700, seed=3)
        small, window = to_model_input(Micrograph(pixels, ""), 56)
        full = ((pixels[:, 100:600] - window.low) / (window.high - window.low)).clip(0, 1)
        assert small.mean() == pytest.approx(full.mean(), abs=0.01)
        assert small.min() >= 0
        assert small.max() <= 1

    def test_tiny_grows(self) -> None:
        values, _ = to_model_input(Micrograph(LABELLED, ""), 32)
        assert values.shape == (32, 32)


class TestBanner:
    """Rows of the burnt-in info bar, from pixels."""

    @pytest.mark.parametrize(("fill", "ink"), [(0, 255), (255, 0), (96, 255)])
    @pytest.mark.parametrize("top", [False, True])
    def test_found(self, fill: int, ink: int, top: bool) -> None:
        picture = with_bar(noise(300, 400), fill=fill, ink=ink, top=top)
        m = read_micrograph(encoded(Image.fromarray(picture), "PNG"))
        assert m.banner == ((0, 40) if top else (300, 340))
        assert m.content.shape == (300, 400)

    def test_found_in_jpeg_and_16_bit(self) -> None:
        """JPEG ringing blurs the fill; 10-bit content beside a 16-bit bar looks black in 8 bits."""
        picture = with_bar(noise(300, 400))
        jpeg = read_micrograph(encoded(Image.fromarray(picture), "JPEG", quality=80))
        assert jpeg.banner == (300, 340)
        deep = picture.astype(np.uint16) * 257
        deep[:300] //= 64
        assert read_micrograph(tiff_bytes(deep)).banner == (300, 340)

    def test_border_line_belongs_to_the_bar(self) -> None:
        picture = with_bar(noise(300, 400))
        picture[300:302] = 255
        assert read_micrograph(encoded(Image.fromarray(picture), "PNG")).banner == (300, 340)

    @pytest.mark.parametrize(
        "picture",
        [
            noise(300, 400),
            np.zeros((300, 400), np.uint8),
            np.vstack([noise(250, 400), np.zeros((50, 400), np.uint8)]),
            np.tile(np.arange(200, dtype=np.uint8), (300, 2)),
            np.kron(np.indices((30, 40)).sum(0) % 2, np.full((10, 10), 255)).astype(np.uint8),
            np.repeat(np.arange(30) % 2 * 255, 10)[:, None].astype(np.uint8) + np.zeros((1, 400), np.uint8),
        ],
        ids=["noise", "black", "black band without text", "gradient", "chequers", "stripes"],
    )
    def test_not_invented(self, picture: np.ndarray) -> None:
        """Cropping a specimen that only looks flat would hide it from the model."""
        assert read_micrograph(encoded(Image.fromarray(picture), "PNG")).banner is None

    def test_particles_on_flat_ground(self) -> None:
        """A noise-free picture with particles along its lower edge resembles text on a fill."""
        image = Image.new("L", (400, 300), 20)
        pen = ImageDraw.Draw(image)
        for x in range(10, 390, 30):
            pen.ellipse((x, 265, x + 14, 279), fill=220)
        pen.rectangle((60, 40, 300, 240), fill=220)
        assert read_micrograph(encoded(image, "PNG")).banner is None


class TestFiles:
    """What is not a picture, or not a file, ends in a code and never hangs."""

    def test_missing(self, tmp_path: Path) -> None:
        assert code_of(tmp_path / "no.tif") == "not_found"
        assert code_of(tmp_path / "no\0.tif") == "not_found"
        assert code_of(tmp_path / ("x" * 300 + ".tif")) == "not_found"

    @pytest.mark.usefixtures("alarm")
    def test_pipe_folder_link_device(self, tmp_path: Path) -> None:
        """Opening a pipe waits for a writer for ever; a link may lead out of a watched folder."""
        os.mkfifo(tmp_path / "pipe.tif")
        (tmp_path / "link.tif").symlink_to("/etc/hostname")
        for source in (tmp_path / "pipe.tif", tmp_path, tmp_path / "link.tif", Path("/dev/zero")):
            assert code_of(source) == "not_a_file"

    def test_empty_and_foreign(self, tmp_path: Path) -> None:
        assert code_of(b"") == "empty_file"
        for data in (b"x", b"%PDF-1.7", b"<html>", b"%!PS-Adobe-3.0 EPSF", b"PK\3\4", os.urandom(64)):
            (tmp_path / "wrong.tif").write_bytes(data)
            assert code_of(tmp_path / "wrong.tif") == "unsupported_format"

    def test_name_cannot_talk_to_the_terminal(self, tmp_path: Path) -> None:
        path = tmp_path / "\x1b[31mred\u202e\n.tif"
        path.write_bytes(b"nothing")
        with pytest.raises(MicrographError) as caught:
            read_micrograph(path)
        assert caught.value.message.isprintable()

    def test_growing_file_is_not_half_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A copy in progress read as a whole picture would be cached under the hash of its first half."""
        path = tmp_path / "copy.png"
        whole = encoded(Image.fromarray(noise(200, 200)), "PNG")
        path.write_bytes(whole)
        fstat = os.fstat

        def grown(descriptor: int) -> os.stat_result:
            found = fstat(descriptor)
            with path.open("ab") as file:
                file.write(b"more")
            return found

        monkeypatch.setattr(os, "fstat", grown)
        assert code_of(path) == "unreadable"

    @pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
    def test_truncated(self, keep: float) -> None:
        """tifffile fills missing strips with zeros: half a picture would pass for a whole one."""
        for data in (
            tiff_bytes(noise(200, 200), rowsperstrip=8),
            tiff_bytes(noise(200, 200), rowsperstrip=8, compression="lzw"),
            encoded(Image.fromarray(noise(200, 200)), "PNG"),
            encoded(Image.fromarray(noise(200, 200)), "JPEG"),
            encoded(Image.fromarray(noise(200, 200)), "BMP"),
        ):
            assert code_of(data[: int(len(data) * keep)]) == "unreadable"

    def test_find(self, tmp_path: Path) -> None:
        for name in ("b.TIF", "a.png", "sub/c.jpg", ".hidden.png", ".dir/d.png", "notes.txt", "a.png.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        (tmp_path / "loop").symlink_to(tmp_path)
        assert [str(p.relative_to(tmp_path)) for p in find_micrographs(tmp_path)] == ["a.png", "b.TIF", "sub/c.jpg"]

    def test_user_pixel_size(self) -> None:
        data = encoded(Image.fromarray(LABELLED), "PNG")
        assert read_micrograph(data, pixel_size_nm=2.5).calibration == Calibration(2.5, "user", 1.0)
        for wrong in (0.0, -1.0, float("nan"), float("inf"), 1e9):
            assert code_of(data, pixel_size_nm=wrong) == "bad_pixel_size"


def png_header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    body = zlib.compress(bytes(1000))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def raw_tiff(entries: dict[int, tuple[int, int, int]], *, tail: bytes = b"", next_offset: int = 0) -> bytes:
    """A little-endian TIFF with one directory at offset 8; values must fit their entries."""
    body = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", next_offset) + tail


def plain_entries(width: int, height: int, **changes: int) -> dict[int, tuple[int, int, int]]:
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, 100),
    }
    return {**entries, **{int(tag[1:]): (4, 1, value) for tag, value in changes.items()}}


@pytest.mark.usefixtures("alarm")
class TestHostile:
    """Refused from the header, in time, with one exception type."""

    @pytest.mark.parametrize(
        "data",
        [
            png_header(60_000, 60_000),
            png_header(2**31 - 1, 2**31 - 1),
            png_header(13_000, 13_000, depth=1),
            png_header(9_000, 9_000, depth=16, colour=6),
            raw_tiff(plain_entries(60_000, 60_000)),
            raw_tiff(plain_entries(2**32 - 1, 2**32 - 1)),
            raw_tiff(plain_entries(8_000, 8_000, t277=8)),
            raw_tiff({**plain_entries(64, 64), 322: (4, 1, 2**31), 323: (4, 1, 2**31), 324: (4, 1, 8), 325: (4, 1, 9)}),
            b"BM" + struct.pack("<IIIIiiHHIIiiII", 200, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        ],
        ids=["png", "png max", "png 1-bit", "png rgba16", "tiff", "tiff max", "tiff channels", "tile", "bmp"],
    )
    def test_pixel_bomb(self, data: bytes) -> None:
        start = time.thread_time()  # a busy machine takes longer by the clock
        assert code_of(data) == "too_large"
        assert time.thread_time() - start < 1

    def test_limits_are_the_callers(self) -> None:
        data = tiff_bytes(noise(100, 100))
        assert code_of(data, limits=ReadLimits(max_pixels=9_999)) == "too_large"
        assert code_of(data, limits=ReadLimits(max_decoded_bytes=9_999)) == "too_large"
        assert code_of(data, limits=ReadLimits(max_bytes=9_999)) == "too_large"
        assert read_micrograph(data, limits=ReadLimits(max_pixels=10_000)).pixels.shape == (100, 100)

    def test_file_too_large_is_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "sparse.tif"
        with path.open("wb") as file:
            file.truncate(2**40)
        assert code_of(path) == "too_large"

    def test_page_bomb_and_loop(self) -> None:
        data = tiff_bytes(np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
        assert code_of(data, limits=ReadLimits(max_pages=2)) == "too_many_pages"
        assert code_of(raw_tiff(plain_entries(8, 8), next_offset=8)) == "unreadable"
        assert code_of(raw_tiff(plain_entries(8, 8), next_offset=2**31)) == "unreadable"
        many = b"".join(struct.pack("<HI", 0, 8 + 6 * (i + 1)) for i in range(20_000))
        assert code_of(b"II*\0" + struct.pack("<I", 8) + many) == "too_many_pages"

    def test_bigtiff_offset_beyond_any_file(self) -> None:
        assert code_of(b"II+\0" + struct.pack("<HHQ", 8, 0, 2**64 - 8)) == "unreadable"

    def test_many_strips(self) -> None:
        entries = {**plain_entries(1000, 100_000), 278: (4, 1, 1), 273: (4, 100_000, 8), 279: (4, 100_000, 8)}
        assert code_of(raw_tiff(entries)) == "too_large"

    def test_deflate_bomb(self) -> None:
        """A strip of 64 x 64 that inflates to 20 MB must not be inflated beyond its 4096 bytes."""
        stream = zlib.compress(bytes(20_000_000), 9)
        entries = plain_entries(64, 64, t259=8, t273=200, t279=len(stream))
        data = raw_tiff(entries)
        assert code_of(data + bytes(200 - len(data)) + stream) == "unreadable"

    def test_jpeg_strip_larger_than_its_place(self) -> None:
        """A JPEG stream brings its own size: 3000 x 3000 inside a 64 x 64 strip."""
        stream = encoded(Image.new("L", (3000, 3000)), "JPEG")
        entries = plain_entries(64, 64, t259=7, t273=200, t279=len(stream))
        data = raw_tiff(entries)
        assert code_of(data + bytes(200 - len(data)) + stream) == "unreadable"

    def test_doubled_tag(self) -> None:
        """The size that was judged must be the size that is decoded."""
        entries = sorted([*plain_entries(64, 64).items(), (256, (4, 1, 50_000)), (257, (4, 1, 50_000))])
        for order in (entries, sorted(entries, reverse=True)):
            body = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in order)
            data = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4 + 4096)
            assert code_of(data) in ("too_large", "unreadable")

    def test_unlisted_codec(self) -> None:
        assert code_of(raw_tiff(plain_entries(64, 64, t259=34712), tail=bytes(100))) == "unsupported_format"

    def test_missing_strips(self) -> None:
        for changes in ({"t273": 0}, {"t279": 0}, {"t279": 5000}):
            assert code_of(raw_tiff(plain_entries(64, 64, **changes), tail=bytes(4096))) == "unreadable"

    def test_progressive_jpeg_with_many_scans(self) -> None:
        """Every scan of a progressive JPEG walks the whole picture: 1500 empty ones take a minute."""
        data = encoded(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
        scan = data[data.rindex(b"\xff\xda") : -2]
        assert code_of(data[:-2] + scan * 600 + data[-2:]) == "too_large"

    def test_mutants(self) -> None:
        """Every damaged file is read or refused; nothing else comes out, and nothing is printed or warned."""
        rng = random.Random(5)
        picture = with_bar(noise(80, 96), rows=20)
        seeds = [
            tiff_bytes(picture),
            tiff_bytes(picture, compression="lzw", rowsperstrip=7, description="ImageJ=1.54\nunit=nm\n"),
            tiff_bytes(picture.astype(np.uint16), compression="zlib", predictor=True, tile=(32, 32)),
            tiff_bytes(np.stack([picture] * 3, -1), photometric="rgb", compression="jpeg"),
            tiff_bytes(picture.astype(np.float32), bigtiff=True),
            tiff_bytes(np.stack([picture] * 3), photometric="minisblack"),
            encoded(Image.fromarray(picture), "PNG"),
            encoded(Image.fromarray(picture).convert("P"), "BMP"),
            encoded(Image.fromarray(picture), "JPEG"),
        ]
        refused = 0
        for number in range(180):
            data = bytearray(seeds[number % len(seeds)])
            reach = 400 if number % 2 else len(data)  # headers are where the damage matters
            for _ in range(rng.choice((1, 2, 8))):
                data[rng.randrange(min(reach, len(data)))] = rng.randrange(256)
            try:
                to_model_input(read_micrograph(bytes(data)), 16)
            except MicrographError:
                refused += 1
        assert refused > 15


@pytest.mark.slow
def test_memory_stays_under_a_gibibyte(tmp_path: Path) -> None:
    """The largest image the limits let through, measured in its own process."""
    pixels = np.zeros((8192, 16384), np.uint8)
    pixels[::2] = np.arange(16384) % 251
    tifffile.imwrite(tmp_path / "large.tif", pixels, compression="zlib", compressionargs={"level": 1}, rowsperstrip=256)
    script = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from assistant.micrograph import read_micrograph, to_model_input\n"
        "to_model_input(read_micrograph(Path(sys.argv[1])), 224)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "large.tif")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert int(done.stdout) < 2**20  # [KiB]


def test_four_bit_negative() -> None:
    """A 4-bit MinIsWhite sample is mirrored over 0..15, not over the byte it is unpacked into."""
    data = raw_tiff(plain_entries(4, 2, t258=4, t262=0, t273=200, t279=4))
    m = read_micrograph(data + bytes(200 - len(data)) + b"\x01\x23\x45\xf0")
    np.testing.assert_array_equal(m.pixels, [[15, 14, 13, 12], [11, 10, 0, 15]])


def test_library_chatter_becomes_a_warning(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """tifffile logs about a wrong tag; that belongs to the picture's warnings, not on the screen."""
    entries = {**plain_entries(16, 16, t273=200, t279=256), 306: (2, 200, 2**30)}
    data = raw_tiff(entries)
    with caplog.at_level(logging.DEBUG):
        m = read_micrograph(data + bytes(200 - len(data)) + bytes(range(256)))
    assert any("irregular" in warning for warning in m.warnings)
    assert not [record for record in caplog.records if record.name == "tifffile"]
    assert capfd.readouterr() == ("", "")


def test_info_record() -> None:
    """The record of `maemi info --json`: these keys, in this order, and JSON without NaN."""
    m = read_micrograph(encoded(Image.fromarray(with_bar(noise(300, 400))), "PNG"), pixel_size_nm=4)
    record = m.info()
    assert list(record) == [
        "path", "sha256", "width", "height", "dtype", "pages", "pixel_size_nm", "pixel_size_source",
        "pixel_size_confidence", "vendor", "model", "hv_kv", "wd_mm", "magnification", "detector", "date", "banner",
        "sample_fraction", "window", "warnings",
    ]  # fmt: skip
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["width"], record["height"], record["banner"]) == (400, 340, [300, 340])
    assert (record["pixel_size_nm"], record["pixel_size_source"], record["path"]) == (4, "user", None)


def test_metadata_line() -> None:
    instrument = Instrument("thermo", "Helios G4", 5.0, 4.1, None, "ETD")
    m = Micrograph(LABELLED, "", calibration=Calibration(4.2, "tag", 0.99), instrument=instrument)
    assert m.metadata_line() == "Thermo Helios G4; 5 kV; WD 4.1 mm; ETD; 4.2 nm/px"
    assert Micrograph(LABELLED, "").metadata_line() == "not calibrated"


def test_import_is_cheap() -> None:
    """The command line imports this module before it knows whether a picture will be read."""
    wanted = "('PIL', 'tifffile', 'torch', 'scipy')"
    script = f"import sys, assistant.micrograph; print([m for m in {wanted} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def rows_with_bar(path: Path) -> tuple[int, int] | None:
    """Where the eye sees the info bar, by folder and size of the real data."""
    folder = path.relative_to(DATA).parts[:2]
    if folder[1] in ("cathode", "nanowire"):
        return (896, 960) if folder[1] == "cathode" else (890, 960)
    height = {"jeol": lambda h: (h * 15 // 16, h)}.get(folder[1])
    named = {
        "helios660_8bit.tif": (1024, 1103),
        "helios660_16bit_zeroed.tif": (442, 471),
        "hs_zeiss_1k.tif": (691, 768),
        "tescan_mira3_16bit.tif": (768, 888),
    }
    if height is None:
        return named.get(path.name)
    return height(read_height(path))


def read_height(path: Path) -> int:
    with Image.open(path) as image:
        return image.height


@pytest.mark.slow
@needs_data
def test_real_banners() -> None:
    """Every info bar of 583 files, to the row, and none where there is none (melt pools have black tops)."""
    paths = [path for folder in ("open_sem", "vendor_meta") for path in find_micrographs(DATA / folder)]
    assert len(paths) == 583
    found = {p: read_micrograph(p, read_bar=False).banner for p in paths}
    assert [(p.name, rows) for p, rows in found.items() if rows != rows_with_bar(p)] == []

"""The burnt-in scale bar: its length to a fraction of a pixel, its label, and when neither is believed.

A wrong calibration is worse than none: most tests say where there must be none.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from assistant.micrograph import Calibration, Micrograph, find_micrographs, read_micrograph
from assistant.readers import bar_text, label, ocr, scale_bar
from assistant.readers.label import BarReading
from assistant.readers.ocr import Line
from data_gen.drawing.vendor_files import instrument_of, with_bar

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real micrographs are not beside the checkout")
needs_ocr = pytest.mark.skipif(not ocr.available(), reason="the ocr extra is not installed")
SHAPES = ("block", "capped", "rounded caps", "ruler", "box", "halves", "ticks")


def drawn(shape: str, length: int, *, at: int = 300, width: int = 1024, light: bool = False) -> np.ndarray:
    """An info bar [64, width] whose scale bar's end marks are centred on pixels `at` and `at + length`."""
    image = Image.new("L", (width, 64), 255 if light else 0)
    pen, ink, end = ImageDraw.Draw(image), 0 if light else 255, at + length
    pen.text((20, 20), "10.0kV WD 4.1mm SE", fill=ink, font=ImageFont.load_default(size=16))
    if shape == "block":
        pen.rectangle((at, 8, end, 20), fill=ink)
    elif shape == "ticks":
        for k in range(11):
            x = round(at + k * length / 10)
            pen.rectangle((x - 1, 0, x + 1, 14 if k % 5 == 0 else 9), fill=ink)
    elif shape == "halves":
        gap = length // 3
        for left, right, cap in ((at, at + gap, at), (end - gap, end, end)):
            pen.rectangle((left, 29, right, 31), fill=ink)
            pen.rectangle((cap - 1, 26, cap + 1, 34), fill=ink)
    else:
        thick, cap = {"capped": (1, 1), "rounded caps": (2, 1), "ruler": (2, 3), "box": (1, 1)}[shape]
        pen.rectangle((at, 30, end, 30 + thick - 1), fill=ink)
        marks = np.linspace(at, end, 5 if length < 100 else 11).round().astype(int) if shape == "ruler" else (at, end)
        for x in marks:
            pen.rectangle((x - cap, 24, x + cap, 30 if shape == "box" else 36), fill=ink)
        if shape == "rounded caps":
            for x in (at - 2, end + 2):
                pen.rectangle((x, 30, x, 31), fill=ink)
    return np.asarray(image)


class TestLength:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("light", [False, True])
    @pytest.mark.parametrize("length", [60, 150, 401])
    def test_between_the_centres_of_the_end_marks(self, shape: str, light: bool, length: int) -> None:
        """The outer length has the caps too: 7 px of 60 for the ruler. Fails if `_cap` gives 0.

        A block has no marks: its own length counts.
        """
        (bar,) = scale_bar.find_bars(drawn(shape, length, light=light))
        assert bar.length == pytest.approx(length + (shape == "block"), abs=0.51)

    @pytest.mark.parametrize("shape", ["block", "ruler"])  # half of a line one pixel thick is too faint, and not found
    @pytest.mark.parametrize("share", [0.5, 0.77, 1.31])
    def test_resized_copy(self, shape: str, share: float) -> None:
        """Ends that fall between two pixels are found to a fraction of one."""
        band = Image.fromarray(drawn(shape, 300))
        small = band.resize((round(1024 * share), round(64 * share)), Image.Resampling.BILINEAR)
        bars = scale_bar.find_bars(np.asarray(small))
        assert bars[0].length == pytest.approx(300 * share, abs=1.2)

    def test_end_marks_may_reach_the_edge_of_the_info_bar(self) -> None:
        """TESCAN's do. Such a bar was taken for the fringe that JPEG leaves along the edge."""
        band = np.zeros((64, 600), np.uint8)
        band[38:40, 100:301] = band[:40, 100] = band[:40, 300] = 255
        band[18:40, 120:300:20] = 255
        (bar,) = scale_bar.find_bars(band)
        assert bar.length == pytest.approx(200, abs=0.51)

    def test_jpeg_and_16_bit(self) -> None:
        import io

        band, buffer = drawn("ruler", 300), io.BytesIO()
        Image.fromarray(band).save(buffer, "JPEG", quality=75)
        for pixels in (np.asarray(Image.open(buffer)), band.astype(np.uint16) * 257, band.astype(np.float32) / 255):
            assert scale_bar.find_bars(pixels)[0].length == pytest.approx(300, abs=0.6)

    @pytest.mark.parametrize("width", [200, 1024, 4096])
    def test_frames_text_and_noise_are_no_bars(self, width: int) -> None:
        image = Image.new("L", (width, 64), 0)
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, 0, width - 1, 63), outline=255)
        pen.line((width // 2, 0, width // 2, 63), fill=255)
        pen.line((width // 2, 30, width - 1, 30), fill=255)
        pen.rectangle((20, 10, 50, 40), fill=255)  # a logo
        pen.text((60, 20), "minimum _ -- Illill 1111", fill=255, font=ImageFont.load_default(size=14))
        assert scale_bar.find_bars(np.asarray(image)) == []
        noise = np.random.default_rng(0).integers(0, 255, (64, width)).astype(np.uint8)
        assert all(bar.length < 60 for bar in scale_bar.find_bars(noise))

    @pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf])
    def test_empty(self, value: float) -> None:
        assert scale_bar.find_bars(np.full((40, 100), value, np.float32)) == []


class TestLabel:
    @pytest.mark.parametrize(
        ("text", "nm"),
        [
            ("100 nm", 100), ("10.0um", 1e4), ("500 μm", 5e5), ("1 mm", 1e6), ("100µm UMN", 1e5), ("2.5 µm", 2500),
            ("WD 5mm", None), ("10.5mm", None), ("2.80 mm", None), ("13.25 mm", None), ("100", None), ("100 pm", None),
            ("1OO nm", None), ("100 nm/px", None), ("100 nmm", None), ("0 nm", None), ("100 n", None), ("100.nm", None),
        ],
    )  # fmt: skip
    def test_only_round_lengths_with_a_unit(self, text: str, nm: float | None) -> None:
        assert label._length(bar_text.tidy(text)) == nm

    @pytest.mark.parametrize(
        ("text", "times"),
        [
            ("x4.00k", [4000]), ("X 1,800", [1800]), ("Mag = 105 X", [105]), ("49 x", [49]), ("x500", [500]),
            ("10.0kV 11.2mm x4.00k SE(UL) 3/31/2025 16:05", [4000]), ("SEM MAG: 108 x", [108]), ("X 43", [43]),
            ("1280 x 960", []), ("Axis 5", []), ("x1,8", []), ("x", []), ("Mag = 10.50 K X", [10500]),
        ],
    )  # fmt: skip
    def test_magnification(self, text: str, times: list[float]) -> None:
        assert list(bar_text.magnifications([Line(text, 0, 0, 1, 1)])) == times

    def test_nearest_label_wins(self) -> None:
        """A working distance of a round number of millimetres stands in the same info bar."""
        (bar,) = scale_bar.find_bars(drawn("capped", 200, at=500))
        near, far = Line("1 µm", 560, 40, 600, 55), Line("4 mm", 300, 40, 340, 55)
        found = label._matched([bar], [far, near], 1024)
        assert found is not None
        assert found[1:] == (near, 1000)
        assert label._matched([bar], [Line("1 µm", 0, 40, 40, 55)], 1024) is None

    def test_two_as_near_are_none(self) -> None:
        (bar,) = scale_bar.find_bars(drawn("capped", 200, at=500))
        lines = [Line("1 µm", 500, 45, 540, 60), Line("2 µm", 600, 45, 640, 60)]
        assert label._matched([bar], lines, 1024) is None

    def test_lost_decimal_point(self) -> None:
        """ "10.0um" read as "100um" is ten times too much; the magnification beside it says so. Display 127 mm."""
        lines = [Line("x4.00k", 0, 0, 1, 1)]
        assert label._confidence(31_750, lines, None) == label.CONFIRMED
        assert label._confidence(317_500, lines, None) == 0
        assert label._confidence(317_500, [], 4000) == 0
        assert label._confidence(31_750, [], None) == label.UNCONFIRMED
        assert label._confidence(31_750, [Line("HFW 31.8 µm", 0, 0, 1, 1)], None) == label.CONFIRMED


def fake(monkeypatch: pytest.MonkeyPatch, reading: BarReading | None) -> list[int]:
    """Stands in for the recogniser, which a test of what follows from its word must not depend on."""
    calls: list[int] = []

    def read_scale(band: np.ndarray, **_: object) -> BarReading | None:
        calls.append(len(band))
        return reading

    monkeypatch.setattr("assistant.readers.calibration.read_scale", read_scale)
    return calls


def picture(folder: Path, *, bar: int = 200, sidecar: str = "", width: int = 1024) -> Path:
    content = np.random.default_rng(1).normal(110, 25, (768, width)).clip(0, 255).astype(np.uint8)
    path = folder / "a.png"
    Image.fromarray(np.vstack([content, drawn("capped", bar, width=width)])).save(path)
    if sidecar:
        text = f"[SemImageFile]\nDataSize={width}x768\nPixelSize={sidecar}\nAcceleratingVoltage=5000 Volt\n"
        path.with_suffix(".txt").write_text(text)
    return path


class TestCalibration:
    def test_fallback(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake(monkeypatch, BarReading(200, 1000, 0.9))
        m = read_micrograph(picture(tmp_path))
        assert (m.calibration, m.warnings) == (Calibration(5.0, "banner", 0.9), ())

    @pytest.mark.parametrize(
        ("reading", "said"),
        [
            (None, "could not be read"),
            (BarReading(200, 1000, 0.0), "contradicts"),
            (BarReading(49, 1000, 0.7), "too short"),
            (BarReading(23, 1000, 0.9), "too short"),
        ],
    )
    def test_none_with_a_reason(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: BarReading | None, said: str
    ) -> None:
        fake(monkeypatch, reading)
        m = read_micrograph(picture(tmp_path))
        assert m.calibration is None
        assert any(said in warning for warning in m.warnings)

    def test_not_read_where_metadata_and_bar_agree(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """200 px of 5 nm are a round length: the text need not be read, and `info` stays fast."""
        calls = fake(monkeypatch, BarReading(200, 1000, 0.9))
        m = read_micrograph(picture(tmp_path, sidecar="5"))
        assert m.calibration == Calibration(5.0, "sidecar", 0.97)
        assert (calls, m.warnings) == ([], ())

    @pytest.mark.parametrize(("stated", "bar", "told"), [("5.3", 200, True), ("5.05", 200, False), ("5.2", 50, False)])
    def test_cross_check(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str, bar: int, told: bool
    ) -> None:
        """Beyond 2 % and beyond two pixels of the bar: 4 % of a bar of 50 px is two pixels, and no news."""
        fake(monkeypatch, BarReading(bar, 5.0 * bar, 0.9))
        m = read_micrograph(picture(tmp_path, bar=bar, sidecar=stated), read_bar=True)
        assert m.calibration is not None
        assert m.calibration.confidence == (0.5 if told else 0.97)
        assert any("burnt-in scale bar" in warning for warning in m.warnings) is told

    def test_odd_length_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A picture resized after the side-car was written: its bar would stand for 1060 nm."""
        calls = fake(monkeypatch, BarReading(200, 1000, 0.9))
        m = read_micrograph(picture(tmp_path, sidecar="5.3"))
        assert calls
        assert any("check it" in warning for warning in m.warnings)
        assert read_micrograph(tmp_path / "a.png", read_bar=False).warnings == ()

    def test_user_always_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake(monkeypatch, BarReading(200, 1000, 0.9))
        m = read_micrograph(picture(tmp_path), pixel_size_nm=8.1)
        assert m.calibration == Calibration(8.1, "user", 1.0)
        assert any("the user says 8.1 nm" in warning for warning in m.warnings)

    def test_without_the_models(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ocr, "_models", lambda: None)
        m = read_micrograph(picture(tmp_path))
        assert m.calibration is None
        assert any("could not be read" in warning for warning in m.warnings)


def test_not_imported_until_needed(tmp_path: Path) -> None:
    """Its import takes a second, and metadata that calibrate need none of it."""
    path = picture(tmp_path, sidecar="5")
    script = (
        "import sys\nfrom pathlib import Path\nfrom assistant.micrograph import read_micrograph\n"
        f"read_micrograph(Path({str(path)!r}))\n"
        "print([m for m in ('rapidocr', 'onnxruntime', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs_ocr
def test_offline_and_silent(tmp_path: Path) -> None:
    """No model and no font is fetched, and nothing is printed or written, with every socket blocked."""
    content = np.random.default_rng(0).integers(60, 200, (480, 1024)).astype(np.uint8)
    info = instrument_of("zeiss", np.random.default_rng(0), width=1024, nm_per_pixel=4.0, backscattered=False)
    full, _ = with_bar(content, kind="zeiss", nm_per_pixel=4.0, instrument=info)
    Image.fromarray(full).save(tmp_path / "a.png")
    script = (
        "import sys\nfrom pathlib import Path\n"
        "def hook(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'): raise SystemExit(event)\n"
        "    if event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+') "
        "and not str(args[0]).startswith('/dev'): raise SystemExit(args[0])\n"
        "sys.dont_write_bytecode = True\n"
        "sys.addaudithook(hook)\n"
        "from assistant.micrograph import read_micrograph\n"
        f"c = read_micrograph(Path({str(tmp_path / 'a.png')!r})).calibration\n"
        "assert c.source == 'banner' and abs(c.nm_per_pixel / 4 - 1) < 0.02, c\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_ocr
@pytest.mark.parametrize("kind", ["thermo8", "zeiss", "tescan16", "jeol_bmp", "plain_png", "sec_jpeg", "hitachi"])
@pytest.mark.parametrize("nm_per_pixel", [0.83, 47.0])
def test_drawn_info_bars_are_read(kind: str, nm_per_pixel: float) -> None:
    rng = np.random.default_rng(7)
    info = instrument_of(kind, rng, width=1024, nm_per_pixel=nm_per_pixel, backscattered=False)
    full, bar = with_bar(np.zeros((768, 1024), np.uint8), kind=kind, nm_per_pixel=nm_per_pixel, instrument=info)
    reading = label.read_scale(full[768:])
    assert reading is not None
    assert reading.nm == pytest.approx(bar.nm)
    assert reading.nm_per_pixel == pytest.approx(nm_per_pixel, rel=0.02)


def sheet(micrograph: Micrograph) -> Calibration | None:
    """What the picture's bar alone says: its bytes without tags or side-car."""
    import io

    buffer = io.BytesIO()
    Image.fromarray(micrograph.pixels).save(buffer, "PNG")
    return read_micrograph(buffer.getvalue(), read_bar=True).calibration


@needs_data
@needs_ocr
@pytest.mark.slow
def test_real_info_bars() -> None:
    """All real files whose metadata calibrate: their bar alone gives that size within 2 % or a pixel, or nothing.

    Side-cars give the bar in whole pixels: of 46 drawn, one may say 45, and the magnification sides with the drawing.
    """
    truths = {p: m for p in find_micrographs(DATA / "vendor_meta") if (m := read_micrograph(p, read_bar=False)).banner}
    read = {p: c for p, m in truths.items() if (c := sheet(m))}
    wrong = []
    for path, calibration in read.items():
        m = truths[path]
        assert m.banner is not None
        assert m.calibration is not None
        within = max(0.02, 1.1 / scale_bar.find_bars(m.pixels[slice(*m.banner)])[0].length)
        wrong += [path.name] if abs(calibration.nm_per_pixel / m.calibration.nm_per_pixel - 1) > within else []
    assert wrong == []
    assert len(read) >= 17
    nanowires = [read_micrograph(p).calibration for p in find_micrographs(DATA / "open_sem" / "nanowire")]
    assert [c and c.nm_per_pixel for c in nanowires] == [24.814, 24.814, 22.026, 19.841, 19.841, 24.814]
    cathodes = [read_micrograph(p).calibration for p in find_micrographs(DATA / "open_sem" / "cathode")]
    assert len(cathodes) == 212
    assert all(c is not None and c.nm_per_pixel == pytest.approx(269.9, rel=2e-3) for c in cathodes)

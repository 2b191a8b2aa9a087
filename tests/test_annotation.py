"""What is written on a picture: info bars anywhere, text over the specimen, drawn scale bars; and what is left.

Bars are those that the drawn vendor files have; the specimen is smooth noise that reaches black and white.
"""

import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from assistant.measure import measure
from assistant.micrograph import Instrument, Micrograph, read_micrograph, to_model_input
from assistant.readers import bar_text, drawings
from assistant.readers.fields import fields_of
from assistant.readers.ocr import Line
from assistant.readers.sample import largest_rectangle, without_gaps
from data_gen.drawing.synth import render_at_doses
from data_gen.drawing.vendor_files import instrument_of, with_bar
from tests.test_micrograph import encoded, tiff_bytes

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real micrographs are not beside the checkout")
KINDS = ("thermo8", "zeiss", "tescan16", "jeol_bmp", "plain_png", "sec_jpeg", "hitachi")
NM = 4.0


def specimen(height: int = 768, width: int = 1024, *, seed: int = 3) -> np.ndarray:
    """A fresh copy, to be drawn on."""
    return rough(height, width, seed).copy()


@cache
def rough(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(0, 1, (height, width)), 6)
    return (110 + 45 * smooth / smooth.std() + rng.normal(0, 8, (height, width))).clip(0, 255).astype(np.uint8)


def info_bar(kind: str) -> tuple[np.ndarray, dict[str, object]]:
    """An info bar [R, 1024] uint8 and what it says."""
    said = instrument_of(kind, np.random.default_rng(3), width=1024, nm_per_pixel=NM, backscattered=False)
    full, _ = with_bar(np.zeros((768, 1024), np.uint8), kind=kind, nm_per_pixel=NM, instrument=said)
    band = full[768:]
    return (band if band.dtype == np.uint8 else (band >> 8).astype(np.uint8)), dict(said)


def below(band: np.ndarray) -> np.ndarray:
    """Specimen goes on under the bar, as in most published Zeiss pictures."""
    picture = specimen()
    picture[750 - len(band) : 750] = band
    return picture


def above(band: np.ndarray) -> np.ndarray:
    picture = specimen()
    picture[12 : 12 + len(band)] = band
    return picture


def boxed(band: np.ndarray) -> np.ndarray:
    picture = specimen(808, 1224)
    picture[700 - len(band) : 700, 60:1084] = band
    return picture


def coloured(band: np.ndarray) -> np.ndarray:
    """Yellow on blue."""
    ink = band[..., None] / 255
    bar = np.array([10, 20, 120]) * (1 - ink) + np.array([255, 220, 0]) * ink
    return np.vstack([np.dstack([specimen()] * 3), bar.astype(np.uint8)])


def overlaid(band: np.ndarray) -> np.ndarray:
    """The ink alone, nothing behind it."""
    picture = specimen()
    picture[768 - len(band) :][band > 128] = 255
    return picture


PLACES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "specimen below": below, "specimen above": above, "box": boxed, "coloured": coloured,
}  # fmt: skip


class TestInfoBar:
    @pytest.mark.parametrize(
        ("kind", "place"),
        [
            pytest.param(kind, place, marks=() if (row + column) % len(PLACES) in (0, 1) else pytest.mark.slow)
            for row, kind in enumerate(KINDS)
            for column, place in enumerate(PLACES)
        ],
    )
    def test_anywhere(self, kind: str, place: str) -> None:
        """Each layout in two places, each place with half of the layouts; the other half takes as long again."""
        band, said = info_bar(kind)
        m = read_micrograph(encoded(Image.fromarray(PLACES[place](band)), "PNG"))
        assert m.banner is not None
        assert m.calibration is not None
        assert (m.calibration.source, m.calibration.nm_per_pixel) == ("banner", pytest.approx(NM, rel=0.02))
        agree(m.instrument, said)
        assert 0.75 < m.sample_fraction < 0.97

    @pytest.mark.parametrize("quality", [None, 90])
    @pytest.mark.parametrize("kind", ["jeol_bmp", "plain_png", "hitachi"])
    def test_text_over_the_picture(self, kind: str, quality: int | None) -> None:
        band, said = info_bar(kind)
        picture = Image.fromarray(overlaid(band))
        m = read_micrograph(encoded(picture, "JPEG", quality=quality) if quality else encoded(picture, "PNG"))
        assert m.banner is not None
        assert m.banner[0] >= 700
        assert m.banner[1] == 768
        assert m.calibration is not None
        assert m.calibration.nm_per_pixel == pytest.approx(NM, rel=0.02)
        agree(m.instrument, said)

    def test_what_tags_say_is_kept(self) -> None:
        """The bar fills in what the tags leave open, and never overrules them."""
        band, said = info_bar("hitachi")
        text = "ImageJ=1.54f\nunit=nm\n"
        data = tiff_bytes(
            np.vstack([specimen(), band]), description=text, resolution=(0.25, 0.25), resolutionunit=1, metadata=None
        )
        m = read_micrograph(data)
        assert m.calibration is not None
        assert m.calibration.source == "tag"
        assert (m.instrument.vendor, m.instrument.hv_kv) == ("imagej", said["hv_kv"])
        assert (m.instrument.sources["vendor"], m.instrument.sources["hv_kv"]) == ("tag", "banner")

    def test_never_read(self) -> None:
        band, _ = info_bar("hitachi")
        m = read_micrograph(encoded(Image.fromarray(np.vstack([specimen(), band])), "PNG"), read_bar=False)
        assert (m.calibration, m.instrument) == (None, Instrument())


def agree(read: Instrument, said: dict[str, object]) -> None:
    """Whatever was read off the bar is what was written there; most of it was."""
    values = {name: getattr(read, name) for name in ("hv_kv", "wd_mm", "magnification", "detector", "date")}
    known = {name: value for name, value in values.items() if value is not None}
    assert len(known) >= 2
    for name, value in known.items():
        if name == "date":
            assert str(said["date"]).startswith(str(value))
        elif name == "detector":
            assert value == said["detector"]
        else:
            assert value == pytest.approx(said[name], rel=0.02)


def text(*lines: tuple[str, int, int, int]) -> list[Line]:
    return [Line(words, left, top, right, top + 20) for words, left, top, right in lines]


class TestWords:
    def test_thermo_table(self) -> None:
        """The width of the field is in millimetres too; the working distance is what stands under its name."""
        lines = text(
            ("HV", 122, 2, 166), ("WD", 799, 1, 849), ("det", 697, 3, 744), ("mode", 598, 5, 669), ("HFW", 489, 6, 549),
            ("1 mm", 1170, 4, 1250), ("SE", 608, 35, 659), ("49 x", 363, 40, 428), ("TLD", 691, 40, 748),
            ("4.1 mm", 774, 41, 872), ("10.00 kV", 88, 42, 199), ("2.80 mm", 460, 42, 574),
        )  # fmt: skip
        said = bar_text.read_instrument(lines, lines)
        assert (said.hv_kv, said.wd_mm, said.magnification, said.detector) == (10, 4.1, 49, "TLD")

    @pytest.mark.parametrize(
        ("words", "field", "value"),
        [
            ("10.0kV 11.2mm x4.00k SE(UL) 3/31/2025 16:05", "date", "2025-03-31"),
            ("10.0kV 11.2mm x4.00k SE(UL) 3/31/2025 16:05", "wd_mm", 11.2),
            ("10.0kV 11.2mm x4.00k SE(UL) 3/31/2025 16:05", "detector", "SE(UL)"),
            ("SU3500 15.0kV 9.1mm X3.50k BSE-COMP", "detector", "BSE-COMP"),
            ("Signal A = HE-SE2", "detector", "HE-SE2"), ("Det: SE", "detector", "SE"), ("10.OkV COMPO", "hv_kv", 10),
            ("SEM HV: 10.0 kV", "hv_kv", 10), ("EHT = 25.00 kV", "hv_kv", 25), ("WD = 14.8 mm", "wd_mm", 14.8),
            ("2019.12.03 20:14", "date", "2019-12-03"), ("23 Dec 2015", "date", "2015-12-23"),
            ("5/6/2020", "date", None), ("25/6/2020", "date", "2020-06-25"), ("4 000 x", "magnification", 4000),
            ("SEM MAG: 44, 100 x", "magnification", 44100), ("X 95", "magnification", 95),
            ("10.0kV 20.0kV", "hv_kv", None),
            ("SE BSE", "detector", None), ("View field: 2.56 mm", "wd_mm", None), ("WD 9000 mm", "wd_mm", None),
            ("SEM HV: 10.0 kV", "detector", None), ("0.0 kV", "hv_kv", None), ("1280 x 960", "magnification", None),
        ],
    )  # fmt: skip
    def test_one_line(self, words: str, field: str, value: object) -> None:
        line = text((words, 0, 0, 400))
        assert getattr(bar_text.read_instrument(line, line), field) == value

    def test_two_readings_must_agree(self) -> None:
        first, second = text(("15.0kV SE", 0, 0, 99)), text(("16.0kV SE", 0, 0, 99))
        said = bar_text.read_instrument(first, second)
        assert (said.hv_kv, said.detector, said.sources) == (None, "SE", {"detector": "banner"})

    def test_measured_lengths_are_no_info_bar(self) -> None:
        assert not bar_text.tells_instrument(text(("120 nm", 0, 0, 9), ("121 nm", 0, 0, 9)))
        assert bar_text.tells_instrument(text(("10.0kV 14.4mm", 0, 0, 9)))


Colour = int | tuple[int, int, int]


def scale_bar(
    picture: np.ndarray, ink: Colour, *, ground: int | None = None, place: str = "lower right", height: int = 8
) -> Image.Image:
    """200 px that stand for 500 nm, with the label above."""
    image = Image.fromarray(picture)
    image = image if isinstance(ink, int) else image.convert("RGB")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=28)
    x, y = (image.width - 230, image.height - 40) if place == "lower right" else (30, 60)
    if ground is not None:
        pen.rectangle((x - 15, y - 48, x + 215, y + 20), fill=ground)
    pen.rectangle((x, y, x + 199, y + height - 1), fill=ink)
    pen.text((x + 55, y - 40), "500 nm", fill=ink, font=font)
    return image


class TestScaleBar:
    @pytest.mark.parametrize("place", ["lower right", "upper left"])
    @pytest.mark.parametrize("quality", [None, 60])
    @pytest.mark.parametrize(
        ("ink", "ground"),
        [(255, None), (0, 255), (255, 0), ((255, 255, 0), None), ((255, 0, 0), None)],
        ids=["white", "black on white", "white on black", "yellow", "red"],
    )
    def test_drawn_over_the_specimen(self, ink: Colour, ground: int | None, quality: int | None, place: str) -> None:
        image = scale_bar(specimen(), ink, ground=ground, place=place)
        m = read_micrograph(encoded(image, "JPEG", quality=quality) if quality else encoded(image, "PNG"))
        assert m.calibration is not None
        assert (m.calibration.source, m.calibration.confidence) == ("scale_bar", 0.7)
        assert m.calibration.nm_per_pixel == pytest.approx(2.5, rel=0.015)
        assert m.banner is None
        assert 0.97 < m.sample_fraction < 0.995

    def test_16_bit(self) -> None:
        drawn = np.asarray(scale_bar(np.zeros((768, 1024), np.uint8), 255)) > 128
        picture = specimen().astype(np.uint16) * 200
        picture[drawn] = 65535
        m = read_micrograph(tiff_bytes(picture))
        assert m.calibration is not None
        assert m.calibration.nm_per_pixel == pytest.approx(2.5, rel=0.01)

    def test_without_a_label_it_is_told(self) -> None:
        picture = specimen()
        picture[720:728, 700:900] = 255
        m = read_micrograph(encoded(Image.fromarray(picture), "PNG"))
        assert m.calibration is None
        assert m.warnings == ("A scale bar is drawn in the picture and could not be read: lengths are in pixels.",)

    def test_fringe_of_jpeg_is_none(self) -> None:
        """The last row of a real bar once was 93 px long and gave a pixel size that was 13.5 % off, at 0.9."""
        band, _ = info_bar("jeol_bmp")
        band = band.copy()
        band[-1, 300:520] = 160
        m = read_micrograph(encoded(Image.fromarray(np.vstack([specimen(), band])), "PNG"))
        assert m.calibration is not None
        assert m.calibration.nm_per_pixel == pytest.approx(NM, rel=0.02)


class TestSample:
    def test_all_of_it(self) -> None:
        m = read_micrograph(encoded(Image.fromarray(specimen(300, 400)), "PNG"))
        assert (m.sample, m.content_sample, m.sample_fraction) == (None, None, 1.0)

    def test_saturated_colours(self) -> None:
        picture = np.dstack([specimen(300, 400)] * 3)
        picture[100:103, 50:250] = (255, 255, 0)
        m = read_micrograph(encoded(Image.fromarray(picture), "PNG"))
        assert m.sample is not None
        assert not m.sample[97:106, 50:250].any()
        assert m.sample[:90].all()
        assert m.specimen[101, 60:240].std() > 5

    @pytest.mark.parametrize("level", [60, 128, 200])
    def test_grey_arrow(self, level: int) -> None:
        """Also at a level that the specimen has everywhere."""
        clean = specimen(300, 400)
        image = Image.fromarray(clean)
        pen = ImageDraw.Draw(image)
        pen.line((60, 80, 160, 130), fill=level, width=6)
        pen.polygon([(185, 142), (150, 140), (162, 112)], fill=level)
        m = read_micrograph(encoded(image, "PNG"))
        assert m.sample is not None
        assert m.sample[np.asarray(image) != clean].mean() < 0.05
        assert m.sample_fraction > 0.97

    @pytest.mark.parametrize("quality", [None, 90, 75])
    @pytest.mark.parametrize(("level", "filled"), [(255, True), (255, False), (0, True), (0, False)])
    def test_black_and_white_arrows(self, level: int, filled: bool, quality: int | None) -> None:
        """The specimen touches both levels, and JPEG spoils them: the outline tells, whichever way it points."""
        clean = specimen(300, 400)
        clean[20:40, 20:40], clean[20:40, 60:80] = 255, 0
        image = Image.fromarray(clean)
        pen = ImageDraw.Draw(image)
        pen.line((60, 80, 170, 135), fill=level, width=5)
        if filled:
            pen.polygon([(186, 143), (158, 141), (168, 121)], fill=level)
        else:
            pen.line((158, 143, 178, 139, 166, 122), fill=level, width=5)
        kind = ("PNG", {}) if quality is None else ("JPEG", {"quality": quality})
        m = read_micrograph(encoded(image, kind[0], **kind[1]))
        assert m.sample is not None
        assert m.sample[np.asarray(image) != clean].mean() < 0.05
        assert m.sample_fraction > 0.97

    def test_bodies_are_no_arrows(self) -> None:
        """Whatever is drawn as specimen here, sharp and clipped as it may be."""
        for label in ("nanowires", "tips", "powder"):
            for part in (slice(None), slice(None, None, -1)):
                pixels = render_at_doses(label, [400.0], seed=7)[0].pixels[part]
                low, high = np.percentile(pixels, [2, 98])
                grey = np.clip((pixels - low) / (high - low) * 255, 0, 255).astype(np.uint8)
                assert all(ink.alone or ink.arrows is None for ink in drawings.inks(grey, None))

    def test_false_colour_is_no_drawing(self) -> None:
        grey = specimen(300, 400)
        picture = np.dstack([grey, 255 - grey, np.full_like(grey, 128)])
        assert read_micrograph(encoded(Image.fromarray(picture), "PNG")).sample is None

    def test_letters_with_sharp_edges(self) -> None:
        """The specimen has pure white too; what was drawn ends within a pixel."""
        image = Image.fromarray(specimen())
        ImageDraw.Draw(image).text((20, 600), "grain", fill=255, font=ImageFont.load_default(size=60))
        m = read_micrograph(encoded(image, "PNG"))
        assert m.sample is not None
        changed = np.asarray(image) != specimen()
        assert m.sample[changed].mean() < 0.05
        assert m.sample_fraction > 0.97

    def test_page_margin(self) -> None:
        page = np.full((868, 1200), 255, np.uint8)
        page[50:818, 80:1104] = specimen()
        m = read_micrograph(encoded(Image.fromarray(page), "PNG"))
        assert m.part == (slice(50, 818), slice(80, 1104))
        assert np.array_equal(m.specimen, specimen())

    @pytest.mark.parametrize("how", ["png", "tiff", "webp", "16-bit png"])
    def test_transparent(self, how: str) -> None:
        picture = np.dstack([specimen(300, 400)] * 3 + [np.full((300, 400), 255, np.uint8)])
        picture[:, 350:] = (40, 40, 40, 0)
        if how == "tiff":
            data = tiff_bytes(picture, photometric="rgb", extrasamples=["unassalpha"])
        elif how == "16-bit png":
            import imagecodecs

            data = imagecodecs.png_encode(picture.astype(np.uint16) * 257)
        else:
            data = encoded(Image.fromarray(picture, "RGBA"), how.upper(), lossless=True)
        m = read_micrograph(data)
        assert m.part == (slice(0, 300), slice(0, 350))
        assert m.content_sample is None

    def test_missing_tile(self) -> None:
        """Also beside specimen that has the tile's level itself."""
        picture = specimen()
        picture[:384, :512] = 0
        m = read_micrograph(encoded(Image.fromarray(picture), "PNG"))
        assert m.sample is not None
        assert not m.sample[:384, :512].any()
        assert m.sample[400:, 530:].all()
        values, _ = to_model_input(m, 56)
        assert values.std() > 0.05
        assert (values == 0).mean() < 0.05

    @pytest.mark.parametrize("shape", ["round pore", "dark lines"])
    def test_black_specimen_is_sample(self, shape: str) -> None:
        picture = np.maximum(specimen(), 1)
        if shape == "round pore":
            y, x = np.mgrid[:768, :1024]
            picture[(x - 500) ** 2 + (y - 380) ** 2 < 150**2] = 0
        else:
            for left in range(40, 1000, 120):
                picture[:, left : left + 50] = 0
        assert read_micrograph(encoded(Image.fromarray(picture), "PNG")).sample is None

    def test_window_and_model_input_see_the_sample_only(self) -> None:
        picture = np.dstack([specimen(300, 400) // 4 + 60] * 3)
        plain = read_micrograph(encoded(Image.fromarray(picture), "PNG"))
        picture[100:104, 50:350] = (0, 255, 255)
        m = read_micrograph(encoded(Image.fromarray(picture), "PNG"))
        assert m.window().high == pytest.approx(plain.window().high, abs=1)
        assert np.abs(to_model_input(m, 56)[0] - to_model_input(plain, 56)[0]).max() < 0.25

    def test_large_frames_are_thinned(self) -> None:
        picture = np.repeat(np.repeat(np.asarray(scale_bar(specimen(), 255)), 5, axis=0), 5, axis=1)
        m = read_micrograph(encoded(Image.fromarray(picture), "PNG", compress_level=1))
        assert m.calibration is not None
        assert m.calibration.nm_per_pixel == pytest.approx(0.5, rel=0.02)
        assert m.sample is not None
        assert m.sample.shape == picture.shape
        assert 0.97 < m.sample_fraction < 0.995


class TestMeasuring:
    def picture(self) -> tuple[np.ndarray, float]:
        rng, centres = np.random.default_rng(1), [(x, y) for x in range(80, 960, 110) for y in range(80, 960, 110)]
        y, x = np.mgrid[:1024, :1024]
        grey = np.full((1024, 1024), 70.0)
        for cx, cy in centres:
            grey[(x - cx) ** 2 + (y - cy) ** 2 < 144] = 170
        return (grey + rng.normal(0, 6, grey.shape)).clip(0, 255).astype(np.uint8), 100 * len(
            centres
        ) * np.pi * 144 / 2**20

    def test_what_is_drawn_is_not_measured(self) -> None:
        grey, truth = self.picture()
        image = scale_bar(grey, (255, 255, 0))
        facts = {fact.name: fact.value for fact in measure(read_micrograph(encoded(image, "PNG"))).items}
        assert facts["count"] == pytest.approx(64, abs=2)
        assert facts["coverage"] == pytest.approx(truth, rel=0.1)

    def test_share_is_that_of_the_sample(self) -> None:
        grey, truth = self.picture()
        grey[465:, 465:] = 0
        facts = {fact.name: fact.value for fact in measure(read_micrograph(tiff_bytes(grey))).items}
        assert facts["count"] == pytest.approx(48, abs=3)
        assert facts["coverage"] == pytest.approx(truth, rel=0.12)


def test_filled_keeps_the_specimen() -> None:
    pixels, sample = specimen(100, 120), np.ones((100, 120), bool)
    sample[40:44, 10:90], sample[60:, 60:] = False, False
    out = without_gaps(pixels, sample)
    assert np.array_equal(out[sample], pixels[sample])
    assert out.dtype == pixels.dtype
    assert out[60:, 60:].std() == pytest.approx(8, rel=0.3)
    assert pixels[sample].min() <= out.min()
    assert out.max() <= pixels[sample].max()


def test_largest_rectangle() -> None:
    sample = np.ones((320, 480), bool)
    assert largest_rectangle(sample) == (slice(0, 320), slice(0, 480))
    sample[100:103, 20:300] = False
    assert largest_rectangle(sample) == (slice(0, 320), slice(0, 480))
    sample[:160, :240] = False
    rows, columns = largest_rectangle(sample)
    assert sample[rows, columns].mean() > 0.9
    assert (rows.stop - rows.start) * (columns.stop - columns.start) >= 0.4 * sample.size
    assert largest_rectangle(np.zeros((64, 64), bool)) == (slice(0, 64), slice(0, 64))


@pytest.mark.parametrize("levels", [65536, 4000, 2, 1])
def test_sixteen_bits_become_eight_as_fractions_do(levels: int) -> None:
    """They go through a table, for speed."""
    deep = (100 + np.random.default_rng(0).integers(0, levels - 100 if levels > 9999 else levels, (70, 90))).astype(
        np.uint16
    )
    assert np.array_equal(drawings.eight_bits(deep), drawings.eight_bits(deep.astype(np.float64)))


@pytest.mark.parametrize("pixels", [np.zeros((64, 64)), np.full((64, 64), np.nan), np.full((200, 200), 1e300)])
def test_odd_pictures_hold_no_drawing(pixels: np.ndarray) -> None:
    assert all(ink.bars == [] and ink.lines == [] for ink in drawings.inks(pixels, None))
    assert drawings.flat_boxes(pixels) == []
    assert Micrograph(pixels, "").sample_fraction == 1.0


@needs_data
@pytest.mark.parametrize(
    ("name", "nm", "said"),
    [
        ("plant/C2-1_m09.tif", 99.206, (10, 14.3, 1000, "SE(M)")),
        ("plant/X5-1_B_m02.tif", 99.206, (10, 14.6, 1000, "SE(M)")),
        ("fibre/K2.jpg", 28.33, (15, 9.6, 3500, "BSE-COMP")),
        ("nanocomposite/filler_10wt_un_2.jpg", 9.3457, (15, 10.1, 10000, "SEI")),
        ("nanocomposite/filler_5wt_un_1.jpg", 27.03, (15, 9.9, 3500, "SEI")),
    ],
)
def test_real_pictures(name: str, nm: float, said: tuple[float, float, float, str]) -> None:
    """Text over the specimen (Hitachi), also in JPEG, and a JEOL bar; values by eye."""
    m = read_micrograph(DATA / "more_sem" / name)
    assert m.calibration is not None
    assert m.calibration.nm_per_pixel == pytest.approx(nm, rel=5e-3)
    i = m.instrument
    assert (i.hv_kv, i.wd_mm, i.magnification, i.detector) == said
    assert m.warnings == ()


@needs_data
@pytest.mark.slow
def test_all_of_more_sem() -> None:
    """Every bar found, every scale that of the magnification; nothing where nothing is written."""
    folder = DATA / "more_sem"
    for path in [*sorted((folder / "plant").glob("*.tif")), *sorted((folder / "fibre").glob("K*"))]:
        m = read_micrograph(path)
        assert m.banner is not None, path.name
        assert m.calibration is not None, path.name
        assert m.calibration.nm_per_pixel * 1280 * float(m.instrument.magnification or 0) == pytest.approx(
            127e6, rel=5e-3
        )
    for path in sorted((folder / "nanocomposite").glob("*.jpg")):
        m = read_micrograph(path)
        assert m.calibration is not None, path.name
        assert m.calibration.nm_per_pixel * 1280 * float(m.instrument.magnification or 0) == pytest.approx(
            120e6, rel=0.015
        )
    for path in sorted((folder / "powder").glob("*.png")):
        m = read_micrograph(path)
        assert (m.banner, m.calibration, m.sample) == (None, None, None), path.name


def test_a_large_frame_is_looked_at_in_parts() -> None:
    """Seen failing with twelve times the frame: one of 8192 x 8192 px and 16 bit did not fit into a reader's memory."""
    frame = np.random.default_rng(0).integers(300, 9000, (2048, 2048), dtype=np.uint16)
    tracemalloc.start()
    try:
        fields_of(frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * frame.nbytes

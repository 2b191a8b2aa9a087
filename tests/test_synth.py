"""Synthetic micrographs: same bytes for same arguments, truth that agrees with the drawing, files that read."""

import hashlib
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from assistant.errors import DatasetError
from data_gen.drawing.scenes.info_bar import bar_rows, draw_bar, scale_bar
from data_gen.drawing.synth import CLASSES, STYLES, Synthetic, render, render_array, write_synthetic
from data_gen.drawing.vendor_files import HOUSE, SITE, format_of, maker_of, write_vendor
from data_gen.questions.words import FACETS, VISIBLE_WORDS, WORDS

SMALL = (160, 224)
MICRO = {"nm": 1.0, "um": 1e3, "µm": 1e3, "mm": 1e6}
LENGTHS_NM = (
    "mean_diameter", "median_diameter", "d10_diameter", "d90_diameter", "nearest_neighbour", "period", "line_width",
    "line_edge_roughness", "fibre_width",
)  # fmt: skip


@pytest.fixture(scope="module")
def images() -> dict[str, list[Synthetic]]:
    """Six samples of each class, one field of view each."""
    return {label: [render(label, seed=4 * k, size=SMALL) for k in range(6)] for label in CLASSES}


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def nanometres(text: str) -> float:
    number, unit = text.split()
    return float(number) * MICRO[unit]


def test_same_arguments_give_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    """A time stamp in a TIFF or the order in which workers finish would make a data set unrepeatable."""
    kwargs = {"classes": ("particles", "tips", "fibres"), "per_class": 9, "seed": 3, "size": (64, 96)}
    one = write_synthetic(tmp_path / "one", workers=1, **kwargs)  # type: ignore[arg-type]
    two = write_synthetic(tmp_path / "two", workers=2, **kwargs)  # type: ignore[arg-type]
    assert digest(one.parent) == digest(two.parent)
    assert len({json.loads(line)["format"] for line in one.read_text().splitlines()}) > 5


def test_seeds_styles_and_classes_differ() -> None:
    pictures = {
        render(label, seed=seed, size=(64, 96), style=style).pixels.tobytes()
        for label in ("powder", "films_coated_surface")
        for seed in (0, 1, 4)
        for style in STYLES
    }
    assert len(pictures) == 12


def test_rows_tell_the_truth_about_the_files(tmp_path: Path) -> None:
    truth = write_synthetic(tmp_path, classes=("porous_sponge",), per_class=5, size=(64, 96), workers=1)
    rows = [json.loads(line) for line in truth.read_text(encoding="utf-8").splitlines()]
    assert [row["group"] for row in rows] == ["house-porous_sponge-000000"] * 4 + ["house-porous_sponge-000001"]
    for row in rows:
        file = tmp_path / row["path"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
        assert row["banner"][0] == 64
        assert row["truth"] == render(row["label"], seed=row["seed"], size=(64, 96)).truth
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("label", CLASSES)
def test_a_group_is_one_sample_on_one_instrument(label: str) -> None:
    """A split by group leaks nothing only if the four views share specimen and settings and differ in what is seen."""
    views = [render(label, seed=seed, size=(64, 96)) for seed in (8, 9, 10, 11)]
    other = render(label, seed=12, size=(64, 96))
    first = views[0]
    for view in views[1:]:
        assert (view.group, view.nm_per_pixel, view.instrument) == (first.group, first.nm_per_pixel, first.instrument)
        assert [view.truth[f] for f in ("shape", "surface", "tilt_deg")] == [
            first.truth[f] for f in ("shape", "surface", "tilt_deg")
        ]
        assert not np.array_equal(view.pixels, first.pixels)
    assert other.group != first.group
    assert other.nm_per_pixel != first.nm_per_pixel


@pytest.mark.parametrize("label", CLASSES)
def test_words_come_from_the_closed_vocabulary(label: str, images: dict[str, list[Synthetic]]) -> None:
    """The student's answers are checked against this vocabulary: an unlisted word could never be scored."""
    for image in images[label]:
        for facet in FACETS:
            said = image.truth[facet]
            said = said if facet == "defects" else [said]
            assert set(said) <= set(VISIBLE_WORDS[label][facet]) <= set(WORDS[facet])


@pytest.mark.parametrize("label", CLASSES)
def test_truth_is_finite_and_agrees_with_the_maps(label: str, images: dict[str, list[Synthetic]]) -> None:
    """Coverage is the share of the feature mask; no more objects count than carry a label; sizes fit the frame."""
    for image in images[label]:
        truth = image.truth
        area = truth["coverage"] if "coverage" in truth else truth["porosity"]
        assert area == pytest.approx(100 * image.feature.mean(), abs=1e-3)
        numbers = {name: value for name, value in truth.items() if isinstance(value, float)}
        assert all(math.isfinite(value) and value >= 0 for value in numbers.values())
        frame = math.hypot(*SMALL) * image.nm_per_pixel
        assert all(numbers[name] < frame for name in LENGTHS_NM if name in numbers)
        if image.labels is not None and "mean_diameter" in truth and "count" in truth:
            labels = np.unique(image.labels[image.labels > 0])
            assert truth["count"] <= len(labels)
            if "d10_diameter" in truth:
                assert truth["d10_diameter"] <= truth["median_diameter"] <= truth["d90_diameter"]


def test_count_and_diameter_follow_from_the_label_map() -> None:
    """Separate untilted pillars: what the map holds, counted and measured by other means, is what the truth says."""
    from skimage.measure import regionprops

    checked = 0
    for seed in range(0, 160, 4):
        image = render("patterned_surface", seed=seed, size=(240, 320))
        if image.truth["shape"] not in ("pillars", "holes") or image.truth["tilt_deg"]:
            continue
        assert image.labels is not None
        inner = [r for r in regionprops(image.labels) if min(r.bbox[:2]) > 0 and r.bbox[2] < 240 and r.bbox[3] < 320]
        everything = len(np.unique(image.labels)) - 1
        assert len(inner) <= image.truth["count"] <= everything
        measured = np.mean([r.equivalent_diameter_area for r in inner]) * image.nm_per_pixel
        assert measured == pytest.approx(image.truth["mean_diameter"], rel=0.03)
        checked += 1
    assert checked >= 5


def test_particles_are_counted_by_their_centres() -> None:
    """A body cut by the frame counts only if its centre is inside and a quarter of it is in sight."""
    from data_gen.drawing.scenes.geometry import Sheet, ellipsoid
    from data_gen.drawing.scenes.truths import visible

    sheet = Sheet((60, 80), material=0.2)
    for x, y in ((20, 20), (50, 30), (1, 50), (-4, 10), (60, 61)):
        sheet.place(ellipsoid(8.0), x, y, material=0.8)
    sheet.place(ellipsoid(9.0), 50, 30, material=0.8, base=20.0)
    assert visible(sheet.labels, sheet.objects).tolist() == [0, 2, 5]


def test_sizes_and_neighbours_of_known_discs() -> None:
    """Three discs of known radius at the corners of a 3-4-5 triangle, in nanometres."""
    from data_gen.drawing.scenes.geometry import Sheet, ellipsoid
    from data_gen.drawing.scenes.imaging import Scene
    from data_gen.drawing.scenes.truths import truth_of

    sheet = Sheet((100, 120), material=0.2)
    for x, y, radius in ((20, 20, 6.5), (50, 20, 8.5), (20, 60, 10.5)):
        sheet.place(ellipsoid(radius), x, y, material=0.8)
    feature = sheet.labels > 0
    scene = Scene(sheet.height, sheet.material, feature, 2.5, {}, labels=sheet.labels, objects=sheet.objects)
    truth = truth_of(scene, feature, sheet.labels, polarity="even")
    assert truth["count"] == 3
    assert truth["nearest_neighbour"] == pytest.approx((30 + 30 + 40) / 3 * 2.5)
    assert truth["mean_diameter"] == pytest.approx(17 * 2.5, rel=0.02)
    assert truth["coverage"] == pytest.approx(100 * math.pi * (6.5**2 + 8.5**2 + 10.5**2) / 12000, rel=0.03)


def test_period_of_lines_is_the_autocorrelation_peak() -> None:
    """The period in the truth is the one that the noise-free mask repeats with across the lines."""
    checked = 0
    for seed in range(0, 160, 4):
        image = render("patterned_surface", seed=seed, size=(160, 256))
        truth = image.truth
        if truth["shape"] != "lines" or truth["defects"] or abs(truth["orientation"] - 90) > 20:
            continue
        mask = image.feature.astype(float) - image.feature.mean()
        power = np.abs(np.fft.rfft(mask, n=4096, axis=1)) ** 2
        peak = float(np.argmax(power.mean(axis=0)[8:]) + 8)
        across = 4096 / peak * abs(math.sin(math.radians(truth["orientation"]))) * image.nm_per_pixel
        assert across == pytest.approx(truth["period"], rel=0.03)
        width = image.feature.mean() * across
        assert width == pytest.approx(truth["line_width"], rel=0.08)
        checked += 1
    assert checked >= 3


def test_orientation_is_counter_clockwise_from_x() -> None:
    """Aligned fibres: the structure tensor of the drawn mask points where the truth says (a flipped y axis fails)."""
    checked = 0
    for seed in range(0, 100, 4):
        image = render("fibres", seed=seed, size=(200, 200))
        if "orientation" not in image.truth or image.truth["anisotropy"] < 0.85:
            continue
        gy, gx = np.gradient(image.feature.astype(float))
        normal = 0.5 * math.atan2(2 * (gx * -gy).sum(), (gx**2 - gy**2).sum())
        along = (math.degrees(normal) + 90) % 180
        error = abs((along - image.truth["orientation"] + 90) % 180 - 90)
        assert error < 12
        checked += 1
    assert checked >= 3


def test_tilt_shortens_the_picture_and_not_the_truth() -> None:
    """Flat ground seen at 60 degrees: every second row of the specimen; a column of height h rises by h sin t."""
    from data_gen.drawing.scenes.imaging import Scene, canvas_size, project

    size = canvas_size((40, 8), 60.0, relief=10.0)
    height = np.zeros(size, np.float32)
    height[40:44, 3] = 20.0
    signal = np.repeat(np.arange(size[0], dtype=np.float32)[:, None], 8, axis=1)
    words: dict[str, str | list[str]] = {}
    scene = Scene(height, signal, height > 0, 1.0, words, tilt_deg=60.0)
    picture, feature, _ = project(scene, signal, rows=40)
    assert np.allclose(picture[:, 0], 2 * np.arange(40), atol=1)
    top = int(np.flatnonzero(feature[:, 3])[0])
    assert top == pytest.approx(40 * 0.5 - 20 * math.sin(math.radians(60)), abs=1.01)
    assert feature[:, 3].sum() == pytest.approx(20 * math.sin(math.radians(60)) + 2, abs=1.5)


@pytest.mark.parametrize("kind", sorted({maker_of(kind) for kind in (*HOUSE, *SITE)}))
@pytest.mark.parametrize("nm_per_pixel", [0.8, 20 / 107, 137.0, 2000 / 98])
def test_the_scale_bar_is_as_long_as_it_says(kind: str, nm_per_pixel: float) -> None:
    """Length in pixels times nm per pixel equals the text within half a pixel, and the line is there in the bar."""
    info = {
        "model": "X", "hv_kv": 5.0, "wd_mm": 4.0, "magnification": 1000.0, "detector": "SE", "date": "2020-01-01",
        "hfw_nm": 640 * nm_per_pixel,
    }  # fmt: skip
    strip, bar = draw_bar(kind, 640, 480, nm_per_pixel=nm_per_pixel, info=info)
    assert strip.shape == (bar_rows(kind, 480), 640)
    assert nanometres(bar.text) == pytest.approx(bar.nm)
    assert bar.pixels * nm_per_pixel == pytest.approx(bar.nm, abs=0.5 * nm_per_pixel)
    ink = strip[bar.row, bar.start]
    run = strip[bar.row] == ink
    assert run[bar.start : bar.start + bar.pixels].all()
    assert not run[bar.start - 1]
    assert not run[bar.start + bar.pixels]


@pytest.mark.parametrize("label", CLASSES)
def test_rendered_pixel_sizes_make_the_scale_bar_exact(label: str, images: dict[str, list[Synthetic]]) -> None:
    for image in images[label]:
        bar = scale_bar(SMALL[1], image.nm_per_pixel)
        assert bar.pixels * image.nm_per_pixel == pytest.approx(bar.nm, rel=1e-9)


@pytest.mark.parametrize("kind", [*HOUSE, *SITE])
def test_each_vendor_file_reads_back(kind: str, tmp_path: Path) -> None:
    """The reader finds what the writer meant: pixel size, banner, voltage, working distance, depth and picture."""
    micrograph = pytest.importorskip("assistant.micrograph", reason="the reader is not there yet")
    style = "house" if kind in HOUSE else "site"
    group = next(g for g in range(len(HOUSE)) if format_of(g + 3 * CLASSES.index("particles"), style) == kind)
    image = render("particles", seed=4 * group, size=(240, 320), style=style)
    assert image.format == kind
    written = write_vendor(
        tmp_path / "sample", image.pixels, kind=kind, nm_per_pixel=image.nm_per_pixel, instrument=image.instrument
    )
    m = micrograph.read_micrograph(written.path, read_bar=False)
    assert m.banner == written.banner == (240, m.pixels.shape[0])
    assert m.pixels.dtype == image.pixels.dtype
    if kind == "sec_jpeg":
        assert np.abs(m.content.astype(int) - image.pixels).mean() < 8
    else:
        assert np.array_equal(m.content, image.pixels)
    assert (m.calibration is not None) == written.calibrated
    if written.calibrated:
        assert m.calibration.nm_per_pixel == pytest.approx(image.nm_per_pixel, rel=1e-4)
        assert m.warnings == ()
    if kind != "plain_png":
        assert m.instrument.vendor == image.instrument["vendor"]
        assert m.instrument.hv_kv == pytest.approx(image.instrument["hv_kv"])
        assert m.instrument.wd_mm == pytest.approx(image.instrument["wd_mm"])
        assert m.instrument.detector == image.instrument["detector"]


def features(pixels: np.ndarray) -> np.ndarray:
    """Twenty-four plain numbers of a picture: radial power spectrum, gradient directions, grey-level shape."""
    image = pixels.astype(float)
    image = (image - image.mean()) / (image.std() + 1e-9)
    side = min(image.shape)
    power = (
        np.abs(np.fft.fftshift(np.fft.fft2(image[:side, :side] * np.hanning(side)[:, None] * np.hanning(side)))) ** 2
    )
    radius = np.hypot(*(np.indices(power.shape) - side // 2))
    edges = np.geomspace(1, side / 2, 11)
    rings = [np.log(power[(radius >= a) & (radius < b)].mean()) for a, b in pairwise(edges)]
    peaks = [power[(radius >= a) & (radius < b)].max() for a, b in pairwise(edges)]
    gy, gx = np.gradient(image)
    coherence = np.hypot((gx**2 - gy**2).mean(), 2 * (gx * gy).mean()) / (gx**2 + gy**2).mean()
    shape = [(image**3).mean(), (image**4).mean(), coherence, np.median(image)]
    return np.array([*rings, *(np.log(peaks) - rings), *shape])


def test_ten_classes_are_separable_by_plain_features() -> None:
    """Seven samples a class to learn from, seven to test on, a linear classifier on simple features: chance is 10 %."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rows, names = [], []
    for label in CLASSES:
        for k in range(14):
            rows.append(features(render_array(label, seed=4 * k, size=(96, 128))[0]))
            names.append(label)
    x, y = np.array(rows), np.array(names)
    train = np.arange(len(y)) % 2 == 0
    x = (x - x[train].mean(axis=0)) / x[train].std(axis=0)
    score = (
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x[train], y[train]).score(x[~train], y[~train])
    )
    assert score > 0.3


def test_polarity_is_that_of_the_picture(images: dict[str, list[Synthetic]]) -> None:
    """The word must be visible: the mean grey of the feature lies on the side that the word says."""
    right = total = 0
    for image in (image for label in CLASSES for image in images[label]):
        grey, mask = image.pixels.astype(float), image.feature
        if image.truth["polarity"] == "even" or not mask.any():
            continue
        total += 1
        right += (grey[mask].mean() > grey[~mask].mean()) == (image.truth["polarity"] == "bright on dark")
    assert right == total > 30


@pytest.mark.parametrize(
    ("kwargs", "code"),
    [
        ({"classes": ("clouds",)}, "unknown_class"),
        ({"style": "studio"}, "unknown_style"),
        ({"size": (8, 640)}, "too_small"),
        ({"per_class": 0}, "bad_count"),
        ({"seed": -1}, "bad_count"),
    ],
)
def test_bad_requests_are_named(kwargs: dict[str, object], code: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        write_synthetic(tmp_path, **({"per_class": 1} | kwargs))  # type: ignore[arg-type]
    assert caught.value.code == code


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        write_synthetic(tmp_path / "file", per_class=1)


def test_a_truth_file_never_speaks_of_files_half_rewritten(tmp_path: Path) -> None:
    """Stopped while it writes over an older set, it leaves no truth at all rather than the older set's."""
    write_synthetic(tmp_path, classes=("tips",), per_class=2, size=(64, 96))
    block = tmp_path / "tips" / "tips-01048576.tif"
    block.mkdir()
    for suffix in (".bmp", ".png", ".jpg"):
        block.with_suffix(suffix).mkdir()
    with pytest.raises(DatasetError, match="cannot be written"):
        write_synthetic(tmp_path, classes=("tips",), per_class=2, seed=1, size=(64, 96))
    assert not (tmp_path / "truth.jsonl").exists()


def test_importing_synth_is_cheap() -> None:
    """The command line lists the classes without paying for SciPy, scikit-image or Pillow."""
    heavy = "('scipy', 'skimage', 'PIL', 'tifffile', 'torch')"
    code = f"import sys, data_gen.drawing.synth as s; print(len(s.CLASSES), [m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "10 []"

"""Several pictures in one frame: found, said, and only one of them measured; a single picture is never cut."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from assistant.micrograph import find_micrographs, read_micrograph
from assistant.readers.fields import fields_of
from tests.test_annotation import DATA, info_bar, needs_data, specimen
from tests.test_micrograph import encoded


def other_detector(grey: np.ndarray) -> np.ndarray:
    """The same scene as another detector shows it: as bright, with other greys."""
    return (255 * (1 - grey / 255.0) ** 0.8).astype(np.uint8)


def side_by_side(line: int, *, level: int = 255) -> np.ndarray:
    left = specimen(480, 512)
    return np.hstack([left, np.full((480, line), level, np.uint8), other_detector(left)])


@pytest.mark.parametrize("line", [0, 1, 2, 4, 12])
@pytest.mark.parametrize("quality", [None, 85])
def test_two_detectors(line: int, quality: int | None) -> None:
    picture = Image.fromarray(side_by_side(line))
    m = read_micrograph(encoded(picture, "JPEG", quality=quality) if quality else encoded(picture, "PNG"))
    assert m.sample is not None
    assert m.part == (slice(0, 480), slice(0, 512))
    assert "two pictures side by side: only the left one is read and measured" in m.warnings[-1]


def test_one_above_the_other() -> None:
    picture = np.vstack([specimen(400, 640), specimen(400, 640, seed=5)])
    m = read_micrograph(encoded(Image.fromarray(picture), "PNG"))
    assert m.part == (slice(0, 400), slice(0, 640))
    assert "only the upper one" in m.warnings[-1]


def test_montage_on_a_page_takes_the_largest() -> None:
    page = np.full((700, 1000), 255, np.uint8)
    for seed, (top, left, high, wide) in enumerate([(20, 20, 300, 400), (20, 440, 300, 540), (340, 20, 340, 960)]):
        page[top : top + high, left : left + wide] = specimen(high, wide, seed=seed)
    assert len(fields_of(page)) == 3
    m = read_micrograph(encoded(Image.fromarray(page), "PNG"))
    assert m.part == (slice(340, 680), slice(20, 980))
    assert "3 pictures" in m.warnings[-1]


def test_each_with_its_own_scale_bar() -> None:
    """The bar of the other field says nothing about the one that is measured."""
    fields = []
    for seed, nm in ((1, 500), (2, 200)):
        image = Image.fromarray(specimen(480, 512, seed=seed))
        pen = ImageDraw.Draw(image)
        pen.rectangle((280, 440, 479, 447), fill=255)
        pen.text((330, 400), f"{nm} nm", fill=255, font=ImageFont.load_default(size=28))
        fields.append(np.asarray(image))
    m = read_micrograph(encoded(Image.fromarray(np.hstack(fields)), "PNG"))
    assert m.calibration is not None
    assert m.calibration.nm_per_pixel == pytest.approx(2.5, rel=0.015)


def test_one_info_bar_below_both() -> None:
    band, _ = info_bar("zeiss")
    m = read_micrograph(encoded(Image.fromarray(np.vstack([side_by_side(0), band])), "PNG"))
    assert m.banner == (480, 480 + len(band))
    assert m.part == (slice(0, 480), slice(0, 512))
    assert m.calibration is not None


@pytest.mark.parametrize("kind", ["specimen", "grating", "particles on black", "charging", "stitched"])
def test_one_picture_is_one_field(kind: str) -> None:
    picture = specimen()
    if kind == "grating":
        for left in range(40, 1000, 120):
            picture[:, left : left + 8] = 0
    elif kind == "particles on black":
        y, x = np.mgrid[:768, :1024]
        apart = [(x - cx) ** 2 + (y - cy) ** 2 < 60**2 for cx in (160, 400, 640, 880) for cy in (150, 380, 610)]
        picture[~np.any(apart, axis=0)] = 0
    elif kind == "charging":
        picture[300:] = (picture[300:] * 0.7).astype(np.uint8)
    elif kind == "stitched":
        picture[:, 512:] = (picture[:, 512:] * 0.85).astype(np.uint8)
    assert len(fields_of(picture)) == 1


@needs_data
@pytest.mark.slow
def test_no_real_picture_is_cut() -> None:
    cut = [
        path.name
        for folder in ("open_sem", "vendor_meta", "more_sem")
        for path in find_micrographs(Path(DATA / folder))
        if "MASK" not in path.name
        and any("The frame holds" in note for note in read_micrograph(path, read_bar=False).warnings)
    ]
    assert cut == []

"""Fibres and wires: their width as a person measures it, whatever lies beneath them; and what is no fibre."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from test_measure import applicable, axes, noisy, value

from assistant.measure import Facts, _facts_of, _find, measure, measure_pixels
from assistant.measurements.findings import TESTS
from assistant.measurements.kinds import confidence
from assistant.micrograph import Micrograph, read_micrograph
from assistant.readers.record import Instrument


def mat(size: tuple[int, int], widths: list[float], *, seed: int = 3, rim: float = 0.0) -> np.ndarray:
    """Straight fibres across the frame, the later ones above and brighter; `rim` is how much their edges glow."""
    rng, (y, x) = np.random.default_rng(seed), axes(size)
    out = np.zeros(size)
    for k, width in enumerate(widths):
        angle, at = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8, 2) * size
        across = np.abs((x - at[1]) * np.sin(angle) + (y - at[0]) * np.cos(angle)) / (width / 2)
        body = 0.35 + 0.5 * k / len(widths) + rim * across**6
        out = np.where(across < 1, body, out)
    return out


def curtains(size: tuple[int, int]) -> np.ndarray:
    """Stripes of an ion beam, the same all down the frame."""
    stripes = ndimage.gaussian_filter1d(np.random.default_rng(4).standard_normal(size[1]), 3.0)
    return np.tile(0.5 + 0.1 * stripes / stripes.std(), (size[0], 1))


def dark_discs(size: tuple[int, int] = (300, 400)) -> np.ndarray:
    """Forty dark discs, apart, with a rim that glows as that of an opening does."""
    y, x = axes(size)
    away = np.min([np.hypot(x - 25 - 50 * (k % 8), y - 30 - 55 * (k // 8)) for k in range(40)], axis=0)
    return np.where(away < 12, 0.1, 0.6 + 0.3 * np.exp(-(((away - 13) / 2) ** 2)))


# ---------------------------------------------------------------------------------- widths


@pytest.mark.parametrize("rim", [0.0, 0.25])
def test_fibres_on_top_of_one_another_have_their_width(rim: float) -> None:
    """No threshold shows the outline of a fibre that lies on others, and the glowing rim of one is no fibre."""
    facts = measure_pixels(noisy(mat((480, 640), [20.0] * 24, rim=rim)), nm_per_pixel=10.0)
    assert facts.kind == "fibres"
    assert value(facts, "fibre_width") == pytest.approx(200, rel=0.06)
    assert value(facts, "fibre_width_spread") < 30


@pytest.mark.parametrize("seed", [0, 2])
def test_a_wrinkled_film_has_no_fibre_width(seed: int) -> None:
    """Its folds run one way and bend, and the dark ones are as long as the bright. A width was claimed, at 0.8 even."""
    (y, x), rng = axes((480, 640)), np.random.default_rng(seed)
    bend = ndimage.gaussian_filter(rng.standard_normal((480, 640)), 40)
    folds = ndimage.gaussian_filter(rng.standard_normal((480, 640)), (60, 4))
    folds = ndimage.map_coordinates(folds / folds.std(), [y, x + 14 * bend / bend.std()], order=1, mode="reflect")
    facts = measure_pixels(noisy(0.5 + 0.22 * np.tanh(folds), sigma=0.06), nm_per_pixel=None)
    assert not facts["fibre_width"].applies
    assert not facts["fibre_width_spread"].applies


def test_widths_that_differ_have_a_spread() -> None:
    widths = list(np.random.default_rng(0).uniform(10, 26, 24))
    facts = measure_pixels(noisy(mat((480, 640), widths)), nm_per_pixel=None)
    assert value(facts, "fibre_width") == pytest.approx(18, rel=0.15)
    assert 2.5 < value(facts, "fibre_width_spread") < 8
    alike = measure_pixels(noisy(mat((480, 640), [18.0] * 24)), nm_per_pixel=None)
    assert alike["fibre_width"].confidence > facts["fibre_width"].confidence


def test_thin_fibres_of_a_large_picture_are_measured_at_full_resolution() -> None:
    """A dense mat of fibres five pixels wide melts into one where the frame is reduced."""
    rng, (y, x) = np.random.default_rng(1), axes((1000, 1300))
    image = np.zeros((1000, 1300))
    for k in range(120):
        angle, at = rng.uniform(0, np.pi), rng.uniform(0, 1, 2) * (1000, 1300)
        image[np.abs((x - at[1]) * np.sin(angle) + (y - at[0]) * np.cos(angle)) < 2.5] = 0.3 + 0.7 * k / 120
    facts = measure_pixels(noisy(image, sigma=0.02), nm_per_pixel=None)
    assert facts.kind == "fibres"
    assert value(facts, "fibre_width") == pytest.approx(5, rel=0.2)


BY_EYE = {
    "more_sem/fibre/15%_gelatin_fibers.tif": (1100, 1550),
    "more_sem/fibre/20%_gelatin_fibers.tif": (1050, 1750),
    "open_sem/nanowire/nw_4.tif": (70, 105),
    "open_sem/nanowire/nw_13.tif": (75, 105),
}
"""Widths of the fibres in front, by eye in the enlarged picture [nm]."""


@pytest.mark.parametrize("name", BY_EYE)
def test_real_fibres_have_the_width_that_a_person_measures(name: str, shared_data: Path) -> None:
    facts = measure(read_micrograph(shared_data / name))
    assert facts.kind == "fibres"
    low, high = BY_EYE[name]
    assert low < value(facts, "fibre_width") < high


# ---------------------------------------------------------------------------------- kinds


def test_curtaining_is_an_artefact_and_no_structure() -> None:
    facts = measure_pixels(noisy(curtains((400, 500)), sigma=0.02), nm_per_pixel=2.0)
    assert facts.kind == "curtaining"
    assert applicable(facts) <= {"mean_grey", "noise", "contrast", "sharpness"}
    assert "artefact" in facts["orientation"].note


def test_particles_on_a_curtained_section_are_particles() -> None:
    image = np.where(dark_discs() < 0.3, 1.0, 0.3 * curtains((300, 400)))
    facts = measure_pixels(noisy(image, sigma=0.02), nm_per_pixel=None)
    assert facts.kind == "particles"
    assert value(facts, "count") == 40


@pytest.mark.parametrize("instrument", [Instrument(hv_kv=200.0), Instrument(hv_kv=30.0, detector="BF STEM")])
def test_dark_matter_in_transmission_is_no_pore(instrument: Instrument) -> None:
    seen = Micrograph(noisy(dark_discs()), "0" * 64, instrument=Instrument(hv_kv=15.0, detector="SE"))
    opened, through = measure(seen), measure(replace(seen, instrument=instrument))
    assert opened.kind == "pores"
    assert through.kind == "particles"
    assert not through["porosity"].applies
    assert value(through, "count") == value(opened, "count") == 40
    assert through["coverage"].note == "dark phase"


@pytest.mark.parametrize("label", ["melt_pool", "superalloy", "patterned_silicon"])
def test_polished_and_etched_matter_is_no_mat(label: str, shared_data: Path) -> None:
    files = sorted((shared_data / "open_sem" / label).rglob("*.png"))[::4]
    assert files
    assert "fibres" not in {measure(read_micrograph(path)).kind for path in files}


def test_packings_of_spheres_are_particles(shared_data: Path) -> None:
    powder = sorted((shared_data / "more_sem" / "powder").glob("*.png"))[:2]
    cathode = sorted((shared_data / "open_sem" / "cathode").rglob("*.jpg"))[::90]
    assert {measure(read_micrograph(path, read_bar=False)).kind for path in [*powder, *cathode]} == {"particles"}


def test_what_is_not_sure_is_not_said() -> None:
    """The quantities of a kind go with it; those of any picture stay."""
    pixels = noisy(mat((300, 400), [14.0] * 16))
    found = _find(pixels, 0.0, 255.0)
    assert found is not None

    def said(sure: float) -> Facts:
        return _facts_of(replace(found, confidence=sure), nm_per_pixel=None)

    assert said(0.9).kind == "fibres"
    unsure = said(0.3)
    assert (unsure.kind, unsure.kind_confidence) == ("unknown", 0.3)
    assert not unsure["fibre_width"].applies
    assert "fibres at 30%" in unsure["fibre_width"].note
    assert unsure["anisotropy"].applies


def test_every_test_has_a_reason_and_a_weight() -> None:
    assert len({test.name for test in TESTS}) == len(TESTS)
    for test in TESTS:
        assert test.reason.endswith(".")
        if test.name not in ("uniform", "enclosed", "crowd"):  # these know their confidence without the model
            assert confidence(0.99, test.name) > confidence(0.6, test.name)

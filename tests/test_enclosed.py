"""Cells, precipitates and two phases against closed forms: their sizes, walls and chords, and where nothing is said."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from assistant.answers import composed
from assistant.measure import Facts, Known, measure_pixels
from assistant.measurements import confidence
from assistant.measurements.confidence import probability, traits_of_objects, traits_of_phases
from assistant.measurements.intercepts import mean_chord, phases_of, wall_thickness
from assistant.measurements.nested import by_area, nested_objects
from assistant.measurements.picture import Picture, grey_window, picture_of
from assistant.measurements.segmentation import Objects
from data_gen.drawing.scenes import CLASSES, UNTAUGHT
from data_gen.drawing.synth import render

SIZE = (480, 640)


def imaged(grey: np.ndarray, *, sigma: float = 0.03, seed: int = 0) -> np.ndarray:
    """Blur and noise of an instrument on an ideal picture 0..1, digitised to 8 bit; 0 is no signal."""
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(grey.astype(float), 0.7) + sigma * rng.standard_normal(grey.shape)
    return np.clip(250 * image, 0, 255).astype(np.uint8)


def seen(pixels: np.ndarray) -> Picture:
    picture = picture_of(pixels, *grey_window(pixels))
    assert picture is not None
    return picture


def enclosed(pixels: np.ndarray) -> Objects:
    found = nested_objects(seen(pixels))
    assert found is not None
    return found


def voronoi(*, pitch: float = 52.0, wall: float = 8.0, seed: int = 3) -> np.ndarray:
    """Cells of a Voronoi tessellation behind walls of one thickness, numbered from 1. [H, W]"""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-pitch : SIZE[0] + pitch : pitch, -pitch : SIZE[1] + pitch : pitch]
    sites = np.stack([y.ravel(), x.ravel()], axis=1) + rng.uniform(-0.35, 0.35, (y.size, 2)) * pitch
    points = np.indices(SIZE).reshape(2, -1).T
    distance, nearest = cKDTree(sites).query(points, k=2)
    one, other = sites[nearest[:, 0]], sites[nearest[:, 1]]
    # To the border with the nearest neighbour: the perpendicular bisector of the two sites.
    apart = (distance[:, 1] ** 2 - distance[:, 0] ** 2) / (2 * np.linalg.norm(one - other, axis=1))
    labels = np.where(apart >= wall / 2, nearest[:, 0] + 1, 0).reshape(SIZE)
    return np.searchsorted(np.unique(labels), labels).astype(np.int32)


def whole_diameters(labels: np.ndarray) -> np.ndarray:
    cut = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    area = np.bincount(labels.ravel())
    area[cut] = 0
    return np.asarray(2 * np.sqrt(area[1:][area[1:] > 0] / np.pi))


def tissue(labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Cells with floors at every level up to that of a wall, so that no single threshold finds them all."""
    floor = np.random.default_rng(seed).uniform(0.08, 0.5, labels.max() + 1)
    glow = ndimage.gaussian_filter((labels == 0).astype(float), 1.5)
    return imaged(np.where(labels > 0, floor[labels], 0.6 + 0.3 * glow))


def test_cells_with_floors_at_any_level_have_the_areas_of_their_tessellation() -> None:
    """What a person outlines in tissue; a threshold for the whole picture loses the cells with bright floors."""
    labels = voronoi()
    found, true = enclosed(tissue(labels)), whole_diameters(labels)
    whole = found.geometry.diameter[found.sized & found.whole]
    assert len(whole) == pytest.approx(len(true), rel=0.03)
    assert whole.mean() == pytest.approx(true.mean(), rel=0.06)
    assert by_area(whole) == pytest.approx(by_area(true), rel=0.06)
    assert found.agreement > 0.9
    assert not found.candidate.bright


def test_cells_of_a_tissue_are_counted_sized_and_their_share_is_the_porosity() -> None:
    labels = voronoi()
    facts = measure_pixels(tissue(labels), nm_per_pixel=100.0)
    assert facts.kind == "pores"
    for name in ("mean_diameter", "area_weighted_diameter", "count"):
        assert facts[name].confidence > 0.6, name
    true = whole_diameters(labels)
    assert facts["mean_diameter"].value == pytest.approx(100 * true.mean(), rel=0.1)
    assert facts["area_weighted_diameter"].value == pytest.approx(100 * by_area(true), rel=0.1)
    assert facts["porosity"].value == pytest.approx(100 * (labels > 0).mean(), abs=6)


def honeycomb(pitch: float, wall: float) -> np.ndarray:
    """Regular hexagons of a distance `pitch` between opposite walls, numbered from 1."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    rows, columns = np.arange(-2, SIZE[0] / pitch * 1.2 + 3), np.arange(-2, SIZE[1] / pitch + 3)
    row, column = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
    sites = np.stack([row * pitch * np.sqrt(3) / 2, (column + (row % 2) / 2) * pitch], axis=1)
    distance, nearest = cKDTree(sites).query(np.stack([y.ravel(), x.ravel()], axis=1), k=2)
    apart = (distance[:, 1] ** 2 - distance[:, 0] ** 2) / (2 * pitch)
    labels = np.where(apart >= wall / 2, nearest[:, 0] + 1, 0).reshape(SIZE)
    return np.searchsorted(np.unique(labels), labels).astype(np.int32)


@pytest.mark.parametrize(("pitch", "wall"), [(40.0, 6.0), (64.0, 12.0)])
def test_a_honeycomb_has_the_size_and_the_walls_of_its_hexagons(pitch: float, wall: float) -> None:
    """A hexagon of inner radius r has the area 2 sqrt(3) r^2."""
    labels = honeycomb(pitch, wall)
    found = enclosed(tissue(labels))
    radius = (pitch - wall) / 2
    expected = 2 * np.sqrt(2 * np.sqrt(3) * radius**2 / np.pi)
    assert found.geometry.diameter[found.sized & found.whole].mean() == pytest.approx(expected, rel=0.07)
    assert wall_thickness(labels) == pytest.approx(wall, abs=0.8)
    assert wall_thickness(found.labels) == pytest.approx(wall, abs=3)  # where the blurred edges cross the level


def test_squares_have_their_side_and_bright_ones_are_found_as_well() -> None:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    squares = (y % 60 < 30) & (x % 60 < 30)
    light = np.random.default_rng(0).uniform(0.45, 0.9, (8, 11))[y // 60, x // 60]
    found = enclosed(imaged(np.where(squares, light, 0.2)))
    assert found.candidate.bright
    size = found.geometry.diameter[found.sized & found.whole] - 2 * found.outset
    assert size.mean() == pytest.approx(30 * 2 / np.sqrt(np.pi), rel=0.05)


def test_bright_bodies_among_many_small_ones_have_no_number() -> None:
    """Small agglomerates are agglomerates, so a number without them is false; a size by area hardly knows them."""
    rng = np.random.default_rng(8)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    grey = np.full(SIZE, 0.25)
    for k in range(30):
        grey[(y - 45 - 80 * (k // 6)) ** 2 + (x - 55 - 106 * (k % 6)) ** 2 < (16 + k % 7) ** 2] = (
            0.5 + 0.4 * rng.random()
        )
    for cy, cx in rng.uniform(0, 1, (150, 2)) * SIZE:
        speck = (y - cy) ** 2 + (x - cx) ** 2 < 3.2**2
        grey[speck] = np.maximum(grey[speck], 0.7)
    picture = seen(imaged(grey))
    traits = traits_of_objects(picture, enclosed(imaged(grey)))
    assert probability("count", traits) == probability("mean_diameter", traits) == 0.0
    assert (probability("area_weighted_diameter", traits) or 0.0) > 0.3


@pytest.mark.parametrize("grain", [1.5, 3.0, 6.0])
def test_a_texture_encloses_nothing(grain: float) -> None:
    """Closer up it always has smaller bodies, and their outlines are no steeper than anything else."""
    noise = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(SIZE), grain)
    assert nested_objects(seen(imaged(0.5 + 0.15 * noise / noise.std()))) is None


def test_cells_whose_walls_are_open_have_no_size() -> None:
    """Through gaps in every wall the cells are one; what is cut off at random is not stated."""
    labels = voronoi()
    gaps = ndimage.gaussian_filter(np.random.default_rng(6).standard_normal(SIZE), 10) > 0
    facts = measure_pixels(imaged(np.where((labels > 0) | gaps, 0.2, 0.7)), nm_per_pixel=None)
    for name in ("count", "mean_diameter", "wall_thickness"):
        assert facts[name].confidence < 0.5, name


# ------------------------------------------------------------------------- openings or not


def flat_phases(labels: np.ndarray, *, dark: float) -> np.ndarray:
    """A polished section: no relief, so no edge glows."""
    return imaged(np.where(labels > 0, dark, 0.6))


@pytest.mark.parametrize("dark", [0.3, 0.55])
def test_precipitates_of_a_polished_section_are_no_pores(dark: float) -> None:
    facts = measure_pixels(flat_phases(voronoi(), dark=dark), nm_per_pixel=None)
    assert facts["porosity"].confidence < 0.5
    assert facts["area_weighted_diameter"].value == pytest.approx(by_area(whole_diameters(voronoi())), rel=0.1)
    said = " ".join(text for _, text in composed("What is this?", [Known(facts)]))
    assert "dark bodies" in said
    assert "bright bodies" not in said


def spotted(signal: float) -> Facts:
    """Grains on a flat ground with some round spots of a given signal."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    grey = np.full(SIZE, 0.5)
    for k in range(20):
        place = (y - 40 - 90 * (k % 5)) ** 2 + (x - 50 - 150 * (k // 5)) ** 2
        grey[place < (14 + k % 4) ** 2] = 0.9
        grey[(y - 85 - 90 * (k % 4)) ** 2 + (x - 110 - 150 * (k // 5)) ** 2 < 36] = 0.5 * signal
    return measure_pixels(imaged(grey, sigma=0.01), nm_per_pixel=None)


def test_that_nothing_is_an_opening_is_said_where_nothing_is_dark() -> None:
    """An opening lets out half of the signal of its surroundings or less."""
    solid, holed = Known(spotted(1.0)), Known(spotted(0.2))
    assert not solid.facts["porosity"].applies
    said = " ".join(text for _, text in composed("Is it porous?", [solid]))
    assert "No dark openings could be told apart" in said
    assert "could not be measured" not in said
    assert "No dark openings" not in " ".join(text for _, text in composed("Is it porous?", [holed]))


# --------------------------------------------------------------------------- mean chords


def test_the_mean_chord_of_discs_is_pi_quarters_of_their_diameter() -> None:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    discs = (x % 60 - 29.5) ** 2 + (y % 60 - 29.5) ** 2 < 20**2
    assert mean_chord(discs) == pytest.approx(np.pi / 4 * 40, rel=0.02)
    share = discs.mean()  # the chords of both phases end at the same borders
    assert mean_chord(~discs) == pytest.approx(np.pi / 4 * 40 * (1 - share) / share, rel=0.02)


def test_the_mean_chord_of_turned_squares_is_pi_quarters_of_their_side() -> None:
    """By Cauchy: pi times area over perimeter, of any convex figure in all directions."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    angle = np.deg2rad(360 * np.random.default_rng(2).random((6, 8)))[(y // 80).astype(int), (x // 80).astype(int)]
    u, v = y % 80 - 39.5, x % 80 - 39.5
    along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    squares = np.maximum(abs(along), abs(across)) < 20
    assert mean_chord(squares) == pytest.approx(np.pi / 4 * 40, rel=0.03)


def test_phases_grown_into_each_other_have_mean_chords_and_no_diameter() -> None:
    field = ndimage.gaussian_filter(np.random.default_rng(4).standard_normal(SIZE), 8)
    field -= ndimage.gaussian_filter(field, 16)
    bright = field > 0
    facts = measure_pixels(imaged(np.where(bright, 0.7, 0.3)), nm_per_pixel=5.0)
    for name, phase in (("bright", bright), ("dark", ~bright)):
        fact = facts[f"mean_chord_of_the_{name}_phase"]
        assert fact.value == pytest.approx(5 * mean_chord(phase), rel=0.08)
        assert fact.confidence > 0.6
    assert not facts["mean_diameter"].applies or facts["mean_diameter"].confidence < 0.5
    said = " ".join(text for _, text in composed("How big are these things?", [Known(facts)]))
    assert "The mean chord of the bright phase is" in said
    assert "diameter is" not in said


def test_one_grey_level_with_noise_has_no_phases() -> None:
    noise = np.random.default_rng(5).standard_normal(SIZE)
    facts = measure_pixels(imaged(0.5 + 0.1 * noise), nm_per_pixel=None)
    assert not facts["mean_chord_of_the_bright_phase"].applies
    found = phases_of(seen(imaged(0.5 + 0.1 * noise)))
    assert found is None or found.separability < 0.7


# ------------------------------------------------------------------------- drawn pictures


@pytest.mark.parametrize("label", UNTAUGHT)
def test_pictures_for_measuring_have_the_truth_of_their_maps(label: str) -> None:
    """Whole cells of the map have the areas of the truth, also beside the edge of the stem and between wide cells."""
    assert label not in CLASSES
    for seed in (0, 16, 32):
        image = render(label, seed=seed, size=(240, 320))
        assert np.array_equal(image.pixels, render(label, seed=seed, size=(240, 320)).pixels)
        share = image.truth["porosity" if label == "plant_tissue" else "coverage"]
        assert share == pytest.approx(100 * image.feature.mean(), abs=1e-3)
        if "mean_diameter" not in image.truth:
            continue
        assert image.labels is not None
        diameters = image.nm_per_pixel * whole_diameters(np.searchsorted(np.unique(image.labels), image.labels))
        assert image.truth["median_diameter"] == pytest.approx(np.median(diameters), rel=0.15)


def test_every_model_of_enclosed_bodies_and_phases_rests_on_traits_that_are_measured() -> None:
    """As test_touching.py asks of the others: a trait renamed in the code alone goes out of the probability unseen."""
    picture = seen(tissue(voronoi()))
    nested = {"grain", "anisotropy", *traits_of_objects(picture, enclosed(tissue(voronoi())))}
    field = ndimage.gaussian_filter(np.random.default_rng(4).standard_normal(SIZE), 8)
    phases = phases_of(seen(imaged(np.where(field > ndimage.gaussian_filter(field, 16), 0.7, 0.3))))
    assert phases is not None
    known = {"nested ": nested, "mean_chord": {"grain", "anisotropy", *traits_of_phases(phases, bright=True)}}
    models = json.loads((Path(confidence.__file__).parent / "confidence.json").read_text())
    for start, traits in known.items():
        of_these = {name: model for name, model in models.items() if name.startswith(start)}
        assert of_these
        for name, model in of_these.items():
            asked = {trait for trait in model["weights"] if not trait.startswith("kind ") and trait != "repeats"}
            assert asked <= traits | set(confidence.traits_of_statement(0.5)), name

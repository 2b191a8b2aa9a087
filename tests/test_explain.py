"""What a verdict rests on: a score that reads one tile is explained by that tile alone, and the figure shows it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from students import open_gates, tiny_run

from assistant.errors import ConfigError
from assistant.explain import NOT_A_CAUSE, Explanation, covered, drawn_over, explain
from assistant.inference import Assistant
from assistant.micrograph import model_square, read_micrograph, to_model_input

SIDE = 70
Maemi = Callable[..., tuple[int, str, str]]


@pytest.fixture
def square() -> np.ndarray:
    return np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize(("row", "column", "words"), [(1, 5, "at the upper right"), (3, 3, "in the middle")])
def test_a_score_that_reads_one_tile_is_explained_by_that_tile(
    square: np.ndarray, row: int, column: int, words: str
) -> None:
    def roughness(pictures: list[np.ndarray]) -> np.ndarray:
        return np.array([10 * p[10 * row : 10 * row + 10, 10 * column : 10 * column + 10].std() for p in pictures])

    found = explain(square, roughness, what="roughness")
    assert found.baseline == pytest.approx(roughness([square])[0])
    assert found.falls.shape == (7, 7)
    assert np.unravel_index(found.falls.argmax(), (7, 7)) == (row, column)
    assert found.falls[row, column] > 1
    others = found.falls.copy()
    others[row, column] = 0
    assert (others == 0).all()
    assert words in found.sentence()
    assert "mostly one part" in found.sentence()
    assert NOT_A_CAUSE in found.sentence()


def test_every_pixel_is_covered_once_and_the_grey_stays(square: np.ndarray) -> None:
    """Also where the side is no multiple of the tiles."""
    picture = np.pad(square, ((0, 3), (0, 3)), mode="reflect")
    changed = np.array([copy != picture for copy in covered(picture, 6)])
    assert (changed.sum(axis=0) == 1).mean() > 0.999
    assert changed.sum(axis=0).max() == 1
    for copy in covered(picture, 6):
        assert copy.mean() == pytest.approx(picture.mean(), abs=0.005)


def test_a_part_that_speaks_against_has_the_other_sign(square: np.ndarray) -> None:
    found = explain(square, lambda pictures: np.array([-p[:10, :10].std() for p in pictures]), what="smoothness")
    assert found.falls[0, 0] < 0
    assert (np.delete(found.falls.ravel(), 0) == 0).all()
    assert "No single part" in found.sentence()


def test_the_figure_lies_over_the_part_that_was_seen(tmp_path: Path) -> None:
    """A wide frame: only its middle square is seen, and the tile that counts is amber there."""
    frame = np.full((100, 200), 120, np.uint8)
    frame += np.random.default_rng(0).integers(0, 9, frame.shape, np.uint8)
    tifffile.imwrite(tmp_path / "wide.tif", frame, imagej=True, resolution=(1 / 4.2, 1 / 4.2), metadata={"unit": "nm"})
    m = read_micrograph(tmp_path / "wide.tif")
    assert model_square(m) == (slice(0, 100), slice(50, 150))
    assert to_model_input(m, 100)[0].shape == (100, 100)
    falls = np.zeros((7, 7))
    falls[2, 2] = 1.0
    drawn = np.asarray(drawn_over(m, Explanation("log-odds of fibres", 2.0, falls)))
    assert drawn.shape == (512, 1024, 3)
    warm = drawn[..., 0].astype(int) - drawn[..., 2]
    scale = 1024 / 200
    y, x = int((2.5 / 7 * 100) * scale), int((50 + 2.5 / 7 * 100) * scale)
    assert warm[y - 5 : y + 5, x - 5 : x + 5].mean() > 60
    assert warm[y - 5 : y + 5, 20:200].mean() == pytest.approx(0, abs=2)
    assert warm[y - 5 : y + 5, -200:-20].mean() == pytest.approx(0, abs=2)


# ---- of labels and answers


def spotted(seed: int, *places: tuple[int, int]) -> np.ndarray:
    """Soft grey noise [224, 224] with checkered spots of 30 px, centred at the places."""
    frame = np.random.default_rng(seed).normal(120, 8, (224, 224))
    rows, columns = np.mgrid[:224, :224]
    for y, x in places:
        inside = (abs(rows - y) < 15) & (abs(columns - x) < 15)
        frame[inside] += 70 * (((rows // 3 + columns // 3) % 2)[inside] - 0.5)
    return frame.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    run = tiny_run(tmp_path_factory.mktemp("base"))
    open_gates(run.student)
    run.student.requires_grad_(False)
    return Assistant(run)


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """Examples: pictures with a spot somewhere, and pictures without."""
    random = np.random.default_rng(1)
    for label in ("spots", "plain"):
        (tmp_path / "known" / label).mkdir(parents=True)
    for n in range(6):
        y, x = random.integers(30, 190, 2).tolist()
        Image.fromarray(spotted(n, (y, x))).save(tmp_path / "known" / "spots" / f"{n}.png")
        Image.fromarray(spotted(100 + n)).save(tmp_path / "known" / "plain" / f"{n}.png")
    return tmp_path / "known"


def test_a_label_learned_from_a_spot_rests_on_the_spot(assistant: Assistant, known: Path, tmp_path: Path) -> None:
    examples = {label: sorted((known / label).iterdir()) for label in ("spots", "plain")}
    Image.fromarray(spotted(7, (176, 48))).save(tmp_path / "asked.png")  # in the tile (5, 1)
    found = assistant.explain_label(tmp_path / "asked.png", ["spots", "plain"], examples=examples)
    assert found.what == "log-odds of spots"
    assert np.unravel_index(found.falls.argmax(), found.falls.shape) == (5, 1)
    assert found.falls[5, 1] > 2 * np.sort(found.falls.ravel())[-2]


def test_without_a_head_that_knows_a_label_nothing_is_explained(assistant: Assistant, known: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        assistant.explain_label(known / "spots" / "0.png", ["weather", "music"])
    assert raised.value.code == "not_known"


def test_an_answer_is_explained_by_its_own_log_probability(assistant: Assistant, known: Path) -> None:
    picture, question, answer = known / "spots" / "0.png", "What is this?", "a picture with a spot"
    found = assistant.explain_answer(picture, question, answer)
    look = assistant.look(picture)
    asked = assistant._compose([look], question, (), "")
    assert found.baseline == pytest.approx(float(assistant._likelihoods([look], asked, [answer])[0]), abs=1e-3)
    assert found.baseline < 0
    assert np.abs(found.falls).max() > 0


def test_the_command_explains_and_draws_each_picture(
    maemi: Maemi, assistant: Assistant, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pictures of one name have a figure each."""
    monkeypatch.setattr("serve.verbs.classify.load", lambda run: assistant)
    for folder, place in (("a", (60, 60)), ("b", (150, 150))):
        (tmp_path / folder).mkdir()
        Image.fromarray(spotted(9, place)).save(tmp_path / folder / "same.png")
    (tmp_path / "b" / "broken.png").write_bytes(b"no picture")
    arguments = (tmp_path / "a", tmp_path / "b", "--examples", known, "--explain", tmp_path / "why")
    code, out, _ = maemi("classify", *arguments, "--json")
    assert code == 1
    rows = [row for row in json.loads(out) if not row["error"]]
    assert len({row["explanation"]["picture"] for row in rows}) == 2
    for row in rows:
        with Image.open(row["explanation"]["picture"]) as figure:
            assert figure.size == (1024, 1024)
        assert np.shape(row["explanation"]["falls"]) == (7, 7)
        assert NOT_A_CAUSE in row["explanation"]["sentence"]
    assert maemi("classify", *arguments, "--shots", 2)[0] == 2

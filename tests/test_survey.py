"""Next and drift: what is asked for teaches most, what has a label is not asked for, and a shifted folder is told."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from assistant.config import load_config
from assistant.conformal import Familiarity
from assistant.errors import RunError
from assistant.predictor import Predicted, Target
from training.applied import Applied
from training.fit import fit
from training.survey import Survey, uncertainty

Maemi = Callable[..., tuple[int, str, str]]
QUICK = ("fit.dim=16", "fit.heads=2", "fit.batch_size=16", "fit.least_steps=60", "fit.most_steps=60")
BLUR = {"blobs": (2.0, 2.0), "stripes": (0.5, 8.0), "grain": (0.6, 0.6)}


def draw(folder: Path, kind: str, lots: str, *, seed: int, each: int = 2) -> Path:
    """Pictures `lotX_N.png` of a kind; those of a lot are equally coarse."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, lot in enumerate(lots):
        random = np.random.default_rng([seed, place])
        coarse = np.array(BLUR[kind]) * random.uniform(0.8, 1.25)
        for number in range(each):
            noise = gaussian_filter(random.normal(size=(96, 96)), coarse)
            grey = (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
            Image.fromarray(grey).save(folder / f"lot{lot}_{number}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted run with its pictures, 12 lots of each of two kinds."""
    folder = tmp_path_factory.mktemp("survey")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for seed, kind in enumerate(("blobs", "stripes")):
            draw(folder / "pictures" / kind, kind, "abcdefghijkl", seed=seed)
        fit(folder / "pictures", folder / "run", load_config(None, list(QUICK)))
        yield folder


def survey_of(place: Path, *inputs: Path) -> Survey:
    return Survey(Applied.load(place / "run"), list(inputs))


# ---- what to label next


def predicted(*probabilities: float, deviation: float | None = None, scale: float = 2.0) -> Predicted:
    if deviation is not None:
        return Predicted(Target("y", "nm", scale=scale), 1.0, deviation=deviation)
    return Predicted(Target("class", classes=tuple("abcd"[: len(probabilities)])), probabilities=probabilities)


@pytest.mark.parametrize(
    ("targets", "share"),
    [
        ([predicted(0.25, 0.25, 0.25, 0.25)], 1.0),
        ([predicted(1.0, 0.0)], 0.0),
        ([predicted(0.9, 0.1)], 0.469),
        ([predicted(deviation=0.5)], 0.25),
        ([predicted(deviation=9.0)], 1.0),
        ([predicted(0.5, 0.5), predicted(deviation=1.0)], 0.75),
    ],
)
def test_uncertainty_is_what_is_left_of_guessing(targets: list[Predicted], share: float) -> None:
    assert uncertainty(targets) == pytest.approx(share, abs=1e-3)


def test_a_new_kind_comes_first_and_its_copies_not_at_all(place: Path, tmp_path: Path) -> None:
    """Seen failing without coverage: five copies of one picture are equally uncertain."""
    folder = draw(tmp_path / "new", "blobs", "mn", seed=5)
    draw(folder, "grain", "z", seed=6, each=1)
    for number in range(1, 5):
        shutil.copy(folder / "lotz_0.png", folder / f"copy_{number}.png")
    chosen = survey_of(place, folder).next(20)
    names = [Path(suggestion.path).name for suggestion in chosen]
    strange = {"lotz_0.png", *(f"copy_{number}.png" for number in range(1, 5))}
    assert names[0] in strange
    assert len(strange & set(names)) == 1
    assert {"lotm_0.png", "lotn_1.png"} <= set(names)
    assert [s.score for s in chosen] == pytest.approx([s.uncertainty * s.distance for s in chosen])


def test_what_has_a_label_is_not_asked_for(place: Path, tmp_path: Path) -> None:
    """The run knows all that it was fitted on, tested and calibrated rows too, under whatever name."""
    folder = tmp_path / "all"
    shutil.copytree(place / "pictures", folder)
    draw(folder, "stripes", "q", seed=9, each=1)
    assert [Path(s.path).name for s in survey_of(place, folder).next(30)] == ["lotq_0.png"]


def test_the_choice_is_the_greedy_one(place: Path, tmp_path: Path) -> None:
    survey = survey_of(place, draw(tmp_path / "new", "blobs", "mnop", seed=5))
    here = survey.familiarity.components(survey.features)
    covered = [*survey.familiarity.known]
    for suggestion in survey.next(4):
        scores = [
            uncertainty(p.targets) * min(np.linalg.norm(row - other) for other in covered) / survey.familiarity.limit
            for row, p in zip(here, survey.predictions, strict=True)
        ]
        best = int(np.argmax(scores))
        assert suggestion.path == survey.rows[best].name
        assert suggestion.score == pytest.approx(scores[best], rel=1e-6)
        covered.append(here[best])


# ---- what no longer looks like training


def test_a_folder_of_the_same_kind_is_none_and_a_shifted_one_is_told(place: Path, tmp_path: Path) -> None:
    draw(tmp_path / "same", "blobs", "mno", seed=0)
    draw(tmp_path / "same", "stripes", "pqr", seed=1)
    draw(tmp_path / "shifted", "grain", "mnopqr", seed=7)
    shifted, same = survey_of(place, tmp_path).drift()
    assert (shifted.source, shifted.differs) == ("shifted", True)
    assert (same.source, same.differs) == ("same", False)
    assert shifted.p_adjusted == pytest.approx(2 * shifted.p)
    assert (shifted.rows, shifted.groups, shifted.unknown) == (12, 6, 12)
    assert shifted.moved[0]["by"] > 1


def test_one_lot_is_never_called_different_for_its_many_pictures(place: Path, tmp_path: Path) -> None:
    """Seen failing with pictures permuted one by one: thirty of one lot are alike, and unlike any other lot."""
    draw(tmp_path / "line", "blobs", "m", seed=3, each=30)
    (line,) = survey_of(place, tmp_path / "line").drift()
    assert line.p >= line.least_p == pytest.approx(1 / 18, abs=0.01)
    assert not line.differs


def test_a_run_of_an_older_version_is_told_apart(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    applied = Applied.load(place / "run")
    assert isinstance(applied.predictor.familiarity, Familiarity)
    applied.predictor.familiarity = replace(applied.predictor.familiarity, features=np.zeros((0, 0)))
    with pytest.raises(RunError) as raised:
        Survey(applied, [place / "pictures"])
    assert raised.value.code == "old_run"
    applied.predictor.familiarity = None
    with pytest.raises(RunError) as raised:
        Survey(applied, [place / "pictures"])
    assert raised.value.code == "no_features"


# ---- the commands


def test_next_prints_what_to_label_and_draws_a_page_that_needs_nothing(
    maemi: Maemi, place: Path, tmp_path: Path
) -> None:
    folder = draw(tmp_path / "new", "grain", "mn", seed=7, each=1)
    (folder / "lotm_0.png").rename(folder / "<script>alert(1)<.png")
    (folder / "broken.png").write_bytes(b"no picture")
    page = tmp_path / "map.html"
    code, out, err = maemi("next", folder, "--run", place / "run", "--count", 1, "--map", page, "--json")
    assert code == 1
    first, broken = json.loads(out)
    assert set(first) == {"path", "score", "uncertainty", "distance", "targets", "error"}
    assert first["targets"][0]["name"] == "class"
    assert broken["error"]["code"] == "unreadable" or broken["error"]["code"] == "unsupported_format"
    assert "broken.png" in err
    drawn = page.read_text(encoding="utf-8")
    assert drawn.count('src="data:image/jpeg;base64,') == 2
    assert drawn.count("<circle") == len(Applied.load(place / "run").predictor.familiarity.features)  # type: ignore[union-attr]
    assert drawn.count("<b>") == 1
    assert "<script" not in drawn
    assert not re.search(r"https?:|url\(|@import", drawn)
    code, out, err = maemi("next", folder, "--run", place / "run")
    assert code == 1
    assert "class" in out


def test_drift_prints_a_line_for_each_folder(maemi: Maemi, place: Path, tmp_path: Path) -> None:
    draw(tmp_path / "one", "grain", "mnopq", seed=7, each=1)
    draw(tmp_path / "two", "blobs", "m", seed=8, each=3)
    page = tmp_path / "map.html"
    code, out, _ = maemi("drift", tmp_path, "--run", place / "run", "--map", page, "--json")
    assert code == 0
    sources = {source["source"]: source for source in json.loads(out)["sources"]}
    assert sources["one"]["differs"]
    assert not sources["two"]["differs"]
    assert page.read_text(encoding="utf-8").count("<figure") == 8
    code, out, _ = maemi("drift", tmp_path, "--run", place / "run")
    assert code == 0
    assert "differs: texture" in out
    assert "too few groups to tell" in out


@pytest.mark.parametrize("verb", ["next", "drift"])
def test_what_cannot_be_done_is_one_line(maemi: Maemi, verb: str, place: Path, tmp_path: Path) -> None:
    code, out, err = maemi(verb, place / "pictures", "--run", tmp_path / "none")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: no_run: ")
    code, _, err = maemi(verb, tmp_path, "--run", place / "run")
    assert (code, err.partition(".")[0].split(":")[1].strip()) == (2, "no_images")

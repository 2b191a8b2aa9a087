"""Fit and predict: what a table holds is said, groups stay whole, what is learned is true, broken input has a code."""

import csv
import itertools
import json
import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from assistant.config import Config, load_config
from assistant.errors import ConfigError, DatasetError, RunError
from assistant.micrograph import Micrograph
from assistant.predictor import Predictor
from serve.cli import main
from training.fit import HEAD, Choices, fill, fit, fit_rows, split_rows
from training.labelled import LabelledRow, LabelledSet, column_roles, parse_target, read_labelled
from training.pictures import FeatureExtractor, picture_values

QUICK = (
    "fit.dim=16",
    "fit.heads=2",
    "fit.batch_size=32",
    "fit.text_steps=5",
    "fit.least_steps=120",
    "fit.most_steps=120",
)


def quick(*more: str) -> Config:
    return load_config(None, [*QUICK, *more])


def write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


def alloys(file: Path, count: int = 240) -> Path:
    """Strength rises with nickel and falls with temperature; every fifth temperature is missing; four rows per heat."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        nickel, temperature = random.uniform(0.05, 0.9), random.uniform(400, 900)
        strength = 500 + 800 * nickel - 0.5 * temperature + random.normal(0, 10)
        rows.append(
            [
                f"Fe{1 - nickel:.4f}Ni{nickel:.4f}",
                "" if i % 5 == 0 else f"{temperature:.0f}",
                random.choice(["air", "oil"]),
                f"heat {i // 4}",
                f"{strength:.1f}",
            ]
        )
    return write_csv(file, ["formula", "anneal", "quench", "heat", "strength"], rows)


def argv(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


# ---- what a table holds


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("strength[MPa]", ("strength", "MPa")),
        (" yield strength [MPa] ", ("yield strength", "MPa")),
        ("class", ("class", "")),
        ("gap[]", ("gap", "")),
    ],
)
def test_targets_are_read(text: str, target: tuple[str, str]) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "[MPa]", "a[b]c", "a[b"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_target(text)
    assert refused.value.code == "bad_target"


def test_columns_are_told_apart_by_name_and_by_what_they_hold() -> None:
    cells = [
        {
            "path": f"{i}.tif",
            "wafer": str(i // 4),
            "kv": str(5 + i % 3),
            "tool": "AB"[i % 2],
            "note": f"line edge looks rough near die {i}",
            "serial": f"x{i}",
            "row_id": str(i),
            "gone": "",
            "formula": "Fe2O3",
            "y": "1.0",
        }
        for i in range(20)
    ]
    assert column_roles(list(cells[0]), cells, targets=["y"]) == {
        "path": "picture",
        "wafer": "group",
        "kv": "number",
        "tool": "category",
        "note": "text",
        "serial": "ignored",
        "row_id": "ignored",
        "gone": "ignored",
        "formula": "formula",
        "y": "target",
    }


def test_what_was_found_is_said(tmp_path: Path) -> None:
    labelled = read_labelled(alloys(tmp_path / "a.csv"), ["strength[MPa]"], group="heat")
    said = "\n".join(labelled.findings)
    assert "strength [MPa]: 240 numbers" in said
    assert "240 rows in 60 groups (by their column)" in said
    assert "anneal: 48 missing" in said
    assert "formula (formula)" in said
    assert labelled.warnings == []


def test_imbalance_copies_and_leaks_are_said(tmp_path: Path) -> None:
    rows = [[i % 7, f"{'rare' if i < 3 else 'usual'}", "day 1" if i < 3 else "day 2", f"lot {i}"] for i in range(60)]
    file = write_csv(tmp_path / "a.csv", ["x", "kind", "session", "lot"], rows)
    warnings = " ".join(read_labelled(file, ["kind"]).warnings)
    assert "usual has 57 rows, rare 3" in warnings
    assert "session alone tells kind" in warnings
    assert "repeat the inputs of another" in warnings
    assert "x alone" not in warnings


def test_a_number_computed_from_the_target_is_suspected(tmp_path: Path) -> None:
    rows = [[math.exp(i / 30), i % 5, f"lot {i}", i / 10] for i in range(60)]
    warnings = read_labelled(write_csv(tmp_path / "a.csv", ["z", "x", "lot", "y"], rows), ["y"]).warnings
    assert [w for w in warnings if "alone tells" in w and w.startswith("z ")]
    assert not [w for w in warnings if w.startswith("x ")]


def test_copies_never_stand_on_both_sides_of_a_split(tmp_path: Path) -> None:
    """Seen failing where every row is its own group."""
    rows = [[i // 3, f"w{i}", i // 3 % 4 + 0.5] for i in range(120)]
    labelled = read_labelled(write_csv(tmp_path / "a.csv", ["x", "wafer", "y"], rows), ["y"])
    parts = split_rows(labelled, Config().fit, seed=0)
    where = [{row.values["table"]["x"] for row in part} for part in parts.values()]
    assert all(where)
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(where, 2))


def test_groups_stay_whole_and_classes_are_in_every_part() -> None:
    rows = [
        LabelledRow(str(i), None, {"table": {"x": float(i)}}, {"kind": "ab"[i // 3 % 2]}, f"g{i // 3}")
        for i in range(120)
    ]
    labelled = LabelledSet(rows, {"kind": ""}, {"kind": ("a", "b")}, {}, [], [])
    parts = split_rows(labelled, Config().fit, seed=0)
    groups = [{row.group for row in part} for part in parts.values()]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(groups, 2))
    assert all({row.truth["kind"] for row in part} == {"a", "b"} for part in parts.values())
    assert {name: len(part) for name, part in parts.items()} == {"train": 84, "calibration": 18, "test": 18}


def test_a_split_column_decides(tmp_path: Path) -> None:
    rows = [[i, ("train", "val", "test")[i % 3], i * 0.5] for i in range(60)]
    labelled = read_labelled(write_csv(tmp_path / "a.csv", ["x", "split", "y"], rows), ["y"])
    parts = split_rows(labelled, Config().fit, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 20, "calibration": 20, "test": 20}
    assert all(int(row.values["table"]["x"]) % 3 == 2 for row in parts["test"])


@pytest.mark.parametrize(
    ("header", "row", "targets", "code"),
    [
        (["x", "y"], [1, 2], ["z"], "no_column"),
        (["x", "y"], [1, 2], ["y"], "one_class"),
        (["x", "y"], [1, "a"], ["y"], "one_class"),
        (["x", "y"], [1, "a"], ["y[nm]"], "no_number"),
        (["x", "y"], [1, ""], ["y"], "one_class"),
        (["x", "y", "split"], [1, 2, "later"], ["y"], "bad_split"),
    ],
)
def test_tables_that_cannot_be_learned_are_refused(
    tmp_path: Path, header: list[str], row: list[Any], targets: list[str], code: str
) -> None:
    with pytest.raises((ConfigError, DatasetError)) as refused:
        read_labelled(write_csv(tmp_path / "a.csv", header, [row] * 20), targets)
    assert refused.value.code == code


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    for name, content in (("empty.csv", b""), ("binary.csv", bytes(range(256)) * 9), ("header.csv", b"x,y\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError) as refused:
            read_labelled(tmp_path / name, ["y"])
        assert refused.value.code == "no_table"
    with pytest.raises(DatasetError):
        read_labelled(tmp_path / "absent.csv", ["y"])
    with pytest.raises(ConfigError) as untold:
        read_labelled(alloys(tmp_path / "a.csv"))
    assert untold.value.code == "no_target"


# ---- fit and predict


@pytest.fixture(scope="module")
def steel_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("steel")
    heard: list[str] = []
    report = fit(
        alloys(folder / "a.csv"),
        folder / "run",
        quick("fit.least_steps=250", "fit.most_steps=250", "fit.learning_rate=0.004"),
        Choices(("strength[MPa]",), group="heat"),
        found=lambda labelled: heard.extend(labelled.findings),
    )
    assert heard
    return folder, report


def test_a_number_is_learned_from_composition_and_table(steel_run: tuple[Path, dict[str, Any]]) -> None:
    """Temperature is worth 72 MPa of deviation, nickel 196: neither alone can reach what both do."""
    _, report = steel_run
    score = report["test"]["targets"]["strength"]
    assert report["modalities"] == ["table", "composition"]
    assert score["mae"] < 0.35 * score["mean_mae"]
    assert report["test"]["without"]["composition"]["strength"]["mae"] > 2 * score["mae"]
    assert report["test"]["alone"]["composition"]["strength"]["mae"] > score["mae"]
    assert 0.7 <= score["coverage"] <= 1.0


def test_predictions_have_unit_interval_and_order(
    steel_run: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = steel_run
    rows = [["Fe0.2Ni0.8", 500, "air"], ["Fe0.9Ni0.1", 500, "oil"], ["", 600, ""], ["Qq2", 500, "air"], ["", "", ""]]
    table = write_csv(folder / "new.csv", ["formula", "anneal", "quench"], rows)
    assert argv("predict", table, "--run", folder / "run", "--json", "--explain") == 1
    first, second, third, fourth, fifth = json.loads(capsys.readouterr().out)
    value = first["targets"][0]
    assert {key: value[key] for key in ("name", "unit", "coverage")} == {
        "name": "strength",
        "unit": "MPa",
        "coverage": 0.9,
    }
    assert value["low"] < value["value"] < value["high"]
    assert value["value"] == pytest.approx(500 + 640 - 250, abs=80)
    assert second["targets"][0]["value"] == pytest.approx(500 + 80 - 250, abs=80)
    assert third["error"] is None
    assert "rests on" in first["explanation"]["sentence"]
    assert set(first["explanation"]["without"]) == {"table", "composition"}
    assert (fourth["error"]["code"], fourth["targets"]) == ("bad_formula", [])
    assert fifth["error"]["code"] == "nothing_known"


def test_a_run_is_read_back_as_it_was(steel_run: tuple[Path, dict[str, Any]]) -> None:
    folder, report = steel_run
    assert sorted(file.name for file in (folder / "run").rglob("*") if file.is_file()) == [
        "head.json",
        "head.safetensors",
        "manifest.json",
        "report.json",
    ]
    assert json.loads((folder / "run" / "report.json").read_text()) == json.loads(json.dumps(report))
    rows = [{"composition": "Fe0.5Ni0.5", "table": {"anneal": 500.0}}]
    one, other = (Predictor.load(folder / "run" / HEAD).predict(rows)[0].targets[0].as_dict() for _ in range(2))
    assert one == other


def test_the_same_command_gives_the_same_run(tmp_path: Path) -> None:
    table = alloys(tmp_path / "a.csv", 80)
    for name in ("one", "two"):
        fit(table, tmp_path / name, quick("fit.least_steps=20", "fit.most_steps=20"), Choices(("strength[MPa]",)))
    one, two = (tmp_path / name / HEAD / "head.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_damaged_run_is_refused(steel_run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = steel_run
    for place, change in (("head.safetensors", b"x"), ("head.json", b"{}")):
        broken = tmp_path / place
        shutil.copytree(folder / "run", broken)
        (broken / HEAD / place).write_bytes(change)
        assert argv("predict", folder / "new.csv", "--run", broken) == 2
    with pytest.raises(RunError) as refused:
        Predictor.load(tmp_path / "nothing")
    assert refused.value.code == "no_run"


def test_another_folder_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RunError) as refused:
        fit(alloys(tmp_path / "a.csv"), tmp_path / "mine", quick(), Choices(("strength",)))
    assert refused.value.code == "other_run"


@pytest.mark.parametrize(("strategy", "evidential"), [("early", False), ("late", True), ("gated", False)])
def test_classes_and_numbers_are_learned_together(strategy: str, evidential: bool) -> None:
    random = np.random.default_rng(0)
    rows = []
    for i in range(200):
        x, y = random.normal(size=2)
        values: dict[str, Any] = {"table": {"x": x}, "text": f"the finish is {'smooth' if y > 0 else 'rough'} here"}
        if i % 10 == 0:
            values.pop("text")
        truth = {"sum": x + (1.0 if y > 0 else -1.0), "side": "up" if x > 0 else "down"}
        rows.append(LabelledRow(str(i), None, values, {**truth, "side": None if i % 7 == 0 else truth["side"]}, str(i)))
    labelled = LabelledSet(rows, {"sum": "", "side": ""}, {"side": ("down", "up")}, {}, [], [])
    settings = quick(
        f"fit.strategy={strategy}",
        f"fit.evidential={str(evidential).lower()}",
        "fit.experts=2",
        "fit.learning_rate=0.004",
    )
    predictor = fit_rows(labelled, {"train": rows[:120], "calibration": rows[120:160]}, settings)
    found = predictor.predict([row.values for row in rows[160:]])
    best = [int(np.argmax(p.targets[1].probabilities)) for p in found]
    right = [
        ("down", "up")[c] == row.truth["side"] for c, row in zip(best, rows[160:], strict=True) if row.truth["side"]
    ]
    assert np.mean(right) > 0.75
    off = [abs(p.targets[0].value - row.truth["sum"]) for p, row in zip(found, rows[160:], strict=True)]  # type: ignore[operator]
    assert np.mean(off) < 0.6  # 1.1 by the mean


def test_classes_are_told_by_their_texts(tmp_path: Path) -> None:
    """With a text about every class, a row is scored against all texts; a class without one is refused."""
    random = np.random.default_rng(0)
    centres = {"fibres": [2.0, 0.0], "pores": [0.0, 2.0], "grains": [-2.0, -2.0]}
    rows = [
        [*(np.array(centres[kind]) + random.normal(0, 0.3, 2)).round(3), kind, f"lot {i}"]
        for i in range(60)
        for kind in centres
    ]
    table = write_csv(tmp_path / "a.csv", ["x", "y", "kind", "name"], rows)
    for kind in centres:
        (tmp_path / f"{kind}.txt").write_text(f"structure: {kind} are seen as {kind}.\nuse: {kind} serve.")
    report = fit(table, tmp_path / "run", quick(), Choices(("kind",), ("name",), knowledge=tmp_path))
    assert report["test"]["targets"]["kind"]["top1"] > 0.9
    predictor = Predictor.load(tmp_path / "run" / HEAD)
    assert predictor.class_texts["kind"].keys() == centres.keys()
    (tmp_path / "pores.txt").unlink()
    with pytest.raises(DatasetError) as refused:
        fit(table, tmp_path / "run", quick(), Choices(("kind",), ("name",), knowledge=tmp_path))
    assert refused.value.code == "no_sheet"


@pytest.mark.slow
def test_a_lost_modality_costs_little_against_never_having_had_it() -> None:
    """Both modalities tell the class. A fused head that loses one is as good as one that was fitted without it."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(400):
        up = i % 2 == 0
        vector = random.normal(0, 1, 6) + (0.7 if up else -0.7)
        number = random.normal(0, 1) + (0.9 if up else -0.9)
        rows.append(LabelledRow(str(i), None, {"texture": vector, "table": {"x": number}}, {"k": "ud"[i % 2]}, str(i)))
    labelled = LabelledSet(rows, {"k": ""}, {"k": ("d", "u")}, {}, [], [])

    def only(name: str, part: list[LabelledRow]) -> list[LabelledRow]:
        return [LabelledRow(r.name, None, {name: r.values[name]}, r.truth, r.group) for r in part]

    def right(predictor: Predictor, part: list[LabelledRow]) -> float:
        found = predictor.predict([row.values for row in part])
        best = [p.targets[0].target.classes[int(np.argmax(p.targets[0].probabilities))] for p in found]
        return float(np.mean([label == row.truth["k"] for label, row in zip(best, part, strict=True)]))

    both = fit_rows(labelled, {"train": rows[:150], "calibration": rows[150:200]}, quick())
    for name in ("texture", "table"):
        alone = fit_rows(labelled, {"train": only(name, rows[:150]), "calibration": only(name, rows[150:200])}, quick())
        assert right(both, only(name, rows[200:])) > right(alone, only(name, rows[200:])) - 0.05


# ---- pictures


def draw(folder: Path, count: int = 12) -> Path:
    """Stripes against blobs, four pictures of each of several samples."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(0)
    for kind in ("blobs", "stripes"):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            noise = gaussian_filter(random.normal(size=(96, 96)), 2.0 if kind == "blobs" else (0.5, 8.0))
            grey = (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
            Image.fromarray(grey).save(folder / kind / f"lot{'abcdefghijkl'[i]}_{i}.png")
    return folder


def test_pictures_in_folders_are_told_apart_and_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures, run = draw(tmp_path / "pictures"), tmp_path / "run"
    settings = [option for setting in QUICK for option in ("--set", setting)]
    assert argv("fit", pictures, "--out", run, "--looks", "none", "--json", *settings) == 0
    out = capsys.readouterr()
    report = json.loads(out.out)
    assert "target class: 2 classes (blobs 12, stripes 12)" in out.err
    assert report["modalities"] == ["texture"]
    assert report["heads"]["class"]["shares"] == {"fused": 1.0}  # four groups are too few to choose by
    assert set(report["test"]["heads"]["class"]) == {"fused", "constant", "texture"}
    assert any("a coverage of 90% needs 9" in warning for warning in report["warnings"])
    new = tmp_path / "new"
    new.mkdir()
    for kind in ("blobs", "stripes"):
        shutil.copy(next((pictures / kind).iterdir()), new / f"{kind}.png")
    (new / "broken.png").write_bytes(b"no picture")
    options = ("--explain", "--overlay", tmp_path / "why", "--json")
    assert argv("predict", new, "--run", run, *options) == 1
    blobs, broken, stripes = json.loads(capsys.readouterr().out)
    assert [blobs["targets"][0]["scores"][0]["label"], stripes["targets"][0]["scores"][0]["label"]] == [
        "blobs",
        "stripes",
    ]
    assert broken["error"]["code"]
    assert Image.open(blobs["explanation"]["picture"]).size == (1024, 1024)
    assert blobs["explanation"]["parts"]["what"] == "log-odds of class blobs"
    assert np.shape(blobs["explanation"]["parts"]["falls"]) == (7, 7)
    assert argv("predict", new / "blobs.png", "--run", run) == 0
    assert "class blobs" in capsys.readouterr().out


def test_vectors_of_a_picture_are_kept_by_its_bytes_and_by_who_looked(tmp_path: Path) -> None:
    looked: list[str] = []

    def extractor(name: str) -> FeatureExtractor:
        return FeatureExtractor(name, lambda micrograph: np.full(2, float(len(looked.append(name) or looked))))  # type: ignore[func-returns-value]

    picture = next((draw(tmp_path / "p", 1) / "blobs").iterdir())
    first = picture_values(picture, extractor("a"), cache=tmp_path)
    copy = picture.with_name("copy.png")
    shutil.copy(picture, copy)
    again = picture_values(copy, extractor("a"), cache=tmp_path)
    assert looked == ["a"]
    assert all(np.array_equal(first[name], again[name]) for name in ("texture", "image"))
    picture_values(picture, extractor("b"), cache=tmp_path)
    side_car = picture.with_name(f"{picture.name}.txt")
    side_car.write_text("[SemImageFile]\nAcceleratingVoltage=5000 Volt\n")
    assert picture_values(picture, cache=tmp_path)["instrument"].get("hv_kv") == 5.0
    side_car.write_text("[SemImageFile]\nAcceleratingVoltage=7000 Volt\n")
    assert picture_values(picture, cache=tmp_path)["instrument"].get("hv_kv") == 7.0
    side_car.unlink()
    assert looked == ["a", "b"]
    for torn in (lambda whole: b"torn", lambda whole: whole[: len(whole) // 2]):
        for file in tmp_path.glob("*.npz"):
            file.write_bytes(torn(file.read_bytes()))
        assert np.array_equal(picture_values(picture, extractor("a"), cache=tmp_path)["texture"], first["texture"])


def test_pictures_are_looked_at_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two networks wait for each other: one picture after the other, they would wait in vain."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    both = threading.Barrier(2, timeout=20)

    def look(micrograph: Micrograph) -> np.ndarray:
        both.wait()
        return np.zeros(2)

    pictures = sorted((draw(tmp_path, 1)).glob("*/*.png"))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = [pictures[0], tmp_path / "broken.png", pictures[1], tmp_path / "none.png"]
    rows = [LabelledRow(file.name, file) for file in files]
    heard: list[int] = []
    failed = fill(rows, FeatureExtractor("waits", look), lambda done, total, text: heard.append(done))
    assert list(failed) == ["broken.png", "none.png"]
    assert [sorted(row.values) for row in rows[::2]] == [["image", "instrument", "texture"]] * 2
    assert heard == [1, 2, 3, 4]


def test_a_crystal_column_tells_graph_text_composition_and_cell(tmp_path: Path) -> None:
    pytest.importorskip("pymatgen.core", reason="the extra [crystal] is not installed")
    from tests.test_encoders import CAESIUM_CHLORIDE, cif

    rows = [[cif(CAESIUM_CHLORIDE, 4.0 + 0.01 * i), 4.0 + 0.01 * i, f"g{i}"] for i in range(40)]
    rows[7][0] = "data_broken"
    table = write_csv(tmp_path / "a.csv", ["cif", "y", "name"], rows)
    heard: list[str] = []
    report = fit(
        table,
        tmp_path / "run",
        quick("fit.least_steps=5", "fit.most_steps=5"),
        Choices(("y[A]",), ("name",)),
        found=lambda labelled: heard.extend(labelled.warnings),
    )
    assert report["modalities"] == ["text", "composition", "cell", "crystal"]
    assert any(warning.startswith("row 9: ") for warning in heard)


def test_pictures_of_a_table_that_cannot_be_read_are_named_and_a_session_is_suspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen failing with a traceback for a picture that is not there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw(tmp_path, 8)
    rows = [
        [f"{kind}/lot{c}_{i}.png", kind, f"{5 * (kind == 'blobs') + 5} kV"]
        for kind in ("blobs", "stripes")
        for i, c in enumerate("abcdefgh")
    ]
    rows += [["blobs/none.png", "blobs", "10 kV"], ["../broken.png", "blobs", ""]]
    (tmp_path.parent / "broken.png").write_bytes(b"no picture")
    heard: list[str] = []
    settings = quick("fit.least_steps=5", "fit.most_steps=5")
    table = write_csv(tmp_path / "a.csv", ["path", "kind", "voltage"], rows)
    fit(table, tmp_path / "run", settings, Choices(("kind",)), found=lambda labelled: heard.extend(labelled.warnings))
    said = "\n".join(heard)
    assert "blobs/none.png: " in said
    assert "../broken.png: " in said
    assert "voltage alone tells kind (1.00)" in said


def test_help_of_fit_and_predict_is_instant() -> None:
    """What is imported decides, not the clock."""
    for verb in ("fit", "predict"):
        program = (
            "import sys\nfrom serve.cli import main\ntry: main(sys.argv[1:])\n"
            "finally: print(*sys.modules, file=sys.stderr)"
        )
        command = [sys.executable, "-c", program, verb, "-h"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert not {"torch", "numpy", "skimage"} & set(done.stderr.split())


def test_the_settings_written_out_are_the_defaults() -> None:
    assert load_config(Path(__file__).parents[1] / "configs" / "classify.yaml") == Config()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_class_that_nobody_taught_is_unknown(tmp_path: Path) -> None:
    """A stranger lies no farther from the rows than a new group does, so a distance alone would name it."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(0, 1, (7, 24))

    def rows(kind: int, groups: range) -> list[LabelledRow]:
        made = []
        for group in groups:
            shift = rng.normal(0, 2.0 if group == 0 else 0.5, 24)  # one odd lot of each kind
            for n in range(4):
                vector = kinds[kind] + shift + rng.normal(0, 0.3, 24)
                made.append(
                    LabelledRow(
                        f"{kind}-{group}-{n}", None, {"texture": vector}, {"kind": f"k{kind}"}, f"{kind}-{group}"
                    )
                )
        return made

    known = [row for kind in range(6) for row in rows(kind, range(8))]
    held = [row for kind in range(6) for row in rows(kind, range(8, 12))]
    classes = tuple(f"k{n}" for n in range(6))
    labelled = LabelledSet(known, {"kind": ""}, {"kind": classes}, {}, [], [])
    predictor = fit_rows(labelled, {"train": known, "calibration": held}, load_config(None, QUICK))
    predictor.save(tmp_path / "head", {})
    predictor = Predictor.load(tmp_path / "head")
    assert predictor.silence is not None
    strangers, home = rows(6, range(4)), held
    told = predictor.silence.verdicts(predictor.fixed([predictor.items(row.values) for row in strangers + home]))
    said = [not verdict.reason for (verdict,) in told]
    assert not any(said[: len(strangers)])
    assert np.mean(said[len(strangers) :]) > 0.5
    assert all(
        verdict.word == row.truth["kind"] for (verdict,), row in zip(told[16:], home, strict=True) if not verdict.reason
    )
    found = [p.targets[0].verdict for p in predictor.predict([row.values for row in strangers + home])]
    assert all(verdict == "unknown" for verdict, spoken in zip(found, said, strict=True) if not spoken)

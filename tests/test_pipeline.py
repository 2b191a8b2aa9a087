"""`teach` end to end: what comes out, what it withholds, and that interruption changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from teacher_server import answers_to, completion, good, teacher_server

from assistant.chat import auxiliary_text
from assistant.config import PriceConfig, TeachConfig
from assistant.errors import DatasetError, EgressError, TeacherError
from data_gen.catalogue import Catalogue, assign_splits, pair_up
from data_gen.dataset.writer import JSON_COLUMNS, TEXT_COLUMNS, SplitWriter, conversation
from data_gen.drawing.synth import write_synthetic
from data_gen.ledger import Ledger
from data_gen.pipeline import teach
from data_gen.questions.filters import answer_verdict
from data_gen.teacher import ReplayTeacher

ROOT = Path(__file__).parents[1]
CHOSEN = ("particles", "patterned_surface", "tips")
IMAGES = 12 * len(CHOSEN)
SHARES = {"validation": 0.1, "test": 0.2}
COMMAND = """
import sys
from pathlib import Path
from assistant.config import TeachConfig
from data_gen.pipeline import teach

def main():
    tell = lambda done, total, what: print(what, done, flush=True)
    teach(Path(sys.argv[1]), Path(sys.argv[2]), config=TeachConfig(), workers=int(sys.argv[3]), progress=tell)

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def micrographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples of four views of each of a few classes."""
    folder = tmp_path_factory.mktemp("images")
    write_synthetic(folder, classes=CHOSEN, per_class=12, size=(96, 128), workers=1)
    return folder


@pytest.fixture(scope="module")
def taught(micrographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set that an uninterrupted run makes."""
    out = tmp_path_factory.mktemp("taught")
    teach(micrographs, out, config=TeachConfig(), workers=1)
    return out


@pytest.fixture(scope="module")
def rows(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Every row of every split as `datasets` reads it."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    data = load_dataset(str(taught), cache_dir=str(tmp_path_factory.mktemp("cache")))
    return {split: list(data[split]) for split in data}


def files(folder: Path) -> dict[str, str]:
    """sha256 of every file that a user of the data set reads."""
    paths = sorted([*folder.glob("data/*"), folder / "README.md", folder / "rejected.jsonl"])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def small(micrographs: Path, folder: Path, *, groups: int = 3) -> Path:
    """A folder with the first images of a few classes."""
    lines = (micrographs / "truth.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["label"] in CHOSEN and json.loads(line)["seed"] % 4 == 0]
    chosen = kept[: 3 * groups]
    for line in chosen:
        path = micrographs / json.loads(line)["path"]
        for source in path.parent.glob(f"{path.stem}*"):
            target = folder / source.relative_to(micrographs)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    (folder / "truth.jsonl").write_text("".join(f"{line}\n" for line in chosen))
    return folder


# ------------------------------------------------------------------------------------------------------- the rows


def test_the_data_set_opens_with_datasets(rows: dict[str, list[dict[str, Any]]], taught: Path) -> None:
    """`load_dataset(DIR)` gives three splits with pictures, conversations and the flat columns."""
    assert set(rows) == {"train", "validation", "test"}
    for row in (row for split in rows.values() for row in split):
        user, *others = row["messages"]
        turns = len(row["messages"]) // 2
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * turns
        assert turns == 1 or row["facet"] == "conversation"
        kinds = [part["type"] for part in user["content"]]
        assert kinds == ["image"] * len(row["images"]) + ["text"]
        assert all([part["type"] for part in message["content"]] == ["text"] for message in others)
        assert row["references"][0] == others[-1]["content"][0]["text"]
        assert len(set(row["references"])) == len(row["references"]) <= 5
        assert all(image.mode == "L" and image.size[0] == 128 for image in row["images"])
        provenance = json.loads(row["provenance"])
        assert len(provenance["sha256"]) == len(row["images"]) == (2 if row["task"] == "comparison" else 1)
        assert json.loads(row["measured"])
    ids = [row["id"] for split in rows.values() for row in split]
    assert len(set(ids)) == len(ids)
    assert [path.name for path in sorted(taught.glob("data/*"))] == [
        f"{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")
    ]


def test_every_task_and_facet_is_there(rows: dict[str, list[dict[str, Any]]]) -> None:
    """A few classes of synthetic micrographs bring all tasks, and nearly all facets of the taxonomy."""
    tasks = Counter(row["task"] for row in rows["train"])
    assert set(tasks) == {"caption", "vqa", "comparison", "classification", "metadata"}
    facets = {row["facet"] for row in rows["train"] if row["task"] == "vqa"}
    assert len(facets) >= 8
    assert tasks["vqa"] > 3 * tasks["caption"]


def test_splits_are_by_group_and_every_class_is_in_each(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Neighbouring views of one sample in two splits would be the test set's answers in the training set."""
    where = defaultdict(set)
    for split, found in rows.items():
        for row in found:
            where[row["group"]].add(split)
        assert {row["label"] for row in found if row["label"]} == set(CHOSEN)
    assert len(where) == 3 * len(CHOSEN)
    assert all(len(splits) == 1 for splits in where.values())


def test_the_label_is_not_in_the_input(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Neither question nor auxiliary text names the class of the picture, but where it stands among others."""
    labelled = [row for split in rows.values() for row in split if row["label"]]
    for row in (row for row in labelled if row["facet"] != "candidates"):
        asked = row["messages"][0]["content"][-1]["text"]
        name = row["label"].replace("_", " ")
        assert not re.search(rf"\b({name}|{row['label']})\b", f"{asked} {row['aux']}".lower())


def test_aux_is_what_serving_builds(rows: dict[str, list[dict[str, Any]]], micrographs: Path) -> None:
    """Training on another line than serving shows would teach the student to read the wrong text."""
    from assistant.measure import measure
    from assistant.micrograph import read_micrograph

    seen = {row["source"]: row["aux"] for row in rows["test"] if len(row["images"]) == 1}
    for source in sorted(seen)[::10]:
        m = read_micrograph(micrographs / source)
        assert seen[source] == auxiliary_text(m.metadata_line(), measure(m).line())
    pair = next(row for row in rows["test"] if len(row["images"]) == 2)
    assert re.match(r"image 1: .*; image 2: ", pair["aux"])


def test_pictures_are_the_content_as_the_model_sees_it(
    rows: dict[str, list[dict[str, Any]]], micrographs: Path
) -> None:
    """Banner cropped, windowed to 8 bit: within a grey level of what `to_model_input` makes of the file itself."""
    from assistant.micrograph import Micrograph, read_micrograph, to_model_input

    for row in [row for row in rows["validation"] if row["task"] == "caption"][::5]:
        m = read_micrograph(micrographs / row["source"])
        pixels = np.asarray(row["images"][0])
        assert pixels.shape == m.content.shape
        stored, _ = to_model_input(Micrograph(pixels, "0" * 64), 32)
        direct, _ = to_model_input(m, 32)
        assert np.abs(stored - direct).max() < 0.02


def test_answers_agree_with_the_drawn_truth(rows: dict[str, list[dict[str, Any]]], micrographs: Path) -> None:
    """A stated count or shape is the one that was drawn; what the measurement got wrong is not taught."""
    lines = (micrographs / "truth.jsonl").read_text().splitlines()
    truth = {row["path"]: row["truth"] for row in map(json.loads, lines)}
    checked = Counter()  # type: ignore[var-annotated]
    for row in (row for split in rows.values() for row in split if row["task"] in {"vqa", "caption"}):
        drawn, states = truth[row["source"]], json.loads(row["provenance"])["states"]
        for name in ("surface", "arrangement", "touching", "distribution"):
            if name in states:
                assert states[name] == drawn[name]
                checked[name] += 1
        if "count" in states and "count" in drawn:
            assert abs(float(states["count"]) - drawn["count"]) <= 0.25 * drawn["count"] + 0.5
            checked["count"] += 1
    assert min(checked.values()) >= 3
    assert len(checked) == 5


def test_pictures_shared_by_rows_are_stored_once(taught: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Thirteen rows ask about one picture; thirteen copies would make the files as many times larger."""
    import io

    size = (taught / "data" / "train-00000-of-00001.parquet").stat().st_size
    total, unique = 0, {}
    for row in rows["train"]:
        for image in row["images"]:
            stream = io.BytesIO()
            image.save(stream, "PNG")
            total += len(stream.getvalue())
            unique[hashlib.sha256(image.tobytes()).digest()] = len(stream.getvalue())
    assert total > 8 * sum(unique.values())
    assert size < 2.2 * sum(unique.values()) + 400 * len(rows["train"])


def test_large_pictures_are_stored_once_too(tmp_path: Path) -> None:
    """A dictionary of parquet ends at 1 MiB by default, that is after three pictures of this size."""
    rng = np.random.default_rng(0)
    pictures = [rng.bytes(300_000) for _ in range(6)]
    writer = SplitWriter(tmp_path, "train")
    row = dict.fromkeys((*TEXT_COLUMNS, *JSON_COLUMNS, "aux"), "")
    for shown in pictures:
        for _ in range(10):
            writer.add({**row, "references": [], "messages": conversation("?", "!", images=1)}, [shown])
    writer.finish()
    writer.publish()
    assert 1 < writer.path.stat().st_size / sum(map(len, pictures)) < 1.1


def test_the_card_and_the_rejections(taught: Path) -> None:
    """The card counts the rows and carries the checksums; every rejection has a reason."""
    card = (taught / "README.md").read_text()
    for path in taught.glob("data/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    reasons = Counter(json.loads(line)["reason"] for line in (taught / "rejected.jsonl").read_text().splitlines())
    for reason, count in reasons.items():
        assert f"* {count} {reason}" in card
    with sqlite3.connect(taught / "ledger.sqlite") as ledger:
        assert ledger.execute("select count(*) from measurements").fetchone() == (IMAGES,)
        assert ledger.execute("select distinct teacher, verdict from exchanges").fetchall() == [("offline", "accepted")]
    ledger.close()
    assert not list(taught.glob(".drafts*")) + list(taught.rglob("*.partial"))


def test_a_changed_data_set_is_not_read_from_an_old_cache(micrographs: Path, tmp_path: Path) -> None:
    """`load_dataset` caches by path and version: without a new version it would go on giving the old rows."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    folder = small(micrographs, tmp_path / "images")
    out, counts = tmp_path / "out", []
    for tasks in (("caption",), ("caption", "classification")):
        report = teach(folder, out, config=TeachConfig(tasks=tasks), workers=1)
        data = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
        counts.append(sum(len(data[split]) for split in data))
        assert counts[-1] == report.total
    assert counts[1] > counts[0]


# ------------------------------------------------------------------------------------------------- interruptions


def killed_at(
    micrographs: Path,
    out: Path,
    moment: str,
    *,
    workers: int = 1,
    before: Callable[[subprocess.Popen[str]], None] = lambda process: None,
) -> None:
    """Start `teach` in a process of its own and send SIGKILL when it tells of that moment."""
    script = out.parent / "run.py"
    script.write_text(COMMAND)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(micrographs), str(out), str(workers)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as told:
        for line in told:
            if line.startswith(moment):
                break
        else:
            raise AssertionError(f"never came to {moment!r}")
        before(process)
        os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_kill_then_the_same_command_ends_in_the_same_bytes(micrographs: Path, taught: Path, tmp_path: Path) -> None:
    """SIGKILL while measuring, asking and writing: every file that a reader opens is as if nothing had happened."""
    out = tmp_path / "out"
    for moment in ("measuring 30", "asking 20", "writing validation"):
        killed_at(micrographs, out, moment)
        assert not (out / "README.md").exists()
    with Ledger(out / "ledger.sqlite"):
        pass
    with sqlite3.connect(out / "ledger.sqlite") as ledger:
        assert ledger.execute("select count(*) from measurements").fetchone() == (IMAGES,)
    ledger.close()
    teach(micrographs, out, config=TeachConfig(), workers=1)
    assert files(out) == files(taught)


def test_workers_change_nothing_and_do_not_outlive_their_parent(micrographs: Path, tmp_path: Path) -> None:
    """Spawned workers measure what one process measures; after SIGKILL of the parent they are gone at once."""
    import psutil

    folder = small(micrographs, tmp_path / "images")
    teach(folder, tmp_path / "one", config=TeachConfig(), workers=1)
    children: list[psutil.Process] = []

    def look(process: subprocess.Popen[str]) -> None:
        children.extend(psutil.Process(process.pid).children(recursive=True))

    killed_at(folder, tmp_path / "two", "measuring 9", workers=2, before=look)
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=300)
    assert alive == []
    teach(folder, tmp_path / "two", config=TeachConfig(), workers=1)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_second_run_measures_nothing(micrographs: Path, taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the ledger is not done again, and the result is the same to the byte."""
    import assistant.measure

    def measure(_m: object) -> None:
        raise AssertionError("measured again")

    before = files(taught)
    monkeypatch.setattr(assistant.measure, "measure", measure)
    teach(micrographs, taught, config=TeachConfig(), workers=1)
    assert files(taught) == before


def test_a_changed_file_is_measured_again(micrographs: Path, tmp_path: Path) -> None:
    """The ledger goes by content: a side-car that appears later changes the calibration, so it counts too."""
    folder = small(micrographs, tmp_path / "images")
    teach(folder, tmp_path / "out", config=TeachConfig(tasks=("caption",)), workers=1)
    path = next(folder.rglob("*.tif*"), None) or next(folder.rglob("*.bmp"))
    path.with_name(path.name + ".txt").write_text("$CM_MAG 1000\n")
    teach(folder, tmp_path / "out", config=TeachConfig(tasks=("caption",)), workers=1)
    with sqlite3.connect(tmp_path / "out" / "ledger.sqlite") as ledger:
        assert ledger.execute("select count(*) from measurements").fetchone() == (10,)
    ledger.close()


# ------------------------------------------------------------------------------------------------ unusable input


def test_unreadable_and_duplicate_files_are_named(micrographs: Path, tmp_path: Path) -> None:
    """Bad input never ends the job: each file is named with its reason, the others are taught."""
    folder = tmp_path / "images"
    small(micrographs, folder)
    (folder / "truth.jsonl").unlink()
    first = sorted(folder.rglob("*.*"))[0]
    (first.parent / "zz_copy_001.png").write_bytes(b"")
    (first.parent / "zz_torn_001.tif").write_bytes(b"II*\x00torn")
    Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))).save(first.parent / "zz_ramp_001.png")
    Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) + 9, (64, 1))).save(first.parent / "zz_ramp_002.png")
    report = teach(folder, tmp_path / "out", config=TeachConfig(), workers=1)
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    reasons = {row["files"][0].rsplit("/", 1)[-1]: row for row in rejected if "files" in row}
    assert reasons["zz_copy_001.png"]["reason"] == reasons["zz_torn_001.tif"]["reason"] == "unreadable"
    assert reasons["zz_copy_001.png"]["code"]
    assert reasons["zz_ramp_002.png"]["reason"] == "near_duplicate"
    assert reasons["zz_ramp_002.png"]["of"].endswith("zz_ramp_001.png")
    assert report.rejected["unreadable"] == 2
    assert report.total > 0


def test_nothing_to_teach_is_an_error(tmp_path: Path) -> None:
    """An empty or missing folder is told before anything is written."""
    with pytest.raises(DatasetError, match="not_found"):
        teach(tmp_path / "nowhere", tmp_path / "out", config=TeachConfig())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no_images"):
        teach(tmp_path / "empty", tmp_path / "out", config=TeachConfig())
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty" / "truth.jsonl").write_text('{"path": "../../etc/passwd.png"}\n')
    with pytest.raises(DatasetError, match=r"bad_truth: .*line 1"):
        teach(tmp_path / "empty", tmp_path / "out", config=TeachConfig())


# ---------------------------------------------------------------------------------------------------- catalogue


def test_splits_are_stratified_and_stable() -> None:
    """Every label keeps its shares; the same seed gives the same splits whatever the order of the files."""
    labels = {f"{label}-{i}": label for label in "abc" for i in range(20)}
    splits = assign_splits(labels, shares=SHARES, seed=1)
    for label in "abc":
        counts = Counter(split for group, split in splits.items() if labels[group] == label)
        assert counts == {"train": 14, "validation": 2, "test": 4}
    assert assign_splits(dict(reversed(labels.items())), shares=SHARES, seed=1) == splits
    assert assign_splits(labels, shares=SHARES, seed=2) != splits
    few = assign_splits({"a-1": "a", "b-1": "b", "b-2": "b"}, shares=SHARES, seed=0)
    assert few["a-1"] == "train"
    assert {few["b-1"], few["b-2"]} == {"train", "test"}
    assert set(assign_splits(labels, shares={"validation": 0.0, "test": 0.0}, seed=0).values()) == {"train"}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)


def test_folders_are_labels_and_names_tell_groups(tmp_path: Path) -> None:
    """`lotA/edge_001` and `lotA/edge_002` are one group of the label lotA; one folder alone is no label."""
    for name in ("lotA/edge_001", "lotA/edge_002", "lotA/mid-1", "lotB/edge_1", "lotB/7", "lotB/x"):
        picture(tmp_path / f"{name}.png")
    entries = {entry.name: entry for entry, _ in Catalogue(tmp_path, shares=SHARES, seed=0)}
    assert {entry.label for entry in entries.values()} == {"lotA", "lotB"}
    groups = {name: entry.group for name, entry in entries.items()}
    assert groups["lotA/edge_001.png"] == groups["lotA/edge_002.png"] == "lotA/edge"
    assert len(set(groups.values())) == 5
    alone = Catalogue(tmp_path / "lotA", shares=SHARES, seed=0)
    assert {entry.label for entry, _ in alone} == {None}


def test_one_flat_folder_is_split_by_neighbours_with_a_warning(tmp_path: Path) -> None:
    """Without any group to see, a test set is still made, and the card says what it is worth."""
    for i in range(40):
        picture(tmp_path / f"IMG_{i:04d}.png")
    catalogue = Catalogue(tmp_path, shares=SHARES, seed=0)
    splits = [split for _, split in catalogue]
    assert set(splits) == {"train", "validation", "test"}
    assert all(len(set(splits[i : i + 8])) == 1 for i in range(0, 40, 8))
    assert "fewer than three groups" in catalogue.warnings[0]


def test_the_index_is_honoured(tmp_path: Path) -> None:
    """Given splits and groups win; `val` is `validation`; a path outside the folder is refused."""
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    lines = ("path,label,split,source,group", "a.png,alloy,train,nasa,g1", "b.png,alloy,val,nasa,g2", "c.png,,,nasa,g3")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    entries = list(Catalogue(tmp_path, shares=SHARES, seed=0))
    assert [(entry.label, split) for entry, split in entries] == [
        ("alloy", "train"), ("alloy", "validation"), (None, "train"),
    ]  # fmt: skip
    (tmp_path / "index.csv").write_text("path,split\n../a.png,train\n")
    with pytest.raises(DatasetError, match=r"bad_index: .*line 2"):
        Catalogue(tmp_path, shares=SHARES, seed=0)
    (tmp_path / "index.csv").write_text("file\na.png\n")
    with pytest.raises(DatasetError, match="bad_index"):
        Catalogue(tmp_path, shares=SHARES, seed=0)


ROWS = st.lists(
    st.tuples(st.sampled_from("pqrstu"), st.sampled_from(["", "train", "val", "test"]), st.sampled_from("xyz")),
    min_size=1,
    max_size=40,
)


@given(rows=ROWS, seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_sample_is_in_two_splits_whatever_the_index_says(
    tmp_path: Path, rows: list[tuple[str, str, str]], seed: int
) -> None:
    """Any mixture of named groups, given splits and labels: every file once, and every group whole in one split.

    A group goes where most of its files are put, and takes those along for which nothing is said.
    """
    lines = [f"{i}.png,{group},{split},{label}" for i, (group, split, label) in enumerate(rows)]
    (tmp_path / "index.csv").write_text("\n".join(["path,group,split,label", *lines]))
    told = {group: Counter(split for of, split, _ in rows if of == group and split) for group, _, _ in rows}
    catalogue = Catalogue(tmp_path, shares=SHARES, seed=seed)
    entries = list(catalogue)
    assert [entry.name for entry, _ in entries] == [f"{i}.png" for i in range(len(rows))]
    found = defaultdict(set)
    for (entry, split), (group, _, _) in zip(entries, rows, strict=True):
        # Fewer than three groups are cut into blocks, which the card tells; never one whose split is given.
        blocks = "fewer than three groups" in " ".join(catalogue.warnings) and not told[group]
        found[entry.group if blocks else group].add(split.replace("validation", "val"))
    assert all(len(splits) == 1 for splits in found.values())
    assert all(told[group][min(found[group])] == max(told[group].values()) for group in found if told.get(group))
    torn = any(len(splits) > 1 for splits in told.values())
    assert torn == any("into several splits" in warning for warning in catalogue.warnings)


def test_an_index_that_splits_by_image_is_honoured_and_told(tmp_path: Path) -> None:
    """Without a group column the index is law, and the card says what its scores are worth."""
    lines = [f"lot7/edge_{i:02d}.png,{'test' if i % 4 == 0 else 'train'}" for i in range(8)]
    (tmp_path / "index.csv").write_text("\n".join(["path,split", *lines]))
    catalogue = Catalogue(tmp_path, shares=SHARES, seed=0)
    assert [split for _, split in catalogue] == ["test", "train", "train", "train"] * 2
    assert len(catalogue.warnings) == 1
    assert "Add a group column" in catalogue.warnings[0]


def test_partners_are_of_the_same_split_and_as_often_alike_as_not() -> None:
    """A pair across splits would leak; a pair that is always of one class would answer itself."""
    images = [(i, "train" if i % 4 else "test", f"c{i % 5}") for i in range(800)]
    pairs = pair_up(images, seed=0)
    assert set(pairs) == set(range(800))
    assert all(images[a][1] == images[b][1] and a != b for a, b in pairs.items())
    alike = sum(images[a][2] == images[b][2] for a, b in pairs.items())
    assert 0.43 < alike / 800 < 0.57
    assert pair_up([(0, "train", None)], seed=0) == {}


# ------------------------------------------------------------------------------------------------ hosted teacher


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAEMI_TEST_KEY", "sk-sentinel-0123456789abcdef")


def hosted(url: str, **changes: Any) -> TeachConfig:
    price = PriceConfig(input=1.0, output=1.0)
    given = {"teacher": "openai", "model": "m", "base_url": url, "deadline_s": 60.0, "price_per_million": price}
    return TeachConfig(**{**given, "api_key_env": "MAEMI_TEST_KEY", "downscale": 64, **changes})


def test_egress_denied_opens_no_socket(
    micrographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: None
) -> None:
    """Without leave nothing is connected, not even resolved; the manifest tells file by file what would leave."""
    folder = small(micrographs, tmp_path / "images")
    opened: list[Any] = []

    def refuse(*args: Any, **_kwargs: Any) -> Any:
        opened.append(args)
        raise AssertionError("a socket was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(EgressError, match=r"denied: .*egress.jsonl"):
        teach(folder, tmp_path / "out", config=hosted("http://127.0.0.1:9/v1"), workers=1)
    assert opened == []
    items = [json.loads(line) for line in (tmp_path / "out" / "egress.jsonl").read_text().splitlines()]
    assert len(items) == 9
    for item in items:
        assert item["sha256"] == hashlib.sha256((folder / item["path"]).read_bytes()).hexdigest()
        assert item["to"] == "http://127.0.0.1:9/v1"
        assert item["bytes"] > 0
    assert not (tmp_path / "out" / "README.md").exists()


def test_the_hosted_teacher_gets_the_manifest_and_nothing_else(micrographs: Path, tmp_path: Path, key: None) -> None:
    """Every picture sent stands in the manifest; no name, path, group or date goes along; replies become rows."""
    folder = small(micrographs, tmp_path / "images")
    with teacher_server(good) as server:
        report = teach(folder, tmp_path / "out", config=hosted(server.url), allow_egress=True, workers=1)
        sent = {hashlib.sha256(picture).hexdigest() for handler in server.seen for picture in handler.pictures}
        lines = (tmp_path / "out" / "egress.jsonl").read_text().splitlines()
        listed = {json.loads(line)["sent_sha256"] for line in lines}
        assert sent == listed
        for handler in server.seen:
            words = json.dumps(handler.request_body["messages"][0]["content"][0])
            for name in ("house-", ".tif", ".jpg", ".bmp", ".png", str(tmp_path), "sha256"):
                assert name not in words
        requests = len(server.seen)
        assert report.unanswered == 0
        assert report.cost_usd == pytest.approx(requests * 1100 / 1e6)
        again = teach(folder, tmp_path / "out", config=hosted(server.url), allow_egress=True, workers=1)
        assert len(server.seen) == requests
        assert again.rows == report.rows
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    data = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    by_teacher = defaultdict(set)
    for split in data:
        for row in data[split].remove_columns("images"):
            by_teacher[row["teacher"]].add(row["task"])
            if row["teacher"] == "openai:m":
                assert row["references"] == ["The structures are shown."]
                assert json.loads(row["provenance"])["teacher"]["model"] == "m-2026-01-01"
    assert by_teacher == {
        "openai:m": {"caption", "vqa", "comparison"},
        "offline": {"classification", "metadata", "vqa"},
    }


def test_refusals_and_wrong_numbers_never_reach_a_split(micrographs: Path, tmp_path: Path, key: None) -> None:
    """A refusal, a hedge, an invented number: named in rejected.jsonl with what was said, in no parquet file."""

    def mixed(handler: Any) -> None:
        kind = int(hashlib.sha256(handler.prompt.encode()).hexdigest(), 16) % 4
        texts = ["The structures are shown.", "It might be anything.", "The mean diameter is 98765 nm."]
        body = completion(answers_to(handler.prompt, text=texts[kind])) if kind < 3 else completion(None)
        handler.reply(body)

    folder = small(micrographs, tmp_path / "images")
    with teacher_server(mixed) as server:
        report = teach(folder, tmp_path / "out", config=hosted(server.url), allow_egress=True, workers=1)
    assert {"refusal", "hedge", "numbers_disagree"} <= set(report.rejected)
    told = {text for wordings in targets(tmp_path / "out").values() for text in wordings}
    assert "The structures are shown." in told
    assert not {text for text in told if "98765" in text or "might be" in text}
    raw = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "98765" in raw


def test_a_stopped_budget_writes_what_there_is_and_goes_on_later(micrographs: Path, tmp_path: Path, key: None) -> None:
    """The limit counts all runs of the data set; a larger one finishes it without paying for anything twice."""
    usage = {"prompt_tokens": 20_000, "completion_tokens": 0}

    def dear(handler: Any) -> None:
        handler.reply(completion(answers_to(handler.prompt), usage=usage))

    folder = small(micrographs, tmp_path / "images")
    with teacher_server(dear) as server:
        config = hosted(server.url, concurrency=2)
        first = teach(folder, tmp_path / "out", config=config, allow_egress=True, budget_usd=0.25, workers=1)
        assert first.stopped is not None
        assert first.stopped.startswith("budget: ")
        assert first.cost_usd <= 0.25
        assert first.unanswered > 0
        assert first.total > 0
        paid = len(server.seen)
        last = teach(folder, tmp_path / "out", config=config, allow_egress=True, budget_usd=5.0, workers=1)
        assert (last.stopped, last.unanswered) == (None, 0)
        assert last.cost_usd == pytest.approx(len(server.seen) * 0.02)
        assert paid < len(server.seen)
        keys = [handler.headers["idempotency-key"] for handler in server.seen]
        assert len(set(keys)) == len(keys)
        unpriced = hosted(server.url, price_per_million=PriceConfig())
        with pytest.raises(TeacherError, match="no_price"):
            teach(folder, tmp_path / "o2", config=unpriced, allow_egress=True, budget_usd=1.0, workers=1)


def test_samples_that_disagree_are_left_out(micrographs: Path, tmp_path: Path, key: None) -> None:
    """Asked twice, a teacher that changes its mind on captions teaches none. Seen failing with samples not compared."""

    def wavers(handler: Any) -> None:
        captions = "\n- caption" in handler.prompt
        again = handler.request_body["seed"] == 1 and captions
        word = "A wholly different thing appears." if again else "The structures are shown."
        asked = json.loads(answers_to(handler.prompt))["answers"]
        handler.reply(completion(json.dumps({"answers": [{"id": item["id"], "answers": [word]} for item in asked]})))

    folder = small(micrographs, tmp_path / "images")
    with teacher_server(wavers) as server:
        config = hosted(server.url, samples=2, tasks=("caption", "comparison"))
        report = teach(folder, tmp_path / "out", config=config, allow_egress=True, workers=1)
        requests = len(server.seen)
        assert {handler.request_body["temperature"] for handler in server.seen} == {0.7}
        keys = [handler.headers["idempotency-key"] for handler in server.seen]
        assert len(set(keys)) == len(keys)
        teach(folder, tmp_path / "out", config=config, allow_egress=True, workers=1)
        assert len(server.seen) == requests
    tasks = Counter(task for counts in report.rows.values() for task in counts)
    assert set(tasks) == {"comparison"}
    assert report.rejected["samples_disagree"] > 0


def test_replayed_replies_make_the_same_answers(micrographs: Path, tmp_path: Path, key: None) -> None:
    """A data set that a hosted teacher made can be made again from its ledger, without a network."""
    folder = small(micrographs, tmp_path / "images")
    with teacher_server(says_its_prompt) as server:
        teach(folder, tmp_path / "out", config=hosted(server.url), allow_egress=True, workers=1)
    with Ledger(tmp_path / "out" / "ledger.sqlite") as ledger:
        ledger.export_replies(tmp_path / "replies.jsonl")
    replay = ReplayTeacher(tmp_path / "replies.jsonl")
    config = hosted("http://127.0.0.1:9/v1")
    report = teach(folder, tmp_path / "again", config=config, teacher=replay, workers=1)
    assert report.unanswered == 0
    assert "no_recording" not in report.rejected
    assert targets(tmp_path / "again") == targets(tmp_path / "out")


def says_its_prompt(handler: Any) -> None:
    """Answers each prompt with words of its own."""
    digest = hashlib.sha256(handler.prompt.encode()).hexdigest()[:12]
    letters = digest.translate(str.maketrans("0123456789", "ghijklmnop"))
    handler.reply(completion(answers_to(handler.prompt, text=f"The word is {letters}.")))


def targets(out: Path) -> dict[str, list[str]]:
    import pyarrow.parquet as parquet

    tables = [parquet.read_table(path, columns=["id", "references"]) for path in sorted(out.glob("data/*"))]
    return {row["id"]: row["references"] for table in tables for row in table.to_pylist()}


def test_facts_outrank_the_teacher() -> None:
    """A hosted "yes" where the facts say "no" is rejected by name."""
    facts = ("No, it is seen from the top.",)
    assert answer_verdict(["Yes, it is tilted."], facts=facts, known="") == "facts_disagree"
    assert answer_verdict(["No, it is not tilted.", "Not tilted."], facts=facts, known="") is None
    assert answer_verdict(["No, it is flat.", "Yes, it is."], facts=facts, known="") == "wordings_disagree"
    assert answer_verdict([], facts=facts, known="") == "empty"


def test_real_micrographs_are_taught(shared_data: Path, tmp_path: Path) -> None:
    """Vendor files without ground truth give captions and metadata, and nothing that nobody knows."""
    folder = tmp_path / "images"
    for vendor in ("zeiss", "tescan"):
        path = next((shared_data / "vendor_meta" / vendor).glob("*.tif"))
        (folder / vendor).mkdir(parents=True)
        (folder / vendor / path.name).write_bytes(path.read_bytes())
    report = teach(folder, tmp_path / "out", config=TeachConfig(tasks=("caption", "vqa", "metadata")), workers=1)
    assert report.images == 2
    import pyarrow.parquet as parquet

    rows = [row for path in (tmp_path / "out" / "data").iterdir() for row in parquet.read_table(path).to_pylist()]
    assert {row["task"] for row in rows} == {"caption", "vqa", "metadata"}
    assert {"Zeiss Merlin", "TESCAN MIRA3 XMU"} == {row["aux"].split(";")[0] for row in rows}
    assert not {row["facet"] for row in rows} & {"boundaries", "environment", "function"}

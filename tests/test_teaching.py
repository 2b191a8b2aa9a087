"""`maemi teach` beside teaching: --show writes nothing, --export and --review work on what is there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from assistant.config import TeachConfig
from data_gen.dataset.exports import export_dataset
from data_gen.drawing.synth import write_synthetic
from data_gen.pipeline import teach

Maemi = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_synthetic(folder, classes=("particles", "tips"), per_class=8, size=(64, 96), workers=1)
    return folder


def listing(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_show_prints_questions_and_facts_and_writes_nothing(maemi: Maemi, images: Path) -> None:
    """Every task of a single picture is there, with its class and its facts from the list above it."""
    image, before = sorted(images.rglob("particles/*"))[0], listing(images)
    code, out, _ = maemi("teach", "--show", image)
    assert code == 0
    assert "known: class: particles; metadata: " in out
    for task in ("caption", "vqa", "classification", "metadata", "conversation"):
        assert re.search(rf"^{task}$", out, re.MULTILINE)
    assert "? Describe this micrograph." in out
    assert listing(images) == before


def test_show_for_a_hosted_teacher_prints_the_prompt(maemi: Maemi, images: Path) -> None:
    """The prompt is what would be sent, redacted, and no key is needed to see it; nothing connects."""
    image = sorted(images.rglob("particles/*"))[0]
    arguments = ("--teacher", "openai", "--set", "teach.redact=[particles]", "--json")
    code, out, _ = maemi("teach", "--show", image, *arguments)
    shown = json.loads(out)
    assert code == 0
    assert shown["sends"]["bytes"] > 1000
    prompts = [request["prompt"] for request in shown["requests"] if "prompt" in request]
    assert len(prompts) == 2
    assert all("Reply with JSON only" in prompt and "particles" not in prompt for prompt in prompts)


def test_show_of_a_file_that_is_no_micrograph(maemi: Maemi, tmp_path: Path) -> None:
    (tmp_path / "no.tif").write_bytes(b"II*\0 this is no tiff")
    code, out, err = maemi("teach", "--show", tmp_path / "no.tif")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: \w+: [^\n]+\n", err)


def test_export_with_and_without_teaching(maemi: Maemi, images: Path, tmp_path: Path) -> None:
    """Together with teaching, and later from the data set alone."""
    code, out, _ = maemi("teach", images, "--out", tmp_path / "d", "--export", "llava", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["export"] == str(tmp_path / "d" / "exports" / "llava")
    assert len(json.loads((tmp_path / "d/exports/llava/train.json").read_text())) == sum(
        report["rows"]["train"].values()
    )
    code, out, _ = maemi("teach", "--out", tmp_path / "d", "--export", "sharegpt", "--json")
    assert code == 0
    assert Path(json.loads(out)["export"], "dataset_info.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("teach",), "usage"),
        (("teach", "--out", "."), "usage"),
        (("teach", "--out", ".", "--export", "csv"), "usage"),
        (("teach", "--out", "nowhere", "--export", "llava"), "no_dataset"),
        (("teach", "--out", "nowhere", "--review"), "no_dataset"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    maemi: Maemi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = maemi(*arguments)
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: {code}: [^\n]+\n", err)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_hostile_class_name_is_not_taught(images: Path, tmp_path: Path) -> None:
    """A folder named like a formula or a tag reaches no row, no card and no export; its pictures are named as left out.

    Seen failing with the offline teacher's rows unchecked.
    """
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    truth, hostile = folder / "truth.jsonl", "=cmd|' /C calc'!A0<img src=x>"
    truth.write_text(truth.read_text().replace('"label": "tips"', f'"label": "{hostile}"'))
    report = teach(folder, tmp_path / "out", config=TeachConfig(), workers=1)
    assert report.rejected["markup"] > 50
    assert report.total > 50
    card = (tmp_path / "out" / "README.md").read_text()
    told = "".join((export_dataset(tmp_path / "out", "llava") / f"{split}.json").read_text() for split in report.rows)
    assert "cmd" not in card + told
    assert "<img" not in card + told

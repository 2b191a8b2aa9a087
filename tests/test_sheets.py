"""Knowledge sheets of the classes of a folder, and what a data set will cost before it is paid for."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_server import Handler, answers_to, completion, good, teacher_server
from tiny_micrographs import draw_tiny

from assistant.config import PriceConfig, TeachConfig
from assistant.errors import DatasetError
from data_gen.dataset.exports import export_dataset
from data_gen.knowledge import SHEET_FACETS, knowledge_sheets, measured_sheet, save_sheet
from data_gen.passes.consultation import PROBES
from data_gen.pipeline import teach

CLASSES = ("particles", "our_dimples")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAEMI_TEST_KEY", "sk-sentinel-0123456789abcdef")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tiny(tmp_path_factory.mktemp("images"), 12, classes=CLASSES, per_sample=2)


def hosted(url: str, **changes: Any) -> TeachConfig:
    price = PriceConfig(input=1.0, output=1.0)
    given: dict[str, Any] = {
        "teacher": "openai", "model": "m", "base_url": url, "api_key_env": "MAEMI_TEST_KEY", "deadline_s": 30.0,
        "tasks": ("caption",), "price_per_million": price, "near_duplicate_bits": 0,
    }  # fmt: skip
    return TeachConfig(**{**given, **changes})


def test_offline_sheets_are_authored_or_measured(images: Path, tmp_path: Path) -> None:
    """A known class has its authored sheet; one of the site's own says what was measured and admits the rest."""
    teach(images, tmp_path / "out", config=TeachConfig(tasks=("caption",)), sheets=True, workers=1)
    sheets = knowledge_sheets(CLASSES, folder=tmp_path / "out" / "knowledge")
    assert sheets["particles"] == knowledge_sheets(["particles"])["particles"]
    ours = sheets["our_dimples"]
    assert list(ours) == list(SHEET_FACETS)
    assert re.match(r"Of \d+ pictures \d+ look like ", ours["structure"])
    assert ours["safety"] == "Nothing is on file about the safety of our dimples."


@pytest.mark.parametrize("label", ["a/b", "../../outside", "x" * 300, "line\nbreak"])
def test_a_class_that_cannot_name_a_file_is_told(tmp_path: Path, label: str) -> None:
    """A label from an index is a text: it leads nowhere outside the folder, and the error says what to do."""
    with pytest.raises(DatasetError, match=r"bad_label: .*Rename it"):
        save_sheet(label, measured_sheet(label, []), tmp_path / "out" / "knowledge")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_class_without_pictures_to_learn_from_has_an_empty_sheet() -> None:
    """All of its pictures are held out: nothing is on file, and nothing is made up."""
    sheet = measured_sheet("our_dimples", [])
    assert list(sheet) == list(SHEET_FACETS)
    assert all(text.startswith("Nothing is on file") for text in sheet.values())


def test_hosted_sheets_are_asked_once(images: Path, tmp_path: Path) -> None:
    """Eight facets of each class, no picture, kept in the ledger; a refusal falls back to what is known here."""

    def writes(handler: Handler) -> None:
        if "knowledge sheets" not in handler.prompt:
            good(handler)
        elif "our dimples" in handler.prompt:
            handler.reply(completion("I cannot help with that."))
        else:
            handler.reply(completion(answers_to(handler.prompt, text="Particles are small bodies.")))

    with teacher_server(writes) as server:
        for _ in range(2):
            teach(images, tmp_path / "out", config=hosted(server.url), allow_egress=True, sheets=True, workers=1)
        asked = [handler for handler in server.seen if "knowledge sheets" in handler.prompt]
        assert len(asked) == 2
        assert all(handler.pictures == [] for handler in asked)
    sheets = knowledge_sheets(CLASSES, folder=tmp_path / "out" / "knowledge")
    assert set(sheets["particles"].values()) == {"Particles are small bodies."}
    assert "Nothing is on file" in sheets["our_dimples"]["safety"]


def test_probes_tell_the_cost_of_everything(images: Path, tmp_path: Path) -> None:
    """A few requests, an estimate, no rows; then the whole costs that, and the probes are not asked again."""
    costs = {"prompt_tokens": 3000, "completion_tokens": 0}
    with teacher_server(lambda h: h.reply(completion(answers_to(h.prompt), usage=costs))) as server:
        first = teach(
            images, tmp_path / "out", config=hosted(server.url), allow_egress=True, estimate=True, budget_usd=0.07,
            workers=1,
        )  # fmt: skip
        assert len(server.seen) == PROBES
        assert first.estimate_usd == pytest.approx(12 * 0.003)
        assert first.cost_usd == pytest.approx(PROBES * 0.003)
        assert (first.total, first.stopped) == (0, None)
        assert not (tmp_path / "out" / "README.md").exists()
        whole = teach(images, tmp_path / "out", config=hosted(server.url), allow_egress=True, workers=1)
        assert len(server.seen) == 12
        assert whole.cost_usd == pytest.approx(first.estimate_usd)
        tight = teach(
            images, tmp_path / "tight", config=hosted(server.url, tasks=("caption", "vqa")), allow_egress=True,
            budget_usd=0.071, workers=1,
        )  # fmt: skip
        assert tight.cost_usd <= 0.071
        assert any("the budget of 0.07 USD ends before" in warning for warning in tight.warnings)


def test_a_file_that_the_index_keeps_here_is_taught_offline(images: Path, tmp_path: Path) -> None:
    """`egress: no` in index.csv: not in the manifest, in no body; its rows are the offline teacher's."""
    import pyarrow.parquet as parquet

    folder = draw_tiny(tmp_path / "images", 8, per_sample=1)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    lines = [f"{name},{name.split('/')[0]},g{i},{'no' if i % 2 else ''}" for i, name in enumerate(names)]
    (folder / "index.csv").write_text("\n".join(["path,label,group,egress", *lines]) + "\n")
    with teacher_server(good) as server:
        config = hosted(server.url, tasks=("caption", "comparison"))
        teach(folder, tmp_path / "out", config=config, allow_egress=True, workers=1)
        listed = [json.loads(line) for line in (tmp_path / "out" / "egress.jsonl").read_text().splitlines()]
        assert sorted(item["path"] for item in listed) == names[::2]
        sent = {hashlib.sha256(picture).hexdigest() for handler in server.seen for picture in handler.pictures}
        assert sent <= {item["sent_sha256"] for item in listed}
        assert sent
    tables = [parquet.read_table(path, columns=["provenance", "teacher"]) for path in (tmp_path / "out").glob("data/*")]
    for row in (row for table in tables for row in table.to_pylist()):
        provenance = json.loads(row["provenance"])
        kept = set(provenance["files"]) & set(names[1::2])
        assert row["teacher"] == ("offline" if kept else "openai:m")
        assert provenance.get("egress") == ("no" if kept else None)
    exported = json.loads((export_dataset(tmp_path / "out", "llava") / "train.json").read_text())
    assert {row.get("egress") for row in exported} == {"no", None}
    assert all((row.get("egress") == "no") == (row["teacher"] == "offline") for row in exported)


def test_half_a_sheet_is_never_seen(tmp_path: Path) -> None:
    """A sheet is moved to its place whole."""
    from data_gen.knowledge import measured_sheet, save_sheet

    path = save_sheet("a", measured_sheet("a", [{"kind": "lines", "items": []}]), tmp_path)
    assert [path] == list(tmp_path.iterdir())
    assert np.all([line.partition(":")[0] in SHEET_FACETS for line in path.read_text().splitlines()])

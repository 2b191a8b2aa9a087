"""What `maemi train` says before its first step: faults of data, lengths and memory, before they cost hours."""

import json
from pathlib import Path
from typing import Any

import pytest
from instruction_data import image_rows, write_dataset
from students import tiny_config, write_tiny_base

from assistant.config import Config, dump_config
from assistant.errors import DatasetError, RunError
from serve.cli import main
from training import preflight as looking
from training.trainer import preflight, train

pytestmark = pytest.mark.filterwarnings("ignore:.*use_cpu.*", "ignore:.*lr_scheduler.step.*")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


def settings(base: Path, *more: str) -> Config:
    return tiny_config(base, "adapter.r_min=2", "adapter.r_max=4", *more)


def rewrite(data: Path, split: str, change: Any) -> None:
    """Write a split anew with its rows changed."""
    from datasets import Dataset, Features

    file = data / "data" / f"{split}-00000-of-00001.parquet"
    known = Dataset.from_parquet(str(data / "data" / "train-00000-of-00001.parquet")).features
    rows = [row for number in range(8) for row in image_rows(number, seed=number, split=split)]
    Dataset.from_list(change(rows), features=Features(known)).to_parquet(str(file))


def test_a_sound_data_set_is_told_and_trains(base: Path, tmp_path: Path) -> None:
    """Rows, classes, lengths, what learns and what carries loss; told once, and not again when a run goes on."""
    data, told = write_dataset(tmp_path / "data", splits=("train", "validation", "test")), []
    config = settings(base, "training.steps=2")
    train(config, data, tmp_path / "run", device="cpu", told=told.append)
    (found,) = told
    assert found.stops == ()
    assert [note for note in found.notes if "Other programs" not in note] == []
    assert found.splits["train"]["rows"] == 24
    assert found.splits["train"]["classes"] == {"nanowires": 4, "powder": 4}
    assert found.splits["train"]["images_per_row"] == {"1": 24}
    assert {part["name"] for part in found.trained} >= {"vit", "hnf", "decoder.lm adapter", "decoder cross-attention"}
    assert found.frozen_parameters > 0
    assert found.memory["predicted"] == sum(found.memory["parts"].values())


def test_the_loss_view_brackets_the_answers_alone(base: Path, tmp_path: Path) -> None:
    found = preflight(settings(base, "training.turns=1"), write_dataset(tmp_path / "data"), device="cpu")
    silent, learned = ("".join(p["text"] for p in found.loss_view if p["loss"] is carries) for carries in (False, True))
    assert "?" in silent or "Describe" in silent
    assert "rough" in learned.lower() or "It shows" in learned
    assert "Describe" not in learned


def test_too_few_tokens_are_counted(base: Path, tmp_path: Path) -> None:
    found = preflight(settings(base, "training.max_tokens=8"), write_dataset(tmp_path / "data"), device="cpu")
    assert found.tokens["cut"] == found.tokens["conversations"] == 8
    assert any("8 of 8 conversations lose their last turns to training.max_tokens (8)" in note for note in found.notes)
    assert any("are not cut" in note for note in found.notes)


def torn(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The second picture of them cannot be decoded: its last bytes are missing."""
    png = rows[3]["images"][0]["bytes"][:120]
    return [
        row | {"images": [{"bytes": png, "path": None}]} if row["images"] == rows[3]["images"] else row for row in rows
    ]


def test_a_picture_that_cannot_be_read_stops_before_the_first_step(base: Path, tmp_path: Path) -> None:
    """It ended a training in the middle, with a traceback."""
    data = write_dataset(tmp_path / "data")
    rewrite(data, "train", torn)
    with pytest.raises(RunError, match=r"preflight: 1 pictures of train cannot be read \(row train-1-"):
        train(settings(base), data, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.raises(DatasetError, match="unreadable_picture"):
        train(settings(base), data, tmp_path / "run", device="cpu", force=True)


def test_what_splits_share_is_said(base: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    rewrite(data, "train", lambda rows: rows)
    rewrite(
        data, "test", lambda rows: [row | {"group": f"train-{n // 12}", "label": "tips"} for n, row in enumerate(rows)]
    )
    notes = preflight(settings(base), data, device="cpu").notes
    assert any(note.startswith("8 pictures of test are also in train") for note in notes)
    assert any(note.startswith("2 groups of test are also in train (train-0, train-1)") for note in notes)
    assert "Classes of test that train does not have: tips." in notes
    assert any(note.startswith("There is no validation split") for note in notes)


def test_a_class_that_outweighs_another_is_said(base: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    lonely = lambda rows: rows[3:6] + [row for n in range(0, 40, 2) for row in image_rows(n, seed=n, split="train")]  # noqa: E731
    rewrite(data, "train", lonely)
    notes = preflight(settings(base), data, device="cpu").notes
    assert "nanowires has 20 pictures and powder has 1: the first will be favoured." in notes


def test_a_step_that_will_not_fit_stops_with_advice(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the student is loaded, with settings that fit; followed, they do."""
    data, config = write_dataset(tmp_path / "data"), settings(base, "training.batch_size=512")
    room = int(
        1.02 * preflight(settings(base, "training.batch_size=128"), data, device="cpu").memory["predicted"] / 0.93
    )
    monkeypatch.setattr(looking, "_memory_of", lambda device: (room, room))
    monkeypatch.setattr("training.trainer.start_student", None)
    with pytest.raises(RunError, match=r"preflight: One step would take about .* GiB.* Set --set ") as stopped:
        train(config, data, tmp_path / "run", device="cpu")
    overrides = [part.split(" ")[0] for part in stopped.value.message.split("--set ")[1:]]
    overrides[-1] = overrides[-1].rstrip(",")
    found = looking.memory_here(settings(base, "training.batch_size=512", *overrides), data, device="cpu")
    assert found["advice"] == ""


def test_the_command_checks_and_trains_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = write_dataset(tmp_path / "data"), tmp_path / "tiny.yaml"
    file.write_text(dump_config(settings(base)))

    def maemi(*more: str) -> int:
        monkeypatch.setattr("sys.argv", ["maemi", "train", "--config", str(file), "--data", str(data), *more])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    assert maemi("--check", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {
        "splits",
        "tokens",
        "loss_view",
        "stages",
        "trained",
        "frozen_parameters",
        "memory",
        "stops",
        "notes",
    } == found.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "tiny.yaml"]
    rewrite(data, "train", torn)
    assert maemi("--check") == 1
    assert "stop: 1 pictures of train cannot be read" in " ".join(capsys.readouterr().out.split())
    assert maemi() == 2
    assert "--out is missing" in capsys.readouterr().err

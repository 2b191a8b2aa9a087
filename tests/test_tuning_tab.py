"""What the fine-tuning tab says: memory beside the settings, the report of a check, a run with its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from instruction_data import write_dataset

from assistant.errors import ConfigError
from serve.desk.workbench import DEFAULTS, Settings, Standing, Workbench
from serve.page.tuning_tab import Tuning

HOSTILE = "<img src=x onerror=alert(1)>"
WORDS = ("lot", DEFAULTS, 20, 2, 0.001, "")


@pytest.fixture
def page(tmp_path: Path) -> Tuning:
    write_dataset(tmp_path / "lot")
    return Tuning(Workbench(tmp_path))


def lay_run(folder: Path, *, error: str = "") -> None:
    """A run that was stopped, or failed."""
    run = folder / "first"
    run.mkdir()
    job = {"data": "lot", "file": DEFAULTS, "overrides": [HOSTILE], "steps": 20, "began_at": "2026-11-01T10:00:00"}
    (run / "job.json").write_text(json.dumps(job))
    (run / "job.log").write_text(f"error: stopped: Stopped by SIGTERM.\n{error}")
    losses = [{"step": 10, "loss": 2.5}, {"step": 10, "validation_loss": 2.25}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, losses)))


def test_memory_follows_the_settings(page: Tuning) -> None:
    one, many = page.plan(*WORDS), page.plan("lot", DEFAULTS, 20, 64, 0.001, "training.max_tokens=512")
    assert "Predicted" in one
    assert one != many
    assert "cannot be set here" in page.plan("lot", DEFAULTS, 20, 2, 0.001, "init=/home/ada")
    assert "accumulate 3 does not divide" in page.plan("lot", DEFAULTS, 20, 2, 0.001, "training.accumulate=3")
    assert page.plan(None, *WORDS[1:]) == ""


def test_a_run_tells_how_it_stands(page: Tuning, tmp_path: Path) -> None:
    lay_run(tmp_path)
    clock, runs, shown, _, check, start, resume, score, stop = page.look(None)
    assert runs.value == "first"
    assert "Stopped, can go on" in shown
    assert "Step 10 of 20; training loss 2.500, validation loss 2.250" in shown
    assert "data:image/svg+xml" in shown
    assert " left" not in shown
    assert [button.interactive for button in (check, start, resume, score, stop)] == [True, True, True, False, False]
    assert not clock.active


def test_a_run_that_trains_tells_how_long_it_takes(page: Tuning, monkeypatch: pytest.MonkeyPatch) -> None:
    log = [{"step": 10, "loss": 2.5, "step_s": 30.0}, {"step": 10, "validation_loss": 2.25}]
    standing = Standing("first", "training", Settings("lot"), "2026-11-01T10:00:00", steps=20, log=log)
    monkeypatch.setattr(page._bench, "runs", lambda: ["first"])
    monkeypatch.setattr(page._bench, "standing", lambda run: standing)
    assert "Training, about 5 min left" in page.look("first")[2]


def test_why_a_run_failed_is_said(page: Tuning, tmp_path: Path) -> None:
    lay_run(tmp_path, error=f"error: diverged: the loss of step 12 is nan {HOSTILE}\n")
    shown = page.look("first")[2]
    assert "Failed" in shown
    assert "the loss of step 12 is nan" in shown
    assert HOSTILE not in shown


def test_scores_stand_side_by_side(page: Tuning, tmp_path: Path) -> None:
    lay_run(tmp_path)
    (tmp_path / "first" / "model").mkdir()
    for when, bleu in (("before", 0.125), ("after", 0.5)):
        scores = {"caption": {"bleu2": bleu, "bleu2_blind": 0.0625}, "statements": {"false": 3}}
        (tmp_path / "first" / f"scores-{when}.json").write_text(json.dumps(scores))
    shown = page.look("first")[2]
    assert '<th scope="row">caption, bleu2</th><td>0.125</td><td>0.500</td><td>0.062</td>' in shown
    (tmp_path / "first" / "scores-after.json").write_text('{"caption": ')  # while it is written
    assert "Before and after" not in page.look("first")[2]


@pytest.mark.parametrize(
    ("report", "told"),
    [
        ({"splits": {HOSTILE: {"rows": 1}}}, "made by another version"),
        (None, "stopped before it ended"),
    ],
)
def test_a_check_that_is_not_whole_is_told(page: Tuning, tmp_path: Path, report: Any, told: str) -> None:
    place = tmp_path / ".maemi"
    place.mkdir()
    (place / "check.json").write_text(json.dumps({"data": "lot", "file": DEFAULTS, "overrides": []}))
    if report:
        (place / "checked.json").write_text(json.dumps(report))
    assert told in page.look(None)[3]


def test_a_free_name_is_offered(page: Tuning, tmp_path: Path) -> None:
    assert page.open()[2] == "run-1"
    (tmp_path / "run-1").mkdir()
    assert page.open()[2] == "run-2"
    with pytest.raises(ConfigError, match="name_taken"):
        page.start("run-1", *WORDS)

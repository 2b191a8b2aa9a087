"""Fine-tuning for people on the page: one command at a time, found again by whoever looks, nothing named by a path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from instruction_data import write_dataset

from assistant.errors import ConfigError, ServerError
from serve.cli import main
from serve.desk.workbench import DEFAULTS, Settings, Workbench

SHORT = Settings("lot", overrides=("training.steps=20", "training.batch_size=2", "training.save_every=10"))


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    write_dataset(tmp_path / "lot")
    return Workbench(tmp_path)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_is_checked_trained_stopped_found_again_resumed_and_scored(bench: Workbench) -> None:
    """By the commands themselves. Another bench on the folder stands for the server after a restart."""
    bench.check(SHORT)
    until(lambda: bench.running() is None)
    checked = bench.checked()
    assert checked is not None
    settings, report = checked
    assert settings == SHORT
    assert not isinstance(report, str)
    assert report["splits"]["train"]["pictures"] == 8
    assert {piece["loss"] for piece in report["loss_view"]} == {True, False}
    bench.start("first", SHORT)
    with pytest.raises(ServerError, match="busy: train first runs already"):
        bench.start("second", SHORT)
    assert not (bench.folder / "second").exists()
    again = Workbench(bench.folder)
    until(lambda: again.standing("first").log)
    assert again.standing("first").state == "training"
    again.stop()
    until(lambda: again.running() is None)
    stopped = again.standing("first")
    assert (stopped.state, stopped.error, stopped.settings) == ("stopped", "", SHORT)
    again.resume("first")
    until(lambda: again.running() is None)
    done = again.standing("first")
    assert done.state == "done"
    assert [entry["step"] for entry in done.log if "loss" in entry] == [10, 20]
    again.score("first")
    until(lambda: again.running() is None)
    scores = again.standing("first").scores
    assert scores.keys() == {"before", "after"}
    assert scores["before"]["model"] != scores["after"]["model"]
    assert scores["before"]["provenance"]["data_fingerprint"] == scores["after"]["provenance"]["data_fingerprint"]


def test_what_went_wrong_is_told(bench: Workbench) -> None:
    """The command's own words: here of a data set without rows to train on."""
    write_dataset(bench.folder / "empty", splits=("test",))
    settings = Settings("empty")
    bench.check(settings)
    until(lambda: bench.running() is None)
    checked = bench.checked()
    assert checked is not None
    assert isinstance(checked[1], str)
    assert "no train" in checked[1]


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".maemi", "-x", "lot", "x" * 65, "a\nb"])
def test_a_run_has_a_new_plain_name(bench: Workbench, name: str) -> None:
    with pytest.raises(ConfigError):
        bench.start(name, SHORT)
    assert bench.running() is None


@pytest.mark.parametrize(
    "settings",
    [
        Settings("../lot"),
        Settings("/etc"),
        Settings("nothing"),
        Settings("lot", "../secret.yaml"),
        Settings("lot", "/etc/passwd"),
        Settings("lot", overrides=("init=/home/ada/run",)),
        Settings("lot", overrides=("decoder.base=/home/ada/model",)),
        Settings("lot", overrides=("training.steps=10\ninit=/home/ada/run",)),
        Settings("lot", overrides=("training.steps=many",)),
        Settings("lot", overrides=("--force",)),
    ],
)
def test_nothing_outside_the_folder_is_named(bench: Workbench, settings: Settings) -> None:
    """A path would tell a visitor which files there are, or load a model nobody here chose."""
    for begin in (bench.check, lambda chosen: bench.start("first", chosen)):
        with pytest.raises(ConfigError):
            begin(settings)
    assert bench.running() is None
    assert bench.runs() == []


def test_files_of_settings_are_chosen_by_name(bench: Workbench) -> None:
    (bench.folder / "long.yaml").write_text("training: {steps: 900}\n")
    assert bench.files() == [DEFAULTS, "long.yaml"]
    assert bench.configured(Settings("lot", "long.yaml")).training.steps == 900
    assert bench.configured(Settings("lot", "long.yaml", ("training.steps=5",))).training.steps == 5


def test_the_lock_ends_with_the_process_that_holds_it(bench: Workbench) -> None:
    """A command outlives the server that began it, and nothing is left over that looks like one when it is killed."""
    script = (
        "import json, sys; from pathlib import Path; from serve.desk.workbench import Settings, Workbench\n"
        "bench = Workbench(Path(sys.argv[1])); bench.start('first', Settings('lot')); print(bench.running().pid)\n"
        "import os; os._exit(0)\n"
    )
    told = subprocess.run([sys.executable, "-c", script, str(bench.folder)], check=True, capture_output=True, text=True)
    running = bench.running()
    assert running is not None
    assert (running.what, running.run, running.pid) == ("train", "first", int(told.stdout))
    assert bench.standing("first").state == "training"
    os.kill(running.pid, 9)
    until(lambda: bench.running() is None)
    assert bench.standing("first").state == "stopped"


def test_a_torn_line_of_the_log_is_left_out(bench: Workbench) -> None:
    run = bench.folder / "first"
    run.mkdir()
    (run / "job.json").write_text(
        json.dumps({"data": "lot", "file": DEFAULTS, "overrides": [], "steps": 9, "began_at": ""})
    )
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n[1]\n{"step": 2, "lo')
    assert [entry["step"] for entry in bench.standing("first").log] == [1]
    assert bench.standing("first").state == "stopped"


def test_strangers_do_not_train(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Behind a proxy anybody is a visitor."""
    with pytest.raises(SystemExit) as refused:
        main(["serve", "--port", "1", "--training", str(tmp_path), "--trusted-proxy", "10.0.0.2"])
    assert refused.value.code == 2
    assert "auth_needed: --training is not for strangers" in capfd.readouterr().err

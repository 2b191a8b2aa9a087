"""kill -9, a full or a broken disk at any moment of `maemi train`, then the same command: it ends with the same bits.

Every run is the real command in a process of its own, forked from one that is warm.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from instruction_data import write_dataset
from killing import STOCK, Maemi, compile_faults
from students import tiny_config, write_tiny_base
from test_kills import small_disk

from assistant.config import dump_config

STEPS = 5
SAVE_EVERY = 2
WHOLE = {"model", "run.json", "metrics.jsonl", "lock", "README.md", "loss.svg"}


class Case:
    """The command, and what an undisturbed run of it leaves."""

    def __init__(self, maemi: Maemi, folder: Path) -> None:
        self.maemi = maemi
        self.data = write_dataset(folder / "data", per_class=2, splits=("train", "validation"))  # two steps an epoch
        overrides = (f"training.steps={STEPS}", f"training.save_every={SAVE_EVERY}", "training.accumulate=2",
                     "training.validate_every=1", "adapter.r_max=4")  # fmt: skip
        config = tiny_config(write_tiny_base(folder / "base"), "adapter.r_min=2", *overrides)
        self.config = folder / "train.yaml"
        self.config.write_text(dump_config(config))
        self.whole = self.once(folder / "whole")
        assert self.whole["rc"] == 0, self.whole["err"]
        self.files = files(folder / "whole")
        assert {"model/student.safetensors", "model/adapter/adapter_model.safetensors"} <= self.files.keys()

    def once(self, out: Path, **job: Any) -> dict[str, Any]:
        argv = ["train", "--config", str(self.config), "--data", str(self.data), "--out", str(out), "--json"]
        return self.maemi.run(argv, out, **job)

    def check(self, out: Path, place: object = None) -> None:
        """The same command ends it: the bytes of an undisturbed run, and nothing left over."""
        last = self.once(out)
        assert last["rc"] == 0, (place, last["err"])
        assert files(out) == self.files, place
        assert {path.name for path in out.iterdir()} <= WHOLE, place


def files(out: Path) -> dict[str, str]:
    """sha256 of every file of the model."""
    paths = [path for path in sorted((out / "model").rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("train")
    maemi = Maemi("train", compile_faults(folder), HF_HOME=str(folder / "cache"))
    yield Case(maemi, folder)
    maemi.close()


def killed_at_random(case: Case, folder: Path, kills: int, *, per_run: int) -> None:
    """Run after run: a few kills at random moments, then the end. One that was over before its kill counts as none."""
    rng, done = random.Random(kills), 0
    while done < kills:
        out = folder / str(done)
        for _ in range(min(per_run, kills - done)):
            ended = case.once(out, kill_after=rng.uniform(0.0, 1.1 * case.whole["seconds"]))
            assert ended["rc"] in (-9, 0), ended["err"]
            done += ended["rc"] == -9
        case.check(out, done)
        shutil.rmtree(out)


def test_random_kills(case: Case, tmp_path: Path) -> None:
    """2 of the 300 below."""
    killed_at_random(case, tmp_path, 2, per_run=2)


def stopped_at_random(case: Case, folder: Path, number: signal.Signals, times: int) -> None:
    """A signal at any moment of the run: one line, its exit code, and the same end."""
    rng = random.Random(times)
    for n in range(times):
        out = folder / str(n)
        ended = case.once(out, kill_after=rng.uniform(0.05, case.whole["seconds"]), signal=number)
        at_work = 0 < ended["calls"] < case.whole["calls"]  # not still reading its arguments, or already done
        assert ended["rc"] in ((128 + number, 0) if at_work else (128 + number, 0, -number)), ended
        if ended["rc"] > 0:
            assert_said(ended["err"], "error: ")
            assert "The same command goes on" in ended["err"], ended
        case.check(out, (number, n))


def test_a_signal_at_some_moment(case: Case, tmp_path: Path) -> None:
    """1 of the 60 below."""
    stopped_at_random(case, tmp_path, signal.SIGTERM, 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment(case: Case, tmp_path: Path, number: signal.Signals) -> None:
    stopped_at_random(case, tmp_path, number, 60)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_three_hundred_random_kills(case: Case, tmp_path: Path) -> None:
    """0 stuck, 0 that end otherwise."""
    killed_at_random(case, tmp_path, 300, per_run=4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_stock_trainer_does_not_survive_them(tmp_path: Path) -> None:
    """The control: the same command with transformers' own checkpoints, killed within one of them, ends otherwise.

    At calls to the disk that ours survives, as it does all; else these tests could not fail. Before its
    first checkpoint it goes on as it should.
    """
    maemi = Maemi("train", compile_faults(tmp_path), HF_HOME=str(tmp_path / "cache"), **{STOCK: "1"})
    case = Case(maemi, tmp_path)
    ends: dict[bool, list[tuple[int, str]]] = {True: [], False: []}
    for k in range(1, case.whole["calls"], 7):
        out = tmp_path / f"kill{k}"
        assert case.once(out, at=k, how="kill")["rc"] == -9
        last = case.once(out)
        same = last["rc"] == 0 and files(out) == case.files
        ends[same].append((k, last["err"][-300:]))
        shutil.rmtree(out)
        if len(ends[False]) > 1 and ends[True]:
            break
    maemi.close()
    assert all(ends.values()), ends


def assert_said(err: str, start: str) -> None:
    """One line of error, beside what is told on the way."""
    told = [line for line in err.splitlines() if not line.startswith(("INFO maemi", "WARNING maemi"))]
    assert [line.startswith(start) for line in told] == [True], err


def struck(case: Case, folder: Path, how: str, calls: list[int]) -> None:
    """A run whose k-th system call that changes a file is its last, fails, or finds the disk full from then on."""
    for k in calls:
        out = folder / f"{how}{k}"
        ended = case.once(out, at=k, how=how)
        if how == "kill":
            assert ended["rc"] == -9, (k, ended["err"])
        elif ended["rc"] != 0:  # what only tidies up may fail
            assert ended["rc"] == 2, (k, ended["err"])
            assert_said(ended["err"], "error: disk_full: " if how == "full" else "error: disk: ")
        case.check(out, (how, k))


@pytest.mark.parametrize("how", ["kill", "full", "broken"])
def test_a_fault_at_some_calls(case: Case, tmp_path: Path, how: str) -> None:
    """One of the calls of each kind below."""
    struck(case, tmp_path, how, [case.whole["calls"] // 2])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("how", ["kill", "full", "broken"])
def test_a_fault_at_every_call(case: Case, tmp_path: Path, how: str) -> None:
    """k = 1, 2, 3 ... over every open, write, rename, removal and sync of the run."""
    struck(case, tmp_path, how, list(range(1, case.whole["calls"] + 1)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_full_disk_at_twenty_levels(case: Case, tmp_path: Path) -> None:
    """A real file system of so many kB; a named error, then space, then the bytes of an undisturbed run."""
    whole = sum(path.stat().st_size for path in case.config.parent.glob("whole/**/*")) // 1024
    full = 0
    for level in range(20):
        out = tmp_path / str(level)
        with small_disk(out, f"{16 + level * 3 * whole // 20}k"):
            ended = case.once(out)
            if ended["rc"] != 0:
                full += 1
                assert_said(ended["err"], "error: disk_full: ")
            subprocess.run(["mount", "-o", "remount,size=64m", out], check=True)
            case.check(out, level)
    assert full >= 10

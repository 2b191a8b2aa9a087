"""kill -9 in the middle of `maemi fit`, then the same call: it goes on where the state was kept, to the same bytes."""

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_fit import alloys

from assistant.config import load_config
from assistant.errors import RunError
from training.fit import HEAD, STATE, Choices, fit

SETTINGS = ("fit.dim=16", "fit.heads=2", "fit.batch_size=32", "fit.least_steps=90", "fit.most_steps=90")
CHOICES = Choices(("strength[MPa]",), (), "heat")
COMMAND = """
import os, signal, sys
from pathlib import Path
import torch
from assistant.config import load_config
from training.fit import Choices, fit
torch.set_num_threads(1)
source, out, *settings = sys.argv[1:]
def tell(done, total, text):
    if done > 60:
        print("there", flush=True)
        signal.pause()
fit(Path(source), Path(out), load_config(None, settings), Choices(("strength[MPa]",), (), "heat"), progress=tell)
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def digests(out: Path) -> dict[str, str]:
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def steps_of(source: Path, out: Path, *settings: str) -> list[int]:
    """Fit; the steps that were told of."""
    steps: list[int] = []
    fit(source, out, load_config(None, settings), CHOICES, progress=lambda done, total, text: steps.append(done))
    return steps


def test_a_killed_fit_goes_on_and_ends_with_the_same(tmp_path: Path) -> None:
    """Seen failing before: the second call began with the first step."""
    source, settings = alloys(tmp_path / "steels.csv", 80), (*SETTINGS, "fit.save_every=25")
    argv = [sys.executable, "-c", COMMAND, str(source), str(tmp_path / "killed"), *settings]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "killed" / STATE).is_dir()
    assert not (tmp_path / "killed" / HEAD).exists()
    assert steps_of(source, tmp_path / "killed", *settings)[0] == 61  # the state is of 50; every twentieth is told
    assert steps_of(source, tmp_path / "whole", *settings)[0] == 1
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert not (tmp_path / "killed" / STATE).exists()


def test_the_state_of_another_fit_or_a_damaged_one_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, settings = alloys(tmp_path / "steels.csv", 80), tmp_path / "run", (*SETTINGS, "fit.save_every=40")
    with monkeypatch.context() as patch:
        patch.setattr("training.fit.calibrate_heads", lambda *a: (_ for _ in ()).throw(RunError("disk_full", "full")))
        with pytest.raises(RunError):
            steps_of(source, out, *settings)
        assert steps_of_failing(source, out, *settings)[0] == 81
        assert steps_of_failing(source, out, *settings, "seed=1")[0] == 1
        file = out / STATE / "weights.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        assert steps_of_failing(source, out, *settings, "seed=1")[0] == 1
    assert steps_of(source, out, *settings, "seed=1")[0] == 81
    assert steps_of(source, out, *settings, "seed=1")[0] == 1  # what is done is not gone on with


def steps_of_failing(source: Path, out: Path, *settings: str) -> list[int]:
    """The steps that were told of by a fit that ends with an error."""
    steps: list[int] = []
    with pytest.raises(RunError):
        fit(source, out, load_config(None, settings), CHOICES, progress=lambda done, total, text: steps.append(done))
    return steps

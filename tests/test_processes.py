"""`maemi train` in two processes, as torchrun starts them: the step of one process, and the same bits after a kill."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from instruction_data import write_dataset
from students import tiny_config, write_tiny_base
from test_trainer import weights

from assistant.config import Config, dump_config
from assistant.errors import ConfigError, RunError
from training.processes import Processes
from training.trainer import train

pytestmark = pytest.mark.filterwarnings("ignore:.*use_cpu.*", "ignore:.*lr_scheduler.step.*")
ROOT = Path(__file__).parents[1]


class Team:
    """A data set, a configuration, and the command that trains it in two processes."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.data = write_dataset(folder / "data", splits=("train", "validation"))
        self.config: Config = tiny_config(write_tiny_base(folder / "base"), "adapter.r_min=2", "adapter.r_max=4", *more)
        self.file = folder / "train.yaml"
        self.file.write_text(dump_config(self.config))

    def start(self, out: Path) -> subprocess.Popen[str]:
        launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        train = ("-m", "serve.cli", "train", "--config", self.file, "--data", self.data, "--out", out, "--json")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
        return subprocess.Popen(
            [str(part) for part in (*launch, *train)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
        )  # fmt: skip

    def run(self, out: Path) -> None:
        process = self.start(out)
        told, _ = process.communicate(timeout=500)
        assert process.returncode == 0, told


def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    """They met each other's lock, and accelerate would have taught every epoch like the first."""
    team = Team(tmp_path, "loss.itm=0", "training.batch_size=4", "training.steps=4", "training.accumulate=2")
    team.run(tmp_path / "two")
    train(team.config, team.data, tmp_path / "one", device="cpu")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
    assert [path.name for path in (tmp_path / "two").iterdir() if path.name.startswith("check")] == []
    with pytest.raises(RunError, match=r"other_run: .* of another number of processes"):
        train(team.config, team.data, tmp_path / "two", device="cpu")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_that_are_killed_end_bit_identical(tmp_path: Path) -> None:
    """kill -9 of both after a checkpoint, in the second epoch, with matching, whose draws differ by process."""
    team = Team(tmp_path, "training.batch_size=4", "training.steps=6", "training.save_every=1")
    team.run(tmp_path / "whole")
    for after in (1, 3):
        process = team.start(tmp_path / "torn")
        while process.poll() is None and not (tmp_path / "torn" / "checkpoints" / f"checkpoint-{after}").is_dir():
            time.sleep(0.02)
        assert process.poll() is None
        launcher = psutil.Process(process.pid)
        for one in (launcher, *launcher.children(recursive=True)):  # which are in sessions of their own
            one.kill()
        process.communicate()
    team.run(tmp_path / "torn")
    whole, torn = weights(tmp_path / "whole"), weights(tmp_path / "torn")
    assert [name for name in whole if not torch.equal(whole[name], torn[name])] == []


def test_a_batch_must_divide_among_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team(tmp_path, "training.batch_size=2")
    monkeypatch.setattr("training.trainer.meet", lambda device: Processes(0, 3))
    monkeypatch.setattr("training.processes.distributed.barrier", lambda: None)
    with pytest.raises(ConfigError, match="batch_size 2 cannot be computed in 1 parts by 3 processes"):
        train(team.config, team.data, tmp_path / "run", device="cpu")

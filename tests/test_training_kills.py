"""Training under SIGKILL, failing calls and full disks: the same command goes on, and ends bit-identical.

A warm process forks one child per attempt, so that an attempt costs its training and not its imports.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from instruction_data import write_dataset
from safetensors.torch import load_file
from students import tiny_config, write_tiny_base

from assistant import disk
from assistant.errors import MaemiError
from training import trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]
KILLS, LEVELS = 300, 20
STEPS = ("training.steps=4", "training.save_every=1", "adapter.r_min=2", "adapter.r_max=4")


class Bench:
    """Data, base, settings, and what an undisturbed run ends in."""

    def __init__(self, place: Path) -> None:
        self.data, self.config = write_dataset(place / "data"), tiny_config(write_tiny_base(place / "base"), *STEPS)
        torch.set_num_threads(1)
        started = time.monotonic()
        assert self.attempt(place / "whole") == 0
        self.seconds, self.whole = time.monotonic() - started, weights(place / "whole")

    def attempt(self, out: Path, disturb: Callable[[], None] | None = None, kill_after: float | None = None) -> int:
        """Train in a child: 0 done, 3 ended by an error that has a name, 4 by another, -9 killed."""
        child = os.fork()
        if not child:
            os._exit(self._train(out, disturb))
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _train(self, out: Path, disturb: Callable[[], None] | None) -> int:
        try:
            if disturb:
                disturb()
            trainer.train(self.config, self.data, out, device="cpu")
        except (MaemiError, OSError):
            return 3
        except BaseException as error:
            print(type(error), error, flush=True)  # noqa: T201
            return 4
        return 0

    def must_end_the_same(self, out: Path) -> None:
        assert self.attempt(out) == 0
        assert all(torch.equal(tensor, self.whole[name]) for name, tensor in weights(out).items())
        shutil.rmtree(out)


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = [run / "model" / "student.safetensors", run / "model" / "adapter" / "adapter_model.safetensors"]
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def test_three_hundred_random_kills(bench: Bench, tmp_path: Path) -> None:
    draw, kills, runs, out = random.Random(0), 0, 0, tmp_path / "run"
    while kills < KILLS:
        if bench.attempt(out, kill_after=draw.uniform(0.0, 1.1 * bench.seconds)) == -signal.SIGKILL:
            kills += 1
        if draw.random() < 0.15 or (out / "model").exists():
            bench.must_end_the_same(out)
            runs += 1
    if out.exists():
        bench.must_end_the_same(out)
    print(f"{kills} kills, {runs} runs ended bit-identical")  # noqa: T201


CALLS: tuple[tuple[Any, str], ...] = (
    (disk, "fsync"),
    (Path, "rename"),
    (Path, "write_text"),
    (Path, "mkdir"),
    (shutil, "rmtree"),
    (shutil, "copyfile"),
)


def fails_at(fatal: int, fault: Callable[[], None], counter: Path) -> Callable[[], None]:
    """Makes the `fatal`-th call that changes the disk fail, and notes how many there were."""

    def disturb() -> None:
        seen = {"calls": 0}

        def failing(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                seen["calls"] += 1
                if seen["calls"] == fatal:
                    fault()
                if not fatal:
                    counter.write_bytes(str(seen["calls"]).encode())
                return real(*args, **kwargs)

            return call

        for owner, name in CALLS:
            setattr(owner, name, failing(getattr(owner, name)))

    return disturb


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def is_broken() -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("fault", [dies, is_full, is_broken], ids=lambda fault: fault.__name__)
def test_a_fault_at_every_call(bench: Bench, tmp_path: Path, fault: Callable[[], None]) -> None:
    assert bench.attempt(tmp_path / "counted", fails_at(0, fault, tmp_path / "calls")) == 0
    calls = int((tmp_path / "calls").read_bytes())
    assert calls > 60
    for fatal in range(1, calls + 1):
        out = tmp_path / "run"
        came = bench.attempt(out, fails_at(fatal, fault, tmp_path / "calls"))
        # where rmtree is told to ignore errors, a fault inside it ends nothing
        assert came in ({-signal.SIGKILL} if fault is dies else {3, 0}), f"call {fatal} of {calls}"
        bench.must_end_the_same(out)
    print(f"{calls} calls, every one failed once, every run ended bit-identical")  # noqa: T201


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "maemi-test", place], check=False)
    if mounted.returncode:
        pytest.skip("a file system of a given size needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def resize(place: Path, kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kib}k", "maemi-test", place], check=True)


def test_a_full_disk_at_twenty_levels(bench: Bench, tmp_path: Path, small_disk: Path) -> None:
    needed = peak_kib(bench, small_disk)
    ended = []
    for level in range(1, LEVELS + 1):
        resize(small_disk, max(16, needed * level // (LEVELS + 1)))
        ended.append(bench.attempt(small_disk / "run"))
        resize(small_disk, 4 * needed)
        bench.must_end_the_same(small_disk / "run")
    assert set(ended) <= {0, 3}
    assert ended.count(3) >= LEVELS // 2
    print(f"{needed} KiB needed; {ended.count(3)} of {LEVELS} runs met the full disk")  # noqa: T201


def peak_kib(bench: Bench, place: Path) -> int:
    """The least size, in steps of a tenth, on which a run ends."""
    kib = 256
    while True:
        resize(place, kib)
        came = bench.attempt(place / "probe")
        shutil.rmtree(place / "probe", ignore_errors=True)
        if came == 0:
            return kib
        kib += max(16, kib // 10)

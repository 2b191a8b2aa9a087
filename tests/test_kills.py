"""kill -9, a full disk or a failing call at any moment, then the same command: nothing lost, nothing done twice.

Every run is the real `maemi teach` in a process of its own, forked from one that is warm.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from killing import Maemi
from teacher_server import Handler, TeacherServer, answers_to, completion, teacher_server
from tiny_micrographs import draw_tiny

IMAGES = 7
"""Fewer than make it worth starting workers: all happens in the process that is killed."""


@pytest.fixture(scope="module")
def maemi() -> Iterator[Maemi]:
    warm = Maemi("teach", MAEMI_TEST_KEY="sk-sentinel")
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tiny(tmp_path_factory.mktemp("images"), IMAGES, per_sample=1)


def says_its_prompt(handler: Handler) -> None:
    """The same words whenever the same is asked."""
    digest = hashlib.sha256(handler.prompt.encode()).hexdigest()[:12]
    letters = digest.translate(str.maketrans("0123456789", "ghijklmnop"))
    handler.reply(completion(answers_to(handler.prompt, text=f"The word is {letters}.")))


@pytest.fixture(scope="module")
def server() -> Iterator[TeacherServer]:
    with teacher_server(says_its_prompt) as server:
        yield server


def command(images: Path, out: Path, server: TeacherServer | None) -> list[str]:
    """The arguments of `maemi teach`; with a server the hosted teacher is asked."""
    argv = ["teach", str(images), "--out", str(out), "--json", "--set", "teach.near_duplicate_bits=0"]
    if server is None:
        return argv
    settings = {
        "teacher": "openai", "model": "m", "base_url": server.url, "api_key_env": "MAEMI_TEST_KEY",
        "tasks": ["caption", "vqa"], "price_per_million": {"input": 1.0, "output": 1.0}, "deadline_s": 30.0,
    }  # fmt: skip
    config = out.parent / "teach.yaml"
    config.write_text(json.dumps({"teach": settings}))
    return [*argv, "--config", str(config), "--budget", "1000"]


def files(out: Path) -> dict[str, str]:
    """sha256 of every file that a user of the data set reads; of the card without what a crash may have cost twice."""
    paths = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith((".", "ledger", "egress-"))]
    content = {str(path.relative_to(out)): path.read_bytes() for path in sorted(paths)}
    content["README.md"] = re.sub(rb"[\d.]+ USD", b"", content["README.md"])
    return {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}


class Case:
    """One kind of teacher: its command, and the data set that an undisturbed run makes."""

    def __init__(self, maemi: Maemi, images: Path, folder: Path, server: TeacherServer | None) -> None:
        self.maemi, self.images, self.folder, self.server = maemi, images, folder, server
        self.leave: list[str] = []
        if server is not None:
            denied = self.once(folder / "whole")
            assert denied["rc"] == 2
            sha256 = hashlib.sha256((folder / "whole" / "egress.jsonl").read_bytes()).hexdigest()
            self.leave = ["--allow-egress", "--manifest", sha256]
        self.whole = self.once(folder / "whole")
        assert self.whole["rc"] == 0, self.whole["err"]
        self.files = files(folder / "whole")
        assert any(name.endswith(".parquet") for name in self.files)

    def once(self, out: Path, **job: Any) -> dict[str, Any]:
        return self.maemi.run([*command(self.images, out, self.server), *self.leave], out, **job)

    def check(self, out: Path) -> None:
        """The same command ends it: the bytes of an undisturbed run, no damage, no leftovers, nothing open."""
        last = self.once(out)
        assert last["rc"] == 0, last["err"]
        # A run that a busy machine makes slow says before it how far it is.
        report, _ = json.JSONDecoder().raw_decode(last["err"], last["err"].index("{"))
        assert report["unanswered"] == 0
        assert files(out) == self.files
        assert not [*out.glob(".drafts*"), *out.rglob("*.partial")]
        with sqlite3.connect(out / "ledger.sqlite") as ledger:
            assert ledger.execute("pragma integrity_check").fetchone() == ("ok",)
            assert ledger.execute("select count(*) from measurements").fetchone() == (IMAGES,)
            verdicts = ledger.execute("select distinct verdict from exchanges").fetchall()
        ledger.close()
        assert verdicts == [("accepted",)]


@pytest.fixture(scope="module", params=["hosted", pytest.param("offline", marks=pytest.mark.slow)])
def case(request: pytest.FixtureRequest, maemi: Maemi, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    hosted = request.param == "hosted"
    server = request.getfixturevalue("server") if hosted else None
    return Case(maemi, images, tmp_path_factory.mktemp(request.param), server)


def killed_at_random(case: Case, folder: Path, kills: int, *, per_set: int) -> None:
    """Data set after data set: a few kills at random moments, then the end, and the account of what was asked.

    A command that was over before its kill counts as none.
    """
    rng, done = random.Random(kills), 0
    while done < kills:
        out, crashes = folder / str(done), 0
        before = len(case.server.seen) if case.server else 0
        for _ in range(min(per_set, kills - done)):
            ended = case.once(out, kill_after=rng.uniform(0.0, 1.1 * case.whole["seconds"]))
            assert ended["rc"] in (-9, 0), ended["err"]
            crashes += ended["rc"] == -9
        done += crashes
        case.check(out)
        if case.server:
            # What was asked is in the ledger, once for each time it was sent; only a crash may make it twice.
            came = Counter(handler.headers["idempotency-key"] for handler in case.server.seen[before:])
            with sqlite3.connect(out / "ledger.sqlite") as ledger:
                booked = dict(ledger.execute("select key, attempts from exchanges where teacher = 'openai:m'"))
            ledger.close()
            assert came.keys() == booked.keys()
            assert all(came[key] <= attempts <= 1 + crashes for key, attempts in booked.items())
        shutil.rmtree(out)


def test_random_kills(case: Case, tmp_path: Path) -> None:
    """10 of the 300 below."""
    killed_at_random(case, tmp_path, 10, per_set=5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_hundred_random_kills(case: Case, tmp_path: Path) -> None:
    """150 with each teacher: 0 lost, 0 duplicated, 0 stuck."""
    killed_at_random(case, tmp_path, 150, per_set=5)


def struck(case: Case, folder: Path, how: str, calls: list[int]) -> None:
    """A run that is killed, or whose disk is full, from its k-th call on; then the same command on a sound disk."""
    for k in calls:
        out = folder / f"{how}{k}"
        ended = case.once(out, at=k, how=how)
        if how == "kill":
            assert ended["rc"] == -9, (k, ended["err"])
        else:
            assert ended["rc"] == 2, (k, ended["err"])
            assert ended["err"].startswith("error: "), (k, ended["err"])
            assert "internal" not in ended["err"], (k, ended["err"])
            assert "Traceback" not in ended["err"], (k, ended["err"])
        case.check(out)


@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_fault_at_some_calls(case: Case, tmp_path: Path, how: str) -> None:
    """A few of the calls below, spread over the run."""
    calls = case.whole["calls"]
    assert calls > 40
    struck(case, tmp_path, how, [calls // 3, calls - 4])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_fault_at_every_call(case: Case, tmp_path: Path, how: str) -> None:
    """k = 1, 2, 3 ... over every open, rename, removal, sync and statement of the run."""
    struck(case, tmp_path, how, list(range(1, case.whole["calls"] + 1)))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]).returncode:
        pytest.skip("mounting a tmpfs takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_and_then_space(case: Case, tmp_path: Path) -> None:
    """A tmpfs that grows step by step: one clear line each time it is full, then the bytes of an undisturbed run."""
    out = tmp_path / "disk"
    with small_disk(out, "48k"):
        for kib in (48, 128, 256, 384, 512, 640, 16_384):
            subprocess.run(["mount", "-o", f"remount,size={kib}k", out], check=True)
            ended = case.once(out)
            if ended["rc"] == 0:
                break
            assert ended["rc"] == 2, ended["err"]
            assert ended["err"].startswith("error: disk_full: "), ended["err"]
            assert len(ended["err"].splitlines()) == 1
        assert kib > 160
        subprocess.run(["mount", "-o", "remount,size=32m", out], check=True)
        case.check(out)


def test_ctrl_c_takes_the_replies_that_are_paid_for(maemi: Maemi, images: Path, tmp_path: Path) -> None:
    """SIGINT while requests are out: their replies are booked, and the same command asks none of them again."""
    import signal
    import threading
    import time

    sent, release = threading.Event(), threading.Event()

    def slow(handler: Handler) -> None:
        sent.set()
        release.wait(300)
        says_its_prompt(handler)

    with teacher_server(slow) as server:
        case_argv = command(images, tmp_path / "out", server)
        maemi.run(case_argv, tmp_path / "out")
        sha256 = hashlib.sha256((tmp_path / "out" / "egress.jsonl").read_bytes()).hexdigest()
        argv = [*case_argv, "--allow-egress", "--manifest", sha256]
        environment = os.environ | {"MAEMI_TEST_KEY": "sk-sentinel", "PYTHONPATH": str(Path(__file__).parents[1])}
        run = subprocess.Popen(
            [sys.executable, "-c", "import sys; from serve.cli import main; sys.exit(main())", *argv],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # a suite that was started in the background ignores SIGINT, and so would what it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        while not sent.wait(1.0):  # however long a busy machine takes to start it
            assert run.poll() is None
        time.sleep(0.3)
        run.send_signal(signal.SIGINT)
        time.sleep(3.0)  # a busy machine takes its time to hand the signal over
        release.set()
        _, err = run.communicate(timeout=300)
        assert run.returncode == 130, err
        assert "interrupted" in err
        keys = [handler.headers["idempotency-key"] for handler in server.seen]
        with sqlite3.connect(tmp_path / "out" / "ledger.sqlite") as ledger:
            settled = ledger.execute("select key from exchanges where verdict = 'accepted'").fetchall()
        ledger.close()
        assert {key for (key,) in settled} == set(keys)
        last = maemi.run(argv, tmp_path / "out")
        assert last["rc"] == 0, last["err"]
        assert max(Counter(handler.headers["idempotency-key"] for handler in server.seen).values()) == 1

"""`make gpu` on machines as strangers have them: no card, no package, a part that fails, hangs or is cut off."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmarking import BENCHMARKS, load_benchmark

gpu = load_benchmark("gpu")
CARD = {"card": "a stand-in"}


def part(name: str, *programs: str, seconds: float = 60, **more: Any) -> Any:
    """A part whose commands are Python programs."""
    return gpu.Part(name, [(sys.executable, "-c", program) for program in programs], seconds, **more)


def test_on_a_processor_every_part_is_skipped_by_name(tmp_path: Path) -> None:
    """The command as it is."""
    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=300, env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["parts"].keys() == {"tests", "step_7b", "adapters", "hnf", "captions", "training"}
    for found in results["parts"].values():
        assert found["status"] == "skipped"
        assert found["reason"].startswith(("no CUDA GPU", "not installed: "))
    assert results["machine"]["versions"]["torch"]


def test_parts_end_as_they_end_and_the_rest_still_runs(tmp_path: Path) -> None:
    """Failure, a missing package and a success; what one leaves is on the disk before the next begins."""
    sees = f"import json; print(json.load(open({str(tmp_path / 'results.json')!r}))['parts']['fails']['status'])"
    writes = f"open({str(tmp_path / 'ends.json')!r}, 'w').write('{{\"speed\": 3}}')"
    wanted = [
        part("fails", "print('about to'); raise SystemExit(3)", "raise SystemExit('never begun')"),
        part("lacks", "", needs=("json", "no_such_package")),
        part("ends", writes, sees, result="ends.json"),
        part("asks", asks=(sys.executable, "-c", "raise SystemExit('no_base: get the base.')")),
    ]
    found = gpu.run_all(wanted, tmp_path, seconds=100, machine=CARD)["parts"]
    assert json.loads((tmp_path / "results.json").read_text())["parts"] == found
    assert (found["fails"]["status"], found["fails"]["output"]) == ("failed", "about to\n")
    assert found["fails"]["reason"].startswith("ended with 3: ")
    assert found["lacks"] == {"status": "skipped", "reason": "not installed: no_such_package"}
    assert found["asks"] == {"status": "skipped", "reason": "not here: no_base: get the base."}
    assert (found["ends"]["status"], found["ends"]["result"]) == ("done", {"speed": 3})
    assert found["ends"]["output"] == "failed\n"


def test_a_part_that_hangs_is_ended_with_its_children_and_keeps_what_it_wrote(tmp_path: Path) -> None:
    hangs = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(tmp_path / "half.json")!r}).write_text('{{"rows": [1]}}')
print(child.pid, flush=True)
time.sleep(600)
"""
    found = gpu.run_all([part("hangs", hangs, seconds=3, result="half.json")], tmp_path, seconds=100, machine=CARD)
    told = found["parts"]["hangs"]
    assert told["status"] == "timed out"
    assert told["reason"].startswith("took more than 3 s: ")
    assert told["result"] == {"rows": [1]}
    child = int(told["output"])
    for _ in range(100):  # a killed child is a zombie until somebody has waited for it
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the part's child lives")


def test_no_part_is_begun_when_the_time_is_gone(tmp_path: Path) -> None:
    found = gpu.run_all([part("late", "")], tmp_path, seconds=5, machine=CARD)["parts"]
    assert found["late"]["status"] == "skipped"
    assert found["late"]["reason"].endswith("s were left")


def test_commands_of_all_parts_name_files_and_options_that_exist(tmp_path: Path) -> None:
    """A part that only a GPU machine runs must not end there with a usage error."""
    from typer.main import get_command

    from serve.cli import app

    verbs: Any = get_command(app)
    for one in gpu.parts(tmp_path):
        for _, program, *rest in one.commands:
            options = {argument for argument in rest if argument.startswith("--")}
            if program == "-c":
                known = {name for parameter in verbs.commands[rest[1]].params for name in parameter.opts}
                known |= {name for parameter in verbs.commands[rest[1]].params for name in parameter.secondary_opts}
                assert options <= known, rest[1]
            elif program != "-m":
                source = (gpu.ROOT / program).read_text()
                assert all(f'"{option}"' in source for option in options), program
    assert gpu.files_of_gpu_tests() == ["tests/test_gpu.py", "tests/test_nf4.py"]

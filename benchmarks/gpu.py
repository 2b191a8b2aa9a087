"""Everything that needs a CUDA GPU in one command: tests, benchmarks, captions per second, a training.

    make gpu        or        python benchmarks/gpu.py [--out gpu] [--seconds 480] [--only tests,step_7b]

Each part is a process of its own with a time limit of its own. What is found is written to `results.json` after each
part, and by the benchmarks after each row, so that a machine that is taken away leaves what it had found. A part whose
packages or card are missing is skipped by name. Ends with 0 where no part failed; skipped parts are no failures.
Imports nothing but the standard library: it runs wherever Python does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROBE_SECONDS = 90
"""What importing torch and finding the card may take."""
LEAST_SECONDS = 10
"""A part with less than this left is not begun."""
TAIL = 2000
"""Characters of a part's output that results keep."""
PROBE = """
import json, torch
there = torch.cuda.is_available()
card = torch.cuda.get_device_properties(0) if there else None
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda} | ({} if card is None else {
    "card": card.name, "memory_gib": round(card.total_memory / 2**30, 1), "capability": f"{card.major}.{card.minor}"})))
"""
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "triton", "torch_geometric", "torchdiffeq")


@dataclass(frozen=True)
class Part:
    """One program: its commands, one after another, may take so many seconds together."""

    name: str
    commands: Sequence[Sequence[str]]
    seconds: float
    needs: Sequence[str] = ()
    """Modules that must be importable."""
    result: str | None = None
    """The JSON file it writes, below the folder of results."""
    card: bool = True
    asks: Sequence[str] = ()
    """A command that ends with 0 where something else that the part needs is here; what it says last is the reason."""


ADAPTERS = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
STUDENT = (*ADAPTERS, "pydantic", "tokenizers", "safetensors", "tifffile", "skimage", "scipy", "sklearn")
TESTS = (*STUDENT, "pytest", "pytest_timeout", "datasets", "jinja2")
BASE = "smollm2-135m"
"""The language model of configs/student.yaml, which a package brings: without it there is nothing to train."""
COMMAND = (*STUDENT, "datasets", "typer", "rich", "jsonschema", "sqlalchemy", "jinja2", "nltk", "gguf", "httpx2")


def parts(out: Path) -> tuple[Part, ...]:
    """What is run, the most wanted first; every program writes into `out`."""
    python, drawn = sys.executable, out / "student"
    recipe = ("--config", "configs/student.yaml", "--set", "training.save_every=50")
    maemi = (python, "-c", "from serve.cli import main; main()")
    return (
        Part(
            "tests",
            [(python, "-m", "pytest", "-q", "-m", "gpu", "-o", "filterwarnings=default", *files_of_gpu_tests())],
            150,
            TESTS,
        ),
        Part("step_7b", [(python, "benchmarks/step_7b.py", "--steps", "3", "--out", f"{out}/step_7b.json")],
             180, ADAPTERS, "step_7b.json"),
        Part("adapters", [(python, "benchmarks/adapters.py", "--tokens", "1024", "--total", "1024,4096",
                           "--out", f"{out}/adapters.json")],
             60, ADAPTERS, "adapters.json"),
        Part("hnf", [(python, "benchmarks/hnf.py", "--device", "cuda", "--out", f"{out}/hnf.json")],
             60, ("torch", "torch_geometric", "torchdiffeq"), "hnf.json"),
        Part("captions", [(python, "benchmarks/captioning.py", "--device", "cuda", "--out", f"{out}/captioning.json")],
             60, STUDENT, "captioning.json"),
        Part(
            "training",
            [
                (*maemi, "synth", "--out", f"{drawn}/images", "--per-class", "6"),
                (*maemi, "teach", f"{drawn}/images", "--out", f"{drawn}/data", *recipe[:2]),
                (*maemi, "train", "--data", f"{drawn}/data", "--out", f"{drawn}/run", *recipe),
                (*maemi, "evaluate", "--run", f"{drawn}/run", "--data", f"{drawn}/data", "--limit", "40",
                 "--no-baselines", "--report", f"{out}/student.html"),
            ],
            240,
            COMMAND,
            asks=(*maemi, "base", BASE),
        ),
    )  # fmt: skip


def files_of_gpu_tests() -> list[str]:
    """The test files with such tests: collecting the others takes packages that they alone need."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text(encoding="utf-8")]


def run_all(wanted: Iterable[Part], out: Path, *, seconds: float, machine: dict[str, Any]) -> dict[str, Any]:
    """Run the parts until `seconds` are gone, and write down each as it ends. Gives what was written last."""
    end = time.monotonic() + seconds
    results: dict[str, Any] = {"machine": machine, "parts": {}}
    for part in wanted:
        reason = why_not(part, machine, end - time.monotonic())
        if reason:
            found: dict[str, Any] = {"status": "skipped", "reason": reason}
        else:
            found = run_part(part, out, min(part.seconds, end - time.monotonic()))
        results["parts"][part.name] = found
        write(out / "results.json", results)
        told = found.get("reason") or f"{found['seconds']:.0f} s"
        print(f"{part.name:10} {found['status']:8} {told}", flush=True)
    return results


def why_not(part: Part, machine: dict[str, Any], left: float) -> str | None:
    """Why a part cannot be run here; None where it can."""
    missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if part.card and "card" not in machine:
        return machine.get("no_card", "no CUDA GPU")
    if left < LEAST_SECONDS:
        return f"{left:.0f} s were left"
    try:
        asked = subprocess.run(part.asks or ("true",), cwd=ROOT, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return f"took more than {left:.0f} s: {' '.join(part.asks)[:120]}"
    said = [line for line in (asked.stdout + asked.stderr).splitlines() if line.strip()]
    return None if asked.returncode == 0 else f"not here: {said[-1] if said else ' '.join(part.asks)}"


def run_part(part: Part, out: Path, limit: float) -> dict[str, Any]:
    """Run one part, its output into a file; at its limit the process is ended with all that it started."""
    begun, log = time.monotonic(), out / f"{part.name}.log"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    status = "done"
    with log.open("wb") as said:
        for command in part.commands:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(max(0.0, limit - (time.monotonic() - begun)))
            except subprocess.TimeoutExpired:
                status = "timed out"
            except KeyboardInterrupt:
                end_with_children(process)
                raise
            else:
                status = "done" if code == 0 else "failed"
            if status != "done":
                end_with_children(process)
                break
    found: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - begun, 1), "limit": round(limit)}
    if status == "failed":
        found["reason"] = f"ended with {code}: {' '.join(command)[:120]}"
    if status == "timed out":
        found["reason"] = f"took more than {limit:.0f} s: {' '.join(command)[:120]}"
    if part.result:
        with suppress(OSError, ValueError):  # what a part that was cut off has written holds as well
            found["result"] = json.loads((out / part.result).read_text(encoding="utf-8"))
    text = log.read_bytes()[-TAIL:].decode(errors="replace")
    return found | {"output": text}


def end_with_children(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def machine_here() -> dict[str, Any]:
    """Card, driver, versions; `no_card` says why there is none."""
    versions = {}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    told: dict[str, Any] = {
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
    }
    if importlib.util.find_spec("torch") is None:
        return told | {"no_card": "torch is not installed"}
    try:
        probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS)
        told |= json.loads(probe.stdout)
    except subprocess.TimeoutExpired:
        return told | {"no_card": f"torch did not find a card within {PROBE_SECONDS} s"}
    except ValueError:
        return told | {"no_card": f"torch cannot be imported: {probe.stderr.strip()[-200:]}"}
    if "card" not in told:
        return told | {"no_card": f"no CUDA GPU for torch {told['torch']}"}
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told["driver"] = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.split("\n")[0]
    return told


def write(file: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "gpu", help="folder of the results")
    parser.add_argument("--seconds", type=float, default=480, help="what everything together may take")
    parser.add_argument("--only", help="names of parts, with commas between")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = parts(out)
    if options.only:
        names = options.only.split(",")
        if unknown := set(names) - {part.name for part in chosen}:
            parser.error(f"no part is called {', '.join(sorted(unknown))}")
        chosen = tuple(part for part in chosen if part.name in names)
    machine = machine_here()
    left = options.seconds - (time.monotonic() - begun)
    results = run_all(chosen, out, seconds=left, machine=machine)
    print(f"results: {out / 'results.json'}")
    return int(any(found["status"] in ("failed", "timed out") for found in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())

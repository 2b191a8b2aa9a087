"""Fine-tuning as docs/fine-tuning.md tells it, on six classes of real micrographs that the student was not taught.

    python benchmarks/finetuning.py ../shared/data/open_sem [--steps 300] [--out benchmarks/finetuning.json]

Teaches, trains and asks by the commands of the page; groups of `train` and `val` teach, groups of `test` are asked. The
class as it is said or withheld, the likeliest class of every picture, and texture descriptors with a logistic head,
which are fitted on the same pictures. Writes finetuning.json beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from subprocess import run
from typing import Any

from bases import machine
from heads import by_descriptors

from assistant.config import TOWER_SIDE
from assistant.inference import Assistant
from assistant.labels import UNKNOWN, plain
from assistant.micrograph import read_micrograph, to_model_input

RESULTS = Path(__file__).with_suffix(".json")
CLASSES = ("ncm333_pristine", "ncm523_pristine", "ncm333_cycled", "superalloy", "ebc_coating", "melt_pool")
QUESTION = "Which class does this micrograph belong to?"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        site, data, trained = (Path(folder) / name for name in ("images", "data", "run"))
        rows = lay_out(asked.real, site)
        cost = {
            "teach": maemi("teach", site, "--out", data),
            "train": maemi("train", "--data", data, "--out", trained, "--set", f"training.steps={asked.steps}"),
        }
        tests = [row for row in rows if row["split"] == "test"]
        record = {
            "machine": machine(),
            "steps": asked.steps,
            "pictures": dict(Counter(row["split"] for row in rows)),
            "seconds": cost,
            "asked": answers(Assistant.load(trained), site, tests),
            "texture_descriptors_logistic": descriptors(site, [row for row in rows if row not in tests], tests),
        }
    asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


def lay_out(real: Path, site: Path) -> list[Mapping[str, str]]:
    """A folder as a site has it: the pictures of the six classes with their side-cars, and which split each is of."""
    with (real / "index.csv").open(encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["label"] in CLASSES]
    for row in rows:
        for name in filter(None, (row["path"], row["sidecar"])):
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(real / name, site / name)
    with (site / "index.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, ["path", "label", "split", "source", "group"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"split": {"val": "validation"}.get(row["split"], row["split"])} for row in rows)
    return rows


def maemi(*words: Any) -> dict[str, float]:
    """Seconds of the wall and of the processor that a command takes."""
    began, before = time.perf_counter(), getrusage(RUSAGE_CHILDREN)
    run([sys.executable, "-m", "serve.cli", *map(str, words)], check=True)
    after = getrusage(RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(time.perf_counter() - began, 1), "cpu": round(cpu, 1)}


def answers(assistant: Assistant, site: Path, tests: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What is said of the class of each picture, and which class is likeliest where one must be named."""
    verdicts, likeliest = Counter[str](), 0
    for row in tests:
        picture = site / row["path"]
        answer = "".join(assistant.ask([picture], QUESTION))
        named = [s for s in assistant.statements(answer, [picture], QUESTION) if s.name == "class" and s.fact]
        words = {plain(s.fact.text) for s in named if s.fact and s.fact.text}
        verdicts[_verdict(words, plain(row["label"]))] += 1
        ranked = assistant.ranked_labels(assistant.look(picture), CLASSES)
        likeliest += next(label for label, _ in ranked if label != UNKNOWN) == row["label"]
    return {"pictures": len(tests), **verdicts, "accuracy_if_always_said": round(likeliest / len(tests), 3)}


def _verdict(words: Set[str], label: str) -> str:
    """Right or wrong among the classes that were taught; a broader word of the bundled heads is another's."""
    if not words:
        return "withheld"
    return "right" if words == {label} else "wrong" if words & set(map(plain, CLASSES)) else "only a word of before"


def descriptors(site: Path, train: Sequence[Mapping[str, str]], tests: Sequence[Mapping[str, str]]) -> float:
    """Accuracy of texture descriptors with a logistic head."""
    (taught, labels), (asked, truth) = (
        (
            [to_model_input(read_micrograph(site / row["path"]), TOWER_SIDE)[0] for row in rows],
            [row["label"] for row in rows],
        )
        for rows in (train, tests)
    )
    return by_descriptors(taught, labels, asked, truth)


if __name__ == "__main__":
    main()

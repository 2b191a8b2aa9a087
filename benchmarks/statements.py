"""Every statement about real micrographs of groups that taught nothing, by the quantity that it is about.

    python benchmarks/statements.py FOLDER... [--run RUN] [--limit N] [--out benchmarks/statements.json]

FOLDER has an index.csv (path, label, split, group); pictures of the splits val and test are asked about. A statement is
held against what is known of its picture, as everywhere: true, false, unsupported or withheld. Words of class, shape,
surface and arrangement are held against what a person says of the label as well: `right` or `wrong`, or neither where
nobody says. How often numbers are right is measured elsewhere, against outlines drawn by hand (bodies.py) and bars read
by eye (bars.py).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from assistant.inference import Assistant
from assistant.measure import read_statements
from assistant.quantities import QUANTITIES
from training.heads import CLASS_OF, SEEN_IN

QUESTIONS = (
    "What is this?",
    "Describe this micrograph.",
    "How many structures are there, and how large are they?",
    "What is the surface like, and how are the structures arranged?",
    "Which microscope, voltage and working distance were used?",
)
WORDS = tuple(name for name, quantity in QUANTITIES.items() if quantity.source == "predicted")
DOUBT = "uncertain"


def held_out(folder: Path, limit: int | None) -> Iterator[tuple[Path, dict[str, str]]]:
    """Pictures of val and test with the words that are true of them, each label as evenly as it comes."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as index:
        rows = [row for row in csv.DictReader(index) if row["split"] in ("val", "test")]
    for row in rows[:: max(1, len(rows) // limit) if limit else 1]:
        words = dict(SEEN_IN.get(row["label"], {}))
        if row["label"] in CLASS_OF:
            words["class"] = CLASS_OF[row["label"]]
        yield folder / row["path"], words


def counted(assistant: Assistant, picture: Path, truth: dict[str, str]) -> dict[str, Counter[str]]:
    """Statements of all answers about a picture, by quantity and verdict."""
    counts: dict[str, Counter[str]] = {}
    known = assistant.look(picture).known
    for question in QUESTIONS:
        answer = "".join(assistant.ask([picture], question))
        for statement in read_statements(answer, [known]):
            name = statement.name or "other"
            of = counts.setdefault(name, Counter())
            of[statement.verdict] += 1
            if statement.verdict != "withheld" and statement.fact is not None and not statement.fact.sure:
                of[DOUBT] += 1
            if name in WORDS and statement.fact is not None and name in truth:
                of["right" if statement.fact.text == truth[name] else "wrong"] += 1
    return counts


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--limit", type=int, help="pictures of a folder, about")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    assistant, table, pictures = Assistant.load(options.run), dict[str, Counter[str]](), 0
    began = time.process_time()
    for picture, truth in (pair for folder in options.folders for pair in held_out(folder, options.limit)):
        pictures += 1
        for name, counts in counted(assistant, picture, truth).items():
            table.setdefault(name, Counter()).update(counts)
    order = [*QUANTITIES, "other"]
    report = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "student": assistant.name,
        "pictures": pictures,
        "cpu_s": round(time.process_time() - began, 1),
        "questions": QUESTIONS,
        "all": dict(sum(table.values(), Counter[str]())),
        "by_quantity": {name: dict(table[name]) for name in sorted(table, key=order.index)},
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

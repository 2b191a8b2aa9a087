"""What users are told about real micrographs, judged by a person beside the pictures.

    python benchmarks/answers.py FOLDER [--judged benchmarks/answers.csv]

FOLDER holds the pictures of `answers.csv` (`open_sem/...`, `more_sem/...`). Every question is asked anew. A judgement
holds for the very words that were judged: where an answer has changed, its verdict is emptied and listed, for a person
to look again. Verdicts: true, partly (what is said is true, and a part that was asked for is withheld), withheld, off
(another question is answered), false, garbled.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

from assistant.inference import Assistant

COLUMNS = ("picture", "question", "answer", "verdict", "why")
JUDGED = Path(__file__).with_name("answers.csv")


def ask_again(folder: Path, judged: Path) -> list[dict[str, str]]:
    """The rows of `judged` with today's answers."""
    with judged.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assistant = Assistant.load()
    for row in rows:
        answer = "".join(assistant.ask([folder / row["picture"]], row["question"]))
        if answer != row["answer"]:
            row |= {"answer": answer, "verdict": "", "why": ""}
            print(f"{row['picture']}\n  {row['question']}\n  {answer}", flush=True)
    return rows


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--judged", type=Path, default=JUDGED)
    options = parser.parse_args()
    rows = ask_again(options.folder, options.judged)
    with options.judged.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for half in sorted({row["picture"].split("/")[0] for row in rows}):
        counted = Counter(row["verdict"] or "to be judged" for row in rows if row["picture"].startswith(f"{half}/"))
        print(half, ", ".join(f"{count} {verdict}" for verdict, count in counted.most_common()))


if __name__ == "__main__":
    main()

"""What the offline teacher makes of real micrographs: time, rows per task, what is left out, twenty rows to read.

    python benchmarks/teaching_rows.py open_sem [--data DIR] [--page docs/teaching.md]

Runs `maemi teach` on a folder and writes its figures to teaching_rows.json; the tables and the twenty rows, with small
copies of their pictures, replace what stands between the two marks of the page. The rows are one for each of twenty
kinds of question, the first of a shuffle. A data set that is there already (`--data`) is read, not made again.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from PIL import Image

SHOWN = (
    *("caption", "caption_detailed", "class_among", "sample", "count", "direction", "direction_guess", "grey_contrast"),
    *("noise", "dark_share", "coverage", "orientation", "height", "conversation", "conversation", "pixel_size"),
    *("voltage", "same_class", "noisier", "finer", "magnification", "hardness", "caption_short", "colour"),
)
"""Kinds of question in the order of the page; those that the data set does not have are passed over."""
ROWS = 20
SIDE, QUALITY = 224, 72
BEGIN, END = "<!-- rows of real micrographs -->", "<!-- /rows of real micrographs -->"
Row = dict[str, Any]


def taught(images: Path, out: Path) -> dict[str, Any]:
    """Run the command; gives its report with the time of clock and processors [s]."""
    command = [sys.executable, "-m", "serve.cli", "teach", str(images), "--out", str(out), "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report: dict[str, Any] = json.loads(done.stdout)
    return report | {"seconds": time.perf_counter() - started, "cpu_s": used.ru_utime + used.ru_stime}


def figures(report: dict[str, Any], out: Path) -> dict[str, Any]:
    """What is committed: times, counts, and what was left out by reason and kind of question."""
    left_out = Counter[str]()
    with (out / "rejected.jsonl").open(encoding="utf-8") as stream:
        for line in map(json.loads, stream):
            left_out[f"{line['reason']}: {line.get('question', '').partition(':')[0] or 'file'}"] += 1
    return {
        "date": date.today().isoformat(),
        "cpus": os.cpu_count(),
        "images": report["images"],
        "seconds": round(report["seconds"], 1),
        "cpu_s": round(report["cpu_s"], 1),
        "cpu_s_per_image": round(report["cpu_s"] / report["images"], 3),
        "rows": report["rows"],
        "left_out": dict(left_out.most_common()),
    }


def item_of(row: Row) -> str:
    return str(json.loads(row["provenance"])["item"])


def chosen(out: Path) -> list[Row]:
    """One row of each kind of question, from folders that were shown least so far."""
    rows: dict[str, list[Row]] = {}
    for path in sorted(out.glob("data/*.parquet")):
        for row in parquet.read_table(path).to_pylist():
            rows.setdefault(item_of(row), []).append(row)
    rng, shown, picked = random.Random(11), Counter[str](), []
    for kind in SHOWN:
        candidates = sorted(rng.sample(rows.get(kind, []), len(rows.get(kind, []))), key=lambda r: shown[folder_of(r)])
        if candidates and len(picked) < ROWS:
            picked.append(candidates[0])
            rows[kind].remove(candidates[0])
            shown[folder_of(candidates[0])] += 1
    return picked


def folder_of(row: Row) -> str:
    return str(row["source"]).partition("/")[0]


class Gallery:
    """Small copies of the pictures, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        self._names: dict[bytes, str] = {}

    def tag(self, png: bytes, alt: str, width: int) -> str:
        if png not in self._names:
            self._names[png] = f"{len(self._names) + 1:02d}.jpg"
            copy = Image.open(io.BytesIO(png)).convert("L")
            copy.thumbnail((SIDE, SIDE))
            copy.save(self.folder / self._names[png], "JPEG", quality=QUALITY, optimize=True)
        name = f"images/{self.folder.name}/{self._names[png]}"
        return f'<img src="{name}" width="{width}" alt="{html.escape(alt)}">'


def table_row(number: int, row: Row, gallery: Gallery) -> str:
    """A row of the data set as a row of the page: its pictures, what was asked and answered, where it comes from."""
    width = 190 if len(row["images"]) == 1 else 150
    files = json.loads(row["provenance"])["files"]
    pictures = zip(row["images"], files, strict=True)
    shown = " ".join(gallery.tag(image["bytes"], file, width) for image, file in pictures)
    said = []
    for message in row["messages"]:
        text = html.escape(" ".join(part["text"] for part in message["content"] if part["text"]), quote=False)
        said.append(f"<b>{text}</b>" if message["role"] == "user" else text)
    kind = f"{row['task']} / {row['facet'].replace('_', ' ')}"
    source = html.escape(", ".join(files))
    told = f"<i>{kind}</i><br>{'<br>'.join(said)}<br><sub>{source}</sub>"
    return f"<tr><td>{number}</td><td>{shown}</td><td>{told}</td></tr>"


def section(found: dict[str, Any], rows: list[Row], gallery: Gallery) -> str:
    """The Markdown between the marks."""
    tasks = sorted({task for counts in found["rows"].values() for task in counts})
    total = sum(sum(counts.values()) for counts in found["rows"].values())
    lines = [
        f"{total} rows about {found['images']} micrographs in {found['seconds']:.0f} s on {found['cpus']} cores: "
        f"{found['cpu_s_per_image']:.2f} s of processor time per picture.",
        "",
        f"| split | {' | '.join(tasks)} | all |",
        f"|---|{'---|' * len(tasks)}---|",
    ]
    for split, counts in found["rows"].items():
        cells = " | ".join(str(counts.get(task, 0)) for task in tasks)
        lines.append(f"| {split} | {cells} | {sum(counts.values())} |")
    lines += ["", "| left out | of the item | rows |", "|---|---|---|"]
    for reason, count in found["left_out"].items():
        why, _, item = reason.partition(": ")
        lines.append(f"| `{why}` | {item.replace('_', ' ')} | {count} |")
    body = [table_row(number, row, gallery) for number, row in enumerate(rows, start=1)]
    return "\n".join([*lines, "", "<table>", *body, "</table>"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs" / "teaching.md")
    options = parser.parse_args()
    results = Path(__file__).with_suffix(".json")
    with tempfile.TemporaryDirectory() as place:
        out = options.data or Path(place) / "data"
        if not (out / "README.md").is_file():
            results.write_text(json.dumps(figures(taught(options.images, out), out), indent=1) + "\n")
        gallery = Gallery(options.page.parent / "images" / options.page.stem)
        filled = section(json.loads(results.read_text()), chosen(out), gallery)
    head, _, rest = options.page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    options.page.write_text(f"{head}{BEGIN}\n{filled}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()

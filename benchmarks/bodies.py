"""How many bodies, and how large: what is answered, how right, how sure, on outlined and on drawn pictures.

    python benchmarks/bodies.py [--per-class 60] [--workers 2] [--out benchmarks/bodies.json]

Scored are the pictures that a person, or the drawing, counts bodies in. `wrong and sure` are answers that are more than
20 % off, or about bodies that are not there, at a confidence of 0.8 and more. The joining of touching bodies and the
confidence were fitted on `train` and on drawn scenes of other seeds than `test`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from assistant.measure import measure_pixels
from benchmarks.annotated import Annotated, crops, drawn, powder
from data_gen.drawing.synth import CLASSES

ASKED = ("count", "mean_diameter", "median_diameter")
SURE = 0.8
Row = dict[str, Any]


def rows_of(task: tuple[str, str, range]) -> list[Row]:
    """Every answer and refusal about the pictures of one source."""
    source, split, scenes = task
    if source in ("outlined", "crops"):
        items: Iterable[Annotated] = powder(split) if source == "outlined" else crops(split)
    else:
        items = drawn(split, classes=[source], scenes=scenes)
    name = f"{source} {split}" if source in ("outlined", "crops") else f"drawn {split}"
    rows = []
    for item in items:
        facts = measure_pixels(item.pixels, nm_per_pixel=None)
        for asked in ASKED:
            fact = facts[asked]
            rows.append(
                {"set": name, "picture": item.name, "kind": facts.kind, "name": asked, "true": item.truth.get(asked),
                 "found": fact.value, "confidence": fact.confidence}
            )  # fmt: skip
    return rows


def summed(rows: list[Row]) -> dict[str, Any]:
    """What is answered of what can be, within 10 and 20 %, the median error, and what is wrong and sure."""
    have = [row for row in rows if row["true"]]
    answered = [row for row in have if row["found"] is not None]
    errors = np.array([abs(row["found"] / row["true"] - 1) for row in answered])
    made_up = [row for row in rows if not row["true"] and row["found"] is not None]
    off = [row for row, error in zip(answered, errors, strict=True) if error > 0.2]
    out: dict[str, Any] = {"pictures": len(have), "answered": len(answered)}
    if len(answered):
        out |= {"within_10": int((errors <= 0.1).sum()), "within_20": int((errors <= 0.2).sum())}
        out |= {"median_error": round(float(np.median(errors)), 3)}
    sure = sum(row["confidence"] >= SURE for row in (*answered, *made_up))
    wrong = sum(row["confidence"] >= SURE for row in (*off, *made_up))
    return out | {"made_up": len(made_up), "sure": sure, "wrong_and_sure": wrong}


def main() -> None:
    """Measure, sum up, write."""
    parser = argparse.ArgumentParser(description="How many bodies, how large, how sure.")
    parser.add_argument("--per-class", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    tasks = [(source, split, range(1)) for source in ("outlined", "crops") for split in ("train", "test")]
    tasks += [
        (label, "test", range(k, min(k + 5, args.per_class))) for k in range(0, args.per_class, 5) for label in CLASSES
    ]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        rows = [row for some in pool.map(rows_of, tasks) for row in some]
    result: dict[str, Any] = {}
    for name in sorted({row["set"] for row in rows}):
        mine = [row for row in rows if row["set"] == name]
        result[name] = {asked: summed([row for row in mine if row["name"] == asked]) for asked in ASKED}
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Accuracy of the measurement against exact ground truth, and how often it claims what is not there.

    python benchmarks/measure.py [--per-class 200] [--split test] [--workers 2]
        [--shale DIR] [--rows FILE] [--out benchmarks/measure.json]

Every scene is drawn once and imaged at three doses [electrons per pixel at white]. The measurement was tuned on the
seeds of `development` only; the figures to quote are those of `test`. A share of the frame is compared with the phase
that the fact itself names. A verdict is wrong where a quantity applies that the drawing does not have. `--rows` keeps
what was measured as it comes, and a file that is there already is only summed up again, as far as it goes. `--shale` is
a folder of pictures with `_MASK_` files beside them, split in halves by name.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from assistant.measure import Facts, measure_pixels
from data_gen.drawing.synth import CLASSES, Synthetic, render_at_doses

DOSES = {"low": 400.0, "medium": 80.0, "high": 20.0}
FIRST_SEED = {"development": 90 << 20, "test": 91 << 20}
VIEWS_PER_GROUP = 4
GOALS = {"count": 0.10, "mean_diameter": 0.05, "period": 0.02, "share": 3.0, "porosity": 3.0, "orientation": 3.0}
"""Largest median error: relative for counts and lengths, else in points of area or degrees."""
ALSO = ("nearest_neighbour", "line_width", "line_edge_roughness", "fibre_width")
"""Quantities without a goal, whose errors are listed all the same."""
RELATIVE = {"count", "mean_diameter", "period", *ALSO}
SURE, FAR_OFF = 0.8, 0.2
"""Confidence from which a fact is stated without a word of doubt, and the relative error that makes it wrong."""
MOST_WRONG = 0.05
Row = dict[str, Any]


def dark_share(facts: Facts) -> float | None:
    """The share of the dark phase [%] by whichever fact gives one."""
    for name in ("porosity", "coverage"):
        fact = facts[name]
        if fact.value is not None:
            return fact.value if "dark" in fact.note else 100 - fact.value
    return None


def true_dark_share(image: Synthetic) -> float | None:
    """The same of the drawing; None where its phases do not differ in brightness."""
    share = 100 * float(image.feature.mean())
    return {"dark on bright": share, "bright on dark": 100 - share}.get(image.truth["polarity"])


def row_of(image: Synthetic, noise: str) -> Row:
    """Measure one picture: what is true, what was found."""
    start = time.perf_counter()
    facts = measure_pixels(image.pixels, nm_per_pixel=image.nm_per_pixel)
    seconds = time.perf_counter() - start
    found = {fact.name: fact.value for fact in facts.applicable()}
    truth = {name: value for name, value in image.truth.items() if isinstance(value, float)}
    for values, share in ((found, dark_share(facts)), (truth, true_dark_share(image))):
        if share is not None:
            values["share"] = share
    shown = {"shape": image.truth["shape"], "kind": facts.kind, "seconds": seconds}
    shown["confidence"] = {fact.name: fact.confidence for fact in facts.applicable()}
    return {"label": image.label, "seed": image.seed, "noise": noise, "truth": truth, "found": found} | shown


def rows_of(task: tuple[str, int]) -> list[Row]:
    """One scene at every level of noise."""
    label, seed = task
    images = render_at_doses(label, list(DOSES.values()), seed=seed)
    return [row_of(image, noise) for noise, image in zip(DOSES, images, strict=True)]


def measured(per_class: int, *, split: str, workers: int, keep: Path | None) -> list[Row]:
    """All rows, kept in a file as they come where one is named."""
    tasks = [(label, FIRST_SEED[split] + VIEWS_PER_GROUP * k) for k in range(per_class) for label in CLASSES]
    rows: list[Row] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for some in pool.map(rows_of, tasks, chunksize=5):
            rows += some
            if keep is not None:
                with keep.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in some)
    return rows


def error(name: str, found: float, true: float) -> float:
    """How far a measured value is off, in the terms of its goal."""
    if name == "orientation":
        return abs((found - true + 90) % 180 - 90)
    return abs(found - true) / (max(abs(true), 1e-9) if name in RELATIVE else 1.0)


def summed(name: str, rows: list[Row]) -> dict[str, Any] | None:
    """Errors and verdicts of one quantity; None where it is neither true nor found."""
    true = [row for row in rows if name in row["truth"]]
    both = [row for row in true if name in row["found"]]
    wrong = sum(name in row["found"] for row in rows) - len(both)
    if not true and not wrong:
        return None
    errors = [_off(name, row) for row in both]
    out: dict[str, Any] = {"pictures": len(true), "applicable": len(both), "wrong": wrong}
    if errors:
        out |= {"median_error": round(float(np.median(errors)), 4)}
        out |= {"median_by_noise": {noise: _median(name, both, noise) for noise in DOSES}}
        if name in RELATIVE:
            out |= {"within_10": sum(e <= 0.1 for e in errors), "within_20": sum(e <= FAR_OFF for e in errors)}
            sure = [row for row in rows if row.get("confidence", {}).get(name, 0.0) >= SURE]
            right = [row for row in sure if name in row["truth"] and _off(name, row) <= FAR_OFF]
            out |= {"sure": len(sure), "wrong_and_sure": len(sure) - len(right)}
        if name in GOALS:
            out |= {"within_goal": round(float(np.mean(np.array(errors) <= GOALS[name])), 3)}
            out |= {"met": out["median_error"] <= GOALS[name]}
    return out


def _off(name: str, row: Row) -> float:
    return error(name, row["found"][name], row["truth"][name])


def _median(name: str, rows: list[Row], noise: str) -> float | None:
    errors = [_off(name, row) for row in rows if row["noise"] == noise]
    return round(float(np.median(errors)), 4) if errors else None


def summary(rows: list[Row]) -> dict[str, Any]:
    """Every quantity, over all classes and in each."""
    out: dict[str, Any] = {}
    for name in (*GOALS, *ALSO):
        classes = {label: summed(name, [row for row in rows if row["label"] == label]) for label in CLASSES}
        entry = summed(name, rows) or {}
        out[name] = entry | {"classes": {label: found for label, found in classes.items() if found}}
    claimed = {name: sum(name in row["found"] for row in rows) for name in GOALS}
    wrong = {name: out[name].get("wrong", 0) for name in GOALS}
    shares = {name: round(wrong[name] / max(claimed[name], 1), 4) for name in GOALS}
    overall = sum(wrong.values()) / max(sum(claimed.values()), 1)
    out["wrong_verdicts"] = {"share_of_claims": shares, "overall": round(overall, 4), "met": overall < MOST_WRONG}
    return out


def shale(folder: Path, half: str) -> dict[str, Any]:
    """Dark share against the masks of one half of the pictures, by the checksum of the name."""
    from PIL import Image

    errors, count = [], 0
    for path in sorted(folder.rglob("*_MASK_*")):
        picture = path.with_name(path.name.replace("_MASK", ""))
        if not picture.exists() or (zlib.crc32(picture.name.encode()) % 2 == 0) != (half == "development"):
            continue
        count += 1
        black = 100 * float((np.asarray(Image.open(path).convert("L")) == 0).mean())
        found = dark_share(measure_pixels(np.asarray(Image.open(picture).convert("L")), nm_per_pixel=None))
        if found is not None:
            errors.append(abs(found - black))
    median = round(float(np.median(errors)), 2) if errors else None
    return {"pictures": count, "applicable": len(errors), "median_error_points": median}


def report(result: dict[str, Any]) -> str:
    """The figures as lines of text."""
    lines = []
    for name, goal in GOALS.items():
        entry = result["accuracy"][name]
        said = f"{entry.get('median_error')} (goal {goal}), applies to {entry['applicable']} of {entry['pictures']}"
        lines.append(f"{name}: median error {said}, wrong {entry['wrong']}")
        for label, found in entry["classes"].items():
            verdict = {True: "met", False: "MISSED", None: "-"}[found.get("met")]
            share = f"{found['applicable']}/{found['pictures']}"
            lines.append(
                f"    {label:24s} {found.get('median_error', '-')!s:8} {share:9} wrong {found['wrong']} {verdict}"
            )
    lines.append(f"wrong verdicts: {result['accuracy']['wrong_verdicts']}")
    return "\n".join(lines)


def main() -> None:
    """Measure, sum up, write."""
    parser = argparse.ArgumentParser(description="Accuracy of the measurement against ground truth.")
    parser.add_argument("--per-class", type=int, default=200)
    parser.add_argument("--split", choices=list(FIRST_SEED), default="test")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shale", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.rows is not None and args.rows.exists():
        rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    else:
        rows = measured(args.per_class, split=args.split, workers=args.workers, keep=args.rows)
    times = [row["seconds"] for row in rows]
    result: dict[str, Any] = {"split": args.split, "pictures": len(rows), "doses": DOSES, "goals": GOALS}
    result |= {"ms_per_picture": round(1000 * float(np.median(times)), 1), "accuracy": summary(rows)}
    if args.shale is not None:
        result["shale"] = {half: shale(args.shale, half) for half in FIRST_SEED}
    print(report(result))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

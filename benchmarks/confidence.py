"""Fits the confidence of facts: what speaks for a measurement -> the probability that a person agrees with it.

    python benchmarks/confidence.py fit [--per-class 60] [--rows FILE] [--only area_weighted_diameter ...]
    python benchmarks/confidence.py test [--per-class 60] [--rows FILE] [--out benchmarks/confidence.json]

`fit` measures the powders and crops of the training split and drawn scenes of the `development` seeds, every way to see
the bodies of a picture (`assistant.measurements.crowds`) on its own, and writes the models to
`assistant/measurements/confidence.json`. `test` measures the test split and scenes of the `test` seeds as a user would,
and prints how often the facts stated at each confidence are within the tolerance of `QUANTITIES`. A fact about a
picture that has no such thing is wrong. A real picture is as heavy as REAL drawn ones.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from assistant import measure as measuring
from assistant.measurements import confidence, findings
from assistant.measurements.crowds import ways
from assistant.measurements.findings import Findings, decide
from assistant.measurements.kinds import Signs
from assistant.measurements.picture import grey_window, picture_of
from assistant.quantities import within_tolerance
from benchmarks.annotated import Annotated, crops, drawn, powder
from data_gen.drawing.scenes import CLASSES, UNTAUGHT

MODELS = Path(measuring.__file__).parent / "measurements" / "confidence.json"
JUDGED = (
    "count", "mean_diameter", "median_diameter", "d10_diameter", "d90_diameter", "nearest_neighbour", "aspect_ratio",
    "circularity", "area_weighted_diameter", "wall_thickness", "mean_chord_of_the_bright_phase",
    "mean_chord_of_the_dark_phase", "grain_size", "coverage", "porosity", "orientation", "period", "line_width",
    "line_edge_roughness", "fibre_width",
)  # fmt: skip
CALIBRATED = ("fibre_width", "grain_size")
"""Quantities whose measurement states a probability already."""
REAL, REAL_NESTED = 20.0, 3.0
OF_NESTED = (
    "agreement", "clear", "crumbs", "ragged", "largest", "taken", "cut", "spread", "round", "long", "edge", "doubt",
    "noise", "bright", "size",
)  # fmt: skip
OF_CHORDS = (
    "chord", "kept", "other kept", "parted", "phase edge", "phase share", "kind pores", "kind texture", "grain",
)  # fmt: skip
"""What the models of enclosed bodies and of chords rest on: too few pictures have them to learn from more."""
BINS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
FEWEST, FOLDS = 40, 8
"""Facts from which a model is fitted, and in how many parts the pictures are left out in turn."""
LEAST_WEIGHT = 1e-3
Row = dict[str, Any]


def pictures(split: str, source: str, scenes: range) -> Iterator[Annotated]:
    """The pictures of a split by their source: "outlined", "crops" or a drawn class."""
    real = {"fit": "train", "test": "test"}[split]
    if source in ("outlined", "crops"):
        return powder(real) if source == "outlined" else crops(real)
    return drawn({"fit": "development", "test": "test"}[split], classes=[source], scenes=scenes)


def rows_of_part(task: tuple[str, str, range, bool]) -> list[Row]:
    """The facts of a part of the pictures, each with what speaks for it and whether it is right."""
    if task[0] == "fit":  # what the measurement itself states, not what an earlier fit makes of it
        confidence._models = dict
        findings.crowd_of = lambda *_: None
    return [row for item in pictures(*task[:3]) for row in rows_of(item, every_way=task[0] == "fit", nested=task[3])]


def rows_of(item: Annotated, *, every_way: bool, nested: bool = False) -> list[Row]:
    """What is stated of one picture, by every way to see it, by enclosed bodies alone, or as a user gets it."""
    picture = picture_of(item.pixels, *grey_window(item.pixels))
    if picture is None:
        return []
    it = Signs(picture)
    if nested:
        return [] if it.enclosed is None else _judged(item, findings._of_enclosed(it, it.enclosed))
    found = decide(it)
    seen = [found, *_other_ways(it, found)] if every_way else [found]
    return [row for way in seen for row in _judged(item, way)]


def _other_ways(it: Signs, found: Findings) -> list[Findings]:
    """The same picture with its bodies seen in other ways."""
    if found.kind in ("uniform", "lines", "fibres"):
        return []
    seen = [findings._as_objects(it, way) for way in (it.objects, *ways(found.picture, it.tried)) if way is not None]
    seen += [] if it.enclosed is None else [findings._of_enclosed(it, it.enclosed)]
    sure = findings.BODIES_IN_A_CROWD
    return [replace(way, test="crowd", likelihood=it.likelihoods[way.kind], confidence=sure) for way in seen]


def _judged(item: Annotated, found: Findings) -> list[Row]:
    facts = measuring._facts_of(found, nm_per_pixel=None)
    traits = measuring._traits(found)
    rows = []
    truth = item.truth
    chords: dict[str, dict[str, float]] = {} if found.phases is None else {
        name: confidence.traits_of_phases(found.phases, bright="bright" in name) for name in JUDGED if "chord" in name
    }  # fmt: skip
    if "porosity" in truth:  # openings are a phase with a share; a phase with a share need not be openings
        truth = {"coverage": truth["porosity"]} | truth
    for fact in facts.applicable():
        if fact.name in JUDGED and fact.value is not None and np.isfinite(fact.value):
            true = truth.get(fact.name)
            right = true is not None and within_tolerance(fact.name, fact.value, true, fact.unit)
            rows.append(
                {"picture": item.name, "name": fact.name, "value": fact.value, "true": true, "right": right,
                 "confidence": fact.confidence,
                 "traits": traits | confidence.traits_of_statement(fact.confidence) | chords.get(fact.name, {}),
                 "kind": found.kind}
            )  # fmt: skip
    return rows


def measured(split: str, *, per_class: int, workers: int, keep: Path | None, nested: bool = False) -> list[Row]:
    """All rows of a split, kept in a file as they come where one is named; what is there already is read from it."""
    if keep is not None and keep.exists():
        return [json.loads(line) for line in keep.read_text().splitlines()]
    tasks = [(split, source, range(1), nested) for source in ("outlined", "crops")]
    parts = [range(k, min(k + 3, per_class)) for k in range(0, per_class, 3)]
    tasks += [(split, label, part, nested) for part in parts for label in CLASSES + UNTAUGHT]
    rows: list[Row] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for some in pool.map(rows_of_part, tasks):
            rows += some
            if keep is not None:
                with keep.open("a") as file:
                    file.writelines(json.dumps(row, default=float) + "\n" for row in some)
    return rows


def fitted(rows: list[Row]) -> dict[str, Any]:
    """Bias and weights of each quantity with enough facts, right and wrong; those of enclosed bodies by themselves.

    A model is surer of the pictures it was fitted on than of others; how much is seen on pictures that were left out,
    and taken off.
    """
    models: dict[str, Any] = {}
    for row in rows:
        row["model"] = f"nested {row['name']}" if row["traits"].get("nested") else row["name"]
    for name in sorted({row["model"] for row in rows} - set(CALIBRATED)):
        mine = [row for row in rows if row["model"] == name]
        right = np.array([row["right"] for row in mine], dtype=bool)
        if len(mine) < FEWEST or min(right.sum(), (~right).sum()) < FOLDS:
            continue
        nested, chords = name.startswith("nested"), "chord" in name
        chosen = OF_NESTED if nested else OF_CHORDS if chords else {trait for row in mine for trait in row["traits"]}
        traits = sorted(chosen)
        x = np.array([[row["traits"].get(trait, 0.0) for trait in traits] for row in mine])
        real = REAL_NESTED if nested or chords else REAL
        weight = np.array([real if row["picture"].startswith(("powder/Sc", "crops")) else 1.0 for row in mine])
        slope, shift = _taken_off(x, right, weight, [row["picture"] for row in mine])
        weights, bias = _logistic(x, right, weight)
        weights, bias = slope * weights, slope * bias + shift
        kept = {trait: round(float(w), 4) for trait, w in zip(traits, weights, strict=True) if abs(w) > LEAST_WEIGHT}
        models[name] = {"bias": round(bias, 4), "weights": kept}
    return models


def _logistic(x: np.ndarray, right: np.ndarray, weight: np.ndarray, c: float = 0.1) -> tuple[np.ndarray, float]:
    """Weights and bias of a logistic model, for traits as they are; `c` is how free it is."""
    from sklearn.linear_model import LogisticRegression

    spread = np.maximum(x.std(axis=0), 1e-6)
    model = LogisticRegression(C=c, max_iter=3000).fit(x / spread, right, sample_weight=weight)
    return model.coef_[0] / spread, float(model.intercept_[0])


def _taken_off(x: np.ndarray, right: np.ndarray, weight: np.ndarray, names: list[str]) -> tuple[float, float]:
    """By what the odds of left-out pictures are multiplied, and what is added, to come true."""
    fold = np.array([zlib.crc32(name.encode()) % FOLDS for name in names])
    odds = np.zeros(len(right))
    for k in range(FOLDS):
        others = fold != k
        if right[others].all() or not right[others].any():
            return 0.7, 0.0
        weights, bias = _logistic(x[others], right[others], weight[others])
        odds[~others] = x[~others] @ weights + bias
    slope, shift = _logistic(odds[:, None], right, np.ones(len(right)), c=1e3)
    return float(min(max(slope[0], 0.0), 1.0)), shift


def reliability(rows: list[Row]) -> list[dict[str, Any]]:
    """For each range of confidence: how many facts, how many right."""
    table = []
    for low, high in pairwise(BINS):
        mine = [row for row in rows if low <= row["confidence"] < high or row["confidence"] == high == 1.0]
        if mine:
            stated = float(np.mean([row["confidence"] for row in mine]))
            right = float(np.mean([row["right"] for row in mine]))
            table.append(
                {"from": low, "to": high, "facts": len(mine), "stated": round(stated, 3), "right": round(right, 3)}
            )
    return table


def summary(rows: list[Row]) -> dict[str, Any]:
    """The reliability of all facts and of each quantity; how many sure ones are right."""
    out: dict[str, Any] = {"all": reliability(rows)}
    for name in JUDGED:
        mine = [row for row in rows if row["name"] == name]
        if mine:
            out[name] = reliability(mine)
    for least in (0.8, 0.9):
        sure = [row for row in rows if row["confidence"] >= least]
        out[f"at least {least}"] = {"facts": len(sure), "right": round(float(np.mean([r["right"] for r in sure])), 3)}
    return out


def main() -> None:
    """Fit or test."""
    parser = argparse.ArgumentParser(description="Confidence of facts as a probability.")
    parser.add_argument("what", choices=["fit", "test"])
    parser.add_argument("--per-class", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="models to write, the others stay as they are")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    nested = args.what == "fit" and args.only == ["nested"]
    rows = measured(args.what, per_class=args.per_class, workers=args.workers, keep=args.rows, nested=nested)
    if args.what == "fit":
        models = fitted(rows)
        if args.only:
            new = {name: model for name, model in models.items() if any(map(name.startswith, args.only))}
            models = dict(sorted((json.loads(MODELS.read_text()) | new).items()))
        MODELS.write_text(json.dumps(models, indent=1) + "\n")
    else:
        result = summary(rows)
        print(json.dumps(result, indent=1))
        if args.out is not None:
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

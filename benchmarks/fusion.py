"""What fusion adds: a target of materials from each modality alone and from all of them, in one run.

    python -m benchmarks.fusion --data ../shared/data/materials [--parts perov_5,steels_yield,expt_gap]
        [--train-rows N] [--test-rows N] [--steps N] [--seeds 1] [--out benchmarks/fusion.json]

`perov_5`: formation energy [eV per atom] of perovskite cells, learned from val.csv and tested on test.csv: composition,
cell, crystal graph and sentence alone, then fused; every row in the same split, with the same steps. `steels_yield`
[MPa] and `expt_gap` [eV]: formulas, five folds, rows in the order of the files dealt out by a seeded shuffle. Beside
them stand the mean or a random forest on the same statistics, and what peers reached on other folds.
Held-out rows within the training part set temperatures and intervals; coverage is counted on the test part. Expected
is what the rule of split-conformal intervals holds in the mean over held-out parts of that size: few rows, more than
promised.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assistant.config import Config, load_config
from assistant.encoders.composition import composition_statistics, parse_formula
from assistant.encoders.crystal import read_crystal
from assistant.predictor import Predictor
from training.fit import crystal_values, fit_rows
from training.labelled import LabelledRow, LabelledSet

MODALITIES = ("composition", "cell", "crystal", "text")
PUBLISHED = {
    "perov_5": {"composition": 0.508, "cell": 0.545, "composition and cell": 0.308, "with site order": 0.130},
    "steels_yield": {"CrabNet": 91.8, "random forest": 103.9},
    "expt_gap": {"CrabNet": 0.338, "random forest": 0.447},
}
"""Mean absolute errors of peers; of perov_5 by gradient boosting on the 39 % of cells that were read then."""
FOLDS, TREES = 5, 100
HELD_OUT = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--parts", default="perov_5,steels_yield,expt_gap")
    parser.add_argument("--train-rows", type=int)
    parser.add_argument("--test-rows", type=int)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--folds", type=int, default=FOLDS, help="how many of the five folds are run")
    parser.add_argument("--crystals", type=Path, help="file that keeps the cells that were read")
    parser.add_argument("--read-only", action="store_true", help="only read the cells")
    parser.add_argument("--modalities", default=",".join((*MODALITIES, "fused")))
    parser.add_argument("--set", action="append", default=[], help="a setting, such as fit.dim=64")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps = [f"fit.least_steps={args.steps}", f"fit.most_steps={args.steps}"]
    config = load_config(None, [*steps, *args.set])
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for part in args.parts.split(","):
        if part == "perov_5":
            train, test = (perovskites(args.data, split, args.crystals) for split in ("val", "test"))
            if args.read_only:
                return
            report[part] = one_split(
                train[: args.train_rows], test[: args.test_rows], args.modalities.split(","), config
            )
        else:
            report[part] = folds(part, formulas(args.data / f"{part}.csv"), config, args.folds)
        report[part] |= {"peers": PUBLISHED[part], "steps": args.steps, "settings": args.set}
        print(json.dumps({part: report[part]}, indent=1))
        if args.out:
            args.out.write_text(json.dumps(report, indent=1) + "\n")


def perovskites(data: Path, split: str, kept: Path | None) -> list[LabelledRow]:
    """Cells of a split with all they tell by modality."""
    file = kept.with_name(f"{kept.name}.{split}") if kept else None
    if file and file.exists():
        rows: list[LabelledRow] = pickle.loads(file.read_bytes())
        return rows
    rows = []
    with (data / "perov_5" / f"{split}.csv").open(encoding="utf-8", newline="") as stream:
        for cell in csv.DictReader(stream):
            values = crystal_values(read_crystal(cell["cif"]))
            values["crystal"] = values.pop("structure")
            rows.append(
                LabelledRow(cell["material_id"], None, values, {"target": float(cell["heat_all"])}, cell["formula"])
            )
    if file:
        file.write_bytes(pickle.dumps(rows))
    return rows


def formulas(file: Path) -> list[LabelledRow]:
    """Rows of a table of formulas; rows of one formula are one group."""
    with file.open(encoding="utf-8", newline="") as stream:
        return [
            LabelledRow(
                f"row {i}", None, {"composition": row["formula"]}, {"target": float(row["target"])}, row["formula"]
            )
            for i, row in enumerate(csv.DictReader(stream))
        ]


def one_split(
    train: Sequence[LabelledRow], test: Sequence[LabelledRow], modalities: Sequence[str], config: Config
) -> dict[str, Any]:
    """Each modality alone, then all of them."""
    results: dict[str, Any] = {}
    errors: dict[str, np.ndarray] = {}
    for name in modalities:
        used = MODALITIES if name == "fused" else (name,)
        results[name], errors[name] = measured(train, test, used, config)
        print(name, results[name], flush=True)
    if "fused" in errors:
        for name in errors.keys() - {"fused"}:
            results[name]["fused is better by"] = interval(errors[name] - errors["fused"])
    truth = np.array([row.truth["target"] for row in test], dtype=float)
    mean = np.mean([row.truth["target"] for row in train])
    return {"train": len(train), "test": len(test), "mae": results, "mean": float(np.abs(truth - mean).mean())}


def folds(part: str, rows: Sequence[LabelledRow], config: Config, count: int) -> dict[str, Any]:
    """Five folds by group: what is fused here is one modality; a random forest learns from the same statistics."""
    from sklearn.ensemble import RandomForestRegressor

    names = np.random.default_rng(0).permutation(sorted({row.group for row in rows}))
    fold_of = {group: place % FOLDS for place, group in enumerate(names)}
    results, forests = [], []
    for fold in range(count):
        train = [row for row in rows if fold_of[row.group] != fold]
        test = [row for row in rows if fold_of[row.group] == fold]
        found, _ = measured(train, test, ("composition",), config)
        forest = RandomForestRegressor(TREES, max_features=1 / 3, random_state=0, n_jobs=1)
        forest.fit(statistics(train), [row.truth["target"] for row in train])
        off = forest.predict(statistics(test)) - np.array([row.truth["target"] for row in test], dtype=float)
        results.append(found)
        forests.append(float(np.abs(off).mean()))
        print(part, fold, found, forests[-1], flush=True)
    return {
        "folds": count,
        "mae": float(np.mean([r["mae"] for r in results])),
        "mae_by_fold": [r["mae"] for r in results],
        "coverage": float(np.mean([r["coverage"] for r in results])),
        "coverage_by_fold": [r["coverage"] for r in results],
        "coverage expected": float(np.mean([r["expected"] for r in results])),
        "random forest on the same statistics": float(np.mean(forests)),
        "cpu_s": sum(r["cpu_s"] for r in results),
    }


def statistics(rows: Sequence[LabelledRow]) -> np.ndarray:
    return np.stack([composition_statistics(parse_formula(row.values["composition"])) for row in rows])


def measured(
    train: Sequence[LabelledRow], test: Sequence[LabelledRow], modalities: Sequence[str], config: Config
) -> tuple[dict[str, Any], np.ndarray]:
    """Fit on some modalities; what it costs and reaches, and the absolute errors."""
    began = time.process_time()
    kept = {name: [reduced(row, modalities) for row in rows] for name, rows in (("train", train), ("test", test))}
    groups = np.random.default_rng(1).permutation(sorted({row.group for row in train}))
    held = set(groups[: round(HELD_OUT * len(groups))].tolist())
    parts = {
        "train": [row for row in kept["train"] if row.group not in held],
        "calibration": [row for row in kept["train"] if row.group in held],
    }
    predictor: Predictor = fit_rows(LabelledSet(list(train), {"target": ""}, {}, {}, [], []), parts, config)
    found = [p.targets[0] for p in predictor.predict([row.values for row in kept["test"]])]
    truth = np.array([row.truth["target"] for row in test], dtype=float)
    errors = np.abs(np.array([p.value for p in found], dtype=float) - truth)
    low, high = (np.array([getattr(p, side) for p in found], dtype=float) for side in ("low", "high"))
    reached = {
        "mae": float(errors.mean()),
        "interval": interval(errors),
        "coverage": float(((low <= truth) & (truth <= high)).mean()),
        "expected": math.ceil((len(held) + 1) * config.fit.coverage - 1e-9) / (len(held) + 1),
        "width": float((high - low).mean()),
        "cpu_s": time.process_time() - began,
    }
    return reached, errors


def reduced(row: LabelledRow, modalities: Sequence[str]) -> LabelledRow:
    return LabelledRow(row.name, None, {name: row.values[name] for name in modalities}, row.truth, row.group)


def interval(values: np.ndarray) -> list[float]:
    """95 % bootstrap interval of a mean."""
    draws = np.random.default_rng(0).integers(0, len(values), (1000, len(values)))
    return np.quantile(values[draws].mean(axis=1), (0.025, 0.975)).tolist()


if __name__ == "__main__":
    main()

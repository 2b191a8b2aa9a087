"""How many labels until a head is right: those that `maemi next` asks for, beside as many drawn by chance.

    python -m benchmarks.labels --real ../shared/data/open_sem ../shared/data/more_sem [--seeds 5] [--cache CACHE]
        [--out benchmarks/labels.json]

The families of real micrographs. Both begin with the same pictures, drawn by chance; then, round by round, a run is
fitted as `maemi fit` fits it, is asked for the next pictures, and is given their labels. Scored on the groups of
`test`, which are never candidates; what a fit and a prediction take is in the report, without reading pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assistant.config import load_config
from assistant.predictor import Items, Predictor
from assistant.progress import Progress
from benchmarks.ablations import TARGET, real
from training.applied import Applied
from training.fit import fit_rows, split_rows
from training.labelled import LabelledRow, LabelledSet
from training.survey import Survey

FIRST, MORE, ROUNDS = 20, 20, 5
AIM = (0.8, 0.9, 0.95)
SETTINGS = ("fit.test=0", "fit.calibration=0.2", "fit.least_steps=200", "fit.most_steps=200")
"""A run on so few rows is the same after 200 steps as after 600."""


class Known(Applied):
    """A predictor over rows whose values are known already."""

    def __init__(self, predictor: Predictor, rows: Sequence[LabelledRow]) -> None:
        super().__init__(predictor, None)
        self.rows = rows

    def read(
        self, inputs: Sequence[Path], progress: Progress = lambda done, total, text: None
    ) -> tuple[list[LabelledRow], dict[int, Items], dict[str, Any]]:
        """All rows, whatever the inputs."""
        return list(self.rows), {n: self.predictor.items(row.values) for n, row in enumerate(self.rows)}, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    pool, test = ([bare(row) for row in rows] for rows in real(args))
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"runs": {}}
    report |= {"pool": len(pool), "test": len(test), "labels": [FIRST + MORE * n for n in range(ROUNDS)]}
    report["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    for seed in range(args.seeds):
        for way in ("next", "chance"):
            if f"{way} {seed}" not in report["runs"]:
                report["runs"][f"{way} {seed}"] = asked(pool, test, way, seed)
                report |= {name: summed(report["runs"], name) for name in ("next", "chance")}
                args.out.write_text(json.dumps(report, indent=1) + "\n")
                print(way, seed, report["runs"][f"{way} {seed}"], flush=True)


def bare(row: LabelledRow) -> LabelledRow:
    """A row with the values that `maemi fit` computes of a picture."""
    values = {name: row.values[name] for name in ("texture", "image")}
    return LabelledRow(row.name, None, values, row.truth, row.group, "")


def asked(pool: Sequence[LabelledRow], test: Sequence[LabelledRow], way: str, seed: int) -> dict[str, Any]:
    """Accuracy after every round, and what it took."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(pool))
    names = [pool[place].name for place in order[:FIRST]]
    reached, took, told_in = [], [], []
    while True:
        labelled = [row for row in pool if row.name in names]
        rest = [row for row in pool if row.name not in names]
        began = time.process_time()
        predictor = fitted(labelled, seed)
        took.append(time.process_time() - began)
        began = time.process_time()
        told = predictor.predict([row.values for row in test])
        told_in.append(time.process_time() - began)
        classes = predictor.targets[0].classes
        best = [classes[int(np.argmax(prediction.targets[0].probabilities))] for prediction in told]
        reached.append(float(np.mean([word == row.truth[TARGET] for word, row in zip(best, test, strict=True)])))
        if len(reached) == ROUNDS:
            break
        if way == "next":
            names += [suggestion.path for suggestion in Survey(Known(predictor, rest), []).next(MORE)]
        else:
            names += [rest[place].name for place in random.permutation(len(rest))[:MORE]]
    return {"accuracy": reached, "fit_cpu_s": float(np.mean(took)), "predict_cpu_s": float(np.mean(told_in))}


def fitted(rows: Sequence[LabelledRow], seed: int) -> Predictor:
    """A predictor on labelled rows, with groups of them held out for calibration."""
    config = load_config(None, [f"seed={seed}", *SETTINGS])
    classes = tuple(sorted({str(row.truth[TARGET]) for row in rows}))
    labelled = LabelledSet(list(rows), {TARGET: ""}, {TARGET: classes}, {}, [], [])
    return fit_rows(labelled, split_rows(labelled, config.fit, seed=seed), config)


def summed(runs: dict[str, Any], way: str) -> dict[str, Any]:
    """Mean accuracy by round, and after how many labels each aim is reached and kept, None where it is not."""
    curves = np.array([run["accuracy"] for name, run in runs.items() if name.startswith(way)])
    if not len(curves):
        return {}
    mean = curves.mean(axis=0)
    kept = {aim: [n for n in range(ROUNDS) if (mean[n:] >= aim).all()] for aim in AIM}
    labels = {str(aim): FIRST + MORE * places[0] if places else None for aim, places in kept.items()}
    return {"accuracy": mean.tolist(), "labels_until": labels, "seeds": len(curves)}


if __name__ == "__main__":
    main()

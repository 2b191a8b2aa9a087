"""Widths of fibres and wires: against exact ground truth, and what is said of real pictures, file by file.

    python benchmarks/fibres.py [--scenes 100] [--split test] [--real DIR] [--fit] [--out FILE]

Drawn mats and nanowires at three doses in turn. A width is right within 20 % of the truth, as two persons measuring the
same mat would agree; `--fit` prints the weights of `Fibres.confidence` fitted to the pictures at hand, which must be
those of `development`. The truth of a mat with a broad distribution weights each fibre by its area in sight, the
measurement by its length; for a log-normal spread of 0.42 the two differ by a quarter.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from assistant.measure import measure, measure_pixels
from assistant.measurements.fibres import Fibres, fibres_of
from assistant.measurements.kinds import Signs
from assistant.measurements.picture import grey_window, picture_of
from assistant.micrograph import read_micrograph
from data_gen.drawing.synth import render_at_doses

DOSES = {"low": 400.0, "medium": 80.0, "high": 20.0}
FIRST_SEED = {"development": (90 << 20) + 8000, "test": 91 << 20}
CLASSES = ("fibres", "nanowires")
TOLERANCE = 0.2
SURE = 0.8
BINS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 1.01)
REAL = ("more_sem/fibre/*.tif", "more_sem/fibre/*.jpg", "open_sem/nanowire/*.tif")
Row = dict[str, Any]


def row_of(label: str, seed: int, noise: str) -> Row:
    """One drawn picture: what is true, what was found."""
    (image,) = render_at_doses(label, [DOSES[noise]], seed=seed)
    facts = measure_pixels(image.pixels, nm_per_pixel=image.nm_per_pixel)
    words = {name: str(image.truth[name]) for name in ("distribution", "arrangement", "polarity")}
    fact, true = facts["fibre_width"], float(image.truth["fibre_width"])
    off = None if fact.value is None else fact.value / true - 1
    return {"label": label, "seed": seed, "noise": noise, "kind": facts.kind, "off": off,
            "confidence": fact.confidence, "px": true / image.nm_per_pixel} | words  # fmt: skip


def summed(rows: list[Row]) -> dict[str, Any]:
    """How many were answered, and how well."""
    answered = [row for row in rows if row["off"] is not None]
    off = np.array([row["off"] for row in answered])
    sure = np.array([row["confidence"] >= SURE for row in answered])
    if not len(off):
        return {"pictures": len(rows), "answered": 0}
    return {
        "pictures": len(rows),
        "answered": len(answered),
        "within_10": round(float((np.abs(off) <= 0.1).mean()), 3),
        "within_20": round(float((np.abs(off) <= 0.2).mean()), 3),
        "median_error": round(float(np.median(np.abs(off))), 3),
        "bias": round(float(np.median(off)), 3),
        "sure": int(sure.sum()),
        "sure_and_wrong": int((sure & (np.abs(off) > TOLERANCE)).sum()),
    }


def reliability(rows: list[Row]) -> list[dict[str, float]]:
    """Of the widths stated with some confidence: how many, the mean said, the share within the tolerance."""
    out = []
    for low, high in pairwise(BINS):
        some = [row for row in rows if row["off"] is not None and low <= row["confidence"] < high]
        if some:
            said, right = np.mean([(row["confidence"], abs(row["off"]) <= TOLERANCE) for row in some], axis=0)
            out.append({"from": low, "widths": len(some), "said": round(said, 3), "right": round(right, 3)})
    return out


def fitted(seeds: list[tuple[str, int, str]]) -> dict[str, float]:
    """Weights of the confidence, from every picture in which fibres can be followed, whatever it is called."""
    from sklearn.linear_model import LogisticRegression

    told, right = [], []
    for label, seed, noise in seeds:
        (image,) = render_at_doses(label, [DOSES[noise]], seed=seed)
        found = followed(image.pixels, bright=not image.truth["polarity"].startswith("dark"))
        if found is not None:
            told.append(found.evidence)
            true = image.truth["fibre_width"] / image.nm_per_pixel
            right.append(abs(found.width / true - 1) <= TOLERANCE)
    model = LogisticRegression(C=10.0, max_iter=2000).fit(told, right)
    return {"bias": float(model.intercept_[0])} | {f"w{k}": float(w) for k, w in enumerate(model.coef_[0])}


def followed(pixels: np.ndarray, *, bright: bool) -> Fibres | None:
    picture = picture_of(pixels, *grey_window(pixels))
    return None if picture is None else fibres_of(picture, Signs(picture).chords, bright=bright)


def real(root: Path) -> list[dict[str, Any]]:
    """What is said of each real picture of fibres or wires."""
    out = []
    for path in sorted(path for pattern in REAL for path in root.glob(pattern)):
        facts = measure(read_micrograph(path))
        said = {fact.name: (round(fact.value or 0.0, 2), fact.unit, fact.confidence) for fact in facts.applicable()}
        names = ("fibre_width", "fibre_width_spread", "orientation", "orientation_spread", "count")
        out.append({"file": path.name, "kind": facts.kind, "kind_confidence": facts.kind_confidence}
                   | {name: said[name] for name in names if name in said})  # fmt: skip
    return out


def main() -> None:
    """Draw, measure, report."""
    parser = argparse.ArgumentParser(description="Widths of fibres and wires.")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--split", choices=list(FIRST_SEED), default="test")
    parser.add_argument("--real", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    first, noises = FIRST_SEED[args.split], list(DOSES)
    seeds = [(label, first + 4 * k, noises[k % 3]) for label in CLASSES for k in range(args.scenes)]
    if args.fit:
        print(json.dumps(fitted(seeds), indent=1))
        return
    rows = [row_of(*seed) for seed in seeds]
    result: dict[str, Any] = {"split": args.split, "all": summed(rows), "reliability": reliability(rows)}
    for label in CLASSES:
        for spread in ("uniform", "broad"):
            some = [row for row in rows if row["label"] == label and row["distribution"] == spread]
            result[f"{label}, {spread}"] = summed(some)
    if args.real is not None:
        result["real"] = real(args.real)
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

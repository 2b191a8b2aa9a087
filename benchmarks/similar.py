"""How often the pictures that are found are of the same class, beside texture descriptors alone and chance.

    python benchmarks/similar.py ../shared/data/open_sem ../shared/data/more_sem

Each folder has an index.csv with path, label, split and group. A picture is asked for among all others that are not of
its own group; those of which no other group has the class are not asked for. The way of comparing was chosen on the
split `train`; `val` and `test` were then asked once. Writes similar.json beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assistant.encoders.texture import SIDE, texture_descriptors
from assistant.micrograph import read_micrograph, to_model_input
from assistant.similar import distances, features_of

RESULTS = Path(__file__).with_suffix(".json")
TOP = 5
MANY = 50_000
Compare = Callable[[np.ndarray, Sequence[np.ndarray]], np.ndarray]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    rows = [row for folder in parser.parse_args(arguments).folders for row in pictures(folder)]
    features, textures = [], []
    for row in rows:
        m = read_micrograph(row["file"], read_bar=False)
        features.append(features_of(m))
        textures.append(texture_descriptors(to_model_input(m, SIDE)[0]))
    record: dict[str, Any] = {"machine": {"processor": platform.processor(), "cores": os.cpu_count()}, "top": TOP}
    for name, splits in (("val and test", ("val", "test")), ("train, where the way was chosen", ("train",))):
        asked = [n for n, row in enumerate(rows) if row["split"] in splits]
        record[name] = {
            "as maemi similar": precision(rows, asked, features, distances),
            "every feature scaled by its spread": precision(rows, asked, features, scaled),
            "texture descriptors alone, scaled": precision(rows, asked, textures, scaled),
            "at random": precision(rows, asked, features, None),
        }
    record["cpu_seconds_of_a_search_among_50000"] = cost(features)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


def pictures(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's index.csv. The four sessions of one kind of cathode count as one class, "family"."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as table:
        rows: list[dict[str, Any]] = [dict(row, file=folder / row["path"]) for row in csv.DictReader(table)]
    for row in rows:
        row["family"] = "battery cathode" if row["label"].startswith("ncm") else row["label"]
    return rows


def precision(
    rows: Sequence[dict[str, Any]], asked: Sequence[int], vectors: Sequence[np.ndarray], compare: Compare | None
) -> dict[str, float]:
    """Share of the same label and family among the first; the mean over pictures, and over families. None is chance."""
    scores: dict[str, dict[str, list[float]]] = {"label": {}, "family": {}}
    for n in asked:
        others = [k for k, row in enumerate(rows) if row["group"] != rows[n]["group"]]
        if compare is not None:
            away = compare(vectors[n], [vectors[k] for k in others])
            first = [others[k] for k in np.argsort(away, kind="stable")[:TOP]]
        for kind, of in scores.items():
            same = [rows[k][kind] == rows[n][kind] for k in others]
            if any(same):
                found = same if compare is None else [rows[k][kind] == rows[n][kind] for k in first]
                of.setdefault(rows[n]["family"], []).append(float(np.mean(found)))
    told: dict[str, float] = {}
    for kind, of in scores.items():
        told[kind] = round(float(np.mean([score for family in of.values() for score in family])), 3)
        told[f"{kind}, mean of families"] = round(float(np.mean([np.mean(family) for family in of.values()])), 3)
    return told | {"pictures": sum(map(len, scores["family"].values()))}


def scaled(asked: np.ndarray, vectors: Sequence[np.ndarray]) -> np.ndarray:
    """`distances` with every feature scaled by its spread."""
    seen = np.stack(vectors).astype(np.float32)
    scale = seen.std(axis=0) + 1e-3
    return distances(asked / scale, list(seen / scale))


def cost(features: Sequence[np.ndarray]) -> float:
    """CPU seconds of one search."""
    many = [features[n % len(features)] for n in range(MANY)]
    began = time.process_time()
    distances(features[0], many)
    return round(time.process_time() - began, 2)


if __name__ == "__main__":
    main()

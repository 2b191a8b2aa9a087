"""What speaks for a measurement -> the probability that a person would agree with it. Knows nothing about pixels.

Logistic models, one for each quantity, and another for bodies that were seen as `nested`; fitted by
`benchmarks/confidence.py` on pictures with outlines drawn by hand and on drawn scenes; agreement is that within the
tolerance of `QUANTITIES`. A quantity without a model keeps the confidence that the measurement states.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from assistant.measurements.bodies import SMALLEST_AREA
from assistant.measurements.intercepts import Phases
from assistant.measurements.picture import Picture
from assistant.measurements.segmentation import Objects

NUMBERS = frozenset({"count", "mean_diameter", "median_diameter", "d10_diameter", "d90_diameter", "nearest_neighbour"})
MOST_DROPPED = 0.1
"""Quantities by number, and the share of bright bodies left out as crumbs from which these rest on what a crumb is:
the gaps where dark cells meet are no cells, but small agglomerates are agglomerates."""
Traits = Mapping[str, float]
"""What speaks for and against a measurement, by name; a trait that is not there is 0."""


def probability(name: str, traits: Traits) -> float | None:
    """The probability that a person agrees within the tolerance; None where no model was fitted."""
    if name in NUMBERS and traits.get("bright") and traits.get("dropped", 0.0) > MOST_DROPPED:
        return 0.0
    model = _models().get(f"nested {name}" if traits.get("nested") else name)
    if model is None:  # enclosed bodies have no models of the quantities that are rarely right of them
        return 0.0 if traits.get("nested") and name in _models() else None
    odds = model.bias + sum(weight * traits.get(trait, 0.0) for trait, weight in model.weights.items())
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, odds))))


@dataclass(frozen=True)
class Model:
    """Log-odds that a person agrees: a bias, and a weight for each trait."""

    bias: float
    weights: Traits


@cache
def _models() -> dict[str, Model]:
    text = files("assistant.measurements").joinpath("confidence.json").read_text(encoding="utf-8")
    return {name: Model(**model) for name, model in json.loads(text).items()}


def traits_of_objects(picture: Picture, objects: Objects) -> dict[str, float]:
    """What speaks for the bodies that were found: how many, how round, how clear, and whether two ways agree."""
    shape, counted = objects.geometry, objects.counted
    sized = objects.good & objects.whole & objects.sized
    some = counted if counted.any() else np.ones(len(shape.area), np.bool_)
    area, diameter = shape.area[some], shape.diameter[some]
    round_share = float(np.average((shape.compactness * shape.minor / shape.major)[some], weights=area))
    d10, d50, d90 = np.percentile(diameter, [10, 50, 90])
    candidate = objects.candidate
    body, ground = objects.foreground, ~objects.foreground
    contrast = abs(_mean(picture, body) - _mean(picture, ground))
    return {
        "bodies": math.log1p(objects.count),
        "few": math.exp(-objects.count / 4),
        "agreement": math.log(max(objects.agreement, 0.02)),
        "doubt": objects.doubt,
        "round": round_share,
        "long": math.log(float(np.median((shape.major / shape.minor)[some]))),
        "compact": candidate.compact,
        "share_good": objects.share_good,
        "evidence": max(-3.0, min(6.0, candidate.evidence)),
        "edge": math.log(max(candidate.edge, 0.3)),
        "separability": candidate.separability,
        "size": math.log(float(d50)),
        "small": math.exp(-float(d50) / 6),
        "spread": math.log(float(d90 / d10)),
        "noise": min(picture.small_noise / max(contrast, 1e-3), 2.0),
        "cut": 1 - float(sized.sum()) / max(objects.count, 1),
        "filled": float(body.mean()),
        "dense": float(body.mean()) ** 2,
        "outset": abs(objects.outset) / float(d50),
        "joined": float(objects.way == "joined"),
        "patches": float(objects.way == "patches"),
        "bright": float(candidate.bright),
    } | (_traits_of_nested(picture, objects) if objects.way == "nested" else {})


def _traits_of_nested(picture: Picture, objects: Objects) -> dict[str, float]:
    """What else speaks for enclosed bodies: nothing changes with what counts as a crumb, and their shapes are whole."""
    shape, kept = objects.geometry, objects.sized & objects.whole
    area, diameter = shape.area[kept], shape.diameter[kept]
    half = diameter > np.average(diameter, weights=area) / 2
    return {
        "nested": 1.0,
        "clear": math.log(objects.clear),
        "dropped": 1 - float(objects.sized.sum()) / max(int((shape.area >= SMALLEST_AREA).sum()), 1),
        "crumbs": math.log(float(diameter[half].mean() / diameter.mean())),
        "ragged": 1 - float(np.average(shape.compactness[kept], weights=area)),
        "largest": float(area.max() / area.sum()),
        "taken": math.log(float(shape.area[objects.sized].sum() / picture.calm.size)),
    }


def traits_of_phases(phases: Phases, *, bright: bool) -> dict[str, float]:
    """What speaks for the mean chord of a phase."""
    chord, other = phases.chords if bright else phases.chords[::-1]
    kept = phases.agreement if bright else phases.agreement[::-1]
    return {
        "nested": 0.0,
        "chord": math.log(chord),
        "kept": math.log(max(kept[0], 0.02)),
        "other kept": math.log(max(kept[1], 0.02)),
        "parted": phases.separability,
        "phase edge": math.log(max(phases.edge, 0.3)),
        "phase share": math.log(chord / other),
    }


def _mean(picture: Picture, part: np.ndarray) -> float:
    return float(picture.calm[part].mean()) if part.any() else 0.0


def traits_of_statement(stated: float) -> dict[str, float]:
    """The confidence that the measurement itself states, as odds [log]."""
    stated = max(0.02, min(0.98, stated))
    return {"stated": math.log(stated / (1 - stated))}

"""The measurement against drawn pictures whose truth is exact: the bars of the benchmark, on a few of its pictures."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from benchmarking import load_benchmark

from data_gen.drawing.synth import CLASSES, render_at_doses

ROOT = Path(__file__).parents[1]
SCENES = 2
SHARE_OF_GOAL = {"porosity": 2.0}
"""Porosity of foams is missed (docs/measurement.md); what holds today must not slip."""


@pytest.fixture(scope="module")
def benchmark_module() -> ModuleType:
    return load_benchmark("measure")


@pytest.fixture(scope="module")
def summary(benchmark_module: ModuleType) -> dict[str, Any]:
    """Two scenes of every class at one level of noise, of the seeds that the measurement was tuned on."""
    first, rows = benchmark_module.FIRST_SEED["development"], []
    for label in CLASSES:
        for k in range(SCENES):
            (image,) = render_at_doses(label, [80.0], seed=first + 4 * k)
            rows.append(benchmark_module.row_of(image, "medium"))
    found: dict[str, Any] = benchmark_module.summary(rows)
    return found


@pytest.mark.parametrize("name", ["count", "mean_diameter", "period", "share", "porosity", "orientation"])
def test_errors_stay_under_their_goal(name: str, summary: dict[str, Any], benchmark_module: ModuleType) -> None:
    """Seen failing with the outset of outlines left out (diameters), and with angles counted clockwise."""
    found = summary[name]
    assert found["applicable"] >= 2, name
    assert found["median_error"] <= benchmark_module.GOALS[name] * SHARE_OF_GOAL.get(name, 1.0)


def test_hardly_anything_is_claimed_that_is_not_there(summary: dict[str, Any]) -> None:
    """Seen failing with an orientation for every anisotropy, however low."""
    assert summary["wrong_verdicts"]["overall"] < 0.05


def test_errors_of_angles_go_round_and_lengths_are_relative(benchmark_module: ModuleType) -> None:
    assert benchmark_module.error("orientation", 179.0, 1.0) == pytest.approx(2.0)
    assert benchmark_module.error("period", 102.0, 100.0) == pytest.approx(0.02)
    assert benchmark_module.error("porosity", 43.0, 40.0) == pytest.approx(3.0)


def test_a_claim_without_truth_is_wrong_and_silence_is_not(benchmark_module: ModuleType) -> None:
    row = {"label": "fibres", "noise": "low", "truth": {}, "found": {"count": 3.0}}
    quiet = row | {"found": {}}
    assert benchmark_module.summed("count", [row, quiet]) == {"pictures": 0, "applicable": 0, "wrong": 1}
    assert benchmark_module.summed("count", [quiet]) is None


def test_doses_change_the_noise_and_nothing_else() -> None:
    low, high = render_at_doses("particles", [4000.0, 20.0], seed=0)
    assert low.truth == high.truth
    assert np.array_equal(low.feature, high.feature)
    spread = [float(np.std(np.diff(image.pixels.astype(float), axis=1))) for image in (low, high)]
    assert spread[1] > 3 * spread[0]


@pytest.mark.slow
@pytest.mark.skipif("MEASURE_ROWS" not in os.environ, reason="the full run takes an hour: set MEASURE_ROWS to its rows")
def test_the_full_run_meets_what_the_docs_say(benchmark_module: ModuleType) -> None:
    import json

    rows = [json.loads(line) for line in Path(os.environ["MEASURE_ROWS"]).read_text().splitlines()]
    found = benchmark_module.summary(rows)
    for name in ("count", "mean_diameter", "period", "orientation"):
        assert found[name]["met"], name
    assert found["wrong_verdicts"]["met"]

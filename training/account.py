"""The account of a run beside its model: `README.md` for people, and `loss.svg`. Knows nothing about training.

It says what was done and measured, and what was not; the model itself is the same whether it is there or not.
"""

from __future__ import annotations

import json
import os
import platform
import resource
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant.config import Config, dump_config
from assistant.disk import write_file
from training.charts import Series, chart
from training.claim import RECORD
from training.data import Example
from training.stages import planned

if TYPE_CHECKING:
    from training.trainer import BestStep

CARD, CURVE, SCORES_CURVE = "README.md", "loss.svg", "scores.svg"
SCORES = {
    "score_drafted_true": "drafted statements that are true",
    "score_agrees": "answers that agree with what is known",
    "score_shown_false": "shown statements that are false",
}
LOSSES = ("loss", "lm", "itm", "itc", "router")
_LIBRARIES = ("maemi", "torch", "transformers", "peft", "bitsandbytes", "accelerate")
_TEMPLATE = Path(__file__).with_name("account.md.jinja")


def write_account(
    out: Path, config: Config, splits: Mapping[str, Sequence[Example]], kept: BestStep, *, device: str
) -> None:
    """Write the card and the curve of a run from its settings, its data and its `metrics.jsonl`."""
    from jinja2 import Environment, StrictUndefined

    file = out / "metrics.jsonl"
    log = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    if drawn := loss_curve(log):
        write_file(out / CURVE, drawn + "\n")
    if scored := score_curve(log):
        write_file(out / SCORES_CURVE, scored + "\n")
    counted = [
        (name, len(rows), len({png for row in rows for png in row.images}), len({row.group for row in rows}))
        for name, rows in splits.items()
    ]
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(_TEMPLATE.read_text())
    bound = json.loads((out / RECORD).read_text(encoding="utf-8"))
    told = template.render(
        config=config,
        settings=dump_config(config).rstrip(),
        bound=bound,
        processes=bound.get("processes", 1),
        kept=kept,
        last=next((entry for entry in reversed(log) if "loss" in entry), None),
        names=LOSSES,
        drawn=bool(drawn),
        scores={name: points[-1][1] for key, name in SCORES.items() if (points := series(log, key))},
        stages=planned(config),
        splits=counted,
        hardware=_hardware(device),
    )
    write_file(out / CARD, told)


def loss_curve(log: Sequence[Mapping[str, Any]]) -> str:
    """Training and validation loss over steps as SVG, from the entries of `metrics.jsonl`; "" where there are none."""
    curves = [
        Series(name, points)
        for name, key in (("training", "loss"), ("validation", "validation_loss"))
        if (points := series(log, key))
    ]
    return chart(curves, title="Loss over steps", x_label="step", y_label="loss")


def score_curve(log: Sequence[Mapping[str, Any]]) -> str:
    """The scores of answers over steps as SVG, where they were measured; "" where not."""
    shares = [Series(name, points) for key, name in SCORES.items() if (points := series(log, key))]
    return chart(shares, title="Scores over steps", x_label="step", y_label="share", y_range=(0.0, 1.0))


def series(log: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """(step, value) of every entry of a log that has the key."""
    return [(entry["step"], entry[key]) for entry in log if key in entry]


def _hardware(device: str) -> dict[str, str]:
    """What it ran on, and the most memory that this process has held."""
    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = {"processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"}
    if device.startswith("cuda"):
        told["card"] = torch.cuda.get_device_name(device)
        peak = torch.cuda.max_memory_allocated(device)
    told["peak memory since it last started"] = f"{peak / 2**30:.2f} GiB"
    return told | {"versions": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)}

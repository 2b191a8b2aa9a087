"""`maemi evaluate`: the scores of a student on the test split. Knows nothing about how they are counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.verbs import terminal
from serve.verbs.command import Data, Json, RunOption, app, quiet

SHOWN_SCORES = (
    ("caption", "bleu2", "bleu2_blind"),
    ("caption", "rougeL", "rougeL_blind"),
    ("vqa", "bleu2", "bleu2_blind"),
    ("vqa", "rougeL", "rougeL_blind"),
    ("classification", "top1", ""),
    ("classification", "macro_f1", ""),
    ("factual", "accuracy", "blind"),
)


@app.command("evaluate", short_help="Score a student on the test split.")
def evaluate_command(
    data: Data,
    run: RunOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows of each task.")] = None,
    baselines: Annotated[bool, typer.Option(help="Also train plain classifiers to compare with.")] = True,
    report: Annotated[
        Path | None, typer.Option(help="Also write one HTML file with everything that was found.")
    ] = None,
    json: Json = False,
) -> None:
    """Score a student on the test split, beside blind scores and baselines.

    \b
    Examples:
      maemi evaluate --run runs/first --data data/ --json
      maemi evaluate --run runs/first --data data/ --report report.html
    """
    from training.evaluate import evaluate as run_evaluation

    with quiet(json), terminal.progress("Evaluating") as tell:
        found = run_evaluation(run, data, limit=limit, baselines=baselines, progress=tell)
    if report is not None:
        from serve.verbs.evaluation_report import write_evaluation
        from training.data import load_split

        write_evaluation(report, found, load_split(data, "test"))
    if json:
        terminal.print_json(found)
    else:
        print_scores(found)


def print_scores(report: Mapping[str, Any], title: str = "") -> None:
    """Draw the scores that tell most, each beside its blind score."""

    def cell(scores: Mapping[str, Any], name: str) -> str:
        return f"{scores[name]:.3f}" if isinstance(scores.get(name), float) else "-"

    rows = [
        (section, metric, cell(report[section], metric), cell(report[section], blind))
        for section, metric, blind in SHOWN_SCORES
        if section in report
    ]
    terminal.print_table(title, ("", "score", ">value", ">blind"), rows)
    for told, counts in (("shown", report["statements"]), ("drafted", report["statements"]["drafted"])):
        listed = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("true", "false", "unsupported", "withheld"))
        terminal.say(f"statements {told}: {listed}")

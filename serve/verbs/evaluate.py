"""`maemi evaluate`: the scores of a student on the test split. Knows nothing about how they are counted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from assistant.progress import Progress
from serve.verbs import terminal
from serve.verbs.command import Data, Json, RunOption, app, quiet, usage


@app.command("evaluate", short_help="Score a student on the test split.")
def evaluate_command(
    data: Data,
    run: RunOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows of each task.")] = None,
    baselines: Annotated[bool, typer.Option(help="Also train plain classifiers to compare with.")] = True,
    open_protocol: Annotated[
        str | None, typer.Option(metavar="URL", help="Also ask the model of an OpenAI-compatible endpoint.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model to ask there.")] = None,
    allow_egress: Annotated[bool, typer.Option("--allow-egress", help="Let pictures leave this machine.")] = False,
    manifest: Annotated[str | None, typer.Option(help="SHA-256 of the list of pictures that may leave.")] = None,
    answers: Annotated[list[Path] | None, typer.Option(help="Also score published answers: CSV of id, answer.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write one HTML file with everything that was found.")
    ] = None,
    json: Json = False,
) -> None:
    """Score a student on the test split, beside blind scores and baselines.

    \b
    Example:
      maemi evaluate --run runs/first --data data/ --json
      maemi evaluate --run runs/first --data data/ --report report.html
      maemi evaluate --data data/ --open-protocol http://127.0.0.1:8000/v1 --model qwen3-vl --report report.html
    """
    from training.data import load_split
    from training.evaluate import evaluate as run_evaluation
    from training.evaluate import sample_rows

    if (open_protocol is None) != (model is None):
        usage("--open-protocol and --model belong together. Name both the address and the model.")
    rows = sample_rows(load_split(data, "test"), limit)
    others: list[dict[str, Any]] = []
    with quiet(json), terminal.parts() as tell:
        if open_protocol is not None and model is not None:  # before ours: nobody waits to be told that it may not
            from assistant.config import TeachConfig
            from serve.batch.others import ask_endpoint

            listed = Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model)}-manifest.jsonl")
            others.append(
                ask_endpoint(
                    rows,
                    TeachConfig(base_url=open_protocol, model=model),
                    manifest=listed,
                    allow=manifest if allow_egress and manifest else False,
                    progress=lambda done, total, text: tell("Asking", done, total, text),
                )
            )
        for file in answers or ():
            from serve.batch.others import read_answers

            others.append(read_answers(file, rows))
        ours: Progress = lambda done, total, text: tell("Evaluating", done, total, text)  # noqa: E731
        found = run_evaluation(run, data, limit=limit, baselines=baselines, progress=ours)
    found |= {"others": others} if others else {}
    if report is not None:
        from serve.verbs.evaluation_report import write_evaluation

        write_evaluation(report, found, rows)
    if json:
        terminal.print_json(found)
    else:
        print_scores(found)


def print_scores(report: Mapping[str, Any], title: str = "") -> None:
    """Draw the scores that tell most, each beside its blind score."""
    from serve.wording import SHOWN_SCORES

    def cell(scores: Mapping[str, Any], name: str) -> str:
        return f"{scores[name]:.3f}" if isinstance(scores.get(name), float) else "-"

    rows = [
        (section, metric, cell(report[section], metric), cell(report[section], blind))
        for section, metric, blind in SHOWN_SCORES
        if section in report
    ]
    terminal.print_table(title, ("", "score", ">value", ">blind"), rows)
    for other in report.get("others", ()):
        beside = [(section, metric, cell(other.get(section, {}), metric)) for section, metric, *_ in rows]
        terminal.print_table(other["model"], ("", "score", ">value"), beside)
    for told, counts in (("shown", report["statements"]), ("drafted", report["statements"]["drafted"])):
        listed = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("true", "false", "unsupported", "withheld"))
        terminal.say(f"statements {told}: {listed}")

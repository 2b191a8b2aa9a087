"""The verbs that make and judge students: synth, teach, train, evaluate, plan, export, demo.

Knows nothing about serving.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve import terminal
from serve.command import (
    ALL_FAILED,
    ConfigFile,
    Data,
    Json,
    Overrides,
    Run,
    app,
    finish,
    print_result,
    quiet,
    terminable,
    usage,
)
from serve.teaching import REVIEW_PORT, export_rows, print_report, review_rows, show_questions

if TYPE_CHECKING:
    from data_gen.report import TeachReport

SHOWN_SCORES = (
    ("caption", "bleu2", "bleu2_blind"),
    ("caption", "rougeL", "rougeL_blind"),
    ("vqa", "bleu2", "bleu2_blind"),
    ("vqa", "rougeL", "rougeL_blind"),
    ("classification", "top1", ""),
    ("classification", "macro_f1", ""),
    ("factual", "accuracy", "blind"),
)


@app.command(short_help="Draw micrographs with exact ground truth.")
def synth(
    out: Annotated[Path, typer.Option(help="Directory to write to.")],
    classes: Annotated[str | None, typer.Option(help="Some of the ten classes, as in particles,fibres.")] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 8,
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 0,
    style: Annotated[str, typer.Option(help="house, or site for a different instrument.")] = "house",
    json: Json = False,
) -> None:
    """Draw micrographs of the ten classes with exact ground truth, vendor tags and info bars.

    \b
    Example:
      maemi synth --out drawn --classes particles,fibres --per-class 20
    """
    from data_gen.synth import CLASSES, write_synthetic

    chosen = tuple(name.strip() for name in classes.split(",") if name.strip()) if classes else CLASSES
    truth = write_synthetic(out, classes=chosen, per_class=per_class, seed=seed, style=style)
    print_result(
        {"truth": str(truth), "images": len(chosen) * per_class}, json, f"{len(chosen) * per_class} images, {truth}"
    )


@app.command(short_help="Turn micrographs into instruction data.")
def teach(
    images: Annotated[Path | None, typer.Argument(help="Folder of micrographs, with truth.jsonl if drawn.")] = None,
    out: Annotated[Path | None, typer.Option(help="Data set directory to write or to go on with.")] = None,
    teacher: Annotated[str | None, typer.Option(help="offline (nothing leaves the machine) or openai.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Hard limit for a hosted teacher [USD].")] = None,
    allow_egress: Annotated[bool, typer.Option(help="Allow sending redacted images, after a listing.")] = False,
    manifest: Annotated[str | None, typer.Option(help="With --allow-egress: sha256 of the manifest you read.")] = None,
    estimate: Annotated[bool, typer.Option(help="Ask a few questions, tell what all will cost, and stop.")] = False,
    sheets: Annotated[bool, typer.Option(help="Write a knowledge sheet for every class as well.")] = False,
    forget: Annotated[list[str] | None, typer.Option(help="Delete a micrograph (file or sha256) for ever.")] = None,
    show: Annotated[Path | None, typer.Option(help="Print what would be asked about this image, and stop.")] = None,
    review: Annotated[bool, typer.Option(help="Open the page on which a person reviews the rows of --out.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the review page.")] = REVIEW_PORT,
    export: Annotated[str | None, typer.Option(help="Also write --out as llava or sharegpt.")] = None,
    json: Json = False,
) -> None:
    """Turn micrographs into instruction data; the same command goes on after an interruption.

    Without IMAGES, --review and --export work on the data set that --out names.

    \b
    Example:
      maemi teach images/ --out data/
      maemi teach --show images/wafer.tif
      maemi teach --out data/ --review
      maemi teach --out data/ --export llava
    """
    from assistant.config import load_config
    from data_gen.forget import forget_micrograph
    from data_gen.pipeline import teach as run_teacher
    from serve.consent import with_consent

    chosen = [*(overrides or []), *([f"teach.teacher={teacher}"] if teacher else [])]
    settings = load_config(config, chosen).teach
    if show is not None:
        show_questions(show, settings, json=json)
        return
    if out is None:
        usage("teach needs --out, the data set directory to write or to go on with.")
    for micrograph in forget or ():
        forget_micrograph(out, micrograph)
    if images is None:
        if not (review or export or forget):
            usage("teach needs a folder of micrographs. Name it, or give --show, --review or --export.")
        if export:
            folder = export_rows(out, export)
            print_result({"export": str(folder)}, json, f"export: {folder}")
        if review:
            review_rows(out, port=port)
        return

    def run(leave: bool | str) -> TeachReport:
        with quiet(json), terminal.progress("Teaching") as tell:
            return run_teacher(
                images,
                out,
                config=settings,
                budget_usd=budget,
                allow_egress=leave,
                estimate=estimate,
                sheets=sheets,
                progress=tell,
            )

    report = with_consent(run, asked=allow_egress, manifest=manifest)
    exported = export_rows(out, export) if export and not estimate else None
    print_report(report, exported, json=json)
    if review:
        review_rows(out, port=port)
    finish(ALL_FAILED if report.refused else report.unanswered + bool(report.stopped))


@app.command(short_help="Fine-tune a student.")
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run directory to write or to go on with.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Fine-tune a student; the same command resumes after any interruption.

    Ctrl-C and SIGTERM end the step at hand and save it.

    \b
    Example:
      maemi train --config configs/tiny.yaml --data data/ --out runs/first --set training.steps=200
    """
    with terminable():
        from assistant.config import load_config
        from training.trainer import train as run_training

        settings = load_config(config, overrides or ())
        with quiet(json), terminal.progress("Fine-tuning") as tell:
            run = run_training(settings, data, out, progress=tell)
    print_result({"run": str(run)}, json, f"run: {run}")


@app.command(short_help="Score a student on the test split.")
def evaluate(
    data: Data,
    run: Run = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows of each task.")] = None,
    baselines: Annotated[bool, typer.Option(help="Also train the plain classifiers to compare with.")] = True,
    json: Json = False,
) -> None:
    """Score a student on the test split, beside blind scores and baselines.

    \b
    Example:
      maemi evaluate --run runs/first --data data/ --json
    """
    from training.evaluate import evaluate as run_evaluation

    with quiet(json), terminal.progress("Evaluating") as tell:
        report = run_evaluation(run, data, limit=limit, baselines=baselines, progress=tell)
    if json:
        terminal.print_json(report)
    else:
        print_scores(report)


@app.command(short_help="Predict the memory of fine-tuning.")
def plan(
    config: ConfigFile = None,
    overrides: Overrides = None,
    gpu_gib: Annotated[float | None, typer.Option(min=0.1, help="Memory of your card [GiB].")] = None,
    json: Json = False,
) -> None:
    """Predict the memory of fine-tuning, part by part, and which settings would fit a card.

    \b
    Example:
      maemi plan --config configs/llama2-7b.yaml --gpu-gib 12
    """
    from assistant.config import load_config
    from assistant.precision import decide
    from training.memory import plan_memory

    settings = load_config(config, overrides or ())
    predicted, here = plan_memory(settings, gpu_gib=gpu_gib), decide(settings.training.precision, "cpu")
    if json:
        terminal.print_json(predicted.as_dict() | {"precision_on_cpu": here.as_dict()})
        return
    rows = [(part, f"{size / 2**30:.2f}") for part, size in predicted.table()]
    terminal.print_table("One fine-tuning step", ("part", ">GiB"), rows)
    for card in predicted.cards:
        fix = "no setting helps" if card.settings is None else "fits with --set " + " --set ".join(card.settings)
        terminal.say(f"{card.gib:g} GiB: {'fits' if card.fits else fix}")
    terminal.say(f"On this machine's processor training would compute in {here}.")


@app.command(short_help="Write a stock PEFT LoRA adapter.")
def export(
    run: Annotated[Path, typer.Option(help="Run directory of a DyQLoRA-FA student.")],
    rank: Annotated[int, typer.Option(min=1, help="Rank of the exported adapter.")],
    out: Annotated[Path, typer.Option(help="Directory to write to.")],
) -> None:
    """Write a stock PEFT LoRA adapter of a chosen rank.

    \b
    Example:
      maemi export --run runs/first --rank 8 --out lora_r8
    """
    from assistant.adapters import export_lora
    from assistant.checkpoint import load_run

    export_lora(load_run(run).student.decoder.lm, rank, out)
    terminal.say(f"adapter: {out}")


@app.command(short_help="Run the whole loop in minutes on a CPU.")
def demo(
    out: Annotated[Path, typer.Option(help="Directory to write to or to go on with.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 7,
    json: Json = False,
) -> None:
    """Run the whole loop on a CPU: teach, fine-tune, evaluate before and after, caption, report.

    \b
    Example:
      maemi demo --out demo
    """
    from serve.demo import run_demo

    with quiet(json), terminal.parts() as tell:
        summary = run_demo(out, seed=seed, tell=tell)
    if json:
        terminal.print_json(summary)
        return
    for name in ("before", "after"):
        print_scores(summary[name], title=name.capitalize())
    terminal.say(f"report: {out / 'report.html'}  ({summary['total_s']:.0f} s)")


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

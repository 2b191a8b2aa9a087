"""`maemi fit`: a head on a user's own labels. Knows nothing about how it is fitted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from serve.verbs import terminal
from serve.verbs.command import ConfigFile, Json, Overrides, app, quiet, terminable

if TYPE_CHECKING:
    from training.labelled import LabelledSet

Column = Annotated[list[str] | None, typer.Option("--ignore", help="Column or modality to leave out; repeatable.")]


@app.command(short_help="Learn your own classes and numbers.")
def fit(
    source: Annotated[Path, typer.Argument(help="CSV with a column per target, or a folder with a folder per class.")],
    out: Annotated[Path, typer.Option(help="Run directory to write.")],
    target: Annotated[
        list[str] | None, typer.Option(help="Column to learn, with its unit: 'strength[MPa]'; repeatable.")
    ] = None,
    ignore: Column = None,
    group: Annotated[str | None, typer.Option(help="Column that tells which rows are of one wafer or lot.")] = None,
    knowledge: Annotated[Path | None, typer.Option(help="Folder with a text about every class, CLASS.txt.")] = None,
    text_encoder: Annotated[Path | None, typer.Option(help="Local Hugging Face encoder for texts.")] = None,
    looks: Annotated[
        Literal["auto", "tower", "student", "none"],
        typer.Option(help="Network that looks at pictures, beside their texture; auto: the tower, if installed."),
    ] = "auto",
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Learn classes and numbers from labelled pictures, tables, texts, formulas and crystals, whichever a row has.

    What was found in the table is said before anything is trained. Rows are split by group; the report is of groups
    that were not trained on.

    \b
    Example:
      maemi fit steels.csv --target 'yield strength[MPa]' --group heat --out runs/steels
      maemi fit classes/ --out runs/classes
    """
    with terminable():
        from assistant.config import load_config
        from training.fit import Choices
        from training.fit import fit as run_fit
        from training.pictures import extractor_of

        choices = Choices(tuple(target or ()), tuple(ignore or ()), group, knowledge, text_encoder)
        with quiet(json), terminal.progress("Fitting") as tell:
            report = run_fit(
                source,
                out,
                load_config(config, overrides or ()),
                choices,
                extractor=None if looks == "none" else partial(extractor_of, None if looks == "auto" else looks),
                found=_say,
                progress=tell,
            )
    if json:
        terminal.print_json({"run": str(out), **report})
        return
    test = report["test"]
    terminal.print_table(
        "On groups that were not trained on", ("target", "score", "without a model", "coverage"), _rows(test)
    )
    if test and test["without"]:
        changes = [(name, _brief(test["alone"].get(name)), _brief(scores)) for name, scores in test["without"].items()]
        terminal.print_table("What each modality brings", ("modality", "alone", "without it"), changes)
    for name, heads in report["heads"].items():
        terminal.say(f"{name}: {heads['sentence']}")
    terminal.say(f"run: {out}")


def _say(labelled: LabelledSet) -> None:
    for line in labelled.findings:
        terminal.note(line)
    for line in labelled.warnings:
        terminal.note(f"warning: {line}")


def _rows(test: dict[str, Any] | None) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, score in (test or {"targets": {}})["targets"].items():
        coverage = "-" if score["coverage"] is None else f"{score['coverage']:.0%}"
        if "mae" in score:
            unit = f" {score['unit']}" if score["unit"] else ""
            rows.append((name, f"off by {score['mae']:.4g}{unit}", f"{score['mean_mae']:.4g}{unit}", coverage))
        else:
            told = f"right {score['top1']:.1%}, F1 {score['macro_f1']:.2f}"
            rows.append((name, told, f"right {score['majority']:.1%}", f"{coverage} ({score['set_size']:.1f} classes)"))
    return rows


def _brief(scores: dict[str, Any] | None) -> str:
    if not scores:
        return "-"
    return ", ".join(
        f"{name} off by {s['mae']:.4g}" if "mae" in s else f"{name} right {s['top1']:.1%}" for name, s in scores.items()
    )

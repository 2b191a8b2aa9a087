"""`maemi train`: fine-tune a student, or continue. Knows nothing about training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve.verbs import terminal
from serve.verbs.command import ConfigFile, Data, Json, Overrides, app, finish, print_result, quiet, terminable, usage

if TYPE_CHECKING:
    from training.preflight import Preflight


@app.command("train", short_help="Fine-tune a student.")
def train_command(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Run directory to write or continue.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only look at data, settings and memory; train nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Train although a check says that it will fail.")] = False,
    json: Json = False,
) -> None:
    """Fine-tune a student. After any interruption, the same command continues.

    Ctrl-C and SIGTERM finish the current step and save it.

    \b
    Example:
      maemi train --config configs/tiny.yaml --data data/ --check
      maemi train --config configs/tiny.yaml --data data/ --out runs/first --set training.steps=200
    """
    with terminable():
        from assistant.config import load_config
        from training.trainer import preflight
        from training.trainer import train as run_training

        settings = load_config(config, overrides or ())
        if check:
            with quiet(json):
                found = preflight(settings, data)
            terminal.print_json(found.as_dict()) if json else print_preflight(found)
            finish(len(found.stops))
            return
        if out is None:
            usage("--out is missing. Name the run directory to write, or ask for --check alone.")
        with quiet(json), terminal.progress("Fine-tuning") as tell:
            told = None if json else print_preflight
            run = run_training(settings, data, out, progress=tell, told=told, force=force)
    print_result({"run": str(run)}, json, f"run: {run}")


def print_preflight(found: Preflight) -> None:
    """Draw what was found before the first step: the data, what learns, what carries loss, and each warning."""
    sizes = [
        (name, *(f"{split[key]:,}" for key in ("rows", "pictures", "groups")), _classes(split["classes"]))
        for name, split in found.splits.items()
    ]
    terminal.print_table("Data", ("split", ">rows", ">pictures", ">groups", "classes"), sizes)
    if found.stages:
        stages = [
            (one["stage"], str(one["steps"] or "-"), ", ".join(one["losses"]), one["learns"]) for one in found.stages
        ]
        terminal.print_table("Stages", ("stage", ">steps", "losses", "what learns"), stages)
    if found.trained:
        learns = [(part["name"], f"{part['parameters']:,}", f"{part['learning_rate']:g}") for part in found.trained]
        frozen = ("frozen", f"{found.frozen_parameters:,}", "-")
        terminal.print_table("What the last steps teach", ("part", ">parameters", ">peak rate"), [*learns, frozen])
    if found.tokens:
        lengths = (
            "{shortest} to {longest} tokens, median {median}, limit {max_tokens}; {cut} of {conversations} are cut"
        )
        terminal.say(f"conversations: {lengths.format(**found.tokens)}")
        pieces = (f"[{piece['text']}]" if piece["loss"] else piece["text"] for piece in found.loss_view)
        terminal.say(f"learned is what stands in brackets: {' '.join(''.join(pieces).split())}")
    gib = {name: f"{found.memory[name] / 2**30:.2f} GiB" for name in ("predicted", "total", "free")}
    device = found.memory["device"]
    terminal.say(f"memory: {gib['predicted']} predicted for one step; {device} has {gib['total']}, {gib['free']} free")
    for kind, sentences in (("note", found.notes), ("stop", found.stops)):
        for sentence in sentences:
            terminal.say(f"{kind}: {sentence}")


def _classes(counts: dict[str, int]) -> str:
    """At most four classes with their pictures, the largest first."""
    largest = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count}" for name, count in largest[:4]) + (", ..." if len(counts) > 4 else "")

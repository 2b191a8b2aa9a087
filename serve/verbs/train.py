"""`maemi train`: fine-tune a student, or continue. Knows nothing about training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.verbs import terminal
from serve.verbs.command import ConfigFile, Data, Json, Overrides, app, print_result, quiet, terminable


@app.command("train", short_help="Fine-tune a student.")
def train_command(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run directory to write or continue.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Fine-tune a student. After any interruption, the same command continues.

    Ctrl-C and SIGTERM finish the current step and save it.

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

"""`maemi export`: a stock LoRA adapter of a chosen rank. Knows nothing about adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.verbs import terminal
from serve.verbs.command import app


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

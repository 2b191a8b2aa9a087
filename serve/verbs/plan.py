"""`maemi plan`: what fine-tuning takes, before it is tried. Knows nothing about how it is predicted."""

from __future__ import annotations

from typing import Annotated

import typer

from serve.verbs import terminal
from serve.verbs.command import ConfigFile, Json, Overrides, app


@app.command(short_help="Predict the memory of fine-tuning.")
def plan(
    config: ConfigFile = None,
    overrides: Overrides = None,
    gpu_gib: Annotated[float | None, typer.Option(min=0.1, help="Memory of your card [GiB].")] = None,
    json: Json = False,
) -> None:
    """Predict the memory of fine-tuning part by part, and the settings that would fit a card.

    \b
    Example:
      maemi plan --config configs/llama2-7b.yaml --gpu-gib 12
    """
    from assistant.config import load_config
    from assistant.precision import number_format
    from training.planning.memory import plan_memory

    settings = load_config(config, overrides or ())
    predicted, here = plan_memory(settings, gpu_gib=gpu_gib), number_format(settings.training.precision, "cpu")
    if json:
        terminal.print_json(predicted.as_dict() | {"precision_on_cpu": here.as_dict()})
        return
    rows = [(part, f"{size / 2**30:.2f}") for part, size in predicted.table()]
    terminal.print_table("One fine-tuning step", ("part", ">GiB"), rows)
    for card in predicted.cards:
        fix = "no setting helps" if card.settings is None else "fits with --set " + " --set ".join(card.settings)
        terminal.say(f"{card.gib:g} GiB: {'fits' if card.fits else fix}")
    terminal.say(f"On this machine's processor training would compute in {here}.")

"""`maemi predict`: classes and numbers by a head that `maemi fit` wrote. Knows nothing about how they are predicted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from assistant.errors import ConfigError
from serve.verbs import terminal
from serve.verbs.command import ALL_FAILED, Json, app, finish, quiet


@app.command(short_help="Predict your own classes and numbers.")
def predict(
    inputs: Annotated[list[Path], typer.Argument(help="Micrographs, folders of them, or one CSV as it was fitted on.")],
    run: Annotated[Path, typer.Option(help="Run directory that `maemi fit` wrote.")],
    explain: Annotated[bool, typer.Option("--explain", help="Say what each prediction rests on.")] = False,
    overlay: Annotated[Path | None, typer.Option(help="Folder for pictures of what carries each.")] = None,
    json: Json = False,
) -> None:
    """Predict values with their intervals, or classes with the set that holds the true one as often as promised.

    \b
    Example:
      maemi predict new/ --run runs/classes --explain --overlay why/
      maemi predict new.csv --run runs/steels --json
    """
    from training.applied import Applied

    if overlay is not None and not explain:
        raise ConfigError("usage", "--overlay draws what --explain says. Add --explain.")
    with quiet(json), terminal.progress("Predicting") as tell:
        results = Applied.load(run).predict(inputs, explain=explain, overlay=overlay, progress=tell)
    failed = [row for row in results if row["error"]]
    if json:
        terminal.print_json(results)
    else:
        for row in results:
            for target in row["targets"]:
                terminal.say(f"{row['path']}: {_written(target)}")
            if row.get("explanation"):
                terminal.say(f"  {row['explanation']['sentence']}")
    for row in failed:
        terminal.print_error(row["error"]["code"], f"{row['path']}: {row['error']['message']}")
    finish(ALL_FAILED if len(failed) == len(results) else len(failed))


def _written(target: Mapping[str, Any]) -> str:
    if "value" in target:
        unit = f" {target['unit']}" if target["unit"] else ""
        if target["low"] is None:
            return f"{target['name']} {target['value']:.4g}{unit} (no interval: too few groups were held out)"
        reach = f"{target['low']:.4g} to {target['high']:.4g} in {target['coverage']:.0%} of cases"
        return f"{target['name']} {target['value']:.4g}{unit} ({reach})"
    best = target["scores"][0]
    likely = ", ".join(target["set"]) or "none of the classes"
    return (
        f"{target['name']} {target['verdict']} (most probable {best['label']} {best['probability']:.2f}; set: {likely})"
    )

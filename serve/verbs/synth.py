"""`maemi synth`: micrographs drawn with exact ground truth. Knows nothing about how they are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.verbs.command import Json, app, print_result


@app.command(short_help="Draw micrographs with exact ground truth.")
def synth(
    out: Annotated[Path, typer.Option(help="Directory to write to.")],
    classes: Annotated[str | None, typer.Option(help="Some of the ten classes, such as particles,fibres.")] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 8,
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 0,
    style: Annotated[str, typer.Option(help="house, or site, which looks like another instrument.")] = "house",
    json: Json = False,
) -> None:
    """Draw micrographs of the ten classes with exact ground truth, vendor tags and info bars.

    \b
    Example:
      maemi synth --out drawn --classes particles,fibres --per-class 20
    """
    from data_gen.drawing.synth import CLASSES, write_synthetic

    chosen = tuple(name.strip() for name in classes.split(",") if name.strip()) if classes else CLASSES
    truth = write_synthetic(out, classes=chosen, per_class=per_class, seed=seed, style=style)
    print_result(
        {"truth": str(truth), "images": len(chosen) * per_class}, json, f"{len(chosen) * per_class} images, {truth}"
    )

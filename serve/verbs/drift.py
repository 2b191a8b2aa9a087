"""`maemi drift`: what no longer looks like the training set. Knows nothing about how that is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve.verbs import terminal
from serve.verbs.command import ALL_FAILED, Json, app, finish, quiet, terminable
from serve.verbs.next_labels import FitRun, MapFile

LEVEL = 0.05
"""p below which a difference is told, as in training/survey.py."""

if TYPE_CHECKING:
    from training.survey import Source, Survey


@app.command(short_help="Tell what no longer looks like training.")
def drift(
    inputs: Annotated[list[Path], typer.Argument(help="Micrographs, folders of them, or one CSV as it was fitted on.")],
    run: FitRun,
    map_file: MapFile = None,
    json: Json = False,
) -> None:
    """Hold each folder against the rows that a run was trained on, by a test that takes pictures of one sample for one:
    p is how often groups of the same source would lie as far apart, corrected for the number of folders.

    \b
    Example:
      maemi drift line2/ --run runs/classes --map drift.html
    """
    with terminable():
        from training.applied import Applied
        from training.survey import Survey

        with quiet(json), terminal.progress("Looking") as tell:
            survey = Survey(Applied.load(run), inputs, tell)
            sources = survey.drift()
            if map_file is not None and survey.rows:
                _draw(map_file, survey, sources)
    failed = [
        {"path": name, "error": {"code": error.code, "message": error.message}} for name, error in survey.failed.items()
    ]
    if json:
        terminal.print_json({"sources": [source.as_dict() for source in sources], "failed": failed})
    else:
        table = [
            (
                s.source,
                f"{s.rows}",
                f"{s.groups}",
                f"{s.unknown}",
                f"{s.distance:.3f}",
                f"{s.p_adjusted:.3g}",
                verdict(s),
            )
            for s in sources
        ]
        columns = ("folder", ">rows", ">groups", ">unknown", ">distance", ">p", "")
        terminal.print_table("", columns, table)
    for name, error in survey.failed.items():
        terminal.print_error(error.code, f"{name}: {error.message}")
    finish(ALL_FAILED if failed and not survey.rows else len(failed))


def verdict(source: Source) -> str:
    """What the test says of a source, in words."""
    if source.differs:
        moved = ", ".join(f"{one['name']} by {one['by']:+.1f}" for one in source.moved)
        return f"differs: {moved} deviations"
    if source.least_p > LEVEL:
        return f"too few groups to tell: p cannot be below {source.least_p:.2g}"
    return "no difference found"


def _draw(out: Path, survey: Survey, sources: list[Source]) -> None:
    from serve.verbs.survey_map import Spot, write_map

    known, places, shown = survey.plane()
    words = {source.source: f"p {source.p_adjusted:.3g}, {verdict(source)}" for source in sources}
    spots = []
    for row, prediction in zip(survey.rows, survey.predictions, strict=True):
        source = survey.source_of(row)
        spots.append(
            Spot(row.name, row.picture, source, f"distance {prediction.distance:.2f}; folder: {words[source]}")
        )
    write_map(out, spots, places, known, title="What no longer looks like training", shown=shown)

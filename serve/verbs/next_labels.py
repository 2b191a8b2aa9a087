"""`maemi next`: which pictures to label next. Knows nothing about how they are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve.verbs import terminal
from serve.verbs.command import ALL_FAILED, Json, app, finish, quiet, terminable

if TYPE_CHECKING:
    from serve.verbs.survey_map import Spot
    from training.survey import Suggestion, Survey

FitRun = Annotated[Path, typer.Option(help="Run directory that `maemi fit` wrote.")]
MapFile = Annotated[
    Path | None, typer.Option("--map", help="HTML page of the pictures, placed by what they look like.")
]


@app.command("next", short_help="Choose what to label next.")
def next_labels(
    inputs: Annotated[list[Path], typer.Argument(help="Micrographs, folders of them, or one CSV as it was fitted on.")],
    run: FitRun,
    count: Annotated[int, typer.Option(min=1, help="Pictures to choose.")] = 20,
    map_file: MapFile = None,
    json: Json = False,
) -> None:
    """Choose the pictures whose labels would teach most: those that the run is unsure of and that lie far from all that
    is labelled or chosen before. Pictures that the run was fitted on are left out.

    \b
    Example:
      maemi next unlabelled/ --run runs/classes --count 20 --map next.html
    """
    with terminable():
        from training.applied import Applied
        from training.survey import Survey

        with quiet(json), terminal.progress("Looking") as tell:
            survey = Survey(Applied.load(run), inputs, tell)
            chosen = survey.next(count)
            if map_file is not None and survey.rows:
                _draw(map_file, survey, chosen)
    failed = [
        {"path": name, "error": {"code": error.code, "message": error.message}} for name, error in survey.failed.items()
    ]
    if json:
        terminal.print_json([suggestion.as_dict() for suggestion in chosen] + failed)
    elif chosen:
        table = [
            (f"{n}", s.path, f"{s.uncertainty:.2f}", f"{s.distance:.2f}", ", ".join(map(brief, s.targets)))
            for n, s in enumerate(chosen, 1)
        ]
        terminal.print_table("", (">", "picture", ">unsure", ">distance", "would be"), table)
    else:
        terminal.note("Nothing is left to label: every picture is labelled, or a copy of one that is.")
    for name, error in survey.failed.items():
        terminal.print_error(error.code, f"{name}: {error.message}")
    finish(ALL_FAILED if failed and not survey.rows else len(failed))


def brief(target: dict[str, Any]) -> str:
    """A target in a few words, from `training.applied.target_in_short`."""
    if "verdict" in target:
        return f"{target['name']} {target['verdict']} ({target['probability']:.2f})"
    return f"{target['name']} {target['value']:.4g} {target['unit']}".rstrip()


def _draw(out: Path, survey: Survey, chosen: list[Suggestion]) -> None:
    from serve.verbs.survey_map import Spot, write_map
    from training.applied import target_in_short

    ranks = {suggestion.path: n for n, suggestion in enumerate(chosen, 1)}
    known, places, shown = survey.plane()
    spots: list[Spot] = []
    for row, prediction in zip(survey.rows, survey.predictions, strict=True):
        said = [target_in_short(target) for target in prediction.targets]
        spots.append(
            Spot(
                row.name,
                row.picture,
                str(said[0].get("verdict", survey.source_of(row))),
                ", ".join(map(brief, said)),
                ranks.get(row.name),
            )
        )
    write_map(out, spots, places, known, title="What to label next", shown=shown)

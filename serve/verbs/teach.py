"""`maemi teach`: micrographs into instruction data, and what can be done with a data set.

Knows nothing about how rows are made.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve.verbs import terminal
from serve.verbs.command import ALL_FAILED, ConfigFile, Json, Overrides, app, finish, print_result, quiet, usage
from serve.verbs.consent import with_consent

if TYPE_CHECKING:
    from assistant.config import TeachConfig
    from data_gen.passes.teach_report import TeachReport
REVIEW_HOST, REVIEW_PORT = "127.0.0.1", 7861


@app.command("teach", short_help="Turn micrographs into instruction data.")
def teach_command(
    images: Annotated[Path | None, typer.Argument(help="Folder of micrographs, with truth.jsonl if drawn.")] = None,
    out: Annotated[Path | None, typer.Option(help="Data set directory to write or continue.")] = None,
    teacher: Annotated[str | None, typer.Option(help="offline (nothing leaves the machine) or openai.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Hard limit for a hosted teacher [USD].")] = None,
    allow_egress: Annotated[bool, typer.Option(help="Allow sending redacted images from a list you saw.")] = False,
    manifest: Annotated[str | None, typer.Option(help="With --allow-egress: sha256 of the list you read.")] = None,
    estimate: Annotated[bool, typer.Option(help="Ask a few questions, show what all would cost, and stop.")] = False,
    sheets: Annotated[bool, typer.Option(help="Also write a knowledge sheet for every class.")] = False,
    forget: Annotated[list[str] | None, typer.Option(help="Delete a micrograph (file or sha256) permanently.")] = None,
    show: Annotated[Path | None, typer.Option(help="Print what would be asked about this image, and stop.")] = None,
    review: Annotated[bool, typer.Option(help="Open the page for reviewing the rows of --out.")] = False,
    corrections: Annotated[
        str | None, typer.Option(metavar="STORE", help="Take up corrected answers: the --store of `maemi serve`.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the review page.")] = REVIEW_PORT,
    export: Annotated[str | None, typer.Option(help="Also write --out as llava or sharegpt.")] = None,
    json: Json = False,
) -> None:
    """Turn micrographs into instruction data. After an interruption, the same command continues.

    Without IMAGES, --review, --corrections and --export work on the data set in --out.

    \b
    Example:
      maemi teach images/ --out data/
      maemi teach --show examples/powder.png
      maemi teach --out data/ --review
      maemi teach --out data/ --corrections answers.sqlite --review
      maemi teach --out data/ --export llava
    """
    from assistant.config import load_config
    from data_gen.dataset.forget import forget_micrograph
    from data_gen.pipeline import teach as run_teacher

    chosen = [*(overrides or []), *([f"teach.teacher={teacher}"] if teacher else [])]
    settings = load_config(config, chosen).teach
    if show is not None:
        show_questions(show, settings, json=json)
        return
    if out is None:
        usage("teach needs --out, the data set directory to write or to go on with.")
    for micrograph in forget or ():
        forget_micrograph(out, micrograph)
    if images is None and not (review or corrections or export or forget):
        usage("teach needs a folder of micrographs. Name it, or give --show, --review, --corrections or --export.")
    report = None
    if images is not None:
        work = partial(run_teacher, images, out, config=settings, budget_usd=budget, estimate=estimate, sheets=sheets)

        def run(leave: bool | str) -> TeachReport:
            with quiet(json), terminal.progress("Teaching") as tell:
                return work(allow_egress=leave, progress=tell)

        report = with_consent(run, asked=allow_egress, manifest=manifest)
    if corrections is not None:
        take_corrections(corrections, out)
    exported = export_rows(out, export) if export and not (report and estimate) else None
    if report:
        print_report(report, exported, json=json)
    elif exported:
        print_result({"export": str(exported)}, json, f"export: {exported}")
    if review:
        review_rows(out, port=port)
    if report:
        finish(ALL_FAILED if report.refused else report.unanswered + bool(report.stopped))


def print_report(report: TeachReport, exported: Path | None, *, json: bool) -> None:
    """Tell what a run made, as one JSON document or for people."""
    if json:
        terminal.print_json(report.as_dict() | ({"export": str(exported)} if exported else {}))
    else:
        tasks = sorted({task for counts in report.rows.values() for task in counts})
        rows = [(split, *(str(counts.get(task, 0)) for task in tasks)) for split, counts in report.rows.items()]
        title = f"{report.total} rows about {report.images} images in {report.seconds:.0f} s, {report.out}"
        terminal.print_table(title, ("split", *(f">{task}" for task in tasks)), rows)
        for reason, count in report.rejected.items():
            terminal.note(f"left out: {count} x {reason}")
        if exported:
            terminal.say(f"export: {exported}")
    if report.estimate_usd is not None:
        terminal.note(f"cost: {report.cost_usd:.4f} USD so far, about {report.estimate_usd:.4f} USD in all")
    for warning in report.warnings:
        terminal.note(f"warning: {warning}")
    if report.stopped:
        terminal.print_error(*report.stopped.split(": ", 1))


def show_questions(image: Path, config: TeachConfig, *, json: bool) -> None:
    """Print what would be asked about a micrograph, and the facts it rests on."""
    from data_gen.passes.show import show

    shown = show(image, config=config)
    if json:
        terminal.print_json(shown)
        return
    terminal.say(f"{shown['path']}\n  known: {shown['known'] or 'nothing'}")
    if sends := shown.get("sends"):
        terminal.say(f"  would be sent: PNG of {sends['bytes']} bytes, sha256 {sends['sha256']}, and the prompts below")
    for request in shown["requests"]:
        terminal.say(f"\n{request['task']}")
        if "prompt" in request:
            terminal.say(request["prompt"])
        for question in request["questions"]:
            for turn in question.get("history", ()):
                terminal.say(f"  ? {turn['question']}\n  ! {turn['answer']}")
            terminal.say(f"  ? {question['question']}   [{question['facet']} / {question['id']}]")
            for answer in question["answers"] or ["(the teacher looks and answers)"]:
                terminal.say(f"  ! {answer}")
    terminal.note("Nothing was written or sent.")


def review_rows(directory: Path, *, port: int = REVIEW_PORT) -> None:
    """Open the review page of a data set until stopped.

    Raises DatasetError `no_dataset` or ServerError `port_taken`.
    """
    from data_gen.dataset.decisions import Reviews
    from data_gen.dataset.reader import PENDING
    from data_gen.passes.corrections import publish_corrections
    from serve.http.server import bind, run_server
    from serve.page.review import Book, build_review_app

    book, listener = Book(directory), bind(REVIEW_HOST, port)
    told = f"Review of {directory} at http://{REVIEW_HOST}:{port}; stop with Ctrl-C."
    try:
        with Reviews(directory) as reviews:
            run_server(build_review_app(book, reviews), listener, ready=lambda: terminal.say(told))
    finally:
        if (directory / PENDING).is_dir():
            terminal.note(f"{publish_corrections(directory)} reviewed corrections are in the training split.")


def take_corrections(store: str, out: Path) -> None:
    """Let the corrected answers of a store wait for review in a data set; those accepted before become training rows.

    Raises ServerError `no_book` and `store_failed`, DatasetError.
    """
    from contextlib import closing

    from data_gen.passes.corrections import queue_corrections
    from serve.desk.conversations import Conversations, beside_the_book
    from serve.desk.corrected import corrections_of

    place, files = beside_the_book(store)
    with closing(Conversations(place, files, create=False)) as kept:
        counts = queue_corrections(out, corrections_of(kept))
    waiting = counts.pop("waiting", 0)
    terminal.note(f"{waiting} corrections of answers can be reviewed: maemi teach --out {out} --review")
    for reason, count in counts.items():
        terminal.note(f"left out: {count} x {reason}")


def export_rows(directory: Path, form: str) -> Path:
    """Write a data set in another format; gives the folder.

    Raises ConfigError `usage` for an unknown format.
    """
    from data_gen.dataset.exports import FORMATS, export_dataset
    from serve.verbs.command import usage

    known = next((name for name in FORMATS if name == form), None)
    if known is None:
        usage(f"--export knows {' and '.join(FORMATS)}, not {form!r}.")
    return export_dataset(directory, known)

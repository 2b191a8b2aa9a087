"""What `maemi teach` does beside teaching: tell of a run, show what would be asked, review rows, write other formats.

Knows nothing about how rows are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve import terminal

if TYPE_CHECKING:
    from assistant.config import TeachConfig
    from data_gen.report import TeachReport

REVIEW_HOST, REVIEW_PORT = "127.0.0.1", 7861


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
    from data_gen.show import show

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
            _print_question(question)
    terminal.note("Nothing was written or sent.")


def _print_question(question: Mapping[str, Any]) -> None:
    for turn in question.get("history", ()):
        terminal.say(f"  ? {turn['question']}\n  ! {turn['answer']}")
    terminal.say(f"  ? {question['question']}   [{question['facet']} / {question['id']}]")
    for answer in question["answers"] or ["(the teacher looks and answers)"]:
        terminal.say(f"  ! {answer}")


def review_rows(directory: Path, *, port: int = REVIEW_PORT) -> None:
    """Open the review page of a data set until stopped.

    Raises DatasetError `no_dataset` or ServerError `port_taken`.
    """
    from data_gen.review import Reviews
    from serve.review import Book, build_review_app
    from serve.server import bind, run_server

    book, listener = Book(directory), bind(REVIEW_HOST, port)
    told = f"Review of {directory} at http://{REVIEW_HOST}:{port}; stop with Ctrl-C."
    with Reviews(directory) as reviews:
        run_server(build_review_app(book, reviews), listener, ready=lambda: terminal.say(told))


def export_rows(directory: Path, form: str) -> Path:
    """Write a data set in another format; gives the folder.

    Raises ConfigError `usage` for an unknown format.
    """
    from data_gen.exports import FORMATS, export
    from serve.command import usage

    known = next((name for name in FORMATS if name == form), None)
    if known is None:
        usage(f"--export knows {' and '.join(FORMATS)}, not {form!r}.")
    return export(directory, known)

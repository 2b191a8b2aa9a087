"""How the command line speaks: JSON alone on stdout, tables for people, progress and errors on stderr.

Knows nothing about what the commands do. rich is imported only when something is drawn.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from assistant.progress import Progress

TellPart = Callable[[str, int, int, str], None]
"""Progress of several parts: name, done, total, a short text."""

LINE_EVERY_S = 30.0
"""Time between two lines of progress where there is no terminal [s]."""
CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")


def printable(text: str) -> str:
    """Text from files or models without the control characters that could move a terminal's cursor."""
    return text.encode("utf-8", "replace").decode().translate(CONTROL)


def print_json(document: Any) -> None:
    """Write one JSON document to stdout."""
    text = json.dumps(document, ensure_ascii=False, indent=1, default=str)
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Write one line to stdout."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def write_piece(text: str) -> None:
    """Write a piece of a streamed answer to stdout."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def note(text: str) -> None:
    """Write one line to stderr, dim on a terminal."""
    line = printable(text)
    sys.stderr.write(f"\x1b[2m{line}\x1b[0m\n" if sys.stderr.isatty() else f"{line}\n")


def print_error(code: str, message: str) -> None:
    """Write `error: code: message` as one line to stderr."""
    line = " ".join(printable(message).split())
    sys.stderr.write(f"error: {code}: {line}\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Draw a table on stdout; columns that begin with `>` are right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable(title), style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=any(columns),
        pad_edge=False,
    )
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


def lines_of_progress(clock: Callable[[], float] = time.monotonic) -> TellPart:
    """Progress for a log: one line every half minute, so that nobody takes a long part for a dead one."""
    last = clock()

    def tell(part: str, done: int, total: int, text: str) -> None:
        nonlocal last
        if clock() - last >= LINE_EVERY_S:
            last = clock()
            note(f"{part}: {done} of {total}{f', {text}' if text else ''}")

    return tell


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress bar for one part."""
    with parts() as tell:
        yield lambda done, total, text: tell(title, done, total, text)


@contextmanager
def parts() -> Iterator[TellPart]:
    """Progress of named parts on stderr: a bar for each on a terminal, else a line every half minute."""
    if not sys.stderr.isatty():
        yield lines_of_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[text]}", markup=True),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as bars:
        tasks: dict[str, Any] = {}

        def tell(part: str, done: int, total: int, text: str) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(part, total=total, text="")
            bars.update(tasks[part], completed=done, total=total, text=printable(text).replace("[", "\\["))

        yield tell

"""`maemi answers`: the book of answers, read and verified. Knows nothing about models or pages."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from serve.verbs import terminal
from serve.verbs.command import Json, app, finish, print_result

if TYPE_CHECKING:
    from serve.desk.store import AnswerStore, Chain


@app.command(short_help="Show or verify the book of answers.")
def answers(
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Database URL or SQLite file, as for `maemi serve`.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no answer was changed or removed from between others.")
    ] = False,
    last: Annotated[int, typer.Option(min=1, max=10_000, help="How many answers to show, newest first.")] = 20,
    json: Json = False,
) -> None:
    """Show the newest answers that `maemi serve` gave, or verify all of them; exit code 1 if one was tampered with.

    \b
    Example:
      maemi answers --verify
    """
    from serve.desk.store import AnswerStore, default_place

    book = AnswerStore(store or default_place(), create=False)
    try:
        _verify(book, json) if verify else _show(book, last, json)
    finally:
        book.close()


def _verify(book: AnswerStore, json: bool) -> None:
    chain = book.verify()
    print_result(asdict(chain), json, _told(chain))
    finish(int(chain.broken_at is not None))


def _told(chain: Chain) -> str:
    if chain.broken_at is None:
        number = f"{chain.answers} answer{'' if chain.answers == 1 else 's'}"
        return f"{number}, none changed or missing. The last one's digest is {chain.digest}."
    return f"Answer {chain.broken_at} was changed or taken away; the {chain.answers} before it are whole."


def _show(book: AnswerStore, last: int, json: bool) -> None:
    entries = book.entries(limit=last)
    if json:
        terminal.print_json([asdict(entry) for entry in entries])
        return
    rows = [
        (str(entry.number), entry.at_utc, entry.user, entry.outcome, entry.question, entry.answer) for entry in entries
    ]
    terminal.print_table("", (">number", "at (UTC)", "user", "outcome", "question", "answer"), rows)

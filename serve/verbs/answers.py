"""`maemi answers`: the book of answers, read and verified. Knows nothing about models or pages."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer

from serve.verbs import terminal
from serve.verbs.command import Json, app, finish, print_result


@app.command("answers", short_help="Show or verify the book of answers.")
def answers_command(
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
    from serve.desk.database import default_place
    from serve.desk.store import AnswerStore

    with closing(AnswerStore(store or default_place(), create=False)) as book:
        entries = [] if verify else book.entries(limit=last)
        chain = book.verify() if verify else None
    if chain is None:
        if json:
            terminal.print_json([asdict(entry) for entry in entries])
        else:
            rows = [(str(e.number), e.at_utc, e.user, e.outcome, e.question, e.answer) for e in entries]
            terminal.print_table("", (">number", "at (UTC)", "user", "outcome", "question", "answer"), rows)
        return
    told = f"Answer {chain.broken_at} was changed or taken away; the {chain.answers} before it are whole."
    if chain.broken_at is None:
        number = f"{chain.answers} answer{'' if chain.answers == 1 else 's'}"
        told = f"{number}, none changed or missing. The last one's digest is {chain.digest}."
    print_result(asdict(chain), json, told)
    finish(int(chain.broken_at is not None))

"""An answer as a chat shows it: its words as they are, each one that has a fact marked with that fact.

Knows nothing about Gradio, or about how the facts came about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from serve import wording

if TYPE_CHECKING:
    from serve.desk.conversations import Exchange

MARKUP = re.compile(r"<(?=[A-Za-z/!?])|&(?=[#\w])")
STOPPED = "This question was not answered. Regenerate the answer, or ask again."


def as_text(words: str) -> str:
    """Words that Gradio would take for HTML, to be shown as they are; what is no markup can still be copied."""
    return MARKUP.sub(lambda match: escape(match[0]), words)


def marked_answer(exchange: Exchange) -> str:
    """The answer of an exchange, its statements marked, with its model below."""
    if exchange.answer is None:
        return f'<span class="maemi-by">{STOPPED}</span>'
    words = marked(exchange.answer, exchange.statements) or "(no answer)"
    corrected = ""
    if exchange.correction:
        corrected = f'\n<span class="maemi-by maemi-corrected">Corrected: {escape(exchange.correction)}</span>'
    return f'{words}{corrected}\n<span class="maemi-by">{escape(model_line(exchange))}</span>'


def model_line(exchange: Exchange) -> str:
    """Which model answered, and how often what it says was measured to be false."""
    if exchange.false_rate is None:
        return exchange.model
    return f"{exchange.model}, {exchange.false_rate:.1%} of its statements were false when it was evaluated"


def marked(words: str, statements: Sequence[Mapping[str, Any]]) -> str:
    """Words as safe HTML; what is stated in them can be reached by pointer and keyboard, and tells its fact."""
    parts, done = [], 0
    for statement in sorted(statements, key=lambda one: (one["start"], -one["stop"])):
        start, stop = statement["start"], statement["stop"]
        if not done <= start < stop <= len(words):
            continue
        kind = "maemi-fact" if statement["fact"] else "maemi-fact maemi-unknown"
        parts.append(
            f'{as_text(words[done:start])}<span class="{kind}" role="button" tabindex="0" '
            f'title="{escape(told(statement))}">{as_text(words[start:stop])}</span>'
        )
        done = stop
    return "".join(parts) + as_text(words[done:])


def told(statement: Mapping[str, Any]) -> str:
    """What stands behind a statement, line by line: value, source, method, confidence; or why there is nothing."""
    said, known, how = wording.statement_row(statement)
    if statement["fact"] is None:
        why = "Withheld: no fact is known of it." if statement["verdict"] == "withheld" else how
        return f"{said}\n{why}"
    source = statement["fact"]["source"]
    return f"{said}\n{known}\n{'measured: ' if source == 'measured' else ''}{how}"

"""What stands behind every way in: one model, one queue, one book of answers, one way to read an upload.

Knows nothing about HTTP, the page or the command line.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.errors import MaemiError, ServerError
from serve.desk.answering import Answerer, Proof, Question, Reader, answer
from serve.desk.gate import Gate
from serve.desk.monitoring import Metrics
from serve.desk.readings import KeptReadings

if TYPE_CHECKING:
    from serve.desk.conversations import Conversations
    from serve.desk.sortings import Sortings
    from serve.desk.store import AnswerStore

_log = logging.getLogger("maemi.desk")


def measured_false_rate(run: Path | None) -> float | None:
    """Share of false ones among the statements that were counted on a run, where its `run.json` tells."""
    try:
        counts = json.loads((run / "run.json").read_text(encoding="utf-8"))["statements"] if run else {}
        decided = sum(int(counts[verdict]) for verdict in ("true", "false", "unsupported"))
        return int(counts["false"]) / decided
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


@dataclass(frozen=True)
class Desk:
    """What stands behind the API and the page: one model, one queue, one book of answers."""

    answerer: Answerer
    gate: Gate
    count_tokens: Callable[[str], int]
    store: AnswerStore | None = None
    read: Reader | None = None
    """How uploads are read: in a sandbox, or in this process if None."""
    conversations: Conversations | None = None
    """Where the page keeps conversations; without, they end with the process."""
    false_rate: float | None = None
    """Share of false statements that was measured on the run behind the answerer."""
    sortings: Sortings | None = None
    """Where labels that were given and corrected are kept; without, they end with the process."""

    @cached_property
    def reader(self) -> KeptReadings:
        """How everything here reads a picture: each one once."""
        return KeptReadings(self.read)

    @cached_property
    def metrics(self) -> Metrics:
        """What is counted of all this."""
        return Metrics(self.gate)

    def answer(self, question: Question, *, user: str) -> Iterator[str | Proof]:
        """Answer, and enter what was said into the book however it ended."""
        said: list[str] = []
        outcome = "aborted"
        try:
            for item in answer(self.answerer, question):
                if isinstance(item, str):
                    said.append(item)
                yield item
            outcome = "answered"
        except MaemiError as error:
            outcome = error.code
            raise
        except Exception:  # the boundary around the model: what broke is in the log, the asker gets its number
            outcome, number = "internal", secrets.token_hex(4)
            _log.exception("an answer failed, id %s", number)
            raise ServerError("internal", f"The answer failed (id {number}). The log has the details.") from None
        finally:
            self.record(question, "".join(said), user=user, outcome=outcome)

    def record(self, question: Question, said: str, *, user: str, outcome: str) -> None:
        """Count one answer, and enter it into the book where there is one."""
        self.metrics.answer(outcome)
        if self.store:
            self.store.record(
                user=user,
                model=self.answerer.name,
                images=[image.sha256 for image in question.images],
                question=question.text,
                answer=said,
                outcome=outcome,
            )

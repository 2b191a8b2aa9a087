"""What stands behind every way in: one model, one queue, one book of answers, one way to read an upload.

Knows nothing about HTTP, the page or the command line.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from assistant.errors import MaemiError, ServerError
from serve.desk.answering import Answerer, Proof, Question, Reader, answer
from serve.desk.gate import Gate
from serve.desk.monitoring import Metrics

if TYPE_CHECKING:
    from serve.desk.store import AnswerStore

_log = logging.getLogger("maemi.desk")


@dataclass(frozen=True)
class Desk:
    """What stands behind the API and the page: one model, one queue, one book of answers."""

    answerer: Answerer
    gate: Gate
    count_tokens: Callable[[str], int]
    store: AnswerStore | None = None
    read: Reader | None = None
    """How uploads are read: in a sandbox, or in this process if None."""

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

"""Who answers: the protocol of a teacher, the offline one (facts in words), and recorded replies.

One call is one attempt; what goes wrong in it becomes a `Rejection` with a name. Knows nothing about retries, money,
ledgers or the files of a data set.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from assistant.errors import DatasetError, TeacherError
from data_gen.questions.evidence import PROMPTS
from data_gen.questions.tasks import TaughtQuestion, prompts_version
from data_gen.tables import exchange_key

RAW_CHARS = 4_000
"""Kept of a rejected reply."""


@dataclass(frozen=True)
class Request:
    """Questions about one picture or pair, and what is known of it in words."""

    images: tuple[str, ...]
    """sha256 of each micrograph."""
    task: str
    questions: tuple[TaughtQuestion, ...]
    known: str
    paraphrases: int = 5
    template: str = "teacher"
    """The prompt file that the rest fills."""
    sample: int = 0
    """Which time the same is asked."""

    @property
    def asked(self) -> str:
        """The questions, one a line, each after the turns before it."""
        turns = (" / ".join([*itertools.chain(*q.history), q.text]) for q in self.questions)
        return "\n".join(f"- {q.id}: {asked}" for q, asked in zip(self.questions, turns, strict=True))

    @property
    def prompt(self) -> str:
        """The words that go with the pictures."""
        pair = "s (image 1 and image 2)" if len(self.images) > 1 else ""
        filled = prompt_file(self.template).replace("{pair}", pair).replace("{paraphrases}", str(self.paraphrases))
        return filled.replace("{questions}", self.asked).replace("{known}", self.known or "nothing")


@dataclass(frozen=True)
class Reply:
    """Answers by question id, several wordings each, and what they cost."""

    answers: Mapping[str, tuple[str, ...]]
    model: str = ""
    usage: tuple[int, int] | None = (0, 0)
    """Tokens in and out; None where the endpoint does not say."""


class Rejection(TeacherError):
    """A reply that cannot be used; `code` is the verdict that goes into the ledger."""

    def __init__(
        self,
        verdict: str,
        raw: str = "",
        *,
        again: bool = False,
        wait_s: float | None = None,
        billed: bool | None = True,
        problem: str = "",
        end: TeacherError | None = None,
    ) -> None:
        super().__init__(verdict, f"The teacher's reply cannot be used ({verdict}).")
        self.raw = raw[:RAW_CHARS]
        self.again = again
        """Worth another attempt."""
        self.wait_s = wait_s
        """How long the endpoint asked to be left alone [s]."""
        self.billed = billed
        """None where nobody can tell."""
        self.problem = problem
        """What the model should mend, where it answered in the wrong form: it is asked once more with this."""
        self.end = end
        """What the job ends with where every attempt meets the same."""
        self.usage: tuple[int, int] | None = None


class Teacher(Protocol):
    """Answers requests, one attempt at a time."""

    name: str
    params: Mapping[str, Any]
    """Everything beside images and prompt that a reply depends on."""
    looks: bool
    """It can answer what no fact tells."""

    async def answer(self, request: Request, pictures: Sequence[bytes]) -> Reply:
        """Raises Rejection where this attempt gave nothing usable, TeacherError where no attempt can."""
        ...


def request_key(teacher: Teacher, request: Request) -> str:
    """The ledger key of a request to a teacher."""
    params = {**teacher.params, "sample": request.sample} if request.sample else teacher.params
    return exchange_key(request.images, request.prompt, teacher.name, params)


class OfflineTeacher:
    """Says in words what was measured, what the instrument wrote and what is known to be true; needs no picture."""

    name = "offline"
    looks = False

    def __init__(self) -> None:
        self.params: Mapping[str, Any] = {"prompts": prompts_version()}

    async def answer(self, request: Request, pictures: Sequence[bytes]) -> Reply:
        """The wordings that the facts fill."""
        return self.compose(request)

    def compose(self, request: Request) -> Reply:
        """The same, without an event loop."""
        return Reply({question.id: question.answers for question in request.questions}, model="offline")


class ReplayTeacher:
    """Answers from recorded replies: JSON lines {"images": [sha256], "prompt": ..., "answers": {id: [wording]}}.

    Raises DatasetError `bad_recording` for a file that is not that.
    """

    name = "replay"

    def __init__(self, recording: Path, *, looks: bool = True) -> None:
        self.looks = looks
        self.params: Mapping[str, Any] = {}
        self._replies: dict[tuple[tuple[str, ...], str], dict[str, tuple[str, ...]]] = {}
        for number, line in enumerate(recording.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
                answers = {name: tuple(texts) for name, texts in row["answers"].items()}
                self._replies[tuple(row["images"]), row["prompt"]] = answers
            except (ValueError, KeyError, TypeError, AttributeError):
                raise DatasetError(
                    "bad_recording", f"{recording}, line {number} is not a recorded reply. Export it again."
                ) from None

    async def answer(self, request: Request, pictures: Sequence[bytes]) -> Reply:
        """The recorded answers; Rejection `no_recording` where there are none."""
        answers = self._replies.get((request.images, request.prompt))
        if answers is None:
            raise Rejection("no_recording", billed=False)
        return Reply(answers, model="replay")


@cache
def prompt_file(name: str) -> str:
    """The text of a prompt file."""
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8")

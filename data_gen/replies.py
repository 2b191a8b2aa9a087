"""What a hosted teacher sends back: the body of a reply to answers, or to a rejection with a name.

Knows nothing about sending, retries or money.
"""

from __future__ import annotations

import email.utils
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assistant.errors import TeacherError
from data_gen.filters import clean, refuses

RAW_CHARS = 4_000
"""Kept of a rejected reply."""


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


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Answered(_Closed):
    """The wordings of one answer."""

    id: str
    answers: list[str] = Field(min_length=1, max_length=8)


class Body(_Closed):
    """What a hosted teacher must reply."""

    answers: list[Answered]


class _Open(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Message(_Open):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Open):
    message: _Message
    finish_reason: str | None = None


class _Usage(_Open):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _Completion(_Open):
    model: str
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def read_reply(body: str, ids: Sequence[str]) -> Reply:
    """Turn the body of a reply with status 200 into the answers to the questions of these ids.

    Raises Rejection `html`, `bad_reply`, `wrong_type`, `filtered`, `truncated`, `refusal`, `empty` or `wrong_item`.
    """
    completion = _completion(body)
    used = completion.usage
    usage = None if used is None else (used.prompt_tokens, used.completion_tokens)
    try:
        answers = _answers(completion.choices[0], ids)
    except Rejection as rejection:
        rejection.usage = usage
        rejection.billed = True if usage else None
        raise
    return Reply(answers, completion.model, usage)


def _completion(body: str) -> _Completion:
    try:
        return _Completion.model_validate(json.loads(body))
    except ValidationError:
        raise Rejection("wrong_type", body, again=True, billed=None) from None
    except (ValueError, RecursionError):
        verdict = "html" if body.lstrip()[:1] == "<" else "bad_reply"
        raise Rejection(verdict, body, again=True, billed=None) from None


def _answers(choice: _Choice, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    content = choice.message.content
    if choice.finish_reason == "content_filter":
        raise Rejection("filtered", content or "")
    if choice.finish_reason == "length":
        raise Rejection("truncated", content or "")
    if choice.message.refusal or content is None:
        raise Rejection("refusal", choice.message.refusal or "")
    if not content.strip():
        raise Rejection("empty", content, again=True, problem="it was empty")
    try:
        told = Body.model_validate(json.loads(content))
    except ValidationError as invalid:
        raise Rejection("wrong_type", content, again=True, problem=_first_error(invalid)) from None
    except (ValueError, RecursionError):
        if refuses(content):
            raise Rejection("refusal", content) from None
        raise Rejection("bad_reply", content, again=True, problem="it was not JSON") from None
    if [answered.id for answered in told.answers] != list(ids):
        problem = f"the ids must be {', '.join(ids)}, in this order"
        raise Rejection("wrong_item", content, again=True, problem=problem)
    return {answered.id: tuple(map(clean, answered.answers)) for answered in told.answers}


def _first_error(invalid: ValidationError) -> str:
    error = invalid.errors()[0]
    return f"{'.'.join(map(str, error['loc'])) or 'the whole'}: {error['msg']}"


def retry_after(headers: Mapping[str, str], *, now: float) -> float | None:
    """Seconds the endpoint asks for, from `retry-after-ms` or `retry-after` (seconds or a date); None for nonsense."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            wait = float(milliseconds) / 1000
        else:
            value = headers.get("retry-after", "")
            moment = email.utils.parsedate_tz(value)
            wait = float(value) if moment is None else email.utils.mktime_tz(moment) - now
    except (ValueError, OverflowError):
        return None
    return wait if math.isfinite(wait) and wait > 0 else None


def response_format() -> Any:
    """The `response_format` that asks for the schema of `Body`."""
    return {"type": "json_schema", "json_schema": {"name": "answers", "strict": True, "schema": _schema()}}


@cache
def _schema() -> dict[str, Any]:
    """JSON schema in the subset that strict structured output takes: no length limits."""
    wordings = {"type": "array", "items": {"type": "string"}}
    answered = {
        "type": "object",
        "properties": {"id": {"type": "string"}, "answers": wordings},
        "required": ["id", "answers"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"answers": {"type": "array", "items": answered}},
        "required": ["answers"],
        "additionalProperties": False,
    }

"""What a hosted teacher sends back: the body of a reply to answers, or to a rejection with a name.

Knows nothing about sending, retries or money.
"""

from __future__ import annotations

import email.utils
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from assistant.errors import TeacherError
from data_gen.hosted.unwrap import only_thought, spoken, unwrap
from data_gen.questions.filters import clean, refuses
from data_gen.teacher import Rejection, Reply

TEXT_PARTS = frozenset({"text", "output_text"})
CUT = frozenset({"length", "max_tokens"})
"""What `finish_reason` says of a reply that met the limit of output tokens."""
REMEDIES = {
    "truncated": "Raise teach.max_output_tokens.",
    "no_room": "The model thought until its output tokens were used up: raise teach.max_output_tokens, or have it "
    "think less (teach.extra_body).",
    "filtered": "Ask another model (teach.model), or raise teach.give_up_after to go on.",
    "refusal": "Ask another model (teach.model), or raise teach.give_up_after to go on.",
}
"""What mends a verdict, where a setting does."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Answered(_Closed):
    """The wordings of one answer."""

    id: str
    answers: list[str] = Field(min_length=1, max_length=8)


class AnswersBody(_Closed):
    """What a hosted teacher must reply."""

    answers: list[Answered]


class _Open(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Part(_Open):
    type: str
    text: str | None = None

    @model_validator(mode="after")
    def _text_has_text(self) -> _Part:
        if self.type in TEXT_PARTS and self.text is None:
            raise ValueError("a part of text without text")
        return self


class _Message(_Open):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None

    @property
    def text(self) -> str | None:
        """What was said, of all parts; None where the field is null."""
        if not isinstance(self.content, list):
            return self.content
        return "".join(part.text or "" for part in self.content if part.type in TEXT_PARTS)

    @property
    def thought(self) -> str:
        """What was thought, where the endpoint tells it beside the answer."""
        return next((field for field in (self.reasoning_content, self.reasoning) if isinstance(field, str)), "")


class _Choice(_Open):
    message: _Message
    finish_reason: str | None = None


class _Details(_Open):
    reasoning_tokens: int | None = None


class _Usage(_Open):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    completion_tokens_details: _Details | None = None


def _usage_or_none(given: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """A usage that cannot be read is one that was not told: the answer beside it was paid for all the same."""
    try:
        return validate(given)
    except ValidationError:
        return None


class _Completion(_Open):
    model: str | None = None
    choices: list[_Choice] = Field(min_length=1)
    usage: Annotated[_Usage | None, WrapValidator(_usage_or_none)] = None


def read_reply(body: str, ids: Sequence[str], *, limit: int | None = None) -> Reply:
    """Turn the body of a reply with status 200 into the answers to the questions of these ids.

    `limit` is the number of output tokens that were asked for. Raises Rejection `html`, `bad_reply`, `wrong_type`,
    `filtered`, `truncated`, `no_room`, `refusal`, `empty` or `wrong_item`.
    """
    try:
        completion = _Completion.model_validate(json.loads(body))
    except ValidationError:
        raise Rejection("wrong_type", body, again=True, billed=None, end=_no_api("something else")) from None
    except (ValueError, RecursionError):
        if body.lstrip()[:1] == "<":
            raise Rejection("html", body, again=True, billed=None, end=_no_api("a web page")) from None
        raise Rejection("bad_reply", body, again=True, billed=None) from None
    used = completion.usage
    usage = None if used is None else (used.prompt_tokens, used.completion_tokens)
    try:
        answers = _answers(completion.choices[0], ids, _Spent(used, limit))
    except Rejection as rejection:
        rejection.usage = usage
        rejection.billed = True if usage else None
        raise
    return Reply(answers, completion.model or "", usage)


@dataclass(frozen=True)
class _Spent:
    """Output tokens of a reply, and how many it could have at most."""

    usage: _Usage | None
    limit: int | None

    def all(self) -> bool:
        """True where nothing was left for an answer."""
        return self.usage is not None and self.limit is not None and self.usage.completion_tokens >= self.limit

    def __str__(self) -> str:
        if self.usage is None:
            return "it does not say how many output tokens it used"
        details = self.usage.completion_tokens_details
        thought = f", {details.reasoning_tokens} of them for reasoning" if details and details.reasoning_tokens else ""
        return f"{self.usage.completion_tokens} output tokens of {self.limit} used{thought}"


def _no_api(what: str) -> TeacherError:
    return TeacherError(
        "no_api",
        f"The endpoint answers with {what} where a chat completion should be. Set teach.base_url to the address of its "
        "API, which often ends in /v1.",
    )


def _answers(choice: _Choice, ids: Sequence[str], spent: _Spent) -> dict[str, tuple[str, ...]]:
    message, finish = choice.message, (choice.finish_reason or "").lower()
    content = message.text
    if finish == "content_filter":
        raise Rejection("filtered", content or "")
    silent = not spoken(content or "") or only_thought(content or "")
    if finish in CUT or (silent and spent.all()):
        if silent:
            raise Rejection("no_room", f"finish_reason {finish}, no answer: {spent}")
        raise Rejection("truncated", content or "")
    if message.refusal or (content is None and not message.thought):
        raise Rejection("refusal", message.refusal or "")
    told = _told(content or "", message.thought)
    if [answered.id for answered in told.answers] != list(ids):
        problem = f"the ids must be {', '.join(ids)}, in this order"
        raise Rejection("wrong_item", content or "", again=True, problem=problem)
    return {answered.id: tuple(map(clean, answered.answers)) for answered in told.answers}


def _told(content: str, thought: str) -> AnswersBody:
    """The answers in what was said; some endpoints take the whole of a reply for thinking, and say nothing."""
    if not spoken(content):
        try:
            return _read_body(json.loads(thought))
        except (ValueError, RecursionError):
            raise Rejection("empty", content, again=True, problem="it was empty") from None
    try:
        return unwrap(content, _read_body)
    except ValidationError as invalid:
        error = invalid.errors()[0]
        problem = f"{'.'.join(map(str, error['loc'])) or 'the whole'}: {error['msg']}"
        raise Rejection("wrong_type", content, again=True, problem=problem) from None
    except (ValueError, RecursionError):
        if refuses(content):
            raise Rejection("refusal", content) from None
        raise Rejection("bad_reply", content, again=True, problem="it was not JSON") from None


def _read_body(document: Any) -> AnswersBody:
    """The body in a document, also where it was written as a string, as the only member of a list, or without its key.

    Raises ValueError.
    """
    if isinstance(document, str):
        document = json.loads(document)
    match document:
        case [{"answers": _, **rest}] if not rest:
            document = document[0]
        case [{"id": _, "answers": _}, *_]:
            document = {"answers": document}
    if isinstance(document, dict) and isinstance(document.get("answers"), str):
        document = document | {"answers": json.loads(document["answers"])}
    return AnswersBody.model_validate(document)


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
    """The `response_format` that asks for the schema of `AnswersBody`.

    It is written in the subset of JSON schema that strict structured output takes: no length limits.
    """
    wordings = {"type": "array", "items": {"type": "string"}}
    answered = {
        "type": "object",
        "properties": {"id": {"type": "string"}, "answers": wordings},
        "required": ["id", "answers"],
        "additionalProperties": False,
    }
    schema = {
        "type": "object",
        "properties": {"answers": {"type": "array", "items": answered}},
        "required": ["answers"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "answers", "strict": True, "schema": schema}}

"""One reply to a chat request in the shapes of the protocol, whole or as events: several choices, tokens, JSON.

Knows nothing about HTTP or about what stands behind the answers.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from assistant.errors import MaemiError
from serve.desk.answering import Proof, Question
from serve.http.conversation import Ask
from serve.http.guard import error_body
from serve.http.structured import Unknown, as_object, as_schema

if TYPE_CHECKING:
    from assistant.generation import Token
    from serve.desk.gate import Relay

Answer = Callable[[Question], Iterator["str | Proof"]]


@dataclass(frozen=True)
class Said:
    """A piece of one of the choices: text, the evidence at its end, and the tokens chosen meanwhile."""

    choice: int
    item: str | Proof
    tokens: tuple[Token, ...] = ()


@dataclass
class Choice:
    """What was said of one choice so far."""

    texts: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    refusal: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


class ChatAnswer:
    """The reply to a request: its choices, one after another, then the evidence."""

    def __init__(self, ask: Ask, model: str, count_tokens: Callable[[str], int]) -> None:
        self._ask, self._model, self._count = ask, model, count_tokens
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._choices = [Choice() for _ in range(ask.choices)]
        self.evidence: dict[str, Any] = {}

    def answers(self, question: Question, answer: Answer) -> Iterator[Said]:
        """Answer as often as was asked, each time with the next seed."""
        for number in range(self._ask.choices):
            chosen: list[Token] = []
            asked = replace(question, seed=question.seed + number)
            if self._ask.top_logprobs is not None:
                asked = replace(asked, watch=chosen.append, top_logprobs=self._ask.top_logprobs)
            for item in self._formed(answer(asked), self._choices[number]):
                yield Said(number, item, tuple(chosen))
                chosen.clear()

    def take(self, said: Said) -> str:
        """Note one piece; returns its text, empty for the evidence."""
        choice = self._choices[said.choice]
        choice.tokens += said.tokens
        if isinstance(said.item, str):
            choice.texts.append(said.item)
            return said.item
        self.evidence = said.item.as_dict() | {"warnings": [*said.item.warnings, *self._ask.notes]}
        return ""

    def whole(self) -> dict[str, Any]:
        """The `chat.completion` object."""
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": None if choice.refusal else choice.text,
                    "refusal": choice.refusal,
                },
                "logprobs": self._logprobs(choice.tokens),
                "finish_reason": self._finish_reason(choice),
            }
            for index, choice in enumerate(self._choices)
        ]
        return self._head("chat.completion", choices) | {"usage": self._usage(), "x-micrograph": self.evidence}

    async def events(self, items: Relay[Said]) -> AsyncIterator[bytes]:
        """The `chat.completion.chunk` events; an error after the start is an event of its own."""
        for index in range(len(self._choices)):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        try:
            async for said in items:
                text = self.take(said)
                if text:
                    yield self._chunk(said.choice, {"content": text}, tokens=said.tokens)
        except MaemiError as error:
            yield b"data: " + error_body(error.message, code=error.code, kind="server_error") + b"\n\n"
            return
        finally:
            items.stop()
        for index, choice in enumerate(self._choices):
            delta = {"refusal": choice.refusal} if choice.refusal else {}
            last = {"x-micrograph": self.evidence} if index == len(self._choices) - 1 else {}
            yield self._chunk(index, delta, finish_reason=self._finish_reason(choice), extra=last)
        if self._ask.include_usage:
            yield _event(self._head("chat.completion.chunk", []) | {"usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _formed(self, items: Iterator[str | Proof], choice: Choice) -> Iterator[str | Proof]:
        """An answer as it is, or once it is whole as the JSON that was asked for."""
        if self._ask.form == "text":
            yield from items
            return
        texts = []
        for item in items:
            if isinstance(item, str):
                texts.append(item)
                continue
            try:
                yield self._json("".join(texts), item.facts)
            except Unknown as unknown:
                choice.refusal = f"The schema cannot be filled with facts: {unknown}."
            yield item

    def _json(self, answer: str, facts: list[dict[str, Any]]) -> str:
        """The document that was asked for. Raises Unknown."""
        if self._ask.form == "json_object":
            with suppress(ValueError):
                if isinstance(json.loads(answer), dict):
                    return answer
            return as_object(answer, facts)
        assert not isinstance(self._ask.form, str)
        return as_schema(self._ask.form, answer, facts)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        tokens: tuple[Token, ...] = (),
        finish_reason: str | None = None,
        extra: dict[str, Any] | None = None,
    ) -> bytes:
        logprobs = self._logprobs(list(tokens)) if tokens else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self._ask.include_usage else {}
        return _event(self._head("chat.completion.chunk", [choice]) | usage | (extra or {}))

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if self._ask.top_logprobs is None:
            return None
        content = [
            self._token(token.text, token.logprob) | {"top_logprobs": [self._token(*one) for one in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    @staticmethod
    def _token(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices}

    def _usage(self) -> dict[str, int]:
        asked = sum(self._count(text) for text in (*(turn.text for turn in self._ask.history), self._ask.text))
        said = sum(self._count(choice.text) for choice in self._choices)
        return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}

    def _finish_reason(self, choice: Choice) -> str:
        return "length" if self._count(choice.text) >= self._ask.max_tokens else "stop"


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"

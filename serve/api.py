"""The OpenAI-compatible API: chat completions about micrographs, with what was measured beside the answer.

Pictures come in as `data:` URIs only; no URL is ever fetched. Knows nothing about the page or about logins.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from assistant.errors import ConfigError, MaemiError, MicrographError, ServerError
from serve.answering import Answerer, Evidence, Question, Reader, answer, read_images
from serve.bodies import Bodies
from serve.conversation import ApiError, Ask, parse_request
from serve.gate import RETRY_AFTER_S, Gate, Relay
from serve.guard import error_body, kind_of
from serve.methods import WrongMethod
from serve.monitoring import Metrics

if TYPE_CHECKING:
    from serve.store import AnswerStore

log = logging.getLogger("maemi.api")
HTTP_MESSAGES = {404: "There is nothing at this path.", 405: "This path does not take that method."}


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

    def answer(self, question: Question, *, user: str) -> Iterator[str | Evidence]:
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
            log.exception("an answer failed, id %s", number)
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


def build_api(desk: Desk, *, schema: bool = False) -> FastAPI:
    """The application with `/healthz` and `/v1`; `schema` also serves `/openapi.json`."""
    api = FastAPI(title="MAEMI", docs_url=None, redoc_url=None, openapi_url="/openapi.json" if schema else None)
    card = {"id": desk.answerer.name, "object": "model", "created": int(time.time()), "owned_by": "maemi"}
    bodies = Bodies()

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _check_model(name, desk)
        return card

    @api.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        ask = await bodies.parse(request, parse_request)
        _check_model(ask.model, desk)
        await desk.gate.enter()
        try:
            question = await asyncio.to_thread(_question, ask, desk.read)
            user = request.state.user if hasattr(request.state, "user") else "local"
            items = Relay(lambda: desk.answer(question, user=user), desk.gate)
        except BaseException:  # whatever happens before the relay holds the place, the place must not be lost
            desk.gate.leave()
            raise
        reply = _Reply(ask, desk)
        if ask.stream:
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            return StreamingResponse(reply.events(items), media_type="text/event-stream", headers=headers)
        return await _whole(reply, items, request)

    api.add_route("/metrics", desk.metrics.reply, include_in_schema=False)
    api.router.routes.append(WrongMethod(api.routes))

    @api.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def elsewhere(rest: str) -> Response:
        raise HTTPException(404)

    _add_error_handlers(api)
    return api


class _Reply:
    """One answer in the shapes of the protocol, whole or as events."""

    def __init__(self, ask: Ask, desk: Desk) -> None:
        self._ask, self._desk = ask, desk
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._said: list[str] = []
        self.evidence: dict[str, Any] = {}

    def take(self, item: str | Evidence) -> str:
        """Note one item; returns its text, empty for the evidence."""
        if isinstance(item, str):
            self._said.append(item)
            return item
        self.evidence = item.as_dict() | {"warnings": [*item.warnings, *self._ask.notes]}
        return ""

    def whole(self) -> dict[str, Any]:
        """The `chat.completion` object."""
        message = {"role": "assistant", "content": "".join(self._said), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason()}
        head = self._head("chat.completion", [choice])
        return head | {"usage": self._usage(), "x-micrograph": self.evidence}

    async def events(self, items: Relay[str | Evidence]) -> AsyncIterator[bytes]:
        """The `chat.completion.chunk` events; an error after the start is an event of its own."""
        yield self._chunk({"role": "assistant", "content": ""})
        try:
            async for item in items:
                text = self.take(item)
                if text:
                    yield self._chunk({"content": text})
        except MaemiError as error:
            yield b"data: " + error_body(error.message, code=error.code, kind="server_error") + b"\n\n"
            return
        finally:
            items.stop()
        yield self._chunk({}, finish_reason=self._finish_reason(), extra={"x-micrograph": self.evidence})
        if self._ask.include_usage:
            yield _event(self._head("chat.completion.chunk", []) | {"usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _chunk(
        self, delta: dict[str, str], *, finish_reason: str | None = None, extra: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self._ask.include_usage else {}
        return _event(self._head("chat.completion.chunk", [choice]) | usage | (extra or {}))

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._desk.answerer.name,
            "choices": choices,
        }

    def _usage(self) -> dict[str, int]:
        count = self._desk.count_tokens
        asked = sum(count(text) for text in (*(turn.text for turn in self._ask.history), self._ask.text))
        said = count("".join(self._said))
        return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}

    def _finish_reason(self) -> str:
        said = self._desk.count_tokens("".join(self._said))
        return "length" if said >= self._ask.max_tokens else "stop"


async def _whole(reply: _Reply, items: Relay[str | Evidence], request: Request) -> Response:
    try:
        async for item in items:
            reply.take(item)
            if await request.is_disconnected():
                return Response(status_code=499)
    finally:
        items.stop()
    return JSONResponse(reply.whole())


def _question(ask: Ask, read: Reader | None) -> Question:
    return Question(
        images=read_images(ask.images, pixel_size_nm=ask.pixel_size_nm, read=read),
        text=ask.text,
        history=ask.history,
        aux=ask.description,
        max_new_tokens=ask.max_tokens,
        stop=ask.stop,
        temperature=ask.temperature,
        top_p=ask.top_p,
        seed=ask.seed,
    )


def _check_model(name: str, desk: Desk) -> None:
    if name not in (desk.answerer.name, "maemi"):
        raise ApiError(404, "model_not_found", f"This server has one model: {desk.answerer.name}.", "model")


def _add_error_handlers(api: FastAPI) -> None:
    @api.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return _error(error.status, error.message, code=error.code, param=error.param)

    @api.exception_handler(MaemiError)
    async def failed(_: Request, error: MaemiError) -> Response:
        asked_wrongly = isinstance(error, MicrographError | ConfigError)
        status = 400 if asked_wrongly else {"busy": 429, "internal": 500}.get(error.code, 503)
        return _error(status, error.message, code=error.code, param="messages" if asked_wrongly else None)

    @api.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        message = HTTP_MESSAGES.get(error.status_code, "The request cannot be served.")
        return _error(error.status_code, message, code="http_error")


def _error(status: int, message: str, *, code: str, param: str | None = None) -> Response:
    body = error_body(message, code=code, kind=kind_of(status), param=param)
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"

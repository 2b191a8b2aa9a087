"""The OpenAI-compatible API: chat completions about micrographs, with what was measured beside the answer.

Pictures come in as `data:` URIs only; no URL is ever fetched. Knows nothing about the page or about logins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from assistant.errors import ConfigError, MaemiError, MicrographError
from serve.desk.answering import Question
from serve.desk.desk import Desk
from serve.desk.gate import RETRY_AFTER_S, Relay
from serve.http.chat_answer import ChatAnswer
from serve.http.conversation import ApiError, Ask, parse_body, parse_request
from serve.http.guard import error_body, error_kind
from serve.http.methods import WrongMethod
from serve.http.pictures import classify_pictures, embed, read_picture
from serve.http.request_bodies import Bodies
from serve.http.schemas import (
    ChatReply,
    ChatRequest,
    ClassificationReply,
    ClassificationRequest,
    EmbeddingReply,
    EmbeddingRequest,
    ErrorReply,
)

ALIAS = "maemi"
"""A name that every server's model has."""
_log = logging.getLogger("maemi.api")
REASONS = {
    400: "The request is wrong; `param` says where.",
    401: "No login, or a wrong one.",
    403: "The request comes from another web site.",
    404: "This server has no such model.",
    405: "This path does not take that method; `Allow` says which it takes.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    429: "All places are taken, or too many failed logins. `Retry-After` says when to come back.",
    500: "A fault of the server; the message has its number in the log.",
    503: "The server cannot take or keep the request now.",
}
HTTP_MESSAGES = {404: "There is nothing at this path.", 405: "This path does not take that method."}


def build_api(desk: Desk) -> FastAPI:
    """The application with `/healthz`, `/v1` and `/openapi.json`."""
    api = FastAPI(title="MAEMI", docs_url=None, redoc_url=None, openapi_url="/openapi.json", version=version("maemi"))
    card = {"id": desk.answerer.name, "object": "model", "created": int(time.time()), "owned_by": "maemi"}
    bodies = Bodies()

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/v1/models", responses=_errors(400, 401, 403, 405, 429))
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @api.get("/v1/models/{name:path}", responses=_errors(400, 401, 403, 404, 405, 429))
    async def model(name: str) -> dict[str, Any]:
        _check_model(name, desk)
        return card

    @api.post("/v1/chat/completions", response_model=ChatReply, **_takes(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        ask = await bodies.parse(request, parse_request)
        _check_model(ask.model, desk)
        return await _complete(ask, request, desk)

    @api.post("/v1/embeddings", response_model=EmbeddingReply, **_takes(EmbeddingRequest))
    async def embeddings(request: Request) -> Response:
        asked = await bodies.parse(request, partial(parse_body, shape=EmbeddingRequest))
        _check_model(asked.model, desk)
        return await _at_the_gate(desk, partial(embed, asked, desk))

    @api.post("/v1/classifications", response_model=ClassificationReply, **_takes(ClassificationRequest))
    async def classifications(request: Request) -> Response:
        asked = await bodies.parse(request, partial(parse_body, shape=ClassificationRequest))
        _check_model(asked.model, desk)
        return await _at_the_gate(desk, partial(classify_pictures, asked, desk))

    api.add_route("/metrics", desk.metrics.reply, include_in_schema=False)
    api.router.routes.append(WrongMethod(api.routes))

    @api.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def elsewhere(rest: str) -> Response:
        raise HTTPException(404)

    _add_error_handlers(api)
    api.openapi = partial(_described, api, [desk.answerer.name, ALIAS])  # type: ignore[method-assign]
    return api


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorReply, "description": REASONS[status]} for status in statuses}


def _takes(shape: type[BaseModel]) -> dict[str, Any]:
    """A route that reads its body itself, within limits: what it takes, and every error it can give."""
    schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {
        "responses": _errors(400, 401, 403, 404, 405, 408, 413, 429, 500, 503),
        "openapi_extra": {"requestBody": body},
    }


def _described(api: FastAPI, models: list[str]) -> dict[str, Any]:
    """`/openapi.json`, with the shapes of the bodies that the routes read themselves and the models there are."""
    if api.openapi_schema is None:
        document = get_openapi(title=api.title, version=api.version, routes=api.routes)
        shapes = [(shape, "validation") for shape in (ChatRequest, EmbeddingRequest, ClassificationRequest)]
        _, definitions = models_json_schema(shapes, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        document["components"]["schemas"] |= definitions["$defs"]
        chat = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
        chat["text/event-stream"] = {"schema": {"type": "string", "description": "`chat.completion.chunk` events."}}
        for shape, _ in shapes:
            document["components"]["schemas"][shape.__name__]["properties"]["model"]["enum"] = models
        api.openapi_schema = document
    return api.openapi_schema


async def _at_the_gate(desk: Desk, work: Callable[[], dict[str, Any]]) -> Response:
    """Do something with the model once there is a place; a client that goes away does not free it too soon."""
    await desk.gate.enter()

    def hold() -> dict[str, Any]:
        try:
            return work()
        finally:
            desk.gate.leave()

    return JSONResponse(await asyncio.to_thread(hold))


async def _complete(ask: Ask, request: Request, desk: Desk) -> Response:
    """The answer to a conversation, as a stream of events or whole, as it was asked for."""
    await desk.gate.enter()
    try:
        read = partial(read_picture, pixel_size_nm=ask.pixel_size_nm, read=desk.reader)
        question = Question(
            images=await asyncio.to_thread(lambda: list(map(read, ask.images))),
            text=ask.text,
            history=ask.history,
            aux=ask.description,
            max_new_tokens=ask.max_tokens,
            stop=ask.stop,
            temperature=ask.temperature,
            top_p=ask.top_p,
            seed=ask.seed,
        )
        reply = ChatAnswer(ask, desk.answerer.name, desk.count_tokens)
        user = str(getattr(request.state, "user", "local"))
        items = Relay(lambda: reply.answers(question, partial(desk.answer, user=user)), desk.gate)
    except BaseException:  # whatever happens before the relay holds the place, the place must not be lost
        desk.gate.leave()
        raise
    if ask.stream:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(reply.events(items), media_type="text/event-stream", headers=headers)
    try:
        async for item in items:
            reply.take(item)
            if await request.is_disconnected():
                return Response(status_code=499)
    finally:
        items.stop()
    return JSONResponse(reply.whole())


def _check_model(name: str, desk: Desk) -> None:
    if name not in (desk.answerer.name, ALIAS):
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
    body = error_body(message, code=code, kind=error_kind(status), param=param)
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return Response(body, status_code=status, media_type="application/json", headers=headers)

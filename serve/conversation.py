"""A chat-completions request in the OpenAI protocol -> a checked question with the turns before it.

Knows nothing about HTTP replies, models or what the bytes of a picture mean; it never opens a URL.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from assistant.chat import CAPTION_PROMPT, Message

MAX_MESSAGES = 200
MAX_TEXT = 16_000
"""Longest text of one message [characters]."""
MAX_IMAGES = 16
MAX_IMAGE_BYTES = 64 * 2**20
MAX_ANSWER_TOKENS = 1024
DEFAULT_ANSWER_TOKENS = 128
DATA_URI = re.compile(r"data:(image/[a-z0-9.+-]{1,40}|application/octet-stream);base64,", re.IGNORECASE)
SURROGATE = re.compile("[\ud800-\udfff]")


class ApiError(Exception):
    """A request that is refused, in the terms of the OpenAI protocol."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param


@dataclass(frozen=True)
class Ask:
    """A checked request."""

    model: str
    images: tuple[bytes, ...]
    """Bytes of all pictures of the conversation, in order."""
    text: str
    history: tuple[Message, ...]
    description: str | None
    pixel_size_nm: float | None
    max_tokens: int
    stop: tuple[str, ...]
    temperature: float
    top_p: float
    seed: int
    stream: bool
    include_usage: bool
    notes: tuple[str, ...]
    """What of the request has no effect here; told to the client as warnings."""


class _Wire(BaseModel):
    """Base of the shapes on the wire: no type is guessed, keys that other servers take are let pass."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)


class _Text(_Wire):
    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_TEXT)]


class _ImageUrl(_Wire):
    url: str


class _Picture(_Wire):
    type: Literal["image_url"]
    image_url: _ImageUrl


Part = Annotated[_Text | _Picture, Field(discriminator="type")]


class _ChatMessage(_Wire):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part]

    @field_validator("content", mode="before")
    @classmethod
    def _plain_text_is_one_part(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @property
    def text(self) -> str:
        return "\n".join(part.text.strip() for part in self.content if isinstance(part, _Text)).strip()

    @property
    def urls(self) -> list[str]:
        return [part.image_url.url for part in self.content if isinstance(part, _Picture)]


class _StreamOptions(_Wire):
    include_usage: bool = False


class _ResponseFormat(_Wire):
    type: Literal["text"]


class _Extension(_Wire):
    """What micrographs need and the protocol has no word for."""

    description: Annotated[str, Field(max_length=2000)] | None = None
    pixel_size_nm: Annotated[float, Field(ge=1e-4, le=1e7)] | None = None


Limit = Annotated[int, Field(ge=1, le=MAX_ANSWER_TOKENS)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]


class _ChatRequest(_Wire):
    model: Annotated[str, Field(max_length=200)]
    messages: Annotated[list[_ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Annotated[list[Stop], Field(max_length=4)] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: _ResponseFormat | None = None
    extension: Annotated[_Extension, Field(alias="x-micrograph")] = _Extension()

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> _ChatRequest:
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be by the user")
        return self


def parse_request(body: bytes) -> Ask:
    """Check a request body. Raises ApiError, 400, for whatever is wrong with it."""
    tree = _load(body)
    try:
        request = _ChatRequest.model_validate(tree)
    except ValidationError as invalid:
        _refuse(invalid)
    turns = _turns(request.messages)
    images = tuple(_decode(url) for message in request.messages for url in message.urls)
    if not images:
        raise ApiError(400, "no_image", "The conversation shows no micrograph. Add an image_url part.", "messages")
    if len(images) > MAX_IMAGES:
        raise ApiError(400, "too_many_images", f"More than {MAX_IMAGES} images in one conversation.", "messages")
    return Ask(
        model=request.model,
        images=images,
        text=turns[-1].text or CAPTION_PROMPT,
        history=tuple(turns[:-1]),
        description=request.extension.description,
        pixel_size_nm=request.extension.pixel_size_nm,
        max_tokens=request.max_completion_tokens or request.max_tokens or DEFAULT_ANSWER_TOKENS,
        stop=tuple(request.stop or ()),
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=(request.seed or 0) % 2**63,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        notes=tuple(_notes(request)),
    )


def _load(body: bytes) -> Any:
    try:
        tree = json.loads(body, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ApiError(400, "bad_json", "The body is not valid JSON.") from None
    if not isinstance(tree, dict):
        raise ApiError(400, "bad_json", "The body must be a JSON object.")
    return tree


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _refuse(invalid: ValidationError) -> NoReturn:
    first = invalid.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(
        str(step) for step in first["loc"] if step not in ("text", "image_url") or step == first["loc"][-1]
    )
    message = f"{place}: {first['msg']}" if place else first["msg"]
    raise ApiError(400, "invalid_value", SURROGATE.sub("?", message), place or None) from None


def _turns(messages: list[_ChatMessage]) -> list[Message]:
    """Alternating turns, the user first: neighbours of one role are joined, system texts left out."""
    turns: list[Message] = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        role: Literal["user", "assistant"] = "user" if message.role == "user" else "assistant"
        if SURROGATE.search(message.text) or "\0" in message.text:
            raise ApiError(400, "invalid_value", "A message holds characters that are not text.", "messages")
        if role == "assistant" and (not turns or message.urls):
            raise ApiError(400, "bad_order", "A conversation begins with the user, who alone shows images.", "messages")
        turn = Message(role, message.text, images=len(message.urls))
        if turns and turns[-1].role == role:
            before = turns.pop()
            turn = Message(role, f"{before.text}\n{turn.text}".strip(), images=before.images + turn.images)
        turns.append(turn)
    return turns


def _decode(url: str) -> bytes:
    """Bytes of a `data:` URI; everything else is refused unopened."""
    match = DATA_URI.match(url)
    if not match:
        raise ApiError(
            400, "image_url_refused", "Images come as data: URIs (data:image/tiff;base64,...); URLs are not fetched.",
            "messages",
        )  # fmt: skip
    if len(url) * 3 // 4 > MAX_IMAGE_BYTES:
        raise ApiError(400, "image_too_large", f"An image is larger than {MAX_IMAGE_BYTES // 2**20} MiB.", "messages")
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "bad_base64", "The data: URI of an image is not valid base64.", "messages") from None


def _notes(request: _ChatRequest) -> list[str]:
    if any(message.role in ("system", "developer") for message in request.messages):
        return ["system messages have no effect; describe the sample in x-micrograph.description"]
    return []

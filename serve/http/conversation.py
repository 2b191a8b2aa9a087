"""A chat-completions request in the OpenAI protocol -> a checked question with the turns before it.

Knows nothing about HTTP replies, models or what the bytes of a picture mean; it never opens a URL.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from assistant.chat import CAPTION_PROMPT, Message
from serve.http.schemas import MAX_IMAGES, ChatMessage, ChatRequest, Sidecar

MAX_IMAGE_BYTES = 64 * 2**20
MAX_ANSWER_TOKENS = 1024
DEFAULT_ANSWER_TOKENS = 128
DATA_URI = re.compile(
    r"\s*data:(?:image/[a-z0-9.+-]{1,40}|application/octet-stream)?(?:;[a-z0-9-]+=[^;,]{0,100}){0,4};base64,",
    re.IGNORECASE,
)
WITHOUT_EFFECT = (
    *("tools", "tool_choice", "functions", "logit_bias", "frequency_penalty", "presence_penalty"),
    *("reasoning_effort", "parallel_tool_calls", "service_tier", "store", "metadata"),
)
BLANK = re.compile(r"[\s\u00a0]+|%0[AaDd]|%20")
CLIENT_NOTES = re.compile(r"<(attached_files|source_context|context)>.*?</\1>\s*", re.IGNORECASE | re.DOTALL)
"""What Open WebUI puts before a question about the files it stored: names of its own, no words of the asker."""
SURROGATE = re.compile("[\ud800-\udfff]")
Shape = TypeVar("Shape", bound=BaseModel)


class ApiError(Exception):
    """A request that is refused, in the terms of the OpenAI protocol."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param


@dataclass(frozen=True)
class SentPicture:
    """The bytes of a picture and the side-car that was sent with it."""

    data: bytes
    sidecar: Sidecar | None = None


@dataclass(frozen=True)
class Ask:
    """A checked request."""

    model: str
    images: tuple[SentPicture, ...]
    """All pictures of the conversation, in order."""
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
    choices: int
    top_logprobs: int | None
    """Alternatives of each token to tell; None tells no log-probabilities."""
    form: Literal["text", "json_object"] | Mapping[str, Any]
    """What the answer has to be: text, some JSON, or JSON of a schema."""
    notes: tuple[str, ...]
    """What of the request has no effect here; told to the client as warnings."""


def parse_request(body: bytes) -> Ask:
    """Check a request body. Raises ApiError, 400, for whatever is wrong with it. Blocks: run it in a thread."""
    request = parse_body(body, ChatRequest)
    turns = _turns(request.messages)
    parts = [part for message in request.messages for part in message.pictures]
    if len(parts) > MAX_IMAGES:
        raise ApiError(400, "too_many_images", f"More than {MAX_IMAGES} images in one conversation.", "messages")
    images = tuple(SentPicture(image_bytes(part.url), part.extension.sidecar) for part in parts)
    if not turns or turns[-1].role != "user" or not (turns[-1].text or images):
        raise ApiError(400, "invalid_value", "messages: the user asks nothing. End with a user's message.", "messages")
    wanted = request.max_completion_tokens or request.max_tokens or DEFAULT_ANSWER_TOKENS
    return Ask(
        model=request.model,
        images=images,
        text=turns[-1].text or CAPTION_PROMPT,
        history=tuple(turns[:-1]),
        description=request.extension.description,
        pixel_size_nm=request.extension.pixel_size_nm,
        max_tokens=min(wanted, MAX_ANSWER_TOKENS),
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=(request.seed or 0) % 2**63,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        choices=request.n or 1,
        top_logprobs=request.top_logprobs or 0 if request.logprobs else None,
        form=_form(request),
        notes=tuple(_notes(request, wanted)),
    )


def parse_body(body: bytes, shape: type[Shape]) -> Shape:
    """A request body as one of the shapes. Raises ApiError, 400, with the place and what is wrong there."""
    try:
        tree = from_json(body, allow_inf_nan=False, cache_strings="none")
    except (ValueError, RecursionError):
        # Half characters are JSON to Python alone: they are read, so that their place can be named.
        try:
            tree = json.loads(body, parse_constant=_finite, parse_float=_finite)
        except (ValueError, RecursionError):
            raise ApiError(400, "bad_json", "The body is not valid JSON.") from None
    if not isinstance(tree, dict):
        raise ApiError(400, "bad_json", "The body must be a JSON object.")
    try:
        return shape.model_validate(tree)
    except ValidationError as invalid:
        first = invalid.errors(include_input=False, include_url=False, include_context=False)[0]
        last = first["loc"][-1:]
        place = ".".join(str(step) for step in first["loc"] if step not in ("text", "image_url") or (step,) == last)
        message = f"{place}: {first['msg']}" if place else first["msg"]
        raise ApiError(400, "invalid_value", SURROGATE.sub("?", message), place or None) from None


def image_bytes(url: str) -> bytes:
    """Bytes of a `data:` URI, however a client writes it; everything else is refused unopened. Raises ApiError."""
    match = DATA_URI.match(url)
    if not match:
        is_data = url.lstrip()[:5].lower() == "data:"
        code, what = (
            ("not_an_image", "The data: URI is no image in base64. Write data:image/png;base64,....")
            if is_data
            else ("image_url_refused", "Images come as data: URIs (data:image/tiff;base64,...); URLs are not fetched.")
        )
        raise ApiError(400, code, what, "messages")
    if len(url) * 3 // 4 > MAX_IMAGE_BYTES:
        raise ApiError(400, "image_too_large", f"An image is larger than {MAX_IMAGE_BYTES // 2**20} MiB.", "messages")
    text = BLANK.sub("", url[match.end() :]).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "bad_base64", "The data: URI of an image is not valid base64.", "messages") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _turns(messages: list[ChatMessage]) -> list[Message]:
    """Alternating turns, the user first: neighbours of one role are joined; what only an assistant said before is not
    asked about, and system texts and replies of tools are left out."""
    turns: list[Message] = []
    for message in messages:
        if SURROGATE.search(message.text) or "\0" in message.text:
            raise ApiError(400, "invalid_value", "A message holds characters that are not text.", "messages")
        if message.role not in ("user", "assistant"):
            continue
        role: Literal["user", "assistant"] = "user" if message.role == "user" else "assistant"
        if role == "assistant" and message.pictures:
            raise ApiError(400, "bad_order", "Only the user shows images.", "messages")
        if role == "assistant" and (not turns or not message.text):
            continue  # a greeting, or an empty turn of a client that called a tool
        text = CLIENT_NOTES.sub("", message.text).strip() if role == "user" else message.text
        turn = Message(role, text, images=len(message.pictures))
        if turns and turns[-1].role == role:
            before = turns.pop()
            turn = Message(role, f"{before.text}\n{turn.text}".strip(), images=before.images + turn.images)
        turns.append(turn)
    if turns and turns[-1].role == "assistant":  # a client that wants its own beginning continued: answered anew
        turns.pop()
    return turns


def _form(request: ChatRequest) -> Literal["text", "json_object"] | Mapping[str, Any]:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return "text"
    if wanted.type == "json_object":
        return "json_object"
    if wanted.json_schema is None:
        raise ApiError(400, "invalid_value", "response_format.json_schema: there is no schema.", "response_format")
    return wanted.json_schema.schema_


def _notes(request: ChatRequest, wanted: int) -> list[str]:
    notes = []
    if any(message.role in ("system", "developer") for message in request.messages):
        notes.append("system messages have no effect; describe the sample in x-micrograph.description")
    if wanted > MAX_ANSWER_TOKENS:
        notes.append(f"an answer has at most {MAX_ANSWER_TOKENS} tokens here")
    if request.logprobs:
        notes.append("log-probabilities are those of the student's draft, before it was held against the facts")
    if request.messages[-1].role == "assistant":
        notes.append("the beginning of an answer is not continued; the question is answered anew")
    ignored = [name for name in WITHOUT_EFFECT if getattr(request, name)]
    if ignored:
        notes.append(f"{', '.join(ignored)}: accepted, without effect")
    return notes

"""Who answers: the offline teacher (facts in words), the hosted one (an OpenAI-compatible endpoint), recorded replies.

One call is one attempt; what goes wrong in it becomes a `Rejection` with a name. Knows nothing about retries, money,
ledgers or the files of a data set.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from assistant.errors import DatasetError, TeacherError
from data_gen.egress import Permit, open_client
from data_gen.evidence import PROMPTS
from data_gen.filters import clean
from data_gen.replies import Rejection, Reply, read_reply, response_format, retry_after
from data_gen.tables import exchange_key
from data_gen.tasks import Question, prompts_version

if TYPE_CHECKING:
    from assistant.config import TeachConfig

UNKNOWN_IMAGE_TOKENS = 50_000
"""Set aside for a picture until the endpoint has told what pictures cost; formulas differ from model to model."""
SAMPLING = 0.7
"""Temperature at which several answers to one question can differ."""
PROBES = 3


@dataclass(frozen=True)
class Request:
    """Questions about one picture or pair, and what is known of it in words."""

    images: tuple[str, ...]
    """sha256 of each micrograph."""
    task: str
    questions: tuple[Question, ...]
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
        filled = _template(self.template).replace("{pair}", pair).replace("{paraphrases}", str(self.paraphrases))
        return filled.replace("{questions}", self.asked).replace("{known}", self.known or "nothing")


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


class HostedTeacher:
    """A multimodal model behind an OpenAI-compatible endpoint; exists only where a permit does."""

    looks = True

    def __init__(self, permit: Permit, config: TeachConfig, *, answers_as: str | None = None) -> None:
        """`answers_as` is the model string of earlier replies in this data set, from the ledger."""
        self.name = f"openai:{config.model}"
        self.params: Mapping[str, Any] = {
            "temperature": SAMPLING if config.samples > 1 else 0,
            "seed": config.seed,
            "max_output_tokens": config.max_output_tokens,
            "downscale": config.downscale,
            "prompts": prompts_version(),
        }
        self._permit = permit
        self._config = config
        self._client = open_client(permit, api_key_env=config.api_key_env, ca_file=config.ca_file)
        self._answers_as = answers_as
        self._image_tokens: list[float] = []

    @property
    def destination(self) -> str:
        """Where the requests go."""
        return self._permit.destination

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def worst_case_usd(self, request: Request, complaint: Rejection | None = None) -> float:
        """What one attempt can cost at most: every byte a token, pictures as dear as the dearest seen so far."""
        seen = self._image_tokens
        per_image = 1.25 * max(seen) if len(seen) >= PROBES else UNKNOWN_IMAGE_TOKENS
        words = len(json.dumps(self.body(request, (), complaint), ensure_ascii=False).encode()) + 64
        return self._price(words + per_image * len(request.images), self._max_tokens(request))

    def cost_usd(self, usage: tuple[int, int]) -> float:
        """Price of (input, output) tokens [USD]."""
        return self._price(*usage)

    async def answer(self, request: Request, pictures: Sequence[bytes], complaint: Rejection | None = None) -> Reply:
        """One attempt, over within the deadline whatever the other side does; `complaint` is the reply to mend."""
        return self.read(await self._post(request, self.body(request, pictures, complaint)), request)

    def body(self, request: Request, pictures: Sequence[bytes], complaint: Rejection | None = None) -> dict[str, Any]:
        """What is sent, as the body of a chat completion.

        Raises EgressError `not_in_manifest` for a picture that nobody allowed to leave.
        """
        for picture in pictures:
            self._permit.check(picture)
        content: list[Any] = [{"type": "text", "text": request.prompt}]
        content += [{"type": "image_url", "image_url": {"url": _data_url(picture)}} for picture in pictures]
        messages: list[Any] = [{"role": "user", "content": content}]
        if complaint is not None:
            mend = _template("again").replace("{problem}", complaint.problem)
            messages += [{"role": "assistant", "content": complaint.raw}, {"role": "user", "content": mend}]
        return {
            "model": self._config.model,
            "messages": messages,
            "response_format": response_format(),
            "temperature": self.params["temperature"],
            "seed": self._config.seed + request.sample,
            "max_completion_tokens": self._max_tokens(request),
        }

    def read(self, body: str, request: Request) -> Reply:
        """The answers in the body of a reply. Raises Rejection."""
        reply = read_reply(self._scrub(body), [question.id for question in request.questions])
        self._check_model(reply)
        if reply.usage is not None and request.images:
            self._image_tokens.append(reply.usage[0] / len(request.images))
        return reply

    async def _post(self, request: Request, body: Mapping[str, Any]) -> str:
        """Send, and give the body back as text: the SDK's own parsing trusts it too much."""
        import openai

        try:
            async with asyncio.timeout(self._config.deadline_s):
                raw = await self._client.chat.completions.with_raw_response.create(
                    **body,
                    timeout=self._config.deadline_s,
                    extra_headers={"Idempotency-Key": request_key(self, request)},
                )
                return str(raw.http_response.text)
        except (TimeoutError, openai.APITimeoutError):
            raise Rejection("deadline", again=True, billed=None) from None
        except openai.APIStatusError as error:
            raise self.refused(error.status_code, error.response.headers, error.response.text) from None
        except openai.APIConnectionError as error:
            raise self.unreachable(error) from None

    def refused(self, status: int, headers: Mapping[str, str], body: str) -> TeacherError:
        """An HTTP error as a rejection of this attempt, or as the end of the job."""
        raw, host = self._scrub(body), self._permit.destination
        wait = retry_after(headers, now=time.time())
        match status:
            case 401 | 403:
                return TeacherError(
                    "unauthorised", f"{host} refused the key in {self._config.api_key_env} ({status}). Check the key."
                )
            case 404:
                return TeacherError("no_model", f"{host} has no model {self._config.model!r}. Set teach.model.")
            case 429 if "insufficient_quota" in body:
                return TeacherError("quota", f"The quota at {host} is used up. Raise it, then run the same command.")
            case 429:
                return Rejection("rate_limited", raw, again=True, wait_s=wait, billed=False)
            case _ if 300 <= status < 400:
                told = f"{host} answers with redirects, which are never followed. Set teach.base_url."
                end = TeacherError("redirect", told)
                return Rejection("redirect", raw, again=True, billed=False, end=end)
            case 400 | 422 if "content_filter" in body or "content_policy" in body:
                return Rejection("filtered", raw, billed=False)
            case 408 | 409 | 425:
                return Rejection("server_error", raw, again=True, wait_s=wait, billed=False)
            case _ if status >= 500:
                return Rejection("server_error", raw, again=True, wait_s=wait, billed=False)
            case _:
                return Rejection("bad_request", raw, billed=False)

    def unreachable(self, error: Exception) -> TeacherError:
        """A connection that failed as a rejection of this attempt, or as the end of the job."""
        import httpx2

        cause = error.__cause__
        if isinstance(cause, httpx2.DecodingError):
            return Rejection("bad_reply", str(cause), again=True, billed=None)
        if reason := _distrust(error):
            return TeacherError(
                "untrusted",
                f"{self._permit.destination} does not prove who it is ({reason}), so nothing was sent. Correct "
                "teach.base_url, or name your own authority's certificates in teach.ca_file.",
            )
        never_sent = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
        return Rejection("connection", type(cause).__name__, again=True, billed=False if never_sent else None)

    def _check_model(self, reply: Reply) -> None:
        self._answers_as = self._answers_as or reply.model
        if reply.model != self._answers_as:
            end = TeacherError(
                "model_changed",
                f"The endpoint now answers as {clean(reply.model)!r}, and this data set was begun with "
                f"{self._answers_as!r}. Set teach.model to that one, or name a new --out.",
            )
            rejection = Rejection("wrong_model", clean(reply.model), again=True, end=end)
            rejection.usage = reply.usage
            raise rejection

    def _max_tokens(self, request: Request) -> int:
        return self._config.max_output_tokens * len(request.questions)

    def _price(self, input_tokens: float, output_tokens: float) -> float:
        price = self._config.price_per_million
        return (price.input * input_tokens + price.output * output_tokens) / 1e6

    def _scrub(self, text: str) -> str:
        """An endpoint may echo the key; it is never written down."""
        return text.replace(self._client.api_key, "[key]")


def _distrust(error: BaseException | None) -> str | None:
    """Why the certificate of the other side was not believed; None where that was not the trouble."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


@cache
def _template(name: str) -> str:
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8")


def _data_url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")

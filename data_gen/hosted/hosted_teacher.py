"""The hosted teacher: a multimodal model behind an OpenAI-compatible endpoint, one attempt at a time.

Knows nothing about retries, money spent so far, the ledger or the files of a data set.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from assistant.errors import TeacherError
from data_gen.hosted.dialect import Dialect
from data_gen.hosted.egress import Permit, open_client
from data_gen.hosted.refusals import EndpointRefusal, verdict_of
from data_gen.hosted.replies import read_reply, response_format
from data_gen.questions.filters import clean
from data_gen.questions.tasks import prompts_version
from data_gen.teacher import Rejection, Reply, Request, prompt_file, request_key

if TYPE_CHECKING:
    from assistant.config import TeachConfig

UNKNOWN_IMAGE_TOKENS = 50_000
"""Set aside for a picture until the endpoint has told what pictures cost; formulas differ from model to model."""
SAMPLING = 0.7
"""Temperature at which several answers to one question can differ."""
_ENOUGH_SEEN = 3
ADAPTED = "adapted"
"""Verdict of an attempt that taught how the endpoint wants to be asked; it is asked again at once."""
_SNAPSHOT = re.compile(
    r"[-@:_](?:20\d\d-?(?:0\d|1[0-2])(?:-?[0-3]\d)?|(?:0\d|1[0-2])-?[0-3]\d|latest|00\d)$", re.IGNORECASE
)
"""The end of a model's name that tells one dated snapshot from another."""


class HostedTeacher:
    """A multimodal model behind an OpenAI-compatible endpoint; exists only where a permit does."""

    looks = True

    def __init__(
        self, permit: Permit, config: TeachConfig, *, answers_as: str | None = None, dialect: Dialect | None = None
    ) -> None:
        """`answers_as` is the model string of earlier replies in this data set, `dialect` what the endpoint refused."""
        self.name = f"openai:{config.model}"
        # What is wished for: a parameter that the endpoint turns out to refuse stays here, and with it every key.
        self.params: Mapping[str, Any] = {
            "temperature": SAMPLING if config.samples > 1 else 0,
            "seed": config.seed,
            "max_output_tokens": config.max_output_tokens,
            "downscale": config.downscale,
            "prompts": prompts_version(),
            **({"extra_body": config.extra_body} if config.extra_body else {}),
        }
        self.dialect = dialect or Dialect()
        self._permit = permit
        self._config = config
        self._client = open_client(permit, config)
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
        per_image = 1.25 * max(seen) if len(seen) >= _ENOUGH_SEEN else UNKNOWN_IMAGE_TOKENS
        words = len(json.dumps(self.body(request, (), complaint), ensure_ascii=False).encode()) + 64
        return self._price(words + per_image * len(request.images), self._max_tokens(request))

    def cost_usd(self, usage: tuple[int, int]) -> float:
        """Price of (input, output) tokens [USD]."""
        return self._price(*usage)

    async def answer(self, request: Request, pictures: Sequence[bytes], complaint: Rejection | None = None) -> Reply:
        """One attempt, over within the deadline whatever the other side does; `complaint` is the reply to mend."""
        import openai

        body = self.body(request, pictures, complaint)
        parameters = {name: value for name, value in body.items() if name not in {"model", "messages"}}
        try:
            async with asyncio.timeout(self._config.deadline_s):
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=body["model"],
                    messages=body["messages"],
                    extra_body=parameters,
                    timeout=self._config.deadline_s,
                    extra_headers={"Idempotency-Key": request_key(self, request)},
                )
                text = str(raw.http_response.text)  # the SDK's own parsing trusts it too much
        except (TimeoutError, openai.APITimeoutError):
            raise Rejection("deadline", again=True, billed=None) from None
        except openai.APIStatusError as error:
            told = error.response
            raise self.refused(error.status_code, told.headers, told.text, body, bool(request.images)) from None
        except openai.APIConnectionError as error:
            raise self.unreachable(error) from None
        return self.read(text, request)

    def body(self, request: Request, pictures: Sequence[bytes], complaint: Rejection | None = None) -> dict[str, Any]:
        """What is sent, as the body of a chat completion.

        Raises EgressError `not_in_manifest` for a picture that nobody allowed to leave.
        """
        for picture in pictures:
            self._permit.check(picture)
        uris = (f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}" for picture in pictures)
        shown = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
        # Words alone go as a plain string, which endpoints that see nothing take as well.
        content = [{"type": "text", "text": request.prompt}, *shown] if shown else request.prompt
        messages: list[Any] = [{"role": "user", "content": content}]
        if complaint is not None:
            mend = prompt_file("again").replace("{problem}", complaint.problem)
            # Some endpoints refuse a turn that says nothing.
            said = complaint.raw or "(nothing)"
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": mend}]
        # What we wish for; the endpoint has its say in the dialect.
        wished = {
            "response_format": response_format(),
            "temperature": self.params["temperature"],
            "seed": self._config.seed + request.sample,
            self._config.limit_parameter: self._max_tokens(request),
            **self._config.extra_body,
        }
        parameters = {name: value for name, value in wished.items() if value is not None}
        return {"model": self._config.model, "messages": messages, **self.dialect.spoken(parameters)}

    def read(self, body: str, request: Request) -> Reply:
        """The answers in the body of a reply. Raises Rejection."""
        ids = [question.id for question in request.questions]
        reply = read_reply(self._scrub(body), ids, limit=self._max_tokens(request))
        self._answers_as = self._answers_as or reply.model
        if reply.model and not same_model(reply.model, self._answers_as, pinned=self._config.model):
            end = TeacherError(
                "model_changed",
                f"The endpoint now answers as {clean(reply.model)!r}, and this data set was begun with "
                f"{self._answers_as!r}. Set teach.model to that one, or name a new --out.",
            )
            rejection = Rejection("wrong_model", clean(reply.model), again=True, end=end)
            rejection.usage = reply.usage
            raise rejection
        if reply.usage is not None and request.images:
            self._image_tokens.append(reply.usage[0] / len(request.images))
        return reply

    def refused(
        self,
        status: int,
        headers: Mapping[str, str],
        body: str,
        sent: Mapping[str, Any] = MappingProxyType({}),
        pictures: bool = False,
    ) -> TeacherError:
        """An HTTP error as a rejection of this attempt, or as the end of the job.

        `sent` is the body that met it: what it refuses of that is left out from now on, and it is asked again.
        """
        refusal = self.refusal(status, headers, body)
        parameters = {name: value for name, value in sent.items() if name not in {"model", "messages"}}
        if self.dialect.adapt(refusal.parameters(parameters), parameters, str(refusal)):
            return Rejection(ADAPTED, str(refusal), again=True, billed=False)
        return verdict_of(
            refusal,
            host=self._permit.destination,
            model=self._config.model,
            api_key_env=self._config.api_key_env,
            pictures=pictures,
        )

    def refusal(self, status: int, headers: Mapping[str, str], body: str) -> EndpointRefusal:
        """An HTTP error without the key that was sent."""
        return EndpointRefusal(status, headers, self._scrub(body))

    def unreachable(self, error: Exception) -> TeacherError:
        """A connection that failed as a rejection of this attempt, or as the end of the job."""
        import httpx2

        cause = error.__cause__
        if isinstance(cause, httpx2.DecodingError):
            return Rejection("bad_reply", str(cause), again=True, billed=None)
        deeper: BaseException | None = error
        while deeper is not None:
            if isinstance(deeper, ssl.SSLCertVerificationError):
                return TeacherError(
                    "untrusted",
                    f"{self._permit.destination} does not prove who it is ({deeper.verify_message}), so nothing was "
                    "sent. Correct teach.base_url, or name your own authority's certificates in teach.ca_file.",
                )
            deeper = deeper.__cause__ or deeper.__context__
        never_sent = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
        told = f"{type(cause).__name__}: {cause}"
        return Rejection("connection", told, again=True, billed=False if never_sent else None)

    def _max_tokens(self, request: Request) -> int:
        return self._config.max_output_tokens * len(request.questions)

    def _price(self, input_tokens: float, output_tokens: float) -> float:
        price = self._config.price_per_million
        return (price.input * input_tokens + price.output * output_tokens) / 1e6

    def _scrub(self, text: str) -> str:
        """An endpoint may echo the key; it is never written down."""
        return text.replace(self._client.api_key, "[key]")


def same_model(said: str, before: str, *, pinned: str) -> bool:
    """True for two names of one model; its dated snapshots are one where none of them was asked for by its date."""
    if said == before:
        return True
    return not _SNAPSHOT.search(pinned) and _SNAPSHOT.sub("", said) == _SNAPSHOT.sub("", before)

"""Asks a hosted teacher through its batch queue: files of requests, answered within a day at a lower price.

Speaks OpenAI's files and batches endpoints; a provider without them, or one that takes no inline pictures there, is
asked request by request instead (`teach.batch: false`). A batch is in the ledger before it is handed in and carries our
own name for it, so after any interruption it is found again, and nothing is asked twice. Knows nothing about prompts.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from assistant.errors import TeacherError
from data_gen.hosted.budget import Budget
from data_gen.hosted.correspondence import SAID_CHARS, departures, exchange_of, settlement_of
from data_gen.hosted.egress import Permit, open_client
from data_gen.hosted.hosted_teacher import ADAPTED, HostedTeacher
from data_gen.ledger import Ledger
from data_gen.tables import Batch, Departure, Visit
from data_gen.teacher import Rejection, Reply, Request, request_key

if TYPE_CHECKING:
    from assistant.config import TeachConfig

REQUESTS, BYTES = 500, 32 * 2**20
"""A batch is handed in when it holds so many requests, or a file of so many bytes."""
IN_FLIGHT = 8
MAX_OUTPUT_BYTES = 64 * 2**20
LONGEST_CALL_S = 600.0
"""For moving a file; every other call has the deadline of an attempt [s]."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
EXPIRED = "expired"
"""Verdict of a request that came back from the queue without a reply; it costs nothing and is asked again."""
NAME = "maemi_batch"
Pictures = Callable[[], Awaitable[Sequence[bytes]]]
_R = TypeVar("_R")


@dataclass
class _Errand:
    """One request on its way through the queue."""

    request: Request
    pictures: Pictures
    complaint: Rejection | None = None
    """The unusable reply that this attempt asks to mend."""
    sent: Mapping[str, Any] | None = None
    """The body as it was handed in, without its messages."""


class BatchDesk:
    """Hands batches in and takes their replies; at most IN_FLIGHT of them are held at a time."""

    def __init__(
        self, permit: Permit, teacher: HostedTeacher, ledger: Ledger, budget: Budget, config: TeachConfig
    ) -> None:
        self._client = open_client(permit, config, max_reply_bytes=MAX_OUTPUT_BYTES)
        self._teacher, self._ledger, self._budget, self._config = teacher, ledger, budget, config
        self._waiting: dict[str, dict[str, _Errand]] = {}
        """Errands of each batch in flight, by the key of their exchange."""
        self.stopped: TeacherError | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def finish(self, requests: AsyncIterator[tuple[Request, Pictures]]) -> None:
        """Take the replies of batches that an earlier run handed in; `requests` are all that are open."""
        open_batches = self._ledger.open_batches()
        owner = {key: batch.name for batch in open_batches for key in batch.keys.split()}
        self._waiting = {batch.name: {} for batch in open_batches}
        async for request, pictures in requests:
            key = request_key(self._teacher, request)
            if key in owner:
                self._waiting[owner[key]][key] = _Errand(request, pictures)
        await self._until_stopped(self._take_all())

    async def ask_all(self, requests: AsyncIterator[tuple[Request, Pictures]]) -> None:
        """Ask a stream of requests; it is read no faster than batches are taken."""
        await self._until_stopped(self._ask_all(requests))

    async def _ask_all(self, requests: AsyncIterator[tuple[Request, Pictures]]) -> None:
        fresh: dict[str, _Errand] = {}
        async for request, pictures in requests:
            fresh[request_key(self._teacher, request)] = _Errand(request, pictures)
            if len(fresh) == REQUESTS:
                await self._hand_in(fresh)
                fresh = {}
        await self._hand_in(fresh)
        await self._take_all()

    async def _until_stopped(self, work: Awaitable[None]) -> None:
        try:
            await work
        except TeacherError as end:
            self.stopped = self.stopped or end

    # -------------------------------------------------------------------------------------------------- handing in

    async def _hand_in(self, errands: dict[str, _Errand]) -> None:
        """Hand errands in, in as many batches as files and budget ask for.

        Raises TeacherError `budget` where the next one does not fit though nothing is set aside any longer.
        """
        while errands:
            errands = await self._hand_in_some(errands)
            if errands and self._waiting:
                await self._take_first()
            elif errands:
                first = next(iter(errands.values()))
                self._budget.reserve(self._teacher.worst_case_usd(first.request, first.complaint))

    async def _hand_in_some(self, errands: dict[str, _Errand]) -> dict[str, _Errand]:
        """Hand in what fits into one file and into the budget; gives the rest."""
        lines: list[bytes] = []
        attempts: list[tuple[Visit, float, list[Departure]]] = []
        for key, errand in errands.items():
            pictures = await errand.pictures()
            body = self._teacher.body(errand.request, pictures, errand.complaint)
            errand.sent = {name: value for name, value in body.items() if name != "messages"}
            row = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
            line = json.dumps(row).encode() + b"\n"
            worst = self._teacher.worst_case_usd(errand.request, errand.complaint)
            if (lines and sum(map(len, lines)) + len(line) > BYTES) or not self._budget.fits(worst):
                break
            self._budget.reserve(worst)
            exchange = exchange_of(key, errand.request, self._teacher.name)
            attempts.append((exchange, worst, departures(exchange, pictures, self._teacher.destination)))
            lines.append(line)
        keys = list(errands)
        sent, rest = ({key: errands[key] for key in part} for part in (keys[: len(lines)], keys[len(lines) :]))
        if sent:
            while len(self._waiting) >= IN_FLIGHT:
                await self._take_first()
            name = f"maemi-{uuid.uuid4().hex}"
            self._ledger.begin_batch(Batch(name=name, keys=" ".join(sent), provider_id="", done=False), attempts)
            self._waiting[name] = sent
            upload = (f"{name}.jsonl", b"".join(lines))
            file = await self._call(lambda: self._client.files.create(file=upload, purpose="batch"), LONGEST_CALL_S)
            self._ledger.note_batch(name, provider_id=await self._create(name, str(file.id)))
        return rest

    async def _create(self, name: str, file_id: str) -> str:
        """Create the batch; where nobody can tell whether it was, it is looked for before it is created again."""
        for _ in range(self._config.max_retries + 1):
            try:
                batch = await self._once(
                    lambda: self._client.batches.create(
                        input_file_id=file_id,
                        endpoint="/v1/chat/completions",
                        completion_window="24h",
                        metadata={NAME: name},
                        extra_headers={"Idempotency-Key": name},
                    )
                )
                return str(batch.id)
            except Rejection as rejection:
                last = rejection
                if (found := await self._find(name)) is not None:
                    return found
                await asyncio.sleep(self._config.batch_poll_s)
        raise self._unavailable(last)

    async def _find(self, name: str) -> str | None:
        """What the provider calls the batch of that name; None where it has none."""
        page = await self._call(lambda: self._client.batches.list(limit=100))
        while True:
            for batch in page.data:
                if (batch.metadata or {}).get(NAME) == name:
                    return str(batch.id)
            if not page.has_next_page():
                return None
            page = await self._call(page.get_next_page)

    # ---------------------------------------------------------------------------------------------- taking replies

    async def _take_all(self) -> None:
        while self._waiting:
            await self._take_first()

    async def _take_first(self) -> None:
        """Wait for the oldest batch and book its replies; replies in the wrong form are handed in once more."""
        name = next(iter(self._waiting))
        known = next(batch for batch in self._ledger.open_batches() if batch.name == name)
        provider_id = known.provider_id or await self._find(name) or ""
        replies: dict[str, Mapping[str, Any]] = {}
        files: list[str] = []
        failure: TeacherError | None = None
        if provider_id:
            while (ended := await self._call(lambda: self._client.batches.retrieve(provider_id))).status not in ENDED:
                await asyncio.sleep(self._config.batch_poll_s)
            failure = self._failure(ended)
            files = [file for file in (ended.output_file_id, ended.error_file_id) if file]
            for file in files:
                content = await self._call(partial(self._client.files.content, file), LONGEST_CALL_S)
                replies |= dict(_lines(content.text))
            files.append(ended.input_file_id)
        errands = self._waiting.pop(name)
        rejections = {key: self._book(key, errands.get(key), replies.get(key)) for key in known.keys.split()}
        self._ledger.note_batch(name, provider_id=provider_id, done=True)
        for file in files:
            # The pictures need not lie there any longer; a refusal to delete them is not worth stopping for.
            with suppress(TeacherError):
                await self._once(partial(self._client.files.delete, file))
        if failure is not None:
            raise failure
        ends = [rejection.end for rejection in rejections.values() if rejection and rejection.end]
        if ends and len(ends) == len(rejections):
            raise ends[0]
        again = (_again(errands.get(key), rejection) for key, rejection in rejections.items())
        if unusable := {request_key(self._teacher, errand.request): errand for errand in again if errand}:
            await self._hand_in(unusable)

    def _failure(self, batch: Any) -> TeacherError | None:
        """Why the provider took a batch back as a whole, in its own words."""
        if batch.status != "failed":
            return None
        said = [error.message for error in (batch.errors and batch.errors.data) or () if error.message]
        reason = self._teacher.refusal(400, {}, json.dumps(said[:1])).reason
        return TeacherError(
            "batch_failed",
            f"The batch queue of {self._teacher.destination} took a batch back ({reason}). Mend that and run the same "
            "command: nothing of it was billed. Or set teach.batch=false.",
        )

    def _book(self, key: str, errand: _Errand | None, reply: Mapping[str, Any] | None) -> Rejection | None:
        """Settle one request of a batch; gives the rejection, None for an answer."""
        exchange = self._ledger.exchange(key)
        worst = 0.0 if exchange is None else exchange.reserved_usd
        if exchange is None or errand is None or reply is None:
            return self._rejected(key, worst, Rejection(EXPIRED, again=True, billed=False))
        try:
            status, body = int(reply["status_code"]), json.dumps(reply["body"])
            if status != 200:
                sent = errand.sent or self._teacher.body(errand.request, ())
                raise self._teacher.refused(status, {}, body, sent, bool(errand.request.images))
            answered = self._teacher.read(body, errand.request)
        except Rejection as rejection:
            return self._rejected(key, worst, rejection)
        except TeacherError as end:
            self.stopped = self.stopped or end
            self._settle(key, worst, end)
            return None
        except (KeyError, TypeError, ValueError):
            return self._rejected(key, worst, Rejection("bad_reply", json.dumps(reply), billed=None))
        self._settle(key, worst, answered)
        return None

    def _rejected(self, key: str, worst: float, rejection: Rejection) -> Rejection:
        self._settle(key, worst, rejection)
        return rejection

    def _settle(self, key: str, worst: float, outcome: Reply | TeacherError) -> None:
        settlement = settlement_of(outcome, worst, self._teacher.cost_usd)
        self._budget.settle(worst, settlement.cost_usd)
        self._ledger.settle(key, settlement)

    # ------------------------------------------------------------------------------------------------------- calls

    async def _call(self, call: Callable[[], Awaitable[_R]], deadline_s: float | None = None) -> _R:
        """A call that may be repeated. Raises TeacherError where it fails again and again."""
        for _ in range(self._config.max_retries + 1):
            try:
                return await self._once(call, deadline_s)
            except Rejection as rejection:
                last = rejection
                await asyncio.sleep(min(rejection.wait_s or self._config.batch_poll_s, 60.0))
        raise self._unavailable(last)

    async def _once(self, call: Callable[[], Awaitable[_R]], deadline_s: float | None = None) -> _R:
        """One call. Raises Rejection where it may be repeated, TeacherError where not."""
        import openai

        try:
            async with asyncio.timeout(deadline_s or self._config.deadline_s):
                result = await call()
        except openai.APIStatusError as error:
            if error.status_code in (404, 405) and "batches" in str(error.request.url):
                raise TeacherError(
                    "no_batches", f"{self._teacher.destination} has no batch queue. Set teach.batch=false."
                ) from None
            refused = self._teacher.refused(error.status_code, error.response.headers, error.response.text)
            # Asking again would meet the same, unless the endpoint says that it would not.
            raise refused if not isinstance(refused, Rejection) or refused.again else refused.end or refused from None
        except openai.APIConnectionError as error:
            raise self._teacher.unreachable(error) from None
        except (TimeoutError, openai.OpenAIError, ValueError) as error:
            raise Rejection("connection", type(error).__name__, again=True, billed=None) from None
        if isinstance(result, str):
            raise Rejection("html", result, again=True, billed=None)
        return result

    def _unavailable(self, last: Rejection) -> TeacherError:
        return last.end or TeacherError(
            "unavailable",
            f"The batch queue of {self._teacher.destination} does not answer ({last.code}: {last.raw[:SAID_CHARS]}). "
            "Run the same command later: a batch that was handed in is found again.",
        )


def _again(errand: _Errand | None, rejection: Rejection | None) -> _Errand | None:
    """The errand that asks once more: without what was refused, or with what was wrong in the first reply."""
    if errand is None or rejection is None:
        return None
    if rejection.code == ADAPTED:
        return _Errand(errand.request, errand.pictures, errand.complaint)
    return _Errand(errand.request, errand.pictures, rejection) if rejection.problem and not errand.complaint else None


def _lines(text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Key and response of every line of an output or error file; damaged lines are left out."""
    for line in text.splitlines():
        try:
            row = json.loads(line)
            yield str(row["custom_id"]), row["response"] or {"status_code": 500, "body": row["error"]}
        except (ValueError, KeyError, TypeError):
            continue

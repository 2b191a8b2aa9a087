"""Asks a hosted teacher until it answers, gives up or the money is spent, and books every attempt before it is sent.

Retries with backoff, a pause for everyone while the endpoint asks for one, a circuit breaker, a hard budget, the
ledger. Knows nothing about pictures, prompts or HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from assistant.errors import TeacherError
from data_gen.hosted.budget import Budget
from data_gen.hosted.hosted_teacher import ADAPTED
from data_gen.hosted.replies import REMEDIES
from data_gen.ledger import Ledger
from data_gen.tables import ACCEPTED, SENT, Departure, Settlement, Visit
from data_gen.teacher import Rejection, Reply, Request, Teacher, request_key

LONGEST_WAIT_S = 60.0
"""A request that is asked to wait longer is parked: the job goes on, and the next run asks it again."""
MAX_WAITS = 20
BACKOFF_S = (0.5, 8.0)
SAID_CHARS = 160
"""Of a reply, in a message."""
PARKED = "parked"
RATE_LIMITED = "rate_limited"
PATIENCE = 5
"""As many rejections in a row that name an end, no matter of which requests, end the job; `teach.give_up_after`."""
OPEN_VERDICTS = frozenset(
    {
        SENT,
        ADAPTED,
        PARKED,
        RATE_LIMITED,
        "deadline",
        "connection",
        "server_error",
        "bad_request",
        "redirect",
        "wrong_model",
        "expired",
    }
)
"""Verdicts about the way, not about the answer: such a request is asked again by the next run."""
UNBILLED_ENDS = frozenset({"unauthorised", "no_model", "no_pictures", "quota", "untrusted"})


class PricedTeacher(Teacher, Protocol):
    """A teacher elsewhere, whose attempts cost money."""

    @property
    def destination(self) -> str: ...

    def worst_case_usd(self, request: Request, complaint: Rejection | None = None) -> float: ...

    def cost_usd(self, usage: tuple[int, int]) -> float: ...

    async def answer(
        self, request: Request, pictures: Sequence[bytes], complaint: Rejection | None = None
    ) -> Reply: ...


@dataclass
class Losses:
    """What became of the requests so far; where all were lost, and in one way, the rest is not worth paying for."""

    patience: int = PATIENCE
    answered: int = 0
    lost: list[tuple[str, str]] = field(default_factory=list)
    """Verdict and raw reply of each."""

    def count(self, verdict: str, reply: str) -> None:
        """Count what a request came to; one that is still open says nothing."""
        if verdict == ACCEPTED:
            self.answered += 1
        elif verdict not in OPEN_VERDICTS:
            self.lost.append((verdict, reply))

    @property
    def hopeless(self) -> bool:
        """True where there is no answer, and as many losses of one kind as anyone has patience for."""
        alike = len({verdict for verdict, _ in self.lost}) == 1
        return not self.answered and alike and len(self.lost) >= self.patience

    def end(self, destination: str) -> TeacherError:
        """What a job ends with that brought no answer: the first reason, and what mends it."""
        verdict, raw = self.lost[0]
        said = " ".join(raw.split())[:SAID_CHARS]
        remedy = REMEDIES.get(verdict, "Ask another model (teach.model); rejected.jsonl holds what it said.")
        return TeacherError(
            "nothing_usable",
            f"None of {len(self.lost)} replies of {destination} can be used. The first: {verdict} ({said}). {remedy}",
        )


@dataclass
class CircuitBreaker:
    """Opens after so many failures in a row, lets one request through after a rest, and gives up after some rests."""

    threshold: int = 8
    rest_s: float = 15.0
    rests: int = 3
    failures: int = 0
    rested: int = 0

    def succeeded(self) -> None:
        """The other side answers."""
        self.failures = self.rested = 0

    def failed(self, reason: str) -> float:
        """Count a failure; gives the rest that is due [s].

        Raises TeacherError `unavailable` where the last rest did not help.
        """
        self.failures += 1
        if self.failures < self.threshold:
            return 0.0
        if self.rested == self.rests:
            raise TeacherError(
                "unavailable",
                f"The teacher failed {self.threshold} times in a row, and again after {self.rests} rests ({reason}). "
                "Run the same command later: nothing that was answered is asked or paid for again.",
            )
        self.rested += 1
        self.failures = self.threshold - 1
        return self.rest_s * 2.0 ** (self.rested - 1)


class Correspondence:
    """Asks one request after another, several at a time."""

    def __init__(
        self,
        teacher: PricedTeacher,
        ledger: Ledger,
        budget: Budget,
        *,
        max_retries: int,
        breaker: CircuitBreaker | None = None,
        losses: Losses | None = None,
        longest_wait_s: float = LONGEST_WAIT_S,
    ) -> None:
        self.teacher = teacher
        self._ledger = ledger
        self._budget = budget
        self._max_retries = max_retries
        self._breaker = breaker or CircuitBreaker()
        self._losses = losses or Losses()
        self._longest_wait_s = longest_wait_s
        self._not_before = 0.0
        self._ends = 0
        self._settled = asyncio.Event()
        self.stopped: TeacherError | None = None
        """Why nothing more is asked."""

    async def ask(self, request: Request, pictures: Callable[[], Awaitable[Sequence[bytes]]]) -> None:
        """Ask until there is a verdict; it stands in the ledger afterwards.

        A request that was settled before is not asked again. Sets `stopped` where no request can be answered.
        """
        key = request_key(self.teacher, request)
        known = self._ledger.exchange(key)
        if self.stopped or (known and known.verdict not in OPEN_VERDICTS):
            return
        try:
            await self._until_settled(request, exchange_of(key, request, self.teacher.name), await pictures())
            if (settled := self._ledger.exchange(key)) is not None:
                self._losses.count(settled.verdict, settled.reply)
                if self._losses.hopeless:
                    raise self._losses.end(self.teacher.destination)
        except TeacherError as end:
            self.stopped = self.stopped or end

    async def _until_settled(self, request: Request, exchange: Visit, pictures: Sequence[bytes]) -> None:
        failures = waits = 0
        complaint: Rejection | None = None
        while True:
            # Everyone waits while the endpoint asks for it.
            while (left := self._not_before - asyncio.get_running_loop().time()) > 0 and not self.stopped:
                await asyncio.sleep(min(left, 1.0))
            if self.stopped:
                return
            rejection = await self._attempt(request, exchange, pictures, complaint)
            if rejection is None:
                self._breaker.succeeded()
                self._ends = 0
                return
            if rejection.code == ADAPTED:
                continue
            rest = self._rest_after(rejection)
            if not rejection.again or (rejection.problem and complaint):
                return
            complaint = rejection if rejection.problem else complaint
            if (rejection.wait_s or 0.0) > self._longest_wait_s:
                self._ledger.settle(exchange.key, Settlement(PARKED, rejection.raw))
                return
            if rejection.code == RATE_LIMITED and waits < MAX_WAITS:
                waits += 1
            else:
                failures += 1
            if failures > self._max_retries:
                return
            first, last = BACKOFF_S
            backoff = min(first * 2.0 ** max(failures - 1, 0), last) * random.uniform(0.5, 1.0)
            pause = max(rest, (rejection.wait_s or 0.0) * random.uniform(1.0, 1.1) or backoff)
            if rest or rejection.code == RATE_LIMITED:
                self._not_before = max(self._not_before, asyncio.get_running_loop().time() + pause)
            else:
                await asyncio.sleep(pause)

    async def _attempt(
        self, request: Request, exchange: Visit, pictures: Sequence[bytes], complaint: Rejection | None
    ) -> Rejection | None:
        """Send once and book the outcome; gives the rejection, None for an answer.

        A cancelled attempt keeps its "sent" row and its reservation: it may have been billed.
        """
        # The worst case is set aside; where others still hold money they may give back, it waits for them first.
        while True:
            worst = self.teacher.worst_case_usd(request, complaint)
            if self.stopped:
                raise self.stopped
            if self._budget.fits(worst) or self._budget.reserved_usd <= 1e-12:
                self._budget.reserve(worst)
                break
            self._settled.clear()
            await self._settled.wait()
        leaving = departures(exchange, pictures, self.teacher.destination)
        self._ledger.begin_attempt(exchange, reserved_usd=worst, departures=leaving)
        try:
            reply = await self.teacher.answer(request, pictures, complaint)
        except Rejection as rejection:
            self._book(exchange.key, worst, rejection)
            return rejection
        except TeacherError as end:
            self._book(exchange.key, worst, end)
            raise
        self._book(exchange.key, worst, reply)
        return None

    def _book(self, key: str, worst: float, outcome: Reply | TeacherError) -> None:
        settlement = settlement_of(outcome, worst, self.teacher.cost_usd)
        self._budget.settle(worst, settlement.cost_usd)
        self._settled.set()
        self._ledger.settle(key, settlement)

    def _rest_after(self, rejection: Rejection) -> float:
        """The rest that the breaker orders [s]; an answer that is merely unusable says nothing about the endpoint.

        Raises the end that the rejection names, where patience is at an end.
        """
        self._ends = self._ends + 1 if rejection.end else 0
        if rejection.end and self._ends >= self._losses.patience:
            raise rejection.end
        unwell = rejection.again and not rejection.problem and rejection.code != RATE_LIMITED
        return self._breaker.failed(f"{rejection.code}: {rejection.raw[:SAID_CHARS]}") if unwell else 0.0


async def ask_all(
    desk: Correspondence,
    requests: AsyncIterator[tuple[Request, Callable[[], Awaitable[Sequence[bytes]]]]],
    *,
    concurrency: int,
    first_alone: bool = False,
) -> None:
    """Ask a stream of requests, at most `concurrency` at a time; the stream is read no faster than it is answered.

    `first_alone`: what the first one meets is known before there is a second.
    """
    running: set[asyncio.Task[None]] = set()
    most = 1 if first_alone else concurrency
    try:
        async for request, pictures in requests:
            if desk.stopped:
                break
            running.add(asyncio.create_task(desk.ask(request, pictures)))
            if len(running) >= most:
                finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                _collect(finished)
                most = concurrency
        if running:
            finished, running = await asyncio.wait(running)
            _collect(finished)
    finally:
        if running:
            # Ctrl-C, or a disk that is full: what was sent is paid for, so its reply is still taken.
            desk.stopped = desk.stopped or TeacherError(
                "interrupted", "It was interrupted. Run the same command again."
            )
            await asyncio.wait(running)


def _collect(finished: set[asyncio.Task[None]]) -> None:
    for task in finished:
        task.result()


def departures(exchange: Visit, pictures: Sequence[bytes], destination: str) -> list[Departure]:
    """The audit lines of one attempt."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Departure(
            at=at,
            request=exchange.key,
            sha256=sha256,
            sent_sha256=hashlib.sha256(picture).hexdigest(),
            bytes=len(picture),
            destination=destination,
        )
        for sha256, picture in zip(exchange.images.split(), pictures, strict=True)
    ]


def exchange_of(key: str, request: Request, teacher: str) -> Visit:
    """The row of a request before its first attempt."""
    return Visit(key=key, images=" ".join(request.images), prompt=request.prompt, teacher=teacher, cost_usd=0.0)


def settlement_of(
    outcome: Reply | TeacherError, worst: float, cost_usd: Callable[[tuple[int, int]], float]
) -> Settlement:
    """What an attempt came to, and its cost: the worst case where nobody can tell [USD]."""
    if isinstance(outcome, TeacherError) and not isinstance(outcome, Rejection):
        return Settlement(PARKED, str(outcome), "", 0.0 if outcome.code in UNBILLED_ENDS else worst)
    cost, usage = worst if outcome.usage is None else cost_usd(outcome.usage), outcome.usage or (0, 0)
    if isinstance(outcome, Rejection):
        return Settlement(outcome.code, outcome.raw, "", 0.0 if outcome.billed is False else cost, *usage)
    return Settlement(ACCEPTED, as_kept(outcome), outcome.model, cost, *usage)


def as_kept(reply: Reply) -> str:
    """The answers of a reply as the ledger keeps them."""
    return json.dumps({name: list(texts) for name, texts in reply.answers.items()}, ensure_ascii=False)

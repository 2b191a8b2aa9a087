"""Second pass: asks a hosted teacher what a data set still lacks: leave, a few probes, an estimate, all the rest.

Knows nothing about how requests are made, and nothing about what becomes of the answers.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from assistant.errors import TeacherError
from data_gen.hosted.batches import BatchDesk
from data_gen.hosted.budget import Budget, Estimate
from data_gen.hosted.correspondence import OPEN_VERDICTS, Correspondence, Losses, ask_all
from data_gen.hosted.dialect import Dialect
from data_gen.hosted.egress import EGRESS_LIST, Consent, destination_of, grant
from data_gen.hosted.hosted_teacher import HostedTeacher
from data_gen.hosted.redaction import check_words, sayable
from data_gen.knowledge import sheet_request
from data_gen.passes.examine import redacted
from data_gen.passes.lesson import Lesson
from data_gen.passes.requests import Requests
from data_gen.questions.filters import clean
from data_gen.teacher import Request, request_key

Errands = AsyncIterator[tuple[Request, Callable[[], Awaitable[list[bytes]]]]]
AUDIT = "egress-audit.jsonl"
PROBES = 5
"""Requests that are asked first, to tell what all of them will cost."""
REFUSALS = frozenset({"unauthorised", "no_model", "no_pictures", "no_api", "bad_request", "redirect", "untrusted"})
"""Ends that no waiting mends."""


def consult(
    lesson: Lesson, budget_usd: float | None, *, allow_egress: Consent, probe: bool, sheets: bool
) -> HostedTeacher:
    """Ask everything that the ledger holds no answer to, and with `sheets` about every class; with `probe`, a little.

    Raises EgressError `denied` and TeacherError `no_price`, `no_key` or `bad_ca_file`; why else it ended early is in
    the report.
    """
    labels = lesson.labels if sheets else []
    return asyncio.run(_Consultation(lesson).ask(budget_usd, allow_egress=allow_egress, probe=probe, sheets=labels))


class _Consultation:
    """One visit to the hosted teacher."""

    def __init__(self, lesson: Lesson) -> None:
        self._lesson, self._requests = lesson, Requests(lesson)
        self._config, self._ledger = lesson.config, lesson.ledger

    async def ask(
        self, budget_usd: float | None, *, allow_egress: Consent, probe: bool, sheets: Iterable[str]
    ) -> HostedTeacher:
        config = self._config
        manifest = self._lesson.out / EGRESS_LIST
        permit = grant(manifest, destination=destination_of(config.base_url), allow=allow_egress)
        price = config.price_per_million
        if budget_usd is not None and not (price.input or price.output):
            raise TeacherError("no_price", "A budget needs prices. Set teach.price_per_million.input and .output.")
        # The teacher as the ledger knows it: under which name it answers, what it refused.
        endpoint, answers_as = permit.destination, self._ledger.model_of(f"openai:{config.model}")
        learned = functools.partial(self._ledger.adapt, endpoint, config.model)
        dialect = Dialect(self._ledger.adaptations(endpoint, config.model), learned=learned)
        teacher = HostedTeacher(permit, config, answers_as=answers_as, dialect=dialect)
        budget = Budget(budget_usd, spent_usd=self._ledger.spent_usd())
        try:
            async with BatchDesk(permit, teacher, self._ledger, budget, config) as batches:
                if self._ledger.open_batches():
                    await batches.finish(self._errands(teacher))
                losses = self._losses(teacher)
                desk = Correspondence(teacher, self._ledger, budget, max_retries=config.max_retries, losses=losses)
                if losses.hopeless:
                    desk.stopped = losses.end(teacher.destination)
                if not batches.stopped:
                    # The first one learns how the endpoint wants to be asked.
                    probes = self._errands(teacher, most=PROBES)
                    await ask_all(desk, probes, concurrency=config.concurrency, first_alone=True)
                self._estimate(teacher, budget_usd)
                if not (probe or batches.stopped or desk.stopped):
                    await ask_all(desk, self._sheet_errands(sheets), concurrency=config.concurrency)
                    if config.batch:
                        await batches.ask_all(self._errands(teacher))
                    else:
                        await ask_all(desk, self._errands(teacher), concurrency=config.concurrency)
        finally:
            await teacher.close()
            self._ledger.export_departures(self._lesson.out / AUDIT)
        self._report(teacher, batches.stopped or desk.stopped)
        return teacher

    def _losses(self, teacher: HostedTeacher) -> Losses:
        """What became of the requests of this data set, as far as there is no answer yet."""
        losses = Losses(self._config.give_up_after)
        for _, request, by in self._requests(teacher):
            if by is teacher and (known := self._ledger.exchange(request_key(teacher, request))):
                losses.count(known.verdict, known.reply)
                if losses.answered:
                    break
        return losses

    def _report(self, teacher: HostedTeacher, stopped: TeacherError | None) -> None:
        """Why it ended, and what else is to be known of the endpoint."""
        report, losses = self._lesson.report, self._losses(teacher)
        if losses.lost and not losses.answered:
            stopped = stopped or losses.end(teacher.destination)
        report.stopped = str(stopped) if stopped else None
        report.refused = bool(stopped and stopped.code in REFUSALS and not losses.answered)
        report.warnings += [f"{adaptation}." for adaptation in teacher.dialect.adaptations]
        if len(models := self._ledger.models_of(teacher.name)) > 1:
            told = ", ".join(f"{clean(model) or 'no name'} ({count} answers)" for model, count in models.items())
            report.warnings.append(f"The endpoint answered under several names of its model: {told}.")
        if untold := self._ledger.unmetered(teacher.name):
            report.warnings.append(
                f"{untold} answers came without usage (numbers of tokens): each is booked at the most it can have cost."
            )

    def _estimate(self, teacher: HostedTeacher, budget_usd: float | None) -> None:
        """What the whole data set will cost, from the requests that were answered."""
        price = self._config.price_per_million
        if not (price.input or price.output):
            return
        estimate = Estimate()
        for _, request, by in self._requests(teacher):
            if by is teacher:
                known = self._ledger.exchange(request_key(teacher, request))
                settled = known is not None and known.verdict not in OPEN_VERDICTS
                estimate.add(request.task, known.cost_usd if known and settled else None)
        self._lesson.report.estimate_usd = total = estimate.total_usd()
        if total is not None and budget_usd is not None and total > budget_usd:
            self._lesson.report.warnings.append(
                f"All requests will cost about {total:.2f} USD; the budget of {budget_usd:.2f} USD ends before."
            )

    async def _errands(self, teacher: HostedTeacher, most: int | None = None) -> Errands:
        """What the teacher is to be asked, with a way to the pictures; `most` bounds how many of the open ones."""
        count = 0
        for shown, request, by in self._requests(teacher):
            if by is not teacher:
                continue
            known = self._ledger.exchange(request_key(teacher, request))
            if known is not None and known.verdict not in OPEN_VERDICTS:
                continue
            if count == most:
                return
            count += 1
            check_words(request.prompt, self._config.redact)
            paths = [str(self._lesson.catalogue.root / evidence.path) for evidence in shown]
            yield request, functools.partial(asyncio.to_thread, redacted, paths, self._config.downscale)

    async def _sheet_errands(self, labels: Iterable[str]) -> Errands:
        async def no_pictures() -> list[bytes]:
            return []

        for label in labels:
            if sayable(label, self._config.redact):
                yield sheet_request(label), no_pictures

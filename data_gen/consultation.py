"""Asks a hosted teacher what a data set still lacks: leave first, then a few probes, an estimate, and all the rest.

Knows nothing about how requests are made, and nothing about what becomes of the answers.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.errors import TeacherError
from data_gen.batches import BatchDesk
from data_gen.budget import Budget, Estimate
from data_gen.desk import OPEN_VERDICTS, Desk, ask_all
from data_gen.egress import Consent, destination_of, grant
from data_gen.evidence import Evidence
from data_gen.examine import redacted
from data_gen.knowledge import sheet_request
from data_gen.ledger import Ledger
from data_gen.redaction import check_words, sayable
from data_gen.report import TeachReport
from data_gen.teacher import HostedTeacher, Request, Teacher, request_key

if TYPE_CHECKING:
    from assistant.config import TeachConfig

Asked = tuple[tuple[Evidence, ...], Request, Teacher]
"""What is known of the pictures of a request, the request, and who answers it."""
Errands = AsyncIterator[tuple[Request, Callable[[], Awaitable[list[bytes]]]]]
MANIFEST, AUDIT = "egress.jsonl", "egress-audit.jsonl"
PROBES = 5
"""Requests that are asked first, to tell what all of them will cost."""


class Consultation:
    """One visit to the hosted teacher for the data set in `out`."""

    def __init__(
        self,
        requests: Callable[[Teacher], Iterator[Asked]],
        root: Path,
        out: Path,
        config: TeachConfig,
        *,
        ledger: Ledger,
        report: TeachReport,
    ) -> None:
        """`requests` gives every request of the data set, in a fixed order; `root` is where the pictures lie."""
        self._requests, self._root, self._out, self._config = requests, root, out, config
        self._ledger, self._report = ledger, report

    async def ask(
        self, budget_usd: float | None, *, allow_egress: Consent, probe: bool, sheets: Iterable[str]
    ) -> HostedTeacher:
        """Ask everything that the ledger holds no answer to, and the sheets of these classes; with `probe`, a little.

        Raises EgressError `denied` and TeacherError `no_price` or `no_key`; why else it ended early is in the report.
        """
        config = self._config
        permit = grant(self._out / MANIFEST, destination=destination_of(config.base_url), allow=allow_egress)
        price = config.price_per_million
        if budget_usd is not None and not (price.input or price.output):
            raise TeacherError("no_price", "A budget needs prices. Set teach.price_per_million.input and .output.")
        teacher = HostedTeacher(permit, config, answers_as=self._ledger.model_of(f"openai:{config.model}"))
        budget = Budget(budget_usd, spent_usd=self._ledger.spent_usd())
        desk = Desk(teacher, self._ledger, budget, max_retries=config.max_retries)
        try:
            async with BatchDesk(permit, teacher, self._ledger, budget, config) as batches:
                if self._ledger.open_batches():
                    await batches.finish(self._errands(teacher))
                if not batches.stopped:
                    await ask_all(desk, self._errands(teacher, most=PROBES), concurrency=config.concurrency)
                self._estimate(teacher, budget_usd)
                if not (probe or batches.stopped or desk.stopped):
                    await ask_all(desk, self._sheet_errands(sheets), concurrency=config.concurrency)
                    await self._ask_the_rest(desk, batches, teacher)
        finally:
            await teacher.close()
            self._ledger.export_departures(self._out / AUDIT)
        stopped = batches.stopped or desk.stopped
        self._report.stopped = str(stopped) if stopped else None
        return teacher

    async def _ask_the_rest(self, desk: Desk, batches: BatchDesk, teacher: HostedTeacher) -> None:
        if self._config.batch:
            await batches.ask_all(self._errands(teacher))
        else:
            await ask_all(desk, self._errands(teacher), concurrency=self._config.concurrency)

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
        self._report.estimate_usd = total = estimate.total_usd()
        if total is not None and budget_usd is not None and total > budget_usd:
            self._report.warnings.append(
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
            paths = [str(self._root / evidence.path) for evidence in shown]
            yield request, functools.partial(asyncio.to_thread, redacted, paths, self._config.downscale)

    async def _sheet_errands(self, labels: Iterable[str]) -> Errands:
        async def no_pictures() -> list[bytes]:
            return []

        for label in labels:
            if sayable(label, self._config.redact):
                yield sheet_request(label), no_pictures

"""Third pass: replies become candidate rows, and everything else a rejection with a name.

A hosted teacher's replies come from the ledger; a teacher of this machine is asked here and now. Knows nothing about
pictures or the files of a data set.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_gen.dataset.rows import common_label, row_of
from data_gen.hosted.correspondence import OPEN_VERDICTS, as_kept
from data_gen.hosted.hosted_teacher import HostedTeacher
from data_gen.passes.lesson import Lesson
from data_gen.passes.requests import Requests
from data_gen.questions.contradictions import claim_verdict
from data_gen.questions.evidence import Evidence, class_words
from data_gen.questions.filters import answer_verdict, samples_agree, untrusted_text
from data_gen.questions.tasks import TaughtQuestion
from data_gen.tables import ACCEPTED
from data_gen.teacher import OfflineTeacher, Rejection, Request, Teacher, request_key

Answers = Mapping[str, Sequence[str]]
_BATCH = 64


def judge(lesson: Lesson, teacher: Teacher) -> None:
    """Put every row that may be taught among the drafts."""
    with asyncio.Runner() as runner:
        _Judge(lesson, runner).judge(teacher)


class _Judge:
    """Reads replies in the order of the requests; what is to be written waits until it is worth a commit."""

    def __init__(self, lesson: Lesson, runner: asyncio.Runner) -> None:
        self._lesson, self._runner = lesson, runner
        self._classes = sorted({*lesson.labels, *class_words()})
        self._rows: list[dict[str, Any]] = []
        self._booked: list[dict[str, Any]] = []

    def judge(self, teacher: Teacher) -> None:
        position = itertools.count()
        for shown, request, by in Requests(self._lesson)(teacher):
            if request.sample:
                continue
            answers, model = self._answers(by, request)
            answers = self._agreed(request, answers, by) if answers else answers
            told_by = {"name": by.name, "model": model, **by.params}
            if isinstance(by, HostedTeacher) and (adapted := by.dialect.adaptations):
                # What it was not asked as its parameters say, where its endpoint refused that.
                told_by["adapted"] = {adaptation.parameter: adaptation.instead for adaptation in adapted}
            for question in request.questions:
                if question.id in answers and (
                    row := self._row(question, answers[question.id], shown, request, told_by)
                ):
                    self._rows.append({"position": next(position), **row})
            if len(self._booked) >= _BATCH:
                self._flush()
        self._flush()

    def _flush(self) -> None:
        self._lesson.ledger.record(self._booked)
        self._lesson.drafts.add_rows(self._rows)
        self._booked, self._rows = [], []

    def _answers(self, teacher: Teacher, request: Request) -> tuple[Answers, str]:
        """The answers of the teacher, empty where it has none, and the model that gave them."""
        if isinstance(teacher, HostedTeacher):
            return self._booked_answers(teacher, request)
        try:
            reply = (
                teacher.compose(request)
                if isinstance(teacher, OfflineTeacher)
                else self._runner.run(teacher.answer(request, ()))
            )
        except Rejection as rejection:
            self._lesson.reject(rejection.code, images=list(request.images), task=request.task, raw=rejection.raw)
            return {}, ""
        self._booked.append(
            {
                "key": request_key(teacher, request),
                "images": " ".join(request.images),
                "prompt": request.prompt,
                "teacher": teacher.name,
                "model": reply.model,
                "reply": as_kept(reply),
            }
        )
        return reply.answers, reply.model

    def _booked_answers(self, teacher: HostedTeacher, request: Request) -> tuple[Answers, str]:
        exchange = self._lesson.ledger.exchange(request_key(teacher, request))
        if exchange is None or exchange.verdict in OPEN_VERDICTS:
            self._lesson.report.unanswered += 1
            if exchange is not None and exchange.reply:
                self._lesson.note_open(
                    exchange.verdict, images=list(request.images), task=request.task, raw=exchange.reply
                )
            return {}, ""
        if exchange.verdict != ACCEPTED:
            self._lesson.reject(exchange.verdict, images=list(request.images), task=request.task, raw=exchange.reply)
            return {}, ""
        return json.loads(exchange.reply), exchange.model

    def _agreed(self, request: Request, answers: Answers, teacher: Teacher) -> Answers:
        """The answers that a hosted teacher gave alike every time; without one of the samples, none."""
        if not isinstance(teacher, HostedTeacher):
            return answers
        again = (replace(request, sample=sample) for sample in range(1, self._lesson.config.samples))
        samples = [answers, *(self._booked_answers(teacher, other)[0] for other in again)]
        if not all(samples):
            return {}
        agreed = {}
        for name, wordings in answers.items():
            if samples_agree(targets := [sample[name][0] for sample in samples]):
                agreed[name] = wordings
            else:
                self._lesson.reject("samples_disagree", images=list(request.images), item=name, raw=targets)
        return agreed

    def _row(
        self,
        question: TaughtQuestion,
        wordings: Sequence[str],
        shown: tuple[Evidence, ...],
        request: Request,
        teacher: Mapping[str, Any],
    ) -> dict[str, Any] | None:
        """A candidate row, or None where the answer may not be taught."""
        offline, files = teacher["name"] == OfflineTeacher.name, [evidence.path for evidence in shown]
        if offline:
            verdict = untrusted_text([shown[0].label or "", question.text, request.known, *wordings])
        else:  # its form, the facts, or the class may be against what a hosted teacher told
            facts, known = [evidence.facts for evidence in shown], f"{request.known} {question.text}"
            verdict = answer_verdict(wordings, facts=question.answers, known=known) or claim_verdict(
                wordings, facts=facts, label=common_label(shown), classes=self._classes
            )
        if verdict is not None:
            self._lesson.reject(verdict, files=files, item=question.id, question=question.text, raw=list(wordings))
            return None
        stays = not self._lesson.staying.isdisjoint(files)
        row = row_of(question, wordings, shown, teacher=teacher, stays=stays)
        record = {"files": files, "sha256": list(request.images), "row": row}
        return {
            "split": shown[0].split,
            "question": question.canonical,
            "answer": question.canonical_answer if offline else wordings[0].lower(),
            "record": json.dumps(record, ensure_ascii=False),
        }

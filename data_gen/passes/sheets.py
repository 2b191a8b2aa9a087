"""The knowledge sheet of every class of a data set: a hosted teacher's, else the authored one, else what was measured.

Knows nothing about asking.
"""

from __future__ import annotations

import json

from assistant.errors import DatasetError
from data_gen.hosted.correspondence import OPEN_VERDICTS
from data_gen.knowledge import KnowledgeSheet, knowledge_sheets, measured_sheet, save_sheet, sheet_of, sheet_request
from data_gen.passes.lesson import Lesson
from data_gen.tables import ACCEPTED
from data_gen.teacher import Rejection, Teacher, request_key

MOST_PER_SHEET = 200
"""Pictures that a measured sheet rests on."""


def write_sheets(lesson: Lesson, teacher: Teacher) -> None:
    """Write one sheet for each class into `knowledge/`."""
    for label in lesson.labels:
        sheet: KnowledgeSheet | None = None
        exchange = lesson.ledger.exchange(request_key(teacher, sheet_request(label)))
        if exchange is not None and exchange.verdict == ACCEPTED:
            try:
                sheet = sheet_of(json.loads(exchange.reply))
            except Rejection as rejection:
                lesson.reject(rejection.code, item=f"sheet of {label}", raw=rejection.raw)
        elif exchange is not None:
            lesson.report.unanswered += exchange.verdict in OPEN_VERDICTS
        if sheet is None:
            try:
                sheet = knowledge_sheets([label])[label]
            except DatasetError:
                shown = [position for position, split, name in lesson.taught if name == label and split == "train"]
                sheet = measured_sheet(label, [lesson.evidence(position).facts for position in shown[:MOST_PER_SHEET]])
        save_sheet(label, sheet, lesson.out / "knowledge")

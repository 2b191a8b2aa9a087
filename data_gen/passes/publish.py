"""Last pass: the rows that need their picture are written with it, as people left them; the card comes last.

Knows nothing about teachers or measuring.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

from assistant.errors import DatasetError
from data_gen.catalogue import SPLITS
from data_gen.dataset.card import RowCounts, dataset_card, write_examples
from data_gen.dataset.decisions import applied, decisions_about
from data_gen.dataset.writer import SplitWriter, write_card
from data_gen.passes.drafts import Row
from data_gen.passes.examine import prepared_pictures
from data_gen.passes.lesson import Lesson
from data_gen.questions.evidence import chance
from data_gen.questions.filters import blind_answers, blind_scores
from data_gen.questions.tasks import by_facet


def publish(lesson: Lesson, teacher: str) -> None:
    """Write the data set: its splits, the list of rejections, the card. All of it, or what was there before stays."""
    counts, tally, checksums = lesson.drafts.answer_counts("train"), RowCounts(), {}
    drawn = _Drawn(lesson, counts)
    with contextlib.ExitStack() as files:
        writers: list[SplitWriter] = []
        for split in SPLITS:
            writers.append(files.enter_context(contextlib.closing(SplitWriter(lesson.out / "data", split))))
        for writer in writers:
            _write_split(lesson, writer, drawn, tally)
            checksum = writer.finish()
            if writer.rows:
                checksums[writer.split] = checksum
        for writer in writers:
            writer.publish()
    report = lesson.report
    report.images = len(lesson.taught)
    report.rejected = dict(sorted(lesson.rejected.items()))
    report.rows = {split: dict(sorted(tally.rows[split].items())) for split in SPLITS if split in tally.rows}
    if "test" not in report.rows:
        report.warnings.append("There is no test split: no label has two groups or more.")
    lesson.rejections.publish()
    text = dataset_card(
        tally,
        images=report.images,
        teacher=teacher,
        rejected=report.rejected,
        checksums=checksums,
        warnings=report.warnings,
        cost_usd=lesson.ledger.spent_usd(),
        blind=by_facet(blind_scores(counts)),
        examples=write_examples(lesson.out, tally),
    )
    write_card(lesson.out, text)


def _write_split(lesson: Lesson, writer: SplitWriter, drawn: _Drawn, tally: RowCounts) -> None:
    """Write the rows of a split, each with its pictures.

    Raises DatasetError `changed` for a file that is no longer what was measured.
    """
    for rows, shown in lesson.examiner.map(prepared_pictures, drawn.of(writer.split)):
        found = dict(shown or ())
        for record in rows:
            if not found.keys() >= set(record["sha256"]):
                raise DatasetError(
                    "changed", f"{record['files']} changed while it was being taught. Run the same command again."
                )
            seen = [found[digest] for digest in record["sha256"]]
            writer.add(record["row"], seen)
            tally.add(writer.split, record["row"], seen)
        lesson.progress(writer.rows, writer.rows, f"writing {writer.split}")


class _Drawn:
    """The candidate rows that stay: not those that need no picture, nor those that a person rejected."""

    def __init__(self, lesson: Lesson, counts: list[tuple[str, int, int, str]]) -> None:
        self._lesson = lesson
        self._predictable = blind_answers(counts)
        self._decisions = decisions_about(lesson.out)

    def of(self, split: str) -> Iterator[tuple[list[dict[str, Any]], tuple[str, ...] | None]]:
        """Rows about the same first picture, as people left them, and the files they show."""
        drawn = (json.loads(row.record) for row in self._lesson.drafts.rows(split) if not self._blind(row))
        kept = (record for record in drawn if self._reviewed(record))
        for _, group in itertools.groupby(kept, key=lambda record: record["files"][0]):
            rows = list(group)
            files = dict.fromkeys(file for record in rows for file in record["files"])
            yield rows, tuple(str(self._lesson.catalogue.root / file) for file in files)

    def _blind(self, row: Row) -> bool:
        """True for a row that is one too many of those that need no picture; which ones stay is drawn by row."""
        answer, share = self._predictable.get(row.question, ("", 1.0))
        if row.answer != answer:
            return False
        record = json.loads(row.record)["row"]
        if chance(self._lesson.config.seed, record["id"], "blind").random() < share:
            return False
        self._lesson.reject("blind_answerable", id=record["id"], question=row.question, raw=record["references"])
        return True

    def _reviewed(self, record: dict[str, Any]) -> bool:
        """False for a row that a person rejected; one that a person edited is changed in place."""
        decision = self._decisions.get(record["row"]["id"])
        row = applied(record["row"], decision)
        if row is None and decision is not None:
            told = {"by": decision.reviewer, "at": decision.decided_at, "because": decision.reason}
            self._lesson.reject("reviewer", id=record["row"]["id"], raw=record["row"]["references"], **told)
            return False
        record["row"] = row
        return True

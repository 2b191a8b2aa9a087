"""From a folder of micrographs to an instruction data set. `teach` is the way in.

Four passes, each of which holds a bounded number of pictures: read and measure every file (`specimens`), ask the hosted
teacher, if there is one (`consultation`), turn replies into rows and judge them (`judge`), write the rows with their
pictures (`publish`). What cost time or money stands in the ledger, so the same command after any interruption goes on
and ends in the same files.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.disk import disk_errors
from assistant.errors import DatasetError
from assistant.progress import Progress
from data_gen.catalogue import Catalogue
from data_gen.dataset.writer import LineWriter
from data_gen.hosted.egress import Consent, destination_of
from data_gen.ledger import Ledger
from data_gen.passes.consultation import consult
from data_gen.passes.drafts import Drafts
from data_gen.passes.examine import Examiner
from data_gen.passes.judge import judge
from data_gen.passes.lesson import Lesson
from data_gen.passes.publish import publish
from data_gen.passes.sheets import write_sheets
from data_gen.passes.specimens import examine_folder
from data_gen.passes.teach_report import TeachReport
from data_gen.teacher import OfflineTeacher, Teacher

if TYPE_CHECKING:
    from assistant.config import TeachConfig


def teach(
    images: Path,
    out: Path,
    *,
    config: TeachConfig,
    budget_usd: float | None = None,
    allow_egress: Consent = False,
    estimate: bool = False,
    sheets: bool = False,
    progress: Progress | None = None,
    teacher: Teacher | None = None,
    workers: int | None = None,
) -> TeachReport:
    """Make the instruction data set `out` from the micrographs under `images`.

    `budget_usd` bounds what the data set may cost in all, over every run [USD]. `allow_egress` is leave to send what
    the manifest lists: its sha256, or True for a caller who answers for it. `estimate` asks a few requests, tells what
    all would cost, and writes no rows. `sheets` writes the knowledge sheet of every class too. `teacher` replaces the
    configured one (a `ReplayTeacher`, say). `workers` processes read and measure; None takes one per core, 1 stays in
    this one.

    Raises DatasetError (`disk_full` and `disk` too), TeacherError (`no_key`, `no_price`) or EgressError (`denied`). A
    teacher that gives up in the middle is told in the report, and what it answered is written.
    """
    started = time.perf_counter()
    hosted = config.teacher == "openai" and teacher is None
    with disk_errors(out, DatasetError, writes_only=False), _lesson(images, out, config, workers) as lesson:
        lesson.progress = progress or lesson.progress
        examine_folder(lesson, destination_of(config.base_url) if hosted else None)
        if hosted:
            teacher = consult(lesson, budget_usd, allow_egress=allow_egress, probe=estimate, sheets=sheets)
        teacher = teacher or OfflineTeacher()
        if not estimate:
            if sheets:
                write_sheets(lesson, teacher)
            judge(lesson, teacher)
            publish(lesson, teacher.name)
        lesson.report.cost_usd = lesson.ledger.spent_usd()
        lesson.report.seconds = time.perf_counter() - started
        return lesson.report


@contextmanager
def _lesson(images: Path, out: Path, config: TeachConfig, workers: int | None) -> Iterator[Lesson]:
    """Open all that the passes share."""
    if not images.is_dir():
        raise DatasetError("not_found", f"{images} is not a folder. Name a folder of micrographs.")
    shares = {"validation": config.splits.validation, "test": config.splits.test}
    catalogue = Catalogue(images, shares=shares, seed=config.seed, keep=config.keep)
    with contextlib.ExitStack() as opened:
        ledger = opened.enter_context(Ledger(out / "ledger.sqlite"))
        report = TeachReport(out, warnings=list(catalogue.warnings))
        if ledger.damaged:
            report.warnings.append(f"{ledger.damaged} damaged rows of the ledger were set aside.")
        yield Lesson(
            catalogue,
            out,
            config,
            ledger=ledger,
            drafts=opened.enter_context(Drafts(out / ".drafts.sqlite")),
            examiner=opened.enter_context(Examiner(workers, jobs=catalogue.count)),
            rejections=opened.enter_context(contextlib.closing(LineWriter(out / "rejected.jsonl"))),
            report=report,
        )

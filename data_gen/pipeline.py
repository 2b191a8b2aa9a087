"""From a folder of micrographs to an instruction data set: examine, ask, judge, write. `teach` is the way in.

Four passes, each of which holds a bounded number of pictures: (1) read and measure every file, (2) ask the hosted
teacher, if there is one, (3) turn replies into rows and judge them, (4) write the rows with their pictures. What cost
time or money stands in the ledger, so the same command after any interruption goes on and ends in the same files.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant.chat import number_lines
from assistant.errors import DatasetError, MicrographError
from data_gen.card import Tally, card, write_examples
from data_gen.catalogue import SPLITS, Catalogue, Entry, in_pair_order, pair_up
from data_gen.claims import claim_verdict
from data_gen.consultation import MANIFEST, Asked, Consultation
from data_gen.desk import OPEN_VERDICTS, told
from data_gen.drafts import Drafts, Row
from data_gen.egress import Consent, Item, destination_of
from data_gen.evidence import Evidence, chance, class_words, known_text
from data_gen.examine import Examiner, content_digest, examine, pictures
from data_gen.filters import NearDuplicates, answer_verdict, blind_answers, blind_scores, samples_agree, untrusted_text
from data_gen.knowledge import Sheet, knowledge_sheets, measured_sheet, save_sheet, sheet_of, sheet_request
from data_gen.ledger import Ledger
from data_gen.redaction import shareable
from data_gen.replies import Rejection
from data_gen.report import TeachReport
from data_gen.review import Decision, applied, decisions_about
from data_gen.rows import common_label, row_of
from data_gen.tables import ACCEPTED
from data_gen.tasks import PER_IMAGE, Question, by_facet, conversation_about, questions_about, questions_comparing
from data_gen.teacher import HostedTeacher, OfflineTeacher, Request, Teacher, request_key
from data_gen.writer import LineWriter, SplitWriter, write_card

if TYPE_CHECKING:
    from assistant.config import TeachConfig

Progress = Callable[[int, int, str], None]
Answers = Mapping[str, Sequence[str]]
FACTUAL_TASKS = frozenset({"classification", "metadata", "conversation"})
"""Answered from facts whoever the teacher is: there is nothing to see."""
MOST_PER_SHEET = 200
BATCH = 64


@dataclass
class _Job:
    """One file on its way through examination."""

    entry: Entry
    split: str
    key: str = ""
    record: dict[str, Any] | None = None


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

    Raises DatasetError, TeacherError (`no_key`, `no_price`) or EgressError (`denied`). A teacher that gives up in the
    middle is told in the report, and what it answered is written.
    """
    started = time.perf_counter()
    if not images.is_dir():
        raise DatasetError("not_found", f"{images} is not a folder. Name a folder of micrographs.")
    shares = {"validation": config.splits.validation, "test": config.splits.test}
    catalogue = Catalogue(images, shares=shares, seed=config.seed, keep=config.keep)
    hosted = config.teacher == "openai" and teacher is None
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger(out / "ledger.sqlite"))
        lesson = _Lesson(
            catalogue,
            out,
            config,
            ledger=ledger,
            drafts=stack.enter_context(Drafts(out / ".drafts.sqlite")),
            examiner=stack.enter_context(Examiner(workers, jobs=catalogue.count)),
            rejections=stack.enter_context(contextlib.closing(LineWriter(out / "rejected.jsonl"))),
            progress=progress or (lambda *_: None),
        )
        stack.enter_context(lesson.open_files)
        lesson.examine(destination_of(config.base_url) if hosted else None)
        if hosted:
            teacher = lesson.consult(budget_usd, allow_egress=allow_egress, probe=estimate, sheets=sheets)
        if sheets and not estimate:
            lesson.write_sheets(teacher or OfflineTeacher())
        if not estimate:
            lesson.judge(teacher or OfflineTeacher())
            lesson.write(teacher or OfflineTeacher())
        lesson.report.cost_usd = ledger.spent_usd()
        lesson.report.seconds = time.perf_counter() - started
        return lesson.report


class _Lesson:
    """One run over one folder: the state that the passes share."""

    def __init__(
        self,
        catalogue: Catalogue,
        out: Path,
        config: TeachConfig,
        *,
        ledger: Ledger,
        drafts: Drafts,
        examiner: Examiner,
        rejections: LineWriter,
        progress: Progress,
    ) -> None:
        self.catalogue, self.out, self.config = catalogue, out, config
        self.ledger, self.drafts, self.examiner, self.rejections = ledger, drafts, examiner, rejections
        self.progress = progress
        self.open_files = contextlib.ExitStack()
        self.report = TeachReport(out, warnings=list(catalogue.warnings))
        self.rejected: Counter[str] = Counter()
        self.taught: list[tuple[int, str, str | None]] = []
        """Position, split and label of every usable picture, in the order of the data set."""
        self._offline = OfflineTeacher()
        self.staying: set[str] = set()
        """Names of the pictures that must not leave."""
        self.labels: frozenset[str] = frozenset()
        self._forgotten = ledger.forgotten()
        if ledger.damaged:
            self.report.warnings.append(f"{ledger.damaged} damaged rows of the ledger were set aside.")

    # ----------------------------------------------------------------------------------------------- 1. examine

    def examine(self, destination: str | None) -> None:
        """Read and measure every file that the ledger does not know, and list what would leave the machine."""
        with contextlib.ExitStack() as stack:
            manifest = None
            if destination is not None:
                manifest = stack.enter_context(contextlib.closing(LineWriter(self.out / MANIFEST)))
            for evidence, sent in self._evidences(destination):
                if manifest is not None and destination is not None and evidence.path not in self.staying:
                    manifest.write(asdict(_item(shareable(evidence, self.config.redact), sent, destination)))
            if manifest is not None:
                manifest.publish()
        self.labels = frozenset(label for _, _, label in self.taught if label)
        self.taught = in_pair_order(self.taught, seed=self.config.seed)

    def _evidences(self, destination: str | None) -> Iterator[tuple[Evidence, dict[str, Any]]]:
        """What is known of every usable picture, and of the copy that would be sent; near-duplicates are left out."""
        duplicates = NearDuplicates(self.config.near_duplicate_bits)
        pending: list[tuple[int, dict[str, Any]]] = []
        for done, (job, fresh) in enumerate(self.examiner.map(examine, self._jobs(destination)), start=1):
            self.progress(done, self.catalogue.count, "measuring")
            record = self._record(job, fresh)
            if record is None or record["sha256"] in self._forgotten:
                continue
            # An even picture has no hash to compare.
            twin = duplicates.add(job.entry.position, record["dhash"]) if record["dhash"] else None
            if twin is None:
                evidence = self._evidence_of(job, record)
                pending.append((job.entry.position, asdict(evidence)))
                yield evidence, record.get("sent", {})
            if twin is not None or len(pending) == BATCH:
                self.drafts.add_specimens(pending)
                pending = []
            if twin is not None:
                self._reject("near_duplicate", files=[job.entry.name], of=self._evidence(twin).path)
        self.drafts.add_specimens(pending)

    def _jobs(self, destination: str | None) -> Iterator[tuple[_Job, tuple[str, bool, int | None] | None]]:
        longest = self.config.downscale if destination else None
        for entry, split in self.catalogue:
            path, job = self.catalogue.root / entry.name, _Job(entry, split)
            try:
                job.key = content_digest(path) + (f":{longest}" if destination else "")
                job.record = self.ledger.measurement(job.key)
            except MicrographError as error:
                job.record = {"error": {"code": error.code, "message": error.message}}
            yield job, None if job.record else (str(path), destination is not None, longest)

    def _record(self, job: _Job, fresh: dict[str, Any] | None) -> dict[str, Any] | None:
        """The record of a file, from the ledger or fresh (then it goes there); None for one that cannot be read."""
        record = job.record or fresh or {}
        if "error" in record:
            self._reject("unreadable", files=[job.entry.name], **record["error"])
            return None
        if fresh is not None and fresh["sha256"] not in self._forgotten:
            self.ledger.add_measurement(job.key, fresh)
        return record

    def _evidence_of(self, job: _Job, record: Mapping[str, Any]) -> Evidence:
        entry, label = job.entry, job.entry.label
        if entry.stays:
            self.staying.add(entry.name)
        self.taught.append((entry.position, job.split, label and sys.intern(label)))
        names = ("sha256", "size", "nm_per_pixel", "instrument", "facts", "metadata_line", "facts_line")
        return Evidence(
            path=entry.name,
            label=label,
            group=entry.group,
            split=job.split,
            source=entry.source,
            truth=entry.truth,
            true_nm_per_pixel=entry.nm_per_pixel,
            **{name: record[name] for name in names},
        )

    def _evidence(self, position: int) -> Evidence:
        return Evidence(**self.drafts.specimen(position))

    def _reject(self, reason: str, **about: Any) -> None:
        self.rejected[reason] += 1
        self.rejections.write({"reason": reason, **about})

    # ------------------------------------------------------------------------------------------------ requests

    def _requests(self, teacher: Teacher) -> Iterator[Asked]:
        """Every request of the data set in a fixed order, picture by picture, with who is to answer it."""
        pairs = pair_up(self.taught, seed=self.config.seed) if "comparison" in self.config.tasks else {}
        labels = Counter(label for _, _, label in self.taught if label)
        for done, (position, _, _) in enumerate(self.taught, start=1):
            evidence = self._evidence(position)
            for task in self.config.tasks:
                if task != "comparison":
                    yield from self._request((evidence,), task, teacher, labels)
                elif position in pairs:
                    yield from self._request((evidence, self._evidence(pairs[position])), task, teacher, labels)
            if "vqa" in self.config.tasks:
                yield from self._conversation(evidence)
            self.progress(done, len(self.taught), "asking")

    def _conversation(self, evidence: Evidence) -> Iterator[Asked]:
        config = self.config
        if turn := conversation_about(evidence, seed=config.seed, paraphrases=config.paraphrases):
            request = Request((evidence.sha256,), "conversation", (turn,), known_text(evidence))
            yield (evidence,), request, self._offline

    def _request(
        self, shown: tuple[Evidence, ...], task: str, teacher: Teacher, labels: Mapping[str, int]
    ) -> Iterator[Asked]:
        config = self.config
        stays = any(evidence.path in self.staying for evidence in shown)
        by = self._offline if stays or task in FACTUAL_TASKS else teacher
        said = shown if by is self._offline else tuple(shareable(evidence, config.redact) for evidence in shown)
        count = config.questions_per_image if task == "vqa" else PER_IMAGE.get(task, 1)
        about = functools.partial(questions_about, task=task, labels=labels)
        ask = questions_comparing if len(shown) == 2 else about
        questions = ask(*said, seed=config.seed, count=count, paraphrases=config.paraphrases, looking=by.looks)
        if questions:
            images = tuple(evidence.sha256 for evidence in shown)
            known = number_lines([known_text(evidence) for evidence in said])
            request = Request(images, task, tuple(questions), known, config.paraphrases)
            for sample in range(config.samples if isinstance(by, HostedTeacher) else 1):
                yield shown, replace(request, sample=sample), by

    # --------------------------------------------------------------------------------------------- 2. ask a host

    def consult(self, budget_usd: float | None, *, allow_egress: Consent, probe: bool, sheets: bool) -> Teacher:
        """Ask the hosted teacher everything that the ledger holds no answer to; with `probe`, a few requests only."""
        visit = Consultation(
            self._requests, self.catalogue.root, self.out, self.config, ledger=self.ledger, report=self.report
        )
        labels = sorted(self.labels) if sheets else []
        return asyncio.run(visit.ask(budget_usd, allow_egress=allow_egress, probe=probe, sheets=labels))

    def write_sheets(self, teacher: Teacher) -> None:
        """Write the sheet of every class: the hosted teacher's, else the authored one, else what was measured."""
        for label in sorted(self.labels):
            save_sheet(label, self._sheet(label, teacher), self.out / "knowledge")

    def _sheet(self, label: str, teacher: Teacher) -> Sheet:
        exchange = self.ledger.exchange(request_key(teacher, sheet_request(label)))
        if exchange is not None and exchange.verdict == ACCEPTED:
            try:
                return sheet_of(json.loads(exchange.reply))
            except Rejection as rejection:
                self._reject(rejection.code, item=f"sheet of {label}", raw=rejection.raw)
        elif exchange is not None:
            self.report.unanswered += exchange.verdict in OPEN_VERDICTS
        try:
            return knowledge_sheets([label])[label]
        except DatasetError:
            shown = [position for position, split, name in self.taught if name == label and split == "train"]
            seen = [self._evidence(position).facts for position in shown[:MOST_PER_SHEET]]
            return measured_sheet(label, seen)

    # ------------------------------------------------------------------------------------------------- 3. judge

    def judge(self, teacher: Teacher) -> None:
        """Turn replies into candidate rows, and everything else into named rejections."""
        rows: list[dict[str, Any]] = []
        booked: list[dict[str, Any]] = []
        position = itertools.count()
        with asyncio.Runner() as runner:
            for shown, request, by in self._requests(teacher):
                if request.sample:
                    continue
                answers, model = self._answers(by, request, runner, booked)
                answers = self._agreed(request, answers, by, runner) if answers else answers
                told_by = {"name": by.name, "model": model, **by.params}
                for question in request.questions:
                    if question.id not in answers:
                        continue
                    if row := self._row(question, answers[question.id], shown, request, told_by):
                        rows.append({"position": next(position), **row})
                if len(booked) >= BATCH:
                    self._flush(booked, rows)
        self._flush(booked, rows)

    def _flush(self, booked: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
        self.ledger.record(booked)
        self.drafts.add_rows(rows)
        booked.clear()
        rows.clear()

    def _answers(
        self, teacher: Teacher, request: Request, runner: asyncio.Runner, booked: list[dict[str, Any]]
    ) -> tuple[Answers, str]:
        """The answers of the teacher, empty where it has none, and the model that gave them.

        A teacher of this machine is asked here and now.
        """
        key, files = request_key(teacher, request), list(request.images)
        if isinstance(teacher, HostedTeacher):
            exchange = self.ledger.exchange(key)
            if exchange is None or exchange.verdict in OPEN_VERDICTS:
                self.report.unanswered += 1
                return {}, ""
            if exchange.verdict != ACCEPTED:
                self._reject(exchange.verdict, images=files, task=request.task, raw=exchange.reply)
                return {}, ""
            return json.loads(exchange.reply), exchange.model
        try:
            reply = (
                teacher.compose(request)
                if isinstance(teacher, OfflineTeacher)
                else runner.run(teacher.answer(request, ()))
            )
        except Rejection as rejection:
            self._reject(rejection.code, images=files, task=request.task, raw=rejection.raw)
            return {}, ""
        booked.append(
            {
                "key": key,
                "images": " ".join(files),
                "prompt": request.prompt,
                "teacher": teacher.name,
                "model": reply.model,
                "reply": told(reply),
            }
        )
        return reply.answers, reply.model

    def _agreed(self, request: Request, answers: Answers, teacher: Teacher, runner: asyncio.Runner) -> Answers:
        """The answers that a hosted teacher gave alike every time; without one of the samples, none."""
        if not isinstance(teacher, HostedTeacher):
            return answers
        again = (replace(request, sample=sample) for sample in range(1, self.config.samples))
        samples = [answers, *(self._answers(teacher, other, runner, [])[0] for other in again)]
        if not all(samples):
            return {}
        agreed = {}
        for name, wordings in answers.items():
            if samples_agree(targets := [sample[name][0] for sample in samples]):
                agreed[name] = wordings
            else:
                self._reject("samples_disagree", images=list(request.images), item=name, raw=targets)
        return agreed

    def _row(
        self,
        question: Question,
        wordings: Sequence[str],
        shown: tuple[Evidence, ...],
        request: Request,
        teacher: Mapping[str, Any],
    ) -> dict[str, Any] | None:
        """A candidate row, or None where the answer may not be taught."""
        offline, label = teacher["name"] == OfflineTeacher.name, common_label(shown)
        if offline:
            verdict = untrusted_text([shown[0].label or "", question.text, request.known, *wordings])
        else:
            known = f"{request.known} {question.text}"
            classes = sorted(self.labels | class_words().keys())
            verdict = answer_verdict(wordings, facts=question.answers, known=known) or claim_verdict(
                wordings, facts=[evidence.facts for evidence in shown], label=label, classes=classes
            )
        files = [evidence.path for evidence in shown]
        if verdict is not None:
            self._reject(verdict, files=files, item=question.id, question=question.text, raw=list(wordings))
            return None
        row = row_of(question, wordings, shown, teacher=teacher)
        record = {"files": files, "sha256": list(request.images), "row": row}
        return {
            "split": shown[0].split,
            "question": question.canonical,
            "answer": question.canonical_answer if offline else wordings[0].lower(),
            "record": json.dumps(record, ensure_ascii=False),
        }

    # ------------------------------------------------------------------------------------------------- 4. write

    def write(self, teacher: Teacher) -> None:
        """Write the rows that need their picture, with it; the card comes last."""
        counts, decisions = self.drafts.answer_counts("train"), decisions_about(self.out)
        predictable, tally = blind_answers(counts), Tally()
        writers: dict[str, SplitWriter] = {}
        for split in SPLITS:
            writers[split] = self.open_files.enter_context(contextlib.closing(SplitWriter(self.out / "data", split)))
        checksums = {}
        for split, writer in writers.items():
            for rows, shown in self.examiner.map(pictures, self._drawn(split, predictable, decisions)):
                found = dict(shown or ())
                for record in rows:
                    missing = [file for file in record["sha256"] if file not in found]
                    if missing:
                        raise DatasetError(
                            "changed",
                            f"{record['files']} changed while it was being taught. Run the same command again.",
                        )
                    seen = [found[digest] for digest in record["sha256"]]
                    writer.add(record["row"], seen)
                    tally.add(split, record["row"], seen)
                self.progress(writer.rows, writer.rows, f"writing {split}")
            checksums[split] = writer.finish()
            if writer.rows:
                self.report.rows[split] = dict(sorted(tally.rows[split].items()))
            elif split == "test":
                self.report.warnings.append("There is no test split: no label has two groups or more.")
        self.report.images = len(self.taught)
        self.report.rejected = dict(sorted(self.rejected.items()))
        for writer in writers.values():
            writer.publish()
        self.rejections.publish()
        report = self.report
        text = card(
            tally,
            images=report.images,
            teacher=teacher.name,
            rejected=report.rejected,
            checksums={split: checksums[split] for split in report.rows},
            warnings=report.warnings,
            cost_usd=self.ledger.spent_usd(),
            blind=by_facet(blind_scores(counts)),
            examples=write_examples(self.out, tally),
        )
        write_card(self.out, text)

    def _drawn(
        self, split: str, predictable: Mapping[str, tuple[str, float]], decisions: Mapping[str, Decision]
    ) -> Iterator[tuple[list[dict[str, Any]], tuple[str, ...] | None]]:
        """Rows about the same first picture, as people left them, and the files they show."""
        drawn = (json.loads(row.record) for row in self.drafts.rows(split) if not self._blind(row, predictable))
        kept = (record for record in drawn if self._reviewed(record, decisions))
        for _, group in itertools.groupby(kept, key=lambda record: record["files"][0]):
            rows = list(group)
            files = dict.fromkeys(file for record in rows for file in record["files"])
            yield rows, tuple(str(self.catalogue.root / file) for file in files)

    def _reviewed(self, record: dict[str, Any], decisions: Mapping[str, Decision]) -> bool:
        """False for a row that a person rejected; one that a person edited is changed in place."""
        decision = decisions.get(record["row"]["id"])
        row = applied(record["row"], decision)
        if row is None and decision is not None:
            told = {"by": decision.reviewer, "at": decision.decided_at, "because": decision.reason}
            self._reject("reviewer", id=record["row"]["id"], raw=record["row"]["references"], **told)
            return False
        record["row"] = row
        return True

    def _blind(self, row: Row, predictable: Mapping[str, tuple[str, float]]) -> bool:
        """True for a row that is one too many of those that need no picture; which ones stay is drawn by row."""
        answer, share = predictable.get(row.question, ("", 1.0))
        record = json.loads(row.record)["row"]
        if row.answer != answer or chance(self.config.seed, record["id"], "blind").random() < share:
            return False
        self._reject("blind_answerable", id=record["id"], question=row.question, raw=record["references"])
        return True


def _item(evidence: Evidence, sent: Mapping[str, Any], destination: str) -> Item:
    words = known_text(evidence)
    return Item(evidence.path, evidence.sha256, sent["sha256"], sent["bytes"], words, destination)

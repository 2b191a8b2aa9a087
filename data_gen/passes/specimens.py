"""First pass: every file of the folder is read and measured, and listed where a copy of it would leave the machine.

What the ledger knows is not measured again. Knows nothing about questions, teachers or rows.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from assistant.errors import MicrographError
from data_gen.catalogue import CatalogueEntry, in_pair_order
from data_gen.dataset.writer import LineWriter
from data_gen.hosted.egress import EGRESS_LIST, ManifestItem
from data_gen.hosted.redaction import shareable
from data_gen.passes.examine import content_digest, examine_files
from data_gen.passes.lesson import Lesson
from data_gen.questions.evidence import Evidence, known_text
from data_gen.questions.filters import NearDuplicates

_BATCH = 64
KNOWN = ("sha256", "size", "nm_per_pixel", "instrument", "facts", "metadata_line", "facts_line")
"""What the record of a measurement says of a picture."""


def examine_folder(lesson: Lesson, destination: str | None) -> None:
    """Make the evidence of every usable picture; with a destination, the list of what would leave for it as well."""
    specimens = _Specimens(lesson, destination)
    if destination is None:
        for _ in specimens:
            pass
    else:
        with contextlib.closing(LineWriter(lesson.out / EGRESS_LIST)) as manifest:
            for evidence, sent in specimens:
                if evidence.path not in lesson.staying:
                    words, copy = known_text(shareable(evidence, lesson.config.redact)), (sent["sha256"], sent["bytes"])
                    manifest.write(asdict(ManifestItem(evidence.path, evidence.sha256, *copy, words, destination)))
            manifest.publish()
    lesson.taught = in_pair_order(specimens.taught, seed=lesson.config.seed)


def evidence_of(entry: CatalogueEntry, split: str, record: Mapping[str, Any]) -> Evidence:
    """What the catalogue and the measurement know of one picture."""
    return Evidence(
        path=entry.name,
        label=entry.label,
        group=entry.group,
        split=split,
        source=entry.source,
        truth=entry.truth,
        true_nm_per_pixel=entry.nm_per_pixel,
        **{name: record[name] for name in KNOWN},
    )


@dataclass
class _Job:
    """One file on its way through examination."""

    entry: CatalogueEntry
    split: str
    key: str = ""
    record: dict[str, Any] | None = None


class _Specimens:
    """The pictures of a folder, one at a time: what is known of each, and of the copy that would be sent."""

    def __init__(self, lesson: Lesson, destination: str | None) -> None:
        self._lesson = lesson
        self._listed = destination is not None
        self._forgotten = lesson.ledger.forgotten()
        self.taught: list[tuple[int, str, str | None]] = []

    def __iter__(self) -> Iterator[tuple[Evidence, dict[str, Any]]]:
        lesson, duplicates = self._lesson, NearDuplicates(self._lesson.config.near_duplicate_bits)
        pending: list[tuple[int, dict[str, Any]]] = []
        for done, (job, fresh) in enumerate(lesson.examiner.map(examine_files, self._jobs()), start=1):
            lesson.progress(done, lesson.catalogue.count, "measuring")
            record, entry = job.record or fresh or {}, job.entry
            if "error" in record:
                lesson.reject("unreadable", files=[entry.name], **record["error"])
                continue
            if record["sha256"] in self._forgotten:
                continue
            if fresh is not None:
                lesson.ledger.add_measurement(job.key, fresh)
            twin = duplicates.add(entry.position, record["dhash"], record["sha256"])
            if twin is None:
                if entry.stays:
                    lesson.staying.add(entry.name)
                self.taught.append((entry.position, job.split, entry.label and sys.intern(entry.label)))
                evidence = evidence_of(entry, job.split, record)
                pending.append((entry.position, asdict(evidence)))
                yield evidence, record.get("sent", {})
            if twin is not None or len(pending) == _BATCH:
                lesson.drafts.add_specimens(pending)
                pending = []
            if twin is not None:
                lesson.reject("near_duplicate", files=[entry.name], of=lesson.evidence(twin).path)
        lesson.drafts.add_specimens(pending)

    def _jobs(self) -> Iterator[tuple[_Job, tuple[str, bool, int | None] | None]]:
        lesson = self._lesson
        longest = lesson.config.downscale if self._listed else None
        for entry, split in lesson.catalogue:
            path, job = lesson.catalogue.root / entry.name, _Job(entry, split)
            try:
                job.key = content_digest(path) + (f":{longest}" if self._listed else "")
                job.record = lesson.ledger.measurement(job.key)
            except MicrographError as error:
                job.record = {"error": {"code": error.code, "message": error.message}}
            yield job, None if job.record else (str(path), self._listed, longest)

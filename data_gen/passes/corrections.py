"""Answers that people corrected while they used the assistant, as rows: first for a reviewer, then for training.

All wait in `pending/`, which no training reads; those that a reviewer accepted or edited join the training split. Knows
nothing about where the corrections were kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant.errors import MicrographError
from data_gen.dataset.decisions import applied, decisions_about, seen_in
from data_gen.dataset.reader import CORRECTIONS, PENDING, parquet_file
from data_gen.dataset.rows import row_of
from data_gen.dataset.writer import SplitWriter
from data_gen.ledger import Ledger
from data_gen.passes.examine import described
from data_gen.questions.evidence import Evidence
from data_gen.questions.filters import MAX_ANSWER_CHARS, clean, untrusted_text
from data_gen.questions.tasks import TaughtQuestion

TASK, FACET, TEACHER = "vqa", "correction", "correction"


@dataclass(frozen=True)
class Correction:
    """A question about pictures, what was answered, and what should have been."""

    id: str
    question: str
    said: str
    correction: str
    model: str
    """Which one answered."""
    pictures: tuple[tuple[Path, float | None], ...]
    """Files, each with the pixel size that a person gave for it [nm]."""


def queue_corrections(out: Path, corrections: Iterable[Correction]) -> Counter[str]:
    """Write corrections as rows that wait for a reviewer; gives how many wait, and how many were left out why.

    A picture of the validation or test split stays there: who trained on a correction of it could not be tested on it.
    Raises DatasetError.
    """
    held_out, counts = _held_out(out), Counter[str]()
    forgotten: frozenset[str] = frozenset()
    if (out / "ledger.sqlite").is_file():
        with Ledger(out / "ledger.sqlite") as ledger:
            forgotten = ledger.forgotten()
    with contextlib.closing(SplitWriter(out / PENDING, "train")) as writer:
        for correction in corrections:
            texts = [clean(correction.question), clean(correction.correction)]
            if untrusted_text(texts) or not all(texts) or len(texts[1]) > MAX_ANSWER_CHARS:
                counts["markup, empty or too long"] += 1
                continue
            try:
                shown, pngs = zip(*(_examined(path, nm) for path, nm in correction.pictures), strict=True)
            except MicrographError:
                counts["its picture cannot be read any more"] += 1
                continue
            hashes = {evidence.sha256 for evidence in shown}
            if hashes & held_out:
                counts["its picture is in the validation or test split"] += 1
            elif hashes & forgotten:
                counts["its picture was to be forgotten"] += 1
            else:
                writer.add(_row(correction, texts[0], texts[1], shown), list(pngs))
                counts["waiting"] += 1
        writer.finish()
        writer.publish()
    return counts


def publish_corrections(out: Path) -> int:
    """Write the rows that a reviewer accepted or edited into the training split; gives their number.

    Raises DatasetError.
    """
    decisions = decisions_about(out)
    with contextlib.closing(SplitWriter(out / "data", "train", part=CORRECTIONS)) as writer:
        for path in sorted((out / PENDING).glob("*.parquet")):
            with parquet_file(path) as file:
                rows = [row for batch in file.iter_batches(64) for row in batch.to_pylist()]
            for row in rows:
                decision = decisions.get(row["id"])
                if decision is None or decision.seen != seen_in(row):
                    continue
                if kept := applied(row, decision):
                    pictures = [image["bytes"] for image in kept.pop("images")]
                    writer.add(kept, pictures)
        writer.finish()
        writer.publish()
        return writer.rows


def _row(correction: Correction, question: str, answer: str, shown: tuple[Evidence, ...]) -> dict[str, Any]:
    wording = hashlib.sha256(answer.encode()).hexdigest()[:8]  # another correction needs another decision
    taught = TaughtQuestion(
        id=f"{FACET}-{correction.id}-{wording}",
        task=TASK,
        facet=FACET,
        text=question,
        canonical="",
        answers=(answer,),
        canonical_answer=answer,
        states={},
    )
    teacher = {"name": TEACHER, "said": correction.said, "model": correction.model}
    return row_of(taught, (answer,), shown, teacher=teacher, stays=True)


def _examined(path: Path, nm: float | None) -> tuple[Evidence, bytes]:
    """What is known of a picture, and the PNG that goes into the data set."""
    from assistant.measure import measure
    from assistant.micrograph import read_micrograph
    from data_gen.hosted.egress import redact

    m = read_micrograph(path, pixel_size_nm=nm)
    evidence = Evidence(
        **described(m, measure(m)),
        path=path.name,
        label=None,
        group=m.sha256[:12],
        split="train",
        size=(m.pixels.shape[1], m.pixels.shape[0]),
        truth={},
        true_nm_per_pixel=None,
    )
    return evidence, redact(m)


def _held_out(out: Path) -> set[str]:
    """Hashes of the pictures that models are tested on."""
    found: set[str] = set()
    for split in ("validation", "test"):
        for path in out.glob(f"data/{split}-*.parquet"):
            with parquet_file(path) as file:
                told = file.read(columns=["provenance"]).to_pydict()["provenance"]
            found.update(digest for text in told for digest in json.loads(text)["sha256"])
    return found

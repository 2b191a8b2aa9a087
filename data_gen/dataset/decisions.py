"""What people decided about rows of a data set: accepted, edited or rejected, by whom and when.

Every decision is one durable commit beside the data set, so none is lost; teaching and exporting apply the latest one
to a row as long as the row still says what the person saw. Knows nothing about pages or pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import delete, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from assistant.database import Database
from assistant.errors import DatasetError
from data_gen.questions.filters import MAX_ANSWER_CHARS, clean, untrusted_text

FILE = "review.sqlite"
ReviewVerdict = Literal["accepted", "edited", "rejected"]


class Tables(DeclarativeBase):
    """Registry of the tables of a review."""


class Decision(Tables):
    """One decision about one row; later ones outrank earlier ones, and all are kept."""

    __tablename__ = "decisions"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    row: Mapped[str] = mapped_column(index=True)
    seen: Mapped[str]
    """Digest of what the person judged: the conversation as the teacher wrote it."""
    verdict: Mapped[str]
    answer: Mapped[str]
    """The person's wording; empty where the teacher's stays."""
    reason: Mapped[str]
    reviewer: Mapped[str]
    decided_at: Mapped[str]
    """UTC."""


class Reviews(Database):
    """The decisions about one data set directory.

    Raises DatasetError `disk_full` or `disk` where the file cannot be written, `damaged_database`.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / FILE, tables=Tables, durable=True)

    def decide(
        self, row: Mapping[str, Any], verdict: ReviewVerdict, *, reviewer: str, answer: str = "", reason: str = ""
    ) -> Decision:
        """Keep a decision about a row of the data set.

        Raises DatasetError `no_reviewer`, or `bad_answer` for an edit that may not be taught.
        """
        reviewer, reason, answer = clean(reviewer), clean(reason), clean(answer) if verdict == "edited" else ""
        if not reviewer:
            raise DatasetError("no_reviewer", "A decision needs a name. Fill in who is reviewing.")
        if verdict == "edited" and (not answer or len(answer) > MAX_ANSWER_CHARS or untrusted_text([answer])):
            raise DatasetError(
                "bad_answer",
                f"An answer is plain text of 1 to {MAX_ANSWER_CHARS} characters without markup or links. Correct it.",
            )
        decision = Decision(
            row=row["id"],
            seen=seen_in(row),
            verdict=verdict,
            answer=answer,
            reason=reason,
            reviewer=reviewer,
            decided_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with self._session() as session:
            session.add(decision)
        return decision

    def latest(self) -> dict[str, Decision]:
        """The latest decision about every row that has one, by the row's id."""
        newest = select(func.max(Decision.number)).group_by(Decision.row)
        with self._session() as session:
            found = session.scalars(select(Decision).where(Decision.number.in_(newest)))
            return {decision.row: decision for decision in found}

    def history(self, row: str) -> list[Decision]:
        """All decisions about a row, in order."""
        with self._session() as session:
            return list(session.scalars(select(Decision).where(Decision.row == row).order_by(Decision.number)))

    def forget(self, sha256: str) -> None:
        """Delete what people wrote about rows of a micrograph: a row's id has the beginning of its pictures' hashes."""
        with self._session() as session:
            session.execute(delete(Decision).where(Decision.row.contains(sha256[:12])))
        self._overwrite_deleted()


def decisions_about(directory: Path) -> dict[str, Decision]:
    """The latest decisions about a data set; none where nobody has reviewed it."""
    if not (directory / FILE).is_file():
        return {}
    with Reviews(directory) as reviews:
        return reviews.latest()


def seen_in(row: Mapping[str, Any]) -> str:
    """Digest of a row's conversation as its teacher wrote it, whether or not an edit has been applied since."""
    reviewed = json.loads(row["provenance"]).get("review", {})
    texts = [part["text"] for message in row["messages"] for part in message["content"] if part["text"]]
    return hashlib.sha256("\n".join([*texts[:-1], reviewed.get("taught", texts[-1])]).encode()).hexdigest()


def applied(row: dict[str, Any], decision: Decision | None) -> dict[str, Any] | None:
    """A row as its reviewer left it, None where it was rejected; a decision about another text changes nothing."""
    if decision is None or decision.seen != seen_in(row):
        return row
    if decision.verdict == "rejected":
        return None
    provenance = json.loads(row["provenance"])
    taught = provenance.get("review", {}).get("taught", answer_of(row))
    review = {"verdict": decision.verdict, "by": decision.reviewer, "at": decision.decided_at, "taught": taught}
    answer = decision.answer or taught
    *earlier, last = row["messages"]
    return {
        **row,
        "messages": [*earlier, {**last, "content": [{"type": "text", "text": answer}]}],
        "references": [answer] if decision.verdict == "edited" else row["references"],
        "provenance": json.dumps({**provenance, "review": review}, ensure_ascii=False, sort_keys=True),
    }


def answer_of(row: Mapping[str, Any]) -> str:
    """The last answer of a row."""
    return str(row["messages"][-1]["content"][0]["text"])

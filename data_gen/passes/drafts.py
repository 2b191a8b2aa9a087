"""What a run derives anew and does not keep: specimens and candidate rows, on disk because they do not fit in memory.

Knows nothing about what a record holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from assistant.database import Database


class Draft(DeclarativeBase):
    """Registry of the tables that every run derives anew."""


class Specimen(Draft):
    """What is known of one picture, by its position in the catalogue."""

    __tablename__ = "specimens"
    position: Mapped[int] = mapped_column(primary_key=True)
    record: Mapped[str]


class Row(Draft):
    """One candidate row of the data set."""

    __tablename__ = "rows"
    position: Mapped[int] = mapped_column(primary_key=True)
    split: Mapped[str] = mapped_column(index=True)
    question: Mapped[str]
    """What the blind test holds fixed: the item and its question, apart from the wording."""
    answer: Mapped[str]
    """What the blind test predicts."""
    record: Mapped[str]


class Drafts(Database):
    """Begun empty, thrown away at the end."""

    def __init__(self, path: Path) -> None:
        _remove(path)
        super().__init__(path, tables=Draft, durable=False)

    def close(self) -> None:
        """Close and remove the file."""
        super().close()
        _remove(self._path)

    def add_specimens(self, records: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Keep what is known of pictures, by position."""
        self._replace(Specimen, [{"position": at, "record": json.dumps(record)} for at, record in records])

    def specimen(self, position: int) -> dict[str, Any]:
        """What is known of the picture at that position."""
        with self._session() as session:
            return dict(json.loads(session.get_one(Specimen, position).record))

    def add_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add candidate rows (dicts of the columns of `Row`)."""
        self._replace(Row, rows)

    def rows(self, split: str) -> Iterator[Row]:
        """The candidate rows of a split by position, streamed."""
        with self._session() as session:
            query = select(Row).where(Row.split == split).order_by(Row.position)
            yield from session.scalars(query.execution_options(yield_per=64))

    def answer_counts(self, split: str) -> list[tuple[str, int, int, str]]:
        """Per question of the split: (question, rows, rows with the commonest answer, that answer)."""
        same = select(Row.question, Row.answer, func.count().label("n")).where(Row.split == split)
        same_answer = same.group_by(Row.question, Row.answer).order_by(Row.answer).subquery()
        # SQLite takes a bare column from the row that holds the maximum.
        c = same_answer.c
        query = select(c.question, func.sum(c.n), func.max(c.n), c.answer).group_by(c.question)
        with self._session() as session:
            counts = session.execute(query)
            return [(str(question), int(rows), int(common), str(answer)) for question, rows, common, answer in counts]


def _remove(path: Path) -> None:
    for leftover in path.parent.glob(f"{path.name}*"):
        leftover.unlink()

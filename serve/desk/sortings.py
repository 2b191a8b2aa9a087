"""What people sorted at the page: labels, examples, what was predicted, and what they say it really is; per owner.

Rows lie in the database of the conversations, the pictures beside it. Everything outlives a reload and a restart until
its owner clears it. Knows nothing about pages or models.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Integer, LargeBinary, MetaData, String, Table, delete, func, insert, select, update

from assistant.database import write_transaction
from assistant.disk import fingerprint, replacing
from assistant.errors import ConfigError, ServerError
from serve.desk.database import DeskDatabase, storable

MOST = 5000
"""Pictures kept for one owner."""
LONGEST_WORDS = 200
"""Longest label or value that a person may give [characters]."""

metadata = MetaData()
settings = Table("sorting", metadata, Column("owner", String, primary_key=True), Column("labels", String))
examples = Table(
    "sorting_examples",
    metadata,
    Column("owner", String, primary_key=True),
    Column("label", String, primary_key=True),
    Column("path", String, primary_key=True),
)
sorted_pictures = Table(
    "sorted_pictures",
    metadata,
    Column("owner", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("path", String, nullable=False),
    Column("sha256", String),
    Column("targets", String, nullable=False),
    Column("error", String),
    Column("corrected", String, nullable=False),
    Column("thumbnail", LargeBinary),
)


@dataclass(frozen=True)
class Sorted:
    """One picture with what was predicted and what a person says."""

    number: int
    name: str
    path: Path
    """The kept file, its side-cars beside it."""
    sha256: str | None
    targets: Sequence[Mapping[str, Any]]
    """As `maemi predict` writes them."""
    error: str | None
    corrected: Mapping[str, str]
    """What a person says of a target, by its name."""
    thumbnail: bytes | None
    """JPEG."""


class Sortings(DeskDatabase):
    """Sorted pictures of all owners; an owner sees and changes none but their own.

    Raises ConfigError `bad_database`, `needs_extra`, `no_picture` or `too_many`; ServerError `store_failed`.
    """

    what = "The store of sorted pictures"

    def __init__(self, place: str | Path, files: Path) -> None:
        super().__init__(place)
        self._files = files
        with self._opening() as connection:
            files.mkdir(parents=True, exist_ok=True, mode=0o700)
            metadata.create_all(connection)

    def keep(self, owner: str, path: Path, beside: Sequence[Path] = ()) -> Path:
        """Keep a file with its side-cars; gives where it lies, the same place for the same files."""
        try:
            digest = "-".join(fingerprint(file)[:32] for file in (path, *sorted(beside)))
            folder = self._files / owner / digest[:100]
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for file in (path, *beside):
                if not (folder / file.name).exists():
                    with replacing(folder / file.name) as partial:
                        shutil.copyfile(file, partial)
        except OSError as error:
            message = f"The picture cannot be kept ({error.strerror}). Check the disk of the server."
            raise ServerError("store_failed", message) from None
        return folder / path.name

    def labels(self, owner: str) -> str:
        """The labels as their owner typed them last."""
        with self._failures_in_the_log(), self._engine.connect() as connection:
            return connection.scalar(select(settings.c.labels).where(settings.c.owner == owner)) or ""

    def set_labels(self, owner: str, labels: str) -> None:
        """Remember the labels."""
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            connection.execute(delete(settings).where(settings.c.owner == owner))
            connection.execute(insert(settings).values(owner=owner, labels=storable(labels)))

    def examples(self, owner: str) -> dict[str, tuple[Path, ...]]:
        """Example files by label."""
        query = select(examples.c.label, examples.c.path).where(examples.c.owner == owner).order_by(examples.c.path)
        found: dict[str, tuple[Path, ...]] = {}
        with self._failures_in_the_log(), self._engine.connect() as connection:
            for label, path in connection.execute(query):
                found[label] = (*found.get(label, ()), self._files / path)
        return found

    def add_examples(self, owner: str, label: str, kept: Sequence[Path]) -> None:
        """Let kept files be examples of a label, and of no other."""
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            for path in dict.fromkeys(kept):
                place = self._relative(path)
                connection.execute(delete(examples).where(examples.c.owner == owner, examples.c.path == place))
                connection.execute(insert(examples).values(owner=owner, label=storable(label), path=place))

    def remove_examples(self, owner: str) -> None:
        """Forget all examples."""
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            connection.execute(delete(examples).where(examples.c.owner == owner))

    def add(
        self,
        owner: str,
        kept: Path,
        *,
        sha256: str | None,
        targets: Sequence[Mapping[str, Any]],
        error: str | None = None,
        thumbnail: bytes | None = None,
    ) -> None:
        """Keep what was predicted of a kept file; sorted anew, it stays corrected as it was."""
        place = self._relative(kept)
        ours = sorted_pictures.c.owner == owner
        values = {
            "name": storable(kept.name),
            "sha256": sha256,
            "targets": json.dumps(targets),
            "error": error and storable(error),
            "thumbnail": thumbnail,
        }
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            again = update(sorted_pictures).where(ours, sorted_pictures.c.path == place).values(**values)
            if connection.execute(again).rowcount:
                return
            count, last = connection.execute(
                select(func.count(), func.coalesce(func.max(sorted_pictures.c.number), 0)).where(ours)
            ).one()
            if count >= MOST:
                raise ConfigError("too_many", f"{MOST} pictures are kept here. Download the corrections, then clear.")
            connection.execute(
                insert(sorted_pictures).values(owner=owner, number=last + 1, path=place, corrected="{}", **values)
            )

    def listed(self, owner: str) -> list[Sorted]:
        """All sorted pictures, in the order in which they came."""
        query = select(sorted_pictures).where(sorted_pictures.c.owner == owner).order_by(sorted_pictures.c.number)
        with self._failures_in_the_log(), self._engine.connect() as connection:
            return [
                Sorted(
                    row.number,
                    row.name,
                    self._files / row.path,
                    row.sha256,
                    json.loads(row.targets),
                    row.error,
                    json.loads(row.corrected),
                    row.thumbnail,
                )
                for row in connection.execute(query)
            ]

    def correct(self, owner: str, number: int, target: str, words: str) -> None:
        """Keep what a person says of a target; no words take it back."""
        if len(words) > LONGEST_WORDS:
            raise ConfigError("too_long", f"A label has at most {LONGEST_WORDS} characters. Shorten it.")
        here = (sorted_pictures.c.owner == owner, sorted_pictures.c.number == number)
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            row = connection.execute(select(sorted_pictures).where(*here)).first()
            if row is None or target not in {told["name"] for told in json.loads(row.targets)}:
                raise ConfigError("no_picture", "This picture is no longer in the table. Reload the page.")
            said = json.loads(row.corrected) | {target: storable(words.strip())}
            said = {name: value for name, value in said.items() if value}
            connection.execute(update(sorted_pictures).where(*here).values(corrected=json.dumps(said)))

    def clear(self, owner: str) -> None:
        """Remove everything of an owner, files too."""
        with self._failures_in_the_log(), write_transaction(self._engine) as connection:
            for table in (settings, examples, sorted_pictures):
                connection.execute(delete(table).where(table.c.owner == owner))
            shutil.rmtree(self._files / owner, ignore_errors=True)

    def _relative(self, kept: Path) -> str:
        return kept.relative_to(self._files).as_posix()

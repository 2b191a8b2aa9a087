"""Writes the data set directory: one parquet file per split, the card, the list of rejections; whole or not at all.

Pictures of a row group are stored once, however many rows show them. Knows nothing about what the rows say.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from assistant.errors import DatasetError

PICTURES_PER_ROW_GROUP = 8
TEXT_COLUMNS = ("id", "task", "facet", "label", "source", "group", "teacher")
JSON_COLUMNS = ("provenance", "measured")
PARTIAL = ".partial"


def features() -> Any:
    """The columns as `datasets.Features`."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    return Features(
        {
            "images": List(Image()),
            "messages": List({"role": text, "content": List({"type": text, "text": text})}),
            **dict.fromkeys(TEXT_COLUMNS, text),
            "aux": text,
            "references": List(text),
            **dict.fromkeys(JSON_COLUMNS, text),
        }
    )


def conversation(
    question: str, answer: str, *, images: int, history: Sequence[tuple[str, str]] = ()
) -> list[dict[str, Any]]:
    """Turns in the conversational vision format: the pictures stand before the first words, `history` comes first."""
    shown = [{"type": "image", "text": None} for _ in range(images)]
    messages = []
    for asked, answered in (*history, (question, answer)):
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": asked}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answered}]})
        shown = []
    return messages


class SplitWriter:
    """One split, written row group by row group beside its place; `publish` moves it there."""

    def __init__(self, folder: Path, split: str) -> None:
        import pyarrow.parquet as parquet

        self.path = folder / f"{split}-00000-of-00001.parquet"
        self.rows = 0
        self._partial = self.path.with_name(f".{self.path.name}{PARTIAL}")
        self._schema = features().arrow_schema
        self._buffer: list[dict[str, Any]] = []
        self._pictures: dict[bytes, None] = {}
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = parquet.ParquetWriter(
                self._partial,
                self._schema,
                compression="zstd",
                # The dictionary stores equal pictures of a row group once; its default limit of 1 MiB would end that.
                use_dictionary=["images.list.element.bytes"],
                dictionary_pagesize_limit=2**30,
                write_statistics=False,
            )

    def add(self, row: dict[str, Any], pictures: list[bytes]) -> None:
        """Add a row (its columns but `images`) that shows these PNG pictures."""
        self._pictures |= dict.fromkeys(pictures)
        self._buffer.append({**row, "images": [{"bytes": picture, "path": None} for picture in pictures]})
        self.rows += 1
        if len(self._pictures) > PICTURES_PER_ROW_GROUP:
            self._flush()

    def finish(self) -> str:
        """Write the rest to disk; gives the sha256 of the file."""
        with disk_errors(self.path):
            self._flush()
            self._writer.close()
            with self._partial.open("rb+") as stream:
                os.fsync(stream.fileno())
                stream.seek(0)
                return hashlib.file_digest(stream, "sha256").hexdigest()

    def publish(self) -> None:
        """Move the finished file to its place; an empty split leaves no file."""
        if self.rows:
            self._partial.replace(self.path)
        else:
            self._partial.unlink()
            self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        import pyarrow as pa

        if self._buffer:
            with disk_errors(self.path):
                self._writer.write_table(pa.Table.from_pylist(self._buffer, schema=self._schema))
            self._buffer, self._pictures = [], {}


class LineWriter:
    """JSON lines, written beside their place; `publish` moves them there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}{PARTIAL}")
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._partial.open("w", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        with disk_errors(self.path):
            self._stream.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")

    def publish(self) -> None:
        """Finish the file and move it to its place."""
        with disk_errors(self.path):
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._partial.replace(self.path)

    def close(self) -> None:
        """Close an unfinished file; the next run writes it anew."""
        self._stream.close()


def write_card(out: Path, card: str) -> None:
    """Write README.md, the last file of a data set, and make all renames last."""
    with disk_errors(out):
        partial = out / f".README.md{PARTIAL}"
        partial.write_text(card, encoding="utf-8")
        partial.replace(out / "README.md")
        for folder in (out / "data", out):
            handle = os.open(folder, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raises DatasetError `disk` for anything the file system refuses."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError(
            "disk", f"{path} cannot be written ({reason}). Free space or name another --out, then run the same command."
        ) from None

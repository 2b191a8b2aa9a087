"""Writes the data set directory: one parquet file per split, the card, the list of rejections; whole or not at all.

Pictures of a row group are stored once, however many rows show them. Knows nothing about what the rows say.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assistant.disk import Replacement, disk_errors, fingerprint, write_file
from assistant.errors import DatasetError

_PICTURES, _PICTURE_BYTES = 64, 8 * 2**20
"""A row group ends with so many different pictures, or so many bytes of them: whoever reads it unpacks every row."""
TEXT_COLUMNS = ("id", "task", "facet", "label", "source", "group", "teacher")
JSON_COLUMNS = ("provenance", "measured", "instrument")


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

    def __init__(self, folder: Path, split: str, *, part: str = "00000-of-00001") -> None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        self.split, self.path = split, folder / f"{split}-{part}.parquet"
        self.rows = 0
        self._new = Replacement(self.path)
        self._schema = features().arrow_schema
        self._rows: list[dict[str, Any]] = []
        self._shown: list[list[int]] = []
        """Per row the places of its pictures among `_pictures`."""
        self._pictures: dict[bytes, int] = {}
        # The bytes of pictures are places in a dictionary.
        picture = pa.struct([("bytes", pa.dictionary(pa.int32(), pa.binary())), ("path", pa.string())])
        others = (field for field in self._schema if field.name != "images")
        with disk_errors(folder, DatasetError):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = parquet.ParquetWriter(
                self._new.partial,
                pa.schema([pa.field("images", pa.list_(picture)), *others]),
                store_schema=False,
                compression="zstd",
                # The dictionary stores equal pictures of a row group once; its default limit of 1 MiB would end that.
                use_dictionary=["images.list.element.bytes"],
                dictionary_pagesize_limit=2**30,
                write_statistics=False,
                write_page_checksum=True,
            )
            # Readers see plain bytes: that they are written from a dictionary is no part of the format.
            plain = base64.b64encode(self._schema.serialize().to_pybytes())
            self._writer.add_key_value_metadata({**self._schema.metadata, b"ARROW:schema": plain})

    def add(self, row: dict[str, Any], pictures: list[bytes]) -> None:
        """Add a row (its columns but `images`) that shows these PNG pictures."""
        self._shown.append([self._pictures.setdefault(picture, len(self._pictures)) for picture in pictures])
        self._rows.append(row)
        self.rows += 1
        if len(self._pictures) > _PICTURES or sum(map(len, self._pictures)) > _PICTURE_BYTES:
            self._flush()

    def finish(self) -> str:
        """Write the rest; gives the sha256 of the file."""
        with disk_errors(self.path, DatasetError):
            self._flush()
            self._writer.close()
            return fingerprint(self._new.partial)

    def publish(self) -> None:
        """Move the finished file to its place; an empty split leaves no file."""
        with disk_errors(self.path, DatasetError):
            if self.rows:
                self._new.publish()
            else:
                self._new.discard()
                self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give up an unfinished file; a disk that is full is not told twice, as pyarrow would when it cleans up."""
        with contextlib.suppress(OSError):
            self._writer.close()
        self._writer.is_open = False

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            text = [field for field in self._schema if field.name != "images"]
            table = pa.Table.from_pylist(self._rows, schema=pa.schema(text))
            # A list of pictures for every row, each held once however many rows show it.
            places = pa.array([place for row in self._shown for place in row], pa.int32())
            data = pa.DictionaryArray.from_arrays(places, pa.array(list(self._pictures), pa.binary()))
            pictures = pa.StructArray.from_arrays([data, pa.nulls(len(places), pa.string())], names=["bytes", "path"])
            starts = pa.array([0, *itertools.accumulate(map(len, self._shown))], pa.int32())
            table = table.add_column(0, "images", pa.ListArray.from_arrays(starts, pictures))
            with disk_errors(self.path, DatasetError):
                self._writer.write_table(table)
            self._rows, self._shown, self._pictures = [], [], {}


class LineWriter:
    """JSON lines, written beside their place; `publish` moves them there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._new = Replacement(path)
        with disk_errors(path, DatasetError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._new.partial.open("w", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        with disk_errors(self.path, DatasetError):
            self._stream.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")

    def publish(self) -> None:
        """Finish the file and move it to its place."""
        with disk_errors(self.path, DatasetError):
            self._stream.close()
            self._new.publish()

    def close(self) -> None:
        """Close an unfinished file; the next run writes it anew."""
        self._stream.close()


def write_card(out: Path, card: str) -> None:
    """Write README.md, the last file of a data set."""
    with disk_errors(out, DatasetError):
        write_file(out / "README.md", card)

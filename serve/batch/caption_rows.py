"""Caption rows and the three files they are written to: JSONL, CSV, Parquet; whole or not at all.

Knows nothing about where the rows come from.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from assistant.disk import replacing
from assistant.errors import ConfigError

_T = TypeVar("_T")

ROW_GROUP = 1024
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are the wide forms of the first, which some spreadsheets take for them."""


class CaptionRow(NamedTuple):
    """What is said about one image; one of `caption` and `error` is None."""

    path: str
    sha256: str | None
    caption: str | None
    pixel_size_nm: float | None
    confidence: float | None
    """Trust in the pixel size, 0..1; None where there is none."""
    error: str | None
    facts: Mapping[str, float | str] = {}
    """What was read and measured, each under the name of its column."""


COLUMNS = CaptionRow._fields[:-1]


def write_rows(out: Path, rows: Iterable[CaptionRow], *, facts: Mapping[str, type] = {}, mark: bool = True) -> None:
    """Write rows to `out` by its suffix; what stood there before stays until the new file is whole.

    `facts` are columns beside the usual ones, each with its type, float or str; without `mark` a CSV has no byte-order
    mark. Raises ConfigError `bad_suffix`, and OSError as the disk gives it.
    """
    write = writer_for(out, mark=mark)
    with replacing(out) as unfinished:
        write(unfinished, rows, facts)


def fact_columns(rows: Iterable[CaptionRow]) -> dict[str, type]:
    """The columns of facts that rows have, in the order in which they come up, each with its type."""
    return {name: float if isinstance(value, float) else str for row in rows for name, value in row.facts.items()}


def writer_for(out: Path, *, mark: bool = True) -> Callable[[Path, Iterable[CaptionRow], Mapping[str, type]], None]:
    """The writer of a suffix. Raises ConfigError `bad_suffix`."""
    writers: dict[str, Callable[..., None]] = {
        ".jsonl": write_jsonl,
        ".csv": partial(write_csv, mark=mark),
        ".parquet": write_parquet,
    }
    if out.suffix.lower() not in writers:
        raise ConfigError("bad_suffix", f"{out.name!r} is none of {', '.join(writers)}. Choose one of these suffixes.")
    return writers[out.suffix.lower()]


def _cells(row: CaptionRow, facts: Iterable[str]) -> dict[str, Any]:
    """Every column of a row."""
    return {name: getattr(row, name) for name in COLUMNS} | {name: row.facts.get(name) for name in facts}


def write_jsonl(path: Path, rows: Iterable[CaptionRow], facts: Mapping[str, type] = {}) -> None:
    """One JSON object per line; names that are not valid UTF-8 survive as escapes that Python reads back."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json_line(_cells(row, facts)))


def json_line(record: dict[str, Any]) -> str:
    """One line of JSONL, readable where it can be and escaped where it must be."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(record)
    return line + "\n"


def write_csv(path: Path, rows: Iterable[CaptionRow], facts: Mapping[str, type] = {}, *, mark: bool = True) -> None:
    """Comma-separated with a header; cells that a spreadsheet would run as a formula begin with an apostrophe.

    The mark at the beginning tells a spreadsheet that the text is UTF-8: without it "µm" reads "Âµm" there.
    """
    with path.open("w", encoding="utf-8-sig" if mark else "utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file)
        table.writerow([*COLUMNS, *facts])
        table.writerows([csv_cell(value) for value in _cells(row, facts).values()] for row in rows)


def csv_cell(value: float | str | None) -> float | str | None:
    """A value that no spreadsheet takes for a formula (CWE-1236)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def write_parquet(path: Path, rows: Iterable[CaptionRow], facts: Mapping[str, type] = {}) -> None:
    """Zstandard-compressed row groups of 1024; bytes of a name that are not UTF-8 are written as `\\xNN`."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    numbers = {"pixel_size_nm", "confidence", *(name for name, kind in facts.items() if kind is float)}
    names = [*COLUMNS, *facts]
    schema = pa.schema([(name, pa.float64() if name in numbers else pa.string()) for name in names])
    with ParquetWriter(path, schema, compression="zstd") as writer:
        for group in in_groups(rows, ROW_GROUP):
            cells = [_cells(row, facts) for row in group]
            columns = {name: [row[name] for row in cells] for name in names}
            for name in columns.keys() - numbers:
                columns[name] = [s and s.encode("utf-8", "backslashreplace").decode() for s in columns[name]]
            writer.write_table(pa.table(columns, schema=schema))


def in_groups(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Consecutive lists of at most `size` items."""
    source = iter(items)
    while group := list(islice(source, size)):
        yield group

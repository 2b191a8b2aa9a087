"""Opens the parquet files of a data set directory; a damaged one is an error with a name.

Knows nothing about what the rows say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from assistant.errors import DatasetError
from data_gen.catalogue import SPLITS
from data_gen.dataset.writer import JSON_COLUMNS, TEXT_COLUMNS

_LEAVES = frozenset(
    {
        *("images.list.element.bytes", "images.list.element.path", "messages.list.element.role"),
        *(f"messages.list.element.content.list.element.{name}" for name in ("type", "text")),
        *("aux", "references.list.element", *TEXT_COLUMNS, *JSON_COLUMNS),
    }
)
"""Columns by their names in parquet, which no checksum covers."""


PENDING, CORRECTIONS = "pending", "corrections"
"""The folder of corrections that wait for a reviewer, and the part of the training split with those accepted."""


def files_to_review(directory: Path) -> dict[str, list[Path]]:
    """The files of every split with the rows that people judge: corrections where they wait, not once more as rows.

    Raises DatasetError `no_dataset`.
    """
    waiting = sorted(directory.glob(f"{PENDING}/*.parquet"))
    found = split_files(directory) if any(directory.glob("data/*.parquet")) or not waiting else {}
    files = {split: [path for path in paths if path.stem != f"train-{CORRECTIONS}"] for split, paths in found.items()}
    files["train"] = [*waiting, *files.get("train", [])]
    return files


def split_files(directory: Path) -> dict[str, list[Path]]:
    """The files of every split that there is.

    Raises DatasetError `no_dataset`.
    """
    files = {split: sorted(directory.glob(f"data/{split}-*.parquet")) for split in SPLITS}
    if not any(files.values()):
        raise DatasetError("no_dataset", f"{directory} holds no data set. Name the --out of `maemi teach`.")
    return {split: paths for split, paths in files.items() if paths}


@contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    """The file as a `pyarrow.parquet.ParquetFile` that holds every page against its checksum.

    Raises DatasetError `damaged_dataset` for anything that is not a file of a data set, wherever in it that shows.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if missing := _LEAVES - {file.schema.column(n).path for n in range(len(file.schema))}:
                raise _damaged(path, f"it lacks {', '.join(sorted(missing))}")
            told = file.metadata  # which no checksum covers
            if sum(told.row_group(n).num_rows for n in range(told.num_row_groups)) != told.num_rows:
                raise _damaged(path, "its rows do not add up")
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, reason: str) -> DatasetError:
    first = reason.split("\n")[0].rstrip(".")
    return DatasetError("damaged_dataset", f"{path} cannot be read ({first}). Teach it again.")

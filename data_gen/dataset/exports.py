"""The data set in the formats of other trainers: LLaVA json, and ShareGPT json as LLaMA-Factory reads it.

Pictures become PNG files beside the json, each once; people's decisions are applied; rows are streamed. The same data
set gives the same files. Knows nothing about how the rows were made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from assistant.chat import IMAGE_MARKER
from assistant.disk import disk_errors, replacing, write_file
from assistant.errors import DatasetError
from data_gen.dataset.decisions import Decision, applied, decisions_about
from data_gen.dataset.reader import parquet_file, split_files

Format = Literal["llava", "sharegpt"]
FORMATS: tuple[Format, ...] = ("llava", "sharegpt")
_BATCH = 64
SPEAKERS = {"user": "human", "assistant": "gpt"}
KEPT = ("task", "facet", "label", "group", "source", "teacher")


def export_dataset(directory: Path, form: Format) -> Path:
    """Write a data set in another format to `directory/exports/FORMAT`; returns that folder.

    Raises DatasetError `no_dataset`, `damaged_dataset`, `disk_full` or `disk`.
    """
    files = split_files(directory)
    out = directory / "exports" / form
    decisions = decisions_about(directory)
    with disk_errors(out, DatasetError):
        (out / "images").mkdir(parents=True, exist_ok=True)
        shown: set[str] = set()
        for split, paths in files.items():
            shown |= _write_rows(out / f"{split}.json", reviewed_rows(paths, decisions), form)
        # What an earlier export showed and this one does not must not stay behind.
        for path in (out / "images").iterdir():
            if f"images/{path.name}" not in shown:
                path.unlink()
        if form == "sharegpt":
            columns = {"messages": "conversations", "images": "images"}
            info = {
                f"maemi_{split}": {"file_name": f"{split}.json", "formatting": "sharegpt", "columns": columns}
                for split in files
            }
            write_file(out / "dataset_info.json", json.dumps(info, indent=2) + "\n")
    return out


def reviewed_rows(paths: list[Path], decisions: Mapping[str, Decision]) -> Iterator[dict[str, Any]]:
    """The rows of parquet files as people left them, a bounded number at a time."""
    for path in paths:
        with parquet_file(path) as file:
            for batch in file.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    if (kept := applied(row, decisions.get(row["id"]))) is not None:
                        yield kept


def _write_rows(path: Path, rows: Iterator[dict[str, Any]], form: Format) -> set[str]:
    """Write one split; gives the pictures that it shows."""
    shown: set[str] = set()
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as stream:
        stream.write("[")
        for number, row in enumerate(rows):
            images = [_write_image(path.parent, image["bytes"]) for image in row["images"]]
            shown.update(images)
            stream.write(",\n" if number else "\n")
            stream.write(json.dumps(_exported(row, images, form), ensure_ascii=False))
        stream.write("\n]\n")
    return shown


def _exported(row: Mapping[str, Any], images: list[str], form: Format) -> dict[str, Any]:
    """A row in LLaVA's form, or in ShareGPT's with images as LLaMA-Factory's `dataset_info.json` describes it.

    Each picture has one marker in a line before the words of its turn; a row that must not leave the machine says so.
    """
    conversations = []
    for message in row["messages"]:
        parts = [IMAGE_MARKER if part["type"] == "image" else part["text"] for part in message["content"]]
        conversations.append({"from": SPEAKERS[message["role"]], "value": "\n".join(parts)})
    told = {name: row[name] for name in KEPT}
    if egress := json.loads(row["provenance"]).get("egress"):
        told["egress"] = egress
    if form == "llava":
        shown = images[0] if len(images) == 1 else images
        return {"id": row["id"], "image": shown, "conversations": conversations, **told}
    return {"conversations": conversations, "images": images, "id": row["id"], **told}


def _write_image(out: Path, png: bytes) -> str:
    """The picture's path relative to the export; a file that is there has the right content, by its name."""
    name = f"images/{hashlib.sha256(png).hexdigest()[:24]}.png"
    path = out / name
    if not path.exists():
        with replacing(path) as partial:
            partial.write_bytes(png)
    return name

"""A run directory belongs to one run: one process at a time, and the settings, data and base that it began with.

Knows nothing about training.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from assistant.bases import resolve_base
from assistant.config import Config, dump_config, parse_config
from assistant.disk import MANIFEST, fingerprint, write_file
from assistant.errors import RunError
from assistant.inspection import DATA, loading
from assistant.precision import device_of, number_format
from assistant.starts import start_of

RECORD = "run.json"
_log = logging.getLogger("maemi.training")


def claim(out: Path, config: Config, rows: str, *, device: str, processes: int = 1) -> Config:
    """Bind a run directory to settings, data and base, or make sure that it is bound to these.

    A record without a base, of an older version, is bound to the one that is there now: that version's checkpoints
    hold pickles and are passed over. Returns the settings with their precision decided: once, where the run began.
    Raises RunError `other_run` or `damaged_run`.
    """
    file = out / RECORD
    with loading(file):
        bound = dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
        if "config" in bound:  # what settings were called when it began may have gained new ones, at their defaults
            bound["config"] = dump_config(parse_config(yaml.safe_load(bound["config"]), origin=str(file)))
    wanted = {"config": dump_config(config), "data": rows, "processes": processes}
    for name, what in (
        ("config", "other settings"),
        ("data", "other data"),
        ("processes", "another number of processes"),
    ):
        if bound and bound.get(name, 1) != wanted[name]:
            raise RunError("other_run", f"{out} holds a run of {what}. Choose another --out.")
    before: dict[str, Any] = bound.get("base") or {}
    base = base_files(config, before)
    old, new = ({name: entry.get("sha256") for name, entry in files.items()} for files in (before, base))
    changed = sorted({name for name, _ in old.items() ^ new.items()})
    if before and changed:
        raise RunError(
            "other_run",
            f"{out} holds a run of other base weights: {changed[0]} has changed. Restore it or choose another --out.",
        )
    if "base" not in bound:
        decision = number_format(config.training.precision, device_of(device))
        _log.info("training computes in %s", decision)
        bound = wanted | {"base": base, "precision": bound.get("precision", decision.precision)}
        write_file(file, json.dumps(bound, indent=1) + "\n")
    return config.model_copy(update={"training": config.training.model_copy(update={"precision": bound["precision"]})})


def record(out: Path, **facts: Any) -> None:
    """Add what came of a run to its record."""
    file = out / RECORD
    with loading(file):
        bound = dict(json.loads(file.read_text(encoding="utf-8")))
    write_file(file, json.dumps(bound | facts, indent=1) + "\n")


def base_files(config: Config, known: Mapping[str, Any]) -> dict[str, Any]:
    """The files that a run starts from, each with its SHA-256; a hub id that is not on this disk stands for itself.

    A file that looks as it did when it was hashed for `known` is not hashed again: a language model has gigabytes.
    """
    files: list[Path] = []
    start = start_of(config)
    source = start.config.decoder.base
    if start.directory is not None:
        files = [file for file in (start.directory / MANIFEST,) if file.is_file()]  # it holds the hash of every file
        if start.whole and ((start.directory / "base").is_dir() or not files):
            source = None
    if source is not None:
        folder = resolve_base(source).directory
        files += sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in DATA - {".md"})
    entries: dict[str, Any] = {}
    for file in files:
        facts, before = file.stat(), known.get(str(file), {})
        seen = [facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
        entries[str(file)] = before if before.get("seen") == seen else {"sha256": fingerprint(file), "seen": seen}
    return entries or {str(source or config.init): {"sha256": None}}

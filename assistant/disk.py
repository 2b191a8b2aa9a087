"""Directories that are whole or absent, whatever happens while they are written; what a full disk says.

A directory is filled beside its place, synced, listed in a manifest and renamed. Reading compares it with the
manifest, file by file. Knows nothing about what the files mean.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from assistant.errors import MaemiError, RunError

MANIFEST = "manifest.json"
FORMAT = 1
MANIFEST_LIMIT = 2**22
"""Largest manifest that is read [byte]."""
FULL = re.compile(r"No space left on device|Disk quota exceeded|os error (?:28|122)\b", re.IGNORECASE)
BROKEN = re.compile(r"Input/output error|Read-only file system|os error (?:5|30)\b", re.IGNORECASE)


def write_directory(final: Path, write: Callable[[Path], None]) -> None:
    """Fill a directory so that `final` is either what it was or whole: stage, fsync, manifest, rename.

    Raises RunError `disk_full` or `disk`; nothing of what was staged stays.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    recover(final)
    staging = final.with_name(f".{final.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    with told_when_full(final):
        try:
            _fill(staging, write)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        replaced = _replaced(final)
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            final.rename(replaced)
        staging.rename(final)
        fsync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_file(file: Path, text: str) -> None:
    """Write a text file so that it is either what it was or whole."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    fsync(partial)
    partial.rename(file)
    fsync(file.parent)


def recover(final: Path) -> None:
    """Put back the old directory where a write was killed between moving it away and moving the new one in."""
    if not final.exists() and _replaced(final).is_dir():
        _replaced(final).rename(final)


def verify_directory(path: Path) -> None:
    """Compare a directory with its manifest, which must list every file.

    Raises RunError `no_run`, `damaged_run` or `unknown_format`.
    """
    entries = read_manifest(path)
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir() or file.is_symlink()}
    unlisted = sorted(present - {MANIFEST} - entries.keys())
    if unlisted:
        raise RunError("damaged_run", f"{path / unlisted[0]} is not in the manifest. Remove it or restore the run.")
    for name, expected in entries.items():
        file = path / name
        if file.is_symlink() or not file.is_file() or _entry(file) != expected:
            raise RunError("damaged_run", f"{file} is missing or changed. Train again or restore the run.")


def read_manifest(path: Path) -> Mapping[str, Any]:
    """What a directory should hold: size and sha256 by plain relative name. Raises RunError."""
    file = path / MANIFEST
    try:
        if file.stat().st_size > MANIFEST_LIMIT:
            raise ValueError("it is too large")
        document = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise RunError(
            "no_run", f"{path} is not a run directory (no {MANIFEST}). Name one `maemi train` wrote."
        ) from None
    except (OSError, ValueError, RecursionError):
        raise RunError("damaged_run", f"{file} cannot be read. Train again or restore the run.") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise RunError("unknown_format", f"{file} is not of format {FORMAT}. Use the version of maemi that wrote it.")
    entries = document.get("files")
    if not isinstance(entries, dict) or not entries or not all(map(_is_inside, entries)):
        raise RunError("damaged_run", f"{file} does not list the files it protects. Train again or restore the run.")
    return entries


def fingerprint(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def told_when_full(place: Path) -> Iterator[None]:
    """Turns what libraries say of a full or broken disk into one error. Raises RunError `disk_full` or `disk`."""
    try:
        yield
    except MaemiError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or FULL.search(str(error)):
            raise RunError(
                "disk_full", f"{place} cannot be written: the disk is full. Free space and give the same command again."
            ) from None
        if number in (errno.EIO, errno.EROFS) or BROKEN.search(str(error)):
            raise RunError(
                "disk", f"{place} cannot be written: the disk fails. Mend it and give the same command again."
            ) from None
        raise


def fsync(path: Path) -> None:
    """Make a file or a directory's entries survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fill(staging: Path, write: Callable[[Path], None]) -> None:
    staging.mkdir()
    write(staging)
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    entries = {path.relative_to(staging).as_posix(): _entry(path) for path in files}
    (staging / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": entries}, indent=1, sort_keys=True) + "\n")
    for path in [*files, staging / MANIFEST, *(p for p in staging.rglob("*") if p.is_dir()), staging]:
        fsync(path)


def _is_inside(name: str) -> bool:
    """Whether a listed name is plain: relative, without `..`, not the manifest itself."""
    path = PurePosixPath(name)
    return name == path.as_posix() and not path.is_absolute() and ".." not in path.parts and name not in (MANIFEST, ".")


def _replaced(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": fingerprint(path)}

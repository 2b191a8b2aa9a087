"""What must survive: files and directories that are whole or absent, locks that die with their owner, a full disk.

Whatever is written is filled beside its place, synced and renamed. A directory is listed in a manifest too, and reading
compares it with that, file by file. Databases, which need SQLAlchemy, are opened in database.py. Knows nothing about
what the files mean.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import IO, Any

from assistant.errors import MaemiError, RunError

MANIFEST = "manifest.json"
MODELS = "MAEMI_BASES"
"""Environment variable that names the folder of converted weights."""
_FORMAT = 1
MANIFEST_LIMIT = 2**22
"""Largest manifest that is read [byte]."""
FULL = re.compile(
    r"No space left on device|Disk quota exceeded|os error (?:28|122)\b|database or disk is full", re.IGNORECASE
)
BROKEN = re.compile(
    r"Input/output error|disk I/O error|Read-only file system|readonly database|os error (?:5|30)\b", re.IGNORECASE
)
TOO_LITTLE = 2**16
"""Free space at which SQLite, which needs 32 KiB beside its file, fails without a word of space [byte]."""
OWNER_BYTES = 300
"""Most that is read of what the owner of a lock wrote into it [byte]."""


class Replacement:
    """A file written at `partial`, beside its place, which `publish` puts there: whole, or not at all."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.partial = final.with_name(f".{final.name}.partial")

    def publish(self) -> None:
        """Put the finished file in its place; when this returns, a power cut does not take it away again."""
        fsync(self.partial)
        self.partial.replace(self.final)
        fsync(self.final.parent)

    def discard(self) -> None:
        """Remove what was not published."""
        self.partial.unlink(missing_ok=True)


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """A path to write to that becomes `final` when the block ends well, and vanishes when it does not."""
    new = Replacement(final)
    try:
        yield new.partial
        new.publish()
    finally:
        new.discard()


def write_file(file: Path, text: str) -> None:
    """Write a text file so that it is either what it was or whole."""
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_directory(final: Path, write: Callable[[Path], None]) -> None:
    """Fill a directory so that `final` is either what it was or whole: stage, fsync, manifest, rename.

    Raises RunError `disk_full` or `disk`; nothing of what was staged stays.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    recover(final)
    staging = final.with_name(f".{final.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    with disk_errors(final, RunError, writes_only=False):
        try:
            staging.mkdir()
            write(staging)
            files = sorted(path for path in staging.rglob("*") if path.is_file())
            entries = {path.relative_to(staging).as_posix(): _entry(path) for path in files}
            manifest = json.dumps({"format": _FORMAT, "files": entries}, indent=1, sort_keys=True)
            (staging / MANIFEST).write_text(manifest + "\n")
            for path in [*files, staging / MANIFEST, *(p for p in staging.rglob("*") if p.is_dir()), staging]:
                fsync(path)
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


def move_directory(staging: Path, final: Path) -> None:
    """Give a finished folder its name on the same disk: what is in it is on the disk before."""
    for path in (*staging.rglob("*"), staging):
        fsync(path)
    staging.rename(final)
    fsync(final.parent)


def models_folder() -> Path:
    """Where converted weights lie: $MAEMI_BASES, or the user's folder for data of programs."""
    if named := os.environ.get(MODELS):
        return Path(named)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "maemi" / "bases"


def packaged_file(package: str, version: str, file: str) -> Path | None:
    """A file of an installed Python package of that version, found without importing it; None where it is not there."""
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return None
    place = Path(str(found.locate_file(file)))
    return place if found.version == version and place.is_file() else None


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
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise RunError("unknown_format", f"{file} is not of format {_FORMAT}. Use the version of maemi that wrote it.")
    entries = document.get("files")
    if not isinstance(entries, dict) or not entries or not all(map(_is_inside, entries)):
        raise RunError("damaged_run", f"{file} does not list the files it protects. Train again or restore the run.")
    return entries


def fingerprint(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def lock_at_once(lock: IO[bytes], *, shared: bool = False) -> bool:
    """Whether the lock of an open file could be had; it ends when all who have the file open, heirs too, close it.

    `shared`: beside others who ask for as much, which shows whether somebody holds it.
    """
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(file: Path, place: Path, kind: type[MaemiError], code: str) -> Iterator[None]:
    """Hold a lock file, and with it `place`, for this process; the lock ends with the process, however that ends.

    Raises `kind` with `code` where another process holds it, which is named.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+", buffering=0) as lock:
        if not lock_at_once(lock):
            lock.seek(0)
            owner = lock.read(OWNER_BYTES).decode(errors="replace").strip() or "another process"
            message = f"{place} is being written by {owner}. Wait for it, or choose another --out."
            raise kind(code, message) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}\n".encode())
        yield


@contextmanager
def disk_errors(place: Path, kind: type[MaemiError], *, writes_only: bool = True) -> Iterator[None]:
    """Give what the disk refuses one name, whichever library met it.

    `writes_only` promises that all the block asks of the system is to write at `place`, so that every refusal is the
    disk's; without the promise only a disk that is full, failing or read-only is named.
    Raises `kind` with the code `disk_full` or `disk`.
    """
    try:
        yield
    except MaemiError:
        raise
    except Exception as error:
        number, words, refused = _refusal(error)
        if number in (errno.ENOSPC, errno.EDQUOT) or FULL.search(words) or _is_full(place, words):
            reason = words if refused else "the disk is full"
            message = f"{place} cannot be written ({reason}). Free space and give the same command again."
            raise kind("disk_full", message) from None
        if number in (errno.EIO, errno.EROFS) or BROKEN.search(words) or (writes_only and refused):
            reason = words if refused else "the disk fails"
            remedy = "Mend that, or choose another place, and give the same command again."
            raise kind("disk", f"{place} cannot be written ({reason}). {remedy}") from None
        raise


def fsync(path: Path) -> None:
    """Make a file or a directory's entries survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refusal(error: Exception) -> tuple[int | None, str, bool]:
    """The number of a system error, its words, and whether they are those of the system or a database."""
    if isinstance(error, OSError):
        return error.errno, error.strerror or str(error), True
    from sqlalchemy.exc import DBAPIError  # loaded already wherever this is one

    if isinstance(error, DBAPIError):  # its own text quotes the statement with what was to be stored
        return None, str(error.orig), True
    return None, str(error), False


def _is_full(place: Path, words: str) -> bool:
    """Whether it is for want of space that SQLite says no more than that the disk failed."""
    with suppress(OSError):
        return "disk I/O error" in words and shutil.disk_usage(place.parent).free < TOO_LITTLE
    return False


def _is_inside(name: str) -> bool:
    """Whether a listed name is plain: relative, without `..`, not the manifest itself."""
    path = PurePosixPath(name)
    return name == path.as_posix() and not path.is_absolute() and ".." not in path.parts and name not in (MANIFEST, ".")


def _replaced(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": fingerprint(path)}

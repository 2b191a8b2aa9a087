"""A zip that somebody sent -> its pictures and side-cars in a folder, within bounds, whatever the zip says of itself.

Nothing but pictures and side-cars is written, no link is made, no name leads out of the folder, and no archive inside
is opened. Knows nothing about what becomes of the pictures.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from assistant.errors import ConfigError

_PIECE = 2**20
_NAMED = 3
"""Names told of each kind of thing that was left out."""
_END, _LOCATOR = b"PK\5\6", b"PK\6\7"
_END_BYTES, _LOCATOR_BYTES, _LONGEST_COMMENT = 22, 20, 2**16
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class Bounds:
    """How much may come out of one archive."""

    files: int = 5000
    file_bytes: int = 256 * 2**20
    all_bytes: int = 4 * 2**30
    list_bytes: int = 4 * 2**20
    """Of the archive's own list of what is in it."""


def unpack(archive: Path, into: Path, suffixes: Collection[str], bounds: Bounds = Bounds()) -> list[str]:
    """Unpack files with these suffixes; gives sentences about what was left out.

    Raises ConfigError `bad_archive` or `archive_too_large`; what was unpacked until then is the caller's to remove.
    """
    left: dict[str, list[str]] = {}
    written = 0
    try:
        _check_list(archive, bounds)
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if len(entries) > bounds.files:
                raise _too_large(archive, f"more than {bounds.files} files")
            for entry in entries:
                target, problem = _target(entry, into, suffixes)
                if target is None:
                    left.setdefault(problem, []).append(entry.filename)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                size = 0
                with opened.open(entry) as source, target.open("xb") as file:
                    while piece := source.read(_PIECE):  # what really comes, not what the list promises
                        size, written = size + len(piece), written + len(piece)
                        if size > bounds.file_bytes:
                            raise _too_large(archive, f"a file over {bounds.file_bytes // 2**20} MiB")
                        if written > bounds.all_bytes:
                            raise _too_large(archive, f"more than {bounds.all_bytes / 2**30:.0f} GiB in all")
                        file.write(piece)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, struct.error, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:120] or type(error).__name__
        raise ConfigError("bad_archive", f"{archive.name} cannot be unpacked: {reason}. Pack it anew.") from None
    return [_sentence(problem, names) for problem, names in left.items()]


def _check_list(archive: Path, bounds: Bounds) -> None:
    """Look at the end of the archive before a library reads all of its list into memory."""
    with archive.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END_BYTES - _LOCATOR_BYTES - _LONGEST_COMMENT))
        tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise zipfile.BadZipFile("it is no zip, or it was cut off")
    (list_bytes,) = struct.unpack_from("<L", tail, at + 12)
    if list_bytes > bounds.list_bytes or _LOCATOR in tail[max(0, at - _LOCATOR_BYTES) : at]:
        raise _too_large(archive, "a list of files too long to read")


def _target(entry: zipfile.ZipInfo, into: Path, suffixes: Collection[str]) -> tuple[Path | None, str]:
    """Where an entry goes, or None and why it goes nowhere."""
    name = PurePosixPath(entry.filename.replace("\\", "/"))
    suffix, kind = name.suffix.lower(), stat.S_IFMT(entry.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
        return None, "whose names lead out of the archive"
    if kind not in (0, stat.S_IFREG):
        return None, "that are links or devices"
    if entry.flag_bits & 1:
        return None, "that are encrypted"
    if suffix in _ARCHIVES:
        return None, "that are archives themselves"
    if suffix not in suffixes:
        return None, "that are no pictures"
    if any(part.startswith(".") or part == "__MACOSX" for part in name.parts):
        return None, "that are hidden"
    target = into.joinpath(*name.parts)
    return (None, "that stand in it twice") if target.exists() else (target, "")


def _sentence(problem: str, names: list[str]) -> str:
    shown = ", ".join(PurePosixPath(name).name[:60] for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"Left out of the zip: {len(names)} file{'s' * (len(names) != 1)} {problem} ({shown}{more})."


def _too_large(archive: Path, what: str) -> ConfigError:
    return ConfigError("archive_too_large", f"{archive.name} holds {what}. Split it into smaller ones.")

"""Reads a picture's bytes and the text files microscopes write beside it; never waits, never follows a link.

Knows nothing about what the bytes mean.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from assistant.errors import MicrographError
from assistant.readers.frame import ReadLimits
from assistant.readers.record import decode_text

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC  # O_NONBLOCK: opening a pipe must not wait


def shown(path: Path | None) -> str:
    """A file name fit for a terminal: printable characters only, at most 80."""
    if path is None:
        return "the image"
    return "".join(c if c.isprintable() else "?" for c in path.name)[:80] or "the path"


def file_bytes(path: Path, limits: ReadLimits) -> bytes:
    """The file's bytes, read once and whole. Raises MicrographError."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            message = f"{shown(path)} is not a regular file. Give an image file, not a folder or link."
            raise MicrographError("not_a_file", message)
        with open(os.open(path, _FLAGS), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise MicrographError("not_a_file", f"{shown(path)} is not a regular file. Give an image file.")
            if before.st_size > limits.max_bytes:
                message = f"{shown(path)} has {before.st_size} bytes; the limit is {limits.max_bytes}. Crop or bin it."
                raise MicrographError("too_large", message)
            data = file.read(limits.max_bytes + 1)
            after = os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
        raise MicrographError("not_found", f"{shown(path)} does not exist. Check the path.") from None
    except OSError as error:
        code = "not_found" if error.errno == errno.ENAMETOOLONG else "unreadable"
        reason = os.strerror(error.errno or errno.EIO).lower()
        raise MicrographError(code, f"{shown(path)} cannot be read: {reason}. Check its permissions.") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise MicrographError("unreadable", f"{shown(path)} changed while it was read. Wait until the copy is done.")
    return data


def sidecar_names(image: Path) -> list[str]:
    """What a side-car of an image may be called, best first."""
    stem, extension = image.stem, image.suffix.lstrip(".")
    # `NAME.ext.txt` before `NAME.txt`, then TESCAN's three ways to name a `.hdr`; each also with an upper suffix.
    names = (f"{image.name}.txt", f"{stem}.txt", f"{stem}-{extension}.hdr", f"{image.name}.hdr", f"{stem}.hdr")
    return [name for base in names for name in (base, base[:-4] + base[-4:].upper())]


def sidecar_texts(image: Path, max_bytes: int) -> Iterator[tuple[str, str | None]]:
    """(name, text) of each side-car there is, best first; the text is None where the file is too large to be one."""
    for path in [image.with_name(name) for name in sidecar_names(image)]:
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            with open(os.open(path, _FLAGS), "rb") as file:
                data = file.read(max_bytes + 1)
        except (OSError, ValueError):
            continue
        yield path.name, decode_text(data) if len(data) <= max_bytes else None

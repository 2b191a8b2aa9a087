"""Every picture is read once: what was read of a file and its side-cars is kept for the turns that follow.

Knows nothing about who asks, or about how a file is read.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.readers.files import sidecar_texts
from assistant.readers.frame import ReadLimits

if TYPE_CHECKING:
    from assistant.micrograph import Micrograph
    from serve.desk.answering import Reader

_KEPT_BYTES = 512 * 2**20
"""Pixels kept in all; a picture that is larger is read at every turn [byte]."""
KNOWN_FILES = 4096
"""Files whose hash is remembered."""

Key = tuple[str, int | None, float | None]
"""Hash of a file with its side-cars, the page, and the pixel size that a person gave."""


class KeptReadings:
    """A `Reader` that recalls what another one read, the latest used the longest; safe for threads.

    Who asks for a picture that is being read waits for that reading. What could not be read is not kept.
    """

    def __init__(self, read: Reader | None = None, *, limit: int = _KEPT_BYTES) -> None:
        self._read, self._limit = read, limit
        self._kept: OrderedDict[Key, Future[Micrograph]] = OrderedDict()
        self._hashes: OrderedDict[tuple[object, ...], str] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(
        self, source: Path | bytes, *, page: int | None = None, pixel_size_nm: float | None = None
    ) -> Micrograph:
        """Read a picture, or recall it. Raises MicrographError."""
        from assistant.micrograph import Micrograph, read_micrograph

        read = self._read or read_micrograph
        if not isinstance(source, bytes) and not source.is_file():
            return read(source, page=page, pixel_size_nm=pixel_size_nm)  # whoever reads knows how to say what is wrong
        content = sha256(source).hexdigest() if isinstance(source, bytes) else self._hash(source)
        key = (content, page, pixel_size_nm)
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                ours = self._kept[key] = Future[Micrograph]()
            self._kept.move_to_end(key)
        if kept is not None:
            return replace(kept.result(), source=None if isinstance(source, bytes) else source)
        try:
            micrograph = read(source, page=page, pixel_size_nm=pixel_size_nm)
        except BaseException as error:
            with self._lock:
                del self._kept[key]
            ours.set_exception(error)
            raise
        ours.set_result(micrograph)
        self._let_go()
        return micrograph

    def _hash(self, path: Path) -> str:
        """Of the bytes of a file and of its side-cars; a file that did not change is not hashed again."""
        beside, known = list(sidecar_texts(path, ReadLimits().max_sidecar_bytes)), path.stat()
        stamp = (path, known.st_ino, known.st_size, known.st_mtime_ns, *beside)
        with self._lock:
            if stamp in self._hashes:
                return self._hashes[stamp]
        with path.open("rb") as file:
            content = file_digest(file, "sha256").hexdigest()
        digest = sha256(repr((content, beside)).encode()).hexdigest()
        with self._lock:
            self._hashes[stamp] = digest
            while len(self._hashes) > KNOWN_FILES:
                self._hashes.popitem(last=False)
        return digest

    def _let_go(self) -> None:
        """Forget what was used longest ago, until the rest is within the limit."""
        with self._lock:
            sizes = {key: _nbytes(kept.result()) for key, kept in self._kept.items() if kept.done()}
            for key in list(sizes):
                if sum(sizes.values()) <= self._limit:
                    break
                del self._kept[key], sizes[key]


def _nbytes(micrograph: Micrograph) -> int:
    return micrograph.pixels.nbytes + (0 if micrograph.sample is None else micrograph.sample.nbytes)

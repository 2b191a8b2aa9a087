"""Pictures that viewers have open: each read once, reduced once, measured once; the oldest go when there are too many.

Work is done in a few threads of its own, so that a crowd of requests cannot keep the rest of the server from its files.
Knows nothing about HTTP or owners: who asks may see the file.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from assistant.errors import ServerError
from assistant.micrograph import Micrograph
from assistant.readers.window import Window
from serve.desk.answering import Reader
from serve.desk.gate import Gate
from serve.page.viewer.tiles import Histogram, Pyramid

T = TypeVar("T")
PictureKey = tuple[Path, int | None, float | None]
"""File, page, and the pixel size that a person gave for files without one [nm]."""

MOST_BYTES = 512 * 2**20
"""What open pictures take up together; the newest stays even where it is larger [byte]."""
THREADS = 2
MOST_WAITING = 8
"""Pictures that are being read; one more is refused."""


@dataclass(eq=False)
class Opened:
    """A picture with what a viewer needs of it."""

    micrograph: Micrograph
    pyramid: Pyramid
    histogram: Histogram
    first: bool
    """Whether it is the page that a file is shown with."""
    found: dict[str, asyncio.Task[Any]] = field(default_factory=dict, repr=False)
    """What long looks at it gave, once somebody has asked, by their name."""

    @property
    def nbytes(self) -> int:
        """What it takes up [byte]."""
        sample = self.micrograph.sample
        return self.pyramid.nbytes + (0 if sample is None else sample.nbytes)


class Album:
    """Opens pictures; belongs to one event loop."""

    def __init__(self, read: Reader, gate: Gate, *, most_bytes: int = MOST_BYTES) -> None:
        self._read, self._gate, self._most_bytes = read, gate, most_bytes
        self._kept: OrderedDict[PictureKey, Opened] = OrderedDict()
        self._opening: dict[PictureKey, asyncio.Task[Opened]] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="maemi-viewer")
        self._readers = ThreadPoolExecutor(THREADS, thread_name_prefix="maemi-viewer-read")

    async def open(self, key: PictureKey) -> Opened:
        """A picture, read if need be.

        Raises MicrographError, and ServerError `busy` where too many are being read.
        """
        if (opened := self._recalled(key)) is not None:
            return opened
        task = self._opening.get(key)
        if task is None:
            if len(self._opening) >= MOST_WAITING:
                raise ServerError("busy", "Too many pictures are being opened. Try again in a few seconds.")
            task = self._opening[key] = asyncio.create_task(self._opened(key))
            task.add_done_callback(partial(self._done, key))
        return await asyncio.shield(task)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do something short in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def found(self, opened: Opened, name: str, look: Callable[[Micrograph], T], *, by_turns: bool = False) -> T:
        """What is found in a picture by a long look; later ones get the same.

        A place of the gate is held meanwhile, unless the look takes its turns at it by itself.
        Raises ServerError `busy` and `timeout`, and whatever `look` raises.
        """
        task = opened.found.get(name)
        if task is None or (task.done() and task.exception() is not None):
            work = self._looked(opened.micrograph, look) if by_turns else self._in_turn(opened.micrograph, look)
            task = opened.found[name] = asyncio.create_task(work)
        looked: Awaitable[T] = asyncio.shield(task)
        return await looked

    async def _in_turn(self, micrograph: Micrograph, look: Callable[[Micrograph], T]) -> T:
        await self._gate.enter()
        try:
            return await self._looked(micrograph, look)
        finally:
            self._gate.leave()

    async def _looked(self, micrograph: Micrograph, look: Callable[[Micrograph], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, look, micrograph)

    def _recalled(self, key: PictureKey) -> Opened | None:
        path, page, size = key
        if page is None:
            same = (k for k, kept in self._kept.items() if kept.first and (k[0], k[2]) == (path, size))
            key = next(same, key)
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    async def _opened(self, key: PictureKey) -> Opened:
        opened = await asyncio.get_running_loop().run_in_executor(self._readers, self._open, key)
        self._kept[key[0], opened.micrograph.page, key[2]] = opened
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._most_bytes:
            self._kept.popitem(last=False)
        return opened

    def _open(self, key: PictureKey) -> Opened:
        path, page, nm = key
        m = self._read(path, page=page)
        if nm is not None and (m.calibration is None or m.calibration.source == "banner"):
            m = self._read(path, page=page, pixel_size_nm=nm)
        pyramid, window = Pyramid(m.pixels), m.window()
        return Opened(m, pyramid, pyramid.histogram(Window(window.low, window.high)), first=page is None)

    def _done(self, key: PictureKey, task: asyncio.Task[Opened]) -> None:
        del self._opening[key]
        if not task.cancelled():
            task.exception()  # who asked may have gone: then nobody else hears of it

"""A bounded queue in front of the model: few answer at a time, some wait, the rest are told to come back.

Knows nothing about HTTP or about what is done behind it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from assistant.errors import ServerError

T = TypeVar("T")

PATIENCE_S = 60.0
"""Longest wait for a place [s]."""
RETRY_AFTER_S = 5
POLL_S = 0.02


class Stopped(BaseException):
    """Work in the background was stopped by whoever began it; no boundary for errors takes it for one."""


class Gate:
    """`places` run at once, `waiting` more may queue; shared by threads (the page) and tasks (the API).

    Every way in raises ServerError `busy` when the queue is full and `timeout` when the wait was too long.
    """

    def __init__(self, places: int = 1, waiting: int = 16, patience_s: float = PATIENCE_S) -> None:
        self._free = threading.Semaphore(places)
        self._lock = threading.Lock()
        self._room = places + waiting
        self._patience_s = patience_s
        self.running = 0
        """Requests that hold a place."""
        self.waiting = 0
        """Requests that wait for one."""

    @property
    def inside(self) -> int:
        """Requests that run or wait."""
        return self.running + self.waiting

    async def enter(self) -> None:
        """Wait for a place without blocking the loop; `leave` gives it back."""
        self._queue_up()
        deadline = time.monotonic() + self._patience_s
        try:
            while not self._free.acquire(blocking=False):
                if time.monotonic() > deadline:
                    raise _waited_too_long()
                await asyncio.sleep(POLL_S)
        except BaseException:  # a cancelled wait must not keep its room in the queue
            self._count(waiting=-1)
            raise
        self._count(waiting=-1, running=1)

    def leave(self) -> None:
        """Give a place back."""
        self._count(running=-1)
        self._free.release()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold a place; the calling thread waits for it."""
        self._queue_up()
        if not self._free.acquire(timeout=self._patience_s):
            self._count(waiting=-1)
            raise _waited_too_long()
        self._count(waiting=-1, running=1)
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def patient_turn(self, stop: threading.Event | None = None) -> Iterator[None]:
        """Hold a place for work that nobody waits for: however long that takes, and after all who wait for an answer.

        Raises Stopped once `stop` is set.
        """
        stop = stop or threading.Event()
        while self.waiting or not self._free.acquire(blocking=False):
            if stop.wait(POLL_S):
                raise Stopped
        self._count(running=1)
        try:
            yield
        finally:
            self.leave()

    def _queue_up(self) -> None:
        with self._lock:
            if self.inside >= self._room:
                raise ServerError("busy", "All places are taken. Try again in a few seconds.")
            self.waiting += 1

    def _count(self, *, waiting: int = 0, running: int = 0) -> None:
        with self._lock:
            self.waiting += waiting
            self.running += running


class Relay(Generic[T]):
    """Runs a blocking iterator in a thread of its own and hands its items to the event loop.

    The caller must hold a place of the gate. The thread gives it back, because a model cannot be stopped between
    two pieces: after `stop` it ends with the piece at hand, and only then is the place really free.
    """

    def __init__(self, items: Callable[[], Iterator[T]], gate: Gate) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[T | _End] = asyncio.Queue()
        self._stopped = threading.Event()
        threading.Thread(target=self._work, args=(items, gate), daemon=True, name="maemi-answer").start()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stopped.set()

    async def __aiter__(self) -> AsyncIterator[T]:
        try:
            while not isinstance(item := await self._queue.get(), _End):
                yield item
            if item.error:
                raise item.error
        finally:
            self.stop()

    def _work(self, items: Callable[[], Iterator[T]], gate: Gate) -> None:
        error: Exception | None = None
        try:
            for item in items():
                self._hand_over(item)
                if self._stopped.is_set():
                    break
        except Exception as raised:  # carried to the task that waits, which raises it there
            error = raised
        finally:
            gate.leave()
            self._hand_over(_End(error))

    def _hand_over(self, item: T | _End) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)


class _End:
    """Marks the end of a relayed iterator."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


def _waited_too_long() -> ServerError:
    return ServerError("timeout", "No place became free in time. Try again later.")

"""Where batches of images are captioned: in several processes, or on a Ray cluster.

Knows nothing about the journal or the output; batches go in, results come out, in any order.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

from assistant.errors import ConfigError, MaemiError
from assistant.orphans import end_with_parent
from serve.batch.jobs import Captioner, Job, Load, Result, caption_jobs, reader
from serve.desk.sandbox import Sandbox

AHEAD = 2
"""Batches handed to each worker before it asks."""
DIED = "worker_died: The process that captioned this image died twice. Look at the file by itself."

DEATHS_IN_A_ROW = 5
"""Processes that may die one after another on different images before the machine, not the images, is to blame."""

RAY_WAIT_S = 600.0
"""How long a cluster may do nothing at all, a node being added included [s]."""

_captioner: Captioner | None = None
"""The model of this worker process."""
_files: Sandbox | None = None
"""What reads files for it."""


def in_processes(batches: Iterator[list[Job]], load: Load, *, workers: int) -> Iterator[list[Result]]:
    """Caption in `workers` fresh processes. When one dies, what was under way is tried again image by image, each
    alone, and an image that kills its process once more is given up.
    """
    pool = _pool(workers)
    under_way: dict[Future[list[Result]], list[Job]] = {}
    try:
        while True:
            for batch in islice(batches, AHEAD * workers - len(under_way)):
                under_way[pool.submit(_work, load, batch)] = batch
            if not under_way:
                return
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            try:
                for future in done:
                    yield future.result()
                    del under_way[future]
            except BrokenProcessPool:
                pool.shutdown(wait=False, cancel_futures=True)
                suspects = [job for batch in under_way.values() for job in batch]
                under_way.clear()
                yield from _one_by_one(suspects, load)
                pool = _pool(workers)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def on_ray(batches: Iterator[list[Job]], load: Load, *, address: str) -> Iterator[list[Result]]:
    """Caption on a Ray cluster, one actor per GPU, or per CPU where there are none; every node must see the files.

    When an actor or its node dies, what it had is tried again image by image, and an image that kills a second actor is
    given up. Raises ConfigError `needs_extra` where Ray is not installed and `no_ray` where no cluster answers, and
    MaemiError `workers_die` where every actor dies or none ever starts.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "needs_extra", "Captioning on Ray needs the extra. Install it with: pip install 'maemi[ray]'."
        ) from None
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "://" not in address:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10.0).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, ray.exceptions.RayError) as error:
        what = str(error).strip().split("\n")[0][:200]
        raise ConfigError(
            "no_ray", f"No Ray cluster answers at {address!r} ({what}). See `ray status` there."
        ) from None
    try:
        yield from _RayPool(ray, load).caption(batches)
    finally:
        ray.shutdown()


class _RayPool:
    """The actors of one job: those that are starting, those that are free, and what the others have under way."""

    def __init__(self, ray: Any, load: Load) -> None:
        self.ray, self.load = ray, load
        there = ray.cluster_resources()
        share = {"num_gpus": 1} if there.get("GPU") else {"num_cpus": 1}
        self.actor = ray.remote(**share)(RayCaptioner)
        self.starting: dict[Any, Any] = {}
        self.free: list[Any] = []
        self.under_way: dict[Any, tuple[Any, list[Job]]] = {}
        self.again: list[Job] = []
        """What died with its actor, to be tried alone."""
        self.tried: set[bytes] = set()
        self.deaths = 0
        """One after another, without a batch that ended."""
        for _ in range(max(1, int(there.get("GPU") or there.get("CPU", 1)))):
            self.start()

    def start(self) -> None:
        """One more actor; it gets work once it has said that it is ready, which on a node that is gone it never is."""
        actor = self.actor.remote(self.load)
        self.starting[actor.ready.remote()] = actor

    def caption(self, batches: Iterator[list[Job]]) -> Iterator[list[Result]]:
        while True:
            while self.free and (batch := [self.again.pop()] if self.again else next(batches, None)):
                worker = self.free.pop()
                self.under_way[worker.work.remote(batch)] = (worker, batch)
            if self.free and not self.under_way and not self.again:
                return
            done, _ = self.ray.wait([*self.under_way, *self.starting], num_returns=1, timeout=RAY_WAIT_S)
            if not done:
                raise MaemiError("workers_die", f"No Ray worker did anything in {RAY_WAIT_S:.0f} s. See `ray status`.")
            found = self.ended(done[0])
            if found:
                yield found

    def ended(self, reference: Any) -> list[Result]:
        """What a call brought: results, an actor that is ready, or a death, after which another is started."""
        errors = self.ray.exceptions
        worker, batch = (
            self.under_way.pop(reference) if reference in self.under_way else (self.starting.pop(reference), [])
        )
        try:
            found: list[Result] = self.ray.get(reference)
        except errors.RayTaskError as error:  # what the code raised, not what became of its process
            raise error.cause if isinstance(error.cause, MaemiError) else error from None
        except errors.RayError:
            self.deaths += 1
            if self.deaths == DEATHS_IN_A_ROW:
                raise MaemiError("workers_die", "Every Ray worker dies. Run with --workers 1 to see why.") from None
            self.start()
            given_up = [job for job in batch if job.name in self.tried]
            self.again += [job for job in batch if job.name not in self.tried]
            self.tried.update(job.name for job in batch)
            return [Result(job.name, job.size, job.mtime_ns, error=DIED) for job in given_up]
        self.deaths = 0 if batch else self.deaths
        self.free.append(worker)
        return found


class RayCaptioner:
    """An actor that holds the model."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._captioner: Captioner | None = None
        self._files = reader()

    def ready(self) -> list[Result]:
        """Load the model; nothing was captioned."""
        self._captioner = self._load()
        return []

    def work(self, batch: list[Job]) -> list[Result]:
        """Caption one batch."""
        assert self._captioner is not None
        return caption_jobs(self._captioner, batch, self._files)


def _one_by_one(jobs: list[Job], load: Load) -> Iterator[list[Result]]:
    """Each image alone. Raises MaemiError `workers_die` when it cannot be the images' fault."""
    pool, deaths = _pool(1), 0
    for job in jobs:
        try:
            yield pool.submit(_work, load, [job]).result()
            deaths = 0
        except BrokenProcessPool:
            pool, deaths = _pool(1), deaths + 1
            if deaths == DEATHS_IN_A_ROW:
                raise MaemiError("workers_die", "Every worker dies. Run with --workers 1 to see why.") from None
            yield [Result(job.name, job.size, job.mtime_ns, error=DIED)]
    pool.shutdown()


def _pool(workers: int) -> ProcessPoolExecutor:
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_settle, initargs=(threads,))


def _settle(threads: int) -> None:
    """Share the cores, and end when the parent ends however it ends."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    end_with_parent()


def _work(load: Load, batch: list[Job]) -> list[Result]:
    global _captioner, _files
    _captioner, _files = _captioner or load(), _files or reader()
    return caption_jobs(_captioner, batch, _files)

"""Where batches of images are captioned: in several processes, or on a Ray cluster.

Knows nothing about the journal or the output; batches go in, results come out, in any order.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from assistant.errors import ConfigError, MaemiError
from assistant.orphans import end_with_parent
from serve.batch.jobs import Captioner, Job, Load, Result, caption_jobs, reader
from serve.desk.sandbox import Sandbox

AHEAD = 2
"""Batches handed to each worker before it asks."""
DIED = "worker_died: The process that captioned this image died twice. Look at the file by itself."

DEATHS_IN_A_ROW = 5
"""Processes that may die one after another on different images before the machine, not the images, is to blame."""

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
    """Caption on a Ray cluster, one actor per free CPU or GPU share; every node must see the files.

    Raises ConfigError `needs_extra` where Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "needs_extra", "Captioning on Ray needs the extra. Install it with: pip install 'maemi[ray]'."
        ) from None
    ray.init(address=None if address == "local" else address, ignore_reinit_error=True, log_to_driver=False)
    actor = ray.remote(RayCaptioner)
    pool = [actor.remote(load) for _ in range(max(1, int(ray.available_resources().get("CPU", 1))))]
    free, under_way = list(pool), {}
    while True:
        for batch in islice(batches, len(free)):
            worker = free.pop()
            under_way[worker.work.remote(batch)] = worker
        if not under_way:
            return
        (first,), _ = ray.wait(list(under_way), num_returns=1)
        free.append(under_way.pop(first))
        yield ray.get(first)


class RayCaptioner:
    """An actor that holds the model."""

    def __init__(self, load: Load) -> None:
        self._captioner, self._files = load(), reader()

    def work(self, batch: list[Job]) -> list[Result]:
        """Caption one batch."""
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

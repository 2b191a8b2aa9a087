"""Several processes that train one student, as torchrun or accelerate starts them. Knows nothing about models.

The first leads: it alone holds the run directory, writes and speaks. The others compute their share of every batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as distributed


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int
    count: int

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The others enter once the leader has left; where it fails, their launcher ends them."""
        if not self.leads:
            distributed.barrier()
        yield
        if self.leads and self.count > 1:
            distributed.barrier()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: all then do the same at the same step."""
        if self.count == 1:
            return flag
        told = torch.tensor(float(flag), device="cuda" if distributed.get_backend() == "nccl" else "cpu")
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return bool(told)

    def gather(self, thing: object) -> list[object]:
        """What every process gives, in the order of their ranks."""
        if self.count == 1:
            return [thing]
        everything: list[object] = [None] * self.count
        distributed.all_gather_object(everything, thing)
        return everything


ALONE = Processes(0, 1)


def meet(device: str) -> Processes:
    """Join the processes that the launcher started; alone where there is no launcher."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    return Processes(state.process_index, count)

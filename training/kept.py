"""The state of a fit, written now and then, so that one that was killed goes on bit for bit. Knows no targets.

A fit is known by its key: of its rows, its settings, its seed. What another fit left is not gone on with.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assistant.disk import verify_directory, write_directory
from assistant.errors import RunError
from training.labelled import LabelledRow
from training.state import load_optimizer, load_random_state, random_state, save_training_state

_WEIGHTS, _PLACE = "weights.safetensors", "place.json"
log = logging.getLogger("maemi.training")


class Kept:
    """The directory that holds the state of one fit."""

    def __init__(self, directory: Path, key: str, every: int) -> None:
        """`every` counts steps."""
        self.directory, self.key, self.every = directory, key, every

    def save(
        self,
        step: int,
        order: Sequence[int],
        weights: Sequence[Tensor],
        means: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        schedule: Any,
    ) -> None:
        """Write the state after `step` steps, `order` being the rows that this pass has still to see.

        Raises RunError `disk_full` or `disk`.
        """
        from safetensors.torch import save_file

        def write(staging: Path) -> None:
            tensors = {f"weight.{n}": weight.detach().contiguous() for n, weight in enumerate(weights)}
            save_file(tensors | {f"mean.{n}": mean for n, mean in enumerate(means)}, staging / _WEIGHTS)
            save_training_state(staging, optimizer, schedule, [random_state()])
            (staging / _PLACE).write_text(json.dumps({"key": self.key, "step": step, "order": list(order)}))

        write_directory(self.directory, write)

    def load(
        self, weights: Sequence[Tensor], means: Sequence[Tensor], optimizer: torch.optim.Optimizer, schedule: Any
    ) -> tuple[int, list[int]]:
        """Put the state back: the steps that were made, and the rows that the pass has still to see; 0 for none."""
        from safetensors.torch import load_file

        if not self.directory.is_dir():
            return 0, []
        try:
            verify_directory(self.directory)
            place = json.loads((self.directory / _PLACE).read_text())
        except RunError as error:
            log.warning("%s The fit begins anew.", error.message)
            return 0, []
        if place["key"] != self.key:
            log.warning("%s is of other rows or settings. The fit begins anew.", self.directory)
            return 0, []
        tensors = load_file(self.directory / _WEIGHTS)
        with torch.no_grad():
            for n, (weight, mean) in enumerate(zip(weights, means, strict=True)):
                weight.copy_(tensors[f"weight.{n}"])
                mean.copy_(tensors[f"mean.{n}"])
        load_optimizer(self.directory, optimizer, schedule)
        load_random_state(self.directory)
        return int(place["step"]), list(map(int, place["order"]))

    def forget(self) -> None:
        """Remove the state: the fit is done."""
        shutil.rmtree(self.directory, ignore_errors=True)


def key_of(rows: Sequence[LabelledRow], *settings: Any) -> str:
    """What a fit is known by: everything that its rows hold, and the settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for row in rows:
        digest.update(repr((row.name, row.group, row.split, row.truth)).encode())
        _digest(digest, row.values)
    return digest.hexdigest()


def _digest(digest: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, dict):
        for name in sorted(value):
            digest.update(name.encode())
            _digest(digest, value[name])
    elif is_dataclass(value):
        _digest(digest, vars(value))
    else:
        digest.update(repr(value).encode())

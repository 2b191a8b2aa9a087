"""What a training run needs beside its weights to go on bit for bit: optimizer, schedule, random numbers.

Stock checkpoints pickle these; here they are safetensors and JSON, which can hold nothing that runs. Knows nothing
about models.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

OPTIMIZER = "optimizer.safetensors"
STATE = "training_state.json"


def save_training_state(
    directory: Path, optimizer: torch.optim.Optimizer, scheduler: Any, randoms: Sequence[RandomState]
) -> None:
    """Write optimizer, schedule and the random state of every process."""
    from safetensors.torch import save_file

    state = optimizer.state_dict()
    tensors = {f"random.{rank}.{name}": t for rank, one in enumerate(randoms) for name, t in one.tensors.items()}
    plain: dict[str, dict[str, Any]] = {}
    for number, entries in state["state"].items():
        for key, value in _flat(entries):
            if isinstance(value, Tensor):
                tensors[f"state.{number}.{key}"] = value.detach().cpu().contiguous().clone()
            else:
                plain.setdefault(str(number), {})[key] = value
    save_file(tensors, str(directory / OPTIMIZER))
    document = {
        "param_groups": state["param_groups"],
        "plain": plain,
        "scheduler": scheduler.state_dict(),
        "random": [one.plain for one in randoms],
    }
    (directory / STATE).write_text(json.dumps(document))


@dataclass(frozen=True)
class RandomState:
    """The random numbers of a process: those of PyTorch, on the CPU and every GPU, and of Python and NumPy."""

    tensors: Mapping[str, Tensor]
    plain: Mapping[str, Any]


def random_state() -> RandomState:
    """The random state of this process."""
    tensors = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{n}": state for n, state in enumerate(torch.cuda.random.get_rng_state_all())}
    name, keys, *rest = np.random.get_state()
    return RandomState(tensors, {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]})


def load_optimizer(directory: Path, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    """Put optimizer and schedule back."""
    from safetensors.torch import load_file

    document = json.loads((directory / STATE).read_text())
    state: dict[int, dict[str, Any]] = {}
    for number, entries in document["plain"].items():
        for key, value in entries.items():
            _put(state.setdefault(int(number), {}), key, value)
    for name, tensor in load_file(str(directory / OPTIMIZER)).items():
        kind, number, *key = name.split(".", 2)
        if kind == "state":
            _put(state.setdefault(int(number), {}), key[0], tensor)
    groups = [{**group, "betas": tuple(group["betas"])} for group in document["param_groups"]]  # JSON has no tuples
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    scheduler.load_state_dict(document["scheduler"])


def _flat(entries: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The entries of one parameter; those that bitsandbytes keeps in a dictionary of their own as `outer/inner`."""
    flat: list[tuple[str, Any]] = []
    for key, value in entries.items():
        flat += [(f"{key}/{name}", one) for name, one in value.items()] if isinstance(value, dict) else [(key, value)]
    return flat


def _put(entries: dict[str, Any], key: str, value: Any) -> None:
    """The reverse of `_flat` for one entry."""
    outer, _, inner = key.rpartition("/")
    (entries.setdefault(outer, {}) if outer else entries)[inner] = value


def load_random_state(directory: Path, rank: int = 0) -> None:
    """Put the random state of a process back. A checkpoint of an older version holds that of one process."""
    from safetensors.torch import load_file

    document, tensors = json.loads((directory / STATE).read_text()), load_file(str(directory / OPTIMIZER))
    plain, start = (document["random"][rank], f"random.{rank}") if "random" in document else (document, "random")
    version, numbers, gauss = plain["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = plain["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.random.set_rng_state(tensors[f"{start}.cpu"])
    if torch.cuda.is_available():
        for n in range(torch.cuda.device_count()):
            if f"{start}.cuda.{n}" in tensors:
                torch.cuda.set_rng_state(tensors[f"{start}.cuda.{n}"], n)

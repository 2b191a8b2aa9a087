"""One process of a data-parallel training of an adapter, started by the tests: gradient accumulation, then a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed
from adapting import CONFIGS, LABELS, TOKENS, adamw, adapted, llama, named, next_token_loss
from peft import PeftModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from assistant.adapters import draw_ranks, hold_inactive
from assistant.adapters.rank import adapter_layers

SEED, MICRO_BATCHES, HALF, STEPS = 11, 2, 3, 6


def run(process: int, processes: int, folder: str) -> None:
    """Train `HALF` steps, leave a checkpoint, and train the rest in a model loaded from it."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=process, world_size=processes
    )
    torch.manual_seed(process)  # as processes differ that draw their own data
    model = adapted(CONFIGS["dyqlora_fa"])
    optimizer = adamw(model)
    ranks = steps(model, optimizer, range(HALF), process, processes)
    if process == 0:
        model.save_pretrained(f"{folder}/adapter")
        torch.save(optimizer.state_dict(), f"{folder}/optimizer.pt")
    torch.distributed.barrier()
    model = PeftModel.from_pretrained(llama(), f"{folder}/adapter", is_trainable=True)
    optimizer = adamw(model)
    optimizer.load_state_dict(torch.load(f"{folder}/optimizer.pt", weights_only=True))
    ranks += steps(model, optimizer, range(HALF, STEPS), process, processes)
    matrices = {name: b.detach() for name, b in named(model, "lora_B").items()}
    torch.save({"ranks": ranks, "matrices": matrices}, Path(folder) / f"{process}.pt")
    torch.distributed.destroy_process_group()


def steps(model: nn.Module, optimizer: Any, which: range, process: int, processes: int) -> list[list[int]]:
    """Each process takes its row of every micro-batch; returns the ranks that each forward pass computed with."""
    parallel = DistributedDataParallel(model) if processes > 1 else model
    hold_inactive(model, optimizer)
    seen: list[list[int]] = []
    for step in which:
        draw_ranks(model, SEED, step)
        for micro in range(MICRO_BATCHES):
            rows = slice(process, process + 1) if processes > 1 else slice(None)
            tokens, labels = (TOKENS + micro)[rows] % 53, (LABELS + step)[rows] % 53
            last = micro == MICRO_BATCHES - 1
            with parallel.no_sync() if processes > 1 and not last else torch.enable_grad():
                (next_token_loss(parallel, tokens, labels) / MICRO_BATCHES).backward()
            seen.append([layer.rank_of("default") for layer in adapter_layers(model)])
        optimizer.step()
        optimizer.zero_grad()
    return seen

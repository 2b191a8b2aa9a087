"""What a language model costs on this processor: memory, prefill, decode, captions in slots, training steps.

    OMP_NUM_THREADS=1 python benchmarks/bases.py [smollm2-135m] [answers | steps]

An untrained student on the base; every caption runs to its last token. Weights in float32, in bfloat16, in NF4 as they
are trained, and in NF4 unpacked once. Seconds of the wall and of the processor: on a machine with other work only the
second can be compared. Each way runs in a process of its own, for its memory. Writes bases.json beside it.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_suffix(".json")
ANSWERS = ("fp32", "nf4_unpacked", "nf4", "bf16")
STEPS = {
    "fp32": ("none", "fp32", "sdpa"),
    "bf16_plain": ("none", "bf16", "eager"),
    "bf16_fused": ("none", "bf16", "sdpa"),
    "bf16": ("none", "bf16", "sdpa_float32"),
    "nf4_bf16": ("nf4", "bf16", "sdpa_float32"),
}
"""Weights, products and attention of a training step; the last but one is what training takes."""
PROMPT, NEW, CAPTIONS, SLOTS = 128, 12, 8, (1, 8)
BATCH, LENGTHS, STEPS_TIMED = 8, (128, 600), 3


def main(arguments: Sequence[str]) -> None:
    base, *way = arguments or ["smollm2-135m"]
    if len(way) == 2:
        name, _, tokens = way[1].partition("@")
        print(json.dumps(step(base, name, int(tokens)) if way[0] == "steps" else answer(base, name)))
        return
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if way else {}
    steps = [f"{name}@{tokens}" for tokens in LENGTHS for name in STEPS]
    for part, names in (("answers", ANSWERS), ("steps", steps)):
        if way and part not in way:
            continue
        record |= {"base": base, part: {"machine": machine()}}
        for name in names:
            command = [sys.executable, __file__, base, part, name]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            record[part][name] = json.loads(told)
            print(name, told, flush=True)
            RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    flags = next(line for line in lines if line.startswith("flags")).split()
    kept = sorted({"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & set(flags))
    load = round(os.getloadavg()[0], 1)
    return {"processor": sorted(names), "cores": os.cpu_count(), "flags": kept, "load_before": load} | {
        "python": platform.python_version()
    }


def answer(base: str, way: str) -> dict[str, Any]:
    """Reading a prompt, one token after the other, and captions by the product's own slots."""
    import torch

    from assistant.adapters import unpack_nf4
    from assistant.chat import Conversation, Message
    from assistant.generation import advance, complete, read

    started = used()
    run = student(base, "nf4" if way.startswith("nf4") else "none")
    if way == "nf4_unpacked":
        unpack_nf4(run.student.decoder.lm)
    if way == "bf16":
        run.student.to(torch.bfloat16)
    run.student.eval()
    talk = Conversation((Message("user", "What is seen here?", 1, "count 24; " * (PROMPT // 4)),))
    images = torch.rand(1, 1, 1, run.config.image_size, run.config.image_size, dtype=run.student.dtype)
    loaded = used()

    def prepare(numbers: Sequence[int]) -> Any:
        batch = run.processor([talk] * len(numbers), None, padding_side="left")
        batch = {name: tensor[:, -PROMPT:] if tensor.shape[1] > PROMPT else tensor for name, tensor in batch.items()}
        names = ("image_mask", "question_ids", "question_mask", "turn_images")
        pixels = images.expand(len(numbers), -1, -1, -1, -1)
        return batch, run.student.visual_context(pixels, *(batch[name] for name in names))

    with torch.inference_mode():
        (batch, context), seen = timed(lambda: prepare([0]))
        _, read_in = timed(lambda: read(run.student, batch, context), 2)

        def continued() -> None:
            row, scores = read(run.student, batch, context)
            for _ in range(NEW):
                row, scores = advance(run.student, row, scores.argmax(-1))

        _, both = timed(continued, 2)
        length = int(batch["input_ids"].shape[1])
        captions = {}
        for slots in SLOTS:
            count = min(CAPTIONS, 2 * slots)
            _, taken = timed(
                lambda slots=slots, count=count: complete(  # type: ignore[misc]
                    run.student, count, prepare, max_new_tokens=NEW, end=-1, slots=slots
                )
            )
            captions[f"slots_{slots}"] = {name: round(count * NEW / value, 1) for name, value in taken.items()}
    return {
        "seconds_to_load": started_to(started, loaded),
        "first_token_seconds": {name: round(seen[name] + read_in[name], 2) for name in seen},
        "prefill_tokens_per_second": {name: round(length / value, 1) for name, value in read_in.items()},
        "decode_tokens_per_second": {name: round(NEW / max(1e-9, both[name] - read_in[name]), 1) for name in both},
        "tokens_per_second_in_slots": captions,
        "threads": torch.get_num_threads(),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def step(base: str, way: str, tokens: int) -> dict[str, Any]:
    """One optimiser step of 8 conversations, all of the second half answers."""
    import torch

    from assistant.checkpoint import attach_adapter
    from training.trainer import parameter_groups  # which brings the attention `sdpa_float32` too

    quantization, precision, attention = STEPS[way]
    run = student(base, quantization)
    attach_adapter(run.student, run.config.adapter)
    optimizer = torch.optim.AdamW(parameter_groups(run))
    run.student.train()
    run.student.decoder.lm.set_attn_implementation(attention)
    ids = torch.randint(100, 1000, (BATCH, tokens))
    ones = torch.ones(BATCH, 1, dtype=torch.long)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.masked_fill(torch.arange(tokens) < tokens // 2, -100),
        "image_index": torch.ones_like(ids),
        "turn_index": torch.ones_like(ids),
        "pixel_values": torch.rand(BATCH, 1, 1, run.config.image_size, run.config.image_size),
        "image_mask": ones.bool(),
        "question_ids": ids[:, None, :16],
        "question_mask": torch.ones(BATCH, 1, 16, dtype=torch.bool),
        "turn_images": ones,
    }

    def one() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = run.student(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    one()
    _, taken = timed(one, STEPS_TIMED)
    return {
        "seconds": {name: round(value, 2) for name, value in taken.items()},
        "cpu_ms_per_token": round(1e3 * taken["cpu"] / ids.numel(), 2),
        "threads": torch.get_num_threads(),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def student(base: str, quantization: str) -> Any:
    from assistant.checkpoint import new_run
    from assistant.config import parse_config

    decoder = {"base": base, "quantization": quantization, "cross_attention_every": 5}
    return new_run(parse_config({"init": None, "decoder": decoder}, origin="benchmark"), device="cpu")


def timed(work: Callable[[], Any], times: int = 1) -> tuple[Any, dict[str, float]]:
    """What work gives, and its best seconds by the wall and by the processor."""
    best: dict[str, float] = {}
    result = None
    for _ in range(times):
        start = used()
        result = work()
        taken = started_to(start, used())
        best = {name: min(best.get(name, 1e9), value) for name, value in taken.items()}
    return result, best


def used() -> dict[str, float]:
    return {"wall": time.perf_counter(), "cpu": time.process_time()}


def started_to(start: dict[str, float], end: dict[str, float]) -> dict[str, float]:
    return {name: round(end[name] - start[name], 3) for name in start}


if __name__ == "__main__":
    main(sys.argv[1:])

"""Activation memory and time of the adapters against PEFT's LoRA, on one decoder layer of Llama-2-7B's shape.

    python benchmarks/adapters.py [--tokens 64] [--repeats 5] [--out benchmarks/adapters.json]

Counts the bytes that autograd keeps for the backward pass (parameters left out), per token, and takes the fastest of a
few forward and backward passes, in turns. All rows of a base, bfloat16 or NF4, run in the same process on the same
weights, so the ratios are what counts. Rank 16 on all linear layers; the dynamic ranks at their largest, which is their
worst case.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from assistant.adapters import DyAMoPEConfig, DyQLoRAFAConfig

RANK = 16
BASE, OURS = "frozen base", "DyQLoRA-FA"
LORA, LORA_BF16 = "PEFT LoRA, default (float32 adapters)", "PEFT LoRA, bfloat16 adapters"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class OneLayer(nn.Module):
    """A decoder layer with its rotary embedding: hidden states [B, T, D] -> [B, T, D]."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.layer = LlamaDecoderLayer(config, 0)
        self.rotary = LlamaRotaryEmbedding(config)

    def forward(self, hidden: Tensor) -> Tensor:
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary: Any = self.rotary
        output: Tensor = self.layer(hidden, position_ids=positions, position_embeddings=rotary(hidden, positions))
        return output


def build_base(*, nf4: bool, device: str) -> OneLayer:
    """The layer in bfloat16 with random weights, frozen; its linear layers in NF4 where asked."""
    torch.manual_seed(0)
    config = LlamaConfig(attn_implementation="sdpa")  # the defaults are Llama-2-7B's
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        base = OneLayer(config)
        torch.set_default_dtype(torch.float32)
    if nf4:
        for parent in list(base.layer.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, quantized(child))
    return base.requires_grad_(False)


def quantized(linear: nn.Linear) -> Linear4bit:
    """The linear layer in NF4 with double quantisation, computing in bfloat16."""
    layer = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=False,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
        device="meta",
    )
    layer.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=layer)
    return layer.to(linear.weight.device)


def saved_bytes(model: nn.Module, hidden: Tensor) -> int:
    """Bytes of distinct storages that autograd keeps for the backward pass, parameters and 4-bit weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(hidden)
    del output
    return sum(kept.values())


def fastest(models: dict[str, nn.Module], hidden: Tensor, repeats: int) -> dict[str, float]:
    """Fastest forward and backward pass of each model [s]; they take turns, so that all see the same machine."""

    def once(model: nn.Module) -> float:
        start = time.perf_counter()
        model(hidden).sum().backward()
        if hidden.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    turns = [{name: once(model) for name, model in models.items()} for _ in range(repeats + 1)]
    return {name: min(turn[name] for turn in turns) for name in models}


def candidates() -> dict[str, Callable[[nn.Module], nn.Module]]:
    """What is compared, by name; each takes the frozen base and may wrap it."""

    def lora(**options: Any) -> Callable[[nn.Module], nn.Module]:
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEARS)
        return lambda base: get_peft_model(base, config, **options)

    return {
        BASE: lambda base: base,
        LORA: lora(),
        LORA_BF16: lora(autocast_adapter_dtype=False),
        OURS: lambda base: get_peft_model(base, DyQLoRAFAConfig(r_max=RANK)),
        "DyA-MoPE, 4 experts": lambda base: get_peft_model(base, DyAMoPEConfig(r_max=RANK, experts=4)),
    }


def compare(base: OneLayer, hidden: Tensor, repeats: int) -> dict[str, dict[str, float]]:
    """Bytes per token and time of every candidate, each around a copy of the base that shares its weights."""
    shared = {id(tensor): tensor for tensor in [*base.parameters(), *base.buffers()]}
    models: dict[str, Any] = {name: wrap(copy.deepcopy(base, dict(shared))) for name, wrap in candidates().items()}
    kept = {name: saved_bytes(model.train(), hidden) / hidden.shape[1] for name, model in models.items()}
    times = fastest(models, hidden, repeats)
    return {name: {"bytes_per_token": kept[name], "seconds": round(times[name], 4)} for name in models}


def goals(rows: dict[str, dict[str, float]]) -> dict[str, str]:
    """The goals for the memory of an adapter: met or missed."""
    kept = {name: row["bytes_per_token"] for name, row in rows.items()}
    latents = len(LINEARS) * RANK * torch.bfloat16.itemsize
    limits = {
        "frozen base + sum(b) x itemsize + 1 %": 1.01 * (kept[BASE] + latents),
        "0.80 x PEFT LoRA in bfloat16": 0.80 * kept[LORA_BF16],
        "0.52 x PEFT LoRA, default": 0.52 * kept[LORA],
    }
    found = kept[OURS]
    verdicts = {goal: "met" if found <= limit else "MISSED" for goal, limit in limits.items()}
    return {f"<= {goal}": f"{verdicts[goal]} ({found / limit:.3f} of it)" for goal, limit in limits.items()}


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    threads = torch.get_num_threads()
    return {"device": device, "processor": name, "threads": threads, "versions": versions, "date": str(date.today())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    hidden = torch.randn(1, options.tokens, 4096, dtype=torch.bfloat16, device=options.device, requires_grad=True)
    report: dict[str, Any] = {"tokens": options.tokens} | machine(options.device)
    for name, nf4 in (("bfloat16", False), ("nf4", True)):
        rows = compare(build_base(nf4=nf4, device=options.device), hidden, options.repeats)
        verdicts = goals(rows)
        times = {other: round(rows[OURS]["seconds"] / row["seconds"], 3) for other, row in rows.items()}
        report[name] = {"rows": rows, "goals_of_dyqlora_fa": verdicts, "dyqlora_fa_time_over": times}
        for other, row in rows.items():
            kib = row["bytes_per_token"] / 1024
            print(f"{name:9} {other:38} {kib:8.2f} KiB/token {row['seconds']:8.3f} s ({times[other]:.2f})", flush=True)
        print("\n".join(f"{name:9} DyQLoRA-FA {goal}: {verdict}" for goal, verdict in verdicts.items()), flush=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

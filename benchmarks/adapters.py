"""Activation memory and time of the adapters against PEFT's LoRA, on one decoder layer of Llama-2-7B's shape.

    python benchmarks/adapters.py [--tokens 64] [--nf4] [--out benchmarks/adapters.json]

Counts the bytes that autograd keeps for the backward pass (parameters left out), per token, and takes the fastest of a
few forward and backward passes. All rows run in the same process on the same base weights, so the ratios are what
counts. Rank 16 on all linear layers; DyQLoRA-FA at its largest rank, which is its worst case.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
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


def seconds(model: nn.Module, hidden: Tensor, repeats: int) -> float:
    """Fastest forward and backward pass of several [s]."""

    def once() -> float:
        start = time.perf_counter()
        model(hidden).sum().backward()
        if hidden.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return min(once() for _ in range(repeats + 1))


def candidates() -> dict[str, Callable[[nn.Module], nn.Module]]:
    """What is compared, by name; each takes the frozen base and may wrap it."""

    def lora(**options: Any) -> Callable[[nn.Module], nn.Module]:
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEARS)
        return lambda base: get_peft_model(base, config, **options)

    return {
        "frozen base": lambda base: base,
        "PEFT LoRA, default (float32 adapters)": lora(),
        "PEFT LoRA, bfloat16 adapters": lora(autocast_adapter_dtype=False),
        "DyQLoRA-FA": lambda base: get_peft_model(base, DyQLoRAFAConfig(r_max=RANK)),
        "DyA-MoPE, 4 experts": lambda base: get_peft_model(base, DyAMoPEConfig(r_max=RANK, experts=4)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    base = build_base(nf4=options.nf4, device=options.device)
    hidden = torch.randn(1, options.tokens, 4096, dtype=torch.bfloat16, device=options.device, requires_grad=True)
    rows = {}
    for name, wrap in candidates().items():
        model: Any = wrap(base).train()
        kib = saved_bytes(model, hidden) / options.tokens / 1024
        rows[name] = {"kib_per_token": round(kib, 2), "seconds": round(seconds(model, hidden, options.repeats), 4)}
        print(f"{name:40} {kib:8.2f} KiB/token {rows[name]['seconds']:8.3f} s", flush=True)
        if model is not base:
            model.unload()
            base.requires_grad_(False)
    ours = rows["DyQLoRA-FA"]["kib_per_token"]
    ratios = {name: round(ours / row["kib_per_token"], 3) for name, row in rows.items()}
    machine = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__, "device": options.device}
    report = {"rows": rows, "dyqlora_fa_memory_over": ratios, "tokens": options.tokens, "nf4": options.nf4} | machine
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

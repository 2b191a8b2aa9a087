"""Activation memory and time of the adapters against PEFT's LoRA, on one decoder layer of Llama-2-7B's shape.

    python benchmarks/adapters.py [--tokens 64] [--repeats 5] [--total 1024,2048,4096] [--out benchmarks/adapters.json]

Counts the bytes that autograd keeps for the backward pass (parameters left out), per token, and takes the fastest of a
few forward and backward passes, in turns. All rows of a base, bfloat16 or NF4, run in the same process on the same
weights, so the ratios are what counts. Rank 16 on all linear layers; the dynamic ranks at their largest, which is their
worst case.

`--total` measures whole optimizer steps at such lengths: the most bytes of tensors that live at once, weights,
gradients and moments included, counted at every operation.

LARS (arXiv 2604.22783) constrains the subspace of activations instead of that of parameters; its equations were not at
hand here, so the peer is what that sentence says and no more: LoRA whose A learns from its input's projection onto a
few fixed orthogonal directions, the only part of the input that is kept.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import platform
import time
import weakref
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from assistant.activations import keep_less
from assistant.adapters import DyAMoPEConfig, DyQLoRAFAConfig

RANK = 16
SUBSPACE = 64
"""Directions that the activation-subspace peer keeps of every input."""
GIB = 2**30
BASE, OURS = "frozen base", "DyQLoRA-FA"
OURS_LEAN = "DyQLoRA-FA as maemi train uses it (lean norms and SwiGLU)"
LORA_FA, SUBSPACE_LORA = "LoRA-FA as published", "activation subspace (after LARS)"
GOAL_TOTAL, GOAL_TOKENS = 0.65, 4096
LORA, LORA_BF16 = "PEFT LoRA, default (float32 adapters)", "PEFT LoRA, bfloat16 adapters"
WHOLE = (LORA, LORA_BF16, LORA_FA, SUBSPACE_LORA, OURS_LEAN)
"""Whose whole steps are measured."""
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class OneLayer(nn.Module):
    """A decoder layer with its rotary embedding: hidden states [B, T, D] -> [B, T, D]."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
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
        LORA_FA: lambda base: with_frozen_a(lora(autocast_adapter_dtype=False)(base)),
        SUBSPACE_LORA: lambda base: in_subspaces(lora(autocast_adapter_dtype=False)(base)),
        OURS: lambda base: get_peft_model(base, DyQLoRAFAConfig(r_max=RANK)),
        OURS_LEAN: lambda base: get_peft_model(lean(base), DyQLoRAFAConfig(r_max=RANK)),
        "DyA-MoPE, 4 experts": lambda base: get_peft_model(base, DyAMoPEConfig(r_max=RANK, experts=4)),
    }


def lean(base: Any) -> Any:
    """The base with norms and feed-forwards that keep less, as `maemi train` has it."""
    keep_less(base)
    return base


def with_frozen_a(model: Any) -> Any:
    """LoRA-FA (arXiv 2308.03303): B alone learns, A stays as it was drawn."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)
    return model


def in_subspaces(model: Any) -> Any:
    """Every A reads its input through `KeptInSubspace`."""
    for name, module in model.named_modules():
        if name.endswith(".lora_A"):
            module["default"] = InSubspace(module["default"].weight)
    return model


class InSubspace(nn.Module):
    """x A^T of which backward knows x by its part in a fixed subspace of `SUBSPACE` directions."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        drawn = torch.linalg.qr(torch.randn(weight.shape[1], SUBSPACE)).Q
        self.register_buffer("directions", drawn.to(weight.dtype).to(weight.device))

    def forward(self, x: Tensor) -> Tensor:
        latent: Tensor = KeptInSubspace.apply(x, self.weight, self.directions)
        return latent


class KeptInSubspace(torch.autograd.Function):
    """The exact output and gradient of x; the gradient of A from x P P^T, of which only x P [tokens, k] is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, directions: Tensor) -> Tensor:
        ctx.save_for_backward(x @ directions, weight, directions)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        kept, weight, directions = ctx.saved_tensors
        of_weight = (grad.flatten(0, -2).T @ kept.flatten(0, -2)) @ directions.T
        return grad @ weight, of_weight, None


# ---------------------------------------------------------------------------------- whole steps


def whole_steps(base: OneLayer, tokens: int, repeats: int) -> dict[str, dict[str, float]]:
    """Peak of a whole optimizer step [GiB] and the median of a few [s], of the candidates of `WHOLE`.

    They take turns. On a processor the seconds are its own, which another program's work does not lengthen much.
    """
    device = next(base.parameters()).device
    hidden = torch.randn(1, tokens, base.config.hidden_size, dtype=torch.bfloat16, device=device, requires_grad=True)
    rows: dict[str, dict[str, float]] = {}
    steps: dict[str, Callable[[], None]] = {}
    for name, wrap in candidates().items():
        if name not in WHOLE:
            continue
        shared = {id(tensor): tensor for tensor in [*base.parameters(), *base.buffers()]}
        model: Any = wrap(copy.deepcopy(base, shared)).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        take_step(model, optimizer, hidden[:, :16].detach().requires_grad_())  # the moments come into being
        steps[name] = partial(take_step, model, optimizer, hidden)
        rows[name] = {"peak_gib": round(counted_peak(steps[name], [model, optimizer, hidden]) / GIB, 4)}
    clock = time.perf_counter if hidden.is_cuda else time.process_time
    turns = [{name: timed(step, clock) for name, step in steps.items()} for _ in range(repeats)]
    for name, row in rows.items():
        row["seconds"] = round(median(turn[name] for turn in turns), 3)
        print(f"{tokens:5} tokens {name:60} {row['peak_gib']:7.3f} GiB {row['seconds']:8.2f} s", flush=True)
    for row in rows.values():
        row["peak_over_peft_bf16"] = round(row["peak_gib"] / rows[LORA_BF16]["peak_gib"], 3)
        row["time_over_peft_bf16"] = round(row["seconds"] / rows[LORA_BF16]["seconds"], 3)
    return rows


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, hidden: Tensor) -> None:
    model(hidden).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    hidden.grad = None
    if hidden.is_cuda:
        torch.cuda.synchronize()


def timed(run: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def counted_peak(run: Callable[[], None], there: list[Any]) -> int:
    """The most bytes of tensors that live at once during a call, with those that are there before."""
    with LiveBytes() as live:
        for thing in there:
            tensors = [thing] if isinstance(thing, Tensor) else []
            if isinstance(thing, nn.Module):
                tensors = [*thing.parameters(), *thing.buffers()]
                states = [p.quant_state for p in thing.parameters() if getattr(p, "quant_state", None) is not None]
                tensors += [t for state in states for t in (state.absmax, state.code)]
                tensors += [t for state in states if state.nested for t in (state.state2.absmax, state.state2.code)]
            if isinstance(thing, torch.optim.Optimizer):
                tensors = [t for state in thing.state.values() for t in state.values() if isinstance(t, Tensor)]
            for tensor in tensors:
                live.add(tensor)
        run()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts storages from the operation that makes them until the last tensor over them is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self.known:
            return

        def gone(_: Any) -> None:
            self.now -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.add, made)
        return made


def verdict_of_total(rows: dict[str, dict[str, float]]) -> str:
    """Whether the recipe of `maemi train` reaches the goal for a whole step."""
    row = rows[OURS_LEAN]
    met = row["peak_over_peft_bf16"] <= GOAL_TOTAL and row["time_over_peft_bf16"] <= 1.0
    peak, time_taken = row["peak_over_peft_bf16"], row["time_over_peft_bf16"]
    return f"{'met' if met else 'MISSED'} ({peak:.3f} of its peak, {time_taken:.2f} of its time)"


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
    parser.add_argument("--bases", default="bfloat16,nf4")
    parser.add_argument("--total", help="lengths [tokens] at which whole steps are measured, with commas between")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    hidden = torch.randn(1, options.tokens, 4096, dtype=torch.bfloat16, device=options.device, requires_grad=True)
    report: dict[str, Any] = {"tokens": options.tokens} | machine(options.device)
    for name in options.bases.split(","):
        base = build_base(nf4=name == "nf4", device=options.device)
        report[name] = {}
        rows = compare(base, hidden, options.repeats)
        verdicts = goals(rows)
        times = {other: round(rows[OURS]["seconds"] / row["seconds"], 3) for other, row in rows.items()}
        report[name] |= {"rows": rows, "goals_of_dyqlora_fa": verdicts, "dyqlora_fa_time_over": times}
        for other, row in rows.items():
            kib = row["bytes_per_token"] / 1024
            print(f"{name:9} {other:38} {kib:8.2f} KiB/token {row['seconds']:8.3f} s ({times[other]:.2f})", flush=True)
        print("\n".join(f"{name:9} DyQLoRA-FA {goal}: {verdict}" for goal, verdict in verdicts.items()), flush=True)
        for tokens in map(int, filter(None, (options.total or "").split(","))):
            total = whole_steps(base, tokens, max(1, options.repeats // 2))
            report[name].setdefault("whole_steps", {})[str(tokens)] = total
            if tokens == GOAL_TOKENS:
                goal = f"<= {GOAL_TOTAL} x the peak of PEFT LoRA in bfloat16, no slower, at {tokens} tokens"
                report[name]["goal_of_a_whole_step"] = {goal: verdict_of_total(total)}
                print(f"{name:9} {goal}: {verdict_of_total(total)}", flush=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

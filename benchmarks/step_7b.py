"""Peak memory and speed of a fine-tuning step of Llama-2-7B: ours against PEFT's QLoRA, the plan's prediction beside.

    python benchmarks/step_7b.py [--device cuda] [--steps 5] [--unsloth DIR] [--out benchmarks/step_7b.json]

The weights are random and are built layer by layer in NF4, so 7B never exist in 16 bit. Every candidate starts from a
base of its own and trains at rank 16 on all linear layers, which is the worst case of a dynamic rank. Peaks are those
of the allocator, without the CUDA context. unsloth loads only checkpoints, so it takes part where it is installed and
`--unsloth` names the directory of one. Without a GPU nothing is measured: the file holds predictions, and says so.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from assistant.activations import keep_less
from assistant.adapters import DyAMoPEConfig, DyQLoRAFAConfig, hold_inactive, prepare_nf4, set_rank
from assistant.config import parse_config
from assistant.loss import next_token_loss
from training.planning.memory import CUDA_CONTEXT, GIB, planned_adapter_parameters, step_parts
from training.planning.shapes import LanguageModelShape

RANK = 16
SHAPES = ((1024, 1), (1024, 4), (512, 1), (2048, 1))  # tokens of a row, rows; those with a goal first
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA_7B = LlamaConfig(attn_implementation="sdpa")  # its defaults are Llama-2-7B's
GOALS_GIB = {(1024, 1, True): 5.2, (512, 1, False): 6.3}  # with the CUDA context


# ---------------------------------------------------------------------------------- the base


def random_llama(config: LlamaConfig, device: str) -> LlamaForCausalLM:
    """A frozen Llama with random weights: NF4 with double quantisation inside its layers, bfloat16 elsewhere."""
    torch.manual_seed(0)
    with torch.device("meta"):
        lm = LlamaForCausalLM(config).to(torch.bfloat16)
    for parent in list(lm.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and name in LINEARS:
                setattr(parent, name, random_nf4(child.in_features, child.out_features, device))
            elif isinstance(child, LlamaRotaryEmbedding):
                setattr(parent, name, LlamaRotaryEmbedding(config).to(device))
        for name, parameter in list(parent.named_parameters(recurse=False)):
            if parameter.is_meta:
                drawn = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
                drawn = drawn.fill_(1) if parameter.dim() == 1 else drawn.normal_(std=0.02)
                setattr(parent, name, nn.Parameter(drawn, requires_grad=False))
    lm.is_loaded_in_4bit = True  # how PEFT tells a quantised model
    prepare_nf4(lm)
    return lm.requires_grad_(False)


def random_nf4(d_in: int, d_out: int, device: str) -> Linear4bit:
    layer = Linear4bit(
        d_in, d_out, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4", device="meta"
    )
    weight = torch.empty(d_out, d_in, dtype=torch.bfloat16, device=device).normal_(std=0.02)
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer)
    return layer.to(device)


# ---------------------------------------------------------------------------------- the candidates


@dataclass(frozen=True)
class Candidate:
    """A model ready to train, and the loss of a batch of token ids [B, T]."""

    model: nn.Module
    loss: Callable[[Tensor], Tensor]


def peft_qlora(base: LlamaForCausalLM, checkpointed: bool) -> Candidate:
    """PEFT's own recipe with its defaults: kbit preparation, float32 adapters, the model's own loss."""
    base = prepare_model_for_kbit_training(
        base, use_gradient_checkpointing=checkpointed, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEARS))
    return Candidate(model, lambda tokens: model(input_ids=tokens, labels=tokens, use_cache=False).loss)


def ours(config: DyQLoRAFAConfig | DyAMoPEConfig) -> Callable[[LlamaForCausalLM, bool], Candidate]:
    """This package's recipe, as `maemi train` uses it on the language model."""

    def build(base: LlamaForCausalLM, checkpointed: bool) -> Candidate:
        keep_less(base)
        model = get_peft_model(base, config, autocast_adapter_dtype=False)
        set_rank(model, None)
        if checkpointed:
            base.activation_checkpointing_enable({"use_reentrant": False})

        def loss(tokens: Tensor) -> Tensor:
            hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
            return next_token_loss(hidden, tokens, model.get_output_embeddings())

        return Candidate(model, loss)

    return build


def unsloth_qlora(directory: Path, tokens: int, checkpointed: bool) -> Candidate:
    """unsloth's recipe on a checkpoint of its own."""
    from unsloth import FastLanguageModel

    lm, _ = FastLanguageModel.from_pretrained(str(directory), max_seq_length=tokens, load_in_4bit=True)
    lm = FastLanguageModel.get_peft_model(
        lm,
        r=RANK,
        lora_alpha=RANK,
        lora_dropout=0,
        target_modules=LINEARS,
        use_gradient_checkpointing="unsloth" if checkpointed else False,
    )
    return Candidate(lm, lambda ids: lm(input_ids=ids, labels=ids).loss)


CANDIDATES: dict[str, Callable[[LlamaForCausalLM, bool], Candidate]] = {
    "PEFT QLoRA, default": peft_qlora,
    "DyQLoRA-FA": ours(DyQLoRAFAConfig(r_max=RANK)),
    "DyA-MoPE, 4 experts": ours(DyAMoPEConfig(r_max=RANK, experts=4)),
}
KINDS = {"DyQLoRA-FA": "dyqlora_fa", "DyA-MoPE, 4 experts": "dya_mope"}


# ---------------------------------------------------------------------------------- measuring


Figures = dict[str, Any]


def measure(candidate: Candidate, vocabulary: int, tokens: int, rows: int, steps: int, device: str) -> Figures:
    """Tokens per second and, on a GPU, the allocator's peak [GiB] of whole optimizer steps, the first two left out."""
    model = candidate.model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    hold_inactive(model, optimizer)
    ids = torch.randint(vocabulary, (rows, tokens), device=device)
    on_gpu = device.startswith("cuda")
    for step in range(-2, steps):
        if step == 0:
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
        loss = candidate.loss(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    final = float(loss.detach())  # waits for the GPU
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / GIB if on_gpu else None
    return {
        "peak_gib": peak and round(peak, 3),
        "tokens_per_s": round(rows * tokens * steps / seconds, 1),
        "loss": final,
    }


def attempt(build: Callable[[], Candidate], *args: Any) -> Figures:
    """A measurement, or what kept it from ending; nothing stays on the GPU."""
    try:
        return measure(build(), *args)
    except torch.cuda.OutOfMemoryError:
        return {"error": "out of memory"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def predicted_gib(kind: str, shape: LanguageModelShape, tokens: int, rows: int, checkpointed: bool) -> float:
    """What `maemi plan` says of the language model and its adapter alone, without the CUDA context [GiB]."""
    config = parse_config(
        {
            "init": None,
            "decoder": {"base": "meta-llama/Llama-2-7b-hf"},
            "adapter": {"kind": kind, "r_max": RANK},
            "training": {"batch_size": rows, "max_tokens": tokens, "gradient_checkpointing": checkpointed},
        },
        origin="benchmark",
    )
    parts = step_parts(config, shape)
    of_lm = ("language model", "adapter weights", "logits", "one layer in backward")
    trained, _ = planned_adapter_parameters(shape, config.adapter)
    gradients_and_moments = trained * (2 + 8)
    return (sum(size for name, size in parts.items() if any(p in name for p in of_lm)) + gradients_and_moments) / GIB


# ---------------------------------------------------------------------------------- the report


def rows_of(config: LlamaConfig, shapes: tuple[tuple[int, int], ...], options: Any) -> Iterator[dict[str, Any]]:
    shape = LanguageModelShape(
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
    )
    for tokens, rows in shapes:
        for checkpointed in (True, False):
            for name, wrap in CANDIDATES.items():
                row: dict[str, Any] = {"name": name, "tokens": tokens, "rows": rows, "checkpointed": checkpointed}
                if name in KINDS:
                    row["predicted_gib"] = round(predicted_gib(KINDS[name], shape, tokens, rows, checkpointed), 5)
                if options.measured:
                    build = lambda wrap=wrap, c=checkpointed: wrap(random_llama(config, options.device), c)  # noqa: E731
                    row |= attempt(build, config.vocab_size, tokens, rows, options.steps, options.device)
                yield row
            if options.measured and options.unsloth and importlib.util.find_spec("unsloth"):
                build = lambda t=tokens, c=checkpointed: unsloth_qlora(options.unsloth, t, c)  # noqa: E731
                found = attempt(build, config.vocab_size, tokens, rows, options.steps, options.device)
                yield {"name": "unsloth", "tokens": tokens, "rows": rows, "checkpointed": checkpointed} | found


def goals(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The goals of a 7B step: met, missed, or not measured."""
    found = {(r["name"], r["tokens"], r["rows"], r["checkpointed"]): r for r in rows}
    verdicts = {}
    for (tokens, count, checkpointed), limit in GOALS_GIB.items():
        row = found.get(("DyQLoRA-FA", tokens, count, checkpointed), {})
        text = (
            f"{tokens}x{count} {'with' if checkpointed else 'without'} checkpointing: peak with context <= {limit} GiB"
        )
        peak = row.get("peak_gib") or row.get("predicted_gib")
        if peak is not None:
            seen = peak + CUDA_CONTEXT / GIB
            kind = "" if row.get("peak_gib") else "predicted, not measured: "
            verdicts[text] = f"{kind}{'met' if seen <= limit else 'MISSED'} ({seen:.2f} GiB)"
    peer, mine = (found.get((name, 1024, 4, True), {}) for name in ("PEFT QLoRA, default", "DyQLoRA-FA"))
    if peer.get("peak_gib") and mine.get("peak_gib"):
        less, faster = peer["peak_gib"] / mine["peak_gib"], mine["tokens_per_s"] / peer["tokens_per_s"]
        verdicts["1024x4: >= 1.35x less peak than PEFT QLoRA"] = f"{'met' if less >= 1.35 else 'MISSED'} ({less:.2f}x)"
        verdicts["1024x4: >= 1.25x its tokens/s"] = f"{'met' if faster >= 1.25 else 'MISSED'} ({faster:.2f}x)"
    else:
        verdicts["1024x4: >= 1.35x less peak and >= 1.25x tokens/s than PEFT QLoRA"] = "not measured"
    return verdicts


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    return {"device": device, "processor": name, "versions": versions, "date": date.today().isoformat()}


def run(config: LlamaConfig, shapes: tuple[tuple[int, int], ...], options: Any) -> dict[str, Any]:
    """All rows of a configuration, printed and written as they come, and the report they make."""
    rows: list[dict[str, Any]] = []
    kind = "measured" if options.measured else "PREDICTIONS of the plan; no GPU was at hand, so nothing was measured"
    report: dict[str, Any] = {"figures": kind, "goals": {}, "rows": rows} | machine(options.device)
    for row in rows_of(config, shapes, options):
        print(json.dumps(row), flush=True)
        rows.append(row)
        report["goals"] = goals(rows)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    for goal, verdict in report["goals"].items():
        print(f"{goal}: {verdict}")
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--unsloth", type=Path, help="directory of a Llama-2-7B checkpoint for unsloth")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    options.measured = options.device.startswith("cuda")
    run(LLAMA_7B, SHAPES, options)


if __name__ == "__main__":
    main()

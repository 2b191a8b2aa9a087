"""Small Llamas of width 64 with and without adapters, and what their passes compute, for the tests of the adapters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from assistant.adapters import (
    DyAMoPEConfig,
    DyQLoRAFAConfig,
    rank_at,
    set_rank,
)

TOKENS = torch.arange(2 * 12).view(2, 12) % 53
LABELS = (TOKENS * 7 + 3) % 53
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
FA: dict[str, Any] = {"r_min": 2, "r_max": 8, "alpha": 16.0}


def llama(dtype: torch.dtype = torch.float32, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=53,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(dtype)


def to_nf4(model: nn.Module, *, nested: bool = True) -> nn.Module:
    """Replace the linear layers of the decoder by 4-bit ones, as loading with a quantisation config does."""
    for parent in list(model.model.layers.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                layer = bnb.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    compute_dtype=torch.float32,
                    compress_statistics=nested,
                    quant_type="nf4",
                )
                layer.weight = bnb.nn.Params4bit(
                    child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=nested
                )
                setattr(parent, name, layer.to("cpu"))
    return model


BASES = {"dense": llama, "nf4": lambda: to_nf4(llama())}
CONFIGS = {
    "dyqlora_fa": lambda **kw: DyQLoRAFAConfig(**{**FA, **kw}),
    "dya_mope": lambda **kw: DyAMoPEConfig(**{**FA, "experts": 3, **kw}),
}
both_configs = pytest.mark.parametrize("make_config", CONFIGS.values(), ids=CONFIGS.keys())
both_bases = pytest.mark.parametrize("make_base", BASES.values(), ids=BASES.keys())


def named(model: nn.Module, part: str) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if part in name}


def randomize(model: nn.Module, seed: int = 1) -> nn.Module:
    """As if trained: everything trainable gets values away from its start."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_B", "lora_router", "lora_mov")):
            noise = torch.randn(parameter.shape, generator=generator) * (1.0 if "router" in name else 0.05)
            parameter.data.add_(noise.to(parameter))
    return model


def adapted(make_config: Any, base: nn.Module | None = None, **settings: Any) -> PeftModel:
    torch.manual_seed(3)
    return get_peft_model(base if base is not None else llama(), make_config(**settings))


def next_token_loss(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(input_ids=tokens).logits.flatten(0, 1).float(), labels.flatten())


def loss_of(model: nn.Module, labels: Tensor = LABELS) -> Tensor:
    return next_token_loss(model, TOKENS, labels)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss_of(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def saved_for_backward(run: Any, model: nn.Module) -> Counter[tuple[int, ...]]:
    """Shapes of distinct tensors that autograd keeps, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, ...]] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own and tensor.is_floating_point():
            shape = tuple(tensor.shape)
            kept[pointer] = max(kept.get(pointer, ()), shape, key=lambda s: torch.Size(s).numel())
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return Counter(kept.values())


def saved_bytes(model: nn.Module) -> int:
    embeds = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    shapes = saved_for_backward(lambda: model(inputs_embeds=embeds).logits, model)
    return sum(torch.Size(shape).numel() * count * 4 for shape, count in shapes.items())


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)


def train_once(model: nn.Module, optimizer: Any) -> None:
    loss_of(model).backward()
    optimizer.step()
    optimizer.zero_grad()


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        set_rank(model, rank_at(7, step, 2, 8))
        train_once(model, optimizer)

"""Ranks, optimizers, checkpointing and data-parallel training of the adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import (
    CONFIGS,
    adamw,
    adapted,
    both_configs,
    gradients,
    llama,
    named,
    randomize,
    to_nf4,
    train,
    train_once,
)
from peft import PeftModel
from torch import Tensor, nn

from assistant.adapters import (
    hold_inactive,
    set_rank,
)

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT 0.21 asks for it


def columns(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> list[Tensor]:
    """Inactive columns of every B and of both its moments, copied."""
    tensors = [
        t
        for b in named(model, "lora_B").values()
        for t in (b, *(optimizer.state[b][k] for k in ("exp_avg", "exp_avg_sq")))
    ]
    return [t.detach()[..., rank:].clone() for t in tensors]


@both_configs
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "accelerate"])
def test_inactive_columns_do_not_move(make_config: Any, wrapped: bool) -> None:
    """AdamW moves columns without a gradient: by momentum of earlier steps, and by decoupled decay."""
    model = randomize(adapted(make_config))
    inner = adamw(model)
    optimizer = inner
    if wrapped:
        from accelerate import Accelerator

        optimizer = Accelerator(cpu=True).prepare(inner)
    hold_inactive(model, optimizer)
    train(model, optimizer, range(3))
    set_rank(model, 8)
    train_once(model, optimizer)
    before = columns(model, inner, 3)
    active = [b.detach()[..., :3].clone() for b in named(model, "lora_B").values()]
    assert all(t.abs().sum() > 0 for t in before)
    set_rank(model, 3)
    train_once(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(columns(model, inner, 3), before, strict=True))
    moved = [b.detach()[..., :3] for b in named(model, "lora_B").values()]
    assert not any(torch.equal(a, b) for a, b in zip(moved, active, strict=True))


def test_first_step_leaves_no_trace_outside_the_rank() -> None:
    """Coupled weight decay puts a moment into columns that were never sampled, in the step that creates the state."""
    model = randomize(adapted(CONFIGS["dyqlora_fa"]))
    optimizer = torch.optim.SGD(named(model, "lora_B").values(), lr=0.1, momentum=0.9, weight_decay=0.1)
    hold_inactive(model, optimizer)
    before = {name: b.detach().clone() for name, b in named(model, "lora_B").items()}
    set_rank(model, 3)
    train_once(model, optimizer)
    for name, b in named(model, "lora_B").items():
        assert torch.equal(b[:, 3:], before[name][:, 3:])
        assert not optimizer.state[b]["momentum_buffer"][:, 3:].any()


def test_resumed_training_is_bit_identical(tmp_path: Path) -> None:
    """Rank drawn from a generator with state, moments lost, or A redrawn on resume."""
    straight = adapted(CONFIGS["dyqlora_fa"], to_nf4(llama()))
    optimizer = adamw(straight)
    hold_inactive(straight, optimizer)
    checksum = {name: a.clone() for name, a in named(straight, "lora_A").items()}
    train(straight, optimizer, range(3))
    straight.save_pretrained(tmp_path)
    state = copy.deepcopy(optimizer.state_dict())
    train(straight, optimizer, range(3, 6))
    resumed = PeftModel.from_pretrained(to_nf4(llama()), tmp_path, is_trainable=True)
    resumed.train()
    optimizer = adamw(resumed)
    optimizer.load_state_dict(state)
    hold_inactive(resumed, optimizer)
    train(resumed, optimizer, range(3, 6))
    for name, parameter in named(straight, "lora_").items():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    assert all(torch.equal(a, checksum[name]) for name, a in named(straight, "lora_A").items())
    assert all(b.abs().sum() > 0 for b in named(straight, "lora_B").values())


@both_configs
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_recomputes_at_the_same_rank(make_config: Any, reentrant: bool) -> None:
    """A rank drawn inside the forward pass, or held by a context around it: silently wrong gradients when reentrant."""
    model = randomize(adapted(make_config))
    model.train()
    set_rank(model, 3)
    expected = gradients(model)
    model.enable_input_require_grads()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    found = gradients(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

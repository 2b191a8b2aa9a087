"""Ranks, optimizers, checkpointing and data-parallel training of the adapters."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import data_parallel
import pytest
import torch
from accelerate import Accelerator
from adapting import (
    CONFIGS,
    TOKENS,
    adamw,
    adapted,
    both_bases,
    both_configs,
    gradients,
    llama,
    named,
    randomize,
    to_nf4,
    train,
    train_once,
)
from instruction_data import write_dataset
from peft import PeftModel, get_peft_model
from students import tiny_config, tiny_run, write_tiny_base
from torch import Tensor, nn

from assistant import adapters
from assistant.adapter_kinds import DyQLoRAFASettings
from assistant.adapters import (
    AdapterError,
    DyQLoRAFAConfig,
    draw_ranks,
    hold_inactive,
    precondition,
    rank_at,
    set_rank,
)
from assistant.adapters.rank import adapter_layers
from assistant.checkpoint import attach_adapter
from training.stages import InstructionStage
from training.trainer import stage_state
from training.trainer import train as fine_tune

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT 0.21 asks for it


OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "8-bit": lambda p: bnb.optim.AdamW8bit(p, lr=1e-2, weight_decay=0.1, min_8bit_size=1),
    "accelerate": lambda p: Accelerator(cpu=True).prepare(torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)),
}


def columns(model: nn.Module, optimizer: Any, outside: slice) -> list[Tensor]:
    """Every B and every state of its shape, copied, without the columns of `outside`."""
    inner = getattr(optimizer, "optimizer", optimizer)
    copies = []
    for b in named(model, "lora_B").values():
        kept = torch.ones(b.shape[-1], dtype=torch.bool)
        kept[outside] = False
        states = [t for t in inner.state[b].values() if isinstance(t, Tensor) and t.shape == b.shape]
        assert states, "the optimizer has no state to hold"
        copies += [t.detach()[..., kept].clone() for t in (b, *states)]
    return copies


@both_configs
@pytest.mark.parametrize("update", ["prefix", "last"])
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_inactive_columns_do_not_move(make_config: Any, update: str, make_optimizer: Any) -> None:
    """Momentum of earlier steps and decoupled decay move columns without a gradient. Seen failing without the hooks."""
    model = randomize(adapted(make_config, rank_update=update))
    optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad])
    hold_inactive(model, optimizer)
    for rank in range(2, 9):  # every column has been stepped once
        set_rank(model, rank)
        train_once(model, optimizer)
    trained = slice(0 if update == "prefix" else 2, 3)
    before = columns(model, optimizer, trained)
    active = [b.detach()[..., trained].clone() for b in named(model, "lora_B").values()]
    set_rank(model, 3)
    train_once(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(columns(model, optimizer, trained), before, strict=True))
    moved = [b.detach()[..., trained] for b in named(model, "lora_B").values()]
    assert not any(torch.equal(a, b) for a, b in zip(moved, active, strict=True))


def test_8_bit_moments_of_unseen_columns_are_zero() -> None:
    """Code 0 of bitsandbytes' book is -1: unseen columns would start with the largest momentum. Seen failing so."""
    model = randomize(adapted(CONFIGS["dyqlora_fa"]))
    optimizer = OPTIMIZERS["8-bit"](list(named(model, "lora_B").values()))
    hold_inactive(model, optimizer)
    set_rank(model, 3)
    train_once(model, optimizer)
    for b in named(model, "lora_B").values():
        state = optimizer.state[b]
        for moment, book in (("state1", "qmap1"), ("state2", "qmap2")):
            assert not state[book][state[moment][:, 3:].long()].any()
            assert state[book][state[moment][:, :3].long()].any()


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


# ---- which rank ----------------------------------------------------------------------------------------------------


@both_configs
def test_one_rank_for_all_layers(make_config: Any) -> None:
    """Fails if layers differ, or a draw holds state."""
    model = adapted(make_config)
    draws = []
    for step in (0, 1, 2, 0):
        draw_ranks(model, 7, step)
        draws.append([layer.rank_of("default") for layer in adapter_layers(model)])
    assert draws[0] == draws[3] != draws[1]
    assert [set(ranks) for ranks in draws[:3]] == [{rank_at(7, step, 2, 8)} for step in range(3)]


@both_configs
def test_last_column_alone_gets_a_gradient(make_config: Any) -> None:
    """DyLoRA's frozen mode: the same output, columns below the rank are constants. Seen failing without `detach`."""
    both = [randomize(adapted(make_config, rank_update=update)) for update in ("prefix", "last")]
    for model in both:
        set_rank(model, 5)
    prefix, last = (gradients(model) for model in both)
    assert torch.equal(both[0](input_ids=TOKENS).logits, both[1](input_ids=TOKENS).logits)
    for name in named(both[0], "lora_B"):
        torch.testing.assert_close(last[name][..., 4], prefix[name][..., 4])
        assert not last[name][..., :4].any()
        assert not last[name][..., 5:].any()
        assert last[name][..., 4].any()


# ---- A is for ever -------------------------------------------------------------------------------------------------


@both_configs
@both_bases
def test_A_never_changes(make_base: Any, make_config: Any, tmp_path: Path) -> None:
    """Training with every parameter in the optimizer, evaluation, saving, switching, merging, resuming.

    Seen failing with an A that is not detached and thawed by PEFT's `set_adapter`.
    """
    model = adapted(make_config, make_base())
    before = checksums(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    hold_inactive(model, optimizer)
    train(model, optimizer, range(2))
    with model.disable_adapter():
        model.eval().generate(input_ids=TOKENS[:, :3], max_new_tokens=2, do_sample=False)
    model.train().set_adapter("default")
    train(model, optimizer, range(2, 4))
    set_rank(model, None)
    if make_config is CONFIGS["dyqlora_fa"]:
        model.merge_adapter()
        model.unmerge_adapter()
    model.save_pretrained(tmp_path)
    assert checksums(model) == before
    resumed = PeftModel.from_pretrained(make_base(), tmp_path, is_trainable=True).train()
    optimizer = torch.optim.AdamW(resumed.parameters(), lr=1e-2, weight_decay=0.1)
    train(resumed, optimizer, range(4, 6))
    assert checksums(resumed) == before


def checksums(model: nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(a.detach().numpy().tobytes()).hexdigest() for name, a in named(model, "lora_A").items()
    }


def test_checkpoints_of_a_run_hold_A(tmp_path: Path) -> None:
    """A is drawn on the device it trains on: resumed on another it would be a different A. Seen failing without."""
    run = tiny_run(tmp_path)
    attach_adapter(run.student, DyQLoRAFASettings(r_min=2, r_max=4))
    state = stage_state(InstructionStage(run.student, run.config.loss))
    kept = {name.removeprefix("student.") for name in state}
    assert set(named(run.student, "lora_A")) <= kept
    assert not [name for name in kept if name.endswith("base_layer.weight")]


# ---- preconditioner ------------------------------------------------------------------------------------------------


@both_configs
@pytest.mark.parametrize("rank", range(2, 9))
def test_preconditioner_solves_the_normal_equations(make_config: Any, rank: int) -> None:
    """grad (A_b A_b^T)^-1 / s^2 for every b. Seen failing with the trailing block of the factor."""
    settings = {"expert_A": True} if make_config is CONFIGS["dya_mope"] else {}
    model = randomize(adapted(make_config, llama(torch.float64), **settings))
    for a in named(model, "lora_A").values():
        a.data.mul_(torch.logspace(-1, 0, 8, dtype=torch.float64)[:, None])  # far from orthonormal
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    precondition(model, optimizer)
    set_rank(model, rank)
    raw = gradients(model)
    before = {name: b.detach().clone() for name, b in named(model, "lora_B").items()}
    optimizer.step()
    for name, b in named(model, "lora_B").items():
        a = model.get_parameter(name.replace("lora_B", "lora_A"))[..., :rank, :]
        gram = a @ a.mT + 1e-8 * torch.eye(rank, dtype=torch.float64)
        expected = torch.linalg.solve(gram, raw[name][..., :rank], left=False) / (16 / rank) ** 2
        torch.testing.assert_close((before[name] - b.detach())[..., :rank], expected, rtol=1e-8, atol=1e-12)
        assert torch.equal(b[..., rank:], before[name][..., rank:])
    routers = named(model, "lora_router")
    assert all(torch.equal(model.get_parameter(name).grad, raw[name]) for name in routers)


def test_preconditioned_step_comes_closest_to_a_full_one() -> None:
    """s dB A is the projection of the full gradient onto the rows of A. Fails with any other power of s."""
    torch.manual_seed(0)
    linear = nn.Linear(24, 20, bias=False).double()
    model = get_peft_model(nn.Sequential(linear), DyQLoRAFAConfig(r_min=2, r_max=8, target_modules=["0"]))
    layer = adapter_layers(model)[0]
    optimizer = torch.optim.SGD(layer.lora_B.values(), lr=1.0)
    precondition(model, optimizer)
    set_rank(model, 5)
    x, weight = torch.randn(9, 24, dtype=torch.float64), torch.randn(9, 20, dtype=torch.float64)
    (model(x) * weight).sum().backward()
    full = weight.T @ x  # the gradient of the frozen weight
    optimizer.step()
    rows = layer.lora_A["default"][:5]
    projected = full @ torch.linalg.pinv(rows) @ rows
    torch.testing.assert_close(-layer.get_delta_weight("default"), projected, rtol=1e-5, atol=1e-6)


def test_preconditioned_training_resumes_bit_identically(tmp_path: Path) -> None:
    """A factor that outlives the A it belongs to, which loading replaces. Seen failing with a cache by layer alone."""
    straight = adapted(CONFIGS["dyqlora_fa"])
    optimizer = prepared(straight)
    train(straight, optimizer, range(3))
    straight.save_pretrained(tmp_path)
    state = copy.deepcopy(optimizer.state_dict())
    train(straight, optimizer, range(3, 6))
    base = llama()
    torch.manual_seed(99)
    resumed = get_peft_model(base, CONFIGS["dyqlora_fa"]())  # another A, until the checkpoint is loaded
    optimizer = prepared(resumed)
    train(resumed, optimizer, range(1))
    resumed.load_adapter(tmp_path, "default", is_trainable=True)
    optimizer.load_state_dict(state)
    train(resumed, optimizer, range(3, 6))
    for name, parameter in named(straight, "lora_").items():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def prepared(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = adamw(model)
    precondition(model, optimizer)
    hold_inactive(model, optimizer)
    return optimizer


def test_preconditioner_refuses_single_columns() -> None:
    model = adapted(CONFIGS["dyqlora_fa"], rank_update="last")
    with pytest.raises(AdapterError, match="bad_update"):
        precondition(model, adamw(model))


@pytest.mark.filterwarnings("ignore:.*use_cpu.*", "ignore:.*lr_scheduler.step.*")
@pytest.mark.parametrize("precondition", [False, True])
def test_a_run_mixes_experts_and_logs_their_use(precondition: bool, tmp_path: Path) -> None:
    """A whole run with all the trainer wires for adapters. Seen failing with the entropy, or the hook, left out."""
    changed: list[bool] = []
    data, base = write_dataset(tmp_path / "data"), write_tiny_base(tmp_path / "base")
    config = tiny_config(
        base,
        "adapter.kind=dya_mope",
        "adapter.r_min=2",
        "adapter.r_max=4",
        "adapter.balance_loss=0.01",
        f"adapter.precondition={precondition}",
        "training.steps=10",
    )
    before = adapters.precondition
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "precondition", lambda lm, opt: (changed.append(True), before(lm, opt)))
        fine_tune(config, data, tmp_path / "run")
    entry = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0.5 < entry["expert_entropy"] <= 1.0
    assert entry["router"] > 0
    assert changed == [True] * precondition


# ---- several processes ---------------------------------------------------------------------------------------------


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two micro-batches a step, resumed half way: equal ranks and equal B, which is that of one process on all rows.

    Seen failing with ranks drawn from torch's generator, and with a rank drawn for every micro-batch.
    """
    torch.multiprocessing.spawn(data_parallel.run, args=(2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{process}.pt", weights_only=True) for process in range(2))
    assert first["ranks"] == second["ranks"]
    drawn = [rank_at(data_parallel.SEED, step, 2, 8) for step in range(data_parallel.STEPS)]
    assert first["ranks"] == [[rank] * 14 for rank in drawn for _ in range(data_parallel.MICRO_BATCHES)]
    assert len(set(drawn)) > 2
    alone = adapted(CONFIGS["dyqlora_fa"])
    data_parallel.steps(alone, adamw(alone), range(data_parallel.STEPS), 0, 1)
    for name, b in named(alone, "lora_B").items():
        assert torch.equal(first["matrices"][name], second["matrices"][name]), name
        torch.testing.assert_close(first["matrices"][name], b.detach(), rtol=1e-3, atol=1e-5)
        assert b.abs().sum() > 0

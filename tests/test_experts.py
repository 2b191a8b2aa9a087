"""Experts of DyA-MoPE: the mixture against its definition, the router, its losses and its options."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from adapting import (
    CONFIGS,
    FA,
    TOKENS,
    adapted,
    llama,
    loss_of,
    named,
    randomize,
    saved_for_backward,
)
from peft import PeftModel, get_peft_model
from students import tiny_run
from torch import Tensor, nn

from assistant.adapters import (
    AdapterError,
    DyAMoPEConfig,
    count_tokens,
    draw_ranks,
    expert_usage_entropy,
    export_lora,
    router_losses,
    set_rank,
)
from assistant.adapters.layer import MixExperts
from assistant.checkpoint import attach_adapter
from assistant.config import load_config
from training.planning.memory import planned_adapter_parameters
from training.planning.shapes import shape_in

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT 0.21 asks for it


def test_experts_keep_only_z_and_gates() -> None:
    """The published form keeps [tokens, E, d]; the folded product kept as it is costs [tokens, E b] and a copy of B."""
    model = get_peft_model(nn.Sequential(nn.Linear(64, 48)), DyAMoPEConfig(**FA, experts=4, target_modules=["0"]))
    set_rank(model, 3)
    x = torch.randn(10, 64, requires_grad=True)
    kept = saved_for_backward(lambda: model(x), model)
    assert sum(torch.Size(shape).numel() * count for shape, count in kept.items()) <= 10 * (8 + 4)


@pytest.mark.parametrize("expert_A", [False, True])
def test_one_expert_is_dyqlora_fa(expert_A: bool, tmp_path: Path) -> None:
    """Gates that do not sum to 1, a scale other than alpha / b, an A drawn in another order."""
    single = randomize(adapted(CONFIGS["dya_mope"], llama(torch.float64), experts=1, expert_A=expert_A))
    plain = adapted(CONFIGS["dyqlora_fa"], llama(torch.float64))
    for part in ("lora_A", "lora_B"):
        for name, parameter in named(plain, part).items():
            parameter.data.copy_(single.get_parameter(name).view_as(parameter))
    for rank in (None, 3):
        set_rank(single, rank)
        set_rank(plain, rank)
        torch.testing.assert_close(single(input_ids=TOKENS).logits, plain(input_ids=TOKENS).logits, rtol=0, atol=1e-12)
    export_lora(single, 3, tmp_path)
    stock = PeftModel.from_pretrained(llama(torch.float64), tmp_path)
    torch.testing.assert_close(stock(input_ids=TOKENS).logits, plain(input_ids=TOKENS).logits, rtol=0, atol=1e-12)


MIXTURES: dict[str, dict[str, Any]] = {
    "soft": {},
    "top 1": {"top_k": 1},
    "top 2": {"top_k": 2},
    "top 2 as they are": {"top_k": 2, "renormalise": False},
    "router on x": {"router_input": "x"},
    "top 1 of x": {"router_input": "x", "top_k": 1},
}


@pytest.mark.parametrize("settings", MIXTURES.values(), ids=MIXTURES.keys())
@pytest.mark.parametrize("expert_A", [False, True])
@pytest.mark.parametrize("mov", [False, True])
def test_mixture_equals_its_definition(settings: dict[str, Any], expert_A: bool, mov: bool) -> None:
    """Gates on the wrong block of the folded rank axis, a router that reads z[:b], gates that are scaled wrongly.

    Seen failing with a router on z[:b], and with `renormalise` turned round.
    """
    config = DyAMoPEConfig(
        **FA, experts=4, expert_A=expert_A, target_modules=["0"], mov_modules=("0",) if mov else (), **settings
    )
    torch.manual_seed(0)
    linear = nn.Linear(24, 20).double()
    model = randomize(get_peft_model(nn.Sequential(linear), config))
    set_rank(model, 3)
    layer = model.base_model.model[0]
    a, b, router = (layer.get_parameter(f"{part}.default") for part in ("lora_A", "lora_B", "lora_router"))
    x = torch.randn(5, 7, 24, dtype=torch.float64)
    z = torch.einsum("erd,ntd->nter", a.expand(4, 8, 24), x)
    logits = torch.einsum("nter,er->nte", z, router) if config.router_input == "z" else x @ router.T
    gates = logits.softmax(-1)
    if config.top_k is not None:
        smallest = gates.sort(-1, descending=True).values[..., config.top_k - 1 : config.top_k]
        gates = torch.where(gates >= smallest, gates, 0)
    if config.renormalise:
        gates = gates / gates.sum(-1, keepdim=True)
    scale = 16 / 3
    expected = linear(x) + scale * torch.einsum("nte,eor,nter->nto", gates, b[..., :3], z[..., :3])
    if mov:
        expected = expected * (1 + torch.einsum("nte,eo->nto", gates, layer.lora_mov["default"] - 1))
    found = model(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(found)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_mix_experts_gradients(shared: bool) -> None:
    """A wrong backward of the hand-written product, to every input."""
    torch.manual_seed(0)
    z = torch.randn(2, 3, 1 if shared else 4, 2, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    experts = torch.randn(4, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MixExperts.apply, (z, gates, experts, 1.5))


def test_gates_sum_to_one() -> None:
    """Gates that are sigmoids, or top-k gates that are not normalised again."""
    for top_k in (None, 2):
        model = randomize(adapted(CONFIGS["dya_mope"], llama(torch.float64), top_k=top_k))
        layer = next(m for m in model.modules() if hasattr(m, "lora_router"))
        z = torch.randn(9, 1, 8, dtype=torch.float64)
        gates = layer._route("default", torch.empty(9, 0), z)
        torch.testing.assert_close(gates.sum(-1), torch.ones(9, dtype=torch.float64), rtol=0, atol=1e-12)
        assert ((gates > 0).sum(-1) == (top_k or 3)).all()


def test_a_router_on_x_keeps_x() -> None:
    """What the setting costs, so that nobody takes it for free: [tokens, d_in] more. Fails if x is not read at all."""
    kept = []
    for router_input in ("z", "x"):
        config = DyAMoPEConfig(**FA, experts=4, target_modules=["0"], router_input=router_input)
        model = get_peft_model(nn.Sequential(nn.Linear(64, 48)), config)
        x = torch.randn(10, 64, requires_grad=True)
        kept.append(saved_for_backward(lambda m=model, x=x: m(x), model))
    assert kept[0][10, 64] == 0
    assert kept[1][10, 64] == 1


def test_tokens_do_not_depend_on_their_batch() -> None:
    """Gates over the batch or the sequence instead of the token: padding would change answers. Seen failing so."""
    model = randomize(adapted(CONFIGS["dya_mope"], llama(torch.float64), top_k=2)).eval()
    layer = next(m for m in model.modules() if hasattr(m, "lora_router"))
    x = torch.randn(3, 5, 64, dtype=torch.float64)
    alone = layer(x[1:2, :4])
    torch.testing.assert_close(layer(x)[1:2, :4], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "override",
    [
        "rank_update=last",
        "precondition=true",
        "top_k=1",
        "renormalise=false",
        "expert_A=true",
        "mov_modules=[k_proj, v_proj]",
        "router_input=x",
        "balance_loss=0.01",
        "z_loss=0.001",
    ],
)
def test_every_option_is_reached_from_the_configuration(override: str, tmp_path: Path) -> None:
    """From `--set adapter...` to the PEFT config, the plan's parameters, and a step. Seen failing without each."""
    run = tiny_run(tmp_path / "base", "adapter.kind=dya_mope", "adapter.r_min=2", "adapter.r_max=4")
    config = load_config(None, ["adapter.kind=dya_mope", "adapter.r_min=2", "adapter.r_max=4", f"adapter.{override}"])
    attach_adapter(run.student, config.adapter)
    lm = run.student.decoder.lm
    key, value = override.split("=")
    found, default = getattr(lm.peft_config["default"], key), getattr(DyAMoPEConfig(), key)
    assert found != default
    assert (list(found) if isinstance(found, tuple) else found) == yaml.safe_load(value)
    counts = (
        sum(p.numel() for p in lm.parameters() if p.requires_grad),
        sum(a.numel() for a in named(lm, "lora_A").values()),
    )
    assert counts == planned_adapter_parameters(shape_in(tmp_path / "base" / "config.json"), config.adapter)
    draw_ranks(lm, 0, 0)
    lm.train()
    lm(input_ids=torch.arange(8)[None]).logits.sum().backward()
    assert all(b.grad.abs().sum() > 0 for b in named(lm, "lora_B").values())


def even(model: Any) -> Any:
    """Routers that do not tell experts apart."""
    for router in named(model, "lora_router").values():
        router.data.zero_()
    return model


def test_expert_usage_entropy() -> None:
    """Entropy of single tokens instead of mean use, or not divided by its maximum."""
    config = DyAMoPEConfig(**FA, experts=3, target_modules=["0"])
    model = even(get_peft_model(nn.Sequential(nn.Linear(24, 20)), config))
    assert expert_usage_entropy(model) is None
    x = torch.ones(1, 24)
    model(torch.cat([x, -x]))
    assert expert_usage_entropy(model) == pytest.approx(1.0)
    router = model.base_model.model[0].lora_router["default"]
    router.data[:2, 0] = torch.tensor([1e4, -1e4])  # x goes to one expert, -x to the other
    model(torch.cat([x, -x]))
    assert expert_usage_entropy(model) == pytest.approx(math.log(2) / math.log(3))


def test_order_of_experts_does_not_matter() -> None:
    """Gates that meet the wrong expert's columns."""
    model = randomize(adapted(CONFIGS["dya_mope"], llama(torch.float64)))
    before = model(input_ids=TOKENS).logits
    for part in ("lora_B", "lora_router"):
        for parameter in named(model, part).values():
            parameter.data = parameter.data[[2, 0, 1]].clone()
    torch.testing.assert_close(model(input_ids=TOKENS).logits, before, rtol=0, atol=1e-12)
    for parameter in named(model, "lora_B").values():
        parameter.data = parameter.data[[2, 0, 1]].clone()
    assert (model(input_ids=TOKENS).logits - before).abs().max() > 1e-3


def test_router_losses() -> None:
    """Losses that are dropped, doubled, or without a gradient; closed form at even use: 1 per layer, and log(E)^2."""
    model = even(adapted(CONFIGS["dya_mope"], balance_loss=0.5, z_loss=0.25))
    model.train()
    loss_of(model)
    expected = 14 * (0.5 + 0.25 * torch.tensor(3.0).log() ** 2)
    torch.testing.assert_close(router_losses(model), expected)
    randomize(model)
    loss_of(model)
    router_losses(model).backward()
    assert all(router.grad.abs().sum() > 0 for router in named(model, "lora_router").values())
    copy.deepcopy(model)
    model.eval()
    loss_of(model)
    assert router_losses(model) == 0
    silent = adapted(CONFIGS["dya_mope"])
    loss_of(silent)
    assert router_losses(silent) == 0
    assert router_losses(adapted(CONFIGS["dyqlora_fa"])) == 0


def test_router_losses_do_not_count_padding() -> None:
    """Half of a batch of mixed lengths can be padding, all of which goes to one expert: the balance was of that."""
    model = randomize(adapted(CONFIGS["dya_mope"], balance_loss=0.5, z_loss=0.25))
    model.train()
    model(input_ids=TOKENS)
    alone, usage = router_losses(model).item(), expert_usage_entropy(model)
    padded, mask = torch.nn.functional.pad(TOKENS, (0, 9)), torch.nn.functional.pad(torch.ones_like(TOKENS), (0, 9))
    model(input_ids=padded, attention_mask=mask)
    assert abs(router_losses(model).item() - alone) > 1e-4
    count_tokens(model, mask)
    model(input_ids=padded, attention_mask=mask)
    assert router_losses(model).item() == pytest.approx(alone, rel=1e-6)
    assert expert_usage_entropy(model) == pytest.approx(usage, rel=1e-6)


def test_router_losses_under_checkpointing() -> None:
    """Reentrant checkpointing runs the first pass without a graph: the losses would be constants."""
    model = randomize(adapted(CONFIGS["dya_mope"], balance_loss=0.5))
    model.train()

    def router_gradients() -> list[Tensor]:
        model.zero_grad()
        loss = loss_of(model)
        (loss + router_losses(model)).backward()
        return [router.grad for router in named(model, "lora_router").values()]

    expected = router_gradients()
    model.enable_input_require_grads()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for found, wanted in zip(router_gradients(), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(AdapterError, match="reentrant"):
        router_gradients()

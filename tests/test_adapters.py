"""DyQLoRA-FA and DyA-MoPE as PEFT tuners: algebra against references, memory kept, every way in and out."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from adapting import (
    CONFIGS,
    FA,
    LINEARS,
    TOKENS,
    adapted,
    both_bases,
    both_configs,
    gradients,
    llama,
    loss_of,
    named,
    randomize,
    saved_bytes,
    saved_for_backward,
    to_nf4,
)
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from assistant.adapter_kinds import KINDS
from assistant.adapters import (
    AdapterError,
    DyAMoPEConfig,
    DyQLoRAFAConfig,
    export_lora,
    peft_config,
    prepare_nf4,
    rank_at,
    set_rank,
)
from assistant.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT 0.21 asks for it


# ---- what a fresh and a truncated adapter compute ------------------------------------------------------------------


@both_bases
@both_configs
def test_fresh_adapter_equals_base_bitwise(make_base: Any, make_config: Any) -> None:
    """A B that does not start at zero, or MoV that multiplies by gates whose sum is 1 only to rounding."""
    base = make_base()
    prepare_nf4(base)
    before = base(input_ids=TOKENS).logits
    settings = {"mov_modules": ("v_proj", "up_proj")} if make_config is CONFIGS["dya_mope"] else {}
    model = adapted(make_config, base, **settings)
    for rank in (None, 2, 5):
        set_rank(model, rank)
        assert torch.equal(model(input_ids=TOKENS).logits, before)


def test_default_targets_are_all_decoder_linears() -> None:
    """An adapter on the output head, or on attention only."""
    model = adapted(CONFIGS["dyqlora_fa"])
    assert set(model.peft_config["default"].target_modules) == LINEARS
    assert len(named(model, "lora_B")) == 2 * len(LINEARS)
    assert not named(model.lm_head, "lora")


@pytest.mark.parametrize("rank", [2, 3, 5, 8])
def test_truncation_equals_stock_lora(rank: int, tmp_path: Path) -> None:
    """Scaling by alpha / r_max instead of alpha / b; the wrong columns; a gradient outside the prefix."""
    model = randomize(adapted(CONFIGS["dyqlora_fa"], llama(torch.float64)))
    export_lora(model, rank, tmp_path)
    stock = PeftModel.from_pretrained(llama(torch.float64), tmp_path, is_trainable=True)
    assert stock.peft_config["default"].r == rank
    assert stock.peft_config["default"].lora_alpha == 16
    set_rank(model, rank)
    torch.testing.assert_close(model(input_ids=TOKENS).logits, stock(input_ids=TOKENS).logits, rtol=0, atol=1e-12)
    ours, theirs = gradients(model), gradients(stock)
    assert ours.keys() == set(named(model, "lora_B"))
    for name, gradient in ours.items():
        expected = theirs[name.replace("lora_B.default", "lora_B.default.weight")]
        torch.testing.assert_close(gradient[:, :rank], expected, rtol=1e-9, atol=1e-12)
        assert not gradient[:, rank:].any()


def test_none_restores_the_full_rank() -> None:
    """`set_rank(model, None)` that leaves the last rank in place."""
    model = randomize(adapted(CONFIGS["dyqlora_fa"]))
    full = model(input_ids=TOKENS).logits
    set_rank(model, 3)
    assert not torch.equal(model(input_ids=TOKENS).logits, full)
    set_rank(model, None)
    assert torch.equal(model(input_ids=TOKENS).logits, full)


@both_configs
def test_rank_out_of_range_changes_nothing(make_config: Any) -> None:
    """A layer loop that sets some layers before it meets the one that refuses."""
    model = randomize(adapted(make_config))
    set_rank(model, 4)
    before = model(input_ids=TOKENS).logits
    for rank in (1, 9, 0, -1):
        with pytest.raises(ValueError, match="bad_rank"):
            set_rank(model, rank)
    assert torch.equal(model(input_ids=TOKENS).logits, before)
    with pytest.raises(AdapterError, match="no_adapter"):
        set_rank(llama(), 4)


def test_rank_at_is_a_uniform_pure_function() -> None:
    """A generator with state, a missed bound, a seed that is ignored; golden values guard resumed runs."""
    draws = [rank_at(0, step, 4, 16) for step in range(13_000)]
    assert [rank_at(0, step, 4, 16) for step in (12_999, 0, 17)] == [draws[12_999], draws[0], draws[17]]
    counts = Counter(draws)
    assert set(counts) == set(range(4, 17))
    chi_squared = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_squared < 32.9  # 12 degrees of freedom, p = 0.001
    assert draws[:100] != [rank_at(1, step, 4, 16) for step in range(100)]
    assert rank_at(5, 3, 7, 7) == 7
    assert [rank_at(0, step, 4, 16) for step in range(6)] == [10, 11, 13, 7, 5, 5]


# ---- what autograd keeps, and what stays frozen --------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_only_z_is_kept_for_backward(dropout: float) -> None:
    """An A that requires a gradient, or dropout on x: either keeps [tokens, d_in]."""
    model = get_peft_model(
        nn.Sequential(nn.Linear(64, 48)), DyQLoRAFAConfig(**FA, z_dropout=dropout, target_modules=["0"])
    )
    set_rank(model, 3)
    x = torch.randn(10, 64, requires_grad=True)
    kept = saved_for_backward(lambda: model(x), model)
    assert set(kept) == {(10, 3)}
    assert sum(kept.values()) <= (1 if dropout == 0 else 3)


def test_whole_model_keeps_base_plus_z() -> None:
    """The memory contract: frozen base + tokens x sum(b) x itemsize + 1 %."""
    base = llama().requires_grad_(False)
    frozen = saved_bytes(base)
    model = adapted(CONFIGS["dyqlora_fa"], base)
    set_rank(model, 5)
    z = TOKENS.numel() * 14 * 5 * 4
    assert frozen + z * 0.9 <= saved_bytes(model) <= (frozen + z) * 1.01


@both_configs
@both_bases
def test_freeze_survives_every_way_in_and_out(make_base: Any, make_config: Any, tmp_path: Path) -> None:
    """PEFT thaws all adapter weights after `disable_adapter` and `set_adapter`, and when it re-wraps them on load."""
    model = randomize(adapted(make_config, make_base()))
    model.train()
    kept, checksum = saved_bytes(model), {name: a.clone() for name, a in named(model, "lora_A").items()}

    def check(model: PeftModel) -> None:
        assert not any(a.requires_grad for a in named(model, "lora_A").values())
        assert all(b.requires_grad for b in named(model, "lora_B").values())
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert all("lora_" in name and "lora_A" not in name for name in trainable)
        assert saved_bytes(model) == kept
        assert all(torch.equal(a, checksum[name]) for name, a in named(model, "lora_A").items())

    check(model)
    with model.disable_adapter():
        pass
    check(model)
    model.set_adapter("default")
    check(model)
    model.base_model.disable_adapter_layers()
    model.base_model.enable_adapter_layers()
    check(model)
    model.set_requires_grad("default", requires_grad=False)
    model.set_requires_grad("default", requires_grad=True)
    check(model)
    model.eval()
    model.generate(input_ids=TOKENS[:, :3], max_new_tokens=3, do_sample=False)
    model.train()
    check(model)
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "default", is_trainable=True)  # how the Trainer resumes
    check(model)
    for low_memory in (False, True):
        again = PeftModel.from_pretrained(make_base(), tmp_path, is_trainable=True, low_cpu_mem_usage=low_memory)
        again.train()
        check(again)


def test_thawing_A_by_hand_has_no_effect() -> None:
    """A user's loop over parameters: without detaching, x would be kept and A would train."""
    model = randomize(adapted(CONFIGS["dyqlora_fa"]))
    kept = saved_bytes(model)
    for a in named(model, "lora_A").values():
        a.requires_grad_(True)
    assert saved_bytes(model) == kept
    gradients(model)
    assert all(a.grad is None for a in named(model, "lora_A").values())


@both_configs
def test_adapters_stay_in_the_compute_dtype(make_config: Any, tmp_path: Path) -> None:
    """PEFT lifts 16-bit adapters to float32, when they are made and again when they are loaded."""
    model = randomize(adapted(make_config, llama(torch.bfloat16)))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(torch.bfloat16), tmp_path)
    for one in (model, again):
        assert {p.dtype for p in named(one, "lora_").values()} == {torch.bfloat16}
    loss_of(model).backward()
    randomize(adapted(make_config)).save_pretrained(tmp_path / "float32")
    for low_memory in (False, True):
        again = PeftModel.from_pretrained(
            llama(torch.bfloat16), tmp_path / "float32", is_trainable=True, low_cpu_mem_usage=low_memory
        )
        assert {p.dtype for p in named(again, "lora_").values()} == {torch.bfloat16}
        assert not any(a.requires_grad for a in named(again, "lora_A").values())
    quantized = adapted(make_config, to_nf4(llama()))
    assert {p.dtype for p in named(quantized, "lora_").values()} == {torch.float32}


@both_configs
def test_training_under_autocast(make_config: Any) -> None:
    """A hand-written backward that meets bfloat16 gradients and float32 parameters."""
    model = randomize(adapted(make_config))
    exact = gradients(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model)
    model.zero_grad()
    loss.backward()
    for name, gradient in exact.items():
        found = model.get_parameter(name).grad
        assert found.dtype == torch.float32
        assert (found - gradient).norm() < 0.1 * gradient.norm() + 1e-6, name


# ---- PEFT's machinery ----------------------------------------------------------------------------------------------


@both_configs
@both_bases
def test_save_and_load_are_bit_equal(make_base: Any, make_config: Any, tmp_path: Path) -> None:
    """A that is redrawn, a router that is not saved, settings that change on the way."""
    model = randomize(adapted(make_config, make_base(), z_dropout=0.1))
    model.eval()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_base(), tmp_path)
    set_rank(model, 5)
    set_rank(again, 5)
    assert torch.equal(model(input_ids=TOKENS).logits, again(input_ids=TOKENS).logits)
    ours, theirs = model.peft_config["default"].to_dict(), again.peft_config["default"].to_dict()
    for key in ("base_model_name_or_path", "inference_mode", "auto_mapping"):
        ours.pop(key), theirs.pop(key)
    assert ours == theirs


@both_configs
@both_bases
def test_disabled_adapter_is_the_base(make_base: Any, make_config: Any) -> None:
    """A forward pass that ignores `disable_adapter`, or a base that `unload` does not give back."""
    base = make_base()
    prepare_nf4(base)
    before = base(input_ids=TOKENS).logits
    model = randomize(adapted(make_config, base))
    with model.disable_adapter():
        assert torch.equal(model(input_ids=TOKENS).logits, before)
    assert not torch.equal(model(input_ids=TOKENS).logits, before)
    assert torch.equal(model.unload()(input_ids=TOKENS).logits, before)


@both_configs
def test_transformers_adapter_methods(make_config: Any) -> None:
    """`model.add_adapter` reads `peft_type.value`, which a plain string does not have."""
    model = llama()
    before = model(input_ids=TOKENS).logits
    model.add_adapter(make_config(), adapter_name="extra")
    randomize(model)
    set_rank(model, 4)
    assert not torch.equal(model(input_ids=TOKENS).logits, before)
    model.disable_adapters()
    assert torch.equal(model(input_ids=TOKENS).logits, before)
    model.enable_adapters()
    assert not any(a.requires_grad for a in named(model, "lora_A").values())
    model.delete_adapter("extra")
    assert not named(model, "extra")


@both_configs
def test_two_adapters(make_config: Any) -> None:
    """A second adapter that trains the first, shares its A, or leaves parts behind when it is deleted."""
    model = randomize(adapted(make_config))
    first = model(input_ids=TOKENS).logits
    model.add_adapter("second", make_config(r_min=1, r_max=4))
    assert torch.equal(model(input_ids=TOKENS).logits, first)
    model.set_adapter("second")
    base = llama()(input_ids=TOKENS).logits
    assert torch.equal(model(input_ids=TOKENS).logits, base)
    assert {name for name, p in model.named_parameters() if p.requires_grad}.isdisjoint(named(model, "default"))
    set_rank(model, 1)
    with pytest.raises(ValueError, match="second"):
        set_rank(model, 5)
    randomize(model, seed=9)
    model.set_adapter("default")
    set_rank(model, None)
    first = model(input_ids=TOKENS).logits
    model.base_model.set_adapter(["default", "second"])
    stacked = model(input_ids=TOKENS).logits
    assert not torch.equal(stacked, first)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert not named(model, "second")
    assert torch.equal(model(input_ids=TOKENS).logits, first)


@pytest.mark.parametrize("rank", [None, 3])
def test_merge_and_unmerge(rank: int | None) -> None:
    """A merge at r_max although the adapter is truncated; an unmerge that leaves it in; a rank changed while merged."""
    model = randomize(adapted(CONFIGS["dyqlora_fa"])).eval()
    set_rank(model, rank)
    base, apart = llama()(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(input_ids=TOKENS).logits, apart, rtol=0, atol=1e-5)
    with pytest.raises(AdapterError, match="merged"):
        set_rank(model, 5)
    model.unmerge_adapter()
    torch.testing.assert_close(model(input_ids=TOKENS).logits, apart, rtol=0, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=TOKENS).logits, base, rtol=0, atol=1e-5)
    merged = model.merge_and_unload()
    assert not named(merged, "lora")
    torch.testing.assert_close(merged(input_ids=TOKENS).logits, apart, rtol=0, atol=1e-5)


def test_routed_experts_cannot_be_merged_or_exported(tmp_path: Path) -> None:
    """A merge of the mean expert, and a merge that fails half way through the layers."""
    model = randomize(adapted(CONFIGS["dya_mope"]))
    before = model(input_ids=TOKENS).logits
    for refuse in (model.merge_adapter, model.merge_and_unload, lambda: export_lora(model, 4, tmp_path / "out")):
        with pytest.raises(ValueError, match="routed_experts"):
            refuse()
    assert not (tmp_path / "out").exists()
    assert torch.equal(model(input_ids=TOKENS).logits, before)


def test_export_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    """A rank that was never trained, or files left behind by a refusal."""
    model = adapted(CONFIGS["dyqlora_fa"])
    for rank in (1, 9):
        with pytest.raises(ValueError, match="bad_rank"):
            export_lora(model, rank, tmp_path)
    with pytest.raises(AdapterError, match="no_adapter"):
        export_lora(llama(), 4, tmp_path)
    assert not list(tmp_path.iterdir())


def test_export_loads_without_this_package(tmp_path: Path) -> None:
    """Settings of our own in the exported config, which other loaders refuse."""
    export_lora(adapted(CONFIGS["dyqlora_fa"]), 4, tmp_path)
    config = LoraConfig.from_pretrained(tmp_path)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (4, 16, 0.0, "none")
    assert set(config.target_modules) == LINEARS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    "settings",
    [{"r_min": 0}, {"r_min": 9}, {"z_dropout": 1.0}, {"experts": 0}, {"top_k": 5}, {"top_k": 0}],
    ids=str,
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    """Settings that would only fail deep inside the first forward pass."""
    with pytest.raises(ConfigError):
        CONFIGS["dya_mope"](**settings)


def test_bad_targets_are_refused() -> None:
    """Targets that are no linear layers, no decoder to find any in, MoV on a layer without an adapter."""
    with pytest.raises(ConfigError, match="not_linear"):
        adapted(CONFIGS["dyqlora_fa"], target_modules=["embed_tokens"])
    with pytest.raises(ConfigError, match="no_decoder_layers"):
        get_peft_model(nn.Sequential(nn.Linear(8, 8)), DyQLoRAFAConfig())
    with pytest.raises(ConfigError, match="unknown_mov"):
        adapted(CONFIGS["dya_mope"], target_modules=["q_proj"], mov_modules=("k_proj",))


@pytest.mark.filterwarnings("ignore:.*for a second time:UserWarning", "ignore:.*already.*PEFT:UserWarning")
@both_configs
def test_two_kinds_in_one_model(make_config: Any) -> None:
    """On different modules both train at one rank; on one module the second is refused before anything changes.

    Seen failing when the first kind's layer took the second kind's settings in silence.
    """
    inner = get_peft_model(llama(), DyQLoRAFAConfig(**FA, target_modules=["q_proj"]))
    model = randomize(get_peft_model(inner, DyAMoPEConfig(**FA, target_modules=["v_proj"])))
    set_rank(model, 3)
    assert len(gradients(model)) == 2 + 2 * 2
    with pytest.raises(ValueError, match="bad_rank"):
        set_rank(model, 9)
    other = "dya_mope" if make_config is CONFIGS["dyqlora_fa"] else "dyqlora_fa"
    plain = llama()
    plain.add_adapter(make_config(), "first")
    before = set(plain.state_dict())
    with pytest.raises(AdapterError, match="mixed_kinds"):
        plain.add_adapter(CONFIGS[other](), "second")
    assert set(plain.state_dict()) == before


@both_configs
def test_what_cannot_be_done_is_refused(make_config: Any) -> None:
    """PEFT would fail by an attribute of Llama, or answer all rows with one adapter. Seen failing without either."""
    model = adapted(make_config)
    model.add_adapter("second", make_config())
    with pytest.raises(AdapterError, match="not_combinable"):
        model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "mean")
    with pytest.raises(AdapterError, match="mixed_batch"):
        model.eval()(input_ids=TOKENS, adapter_names=["default", "second"])


@both_configs
def test_modules_to_save_travel_with_the_adapter(make_config: Any, tmp_path: Path) -> None:
    """A head trained in full beside the adapter: saved, loaded and exported. Fails if export leaves it out."""
    model = randomize(adapted(make_config, modules_to_save=["lm_head"]))
    model.lm_head.modules_to_save["default"].weight.data.add_(0.1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained == {"base_model.model.lm_head.modules_to_save.default.weight"}
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = PeftModel.from_pretrained(llama(), tmp_path)
    assert torch.equal(again(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)
    if make_config is CONFIGS["dyqlora_fa"]:
        export_lora(model, 8, tmp_path / "lora")
        stock = PeftModel.from_pretrained(llama(), tmp_path / "lora")
        torch.testing.assert_close(stock(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)


@both_configs
def test_an_adapter_on_fewer_modules_loads_beside_another(make_config: Any, tmp_path: Path) -> None:
    """Layers that only one adapter has. Fails if a layer without the active adapter computes with another."""
    narrow = randomize(adapted(make_config, target_modules=["q_proj"]))
    narrow.save_pretrained(tmp_path)
    wide = randomize(adapted(make_config))
    wide.load_adapter(tmp_path, "narrow")
    wide.set_adapter("narrow")
    assert torch.equal(wide(input_ids=TOKENS).logits, narrow(input_ids=TOKENS).logits)


@both_configs
def test_counts_of_parameters(make_config: Any) -> None:
    """A counted as trained, or left out of the whole."""
    model = adapted(make_config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert model.get_nb_trainable_parameters() == (trained, sum(p.numel() for p in model.parameters()))
    widths = sum(module.out_features for module in model.modules() if type(module) is nn.Linear) - 53  # not the head
    experts = 1 if make_config is CONFIGS["dyqlora_fa"] else 3
    assert trained == experts * 8 * widths + (0 if experts == 1 else 14 * 3 * 8)


@both_configs
def test_moving_the_model_moves_the_adapter(make_config: Any) -> None:
    """`to(dtype)` after wrapping: a dtype that is remembered from the wrapping, or an A that thaws on the way."""
    model = randomize(adapted(make_config))
    exact = model(input_ids=TOKENS).logits
    model.to(torch.float64)
    torch.testing.assert_close(model(input_ids=TOKENS).logits.float(), exact, rtol=0, atol=1e-5)
    for dtype in (torch.bfloat16, torch.float16):
        model.to(dtype)
        assert {g.dtype for g in gradients(model).values()} == {dtype}
        assert not any("lora_A" in name for name in gradients(model))
    assert {p.device.type for p in model.to("meta").parameters()} == {"meta"}


@both_configs
def test_a_layer_used_twice_is_adapted_once(make_config: Any) -> None:
    """Decoder layers that share their MLP. Fails if it is wrapped twice, or its gradient is not that of both uses."""
    shared, apart = llama(torch.float64), llama(torch.float64)
    shared.model.layers[1].mlp = shared.model.layers[0].mlp
    apart.model.layers[1].mlp = copy.deepcopy(apart.model.layers[0].mlp)
    one, two = randomize(adapted(make_config, shared)), adapted(make_config, apart)
    assert len(named(one, "lora_B")) == 7 + 4
    for name, parameter in two.named_parameters():
        source = name.replace("layers.1.mlp", "layers.0.mlp")
        parameter.data.copy_(one.get_parameter(source))
    summed = gradients(two)
    for name, gradient in gradients(one).items():
        other = summed[name.replace("layers.0.mlp", "layers.1.mlp")] if "layers.0.mlp" in name else 0
        torch.testing.assert_close(gradient, summed[name] + other, rtol=1e-5, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracer does
@both_configs
def test_compiled_model_computes_the_same(make_config: Any) -> None:
    """`torch.compile` at several ranks, forward and backward. Fails if a rank is baked into the graph."""
    torch._dynamo.reset()
    base = nn.Sequential(nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 8))
    model = randomize(get_peft_model(base, make_config(target_modules=["0", "2"])))
    compiled = torch.compile(model, backend="aot_eager")
    x, found, expected = torch.randn(5, 24), [], []
    for run, results in ((model, expected), (compiled, found)):
        for rank in (3, 5, 8):
            set_rank(model, rank)
            model.zero_grad(set_to_none=True)
            run(x).square().sum().backward()
            results += [p.grad.clone() for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(found, expected)


@both_configs
def test_an_8_bit_base_takes_an_adapter(make_config: Any) -> None:
    """Integer weights name no dtype to compute in; a merge into them is refused. Seen failing with A drawn as int8."""
    base = nn.Sequential(bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False).to("cpu"))
    one_expert = {"experts": 1} if make_config is CONFIGS["dya_mope"] else {}
    model = randomize(get_peft_model(base, make_config(target_modules=["0"], **one_expert)))
    model(torch.randn(2, 64)).sum().backward()
    assert all(b.grad.abs().sum() > 0 for b in named(model, "lora_B").values())
    with pytest.raises(AdapterError, match="not_mergeable"):
        model.merge_adapter()


# ---- the registry --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.peft_name], ids=lambda kind: kind.kind)
def test_a_kind_is_known_to_peft_by_its_settings(kind: Any) -> None:
    """A kind without a tuner, or a setting that a saved adapter forgets."""
    config = peft_config(kind())
    assert {field.name for field in fields(kind)} <= config.to_dict().keys()
    assert get_peft_model(llama(), config).peft_config["default"].peft_type == kind.peft_name


def test_an_adapter_of_an_older_version_loads_unless_it_used_what_is_no_more(tmp_path: Path) -> None:
    """Without a word where its settings are those of today. Seen failing with a warning, and with `rslora` ignored."""
    adapted(CONFIGS["dyqlora_fa"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"rslora": False, "rank_per_layer": False}
    file.write_text(json.dumps(settings))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        PeftModel.from_pretrained(llama(), tmp_path)
    file.write_text(json.dumps(settings | {"rslora": True}))
    with pytest.raises(AdapterError, match=r"retired: adapter.rslora is no setting any more, it is always False"):
        PeftModel.from_pretrained(llama(), tmp_path)


def test_no_part_asks_for_a_kind_by_name() -> None:
    """A new kind is its classes and one entry. Seen failing with configuration, checkpoint, stages and plan."""
    root = Path(__file__).parents[1]
    packages = ("assistant", "training", "serve", "data_gen")
    files = [file for package in packages for file in (root / package).rglob("*.py")]
    names = re.compile(r"[\"'](dya_mope|dyqlora_fa|DYAMOPE|DYQLORAFA)[\"']")
    named = {file.name for file in files if names.search(file.read_text())}
    assert named == {"adapter_kinds.py"}

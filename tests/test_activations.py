"""RMSNorm and SwiGLU against a stock Llama: the same numbers, exact gradients, less kept for backward."""

import copy

import pytest
import torch
from counting import kept_for_backward
from torch import nn
from transformers import Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP, Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from assistant.activations import LeanMLP, LeanRMSNorm, keep_less
from assistant.errors import ConfigError

CONFIG = LlamaConfig(hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)


def norm(dim: int = 64) -> LlamaRMSNorm:
    stock = LlamaRMSNorm(dim, eps=1e-5)
    nn.init.normal_(stock.weight, mean=1.0)
    return stock


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_passes_are_bitwise_those_of_a_stock_llama(dtype: torch.dtype) -> None:
    """Seen failing with the weight multiplied in before the cast."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 64).to(dtype)
    stock, mlp = norm().to(dtype), LlamaMLP(CONFIG).to(dtype)
    assert torch.equal(LeanRMSNorm(stock)(x), stock(x))
    assert torch.equal(LeanMLP(mlp)(x), mlp(x))


def test_under_an_autocast_a_llama_has_the_same_logits_with_one_copy_instead_of_many() -> None:
    """What a norm gives is rounded once, not by each linear layer that takes it."""
    torch.manual_seed(0)
    stock = LlamaForCausalLM(CONFIG)
    lean = copy.deepcopy(stock)
    keep_less(lean)
    logits, copies = [], []
    for model in (stock, lean):
        with torch.profiler.profile() as counted, torch.autocast("cpu", torch.bfloat16):
            logits.append(model(torch.arange(12).view(2, 6)).logits)
        copies.append(sum(event.count for event in counted.key_averages() if event.key == "aten::copy_"))
    assert torch.equal(*logits)
    assert copies[1] < copies[0]


def test_gradients_are_those_of_finite_differences() -> None:
    """Seen failing without the mean term of the norm's gradient, and with silu in place of its derivative."""
    torch.manual_seed(0)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    lean = LeanRMSNorm(norm(8).double())
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(lean, {"weight": w}, x), (x, lean.weight))
    mlp = LeanMLP(LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=16, num_attention_heads=1)).double())
    assert torch.autograd.gradcheck(mlp, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_llama_has_the_same_logits_and_gradients(dtype: torch.dtype) -> None:
    """All weights thawed, as in pretraining. Seen failing with the weight's gradient summed over one axis too few."""
    torch.manual_seed(0)
    stock = LlamaForCausalLM(CONFIG).to(dtype)
    lean = copy.deepcopy(stock)
    keep_less(lean)
    assert sum(isinstance(m, LeanRMSNorm) for m in lean.modules()) == 5
    assert sum(isinstance(m, LeanMLP) for m in lean.modules()) == 2
    assert list(lean.state_dict()) == list(stock.state_dict())
    ids = torch.arange(12).view(2, 6)
    outputs = [model(ids, labels=ids) for model in (stock, lean)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    for output in outputs:
        output.loss.backward()
    tolerance = {"atol": 1e-6, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 2e-3, "rtol": 2e-2}
    for one, other in zip(stock.parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, **tolerance)


def test_a_frozen_layer_keeps_less() -> None:
    """Of 3 F and an fp32 copy of each norm's input, 2 F and the inputs as they came remain. Fails if silu is kept."""
    kept = []
    for change in (lambda lm: None, keep_less):
        model = LlamaForCausalLM(CONFIG).to(torch.bfloat16).requires_grad_(False)
        change(model)
        layers = nn.ModuleList([model.model.layers[0]])
        x = torch.randn(1, 32, 64, dtype=torch.bfloat16, requires_grad=True)
        rope = model.model.rotary_emb(x, torch.arange(32)[None])
        kept.append(kept_for_backward(layers, lambda m=layers[0], x=x, r=rope: m(x, position_embeddings=r)) / 32)
    assert kept[0] - kept[1] == 2 * 192 + 2 * (4 - 2) * 64


def test_a_feed_forward_with_another_activation_is_left_alone() -> None:
    other = LlamaForCausalLM(LlamaConfig(**(CONFIG.to_dict() | {"hidden_act": "gelu"})))
    keep_less(other)
    assert type(other.model.layers[0].mlp) is LlamaMLP
    assert type(other.model.norm) is LeanRMSNorm
    with pytest.raises(ConfigError, match="unknown_family"):
        keep_less(nn.Linear(2, 2))


def test_norms_around_one_and_gelu_have_the_gradients_of_finite_differences() -> None:
    """Gemma 3's. Seen failing with w in place of 1 + w, and with gelu in place of its derivative."""
    torch.manual_seed(0)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    stock = Gemma3RMSNorm(8).double()
    nn.init.normal_(stock.weight)
    lean = LeanRMSNorm(stock, centred=True)
    torch.testing.assert_close(lean(x).float(), stock(x).float())
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(lean, {"weight": w}, x), (x, lean.weight))
    config = Gemma3TextConfig(hidden_size=8, intermediate_size=16, num_attention_heads=1)
    mlp = LeanMLP(Gemma3MLP(config).double(), activation="gelu_pytorch_tanh")
    assert torch.autograd.gradcheck(mlp, (x,))

"""Attention in float32 under bfloat16: nearer to the truth than plain attention, with padding and shared key heads."""

import copy
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from training.attention import SDPA_FLOAT32


class FusedKernels(TorchDispatchMode):
    """The number formats that fused attention is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: set[torch.dtype] = set()

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(call):
            self.formats.add(args[0].dtype)
        return call(*args, **(kwargs or {}))


def test_it_rounds_less_than_plain_attention() -> None:
    """Logits and gradients under a bfloat16 autocast, against those of float64; seen failing without its own autocast.

    Padded to the right, as conversations are in training.
    """
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3, vocab_size=50, **heads)
    exact = LlamaForCausalLM(config).double()
    ids = torch.randint(0, 50, (3, 40))
    mask = torch.ones_like(ids)
    mask[0, 25:], mask[1, 9:] = 0, 0
    labels = ids.masked_fill(mask == 0, -100)
    found = {}
    for name, dtype in (("eager", torch.float64), ("eager", torch.float32), (SDPA_FLOAT32, torch.float32)):
        model = copy.deepcopy(exact).to(dtype)
        model.set_attn_implementation(name)
        with FusedKernels() as kernels, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            output = model(ids, attention_mask=mask, labels=labels)
        output.loss.backward()
        gradient = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
        found[name, dtype] = (output.logits.detach().double()[mask == 1], gradient)
    assert kernels.formats == {torch.float32}
    truth = found["eager", torch.float64]
    for part in (0, 1):
        plain, wide = (
            float((found[name, torch.float32][part] - truth[part]).norm()) for name in ("eager", SDPA_FLOAT32)
        )
        assert wide < plain < 0.1 * float(truth[part].norm())

"""Makes bitsandbytes' 4-bit linear layers safe to train on a CPU. Knows nothing about adapters.

On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight in place on the first forward pass in evaluation
mode. The packed kernel has no backward pass and the dequantiser misreads the layout, so that after one `generate()`
gradients go missing without an error and merged weights are noise. The remedy is to never repack.
"""

from __future__ import annotations

from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse, dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

from assistant.adapters.config import AdapterError


def prepare_nf4(model: nn.Module) -> None:
    """Keep every `Linear4bit` of a model in the layout that trains, also where it has generated before.

    A weight that was already repacked is unpacked. The repacking rounded its block scales to bfloat16 (relative 2^-9,
    far below the error of 4-bit quantisation), which cannot be undone.
    Raises AdapterError `nf4_width` on a CPU where in_features is no multiple of the quantisation block: bitsandbytes
    0.50 assigns the scales of such rows wrongly.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    for name, layer in layers:
        block = layer.weight.blocksize
        if layer.weight.device.type == "cpu" and layer.in_features % block:
            raise AdapterError(
                "nf4_width",
                f"{name or 'the layer'} has {layer.in_features} inputs, no multiple of the 4-bit block {block}: its "
                "weights would be wrong on a CPU. Use a GPU, or load this model without quantisation.",
            )
    for _, layer in layers:
        layer.support_avx512bf16_for_cpu = False
        state = layer.weight.quant_state
        if state is None:
            continue
        if getattr(state, "packing_format_for_cpu", False):
            state.original_nested = False  # keep the scales as they are: quantising them again would round them twice
            layer.weight.data, _ = _convert_weight_packed_for_cpu_inverse(layer.weight.data, state)
        if state.absmax.dim() == 2:  # [d_in / block, d_out], as the packed kernel wants it
            state.absmax = state.absmax.T.reshape(-1).float()  # [d_out * d_in / block]


def unpack_nf4(model: nn.Module) -> None:
    """Put a plain linear layer with the same weights in the place of every `Linear4bit`, one after the other.

    The dequantiser of a processor takes longer than the product that it is for: answers come sooner, with the same
    numbers. Such a model takes 4 bytes a weight instead of a half, and is not for training.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear4bit):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
                plain.weight = nn.Parameter(dequantized(layer), requires_grad=False)
                plain.bias = layer.bias
                setattr(parent, name, plain)


def dequantized(layer: Linear4bit) -> Tensor:
    """The weight [d_out, d_in] that a quantised layer multiplies by."""
    weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight


def requantized(layer: Linear4bit, weight: Tensor) -> Params4bit:
    """A weight [d_out, d_in] quantised as the layer's own weight is."""
    old = layer.weight
    new = Params4bit(
        weight,
        requires_grad=False,
        blocksize=old.blocksize,
        compress_statistics=old.compress_statistics,
        quant_type=old.quant_type,
        quant_storage=old.quant_storage,
        module=layer,
    )
    return new.to(old.device)

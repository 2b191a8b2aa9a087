"""Memory of a picture's tokens in a training step of Llama-2-7B: a prefix in its sequence against our cross-attention.

    python benchmarks/visual_tokens.py [--visual 512] [--text 256] [--out benchmarks/visual_tokens.json]

Counts the bytes that autograd keeps for backward in one decoder layer (of 32) with and without the picture's tokens in
the sequence, and in one cross-attention block (of 8, as configs/llama2-7b.yaml has them) with and without them in its
memory. Nothing is checkpointed. The rest is multiplication. Knows nothing about the encoders, which both have.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from adapters import GIB, LORA, LORA_BF16, OURS_LEAN, build_base, candidates, saved_bytes
from torch import Tensor, nn

from assistant.decoder import GatedCrossAttention

LAYERS, BLOCKS, WIDTH, HEADS = 32, 8, 512, 8


class OneBlock(nn.Module):
    """A cross-attention block that makes its keys and values: hidden states [1, T, D] over memory [1, M, W]."""

    def __init__(self, dim: int, memory: Tensor) -> None:
        super().__init__()
        self.block = GatedCrossAttention(dim, memory_dim=WIDTH, width=WIDTH, heads=HEADS)
        self.memory = memory

    def forward(self, hidden: Tensor) -> Tensor:
        seen = self.memory.shape[1]
        index = torch.zeros(1, seen, WIDTH)
        visible = torch.ones(1, 1, hidden.shape[1], 1 + seen, dtype=torch.bool)
        with torch.autocast("cpu", torch.bfloat16):
            keys, values = self.block.keys_values(self.memory, index)
            out: Tensor = self.block(hidden, keys, values, torch.zeros(1, hidden.shape[1], WIDTH), visible)
        return out


def report(visual: int, text: int) -> dict[str, Any]:
    """GiB per 1 000 visual tokens in a whole training step, of a prefix under each adapter and of our memory."""
    torch.manual_seed(0)
    base = build_base(nf4=True, device="cpu")
    dim = base.config.hidden_size

    def words(count: int) -> Tensor:
        return torch.randn(1, count, dim, dtype=torch.bfloat16, requires_grad=True)

    per_thousand = 1000 / visual / GIB
    found: dict[str, float] = {}
    for name in (LORA, LORA_BF16, OURS_LEAN):
        model = candidates()[name](base if name == OURS_LEAN else build_base(nf4=True, device="cpu")).train()
        grown = saved_bytes(model, words(text + visual)) - saved_bytes(model, words(text))
        found[f"prefix, {name}"] = round(LAYERS * grown * per_thousand, 3)
    kept = [
        saved_bytes(OneBlock(dim, torch.randn(1, seen, WIDTH, requires_grad=True)), words(text)) for seen in (1, visual)
    ]
    found["cross-attention memory"] = round(BLOCKS * (kept[1] - kept[0]) * per_thousand, 3)
    return {"visual_tokens": visual, "text_tokens": text, "gib_per_1000_visual_tokens": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visual", type=int, default=512)
    parser.add_argument("--text", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    text = json.dumps(report(options.visual, options.text), indent=1)
    options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

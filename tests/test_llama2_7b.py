"""The set-ups of the papers: both configurations train at width 64, and the real 7B shapes load in a few GiB.

The path is the same at every size: `start_student` quantises a sharded safetensors checkpoint while it loads and puts
the configured adapter on it, `InstructionStage` gives the losses.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from bitsandbytes.nn import Linear4bit
from students import TEXTS, conversation, picture
from transformers import LlamaConfig, LlamaForCausalLM

from assistant.adapters import rank_at, set_rank
from assistant.config import load_config
from training.pretrain import train_tokenizer
from training.stages import InstructionStage
from training.trainer import parameter_groups, start_student

ROOT = Path(__file__).parents[1]
CONFIGS = [ROOT / "configs" / "llama2-7b.yaml", ROOT / "configs" / "moe-llama2-7b.yaml"]
SMALL = (
    "image_size=56",
    "vit={patch_size: 14, dim: 16, depth: 1, heads: 2, trainable: false}",
    "hnf={patch_sizes: [14, 28], dim: 16, k: 3, steps: 1}",
    "text_encoder={dim: 16, depth: 1, grounded_depth: 1, heads: 2, max_tokens: 48}",
    "decoder.cross_attention_dim=32",
    "decoder.cross_attention_heads=2",
    "decoder.cross_attention_every=2",
)


def small_base(directory: Path) -> Path:
    """A sharded checkpoint of width 64 in 16 bit, as a hub repository has it."""
    tokenizer = train_tokenizer(TEXTS)
    torch.manual_seed(0)
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,
        )
    ).to(torch.bfloat16)
    lm.save_pretrained(directory, max_shard_size="100KB")
    tokenizer.save_pretrained(directory)
    assert len(list(directory.glob("*.safetensors"))) > 3
    return directory


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_training_step_of_both_configurations(file: Path, tmp_path: Path) -> None:
    """Quantised while loading, adapters on every linear layer, one step: finite, and it reaches every trained part.

    Seen failing with adapters left out of the groups, and with an image tower that is left out but not frozen.
    """
    config = load_config(file, [*SMALL, f"decoder.base={small_base(tmp_path)}"])
    run = start_student(config, device="cpu")
    assert sum(isinstance(module, Linear4bit) for module in run.student.decoder.lm.modules()) == 4 * 7
    groups = parameter_groups(run)
    for name, gate in run.student.named_parameters():
        if name.endswith("gate"):
            gate.data.fill_(0.5)  # closed gates let no gradient through to what they gate
    run.student.decoder.lm.activation_checkpointing_enable()
    stage = InstructionStage(run.student, config.loss).train()
    set_rank(run.student.decoder.lm, rank_at(config.seed, 0, config.adapter.r_min, config.adapter.r_max))
    losses = stage(**instruction_batch(run))
    losses["loss"].backward()
    optimizer = torch.optim.AdamW(groups)
    before = {name: p.detach().clone() for name, p in run.student.named_parameters() if p.requires_grad}
    optimizer.step()
    assert all(loss.isfinite() for loss in losses.values())
    moved = {name for name, p in run.student.named_parameters() if name in before and not torch.equal(p, before[name])}
    reached = {"lora_B", "decoder.blocks", "hnf.", "grounded.", "text_encoder.", "matching."}
    assert {part for part in reached if any(part in name for name in moved)} == reached
    assert not any("lora_A" in name or name.startswith("vit.") for name in before)
    experts = {name for name in before if "router" in name}
    assert bool(experts) == (config.adapter.kind == "dya_mope")


def instruction_batch(run) -> dict[str, torch.Tensor]:
    size = run.config.image_size
    talks = [conversation("What is it?", "It shows nanowires."), conversation("Size?", "Big.")]
    batch = run.processor(talks, [[picture(0, size)], [picture(1, size)]])
    texts = run.processor(talks)["question_ids"][:, 0]
    return batch | {
        "match_ids": texts,
        "match_mask": torch.ones_like(texts, dtype=torch.bool),
        "match_key": torch.tensor([0, 1]),
        "class_index": torch.tensor([-100, -100]),
    }


def test_only_the_adapter_and_the_shapes_differ() -> None:
    """Guards against the two papers' set-ups drifting apart: they are compared with each other."""
    one, other = (load_config(file) for file in CONFIGS)
    assert one.model_dump(exclude={"adapter"}) == other.model_dump(exclude={"adapter"})
    assert (one.adapter.kind, other.adapter.kind) == ("dyqlora_fa", "dya_mope")


# ---------------------------------------------------------------------------------- the real shapes

LIMIT = 8 * 1024**3
"""Anonymous memory the process may have. Pages of mapped files do not count: the system takes them back at will."""
LOAD_AND_ANSWER = """
import sys
import time
from pathlib import Path
from assistant.config import load_config
from assistant.inference import Assistant
from training.trainer import start_student

run = start_student(load_config(Path(sys.argv[1]), sys.argv[3:]), device="cpu")
run.student.eval()
list(Assistant(run).ask([sys.argv[2]], "What is it?", max_new_tokens=1))
print("answered")
"""


def write_llama2_7b(directory: Path) -> int:
    """Llama-2-7B's shapes in bfloat16, one shard per layer; returns their bytes.

    The first layer is random, the others are holes in their files: zeros that need no disk.
    """
    d, f, v, layers = 4096, 11008, 32000, 32
    attention = {f"self_attn.{name}_proj.weight": (d, d) for name in "qkvo"}
    mlp = {"mlp.gate_proj.weight": (f, d), "mlp.up_proj.weight": (f, d), "mlp.down_proj.weight": (d, f)}
    norms = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
    outer = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,), "lm_head.weight": (v, d)}
    shards = [outer] + [
        {f"model.layers.{layer}.{name}": shape for name, shape in (attention | mlp | norms).items()}
        for layer in range(layers)
    ]
    tokenizer = train_tokenizer(TEXTS)
    tokenizer.save_pretrained(directory)
    LlamaConfig(
        vocab_size=v, hidden_size=d, intermediate_size=f, max_position_embeddings=4096, dtype="bfloat16",
        eos_token_id=tokenizer.eos_token_id, architectures=["LlamaForCausalLM"],
    ).save_pretrained(directory)  # fmt: skip
    weights, total = {}, 0
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += write_shard(directory / name, shard, random=number <= 2)
        weights |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": total}, "weight_map": weights}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def write_shard(file: Path, shapes: dict[str, tuple[int, ...]], *, random: bool) -> int:
    header, offset = {}, 0
    for name, shape in shapes.items():
        stop = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        if random:
            for shape in shapes.values():
                values = torch.ones(shape) if len(shape) == 1 else torch.randn(shape[1]).mul(0.02).repeat(shape[0], 1)
                out.write(values.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
        out.truncate(8 + len(text) + offset)
    return offset


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_shapes_load_without_their_16_bit_weights_in_memory(tmp_path: Path) -> None:
    """13.5 GB of weights, 4-bit in memory: loading, adapting and answering about an image stay below 8 GiB.

    Seen failing with `decoder.quantization=none`.
    """
    base = tmp_path / "base"
    base.mkdir()
    size = write_llama2_7b(base)
    assert size == 2 * 6_738_415_616 > 1.5 * LIMIT
    tifffile.imwrite(tmp_path / "image.tif", (picture(0, 224) * 255).astype(np.uint8))
    settings = [f"decoder.base={base}", "vit={dim: 768, depth: 12, heads: 12, trainable: false}"]
    command = [sys.executable, "-c", LOAD_AND_ANSWER, str(CONFIGS[0]), str(tmp_path / "image.tif")]
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen([*command, *settings], stdout=out, stderr=out, cwd=ROOT) as process:
        peak = peak_anonymous_memory(process, limit=LIMIT)
    shutil.rmtree(base)
    print(f"peak {peak / 1024**3:.2f} GiB in memory of {size / 1024**3:.2f} GiB on disk")  # noqa: T201
    assert peak < LIMIT
    assert process.returncode == 0, log.read_text()[-2000:]
    assert log.read_text().endswith("answered\n")


def peak_anonymous_memory(process: subprocess.Popen[bytes], *, limit: int) -> int:
    """The largest anonymous memory seen of a process, looked at every 10 ms; one that passes the limit is ended."""
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if "RssAnon:" in status:
            peak = max(peak, 1024 * int(status.partition("RssAnon:")[2].split()[0]))
        if peak >= limit:
            process.kill()
        time.sleep(0.01)
    return peak

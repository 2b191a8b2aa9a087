"""The language models that may take Llama-2-7B's place: each family runs, others are refused, the table is true."""

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from students import conversation, picture, tiny_config, write_tiny_base
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, LlamaForCausalLM

from assistant.checkpoint import attach_adapter, new_run
from assistant.config import load_config
from assistant.decoder import load_language_model
from assistant.errors import ConfigError, RunError
from assistant.families import FAMILY
from training.planning.bases import BASES, table
from training.planning.shapes import language_model_shape, shape_in

ROOT = Path(__file__).parents[1]


def tiny_base(directory: Path, family: str) -> Path:
    words = AutoTokenizer.from_pretrained(write_tiny_base(directory / "llama"))
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    special = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(
        family, **sizes, num_key_value_heads=2, vocab_size=len(words), max_position_embeddings=256, **special
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory / family)
    words.save_pretrained(directory / family)
    return directory / family


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", sorted(FAMILY))
def test_an_untrained_student_is_its_base_bit_for_bit(family: str, quantization: str, tmp_path: Path) -> None:
    """With its adapter on and an image to look at. Seen failing with a gate that starts open, and with B not zero."""
    base = tiny_base(tmp_path, family)
    run = new_run(tiny_config(base, f"decoder.quantization={quantization}"), device="cpu")
    attach_adapter(run.student, run.config.adapter)
    run.student.eval()
    batch = run.processor([conversation("What is it?", "Wires.")], [[picture(0)]])
    alone = load_language_model(str(base), quantization=quantization, device="cpu", dtype=torch.float32)
    for layer in alone.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False  # the packed kernel rounds differently
    with torch.no_grad():
        seen = run.student(**batch).logits
        expected = alone(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(seen, expected)
    counted = shape_in(base / "config.json")
    if quantization == "none":
        total = sum(p.numel() for p in alone.parameters())
        assert counted.linear_parameters + counted.other_parameters == total


def test_other_families_and_pickled_weights_are_refused(tmp_path: Path) -> None:
    """Before any weight is read: there is none beside the first config."""
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown_family.*'gpt2'"):
        load_language_model(str(tmp_path), quantization="none", device="cpu", dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"unknown_family.*'gpt2'"):
        shape_in(tmp_path / "config.json")
    small = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    small.save_pretrained(tmp_path)
    torch.save(LlamaForCausalLM(small).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(RunError, match="no_model"):
        load_language_model(str(tmp_path), quantization="none", device="cpu", dtype=torch.float32)


def test_the_table_in_the_guide_is_what_the_command_prints() -> None:
    """Fails as soon as a formula, a shape or the configuration moves; `python -m training.planning.bases` prints it."""
    assert table(load_config(ROOT / "configs" / "llama2-7b.yaml")) in (ROOT / "docs" / "bases.md").read_text()
    for base in BASES:
        shape = language_model_shape(base)
        assert all(d_in % 64 == 0 for d_in, _ in shape.linears.values()), f"{base} has no NF4 on a CPU"

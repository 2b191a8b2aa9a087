"""The language models that may take Llama-2-7B's place: others are refused, the table is true."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from assistant.config import load_config
from assistant.decoder import load_language_model
from assistant.errors import ConfigError, RunError
from training.planning.bases import BASES, table
from training.planning.shapes import language_model_shape, shape_in

ROOT = Path(__file__).parents[1]


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

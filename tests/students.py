"""Real, tiny, untrained students and pictures for the tests: width 64 because NF4 on a CPU needs multiples of 64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from assistant.chat import Conversation, Message
from assistant.checkpoint import Run, new_run
from assistant.config import Config, parse_config
from assistant.model import MaemiForConditionalGeneration, MaemiProcessor

SIZE = 32
TEXTS = [
    "What is it? Describe this micrograph. Which class does this micrograph belong to?",
    "It shows nanowires. It shows powder. Size? Big. Wires. Rough. 5 kV; count 12; mean diameter 310 nm",
    "Compare the two images, please. The first is finer. And the surface? Yes, it is rough.",
]


def tiny_config(base: Path | str, *overrides: str) -> Config:
    tree = {
        "init": None,
        "image_size": SIZE,
        "vit": {"patch_size": 8, "dim": 16, "depth": 1, "heads": 2},
        "hnf": {"patch_sizes": [8, 16], "dim": 16, "k": 3, "order": 2, "steps": 1},
        "text_encoder": {"dim": 16, "depth": 1, "grounded_depth": 1, "heads": 2, "max_tokens": 48},
        "decoder": {
            "base": str(base),
            "quantization": "none",
            "cross_attention_every": 1,
            "cross_attention_dim": 16,
            "cross_attention_heads": 2,
            "max_images": 4,
        },
        "training": {"steps": 6, "batch_size": 2, "save_every": 2, "precision": "fp32", "turns": 2},
    }
    for override in overrides:
        dotted, _, value = override.partition("=")
        *sections, key = dotted.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})  # type: ignore[assignment]
        import yaml

        node[key] = yaml.safe_load(value)  # type: ignore[assignment]
    return parse_config(tree, origin="test")


def write_tiny_base(directory: Path, *, layers: int = 2) -> Path:
    """A random Llama of width 64 with its own tokenizer, on disk."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from training.pretrain import train_tokenizer

    tokenizer = train_tokenizer(TEXTS)
    torch.manual_seed(0)
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
    )
    lm.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_run(directory: Path, *overrides: str) -> Run:
    """An untrained student on a fresh tiny base."""
    torch.manual_seed(1)
    run = new_run(tiny_config(write_tiny_base(directory), *overrides), device="cpu")
    run.student.eval()
    return run


def tiny_student() -> tuple[MaemiForConditionalGeneration, MaemiProcessor]:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        run = tiny_run(Path(directory))
    return run.student, run.processor


def picture(seed: int, size: int = SIZE) -> np.ndarray:
    """Model input [S, S] in 0..1: blocks under noise, so no two patches are equally near in the vision graph."""
    random = np.random.default_rng(seed)
    blocks = np.kron(random.random((4, 4)), np.ones((size // 4, size // 4)))
    return (0.5 * blocks + 0.5 * random.random((size, size))).astype(np.float32)


def conversation(question: str, answer: str, *, aux: str = "5 kV") -> Conversation:
    return Conversation((Message("user", question, 1, aux), Message("assistant", answer)))


def open_gates(student: torch.nn.Module, to: float = 0.5) -> None:
    """Let the visual memory through: a fresh student's gates are closed."""
    for name, parameter in student.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(to)

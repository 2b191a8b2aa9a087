"""A language model inside an installed package: a random little Llama as a GGUF file, and the entry that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from assistant import bases, disk
from assistant.bases import CHATML_JINJA, NamedBase, Package
from assistant.disk import fingerprint

WIDTH, INNER, HEADS, TOKENS = 64, 128, 2, 260
FILE = "llm_little/little.gguf"


def write_package(site: Path, *, version: str = "1.0") -> Path:
    """The package as pip leaves it; importing it would fail. Gives its model file."""
    file = site / FILE
    file.parent.mkdir(parents=True)
    (file.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
    write_gguf(file)
    info = site / f"llm_little-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: llm-little\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{FILE},,\n")
    return file


def write_gguf(file: Path) -> None:
    import gguf

    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(TOKENS)
    letters = sorted(_bytes_as_letters())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "th"])
    writer.add_token_types([3, 3, 3, *[1] * (len(letters) + 1)])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (TOKENS, WIDTH), "blk.0.ffn_down": (WIDTH, INNER)}
    shapes |= {f"blk.0.ffn_{name}": (INNER, WIDTH) for name in ("gate", "up")}
    shapes |= {f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    for name, shape in shapes.items():
        packed = gguf.quants.quantize(random.normal(0, 0.1, shape).astype(np.float32), gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base called `little` whose package is installed and not yet converted. Gives the package's model file."""
    file = write_package(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv(disk.MODELS, str(tmp_path / "bases"))
    once = tmp_path / "once"
    once.mkdir()
    package = Package("llm-little", "1.0", FILE, fingerprint(file), "", CHATML_JINJA)
    bases._convert(file, package, once)
    known = Package("llm-little", "1.0", FILE, fingerprint(file), fingerprint(once / "model.safetensors"), CHATML_JINJA)
    monkeypatch.setattr(bases, "BASES", {**bases.BASES, "little": NamedBase("Apache-2.0", None, known)})
    return file


def _bytes_as_letters() -> set[str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return set(bytes_to_unicode().values())

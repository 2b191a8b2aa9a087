"""Run directories that a stranger could hand over: what each holds, and the error that must name it.

A kind changes a copy of a sound run. Its manifest is then made to fit, unless the kind is about the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Kind = Callable[[Path], None]
HOSTILE: dict[str, tuple[str, Kind]] = {}
"""Name of a kind -> code of its error, and what makes it."""
NO_SEAL = set[str]()
OWNED = "OWNED"
"""What code of the run would write, beside the run."""


def make(kind: str, run: Path) -> str:
    """Change a copy of a sound run into a hostile one; gives the code of the error that must come."""
    code, change = HOSTILE[kind]
    change(run)
    if kind not in NO_SEAL:
        seal(run)
    return code


def seal(run: Path) -> None:
    """A manifest that fits what is there."""
    entries = {}
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.name != "manifest.json":
            content = path.read_bytes()
            entries[str(path.relative_to(run))] = {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
    (run / "manifest.json").write_text(json.dumps({"format": 1, "files": entries}))


def hostile(name: str, code: str, *, seal: bool = True) -> Callable[[Kind], Kind]:
    def keep(kind: Kind) -> Kind:
        HOSTILE[name] = (code, kind)
        if not seal:
            NO_SEAL.add(name)
        return kind

    return keep


def settings(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def payload(run: Path) -> str:
    return f"open({str(run.parent / OWNED)!r}, 'w').write('x')\n"


class Bomb:
    """Unpickled, it runs a command."""

    def __init__(self, owned: Path) -> None:
        self.owned = owned

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.owned}",)


def pickled(run: Path) -> bytes:
    return pickle.dumps(Bomb(run.parent / OWNED))


def replace_in_yaml(run: Path, old: str, new: str) -> None:
    file = run / "config.yaml"
    text = file.read_text()
    assert old in text, old
    file.write_text(text.replace(old, new, 1))


MODEL_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig): model_type = "llama"
class EvilModel(LlamaForCausalLM): config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast): pass
"""


@hostile("base config asks for code", "code_in_run")
def _(run: Path) -> None:
    settings(
        run / "base/config.json", auto_map={"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    )
    (run / "base/evil.py").write_text(payload(run) + MODEL_CODE)


@hostile("base config asks for code by a name that is none of ours", "code_in_run")
def _(run: Path) -> None:
    auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    settings(run / "base/config.json", model_type="evil", auto_map=auto_map)
    (run / "base/evil.py").write_text(payload(run) + MODEL_CODE)


@hostile("base config names a repository of code", "code_in_run")
def _(run: Path) -> None:
    settings(run / "base/config.json", auto_map={"AutoConfig": "evil/repo--evil.EvilConfig"})


@hostile("tokenizer asks for code", "code_in_run")
def _(run: Path) -> None:
    settings(
        run / "tokenizer/tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": [None, "evil.EvilTokenizer"]},
    )
    (run / "tokenizer/evil.py").write_text(payload(run) + MODEL_CODE)


@hostile("tokenizer of a class that nobody knows", "code_in_run")
def _(run: Path) -> None:
    settings(run / "tokenizer/tokenizer_config.json", tokenizer_class="EvilTokenizer")


@hostile("config.json asks for code", "code_in_run")
def _(run: Path) -> None:
    settings(run / "config.json", auto_map={"AutoConfig": "evil.EvilConfig"})


@hostile("processor asks for code", "code_in_run")
def _(run: Path) -> None:
    settings(run / "processor_config.json", auto_map={"AutoProcessor": "evil.EvilProcessor"})


@hostile("code is asked for deep inside", "code_in_run")
def _(run: Path) -> None:
    settings(run / "base/config.json", text_config={"sub": [{"auto_map": {"AutoConfig": "evil.EvilConfig"}}]})


@hostile("adapter asks for code", "code_in_run")
def _(run: Path) -> None:
    settings(run / "adapter/adapter_config.json", auto_map={"AutoConfig": "evil.EvilConfig"})


@hostile("adapter of a library", "code_in_run")
def _(run: Path) -> None:
    settings(run / "adapter/adapter_config.json", auto_mapping={"base_model_class": "x", "parent_library": "evil"})


@hostile("adapter of another kind", "damaged_run")
def _(run: Path) -> None:
    settings(run / "adapter/adapter_config.json", peft_type="PROMPT_TUNING", task_type="CAUSAL_LM")


@hostile("a module beside the model", "code_in_run")
def _(run: Path) -> None:
    (run / "sitecustomize.py").write_text(payload(run))


@hostile("a module in capitals", "code_in_run")
def _(run: Path) -> None:
    (run / "base/EVIL.PY").write_text(payload(run))


@hostile("code that generates", "code_in_run")
def _(run: Path) -> None:
    (run / "base/custom_generate").mkdir()
    (run / "base/custom_generate/generate.py").write_text(payload(run) + "def generate(model, **kwargs): pass\n")


@hostile("attention from a repository", "code_in_run")
def _(run: Path) -> None:
    settings(run / "base/config.json", attn_implementation="evil/attention")


@hostile("attention from a repository, by the name that is kept", "code_in_run")
def _(run: Path) -> None:
    settings(run / "base/config.json", _attn_implementation="evil/attention")


@hostile("base that is another base with an adapter", "code_in_run")
def _(run: Path) -> None:
    settings(run / "base/adapter_config.json", base_model_name_or_path="/tmp/evil", peft_type="LORA")


@hostile("base is a pickle", "code_in_run")
def _(run: Path) -> None:
    (run / "base/model.safetensors").unlink()
    (run / "base/pytorch_model.bin").write_bytes(pickled(run))


@hostile("base is a pickle by another name", "damaged_run")
def _(run: Path) -> None:
    (run / "base/model.safetensors").write_bytes(pickled(run))


@hostile("adapter is a pickle", "code_in_run")
def _(run: Path) -> None:
    (run / "adapter/adapter_model.safetensors").unlink()
    (run / "adapter/adapter_model.bin").write_bytes(pickled(run))


@hostile("adapter is a pickle by another name", "damaged_run")
def _(run: Path) -> None:
    (run / "adapter/adapter_model.safetensors").write_bytes(pickled(run))


@hostile("student is a pickle by another name", "damaged_run")
def _(run: Path) -> None:
    (run / "student.safetensors").write_bytes(pickled(run))


@hostile("a pickle of a checkpoint", "code_in_run")
def _(run: Path) -> None:
    (run / "optimizer.pt").write_bytes(pickled(run))


@hostile("base of another place asks for code", "code_in_run")
def _(run: Path) -> None:
    _elsewhere(run)
    settings(run.parent / "elsewhere/config.json", auto_map={"AutoConfig": "evil.EvilConfig"})
    (run.parent / "elsewhere/evil.py").write_text(payload(run) + MODEL_CODE)


@hostile("base of another place is a pickle", "no_model")
def _(run: Path) -> None:
    _elsewhere(run)
    (run.parent / "elsewhere/model.safetensors").unlink()
    (run.parent / "elsewhere/pytorch_model.bin").write_bytes(pickled(run))


def _elsewhere(run: Path) -> None:
    (run / "base").rename(run.parent / "elsewhere")
    file = run / "config.yaml"
    lines = [
        f"  base: {run.parent / 'elsewhere'}" if line.startswith("  base: ") else line
        for line in file.read_text().splitlines()
    ]
    file.write_text("\n".join(lines) + "\n")


@hostile("cut adapter", "damaged_run")
def _(run: Path) -> None:
    _cut(run / "adapter/adapter_model.safetensors")


@hostile("cut base", "damaged_run")
def _(run: Path) -> None:
    _cut(run / "base/model.safetensors")


@hostile("cut student", "damaged_run")
def _(run: Path) -> None:
    _cut(run / "student.safetensors")


@hostile("cut tokenizer", "no_model")
def _(run: Path) -> None:
    _cut(run / "tokenizer/tokenizer.json")


def _cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: 2 * len(content) // 3])


@hostile("no tokenizer", "no_model")
def _(run: Path) -> None:
    (run / "tokenizer/tokenizer.json").unlink()


@hostile("tokenizer with tokens that its model lacks", "no_model")
def _(run: Path) -> None:
    file = run / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["beyond"] = 10**6
    file.write_text(json.dumps(content))


@hostile("tokenizer nested without end", "no_model")
def _(run: Path) -> None:
    (run / "tokenizer/tokenizer.json").write_text('{"a":' * 100_000)


@hostile("adapter of other shapes", "damaged_run")
def _(run: Path) -> None:
    _reshape(run / "adapter/adapter_model.safetensors")


@hostile("student of other shapes", "wrong_shapes")
def _(run: Path) -> None:
    _reshape(run / "student.safetensors")


@hostile("base of other shapes", "no_model")
def _(run: Path) -> None:
    _reshape(run / "base/model.safetensors")


def _reshape(file: Path) -> None:
    tensors = load_file(file)
    name = next(name for name, tensor in sorted(tensors.items()) if tensor.ndim == 2)
    save_file(tensors | {name: np.pad(tensors[name], 1)}, file, metadata={"format": "pt"})


@hostile("base without one of its tensors", "no_model")
def _(run: Path) -> None:
    tensors = load_file(run / "base/model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, run / "base/model.safetensors", metadata={"format": "pt"})


@hostile("base with a tensor by another name", "no_model")
def _(run: Path) -> None:
    tensors = load_file(run / "base/model.safetensors")
    tensors["model.layers.0.mlp.evil.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, run / "base/model.safetensors", metadata={"format": "pt"})


@hostile("adapter of a huge rank", "damaged_run")
def _(run: Path) -> None:
    settings(run / "adapter/adapter_config.json", r_max=10**9)


@hostile("adapter of another rank", "damaged_run")
def _(run: Path) -> None:
    settings(run / "adapter/adapter_config.json", r_max=8)


@hostile("adapter that is chosen by a pattern", "damaged_run")
def _(run: Path) -> None:
    settings(run / "adapter/adapter_config.json", target_modules="(a+)+$")


@hostile("vit of 10^9", "bad_value")
def _(run: Path) -> None:
    replace_in_yaml(run, "dim: 16", "dim: 1000000000")


@hostile("vit of 60 000", "bad_value")
def _(run: Path) -> None:
    replace_in_yaml(run, "dim: 16", "dim: 60000")


@hostile("vit of another width", "wrong_shapes")
def _(run: Path) -> None:
    replace_in_yaml(run, "dim: 16", "dim: 8192")


@hostile("base of another width", "no_model")
def _(run: Path) -> None:
    settings(run / "base/config.json", hidden_size=8192)


@hostile("vit of 200 layers", "wrong_shapes")
def _(run: Path) -> None:
    replace_in_yaml(run, "depth: 1", "depth: 200")


@hostile("base of 10^9 layers", "damaged_run")
def _(run: Path) -> None:
    settings(run / "base/config.json", num_hidden_layers=10**9)


@hostile("base of 10^9 tokens", "damaged_run")
def _(run: Path) -> None:
    settings(run / "base/config.json", vocab_size=10**9)


@hostile("base of 10^30 tokens", "damaged_run")
def _(run: Path) -> None:
    settings(run / "base/config.json", vocab_size=10**30)


@hostile("base of words for numbers", "damaged_run")
def _(run: Path) -> None:
    settings(run / "base/config.json", hidden_size="many")


@hostile("header of 99 MB", "damaged_run")
def _(run: Path) -> None:
    with (run / "student.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000))
        file.truncate(100_000_000)


@hostile("header without end", "damaged_run")
def _(run: Path) -> None:
    (run / "adapter/adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")


@hostile("a tensor larger than its file", "wrong_shapes")
def _(run: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}).encode()
    (run / "student.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")


@hostile("config.yaml of noise", "bad_yaml")
def _(run: Path) -> None:
    (run / "config.yaml").write_bytes(bytes(range(256)))


@hostile("config.yaml that asks for an object", "bad_yaml")
def _(run: Path) -> None:
    (run / "config.yaml").write_text(f'init: !!python/object/apply:os.system ["touch {run.parent / OWNED}"]\n')


@hostile("config.yaml of 5 MB", "bad_yaml")
def _(run: Path) -> None:
    (run / "config.yaml").write_text("seed: 1 #" + "x" * 5_000_000)


@hostile("config.yaml with a number of a million digits", "bad_yaml")
def _(run: Path) -> None:
    (run / "config.yaml").write_text("seed: " + "9" * 900_000)


@hostile("config.yaml nested without end", "bad_yaml")
def _(run: Path) -> None:
    (run / "config.yaml").write_text("seed: " + "[" * 100_000)


@hostile("no config.yaml", "not_found")
def _(run: Path) -> None:
    (run / "config.yaml").unlink()


@hostile("config.json of noise", "damaged_run")
def _(run: Path) -> None:
    (run / "config.json").write_bytes(b"\xff\xfe" + bytes(range(256)))


@hostile("config.json nested without end", "damaged_run")
def _(run: Path) -> None:
    (run / "base/config.json").write_text("[" * 1_000_000)


@hostile("config.json that is a list", "damaged_run")
def _(run: Path) -> None:
    (run / "base/config.json").write_text("[1]")


@hostile("no student", "damaged_run")
def _(run: Path) -> None:
    (run / "student.safetensors").unlink()


@hostile("no adapter weights", "damaged_run")
def _(run: Path) -> None:
    (run / "adapter/adapter_model.safetensors").unlink()


@hostile("manifest whose files are a list", "damaged_run", seal=False)
def _(run: Path) -> None:
    settings(run / "manifest.json", files=["config.yaml"])


@hostile("manifest that lists nothing", "damaged_run", seal=False)
def _(run: Path) -> None:
    settings(run / "manifest.json", files={})


@hostile("manifest of format 2", "unknown_format", seal=False)
def _(run: Path) -> None:
    settings(run / "manifest.json", format=2)


@hostile("manifest without a format", "unknown_format", seal=False)
def _(run: Path) -> None:
    content = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({"files": content["files"]}))


@hostile("manifest that is a list", "unknown_format", seal=False)
def _(run: Path) -> None:
    (run / "manifest.json").write_text("[]")


@hostile("manifest of noise", "damaged_run", seal=False)
def _(run: Path) -> None:
    (run / "manifest.json").write_bytes(bytes(range(256)))


@hostile("manifest of 100 MB", "damaged_run", seal=False)
def _(run: Path) -> None:
    os.truncate(run / "manifest.json", 100_000_000)


@hostile("a file that is not listed", "damaged_run", seal=False)
def _(run: Path) -> None:
    (run / "tokenizer/special_tokens_map.json").write_text("{}")


@hostile("a file that is listed and missing", "damaged_run", seal=False)
def _(run: Path) -> None:
    (run / "README.md").unlink()


@hostile("a file that changed", "damaged_run", seal=False)
def _(run: Path) -> None:
    (run / "README.md").write_text("# Another")


@hostile("a name that leads out", "damaged_run", seal=False)
def _(run: Path) -> None:
    _list(run, "../config.yaml", "config.yaml")


@hostile("a name from the root", "damaged_run", seal=False)
def _(run: Path) -> None:
    _list(run, str((run / "config.yaml").resolve()), "config.yaml")


@hostile("a name that goes round", "damaged_run", seal=False)
def _(run: Path) -> None:
    _list(run, "base/../config.yaml", "config.yaml")


@hostile("an entry that is a number", "damaged_run", seal=False)
def _(run: Path) -> None:
    content = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(content | {"files": content["files"] | {"config.yaml": 1}}))


def _list(run: Path, name: str, file: str) -> None:
    content = json.loads((run / "manifest.json").read_text())
    content["files"][name] = content["files"][file]
    (run / "manifest.json").write_text(json.dumps(content))


@hostile("a link that leads out", "damaged_run", seal=False)
def _(run: Path) -> None:
    file = run / "config.yaml"
    file.rename(run.parent / "config.yaml")
    file.symlink_to(run.parent / "config.yaml")


@hostile("a folder that is a link", "damaged_run", seal=False)
def _(run: Path) -> None:
    (run / "base").rename(run.parent / "base")
    (run / "base").symlink_to(run.parent / "base")


@hostile("a pipe that nobody writes to", "damaged_run", seal=False)
def _(run: Path) -> None:
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")

"""Looks at model files before any of them is loaded: nothing that runs, no pickle, no size beyond belief.

Knows nothing about what a model is for.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from assistant.adapter_kinds import KINDS
from assistant.errors import MaemiError, RunError

DATA = frozenset({".json", ".safetensors", ".yaml", ".md", ".jinja", ".txt", ".model"})
"""What a run directory may hold."""
TEXT_LIMIT, JSON_LIMIT, HEADER_LIMIT = 64 * 2**20, 8 * 2**20, 8 * 2**20
"""Largest vocabulary, largest other JSON file, and largest header of a safetensors file, that is read [byte].

Parsed, JSON takes up to twenty times its size; a header of 8 MiB describes 60 000 tensors.
"""
VOCABULARIES = frozenset({"tokenizer.json", "vocab.json"})
"""JSON files whose keys may be any word, and name no code."""
CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "custom_generate"})
"""Where a configuration names Python files that Transformers would import."""
PEFT_NAMES = tuple(kind.peft_name for kind in KINDS.values() if kind.peft_name)
_LARGEST: Mapping[str, int] = {
    "hidden_size": 2**16,
    "intermediate_size": 2**19,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "vocab_size": 2**22,
    "r_max": 4096,
    "experts": 256,
}
"""Sizes of a language model or an adapter beyond which a configuration is not believed."""


def inspect_run(directory: Path) -> None:
    """Refuse a run whose files are not data, or ask for code. Raises RunError `code_in_run` or `damaged_run`."""
    for file in sorted(directory.rglob("*")):
        if file.is_file() and file.suffix not in DATA:
            raise RunError("code_in_run", f"{file} is not data that a run may hold. Remove it or take another run.")
        if file.suffix == ".safetensors":
            tensor_shapes(file)
    for folder in (directory, *(path for path in directory.iterdir() if path.is_dir())):
        inspect_model(folder)


def inspect_model(directory: Path) -> None:
    """Refuse a model directory whose configuration asks for code or for impossible sizes. Raises RunError."""
    for file in sorted(directory.glob("*.json")):
        limit = TEXT_LIMIT if file.name in VOCABULARIES else JSON_LIMIT
        if file.stat().st_size > limit:
            raise RunError("damaged_run", f"{file} is larger than {limit // 2**20} MiB. Restore the model.")
        if file.name in VOCABULARIES:
            continue
        try:
            document = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            raise RunError("damaged_run", f"{file} is not JSON. Restore the model.") from None
        for key, value in _entries(document):
            kernel = key.endswith("_implementation") and "/" in str(value)  # compiled code from a hub
            if (key in CODE_KEYS and value) or kernel:
                raise RunError(
                    "code_in_run", f"{file} asks for code of its own ({key}), which is never run. Take another model."
                )
            if isinstance(value, int) and value > _LARGEST.get(key, value):
                raise RunError("damaged_run", f"{file}: {key} {value} is beyond belief. Restore the model.")


def inspect_base(directory: Path) -> None:
    """Refuse a language model that comes with code, or in the guise of an adapter of another. Raises RunError."""
    for file in sorted(directory.iterdir()):
        # With an adapter's settings beside it, Transformers loads the model that they name, and the adapter's pickle.
        if file.suffix.lower() == ".py" or file.name in ("custom_generate", "adapter_config.json"):
            raise RunError("code_in_run", f"{file} has no place in a language model. Remove it or take another model.")
    inspect_model(directory)


def inspect_adapter(directory: Path) -> None:
    """Refuse an adapter that is none of ours, or larger than its weights. Raises RunError `damaged_run`."""
    shapes = tensor_shapes(directory / "adapter_model.safetensors")  # without it PEFT would look for a pickle
    file = directory / "adapter_config.json"
    settings = json.loads(file.read_bytes()) if file.is_file() else None
    if not isinstance(settings, dict) or settings.get("peft_type") not in PEFT_NAMES:
        raise RunError("damaged_run", f"{file} is no adapter of {' or '.join(PEFT_NAMES)}. Restore the run.")
    widest = max((side for shape in shapes.values() for side in shape), default=0)
    if any(not isinstance(settings.get(key, 0), int) or settings.get(key, 0) > widest for key in ("r_max", "experts")):
        raise RunError("damaged_run", f"{file} asks for more than its weights hold. Restore the run.")
    library = str((settings.get("auto_mapping") or {}).get("parent_library") or "transformers")
    if library.split(".")[0] != "transformers":
        raise RunError("code_in_run", f"{file} asks for the library {library}, which is never imported.")
    if settings.get("modules_to_save") or isinstance(settings.get("target_modules"), str):
        raise RunError("damaged_run", f"{file} names modules in a way that no run does. Restore the run.")


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file, from its header alone. Raises RunError `damaged_run`."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 2 <= length <= min(HEADER_LIMIT, file.stat().st_size - 8):
                raise ValueError("the header is too long")
            header = json.loads(stream.read(length))
            room = file.stat().st_size - 8 - length
        header.pop("__metadata__", None)
        if any(part["data_offsets"][1] > room for part in header.values()):
            raise ValueError("the file is cut")
        return {name: tuple(map(int, part["shape"])) for name, part in header.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, struct.error, RecursionError):
        raise RunError("damaged_run", f"{file} is not a safetensors file. Train again or restore the run.") from None


@contextmanager
def loading(part: object) -> Iterator[None]:
    """Whatever a library says of a part that it cannot load is an error of that part. Raises RunError `damaged_run`.

    A library in Rust that fails raises what is no Exception.
    """
    try:
        yield
    except (MaemiError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
        raise RunError("damaged_run", f"{part} cannot be loaded ({reason}). Restore it or train again.") from None


def _entries(document: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON document with its value, at any depth."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value

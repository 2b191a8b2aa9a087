"""One run directory in, one out: a student on disk, written atomically and verified before it is trusted.

A model directory holds

    manifest.json         size and sha256 of every other file; written last, so its presence means the rest is whole
    config.yaml           the full configuration
    config.json           architecture, for `from_pretrained` of the parts
    tokenizer/            the language model's tokenizer
    base/                 the language model, where it is small enough to travel; else `decoder.base` names it
    student.safetensors   encoders, grounding and cross-attention
    adapter/              PEFT adapter of the language model, if there is one
    README.md             model card, if there is one

A run directory is a model directory, or holds one as `model/` beside its checkpoints. Only safetensors, JSON, YAML
and Markdown are written or read. Knows nothing about training or images.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from assistant.config import AdapterConfig, Config, dump_config, load_config
from assistant.errors import RunError
from assistant.model import MaemiConfig, MaemiForConditionalGeneration, MaemiProcessor, architecture_of

BUNDLED = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
STUDENT = "student.safetensors"
TRAVELLING_BASE_BYTES = 200 * 1024**2


@dataclass(frozen=True)
class Run:
    """A loaded student: the model in memory, its processor, its configuration and where it came from."""

    student: MaemiForConditionalGeneration
    processor: MaemiProcessor
    config: Config
    path: Path | None

    @property
    def name(self) -> str:
        """A name for people and for the API."""
        if self.path is None:
            return "untrained"
        return (
            "maemi-tiny"
            if self.path == BUNDLED
            else (self.path.parent if self.path.name == "model" else self.path).name
        )


def write_directory(final: Path, write: Callable[[Path], None]) -> None:
    """Fill a directory so that `final` is either what it was or whole: stage, fsync, manifest, rename."""
    final.parent.mkdir(parents=True, exist_ok=True)
    recover(final)
    staging = final.with_name(f".{final.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    write(staging)
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    entries = {str(path.relative_to(staging)): _entry(path) for path in files}
    (staging / MANIFEST).write_text(json.dumps({"format": 1, "files": entries}, indent=1, sort_keys=True) + "\n")
    for path in [*files, staging / MANIFEST, *(p for p in staging.rglob("*") if p.is_dir()), staging]:
        _fsync(path)
    replaced = _replaced(final)
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    staging.rename(final)
    _fsync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(final: Path) -> None:
    """Put back the old directory where a write was killed between moving it away and moving the new one in."""
    if not final.exists() and _replaced(final).is_dir():
        _replaced(final).rename(final)


def verify_directory(path: Path) -> None:
    """Compare a directory with its manifest. Raises RunError `no_run` or `damaged_run`."""
    try:
        entries = json.loads((path / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        raise RunError(
            "no_run", f"{path} is not a run directory (no {MANIFEST}). Name one `maemi train` wrote."
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError("damaged_run", f"{path / MANIFEST} cannot be read. Train again or restore the run.") from None
    for name, expected in entries.items():
        file = path / name
        if not file.is_file() or _entry(file) != expected:
            raise RunError("damaged_run", f"{file} is missing or changed. Train again or restore the run.")


def resolve_run(path: Path | None) -> Path:
    """The verified model directory of a run; None is the bundled student."""
    if path is None:
        return _verified(BUNDLED)
    recover(path)
    recover(path / "model")
    if not path.is_dir():
        raise RunError("no_run", f"{path} is not a directory. Name a run that `maemi train` wrote.")
    return _verified(path if (path / MANIFEST).exists() else path / "model")


def load_run(path: Path | None, *, device: str = "auto") -> Run:
    """Load a student in evaluation mode; `device="auto"` takes CUDA where there is one.

    Raises RunError `no_run`, `damaged_run`, `no_model` or `wrong_shapes`.
    """
    directory = resolve_run(path)
    config = load_config(directory / "config.yaml")
    base = directory / "base"
    run = _assemble(
        config,
        base=str(base) if base.is_dir() else str(config.decoder.base),
        tokenizer=directory / "tokenizer",
        device=device,
        path=directory,
    )
    _load_student(run.student, directory / STUDENT)
    if (directory / "adapter").is_dir():
        from peft import PeftModel

        import assistant.adapters  # noqa: F401 - registers the two tuners with PEFT

        decoder = run.student.decoder
        decoder.lm = PeftModel.from_pretrained(decoder.lm, str(directory / "adapter"), autocast_adapter_dtype=False)
    run.student.eval().requires_grad_(False)
    return run


def new_run(config: Config, *, device: str = "auto") -> Run:
    """A student with fresh vision parts on the language model `config.decoder.base`."""
    base = config.decoder.base
    assert base is not None  # the configuration refuses a student that starts from nothing
    return _assemble(config, base=base, tokenizer=base, device=device, path=None)


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
    _copy_base(run, directory / "base")
    lm = run.student.decoder.lm
    if hasattr(lm, "peft_config"):
        lm.save_pretrained(str(directory / "adapter"))
        (directory / "adapter" / "README.md").unlink(missing_ok=True)
    if card is not None:
        (directory / "README.md").write_text(card)


def attach_adapter(student: MaemiForConditionalGeneration, adapter: AdapterConfig) -> None:
    """Put the configured adapter on the language model, unless it has one."""
    if adapter.kind == "none" or hasattr(student.decoder.lm, "peft_config"):
        return
    from peft import get_peft_model

    from assistant.adapters import DyAMoPEConfig, DyQLoRAFAConfig

    kind = DyQLoRAFAConfig if adapter.kind == "dyqlora_fa" else DyAMoPEConfig
    known = {field.name for field in fields(kind)}
    settings = {key: value for key, value in adapter.model_dump(mode="json").items() if key in known}
    config = kind(**settings)
    student.decoder.lm = get_peft_model(student.decoder.lm, config, autocast_adapter_dtype=False)


def _assemble(config: Config, *, base: str, tokenizer: Path | str, device: str, path: Path | None) -> Run:
    import torch
    from transformers import AutoTokenizer

    from assistant.activations import keep_less
    from assistant.adapters import prepare_nf4
    from assistant.decoder import load_language_model
    from assistant.precision import weights_dtype

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    quantization = config.decoder.quantization
    lm = load_language_model(base, quantization=quantization, device=device, dtype=weights_dtype(device))
    prepare_nf4(lm)
    keep_less(lm)
    try:
        words = AutoTokenizer.from_pretrained(str(tokenizer))
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise RunError("no_model", f"the tokenizer of {base} cannot be loaded: {reason} Restore it.") from None
    if words.pad_token_id is None:
        words.pad_token = words.eos_token
    architecture = MaemiConfig(architecture_of(config), lm.config, pad_token_id=words.pad_token_id)
    student = MaemiForConditionalGeneration(architecture, lm)
    student.to(device)
    processor = MaemiProcessor(words, config.image_size, config.text_encoder.max_tokens)
    return Run(student, processor, config, path)


def _load_student(student: MaemiForConditionalGeneration, file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(str(file))
        missing, unexpected = student.load_state_dict(state, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise RunError("wrong_shapes", f"{file} does not fit its configuration: {reason}. Restore the run.") from None
    absent = [name for name in missing if not name.startswith("decoder.lm.")]
    if absent or unexpected:
        odd = (absent + unexpected)[0]
        raise RunError("wrong_shapes", f"{file} does not fit its configuration: {odd}. Restore the run.")


def _copy_base(run: Run, target: Path) -> None:
    """Take the language model along where it is small; its files are copied, never re-written from 4-bit weights."""
    source = Path(getattr(run.student.decoder.lm.config, "_name_or_path", "") or "")
    if not source.is_dir():
        return
    files = [path for path in source.iterdir() if path.suffix in {".json", ".safetensors"}]
    if sum(path.stat().st_size for path in files) > TRAVELLING_BASE_BYTES:
        return
    target.mkdir()
    for path in files:
        shutil.copyfile(path, target / path.name)


def _verified(path: Path) -> Path:
    verify_directory(path)
    return path


def _replaced(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

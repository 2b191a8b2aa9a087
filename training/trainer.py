"""The training loop: a stage, its data and its optimizer in a `transformers.Trainer` whose checkpoints survive.

Stock checkpoints are written in place and trusted unread; these are staged, synced, renamed and verified, and a run
resumes from the newest whole one. Knows nothing about which losses a stage minimises.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from assistant.checkpoint import (
    Run,
    attach_adapter,
    load_run,
    new_run,
    save_model,
    verify_directory,
    write_directory,
    write_model,
)
from assistant.config import Config, dump_config
from assistant.errors import RunError
from assistant.precision import decide
from training.data import Collator, Conversations, fingerprint, load_split
from training.stages import InstructionStage

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and a short text."""

VISION_PARTS = ("vit", "hnf", "vit_projection", "hnf_projection")
STAGE_WEIGHTS = "stage.safetensors"
log = logging.getLogger("maemi.training")


def train(config: Config, data: Path, out: Path, *, device: str = "auto", progress: Progress | None = None) -> Path:
    """Fine-tune a student; the same call resumes after any interruption. Returns the run directory.

    Raises ConfigError, DatasetError, and RunError `busy_run`, `other_run` or those of `load_run`.
    """
    with locked(out):
        claim(out, config, fingerprint(data))
        if (out / "model").is_dir():
            verify_directory(out / "model")
            return out
        set_seed(config.seed)
        run = start_student(config, device=device)
        stage = InstructionStage(run.student, config.loss)
        examples = load_split(data, "train")
        dataset = Conversations(
            examples,
            image_size=config.image_size,
            settings=config.training,
            seed=config.seed,
            match_text=config.loss.itm.text,
        )
        collator = Collator(run.processor, max_tokens=config.training.max_tokens)
        fit(stage, run, dataset, collator, parameter_groups(run), out, progress=progress)
        save_model(run, out / "model")
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return out


def start_student(config: Config, *, device: str = "auto") -> Run:
    """The student a configuration starts from, with its adapter, ready to train."""
    if config.init is None:
        run = new_run(config, device=device)
    else:
        start = load_run(None if config.init == "bundled" else Path(config.init), device=device)
        run = Run(start.student, start.processor, _shapes_from(start.config, config), None)
    attach_adapter(run.student, config.adapter)
    return run


def parameter_groups(run: Run) -> list[dict[str, Any]]:
    """Thaw what fine-tuning trains: adapter B matrices, cross-attention and grounding, and the encoders more slowly."""
    settings = run.config.training
    student = run.student
    vision = [p for part in VISION_PARTS for p in getattr(student, part).parameters()]
    if run.config.vit.trainable is False:
        student.vit.requires_grad_(False)  # else it keeps activations and gradients nobody uses
        frozen = {id(p) for p in student.vit.parameters()}
        vision = [p for p in vision if id(p) not in frozen]
    language = {id(p) for p in student.decoder.lm.parameters()}
    seen = language | {id(p) for p in vision} | {id(p) for p in student.vit.parameters()}
    grounding = [p for p in student.parameters() if id(p) not in seen]
    adapter = adapter_parameters(student.decoder.lm)
    for parameter in (*vision, *grounding):
        parameter.requires_grad_(True)
    return [
        {"params": [*adapter, *grounding], "lr": settings.learning_rate},
        {"params": vision, "lr": settings.vision_learning_rate},
    ]


def adapter_parameters(lm: Any) -> list[nn.Parameter]:
    """Parameters the language model's adapter trains; activating it thaws those and no others."""
    if not hasattr(lm, "peft_config"):
        return []
    lm.set_adapter(lm.active_adapter)
    return [parameter for parameter in lm.parameters() if parameter.requires_grad]


def fit(
    stage: nn.Module,
    run: Run,
    dataset: Conversations,
    collator: Collator,
    groups: Sequence[dict[str, Any]],
    out: Path,
    *,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Run a stage to its last step and return its log: one entry per logged step with every loss."""
    settings = run.config.training
    optimizer = torch.optim.AdamW(list(groups), weight_decay=settings.weight_decay, betas=(0.9, 0.98))
    callbacks: list[TrainerCallback] = [Log(out / "metrics.jsonl", progress)]
    if hasattr(run.student.decoder.lm, "peft_config"):
        from assistant.adapters import hold_inactive, precondition

        if run.config.adapter.precondition:
            precondition(run.student.decoder.lm, optimizer)
        hold_inactive(run.student.decoder.lm, optimizer)
        callbacks.append(DynamicRank(run.student.decoder.lm, run.config.seed))
    if settings.gradient_checkpointing:
        run.student.decoder.lm.activation_checkpointing_enable()
    trainer = StudentTrainer(
        model=stage,
        run=run,
        args=_arguments(run.config, out, device=next(stage.parameters()).device),
        train_dataset=dataset,
        data_collator=collator,
        optimizers=(optimizer, cosine_schedule(optimizer, settings.steps, settings.warmup)),
        callbacks=callbacks,
    )
    trainer.pop_callback(PrinterCallback)
    newest = newest_checkpoint(out / "checkpoints")
    stage.train()
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    run.student.eval()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class StudentTrainer(Trainer):
    """A Trainer that logs every part of a stage's loss and writes checkpoints that are whole or absent."""

    def __init__(self, *, run: Run, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self._parts: dict[str, list[float]] = {}

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        losses = model(**inputs)
        for name, value in losses.items():
            if name != "loss":
                self._parts.setdefault(name, []).append(float(value.detach()))
        return losses["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= {name: round(sum(values) / len(values), 5) for name, values in self._parts.items()}
            self._parts.clear()
            logs |= self._expert_usage()
        super().log(logs, *args, **kwargs)

    def _expert_usage(self) -> dict[str, float]:
        """How evenly the last step used the experts, where the adapter has several."""
        if not hasattr(self.run.student.decoder.lm, "peft_config"):
            return {}
        from assistant.adapters import expert_usage_entropy

        entropy = expert_usage_entropy(self.run.student.decoder.lm)
        return {} if entropy is None else {"expert_entropy": round(entropy, 5)}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        directory = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if not self.args.should_save:
            return
        write_directory(directory, self._write_checkpoint)
        for old in checkpoints(directory.parent)[: -self.run.config.training.keep_checkpoints]:
            shutil.rmtree(old)

    def _write_checkpoint(self, staging: Path) -> None:
        from safetensors.torch import save_file

        write_model(self.run, staging)
        save_file(stage_state(self.model), str(staging / STAGE_WEIGHTS))
        self._save_optimizer_and_scheduler(str(staging))
        self._save_rng_state(str(staging))
        self.state.save_to_json(str(staging / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        from safetensors.torch import load_file

        self.model.load_state_dict(load_file(str(Path(resume_from_checkpoint) / STAGE_WEIGHTS)), strict=False)


class DynamicRank(TrainerCallback):
    """The rank of every optimizer step, f(seed, step): the same for all micro-batches and processes (DyLoRA)."""

    def __init__(self, lm: nn.Module, seed: int) -> None:
        self.lm = lm
        self.seed = seed

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from assistant.adapters import draw_ranks

        draw_ranks(self.lm, self.seed, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from assistant.adapters import set_rank

        set_rank(self.lm, None)


class Log(TrainerCallback):
    """Appends every log entry to `metrics.jsonl` and tells the caller how far training is."""

    def __init__(self, file: Path, progress: Progress | None) -> None:
        self.file = file
        self.progress = progress
        self.last = ""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.last = f"loss {logs['loss']:.3f}"
            with self.file.open("a") as lines:
                lines.write(json.dumps({"step": state.global_step, **logs}) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress:
            self.progress(state.global_step, state.max_steps, self.last)


def cosine_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> Any:
    """Linear rise over the warm-up share of the steps, then half a cosine down to zero."""
    from transformers import get_cosine_schedule_with_warmup

    return get_cosine_schedule_with_warmup(optimizer, int(warmup * steps), steps)


def stage_state(stage: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor a stage can change, and the adapter's frozen A, which another device would draw differently."""
    frozen = {
        name
        for name, p in stage.named_parameters()
        if ".decoder.lm." in name and ".lora_A." not in name and not p.requires_grad
    }
    kept = {name: p for name, p in stage.named_parameters() if name not in frozen}
    return {name: p.detach().cpu().contiguous() for name, p in kept.items()}


def checkpoints(directory: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [path for path in directory.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that verifies; damaged ones are passed over."""
    for path in reversed(checkpoints(directory)):
        try:
            verify_directory(path)
        except RunError:
            continue
        return path
    return None


def claim(out: Path, config: Config, data: str) -> None:
    """Bind a run directory to a configuration and data, or make sure it is bound to these. Raises RunError."""
    record = {"config": dump_config(config), "data": data}
    file = out / "run.json"
    if file.exists():
        if json.loads(file.read_text()) != record:
            raise RunError("other_run", f"{out} holds a run of other settings or data. Choose another --out.")
        return
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.rename(file)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run directory for this process; the lock ends with the process, however that ends."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                "busy_run", f"{out} is being trained by another process. Wait or choose another --out."
            ) from None
        yield


def _shapes_from(start: Config, wanted: Config) -> Config:
    """The wanted configuration with the shapes of the student it starts from."""
    shapes = {name: getattr(start, name) for name in ("image_size", "vit", "hnf", "text_encoder", "decoder")}
    return wanted.model_copy(update=shapes)


def _arguments(config: Config, out: Path, *, device: torch.device) -> TrainingArguments:
    settings, on_cpu = config.training, device.type == "cpu"
    decision = decide(settings.precision, str(device))
    log.info("training computes in %s", decision)
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        max_grad_norm=settings.max_grad_norm,
        bf16=decision.precision == "bf16",
        use_cpu=on_cpu,
        logging_steps=10,
        save_strategy="steps",
        save_steps=settings.save_every,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=config.seed,
        dataloader_pin_memory=not on_cpu,
        label_names=[],
    )

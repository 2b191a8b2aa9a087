"""The training loop: a stage, its data and its optimizer in a `transformers.Trainer` whose checkpoints survive.

Stock checkpoints are written in place and trusted unread; these are staged, synced, renamed and verified, and a run
resumes from the newest whole one. Knows nothing about which losses a stage minimises.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments, set_seed

from assistant.adapters.rank import innermost
from assistant.checkpoint import (
    Run,
    attach_adapter,
    checkpoints,
    newest_checkpoint,
    save_model,
    start_run,
    write_model,
)
from assistant.config import Config
from assistant.disk import disk_errors, locked, verify_directory, write_directory, write_file
from assistant.errors import ConfigError, RunError, Stopped
from assistant.inspection import loading
from assistant.precision import device_of, number_format
from assistant.progress import Progress
from training.account import write_account
from training.attention import SDPA_FLOAT32
from training.claim import claim, record
from training.data import Collator, Example, TrainingSet, data_fingerprint, held_out_split, load_split
from training.heads import own_heads
from training.held import hold_in_bf16, holds_in_bf16
from training.preflight import Preflight, look, memory_here, require_memory, require_sound
from training.processes import ALONE, Processes, meet
from training.stages import LEARNS, AlignmentStage, InstructionStage, LanguageStage, counts_of, planned
from training.state import load_optimizer, load_random_state, random_state, save_training_state
from training.validation import AnswerScores, Validation

_VISION_PARTS = ("vit", "hnf", "vit_projection", "hnf_projection")
MATCHING_PARTS = ("text_encoder", "grounded", "matching", "image_match", "text_match")
HELD_OUT = ("validation", "test")
STAGE_WEIGHTS = "stage.safetensors"
PROGRESS = "trainer_state.json"
"""Where transformers keeps the steps done and the log."""
_log = logging.getLogger("maemi.training")


def train(
    config: Config,
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    told: Callable[[Preflight], None] | None = None,
    force: bool = False,
) -> Path:
    """Fine-tune a student; the same call resumes after any interruption. Returns the run directory.

    `told` is given what is found before the first step; `force` trains although something of it is a reason to stop.
    Raises ConfigError, DatasetError, Stopped after a signal, and RunError `busy_run`, `other_run`, `preflight`,
    `diverged`, `disk_full` or those of `load_run`.
    """
    processes = meet(device_of(device))
    alone = locked(out / "lock", out, RunError, "busy_run") if processes.leads else nullcontext()
    with disk_errors(out, RunError, writes_only=False), alone:
        with processes.leader_first():
            rows = data_fingerprint(data)
            config = claim(out, config, rows, device=device, processes=processes.count)
            whole = (out / "model").is_dir()
        if whole:
            verify_directory(out / "model")
            if processes.leads:
                shutil.rmtree(out / "checkpoints", ignore_errors=True)
            return out
        examples = load_split(data, "train")
        splits = {"train": examples} | {split: held_out_split(data, split) for split in HELD_OUT}
        fresh = not any((out / place / "checkpoints").is_dir() for place in ("", *LEARNS))
        memory = memory_here(config, data, device=device, processes=processes.count) if fresh else {}
        if memory and not force:
            require_memory(memory)
        run, dataset, collator = prepare(config, examples, device=device)
        if memory:
            found = look(run, parameter_groups(run), dataset, collator, splits, memory)
            if told and processes.leads:
                told(found)
            if not force:
                require_sound(found)
        if config.loss.itm.gates:
            run.student.grounded.open_gates(config.loss.itm.gates)
        stage = InstructionStage(run.student, config.loss)
        shared: dict[str, Any] = {"processes": processes, "progress": progress if processes.leads else None}
        before = {"language": learn_words, "alignment": align}
        for name in (entry["stage"] for entry in planned(config)):
            if name in before:
                before[name](run, dataset, collator, out / name, **shared)
        groups = parameter_groups(run)
        validation = scores = None
        if splits["validation"] and config.training.validate_every != 0:
            validation = Validation(splits["validation"], run.config, collator)
            if config.training.score_on and processes.leads:
                scores = AnswerScores(splits["validation"], run, config.training.score_on)
        best = run_stage(stage, run, dataset, collator, groups, out, validation=validation, scores=scores, **shared)
        require_finite(stage, config.training.steps, [], out / "checkpoints")
        if not processes.leads:
            return out
        # A class is decided by a head, never by the language model; it is fitted to the same pictures.
        labelled = {row.images[0]: (row.label, row.group) for row in examples if row.label and len(row.images) == 1}
        heads = own_heads([(png, label, group) for png, (label, group) in labelled.items()], seed=config.seed)
        record(out, kept=asdict(best))
        write_account(out, config, splits, best, device=device_of(device))
        save_model(run, out / "model", heads=heads)
        for leftover in ("checkpoints", *before):
            shutil.rmtree(out / leftover, ignore_errors=True)
        return out


def preflight(config: Config, data: Path, *, device: str = "auto") -> Preflight:
    """Everything that `train` looks at before its first step, at every picture and conversation; trains nothing.

    Where one step would not fit into memory the student is not loaded, and neither tokens nor what learns are told.
    Raises ConfigError, DatasetError, and RunError as `load_run` does.
    """
    splits = {"train": load_split(data, "train")} | {split: held_out_split(data, split) for split in HELD_OUT}
    memory = memory_here(config, data, device=device)
    if memory["advice"]:
        return look(None, (), None, None, splits, memory, limit=None)
    run, dataset, collator = prepare(config, splits["train"], device=device)
    return look(run, parameter_groups(run), dataset, collator, splits, memory, limit=None)


def prepare(config: Config, examples: Sequence[Example], *, device: str) -> tuple[Run, TrainingSet, Collator]:
    """The student that a run starts from, the conversations it is taught, and what makes batches of them."""
    set_seed(config.seed)
    run = start_student(config, device=device)
    if holds_in_bf16(config, device):
        hold_in_bf16(run.student.vit)
    dataset = TrainingSet.configured(examples, run.config)
    return run, dataset, Collator(run.processor, max_tokens=config.training.max_tokens)


def learn_words(run: Run, dataset: TrainingSet, collator: Collator, out: Path, **shared: Any) -> None:
    """The steps before the pictures: only adapters of the language model learn, and only from words."""
    settings = run.config.training
    run.student.requires_grad_(False)
    groups = [{"params": adapter_parameters(run.student.decoder.lm), "lr": settings.learning_rate}]
    out.mkdir(parents=True, exist_ok=True)
    run_stage(LanguageStage(run.student), _for(run, settings.language_steps), dataset, collator, groups, out, **shared)


def align(run: Run, dataset: TrainingSet, collator: Collator, out: Path, **shared: Any) -> None:
    """The steps in which encoders and grounding learn which text belongs to which picture, without the words."""
    settings, rate = run.config.training, run.config.loss.itm.learning_rate
    matching = [p for name in MATCHING_PARTS for p in getattr(run.student, name).parameters()]
    groups = [
        {"params": matching, "lr": settings.learning_rate if rate is None else rate},
        parameter_groups(run)[-1],
    ]
    out.mkdir(parents=True, exist_ok=True)
    alone = _for(run, settings.alignment_steps, batch_size=settings.alignment_batch, accumulate=1)
    run_stage(AlignmentStage(run.student, run.config.loss), alone, dataset, collator, groups, out, **shared)


def _for(run: Run, steps: int, **settings: int) -> Run:
    """The run with another number of steps, and other settings of a stage."""
    training = run.config.training.model_copy(update={"steps": steps, **settings})
    return replace(run, config=run.config.model_copy(update={"training": training}))


def start_student(config: Config, *, device: str = "auto") -> Run:
    """The student a configuration starts from, with its adapter, ready to train."""
    run = start_run(config, device=device)
    attach_adapter(run.student, config.adapter)
    return run


def parameter_groups(run: Run) -> list[dict[str, Any]]:
    """Thaw what fine-tuning trains: adapter B matrices, cross-attention and grounding, and the encoders more slowly."""
    settings = run.config.training
    student = run.student
    vision = [p for part in _VISION_PARTS for p in getattr(student, part).parameters()]
    if run.config.vit.trainable is False:
        student.vit.requires_grad_(False)  # else it keeps activations and gradients nobody uses
        frozen = {id(p) for p in student.vit.parameters()}
        vision = [p for p in vision if id(p) not in frozen]
    language = {id(p) for p in student.decoder.lm.parameters()}
    seen = language | {id(p) for p in vision} | {id(p) for p in student.vit.parameters()}
    matching = [p for name in MATCHING_PARTS for p in getattr(student, name).parameters()]
    seen |= {id(p) for p in matching}
    grounding = [p for p in student.parameters() if id(p) not in seen]
    adapter = adapter_parameters(student.decoder.lm)
    for parameter in (*vision, *grounding, *matching):
        parameter.requires_grad_(True)
    rate = run.config.loss.itm.learning_rate
    if rate is None:
        grounding, matching = [*grounding, *matching], []
    return [
        {"params": [*adapter, *grounding], "lr": settings.learning_rate},
        *([{"params": matching, "lr": rate}] if rate is not None else []),
        {"params": vision, "lr": settings.vision_learning_rate},
    ]


def adapter_parameters(lm: Any) -> list[nn.Parameter]:
    """Parameters the language model's adapter trains; activating it thaws those and no others."""
    if not hasattr(lm, "peft_config"):
        return []
    lm.set_adapter(lm.active_adapter)
    return [parameter for parameter in lm.parameters() if parameter.requires_grad]


def run_stage(
    stage: nn.Module,
    run: Run,
    dataset: TrainingSet,
    collator: Collator,
    groups: Sequence[dict[str, Any]],
    out: Path,
    *,
    validation: Validation | None = None,
    scores: AnswerScores | None = None,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> BestStep:
    """Run a stage to its end and leave it with the weights of its best step, which is the last without validation."""
    settings = run.config.training
    adam: Any = torch.optim.AdamW
    if settings.moments == "8bit":
        from bitsandbytes.optim import AdamW8bit

        adam = AdamW8bit
    optimizer = adam(list(groups), weight_decay=settings.weight_decay, betas=(0.9, 0.98))
    signals = Signals(processes)
    log = Log(out / "metrics.jsonl", progress, writes=processes.leads)
    callbacks: list[TrainerCallback] = [log, signals, Epochs(dataset)]
    if settings.tensorboard and processes.leads:
        callbacks.append(TensorBoard(out / "tensorboard", out / "metrics.jsonl"))
    if hasattr(run.student.decoder.lm, "peft_config"):
        from assistant.adapters import hold_inactive, precondition

        if any(config.precondition for config in run.student.decoder.lm.peft_config.values()):
            precondition(run.student.decoder.lm, optimizer)
        hold_inactive(run.student.decoder.lm, optimizer)
        callbacks.append(DynamicRank(run.student.decoder.lm, run.config.seed))
    if settings.gradient_checkpointing:
        run.student.decoder.lm.activation_checkpointing_enable()
    device = next(stage.parameters()).device
    if device.type == "cpu" and number_format(settings.precision, "cpu").precision == "bf16":
        run.student.decoder.lm.set_attn_implementation(SDPA_FLOAT32)
    trainer = StudentTrainer(
        model=stage,
        run=run,
        processes=processes,
        validation=validation,
        scores=scores,
        args=_arguments(run.config, out, device=device, processes=processes, validates=validation is not None),
        train_dataset=dataset,
        eval_dataset=dataset if validation is not None else None,  # the stock loop wants one, and never reads it
        data_collator=collator,
        optimizers=(optimizer, cosine_schedule(optimizer, settings.steps, settings.warmup)),
        callbacks=callbacks,
    )
    trainer.pop_callback(PrinterCallback)
    newest = newest_checkpoint(out / "checkpoints")
    stage.train()
    with signals.caught():
        if newest is None or not trainer.ended_at(newest):
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    run.student.eval()
    return trainer.keep_best()


@dataclass(frozen=True)
class BestStep:
    """Which step's weights a stage was left with, of how many, and their validation loss, where it was looked at."""

    step: int
    steps: int
    validation_loss: float | None


class StudentTrainer(Trainer):
    """A Trainer that logs every part of a stage's loss and writes checkpoints that are whole or absent."""

    loss_is_scaled_for_ga = True
    """A stage divides by what the whole step holds."""

    def __init__(
        self,
        *,
        run: Run,
        processes: Processes,
        validation: Validation | None,
        scores: AnswerScores | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.processes = processes
        self.validation = validation
        self.scores = scores
        self._parts: dict[str, float] = {}
        self._logged_at = 0
        self._losses: deque[float] = deque(maxlen=5)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: Any) -> torch.Tensor:
        """What the losses of this step are means over, in all its parts and processes together."""
        counts = torch.stack([counts_of(batch) for batch in batch_samples]).sum(0).to(device)
        total: torch.Tensor = self.accelerator.reduce(counts, "sum")
        return total.clamp(min=1)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        losses = model(**inputs, counts=kwargs.get("num_items_in_batch"))
        loss = float(losses["loss"].detach())
        if not math.isfinite(loss):  # it ends the run before anything is learned from it
            what = f"the loss of step {self.state.global_step + 1} is {loss}"
            raise diverged(what, self._losses, Path(self.args.output_dir))
        self._losses.append(loss)
        for name, value in losses.items():
            if name != "loss":
                self._parts[name] = self._parts.get(name, 0.0) + float(value.detach())
        return losses["loss"] * self.processes.count  # whose gradients are averaged

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm gradients are clipped by; one that is not finite ends the run before it spoils every weight."""
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(float(norm)):
            what = f"the gradient of step {self.state.global_step + 1} is {float(norm)}"
            raise diverged(what, self._losses, Path(self.args.output_dir))
        return norm

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            sums = self.accelerator.reduce(torch.tensor([*self._parts.values()], device=self.args.device), "sum")
            steps = self.state.global_step - self._logged_at
            logs |= {name: round(float(s) / steps, 5) for name, s in zip(self._parts, sums, strict=True)}
            self._parts.clear()
            self._logged_at = self.state.global_step
            if hasattr(self.run.student.decoder.lm, "peft_config"):
                from assistant.adapters import expert_usage_entropy

                entropy = expert_usage_entropy(self.run.student.decoder.lm)
                if entropy is not None:  # how evenly the last step used the experts, where there are several
                    logs["expert_entropy"] = round(entropy, 5)
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The losses on the validation sample, logged; every process computes the same, and the first the scores."""
        assert self.validation is not None
        losses = self.validation.losses(self.model)
        scored = self.scores.measure(self.model) if self.scores else {}
        self.log({f"validation_{name}": loss for name, loss in losses.items()} | scored)
        self.control.should_evaluate = False
        return {"eval_loss": losses["loss"]}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """The best step so far must be on the disk; where none was better for long enough, training ends."""
        best = bool(super()._determine_best_metric(metrics, trial))
        self.control.should_save |= best
        if self._gave_up(self.state):
            self.control.should_save = self.control.should_training_stop = True
        return best

    def _gave_up(self, state: TrainerState) -> bool:
        patience, every = self.run.config.training.patience, int(self.args.eval_steps or 1)
        return bool(patience and state.best_global_step) and (
            state.global_step - state.best_global_step >= patience * every
        )

    def ended_at(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is training's last, whose weights and state are then taken: the loop would go on."""
        with loading(checkpoint):
            state = TrainerState.load_from_json(str(checkpoint / PROGRESS))
        if state.global_step < self.args.max_steps and not self._gave_up(state):
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        return True

    def keep_best(self) -> BestStep:
        """Take the weights of the best step; those of the last where no other is known, or the best's are damaged."""
        state, best = self.state, self.state.best_global_step
        if not best or best == state.global_step:
            return BestStep(state.global_step, state.global_step, state.best_metric if best else None)
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{best}"
        try:
            verify_directory(checkpoint)
            self._load_from_checkpoint(str(checkpoint))
        except RunError as error:
            _log.warning("the last step is kept, not the best, step %d: %s", best, error.message)
            return BestStep(state.global_step, state.global_step, None)
        return BestStep(best, state.global_step, state.best_metric)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        directory = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        randoms = self.processes.gather(random_state())
        if not self.args.should_save:
            return
        require_finite(self.model, self.state.global_step, self._losses, directory.parent)
        write_directory(directory, lambda staging: self._write_checkpoint(staging, randoms))
        best = directory.with_name(f"checkpoint-{self.state.best_global_step}")
        for old in checkpoints(directory.parent)[: -self.run.config.training.keep_checkpoints]:
            if old != best:
                shutil.rmtree(old)

    def _write_checkpoint(self, staging: Path, randoms: Sequence[Any]) -> None:
        from safetensors.torch import save_file

        write_model(self.run, staging)
        save_file(stage_state(self.model), str(staging / STAGE_WEIGHTS))
        save_training_state(staging, innermost(self.optimizer), self.lr_scheduler, randoms)
        self.state.save_to_json(str(staging / PROGRESS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        from safetensors.torch import load_file

        directory = Path(resume_from_checkpoint)
        with loading(directory):
            state = TrainerState.load_from_json(str(directory / PROGRESS))  # which the stock loop reads without a look
            self._logged_at = state.global_step
            weights = load_file(str(directory / STAGE_WEIGHTS))
            if odd := weights.keys() ^ stage_state(self.model).keys():
                raise ValueError(f"{sorted(odd)[0]} is of another stage")
            self.model.load_state_dict(weights, strict=False)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with loading(checkpoint):
            load_optimizer(Path(checkpoint), innermost(self.optimizer), self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with loading(checkpoint):
            load_random_state(Path(checkpoint), self.processes.rank)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: nothing trains in float16."""


class Signals(TrainerCallback):
    """SIGTERM and SIGINT end training after the step at hand, with a checkpoint; a second SIGINT ends it at once."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.signal: signal.Signals | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Raises Stopped once training has saved and ended for a signal."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._catch) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signal is not None:
            raise Stopped(self.signal)

    def _catch(self, number: int, frame: Any) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.processes.any(self.signal is not None) and state.global_step < state.max_steps:
            self.signal = self.signal or signal.SIGTERM  # which another process was sent
            control.should_save = control.should_training_stop = True


class Epochs(TrainerCallback):
    """Tells the data which epoch it is: accelerate forgets to where it skips batches or shares them among processes."""

    def __init__(self, dataset: TrainingSet) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.dataset.set_epoch(int(state.epoch))


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
    """Appends every log entry to `metrics.jsonl` and tells the caller how far training is.

    An entry of a loss says what a step took since the one before: `step_s` [s].
    """

    def __init__(self, file: Path, progress: Progress | None, *, writes: bool) -> None:
        self.file = file
        self.progress = progress
        self.writes = writes
        self.losses: dict[str, float] = {}
        self.logged = (0, 0.0)
        """The step of the last loss, and when it was logged."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take back what was logged after the checkpoint that training goes on from, and a line that a kill cut."""
        if self.writes and self.file.exists():
            lines = self.file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            write_file(self.file, "".join(line for line in lines if _logged_step(line) <= state.global_step))
        self.logged = (state.global_step, time.monotonic())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or not (named := logs.keys() & {"loss", "validation_loss"}):
            return
        self.losses |= {name: logs[name] for name in named}
        (before, since), step, now = self.logged, state.global_step, time.monotonic()
        if "loss" in named and step > before:
            logs, self.logged = logs | {"step_s": round((now - since) / (step - before), 3)}, (step, now)
        if self.writes:
            with self.file.open("a") as lines:
                lines.write(json.dumps({"step": step, **logs}) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress:
            told = ", ".join(f"{name.replace('_', ' ')} {loss:.3f}" for name, loss in sorted(self.losses.items()))
            self.progress(state.global_step, state.max_steps, told)


class TensorBoard(TrainerCallback):
    """Writes the log for TensorBoard: anew from `metrics.jsonl` where training begins or goes on, then as it comes.

    Raises ConfigError `needs_extra`.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ConfigError(
                "needs_extra",
                "training.tensorboard needs the extra. Install it with: pip install 'maemi[tensorboard]'.",
            ) from None
        self.log = log
        shutil.rmtree(folder, ignore_errors=True)
        self.writer = SummaryWriter(str(folder))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.log.exists():
            for line in self.log.read_text(encoding="utf-8").splitlines():
                self._add(json.loads(line))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self._add({"step": state.global_step, **(logs or {})})
        self.writer.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.writer.close()

    def _add(self, entry: dict[str, float]) -> None:
        for name, value in entry.items():
            if name not in ("step", "epoch", "step_s"):
                self.writer.add_scalar(name.replace("_", "/", 1), value, int(entry["step"]))


def _logged_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, LookupError):
        return math.inf


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


def require_finite(stage: nn.Module, step: int, losses: Iterable[float], directory: Path) -> None:
    """Raise RunError `diverged` where a weight that is trained is not finite: such a model is never saved."""
    for name, parameter in stage.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise diverged(f"after step {step} {name} is not finite", losses, directory)


def diverged(what: str, losses: Iterable[float], directory: Path) -> RunError:
    """The end of a run that learned nonsense, with what can be gone on from; `directory` holds its checkpoints."""
    before = ", ".join(f"{loss:.3g}" for loss in losses)
    newest = newest_checkpoint(directory)
    whole = f"{newest} is whole: start from it by --set init={newest}" if newest else "No checkpoint was written: start"
    return RunError(
        "diverged",
        f"{what}{f' (before: {before})' if before else ''}. Nothing was saved of it. {whole} with another --out and a "
        "lower training.learning_rate.",
    )


def _arguments(
    config: Config, out: Path, *, device: torch.device, processes: Processes, validates: bool
) -> TrainingArguments:
    settings, on_cpu = config.training, device.type == "cpu"
    parts = settings.accumulate * processes.count
    if settings.batch_size % parts:
        raise ConfigError(
            "bad_value",
            f"training.batch_size {settings.batch_size} cannot be computed in {settings.accumulate} parts by "
            f"{processes.count} processes. Choose a multiple of {parts}.",
        )
    every = settings.save_every if settings.validate_every is None else settings.validate_every
    validation = {"eval_strategy": "steps", "eval_steps": every, "metric_for_best_model": "loss"} if validates else {}
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size // parts,
        gradient_accumulation_steps=settings.accumulate,
        max_grad_norm=settings.max_grad_norm,
        bf16=number_format(settings.precision, str(device)).precision == "bf16",
        use_cpu=on_cpu,
        logging_steps=10,
        save_strategy="steps",
        save_steps=settings.save_every,
        greater_is_better=False,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=config.seed,
        dataloader_pin_memory=not on_cpu,
        label_names=[],
        **validation,
    )

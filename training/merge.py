"""A run nearer to what it started from, or with its adapter inside its base: each written only with its scores.

Every tensor that training moved lies on a line: start + share x (run - start) (WiSE-FT, arXiv 2109.01903). Of a
DyQLoRA-FA adapter that is B alone: A is frozen, so the product B A, which is what it adds, goes along the same line at
every rank, and nothing has to be cut to a rank again. Experts and their router go along lines of their own. Heads are
fitted to a frozen tower and rest on nothing that moves: they are the run's at every share above 0. Knows nothing about
how a run was trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from assistant.adapter_kinds import read_settings
from assistant.chat import Conversation, Message
from assistant.checkpoint import BASE_RECORD, Run, attach_adapter, load_run, resolve_run, write_model
from assistant.config import load_config
from assistant.disk import MANIFEST, disk_errors, fingerprint, locked, write_directory, write_file
from assistant.errors import ConfigError, DatasetError, MaemiError, RunError
from assistant.generation import computing
from assistant.handbook import entries
from assistant.inspection import loading
from assistant.progress import Progress
from assistant.starts import start_of
from training.claim import RECORD, base_files
from training.data import Example, data_fingerprint, held_out_split, load_split
from training.evaluate import sample_rows
from training.scores import rounded
from training.stages import InstructionStage
from training.trainer import start_student
from training.validation import AnswerScores

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
AS_GOOD = 0.02
"""Fewer of the answers than the best share's agree with what is known, and the share is still as good."""
SPLIT = "validation"
"""What a share is chosen by and a merge is judged by; the test split stays unseen."""
GENERAL = 48
"""General questions that tell what was forgotten."""
_BATCH = 8
WEIGHTS = "model.safetensors"
BETTER = {"agrees": 1, "drafted_true": 1, "shown_false": -1}
"""Scores of answers, and whether more of it is better."""


@dataclass(frozen=True)
class Line:
    """What training moved, by name, as it was before and after."""

    start: Mapping[str, Tensor]
    run: Mapping[str, Tensor]

    def at(self, share: float) -> dict[str, Tensor]:
        """The tensors at a share of the way; at 0 and at 1 those of the two ends, bit for bit."""
        if share in (0.0, 1.0):
            return dict(self.run if share else self.start)
        return {
            name: torch.lerp(start, self.run[name], share) if start.is_floating_point() else self.run[name]
            for name, start in self.start.items()
        }


def interpolate(
    path: Path,
    data: Path,
    out: Path,
    *,
    start: Path | None = None,
    share: float | None = None,
    shares: Sequence[float] = SHARES,
    limit: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a run at several shares of the way from its start, and write one of them as a run of its own.

    It is `share`, else the one that forgets least among those as good on the site's questions. `start` is named where
    the run's own configuration no longer leads to it; `limit` bounds the rows of each task. Returns the record.
    Raises ConfigError `bad_share`, DatasetError `no_validation` or `nothing_known`, and RunError `other_start`,
    `other_run`, `busy_run`, `disk_full`, or those of `load_run`.
    """
    asked = sorted({0.0, 1.0, *shares, *(() if share is None else (share,))})
    if not all(0 <= one <= 1 for one in asked):
        raise ConfigError("bad_share", f"{asked} are not all shares. Give numbers from 0, the start, to 1, the run.")
    rows, tell = _rows(data, limit), progress or (lambda done, total, text: None)
    with _new_run(out):
        tell(0, len(asked) + 1, "loading what it started from")
        began, from_ = _start_of(path, start, device)
        run = load_run(path, device=device, dense=True)
        line = line_between(began, run)
        del began
        general = General.of(data)
        table, known = [], None
        for number, one in enumerate(asked):
            tell(number + 1, len(asked) + 1, f"answering at a share of {one:g}")
            run.student.load_state_dict(line.at(one), strict=False)
            words = general.words(run)
            known = words if known is None else known  # the first share is 0: what it started from
            table.append({"share": one, **scores_of(run, rows), **general.scores(words, known)})
        chosen, rule = (share, "as asked") if share is not None else choose(table)
        run.student.load_state_dict(line.at(chosen), strict=False)
        about = {
            "kind": "interpolation",
            "share": chosen,
            "rule": rule,
            "scores": table,
            "rows": len(rows),
            "general_questions": len(general.conversations),
            "data": data_fingerprint(data),
            "run": _provenance(run.path),
            "start": _provenance(from_),
        }
        return _write(run, out, about, heads=run.path if chosen else from_)


def fold(
    path: Path,
    data: Path,
    out: Path,
    *,
    drop: float = 0.0,
    limit: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a run whose adapter is part of its language model, in bfloat16, if it answers no worse. Returns the record.

    A base of 4 bits is taken as the adapter was trained on it, unpacked. `drop` is the most that any score of answers
    may lose, as a share. Raises AdapterError `routed_experts` or `not_finite`, RunError `worse` with the figures or
    `no_adapter`, and as `interpolate` does.
    """
    from assistant.adapters import unpack_nf4

    rows, tell = _rows(data, limit), progress or (lambda done, total, text: None)
    with _new_run(out):
        tell(0, 2, "answering with the adapter")
        run = load_run(path, device=device, dense=True)
        decoder = run.student.decoder
        if not hasattr(decoder.lm, "peft_config"):
            raise RunError("no_adapter", f"{path} has no adapter to merge. Name a run that was trained with one.")
        before = scores_of(run, rows)
        unpack_nf4(decoder.lm)
        decoder.lm = decoder.lm.merge_and_unload(safe_merge=True)
        for weight in decoder.lm.parameters():  # as they will be read again
            weight.data = weight.data.to(torch.bfloat16).to(weight.dtype)
        tell(1, 2, "answering without it")
        after = scores_of(run, rows)
        table = [{"model": "adapter apart", **before}, {"model": "merged, bfloat16", **after}]
        both = before.keys() & after.keys()
        if worse := [n for n, sign in BETTER.items() if n in both and sign * (before[n] - after[n]) > drop]:
            told = ", ".join(f"{name.replace('_', ' ')} {before[name]:.4f} -> {after[name]:.4f}" for name in worse)
            raise RunError(
                "worse",
                f"merged into 16 bit it answers {len(rows)} questions worse: {told}; at most {drop:g} may be lost. "
                "Nothing was written. Keep the adapter apart, or allow more by --allow-drop.",
            )
        about = {
            "kind": "merge into 16 bit",
            "allowed_drop": drop,
            "scores": table,
            "rows": len(rows),
            "data": data_fingerprint(data),
            "run": _provenance(run.path),
        }
        decoder_settings = run.config.decoder.model_copy(update={"quantization": "none"})
        settings = {"decoder": decoder_settings, "adapter": read_settings({"kind": "none"})}
        whole = replace(run, config=run.config.model_copy(update=settings))
        return _write(whole, out, about, heads=run.path, own_base=True)


def line_between(start: Run, run: Run) -> Line:
    """What training moved between two students on one base. Raises RunError `other_start`."""
    ends = Line(_moved(start), _moved(run))
    shapes = [{name: tensor.shape for name, tensor in end.items()} for end in (ends.start, ends.run)]
    if odd := sorted(name for name, _ in shapes[0].items() ^ shapes[1].items()):
        raise RunError("other_start", f"{odd[0]} is not of one shape in both. Name what the run started from.")
    if start.base.directory != run.base.directory and start.base.weights != run.base.weights:
        raise RunError("other_start", "the two rest on different language models. Name what the run started from.")
    after = {name: tensor for name, tensor in ends.run.items() if ".lora_A." in name}
    if all(torch.equal(ends.start[name], tensor) for name, tensor in after.items()):
        return ends
    if any(tensor.any() for name, tensor in ends.start.items() if ".lora_B." in name):
        raise RunError(
            "other_start", "the adapters differ in A, which is never trained. Name what the run started from."
        )
    return Line({**ends.start, **after}, ends.run)  # a B of zeros adds nothing, whatever A was drawn


def choose(table: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
    """The share that forgets least among those whose answers are as good, and by what it was chosen.

    Raises DatasetError `nothing_known`.
    """
    if any("agrees" not in row for row in table):
        raise DatasetError(
            "nothing_known", f"no answer of the {SPLIT} split can be held against a fact. Name a --share."
        )
    least = max(row["agrees"] for row in table) - AS_GOOD
    row = min((row for row in table if row["agrees"] >= least), key=lambda row: (-row["general_kept"], row["share"]))
    return float(row["share"]), f"keeps most of its start among shares with at least {least:.4f} of the answers right"


def scores_of(run: Run, rows: Sequence[Example]) -> dict[str, float]:
    """Shares of drafted statements that are true, of shown ones that are false, of answers that agree with facts."""
    scored = AnswerScores(rows, run, len(rows)).measure(InstructionStage(run.student, run.config.loss))
    return {name.removeprefix("score_"): share for name, share in scored.items()}


@dataclass(frozen=True)
class General:
    """General questions with their answers, which no picture is shown with."""

    conversations: tuple[Conversation, ...]

    @classmethod
    def of(cls, data: Path) -> General:
        """Those of the handbook that a data set does not teach, evenly spread; all of them where it teaches each."""
        taught = {question for row in load_split(data, "train") for question, _ in row.turns}
        kept = [entry for entry in entries() if taught.isdisjoint(entry.questions)] or list(entries())
        chosen = kept[:: -(-len(kept) // GENERAL)]
        return cls(
            tuple(Conversation((Message("user", e.questions[0]), Message("assistant", e.answer))) for e in chosen)
        )

    def words(self, run: Run) -> tuple[Tensor, Tensor]:
        """The likeliest next token at every place of the answers, and the loss of the one that stands there [nat]."""
        likeliest, losses = [], []
        for begin in range(0, len(self.conversations), _BATCH):
            batch = run.processor(self.conversations[begin : begin + _BATCH])
            batch = {name: tensor.to(run.student.device) for name, tensor in batch.items()}
            with computing(run.student.device):
                logits = run.student.decoder(
                    batch["input_ids"],
                    context=None,
                    image_index=batch["image_index"],
                    turn_index=batch["turn_index"],
                    attention_mask=batch["attention_mask"],
                ).logits[:, :-1]
            labels = batch["labels"][:, 1:]
            answered = labels >= 0
            likeliest.append(logits.argmax(-1)[answered].cpu())
            losses.append(torch.nn.functional.cross_entropy(logits[answered].float(), labels[answered]).cpu())
        return torch.cat(likeliest), torch.stack(losses)

    @staticmethod
    def scores(words: tuple[Tensor, Tensor], start: tuple[Tensor, Tensor]) -> dict[str, float]:
        """The loss, and the share of places where the next token is still the one that the start would say."""
        kept = (words[0] == start[0]).double().mean()
        return {"general_loss": rounded(float(words[1].mean())), "general_kept": rounded(float(kept))}


@contextmanager
def _new_run(out: Path) -> Iterator[None]:
    """A directory that one process fills, and that held nothing but what this one was killed at."""
    file = out / RECORD
    with disk_errors(out, RunError, writes_only=False), locked(out / "lock", out, RunError, "busy_run"):
        with loading(file):
            ours = not file.exists() or "merge" in json.loads(file.read_bytes())
        if not ours or any((out / name).exists() for name in ("model", "checkpoints", MANIFEST)):
            raise RunError("other_run", f"{out} holds a run already. Choose another --out.")
        yield


def _rows(data: Path, limit: int | None) -> list[Example]:
    rows = sample_rows(held_out_split(data, SPLIT), limit)
    if not rows:
        raise DatasetError("no_validation", f"{data} has no {SPLIT} split to score answers on. Teach with more images.")
    return rows


def _start_of(path: Path, start: Path | None, device: str) -> tuple[Run, Path | None]:
    """The student that a run started from, with an adapter like its own, and the directory that has its heads."""
    config = load_config(resolve_run(path) / "config.yaml")
    if start is not None:
        began = load_run(start, device=device)
        attach_adapter(began.student, config.adapter)
        return began, began.path
    file = path / RECORD
    try:
        directory = start_of(config).directory
        if file.is_file():
            with loading(file):
                before = dict(json.loads(file.read_bytes()).get("base") or {})
            now = base_files(config, before)
            if changed := [
                name for name, entry in before.items() if now.get(name, {}).get("sha256") != entry["sha256"]
            ]:
                raise RunError("other_start", f"{changed[0]} has changed since the run began.")
        set_seed(config.seed)
        return start_student(config, device=device), directory
    except MaemiError as error:
        raise RunError("other_start", f"{error.message} Name what {path} started from by --start.") from None


def _provenance(directory: Path | None) -> dict[str, str] | None:
    """Where a model lies and what identifies it; None where it was made from a base alone."""
    if directory is None:
        return None
    return {"path": str(directory), "manifest_sha256": fingerprint(directory / MANIFEST)}


def _moved(run: Run) -> dict[str, Tensor]:
    """What training can have moved, and the adapter's A, by name."""
    adapter = {name: tensor for name, tensor in run.student.state_dict().items() if ".lora_" in name}
    return {name: tensor.detach().clone() for name, tensor in (run.student.student_state() | adapter).items()}


def _write(
    run: Run, out: Path, about: Mapping[str, Any], *, heads: Path | None, own_base: bool = False
) -> dict[str, Any]:
    """The record first, then the model, whose presence says that both are whole."""

    def write(staging: Path) -> None:
        from safetensors.torch import save_file

        write_model(run, staging, card=_card(about))
        if heads is not None and (heads / "heads").is_dir():
            shutil.copytree(heads / "heads", staging / "heads")
        if own_base:
            lm, base = run.student.decoder.lm, staging / "base"
            (staging / BASE_RECORD).unlink(missing_ok=True)
            shutil.rmtree(base, ignore_errors=True)
            base.mkdir()
            weights = {name: weight.detach().to(torch.bfloat16).cpu() for name, weight in lm.named_parameters()}
            save_file({n: w.contiguous() for n, w in weights.items()}, base / WEIGHTS, metadata={"format": "pt"})
            settings = lm.config.to_dict() | {"dtype": "bfloat16"}
            settings.pop("quantization_config", None)
            (base / "config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    write_file(out / RECORD, json.dumps({"merge": dict(about)}, indent=1) + "\n")
    write_directory(out / "model", write)
    return {"out": str(out), **about}


def _card(about: Mapping[str, Any]) -> str:
    """The model card: what was joined, and every score it was judged by."""
    scores = about["scores"]
    columns = list(dict.fromkeys(name for row in scores for name in row))
    lines = [columns, ["---"] * len(columns), *([str(row.get(name, "")) for name in columns] for row in scores)]
    table = "\n".join(f"| {' | '.join(name.replace('_', ' ') for name in line)} |" for line in lines)
    said = "\n".join(f"* {name.replace('_', ' ')}: {value}" for name, value in about.items() if name != "scores")
    return f"---\nlibrary_name: maemi\n---\n\n# A MAEMI student by {about['kind']}\n\n{said}\n\n{table}\n"

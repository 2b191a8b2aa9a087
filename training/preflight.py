"""What is wrong with a training before its first step: data, lengths, what learns, memory. Trains nothing.

What would end or spoil the run is a stop; what only makes it worse is a note; each is one sentence with what to do.
Knows nothing about how any of it is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assistant.checkpoint import Run
from assistant.config import Config
from assistant.errors import DatasetError, RunError
from assistant.precision import device_of
from training.data import CACHE_BYTES, Collator, Example, TrainingSet, decode_image
from training.planning.memory import GIB, USABLE, fitting_settings_here, plan_here
from training.quoting import digest
from training.stages import planned

_LOOKED_AT = 2000
"""Pictures that are decoded, and conversations whose tokens are counted, before a training; a check looks at all."""
UNEVEN = 10
"""A class with so many times the pictures of another is said to outweigh it."""


@dataclass(frozen=True)
class Preflight:
    """What was found. Sizes are in bytes."""

    splits: Mapping[str, Mapping[str, Any]]
    """Per split: rows, pictures, groups, rows by their number of images, and pictures by class."""
    tokens: Mapping[str, Any]
    """Of the first epoch's conversations: how many, shortest, median, longest, how many are cut or too long."""
    loss_view: Sequence[Mapping[str, Any]]
    """One conversation as the student reads it: pieces of text, and whether they carry loss."""
    stages: Sequence[Mapping[str, Any]]
    """In their order: name, steps, losses and what learns."""
    trained: Sequence[Mapping[str, Any]]
    """What learns: name, number of tensors and parameters, peak learning rate."""
    frozen_parameters: int
    memory: Mapping[str, Any]
    stops: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def memory_here(config: Config, data: Path, *, device: str, processes: int = 1) -> dict[str, Any]:
    """Predicted peak of one step [byte] and what there is for it, in all and now, with advice where it will not fit.

    Raises ConfigError for a base or tower that is not known.
    """
    device = device_of(device)
    share = max(1, config.training.batch_size // processes)
    config = config.model_copy(update={"training": config.training.model_copy(update={"batch_size": share})})
    parts = dict(plan_here(config, device).parts)
    if device == "cpu":
        parts = {name: size * processes for name, size in parts.items()}
        files = sum(file.stat().st_size for file in data.glob("data/*.parquet"))
        parts["pictures in memory"] = files + min(CACHE_BYTES, 4 * files)
    predicted, (total, free) = sum(parts.values()), _memory_of(device)
    advice = ""
    if predicted > USABLE * total:
        fix = fitting_settings_here(config, device, (USABLE * total - parts.get("pictures in memory", 0)) / processes)
        advice = (
            f"One step would take about {predicted / GIB:.1f} GiB and this {device} has {total / GIB:.1f} GiB. "
            + (f"Set --set {' --set '.join(fix)}" if fix else "No setting makes it fit: take a smaller decoder.base")
            + ", or try it all the same with --force."
        )
    return {"device": device, "predicted": predicted, "total": total, "free": free, "parts": parts, "advice": advice}


def require_memory(memory: Mapping[str, Any]) -> None:
    """Raise RunError `preflight` where a step will not fit: before a student is loaded that could not be."""
    if memory["advice"]:
        raise RunError("preflight", memory["advice"])


def look(
    run: Run | None,
    groups: Sequence[Mapping[str, Any]],
    dataset: TrainingSet | None,
    collator: Collator | None,
    splits: Mapping[str, Sequence[Example]],
    memory: Mapping[str, Any],
    *,
    limit: int | None = _LOOKED_AT,
) -> Preflight:
    """Look at everything before the first step; `limit` bounds pictures and conversations, None looks at all.

    Without a student only data and memory are looked at.
    """
    splits = {name: rows for name, rows in splits.items() if rows}
    stops, notes = ([memory["advice"]] if memory["advice"] else []), _split_notes(splits)
    if not stops and memory["predicted"] > memory["free"]:
        notes.append("Other programs hold memory that one step will need: end some before you train.")
    for split, rows in splits.items():
        if broken := _unreadable(rows, limit):
            told = f"{len(broken)} pictures of {split} cannot be read (row {broken[0]}{', ...' * (len(broken) > 1)})"
            (stops if split == "train" else notes).append(f"{told}. Teach them again.")
    tokens: dict[str, Any] = {}
    view: list[dict[str, Any]] = []
    if dataset is not None and collator is not None:
        tokens, view = _token_lengths(dataset, collator, limit), _loss_view(dataset, collator)
        notes += _token_notes(tokens)
        if not any(piece["loss"] for piece in view):
            stops.append("No token of the first conversation carries loss: nothing would be learned of its answers.")
    trained, frozen = _trained(run, groups) if run is not None else ([], 0)
    return Preflight(
        splits={name: _counted(rows) for name, rows in splits.items()},
        tokens=tokens,
        loss_view=view,
        stages=planned(run.config) if run is not None else [],
        trained=trained,
        frozen_parameters=frozen,
        memory=memory,
        stops=tuple(stops),
        notes=tuple(notes),
    )


def require_sound(found: Preflight) -> None:
    """Raise RunError `preflight` with the first thing that would end or spoil the training."""
    if found.stops:
        raise RunError("preflight", found.stops[0])


# ---------------------------------------------------------------------------------- data


def _counted(rows: Sequence[Example]) -> dict[str, Any]:
    pictures = {digest(png): row for row in rows for png in row.images}
    return {
        "rows": len(rows),
        "pictures": len(pictures),
        "groups": len({row.group for row in rows}),
        "images_per_row": {str(n): count for n, count in sorted(Counter(len(row.images) for row in rows).items())},
        "classes": dict(sorted(_classes(rows).items())),
    }


def _classes(rows: Sequence[Example]) -> Counter[str]:
    """Pictures of each class, each picture once."""
    return Counter({row.images[0]: row.label for row in rows if row.label and len(row.images) == 1}.values())


def _split_notes(splits: Mapping[str, Sequence[Example]]) -> list[str]:
    """What splits share or lack, and classes that outweigh others."""
    notes = [] if "validation" in splits else ["There is no validation split: the last step's model is kept."]
    train = splits["train"]
    known, groups, classes = (
        {d for row in train for d in map(digest, row.images)},
        {r.group for r in train},
        _classes(train),
    )
    for split in splits.keys() - {"train"}:
        rows = splits[split]
        twice = {d for row in rows for d in map(digest, row.images)} & known
        shared = {row.group for row in rows} & groups
        new = _classes(rows).keys() - classes.keys()
        if twice:
            notes.append(f"{len(twice)} pictures of {split} are also in train: its scores will flatter. Teach again.")
        if shared:
            some = ", ".join(sorted(shared)[:3])
            notes.append(f"{len(shared)} groups of {split} are also in train ({some}): its scores will flatter.")
        if new:
            notes.append(f"Classes of {split} that train does not have: {', '.join(sorted(new))}.")
    if len(classes) > 1 and (few := min(classes, key=classes.__getitem__)):
        most = max(classes, key=classes.__getitem__)
        if classes[most] >= UNEVEN * classes[few]:
            notes.append(
                f"{most} has {classes[most]} pictures and {few} has {classes[few]}: the first will be favoured."
            )
    return notes


def _unreadable(rows: Sequence[Example], limit: int | None) -> list[str]:
    """Ids of rows whose pictures cannot be decoded, of at most `limit` pictures spread over the split."""
    owners = {png: row.id for row in rows for png in row.images}
    broken = []
    for png in _spread(list(owners), limit):
        try:
            decode_image(png)
        except DatasetError:
            broken.append(owners[png])
    return broken


def _spread(everything: Sequence[Any], limit: int | None) -> Sequence[Any]:
    return everything if limit is None or len(everything) <= limit else everything[:: -(-len(everything) // limit)]


# ---------------------------------------------------------------------------------- tokens


def _token_lengths(dataset: TrainingSet, collator: Collator, limit: int | None) -> dict[str, Any]:
    """Lengths of the first epoch's conversations as they are drawn, before anything is cut."""
    lengths, cut, too_long = [], 0, 0
    for index in _spread(range(len(dataset)), limit):
        conversation = dataset.conversation(index)[0]
        kept = collator.cut(conversation)
        lengths.append(len(collator.processor.encode(conversation).input_ids))
        cut += len(kept.messages) < len(conversation.messages)
        too_long += len(collator.processor.encode(kept).input_ids) > collator.max_tokens
    lengths.sort()
    shape = {"shortest": lengths[0], "median": lengths[len(lengths) // 2], "longest": lengths[-1]}
    return {"conversations": len(lengths), **shape, "cut": cut, "too_long": too_long, "max_tokens": collator.max_tokens}


def _token_notes(tokens: Mapping[str, Any]) -> list[str]:
    most, notes = tokens["max_tokens"], []
    if tokens["cut"]:
        notes.append(
            f"{tokens['cut']} of {tokens['conversations']} conversations lose their last turns to training.max_tokens "
            f"({most}); the longest has {tokens['longest']}. Raise it, or lower training.turns."
        )
    if tokens["too_long"]:
        notes.append(
            f"{tokens['too_long']} of {tokens['conversations']} conversations are longer than training.max_tokens "
            f"({most}) with their first turn alone, and are not cut: they take more memory than predicted."
        )
    return notes


def _loss_view(dataset: TrainingSet, collator: Collator) -> list[dict[str, Any]]:
    """The first conversation of the first epoch, decoded piece by piece as its tokens carry loss or not."""
    encoded = collator.processor.encode(collator.cut(dataset.conversation(0)[0]))
    pieces: list[tuple[bool, list[int]]] = []
    for token, carries in zip(encoded.input_ids, encoded.is_answer, strict=True):
        if not pieces or pieces[-1][0] != carries:
            pieces.append((carries, []))
        pieces[-1][1].append(token)
    return [
        {"text": collator.processor.tokenizer.decode(tokens), "loss": carries, "tokens": len(tokens)}
        for carries, tokens in pieces
    ]


# ---------------------------------------------------------------------------------- what learns, and memory


def _trained(run: Run, groups: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """What learns, by the part of the student it belongs to, and how many parameters do not."""
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    parts: dict[tuple[str, float], list[int]] = {}
    frozen = 0
    for name, parameter in run.student.named_parameters():
        if id(parameter) not in rates:
            frozen += parameter.numel()
            continue
        part = name.partition(".")[0]
        if part == "decoder":
            part = "decoder.lm adapter" if ".lm." in f".{name}" else "decoder cross-attention"
        parts.setdefault((part, rates[id(parameter)]), []).append(parameter.numel())
    named = [
        {"name": part, "tensors": len(sizes), "parameters": sum(sizes), "learning_rate": rate}
        for (part, rate), sizes in parts.items()
    ]
    return named, frozen


def _memory_of(device: str) -> tuple[int, int]:
    """What a training could have of a device at most, and what of that is free now [byte]."""
    if device.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return total, free
    told = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    sizes = {name: int(size.split()[0]) * 1024 for name, _, size in (line.partition(":") for line in told)}
    total = sizes["MemTotal"]
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's
    if limit.is_file() and (most := limit.read_text(encoding="ascii").strip()).isdigit():
        total = min(total, int(most))
    return total, min(total, sizes["MemAvailable"])

"""What each part brings, one switch at a time: means over seeds, with what stays the same written beside them.

    python -m benchmarks.ablations --real ../shared/data/open_sem ../shared/data/more_sem [--data DATASET]
        [--parts table,encoders,strategies,sampling,adapters,student] [--run RUN] [--seeds 5] [--cache CACHE]
        [--out benchmarks/ablations.json]

table: MultiFusion-LLM's: all, without HNF, without the texts of the classes, without attention; ten drawn classes,
whose texts are the authored sheets, six pictures each to learn from. encoders: each way to see a picture alone, with
the same head and steps, on the families of real micrographs. strategies: how three of them are fused. sampling: which
examples stand before a question to the bundled student, on drawn pictures. adapters: DyQLoRA-FA, LoRA and DyA-MoPE on
SmolLM2-135M, by the loss of a short language stage on DATASET, taught by configs/student.yaml, and at lower ranks.
student: what RUN draws on when it is asked about the test split of DATASET.

Figures of heads are of the fused one alone. All are of groups that taught nothing, and nothing is chosen by them. A
seed draws the weights and the order of the rows, for drawn classes the pictures, for a student the rows. What is done
is kept in the report: the same command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pickle
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support

from assistant.adapters import draw_ranks, hold_inactive, set_rank
from assistant.adapters.model import decoder_linears
from assistant.config import load_config
from assistant.demonstrations import Shots
from assistant.encoders.vector import VectorEncoder
from assistant.inference import Assistant, Look
from assistant.micrograph import Micrograph, read_micrograph
from assistant.plain import FUSED
from data_gen.drawing.synth import CLASSES, render
from data_gen.knowledge import SHEETS
from training.attention import SDPA_FLOAT32
from training.data import Example, load_split
from training.evaluate import answer_examples, as_served, encode_examples
from training.fit import ENCODERS, Choices, build, truths
from training.fit import train_heads as train_head
from training.heads import CLASS_OF
from training.labelled import LabelledRow, LabelledSet
from training.pictures import computed, extractor_of
from training.scores import factual_report, text_report
from training.stages import LanguageStage
from training.trainer import adapter_parameters, cosine_schedule, prepare
from training.validation import Validation

ENCODERS.update(vit=VectorEncoder, hnf=VectorEncoder)  # the student's two encoders, apart
TARGET = "class"
TAUGHT, ASKED = 6, 6
"""Drawn pictures of a class that teach, and that are asked about."""
SIZE = (240, 320)
TABLE: dict[str, tuple[tuple[str, ...], tuple[str, ...], bool]] = {
    "all": (("vit", "hnf"), (), True),
    "without HNF": (("vit",), (), True),
    "without text": (("vit", "hnf"), (), False),
    "without MHA": (("vit", "hnf"), ("fit.strategy=early", "fit.class_attention=false"), True),
}
"""Modalities, settings, and whether the texts of the classes are there."""
WAYS = {name: (name,) for name in ("texture", "image", "vit", "hnf")} | {"vit + hnf": ("vit", "hnf")}
"""Of seeing; `image` is the frozen tower."""
STRATEGIES = ("early", "intermediate", "late", "gated")
FUSES = ("texture", "image", "hnf")
SAMPLING = ("random", "similar", "balanced")
SHOWN, SHOTS, QUESTIONS, LABELS = 4, 4, 5, 4
TOP_RANK, RANKS = 16, (4, 8, 16)
_RANGE = ("adapter.r_min=4", "adapter.r_max=16")
ADAPTERS: dict[str, tuple[tuple[str, ...], bool]] = {
    "DyQLoRA-FA": (_RANGE, True),
    "the same, always at rank 16": (_RANGE, False),
    "LoRA": (("adapter.kind=none",), False),
    "DyA-MoPE, 4 experts": (("adapter.kind=dya_mope", "adapter.experts=4", *_RANGE), True),
}
"""Settings of each, and whether its rank is drawn anew for every step; LoRA is PEFT's own, of the top rank."""
SIDE_BY_SIDE = 2
TAKEN = ("", "ViT", "HNF", "grounding", "picture", "facts", "picture and facts")
ROWS_ASKED = 200
WORDS = (
    *("training.turns=4", "training.validate_on=16", "training.augment=false"),
    f"training.batch_size={SIDE_BY_SIDE}",
)
STEPS = 40
Run = tuple[str, Callable[[int], dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, nargs="+", default=[])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--parts", default="table,encoders,strategies,sampling,adapters,student")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--steps", type=int, help="of a head; the defaults of maemi fit where it is not given")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    report["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    for part in args.parts.split(","):
        done = report.setdefault(part, {})
        for name, once in PARTS[part](args):
            runs = done.setdefault(name, {"runs": {}})["runs"]
            for seed in range(args.seeds):
                if str(seed) not in runs:
                    began = time.process_time()
                    runs[str(seed)] = once(seed) | {"cpu_s": round(time.process_time() - began, 1)}
                    done[name] |= summed(list(runs.values()))
                    args.out.write_text(json.dumps(report, indent=1) + "\n")
                    print(part, name, seed, runs[str(seed)], flush=True)


def summed(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean, least and largest of every figure over the seeds."""
    figures = {name: [run[name] for run in runs] for name in runs[0]}
    return {
        "seeds": len(runs),
        **{name: [float(np.mean(held)), min(held), max(held)] for name, held in figures.items()},
    }


# ---------------------------------------------------------------------------------- heads


def table(args: argparse.Namespace) -> Iterator[Run]:
    for name, (modalities, settings, texts) in TABLE.items():
        yield (
            name,
            lambda seed, m=modalities, s=settings, t=texts: scored(  # type: ignore[misc]
                *drawn(args.cache, seed), m, seed, steps_of(args, *s), SHEETS if t else None
            ),
        )


def encoders(args: argparse.Namespace) -> Iterator[Run]:
    for name, modalities in WAYS.items():
        yield name, lambda seed, m=modalities: scored(*real(args), m, seed, steps_of(args))  # type: ignore[misc]


def strategies(args: argparse.Namespace) -> Iterator[Run]:
    for name in STRATEGIES:
        yield (
            name,
            lambda seed, n=name: scored(  # type: ignore[misc]
                *real(args), FUSES, seed, steps_of(args, f"fit.strategy={n}")
            ),
        )


def steps_of(args: argparse.Namespace, *settings: str) -> tuple[str, ...]:
    """Settings, with the steps that were asked for."""
    return (*settings, f"fit.least_steps={args.steps}", f"fit.most_steps={args.steps}") if args.steps else settings


def scored(
    train: Sequence[LabelledRow],
    test: Sequence[LabelledRow],
    modalities: Sequence[str],
    seed: int,
    settings: Sequence[str],
    knowledge: Path | None = None,
) -> dict[str, float]:
    """Precision, recall and F1, the mean over classes, of a fused head on some modalities."""
    config = load_config(None, [f"seed={seed}", *settings])
    parts = [
        [LabelledRow(row.name, None, {n: row.values[n] for n in modalities}, row.truth, row.group, "") for row in rows]
        for rows in (train, test)
    ]
    classes = tuple(sorted({str(row.truth[TARGET]) for row in train}))
    labelled = LabelledSet(parts[0], {TARGET: ""}, {TARGET: classes}, {}, [], [])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = build(labelled, parts[0], config.fit, Choices(knowledge=knowledge))
        items = [predictor.items(row.values) for row in parts[0]]
        train_head(predictor, items, truths(predictor.targets, parts[0]), config.fit, lambda *told: None)
    asked = [predictor.items(row.values) for row in parts[1]]
    (told,) = predictor.told(asked, predictor.outputs(asked)[0])
    said = [classes[place] for place in told[FUSED].argmax(axis=1)]
    truth = [str(row.truth[TARGET]) for row in parts[1]]
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, said, labels=sorted(set(truth)), average="macro", zero_division=0
    )
    right = float(np.mean([a == b for a, b in zip(said, truth, strict=True)]))
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "accuracy": right}


def drawn(cache: Path, seed: int) -> tuple[list[LabelledRow], list[LabelledRow]]:
    """Rows of drawn pictures that teach and that are asked about, with what the student sees."""

    def make() -> list[LabelledRow]:
        assistant, rows = Assistant.load(), []
        with TemporaryDirectory() as folder:
            for label in CLASSES:
                for number in range(TAUGHT + ASKED):
                    values = seen_by(assistant, read_micrograph(draw(Path(folder), label, seed, number)))
                    name = f"{label} {number}"
                    rows.append(LabelledRow(name, None, values, {TARGET: label}, name, ""))
        return rows

    rows = kept(cache / f"drawn-{seed}.pickle", make)
    place = [number % (TAUGHT + ASKED) for number in range(len(rows))]
    return [r for r, p in zip(rows, place, strict=True) if p < TAUGHT], [
        r for r, p in zip(rows, place, strict=True) if p >= TAUGHT
    ]


def real(args: argparse.Namespace) -> tuple[list[LabelledRow], list[LabelledRow]]:
    """Rows of real pictures by family: those of train and val teach, those of test are asked about."""

    def make() -> list[LabelledRow]:
        assistant, looks, rows = Assistant.load(), extractor_of("tower"), []
        for folder in args.real:
            with (folder / "index.csv").open(newline="", encoding="utf-8") as index:
                for row in csv.DictReader(index):
                    if row["label"] in CLASS_OF:
                        micrograph = read_micrograph(folder / row["path"])
                        values = computed(micrograph, looks) | seen_by(assistant, micrograph)
                        truth = {TARGET: CLASS_OF[row["label"]]}
                        rows.append(LabelledRow(row["path"], None, values, truth, row["group"], row["split"]))
        return rows

    rows = kept(args.cache / "real.pickle", make)
    train, test = ([r for r in rows if (r.split == "test") == asked] for asked in (False, True))
    known = {row.truth[TARGET] for row in train}
    return train, [row for row in test if row.truth[TARGET] in known]


def draw(folder: Path, label: str, seed: int, number: int) -> Path:
    """A drawn picture as a file."""
    pixels = render(label, seed=10_000 * (seed + 1) + number, size=SIZE).pixels
    file = folder / f"{label}-{number}.png"
    Image.fromarray(pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)).save(file)
    return file


def seen_by(assistant: Assistant, micrograph: Micrograph) -> dict[str, np.ndarray]:
    """What the student's two encoders see."""
    vector, width = assistant.encode([micrograph])[1][0].float().cpu().numpy(), assistant.student.vit.dim
    return {"vit": vector[:width], "hnf": vector[width:]}


def kept(file: Path, make: Callable[[], list[LabelledRow]]) -> list[LabelledRow]:
    """Rows that are made once; the file is our own, of this benchmark alone."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(make()))
    rows: list[LabelledRow] = pickle.loads(file.read_bytes())
    return rows


# ---------------------------------------------------------------------------------- the student


def sampling(args: argparse.Namespace) -> Iterator[Run]:
    assistant = Assistant.load()

    def once(seed: int, choice: str) -> dict[str, float]:
        random, right = np.random.default_rng(seed), []
        labels = random.permutation(list(CLASSES))[:LABELS].tolist()
        with TemporaryDirectory() as folder:
            drawings = [(label, number) for label in labels for number in range(SHOWN + QUESTIONS)]
            files = {(label, number): draw(Path(folder), label, seed, number) for label, number in drawings}
            examples = {label: [files[label, number] for number in range(SHOWN)] for label in labels}
            for label in labels:
                for number in range(SHOWN, SHOWN + QUESTIONS):
                    shots = Shots(SHOTS, choice, seed)  # type: ignore[arg-type]
                    told = assistant.classify([files[label, number]], labels, examples=examples, shots=shots)[0]
                    shares = {name: share for name, share in told if name in labels}
                    right.append(max(shares, key=lambda name: shares[name]) == label)
        return {"accuracy": float(np.mean(right))}

    for choice in SAMPLING:
        yield choice, lambda seed, c=choice: once(seed, c)  # type: ignore[misc]


def adapters(args: argparse.Namespace) -> Iterator[Run]:
    """What an adapter has learned of the words after the same steps, and what is left of it at a lower rank."""
    if args.data is None:
        raise SystemExit("adapters needs --data, a data set of maemi teach")
    taught, asked = load_split(args.data, "train"), load_split(args.data, "validation")
    for name, of in ADAPTERS.items():
        yield name, lambda seed, o=of: words_learned(taught, asked, seed, *o)  # type: ignore[misc]


def words_learned(
    taught: Sequence[Example], asked: Sequence[Example], seed: int, settings: tuple[str, ...], drawn: bool
) -> dict[str, float]:
    """Loss on conversations of the validation split after a short language stage, at every rank that can be cut to."""
    config = load_config(Path("configs/student.yaml"), [*WORDS, f"seed={seed}", *settings])
    run, dataset, collator = prepare(config, taught, device="cpu")
    lm, student = run.student.decoder.lm, run.student
    student.requires_grad_(False)
    ours = hasattr(lm, "peft_config")
    if not ours:
        lora = LoraConfig(r=TOP_RANK, lora_alpha=TOP_RANK, target_modules=decoder_linears(lm))
        lm = student.decoder.lm = get_peft_model(lm, lora, autocast_adapter_dtype=False)
    lm.set_attn_implementation(SDPA_FLOAT32)
    learning = adapter_parameters(lm)
    optimizer = torch.optim.AdamW(learning, lr=config.training.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = cosine_schedule(optimizer, STEPS, config.training.warmup)
    if ours:
        hold_inactive(lm, optimizer)
    stage = LanguageStage(student).train()
    order = np.random.default_rng(seed).permutation(len(dataset))
    for step, places in enumerate(order[: STEPS * SIDE_BY_SIDE].reshape(STEPS, SIDE_BY_SIDE)):
        if drawn:
            draw_ranks(lm, seed, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = stage(**collator([dataset[int(place)] for place in places]))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, config.training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    validation = Validation(asked, config, collator)
    told = {"trained": float(sum(p.numel() for p in learning))}
    for rank in RANKS if ours else (TOP_RANK,):
        if ours:
            set_rank(lm, rank)
        stage.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            losses = [stage(**batch, counts=validation.counts)["loss"] for batch in validation.batches]
        told[f"loss at rank {rank}"] = float(torch.stack(losses).sum())
    return told


def student(args: argparse.Namespace) -> Iterator[Run]:
    """What a trained student draws on, taken away when it is asked; a seed draws the rows of the test split."""
    if args.data is None:
        raise SystemExit("student needs --data, a data set of maemi teach")
    assistant, rows = Assistant.load(args.run), load_split(args.data, "test")
    memory_kind, config = assistant.student.memory_kind, assistant.run.config
    squares = (config.image_size // config.vit.patch_size) ** 2 + 1  # [CLS] before them

    @cache
    def asked(seed: int) -> tuple[list[Example], dict[bytes, Look]]:
        sample = [rows[n] for n in np.random.default_rng(seed).permutation(len(rows))[:ROWS_ASKED]]
        looks = encode_examples(assistant, sample)
        return as_served(sample, looks), looks

    def once(seed: int, taken: str) -> dict[str, float]:
        sample, looks = asked(seed)
        if taken in ("ViT", "HNF"):
            kept = slice(squares, None) if taken == "ViT" else slice(squares)
            looks = {png: replace(look, memory=look.memory[kept]) for png, look in looks.items()}
        assistant.student.memory_kind = "image" if taken == "grounding" else memory_kind
        facts, picture = taken not in ("facts", "picture and facts"), not taken.startswith("picture")
        if facts and not picture:
            grey = assistant.blind_look()
            looks = {png: replace(look, memory=grey.memory) for png, look in looks.items()}
        answers = answer_examples(assistant, sample, looks, with_aux=facts, blind=not facts and not picture)
        assistant.student.memory_kind = memory_kind
        captions, others = (
            text_report(sample, {"seen": answers}, lambda row, wanted=wanted: (row.task == "caption") is wanted)
            for wanted in (True, False)
        )
        right = factual_report(sample, {"seen": answers})["accuracy"]
        return {"facts_right": right, "caption_bleu2": captions["bleu2"], "vqa_bleu2": others["bleu2"]}

    for taken in TAKEN:
        yield f"without {taken}" if taken else "as used", lambda seed, t=taken: once(seed, t)  # type: ignore[misc]


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Run]]] = {
    "table": table,
    "encoders": encoders,
    "strategies": strategies,
    "sampling": sampling,
    "adapters": adapters,
    "student": student,
}

if __name__ == "__main__":
    main()

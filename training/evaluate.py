"""Evaluation that can be believed: every score beside its blind score, baselines and intervals. Knows no training.

Text is scored against all wordings of the same facts, classification against the labels, facts against what was
measured or drawn, and every statement against what is known of its picture. The blind score is the same student with a
grey image and without auxiliary text: what it knows from the question alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assistant.answers import checked
from assistant.chat import Conversation, Message
from assistant.inference import Assistant, Look
from assistant.measure import Facts, fact_line, filled, read_statements, sentences
from assistant.progress import Progress
from training.baselines import convolutional_accuracy, linear_probe_accuracy
from training.data import Example, decode_image, load_split
from training.fact_check import agrees, first_choice
from training.metrics import (
    TEXT_METRICS,
    bootstrap_interval,
    classification_scores,
    majority_answers,
    nearest_question_answers,
    text_scores,
)

VERDICTS = ("true", "false", "unsupported", "withheld")
ANSWER_TOKENS = 96
_BATCH = 32
GREY = 0.5
NO_FACTS = Facts("uniform", ())


def evaluate(
    run: Path | None,
    data: Path,
    *,
    device: str = "auto",
    limit: int | None = None,
    baselines: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores of a run (None: the bundled student) on the test split; `limit` bounds the rows of each task.

    Raises RunError and DatasetError.
    """
    assistant = Assistant.load(run, device)
    return evaluate_assistant(assistant, data, limit=limit, baselines=baselines, progress=progress)


def evaluate_assistant(
    assistant: Assistant,
    data: Path,
    *,
    limit: int | None = None,
    baselines: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`evaluate` for a student that is already loaded."""
    tell = progress or (lambda done, total, text: None)
    train, test = load_split(data, "train"), load_split(data, "test")
    rows = sample_rows(test, limit)
    looks = encode_examples(assistant, rows)
    answers: dict[str, list[str]] = {}
    for number, (name, with_aux, blind) in enumerate(
        [("seen", True, False), ("without_aux", False, False), ("blind", False, True)]
    ):
        tell(number, 4, f"answering, {name.replace('_', ' ')}")
        answers[name] = answer_examples(assistant, rows, looks, with_aux=with_aux, blind=blind)
    tell(3, 4, "classifying")
    report: dict[str, Any] = {
        "caption": text_report(rows, answers, lambda row: row.task == "caption"),
        "vqa": text_report(rows, answers, lambda row: row.task != "caption"),
        "classification": classification_report(assistant, rows, looks),
        "factual": factual_report(rows, answers),
        "statements": statement_report(rows, answers["seen"]),
        "facets": facet_report(rows, answers),
        "baselines": baseline_report(assistant, train, rows, classify=baselines),
        "n": {
            "rows": len(rows),
            "images": len({row.images_key for row in rows}),
            "groups": len({r.group for r in rows}),
        },
        "model": assistant.name,
    }
    tell(4, 4, "done")
    return report


def sample_rows(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """At most `limit` rows of each task, spread evenly over the split."""
    if limit is None:
        return list(examples)
    kept: list[Example] = []
    for task in sorted({example.task for example in examples}):
        rows = [example for example in examples if example.task == task]
        step = max(1.0, len(rows) / limit)
        kept += [rows[int(i * step)] for i in range(min(limit, len(rows)))]
    return kept


def encode_examples(assistant: Assistant, rows: Sequence[Example]) -> dict[bytes, Look]:
    """Encode every image of the rows once; facts come from the data set's auxiliary text, not measured anew."""
    pngs = list(dict.fromkeys(image for row in rows for image in row.images))
    looks: dict[bytes, Look] = {}
    for start in range(0, len(pngs), _BATCH):
        batch = pngs[start : start + _BATCH]
        micrographs = [decode_image(png) for png in batch]
        memory, summary = assistant.encode(micrographs)
        for png, micrograph, m, s in zip(batch, micrographs, memory, summary, strict=True):
            looks[png] = Look(micrograph, NO_FACTS, "", m, s)
    return looks


def answer_examples(
    assistant: Assistant, rows: Sequence[Example], looks: dict[bytes, Look], *, with_aux: bool, blind: bool
) -> list[str]:
    """Greedy answers to the questions of all rows, in padded batches of similar length."""
    grey = blind_look(assistant) if blind else None
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].images), len(rows[i].aux), len(rows[i].question)))
    answers = [""] * len(rows)
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        shown = [[grey or looks[png] for png in rows[i].images] for i in batch]
        conversations = [
            conversation_of(rows[i], aux=facts_line(assistant, rows[i]) if with_aux else "") for i in batch
        ]
        texts = assistant.complete(conversations, shown, max_new_tokens=ANSWER_TOKENS)
        for i, text in zip(batch, texts, strict=True):
            answers[i] = "".join(filled([text], rows[i].known))
    return answers


def facts_line(assistant: Assistant, row: Example) -> str:
    """What stands of a row's facts in the prompt, as the student was taught to read it."""
    return fact_line(row.known) if assistant.by_reference else row.aux


def conversation_of(row: Example, *, aux: str) -> Conversation:
    """A row ready for its answer, after the turns before it."""
    messages: list[Message] = []
    for question, answer in row.history:
        messages += [Message("user", question), Message("assistant", answer)]
    messages.append(Message("user", row.question))
    return Conversation((replace(messages[0], images=len(row.images), aux=aux), *messages[1:]))


def blind_look(assistant: Assistant) -> Look:
    """A grey image: the student sees that there is one, and nothing in it."""
    size = assistant.processor.image_size
    memory, summary = assistant.encode_pixels(torch.full((1, 1, size, size), GREY))
    blank = decode_image(_grey_png(size))
    return Look(blank, NO_FACTS, "", memory[0], summary[0])


def text_report(
    rows: Sequence[Example], answers: dict[str, list[str]], wanted: Callable[[Example], bool]
) -> dict[str, Any]:
    """Text metrics of some rows: as asked, without auxiliary text, blind, against one wording, with an interval."""
    chosen = [i for i, row in enumerate(rows) if wanted(row)]
    if not chosen:
        return {"n": 0}
    references = [list(dict.fromkeys((rows[i].answer, *rows[i].references))) for i in chosen]
    report: dict[str, Any] = {"n": len(chosen)}
    for suffix, name in (("", "seen"), ("_without_aux", "without_aux"), ("_blind", "blind")):
        scores = text_scores([answers[name][i] for i in chosen], references)
        for metric in TEXT_METRICS:
            report[f"{metric}{suffix}"] = _rounded(scores.mean[metric])
            if not suffix:
                report[f"{metric}_std"] = _rounded(scores.std[metric])
                report[f"{metric}_single"] = _rounded(scores.single[metric])
        if not suffix:
            groups = [rows[i].group for i in chosen]
            low, high = bootstrap_interval(scores.items["bleu2"], groups, seed=0)
            report["bleu2_interval"] = [_rounded(low), _rounded(high)]
    return report


def facet_report(rows: Sequence[Example], answers: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """BLEU-2 as asked and blind, and how many rows, per facet."""
    report = {}
    for facet in sorted({row.facet for row in rows}):
        scores = text_report(rows, answers, lambda row, facet=facet: row.facet == facet)  # type: ignore[misc]
        report[facet] = {name: scores[name] for name in ("bleu2", "bleu2_without_aux", "bleu2_blind", "n")}
    return report


def factual_report(rows: Sequence[Example], answers: dict[str, list[str]]) -> dict[str, Any]:
    """Share of answers whose class, yes or no, counts and sizes agree with what is known, where anything is."""
    report: dict[str, Any] = {}
    for name, key in (("seen", "accuracy"), ("without_aux", "without_aux"), ("blind", "blind")):
        verdicts = [agrees(text, row.answer, row.label) for text, row in zip(answers[name], rows, strict=True)]
        known = [(verdict, row.group) for verdict, row in zip(verdicts, rows, strict=True) if verdict is not None]
        report[key] = _rounded(float(np.mean([verdict for verdict, _ in known]))) if known else None
        if name == "seen" and known:
            report["n"] = len(known)
            low, high = bootstrap_interval([float(v) for v, _ in known], [group for _, group in known], seed=0)
            report["interval"] = [_rounded(low), _rounded(high)]
    return report


def statement_report(rows: Sequence[Example], drafts: Sequence[str]) -> dict[str, Any]:
    """How many statements are true, false, unsupported (nothing known decides them) or withheld.

    Of the answers as they are shown, and under "drafted" of what the student itself words.
    """
    shown = ["".join(checked([draft], row.question, row.known)) for draft, row in zip(drafts, rows, strict=True)]
    labels = sorted({row.label for row in rows if row.label})
    return _verdicts(rows, shown, labels) | {"drafted": _verdicts(rows, drafts, labels)}


def _verdicts(rows: Sequence[Example], texts: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for row, text in zip(rows, texts, strict=True):
        known = [one.with_class(row.label) if row.label else one for one in row.known]
        for sentence in sentences([text]):
            stated = read_statements(sentence, known)
            counts.update(statement.verdict for statement in stated)
            named = first_choice(sentence, labels) if not stated else None
            if named is not None:  # a class outside of any number: "24 particles" names none
                counts["unsupported" if row.label is None else "true" if named == row.label else "false"] += 1
    return {verdict: counts[verdict] for verdict in VERDICTS}


def classification_report(assistant: Assistant, rows: Sequence[Example], looks: dict[bytes, Look]) -> dict[str, Any]:
    """Top-k, macro scores and calibration of zero-shot classification by likelihood; never sees auxiliary text."""
    images = {row.images[0]: row.label for row in rows if row.label and len(row.images) == 1}
    labels = sorted({label for label in images.values() if label})
    if len(labels) < 2:
        return {"n": 0}
    probabilities = np.stack([assistant.label_probabilities(replace(looks[png], aux=""), labels) for png in images])
    truth = [labels.index(label) for label in images.values() if label]
    scores = classification_scores(probabilities, truth, classes=labels)
    top = {f"top{k}": _rounded(scores.top[k]) for k in (1, 2, 3, 5) if k in scores.top}
    return {
        **top,
        "macro_precision": _rounded(scores.macro_precision),
        "macro_recall": _rounded(scores.macro_recall),
        "macro_f1": _rounded(scores.macro_f1),
        "ece": _rounded(scores.ece),
        "n": len(truth),
    }


def baseline_report(
    assistant: Assistant, train: Sequence[Example], rows: Sequence[Example], *, classify: bool
) -> dict[str, Any]:
    """What no understanding of the image would score, and what plain classifiers on the same split do."""
    report: dict[str, Any] = {}
    asked = [example.question for example in train], [example.answer for example in train]
    questions = [row.question for row in rows]
    for name, answers in (
        ("majority", majority_answers(*asked, questions)),
        ("nearest_text", nearest_question_answers(*asked, questions)),
    ):
        for task, wanted in (("caption", True), ("vqa", False)):
            chosen = [i for i, row in enumerate(rows) if (row.task == "caption") == wanted]
            if chosen:
                references = [[rows[i].answer, *rows[i].references] for i in chosen]
                scores = text_scores([answers[i] for i in chosen], references)
                report[f"{task}_bleu2_{name}"] = _rounded(scores.mean["bleu2"])
        verdicts = [agrees(text, row.answer, row.label) for text, row in zip(answers, rows, strict=True)]
        known = [verdict for verdict in verdicts if verdict is not None]
        report[f"factual_{name}"] = _rounded(float(np.mean(known))) if known else None
    if classify:
        report |= _classifiers(assistant, train, rows)
    return report


def _classifiers(assistant: Assistant, train: Sequence[Example], rows: Sequence[Example]) -> dict[str, Any]:
    def labelled(examples: Sequence[Example]) -> dict[bytes, str]:
        return {e.images[0]: e.label for e in examples if e.label and len(e.images) == 1}

    known, asked = labelled(train), labelled(rows)
    if len(set(known.values())) < 2 or not asked:
        return {}
    counts = {label: list(known.values()).count(label) for label in known.values()}
    majority = max(counts, key=lambda label: counts[label])
    return {
        "top1_majority": _rounded(float(np.mean([label == majority for label in asked.values()]))),
        "top1_linear_probe_vit": _rounded(linear_probe_accuracy(assistant, known, asked)),
        "top1_cnn": _rounded(convolutional_accuracy(known, asked)),
    }


def _grey_png(size: int) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (size, size), round(GREY * 255)).save(file, "PNG")
    return file.getvalue()


def _rounded(value: float) -> float:
    return round(float(value), 4)

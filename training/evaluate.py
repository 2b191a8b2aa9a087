"""Evaluation that can be believed: every score beside its blind score, baselines and intervals. Knows no training.

Text is scored against all wordings of the same facts, classification against the labels, facts against what was
measured or drawn, and every statement against what is known of its picture. The blind score is the same student with a
grey image and without auxiliary text: what it knows from the question alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from assistant.chat import Conversation, Message
from assistant.disk import MANIFEST, fingerprint
from assistant.heads import verdicts
from assistant.inference import Assistant, Look
from assistant.measure import Facts, Known, fact_line, filled, references_of
from assistant.progress import Progress
from training.baselines import convolutional_accuracy, linear_probe_accuracy, texture_accuracy
from training.claim import RECORD, record
from training.data import Example, data_fingerprint, decode_image, load_split
from training.fact_check import agrees
from training.matching import matching_report
from training.metrics import majority_answers, nearest_question_answers, text_scores
from training.quoting import Prompt, digest, known_of_pictures, taught_answer
from training.scores import class_report, rounded, score_answers, shown_answers, verdict_report

ANSWER_TOKENS = 96
_BATCH = 32
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

    How many of its statements were false is added to the run's record: `maemi serve` says it beside answers.
    Raises RunError and DatasetError.
    """
    assistant = Assistant.load(run, device)
    report = evaluate_assistant(assistant, data, limit=limit, baselines=baselines, progress=progress)
    if run is not None and os.access(run / RECORD, os.W_OK):
        counted = {verdict: count for verdict, count in report["statements"].items() if verdict != "drafted"}
        record(run, statements=counted | {"data": report["provenance"]["data_fingerprint"]})
    return report


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
    served, judged = as_served(rows, looks), with_truth(rows, known_of_pictures(test))
    answers: dict[str, list[str]] = {}
    for number, (name, with_aux, blind) in enumerate(
        [("seen", True, False), ("without_aux", False, False), ("blind", False, True)]
    ):
        tell(number, 4, f"answering, {name.replace('_', ' ')}")
        answers[name] = answer_examples(assistant, served, looks, with_aux=with_aux, blind=blind)
    tell(3, 4, "classifying")
    report: dict[str, Any] = {
        **score_answers(judged, answers, shown=shown_answers(served, answers["seen"])),
        "classification": classification_report(assistant, rows, looks),
        "matching": matching_report(assistant.run, rows),
        **({"references": reference_report(assistant, rows, looks)} if assistant.by_reference else {}),
        "baselines": baseline_report(assistant, train, rows, classify=baselines),
        "n": {
            "rows": len(rows),
            "images": len({row.images_key for row in rows}),
            "groups": len({r.group for r in rows}),
        },
        "model": assistant.name,
        "provenance": provenance(assistant, data, limit),
    }
    tell(4, 4, "done")
    return report


def provenance(assistant: Assistant, data: Path, limit: int | None) -> dict[str, Any]:
    """What the scores belong to: the model's weights, the data, the settings of the evaluation and the versions."""
    import platform
    from importlib.metadata import version

    directory = assistant.run.path
    return {
        "model": assistant.name,
        "model_sha256": fingerprint(directory / MANIFEST) if directory and (directory / MANIFEST).is_file() else None,
        "data_fingerprint": data_fingerprint(data),
        "rows_per_task": limit,
        "seed": assistant.run.config.seed,
        "versions": {name: version(name) for name in ("maemi", "torch", "transformers", "sacrebleu", "rouge-score")},
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


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


def encode_examples(assistant: Assistant, rows: Sequence[Example], *, features: bool = True) -> dict[bytes, Look]:
    """Encode every image of the rows once, with what heads say of the tower's features where these are wanted.

    Facts are those of the data set, not measured anew.
    """
    pngs = list(dict.fromkeys(image for row in rows for image in row.images))
    looks: dict[bytes, Look] = {}
    for start in range(0, len(pngs), _BATCH):
        batch = pngs[start : start + _BATCH]
        micrographs = [decode_image(png) for png in batch]
        memory, summary = assistant.encode(micrographs)
        vectors = assistant.see(micrographs) if features else None
        told = verdicts(assistant.heads, vectors) if vectors is not None else [()] * len(batch)
        for n, (png, micrograph) in enumerate(zip(batch, micrographs, strict=True)):
            seen = None if vectors is None else vectors[n]
            looks[png] = Look(micrograph, NO_FACTS, "", memory[n], summary[n], seen, told[n])
    return looks


def as_served(rows: Sequence[Example], looks: Mapping[bytes, Look]) -> list[Example]:
    """Rows with what is known of their pictures where somebody asks: heads name class and attributes, no label does."""
    return [
        replace(
            row,
            known=tuple(
                replace(one, predicted=tuple(verdict.fact() for verdict in looks[image].verdicts))
                for one, image in zip(row.known, row.images, strict=False)
            ),
        )
        for row in rows
    ]


def with_truth(rows: Sequence[Example], truth: Mapping[bytes, Known]) -> list[Example]:
    """Rows with all that is truly known of their pictures, class and attributes too, by `known_of_pictures`."""
    return [
        replace(row, known=tuple(truth[key] for image in row.images if (key := digest(image)) in truth)) for row in rows
    ]


def answer_examples(
    assistant: Assistant, rows: Sequence[Example], looks: dict[bytes, Look], *, with_aux: bool, blind: bool
) -> list[str]:
    """Greedy answers to the questions of all rows, in padded batches of similar length.

    References are filled with what is known, but of a student that is blind nothing is.
    """
    grey = assistant.blind_look() if blind else None
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
            answers[i] = text if blind else "".join(filled([text], rows[i].known))
    return answers


def reference_report(assistant: Assistant, rows: Sequence[Example], looks: dict[bytes, Look]) -> dict[str, Any]:
    """Of rows whose answer quotes facts: how many drafts quote exactly these, and how many references are which.

    The true class and words stand in the prompt as heads would say them, so that quoting alone is judged.
    """
    known = known_of_pictures(rows)
    shown = [[known[digest(image)] for image in row.images] for row in rows]
    prompts = [Prompt(fact_line(of_row), tuple(of_row), tuple(of_row)) for of_row in shown]
    pairs = zip(rows, prompts, strict=True)
    wanted = [references_of(taught_answer(row, row.question, row.answer, prompt)) for row, prompt in pairs]
    quoting = [number for number, references in enumerate(wanted) if references]
    counts: Counter[str] = Counter()
    for start in range(0, len(quoting), _BATCH):
        batch = quoting[start : start + _BATCH]
        conversations = [conversation_of(rows[n], aux=prompts[n].line) for n in batch]
        pictures = [[looks[png] for png in rows[n].images] for n in batch]
        drafts = assistant.complete(conversations, pictures, max_new_tokens=ANSWER_TOKENS)
        for n, drafted in zip(batch, map(references_of, drafts), strict=True):
            counts["rows_right"] += drafted == wanted[n]
            counts["right"] += len(drafted & wanted[n])
            counts["wrong"] += len(drafted - wanted[n])
            counts["left_out"] += len(wanted[n] - drafted)
    named = {name: counts[name] for name in ("right", "wrong", "left_out")}
    share = rounded(counts["rows_right"] / len(quoting)) if quoting else None
    return {"rows_right": share, "n": len(quoting), **named}


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


def classification_report(assistant: Assistant, rows: Sequence[Example], looks: dict[bytes, Look]) -> dict[str, Any]:
    """The verdicts of `maemi classify` on the labels of the split, without auxiliary text.

    Under "likelihood" stands what the student itself would say.
    """
    asked, labels = labelled_pictures(rows)
    if len(labels) < 2:
        return {"n": 0}
    shown = [replace(looks[png], aux="") for png in asked]
    known, groups = [row.label or "" for row in asked.values()], [row.group for row in asked.values()]
    verdicts = verdict_report([assistant.ranked_labels(look, labels) for look in shown], known, labels, groups)
    likelihoods = np.stack([assistant.label_likelihoods(look, labels) for look in shown])
    itself = class_report(likelihoods, [labels.index(label) for label in known], labels, groups)
    return verdicts | {"likelihood_top1": itself["top1"], "likelihood": itself}


def labelled_pictures(rows: Sequence[Example]) -> tuple[dict[bytes, Example], list[str]]:
    """Each picture that has a class, with a row about it alone, and the classes there are."""
    pictures = {row.images[0]: row for row in rows if row.label and len(row.images) == 1}
    return pictures, sorted({row.label for row in pictures.values() if row.label})


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
                report[f"{task}_bleu2_{name}"] = rounded(scores.mean["bleu2"])
        verdicts = [agrees(text, row.answer, row.label) for text, row in zip(answers, rows, strict=True)]
        known = [verdict for verdict in verdicts if verdict is not None]
        report[f"factual_{name}"] = rounded(float(np.mean(known))) if known else None
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
        "top1_majority": rounded(float(np.mean([label == majority for label in asked.values()]))),
        "top1_linear_probe_vit": rounded(linear_probe_accuracy(assistant, known, asked)),
        "top1_cnn": rounded(convolutional_accuracy(known, asked)),
        "top1_texture": rounded(texture_accuracy(known, asked)),
    }

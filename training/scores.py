"""Answers to rows of a data set -> scores: of text, of facts and of statements, in all, by facet and by class.

Whose answers they are makes no difference. Every score has its blind twin, and its interval is over groups. Knows no
model, no picture and no training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from assistant.answers import checked
from assistant.labels import UNKNOWN
from assistant.measure import read_statements, sentences
from training.data import Example
from training.fact_check import agrees, first_choice
from training.metrics import (
    TEXT_METRICS,
    TOP_K,
    bootstrap_interval,
    classification_scores,
    expected_calibration_error,
    text_scores,
)

VERDICTS = ("true", "false", "unsupported", "withheld")
CONDITIONS = (("", "seen"), ("_without_aux", "without_aux"), ("_blind", "blind"))
"""What a score is called, and the answers it is of: as asked, without the line of facts, without picture and facts."""
WORST = 20
_BINS = 10
"""Equal parts of confidence in a reliability diagram."""
GivenAnswers = Mapping[str, Sequence[str]]


def score_answers(
    rows: Sequence[Example], answers: GivenAnswers, *, shown: Sequence[str] | None = None
) -> dict[str, Any]:
    """Everything that answers alone tell; `answers` holds one text a row under each of the conditions it was asked in.

    `shown` are the answers as a person gets them, where that is not how they were worded.
    """
    shown = answers["seen"] if shown is None else shown
    told = {
        "caption": text_report(rows, answers, lambda row: row.task == "caption"),
        "vqa": text_report(rows, answers, lambda row: row.task != "caption"),
        "factual": factual_report(rows, answers),
        "statements": statement_report(rows, answers["seen"], shown),
    }
    tables: dict[str, Callable[[Example], str | None]] = {
        "facets": lambda row: row.facet,
        "classes": lambda row: row.label,
    }
    cut = {name: breakdown(rows, answers, shown, of) for name, of in tables.items()}
    return told | cut | {"worst": worst_answers(rows, answers["seen"], shown)}


def shown_answers(rows: Sequence[Example], drafts: Sequence[str]) -> list[str]:
    """Drafts as a person gets them from MAEMI: what of them is fact, and what they left out."""
    return ["".join(checked([draft], row.question, row.known)) for draft, row in zip(drafts, rows, strict=True)]


def text_report(rows: Sequence[Example], answers: GivenAnswers, wanted: Callable[[Example], bool]) -> dict[str, Any]:
    """Text metrics of some rows: as asked, without auxiliary text, blind, against one wording, with an interval."""
    chosen = [i for i, row in enumerate(rows) if wanted(row)]
    if not chosen:
        return {"n": 0}
    references = [list(dict.fromkeys((rows[i].answer, *rows[i].references))) for i in chosen]
    report: dict[str, Any] = {"n": len(chosen)}
    for suffix, name in CONDITIONS:
        if name not in answers:
            continue
        scores = text_scores([answers[name][i] for i in chosen], references)
        for metric in TEXT_METRICS:
            report[f"{metric}{suffix}"] = rounded(scores.mean[metric])
            if not suffix:
                report[f"{metric}_std"] = rounded(scores.std[metric])
                report[f"{metric}_single"] = rounded(scores.single[metric])
        if not suffix:
            report["bleu2_interval"] = _interval(scores.items["bleu2"], [rows[i].group for i in chosen])
    return report


def breakdown(
    rows: Sequence[Example], answers: GivenAnswers, shown: Sequence[str], of: Callable[[Example], str | None]
) -> dict[str, dict[str, Any]]:
    """BLEU-2 in every condition, accuracy as in `factual_report`, and statements as shown, for each value of rows."""
    table = {}
    labels = _labels(rows)
    for value in sorted({named for row in rows if (named := of(row)) is not None}):
        scores = text_report(rows, answers, lambda row, value=value: of(row) == value)  # type: ignore[misc]
        mine = [(row, text) for row, text in zip(rows, shown, strict=True) if of(row) == value]
        drafted = [(row, text) for row, text in zip(rows, answers["seen"], strict=True) if of(row) == value]
        agreed = [agrees(text, row.answer, row.label) for row, text in drafted]
        known = [float(verdict) for verdict in agreed if verdict is not None]
        counts = sum((_verdicts(row, text, labels) for row, text in mine), Counter[str]())
        table[value] = {
            **{name: scores[name] for name in scores if name.startswith("bleu2") and name[-4:] not in ("_std", "ngle")},
            "accuracy": rounded(float(np.mean(known))) if known else None,
            **{verdict: counts[verdict] for verdict in VERDICTS},
            "n": len(mine),
        }
    return table


def factual_report(rows: Sequence[Example], answers: GivenAnswers) -> dict[str, Any]:
    """Share of answers whose class, yes or no, counts and sizes agree with what is known, where anything is."""
    report: dict[str, Any] = {}
    for name, key in (("seen", "accuracy"), ("without_aux", "without_aux"), ("blind", "blind")):
        if name not in answers:
            continue
        verdicts = [agrees(text, row.answer, row.label) for text, row in zip(answers[name], rows, strict=True)]
        known = [(verdict, row.group) for verdict, row in zip(verdicts, rows, strict=True) if verdict is not None]
        report[key] = rounded(float(np.mean([verdict for verdict, _ in known]))) if known else None
        if name == "seen" and known:
            report["n"] = len(known)
            report["interval"] = _interval([float(verdict) for verdict, _ in known], [group for _, group in known])
    return report


def statement_report(rows: Sequence[Example], drafts: Sequence[str], shown: Sequence[str]) -> dict[str, Any]:
    """How many statements are true, false, unsupported (nothing known decides them) or withheld, of what is shown.

    `false_rate` is the share of false and unsupported ones among all but the withheld, with its interval; under
    "drafted" stands the same of what the student itself words.
    """
    return _statements(rows, shown) | {"drafted": _statements(rows, drafts)}


def worst_answers(rows: Sequence[Example], drafts: Sequence[str], shown: Sequence[str]) -> list[dict[str, Any]]:
    """The answers that went most wrong, worst first: false as shown, false as drafted, then against the truth."""
    labels, listed = _labels(rows), []
    for number, (row, draft, text) in enumerate(zip(rows, drafts, shown, strict=True)):
        seen, worded = _verdicts(row, text, labels), _verdicts(row, draft, labels)
        agreed = agrees(draft, row.answer, row.label)
        wrong = (seen["false"], seen["unsupported"], worded["false"], agreed is False, worded["unsupported"])
        if any(wrong):
            told: dict[str, Any] = {
                "id": row.id,
                "source": row.source,
                "group": row.group,
                "facet": row.facet,
                "class": row.label,
            }
            asked = {"question": row.question, "reference": row.answer, "shown": text, "drafted": draft}
            found = {
                "false": seen["false"],
                "unsupported": seen["unsupported"],
                "drafted_false": worded["false"],
                "agrees": agreed,
            }
            listed.append((tuple(-int(one) for one in wrong), number, told | asked | found))
    return [found for *_, found in sorted(listed, key=lambda entry: entry[:2])[:WORST]]


def verdict_report(
    ranked: Sequence[Sequence[tuple[str, float]]], truth: Sequence[str], labels: Sequence[str], groups: Sequence[str]
) -> dict[str, Any]:
    """Scores of labels and "unknown" as a person is shown them, each picture's verdict first.

    "unknown" is never right and never false: `top1` counts it as missed, `coverage` is the share of pictures that get
    a class, and `named_right` how many of those get theirs. Calibration, reliability and risk are of classes that are
    named. Macro scores run over the labels.
    """
    from sklearn.metrics import precision_recall_fscore_support

    classes = [*labels, UNKNOWN]
    order = np.asarray([[classes.index(label) for label, _ in row] for row in ranked])  # [N, C + 1]
    y, said = np.asarray([classes.index(label) for label in truth]), order[:, 0]
    sure = np.asarray([row[0][1] for row in ranked], dtype=np.float64)
    right, named = said == y, said < len(labels)
    precision, recall, f_score, _ = precision_recall_fscore_support(y, said, labels=range(len(labels)), zero_division=0)
    told: dict[str, Any] = {f"top{k}": rounded((order[:, :k] == y[:, None]).any(axis=1).mean()) for k in TOP_K}
    told |= {
        "top1_interval": _interval(right.astype(np.float64), groups),
        "coverage": rounded(named.mean()),
        "coverage_interval": _interval(named.astype(np.float64), groups),
        "macro_precision": rounded(precision.mean()),
        "macro_recall": rounded(recall.mean()),
        "macro_f1": rounded(f_score.mean()),
    }
    if named.any():
        of_named = [group for group, one in zip(groups, named, strict=True) if one]
        told["named_right"] = rounded(right[named].mean())
        told["named_right_interval"] = _interval(right[named].astype(np.float64), of_named)
        told["ece"] = rounded(expected_calibration_error(sure[named], right[named]))
    return told | {
        "n": len(y),
        "purity": {name: rounded(precision[c]) if (said == c).any() else None for c, name in enumerate(labels)},
        "recall": {name: rounded(recall[c]) for c, name in enumerate(labels)},
        "labels": classes,
        "confusion": _confusion(y, said, len(classes)),
        "reliability": _reliability(sure[named], right[named]),
        "risk_coverage": _risk(sure[named], right[named], of=len(y)),
    }


def class_report(
    probabilities: Any, truth: Sequence[int], labels: Sequence[str], groups: Sequence[str]
) -> dict[str, Any]:
    """Scores of class probabilities [N, C], with what draws them: confusion, reliability, and risk over coverage."""
    scores = classification_scores(probabilities, truth, classes=labels)
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(truth)
    sure, named = p.max(1), p.argmax(1)
    right = named == y
    return {
        **{f"top{k}": rounded(value) for k, value in scores.top.items()},
        "top1_interval": _interval(right.astype(np.float64), groups),
        "macro_precision": rounded(scores.macro_precision),
        "macro_recall": rounded(scores.macro_recall),
        "macro_f1": rounded(scores.macro_f1),
        "ece": rounded(scores.ece),
        "n": len(y),
        "purity": {name: None if value is None else rounded(value) for name, value in scores.purity.items()},
        "labels": list(labels),
        "confusion": _confusion(y, named, len(labels)),
        "reliability": _reliability(sure, right),
        "risk_coverage": _risk(sure, right, of=len(y)),
    }


def rounded(value: float) -> float:
    """Four digits behind the point, as every score is written."""
    return round(float(value), 4)


def _confusion(truth: Any, said: Any, classes: int) -> list[list[int]]:
    """How often each class, a row, was called each, a column."""
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (truth, said), 1)
    table: list[list[int]] = counts.tolist()
    return table


def _reliability(sure: Any, right: Any) -> list[dict[str, Any]]:
    """Mean confidence [n] and share that is right [n], of equal parts of confidence that are not empty."""
    place = np.clip(np.ceil(sure * _BINS).astype(int) - 1, 0, _BINS - 1)
    return [
        {"confidence": rounded(sure[here].mean()), "accuracy": rounded(right[here].mean()), "n": int(here.sum())}
        for number in range(_BINS)
        if (here := place == number).any()
    ]


def _risk(sure: Any, right: Any, *, of: int) -> list[list[float]]:
    """Share of `of` pictures that are answered, the surest first, and the share of wrong ones among them."""
    wrong = np.cumsum(~right[np.argsort(-sure, kind="stable")]) / np.arange(1, len(sure) + 1)
    return [[rounded((k + 1) / of), rounded(risk)] for k, risk in enumerate(wrong)]


def _statements(rows: Sequence[Example], texts: Sequence[str]) -> dict[str, Any]:
    labels = _labels(rows)
    each = [(_verdicts(row, text, labels), row.group) for row, text in zip(rows, texts, strict=True)]
    counts = {verdict: sum(one[verdict] for one, _ in each) for verdict in VERDICTS}
    wrong = [(float(v != "true"), group) for one, group in each for v in VERDICTS[:3] for _ in range(one[v])]
    if not wrong:
        return counts | {"false_rate": None, "false_rate_interval": None}
    values, groups = [value for value, _ in wrong], [group for _, group in wrong]
    return counts | {"false_rate": rounded(float(np.mean(values))), "false_rate_interval": _interval(values, groups)}


def _verdicts(row: Example, text: str, labels: Sequence[str]) -> Counter[str]:
    """The verdicts on everything that a text says of its row's pictures."""
    counts: Counter[str] = Counter()
    known = [one.with_class(row.label) if row.label else one for one in row.known]
    for sentence in sentences([text]):
        stated = read_statements(sentence, known)
        counts.update(statement.verdict for statement in stated)
        named = first_choice(sentence, labels) if not stated else None
        if named is not None:  # a class outside of any number: "24 particles" names none
            counts["unsupported" if row.label is None else "true" if named == row.label else "false"] += 1
    return counts


def _labels(rows: Sequence[Example]) -> list[str]:
    return sorted({row.label for row in rows if row.label})


def _interval(values: Any, groups: Sequence[str]) -> list[float]:
    return [rounded(bound) for bound in bootstrap_interval(values, groups, seed=0)]

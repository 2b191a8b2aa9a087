"""Scores as pure functions: texts, class probabilities, intervals, and the baselines they are read against.

Knows nothing about models, images or files; it takes strings and arrays, and never imports torch.

How texts are scored (every score in 0..1, an empty text scores 0):

* BLEU-n: sentence level, sacrebleu's 13a tokens, lower case, exponential smoothing, effective order (a text
  shorter than n tokens is scored on the orders it has), n-grams clipped against all references at once, and
  the closest reference length.
* ROUGE-1/2/L: F1 on ROUGE's own tokens (lower-case ASCII letters and digits, no stemming); the best reference
  counts.
* METEOR: exact and stem matches only; the best reference counts. There is no WordNet, hence the name
  `meteor_exact_stem`. It charges one chunk even to a perfect text: one of m tokens scores 1 - 0.5 / m^3.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assistant.errors import DatasetError
from training.fact_check import FactTarget, check_answer, yes_no_balance

Floats = NDArray[np.float64]
Metric = Callable[[list[str], list[str]], float]

TEXT_METRICS = ("bleu2", "bleu4", "rouge1", "rouge2", "rougeL", "meteor_exact_stem")
BLEU_ORDERS = (2, 4)
TOP_K = (1, 2, 3, 5)
ECE_BINS = 15

__all__ = [  # the facts an answer states have their own file, and are scored from here
    "ClassificationScores",
    "FactTarget",
    "TextScores",
    "bootstrap_interval",
    "check_answer",
    "classification_scores",
    "expected_calibration_error",
    "majority_answers",
    "nearest_question_answers",
    "text_scores",
    "yes_no_balance",
]

# ---------------------------------------------------------------------------------- texts


@dataclass(frozen=True)
class TextScores:
    """Scores of a list of texts; `items` and `single_items` hold one value per text, in the order given.

    `single*` is the same score against each text's first reference only.
    """

    items: Mapping[str, Floats]
    single_items: Mapping[str, Floats]

    @property
    def n(self) -> int:
        return len(self.items[TEXT_METRICS[0]])

    @property
    def mean(self) -> dict[str, float]:
        return {name: exact_mean(values) for name, values in self.items.items()}

    @property
    def std(self) -> dict[str, float]:
        """Population standard deviation over the texts."""
        return {name: math.sqrt(exact_mean((v - exact_mean(v)) ** 2)) for name, v in self.items.items()}

    @property
    def single(self) -> dict[str, float]:
        return {name: exact_mean(values) for name, values in self.single_items.items()}

    def as_dict(self) -> dict[str, float]:
        """Return NAME, NAME_std and NAME_single for every metric, and n."""
        flat: dict[str, float] = {}
        for name in TEXT_METRICS:
            flat |= {
                name: self.mean[name],
                f"{name}_std": self.std[name],
                f"{name}_single": self.single[name],
            }
        return flat | {"n": self.n}


def exact_mean(values: Floats) -> float:
    """Return a mean that does not depend on the order of the values."""
    return math.fsum(values) / len(values)


def f1(matches: int, n_hypothesis: int, n_reference: int) -> float:
    return 2 * matches / (n_hypothesis + n_reference) if matches else 0.0


def rouge_n(hypothesis: list[str], reference: list[str], *, n: int) -> float:
    """Return the F1 of shared n-grams (Lin 2004)."""
    ours = Counter(zip(*(hypothesis[i:] for i in range(n)), strict=False))
    theirs = Counter(zip(*(reference[i:] for i in range(n)), strict=False))
    return f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(hypothesis: list[str], reference: list[str]) -> float:
    """Return the F1 of the longest common subsequence, one row of the table per machine word (Hyyrö 2004)."""
    positions: dict[str, int] = {}
    for i, word in enumerate(reference):
        positions[word] = positions.get(word, 0) | 1 << i
    full = (1 << len(reference)) - 1
    row = full  # a 0 bit marks a place where the common subsequence grows
    for word in hypothesis:
        hit = row & positions.get(word, 0)
        row = ((row + hit) | (row - hit)) & full
    return f1((full & ~row).bit_count(), len(hypothesis), len(reference))


def bleu_scorer() -> Callable[[str, list[str]], tuple[float, ...]]:
    """Return a function (text, references) -> BLEU at each of `BLEU_ORDERS`, from one count of n-grams."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(lowercase=True, smooth_method="exp", effective_order=True, max_ngram_order=max(BLEU_ORDERS))

    def at_order(counts: Any, order: int) -> float:
        score = BLEU.compute_bleu(
            counts.counts[:order],
            counts.totals[:order],
            counts.sys_len,
            counts.ref_len,
            smooth_method="exp",
            effective_order=True,
            max_ngram_order=order,
        ).score
        return min(1.0, float(score) / 100)  # exp(log 1) may land a rounding step above 1

    def score(hypothesis: str, references: list[str]) -> tuple[float, ...]:
        counts = bleu.sentence_score(hypothesis, references)
        return tuple(at_order(counts, order) for order in BLEU_ORDERS)

    return score


class NoSynonyms:
    """Stands where METEOR expects WordNet, which is a download: no word has a synonym."""

    def synsets(self, word: str) -> tuple[()]:
        return ()


class CachedStemmer:
    """Porter stems, each word stemmed once."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        stem: Callable[[str], str] = PorterStemmer().stem
        self.stem = lru_cache(maxsize=65_536)(stem)


def meteor_scorer() -> Metric:
    """Return METEOR (Lavie and Agarwal 2007) over exact and stem matches."""
    from nltk.translate.meteor_score import single_meteor_score

    stemmer, wordnet = CachedStemmer(), NoSynonyms()

    def score(hypothesis: list[str], reference: list[str]) -> float:
        return float(single_meteor_score(reference, hypothesis, stemmer=stemmer, wordnet=wordnet))

    return score


def text_scorer() -> Callable[[str, list[str]], tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return a function (text, references) -> (scores, scores against the first reference alone)."""
    from rouge_score.tokenizers import DefaultTokenizer
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    rouge_tokens, words = DefaultTokenizer(use_stemmer=False).tokenize, Tokenizer13a()
    bleu, meteor = bleu_scorer(), meteor_scorer()

    def pair_metrics(text: str) -> tuple[list[str], list[str]]:
        return rouge_tokens(text), words(text.lower()).split()

    def score(hypothesis: str, references: list[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        own_rouge, own_words = pair_metrics(hypothesis)
        rows = []
        for reference in references:
            their_rouge, their_words = pair_metrics(reference)
            rouges = (rouge_n(own_rouge, their_rouge, n=1), rouge_n(own_rouge, their_rouge, n=2))
            rows.append((*rouges, rouge_l(own_rouge, their_rouge), meteor(own_words, their_words)))
        best = tuple(max(column) for column in zip(*rows, strict=True))
        several = bleu(hypothesis, references)
        alone = bleu(hypothesis, references[:1]) if len(references) > 1 else several
        return several + best, alone + rows[0]

    return score


def text_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> TextScores:
    """Score each text against all wordings of its own truth, and against the first wording alone.

    Raises: DatasetError where there is nothing to score, or a text has no reference.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} texts but {len(references)} lists of references")
    if not hypotheses:
        raise DatasetError("nothing_to_score", "There is no text to score. Check that the split is not empty.")
    for i, wordings in enumerate(references):
        if isinstance(wordings, str) or not wordings:
            raise DatasetError("no_reference", f"Text {i} has no list of references. Give at least one wording.")
    score = text_scorer()
    rows = [score(h, list(r)) for h, r in zip(hypotheses, references, strict=True)]
    every, alone = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])  # [N, metrics]
    return TextScores(dict(zip(TEXT_METRICS, every.T, strict=True)), dict(zip(TEXT_METRICS, alone.T, strict=True)))


# ---------------------------------------------------------------------------------- classes


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of class probabilities; `purity` is the share of true members in what was put in each class."""

    n: int
    top: Mapping[int, float]
    macro_precision: float
    macro_recall: float
    macro_f1: float
    ece: float
    purity: Mapping[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        scores = {f"top{k}": value for k, value in self.top.items()}
        return scores | {
            "macro_precision": self.macro_precision,
            "macro_recall": self.macro_recall,
            "macro_f1": self.macro_f1,
            "ece": self.ece,
            "purity": dict(self.purity),
            "n": self.n,
        }


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_], *, bins: int = ECE_BINS) -> float:
    """Return sum over equal-width bins (a, b] of share * |accuracy - mean confidence| (Guo et al. 2017)."""
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def checked_probabilities(probabilities: Any, labels: Any) -> tuple[Floats, NDArray[np.int64]]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if p.ndim != 2 or y.shape != p.shape[:1] or not p.size:
        raise DatasetError("bad_scores", f"Probabilities {p.shape} do not fit labels {y.shape}. Give [N, C] and [N].")
    if not (np.isfinite(p).all() and (p >= 0).all() and (p <= 1 + 1e-6).all()):
        raise DatasetError("bad_scores", "Probabilities leave 0..1. Apply softmax before scoring.")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise DatasetError("bad_scores", f"A label is outside 0..{p.shape[1] - 1}. Check the list of classes.")
    return p, y


def classification_scores(
    probabilities: Any, labels: Any, *, classes: Sequence[str] | None = None
) -> ClassificationScores:
    """Score probabilities [N, C] against labels [N].

    Macro means run over the classes that occur among the labels or the predictions, ties go to the lower
    index, and the purity of a class that was never predicted is None.

    Raises: DatasetError where shapes, probabilities or labels do not fit.
    """
    from sklearn.metrics import precision_recall_fscore_support

    p, y = checked_probabilities(probabilities, labels)
    names = list(classes) if classes is not None else [str(c) for c in range(p.shape[1])]
    if len(names) != p.shape[1]:
        raise ValueError(f"{len(names)} class names for {p.shape[1]} columns")
    order = np.argsort(-p, axis=1, kind="stable")  # [N, C]
    hit, predicted = order == y[:, None], order[:, 0]
    occurring = np.union1d(y, predicted)
    precision, recall, f_score, _ = precision_recall_fscore_support(y, predicted, labels=occurring, zero_division=0)
    ours = dict(zip(occurring.tolist(), precision.tolist(), strict=True))
    return ClassificationScores(
        n=len(y),
        top={k: float(hit[:, :k].any(axis=1).mean()) for k in TOP_K},
        macro_precision=float(precision.mean()),
        macro_recall=float(recall.mean()),
        macro_f1=float(f_score.mean()),
        ece=expected_calibration_error(p.max(axis=1), predicted == y),
        purity={name: ours[c] if c in predicted else None for c, name in enumerate(names)},
    )


# ---------------------------------------------------------------------------------- intervals, baselines


def bootstrap_interval(
    values: Sequence[float] | Floats, groups: Sequence[str], *, seed: int, samples: int = 1000
) -> tuple[float, float]:
    """Return the 95 % interval of the mean when whole groups are drawn again with replacement.

    One group tells nothing about the spread between groups: the interval is then the range of its values.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) != len(groups):
        raise ValueError(f"{len(data)} values but {len(groups)} groups")
    if not len(data):
        raise DatasetError("nothing_to_score", "There is no value to bootstrap. Check that the split is not empty.")
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) == 1:
        return float(data.min()), float(data.max())
    sums, sizes = np.bincount(index, weights=data), np.bincount(index)
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=samples
    )  # [samples, groups]
    low, high = np.quantile(draws @ sums / (draws @ sizes), [0.025, 0.975])
    return float(low), float(high)


def _key(question: str) -> str:
    return " ".join(re.findall(r"\w+", question.lower()))


def _most_common(answers: Counter[str]) -> str:
    return min(answers, key=lambda answer: (-answers[answer], answer))


def _check_training(questions: Sequence[str], answers: Sequence[str]) -> None:
    if len(questions) != len(answers):
        raise ValueError(f"{len(questions)} training questions but {len(answers)} answers")
    if not answers:
        raise DatasetError("nothing_to_copy", "The training split is empty. A baseline needs its answers.")


def majority_answers(
    train_questions: Sequence[str], train_answers: Sequence[str], questions: Sequence[str]
) -> list[str]:
    """Return each question's most frequent training answer, the overall one for a question never seen.

    Pass facets in place of questions to pool all phrasings of a facet; ties go to the alphabet.
    """
    _check_training(train_questions, train_answers)
    by_question: dict[str, Counter[str]] = {}
    for question, answer in zip(train_questions, train_answers, strict=True):
        by_question.setdefault(_key(question), Counter())[answer] += 1
    overall = _most_common(Counter(train_answers))
    return [_most_common(by_question[k]) if (k := _key(q)) in by_question else overall for q in questions]


def nearest_question_answers(
    train_questions: Sequence[str],
    train_answers: Sequence[str],
    questions: Sequence[str],
    *,
    chunk: int = 256,
) -> list[str]:
    """Return the answer of the most similar training question: cosine of TF-IDF words, ties to the first."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    _check_training(train_questions, train_answers)
    first = {question: i for i, question in reversed(list(enumerate(train_questions)))}
    known = sorted(first, key=first.__getitem__)  # questions repeat, so compare with each wording once
    if not any(_key(question) for question in known):
        return majority_answers(train_questions, train_answers, questions)
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
    table = vectorizer.fit_transform(known)  # [wordings, vocabulary]
    answers: list[str] = []
    for start in range(0, len(questions), chunk):
        similarity = vectorizer.transform(questions[start : start + chunk]) @ table.T  # [chunk, wordings]
        nearest = np.asarray(similarity.toarray()).argmax(axis=1)
        answers += [train_answers[first[known[i]]] for i in nearest]
    return answers

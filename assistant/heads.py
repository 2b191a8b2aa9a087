"""Heads: what frozen features say of a picture, as facts with calibrated confidence, or not at all and why.

A head knows one question with a closed set of words: the class, the shape, the surface. Its verdict is a fact only
where it is as likely right as it must be *on sources it was not trained on*; a picture unlike all of training gets
none. The same code serves the bundled heads and those of a user's own labels. Knows nothing about pictures.

Letters: N pictures, D width of the features, K width of the space, C words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from assistant.disk import write_directory
from assistant.errors import RunError
from assistant.measure import Fact

if TYPE_CHECKING:
    from assistant.micrograph import Micrograph

Array = np.ndarray[Any, np.dtype[Any]]
METHOD = "head on frozen features"
_WIDTH = 96
"""Most directions K of the space."""
_NEIGHBOURS = 5
PURITY = 0.95
"""Share of its verdicts that must be right before a head speaks."""
STRENGTH = 0.02
"""Inverse of the penalty on a head's weights."""
FOLDS = 4
_LEFT_OUT = 24
"""Most words that are left out in turn."""
FOREIGN = ""
"""The word for what is no micrograph; it is never said."""
_FEWEST = 20
"""Verdicts on pictures left out that a calibration needs."""
FEW_SHARPNESS = 8.0
"""Of the cosine to each label, into the shares of labels."""
FEW_CALIBRATION = (6.9, -2.8)
"""Of the cosine to the nearest label, into how likely it is one of the labels.

Both were fitted to episodes of drawn classes and of training groups.
"""
_FORMAT = 1
HEAD_SETTINGS = ("name", "words", "calibration", "threshold", "reach")
TENSORS, SETTINGS = "heads.safetensors", "heads.json"
NEVER = 1.1
"""A threshold that no confidence reaches."""


@dataclass(frozen=True)
class Space:
    """Where features are compared: standardised, along the main directions of training."""

    mean: Array  # [D]
    scale: Array  # [D]
    directions: Array  # [D, K]
    spread: Array  # [K]: of training along each direction, and a little

    def embed(self, features: Array) -> Array:
        """Features [N, D] -> [N, K]."""
        embedded: Array = ((features - self.mean) / self.scale) @ self.directions
        return embedded


@dataclass(frozen=True)
class Head:
    """One question with its words, and the pictures it was taught them by."""

    name: str
    words: tuple[str, ...]
    weight: Array  # [K, C]
    bias: Array  # [C]
    bank: Array  # [M, K]: directions of the pictures of training, of length 1
    taught: Array  # [M]: the word of each
    calibration: tuple[float, float, float] = (1.0, 0.0, 0.0)
    """Confidence = sigmoid(a log-odds of the likeliest word + b distance + c)."""
    threshold: float = NEVER
    """Least confidence of a verdict."""
    reach: float = 1.0
    """Distance within which 99 % of the right verdicts on new samples lie."""

    def judge(self, embedded: Array, spread: Array) -> tuple[Array, Array]:
        """Probabilities [N, C] of the words, not calibrated; distance [N] to the pictures that taught the likeliest.

        The distance is 1 - cosine in the whitened space, the mean of the five nearest.
        """
        logits = embedded @ self.weight + self.bias
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = raised / raised.sum(axis=1, keepdims=True)
        apart = 1 - unit(embedded / spread) @ self.bank.T
        apart[self.taught[None] != probabilities.argmax(axis=1)[:, None]] = np.nan
        nearest = np.sort(apart, axis=1)[:, :_NEIGHBOURS]  # NaN last: fewer pictures than that may have taught it
        return probabilities, np.nanmean(nearest, axis=1)

    def confidence(self, probabilities: Array, distance: Array) -> Array:
        """How likely the likeliest word is right, [N]."""
        a, b, c = self.calibration
        return _sigmoid(a * log_odds(probabilities.max(axis=1)) + b * distance + c)


@dataclass(frozen=True)
class Judgement:
    """What a head says of one picture."""

    name: str
    word: str
    confidence: float
    reason: str
    """Why it is not said; "" where it is."""
    probabilities: Mapping[str, float]
    method: str = METHOD

    def fact(self) -> Fact:
        """The fact that an answer may quote; one that does not apply, with the reason in its note, where it may not."""
        confidence, word = (0.0, "") if self.reason else (self.confidence, self.word)
        return Fact(self.name, None, "", self.method, confidence, self.reason, "predicted", word)


@dataclass(frozen=True)
class NumberTold:
    """What a fitted run says of a number of one picture."""

    name: str
    value: float
    unit: str
    low: float | None
    high: float | None
    """The interval that holds the truth as often as promised; None where nothing is promised."""
    coverage: float
    method: str
    reason: str = ""
    """Why it is not said; "" where it is."""

    def named_in(self, question: str) -> bool:
        """Whether a question asks for it: by its name, whatever joins the words."""
        name = r"[\s_-]*".join(re.escape(word) for word in re.split(r"[\s_-]+", self.name.strip()))
        return re.search(rf"(?<!\w){name}s?(?!\w)", question, re.IGNORECASE) is not None

    @property
    def text(self) -> str:
        """Value, unit and interval: "512 MPa (480 to 544 MPa with 90 %)"."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.value:.4g}{unit} ({self.low:.4g} to {self.high:.4g}{unit} with {self.coverage:.0%})"

    @property
    def sentence(self) -> str:
        """The number as an answer states it, or that it cannot be told and why."""
        said = self.name.replace("_", " ")
        if self.reason:
            return f"The {said} cannot be told: {self.reason}."
        return f"The {said} is {self.text}, by the {self.method}."

    def fact(self) -> Fact:
        """The fact behind the sentence; one that does not apply where it is not said."""
        confidence, text = (0.0, "") if self.reason else (self.coverage, self.text)
        return Fact(self.name, None, self.unit, self.method, confidence, self.reason, "predicted", text)


@dataclass(frozen=True)
class Heads:
    """Several heads in one space."""

    space: Space
    heads: tuple[Head, ...]
    origin: str
    """Whose words these are: "bundled", "run", "examples"."""

    def verdicts(self, features: Array) -> list[list[Judgement]]:
        """What every head says of pictures [N, D]."""
        embedded = self.space.embed(features)
        rows: list[list[Judgement]] = [[] for _ in features]
        for head in self.heads:
            probabilities, distance = head.judge(embedded, self.space.spread)
            for n, confidence in enumerate(head.confidence(probabilities, distance)):
                word = head.words[int(probabilities[n].argmax())]
                reason = ""
                if word == FOREIGN or distance[n] > head.reach:
                    reason = "the picture is too unlike those that the classifier was trained on"
                elif confidence < head.threshold:
                    reason = "the classifier is not sure enough of any of its words"
                told = dict(zip(head.words, map(float, probabilities[n]), strict=True))
                rows[n].append(Judgement(head.name, word, float(confidence), reason, told))
        return rows

    def head(self, name: str) -> Head | None:
        """The head of that name."""
        return next((head for head in self.heads if head.name == name), None)


def verdicts(several: Sequence[Heads], features: Array) -> list[tuple[Judgement, ...]]:
    """What heads say of pictures [N, D], one verdict to each name: of the first that is sure, else of the first."""
    rows: list[list[Judgement]] = [[] for _ in features]
    for heads in several:
        for row, told in zip(rows, heads.verdicts(features), strict=True):
            row += told
    return list(map(first_sure, rows))


def first_sure(told: Sequence[Judgement]) -> tuple[Judgement, ...]:
    """One verdict to each name: the first that is said, else the first."""
    chosen: dict[str, Judgement] = {}
    for verdict in told:
        if verdict.name not in chosen or (chosen[verdict.name].reason and not verdict.reason):
            chosen[verdict.name] = verdict
    return tuple(chosen.values())


class Judge(Protocol):
    """What somebody else's head says of a micrograph: a run of `maemi fit`."""

    @property
    def words(self) -> Mapping[str, tuple[str, ...]]:
        """Its words by the name of the question."""

    def verdicts(self, m: Micrograph) -> tuple[Judgement, ...]:
        """Its verdicts. Raises MaemiError."""

    def numbers(self, m: Micrograph) -> tuple[NumberTold, ...]:
        """Its numbers. Raises MaemiError."""


@dataclass(frozen=True)
class LabelledFeatures:
    """Features [N, D] with what is known of each picture."""

    features: Array
    groups: tuple[str, ...]
    """Pictures of one sample, which are never split."""
    sources: tuple[str, ...]
    """Where each comes from: a laboratory, a microscope; "" for what no user brings, which is never left out."""
    words: Mapping[str, tuple[str | None, ...]]
    """Head -> its word for each picture, None where it is not known."""
    foreign: tuple[bool, ...]
    """True for pictures that are no micrographs; no word of any head is right for them."""


def fit_heads(data: LabelledFeatures, *, origin: str, untaught: float | None = None) -> Heads:
    """Heads for every name of `words` that has two words or more, calibrated on what was left out in turn.

    Left out are groups (a new sample from a known source) and whole sources, with the classes that only they have;
    where there is one source, whole words: a class that nobody taught, for which every verdict is wrong. `untaught` is
    the share of pictures of such classes where heads will be used; None takes them as often as they were left out.
    """
    space = fit_space(data.features[~np.asarray(data.foreign)])
    embedded, everything = space.embed(data.features), np.ones(len(data.features), bool)
    fitted = (_fit_head(name, embedded, data, space.spread, everything) for name in data.words)
    return Heads(space, tuple(calibrated(head, data, untaught) for head in fitted if head is not None), origin)


@dataclass(frozen=True)
class HeldOut:
    """What heads said of pictures they were not trained on."""

    kind: str
    """"groups", "sources" or "words": what was left out; "foreign" for what is no micrograph."""
    row: int
    source: str
    said: str
    truth: str | None
    log_odds: float
    distance: float

    @property
    def right(self) -> bool:
        return self.said == self.truth


def held_out(data: LabelledFeatures, name: str) -> list[HeldOut]:
    """Verdicts of a head on every picture it can be judged on, each from a fit without that picture's kin.

    The space is that of all pictures; no label shapes it.
    """
    space = fit_space(data.features[~np.asarray(data.foreign)])
    embedded, words, rows = space.embed(data.features), data.words[name], []
    for kind, out in left_out(data, name):
        judged = [n for n in np.flatnonzero(out) if words[n] is not None or data.foreign[n]]
        head = _fit_head(name, embedded, data, space.spread, ~out)
        if head is None or not judged:
            continue
        for n, p, d in zip(judged, *head.judge(embedded[judged], space.spread), strict=True):
            said = head.words[int(p.argmax())]
            what = "foreign" if data.foreign[n] else kind
            rows.append(HeldOut(what, int(n), data.sources[n], said, words[n], float(log_odds(p.max())), float(d)))
    return rows


def left_out(data: LabelledFeatures, name: str) -> Iterator[tuple[str, Array]]:
    """Masks [N] of what is left out in turn, with the kind."""
    foreign, sources = np.asarray(data.foreign), np.asarray(data.sources)
    folds = {group: number % FOLDS for number, group in enumerate(sorted(set(data.groups), key=_scattered))}
    fold = np.asarray([folds[group] for group in data.groups])
    for number in range(FOLDS):
        yield "groups", (fold == number) & ~foreign
    several = len(set(sources[~foreign]) - {""}) > 1
    for source in sorted(set(sources if several else sources[foreign]) - {""}):
        yield "sources", sources == source
    if not several:  # a source left out takes classes along that no other has
        words = sorted({word for word in data.words[name] if word is not None})
        for word in words[:: -(-len(words) // _LEFT_OUT)] if words else ():
            yield "words", np.asarray([other == word for other in data.words[name]])


def calibrated(head: Head, data: LabelledFeatures, untaught: float | None = None) -> Head:
    """The head with confidence and threshold from what it said of pictures left out."""
    from sklearn.linear_model import LogisticRegression

    # A picture that is taken for something foreign gets no verdict, right or wrong.
    rows = [row for row in held_out(data, head.name) if row.said != FOREIGN]
    right = np.asarray([row.right for row in rows])
    if len(rows) < _FEWEST or right.all() or not right.any():
        return head
    inputs = np.asarray([(row.log_odds, row.distance) for row in rows])
    kinds = np.asarray([row.kind for row in rows])
    weights, known = np.ones(len(rows)), kinds == "groups"
    rare = untaught if "words" in kinds and known.any() else None
    if rare is not None:
        weights[~known] = rare / (1 - rare) * known.sum() / (~known).sum()
    fitted = LogisticRegression(C=10.0, max_iter=1000).fit(inputs, right, sample_weight=weights)
    (a, b), (c,) = fitted.coef_[0].tolist(), fitted.intercept_.tolist()
    confidence = _sigmoid(inputs @ fitted.coef_[0] + c)
    if rare is not None:
        threshold = threshold_for(confidence, right, weights)
    else:
        each = [of for of in (known, kinds == "sources") if of.any()]
        threshold = max(PURITY, *(threshold_for(confidence[of], right[of]) for of in each))
    reach = float(np.quantile(inputs[right & (kinds == "groups"), 1], 0.99))
    return replace(head, calibration=(a, b, c), threshold=threshold, reach=reach)


def threshold_for(confidence: Array, right: Array, weights: Array | None = None, purity: float = PURITY) -> float:
    """Least confidence above which that share is right; NEVER where there is none."""
    order, weights = np.argsort(-confidence), np.ones(len(right)) if weights is None else weights
    shares = np.cumsum((right * weights)[order]) / np.cumsum(weights[order])
    pure = np.flatnonzero(shares >= purity)
    return float(confidence[order[pure[-1]]]) if len(pure) else NEVER


def few_shot(examples: Mapping[str, Array], features: Array, space: Space | None = None) -> list[tuple[Array, float]]:
    """Shares [C] of the labels, and how likely it is one of them at all, for pictures [N, D] from a few examples each.

    Pictures are compared by their directions in the whitened `space`, as heads compare them; where there is none, or it
    is one of other features, features are only standardised by the examples.
    """
    labels = list(examples)
    shown = np.concatenate([examples[label] for label in labels])
    owner = np.concatenate([np.full(len(examples[label]), n) for n, label in enumerate(labels)])
    if space is None or space.mean.size != shown.shape[1]:
        width = shown.shape[1]
        space = Space(shown.mean(axis=0), shown.std(axis=0) + 1e-3, np.eye(width), np.ones(width))
    known, asked = (unit(space.embed(rows) / space.spread) for rows in (shown, features))
    near = asked @ known.T  # [N, M]
    means = unit(np.stack([known[owner == n].mean(axis=0) for n in range(len(labels))]))
    closest = np.stack([near[:, owner == n].max(axis=1) for n in range(len(labels))], axis=1)
    alike = (asked @ means.T + closest) / 2  # [N, C]
    raised = np.exp(FEW_SHARPNESS * (alike - alike.max(axis=1, keepdims=True)))
    one_of_them = _sigmoid(FEW_CALIBRATION[0] * alike.max(axis=1) + FEW_CALIBRATION[1])
    return list(zip(raised / raised.sum(axis=1, keepdims=True), one_of_them.tolist(), strict=True))


def log_odds(p: Array, least: float = 1e-6) -> Array:
    """Log-odds of probabilities, none nearer to 0 or 1 than `least`."""
    p = np.clip(np.asarray(p, np.float64), least, 1 - least)
    odds: Array = np.log(p / (1 - p))
    return odds


def save_heads(heads: Heads, directory: Path, *, about: Mapping[str, Any]) -> None:
    """Write heads as safetensors and JSON, atomically, with a manifest. `about`: data, seeds, measured scores."""
    write_directory(directory, lambda staging: write_heads(heads, staging, about=about))


def write_heads(heads: Heads, directory: Path, *, about: Mapping[str, Any]) -> None:
    """Write the two files of heads, without a manifest of their own."""
    from safetensors.numpy import save_file

    space = heads.space
    tensors = {name: getattr(space, name).astype(np.float32) for name in ("mean", "scale")}
    tensors |= {"directions": space.directions.astype(np.float16), "spread": space.spread.astype(np.float32)}
    for head in heads.heads:
        tensors |= {f"{head.name}.weight": head.weight, f"{head.name}.bias": head.bias}
        tensors |= {f"{head.name}.bank": head.bank.astype(np.float16), f"{head.name}.taught": head.taught}
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, str(directory / TENSORS))
    settings = {
        "format": _FORMAT,
        "origin": heads.origin,
        "heads": [{name: getattr(head, name) for name in HEAD_SETTINGS} for head in heads.heads],
        "about": dict(about),
    }
    (directory / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load_heads(directory: Path) -> Heads:
    """The heads of a directory. Raises RunError `damaged_run` where they are not what `write_heads` writes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        settings = json.loads((directory / SETTINGS).read_bytes())
        if settings["format"] != _FORMAT:
            raise ValueError(f"format {settings['format']}")
        tensors = load_file(str(directory / TENSORS))
        space = Space(*(tensors[name].astype(np.float32) for name in ("mean", "scale", "directions", "spread")))
        heads = tuple(
            Head(
                name=str(kept["name"]),
                words=tuple(kept["words"]),
                weight=tensors[f"{kept['name']}.weight"].astype(np.float32),
                bias=tensors[f"{kept['name']}.bias"].astype(np.float32),
                bank=tensors[f"{kept['name']}.bank"].astype(np.float32),
                taught=tensors[f"{kept['name']}.taught"],
                calibration=tuple(kept["calibration"]),
                threshold=float(kept["threshold"]),
                reach=float(kept["reach"]),
            )
            for kept in settings["heads"]
        )
        for head in heads:
            if head.weight.shape != (space.directions.shape[1], len(head.words)):
                raise ValueError(f"the head {head.name} has other words than weights")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            "damaged_run", f"{directory} holds no heads ({error}). Train again or restore the run."
        ) from None
    return Heads(space, heads, str(settings["origin"]))


def fit_space(features: Array) -> Space:
    """The space of pictures [N, D]."""
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-3
    _, singular, directions = np.linalg.svd((features - mean) / scale, full_matrices=False)
    width = min(_WIDTH, len(features) - 1)
    variance = singular[:width] ** 2 / len(features)
    return Space(mean, scale, directions[:width].T, np.sqrt(variance + variance[-1]))


def _fit_head(name: str, embedded: Array, data: LabelledFeatures, spread: Array, chosen: Array) -> Head | None:
    """A head without calibration from the `chosen` pictures, a mask [N]; None where they have fewer than two words."""
    from sklearn.linear_model import LogisticRegression

    labels = [FOREIGN if alien else word for word, alien in zip(data.words[name], data.foreign, strict=True)]
    rows = np.asarray([n for n in np.flatnonzero(chosen) if labels[n] is not None], dtype=int)
    told = [str(labels[n]) for n in rows]
    if len(set(told) - {FOREIGN}) < 2:
        return None
    fitted = LogisticRegression(C=STRENGTH, max_iter=2000).fit(embedded[rows], told)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # one row of weights stands for two words
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    words = tuple(map(str, fitted.classes_))
    taught = np.asarray([words.index(word) for word in told], np.int16)
    bank = unit(embedded[rows] / spread)
    return Head(name, words, weight.T.astype(np.float32), bias.astype(np.float32), bank, taught)


def _sigmoid(x: Array) -> Array:
    share: Array = 1 / (1 + np.exp(-np.clip(x, -50, 50)))
    return share


def unit(rows: Array) -> Array:
    """Rows [..., D] at length 1; rows of zeros stay."""
    scaled: Array = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return scaled


def _scattered(group: str) -> str:
    import hashlib

    return hashlib.sha256(group.encode()).hexdigest()

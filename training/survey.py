"""A folder held against a fitted head: which pictures to label next, and which sources no longer look like training.

survey = Survey(Applied.load(run), [folder])
for suggestion in survey.next(20): ...

Knows nothing about how a head is fitted, or about pages.

Letters: N rows that could be read, K components, C classes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assistant.conformal import Familiarity, distances_between
from assistant.disk import fingerprint
from assistant.errors import RunError
from assistant.micrograph import group_of_name
from assistant.predictor import Predicted, Prediction
from assistant.progress import Progress
from assistant.two_samples import difference, holm
from training.applied import Applied, target_in_short
from training.labelled import LabelledRow

_SURE = 0.05
"""p, after Holm's correction, below which a source differs."""
MOST_ROWS = 1000
"""Rows of a sample that are compared, drawn by a fixed seed where there are more."""
_STRANGEST = 3
_SAME = 1e-3
"""Distance, in units of the farthest that is still known, below which two rows are one."""


@dataclass(frozen=True)
class Suggestion:
    """A row worth a label."""

    path: str
    score: float
    """Uncertainty times distance."""
    uncertainty: float
    """0 for sure to 1 for as good as guessed, the mean over targets."""
    distance: float
    """From all that is labelled or suggested before it, in units of the farthest that is still known."""
    targets: tuple[dict[str, Any], ...]
    """What would be predicted, in short."""

    def as_dict(self) -> dict[str, Any]:
        """As `maemi next --json` prints it."""
        return {**asdict(self), "targets": list(self.targets), "error": None}


@dataclass(frozen=True)
class Source:
    """One folder held against the training rows."""

    source: str
    rows: int
    groups: int
    compared: int
    unknown: int
    """Rows farther from training than 99 % of the training rows are from one another."""
    distance: float
    p: float
    p_adjusted: float
    """p after Holm's correction for the number of sources."""
    least_p: float
    """The smallest p that so few groups can give."""
    differs: bool
    moved: tuple[dict[str, Any], ...]
    """What moved most: {"name", "by"}, in deviations of the training rows."""

    def as_dict(self) -> dict[str, Any]:
        """As `maemi drift --json` prints it."""
        return {**asdict(self), "moved": list(self.moved)}


class Survey:
    """Rows of a folder or a table with what a fitted head says of them and how far they lie from training."""

    def __init__(
        self, applied: Applied, inputs: Sequence[Path], progress: Progress = lambda done, total, text: None
    ) -> None:
        """Read and predict. Raises RunError `no_features` or `old_run`, and what reading the inputs raises."""
        self.predictor = applied.predictor
        familiarity = self.predictor.familiarity
        if familiarity is None:
            raise RunError(
                "no_features", "The run has neither pictures nor numeric columns to compare by. Fit with some."
            )
        if not len(familiarity.features):
            raise RunError("old_run", "The run does not keep what its training rows looked like. Fit again.")
        self.familiarity: Familiarity = familiarity
        rows, items, self.failed = applied.read(inputs, progress)
        self.rows: list[LabelledRow] = [rows[place] for place in items]
        for row in self.rows:
            row.group = row.group or (group_of_name(row.picture) if row.picture else row.name)
        values = list(items.values())
        self.predictions: list[Prediction] = self.predictor.predict_items(values)
        self.features = self.predictor.fixed(values) if values else np.zeros((0, familiarity.features.shape[1]))
        self.root = inputs[0] if len(inputs) == 1 and inputs[0].is_dir() else None

    def next(self, count: int) -> list[Suggestion]:
        """The rows to label next, best first: farthest first from all labelled and chosen, weighed by uncertainty.

        Pictures that the run was fitted on are no candidates.
        """
        labelled = set(self.predictor.about.get("labelled", ()))
        free = np.array([not (row.picture and fingerprint(row.picture) in labelled) for row in self.rows], bool)
        unsure = np.array([uncertainty(prediction.targets) for prediction in self.predictions]) * free
        here = self.familiarity.components(self.features)
        reach = self.familiarity.limit if math.isfinite(self.familiarity.limit) else 1.0
        away = distances_between(here, self.familiarity.known).min(axis=1) / reach
        chosen: list[Suggestion] = []
        while len(chosen) < count and (unsure * away).max(initial=0.0) > 0:
            place = int((unsure * away).argmax())
            targets = tuple(target_in_short(target) for target in self.predictions[place].targets)
            score = float(unsure[place] * away[place])
            chosen.append(Suggestion(self.rows[place].name, score, float(unsure[place]), float(away[place]), targets))
            away = np.minimum(away, distances_between(here, here[[place]])[:, 0] / reach)
            away[away < _SAME] = 0.0
        return chosen

    def drift(self, *, seed: int = 0) -> list[Source]:
        """Every source held against the training rows, those that differ most first."""
        by_source: dict[str, list[int]] = defaultdict(list)
        for place, row in enumerate(self.rows):
            by_source[self.source_of(row)].append(place)
        known, known_groups = self.familiarity.features, self.familiarity.groups
        kept = _drawn(len(known), seed)
        found = []
        for name, places in by_source.items():
            some = np.array(places)[_drawn(len(places), seed)]
            gap = difference(
                self.features[some],
                [self.rows[place].group for place in some],
                known[kept],
                known_groups[kept].tolist(),
                seed=seed,
            )
            found.append((name, places, len(some), gap))
        adjusted = holm([gap.p for *_, gap in found])
        sources = [
            Source(
                source=name,
                rows=len(places),
                groups=len({self.rows[place].group for place in places}),
                compared=compared,
                unknown=sum(self.predictions[place].distance > 1.0 for place in places),
                distance=gap.distance,
                p=gap.p,
                p_adjusted=p,
                least_p=gap.least,
                differs=p < _SURE,
                moved=tuple(self._moved(places)),
            )
            for (name, places, compared, gap), p in zip(found, adjusted, strict=True)
        ]
        return sorted(sources, key=lambda source: (source.p_adjusted, -source.distance))

    def source_of(self, row: LabelledRow) -> str:
        """The folder a picture lies in, as seen from the folder surveyed; "." for all else."""
        if row.picture is None:
            return "."
        folder = row.picture.parent
        return (folder.relative_to(self.root) if self.root else folder).as_posix()

    def plane(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Places [I, 2] of training rows and [N, 2] of these, by the main directions of both; the share they show."""
        from sklearn.decomposition import PCA

        together = np.concatenate([self.familiarity.features, self.features])
        spread = together.std(axis=0)
        fitted = PCA(2, svd_solver="full")
        places = fitted.fit_transform(together / np.where(spread > 0, spread, 1.0))
        count = len(self.familiarity.features)
        return places[:count], places[count:], float(fitted.explained_variance_ratio_.sum())

    def _moved(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """The named columns, and the vectors as a whole, whose mean moved most."""
        known = self.familiarity.features
        shift = (self.features[list(places)].mean(axis=0) - known.mean(axis=0)) / np.maximum(known.std(axis=0), 1e-3)
        moved: list[dict[str, Any]] = []
        start = 0
        for name, encoder in zip(self.predictor.modalities, self.predictor.encoders, strict=True):
            part = shift[start : start + int(encoder.fixed_width)]  # type: ignore[arg-type]
            start += len(part)
            columns = getattr(encoder, "numeric", None)
            if columns is not None:
                moved += [{"name": f"{name} {c}", "by": float(by)} for c, by in zip(columns, part, strict=True)]
            elif len(part):
                moved.append({"name": name, "by": float(np.sqrt((part**2).mean()))})
        return sorted(moved, key=lambda one: -abs(one["by"]))[:_STRANGEST]


def uncertainty(targets: Sequence[Predicted]) -> float:
    """How unsure predictions are, 0..1, the mean over targets.

    Of a class the entropy, as a share of that of guessing; of a number its predicted deviation as a share of that of
    the training rows, at most 1. A fitted run is one head, so heads cannot disagree.
    """
    shares = []
    for predicted in targets:
        if predicted.target.classes:
            p = np.clip(np.array(predicted.probabilities), 1e-12, 1.0)
            shares.append(float(-(p * np.log(p)).sum() / math.log(len(p))))
        else:
            shares.append(min(1.0, (predicted.deviation or 0.0) / predicted.target.scale))
    return float(np.mean(shares))


def _drawn(count: int, seed: int) -> np.ndarray:
    """At most `MOST_ROWS` places of `count`, in order."""
    if count <= MOST_ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, MOST_ROWS, replace=False))

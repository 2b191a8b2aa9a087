"""Picture -> what speaks for each kind of picture, and how likely each is. Knows nothing about sizes, units or wording.

What is looked for is computed when it is first asked for. The likelihoods are those of a multinomial logistic model of
a few of these numbers; `benchmarks/kinds.py` fits it and says how far it can be trusted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

import numpy as np

from assistant.measurements.chords import Chords, find_chords
from assistant.measurements.facts import Kind
from assistant.measurements.nested import nested_objects
from assistant.measurements.picture import F64, Picture, running_mean
from assistant.measurements.rims import Rim, rim_of
from assistant.measurements.segmentation import Candidate, Objects, best_of, candidates, objects_of, two_phases
from assistant.measurements.texture import Direction, Period, direction, period, structure
from assistant.quantities import angle_between

LINE_ANISOTROPY = 0.45
LINE_ANGLE = 12.0
"""Largest angle between the lines by their period and by the gradients [deg]."""
OBJECT_EVIDENCE = 0.6
OBJECT_SHARE = 0.85
"""Least share of the foreground in good objects."""
ELONGATED = 5.0
"""Median aspect ratio from which separate objects are fibres."""
SURE_OF_ONE = 0.88
"""Certainty from which one body by itself is an object."""
FEWEST_IN_LATTICE = 6
"""A periodic picture with fewer objects is not made of these objects."""
PLAIN = 0.9
"""Share of compact bodies from which objects need no comparison with fibres."""
STRIPED = 0.6
"""Share of the fine variation that is the same all along the stripes of curtaining."""
TWO_PHASES = 0.74
"""Least separability at which the picture is made of two phases."""
STRIPES_APART = 12
"""Stripes closer than this part of the frame are stripes; wider bands are layers."""
STRIPE_ANISOTROPY = 0.7
ENOUGH_FIRM, ENOUGH_LENGTH = 0.1, 1.5
"""Share of the chords in long bodies, and length of these, from which more says nothing more."""
MOST_SKEWED = 2.0
SHADES = 5.0
"""Shades of a rim in which the difference between a shaded and a glowing one is counted."""


@dataclass(frozen=True)
class KindTraits:
    """What the chords of one polarity say of its bodies."""

    firm: float
    """share of their area in chords that lie beside alike ones again and again: long bodies"""
    length: float
    """of the axes of long bodies, in square roots of the frame's area"""
    round: float
    """share of their area in chords that share a middle and point everywhere: round bodies"""
    crowd: float
    """area under all chords, in frames"""
    contrast: float
    """of long bodies against their ground, in ranges of the picture"""

    @property
    def long(self) -> float:
        """0 (nothing is long) .. 1 (enough is)."""
        return min(self.firm / ENOUGH_FIRM, 1.0) * min(self.length / ENOUGH_LENGTH, 1.0)

    @classmethod
    def of(cls, chords: Chords, frame: int) -> KindTraits:
        """The traits of the chords of a frame of so many pixels."""
        steady = chords.steady
        return cls(
            firm=chords.share(chords.firm),
            length=float(chords.length[chords.firm].sum()) / frame**0.5,
            round=chords.share(chords.round & ~steady),
            crowd=float((chords.length * chords.width).sum()) / frame,
            contrast=float(np.median(chords.contrast[steady])) if steady.any() else 0.0,
        )


@dataclass(frozen=True, eq=False)
class Signs:
    """A picture and what can be asked of it; each answer is worked out once."""

    picture: Picture
    transmission: bool = False

    @cached_property
    def period(self) -> Period | None:
        return period(self.picture)

    @cached_property
    def structure(self) -> float:
        return structure(self.picture)

    @cached_property
    def direction(self) -> Direction:
        return direction(self.picture)

    @cached_property
    def phases(self) -> Candidate:
        return two_phases(self.picture)

    @cached_property
    def chords(self) -> tuple[Chords, Chords]:
        """Of bright and of dark bodies."""
        return find_chords(self.picture)

    @cached_property
    def traits(self) -> tuple[KindTraits, KindTraits]:
        """Of bright and of dark bodies."""
        bright, dark = (KindTraits.of(chords, self.picture.calm.size) for chords in self.chords)
        return bright, dark

    @cached_property
    def tried(self) -> list[Candidate]:
        """The best foreground of each polarity."""
        every = list(candidates(self.picture))
        best = (best_of(self.picture, every, bright=bright) for bright in (True, False))
        return [candidate for candidate in best if candidate is not None]

    @cached_property
    def objects(self) -> Objects | None:
        """Separate bodies of the polarity that explains its foreground better, None where neither does."""
        found = map(self._objects, self.tried)
        best = max((some for some in found if some is not None), key=quality, default=None)
        few = best is not None and self.period is not None and best.count < FEWEST_IN_LATTICE
        return None if few else best

    def _objects(self, candidate: Candidate) -> Objects | None:
        if candidate.evidence < OBJECT_EVIDENCE:
            return None
        found = objects_of(self.picture, candidate)
        if found is None or found.share_good < OBJECT_SHARE or not (found.good & found.inside).any():
            return None
        return None if found.count <= 1 and certainty(found) < SURE_OF_ONE else found

    @cached_property
    def enclosed(self) -> Objects | None:
        """Bodies that closed outlines of their own levels tell apart."""
        return nested_objects(self.picture)

    @cached_property
    def sure_objects(self) -> bool:
        """Whether there are separate bodies that needed no cut and are not long."""
        objects = self.objects
        return objects is not None and objects.candidate.compact > PLAIN and not elongated(objects)

    @cached_property
    def rim(self) -> Rim | None:
        """What surrounds separate dark bodies, None where there are none."""
        dark = self.objects is not None and not self.objects.candidate.bright
        return rim_of(self.picture, self.objects.foreground) if dark and self.objects is not None else None

    @cached_property
    def is_line_pattern(self) -> bool:
        """Whether the sharp period and the gradients agree on one direction."""
        if self.period is None or self.direction.anisotropy < LINE_ANISOTROPY:
            return False
        return angle_between(self.period.orientation, self.direction.orientation) < LINE_ANGLE

    @cached_property
    def striped(self) -> float:
        """Share of the fine variation that is the same all along the dominant direction, 0 where none dominates."""
        if self.direction.anisotropy < STRIPE_ANISOTROPY:
            return 0.0
        calm = self.picture.calm
        fine = calm - running_mean(calm, (min(calm.shape) // STRIPES_APART) | 1)  # finer than layers
        angle = np.deg2rad(self.direction.orientation)
        rows, columns = np.mgrid[: fine.shape[0], : fine.shape[1]]
        line = np.rint(rows * np.cos(angle) + columns * np.sin(angle)).astype(np.intp)
        line -= line.min()
        many = np.bincount(line.ravel())
        mean = np.bincount(line.ravel(), fine.ravel()) / np.maximum(many, 1)
        long = many > min(fine.shape) / 2
        varied = float(np.average(mean[long] ** 2, weights=many[long])) if long.any() else 0.0
        return varied / max(float(np.var(fine, dtype=np.float64)), 1e-12)

    @property
    def may_be_curtained(self) -> bool:
        """Whether it is the same all along the frame, without a period and without a second phase."""
        return self.striped > STRIPED and self.period is None and self.phases.separability < TWO_PHASES

    @cached_property
    def likelihoods(self) -> dict[Kind, float]:
        """How likely a person would call the picture each kind; none is "uniform"."""
        model = _model()
        told = sign_vector(self)
        scores = model.bias + sum(told[name] * weight for name, weight in model.weights.items())
        shares = np.exp(scores - scores.max())
        if not self.may_be_curtained:
            shares[model.kinds.index("curtaining")] = 0.0
        likely = dict(zip(model.kinds, (shares / shares.sum()).tolist(), strict=True))
        if self.transmission:  # thick or heavy matter is dark
            likely["particles"] += likely.pop("pores")
            likely["pores"] = 0.0
        return likely


def confidence(likelihood: float, test: str) -> float:
    """That a person would call a picture what this test, and with that likelihood, calls it."""
    model, odds = _model(), np.clip(likelihood, 1e-4, 1 - 1e-4)
    return float(1 / (1 + np.exp(-model.tests[test] - model.slope * np.log(odds / (1 - odds)))))


def quality(found: Objects) -> float:
    return found.share_good * found.candidate.evidence


def elongated(found: Objects) -> bool:
    """Whether half of the bodies are long."""
    shape = found.geometry
    aspect = (shape.major / shape.minor)[found.good]
    return float(np.median(aspect)) > ELONGATED


def certainty(objects: Objects) -> float:
    """Confidence that a person would outline the same objects."""
    return float(np.clip(0.4 + 0.35 * objects.candidate.evidence, 0.0, 0.95)) * objects.share_good


@dataclass(frozen=True, eq=False)
class _Model:
    kinds: tuple[Kind, ...]
    weights: dict[str, F64]
    """of each feature. [K]"""
    bias: F64
    """[K]"""
    tests: dict[str, float]
    """how much further a test is to be trusted than the likelihood, in log-odds"""
    slope: float
    """how far the likelihood itself is to be trusted"""


@cache
def _model() -> _Model:
    stored = json.loads(files(__package__).joinpath("kinds.json").read_text(encoding="utf-8"))
    kinds = tuple(stored["bias"])
    weights = {name: np.array([of[kind] for kind in kinds]) for name, of in stored["weights"].items()}
    return _Model(kinds, weights, np.array(list(stored["bias"].values())), stored["tests"], stored["slope"])


def sign_vector(it: Signs) -> dict[str, float]:
    """The numbers that the likelihoods rest on, by name."""
    bright, dark = it.traits
    objects = it.objects
    of_bright = objects is not None and objects.candidate.bright
    clear = 0.0 if objects is None else quality(objects)
    # Of the grey levels: 0 where dark and bright parts are alike.
    off = it.picture.calm - it.picture.calm.mean()
    square = off * off
    skewness = float(np.mean(square * off) / max(float(np.mean(square)) ** 1.5, 1e-12))
    return {
        "bright_firm": float(np.log(bright.firm + 0.003)),
        "dark_firm": float(np.log(dark.firm + 0.003)),
        "bright_length": float(np.log(bright.length + 0.05)),
        "dark_length": float(np.log(dark.length + 0.05)),
        "bright_long": bright.long,
        "dark_long": dark.long,
        "bright_round": float(np.log(bright.round + 0.01)),
        "dark_round": float(np.log(dark.round + 0.01)),
        "bright_crowd": bright.crowd,
        "dark_crowd": dark.crowd,
        "contrast": float(np.log(bright.contrast + 0.2)),
        "structure": float(np.log(it.structure)),
        "anisotropy": it.direction.anisotropy,
        "separability": it.phases.separability,
        "share": it.phases.share,
        "bright_objects": clear if of_bright else 0.0,
        "dark_objects": 0.0 if of_bright else clear,
        "sure_objects": float(it.sure_objects),
        "elongated": float(objects is not None and elongated(objects)),
        "shade": 0.0 if it.rim is None else float(np.tanh(it.rim.shade * SHADES)),
        "skewness": float(np.clip(skewness, -MOST_SKEWED, MOST_SKEWED)),
        "periodic": float(it.period is not None),
        "line_pattern": float(it.is_line_pattern),
        "striped": it.striped,
    }

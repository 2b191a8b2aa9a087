"""Bodies in a picture where they do not lie apart: touching ones and agglomerates. Knows nothing of kinds or units.

There are two ways to see such a picture. Round bodies that touch are told apart (`touching`); ragged patches are
agglomerates, and each is counted as one. The way is taken that a person is more likely to agree with; where neither is
likely, there is no count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from assistant.measurements.bodies import SMALLEST_AREA, label
from assistant.measurements.confidence import probability, traits_of_objects
from assistant.measurements.facts import LIKELY
from assistant.measurements.picture import Picture, opened
from assistant.measurements.segmentation import Candidate, Objects, assembled, foreground
from assistant.measurements.touching import touching_objects

LEAST_LIKELY = 0.3
"""Probability under which bodies are not told apart."""
_LIKELY = 0.6
"""Probability from which no other way is tried."""
LEAST_EVIDENCE, MOST_PATCHES = 0.3, 0.5
"""Evidence and share of a foreground whose patches may be bodies."""
LEAST_AGREEMENT = 0.3
"""Fewest over most patches under which they are no bodies."""
_WOBBLE = 0.15
"""Shift of the threshold, in contrasts, under which the count of patches should not change."""


def crowd_of(picture: Picture, candidates: list[Candidate]) -> Objects | None:
    """The bodies by the likelier way, None where neither is likely."""
    best, chance = None, LEAST_LIKELY
    for found in ways(picture, candidates):
        likely = chance_of(picture, found)
        if likely > chance:
            best, chance = found, likely
        if chance > _LIKELY:
            break
    return best


def chance_of(picture: Picture, objects: Objects) -> float:
    """The probability that a person would agree with the count or, which is more, with the size as well."""
    traits = traits_of_objects(picture, objects)
    return max(probability(name, traits) or 0.0 for name in ("count", "mean_diameter"))


def worth(picture: Picture, objects: Objects) -> float:
    """How many of the number and the sizes of bodies a person would agree with, of those that are likely enough."""
    traits = traits_of_objects(picture, objects)
    likely = [probability(name, traits) or 0.0 for name in ("count", "mean_diameter", "area_weighted_diameter")]
    return sum(chance for chance in likely if chance >= LIKELY)


def ways(picture: Picture, candidates: list[Candidate]) -> Iterator[Objects]:
    """The ways to see the picture as bodies, each worked out when it is asked for."""
    told_apart = touching_objects(picture)
    if told_apart is not None and told_apart.count > 1:
        yield told_apart
    for candidate in candidates:
        if candidate.evidence > LEAST_EVIDENCE and candidate.share < MOST_PATCHES:
            patches = patches_of(picture, candidate)
            if patches is not None and patches.count > 1:
                yield patches


def patches_of(picture: Picture, candidate: Candidate) -> Objects | None:
    """Each connected patch of the foreground as one body; None where their number rests on the threshold."""
    agreement = agreement_of(picture, candidate)
    if agreement < LEAST_AGREEMENT:
        return None
    mask = foreground(picture, candidate, rings=False)
    labels, count = label(mask)
    if count == 0:
        return None
    objects = assembled(picture, candidate, mask, labels, count)
    return replace(objects, way="patches", agreement=agreement)


def agreement_of(picture: Picture, candidate: Candidate) -> float:
    """The fewest over the most patches at the threshold, a little above and a little below it."""
    calm = picture.calm[::2, ::2]
    above = calm > candidate.threshold
    if above.all() or not above.any():
        return 0.0
    step = _WOBBLE * (float(calm[above].mean()) - float(calm[~above].mean()))
    levels = (candidate.threshold - step, candidate.threshold, candidate.threshold + step)
    counts = []
    for level in levels:
        labels, count = label(opened(calm > level if candidate.bright else calm < level))
        area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        counts.append(int((area >= SMALLEST_AREA / 4).sum()))
    return min(counts) / max(*counts, 1)

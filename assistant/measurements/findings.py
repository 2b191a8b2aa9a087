"""Picture -> what kind of picture it is and what was found in it. Knows nothing about units or wording.

The order of the questions matters: a sharp period with one direction is a line pattern; else clear separate bodies are
objects; else bodies that persist along their direction are fibres; else two clear grey phases have an area share; else
it is texture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from assistant.measurements.bodies import SMALLEST_AREA, label
from assistant.measurements.crowds import chance_of, crowd_of
from assistant.measurements.facts import Kind
from assistant.measurements.fibres import Fibres, find_fibres
from assistant.measurements.lines import Lines, measure_lines
from assistant.measurements.picture import Mask, Picture, halved, opened
from assistant.measurements.rims import Rim, rim_of
from assistant.measurements.segmentation import (
    Candidate,
    Objects,
    best_of,
    candidates,
    objects_of,
    two_phases,
)
from assistant.measurements.texture import Direction, Period, direction, period, structure
from assistant.quantities import angle_between

STRUCTURELESS = 1.6
"""Variation over that of white noise, below which a picture is uniform."""
LINE_ANISOTROPY = 0.45
LINE_ANGLE = 12.0
"""Largest angle between the lines by their period and by the gradients [deg]."""
FILLED_FRAME = 0.1
"""Largest difference between line over pitch and the bright share of a frame that is filled with lines."""
OBJECT_EVIDENCE = 0.6
OBJECT_SHARE = 0.85
"""Least share of the foreground in good objects."""
PLAIN = 0.9
"""Share of compact bodies from which objects need no comparison with fibres."""
ELONGATED = 5.0
"""Median aspect ratio from which separate objects are fibres."""
TWO_PHASES = 0.74
"""Least separability at which an area share of a picture without separate objects means something."""
UNSURE = 0.45
"""Confidence of a share where the phases overlap."""
APART = 0.95
"""Share of compact bodies before any cut from which long objects lie apart."""
FAINTEST = 0.55
"""Least separability of what is taken for fibres: less are a few bright edges on an even ground."""
GROUND_SHARE = 0.75
"""A phase that takes up more of the frame is the ground and not the fibres."""
PLAINLY_LONG = 0.6
"""Persistence from which the bodies between compact gaps are fibres."""
FEWEST_IN_LATTICE = 6
"""A periodic picture with fewer objects is not made of these objects."""
CLEARLY_IN_FRONT, CLEARLY_GROUND = 0.6, 0.88
"""Share of the bright phase up to which it is the one in front, and from which the dark one is."""
FEWEST_PORES = 20
LARGE_PORE = 0.03
"""Area-weighted mean pore area above which a dark phase is a ground [share of the frame]."""
ANGULAR = 1.75
"""Mean aspect ratio above which the dark parts of a picture are gaps between fibres."""
SURE_OF_ONE = 0.88
"""Certainty from which one body by itself is an object."""
FOAM = 0.3
"""Share of the frame from which openings without a period are those of a foam."""
FEW = 2
"""So many dark bodies are openings only where their rims glow."""
GLOWS = 0.1
WOBBLE, MOST_CHANGE = 0.12, 1.25
"""Shift of the threshold, in contrasts, and by how much the number of bodies may change with it."""
PORE_SHARE = 0.7
"""Share of the dark phase in round bodies from which it counts as pores."""


@dataclass
class Findings:
    """What was found; parts that were not found, or not looked for, are None."""

    picture: Picture
    kind: Kind = "texture"
    direction: Direction | None = None
    period: Period | None = None
    lines: Lines | None = None
    fibres: Fibres | None = None
    objects: Objects | None = None
    share: float | None = None
    """of the frame that the phase in front takes up"""
    share_confidence: float = 0.0
    share_of_bright: bool = True
    """whether the bright phase is the one in front"""
    phase: Mask | None = None
    """[h, w] where that phase is, in the small copy"""


def _best_candidates(picture: Picture) -> list[Candidate]:
    """The best foreground of each polarity."""
    tried = list(candidates(picture))
    best = (best_of(picture, tried, bright=bright) for bright in (True, False))
    return [candidate for candidate in best if candidate is not None]


def _best_objects(picture: Picture, tried: list[Candidate]) -> Objects | None:
    """The objects of the polarity that explains its foreground better, None where neither does."""
    best: Objects | None = None
    for candidate in tried:
        if candidate.evidence < OBJECT_EVIDENCE:
            continue
        found = objects_of(picture, candidate)
        if found is None or found.share_good < OBJECT_SHARE or not (found.good & found.inside).any():
            continue
        if found.count <= 1 and _certainty(found) < SURE_OF_ONE:
            continue
        if best is None or _quality(found) > _quality(best):
            best = found
    return best


def _quality(found: Objects) -> float:
    return found.share_good * found.candidate.evidence


def _elongated(found: Objects) -> bool:
    shape = found.geometry
    aspect = (shape.major / shape.minor)[found.good]
    return float(np.median(aspect)) > ELONGATED


def _fibres(picture: Picture) -> Fibres | None:
    """Bright fibres, else dark ones on a bright ground that is clearly another phase."""
    phases = two_phases(picture)
    if phases.separability < FAINTEST:
        return None
    found = find_fibres(picture, phases, bright=True) if phases.share < GROUND_SHARE else None
    if found is None and phases.separability > TWO_PHASES and phases.share > 0.6:
        return find_fibres(picture, phases, bright=False)
    return found


def _is_line_pattern(found: Findings) -> bool:
    if found.period is None or found.direction is None or found.direction.anisotropy < LINE_ANISOTROPY:
        return False
    return angle_between(found.period.orientation, found.direction.orientation) < LINE_ANGLE


def _as_lines(found: Findings) -> Findings:
    assert found.period is not None
    found.kind = "lines"
    found.lines = measure_lines(found.picture, found.period)
    if found.lines is not None and abs(found.lines.share - two_phases(found.picture).share) < FILLED_FRAME:
        found.share, found.share_confidence = found.lines.share, 0.7
    return found


def _as_objects(found: Findings, objects: Objects) -> Findings:
    found.share_of_bright = objects.candidate.bright
    found.share_confidence, found.phase = _certainty(objects), objects.foreground
    found.kind = "particles"
    if not objects.candidate.bright:
        rim = rim_of(found.picture, objects.foreground)
        if not rim.stands and (rim.shade > GLOWS or objects.count > FEW):
            return _as_pores(found, objects, rim)
    found.objects = objects
    outline = float(objects.perimeter.sum())
    found.share = float(objects.foreground.mean()) - objects.outset * outline / objects.foreground.size
    return found


def _as_pores(found: Findings, objects: Objects, rim: Rim) -> Findings:
    """Openings: counted where they are clear bodies; else only their share is known."""
    dark = objects.candidate
    if found.period is not None or (dark.compact > PLAIN and _stable(found.picture, dark)):
        found.objects = replace(objects, outset=-rim.outset)
    else:
        phases, dark_phase = two_phases(found.picture), objects.foreground
        if phases.separability > TWO_PHASES:
            dark_phase = opened(found.picture.calm <= phases.threshold)
        else:  # a threshold would cut the noise of the ground in two
            found.share_confidence = min(found.share_confidence, UNSURE)
        rim = rim_of(found.picture, dark_phase, sloping=_is_foam(dark_phase))
    found.kind, found.phase, found.share = "pores", rim.opening, float(rim.opening.mean())
    return found


def _is_foam(dark: Mask) -> bool:
    """Whether openings lie so close that walls are all there is between them; such walls slope."""
    return float(dark.mean()) > FOAM


def _stable(picture: Picture, dark: Candidate) -> bool:
    """Whether as many dark bodies are seen a little below the threshold as above; struts inside a pore cut it up."""
    above = picture.calm > dark.threshold
    step = WOBBLE * (float(picture.calm[above].mean()) - float(picture.calm[~above].mean()))
    counts = []
    for level in (dark.threshold - step, dark.threshold + step):
        labels, count = label(opened(picture.calm < level))
        counts.append(int((np.bincount(labels.ravel(), minlength=count + 1)[1:] >= SMALLEST_AREA).sum()))
    return max(counts) <= MOST_CHANGE * min(counts)


def _as_fibres(found: Findings, fibres: Fibres) -> Findings:
    found.kind, found.fibres, found.share_of_bright = "fibres", fibres, fibres.bright
    found.phase = fibres.mask
    if fibres.separability > 0.68 and fibres.resolved:
        found.share = fibres.coverage
        found.share_confidence = 0.7 if fibres.separability > TWO_PHASES else UNSURE
    return found


def _certainty(objects: Objects) -> float:
    """Confidence that a person would outline the same objects."""
    return float(np.clip(0.4 + 0.35 * objects.candidate.evidence, 0.0, 0.95)) * objects.share_good


def _as_phases(found: Findings) -> Findings:
    """A picture without separate bodies: pores where the dark phase is made of round parts, else texture."""
    bright = two_phases(found.picture)
    if bright.separability < TWO_PHASES:
        return found
    openings = opened(found.picture.calm <= bright.threshold)
    rim = rim_of(found.picture, openings)
    opening = float(rim.opening.mean())
    # Between these two limits either phase may be the ground, and no share is reported.
    if bright.share <= CLEARLY_IN_FRONT or bright.share >= CLEARLY_GROUND:
        found.share_of_bright = bright.share <= CLEARLY_IN_FRONT
        found.share, found.share_confidence = 1 - opening if found.share_of_bright else opening, 0.5
        found.phase = rim.opening ^ found.share_of_bright
    rough = halved(found.picture)
    dark = objects_of(rough, _inverse(bright))
    if dark is not None and _are_pores(dark) and not rim.stands:
        light = objects_of(rough, bright)
        if light is None or light.share_good < dark.share_good:
            if found.period is None:
                rim = rim_of(found.picture, openings, sloping=_is_foam(openings))
            found.kind, found.share, found.share_of_bright = "pores", float(rim.opening.mean()), False
            found.share_confidence, found.phase = 0.5, rim.opening
    return found


def _are_pores(dark: Objects) -> bool:
    """Whether a dark phase is made of many small round parts rather than being the ground between bright bodies."""
    area = dark.geometry.area[dark.good]
    small = len(area) >= FEWEST_PORES and float((area**2).sum()) < LARGE_PORE * dark.foreground.size * float(area.sum())
    return small and dark.share_good > PORE_SHARE and not _angular(dark)


def _angular(dark: Objects) -> bool:
    """Whether dark bodies are long or pointed on average, as the gaps between crossing fibres are."""
    shape = dark.geometry
    aspect = (shape.major / shape.minor)[dark.good]
    return len(aspect) > 0 and float(np.average(aspect, weights=shape.area[dark.good])) > ANGULAR


def _inverse(bright: Candidate) -> Candidate:
    return replace(bright, bright=False, share=1 - bright.share)


def find(picture: Picture) -> Findings:
    """Decide what kind of picture it is and measure what that kind has."""
    found = Findings(picture, period=period(picture))
    if found.period is None and structure(picture) < STRUCTURELESS:
        found.kind = "uniform"
        return found
    found.direction = direction(picture)
    if _is_line_pattern(found):
        return _as_lines(found)
    tried = _best_candidates(picture)
    objects = _best_objects(picture, tried)
    if objects is not None and found.period is not None and objects.count < FEWEST_IN_LATTICE:
        objects = None
    sure = objects is not None and objects.candidate.compact > PLAIN and not _elongated(objects)
    # The gaps of a mesh are compact too; only in a periodic mesh are they what a person would name.
    if objects is not None and sure and (objects.candidate.bright or found.period is not None):
        return _as_objects(found, objects)
    fibres = _fibres(picture)
    if objects is not None and sure and (fibres is None or fibres.persistence < PLAINLY_LONG):
        return _as_objects(found, objects)
    if fibres is not None:
        # Wires that lie apart can be counted as well; cut pieces of a network cannot.
        apart = objects is not None and _elongated(objects) and objects.candidate.compact > APART
        found.objects = objects if apart else None
        return _as_fibres(found, fibres)
    # Long dark bodies that are no fibres are the gaps between bright ones.
    gaps = (
        objects is not None
        and not objects.candidate.bright
        and (_elongated(objects) or (not sure and _angular(objects)))
    )
    if gaps:
        objects = None
    if not sure and found.period is None:
        crowd = crowd_of(picture, tried)
        if crowd is not None and (objects is None or chance_of(picture, crowd) > chance_of(picture, objects)):
            objects = crowd
    return _as_phases(found) if objects is None else _as_objects(found, objects)

"""Picture -> what kind of picture it is and what was found in it. Knows nothing about units or wording.

`TESTS` holds the questions in their order, each with its reason; the first that is answered decides what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from assistant.measurements.bodies import SMALLEST_AREA, label
from assistant.measurements.crowds import chance_of, crowd_of, worth
from assistant.measurements.facts import Kind
from assistant.measurements.fibres import Fibres, fibres_closer, fibres_of
from assistant.measurements.granulometry import grain_size
from assistant.measurements.intercepts import THINNEST, Phases, wall_thickness
from assistant.measurements.kinds import PLAIN, TWO_PHASES, Signs, certainty, confidence, elongated
from assistant.measurements.lines import Lines, measure_lines
from assistant.measurements.picture import Mask, Picture, halved, opened
from assistant.measurements.rims import Rim, rim_of
from assistant.measurements.segmentation import Candidate, Objects, objects_of
from assistant.measurements.texture import Direction, Period

STRUCTURELESS = 1.6
"""Variation over that of white noise, below which a picture is uniform."""
FILLED_FRAME = 0.1
"""Largest difference between line over pitch and the bright share of a frame that is filled with lines."""
STRIPES = 0.5
"""Likelihood of curtaining from which it is called that."""
PLAINLY_LONG, LONG = 0.5, 0.4
"""Likelihood of fibres from which no compact bodies speak against them, and from which they are looked for."""
FOLLOWED = 0.8
"""Likelihood from which fibres have a width: under it rims of bodies, beams and walls were followed as often."""
ONE_WAY, _ALIKE, STRAIGHT = 0.9, -0.6, 0.66
"""Alignment, and share of the dark long bodies over the bright ones [log], from which nothing tells fibres from the
gaps between them, as in a wrinkled film. Wrinkles bend; wires whose edges keep to one direction so far do not."""
BY_DESIGN = 0.3
"""Share of the edges along two directions at right angles from which openings that do not repeat were cut for a device:
pores have round mouths, whose edges run everywhere (0.05), and etched holes lie on a lattice."""
NO_PORES = 0.05
"""Likelihood of pores under which dark bodies in a crowd are none, whatever their rims look like."""
IN_FRONT = 0.6
"""Share of the bright phase from which fibres may be the dark one."""
DENSE, THIN = 0.2, 4.5
"""Area under chords [frames] and width [px of the small copy] of mats that are looked at in full resolution."""
# Who agrees with the number of bodies, or their size, agrees that there are bodies.
BODIES_IN_A_CROWD = 0.9
"""Share of the pictures seen as a crowd of doubtful number and size in which there are bodies at all."""
PACKED = 0.6
"""Likelihood from which bright bodies that cannot be told apart are particles, and dark ones pores."""
FILLS, ONE_PHASE = 0.33, 0.7
"""Share of the bright part, and separability of the two, from which bodies fill the frame. Patches in a matrix are no
packing: how far their grey levels resemble each other depends on how far they lie apart."""
SURELY_UNIFORM = 0.95
"""Confidence that there is nothing to see where nothing varies more than noise."""
UNSURE = 0.45
"""Confidence of a share where the phases overlap."""
SEPARATE = 0.68
"""The same for fibres, which are told from their ground by shape as well."""
CROWDED = 0.4
"""Share of the frame from which fibres are a mat."""
APART = 0.95
"""Share of compact bodies before any cut from which long objects lie apart."""
# In between either phase may be the ground.
CLEARLY_IN_FRONT, CLEARLY_GROUND = 0.6, 0.88
"""Share of the bright phase up to which it is the one in front, and from which the dark one is."""
# A dark phase in a few large parts is the ground between bright bodies, not pores.
FEWEST_PORES = 20
LARGE_PORE = 0.03
"""Area-weighted mean pore area above which a dark phase is a ground [share of the frame]."""
ANGULAR = 1.75
"""Mean aspect ratio above which the dark parts of a picture are gaps between fibres."""
FOAM = 0.3
"""Share of the frame from which openings without a period are those of a foam."""
DEEP, ROUND = 0.8, 0.88
"""Most signal of an opening over that of the ground, and least compactness of openings by area."""
SURELY_ENCLOSED = 0.75
"""Worth of bodies that go before fibres: their walls may well be long and thin."""
FEW = 2
"""So many dark bodies are openings only where their rims glow."""
# The edge of an opening is convex and glows in secondary electrons.
GLOWS = 0.1
# A number of pores that rests on the threshold is none: struts inside a pore cut it up.
WOBBLE, MOST_CHANGE = 0.12, 1.25
"""Shift of the threshold, in contrasts, and by how much the number of bodies may change with it."""
PORE_SHARE = 0.7
"""Share of the dark phase in round bodies from which it counts as pores."""


@dataclass
class Findings:
    """What was found; parts that were not found, or not looked for, are None."""

    picture: Picture
    kind: Kind = "texture"
    confidence: float = 0.0
    """that a person would call it that"""
    test: str = ""
    """the name of the test that decided it"""
    likelihood: float = 0.0
    """of that kind by the numbers alone"""
    direction: Direction | None = None
    period: Period | None = None
    lines: Lines | None = None
    fibres: Fibres | None = None
    objects: Objects | None = None
    grain_size: float | None = None
    """of a packing whose bodies were not told apart [px of the full picture]"""
    share: float | None = None
    """of the frame that the phase in front takes up"""
    share_confidence: float = 0.0
    share_of_bright: bool = True
    """whether the bright phase is the one in front"""
    phase: Mask | None = None
    """[h, w] where that phase is, in the small copy"""
    walls: float | None = None
    """thickness of the walls between cells [px of the full picture]"""
    phases: Phases | None = None
    """two phases with their mean chords, where they were asked for"""
    darkest: float = 0.0
    """signal of the darkest thousandth of a surface without openings over the median; 0 where it is not known"""


@dataclass(frozen=True)
class Test:
    """One question to a picture: what is found where the answer is yes, None where it is no."""

    name: str
    reason: str
    answer: Callable[[Signs], Findings | None]


def find(picture: Picture, *, transmission: bool = False) -> Findings:
    """Decide what kind of picture it is and measure what that kind has.

    In transmission thick or heavy matter is dark, so dark bodies are no pores.
    """
    return decide(Signs(picture, transmission))


def decide(it: Signs) -> Findings:
    """What the first test says that has an answer."""
    test, found = next((test, found) for test in TESTS if (found := test.answer(it)) is not None)
    if found.kind != "pores" and not it.transmission:
        found.darkest = _darkest(it.picture)
    # The model of the likelihoods does not know this kind.
    if found.kind == "uniform":
        return replace(found, test=test.name, likelihood=SURELY_UNIFORM, confidence=SURELY_UNIFORM)
    likely = it.likelihoods[found.kind]
    if test.name in ("enclosed", "crowd"):  # its confidence is known already
        return replace(found, test=test.name, likelihood=likely)
    return replace(found, test=test.name, likelihood=likely, confidence=confidence(likely, test.name))


def _darkest(picture: Picture) -> float:
    dark, usual = (float(level) - picture.black for level in np.percentile(picture.calm[::2, ::2], [0.1, 50]))
    return dark / max(usual, 1e-6)


def _uniform(it: Signs) -> Findings | None:
    return Findings(it.picture, "uniform") if it.period is None and it.structure < STRUCTURELESS else None


def _lines(it: Signs) -> Findings | None:
    if not it.is_line_pattern:
        return None
    assert it.period is not None
    found = _seen(it, "lines")
    found.lines = measure_lines(it.picture, it.period)
    # A share of the pitch is one of the frame only where lines fill the frame.
    if found.lines is not None and abs(found.lines.share - it.phases.share) < FILLED_FRAME:
        found.share, found.share_confidence = found.lines.share, 0.7
    return found


def _plain_objects(it: Signs) -> Findings | None:
    objects = it.objects
    # The gaps of a mesh are compact too; only in a periodic mesh are they what a person would name.
    if objects is None or not it.sure_objects or not (objects.candidate.bright or it.period is not None):
        return None
    return _as_objects(it, objects)


def _curtaining(it: Signs) -> Findings | None:
    return _seen(it, "curtaining") if it.likelihoods["curtaining"] > STRIPES else None


def _plain_fibres(it: Signs) -> Findings | None:
    return _as_fibres(it) if it.likelihoods["fibres"] > PLAINLY_LONG else None


def _sure_objects(it: Signs) -> Findings | None:
    return _as_objects(it, it.objects) if it.objects is not None and it.sure_objects else None


def _fibres(it: Signs) -> Findings | None:
    return _as_fibres(it) if it.likelihoods["fibres"] > LONG else None


def _other_objects(it: Signs) -> Findings | None:
    objects = it.objects
    if objects is None:
        return None
    # Long dark bodies that are no fibres are the gaps between bright ones.
    long = elongated(objects) or (not it.sure_objects and _angular(objects))
    return None if long and not objects.candidate.bright else _as_objects(it, objects)


def _enclosed(it: Signs) -> Findings | None:
    if it.period is not None or it.enclosed is None or it.enclosed.candidate.bright:
        return None  # bright bodies may touch, so the other ways to tell them apart come first
    if it.sure_objects and it.objects is not None and _as_objects(it, it.objects).objects is not None:
        return None
    likely, fibres = worth(it.picture, it.enclosed), it.likelihoods["fibres"]
    return _of_enclosed(it, it.enclosed) if likely >= SURELY_ENCLOSED or likely > fibres > LONG else None


def _of_enclosed(it: Signs, objects: Objects) -> Findings:
    found = replace(_as_objects(it, objects), confidence=BODIES_IN_A_CROWD, share_confidence=UNSURE)
    if found.kind == "pores" and found.objects is not None:
        cells = np.where(np.append(False, objects.sized)[objects.labels], objects.labels, 0)
        walls = wall_thickness(cells) + 2 * found.objects.outset
        found.walls = walls * it.picture.factor if walls >= THINNEST else None
    return found


def _crowd(it: Signs) -> Findings | None:
    if it.sure_objects or it.period is not None:
        return None
    crowd = crowd_of(it.picture, it.tried)
    enclosed = 0.0 if it.enclosed is None else worth(it.picture, it.enclosed)
    if it.enclosed is not None and enclosed > (0.0 if crowd is None else worth(it.picture, crowd)):
        return _of_enclosed(it, it.enclosed)
    if crowd is None:
        return None
    chance = chance_of(it.picture, crowd)
    # Bodies that had to be cut apart compete with the crowd: a person agrees with the likelier.
    other = _other_objects(it)
    if other is not None and it.objects is not None and chance_of(it.picture, it.objects) >= chance:
        return None
    return replace(_as_objects(it, crowd), confidence=max(chance, BODIES_IN_A_CROWD))


def _packing(it: Signs) -> Findings | None:
    packed = it.objects is None and it.likelihoods["particles"] > PACKED
    found = _as_phases(it) if packed else None
    if found is None or found.kind == "pores":
        return None
    # The covariance of patches in a matrix knows how far they lie apart, not how large they are.
    fills = it.phases.share > FILLS and it.phases.separability < ONE_PHASE
    return replace(found, kind="particles", grain_size=grain_size(it.picture) if fills else None)


def _openings(it: Signs) -> Findings | None:
    if it.likelihoods["pores"] <= PACKED or not _may_be_pores(it):
        return None
    found = _as_phases(it)
    if found.share is not None and found.share_of_bright:
        # The share of pores is that of the dark phase, whichever was taken for the one in front.
        found.share, found.phase = 1 - found.share, None if found.phase is None else ~found.phase
    return replace(found, kind="pores", share_of_bright=False)


TESTS = (
    Test("uniform", "Nothing varies more than noise does.", _uniform),
    Test("line pattern", "A sharp period and the gradients agree on one direction: a line pattern.", _lines),
    Test(
        "plain objects",
        "Separate bright bodies, and bodies in a lattice, are what a person would name.",
        _plain_objects,
    ),
    Test(
        "curtaining", "What is the same all along the frame, without a period, was drawn by the ion beam.", _curtaining
    ),
    Test("enclosed", "What closed walls surely surround are bodies, whatever runs between them.", _enclosed),
    Test(
        "plain fibres",
        "Bodies go on and on along their direction; the gaps between them may well be compact.",
        _plain_fibres,
    ),
    Test("sure objects", "Dark compact bodies without fibres between them are objects.", _sure_objects),
    Test("fibres", "Bodies are long, and nothing in the picture is compact.", _fibres),
    Test("crowd", "Touching bodies and agglomerates are what a person is likely to see and count.", _crowd),
    Test(
        "other objects", "Bodies had to be cut apart; long dark ones are the gaps between bright ones.", _other_objects
    ),
    Test("packing", "Round bright bodies fill the frame and cannot be told apart by any threshold.", _packing),
    Test("openings", "Round dark openings fill the frame, though their walls cut them up.", _openings),
    Test("phases", "What is left has two grey phases, or is texture.", lambda it: _as_phases(it)),
)


def _seen(it: Signs, kind: Kind) -> Findings:
    return Findings(it.picture, kind, direction=it.direction, period=it.period)


def _as_objects(it: Signs, objects: Objects) -> Findings:
    found = _seen(it, "particles")
    found.share_of_bright = objects.candidate.bright
    found.share_confidence, found.phase = certainty(objects), objects.foreground
    rim = it.rim  # that of the separate bodies; a crowd has its own
    if objects is not it.objects:
        rim = None if objects.candidate.bright else rim_of(it.picture, objects.foreground)
    # The ground beside a body that stands on it is shaded: dark particles have no porosity.
    opens = rim is not None and not rim.stands and (rim.shade > GLOWS or objects.count > FEW)
    if objects.way == "nested":
        opens = opens and rim is not None and rim.shade > GLOWS and _dark(it.picture, objects)
    elif objects is not it.objects:
        opens = opens and it.likelihoods["pores"] > NO_PORES
    if rim is not None and opens and _may_be_pores(it):
        return _as_pores(it, found, objects, rim)
    found.objects = objects
    # The drawn outlines lie outside the true ones by the outset, which a share must not count.
    outline = float(objects.perimeter.sum())
    found.share = float(objects.foreground.mean()) - objects.outset * outline / objects.foreground.size
    return found


def _dark(picture: Picture, objects: Objects) -> bool:
    """Whether round bodies give so much less signal than what is between them that they are deep.

    A phase of another composition differs by less, and precipitates are lobed.
    """
    body, ground = (float(np.median(picture.calm[part])) for part in (objects.foreground, ~objects.foreground))
    kept, shape = objects.sized, objects.geometry
    compact = float(np.average(shape.compactness[kept], weights=shape.area[kept]))
    return body - picture.black < DEEP * (ground - picture.black) and compact > ROUND


def _may_be_pores(it: Signs) -> bool:
    # A device's windows do not repeat and have straight edges; etched holes lie on a lattice and stay.
    by_design = it.period is None and it.direction.right_angled > BY_DESIGN
    return not it.transmission and not by_design  # in transmission thick or heavy matter is dark


def _as_pores(it: Signs, found: Findings, objects: Objects, rim: Rim) -> Findings:
    """Openings: counted where they are clear bodies; else only their share is known."""
    dark = objects.candidate
    if objects.way == "nested" or found.period is not None or (dark.compact > PLAIN and _stable(found.picture, dark)):
        found.objects = replace(objects, outset=-rim.outset)
    else:
        phases, dark_phase = it.phases, objects.foreground
        if phases.separability > TWO_PHASES:
            dark_phase = opened(found.picture.calm <= phases.threshold)
        else:  # a threshold would cut the noise of the ground in two
            found.share_confidence = min(found.share_confidence, UNSURE)
        # The walls of a foam slope and glow up to the mouth: the outline is the crest of that glow.
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


def _as_fibres(it: Signs) -> Findings | None:
    """Bright fibres, or dark ones on a bright ground that is clearly another phase; None where none can be followed."""
    dark_in_front = it.phases.separability > TWO_PHASES and it.phases.share > IN_FRONT
    bright = not (dark_in_front and it.traits[1].firm > it.traits[0].firm)
    fibres = fibres_of(it.picture, it.chords, bright=bright)
    dense = it.picture.factor > 1 and it.traits[0 if bright else 1].crowd > DENSE
    # Fibres too thin for the small copy are looked for at full resolution.
    if dense and (fibres is None or fibres.width <= THIN * it.picture.factor):
        fibres = fibres_closer(it.picture, bright=bright) or fibres
    if fibres is None:
        return None
    found = _seen(it, "fibres")
    # A width is that of folds where all run one way, bend, and have gaps as long as themselves.
    wrinkled = fibres.alignment > ONE_WAY and fibres.gaps > _ALIKE and it.direction.right_angled < STRAIGHT
    found.fibres = fibres if it.likelihoods["fibres"] > FOLLOWED and not wrinkled else None
    found.share_of_bright = bright
    # Wires that lie apart can be counted as well; cut pieces of a network cannot.
    objects = it.objects
    apart = objects is not None and elongated(objects) and objects.candidate.compact > APART
    found.objects = objects if apart else None
    if it.phases.separability > SEPARATE:
        found.phase = opened((it.picture.calm > it.phases.threshold) == bright)
        # The denoised copy shows fibres wider than they are.
        found.share = _coverage(it, found.phase, bright=bright) / fibres.swelling
        found.share_confidence = 0.7 if it.phases.separability > TWO_PHASES else UNSURE
    return found


def _coverage(it: Signs, mask: Mask, *, bright: bool) -> float:
    """Share of the frame; a dense mat reaches into the shadows, where Li's threshold follows and Otsu's does not."""
    share = float(mask.mean())
    if share < CROWDED or not bright:
        return share
    from skimage.filters import threshold_li

    calm = it.picture.calm[::2, ::2]
    return float((calm > threshold_li(calm, tolerance=0.01)).mean())


def _as_phases(it: Signs) -> Findings:
    """A picture without separate bodies: pores where the dark phase is made of round parts, else texture."""
    found, bright = _seen(it, "texture"), it.phases
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
    dark = objects_of(rough, replace(bright, bright=False, share=1 - bright.share))
    if dark is not None and _are_pores(dark) and not rim.stands and _may_be_pores(it):
        # Pores only where the dark phase makes better bodies than the bright one.
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

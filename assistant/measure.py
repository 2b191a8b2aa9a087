"""Micrograph -> measured facts with units, methods and confidences. Knows nothing about files, models or class labels.

It first decides from the picture itself what kind it is (lines, separate particles or pores, fibres, texture,
uniform), then reports what that kind has; a quantity that the picture does not have is there too, as "not applicable".
Only pixels outside the info bar are seen. numpy, SciPy and scikit-image do the image processing; the first measurement
imports them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from assistant.measurements.claims import NUMBER_WORDS, Claim, read_claims
from assistant.measurements.corrections import corrected, corrected_stream, disagreements, missing, sentence_of
from assistant.measurements.facts import (
    FACT_NAMES,
    LIKELY,
    LINE_ORDER,
    NO_OPENINGS,
    OPENINGS,
    READ,
    Fact,
    Facts,
    Known,
    not_applicable,
)
from assistant.measurements.references import fact_entries, fact_line, filled, quoted, reference_words, references_of
from assistant.measurements.statements import Statement, read_statements, sentences
from assistant.quantities import QUANTITIES

if TYPE_CHECKING:
    from PIL import Image

    from assistant.measurements.confidence import Traits
    from assistant.measurements.findings import Findings
    from assistant.measurements.marks import Strokes
    from assistant.measurements.objects import Body
    from assistant.measurements.picture import F64, Mask, Pixels
    from assistant.measurements.segmentation import Objects
    from assistant.micrograph import Micrograph

__all__ = [
    "FACT_NAMES",
    "LINE_ORDER",
    "NUMBER_WORDS",
    "READ",
    "Claim",
    "Fact",
    "Facts",
    "Known",
    "Statement",
    "bodies",
    "corrected",
    "corrected_stream",
    "disagreements",
    "fact_entries",
    "fact_line",
    "figures",
    "filled",
    "found_in",
    "known_of",
    "marks",
    "measure",
    "measure_pixels",
    "missing",
    "quoted",
    "read_claims",
    "read_statements",
    "reference_words",
    "references_of",
    "sentence_of",
    "sentences",
]

DIRECTED = 0.5
"""Least anisotropy at which a picture that is no line pattern has an orientation."""
DIRECTED_LATTICE = 0.7
"""The same where the picture repeats: a lattice of bodies lit from one side is no alignment."""
SURE_OF_KIND = 0.4
"""Confidence under which what is said depends on no kind."""
THROUGH_KV = 60.0
"""Least voltage of a transmission microscope [kV]."""
_TRANSMISSION = re.compile(
    r"(?:^|[^a-z])(?:S?TEM|HAA?DF|L?M?ADF|A?BF|bright.?field|transmi\w+)(?:$|[^a-z])", re.IGNORECASE
)
_LONG, MANY = 2.0, 5
"""Median aspect ratio from which many bodies have one."""
_LEAST_LIKELY = 0.2
"""Probability under which a quantity is not stated."""
FINE_GRAINS = 30.0
"""Grain size under which the roughness of the grains counts as grains too [px of the small copy]."""
SURE_OF_GRAINS, SURE_OF_FINE_GRAINS = 0.55, 0.35
"""Share of the drawn beds that fill the frame whose grain size is within 20 % of the true one: 25 of 46, 8 of 23."""
SIZES = ("mean_diameter", "area_weighted_diameter", "grain_size", "fibre_width", "line_width")
"""How large structures are; where there is none of them, chords tell."""
NO_OPENING = 0.65
"""Signal of the darkest thousandth of a picture over the median from which it has no openings: they give half of the
signal of what is around them, or less (0.02 to 0.58 in pictures of tissues and of porous polymers)."""
FEWEST_NEIGHBOURS = 3
FEWEST_FOR_PERCENTILES = 5
_FINE = 10.0
"""Diameter under which outlines are too coarse for a circularity [px of the small copy]."""

READ_FROM_FILE, READ_FROM_BAR = 0.99, 0.9
"""Confidence in what a file's metadata say, and in what its info bar says."""

COUNTED = "objects with their centre in the frame, "
WAYS = {
    "necks": QUANTITIES["count"].method,
    "joined": COUNTED + "parts between seams and necks, joined by shape and border",
    "patches": COUNTED + "each connected patch is one",
    "nested": COUNTED + "each enclosed by an outline of its own grey level",
}
"""How objects are counted, by how touching ones were told apart."""


class _Sheet:
    """Collects facts in the units of one picture; what is never added, or is unlikely, is not applicable."""

    def __init__(self, px_to_unit: float | None, traits: Traits) -> None:
        self._scale, self._unit = (1.0, "px") if px_to_unit is None else (px_to_unit, "nm")
        self._traits = traits
        self._found: dict[str, Fact] = {}
        self._absent: dict[str, str] = {}

    def add(
        self, name: str, value: float, *, unit: str = "", confidence: float, note: str = "", method: str = "",
        traits: Traits | None = None,
    ) -> None:  # fmt: skip
        """Add a quantity without a length in it, as likely as the model of it says; what is not finite is left out."""
        from assistant.measurements.confidence import probability, traits_of_statement

        if not (abs(value) < float("inf") and confidence > 0):
            return
        likely = probability(name, {**self._traits, **traits_of_statement(confidence), **(traits or {})})
        sure = min(confidence, 1.0) if likely is None else likely
        if round(sure, 3) > 0 and (likely is None or likely > _LEAST_LIKELY):
            self._found[name] = Fact(name, float(value), unit, method or QUANTITIES[name].method, round(sure, 3), note)

    def add_length(
        self, name: str, pixels: float, *, confidence: float, note: str = "", traits: Traits | None = None
    ) -> None:
        """Add a length given in px of the full picture."""
        self.add(name, pixels * self._scale, unit=self._unit, confidence=confidence, note=note, traits=traits)

    def add_absent(self, name: str, reason: str) -> None:
        """Say why a picture surely does not have a quantity."""
        self._absent[name] = reason

    def states(self, names: tuple[str, ...]) -> bool:
        """Whether one of these quantities is likely enough to be stated."""
        return any(name in self._found and self._found[name].confidence >= LIKELY for name in names)

    def facts(self, kind: str, reason: str, confidence: float) -> Facts:
        """All facts in their order, the missing ones as not applicable for this reason."""
        why = dict.fromkeys(FACT_NAMES, reason) | self._absent
        missing = {name: not_applicable(name, QUANTITIES[name].method, why[name]) for name in FACT_NAMES}
        items = tuple(self._found.get(name, missing[name]) for name in FACT_NAMES)
        return Facts(kind, items, round(confidence, 3))


def _add_grey(sheet: _Sheet, found: Findings) -> None:
    from assistant.measurements import texture

    picture = found.picture
    sheet.add("mean_grey", 100 * float(picture.grey.mean()), unit="%", confidence=0.95)
    sheet.add("noise", 100 * picture.noise, unit="%", confidence=0.8)
    if found.kind != "uniform":
        sheet.add("contrast", 100 * texture.contrast(picture), unit="%", confidence=0.9)
        sheet.add("sharpness", texture.sharpness(picture), confidence=0.7)


def _add_direction(sheet: _Sheet, found: Findings) -> None:
    if found.direction is not None:
        clear = found.direction.anisotropy
        sheet.add("anisotropy", clear, confidence=0.8)
        along = found.period.orientation if found.kind == "lines" and found.period else found.direction.orientation
        if _has_orientation(found, clear):
            sheet.add("orientation", along % 180, unit="deg", confidence=min(0.95, 0.4 + 0.6 * clear))
    if found.period is not None:
        sheet.add_length("period", found.period.length, confidence=min(0.97, 0.7 + found.period.strength / 1000))


def _has_orientation(found: Findings, anisotropy: float) -> bool:
    import numpy as np

    if found.kind == "lines":
        return True
    if found.kind in ("particles", "pores") and found.objects is not None and found.objects.count >= MANY:
        shape, counted = found.objects.geometry, found.objects.counted
        if float(np.median((shape.major / shape.minor)[counted])) < _LONG:  # one-sided light on round bodies
            return False
    return anisotropy >= (DIRECTED if found.period is None else DIRECTED_LATTICE)


def _add_sizes(sheet: _Sheet, objects: Objects, chosen: Mask, *, certainty: float, factor: int) -> None:
    import numpy as np

    shape = objects.geometry
    diameter: F64 = shape.diameter[chosen] - 2 * objects.outset
    sure = certainty * (0.95 if len(diameter) >= FEWEST_FOR_PERCENTILES else 0.8)
    note = f"{len(diameter)} whole {'' if objects.candidate.bright else 'dark '}objects"
    sheet.add_length("mean_diameter", factor * float(diameter.mean()), confidence=sure, note=note)
    sheet.add_length("median_diameter", factor * float(np.median(diameter)), confidence=sure, note=note)
    if len(diameter) >= FEWEST_FOR_PERCENTILES:
        by_area = float(np.average(diameter, weights=diameter**2))
        sheet.add_length("area_weighted_diameter", factor * by_area, confidence=sure, note=note)
        low, high = np.percentile(diameter, [10, 90])
        sheet.add_length("d10_diameter", factor * float(low), confidence=0.9 * sure)
        sheet.add_length("d90_diameter", factor * float(high), confidence=0.9 * sure)
    if float(np.median(diameter)) >= _FINE:
        area, perimeter = shape.area[chosen], objects.perimeter[chosen]
        roundness = float(np.minimum(4 * np.pi * area / perimeter**2, 1.0).mean())
        sheet.add("circularity", roundness, confidence=0.8 * sure)


def _add_chords(sheet: _Sheet, found: Findings) -> None:
    """The mean chords of two phases, where nothing has a size of its own."""
    from assistant.measurements.confidence import traits_of_phases
    from assistant.measurements.intercepts import phases_of

    if sheet.states(SIZES):
        return
    found.phases = phases = phases_of(found.picture)
    if phases is None:
        return
    for bright, chord in zip((True, False), phases.chords, strict=True):
        name = f"mean_chord_of_the_{'bright' if bright else 'dark'}_phase"
        sheet.add_length(name, chord, confidence=0.5, traits=traits_of_phases(phases, bright=bright))


def _add_objects(sheet: _Sheet, found: Findings, objects: Objects) -> None:
    import numpy as np
    from scipy.spatial import cKDTree

    certainty = found.share_confidence
    note = "bright objects" if objects.candidate.bright else "dark objects"
    sheet.add("count", objects.count, confidence=certainty, note=note, method=WAYS[objects.way])
    whole = objects.good & objects.whole
    if whole.any():
        shape = objects.geometry
        sheet.add("aspect_ratio", float((shape.major / shape.minor)[whole].mean()), confidence=0.8 * certainty)
    if whole.any() and found.kind != "fibres":  # a wire has a width and a length, but no diameter of equal area
        _add_sizes(sheet, objects, whole, certainty=certainty, factor=found.picture.factor)
    points = np.stack([objects.geometry.x, objects.geometry.y], axis=1)[objects.counted]
    if len(points) >= FEWEST_NEIGHBOURS:
        distance, _ = cKDTree(points).query(points, k=2)
        nearest = float(np.asarray(distance)[:, 1].mean())
        sheet.add_length("nearest_neighbour", found.picture.factor * nearest, confidence=0.9 * certainty)


def found_in(m: Micrograph) -> Findings | None:
    """What is seen in a micrograph, None where there is nothing to measure.

    `figures` and `bodies` take it too, so that who wants both looks once.
    """
    window, instrument = m.window(), m.instrument
    # Electrons went through the specimen: no microscope that looks at surfaces has such a voltage.
    through = _TRANSMISSION.search(instrument.detector or "") is not None or (instrument.hv_kv or 0.0) >= THROUGH_KV
    found = _find(m.specimen, window.low, window.high, transmission=through)
    return _of_sample(found, m)


def _find(pixels: Pixels, low: float, high: float, *, transmission: bool = False) -> Findings | None:
    """What is found in a picture, None where it is too small, constant or not finite."""
    from assistant.measurements.findings import find
    from assistant.measurements.picture import picture_of

    picture = picture_of(pixels, low, high)
    return None if picture is None else find(picture, transmission=transmission)


def _nothing_in(pixels: Pixels, *, nm_per_pixel: float | None) -> Facts:
    """The facts of a picture in which nothing is found: none, and why."""
    import numpy as np

    from assistant.measurements.picture import SMALLEST

    if pixels.ndim != 2 or min(pixels.shape) < SMALLEST:
        reason = "the picture is too small"
    elif pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        reason = "too many of its pixels are no numbers"
    else:
        reason = "the picture is of one and the same grey everywhere"
    return _Sheet(nm_per_pixel, {}).facts("uniform", reason, 1.0)


def _facts_of(found: Findings, *, nm_per_pixel: float | None) -> Facts:
    sheet = _Sheet(nm_per_pixel, _traits(found))
    _add_grey(sheet, found)
    if found.kind == "curtaining":
        reason = "the stripes are curtaining, an artefact of ion milling, and no structure of the specimen"
        return sheet.facts(found.kind, reason, found.confidence)
    _add_direction(sheet, found)
    if found.confidence < SURE_OF_KIND:
        _add_chords(sheet, found)
        reason = f"it is not sure what the picture shows: {found.kind} at {found.confidence:.0%}"
        return sheet.facts("unknown", reason, found.confidence)
    if found.lines is not None:
        sheet.add_length("line_width", found.lines.width, confidence=0.8, note=f"{found.lines.count} lines")
        sure = 0.6 if found.lines.roughness > 0.6 else 0.4
        sheet.add_length("line_edge_roughness", found.lines.roughness, confidence=sure)
    if found.objects is not None:
        _add_objects(sheet, found, found.objects)
    if found.walls is not None:
        sheet.add_length("wall_thickness", found.walls, confidence=found.share_confidence)
    if found.grain_size is not None:
        fine = found.grain_size < FINE_GRAINS * found.picture.factor
        sheet.add_length("grain_size", found.grain_size, confidence=SURE_OF_FINE_GRAINS if fine else SURE_OF_GRAINS)
    if found.share is not None:
        name = "porosity" if found.kind == "pores" else "coverage"
        note = "bright phase" if found.share_of_bright else "dark phase"
        if found.kind == "pores" and found.objects is not None and found.objects.way == "nested":
            note = OPENINGS
        sheet.add(name, 100 * found.share, unit="%", confidence=found.share_confidence, note=note)
    if found.fibres is not None:
        sure, note = found.fibres.confidence, f"{len(found.fibres.places)} places"
        sheet.add_length("fibre_width", found.fibres.width, confidence=sure, note=note)
        sheet.add_length("fibre_width_spread", found.fibres.spread, confidence=0.8 * sure, note=note)
        sheet.add("orientation_spread", found.fibres.turn, unit="deg", confidence=0.8 * sure, note=note)
    if found.darkest >= NO_OPENING and found.test != "packing" and found.kind in ("texture", "particles", "uniform"):
        sheet.add_absent("porosity", NO_OPENINGS)
    if found.kind in ("texture", "particles", "pores"):
        _add_chords(sheet, found)
    reason = f"not a quantity of a picture of kind {found.kind}, or not clear enough"
    return sheet.facts(found.kind, reason, found.confidence)


def _traits(found: Findings) -> Traits:
    """What the confidence in every quantity of a picture rests on."""
    from assistant.measurements.confidence import traits_of_objects

    traits = {f"kind {found.kind}": 1.0, "grain": found.picture.small_noise}
    if found.direction is not None:
        traits["anisotropy"] = found.direction.anisotropy
    if found.period is not None:
        traits["repeats"] = 1.0
    return traits | ({} if found.objects is None else traits_of_objects(found.picture, found.objects))


def measure(m: Micrograph, found: Findings | None = None) -> Facts:
    """Measure a micrograph outside its info bar; lengths are in nm where it is calibrated, else in px."""
    found = found or found_in(m)
    if found is None:
        return _nothing_in(m.specimen, nm_per_pixel=_scale(m))
    return _facts_of(found, nm_per_pixel=_scale(m))


def known_of(m: Micrograph, facts: Facts, predicted: tuple[Fact, ...] = ()) -> Known:
    """What an answer about a micrograph may quote: what was measured, what its file says, what heads are sure of."""
    instrument, calibration = m.instrument, m.calibration
    fields = {name: field for name, (field, _) in READ.items()}
    fields["microscope"] = "model" if instrument.model else "vendor"
    found = {name: instrument.sources[field] for name, field in fields.items() if field in instrument.sources}
    sources = {name: (told, READ_FROM_BAR if told == "banner" else READ_FROM_FILE) for name, told in found.items()}
    columns = m.part[1]
    if calibration is not None:
        sources |= dict.fromkeys(("pixel_size", "field_width"), (calibration.source, calibration.confidence))
    return Known(
        facts,
        hv_kv=instrument.hv_kv,
        wd_mm=instrument.wd_mm,
        magnification=instrument.magnification,
        nm_per_pixel=calibration.nm_per_pixel if calibration else None,
        field_nm=(columns.stop - columns.start) * calibration.nm_per_pixel if calibration else None,
        detector=instrument.detector,
        microscope=instrument.model or instrument.vendor,
        date=instrument.date,
        predicted=predicted,
        sources=sources,
    )


def _of_sample(found: Findings | None, m: Micrograph) -> Findings | None:
    """The same findings with the share of the sample, and not that of the frame with what was drawn on it."""
    import numpy as np

    from assistant.measurements.picture import block_mean

    mask = m.content_sample
    if found is None or found.share is None or found.phase is None or mask is None:
        return found
    inside = block_mean(np.asarray(mask, np.float32), found.picture.factor) > 0.5
    if found.phase.any() and inside.any():
        found.share *= float(found.phase[inside].mean() / found.phase.mean())
    return found


def figures(m: Micrograph, found: Findings | None = None) -> dict[str, Image.Image]:
    """What `measure` measures, drawn over the micrograph: name of the figure to RGB image, at most 1024 px a side.

    There is a figure for each measurement that applies; `overlay.FIGURES` says which facts it shows.
    """
    import numpy as np

    from assistant.measurements import overlay

    found = found or found_in(m)
    if found is None:
        return {}
    facts = _facts_of(found, nm_per_pixel=_scale(m))
    display = np.asarray(np.rint(found.picture.grey * 255), dtype=np.uint8)
    return overlay.drawn_figures(display, found, facts, nm_per_pixel=_scale(m))


def marks(m: Micrograph, found: Findings | None = None) -> dict[str, list[Strokes]]:
    """The same figures as paths in px of the frame, for viewers that zoom."""
    from assistant.measurements import overlay

    found = found or found_in(m)
    if found is None:
        return {}
    rows, columns = m.part
    facts = _facts_of(found, nm_per_pixel=_scale(m))
    return overlay.drawn_marks(found, facts, corner=(rows.start, columns.start))


def bodies(m: Micrograph, found: Findings | None = None) -> list[Body]:
    """The bodies that the facts are made of, one by one; empty where none were told apart."""
    from assistant.measurements.objects import bodies_of

    found = found or found_in(m)
    if found is None or found.objects is None or found.confidence < SURE_OF_KIND:
        return []
    rows, columns = m.part
    return bodies_of(found.objects, factor=found.picture.factor, corner=(rows.start, columns.start))


def _scale(m: Micrograph) -> float | None:
    return None if m.calibration is None else m.calibration.nm_per_pixel


def measure_pixels(pixels: Pixels, *, nm_per_pixel: float | None) -> Facts:
    """Measure a bare array [H, W]; the window is its 0.1 and 99.9 percentiles."""
    from assistant.measurements.picture import grey_window

    low, high = grey_window(pixels)
    found = _find(pixels, low, high)
    if found is None:
        return _nothing_in(pixels, nm_per_pixel=nm_per_pixel)
    return _facts_of(found, nm_per_pixel=nm_per_pixel)

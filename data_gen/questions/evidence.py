"""What is known of one micrograph, and the words it puts into questions and answers.

Visible qualities come from ground truth, quantities from measurement, so that an answer says what a measurement says
when the student is asked; a slot that is missing is not known. Knows nothing about pixels, teachers or wordings.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from assistant.chat import class_answer
from assistant.quantities import angle_between, digits, written

PROMPTS = Path(__file__).parent / "prompts"
TRUTH_TOLERANCE = 0.25
"""A measured quantity that misses a known truth by more than this share is not taught."""
CLEAR_DIFFERENCE = 1.2
"""Ratio from which one of two quantities is called the larger."""
_UNDIRECTED, _DIRECTED = 0.25, 0.6
"""Anisotropy below which no direction is preferred, and from which one is where no truth says so."""
_SURE = 0.6
"""A measurement less sure than this is taught only where a known truth confirms it."""
FEWEST_COUNTED = 8
"""Fewer objects may be the few that stood out of many, so they are taught only where a known truth confirms them."""
OF_OBJECTS = frozenset(
    {
        *("count", "mean_diameter", "d10_diameter", "d90_diameter", "aspect_ratio", "nearest_neighbour"),
        "coverage",
    }
)
OF_FIBRES = frozenset({"fibre_width", "coverage"})
_ROUND, _LONG = 1.3, 1.6
"""Aspect ratio below which structures are nearly round, and from which they are long."""
_NARROW, _BROAD = 1.5, 2.0
"""Ratio of the 90th to the 10th percentile of the diameters below which sizes are alike, and from which they vary."""
_NOISY = 5.0
"""[%]"""
_COMPARED = {"mean_diameter": "larger", "count": "more", "coverage": "more_covered", "noise": "noisier"}
"""Quantities of two pictures that are compared, and the slot that says which is the larger."""
CANDIDATES = 4
"""Classes that a question with candidates names."""
SINGLE_FORMS = frozenset({"comb", "cantilever", "serpentine", "bridge", "gear", "grid"})
PLURAL_FORMS = frozenset({"lines", "pillars", "holes"})
REGULARITY = {"periodic": 3, "aligned": 2, "layered": 2, "random": 1, "network": 1, "clustered": 1}
FIBROUS = ("fibre", "fiber", "filament", "wire", "whisker", "tube", "hair", "yarn")
"""What the name of a class of long thin things has in it."""
_FOREIGN = frozenset({"debris", "contamination"})


@dataclass(frozen=True)
class Evidence:
    """All that is known of one micrograph; every value is plain JSON."""

    path: str
    sha256: str
    label: str | None
    group: str
    split: str
    size: tuple[int, int]
    """Width and height of the picture without its banner [px]."""
    truth: Mapping[str, Any]
    """Ground truth: words, and lengths in nm."""
    true_nm_per_pixel: float | None
    nm_per_pixel: float | None
    """What the file itself says; None where it is not calibrated."""
    instrument: Mapping[str, Any]
    facts: Mapping[str, Any]
    """`Facts.as_dict()`: kind, and items with name, value, unit, confidence."""
    metadata_line: str
    facts_line: str
    source: str = ""
    """Where the picture comes from."""

    @property
    def reading(self) -> dict[str, Any]:
        """What the file says of instrument and scale; None where it does not."""
        nm = self.nm_per_pixel
        return {**self.instrument, "nm_per_pixel": nm, "field_nm": None if nm is None else self.size[0] * nm}


def known_text(evidence: Evidence) -> str:
    """All that is known of a picture in words, for a teacher and for the list of what leaves the machine."""
    words = {name: text for name, text in evidence.truth.items() if isinstance(text, str)}
    words["defects"] = _listed(evidence.truth.get("defects") or [])
    parts = {
        "class": (evidence.label or "").replace("_", " "),
        "metadata": evidence.metadata_line,
        "measured": evidence.facts_line,
        "true": ", ".join(f"{name} {text}" for name, text in sorted(words.items()) if text),
    }
    return "; ".join(f"{name}: {text}" for name, text in parts.items() if text)


def prompt_lines(path: Path) -> list[str]:
    """The lines of a prompt file without comments and blank lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@cache
def class_words() -> dict[str, dict[str, str]]:
    """Per known class: how it is named in a sentence, its function and its application."""
    classes: dict[str, dict[str, str]] = {}
    for line in prompt_lines(PROMPTS / "classes.txt"):
        if line.startswith("["):
            entry = classes.setdefault(line.strip("[]"), {})
        else:
            key, _, text = line.partition(":")
            entry[key] = text.strip()
    return classes


def chance(*parts: object) -> random.Random:
    """A generator that depends on the parts and nothing else."""
    return random.Random(hashlib.sha256("\0".join(map(str, parts)).encode()).digest())


def slots_of(evidence: Evidence, *, seed: int, labels: Mapping[str, int] | None = None) -> dict[str, str]:
    """The words that fill templates about one picture; a slot that is missing is not known.

    `labels` are all classes of the data set with their numbers of pictures, from which candidates are drawn.
    """
    slots = _metadata_slots(evidence) | _measured_slots(evidence) | _truth_slots(evidence)
    if evidence.label is not None:
        words = evidence.label.replace("_", " ")
        slots |= {"class_answer": class_answer(evidence.label), "class_words": words, "named": "yes"}
        slots |= class_words().get(evidence.label, {"class": f"a sample of the class {words}"})
        slots |= _candidate_slots(evidence.label, labels or {}, chance(seed, evidence.sha256, "candidates"))
    if {"class", "shape", "surface", "arrangement"} <= slots.keys():
        slots["seen"] = "yes"
    return slots | _offered_slots(evidence, slots, chance(seed, evidence.sha256, "offer"))


def _candidate_slots(label: str, labels: Mapping[str, int], rng: random.Random) -> dict[str, str]:
    """The class among others in random order, each offered about as often where it is wrong as where it is right."""
    others = {other: count for other, count in labels.items() if other != label}
    if len(others) < 2:
        return {}
    candidates = [label]
    while others and len(candidates) < CANDIDATES:
        (drawn,) = rng.choices(list(others), list(others.values()))
        candidates.append(drawn)
        del others[drawn]
    rng.shuffle(candidates)
    words = [candidate.replace("_", " ") for candidate in candidates]
    return {"candidates": f"{', '.join(words[:-1])} or {words[-1]}"}


def _metadata_slots(evidence: Evidence) -> dict[str, str]:
    instrument, line = evidence.instrument, evidence.metadata_line
    known = {
        "hv": None if instrument.get("hv_kv") is None else f"{instrument['hv_kv']:.4g} kV",
        "wd": None if instrument.get("wd_mm") is None else f"{instrument['wd_mm']:.3g} mm",
        "detector": instrument.get("detector"),
        "magnification": None if instrument.get("magnification") is None else f"{instrument['magnification']:.6g}x",
        "microscope": line.split(";")[0] if (instrument.get("model") or "-") in line.split(";")[0] else None,
    }
    slots = {"calibrated": "no" if evidence.nm_per_pixel is None else "yes"}
    if evidence.nm_per_pixel is not None:
        slots["pixel_size"] = f"{evidence.nm_per_pixel:.4g} nm"
    for name, text in known.items():
        # What the auxiliary line leaves out cannot be asked: the student never sees the file's tags.
        if text is None or text in line:
            slots[f"has_{name}"] = "no" if text is None else "yes"
            slots |= {} if text is None else {name: text}
    return slots


def _measured_slots(evidence: Evidence) -> dict[str, str]:
    # Dark bodies are called pores only where the class or the truth says so.
    pores = "porosity" in evidence.truth or "poro" in (evidence.label or "")
    slots = {"looks": str(evidence.facts["kind"])}
    values: dict[str, float] = {}
    for fact in evidence.facts["items"]:
        name = fact["name"]
        if fact["value"] is None or not fact["confidence"]:
            # Where the truth has a number the measurement has failed, and there is something to be told.
            slots |= {} if name in evidence.truth else {f"has_{name}": "no"}
            continue
        text = written(fact["value"], fact["unit"])
        # What the auxiliary line leaves out is not taught: nobody reads 317 nm off a picture by eye.
        if f"{name.replace('_', ' ')} {text}" in evidence.facts_line and _may_be_taught(evidence, fact):
            values[name] = float(digits(fact["value"], fact["unit"]))
            # Without a word for it, the share of dark bodies is no porosity: it may be particles, or the ground.
            shown = "dark_share" if name == "porosity" and not pores else name
            slots |= {shown: text, f"has_{shown}": "yes", f"{shown}_method": fact["method"]}
    return slots | _verdict_slots(values, "pore" if pores else "structure")


def _verdict_slots(values: Mapping[str, float], body: str) -> dict[str, str]:
    """What the measured values amount to, in words."""
    # One body takes another grammar: "one pore was counted".
    single = values.get("count") == 1
    slots = {"objects": body if single else f"{body}s", "were": "was" if single else "were"}
    # Between the limits of a word lies a gap where two persons would differ: no word is taught there.
    if "aspect_ratio" in values:
        ratio = values["aspect_ratio"]
        slots["elongation"] = "round" if ratio < _ROUND else "long" if ratio >= _LONG else "slight"
    if "orientation" in values:
        slots["directed"] = "yes"
    # No orientation alone says nothing: it may only have been unsure. A low anisotropy says that there is none.
    elif values.get("anisotropy", 1.0) < _UNDIRECTED:
        slots["directed"] = "no"
    if {"d10_diameter", "d90_diameter"} <= values.keys():
        spread = values["d90_diameter"] / max(values["d10_diameter"], 1e-9)
        slots |= {"spread": "narrow"} if spread < _NARROW else {"spread": "broad"} if spread >= _BROAD else {}
    if "coverage" in values:
        slots["half_covered"] = "yes" if values["coverage"] > 50 else "no"
    if "noise" in values:
        slots["noisy"] = "yes" if values["noise"] >= _NOISY else "no"
    return slots


def _may_be_taught(evidence: Evidence, fact: Mapping[str, Any]) -> bool:
    """True for a number that a known truth confirms; without one, for what the measurement is sure of."""
    name = fact["name"]
    # A drawing's truth is exact, so it decides whatever the measurement's confidence.
    if isinstance(evidence.truth.get(name), int | float):
        return _agrees(evidence, fact)
    measured = {item["name"]: item["value"] for item in evidence.facts["items"]}
    kind = evidence.facts["kind"]
    counted = "count" in evidence.truth or (measured.get("count") or 0) >= FEWEST_COUNTED
    # Few objects are as often the few that stood out of many.
    if name in OF_OBJECTS and kind in {"particles", "pores"} and not counted:
        return False
    # A structure tensor always has a main direction; a person sees one only where most edges share it.
    if name == "orientation" and (measured.get("anisotropy") or 0) < _DIRECTED:
        return False
    # Cones, beams, cracks and layers pass for fibres to a measurement.
    if name in OF_FIBRES and kind == "fibres" and not any(word in (evidence.label or "").lower() for word in FIBROUS):
        return False
    # A peak in the spectrum of a picture without bodies or lines is as often a trace of the scan or of JPEG.
    if name == "period" and kind not in {"lines", "particles", "pores"}:
        return False
    return float(fact["confidence"]) >= _SURE


def _agrees(evidence: Evidence, fact: Mapping[str, Any]) -> bool:
    """False where the measurement misses the truth: such a number is not taught."""
    truth = float(evidence.truth[fact["name"]])
    # A file without calibration is measured in px, while its truth is known in nm.
    scale = (evidence.true_nm_per_pixel or 1.0) if fact["unit"] == "px" else 1.0
    value = float(fact["value"]) * scale
    if fact["name"] == "orientation":
        return angle_between(value, truth) <= 10
    if fact["unit"] == "%":
        # Of a small share a quarter is less than a person can see.
        return abs(value - truth) <= max(5.0, TRUTH_TOLERANCE * truth)
    return abs(value - truth) <= TRUTH_TOLERANCE * abs(truth)


def _truth_slots(evidence: Evidence) -> dict[str, str]:
    truth = evidence.truth
    slots = {
        name: truth[name] for name in ("shape", "surface", "arrangement", "distribution", "touching") if truth.get(name)
    }
    # "They are lines", but "they form a grid": the word decides the sentence around it.
    if shape := truth.get("shape"):
        form = "form a" if shape in SINGLE_FORMS else "are"
        slots["are_shape"] = f"{form} {shape}"
        slots["shape_phrase"] = shape if shape in PLURAL_FORMS else f"{_article(shape)} {shape} shape"
    for name in ("surface", "arrangement"):
        if name in slots:
            slots[f"{name}_phrase"] = f"{_article(slots[name])} {slots[name]} {name}"
    if polarity := truth.get("polarity"):
        slots["polarity"] = polarity.split()[0]
    if (defects := truth.get("defects")) is not None:
        slots["has_defects"] = "yes" if defects else "no"
        foreign = [word for word in defects if word in _FOREIGN]
        slots["foreign"] = "yes" if foreign else "no"
        slots |= {"defects": _listed(defects)} if defects else {}
        slots |= {"foreign_objects": _listed(foreign)} if foreign else {}
    if (tilt := truth.get("tilt_deg")) is not None:
        slots["tilted"] = "yes" if tilt >= 5 else "no"
    return slots


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _offered_slots(evidence: Evidence, slots: Mapping[str, str], rng: random.Random) -> dict[str, str]:
    """Words and limits of yes/no questions, right and wrong equally often."""
    offered: dict[str, str] = {}
    # Offered right and wrong equally often, or "yes" would be right without a look.
    for facet in ("shape", "surface", "arrangement", "touching"):
        right = rng.random() < 0.5
        if facet in slots:
            offered[f"offered_{facet}"] = slots[facet]
            if not right:  # drawn as often as it is right elsewhere, so that the word alone betrays nothing
                weights = {word: weight for word, weight in _word_weights(facet).items() if word != slots[facet]}
                offered[f"offered_{facet}"] = rng.choices(list(weights), list(weights.values()))[0]
            offered[f"offered_{facet}_right"] = "yes" if right else "no"
    measured = {fact["name"]: fact for fact in evidence.facts["items"]}
    for name, limit, verdict in (
        ("count", "count_limit", "more_than"),
        ("mean_diameter", "diameter_limit", "larger_than"),
    ):
        # Far enough from the value that the answer does not hang on the last body counted.
        factor = rng.choice((0.4, 0.5, 0.7, 1.4, 2.0, 2.5))
        if name in slots:
            value = float(f"{measured[name]['value'] * factor:.1g}")
            value = max(value, 1.0) if name == "count" else value
            offered[limit] = written(value, measured[name]["unit"])
            offered[verdict] = "yes" if measured[name]["value"] > value else "no"
    if evidence.nm_per_pixel is not None:
        limit_nm = float(f"{evidence.nm_per_pixel * rng.choice((0.4, 0.5, 0.7, 1.4, 2.0, 2.5)):.1g}")
        offered["pixel_limit"] = written(limit_nm, "nm")
        offered["pixel_below"] = "yes" if evidence.nm_per_pixel < limit_nm else "no"
    right, factor = rng.random() < 0.5, rng.choice((0.5, 0.7, 1.5, 2.0))
    if "period" in slots:
        period = measured["period"]
        offered["offered_period"] = written(period["value"] * (1.0 if right else factor), period["unit"])
        offered["offered_period_right"] = "yes" if right else "no"
    return offered


@cache
def _word_weights(facet: str) -> dict[str, float]:
    from data_gen.questions.words import VISIBLE_WORDS

    weights: dict[str, float] = {}
    for facets in VISIBLE_WORDS.values():
        for word in facets[facet]:
            weights[word] = weights.get(word, 0.0) + 1 / len(facets[facet])
    return weights


def pair_slots(first: Evidence, second: Evidence, *, seed: int) -> dict[str, str]:
    """The words that fill templates about two pictures."""
    one, two = slots_of(first, seed=seed), slots_of(second, seed=seed)
    slots = {f"{name}_1": text for name, text in one.items()} | {f"{name}_2": text for name, text in two.items()}
    for name, verdict in (("class", "same_class"), ("surface", "same_surface")):
        if name in one and name in two:
            slots[verdict] = "yes" if one[name] == two[name] else "no"
    for name, verdict in _COMPARED.items():
        if winner := _larger(_value(first, name), _value(second, name)):
            slots |= {verdict: winner} if name in one and name in two else {}
    scales = [None if e.nm_per_pixel is None else (e.nm_per_pixel, "nm") for e in (first, second)]
    # The finer scale is the one with the smaller pixel.
    slots |= {"finer": winner} if (winner := _larger(scales[1], scales[0])) else {}
    calibrated = [str(i + 1) for i in range(2) if scales[i]]
    slots["calibrated_in"] = {0: "none", 1: "".join(calibrated), 2: "both"}[len(calibrated)]
    ranks = [REGULARITY.get(words.get("arrangement", ""), 0) for words in (one, two)]
    if all(ranks) and ranks[0] != ranks[1]:
        slots["more_regular"] = "1" if ranks[0] > ranks[1] else "2"
    found = [words.get("has_defects") for words in (one, two)]
    if None not in found:
        images = [str(i + 1) for i in range(2) if found[i] == "yes"]
        slots["defects_in"] = {0: "none", 1: "".join(images), 2: "both"}[len(images)]
    return slots


def _value(evidence: Evidence, name: str) -> tuple[float, str] | None:
    for fact in evidence.facts["items"]:
        if fact["name"] == name and fact["value"] is not None:
            # As it is written in the answer: what looks alike is not called the larger.
            return float(digits(fact["value"], fact["unit"])), str(fact["unit"])
    return None


def _larger(a: tuple[float, str] | None, b: tuple[float, str] | None) -> str | None:
    """ "1" or "2" where the two quantities have one unit and clearly differ."""
    if a is None or b is None or a[1] != b[1]:
        return None
    if a[0] > CLEAR_DIFFERENCE * b[0]:
        return "1"
    return "2" if b[0] > CLEAR_DIFFERENCE * a[0] else None

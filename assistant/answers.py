"""A draft by the language model -> an answer in which every statement is a fact, or says what is missing.

What an answer says of numbers, instrument, class, shape, surface or arrangement is known of the picture, or is not
said: a sentence of the draft stays only where all its claims are true, its other words claim nothing, and it speaks of
what was asked. Where no sentence stays, the answer is composed from the facts that the question asks for. Knows nothing
about models.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from assistant.handbook import entry_for
from assistant.measure import LINE_ORDER, Fact, Known, filled, missing, read_statements, sentence_of, sentences
from assistant.measurements.comparison import COMPARED, between
from assistant.measurements.corrections import PERCENTILES
from assistant.measurements.facts import LIKELY, NO_OPENINGS, OPENINGS, SURE
from assistant.quantities import QUANTITIES, converted, read_amounts
from assistant.questions import (
    INTENTS,
    asked_for,
    facts_asked,
    intents_of,
    is_thanks,
    limits_of,
    named_bodies,
    same_asked,
    tone_asked,
    unit_asked,
)

MOST_FACTS = 8
"""Measured facts of a description."""
_OTHERS = re.compile(
    r"\b(?:images?|pictures?|micrographs?)\s*\d|\b(?:first|second|third|previous|earlier|other|both|all|each|every|"
    r"these (?:images|pictures|micrographs)|which (?:of|one|images?|pictures?|micrographs?)|compare\w*|differ\w*|than|"
    r"same|between them)\b",
    re.IGNORECASE,
)
"""A question with such a word is about more than the pictures it came with."""
_RANKS = re.compile(
    r"\b(?:more|most|less|least|fewer|fewest|than|(?:larg|bigg|small|high|low|fin|coars|thick|thinn|dens|long|short|wid|"
    r"narrow|round|sharp|noisi|rough|smooth)(?:er|est))\b",
    re.IGNORECASE,
)
"""A question with such a word asks which of several pictures has more of something."""
_LESS = re.compile(
    r"\b(?:less|least|fewer|fewest|(?:small|low|fin|thinn|short|narrow|smooth)(?:er|est))\b", re.IGNORECASE
)
_SIZES = ("mean_diameter", "area_weighted_diameter", "grain_size", "fibre_width", "line_width")
"""How large structures are, whatever their kind."""
_CLEARLY = 2.0
"""Ratio from which sizes of different kinds tell which structures are larger."""
GLUE = frozenset(
    """
    a about above accelerating acceleration also amount amounts an and approximately are area around as at
    average be beam been below between bodies body both but by can clockwise come comes contains could
    counted counter counting detector diameters distance each electron equal equals field file for found
    frame from given gives has have here horizontal image images in is it its itself kilovolts least length
    lengths less lie lies main mean means measure measured measurement measures micrograph micrographs
    microscope more nearly neighbour neighbours not object objects of on one only or out over overall parts
    per picture pictures print recorded respectively roughly see seen share shown shows size so some spans
    stands structure structures such taken than that the their them there these they this those to total
    under up used value values visible was were when where which while whole whose wide width with within
    working you
    """.split()
)
"""Words that claim nothing about a sample. A sentence with any other word says more than is known."""
_BARE = frozenset(
    "a about an approximately are around at is it measures roughly that the they this was were yes".split()
)
"""Words of a sentence that leaves the name of what was asked to the question."""
_REPEATED = re.compile(r"(?<![\w.])(\w+(?:\.\d+)?)\s+\1\b(?!\.\d)", re.IGNORECASE)
"""A word or number twice in a row."""
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NAMES = re.compile("|".join(rf"\b(?:{quantity.words})\b" for quantity in QUANTITIES.values()), re.IGNORECASE)


def pictures_meant(question: str, shown: int, new: int) -> tuple[int, ...]:
    """Numbers, from 1, of the pictures that a question is about: of all `shown`, the `new` ones that came with it.

    All, where it came with none or speaks of others.
    """
    if 0 < new < shown and not _OTHERS.search(question):
        return tuple(range(shown - new + 1, shown + 1))
    return tuple(range(1, shown + 1))


def checked(
    pieces: Iterable[str], question: str, known: Sequence[Known], *, about: Sequence[int] = ()
) -> Iterator[str]:
    """The answer to a question, sentence by sentence: what of a draft is fact, then what the draft left out.

    References of the draft are filled. `known` are all pictures of the conversation, `about` the numbers of those that
    are meant, all if empty. A general question is answered by the handbook, and the draft is not asked for. Without
    pictures nothing else is known, and the draft passes as it is.
    """
    if entry := entry_for(question):
        yield entry.answer
        return
    if not known:
        yield from pieces
        return
    meant = tuple(about) or tuple(range(1, len(known) + 1))
    several = len(meant) > 1 and (_RANKS.search(question) or same_asked(question))
    others = any(_other_bodies(question, known[number - 1]) for number in meant)
    asks = asked_for(question) or {"what", "describe"} & set(intents_of(question))  # for what a draft may answer
    by_facts = several or others or tone_asked(question) or unit_asked(question)
    if by_facts or not asks or limits_of(question):
        yield " ".join(text for _, text in composed(question, known, about=meant))
        return
    wanted, said, said_of, gap = set(asked_for(question)), set[str](), set[str](), ""
    for sentence in map(str.strip, sentences(filled(pieces, known))):
        names = _true_names(sentence, known, meant, wanted)
        if names and sentence not in said and (not wanted or names & wanted):
            yield gap + re.sub(r";$", ".", sentence)  # what followed may have been left out
            said.add(sentence)
            said_of |= names
            gap = " "
    if not said or wanted - said_of or _OPEN & set(intents_of(question)):
        told = said_of if len(meant) == 1 else set[str]()
        rest = [text for name, text in composed(question, known, about=meant, said=told) if name not in said_of]
        rest = [text for text in rest if text not in said]
        if rest:
            yield gap + " ".join(rest)


def composed(
    question: str, known: Sequence[Known], *, about: Sequence[int] = (), said: Set[str] = frozenset()
) -> list[tuple[str, str]]:
    """What the facts say to a question, or the handbook: names of quantities, each with its sentence.

    A description leaves out the quantities that were `said` before it.
    """
    if entry := entry_for(question):
        return [("", entry.answer)]
    numbers = tuple(about) or tuple(range(1, len(known) + 1))
    intents = intents_of(question)
    for intent in ("greeting", "help"):
        if intent in intents:
            return [("", ABOUT_ITSELF["thanks" if is_thanks(question) else intent])]
    meant = {number: known[number - 1] for number in numbers}
    if len(numbers) > 1 and (names := same_asked(question)):
        return list(_agreed(names, meant))
    if "compare" in intents:
        if len(numbers) > 1:
            untold = [("", _SAME_MATTER)] if "composition" in intents or _MATTER.search(question) else []
            return [*untold, *_compared(meant)]
        return [
            ("", "There is one image here, so nothing to compare it with: add another."),
            *_seen(known[numbers[0] - 1], wholly=True, reasoned=False),
        ]
    limits = [name for name in limits_of(question) if name != "extreme" or len(numbers) == 1]
    parts = [("", BEYOND[name]) for name in limits]
    if tone_asked(question):
        intents = [intent for intent in intents if intent != "quality"]
        parts += [("", f"{_of(number, numbers)}{_tone(one)}") for number, one in meant.items()]
    if parts and not intents:
        return parts
    if len(numbers) > 1 and _RANKS.search(question):
        ranked, decided = _ranked(intents, question, meant)
        parts += ranked
        if decided:
            return parts
    if not intents and len(numbers) > 1:
        return [*parts, ("", UNKNOWN)]
    for number in numbers:
        prefix = _of(number, numbers)
        for name, text in _composed_of(intents, question, known[number - 1], said):
            parts.append((name, text if text in _NEVER_TOLD.values() else f"{prefix}{text}"))
    if unit := unit_asked(question):
        parts = [(name, _in_unit(text, unit)) for name, text in parts]
        if any(re.search(r"\d px\b", text) for _, text in parts):
            parts.append(("", missing("pixel_size", calibrated=False)))
    return list(dict.fromkeys(parts))


def _of(number: int, numbers: Sequence[int]) -> str:
    return f"Image {number}: " if len(numbers) > 1 else ""


UNKNOWN = "What is asked cannot be told here: it is neither measured nor recognised nor read from a file."
NO_PICTURE = "I answer questions about electron micrographs: show one with the question."
"""What is said without a picture, where the language model was not taught to talk."""
ABOUT_ITSELF = {
    "greeting": "Hello. Ask about the image: what it shows, how many structures there are and how large, how they lie, "
    "or how it was taken.",
    "thanks": "You are welcome. Ask on about this image, or add another.",
    "help": "I answer from what is measured in the image, what its file says and what classifiers are sure of: number, "
    "sizes, shares, directions, periods, voltage, detector, pixel size, class. Where none of them tells, I say so. "
    "Images stay on this machine.",
}


BEYOND = {
    "reason": "Reasons cannot be told from an image, and what the question takes for granted is not confirmed.",
    "advice": "What to choose or whether it will do is not told here: I say what is in the image and its file.",
    "region": "Parts of an image are not measured by themselves: what is measured holds for the whole.",
    "subset": "Bodies of one tone, shape or place are not measured apart from the others.",
    "connected": "Whether parts are connected is not measured.",
    "layers": "Layers and phases are not counted or told apart.",
    "beam": "Whether electrons or ions made an image is not read from its file.",
    "extreme": "Single bodies such as the largest are not sized: what is measured is how sizes are distributed.",
    "every": "Single bodies are not judged: what is said holds for the picture as a whole.",
    "length": "The length of bodies is not measured.",
    "scale_bar": "The length of the scale bar itself is not told, only what one pixel measures.",
    "pixel_count": "How many pixels and bits an image has is not told here.",
    "setting": "Tilt, beam current, spot size, scan speed and pressure are not read from the file.",
    "body_area": "The area of single bodies is not told.",
    "density": "The number per area is not told: a count is that of the whole image.",
    "defect_size": "The size of cracks and other defects is not measured.",
    "profile": "The angle of walls in depth cannot be told from an image taken from one direction.",
    "astigmatism": "Astigmatism is not told apart from other blur.",
    "charging": "Charging and saturation are not recognised.",
}
"""What is said of `LIMITS` of a question, before the facts that it asks for as well."""
_SAME_MATTER = "Whether the material or the sample is the same cannot be told from images."
_MATTER = re.compile(
    r"same (?:material|sample|specimen|batch|lot|thing|stuff|place|area|region|spot|phase)s?\b", re.IGNORECASE
)
_LENGTH = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?) (nm|um|mm)\b")


def _in_unit(text: str, unit: str) -> str:
    """A text with its lengths in the unit that was asked for, where that gives a number that can be read."""

    def rewritten(match: re.Match[str]) -> str:
        value = converted(float(match[1]), match[2], unit)
        return f"{value:.10g} {unit}" if match[2] != unit and value and 1e-4 <= value < 1e7 else match[0]

    return _LENGTH.sub(rewritten, text)


_NEVER_TOLD = {
    "defects": "Whether there are defects cannot be told: nothing here recognises them.",
    "composition": "Elements and crystal structure cannot be told from an image: they take a spectrum or diffraction.",
    "thickness": "The thickness of a layer cannot be told: nothing here finds the layers.",
}
_OPEN = frozenset({"what", "describe", *_NEVER_TOLD})
"""Intents of a question that no quantity answers."""


def _composed_of(
    intents: Sequence[str], question: str, known: Known, said: Set[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """What is known, intent by intent; what is not; and what can be seen, where that is asked or something is not."""
    if not intents:
        yield "", UNKNOWN
    lost, sort = list[str](), known.get("class")
    told_by_sort = intents_of(sort.text) if sort is not None else []
    for intent in intents:
        names = facts_asked(intent, question)
        facts = [fact for name in names if (fact := known.get(name)) is not None]
        if intent in ("what", "describe"):
            yield from _named(known, said)
        elif intent in _NEVER_TOLD:
            yield "", _NEVER_TOLD[intent]
            if intent == "composition" and sort is not None and "what" not in intents:
                yield sort.name, sentence_of(sort)
        if intent not in ("what", "describe"):
            others = _other_bodies(question, known)
            if others and any(QUANTITIES[fact.name].figure == "objects" for fact in facts):
                yield "", others
            yield from _stated(facts)
            said = said | {fact.name for fact in facts}
            if not facts and sort is not None and intent in told_by_sort:
                yield sort.name, sentence_of(sort)  # "porous sponge" says whether it is porous
        if intent == "instrument" and names != INTENTS[intent].facts:  # each was asked for by its name
            lost += [name for name in names if known.get(name) is None]
        elif names and (not facts or (QUANTITIES[names[0]].source == "predicted" and facts[0].name != names[0])):
            lost.append("mean_diameter" if names[0] == "d10_diameter" else names[0])
    told = list(_lost(lost, known))
    yield from told
    asked = not intents or bool({"what", "describe", "defects"} & set(intents))
    if asked or any(QUANTITIES[name].source != "read" for name in lost):
        wholly = "describe" in intents or ("what" in intents and sort is None)
        yield from _seen(known, wholly=wholly, reasoned=any(NONE_APART in text for _, text in told), said=said)
    if "describe" in intents:
        yield from _imaging(known, said)


def _other_bodies(question: str, known: Known) -> str:
    """That dark bodies were measured where bright ones are asked for, or bright ones for openings; else ""."""
    asked = named_bodies(question)
    if asked is None or known.facts.kind not in ("particles", "pores"):
        return ""
    dark = known.facts.kind == "pores" or _noted_dark(known)
    if dark is (asked == "dark"):
        return ""
    return f"What was measured are {KIND_WORDS['pores'] if dark else KIND_WORDS['particles']}."


def _stated(facts: Sequence[Fact]) -> Iterator[tuple[str, str]]:
    """Facts as sentences; the range of most diameters in one."""
    for first, *others in _together(facts):
        if others and first.written == others[0].written:
            yield first.name, f"Most diameters are {first.written}{'' if first.sure else ', which is uncertain'}."
        elif others:
            doubt = "" if first.sure and others[0].sure else ", which is uncertain"
            yield first.name, f"Most diameters are between {first.written} and {others[0].written}{doubt}."
        else:
            yield first.name, _said(first)


def _together(facts: Sequence[Fact]) -> Iterator[Sequence[Fact]]:
    """Facts one by one, but the two diameters between which most are in one piece, where both are there."""
    ends = [fact for fact in facts if fact.name in ("d10_diameter", "d90_diameter")]
    for fact in facts:
        if len(ends) < 2 or fact not in ends:
            yield (fact,)
        elif fact is ends[0]:
            yield ends


UNDIRECTED = 0.25
"""Anisotropy below which no main direction is told."""


def _said(fact: Fact) -> str:
    """A fact as a sentence, in words that a person would use."""
    if fact.value is not None and fact.sure:
        if fact.name == "anisotropy":
            return _DIRECTED[bisect_left(_DIRECTIONS, fact.value)].format(fact.written)
        if fact.name == "mean_grey":
            return f"The mean grey is {fact.written} of the range that is shown."
        if fact.name == "noise":
            return f"The noise is {fact.written}, so the image is {'noisy' if fact.value >= _NOISY else 'not noisy'}."
        if fact.name == "orientation":
            return f"The main direction is {fact.written}, counter-clockwise from the horizontal."
    return sentence_of(fact)


_DIRECTIONS = (0.1, UNDIRECTED, 0.4)
_DIRECTED = (
    "No direction is preferred: the anisotropy is {}.",
    "No main direction could be measured: the anisotropy is {}.",
    "The anisotropy is {}.",
    "A direction is preferred: the anisotropy is {}.",
)
"""What an anisotropy says: up to each of `_DIRECTIONS`, and above the last."""
NONE_APART = "no separate bodies were told apart"


def _lost(names: Sequence[str], known: Known) -> Iterator[tuple[str, str]]:
    """That quantities are not known, with the reason; those with one reason in one sentence."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        fact = known.facts.get(name)
        if QUANTITIES[name].source != "measured":
            yield name, _untold(name, known)
        elif fact is not None and fact.note == OPENINGS:
            yield name, "Dark openings are seen; what share they take up could not be measured with any confidence."
        elif fact is not None and fact.note == NO_OPENINGS:
            yield name, f"{NO_OPENINGS.capitalize()}."
        elif fact is not None and (fact.applies or known.get("area_weighted_diameter") is not None):
            reasons.setdefault(" with any confidence", []).append(name)
        elif name in ("count", "mean_diameter") and known.facts.items:
            bodies = known.facts.kind in ("particles", "pores", "fibres") and _kind_sure(known) >= LIKELY
            why = "bodies are seen, but could not be outlined reliably" if bodies else NONE_APART
            reasons.setdefault(f": {why}", []).append(name)
        else:
            reasons.setdefault("", []).append(name)
    for why, without in reasons.items():
        said = {name: f"{rank} percentile of the diameters" for name, rank in PERCENTILES.items()}
        subjects = " and ".join(f"the {said.get(name, QUANTITIES[name].said)}" for name in without)
        yield without[0], f"{subjects[0].upper()}{subjects[1:]} could not be measured in this image{why}."


def _untold(name: str, known: Known) -> str:
    """That nothing reads or predicts a quantity; with the reason of the head that was asked."""
    text = missing(name, calibrated=True)
    silent = next((fact for fact in known.predicted if fact.name == name and fact.note), None)
    return text if silent is None else f"{text.split(': ')[0]}: {silent.note}."


_AS_SAID = {"network": "a network"}
_LONG = frozenset({"fibres", "nanowires", "straight", "curved"})
"""Words of class and shape that long, thin bodies have."""
_NO_BODIES = frozenset({"network", "layered"})
"""Arrangements that separate bodies do not have."""


def _named(known: Known, said: Set[str]) -> Iterator[tuple[str, str]]:
    """What the sample is and looks like, where a head or a person says so."""
    for names in (("class",), ("shape", "surface", "arrangement")):
        for sure, doubt in ((True, ""), (False, ", which is uncertain")):
            words = [
                f"the {QUANTITIES[name].said} is {_AS_SAID.get(fact.text, fact.text)}"
                for name in names
                if name not in said and (fact := known.get(name)) is not None and fact.sure is sure
            ]
            if words:
                text = " and ".join(words)
                yield (names[0] if len(names) == 1 else ""), f"{text[0].upper()}{text[1:]}{doubt}."


KIND_WORDS = {
    "particles": "bright bodies on a darker ground",
    "pores": "dark bodies or openings in a brighter ground",
    "lines": "a pattern of parallel lines",
    "fibres": "long, thin bodies",
    "curtaining": "stripes as a beam leaves them when it cuts (curtaining)",
    "uniform": "hardly more than noise",
}
"""What a kind of picture looks like."""
DARK_BODIES = "dark bodies on a brighter ground"
_ONE_OF = {
    KIND_WORDS["particles"]: "one bright body on a darker ground",
    KIND_WORDS["pores"]: "one dark body or opening in a brighter ground",
    DARK_BODIES: "one dark body on a brighter ground",
}
_NOISY = 5.0
"""Noise from which an image is called noisy [%]."""
_OF_BODIES = (*_SIZES, "count", "coverage", "porosity", "aspect_ratio", "nearest_neighbour", "wall_thickness")
"""Measured quantities that stand for bodies."""
_OF_PARTS = frozenset({"count", "area_weighted_diameter", "grain_size", "mean_chord_of_the_bright_phase"})
"""Quantities that bodies or phases have that were told apart."""
_LEAVES_OUT = frozenset({"anisotropy", "orientation", "contrast", "noise", "orientation_spread"})


def _seen(known: Known, *, wholly: bool, reasoned: bool, said: Set[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """What can be seen, as far as it is measured: bodies and, `wholly`, their direction and the tone.

    `reasoned`: that no bodies were told apart has been said already, as have been the quantities `said`.
    """
    kind, sure = known.facts.kind, _kind_sure(known)
    facts = [fact for name in LINE_ORDER if (fact := known.get(name)) is not None]
    if kind == "uniform" and not facts:  # of an even tone or a few pixels, and no noise either
        why = next((fact.note for fact in known.facts.items), "")
        yield "", f"Nothing could be measured in this image{f': {why}' if why else ''}."
        return
    if kind in KIND_WORDS and sure >= LIKELY:
        yield "", _looks_like(known, sure)
    elif known.facts.items and wholly and not reasoned:
        yield "", f"{NONE_APART.capitalize()} in this image."
    listed = [fact for fact in facts if fact.name not in _LEAVES_OUT | said | _unfounded(known, sure)]
    ends = [fact for fact in listed if fact.name in ("d10_diameter", "d90_diameter")]
    if len({fact.written for fact in ends}) < len(ends):  # bodies of one size have no range
        listed = [fact for fact in listed if fact not in ends]
    measured, alone = [], _alone(known)
    if alone:
        listed = [fact for fact in listed if fact.name != "count"]
    for piece in _together(listed):
        name = QUANTITIES[piece[0].name].said if len(piece) == 1 else "most diameters between"
        name = name.removeprefix("mean ") if alone else name
        doubt = "" if all(fact.sure for fact in piece) else " (uncertain)"
        measured.append(f"{name} {' and '.join(fact.written for fact in piece)}{doubt}")
    if measured:
        yield "", f"Measured: {'; '.join(measured[:MOST_FACTS])}."
    if not facts:
        yield "", "Nothing could be measured in this image."
    if not wholly:
        return
    turn, clear = known.get("orientation"), known.get("anisotropy")
    if turn is not None:
        yield "orientation", _said(turn)
    elif clear is not None and clear.sure and (clear.value or 0) < UNDIRECTED:
        yield "anisotropy", _said(clear)
    tone = [fact for name in ("contrast", "noise") if name not in said and (fact := known.get(name)) is not None]
    if tone:
        words = [f"{fact.name} is {fact.written}{'' if fact.sure else ' (uncertain)'}" for fact in tone]
        yield "", f"The {' and the '.join(words)}."


def _alone(known: Known) -> bool:
    """Whether one body was counted, so that a mean is its own."""
    count = known.get("count")
    return count is not None and count.value == 1


def _unfounded(known: Known, sure: float) -> set[str]:
    """Quantities that are not told unasked, as what they would be of is not clear: `sure` it is what it looks like.

    Fibres that nothing but an uncertain width speaks for; what bodies cover that could be neither counted nor sized;
    and a period where nothing repeats, which is as often that of the scan.
    """
    kind, told, left = known.facts.kind, {fact.name for fact in known}, set[str]()
    if kind == "fibres" and sure < LIKELY:
        left |= {"fibre_width", "fibre_width_spread"}
    if kind in ("particles", "pores") and not told & _OF_PARTS:
        left.add("coverage")
    if kind != "lines" and "count" not in told:
        left.add("period")
    return left


def _looks_like(known: Known, sure: float) -> str:
    """What kind of picture it is, as a sentence."""
    kind = known.facts.kind
    shown = DARK_BODIES if kind == "particles" and _noted_dark(known) else KIND_WORDS[kind]
    if _alone(known):
        shown = _ONE_OF.get(shown, shown)
    return f"The image {'shows' if sure >= SURE else 'seems to show'} {shown}."


def _tone(known: Known) -> str:
    """Whether the bodies of a picture are bright or dark, or why that cannot be told."""
    sure = _kind_sure(known)
    if known.facts.kind in ("particles", "pores") and sure >= LIKELY:
        return _looks_like(known, sure)
    return f"Whether the bodies are bright or dark cannot be told: {NONE_APART}."


def _noted_dark(known: Known) -> bool:
    """Whether what was measured of bodies is noted to be of dark ones."""
    return any("dark" in fact.note for fact in known.facts.applicable())


def _kind_sure(known: Known) -> float:
    """How sure it is what a picture looks like: no more than what else is known of its bodies.

    Cloudy noise looks like bodies and polished grains like fibres, but none of them is measured with confidence and no
    head knows a word for them.
    """
    kind, sure = known.facts.kind, known.facts.kind_confidence
    arranged = known.get("arrangement")
    if kind == "particles" and arranged is not None and arranged.text in _NO_BODIES:
        return 0.0  # a head sees walls or layers where the measurement took bright parts for bodies
    words = {fact.text for name in ("class", "shape", "arrangement") if (fact := known.get(name)) is not None}
    if kind == "fibres":
        width = known.get("fibre_width")
        return sure if words & _LONG or (width is not None and width.sure) else 0.0
    if words or kind not in ("particles", "pores"):
        return sure
    measured = (fact.confidence for name in _OF_BODIES if (fact := known.get(name)) is not None)
    return min(sure, max(measured, default=0.0))


def _imaging(known: Known, said: Set[str]) -> Iterator[tuple[str, str]]:
    """How it was taken, as the file says."""
    read = [
        f"{QUANTITIES[fact.name].said} {fact.written}"
        for fact in known
        if QUANTITIES[fact.name].source == "read" and fact.name not in {"date", "field_width", *said}
    ]
    if read:
        yield "", f"Read from the file: {'; '.join(read)}."
    if known.nm_per_pixel is None:
        yield "", "The image is not calibrated."


def _compared(known: Mapping[int, Known]) -> Iterator[tuple[str, str]]:
    """Quantities that several pictures have, each with its value in every one of them."""
    units: dict[str, set[str]] = {}
    for name in COMPARED:
        facts = {number: fact for number, one in known.items() if (fact := one.get(name)) is not None}
        units[name] = {fact.unit for fact in facts.values()}
        if len(facts) > 1:
            values = ", ".join(
                f"{fact.written} in image {number}{'' if fact.sure else ' (uncertain)'}"
                for number, fact in facts.items()
            )
            yield name, f"{QUANTITIES[name].said.capitalize()}: {values}."
    if not any(units.values()):
        yield "", "No quantity is known of both images."
    elif any("px" in found for found in units.values()):
        yield "", "Lengths in pixels do not compare: not all of the images are calibrated."


def _agreed(names: Sequence[str], known: Mapping[int, Known]) -> Iterator[tuple[str, str]]:
    """Whether pictures agree in each quantity that is named, or why that cannot be told.

    Of several sizes the first that all pictures have decides.
    """
    shared = [name for name in names if all(one.get(name) is not None for one in known.values())]
    sizes = set(INTENTS["size"].facts)
    lengths = [name for name in names if name in sizes]
    decides = next((name for name in shared if name in sizes), lengths[0] if lengths else None)
    for name in names:
        if name in sizes and name != decides:
            continue
        said = "day" if name == "date" else QUANTITIES[name].said
        facts = {number: fact for number, one in known.items() if (fact := one.get(name)) is not None}
        values = "".join(f" Image {number}: {sentence_of(fact)}" for number, fact in facts.items())
        without = " and ".join(f"image {number}" for number in known if number not in facts)
        if without or any(fact.unit == "px" for fact in facts.values()):
            why = f"it is not known of {without}" if without else "not all images are calibrated"
            yield name, f"Whether the {said} is the same cannot be told, as {why}.{values}"
            continue
        first, *others = facts.values()
        alike = all(between(name, first, other).alike for other in others)
        if name == "date":
            alike = len({fact.text[:10] for fact in facts.values()}) == 1
        doubt = "" if all(fact.sure for fact in facts.values()) else "probably "
        told = f"{doubt}{'' if alike else 'not '}the same {said}"
        yield name, f"{told[0].upper()}{told[1:]}.{values}"


def _ranked(intents: Sequence[str], question: str, known: Mapping[int, Known]) -> tuple[list[tuple[str, str]], bool]:
    """Which picture has more of what is asked for, or why that cannot be told; and whether it could be told.

    Of the quantities of one intent the first that all pictures have decides.
    """
    told: list[tuple[str, str]] = []
    decided = False
    for intent in intents:
        asked = facts_asked(intent, question)
        if intent == "size":
            asked = _SIZES if asked == INTENTS[intent].facts else (*asked, *_SIZES)
        names = [name for name in asked if not QUANTITIES[name].in_words]
        shared = next((name for name in names if all(one.get(name) is not None for one in known.values())), None)
        found = {n: next(filter(None, map(one.get, [shared] if shared else names)), None) for n, one in known.items()}
        facts = {number: fact for number, fact in found.items() if fact is not None}
        if len(facts) == len(known):
            told.append(_order(facts, _LESS.search(question) is not None))
            decided = True
        elif names:
            without = " and ".join(f"image {number}" for number in known if number not in facts)
            said = "size" if intent == "size" else QUANTITIES[names[0]].said
            told.append(("", f"Which it is cannot be told: the {said} is not known of {without}."))
    return told, decided


def _order(facts: Mapping[int, Fact], less: bool) -> tuple[str, str]:
    """The sentence that says which picture has the most of a quantity, or the `less`t, with all values."""
    first, second, *_ = order = sorted(facts, key=lambda n: facts[n].value or 0.0, reverse=not less)
    names, units = ({getattr(fact, key) for fact in facts.values()} for key in ("name", "unit"))
    name = facts[first].name
    values = ", ".join(
        f"{QUANTITIES[facts[n].name].said + ' ' if len(names) > 1 else ''}{facts[n].written} in image {n}"
        f"{'' if facts[n].sure else ' (uncertain)'}"
        for n in order
    )
    if "px" in units:
        without = [f"image {n}" for n in sorted(facts) if facts[n].unit == "px"]
        why = f"{' and '.join(without)} {'is' if len(without) == 1 else 'are'} not calibrated"
        said = f"{QUANTITIES[name].said} " if len(names) == 1 else ""
        return name, f"Which it is cannot be told, as {why}: {said}{values}."
    has = "has" if facts[first].sure and facts[second].sure else "seems to have"
    word = ("smaller" if less else "larger") if units == {"nm"} else ("lower" if less else "higher")
    if len(names) > 1:
        low, high = sorted((facts[first].value or 0.0, facts[second].value or 0.0))
        if high < _CLEARLY * low:
            return name, f"Which it is cannot be told, as different things were measured: {values}."
        return name, f"Image {first} {has} the {word} structures, though different things were measured: {values}."
    said = QUANTITIES[name].said
    if between(name, facts[first], facts[second]).alike:
        return name, f"The {said} of image {first} and image {second} is alike: {values}."
    return name, f"Image {first} {has} the {word} {said}: {values}."


def _true_names(sentence: str, known: Sequence[Known], meant: Sequence[int], wanted: Set[str]) -> set[str]:
    """The quantities a sentence speaks of, where it claims something, all of it true, and says nothing else.

    A number without the name of its quantity ("It is 312 nm.") counts where it is what was `wanted`.
    """
    statements = read_statements(sentence, known, about=meant)
    if not statements or any(statement.verdict != "true" for statement in statements):
        return set()
    if any(statement.fact is not None and not statement.fact.sure for statement in statements):
        return set()  # said plainly; what is composed says the doubt
    if "{" in sentence or not sentence.endswith((".", "!", ";")) or _REPEATED.search(sentence):
        return set()
    if sentence[0].islower():  # a part of a list, whose beginning may have been left out
        return set()
    rest = _NAMES.sub(" ", sentence)
    for amount in reversed(read_amounts(rest)):
        rest = rest[: amount.start] + " " + rest[amount.stop :]
    words = {word.lower() for word in _WORD.findall(rest)}
    if not words <= GLUE | _known_words(known):
        return set()
    names = set[str]()
    for statement in statements:
        of = statement.name or (statement.fact.name if statement.fact else "")
        spans = of == "d10_diameter" and _is_range(statement.text)  # "most diameters are between 20 and 110 nm"
        if not statement.name and not spans and not (of in wanted and words <= _BARE and not _NAMES.search(sentence)):
            return set()
        names.add(of)
    return names


def _is_range(text: str) -> bool:
    return any(amount.low < amount.high for amount in read_amounts(text))


def _known_words(known: Sequence[Known]) -> set[str]:
    return {word.lower() for one in known for fact in one if fact.text for word in _WORD.findall(fact.text)}

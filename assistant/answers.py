"""A draft by the language model -> an answer in which every statement is a fact, or says what is missing.

What an answer says of numbers, instrument, class, shape, surface or arrangement is known of the picture, or is not
said: a sentence of the draft stays only where all its claims are true, its other words claim nothing, and it speaks of
what was asked. Where no sentence stays, the answer is composed from the facts that the question asks for. Knows nothing
about models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from assistant.measure import LINE_ORDER, Known, missing, read_claims, sentence_of, sentences, true_claims
from assistant.quantities import QUANTITIES, read_amounts, written

MOST_FACTS = 8
"""Measured facts of a description."""

ASKED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"how many|number of|counts?\b|counted", ("count",)),
    (
        r"how (?:large|big|small|long)|\bsizes?\b|diameter|larger|smaller",
        ("mean_diameter", "d10_diameter", "d90_diameter"),
    ),
    (r"how wide|widths?\b|thick", ("line_width", "fibre_width")),
    (r"how far apart|distances? between|spacing|neighbou?r", ("nearest_neighbour",)),
    (r"periods?\b|pitch|periodic", ("period",)),
    (r"poros|porous|\bpores?\b", ("porosity",)),
    (r"cover", ("coverage",)),
    (r"orient|direction|aligned|alignment", ("orientation", "anisotropy")),
    (r"anisotrop", ("anisotropy",)),
    (r"roughness|\bLER\b", ("line_edge_roughness",)),
    (r"aspect ratio|elongat", ("aspect_ratio",)),
    (r"circularity|how round", ("circularity",)),
    (r"nois|quality", ("noise",)),
    (r"contrast|quality", ("contrast",)),
    (r"sharp|blur|focus", ("sharpness",)),
    (r"voltage|\bkv\b|beam energy", ("voltage",)),
    (r"working distance|\bwd\b", ("working_distance",)),
    (r"magnif", ("magnification",)),
    (r"pixel|calibrat|\bscale\b", ("pixel_size",)),
)
"""What a question asks for: words, and the quantities that answer it."""
ASKED_IN_WORDS: tuple[tuple[str, str], ...] = (
    (r"\bclass|what (?:kind|sort|type)|what is (?:this|it|shown|that)|what does|belong", "class"),
    (r"shapes?\b|shaped", "shape"),
    (r"surface|smooth|texture", "surface"),
    (r"arrange|ordered|distribut", "arrangement"),
    (r"detector", "detector"),
    (r"microscope|instrument|manufactur|vendor", "microscope"),
    (r"\bwhen\b|\bdate\b", "date"),
)
"""What a question asks for in words: those of the sample are said only where a calibrated head knows them."""
OF_THE_FILE = frozenset({"detector", "microscope", "date"})
GLUE = frozenset(
    re.findall(
        r"\w+",
        """
    a about above accelerating acceleration all also amount amounts an and approximately are area around as at
    average be beam been below between bodies body both but by can clockwise come comes contains could counted
    counter counting detector diameters distance each electron equal equals every field file for found frame
    from given gives has have here horizontal image images in is it its itself kilovolts large least length
    lengths less lie lies long main mean means measure measured measurement measures micrograph micrographs
    microscope more most near nearest nearly neighbour neighbours not object objects of on one only or out over
    overall parts per picture pictures possible print recorded respectively roughly same see seen separate share
    shown shows single size small so some spans stands structure structures such taken than that the their them
    there these they this those to total under up used value values visible was were when where which while
    whole whose wide width with within working you
    """,
    )
)
"""Words that claim nothing about a sample. A sentence with any other word says more than is known."""
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NAMES = re.compile("|".join(rf"\b(?:{quantity.words})\b" for quantity in QUANTITIES.values()), re.IGNORECASE)


def checked(pieces: Iterable[str], question: str, known: Sequence[Known]) -> Iterator[str]:
    """The answer to a question, sentence by sentence: what of a draft is fact, then what the draft left out.

    Without pictures nothing is known, and the draft passes as it is.
    """
    if not known:
        yield from pieces
        return
    wanted, said, said_of, gap = set(asked_for(question)), set[str](), set[str](), ""
    for sentence in map(str.strip, sentences(pieces)):
        names = _true_names(sentence, known)
        if names and sentence not in said and (not wanted or names & wanted):
            yield gap + sentence
            said.add(sentence)
            said_of |= names
            gap = " "
    if not said or wanted - said_of:
        rest = [text for name, text in composed(question, known) if name not in said_of and text not in said]
        if rest:
            yield gap + " ".join(rest)


def asked_for(question: str) -> list[str]:
    """The quantities that a question asks for, in the order of `ASKED`; none for an open question."""
    found = [name for words, names in ASKED if re.search(words, question, re.IGNORECASE) for name in names]
    if re.search(r"pixel size|scale", question, re.IGNORECASE):  # "size" alone would ask for a diameter
        found = [name for name in found if not name.endswith("_diameter")]
    return list(dict.fromkeys(found))


def composed(question: str, known: Sequence[Known]) -> list[tuple[str, str]]:
    """What the facts say to a question: names of quantities, each with its sentence."""
    parts: list[tuple[str, str]] = []
    for number, one in enumerate(known, 1):
        said = _composed_of(question, one)
        prefix = f"Image {number}: " if len(known) > 1 else ""
        parts += [(name, f"{prefix}{text}") for name, text in said]
    return list(dict.fromkeys(parts))


def _composed_of(question: str, known: Known) -> list[tuple[str, str]]:
    in_words = [name for words, name in ASKED_IN_WORDS if re.search(words, question, re.IGNORECASE)]
    parts = [(name, _in_words(name, known)) for name in in_words]
    wanted = set(asked_for(question))
    for words, names in ASKED:
        if re.search(words, question, re.IGNORECASE) and wanted.issuperset(names):
            parts += _facts_or_what_is_missing(names, known)
    if not parts or set(in_words) - OF_THE_FILE:
        parts += [("", text) for text in _description(known)]
    return parts


def _facts_or_what_is_missing(names: Sequence[str], known: Known) -> list[tuple[str, str]]:
    found = [(name, value) for name in names if (value := known.value_of(name)) is not None]
    if found:
        return [(name, sentence_of(name, *value)) for name, value in found]
    return [(names[0], missing(names[0], calibrated=True))]


def _in_words(name: str, known: Known) -> str:
    if name in OF_THE_FILE:
        value = {"detector": known.detector, "microscope": known.microscope, "date": known.date}[name]
        return f"The {name} is {value}." if value else f"The file does not name the {name}."
    return f"The {name} cannot be told from this image: no classifier here is sure of it."


def _description(known: Known) -> Iterator[str]:
    """What is measured and read, in two sentences."""
    measured = [
        f"{QUANTITIES[name].said} {written(*value)}"
        for name in LINE_ORDER
        if (value := known.value_of(name)) is not None
    ]
    yield f"Measured: {'; '.join(measured[:MOST_FACTS])}." if measured else "Nothing could be measured in this image."
    read = [
        f"{QUANTITIES[name].said} {value[0]:.10g}{'' if value[1] == 'x' else ' '}{value[1]}"
        for name in ("voltage", "working_distance", "magnification", "pixel_size")
        if (value := known.value_of(name)) is not None
    ]
    read += [
        f"{name} {text}" for name, text in (("detector", known.detector), ("microscope", known.microscope)) if text
    ]
    if read:
        yield f"Read from the file: {'; '.join(read)}."
    if known.nm_per_pixel is None:
        yield "The image is not calibrated."


def _true_names(sentence: str, known: Sequence[Known]) -> set[str]:
    """The quantities a sentence speaks of, where it claims something, all of it true, and says nothing else."""
    claims = read_claims(sentence)
    if not claims or not sentence.endswith((".", "!", ";")) or not true_claims(sentence, known):
        return set()
    rest = _NAMES.sub(" ", sentence)
    for amount in reversed(read_amounts(rest)):
        rest = rest[: amount.start] + " " + rest[amount.stop :]
    if not {word.lower() for word in _WORD.findall(rest)} <= GLUE | _known_words(known):
        return set()
    return {claim.quantity for claim in claims if claim.quantity} or {""}


def _known_words(known: Sequence[Known]) -> set[str]:
    names = (text for k in known for text in (k.detector, k.microscope) if text)
    return {word.lower() for text in names for word in _WORD.findall(text)}

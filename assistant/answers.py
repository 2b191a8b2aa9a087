"""A draft by the language model -> an answer in which every statement is a fact, or says what is missing.

What an answer says of numbers, instrument, class, shape, surface or arrangement is known of the picture, or is not
said: a sentence of the draft stays only where all its claims are true, its other words claim nothing, and it speaks of
what was asked. Where no sentence stays, the answer is composed from the facts that the question asks for. Knows nothing
about models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from assistant.measure import LINE_ORDER, Known, filled, missing, read_statements, sentence_of, sentences
from assistant.quantities import HOW_LARGE, QUANTITIES, read_amounts

MOST_FACTS = 8
"""Measured facts of a description."""
ANSWERED_TOGETHER: Mapping[str, tuple[str, ...]] = {
    words: tuple(name for name, quantity in QUANTITIES.items() if words in quantity.asks)
    for words in dict.fromkeys(words for quantity in QUANTITIES.values() for words in quantity.asks)
}
"""What a question asks for: words, and the quantities that answer it."""
_OTHERS = re.compile(
    r"\b(?:images?|pictures?|micrographs?)\s*\d|\b(?:first|second|third|previous|earlier|other|both|all|each|every|"
    r"these (?:images|pictures|micrographs)|compare\w*|differ\w*|than|same|between them)\b",
    re.IGNORECASE,
)
"""A question with such a word is about more than the pictures it came with."""
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
    are meant, all if empty. Without pictures nothing is known, and the draft passes as it is.
    """
    if not known:
        yield from pieces
        return
    meant = tuple(about) or tuple(range(1, len(known) + 1))
    wanted, said, said_of, gap = set(asked_for(question)), set[str](), set[str](), ""
    for sentence in map(str.strip, sentences(filled(pieces, known))):
        names = _true_names(sentence, known, meant)
        if names and sentence not in said and (not wanted or names & wanted):
            yield gap + sentence
            said.add(sentence)
            said_of |= names
            gap = " "
    if not said or wanted - said_of:
        rest = [text for name, text in composed(question, known, about=meant) if name not in said_of]
        rest = [text for text in rest if text not in said]
        if rest:
            yield gap + " ".join(rest)


def asked_for(question: str) -> list[str]:
    """The quantities that a question asks for; none for an open question."""
    found = [name for words, names in ANSWERED_TOGETHER.items() if _asks(question, words) for name in names]
    if re.search(r"pixel|\bscale\b", question, re.IGNORECASE):  # "size" alone would ask for the structures
        found = [name for name in found if HOW_LARGE not in QUANTITIES[name].asks]
    return list(dict.fromkeys(found))


def composed(question: str, known: Sequence[Known], *, about: Sequence[int] = ()) -> list[tuple[str, str]]:
    """What the facts say to a question: names of quantities, each with its sentence."""
    parts: list[tuple[str, str]] = []
    numbers = about or range(1, len(known) + 1)
    for number in numbers:
        prefix = f"Image {number}: " if len(numbers) > 1 else ""
        parts += [(name, f"{prefix}{text}") for name, text in _composed_of(question, known[number - 1])]
    return list(dict.fromkeys(parts))


def _asks(question: str, words: str) -> bool:
    return re.search(words, question, re.IGNORECASE) is not None


def _composed_of(question: str, known: Known) -> list[tuple[str, str]]:
    wanted = set(asked_for(question))
    parts = [
        part
        for words, names in ANSWERED_TOGETHER.items()
        if _asks(question, words) and wanted.issuperset(names)
        for part in _facts_or_what_is_missing(names, known)
    ]
    if not wanted or any(QUANTITIES[name].source == "predicted" for name in wanted):
        parts += [("", text) for text in _description(known)]
    return parts


def _facts_or_what_is_missing(names: Sequence[str], known: Known) -> list[tuple[str, str]]:
    found = [fact for name in names if (fact := known.get(name)) is not None]
    return [(fact.name, sentence_of(fact)) for fact in found] or [(names[0], missing(names[0], calibrated=True))]


def _description(known: Known) -> Iterator[str]:
    """What is measured and read, in two sentences."""
    facts = [fact for name in LINE_ORDER if (fact := known.get(name)) is not None]
    measured = [f"{QUANTITIES[fact.name].said} {fact.written}{'' if fact.sure else ' (uncertain)'}" for fact in facts]
    yield f"Measured: {'; '.join(measured[:MOST_FACTS])}." if measured else "Nothing could be measured in this image."
    read = [
        f"{QUANTITIES[fact.name].said} {fact.written}"
        for fact in known
        if QUANTITIES[fact.name].source == "read" and fact.name != "date"
    ]
    if read:
        yield f"Read from the file: {'; '.join(read)}."
    if known.nm_per_pixel is None:
        yield "The image is not calibrated."


def _true_names(sentence: str, known: Sequence[Known], meant: Sequence[int]) -> set[str]:
    """The quantities a sentence speaks of, where it claims something, all of it true, and says nothing else."""
    statements = read_statements(sentence, known, about=meant)
    if not statements or any(statement.verdict != "true" for statement in statements):
        return set()
    if any(statement.fact is not None and not statement.fact.sure for statement in statements):
        return set()  # said plainly; what is composed says the doubt
    if "{" in sentence or not sentence.endswith((".", "!", ";")):
        return set()
    rest = _NAMES.sub(" ", sentence)
    for amount in reversed(read_amounts(rest)):
        rest = rest[: amount.start] + " " + rest[amount.stop :]
    if not {word.lower() for word in _WORD.findall(rest)} <= GLUE | _known_words(known):
        return set()
    return {statement.name for statement in statements if statement.name} or {""}


def _known_words(known: Sequence[Known]) -> set[str]:
    return {word.lower() for one in known for fact in one if fact.text for word in _WORD.findall(fact.text)}

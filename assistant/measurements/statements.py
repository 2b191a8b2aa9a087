"""What a text states about pictures, each statement with the fact behind it: true, false, unsupported or withheld.

The one checker: answers are held against it before anyone reads them, evaluation counts with it, and the page shows
what it found. Knows nothing about pixels or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from assistant.measurements.claims import SENTENCE_END, Claim, images_named, read_claims
from assistant.measurements.facts import Fact, Known
from assistant.quantities import QUANTITIES, states

Verdict = Literal["true", "false", "unsupported", "withheld"]
ABOUT = 0.1
""""About 300 nm" states 312 nm. Relative."""
_NAMED = re.compile(
    r"\b(detector|microscope|instrument|date|class|shape|surface|arrangement)(?:\s+(?:used|mode|type|name))?\s*(?:is|was|:|=)\s*(?:an?\s+|the\s+)?"
    r"([\w()+/-]+)",
    re.IGNORECASE,
)
_NO_NAME = frozenset({"not", "unknown", "named", "given", "no", "none", "used", "same", "recorded", "stated"})
_DENIED = re.compile(r"\b(?:no|not|never|neither|nor|without)\b|n['’]t\b", re.IGNORECASE)
_WITHHELD = re.compile(
    r"\b(?:(?:could|can) ?not be (?:measured|told|seen|counted|determined)|"
    r"(?:was|were) not (?:measured|recorded|found)|"
    r"do(?:es)? not (?:give|name|say|state|contain)|(?:is|are) not (?:calibrated|known|given|named|stated)|"
    r"nothing could be measured|no classifier here)",
    re.IGNORECASE,
)
"""What is said of what is missing: by `missing`, and by the taught answers."""


@dataclass(frozen=True)
class Statement:
    """One thing that a text says of a picture."""

    text: str
    start: int
    """Where it stands in the text: [start, stop)."""
    stop: int
    name: str | None
    """Its quantity in `QUANTITIES`; None where the text names none of them."""
    verdict: Verdict
    """Withheld: it says that something is not known."""
    image: int | None = None
    """The picture whose fact it is, from 1."""
    fact: Fact | None = None
    """What is known of the quantity; also where the text says something else."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: {"text", "start", "stop", "name", "verdict", "image", "fact": {...} or null}."""
        return asdict(self)


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """A text that comes in pieces, sentence by sentence, each with the blanks behind it."""
    held = ""
    for piece in pieces:
        held += piece
        while end := SENTENCE_END.search(held):
            yield held[: end.end()]
            held = held[end.end() :]
    if held:
        yield held


def read_statements(text: str, known: Sequence[Known], *, about: Sequence[int] = ()) -> list[Statement]:
    """Every statement of a text, in order, held against what is known of the pictures of a conversation.

    A sentence that names a picture ("image 2") is held against that one; any other against the pictures it is `about`
    (numbers from 1; all if empty), and is true if it is so of one of them.
    """
    pictures = _Pictures(known, tuple(about) or tuple(range(1, len(known) + 1)))
    found, start = list[Statement](), 0
    for sentence in sentences([text]):
        found += (replace(s, start=s.start + start, stop=s.stop + start) for s in _of_sentence(sentence, pictures))
        start += len(sentence)
    return found


@dataclass(frozen=True)
class _Pictures:
    """What is known, and which pictures are spoken of."""

    known: Sequence[Known]
    about: tuple[int, ...]

    def named(self, number: int | None) -> list[tuple[int, Known]]:
        numbers = self.about if number is None else (number,)
        return [(n, self.known[n - 1]) for n in numbers if 0 < n <= len(self.known)]


def _of_sentence(sentence: str, pictures: _Pictures) -> list[Statement]:
    words = [*_of_words(sentence, pictures)]
    told = {statement.name for statement in words}  # "the SEC SNE-4500M": the maker is part of the name
    words += (named for named in _of_names(sentence, pictures) if named.name not in told)
    numbers = (_of_number(claim, pictures) for claim in read_claims(sentence))
    found = [*words]
    for number in numbers:  # "Supra 40" is no number
        if not any(number.start < word.stop and word.start < number.stop for word in words):
            found.append(number)
    if not found and _WITHHELD.search(sentence):
        said = sentence.strip()
        return [Statement(said, sentence.index(said), sentence.index(said) + len(said), _named(sentence), "withheld")]
    return sorted(found, key=lambda statement: statement.start)


def _of_number(claim: Claim, pictures: _Pictures) -> Statement:
    shown = pictures.named(claim.image)
    if claim.quantity is None:
        facts = [(number, fact) for number, known in shown for fact in known]
    else:
        facts = [(number, fact) for number, known in shown if (fact := known.get(claim.quantity))]
    for number, fact in facts:
        if is_stated(claim, fact):
            return _statement(claim, "true", number, fact)
    for number, known in shown:
        if (least := known.get("d10_diameter")) and (most := known.get("d90_diameter")) and _spans(claim, least, most):
            return _statement(claim, "true", number, least)
    if claim.quantity is None or not facts:
        return _statement(claim, "unsupported")
    return _statement(claim, "false", *facts[0])


def is_stated(claim: Claim, fact: Fact) -> bool:
    """Whether a claim is true of a fact; what cannot be compared is not."""
    amount = claim.amount.to(fact.unit)
    if amount is None or fact.value is None:
        return False
    if claim.limit:
        said = fact.value > amount.value if claim.limit == "above" else fact.value < amount.value
    else:
        near = claim.about and abs(amount.value - fact.value) <= ABOUT * abs(fact.value)
        said = near or bool(states(claim.amount, fact.value, fact.unit))
    return said is not claim.denied


def _spans(claim: Claim, least: Fact, most: Fact) -> bool:
    """Whether a range is that from one fact to another: "most diameters are between 20 and 110 nm"."""
    ends = (replace(claim.amount, value=v, low=v, high=v) for v in (claim.amount.low, claim.amount.high))
    plain = not claim.denied and not claim.limit and claim.amount.low < claim.amount.high
    return plain and all(
        states(end, fact.value or 0.0, fact.unit) for end, fact in zip(ends, (least, most), strict=True)
    )


def _statement(claim: Claim, verdict: Verdict, image: int | None = None, fact: Fact | None = None) -> Statement:
    return Statement(claim.wording, claim.amount.start, claim.amount.stop, claim.quantity, verdict, image, fact)


def _of_words(sentence: str, pictures: _Pictures) -> Iterator[Statement]:
    """Every known word that a sentence uses: names as the file writes them, words of heads in any case."""
    for number, known in pictures.named(_last_named(sentence)):
        for fact in known:
            case = re.IGNORECASE if fact.source == "predicted" else re.NOFLAG
            match = re.search(rf"(?<!\w){re.escape(fact.text)}(?!\w)", sentence, case) if fact.text else None
            if match:
                denied = _DENIED.search(sentence[: match.start()])
                verdict: Verdict = "false" if denied else "true"
                yield Statement(match[0], match.start(), match.end(), fact.name, verdict, number, fact)


def _of_names(sentence: str, pictures: _Pictures) -> Iterator[Statement]:
    """A name, a class, a shape ... that a sentence gives outright: quoted, or made up."""
    for match in _NAMED.finditer(sentence):
        said, name = match[2].casefold(), match[1].lower().replace("instrument", "microscope")
        if said in _NO_NAME:
            continue
        shown = pictures.named(_last_named(sentence))
        named = [(number, fact) for number, known in shown if (fact := known.get(name))]
        place = (match[2], match.start(2), match.end(2), name)
        right = next(((number, fact) for number, fact in named if said in fact.text.casefold()), None)
        if right:
            yield Statement(*place, "true", *right)
        else:
            yield Statement(*place, "false", *named[0]) if named else Statement(*place, "unsupported")


def _last_named(sentence: str) -> int | None:
    named = images_named(sentence)
    return named[-1][1] if named else None


def _named(sentence: str) -> str | None:
    """The first quantity that a sentence names."""
    found = (
        (match.start(), -match.end(), name)
        for name, quantity in QUANTITIES.items()
        if (match := re.search(rf"\b(?:{quantity.words})\b", sentence, re.IGNORECASE))
    )
    if re.search(r"\bcalibrated\b", sentence):
        return "pixel_size"
    return min(found, default=(0, 0, None))[2]

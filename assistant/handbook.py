"""What is known of electron microscopy and of MAEMI itself: a question -> the entry that answers it, or none.

An entry is quoted as it stands, so a general answer rests on something written as one about a picture rests on a fact.
Knows nothing about pictures or models.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path

TEXT = Path(__file__).with_suffix(".txt")
ENOUGH = 0.8
"""Share of the weight of all words, of question and wording together, that both must have."""
_POLITE = re.compile(r"^(?:please |(?:can|could|would) you )+(?=explain|tell|define|describe|say)")
_ASKS = re.compile(
    r"(?:what(?:'?s| is| are| does| do| makes| limits| causes| can| voltage| resolution| magnification)|which|why|how|"
    r"when|where|should|do|does|can|is|will|who|define|explain|tell)\b|.*\b(?:vs|versus|or|difference)\b"
)
"""How a whole question begins; "magnification?" beside a picture asks for that of the picture."""
_POINTING = frozenset("the this that these those it its they them here you your my our was were did used many".split())
"""Words by which a question is about something at hand: "the porosity" is one of a picture, "porosity" is none."""
_ASKING = frozenset(
    """a about actually an and are at be briefly by can could define definition describe do does exactly explain for
    from give i in is know mean meaning means meant me of on or please s say shortly so stand stands tell term to us
    we what whats which word words would""".split()
)
"""Words that are the same in most questions."""
_WORD = re.compile(r"[a-z0-9]+(?=['’]s\b)?")
_ENDINGS = re.compile(r"(?<=\w{3})(?:ies|es|s|ing|ed)$")
_ALIKE = {
    "micrograph": "imag", "micrographs": "imag", "picture": "imag", "pictures": "imag", "photo": "imag",
    "specimen": "sampl", "specimens": "sampl", "kv": "voltage", "kilovolt": "voltage", "kilovolts": "voltage",
    "versus": "differenc", "vs": "differenc", "differ": "differenc",
    "prevent": "avoid", "lower": "reduc", "decrease": "reduc", "choose": "choos",
    "nm": "nanometr", "appear": "look", "appears": "look", "prepared": "mad", "prepare": "mad",
}  # fmt: skip
"""Words for one thing, by the stem that stands for them."""


@dataclass(frozen=True)
class Entry:
    """One thing that is known."""

    questions: tuple[str, ...]
    """Wordings of the question that it answers."""
    answer: str


@cache
def entries() -> tuple[Entry, ...]:
    """All entries, in the order of the file."""
    found = []
    for block in TEXT.read_text(encoding="utf-8").split("\n\n"):
        *questions, last = [line for line in block.strip().splitlines() if not line.startswith("#")] or [""]
        if last.startswith("= "):
            found.append(Entry(tuple(questions), last.removeprefix("= ")))
    return tuple(found)


@lru_cache(maxsize=4096)  # an answer, its statements and its taught twin each ask
def entry_for(question: str) -> Entry | None:
    """The entry that answers a general question; None where none does, or where it points at something at hand."""
    plain = _POLITE.sub("", " ".join(question.lower().split()))
    asked, pointing = _stems(plain), _pointing(plain)
    if not asked or not _ASKS.match(plain):
        return None
    weights, wordings = _index()
    best, score = None, ENOUGH
    for stems, points, entry in wordings:
        shared = 2 * sum(weights[stem] for stem in asked & stems)
        of = sum(weights[stem] for stem in stems) + sum(weights.get(stem, weights[""]) for stem in asked)
        if shared >= score * of and pointing <= points:
            best, score = entry, math.nextafter(shared / of, 2)
    return best


def is_entry(text: str) -> bool:
    """Whether a text is the answer of an entry."""
    return text.strip() in _answers()


@cache
def _answers() -> frozenset[str]:
    return frozenset(entry.answer for entry in entries())


@cache
def _index() -> tuple[dict[str, float], list[tuple[frozenset[str], frozenset[str], Entry]]]:
    """Weight of each stem (a rare one tells more; "" stands for one that is nowhere), and every wording's stems."""
    wordings = [(_stems(q, known=None), _pointing(q), entry) for entry in entries() for q in entry.questions]
    counted = Counter(stem for stems, _, _ in wordings for stem in stems)
    weights = {stem: 1 + math.log(len(wordings) / count) for stem, count in counted.items()}
    return weights | {"": 1 + math.log(len(wordings))}, wordings


def _pointing(question: str) -> frozenset[str]:
    return _POINTING.intersection(_WORD.findall(question.lower()))


def _stems(question: str, known: frozenset[str] | None = frozenset()) -> frozenset[str]:
    """The words that make a question this one, without their endings; a slip of spelling is put right."""
    words = [word for word in _WORD.findall(question.lower()) if word not in _ASKING | _POINTING]
    stems = {_ALIKE.get(word) or re.sub(r"(?<=\w{3})e$", "", _ENDINGS.sub("", word)) for word in words}
    if known is None:
        return frozenset(stems)
    vocabulary = _index()[0]
    near = {stem: get_close_matches(stem, vocabulary, n=1, cutoff=0.85) for stem in stems if stem not in vocabulary}
    return frozenset(near[stem][0] if near.get(stem) and len(stem) > 4 else stem for stem in stems)

"""What may not become a label: refusals, hedges, markup, wrong numbers, answers that need no picture, near-duplicates.

Pure functions from text, numbers or pixels to a verdict. Knows nothing about teachers, ledgers or files.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from assistant.quantities import read_amounts

BLIND_SHARE = 0.9
"""A question whose commonest answer is right more often than this needs no picture."""
BLIND_ROWS = 10
"""Fewer rows say nothing about how predictable an answer is."""
NUMBER_TOLERANCE = 0.1
SAME_WORDS = 0.5
"""Least share of common words of two answers that agree."""
MAX_ANSWER_CHARS = 600

# A refusal or a hedge that is taught comes back as an answer to questions that could be answered.
_REFUSAL = re.compile(
    r"\b(i(?:'m| am) (?:sorry|unable)|i (?:can(?:no|')t|cannot) (?:help|assist|comply|provide|analy[sz]e|view|see)|"
    r"as an ai\b|as a language model|against (?:my|our) polic|unable to (?:assist|view|process))",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(it (?:is|'s) (?:hard|difficult|impossible) to (?:say|tell|determine)|i (?:think|believe|guess|would guess)|"
    # "could be used for" is an application, not a doubt
    r"might be|may be|could be(?! used)|possibly|perhaps|probably|it seems|appears to be|not sure|"
    r"without (?:more|further|additional) (?:information|context))",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"<[a-z/!]|!\[|\]\(|https?://|www\.|javascript:|```", re.IGNORECASE)
# A spreadsheet runs a cell that begins like this.
_FORMULA = re.compile(r"^\s*[=+@\t\r]")
# Letters that nobody sees can carry instructions to a model, or turn the order of the visible ones round.
_INVISIBLE = re.compile("[\U000e0000-\U000e007f\ufe00-\ufe0f\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


def clean(text: str) -> str:
    """Plain text on one line: invisible and control characters gone, the micro sign written as "um"."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    # Two code points look alike; a tokenizer that never saw one of them would spell it in bytes.
    text = re.sub("[µμ]m", "um", text)
    text = "".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in text)
    return " ".join(text.split())


def numbers_agree(answer: str, known: str) -> bool:
    """True where every number of the answer stands in the known text, within 10 % and in the same dimension."""
    # Without a name beside each number nobody can tell which is which: it is enough that it stands there.
    facts = read_amounts(known)
    return all(
        any(
            stated.dimension == fact.dimension
            and abs(stated.base - fact.base) <= NUMBER_TOLERANCE * abs(fact.base) + 1e-9
            for fact in facts
        )
        for stated in read_amounts(answer)
    )


def refuses(text: str) -> bool:
    """True where a text declines to answer."""
    return _REFUSAL.search(text) is not None


def untrusted_text(texts: Iterable[str]) -> str | None:
    """`markup` where a file name, tag or label brought markup, a link, a formula or unseen characters into a text."""
    for text in texts:
        # These texts come from strangers' files and end in a browser, a spreadsheet or a prompt.
        controls = any(unicodedata.category(letter) == "Cc" for letter in text)
        if controls or _INVISIBLE.search(text) or _MARKUP.search(text) or _FORMULA.match(text):
            return "markup"
    return None


def text_verdict(answer: str, *, known: str) -> str | None:
    """Why an answer may not be taught (`empty`, `markup`, `refusal`, `hedge`, `numbers_disagree`, ...), or None."""
    if not answer:
        return "empty"
    if len(answer) > MAX_ANSWER_CHARS:
        return "too_long"
    if _MARKUP.search(answer) or _FORMULA.match(answer):
        return "markup"
    if refuses(answer):
        return "refusal"
    if _HEDGE.search(answer):
        return "hedge"
    return None if numbers_agree(answer, known) else "numbers_disagree"


def is_yes_or_no(answer: str) -> str | None:
    """The "yes" or "no" that an answer begins with."""
    first = answer.lower().partition(" ")[0].strip(",.:;")
    return first if first in {"yes", "no"} else None


def wordings_agree(answers: Sequence[str]) -> bool:
    """True where all wordings give the same yes or no and the same numbers."""
    verdicts = {is_yes_or_no(answer) for answer in answers} - {None}
    # In the first unit of each dimension, so that "0.3 um" and "300 nm" are one number.
    counts = {tuple(sorted((amount.dimension, f"{amount.base:.3g}") for amount in read_amounts(a))) for a in answers}
    return len(verdicts) < 2 and len(counts) < 2


def samples_agree(samples: Sequence[str]) -> bool:
    """True where several answers to one question share yes or no, all numbers and most words."""
    # Short words are shared by any two sentences.
    words = [frozenset(re.findall(r"[a-z]{3,}", sample.lower())) for sample in samples]
    alike = all(len(a & b) >= SAME_WORDS * len(a | b) for a, b in itertools.combinations(words, 2))
    return alike and wordings_agree(samples)


def answer_verdict(wordings: Sequence[str], *, facts: Sequence[str], known: str) -> str | None:
    """Why the wordings of an answer may not be taught, or None; `facts` are the answers that the facts give, if any.

    Beside the verdicts of `text_verdict`: `wordings_disagree` and `facts_disagree`.
    """
    if not wordings:
        return "empty"
    for wording in wordings:
        # What the facts answer is known too, although it does not stand in the line that went with the picture.
        if verdict := text_verdict(wording, known=f"{known} {' '.join(facts)}"):
            return verdict
    if not wordings_agree(wordings):
        return "wordings_disagree"
    # The first wording stands for all: they agree, or the line above had said so.
    said = {is_yes_or_no(text) for text in (wordings[0], *facts)} - {None}
    return "facts_disagree" if len(said) > 1 else None


def blind_answers(counts: Iterable[tuple[str, int, int, str]]) -> dict[str, tuple[str, float]]:
    """Questions that the training split answers without the picture -> their answer, and the share of it to keep.

    `counts`: (question, rows, rows with the commonest answer, that answer). Thinned to that share, the answer is as
    frequent as all others together; where there are no others nothing is kept. An empty question is not judged.
    """
    return {
        question: (answer, (rows - common) / common)
        for question, rows, common, answer in counts
        if question and rows >= BLIND_ROWS and common > BLIND_SHARE * rows
    }


def blind_scores(counts: Iterable[tuple[str, int, int, str]]) -> dict[str, tuple[int, int]]:
    """Per item: its rows, and how many of them the commonest answer to the same question gets right.

    `counts` as for `blind_answers`, whose thinning is counted in; a question is "item: words", and one that few rows
    ask says nothing.
    """
    counts = list(counts)
    thinned = blind_answers(counts)
    scores: dict[str, tuple[int, int]] = {}
    for question, rows, common, _ in (entry for entry in counts if entry[1] >= BLIND_ROWS):
        item = question.partition(":")[0]
        right = rows - common if question in thinned else common
        asked, known = scores.get(item, (0, 0))
        scores[item] = (asked + rows - common + right, known + right)
    return scores


def difference_hash(picture: np.ndarray) -> int:
    """64-bit difference hash of a picture [H, W]: is each cell of an 8 x 8 grid darker than its right neighbour?"""
    from PIL import Image

    cells = np.asarray(Image.fromarray(picture).resize((9, 8), Image.Resampling.BOX), dtype=np.int16)  # [8, 9]
    bits = (cells[:, :-1] < cells[:, 1:]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


class NearDuplicates:
    """Finds an earlier picture whose hash differs in at most `bits` bits; remembers 16 bytes per picture.

    An even picture has no hash to compare: only the same file is its duplicate.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._hashes = np.zeros(64, dtype=np.uint64)
        self._positions = np.zeros(64, dtype=np.int64)
        self._count = 0
        self._even: dict[str, int] = {}

    def add(self, position: int, dhash: int, sha256: str) -> int | None:
        """Position of the first near-duplicate seen before, or None; only pictures that are new are remembered."""
        if not dhash:  # no cell is darker than its neighbour: every even picture would be the same
            first = self._even.setdefault(sha256, position)
            return None if first == position else first
        distance = np.bitwise_count(self._hashes[: self._count] ^ np.uint64(dhash))
        near = np.flatnonzero(distance <= self._bits)
        if len(near):
            return int(self._positions[near[0]])
        if self._count == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
            self._positions = np.concatenate([self._positions, np.zeros_like(self._positions)])
        self._hashes[self._count], self._positions[self._count] = dhash, position
        self._count += 1
        return None

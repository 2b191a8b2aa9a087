"""Makes the numbers of an answer those of the reader and the measurement. Knows nothing about pixels or models.

A language model words an answer; what it says of voltage, magnification, pixel size, working distance or a measured
quantity is replaced by what is known, where something is known and the answer strays from it. A sentence that quotes
metadata the file does not have, or a length of an image without scale, gives way to one that says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from assistant.measurements.claims import _compared, _stated
from assistant.measurements.facts import Facts, quantity

SAME = 0.01
"""Metadata are quoted, not estimated: a stated value may differ by its rounding only."""
_KILOVOLT = re.compile(r"(\d[\d,]*(?:\.\d+)?)\s?kV\b")
_MAGNIFICATION = re.compile(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?)\s?x\b")
_LENGTH = re.compile(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?)\s?(nm|um|mm)\b")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s")
_IN_NM = {"nm": 1.0, "um": 1e3, "mm": 1e6}


@dataclass(frozen=True)
class Known:
    """What is known of one picture, beside its measured facts; None where it is not."""

    facts: Facts
    hv_kv: float | None = None
    wd_mm: float | None = None
    magnification: float | None = None
    nm_per_pixel: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether no sentence about the instrument or the scale can state what nobody knows."""
        return None not in (self.hv_kv, self.wd_mm, self.magnification, self.nm_per_pixel)


def corrected(sentence: str, known: Known) -> str:
    """One sentence with its numbers put right, or what is not known in its place; words stay."""
    if invented := list(_invented(sentence, known)):
        return " ".join(invented) + sentence[len(sentence.rstrip()) :]
    sentence = _KILOVOLT.sub(_quoting(known.hv_kv, "{} kV"), sentence)
    sentence = _MAGNIFICATION.sub(_quoting(known.magnification, "{}x"), sentence)
    sentence = _LENGTH.sub(lambda match: _length(match, known), sentence)
    for name, wording, value, unit in list(_stated(sentence)):
        fact = known.facts.get(name)
        if fact is not None and fact.value is not None and fact.confidence > 0 and not _compared(fact, value, unit):
            sentence = sentence.replace(wording, quantity(fact.value, fact.unit), 1)
    return sentence


def corrected_stream(pieces: Iterable[str], known: Known) -> Iterator[str]:
    """Pieces of an answer, as they come; from a sentence's first digit on it is held back until it is complete.

    Where something is not known of the picture, a sentence may have to give way, so it is held back from its start.
    """
    held, told = "", 0
    for piece in pieces:
        held += piece
        while end := _SENTENCE_END.search(held):
            sentence, held = held[: end.end()], held[end.end() :]
            yield corrected(sentence, known)[told:]
            told = 0
        if known.is_complete and not any(letter.isdigit() for letter in held) and len(held) > told:
            yield held[told:]
            told = len(held)
    yield corrected(held, known)[told:]


def _invented(sentence: str, known: Known) -> Iterator[str]:
    """What has to be said instead of a sentence that states what nobody can know from this file."""
    if known.hv_kv is None and _KILOVOLT.search(sentence):
        yield "The file does not give the voltage."
    if known.magnification is None and _MAGNIFICATION.search(sentence):
        yield "The file does not give the magnification."
    lengths = list(_LENGTH.finditer(sentence))
    distances = [match for match in lengths if "working distance" in sentence[: match.start()].lower()]
    if known.wd_mm is None and distances:
        yield "The file does not give the working distance."
    if known.nm_per_pixel is None and len(lengths) > len(distances):
        yield "The image is not calibrated."


def _quoting(value: float | None, form: str) -> Callable[[re.Match[str]], str]:
    def replacement(match: re.Match[str]) -> str:
        said = float(match[1].replace(",", ""))
        if value is None or abs(said - value) <= SAME * abs(value):
            return match[0]
        return form.format(f"{value:.4g}" if value < 1e4 else f"{value:.0f}")

    return replacement


def _length(match: re.Match[str], known: Known) -> str:
    """A length that its clause calls a pixel size or a working distance."""
    clause = re.split(r"[;]|,\s|\sand\s", match.string[: match.start()])[-1].lower()
    after = match.string[match.end() :].lower().lstrip()
    said = float(match[1].replace(",", "")) * _IN_NM[match[2]]
    if "pixel" in clause or after.startswith(("per pixel", "/px", "/pixel")):
        right, shown = known.nm_per_pixel, f"{known.nm_per_pixel or 0:.4g} nm"
    elif "working distance" in clause:
        right, shown = None if known.wd_mm is None else known.wd_mm * 1e6, f"{known.wd_mm or 0:.3g} mm"
    else:
        return match[0]
    return match[0] if right is None or abs(said - right) <= SAME * right else shown

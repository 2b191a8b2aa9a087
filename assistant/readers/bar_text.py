"""What an info bar says in words: voltage, working distance, magnification, detector, date. Knows nothing about pixels.

Makers write a value behind its name ("WD = 4.1 mm"), under it (Thermo's table), or without one ("10.0kV 11.2mm x4.00k
SE(UL)"). A value that could belong to two names belongs to none.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from assistant.quantities import read_amounts
from assistant.readers.ocr import Line
from assistant.readers.record import Instrument, iso_date

FIELDS = ("hv_kv", "wd_mm", "magnification", "detector", "date")
HIGHEST_KV, LONGEST_WD_MM, LARGEST_MAGNIFICATION = 1500.0, 200.0, 2e7

_DETECTORS = (
    r"SE[12I]?|SE2|BSE(?:[123]D?)?|BSD|BEI|BEC|BED(?:-[CTS])?|COMPO|TOPO|SHADOW|ETD|TLD|CBS|ICD|MD|LFD|GAD|ABS|DBS|"
    r"LVSED|vCD|LED|LEI|UED|USD|SEI|SED|SEM|InLens|In-?Beam(?: (?:SE|BSE))?|ESB|EsB|AsB|HDAsB|HE-SE2|"
    r"NTS BSD|VPSE|STEM|TE|HAADF|ADF|DF4?|BF|YAGBSE|PDBSE(?:\(CP\))?"
)
_DETECTOR = re.compile(rf"(?:{_DETECTORS})(?: ?\([A-Z0-9+-]{{1,4}}\)|-COMP|-TOPO|\d?)")
_NAMED_DETECTOR = re.compile(r"(?:signal ?a?|det(?:ector)?\.?) ?[:=] ?(.+)", re.IGNORECASE)
_DISTANCE = re.compile(r"\bWD\b ?[:=]? ?(\d+(?:\.\d+)?) ?mm", re.IGNORECASE)
_BARE_DISTANCE = re.compile(r"k ?V (\d+(?:\.\d+)?) ?mm\b", re.IGNORECASE)
_TIMES = re.compile(
    r"(?:^|(?<!\d)[ :=(])[x×] ?([\d.,]+) ?(k?)\b|(?:^|[ :=(])([\d.,]+) ?(k?) ?[x×](?! ?\d)(?=$|[ )])", re.IGNORECASE
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\d{1,3}(?:,\d{3})+")
_DATE = re.compile(r"\b(\d{1,4})([-./])(\d{1,2})\2(\d{2,4})\b")
_MONTH = re.compile(r"\b(\d{1,2})[ -]([A-Z][a-z]{2})[a-z]*[ ,-]+(20\d\d|19\d\d)\b")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TELLS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\d ?k?V\b|\bEHT\b|\bHV\b",
        r"\bWD\b|\d ?mm\b",
        r"[x×] ?\d|\d ?k? ?[x×]\b|\bmag\b",
        r"\d ?[nuµμ]m\b",
    )
)


def tells_instrument(lines: Sequence[Line]) -> bool:
    """Whether lines of text are those of an info bar: two of the kinds of values that a microscope writes."""
    return sum(any(kind.search(line.text) for line in lines) for kind in _TELLS) >= 2


def read_instrument(lines: Sequence[Line], again: Sequence[Line]) -> Instrument:
    """What the lines say, where a second reading of them, `again`, says the same."""
    first, second = (_instrument([replace(line, text=tidy(line.text)) for line in many]) for many in (lines, again))
    said: dict[str, Any] = {n: first[n] for n in FIELDS if first[n] is not None and first[n] == second[n]}
    return Instrument(**said, sources=dict.fromkeys(said, "banner"))


def tidy(text: str) -> str:
    """One micro sign for all, no space inside a number, and no letter O in one."""
    text = re.sub(r"(?<=[\d.])[Oo](?=[\d.]| ?k[Vv]\b| ?mm\b| ?[µμu]m\b)", "0", text.replace("μ", "µ"))
    text = re.sub(r"(?<=\d)(,?) (?=\d{3}(?: ?[x×]|$))", r"\1", text)
    return re.sub(r"(?<=\d) ?\. ?(?=\d)", ".", text)


def magnifications(lines: Sequence[Line]) -> Iterator[float]:
    """ "x4.00k", "X 1,800", "Mag = 105 X": a number beside a times sign, and not one side of "1280 x 960"."""
    for line in lines:
        for before, kilo, after, kilo_after in _TIMES.findall(line.text):
            number = (before or after).strip(",.")
            if _NUMBER.fullmatch(number) and float(number.replace(",", "")) > 0:
                yield float(number.replace(",", "")) * (1000 if kilo or kilo_after else 1)


def _instrument(lines: Sequence[Line]) -> dict[str, float | str | None]:
    volts = {a.base / 1e3 for line in lines for a in read_amounts(line.text) if a.unit == "kV" and a.low == a.high}
    return {
        "hv_kv": _only(kilo for kilo in volts if 0 < kilo <= HIGHEST_KV),
        "wd_mm": _only(_distances(lines)),
        "magnification": _only(value for value in magnifications(lines) if value <= LARGEST_MAGNIFICATION),
        "detector": _detector(lines),
        "date": _only(date for line in lines if (date := _date(line.text))),
    }


def _only(values: Iterable[float | str]) -> float | str | None:
    """The one value there is, None for none or several."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _distances(lines: Sequence[Line]) -> Iterator[float]:
    """[mm]: behind "WD", in the cell under or beside it, or, without any such name, right behind the voltage."""
    texts = [match[1] for line in lines if (match := _DISTANCE.search(line.text))]
    if not texts:
        heads = [line for line in lines if re.fullmatch(r"WD ?[:=]?", line.text, re.IGNORECASE)]
        cells = [cell for head in heads if (cell := _cell_of(head, lines))]
        texts = [match[1] for cell in cells if (match := re.match(r"(\d+(?:\.\d+)?) ?mm", cell.text))]
        if not heads:
            texts = [match[1] for line in lines if (match := _BARE_DISTANCE.search(line.text))]
    yield from (float(text) for text in texts if 0 < float(text) <= LONGEST_WD_MM)


def _cell_of(head: Line, lines: Sequence[Line]) -> Line | None:
    """The line that stands under a column's head, else the next one on the same row."""
    high = head.bottom - head.top
    under = [
        line for line in lines
        if line.top >= head.top + high // 2 and min(line.right, head.right) > max(line.left, head.left)
    ]  # fmt: skip
    if under:
        return min(under, key=lambda line: line.top)
    beside = [line for line in lines if abs(line.top - head.top) < high // 2 and line.left >= head.right - high]
    return min(beside, key=lambda line: line.left, default=None)


def _detector(lines: Sequence[Line]) -> str | None:
    named = [match[1].strip() for line in lines if (match := _NAMED_DETECTOR.search(line.text))]
    heads = [line for line in lines if re.fullmatch(r"det\.?", line.text, re.IGNORECASE)]
    named += [cell.text for head in heads if (cell := _cell_of(head, lines))]
    words = [word for word in named if _DETECTOR.fullmatch(word)]
    if not named:
        # A line that names something else ("SEM HV: 10.0 kV") holds no detector; a time of day names nothing.
        texts = [re.sub(r"\b\d{1,2}:\d{2}(?::\d{2})?\b", "", line.text) for line in lines]
        bare = [word for text in texts if ":" not in text and "=" not in text for word in text.split()]
        words = [word for word in bare if _DETECTOR.fullmatch(word)]
    found = set(words)
    return found.pop() if len(found) == 1 else None


def _date(text: str) -> str | None:
    """ISO 8601; None where day and month could be either way round."""
    if (match := _MONTH.search(text)) and match[2].lower() in _MONTHS:
        return iso_date(f"{match[3]}-{_MONTHS.index(match[2].lower()) + 1}-{match[1]}")
    match = _DATE.search(text)
    if match is None:
        return None
    first, separator, second, third = match.groups()
    if len(first) == 4:
        return iso_date(f"{first}-{second}-{third}")
    if len(third) != 4 or len(first) > 2:
        return None
    if separator == "." or int(first) > 12 or first == second:
        return iso_date(f"{third}-{second}-{first}")
    return iso_date(f"{third}-{first}-{second}") if int(second) > 12 else None

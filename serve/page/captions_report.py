"""The report of a batch of captions: one HTML file that needs nothing else, with a summary over its pictures.

Knows nothing about how the captions came about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

from assistant.quantities import QUANTITIES
from serve.page.saved import template, versions
from serve.page.tables import Thumbnail, heading, picture, pixel_size_words, value_words, without_unit

if TYPE_CHECKING:
    from serve.batch.background import CaptionBatch
    from serve.batch.caption_rows import CaptionRow


def captions_report(batch: CaptionBatch, rows: Sequence[CaptionRow], thumbnail: Thumbnail) -> Iterator[str]:
    """The report in pieces: pictures of ten thousand rows need not fit into memory."""
    yield from template("captions.html.j2").generate(
        batch=batch,
        rows=rows,
        failed=sum(row.error is not None for row in rows),
        summary=_summary(rows),
        picture_of=lambda row: picture(thumbnail(row.sha256)),
        facts_of=_facts_of,
        versions=versions(),
    )


def _summary(rows: Sequence[CaptionRow]) -> list[tuple[str, int, str, str, str, str]]:
    """What was measured in two pictures or more: name, pictures, median, smallest, largest, how.

    What a file says of itself is left out, and directions: 1° and 179° have no middle.
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.facts.items():
            quantity = QUANTITIES.get(without_unit(name))
            measured = quantity is not None and quantity.source == "measured" and quantity.name != "orientation"
            if isinstance(value, float) and measured:
                values.setdefault(name, []).append(value)
    shown = []
    for name, those in values.items():
        if len(those) < 2:
            continue
        middle, low, high = map(value_words, (median(those), min(those), max(those)))
        shown.append((heading(name), len(those), middle, low, high, QUANTITIES[without_unit(name)].method))
    return shown


def _facts_of(row: CaptionRow) -> list[tuple[str, str]]:
    """Names and values of what was read and measured in a picture, and its pixel size before them."""
    if row.error is not None:
        return []
    found = [(heading(name), value_words(value)) for name, value in row.facts.items() if name != "warnings"]
    return [("pixel size", pixel_size_words(row)), *found]

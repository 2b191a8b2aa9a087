"""What was read and measured in a picture, as HTML for the page's side panel; every word from outside is escaped.

Knows nothing about Gradio or about how the numbers came about.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from serve import wording

if TYPE_CHECKING:
    from assistant.micrograph import Micrograph

PREVIEW = 480
"""Longest side of a picture that was just dropped [px]."""
EMPTY = (
    '<div class="maemi-empty"><p>Nothing shown yet.</p><p>Add a micrograph to the chat: what its file says about the '
    "instrument, and what can be measured in it, appears here.</p></div>"
)


def panel(
    shown: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any], tuple[str, str]]],
    warnings: Sequence[str] = (),
    statements: Sequence[Mapping[str, Any]] = (),
    reading: Sequence[str] = (),
    looks: Sequence[str] = (),
) -> str:
    """All pictures of a conversation as (title, info, facts, (name, pixel size) for the viewer), the newest open.

    Above them the warnings, and what the latest answer states with the facts behind it. `reading`: titles of pictures
    that are being read; `looks`: how the newest ones look, as `data:` URIs.
    """
    if not shown and not reading:
        return EMPTY
    cards: list[str] = []
    for title, info, facts, (name, size) in shown:
        badge = '<p class="maemi-badge maemi-amber">Not calibrated</p>'
        if info["pixel_size_nm"] is not None:
            size, _, source = wording.calibration_words(info).partition(" (")
            source = escape(source.rstrip(")"))
            badge = f'<p class="maemi-badge maemi-teal">{escape(size)} <span>from {source}</span></p>'
        found = "".join(_row(label, value) for label, value in wording.reading(info) if label != "Pixel size")
        measured = "".join(_row(name, value, method) for name, value, method in wording.fact_rows(facts))
        newest = " open" if len(cards) == len(shown) - 1 else ""
        views = _view("Open viewer", {"file": name, "size": size})
        if cards:
            before, _, _, (other, size1) = shown[len(cards) - 1]
            pair = {"file": other, "size": size1, "with": name, "size2": size}
            views += _view(f"Compare with {before}", pair)
        views = f'<p class="maemi-views">{views}</p>'
        place = len(cards) - len(shown) + len(looks)
        look = f'<img class="maemi-preview" src="{looks[place]}" alt="">' if place >= 0 else ""
        cards.append(
            f"<details{newest}><summary>{escape(title)}</summary>{look}{badge}{views}{_cautions(info['warnings'])}"
            f"<h4>Read from the file</h4><dl>{found}</dl><h4>Recognised and measured</h4><dl>{measured}</dl></details>"
        )
    stated = "".join(_row(*wording.statement_row(statement)) for statement in statements)
    if stated:
        stated = f"<details open><summary>What the answer rests on</summary><dl>{stated}</dl></details>"
    waiting = "".join(f'<p class="maemi-reading" role="status">Reading {escape(title)} …</p>' for title in reading)
    return f'<div class="maemi-panel">{waiting}{_cautions(warnings)}{stated}{"".join(reversed(cards))}</div>'


def thumbnail(micrograph: Micrograph, side: int) -> str:
    """A small windowed picture as a `data:` URI."""
    from PIL import Image

    image = Image.fromarray(micrograph.to_display())
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _view(words: str, named: Mapping[str, str]) -> str:
    """A link into the viewer; the page opens it over itself."""
    named = {key: value for key, value in named.items() if value}
    return f'<a class="maemi-view" href="viewer?{escape(urlencode(named))}" target="_blank">{escape(words)}</a>'


def _row(label: str, value: str, hint: str = "") -> str:
    return f'<div title="{escape(hint)}"><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>'


def _cautions(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<ul class="maemi-cautions">{items}</ul>' if items else ""

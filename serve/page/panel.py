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

from assistant.quantities import typeset
from serve import wording
from serve.batch.caption_rows import CaptionRow

if TYPE_CHECKING:
    from assistant.micrograph import Micrograph

_THUMBNAIL, PREVIEW = 132, 480
"""Longest side of a picture in a table, and of one that was just dropped [px]."""
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
            size, _, source = wording.pixel_size(info).partition(" (")
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
            f"<h4>Read from the file</h4><dl>{found}</dl><h4>Measured</h4><dl>{measured}</dl></details>"
        )
    stated = "".join(_row(*wording.statement_row(statement)) for statement in statements)
    if stated:
        stated = f"<details open><summary>What the answer rests on</summary><dl>{stated}</dl></details>"
    waiting = "".join(f'<p class="maemi-reading" role="status">Reading {escape(title)} …</p>' for title in reading)
    return f'<div class="maemi-panel">{waiting}{_cautions(warnings)}{stated}{"".join(reversed(cards))}</div>'


def caption_table(rows: Sequence[tuple[CaptionRow, str]], *, of: int) -> str:
    """Captions beside their thumbnails (`data:` URIs, empty for none); `of` is how many there will be."""
    if not of:
        hint = "Add micrographs and press the button. For whole folders there is <code>maemi caption</code>."
        return _empty("No captions yet.", hint)
    body = ""
    for row, uri in rows:
        if row.error is None:
            said = escape(row.caption or "")
            size = "not calibrated" if row.pixel_size_nm is None else typeset(row.pixel_size_nm, "nm/px", figures=4)
        else:
            said, size = f'<span class="maemi-problem">{escape(row.error)}</span>', ""
        picture = f'<img src="{uri}" alt="">' if uri else ""
        name = f'<p class="maemi-file">{escape(row.path)} <span>{size}</span></p>'
        body += f'<tr><td class="maemi-thumb">{picture}</td><td>{name}<p>{said}</p></td></tr>'
    return f'{_progress(len(rows), of)}<table class="maemi-table"><tbody>{body}</tbody></table>'


def class_table(results: Sequence[Mapping[str, Any]], *, of: int) -> str:
    """Verdict and probabilities of each file; `of` is how many there will be."""
    if not of:
        return _empty("No classes yet.", "Add micrographs, name two or more labels and press the button.")
    body = ""
    for result in results:
        name = escape(result["path"].rpartition("/")[2])
        if result["error"]:
            problem = escape(result["error"]["message"])
            body += f'<tr><td class="maemi-file">{name}</td><td colspan="2" class="maemi-problem">{problem}</td></tr>'
            continue
        bars = "".join(
            f'<div class="maemi-bar"><span>{escape(score["label"])}</span>'
            f'<i style="--share:{score["probability"]:.4f}"></i><b>{score["probability"]:.1%}</b></div>'
            for score in result["scores"][:4]
        )
        kind = "maemi-amber" if result["verdict"] == "unknown" else "maemi-teal"
        verdict = f'<span class="maemi-badge {kind}">{escape(result["verdict"])}</span>'
        body += f'<tr><td class="maemi-file">{name}</td><td>{verdict}</td><td>{bars}</td></tr>'
    return f'{_progress(len(results), of)}<table class="maemi-table"><tbody>{body}</tbody></table>'


def thumbnail(micrograph: Micrograph, side: int = _THUMBNAIL) -> str:
    """A small windowed picture as a `data:` URI."""
    from PIL import Image

    image = Image.fromarray(micrograph.to_display())
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _progress(done: int, of: int) -> str:
    text = f"{of} done" if done == of else f"{done} of {of} …"
    return f'<p class="maemi-progress">{text}</p>'


def _empty(title: str, hint: str) -> str:
    return f'<div class="maemi-empty"><p>{title}</p><p>{hint}</p></div>'


def _view(words: str, named: Mapping[str, str]) -> str:
    """A link into the viewer; the page opens it over itself."""
    named = {key: value for key, value in named.items() if value}
    return f'<a class="maemi-view" href="viewer?{escape(urlencode(named))}" target="_blank">{escape(words)}</a>'


def _row(label: str, value: str, hint: str = "") -> str:
    return f'<div title="{escape(hint)}"><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>'


def _cautions(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<ul class="maemi-cautions">{items}</ul>' if items else ""

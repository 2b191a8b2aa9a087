"""Tables of many pictures as HTML: captions with their facts, labels with their bars; every outside word is escaped.

What is clicked or typed in a table reaches the page through `data-tells`, which page.js passes on to a hidden field.
Knows nothing about Gradio, or about how a row came about.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from assistant.quantities import written
from serve.batch.background import CaptionBatch
from serve.batch.caption_rows import CaptionRow

ALL_ROWS, FAILED, DOUBTFUL, UNCALIBRATED = "all", "failed", "with warnings", "not calibrated"
SHOWN = 25
"""Rows on a page."""
_UNITS = {"nm": "nm", "px": "px", "percent": "%", "deg": "°", "kv": "kV", "mm": "mm", "per_um2": "/µm²"}

Thumbnail = Callable[[str | None], bytes | None]
"""The JPEG of a picture by its hash."""


def chosen_rows(rows: Sequence[CaptionRow], words: str, only: str, order: str) -> list[CaptionRow]:
    """Rows with every word in their name, caption, error or facts; by a column, `-` before it for the largest first.

    Rows that lack the column come last.
    """
    tests: dict[str, Callable[[CaptionRow], bool]] = {
        ALL_ROWS: lambda _: True,
        FAILED: lambda row: row.error is not None,
        DOUBTFUL: lambda row: "warnings" in row.facts,
        UNCALIBRATED: lambda row: row.error is None and row.pixel_size_nm is None,
    }
    keep, wanted = tests.get(only, tests[ALL_ROWS]), words.casefold().split()

    def said(row: CaptionRow) -> str:
        texts = (value for value in row.facts.values() if isinstance(value, str))
        return " ".join([row.path, row.caption or "", row.error or "", *texts]).casefold()

    found = [row for row in rows if keep(row) and all(word in said(row) for word in wanted)]
    column = order.removeprefix("-")

    def value_of(row: CaptionRow) -> Any:
        return getattr(row, column) if column in ("path", "caption", "pixel_size_nm") else row.facts.get(column)

    known = [row for row in found if value_of(row) is not None]
    texts = any(isinstance(value_of(row), str) for row in known)
    known.sort(key=lambda row: str(value_of(row)).casefold() if texts else value_of(row), reverse=order.startswith("-"))
    return known + [row for row in found if value_of(row) is None]


def batch_line(batch: CaptionBatch, done: int) -> str:
    """How far a batch is, with a bar, and what there is to know about it."""
    total = max(batch.total, done)
    counted = f"{done} of {total}" if total else ""
    if batch.running:
        left = "" if batch.left_s is None else f", {duration(batch.left_s)} left"
        told = f"{counted} captioned{left}" if total else "Looking for pictures …"
    elif batch.finished:
        told = f"{done} done"
    else:
        told = f"Stopped at {counted}" if total else "Not begun"
    failed = f", {batch.failed}" if batch.failed else ""
    share = done / total if total else 0.0
    bar = f'<div class="maemi-share" style="--share:{share:.4f}"></div>'
    problem = f'<p class="maemi-problem" role="alert">{escape(batch.error)}</p>' if batch.error else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in batch.notes)
    notes = f'<ul class="maemi-cautions">{notes}</ul>' if notes else ""
    return (
        f'<div class="maemi-batch"><p><b>{escape(batch.title)}</b> '
        f'<span role="status">{escape(told + failed)}</span></p>{bar}{problem}{notes}</div>'
    )


def captions_table(rows: Sequence[CaptionRow], facts: Sequence[str], order: str, thumbnail: Thumbnail) -> str:
    """Captions beside their pictures, with columns of facts; a click on a heading sorts by it."""
    head = "".join(_heading(column, order) for column in ("path", "pixel_size_nm", *facts))
    body = ""
    for row in rows:
        said = escape(row.caption or "")
        if row.error is not None:
            said = f'<span class="maemi-problem">{escape(row.error)}</span>'
        warned = str(row.facts.get("warnings", ""))
        doubt = f'<p class="maemi-doubt">{escape(warned)}</p>' if warned else ""
        size = "" if row.error else pixel_size_words(row)
        cells = "".join(_cell(heading(name), row.facts.get(name)) for name in facts)
        body += (
            f'<tr><td class="maemi-thumb">{picture(thumbnail(row.sha256))}</td>'
            f'<td class="maemi-entry"><p class="maemi-file">{escape(row.path)}</p><p>{said}</p>{doubt}</td>'
            f'<td data-name="pixel size">{size}</td>{cells}</tr>'
        )
    return (
        f'<div class="maemi-wide" tabindex="0" role="region" aria-label="Captions"><table class="maemi-table">'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def labels_table(results: Sequence[Mapping[str, Any]], labels: Sequence[str], thumbnail: Thumbnail) -> str:
    """What each picture was taken for, what a person says it is, and the probabilities behind it."""
    body = ""
    for result in results:
        name, error = escape(result["name"]), result["error"]
        shown = f'<tr><td class="maemi-thumb">{picture(thumbnail(result["sha256"]))}</td><td class="maemi-entry">'
        shown += f'<p class="maemi-file">{name}</p>'
        if error:
            body += f'{shown}<p class="maemi-problem">{escape(error)}</p></td><td></td></tr>'
            continue
        told = "".join(_target(result, target) for target in result["targets"])
        body += f"{shown}{told}</td><td>{''.join(_bars(target) for target in result['targets'])}</td></tr>"
    choices = "".join(f'<option value="{escape(label)}"></option>' for label in labels)
    return (
        f'<datalist id="maemi-labels">{choices}</datalist><table class="maemi-table maemi-labels"><tbody>{body}</tbody>'
        "</table>"
    )


def confusion_table(pairs: Sequence[tuple[str, str]]) -> str:
    """How often a picture that is one label was taken for another, from (said by a person, predicted)."""
    if not pairs:
        return ""
    rows = sorted({true for true, _ in pairs})
    columns = sorted({predicted for _, predicted in pairs} | set(rows))
    counts = np.zeros((len(rows), len(columns)), int)
    for true, predicted in pairs:
        counts[rows.index(true), columns.index(predicted)] += 1
    right = sum(true == predicted for true, predicted in pairs)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = ""
    for name, line in zip(rows, counts, strict=True):
        cells = "".join(
            f'<td class="{"maemi-right" if name == column else "maemi-wrong" if n else ""}">{n or ""}</td>'
            for column, n in zip(columns, line, strict=True)
        )
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return (
        f'<p class="maemi-progress maemi-counted">{right} of {len(pairs)} that you looked at were right. '
        'Rows: what you say; columns: what was predicted.</p><div class="maemi-wide" tabindex="0" role="region" '
        'aria-label="Confusion"><table class="maemi-confusion">'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def empty(title: str, hint: str) -> str:
    """What stands where nothing is yet."""
    return f'<div class="maemi-empty"><p>{title}</p><p>{hint}</p></div>'


def picture(jpeg: bytes | None) -> str:
    """A small picture, or nothing."""
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" alt="">' if jpeg else ""


def pixel_size_words(row: CaptionRow) -> str:
    """The pixel size of a picture, or that there is none."""
    return "not calibrated" if row.pixel_size_nm is None else written(row.pixel_size_nm, "nm/px")


def value_words(value: float | str) -> str:
    """A value of a column of facts, whose unit stands in its heading."""
    return value if isinstance(value, str) else f"{value:.4g}"


def heading(column: str) -> str:
    """The name of a column of facts for people: `mean_diameter_nm` is "mean diameter [nm]"."""
    if column == "path":
        return "picture"
    name = without_unit(column)
    unit = _UNITS.get(column[len(name) + 1 :])
    return name.replace("_", " ") + (f" [{unit}]" if unit else "")


def without_unit(column: str) -> str:
    """The quantity of a column of facts: `mean_diameter_nm` is of `mean_diameter`."""
    return next((column.removesuffix(f"_{unit}") for unit in _UNITS if column.endswith(f"_{unit}")), column)


def _heading(column: str, order: str) -> str:
    up, down = order == column, order == f"-{column}"
    sorting = ' aria-sort="ascending"' if up else ' aria-sort="descending"' if down else ""
    arrow = " ▲" if up else " ▼" if down else ""
    after = f"-{column}" if up else column
    return (
        f'<th scope="col"{sorting}><button data-tells="sort" data-value="{escape(after)}">{escape(heading(column))}'
        f"{arrow}</button></th>"
    )


def _cell(name: str, value: float | str | None) -> str:
    words = "" if value is None else escape(value_words(value))
    return f'<td data-name="{escape(name)}">{words}</td>'


def _target(result: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """The verdict or value of one target, and the field for what a person says."""
    name, corrected = target["name"], result["corrected"].get(target["name"], "")
    if "value" in target:
        unit = f" {target['unit']}" if target["unit"] else ""
        reach = "no interval: too few groups were held out"
        if target["low"] is not None:
            reach = f"{target['low']:.4g} to {target['high']:.4g}{unit} in {target['coverage']:.0%} of cases"
        said, verdict = f"{target['value']:.4g}", f"{name} {target['value']:.4g}{unit}"
        badge = f'<span class="maemi-badge maemi-teal">{escape(verdict)}</span> <small>{escape(reach)}</small>'
    else:
        said = target["verdict"]
        kind = "maemi-amber" if said == "unknown" else "maemi-teal"
        badge = f'<span class="maemi-badge {kind}">{escape(said)}</span>'
        if others := [label for label in target.get("set") or () if label != said]:
            badge += f" <small>or {escape(', '.join(others))}</small>"
    key = escape(f"{result['number']}\t{name}")
    right = (
        ""
        if said == "unknown"
        else (f'<button data-tells="correction" data-value="{key}\t{escape(said)}" class="maemi-view">Right</button>')
    )
    state = (
        f'<span class="maemi-kept">{"right" if corrected == said else "corrected"}, kept</span>' if corrected else ""
    )
    return (
        f'<p>{badge}</p><p class="maemi-correct">{right}<input list="maemi-labels" data-tells="correction" '
        f'data-value="{key}" value="{escape(corrected)}" placeholder="It is …" '
        f'aria-label="What {escape(result["name"])} really is">{state}</p>'
    )


def _bars(target: Mapping[str, Any]) -> str:
    return "".join(
        f'<div class="maemi-bar"><span>{escape(score["label"])}</span>'
        f'<i style="--share:{score["probability"]:.4f}"></i><b>{score["probability"]:.1%}</b></div>'
        for score in (target.get("scores") or ())[:4]
    )


def duration(seconds: float) -> str:
    """How long something takes, as one says it."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"

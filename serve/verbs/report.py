"""The report of a fine-tuning run: one HTML file that needs nothing else, on a screen, on paper, years later.

Knows nothing about how the numbers, pictures and answers came about.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from assistant.disk import replacing
from serve import wording
from training.charts import Series, chart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_STYLE = Path(__file__).with_name("report.css")
_PICTURE_WIDTH = 720
"""Width of an embedded picture [px]."""
SECTIONS = {
    "caption": "Captions",
    "vqa": "Answers to questions",
    "classification": "Classification",
    "factual": "Facts held against the truth",
}
METRICS = {
    "bleu2": "BLEU-2",
    "bleu4": "BLEU-4",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "meteor_exact_stem": "METEOR (exact and stem)",
    "top1": "Top-1",
    "top2": "Top-2",
    "top3": "Top-3",
    "top5": "Top-5",
    "coverage": "A class is named",
    "named_right": "Right where one is named",
    "likelihood_top1": "Top-1 by likelihood, not served",
    "macro_precision": "Macro precision",
    "macro_recall": "Macro recall",
    "macro_f1": "Macro F1",
    "ece": "Calibration error (ECE)",
    "accuracy": "Accuracy",
}
LOWER_IS_BETTER = {"ece"}
_COLUMNS = ("Before", "After", "Change", "No facts", "Blind", "Majority", "Nearest text")
_PEERS = {
    "top1_linear_probe_vit": "Linear probe on the student's frozen image encoder",
    "top1_cnn": "Small convolutional network",
    "top1_majority": "Always the largest class",
}
CHIPS = {
    "Pixel size": "",
    "Instrument": "",
    "Voltage": "",
    "Working distance": "WD ",
    "Magnification": "",
    "Detector": "",
    "Frame": "",
}
"""What of the reader's findings stands under a picture, and the word before it."""


@dataclass(frozen=True)
class ReportImage:
    """One picture with everything that is said about it."""

    name: str
    pixels: NDArray[np.uint8]  # [H, W]
    info: Mapping[str, Any]
    facts: Mapping[str, Any]
    """As `Facts.as_dict` gives them."""
    caption: str
    answers: Sequence[tuple[str, str, str]] = ()
    """(question, answer, reference)."""


def write_report(
    out: Path,
    *,
    title: str,
    dataset: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    losses: Sequence[tuple[int, float]],
    images: Iterable[ReportImage],
    timing: Mapping[str, float],
    versions: Mapping[str, str],
    lead: str = "",
) -> Path:
    """Write the report to `out` and return it.

    `dataset` and `versions` are shown as they are; `before` and `after` are results of `evaluate`; `losses` holds
    (step, loss); `timing` holds seconds per stage.
    """
    told = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    times = {name: f"{s:.1f} s" if s < 120 else f"{s / 60:.1f} min" for name, s in timing.items()}
    made = [f"<tr><th>{escape(_words(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in {**times, **versions}.items()]
    parts = [
        f'<header><p class="kicker">MAEMI fine-tuning report</p><h1>{escape(title)}</h1>{told}</header>',
        _figures(dataset),
        _section("Before and after", _METRICS_NOTE, _metrics_table(before, after)),
        _section("Plain classifiers", "", _peers_table(after.get("baselines", {}))),
        _section(
            "By facet", "BLEU-2 per kind of question.", _facets_table(before.get("facets", {}), after.get("facets", {}))
        ),
        _section("Training loss", "", loss_chart(losses)),
        _section("What the student says", _IMAGES_NOTE, "".join(map(_article, images))),
        _section("How it was made", "", f'<div class="particulars">{_table("", made)}</div>' if made else ""),
    ]
    with replacing(out) as partial:
        partial.write_text(_page(title, "\n".join(parts)), encoding="utf-8")
    return out


_METRICS_NOTE = (
    "No facts: the same student without the measured facts in its prompt. Blind: also with the picture replaced by a "
    "grey one, so what it scores there it owes to language alone. Majority and nearest text answer from the training "
    "split without any model. Intervals are 95 % bootstrap intervals over samples."
)
_IMAGES_NOTE = "Pictures from the test split; the student has never seen them or their sample."


def loss_chart(losses: Sequence[tuple[int, float]]) -> str:
    """The loss over steps as an inline SVG: every value, and a running median over a twenty-fifth of them."""
    if len(losses) < 2:
        return '<p class="note">No training steps were logged.</p>'
    reach = max(1, len(losses) // 25)
    near = [losses[max(0, i - reach) : i + reach + 1] for i in range(len(losses))]
    smooth = [(step, median(loss for _, loss in some)) for (step, _), some in zip(losses, near, strict=True)]
    title = f"Training loss from {losses[0][1]:.3f} to {losses[-1][1]:.3f} over {losses[-1][0]} steps"
    curves = [Series("each step", losses), Series("running median", smooth)]
    return (
        f'<div class="chart">{chart(curves, title=title, x_label="step", y_label="loss", width=920, height=280)}</div>'
    )


def picture_uri(picture: NDArray[np.uint8], width: int = _PICTURE_WIDTH) -> str:
    """An 8-bit grey picture [H, W] as a `data:` URI: PNG, at most `width` pixels wide."""
    from PIL import Image

    image = Image.fromarray(picture)
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n<footer>Written by MAEMI on this machine. Sizes come from measurement, "
        "sentences from a language model: check them before you rely on them.</footer>\n</main>\n</body>\n</html>\n"
    )


def _flat(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*path, str(key)))
        else:
            yield ", ".join((*path, str(key))), value


def _section(title: str, note: str, body: str) -> str:
    if not body:
        return ""
    told = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{told}{body}</section>"


def _figures(values: Mapping[str, Any]) -> str:
    cells = ""
    for name, value in _flat(values):
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)
        cells += f"<div><dt>{escape(_words(name))}</dt><dd>{escape(shown)}</dd></div>"
    return f'<dl class="figures">{cells}</dl>' if cells else ""


def _metrics_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    baselines, body = after.get("baselines", {}), []
    for section, heading in SECTIONS.items():
        first, then = before.get(section) or {}, after.get(section) or {}
        rows = [_metric_row(section, name, first, then, baselines) for name in METRICS if _is_number(then.get(name))]
        if rows:
            count = f' <span class="muted">{then["n"]:,} in the test split</span>' if "n" in then else ""
            body += [f'<tr class="section"><th colspan="8">{escape(heading)}{count}</th></tr>', *rows]
    head = "".join(f'<th class="number">{escape(text)}</th>' for text in _COLUMNS)
    return _table(f"<th></th>{head}", body) if body else ""


def _metric_row(
    section: str, name: str, before: Mapping[str, Any], after: Mapping[str, Any], baselines: Mapping[str, Any]
) -> str:
    first, then, interval = before.get(name), after[name], _interval(name, after)
    stem = {"accuracy": "factual"}.get(name, name if section == "classification" else f"{section}_{name}")
    beside = (
        after.get("without_aux" if name == "accuracy" else f"{name}_without_aux"),
        after.get("blind" if name == "accuracy" else f"{name}_blind"),
        baselines.get(f"{stem}_majority"),
        baselines.get(f"{stem}_nearest_text"),
    )
    cells = [
        f'<td class="number">{_score(first)}</td>',
        f'<td class="number after">{_score(then)}{interval}</td>',
        f'<td class="number">{_change(name, first, then)}</td>',
        *(f'<td class="number muted">{_score(value)}</td>' for value in beside),
    ]
    return f"<tr><th>{escape(METRICS[name])}</th>{''.join(cells)}</tr>"


def _interval(name: str, scores: Mapping[str, Any]) -> str:
    pair = scores.get("interval" if name == "accuracy" else f"{name}_interval")
    return f'<br><span class="interval">{pair[0]:.3f} – {pair[1]:.3f}</span>' if pair else ""


def _peers_table(baselines: Mapping[str, Any]) -> str:
    rows = [
        f'<tr><th>{escape(text)}</th><td class="number">{_score(baselines[name])}</td></tr>'
        for name, text in _PEERS.items()
        if _is_number(baselines.get(name))
    ]
    return _table('<th>Trained on the same split, no language</th><th class="number">Top-1</th>', rows) if rows else ""


def _facets_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    rows = []
    for facet, scores in sorted(after.items()):
        first = before.get(facet, {}).get("bleu2")
        cells = (_score(first), _score(scores["bleu2"]), _change("bleu2", first, scores["bleu2"]))
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in (*cells, _score(scores["bleu2_blind"])))
        rows.append(f'<tr><th>{escape(_words(facet))}</th>{numbers}<td class="number muted">{scores["n"]}</td></tr>')
    head = "".join(f'<th class="number">{text}</th>' for text in ("Before", "After", "Change", "Blind", "Answers"))
    return _table(f"<th></th>{head}", rows) if rows else ""


def _article(image: ReportImage) -> str:
    calibrated = image.info["pixel_size_nm"] is not None
    chips = [
        f"<li{'' if calibrated or label != 'Pixel size' else ' class=warning'}>{CHIPS[label]}{escape(value)}</li>"
        for label, value in wording.reading(image.info)
        if label in CHIPS
    ]
    chips += [f'<li class="warning">{escape(text)}</li>' for text in image.info["warnings"]]
    facts = "".join(
        f'<div title="{escape(method)}"><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>'
        for name, value, method in wording.fact_rows(image.facts)
    )
    questions = ""
    for question, answer, reference in (map(escape, asked) for asked in image.answers):
        same = answer == reference
        told = "" if same or not reference else f'<p class="reference">Reference: {reference}</p>'
        mark = ' <span class="up" title="equal to the reference">✓</span>' if same else ""
        questions += f'<li><p class="asked">{question}</p><p class="said">{answer}{mark}</p>{told}</li>'
    return (
        f'<article><div><img src="{picture_uri(image.pixels)}" alt="{escape(image.name)}">'
        f'<ul class="chips">{"".join(chips)}</ul></div><div><h3>{escape(image.name)}</h3>'
        f'<p class="label">Caption</p><blockquote>{escape(image.caption)}</blockquote>'
        f'<p class="label">Measured</p><dl class="facts">{facts}</dl>'
        + (f'<p class="label">Questions</p><ol class="questions">{questions}</ol>' if questions else "")
        + "</div></article>"
    )


def _table(head: str, rows: Sequence[str]) -> str:
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{top}<tbody>{"".join(rows)}</tbody></table></div>'


def _change(name: str, before: Any, after: float) -> str:
    if not _is_number(before):
        return '<span class="same">–</span>'
    difference = after - before
    if abs(difference) < 0.0005:
        return '<span class="same">0.000</span>'
    better = (difference > 0) != (name in LOWER_IS_BETTER)
    return f'<span class="{"up" if better else "down"}">{"+" if difference > 0 else "−"}{abs(difference):.3f}</span>'


def _score(value: Any) -> str:
    return f"{value:.3f}" if _is_number(value) else "–"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(name: str) -> str:
    return METRICS.get(name, name.replace("_", " "))

"""The map of a survey: pictures where their two main directions put them, as one HTML page that needs nothing else.

Knows nothing about how the places were found.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from assistant.disk import disk_errors, replacing
from assistant.errors import ConfigError, MicrographError
from assistant.micrograph import read_micrograph, to_model_input

_THUMBNAIL = 128
"""Side of a picture on the map when it is looked at [px]."""
_MOST = 1500
"""Pictures that are shown as such; further ones are dots."""
_COLOURS = ("#2dd4bf", "#ffb84d", "#ff6384", "#5682ff", "#bee860", "#c084fc", "#38bdf8", "#fb923c")
_STYLE = """
:root { color-scheme: light dark; --ground: #f7f8fa; --ink: #0b0f16; --soft: #b4bcc8; }
@media (prefers-color-scheme: dark) { :root { --ground: #0b0f16; --ink: #f5f7fa; --soft: #4a5464; } }
body { margin: 2rem; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
.map { position: relative; width: 100%; aspect-ratio: 4 / 3; border: 1px solid var(--soft); overflow: hidden; }
.map svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.map circle { fill: var(--soft); }
figure { position: absolute; margin: 0; width: 36px; transform: translate(-50%, -50%); }
figure img, figure i { display: block; width: 100%; aspect-ratio: 1; border: 3px solid; box-sizing: border-box; }
figure i { border-radius: 50%; width: 14px; }
figure b { position: absolute; right: -6px; top: -10px; padding: 0 5px; border-radius: 9px; background: var(--ink);
  color: var(--ground); font-size: 12px; }
figcaption { display: none; background: var(--ground); font-size: 13px; padding: 4px; overflow-wrap: anywhere; }
figure:hover, figure:focus { width: 180px; z-index: 2; outline: none; }
figure:hover figcaption, figure:focus figcaption { display: block; }
li span { display: inline-block; width: 12px; height: 12px; margin-right: 6px; }
ul { list-style: none; padding: 0; columns: 3; }
"""


@dataclass(frozen=True)
class Spot:
    """One picture on the map."""

    name: str
    picture: Path | None
    kind: str
    """What its colour stands for: a folder, a verdict."""
    words: str
    """What is said of it when it is looked at."""
    rank: int | None = None
    """Its number among those to label next."""


def write_map(
    out: Path, spots: Sequence[Spot], places: np.ndarray, known: np.ndarray, *, title: str, shown: float
) -> None:
    """Write the map of spots at places [N, 2] over those known [I, 2]; `shown` is the share of the spread they show.

    Raises ConfigError `disk` or `disk_full`.
    """
    low, high = (np.concatenate([places, known]).min(axis=0), np.concatenate([places, known]).max(axis=0))
    margin = 0.04 * (high - low + 1e-9)
    low, high = low - margin, high + margin
    kinds = list(dict.fromkeys(spot.kind for spot in spots))
    colours: Mapping[str, str] = {kind: _COLOURS[n % len(_COLOURS)] for n, kind in enumerate(kinds)}

    def at(place: np.ndarray) -> tuple[float, float]:
        x, y = (100 * (place - low) / (high - low)).tolist()
        return x, 100 - y

    dots = "".join('<circle cx="{:.2f}%" cy="{:.2f}%" r="4"/>'.format(*at(place)) for place in known)
    figures = [
        _figure(spot, at(place), colours[spot.kind], n < _MOST)
        for n, (spot, place) in enumerate(zip(spots, places, strict=True))
    ]
    legend = "".join(f'<li><span style="background:{colours[k]}"></span>{escape(k)}</li>' for k in kinds)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>Grey dots are what the run was trained on. The two main directions show {shown:.0%} of the spread: what lies far
apart is different, what lies close together may still differ in another direction.</p>
<div class="map"><svg aria-hidden="true">{dots}</svg>{"".join(figures)}</div>
<ul>{legend}</ul></body></html>
"""
    with disk_errors(out, ConfigError):
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            partial.write_text(page, encoding="utf-8", errors="backslashreplace")


def _figure(spot: Spot, place: tuple[float, float], colour: str, with_picture: bool) -> str:
    image = _thumbnail(spot.picture) if with_picture and spot.picture else None
    shape = f'<i style="border-color:{colour}"></i>'
    if image is not None:
        shape = f'<img alt="" style="border-color:{colour}" src="data:image/jpeg;base64,{image}">'
    rank = "" if spot.rank is None else f"<b>{spot.rank}</b>"
    caption = f"<figcaption>{escape(spot.name)}<br>{escape(spot.words)}</figcaption>"
    return f'<figure tabindex="0" style="left:{place[0]:.2f}%;top:{place[1]:.2f}%">{shape}{rank}{caption}</figure>'


def _thumbnail(path: Path) -> str | None:
    """A picture as base64 of a JPEG; None where it cannot be read any more."""
    from PIL import Image

    try:
        square = to_model_input(read_micrograph(path, read_bar=False), _THUMBNAIL)[0]
    except MicrographError:
        return None
    stream = io.BytesIO()
    Image.fromarray((square * 255).round().astype(np.uint8)).save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode()

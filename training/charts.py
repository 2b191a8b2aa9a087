"""Curves and bars as small SVG pictures that need nothing else, light or dark as the page is. Knows no meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, _HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 34, 46
"""Margins [px]."""
_COLOURS = ("#14908a", "#d9652f", "#8b6ee8", "#8391a5")
_STYLE = (
    "svg{font:13px system-ui,sans-serif;color:#1f2937}text{fill:currentColor}"
    ".grid{stroke:#8885}"
    ".ideal{stroke:currentColor;opacity:.5;stroke-dasharray:5 5}"
    "@media(prefers-color-scheme:dark){svg{color:#e5e7eb}}"
)


@dataclass(frozen=True)
class Series:
    """Points in the order they are joined; `bars` draws each as a bar from the axis."""

    name: str
    points: Sequence[tuple[float, float]]
    bars: float = 0.0
    """Width of a bar in units of x; 0 joins the points by a line."""


def chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
    width: int = WIDTH,
    height: int = _HEIGHT,
) -> str:
    """An SVG element with axes, a legend where there are several series, and a `diagonal` where the ideal lies there.

    Points that are not finite are left out; "" where none is left.
    """
    shown = [(one, [p for p in one.points if math.isfinite(p[0]) and math.isfinite(p[1])]) for one in series]
    every = [point for _, points in shown for point in points]
    if not every:
        return ""
    x_low, x_high = x_range or _wide(min(x for x, _ in every), max(x for x, _ in every))
    y_low, y_high = y_range or _wide(min(0.0, *(y for _, y in every)), max(y for _, y in every))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (width - LEFT - RIGHT)
        return LEFT + across, TOP + (y_high - y) / (y_high - y_low) * (height - TOP - BOTTOM)

    parts = []
    for tick in _ticks(y_low, y_high):
        y = place(x_low, tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x_low, x_high):
        x = place(tick, y_low)[0]
        parts.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    if diagonal:
        (x1, y1), (x2, y2) = place(x_low, y_low), place(x_high, y_high)
        parts.append(f'<line class="ideal" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for number, (one, points) in enumerate(shown):
        colour = _COLOURS[number % len(_COLOURS)]
        placed = [place(*point) for point in points]
        if one.bars:
            half = one.bars / 2
            floor = place(x_low, y_low)[1]
            for (middle, _), (_, y) in zip(points, placed, strict=True):
                left, right = (place(min(max(x, x_low), x_high), y)[0] for x in (middle - half, middle + half))
                box = f'x="{left:.1f}" y="{y:.1f}" width="{right - left:.1f}" height="{max(0.0, floor - y):.1f}"'
                parts.append(f'<rect {box} fill="{colour}" fill-opacity=".55"/>')
        elif len(placed) == 1:
            parts.append(f'<circle cx="{placed[0][0]:.1f}" cy="{placed[0][1]:.1f}" r="3.5" fill="{colour}"/>')
        else:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    if len(shown) > 1:
        names = (
            f'<tspan fill="{_COLOURS[number % len(_COLOURS)]}" dx="{14 * bool(number)}">{escape(one.name)}</tspan>'
            for number, (one, _) in enumerate(shown)
        )
        parts.append(f'<text x="{width - RIGHT}" y="{TOP - 14}" text-anchor="end">{"".join(names)}</text>')
    centre, side = (LEFT + width - RIGHT) / 2, (TOP + height - BOTTOM) / 2
    parts.append(f'<text x="{centre}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'transform="rotate(-90 16 {side})"'
    parts.append(f'<text x="16" y="{side}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><style>{_STYLE}</style>{"".join(parts)}</svg>'
    )


def _wide(low: float, high: float) -> tuple[float, float]:
    """A range that is never empty."""
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers within a range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]

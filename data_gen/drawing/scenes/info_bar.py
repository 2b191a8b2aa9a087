"""The information bar an instrument burns in below its picture: text fields and a scale bar of exact length. Knows
nothing about files.

Each layout is that of one maker: dark or light ground, one or two lines, a plain, ticked or boxed scale bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_gen.drawing.scenes.geometry import BAR_SHARE, nice_length

WIDEST_SHARE = 0.3


@dataclass(frozen=True)
class DrawnScaleBar:
    """A round length and how long it is on the picture; `start` and `row` say where its line lies in the bar [px]."""

    nm: float
    pixels: int
    text: str
    start: int = 0
    row: int = 0


def bar_label(nm: float, *, micro: str = "µ") -> str:
    """A length with the unit a microscope would choose: nm, µm or mm."""
    for limit, unit in ((1e3, "nm"), (1e6, f"{micro}m")):
        if nm < limit:
            return f"{nm / (limit / 1e3):g} {unit}"
    return f"{nm / 1e6:g} mm"


def scale_bar(width: int, nm_per_pixel: float, *, micro: str = "µ") -> DrawnScaleBar:
    """The round length nearest to a sixth of the width, one that is whole pixels where there is such a one."""
    target = BAR_SHARE * width * nm_per_pixel
    power = 10.0 ** np.floor(np.log10(target))
    choices = [step * power * shift for step in (1.0, 2.0, 5.0) for shift in (0.1, 1.0, 10.0)]
    fitting = [nm for nm in choices if 0.06 * width <= nm / nm_per_pixel <= WIDEST_SHARE * width]
    fitting = fitting or [nice_length(target)]

    def misfit(nm: float) -> tuple[bool, float]:
        exact = nm / nm_per_pixel
        return abs(exact - round(exact)) > 1e-6 * exact, abs(np.log(nm / target))

    best = min(fitting, key=misfit)
    return DrawnScaleBar(best, max(1, round(best / nm_per_pixel)), bar_label(best, micro=micro))


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _write(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, *, size: int, ink: int, room: float = 1e9) -> None:
    """Write text, smaller where it would not fit into `room` [px]; the font's missing micro sign is a u with a stem."""
    while size > 6 and draw.textlength(text.replace("µ", "u"), font=_font(size)) > room:
        size -= 1
    font = _font(size)
    draw.text((x, y), text.replace("µ", "u"), fill=ink, font=font)
    at = text.find("µ")
    if at >= 0:
        stem = round(x + draw.textlength(text[:at], font=font) + 0.08 * size)
        draw.line([(stem, round(y + 0.62 * size)), (stem, round(y + 1.2 * size))], fill=ink)


def bar_rows(kind: str, rows: int) -> int:
    """How many rows the bar of a maker takes below a picture of `rows` rows."""
    shares = {
        "thermo": 0.072,
        "zeiss": 0.1,
        "tescan": 0.15,
        "jeol": 1 / 15,
        "sec": 0.07,
        "hitachi": 0.066,
        "plain": 0.075,
    }
    return max(14, 2 * round(shares[kind] * rows / 2))


def draw_bar(
    kind: str, width: int, rows: int, *, nm_per_pixel: float, info: dict[str, Any]
) -> tuple[np.ndarray, DrawnScaleBar]:
    """Paint the bar of one maker: 8-bit [bar_rows, W], and the scale bar in it (row counted from the bar's top)."""
    high = bar_rows(kind, rows)
    ground = {"zeiss": 255, "tescan": 96}.get(kind, 0)
    ink = 0 if ground > 200 else 255
    image = Image.new("L", (width, high), ground)
    draw = ImageDraw.Draw(image)
    bar = scale_bar(width, nm_per_pixel, micro="u" if kind in ("jeol", "hitachi", "sec") else "µ")
    layouts = {
        "thermo": _thermo, "zeiss": _zeiss, "tescan": _tescan, "jeol": _jeol, "sec": _sec, "hitachi": _hitachi,
        "plain": _plain,
    }  # fmt: skip
    start, row = layouts[kind](draw, width, high, bar, info, ink)
    draw.line([(start, row), (start + bar.pixels - 1, row)], fill=ink, width=1)
    return np.asarray(image, dtype=np.uint8), DrawnScaleBar(bar.nm, bar.pixels, bar.text, start, row)


def _magnification(info: dict[str, Any]) -> str:
    value = info["magnification"]
    return f"{value:,.0f}" if value < 1e4 else f"{round(value, -2):,.0f}"


def field_text(info: dict[str, Any]) -> str:
    """The width of the field of view, to three digits."""
    return bar_label(float(f"{info['hfw_nm']:.3g}"))


def _thermo(
    draw: ImageDraw.ImageDraw, width: int, high: int, bar: DrawnScaleBar, info: dict[str, Any], ink: int
) -> tuple[int, int]:
    """Framed columns with a caption over each value; the scale bar at the right with its text in the middle."""
    size = max(7, int(high * 0.36))
    fields = [
        ("HV", f"{info['hv_kv']:.2f} kV"), ("mag", f"{_magnification(info)} x"), ("WD", f"{info['wd_mm']:.1f} mm"),
        ("det", info["detector"]), ("HFW", field_text(info)),
    ]  # fmt: skip
    room = 0.62 * width / len(fields)
    draw.rectangle([0, 0, width - 1, high - 1], outline=ink)
    for k, (name, value) in enumerate(fields):
        _write(draw, k * room + 4, 1, name, size=size, ink=ink, room=room - 6)
        _write(draw, k * room + 4, high * 0.48, value, size=size, ink=ink, room=room - 6)
        draw.line([((k + 1) * room, 0), ((k + 1) * room, high)], fill=ink)
    left = int(0.62 * width) + 4
    start = left + max(0, (width - 6 - left - bar.pixels) // 2)
    start = min(start, width - bar.pixels - 3)
    row = int(high * 0.3)
    for x in (start, start + bar.pixels - 1):
        draw.line([(x, row - 3), (x, row + 3)], fill=ink)
    _write(draw, start + 2, high * 0.45, bar.text, size=size, ink=ink)
    return start, row


def _zeiss(
    draw: ImageDraw.ImageDraw, width: int, high: int, bar: DrawnScaleBar, info: dict[str, Any], ink: int
) -> tuple[int, int]:
    """White ground, the scale bar at the left under its text, dated fields to the right."""
    size = max(7, int(high * 0.27))
    draw.rectangle([1, 1, width - 2, high - 2], outline=ink)
    start, row = max(4, width // 48), int(high * 0.72)
    _write(draw, start, high * 0.08, bar.text, size=size, ink=ink)
    for x in (start, start + bar.pixels - 1):
        draw.line([(x, row - int(high * 0.16)), (x, row + int(high * 0.16))], fill=ink)
    left = max(0.27 * width, start + bar.pixels + 8)
    room = (width - left) / 2.6
    texts = [
        (0, f"EHT = {info['hv_kv']:5.2f} kV"), (0, f"WD = {info['wd_mm']:4.1f} mm"),
        (1, f"Signal A = {info['detector']}"), (1, f"Mag = {_magnification(info)} X"), (2, f"Date :{info['date']}"),
    ]  # fmt: skip
    for k, (column, text) in enumerate(texts):
        share = 0.6 if column == 2 else 1.0
        _write(
            draw,
            left + column * room,
            high * (0.12 + 0.42 * (k % 2)),
            text,
            size=size,
            ink=ink,
            room=share * room - 6,
        )
    return start, row


def _tescan(
    draw: ImageDraw.ImageDraw, width: int, high: int, bar: DrawnScaleBar, info: dict[str, Any], ink: int
) -> tuple[int, int]:
    """Grey ground with a table of three rows and a boxed scale with ticks."""
    size = max(7, int(high * 0.22))
    cells = [
        (f"View field: {field_text(info)}", f"SEM HV: {info['hv_kv']:.1f} kV"),
        (f"WD: {info['wd_mm']:.2f} mm", f"Det: {info['detector']}"),
        (f"SEM MAG: {_magnification(info)} x", f"Date: {info['date']}"),
    ]
    room = 0.27 * width
    for k, pair in enumerate(cells):
        for column, text in enumerate(pair):
            _write(draw, column * room + 5, high * (0.04 + 0.33 * k), text, size=size, ink=ink, room=room - 8)
        draw.line([(0, high * (k + 1) // 3), (2 * room, high * (k + 1) // 3)], fill=170)
    start, row = int(0.55 * width), int(high * 0.3)
    for k in range(11):
        x = start + (bar.pixels - 1) * k / 10
        draw.line([(x, row - int(high * (0.26 if k in (0, 10) else 0.14))), (x, row)], fill=ink)
    _write(draw, start + 2, high * 0.36, bar.text, size=size, ink=ink)
    _write(draw, 0.72 * width, high * 0.68, str(info["model"]), size=size, ink=ink, room=0.27 * width)
    return start, row


def _jeol(
    draw: ImageDraw.ImageDraw, width: int, high: int, bar: DrawnScaleBar, info: dict[str, Any], ink: int
) -> tuple[int, int]:
    """Black ground, two lines, a thick white bar."""
    size = max(7, int(high * 0.4))
    start, row = int(0.5 * width), int(high * 0.2)
    draw.rectangle([start, row - max(1, high // 12), start + bar.pixels - 1, row + max(1, high // 12)], fill=ink)
    _write(draw, start + bar.pixels + 6, 0, bar.text.replace(" ", ""), size=size, ink=ink)
    line = [
        f"X {_magnification(info)}",
        f"{info['hv_kv']:.1f}kV {info['detector']}",
        f"WD {info['wd_mm']:.1f}mm",
        info["date"],
    ]
    for k, text in enumerate(line):
        _write(draw, width * (0.02 + 0.25 * k), high * 0.5, text, size=size, ink=ink, room=0.24 * width)
    return start, row


def _sec(
    draw: ImageDraw.ImageDraw, width: int, high: int, bar: DrawnScaleBar, info: dict[str, Any], ink: int
) -> tuple[int, int]:
    """Black ground, two lines of loose fields, a ticked bar from 0 to its length."""
    size = max(7, int(high * 0.38))
    texts = [
        (f"{info['hv_kv']:.0f} kV", info["detector"], f"x{info['magnification']:.0f}"),
        (info["date"], f"WD {info['wd_mm']:.0f}mm", "HighVac"),
    ]
    for k, fields in enumerate(texts):
        for j, text in enumerate(fields):
            _write(
                draw,
                width * (0.03 + 0.19 * j),
                high * (0.05 + 0.45 * k),
                text,
                size=size,
                ink=ink,
                room=0.18 * width,
            )
    start, row = min(int(0.64 * width), width - bar.pixels - 4), int(high * 0.2)
    for k in range(11):
        x = start + (bar.pixels - 1) * k / 10
        draw.line([(x, row), (x, row + int(high * (0.2 if k % 5 == 0 else 0.1)))], fill=ink)
    _write(draw, start, high * 0.48, "0", size=size, ink=ink)
    _write(draw, start + 0.5 * bar.pixels, high * 0.48, bar.text, size=size, ink=ink)
    return start, row


def _hitachi(
    draw: ImageDraw.ImageDraw, width: int, high: int, bar: DrawnScaleBar, info: dict[str, Any], ink: int
) -> tuple[int, int]:
    """Black ground, one line of text and eleven ticks whose ends span the length."""
    size = max(7, int(high * 0.5))
    beam = f"{info['model']} {info['hv_kv']:.1f}kV {info['wd_mm']:.1f}mm"
    text = f"{beam} x{_magnification(info)} {info['detector']} {info['date']}"
    _write(draw, 4, high * 0.2, text, size=size, ink=ink, room=0.62 * width)
    start, row = min(int(0.66 * width), width - bar.pixels - 4), int(high * 0.42)
    for k in range(11):
        x = start + (bar.pixels - 1) * k / 10
        draw.line([(x, row - int(high * (0.3 if k % 5 == 0 else 0.18))), (x, row)], fill=ink)
    _write(
        draw,
        start + 0.2 * bar.pixels,
        high * 0.48,
        bar.text.replace(" ", ""),
        size=max(7, int(high * 0.42)),
        ink=ink,
    )
    return start, row


def _plain(
    draw: ImageDraw.ImageDraw, width: int, high: int, bar: DrawnScaleBar, info: dict[str, Any], ink: int
) -> tuple[int, int]:
    """Black ground, fields in one line, a solid bar at the right."""
    size = max(7, int(high * 0.4))
    beam = f"HV {info['hv_kv']:.1f} kV   WD {info['wd_mm']:.1f} mm"
    text = f"{beam}   Mag {_magnification(info)}x   {info['detector']}   {info['date']}"
    _write(draw, 5, high * 0.28, text, size=size, ink=ink, room=0.62 * width)
    start, row = min(int(0.66 * width), width - bar.pixels - 4), int(high * 0.24)
    draw.rectangle([start, row - 1, start + bar.pixels - 1, row + 2], fill=ink)
    _write(draw, start, high * 0.46, bar.text, size=size, ink=ink)
    return start, row

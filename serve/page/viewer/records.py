"""What a viewer is told of a picture, as JSON: its frame, what was measured and drawn in it, how two compare.

Knows nothing about HTTP; words and digits are the house's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from assistant.explain import Explanation
from assistant.measure import Facts, Known, bodies, found_in, known_of, marks
from assistant.measurements.comparison import compared
from assistant.measurements.objects import Body
from assistant.measurements.overlay import FIGURES
from assistant.micrograph import Micrograph, model_square
from assistant.quantities import typeset
from serve import wording
from serve.page.viewer.album import Opened
from serve.page.viewer.tiles import TILE

MOST_OBJECTS = 3000
"""Rows of the objects table; the largest objects come first."""


def picture_record(name: str, opened: Opened) -> dict[str, Any]:
    """What a viewer needs before it shows anything."""
    m, histogram, window = opened.micrograph, opened.histogram, opened.micrograph.window()
    height, width = m.pixels.shape
    info = m.info()
    return {
        "name": name,
        "width": width,
        "height": height,
        "page": m.page,
        "pages": m.pages,
        "tile": TILE,
        "levels": opened.pyramid.levels,
        "nm_per_pixel": info["pixel_size_nm"],
        "pixel_size": wording.calibration_words(info),
        "read": wording.reading(info),
        "warnings": list(m.warnings),
        "whole_numbers": m.pixels.dtype.kind != "f",
        "window": {"low": window.low, "high": window.high},
        "histogram": {
            "low": histogram.low,
            "high": histogram.high,
            "least": histogram.least,
            "greatest": histogram.greatest,
            "counts": histogram.counts,
        },
    }


@dataclass(frozen=True)
class Measured:
    """What a long look at a picture gives."""

    known: Known
    record: bytes
    """JSON: facts, the figures that show them, the objects one by one."""


def measured(m: Micrograph, facts: Facts) -> Measured:
    """What was measured in a picture, and where."""
    found = found_in(m)
    told = {name.replace(" ", "_"): (name, value, how) for name, value, how in wording.fact_rows(facts.as_dict())}
    drawn = marks(m, found) if found else {}
    record = {
        "facts": list(told.values()),
        "figures": [
            {
                "name": figure,
                "facts": [told[name] for name in FIGURES[figure] if name in told],
                "strokes": [
                    {"colour": "#{:02x}{:02x}{:02x}".format(*s.colour), "width": s.width, "opacity": s.opacity,
                     "path": s.path}
                    for s in strokes
                ],
            }
            for figure, strokes in drawn.items()
            if strokes and any(name in told for name in FIGURES[figure])
        ],
        "objects": _objects(bodies(m, found) if found else [], m),
    }  # fmt: skip
    predicted = tuple(fact for fact in facts.items if fact.source == "predicted")
    return Measured(known_of(m, facts, predicted), json.dumps(record, allow_nan=False).encode())


def evidence_record(m: Micrograph, found: Explanation) -> dict[str, Any]:
    """What an explanation says, and how much each part of the square that a model sees carries, row by row."""
    rows, columns = model_square(m)
    top, left = (side.start for side in m.part)
    square = {"left": left + columns.start, "top": top + rows.start, "side": rows.stop - rows.start}
    return {"sentence": found.sentence(), "square": square, "shares": np.round(found.shares, 3).tolist()}


def compared_record(a: Known, b: Known) -> list[dict[str, Any]]:
    """Two pictures, quantity by quantity, in the words that an answer quotes."""
    return [
        {
            "quantity": row.said,
            "a": row.a.written if row.a else "",
            "b": row.b.written if row.b else "",
            "difference": row.written,
        }
        for row in compared(a, b)
    ]


def _objects(found: list[Body], m: Micrograph) -> dict[str, Any]:
    """The largest objects: numbers in nm where the picture is calibrated, else in px; outlines in px of the frame."""
    scale, unit = (1.0, "px") if m.calibration is None else (m.calibration.nm_per_pixel, "nm")
    largest = sorted(enumerate(found, 1), key=lambda pair: -pair[1].area)[:MOST_OBJECTS]
    rows = [
        {
            "number": number,
            "diameter": typeset(body.equivalent_diameter * scale, unit),
            "feret_max": typeset(body.feret_max * scale, unit),
            "feret_min": typeset(body.feret_min * scale, unit),
            "aspect_ratio": typeset(body.aspect_ratio, ""),
            "orientation": typeset(body.orientation % 180, "deg"),
            "state": "whole" if body.measured else "cut by a border" if body.counted else "outside the count",
            "outline": np.round(body.outline + 0.5, 2).tolist(),
        }
        for number, body in largest
    ]
    return {"total": len(found), "rows": rows}

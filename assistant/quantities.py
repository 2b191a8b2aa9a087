"""What is known of a picture, and numbers with units in words: read, converted, compared and written - once.

`QUANTITIES` is the one table: whatever names a measured or read thing derives from it. `read_amounts` is the one
parser of numbers in a text, `written` the one writer, `typeset` the same with symbols. Knows nothing about pixels,
models or where a value comes from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

# ---------------------------------------------------------------------------------- units


@dataclass(frozen=True)
class Unit:
    """A unit as a text writes it, and what one of it is worth in the first unit of its dimension."""

    dimension: str
    scale: float
    spelling: str
    """Regular expression, case ignored."""


_NANOMETRE = r"(?:nm|nanomet(?:er|re)s?)"
_MICROMETRE = r"(?:[uµμ]m|microns?|micromet(?:er|re)s?)"
_PIXEL = r"(?:px|pix|pixels?)"
_SQUARED = r"(?:\^2|²|2)"
_AREA = rf"(?:{_MICROMETRE}{_SQUARED}|square\s+{_MICROMETRE})"
UNITS: Mapping[str, Unit] = {  # the longer spelling first: "nm/px" before "nm"
    "nm/px": Unit("pixel size", 1.0, rf"{_NANOMETRE}\s*(?:/|per)\s*{_PIXEL}"),
    "um/px": Unit("pixel size", 1e3, rf"{_MICROMETRE}\s*(?:/|per)\s*{_PIXEL}"),
    "1/um^2": Unit("density", 1.0, rf"(?:1?/\s?|per\s+){_AREA}|{_MICROMETRE}(?:\^-2|⁻²)"),
    "um^2": Unit("area", 1.0, _AREA),
    "nm^2": Unit("area", 1e-6, rf"{_NANOMETRE}{_SQUARED}|square\s+{_NANOMETRE}"),
    "px^2": Unit("area on the picture", 1.0, rf"{_PIXEL}{_SQUARED}|square\s+{_PIXEL}"),
    "nm": Unit("length", 1.0, _NANOMETRE),
    "um": Unit("length", 1e3, _MICROMETRE),
    "mm": Unit("length", 1e6, r"mm|millimet(?:er|re)s?"),
    "cm": Unit("length", 1e7, r"cm|centimet(?:er|re)s?"),
    "pm": Unit("length", 1e-3, r"pm|picomet(?:er|re)s?"),
    "angstrom": Unit("length", 0.1, r"[åÅ\u212b]|[åa]ngstr[öo]ms?"),
    "px": Unit("length on the picture", 1.0, _PIXEL),
    "%": Unit("share", 1.0, r"%|percent|per\s+cent|pct"),
    "deg": Unit("angle", 1.0, r"°|deg|degrees?"),
    "kV": Unit("voltage", 1e3, r"kv|kilovolts?"),
    "V": Unit("voltage", 1.0, r"v|volts?"),
    "kx": Unit("magnification", 1e3, r"k\s?[x×](?!\s*\d)"),
    "x": Unit("magnification", 1.0, r"[x×](?!\s*\d)|times"),
}


def canonical_unit(text: str) -> str | None:
    """The unit of `UNITS` that a text spells ("µm" -> "um"), None for none of them."""
    if text in UNITS:
        return text
    matching = (name for name, unit in UNITS.items() if re.fullmatch(unit.spelling, text.strip(), re.IGNORECASE))
    return next(matching, None)


def converted(value: float, unit: str, to: str) -> float | None:
    """A value in another unit, None where the two have no dimension in common."""
    if unit == to:
        return value
    if unit not in UNITS or to not in UNITS or UNITS[unit].dimension != UNITS[to].dimension:
        return None
    return value * (UNITS[unit].scale / UNITS[to].scale)


# ---------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Quantity:
    """One thing that can be known of a picture."""

    name: str
    words: str
    """How a text names it: a regular expression, case ignored."""
    source: Literal["measured", "read", "predicted"] = "measured"
    """Who knows it: the measurement, the file, or a calibrated head."""
    called: str = ""
    """Its name in a sentence, where that is not `name`."""
    method: str = ""
    """How it is measured, in words."""
    in_words: bool = False
    """Whether its value is a word: a detector, a class."""
    line: int | None = None
    """Its place in the line of facts; None where it is not said there."""
    figure: str | None = None
    """The figure that draws it."""
    asked: bool = False
    """Whether it is also asked for where it could not be measured."""
    typical: bool = False
    """Whether it says something about a class, and not about where one picture was taken."""
    tolerance: float = 0.1
    """How far apart two values may lie that a person takes for one: relative, but points of a share and degrees."""

    @property
    def said(self) -> str:
        """Its name in a sentence."""
        return self.called or self.name.replace("_", " ")


_SIZE = r"diameters?|sizes?"
_FIBRE_WIDTH = r"fib(?:re|er)[\s-](?:width|diameter)"
QUANTITIES: Mapping[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
        Quantity(
            "count",
            r"counts?|number of \w+",
            line=0,
            figure="objects",
            asked=True,
            method="objects with their centre in the frame, threshold and watershed",
        ),
        Quantity(
            "mean_diameter",
            rf"(?:mean|average) (?:{_SIZE})",
            line=1,
            figure="objects",
            asked=True,
            typical=True,
            method="equal-area diameter of whole objects",
        ),
        Quantity(
            "median_diameter",
            rf"median (?:{_SIZE})",
            figure="objects",
            method="equal-area diameter of whole objects",
        ),
        Quantity(
            "d10_diameter",
            r"d10(?: diameter)?|10th percentile",
            line=2,
            figure="objects",
            method="10th percentile of the equal-area diameters, by number",
        ),
        Quantity(
            "d90_diameter",
            r"d90(?: diameter)?|90th percentile",
            line=3,
            figure="objects",
            method="90th percentile of the equal-area diameters, by number",
        ),
        Quantity(
            "area_weighted_diameter",
            rf"area[\s-]weighted (?:mean )?(?:{_SIZE})",
            line=16,
            figure="objects",
            called="area-weighted mean diameter",
            typical=True,
            tolerance=0.2,
            method="equal-area diameter of whole objects, mean weighted by area",
        ),
        Quantity(
            "grain_size",
            r"grain sizes?|size of the grains",
            figure="grains",
            typical=True,
            tolerance=0.2,
            method="from the covariance of the grey levels, bodies not told apart; mean diameter by area",
        ),
        Quantity(
            "wall_thickness",
            r"wall[\s-]thickness(?:es)?|thickness of the walls?",
            line=17,
            figure="objects",
            typical=True,
            tolerance=0.2,
            method="distance between neighbouring cells half way between them, median",
        ),
        Quantity(
            "mean_chord_of_the_bright_phase",
            r"mean (?:chord|intercept)s? of the bright phase",
            line=18,
            figure="phases",
            tolerance=0.2,
            method="mean length of straight lines within the bright phase, all directions",
        ),
        Quantity(
            "mean_chord_of_the_dark_phase",
            r"mean (?:chord|intercept)s? of the dark phase",
            line=19,
            figure="phases",
            tolerance=0.2,
            method="mean length of straight lines within the dark phase, all directions",
        ),
        Quantity(
            "aspect_ratio",
            r"aspect ratios?",
            line=4,
            figure="objects",
            typical=True,
            method="axes of the ellipse of equal second moments, mean",
        ),
        Quantity(
            "circularity",
            r"circularity|roundness",
            figure="objects",
            typical=True,
            method="4 pi area / perimeter^2, mean",
        ),
        Quantity(
            "nearest_neighbour",
            r"nearest[\s-]neighbou?r\w*(?: distance)?|spacing",
            line=5,
            figure="neighbours",
            asked=True,
            called="nearest neighbour distance",
            method="mean distance between neighbouring centres",
        ),
        Quantity(
            "coverage",
            r"coverage|area fraction",
            line=6,
            figure="share",
            typical=True,
            tolerance=3.0,
            method="area share of the foreground",
        ),
        Quantity(
            "porosity",
            r"porosity|share of (?:the )?dark \w+",
            line=7,
            figure="share",
            typical=True,
            tolerance=3.0,
            method="area share of the dark phase",
        ),
        Quantity(
            "orientation",
            r"orientation|main direction",
            line=12,
            figure="direction",
            tolerance=5.0,
            method="structure tensor, counter-clockwise from the horizontal",
        ),
        Quantity(
            "orientation_spread",
            r"(?:orientation|direction) spread|spread of (?:the )?directions",
            figure="direction",
            method="standard deviation of the directions of the axes",
        ),
        Quantity(
            "anisotropy",
            r"anisotropy",
            line=13,
            figure="direction",
            method="structure tensor, weighted by local coherence",
        ),
        Quantity(
            "period",
            r"periods?|pitch(?:es)?",
            line=8,
            figure="period",
            asked=True,
            typical=True,
            tolerance=0.03,
            method="sharp peak of the Fourier spectrum",
        ),
        Quantity(
            "line_width",
            r"line[\s-]?widths?|lines are",
            line=9,
            figure="lines",
            asked=True,
            typical=True,
            method="mid-level edges of the bright lines, median",
        ),
        Quantity(
            "line_edge_roughness",
            r"(?:line[\s-]?)?edge roughness|LER",
            line=10,
            figure="lines",
            tolerance=0.2,
            method="3 sigma of the edge positions, noise removed",
        ),
        Quantity(
            "fibre_width",
            rf"{_FIBRE_WIDTH}s?",
            line=11,
            figure="fibres",
            asked=True,
            typical=True,
            method="between the outlines across the axes, median along them, crossings left out",
        ),
        Quantity(
            "fibre_width_spread",
            rf"{_FIBRE_WIDTH} spread|(?:spread|standard deviation) of (?:the )?{_FIBRE_WIDTH}s?",
            figure="fibres",
            method="standard deviation of the fibre width, from its quartiles",
        ),
        Quantity(
            "mean_grey",
            r"mean gr[ea]y(?: level| value)?",
            figure="grey",
            tolerance=3.0,
            method="mean within the display window",
        ),
        Quantity(
            "contrast",
            r"contrast",
            line=14,
            figure="grey",
            tolerance=3.0,
            method="standard deviation of the grey levels, noise removed",
        ),
        Quantity(
            "sharpness",
            r"sharpness",
            figure="grey",
            method="1 - blur after re-blurring (Crete)",
        ),
        Quantity(
            "noise",
            r"noise",
            line=15,
            figure="grey",
            tolerance=1.0,
            method="median second difference (Immerkaer), share of the window",
        ),
        Quantity(
            "voltage",
            r"(?:acceleration |accelerating )?voltage|beam energy|hv",
            "read",
        ),
        Quantity("working_distance", r"working distance|wd", "read"),
        Quantity("magnification", r"magnification", "read"),
        Quantity(
            "pixel_size",
            r"pixel sizes?|(?:one|each|a|per) pixel|pixels? (?:is|are|measures?)",
            "read",
        ),
        Quantity("field_width", r"field widths?|fields? of view", "read"),
        Quantity("detector", r"detectors?", "read", in_words=True),
        Quantity(
            "microscope",
            r"microscope|instrument",
            "read",
            in_words=True,
        ),
        Quantity("date", r"date", "read", in_words=True),
        Quantity(
            "class",
            r"class|kind|type",
            "predicted",
            in_words=True,
        ),
        Quantity("shape", r"shapes?", "predicted", in_words=True),
        Quantity("surface", r"surface", "predicted", in_words=True),
        Quantity("arrangement", r"arrangement", "predicted", in_words=True),
    )
}
MEASURED = tuple(name for name, quantity in QUANTITIES.items() if quantity.source == "measured")

# ---------------------------------------------------------------------------------- reading

_SPACES = " \u00a0\u2009\u202f"
_INTEGER = rf"(?:[1-9]\d{{0,2}}(?:,\d{{3}})+|[1-9]\d{{0,2}}(?:[{_SPACES}]\d{{3}})+|\d+)(?!\d)"
_NUMBER = rf"(?P<mantissa>[-−]?{_INTEGER}(?:[.,]\d+)?)(?:(?:e|\s*[x×]\s*10\^)(?P<power>[-+−]?\d+))?"
_UNIT = "|".join(f"(?P<u{i}>{unit.spelling})" for i, unit in enumerate(UNITS.values()))
_AMOUNT = re.compile(rf"(?<![\w.]){_NUMBER}(?:[\s-]?(?:{_UNIT})(?![a-z\d^²⁻])|(?!\w))", re.IGNORECASE)
_DATE_OR_TIME = re.compile(r"\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}:\d{2}(?::\d{2})?\b")
_TELLS_APART = re.compile(  # a number after such a word is a name: "layer 2"
    r"\b(?:images?|pictures?|layers?|phases?|figures?|fig\.?|samples?|lots?|wafers?|frames?|pages?|steps?|parts?|types?|"
    r"regions?|no\.|nr\.?|#)\s*$",
    re.IGNORECASE,
)
_TO = re.compile(r"\s*(?:-|–|—|to)\s*", re.IGNORECASE)
_AND = re.compile(r"\s*and\s*", re.IGNORECASE)
_BETWEEN = re.compile(r"\bbetween\s*$", re.IGNORECASE)
_PLUS_MINUS = re.compile(r"\s*(?:±|\+/-|plus or minus)\s*", re.IGNORECASE)
_BY = re.compile(r"\s*(?:x|×|by)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Amount:
    """A number in a text with its unit ("" where none stands); `low` and `high` differ for a stated range."""

    value: float
    unit: str
    low: float
    high: float
    start: int = 0
    """Where it stands in the text: [start, stop)."""
    stop: int = 0
    half_digit: float = 0.0
    """Half of its last written digit: what it may be off by and still be a right rounding."""

    @property
    def dimension(self) -> str:
        """What is counted in its unit: "length", "share" ...; "" for a bare number."""
        return UNITS[self.unit].dimension if self.unit else ""

    @property
    def base(self) -> float:
        """The value in the first unit of its dimension, so that amounts of one dimension compare: lengths in nm."""
        return self.value * (UNITS[self.unit].scale if self.unit else 1.0)

    def to(self, unit: str) -> Amount | None:
        """The amount in another unit, None where the two do not convert."""
        factor = converted(1.0, self.unit, unit)
        if factor is None:
            return None
        low, high = self.low * factor, self.high * factor
        return Amount(self.value * factor, unit, low, high, self.start, self.stop, self.half_digit * factor)


def read_amounts(text: str) -> list[Amount]:
    """The numbers of a text with their units, in order.

    "80-90 nm", "250 nm to 0.4 um" and "between 1 and 2 um" are one range, "312 ± 20 nm" is 312 nm, "10 x 20 um" are
    two lengths; "1,5 nm" is 1.5 nm, "1 200" and "1,200" are 1200. Dates, times, names ("D10", "3D") and numbers that
    tell things apart ("layer 2") are no amounts.
    """
    text = _DATE_OR_TIME.sub(lambda match: "#" * len(match[0]), text)
    found: list[Amount] = []  # from the last to the first, so a unit can reach back over "x"
    following = len(text)
    for match in reversed(list(_AMOUNT.finditer(text))):
        if not _unit(match) and _TELLS_APART.search(text[: match.start()]):
            continue
        amount, link = _amount(match), text[match.end() : following]
        joined = None
        if found and (_TO.fullmatch(link) or (_AND.fullmatch(link) and _BETWEEN.search(text[: match.start()]))):
            joined = _range(amount, found[-1])
        elif found and _PLUS_MINUS.fullmatch(link):
            joined = _with_unit(amount, amount.unit or found[-1].unit, stop=found[-1].stop)
        elif found and not amount.unit and _BY.fullmatch(link):
            amount = _with_unit(amount, found[-1].unit)
        if joined:
            found.pop()
        found.append(joined or amount)
        following = match.start()
    return found[::-1]


def _amount(match: re.Match[str]) -> Amount:
    digits = re.sub(rf"[{_SPACES}]", "", match["mantissa"].replace("−", "-"))
    if re.fullmatch(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", digits):
        digits = digits.replace(",", "")
    digits = digits.replace(",", ".")
    power = 10.0 ** max(-99, min(99, int((match["power"] or "0").replace("−", "-"))))
    value, exponent = float(digits) * power, Decimal(digits).as_tuple().exponent
    half = 0.5 * 10.0 ** int(exponent) * power
    return Amount(value, _unit(match), value, value, match.start(), match.end(), half)


def _unit(match: re.Match[str]) -> str:
    return next((unit for i, unit in enumerate(UNITS) if match[f"u{i}"]), "")


def _with_unit(amount: Amount, unit: str, *, stop: int | None = None) -> Amount:
    stop = amount.stop if stop is None else stop
    return Amount(amount.value, unit, amount.low, amount.high, amount.start, stop, amount.half_digit)


def _range(first: Amount, last: Amount) -> Amount | None:
    """Join the ends of a range; the first end may leave the unit to the last."""
    low = first.to(last.unit) if first.unit else _with_unit(first, last.unit)
    if low is None or low.value > last.value:
        return None
    middle = (low.value + last.value) / 2
    return Amount(middle, last.unit, low.value, last.value, first.start, last.stop, last.half_digit)


# ---------------------------------------------------------------------------------- writing


_LARGER = {"nm": "um", "um": "mm", "nm/px": "um/px"}
"""What a thousand of a unit are."""
_SYMBOLS = {"um": " µm", "um/px": " µm/px", "deg": "°", "1/um^2": " /µm²"}


def digits(value: float, unit: str, *, figures: int = 3) -> str:
    """A value in as many digits as a measurement is good for, never with an exponent.

    Whole degrees, two digits of a percentage, hundredths of a ratio, three digits (`figures`) of a length.
    """
    if not abs(value) < 1e15:
        return f"{value:g}"
    if unit == "deg":
        return f"{value:.0f}"
    if unit:
        value = float(f"{value:.{2 if unit == '%' else figures}g}")
    return f"{value:.{12 if unit else 2}f}".rstrip("0").rstrip(".")


def written(value: float, unit: str, *, figures: int = 3) -> str:
    """A value with its unit, as lines and answers have it: "312 nm", "1.3 um", "4.2 px", "12 %", "84".

    A length is in the unit that suits its size.
    """
    number, unit = _suited(value, unit, figures)
    return f"{number} {unit}".rstrip()


def typeset(value: float, unit: str, *, figures: int = 3) -> str:
    """The same with the symbols that pages and figures have: "1.3 µm", "45°"."""
    number, unit = _suited(value, unit, figures)
    return number + _SYMBOLS.get(unit, f" {unit}".rstrip())


def _suited(value: float, unit: str, figures: int) -> tuple[str, str]:
    """The digits of a value and its unit: the largest one in which it is still one or more."""
    number = digits(value, unit, figures=figures)
    while unit in _LARGER and 1000 <= abs(float(number)) < float("inf"):
        value, unit = value / 1000, _LARGER[unit]
        number = digits(value, unit, figures=figures)
    return number, unit


# ---------------------------------------------------------------------------------- comparing

SLACK = 1e-9
"""What floating point does to a decimal number, relative."""
COARSEST = 0.05
"""A rounding that is further off than this is no statement of the value: "1 um" for 0.6 um. Relative."""


def states(amount: Amount, value: float, unit: str) -> bool | None:
    """Whether an amount states a value: a right rounding of it, or a range around it of at most a factor of two.

    The value may stand in its own digits or in those that `written` gives it. None where the units do not convert.
    """
    same = amount.to(unit)
    if same is None:
        return None
    return any(_agrees(same, right, unit) for right in (value, float(digits(value, unit))))


def within_tolerance(name: str, value: float, other: float, unit: str) -> bool:
    """Whether a person takes two values of a quantity for one; lengths in one unit."""
    if unit == "deg":
        return angle_between(value, other) <= QUANTITIES[name].tolerance
    scale = 1.0 if unit == "%" else max(abs(value), abs(other)) / (1 + QUANTITIES[name].tolerance)
    return abs(value - other) <= QUANTITIES[name].tolerance * scale


def angle_between(a: float, b: float) -> float:
    """Angle of two directions without a sense, 0 to 90 [deg]: 0 and 180 degrees are one direction."""
    return abs((a - b + 90) % 180 - 90)


def _agrees(amount: Amount, right: float, unit: str) -> bool:
    if amount.low < amount.high:
        return amount.low <= right <= amount.high and 0 < amount.high <= 2 * amount.low
    off = abs(amount.value - right)
    if unit == "deg":
        return angle_between(amount.value, right) <= amount.half_digit + SLACK
    return off <= min(amount.half_digit, COARSEST * abs(right)) + SLACK * abs(right)

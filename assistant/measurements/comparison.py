"""Two pictures, quantity by quantity: both values and their difference, or why they can't be compared.

Knows nothing about pixels, questions or how a table is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from assistant.measurements.facts import LINE_ORDER, Fact, Known
from assistant.quantities import QUANTITIES, angle_between, within_tolerance, written

COMPARED = (
    *("class", "shape", "surface", "arrangement"),
    *LINE_ORDER,
    *("median_diameter", "grain_size", "circularity", "orientation_spread", "fibre_width_spread"),
    *("voltage", "working_distance", "magnification", "pixel_size", "detector", "microscope"),
)
"""What is compared, in this order."""


@dataclass(frozen=True)
class Comparison:
    """One quantity of two pictures; `b` less `a` where both are numbers in one unit."""

    name: str
    a: Fact | None
    b: Fact | None
    difference: float | None
    """[unit]; of two directions the angle between them; None where they can't be compared"""
    unit: str
    alike: bool
    """Whether a person would take the two for one"""
    reason: str = ""
    """Why there is no difference"""

    @property
    def said(self) -> str:
        """The name of the quantity in a sentence."""
        return QUANTITIES[self.name].said

    @property
    def written(self) -> str:
        """The difference in words: "+12 nm", "−0.8 points, alike", "the same", or the reason why there is none."""
        if self.difference is None:
            return self.reason
        if self.a is not None and self.b is not None and self.a.written == self.b.written:
            return "the same"
        sign = "" if self.unit == "deg" else "+" if self.difference > 0 else "−"
        told = f"{sign}{written(abs(self.difference), self.unit)}".replace("%", "points")
        return f"{told}, alike" if self.alike else told


def compared(a: Known, b: Known) -> list[Comparison]:
    """Every quantity that one of the two pictures has."""
    pairs = ((name, a.get(name), b.get(name)) for name in COMPARED)
    return [between(name, left, right) for name, left, right in pairs if left is not None or right is not None]


def between(name: str, a: Fact | None, b: Fact | None) -> Comparison:
    """One quantity of two pictures; None where it is not known."""
    if a is None or b is None:
        return Comparison(name, a, b, None, "", False, f"not known of image {1 if a is None else 2}")
    if a.value is None or b.value is None:
        alike = a.written.lower() == b.written.lower()
        return Comparison(name, a, b, None, "", alike, "the same" if alike else "different")
    if "px" in (a.unit, b.unit):
        without = [f"image {number}" for number, fact in ((1, a), (2, b)) if fact.unit == "px"]
        return Comparison(name, a, b, None, "", False, f"no pixel size of {' and '.join(without)}")
    measured = QUANTITIES[name].source == "measured"  # what was read has no tolerance
    alike = within_tolerance(name, a.value, b.value, a.unit) if measured else a.written == b.written
    turned = name == "orientation"
    difference = angle_between(a.value, b.value) if turned else b.value - a.value
    return Comparison(name, a, b, difference, a.unit, alike)

"""Fact and Facts: what was measured, in which unit, by which method and how surely. Knows nothing about pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from assistant.quantities import MEASURED, QUANTITIES, written

Kind = Literal["particles", "pores", "lines", "fibres", "texture", "curtaining", "uniform", "unknown"]
KINDS: tuple[Kind, ...] = get_args(Kind)

FACT_NAMES = MEASURED
LINE_ORDER = tuple(
    quantity.name for quantity in sorted(QUANTITIES.values(), key=lambda q: q.line or 0) if quantity.line is not None
)
LINE_ENTRIES = 12


@dataclass(frozen=True)
class Fact:
    """One measured quantity; value None with confidence 0 means that it does not apply to this picture."""

    name: str
    value: float | None
    unit: str
    """"", "px", "nm", "%", "deg" or "1/um^2"; lengths are in nm where the picture is calibrated, else in px."""
    method: str
    confidence: float
    """0..1; how much of the quantity a person measuring by hand would confirm."""
    note: str = ""

    @property
    def applies(self) -> bool:
        """True where there is a value."""
        return self.value is not None and self.confidence > 0


@dataclass(frozen=True)
class Facts:
    """All facts about one picture, in a fixed order, and what kind of picture it looks like to the measurement."""

    kind: str
    items: tuple[Fact, ...]
    kind_confidence: float = 1.0
    """0..1; that a person would call the picture that"""

    def __getitem__(self, name: str) -> Fact:
        """Return the fact of that name.

        Raises:
            KeyError: there is no fact of that name.
        """
        fact = self.get(name)
        if fact is None:
            raise KeyError(name)
        return fact

    def get(self, name: str) -> Fact | None:
        """Return the fact of that name, or None."""
        return next((fact for fact in self.items if fact.name == name), None)

    def applicable(self) -> tuple[Fact, ...]:
        """The facts that apply, in order."""
        return tuple(fact for fact in self.items if fact.applies)

    def line(self) -> str:
        """One short line, "count 84; mean diameter 312 nm", most important first; empty where nothing applies."""
        found = [self.get(name) for name in LINE_ORDER]
        entries = [phrase(fact) for fact in found if fact is not None and fact.applies]
        return "; ".join(entries[:LINE_ENTRIES])

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: {"kind", "kind_confidence", "items": [{"name", "value", "unit", "method", ...}]}."""
        items = [asdict(fact) for fact in self.items]
        return {"kind": self.kind, "kind_confidence": self.kind_confidence, "items": items}


def not_applicable(name: str, method: str, note: str) -> Fact:
    """A fact that this picture does not have, with the reason."""
    return Fact(name, None, "", method, 0.0, note)


def phrase(fact: Fact) -> str:
    """Name, value and unit as they stand in the line: "mean diameter 312 nm"."""
    assert fact.value is not None
    return f"{QUANTITIES[fact.name].said} {written(fact.value, fact.unit)}"

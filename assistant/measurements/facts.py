"""What is known of a picture: each fact with its value, unit, source, method and confidence.

`Facts` are those that were measured; `Known` adds what the file says and what a calibrated head is sure of.
Knows nothing about pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from assistant.quantities import MEASURED, QUANTITIES, written

Kind = Literal["particles", "pores", "lines", "fibres", "texture", "curtaining", "uniform", "unknown"]

FACT_NAMES = MEASURED
LINE_ORDER = tuple(
    quantity.name for quantity in sorted(QUANTITIES.values(), key=lambda q: q.line or 0) if quantity.line is not None
)
LINE_ENTRIES = 12
READ: Mapping[str, tuple[str, str]] = {
    "voltage": ("hv_kv", "kV"),
    "working_distance": ("wd_mm", "mm"),
    "magnification": ("magnification", "x"),
    "pixel_size": ("nm_per_pixel", "nm"),
    "field_width": ("field_nm", "nm"),
    "detector": ("detector", ""),
    "microscope": ("microscope", ""),
    "date": ("date", ""),
}
"""What a file says: quantity -> the field that holds it, and its unit."""
OPENINGS, NO_OPENINGS = "dark openings", "no dark openings could be told apart"
"""Note of a porosity whose openings were told from dark matter; why a picture surely has no porosity."""
LIKELY, SURE = 0.5, 0.8
"""Confidence from which an answer states a measured fact, and from which it does so without a word of doubt.

Of facts at 0.8 and more, 93 % lay within their tolerance on pictures held apart (docs/measurement.md).
"""


@dataclass(frozen=True)
class Fact:
    """One quantity of a picture; value None with confidence 0 means that it does not apply to this picture."""

    name: str
    value: float | None
    unit: str
    """"", "px", "nm", "%", "deg" or "1/um^2"; lengths are in nm where the picture is calibrated, else in px."""
    method: str
    confidence: float
    """0..1; how much of the quantity a person measuring by hand would confirm."""
    note: str = ""
    source: str = "measured"
    """"measured", "predicted", or where it was read: "file", "tag", "sidecar", "banner", "scale_bar", "user"."""
    text: str = ""
    """The value where it is a word: a detector, a class."""

    @property
    def applies(self) -> bool:
        """True where there is a value."""
        return (self.value is not None or bool(self.text)) and self.confidence > 0

    @property
    def sure(self) -> bool:
        """True where it is stated without a word of doubt."""
        return self.confidence >= SURE

    @property
    def written(self) -> str:
        """The value as an answer states it: "312 nm", "1.3 um", "20 kV", "5000x", "SE2"; "" where there is none."""
        if self.value is None:
            return self.text
        if self.name == "magnification":
            return f"{self.value:.10g}x"
        read = QUANTITIES[self.name].source == "read"  # so not rounded to what a measurement is good for
        return written(self.value, self.unit, figures=4 if read else 3)


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

    def likely(self) -> tuple[Fact, ...]:
        """The facts that may be stated, in order."""
        return tuple(fact for fact in self.applicable() if fact.confidence >= LIKELY)

    def line(self) -> str:
        """One short line, "count 84; mean diameter 312 nm", most important first; empty where nothing applies."""
        found = [self.get(name) for name in LINE_ORDER]
        entries = [phrase(fact) for fact in found if fact is not None and fact.applies]
        return "; ".join(entries[:LINE_ENTRIES])

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Facts:
        """The facts that `as_dict` wrote."""
        return cls(**{**record, "items": tuple(Fact(**item) for item in record["items"])})

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: {"kind", "kind_confidence", "items": [{"name", "value", "unit", "method", ...}]}."""
        items = [asdict(fact) for fact in self.items]
        return {"kind": self.kind, "kind_confidence": self.kind_confidence, "items": items}


@dataclass(frozen=True)
class Known:
    """What is known of one picture: its measured facts, what the file says (None where it does not), predictions."""

    facts: Facts
    hv_kv: float | None = None
    wd_mm: float | None = None
    magnification: float | None = None
    nm_per_pixel: float | None = None
    field_nm: float | None = None
    """What the width of the picture spans, without its info bar."""
    detector: str | None = None
    microscope: str | None = None
    date: str | None = None
    predicted: tuple[Fact, ...] = ()
    """Class, shape, surface, arrangement: only what a calibrated head is sure of."""
    sources: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Where a quantity was read, with the confidence of the reading; "file" and 1 where this does not say."""

    @classmethod
    def from_record(cls, measured: Mapping[str, Any], instrument: Mapping[str, Any]) -> Known:
        """What a data set row says of one picture: `Facts.as_dict()`, and the fields of its file."""
        read: dict[str, Any] = {field: instrument[field] for field, _ in READ.values() if field in instrument}
        read["microscope"] = instrument.get("model") or instrument.get("vendor")
        return cls(Facts.from_dict({"kind": "", "items": (), **measured}), **read)

    def with_class(self, label: str) -> Known:
        """The same, where a person has said what the sample is."""
        return self.with_words({"class": label.replace("_", " ")}, "label")

    def with_words(self, words: Mapping[str, str], method: str) -> Known:
        """The same, where words that heads would say are known for certain; `method` says from where."""
        told = (Fact(name, None, "", method, 1.0, source="predicted", text=text) for name, text in words.items())
        return replace(self, predicted=(*self.predicted, *told))

    def without(self, names: Set[str]) -> Known:
        """The same, less some quantities."""
        kept = replace(self.facts, items=tuple(fact for fact in self.facts.items if fact.name not in names))
        read: dict[str, Any] = {field: None for name, (field, _) in READ.items() if name in names}
        predicted = tuple(fact for fact in self.predicted if fact.name not in names)
        return replace(self, facts=kept, predicted=predicted, **read)

    def get(self, name: str) -> Fact | None:
        """The fact of that name, None where it is not known or too unlikely to be stated."""
        if QUANTITIES[name].source == "measured":
            fact = self.facts.get(name)
            if fact is not None and fact.confidence < LIKELY:
                return None
        elif QUANTITIES[name].source == "read":
            fact = self._read(name)
        else:
            fact = next((fact for fact in self.predicted if fact.name == name), None)
        return fact if fact is not None and fact.applies else None

    def __iter__(self) -> Iterator[Fact]:
        """Every known fact, in the order of `QUANTITIES`."""
        return filter(None, map(self.get, QUANTITIES))

    def _read(self, name: str) -> Fact | None:
        attribute, unit = READ[name]
        value: float | str | None = getattr(self, attribute)
        if value is None or value == "":
            return None
        source, confidence = self.sources.get(name, ("file", 1.0))
        number, text = (None, value) if isinstance(value, str) else (float(value), "")
        return Fact(name, number, unit, "read, not measured", confidence, source=source, text=text)


def not_applicable(name: str, method: str, note: str) -> Fact:
    """A fact that this picture does not have, with the reason."""
    return Fact(name, None, "", method, 0.0, note)


def phrase(fact: Fact) -> str:
    """Name, value and unit as they stand in the line, which students were taught with: "mean diameter 312 nm"."""
    return f"{fact.name.replace('_', ' ')} {fact.written}"

"""A condition on what is known of a picture, as a person writes it: "magnification > 5000", "class = fibres".

Knows nothing about pictures or where facts come from.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from assistant.errors import ConfigError
from assistant.measure import Fact
from assistant.quantities import QUANTITIES, Amount, read_amounts, states, within_tolerance

_CONDITION = re.compile(r"\s*(?P<name>[^<>=!≤≥]+?)\s*(?P<relation><=|>=|!=|==|≤|≥|=|<|>)\s*(?P<value>.+?)\s*")
_SPELLINGS = {"==": "=", "≤": "<=", "≥": ">="}
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Condition:
    """One quantity held against a number with its unit, or against a word."""

    quantity: str
    relation: str
    """"<", "<=", ">", ">=", "=" or "!="."""
    amount: Amount | None
    word: str
    text: str
    """As it was written."""

    def holds(self, fact: Fact | None) -> bool | None:
        """Whether it holds for a fact; None where the quantity is not known, or has a unit that does not convert."""
        if fact is None or not fact.applies:
            return None
        if self.amount is None:
            return (_plain(fact.text) == _plain(self.word)) == (self.relation == "=")
        value = fact.value
        same = self.amount.to(fact.unit) if self.amount.unit else self.amount
        if same is None or value is None:
            return None
        if self.relation in _ORDERS:
            return _ORDERS[self.relation](value, same.value)
        close = QUANTITIES[fact.name].source == "measured" and within_tolerance(fact.name, value, same.value, fact.unit)
        stated = states(self.amount, value, fact.unit if self.amount.unit else "")
        return (close or bool(stated)) == (self.relation == "=")


def read_condition(text: str) -> Condition:
    """Read `NAME RELATION VALUE`; a number without a unit has that of the fact.

    Equal is a measured quantity within its tolerance, and one that was read within its rounding.
    Raises ConfigError `bad_condition`.
    """
    parts = _CONDITION.fullmatch(text)
    if parts is None:
        raise _bad(text, "Write a quantity, a relation and a value, as in 'magnification > 5000' or 'class = fibres'")
    name, relation = parts["name"], _SPELLINGS.get(parts["relation"], parts["relation"])
    quantity = next((q for q in QUANTITIES.values() if _plain(q.name) == _plain(name)), None) or next(
        (q for q in QUANTITIES.values() if re.fullmatch(q.words, name.strip(), re.IGNORECASE)), None
    )
    if quantity is None:
        raise _bad(text, f"{name!r} is none of {', '.join(QUANTITIES)}")
    if quantity.in_words:
        if relation not in ("=", "!="):
            raise _bad(text, f"{quantity.said} is a word, and words are = or !=")
        return Condition(quantity.name, relation, None, parts["value"].strip("'\""), text)
    amounts = read_amounts(parts["value"])
    if len(amounts) != 1 or (amounts[0].start, amounts[0].stop) != (0, len(parts["value"])):
        raise _bad(text, f"{parts['value']!r} is not a number with its unit")
    # "5 nm/px" is a length of 5 nm
    amount = replace(amounts[0], unit=amounts[0].unit.removesuffix("/px"))
    return Condition(quantity.name, relation, amount, "", text)


def _plain(word: str) -> str:
    return re.sub(r"[\s_-]+", " ", word).strip().casefold()


def _bad(text: str, problem: str) -> ConfigError:
    return ConfigError("bad_condition", f"{text[:60]!r} is no condition. {problem}.")

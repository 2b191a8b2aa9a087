"""How an endpoint is asked: what it refused once is left out, or said in the other way, from then on.

Knows nothing about HTTP, prompts or the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data_gen.hosted.refusals import LIMITS
from data_gen.tables import Adaptation

_FORMAT = "response_format"
JSON_OBJECT = "json_object"


class Dialect:
    """The adaptations of one endpoint and model."""

    def __init__(
        self, known: Iterable[Adaptation] = (), *, learned: Callable[[Adaptation], None] = lambda _: None
    ) -> None:
        """`known` are those of earlier runs; `learned` is told of every new one."""
        self._adaptations = {adaptation.parameter: adaptation for adaptation in known}
        self._learned = learned

    @property
    def adaptations(self) -> list[Adaptation]:
        """What is left out or replaced, in the order in which it was refused."""
        return list(self._adaptations.values())

    def spoken(self, wished: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters as this endpoint takes them."""
        spoken = {}
        for name, value in wished.items():
            adaptation = self._adaptations.get(name)
            if adaptation is None:
                spoken[name] = value
            elif name in LIMITS:
                spoken[adaptation.instead] = value
            elif adaptation.instead == JSON_OBJECT:
                spoken[name] = {"type": JSON_OBJECT}
        return spoken

    def adapt(self, refused: Sequence[str], sent: Mapping[str, Any], reason: str) -> bool:
        """Learn from a refusal of some of what was sent; False where asking again would meet the same."""
        learned, before = False, frozenset(self._adaptations)
        for name in refused:
            if name == _FORMAT and isinstance(sent[name], dict) and sent[name].get("type") == "json_schema":
                instead = JSON_OBJECT
            elif LIMITS.get(name) in before:
                continue  # without any limit nobody could tell what a request costs at most
            else:
                instead = LIMITS.get(name, "")
            learned = True
            known = self._adaptations.get(name)
            if known is None or (known.instead == JSON_OBJECT and not instead):
                self._adaptations[name] = Adaptation(name, instead, reason)
                self._learned(self._adaptations[name])
        return learned

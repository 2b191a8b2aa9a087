"""What happens too often to be logged each time: the first of a kind at once, the rest as one line a minute.

Knows nothing about what is counted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

PERIOD_S = 60.0
MOST_KINDS = 40
"""Kinds told apart within one period; whatever comes beyond them is counted as one."""
REST = "further kinds of this"


class Tally:
    """Counts events by kind; a stranger can make neither the log nor this table grow past a bound."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._since = clock()
        self._counts: dict[str, int] = {}

    def __call__(self, kind: str) -> bool:
        """Count one event of a kind, what a stranger wrote in it as `ascii` shows it; whether it is the first."""
        self.flush()
        kind = kind if kind in self._counts or len(self._counts) < MOST_KINDS else REST
        self._counts[kind] = self._counts.get(kind, -1) + 1
        first = not self._counts[kind]
        if first:
            self._log.warning("%s", kind)
        return first

    def flush(self) -> None:
        """Once a period is over, tell how much more of each kind there was."""
        if self._clock() - self._since < PERIOD_S:
            return
        counts, self._counts, self._since = self._counts, {}, self._clock()
        for kind, more in counts.items():
            if more:
                self._log.warning("%s (%d more within a minute)", kind, more)

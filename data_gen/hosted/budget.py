"""Money that may still be spent, and what a whole data set will cost. Knows nothing about requests or the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field

from assistant.errors import TeacherError


class Budget:
    """The worst case is set aside before a request leaves, so the limit is hard."""

    def __init__(self, limit_usd: float | None, *, spent_usd: float = 0.0) -> None:
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self.reserved_usd = 0.0

    def fits(self, worst_usd: float) -> bool:
        """True where the worst case still fits under the limit (a micro-cent of rounding is forgiven)."""
        return self.limit_usd is None or (self.spent_usd + self.reserved_usd + worst_usd <= self.limit_usd + 1e-9)

    def reserve(self, worst_usd: float) -> None:
        """Set the worst case aside.

        Raises TeacherError `budget` where it does not fit.
        """
        if not self.fits(worst_usd):
            raise TeacherError(
                "budget",
                f"The next request may cost {worst_usd:.4f} USD, and {self.spent_usd:.4f} of {self.limit_usd:.4f} "
                "USD are spent. Run the same command with a larger --budget to go on.",
            )
        self.reserved_usd += worst_usd

    def settle(self, worst_usd: float, cost_usd: float) -> None:
        """Give a reservation back and book what it really cost."""
        self.reserved_usd -= worst_usd
        self.spent_usd += cost_usd


@dataclass
class Estimate:
    """What all requests will cost, from those that were answered: the mean of each task times what is left of it."""

    open_requests: dict[str, int] = field(default_factory=dict)
    """Requests without an answer, by task."""
    answered: dict[str, list[float]] = field(default_factory=dict)
    """Cost of each request that was answered, by task [USD]."""

    def add(self, task: str, cost_usd: float | None) -> None:
        """Count a request: what it cost, or None while it is open."""
        if cost_usd is None:
            self.open_requests[task] = self.open_requests.get(task, 0) + 1
        else:
            self.answered.setdefault(task, []).append(cost_usd)

    def total_usd(self) -> float | None:
        """Expected cost of the whole data set [USD]; None where nothing was answered yet."""
        known = [cost for costs in self.answered.values() for cost in costs]
        if not known:
            return None
        usual = sum(known) / len(known)
        means = {task: sum(costs) / len(costs) for task, costs in self.answered.items() if costs}
        return sum(known) + sum(count * means.get(task, usual) for task, count in self.open_requests.items())

"""What a run of `teach` made, as a person and as a program read it. Knows nothing about how it was made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class TeachReport:
    """What a run of `teach` made."""

    out: Path
    images: int = 0
    """Images that brought rows."""
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows per split and task."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Images, requests and rows that were not taken, by reason."""
    unanswered: int = 0
    """Requests that are still open; the same command asks them again."""
    cost_usd: float = 0.0
    """All that the data set has cost so far [USD]."""
    estimate_usd: float | None = None
    """All that it will have cost when every request is answered [USD]; None where there are no prices or no replies."""
    stopped: str | None = None
    """Why the teacher was not asked to the end: code and sentence."""
    refused: bool = False
    """The endpoint of a hosted teacher has refused whatever it was asked: no waiting mends that."""
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Rows of all splits."""
        return sum(sum(tasks.values()) for tasks in self.rows.values())

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON."""
        return {**asdict(self), "out": str(self.out), "total": self.total}

    def __str__(self) -> str:
        splits = ", ".join(f"{sum(tasks.values())} {split}" for split, tasks in self.rows.items())
        lines = [f"{self.total} rows ({splits}) about {self.images} images, {self.out}"]
        if self.rejected:
            lines.append("rejected: " + ", ".join(f"{count} {reason}" for reason, count in self.rejected.items()))
        if self.cost_usd:
            lines.append(f"cost: {self.cost_usd:.4f} USD")
        if self.unanswered:
            lines.append(f"{self.unanswered} requests are open; the same command asks them again")
        return "\n".join([*lines, *self.warnings, *filter(None, [self.stopped])])

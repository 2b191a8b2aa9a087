"""What the passes of one run over one folder share, and how they tell what was left out. Does nothing itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant.progress import Progress
from data_gen.catalogue import Catalogue, Taught
from data_gen.dataset.writer import LineWriter
from data_gen.ledger import Ledger
from data_gen.passes.drafts import Drafts
from data_gen.passes.examine import Examiner
from data_gen.passes.teach_report import TeachReport
from data_gen.questions.evidence import Evidence

if TYPE_CHECKING:
    from assistant.config import TeachConfig


@dataclass
class Lesson:
    """One folder on its way into one data set directory."""

    catalogue: Catalogue
    out: Path
    config: TeachConfig
    ledger: Ledger
    drafts: Drafts
    examiner: Examiner
    rejections: LineWriter
    report: TeachReport
    progress: Progress = lambda *_: None
    taught: Taught = ()
    """Every usable picture, in the order of the data set."""
    staying: set[str] = field(default_factory=set)
    """Names of the pictures that must not leave."""
    rejected: Counter[str] = field(default_factory=Counter)

    @property
    def labels(self) -> list[str]:
        """The classes of the usable pictures."""
        return sorted({label for _, _, label in self.taught if label})

    def evidence(self, position: int) -> Evidence:
        """What is known of the picture at that position of the catalogue."""
        return Evidence(**self.drafts.specimen(position))

    def note_open(self, verdict: str, **about: Any) -> None:
        """Write down why a request is still open; it is not rejected, the next run asks it again."""
        self.rejections.write({"reason": verdict, "open": True, **about})

    def reject(self, reason: str, **about: Any) -> None:
        """Count a picture, request or row that is not taken, and write down what it was."""
        self.rejected[reason] += 1
        self.rejections.write({"reason": reason, **about})

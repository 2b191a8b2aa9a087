"""A question with its answer as a row of the data set. Knows nothing about where the answer came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from assistant.chat import auxiliary_text, number_lines
from data_gen.dataset.writer import conversation
from data_gen.questions.evidence import Evidence
from data_gen.questions.tasks import TaughtQuestion


def common_label(shown: Sequence[Evidence]) -> str | None:
    """The class of the pictures, where all have the same."""
    return shown[0].label if len({evidence.label for evidence in shown}) == 1 else None


def row_of(
    question: TaughtQuestion,
    wordings: Sequence[str],
    shown: Sequence[Evidence],
    *,
    teacher: Mapping[str, Any],
    stays: bool = False,
) -> dict[str, Any]:
    """The columns of a row but its pictures; the first wording is the target.

    `teacher` goes into the provenance, and so does that a picture must not leave the machine, where it `stays`.
    """
    first, images = shown[0], [evidence.sha256 for evidence in shown]
    provenance = {
        "item": question.id,
        "files": [evidence.path for evidence in shown],
        "sha256": images,
        "origin": first.source,
        "states": dict(question.states),
        "teacher": teacher,
        **({"egress": "no"} if stays else {}),
    }
    measured = [evidence.facts for evidence in shown]
    instrument = [evidence.reading for evidence in shown]
    return {
        "id": "-".join([*(image[:12] for image in images), question.id]),
        "messages": conversation(question.text, wordings[0], images=len(shown), history=question.history),
        "task": question.task,
        "facet": question.facet,
        "label": common_label(shown),
        "source": first.path,
        "group": first.group,
        "teacher": teacher["name"],
        "aux": number_lines([auxiliary_text(e.metadata_line, e.facts_line) for e in shown]),
        "references": list(wordings),
        "provenance": json.dumps(provenance, ensure_ascii=False, sort_keys=True),
        "measured": json.dumps(measured[0] if len(shown) == 1 else measured, sort_keys=True),
        "instrument": json.dumps(instrument[0] if len(shown) == 1 else instrument, sort_keys=True),
    }

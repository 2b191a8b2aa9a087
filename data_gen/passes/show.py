"""What would be asked about one micrograph, and the facts it rests on; nothing is written and nothing is sent.

Knows nothing about ledgers or the files of a data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant.errors import MicrographError
from data_gen.catalogue import INDEX, TRUTH, Catalogue, CatalogueEntry
from data_gen.hosted.redaction import shareable
from data_gen.passes.examine import examine_files, redacted
from data_gen.passes.requests import FACTUAL_TASKS, conversation_request, request_about
from data_gen.passes.specimens import evidence_of
from data_gen.questions.evidence import Evidence, known_text
from data_gen.teacher import Request

if TYPE_CHECKING:
    from assistant.config import TeachConfig

PARENTS = 4
"""Folders above a picture in which a list of pictures is looked for."""


def show(image: Path, *, config: TeachConfig) -> dict[str, Any]:
    """The facts about a micrograph and every request about it, as plain JSON.

    Label and ground truth come from the list of pictures above the file, where there is one. For a hosted teacher a
    request has the `prompt` that would be sent, and `sends` tells of the picture; pairs are left out.

    Raises MicrographError.
    """
    hosted = config.teacher == "openai"
    record = examine_files((str(image), False, None))
    if "error" in record:
        raise MicrographError(record["error"]["code"], record["error"]["message"])
    entry = _listed(image) or CatalogueEntry(0, image.name, None, "", "")
    evidence = evidence_of(replace(entry, name=image.name), "", record)
    told = shareable(evidence, config.redact) if hosted else evidence
    shown: dict[str, Any] = {"path": str(image), "known": known_text(told), "facts": record["facts"]}
    if hosted:
        (sent,) = redacted([str(image)], config.downscale)
        shown["sends"] = {"bytes": len(sent), "sha256": hashlib.sha256(sent).hexdigest()}
    shown["requests"] = requests = []
    for request in _requests(told, config, looking=hosted):
        questions = []
        for question in request.questions:
            turns = [{"question": asked, "answer": answered} for asked, answered in question.history]
            known = {"facet": question.facet, "question": question.text, "answers": list(question.answers)}
            questions.append({"id": question.id, **known, **({"history": turns} if turns else {})})
        requests.append({"task": request.task, "questions": questions})
        if hosted and request.task not in FACTUAL_TASKS:
            requests[-1]["prompt"] = request.prompt
    return shown


def _requests(evidence: Evidence, config: TeachConfig, *, looking: bool) -> Iterator[Request]:
    for task in config.tasks:
        if task != "comparison" and (
            request := request_about((evidence,), task, config=config, looks=looking and task not in FACTUAL_TASKS)
        ):
            yield request
    if "vqa" in config.tasks and (request := conversation_request(evidence, config=config)):
        yield request


def _listed(image: Path) -> CatalogueEntry | None:
    """The picture's entry in the nearest list of pictures above it."""
    for root in image.resolve().parents[:PARENTS]:
        if (root / TRUTH).is_file() or (root / INDEX).is_file():
            catalogue = Catalogue(root, shares={"validation": 0.0, "test": 0.0}, seed=0)
            name = image.resolve().relative_to(root).as_posix()
            return next((entry for entry, _ in catalogue if entry.name == name), None)
    return None

"""Knowledge sheets: eight facets of text per class, for the classifier (MultiFusion-LLM, arXiv 2408.13661).

The sheets of the ten classes are authored files under `prompts/knowledge/`; a hosted teacher can write others, and
without one a class of the site's own is described by what was measured. Every class gets a sheet, and a sheet says
nothing about any single picture. Knows nothing about models.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assistant.disk import write_file
from assistant.errors import DatasetError
from assistant.quantities import QUANTITIES, written
from data_gen.questions.contradictions import SURE_ENOUGH
from data_gen.questions.evidence import PROMPTS
from data_gen.questions.filters import text_verdict
from data_gen.questions.tasks import TaughtQuestion
from data_gen.teacher import Rejection, Request, Teacher

SHEETS = PROMPTS / "knowledge"
SHEET_FACETS = {
    "introduction": "What such samples are, and why they matter.",
    "structure": "What their structure looks like at the scale of the micrograph.",
    "preparation": "How they are made or prepared, with one advantage and one drawback.",
    "properties": "Which physical, chemical or electronic properties they have, and how these differ from the bulk.",
    "surface": "What their surface is like, and how it is modified.",
    "safety": "Which risks they bring, and what makes them safe.",
    "applications": "What they are used for.",
    "outlook": "Where their development leads.",
}
TYPICAL = frozenset(name for name, quantity in QUANTITIES.items() if quantity.typical)
"""Quantities that say something about a class, and not about where one picture was taken."""
MOST_NAME_BYTES = 200
KnowledgeSheet = dict[str, str]


def knowledge_sheets(classes: Sequence[str], *, folder: Path | None = None) -> dict[str, KnowledgeSheet]:
    """The sheet of every class, facet by facet; `folder` holds sheets of one's own, `<class>.txt`, and is read first.

    Raises DatasetError `no_sheet` or `bad_sheet`.
    """
    sheets = {}
    for label in classes:
        paths = [place / f"{label}.txt" for place in (folder, SHEETS) if place]
        path = next((path for path in paths if path.is_file() and path.stem == label), None)
        if path is None:
            known = ", ".join(sorted(path.stem for path in SHEETS.glob("*.txt")))
            raise DatasetError(
                "no_sheet", f"There is no knowledge sheet for {label!r} (known: {known}). Write {label}.txt."
            )
        sheets[label] = read_sheet(path)
    return sheets


def read_sheet(path: Path) -> KnowledgeSheet:
    """Read a sheet: one line "facet: text" for each of the eight facets.

    Raises DatasetError `bad_sheet`.
    """
    sheet: KnowledgeSheet = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        facet, colon, text = line.partition(":")
        if colon and facet.strip() in SHEET_FACETS:
            sheet[facet.strip()] = text.strip()
    missing = [facet for facet in SHEET_FACETS if not sheet.get(facet)]
    if missing:
        raise DatasetError("bad_sheet", f"{path} lacks {', '.join(missing)}. Add a line 'facet: text' for each.")
    return {facet: sheet[facet] for facet in SHEET_FACETS}


def sheet_request(label: str) -> Request:
    """What a teacher is asked to write the sheet of a class; it sees no picture."""
    words = label.replace("_", " ")
    questions = tuple(
        TaughtQuestion(facet, "knowledge", facet, text, facet, (), "", {}) for facet, text in SHEET_FACETS.items()
    )
    return Request((), "knowledge", questions, f"Class: {words}", paraphrases=1, template="sheet")


def sheet_of(answers: Mapping[str, Sequence[str]]) -> KnowledgeSheet:
    """The sheet in a teacher's answers. Raises Rejection where a facet may not be taught."""
    sheet = {facet: " ".join(answers[facet][0].split()) for facet in SHEET_FACETS}
    for text in sheet.values():
        # Numbers are the teacher's own knowledge here, so they are checked against themselves only.
        if verdict := text_verdict(text, known=text):
            raise Rejection(verdict, text)
    return sheet


def measured_sheet(label: str, facts: Sequence[Mapping[str, Any]]) -> KnowledgeSheet:
    """The sheet of a class that nobody wrote about, from what was measured on its pictures (`Facts.as_dict()`).

    It says what pictures can tell, and of everything else that it is not known.
    """
    words = label.replace("_", " ")
    unknown = {facet: f"Nothing is on file about the {facet} of {words}." for facet in SHEET_FACETS}
    if not facts:
        return unknown
    kinds = Counter(str(record["kind"]) for record in facts)
    values: dict[tuple[str, str], list[float]] = {}
    for record in facts:
        for fact in record["items"]:
            if fact["value"] is not None and fact["confidence"] >= SURE_ENOUGH:
                values.setdefault((fact["name"], fact["unit"]), []).append(float(fact["value"]))
    lines = [
        f"The {name.replace('_', ' ')} is {written(statistics.median(found), unit)} in the median of {len(found)}."
        for (name, unit), found in sorted(values.items())
        if 2 * len(found) > len(facts) and name in TYPICAL
    ]
    looks = f"Of {len(facts)} pictures {kinds.most_common(1)[0][1]} look like {kinds.most_common(1)[0][0]}."
    return {
        **unknown,
        "introduction": f"{words.capitalize()} is a class of this site, known from {len(facts)} pictures.",
        "structure": " ".join([looks, *lines]),
    }


def save_sheet(label: str, sheet: KnowledgeSheet, folder: Path) -> Path:
    """Write a sheet into `folder`, where `knowledge_sheets` finds it.

    Raises DatasetError `bad_label` for a class that cannot name a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{label}.txt"
    if path.parent != folder or not label.isprintable() or len(path.name.encode()) > MOST_NAME_BYTES:
        raise DatasetError("bad_label", f"The class {label!r} cannot name a file. Rename it.")
    write_file(path, "".join(f"{facet}: {text}\n" for facet, text in sheet.items()))
    return path


async def write_sheet(label: str, teacher: Teacher, folder: Path) -> Path:
    """Have a teacher write the sheet of a class into `folder`.

    Raises Rejection where the reply cannot be used.
    """
    reply = await teacher.answer(sheet_request(label), ())
    return save_sheet(label, sheet_of(reply.answers), folder)

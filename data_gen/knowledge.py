"""Knowledge sheets: eight facets of text per class, for the classifier (MultiFusion-LLM, arXiv 2408.13661).

The sheets of the ten classes are authored files under `prompts/knowledge/`; a hosted teacher can write others. Every
class gets a sheet, and a sheet says nothing about any single picture. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from assistant.errors import DatasetError
from data_gen.evidence import PROMPTS
from data_gen.filters import text_verdict
from data_gen.replies import Rejection
from data_gen.tasks import Question
from data_gen.teacher import Request, Teacher

SHEETS = PROMPTS / "knowledge"
FACETS = {
    "introduction": "What such samples are, and why they matter.",
    "structure": "What their structure looks like at the scale of the micrograph.",
    "preparation": "How they are made or prepared, with one advantage and one drawback.",
    "properties": "Which physical, chemical or electronic properties they have, and how these differ from the bulk.",
    "surface": "What their surface is like, and how it is modified.",
    "safety": "Which risks they bring, and what makes them safe.",
    "applications": "What they are used for.",
    "outlook": "Where their development leads.",
}
Sheet = dict[str, str]


def knowledge_sheets(classes: Sequence[str], *, folder: Path | None = None) -> dict[str, Sheet]:
    """The sheet of every class, facet by facet; `folder` holds sheets of one's own, `<class>.txt`, and is read first.

    Raises DatasetError `no_sheet` or `bad_sheet`.
    """
    return {label: read_sheet(_path(label, folder)) for label in classes}


def read_sheet(path: Path) -> Sheet:
    """Read a sheet: one line "facet: text" for each of the eight facets.

    Raises DatasetError `bad_sheet`.
    """
    sheet: Sheet = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        facet, colon, text = line.partition(":")
        if colon and facet.strip() in FACETS:
            sheet[facet.strip()] = text.strip()
    missing = [facet for facet in FACETS if not sheet.get(facet)]
    if missing:
        raise DatasetError("bad_sheet", f"{path} lacks {', '.join(missing)}. Add a line 'facet: text' for each.")
    return {facet: sheet[facet] for facet in FACETS}


async def write_sheet(label: str, teacher: Teacher, folder: Path) -> Path:
    """Have a teacher write the sheet of a class into `folder`, where `knowledge_sheets` finds it.

    Raises Rejection where the reply cannot be used.
    """
    words = label.replace("_", " ")
    questions = tuple(Question(facet, "knowledge", facet, text, facet, (), "", {}) for facet, text in FACETS.items())
    request = Request((), "knowledge", questions, f"Class: {words}", paraphrases=1, template="sheet")
    reply = await teacher.answer(request, ())
    sheet = {facet: " ".join(reply.answers[facet][0].split()) for facet in FACETS}
    for text in sheet.values():
        # Numbers are the teacher's own knowledge here, so they are checked against themselves only.
        if verdict := text_verdict(text, known=text):
            raise Rejection(verdict, text)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{label}.txt"
    path.write_text("".join(f"{facet}: {text}\n" for facet, text in sheet.items()), encoding="utf-8")
    return path


def _path(label: str, folder: Path | None) -> Path:
    for place in filter(None, (folder, SHEETS)):
        path = place / f"{label}.txt"
        if path.is_file() and path.parent == place:
            return path
    known = ", ".join(sorted(path.stem for path in SHEETS.glob("*.txt")))
    raise DatasetError("no_sheet", f"There is no knowledge sheet for {label!r} (known: {known}). Write {label}.txt.")

"""The tab that captions many pictures: a folder of the server, a zip or files in; a table, and files to download, out.

The work is `serve.batch`'s. Knows nothing about other tabs.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from assistant.chat import CAPTION_PROMPT
from assistant.errors import ConfigError, MaemiError
from serve.batch.archive import unpack
from serve.batch.background import Batches, CaptionBatch
from serve.batch.caption_rows import fact_columns, write_rows
from serve.batch.roots import Roots
from serve.desk.answering import Question, parse_pixel_size
from serve.page.captions_report import captions_report
from serve.page.intake import Intake, picture_files, pixel_size, user_of
from serve.page.mounting import Blocks
from serve.page.sessions import keeper_of, owner_of
from serve.page.tables import (
    ALL_ROWS,
    DOUBTFUL,
    FAILED,
    SHOWN,
    UNCALIBRATED,
    batch_line,
    captions_table,
    chosen_rows,
    empty,
    heading,
)
from serve.page.uploads import PICTURES, SIDECARS, remove, small_jpeg

if TYPE_CHECKING:
    from assistant.measure import Facts
    from assistant.micrograph import Micrograph
    from serve.desk.desk import Desk

WATCHED_S = 1.0
"""Time between two looks at a batch that runs [s]."""
FOLLOWED = 1000
"""Rows up to which the table follows a batch that runs; a longer one waits for its end or a touch."""
_FORMS = {
    "csv": "CSV for spreadsheets",
    "plain.csv": "CSV without BOM",
    "jsonl": "JSONL",
    "parquet": "Parquet",
    "html": "report (HTML)",
}
_FIRST = 4
"""Columns of facts shown if nobody chose any."""
EMPTY = empty("No captions yet.", "Add micrographs or a zip, or name a folder of the server, and press the button.")


class Captions:
    """What the buttons do."""

    def __init__(self, intake: Intake, batches: Batches | None, roots: Roots) -> None:
        self._intake, self._desk, self.roots = intake, intake.desk, roots
        self._batches = batches or Batches(intake.workspace.kept / "batches")

    @property
    def routes(self) -> list[Route]:
        """The addresses of tables to download."""
        return [Route("/captions/{id}/{form}", self._download, methods=["GET"])]

    def begin(self, files: list[str] | None, folder: str, size: str, request: gr.Request) -> Any:
        """Begin a batch, or continue that of the same folder: the choice of batches with it chosen."""
        nm, owner, model = parse_pixel_size(size), _keeper(request), _model_of(self._desk)
        if bool(files) == bool(folder.strip()):
            raise ConfigError("no_picture", "Add micrographs or a zip, or name a folder of the server; one of them.")
        if folder.strip():
            place, root = self.roots.find(folder)
            title = place.name if place == root else f"{root.name}/{place.relative_to(root)}"
            id = self._batches.begin(owner, title, place, model=model, within=root, pixel_size_nm=nm)
        else:
            place, notes, title = self._staged(files or [], request)
            id = self._batches.begin(owner, title, place, model=model, pixel_size_nm=nm, notes=notes)
        self._work(id, request)
        return self._choice(request, id)

    def resume(self, id: str | None, request: gr.Request) -> Any:
        """Continue a batch that was stopped."""
        batch = self._batches.state(_keeper(request), id or "")
        if not Path(batch.folder).is_dir():
            raise ConfigError("expired", "The pictures of this batch were cleared. Add them again; its table stays.")
        if batch.model != _model_of(self._desk):
            raise ConfigError("other_model", "Another model wrote this batch. Begin a new one; its table stays.")
        if batch.within and Path(batch.within) not in self.roots.paths:
            raise ConfigError("outside", "The folder of this batch may no longer be read from the page.")
        self._work(batch.id, request)
        return self._choice(request, batch.id)

    def stop(self, id: str | None, request: gr.Request) -> None:
        """Let a batch end with the picture at hand."""
        self._batches.stop(_keeper(request), id or "")

    def forget(self, id: str | None, request: gr.Request) -> Any:
        """Remove what is kept of a batch: the choice of those that are left."""
        self._batches.delete(_keeper(request), id or "")
        return self._choice(request, None)

    def restore(self, request: gr.Request) -> Any:
        """The choice of batches, the newest chosen: what a page that is loaded begins with."""
        return self._choice(request, None)

    def show(
        self, id: str | None, words: str, only: str, told: str, facts: list[str], page: float, request: gr.Request
    ) -> list[Any]:
        """A batch: how far it is, a page of its table, its downloads, what can be done with it."""
        if not id:
            hidden = gr.update(visible=False)
            return [EMPTY, "", *[hidden] * 5, gr.Timer(active=False), 1, gr.update(choices=[], value=[])]
        owner, order = _keeper(request), told.partition("\n")[0] or "path"
        batch = self._batches.state(owner, id)
        rows = self._batches.rows(owner, id)
        columns = [name for name in fact_columns(rows) if name != "warnings"]
        shown = [name for name in facts if name in columns] or _telling(
            columns, [row.facts for row in rows if not row.error]
        )
        found = chosen_rows(rows, words, only, order)
        pages = max(1, -(-len(found) // SHOWN))
        page = min(max(1, int(page)), pages)
        first = (page - 1) * SHOWN
        part = found[first : first + SHOWN]
        table = captions_table(part, shown, order, partial(self._batches.thumbnail, owner, id)) if rows else ""
        links = "".join(
            f'<a class="maemi-view" href="captions/{quote(id)}/{form}" download>{words_}</a>'
            for form, words_ in _FORMS.items()
        )
        counted = f"{first + 1}–{first + len(part)} of {len(found)}" if part else "No row fits."
        above = f'<p class="maemi-views">Download {links} <span>{counted}</span></p>' if rows else ""
        return [
            batch_line(batch, len(rows)),
            above + table,
            gr.update(visible=batch.running),
            gr.update(visible=not batch.running and not batch.finished),
            gr.update(visible=True),
            gr.update(visible=bool(rows)),
            gr.update(visible=pages > 1),
            gr.Timer(active=batch.running),
            page,
            gr.update(choices=[(heading(name), name) for name in columns], value=[n for n in facts if n in columns]),
        ]

    def watch(
        self, id: str | None, words: str, only: str, told: str, facts: list[str], page: float, request: gr.Request
    ) -> list[Any]:
        """What `show` gives while a batch runs; only its line where the table is too long to be drawn every second."""
        batch = self._batches.state(_keeper(request), id) if id else None
        if batch is not None and batch.running and batch.done > FOLLOWED:
            return [batch_line(batch, batch.done), *[gr.skip()] * 9]
        return self.show(id, words, only, told, facts, page, request)

    def _staged(self, files: Sequence[str], request: gr.Request) -> tuple[Path, tuple[str, ...], str]:
        """One folder with all that was sent, zips unpacked; sentences about what was left out; a title."""
        paths = self._intake.stage(files, request)
        if not paths:
            raise ConfigError("no_picture", "Only side-cars were added. Add the pictures too.")
        place, notes = Path(os.path.commonpath([path.parent for path in paths])), []
        try:
            for archive in (path for path in paths if path.suffix.lower() == ".zip"):
                notes += unpack(archive, archive.with_suffix(""), {*PICTURES, *SIDECARS})
                archive.unlink()
        except ConfigError:
            remove(place)
            raise
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        return place, tuple(notes), f"{paths[0].name}{more}"

    def _work(self, id: str, request: gr.Request) -> None:
        desk, user = self._desk, user_of(request)
        self._batches.run(_keeper(request), id, lambda stop, small: _Patient(desk, user, stop, small))

    def _choice(self, request: gr.Request, id: str | None) -> Any:
        batches = self._batches.listed(_keeper(request))
        choices = [(_named(batch), batch.id) for batch in batches]
        chosen = id or next((value for _, value in choices), None)
        return gr.Dropdown(choices=choices, value=chosen, visible=bool(choices))

    def _download(self, request: Request) -> Response:
        """A table as a file, of what is finished."""
        id, form = request.path_params["id"], request.path_params["form"]
        try:
            if form not in _FORMS:
                raise ConfigError("not_found", "There is no such table.")
            batch, rows = self._batches.state(_keeper(request), id), self._batches.rows(_keeper(request), id)
        except MaemiError as error:
            return JSONResponse({"error": {"code": error.code, "message": error.message}}, 404)
        suffix = form.rpartition(".")[2]
        descriptor, name = tempfile.mkstemp(suffix=f".{suffix}")
        os.close(descriptor)
        if form == "html":
            with open(name, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(captions_report(batch, rows, partial(self._batches.thumbnail, _keeper(request), id)))
        else:
            write_rows(Path(name), rows, facts=fact_columns(rows), mark=form == "csv")
        stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in batch.title)[:60].strip("-.") or "captions"
        after = BackgroundTask(Path(name).unlink, missing_ok=True)
        headers = {"cache-control": "no-store"}
        return FileResponse(name, filename=f"{stem}-captions.{suffix}", headers=headers, background=after)


class _Patient:
    """The server's model as a batch uses it: picture by picture, after whoever asks in the meantime."""

    def __init__(self, desk: Desk, user: str, stop: threading.Event, small: Path) -> None:
        self._desk, self._user, self._stop, self._small = desk, user, stop, small

    def caption(self, images: Sequence[Micrograph]) -> list[str]:
        """One caption per image. Raises Stopped where it was not yet its turn when somebody stopped the batch."""
        said = []
        for image in images:
            with self._desk.gate.patient_turn(self._stop):
                said += self._desk.answerer.caption([image])
            question = Question([image], CAPTION_PROMPT)
            self._desk.record(question, said[-1], user=self._user, outcome="answered")
            (self._small / f"{image.sha256}.jpg").write_bytes(small_jpeg(image))
        return said

    def facts_of(self, image: Micrograph) -> Facts:
        """What was measured in an image."""
        return self._desk.answerer.facts_of(image)


def captions_tab(blocks: Blocks, page: Captions) -> None:
    """What is to be captioned to the left, the batch to the right."""
    folders = bool(page.roots.paths)
    with gr.Row(elem_classes="maemi-columns"):
        with gr.Column(scale=3, min_width=280):
            files = picture_files("Micrographs, or a zip of them", ".zip")
            hint = "A folder that the server may read" if folders else "Needs `maemi serve --folders`"
            folder = gr.Textbox(label="Or a folder on the server", placeholder=hint, max_lines=1, interactive=folders)
            size = pixel_size()
            start = gr.Button("Write captions", variant="primary")
            chosen = gr.Dropdown([], label="Batches", visible=False)
            with gr.Row():
                stop = gr.Button("Stop", size="sm", visible=False)
                resume = gr.Button("Continue", size="sm", visible=False)
                forget = gr.Button("Delete this table", size="sm", variant="stop", visible=False)
        with gr.Column(scale=8, min_width=300, elem_classes="maemi-results"):
            line = gr.HTML(EMPTY, elem_classes="maemi-card")
            with gr.Row(visible=False, elem_classes="maemi-filters") as filters:
                words = gr.Textbox(
                    "", label="Filter", placeholder="Words in the name or the caption", max_lines=1, scale=3
                )
                only = gr.Dropdown(
                    [ALL_ROWS, FAILED, DOUBTFUL, UNCALIBRATED], value=ALL_ROWS, label="Show", min_width=120
                )
                facts = gr.Dropdown([], value=[], label="Columns; none: the usual ones", multiselect=True, scale=3)
            table = gr.HTML("", elem_classes="maemi-bare")
            with gr.Row(visible=False) as pager:
                before, after = gr.Button("Earlier rows", size="sm"), gr.Button("Later rows", size="sm")
    order = gr.Textbox("", visible="hidden", show_label=False, elem_classes="maemi-told-sort")
    number, timer = gr.Number(1, visible=False), gr.Timer(WATCHED_S, active=False)
    asked = [chosen, words, only, order, facts, number]
    shown = [line, table, stop, resume, forget, filters, pager, timer, number, facts]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    begun = start.click(page.begin, [files, folder, size], chosen, show_progress="minimal", api_name="captions")
    again = resume.click(page.resume, chosen, chosen, show_progress="minimal", api_name="resume_captions")
    gone = forget.click(page.forget, chosen, chosen, js=_SURE, **quiet)
    ended = stop.click(page.stop, chosen, None, show_progress="hidden", api_name="stop_captions")
    loaded = blocks.load(page.restore, None, chosen, **quiet)
    for event in (begun, again, gone, ended, loaded):
        event.success(page.show, asked, shown, **quiet)
    chosen.input(page.show, asked, shown, show_progress="hidden", api_name="batch")
    for change in (words.change, only.input, order.change, facts.input):
        change(page.show, asked, shown, **quiet)
    timer.tick(page.watch, asked, shown, **quiet)
    for button, step in ((before, -1), (after, 1)):
        moved = button.click(partial(turned, step), number, number, queue=False, **quiet)
        moved.then(page.show, asked, shown, **quiet)


_SURE = "(...given) => { if (!confirm('Delete this table? The pictures stay.')) throw 'kept'; return given; }"


def _keeper(request: gr.Request | Request) -> str:
    return keeper_of(request) or owner_of(request)


def _model_of(desk: Desk) -> str:
    """What names the weights behind the desk."""
    from serve.batch.journal import run_digest

    run = getattr(desk.answerer, "run", None)
    return run_digest(run.path) if run is not None and run.path is not None else desk.answerer.name


def _named(batch: CaptionBatch) -> str:
    return f"{batch.title}, {batch.begun_at[:16].replace('T', ' ')}"


def _telling(columns: Sequence[str], facts: Sequence[Any]) -> list[str]:
    """The first columns that most pictures fill."""
    return [name for name in columns if 2 * sum(name in row for row in facts) > len(facts)][:_FIRST]


def turned(step: int, at: Any) -> int:
    """The number of another page of the table. Raises ConfigError `bad_page`."""
    if not isinstance(at, int | float):
        raise ConfigError("bad_page", "A page of the table is named by its number.")
    return max(1, int(at) + step)

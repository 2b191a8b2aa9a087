"""The tab that writes captions: files in, one row each, tables to download. Knows nothing about other tabs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from assistant.chat import CAPTION_PROMPT
from assistant.errors import ConfigError, MicrographError
from serve.batch.caption_rows import CaptionRow, write_rows
from serve.desk.answering import Question
from serve.page.intake import Intake, picture_files, pixel_size, user_of
from serve.page.panel import caption_table, thumbnail
from serve.page.sessions import owner_of


class Captions:
    """What the buttons do."""

    def __init__(self, intake: Intake) -> None:
        self._intake, self._desk = intake, intake.desk

    def captions(self, files: list[str] | None, size: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Caption files one after another: table, two files to download."""
        paths = self._intake.stage(files, request)
        if not paths:
            raise ConfigError("no_picture", "Add micrographs first.")
        rows: list[tuple[CaptionRow, str]] = []
        waiting = gr.DownloadButton(interactive=False)
        for path in paths:
            yield caption_table(rows, of=len(paths)), waiting, waiting
            try:
                (micrograph,) = self._intake.read([path], size)
            except MicrographError as error:
                rows.append((CaptionRow(path.name, None, None, None, None, str(error)), ""))
                continue
            with self._desk.gate.turn():
                (caption,) = self._desk.answerer.caption([micrograph])
            asked = Question([micrograph], CAPTION_PROMPT)
            self._desk.record(asked, caption, user=user_of(request), outcome="answered")
            known = micrograph.calibration
            nm, confidence = (known.nm_per_pixel, known.confidence) if known else (None, None)
            row = CaptionRow(path.name, micrograph.sha256, caption, nm, confidence, None)
            rows.append((row, thumbnail(micrograph)))
        folder = self._intake.workspace.folder(owner_of(request))
        for name in ("captions.csv", "captions.jsonl"):
            write_rows(folder / name, (row for row, _ in rows))
        ready = (
            gr.DownloadButton(value=str(folder / f"captions.{kind}"), interactive=True) for kind in ("csv", "jsonl")
        )
        yield caption_table(rows, of=len(paths)), *ready


def captions_tab(intake: Intake) -> None:
    """Files and buttons to the left, the table to the right."""
    page = Captions(intake)
    with gr.Row(elem_classes="maemi-columns"):
        with gr.Column(scale=3, min_width=280):
            files, size = picture_files("Micrographs"), pixel_size()
            start = gr.Button("Write captions", variant="primary")
            with gr.Row():
                table = gr.DownloadButton("Download CSV", interactive=False, size="md")
                lines = gr.DownloadButton("Download JSONL", interactive=False, size="md")
        with gr.Column(scale=8, min_width=300):
            shown = gr.HTML(caption_table([], of=0), elem_classes="maemi-card")
    start.click(page.captions, [files, size], [shown, table, lines], show_progress="minimal", api_name="captions")

"""The tab that sorts files into labels, by words or by examples. Knows nothing about other tabs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from assistant.errors import ConfigError
from serve.desk.answering import classify_files, parse_labels, parse_pixel_size
from serve.page.intake import Intake, picture_files, pixel_size
from serve.page.panel import class_table

Examples = dict[str, tuple[Path, ...]]


class Classify:
    """What the buttons do."""

    def __init__(self, intake: Intake) -> None:
        self._intake, self._desk = intake, intake.desk

    def add_examples(
        self, label: str, files: list[str] | None, examples: Examples, request: gr.Request
    ) -> Iterator[tuple[Examples, str, None]]:
        """Remember example files of a label: examples, their summary, the emptied file field."""
        new = self._intake.stage(files, request)
        if not label.strip() or not new:
            raise ConfigError("no_example", "Name the label and add its pictures, then press the button.")
        examples = examples | {label.strip(): (*examples.get(label.strip(), ()), *new)}
        yield examples, ", ".join(f"{name}: {len(paths)}" for name, paths in examples.items()), None

    def classify(
        self, files: list[str] | None, labels: str, examples: Examples, size: str, request: gr.Request
    ) -> Iterator[str]:
        """Classify files one after another: table."""
        paths, names = self._intake.stage(files, request), parse_labels(labels)
        if not paths:
            raise ConfigError("no_picture", "Add micrographs first.")
        results: list[dict[str, Any]] = []
        for path in paths:
            yield class_table(results, of=len(paths))
            with self._desk.gate.turn():
                results += classify_files(
                    self._desk.answerer,
                    [path],
                    names,
                    examples=examples or None,
                    pixel_size_nm=parse_pixel_size(size),
                    read=self._desk.reader,
                )
        yield class_table(results, of=len(paths))


def classify_tab(intake: Intake) -> None:
    """Files, labels and examples to the left, the table to the right."""
    page = Classify(intake)
    examples = gr.State({})
    with gr.Row(elem_classes="maemi-columns"):
        with gr.Column(scale=3, min_width=280):
            files = picture_files("Micrographs")
            labels = gr.Textbox(label="Labels, separated by commas", placeholder="particles, fibres, porous sponge")
            with gr.Accordion("Examples (few-shot)", open=False):
                gr.Markdown(
                    "A few pictures of each label let the model compare instead of guess. Without examples it goes by "
                    "the words alone."
                )
                label = gr.Textbox(label="Label", max_lines=1)
                shots = picture_files("Pictures of this label")
                add = gr.Button("Add examples", size="sm")
                have = gr.Textbox(label="Examples so far", interactive=False, max_lines=3)
            size = pixel_size()
            start = gr.Button("Classify", variant="primary")
        with gr.Column(scale=8, min_width=300):
            shown = gr.HTML(class_table([], of=0), elem_classes="maemi-card")
    add.click(page.add_examples, [label, shots, examples], [examples, have, shots], api_name="add_examples")
    start.click(page.classify, [files, labels, examples, size], shown, show_progress="minimal", api_name="classify")

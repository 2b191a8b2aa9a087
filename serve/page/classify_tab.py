"""The tab that sorts pictures: by words, by examples, or by a fitted run; what a person corrects is kept and counted.

Knows nothing about other tabs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gradio as gr
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from assistant.errors import ConfigError, MicrographError
from serve.batch.caption_rows import csv_cell
from serve.desk.answering import parse_labels, read_images
from serve.desk.sortings import Sorted, Sortings
from serve.page.intake import Intake, picture_files, pixel_size
from serve.page.mounting import Blocks
from serve.page.sessions import keeper_of, owner_of
from serve.page.tables import confusion_table, empty, labels_table
from serve.page.uploads import sidecars_of, small_jpeg

if TYPE_CHECKING:
    from assistant.micrograph import Micrograph
    from training.applied import Applied

BY_LABELS, BY_RUN = "Labels", "Fitted run"
LABEL = "label"
"""Name of the target where labels are typed."""
SUGGESTED = 10
EMPTY = empty("No classes yet.", "Add micrographs, name two or more labels and press the button.")


class Classify:
    """What the buttons do."""

    def __init__(self, intake: Intake) -> None:
        self._intake, self._desk = intake, intake.desk

    @cached_property
    def _kept(self) -> Sortings:
        if self._desk.sortings is not None:
            return self._desk.sortings
        kept = self._intake.workspace.kept
        kept.mkdir(mode=0o700, exist_ok=True)
        return Sortings(kept / "sortings.sqlite", kept / "sorted")

    @property
    def fitted(self) -> Applied | None:
        """The fitted run that is served."""
        return getattr(self._desk.answerer, "judge", None)

    @property
    def routes(self) -> list[Route]:
        """The address of the corrections to download."""
        return [Route("/sorted.csv", self._download, methods=["GET"])]

    def restore(self, request: gr.Request) -> tuple[str, str, str]:
        """Labels, examples and table as their owner left them."""
        owner = _keeper(request)
        return self._kept.labels(owner), self._summary(owner), self._table(owner)

    def add_examples(self, label: str, files: list[str] | None, request: gr.Request) -> tuple[str, None]:
        """Keep example files of a label: their summary, the emptied file field."""
        owner, new = _keeper(request), self._intake.stage(files, request)
        if not label.strip() or not new:
            raise ConfigError("no_example", "Name the label and add its pictures, then press the button.")
        for path in new:
            read_images([path], read=self._desk.reader)  # what cannot be read is said now, not at every later turn
        kept = [self._kept.keep(owner, path, sidecars_of(path)) for path in new]
        self._kept.add_examples(owner, label.strip(), kept)
        return self._summary(owner), None

    def adopt(self, request: gr.Request) -> str:
        """Let every picture whose label a person said be an example of it: the summary."""
        owner = _keeper(request)
        said = [(row.corrected[LABEL], row.path) for row in self._kept.listed(owner) if LABEL in row.corrected]
        if not said:
            raise ConfigError("no_example", "Nothing was corrected yet. Say in the table what a picture really is.")
        for label, path in said:
            self._kept.add_examples(owner, label, [path])
        return self._summary(owner)

    def forget_examples(self, request: gr.Request) -> str:
        """Forget all examples: the empty summary."""
        self._kept.remove_examples(_keeper(request))
        return ""

    def classify(self, files: list[str] | None, by: str, labels: str, size: str, request: gr.Request) -> Iterator[str]:
        """Sort files one after another: the table. Without files, those of the table are sorted anew."""
        owner, paths = _keeper(request), self._intake.stage(files, request)
        examples = self._kept.examples(owner)
        names = [] if by == BY_RUN else parse_labels(labels or ",".join(examples))
        kept = [self._kept.keep(owner, path, sidecars_of(path)) for path in paths]
        kept = kept or [row.path for row in self._kept.listed(owner)]
        if not kept:
            raise ConfigError("no_picture", "Add micrographs first.")
        self._kept.set_labels(owner, labels)
        if missing := [name for name in names if examples and name not in examples]:
            raise ConfigError("no_examples", f"{', '.join(missing)}: no examples yet. Add some of each label, or none.")
        for done, path in enumerate(kept):
            yield f'<p class="maemi-progress" role="status">{done} of {len(kept)} …</p>{self._table(owner)}'
            try:
                (micrograph,) = self._intake.read([path], size)
                with self._desk.gate.turn():
                    targets = self._told(micrograph, names, examples)
            except MicrographError as error:
                self._kept.add(owner, path, sha256=None, targets=[], error=error.message)
                continue
            small = small_jpeg(micrograph)
            self._kept.add(owner, path, sha256=micrograph.sha256, targets=targets, thumbnail=small)
        yield f'<p class="maemi-progress" role="status">{len(kept)} done</p>{self._table(owner)}'

    def correct(self, told: str, request: gr.Request) -> str:
        """Keep what a person says of a target of a picture: the table with the confusion."""
        number, target, words = [*told.partition("\n")[0].split("\t"), "", "", ""][:3]
        if not number.isdecimal():
            raise ConfigError("bad_call", "The request does not fit the page. Reload the page and try again.")
        owner = _keeper(request)
        self._kept.correct(owner, int(number), target, words)
        return self._table(owner)

    def clear(self, request: gr.Request) -> tuple[str, str, str]:
        """Remove pictures, examples and corrections: what `restore` gives then."""
        self._kept.clear(_keeper(request))
        return self.restore(request)

    def next(self, request: gr.Request) -> Any:
        """Which pictures to label next: the far and unsure ones of a fitted run, else those that are least sure."""
        rows = [row for row in self._kept.listed(_keeper(request)) if not row.error and not row.corrected]
        by_path = {str(row.path): row for row in rows}
        if not rows:
            raise ConfigError("no_picture", "Nothing is left to label. Sort some pictures first.")
        lines = []
        if self.fitted is not None and all(row.targets[0]["name"] != LABEL for row in rows):
            from training.survey import Survey

            with self._desk.gate.turn():
                chosen = Survey(self.fitted, [row.path for row in rows]).next(SUGGESTED)
            lines = [
                (by_path[s.path], f"unsure {s.uncertainty:.2f}, {s.distance:.2f} from all that is known")
                for s in chosen
            ]
        else:
            unsure = sorted(rows, key=_sureness)[:SUGGESTED]
            lines = [(row, f"{row.targets[0]['verdict']}, {_sureness(row):.0%} sure") for row in unsure]
        items = "".join(f"<li><b>{escape(row.name)}</b> {escape(why)}</li>" for row, why in lines)
        told = f"<ol>{items}</ol>" if items else "<p>Every picture is labelled, or like one that is.</p>"
        return gr.HTML(f'<div class="maemi-next"><p>Label these next</p>{told}</div>', visible=True)

    def _told(
        self, micrograph: Micrograph, names: Sequence[str], examples: Mapping[str, Sequence[Path]]
    ) -> list[dict[str, Any]]:
        """What is predicted of one picture, as `maemi predict` writes it."""
        if not names:
            if self.fitted is None:
                raise ConfigError("no_run", "No fitted run is served. Whoever runs the server names one by --run.")
            from training.pictures import computed

            prediction = self.fitted.predictor.predict([computed(micrograph, self.fitted.extractor)])[0]
            return [target.as_dict() for target in prediction.targets]
        shown = {label: read_images(examples[label], read=self._desk.reader) for label in names} if examples else None
        (scores,) = self._desk.answerer.classify([micrograph], names, examples=shown)
        told = [{"label": label, "probability": probability} for label, probability in scores]
        return [{"name": LABEL, "verdict": scores[0][0], "scores": told}]

    def _table(self, owner: str) -> str:
        rows = self._kept.listed(owner)
        if not rows:
            return EMPTY
        examples, labels = self._kept.examples(owner), self._kept.labels(owner)
        words = [label.strip() for label in labels.split(",") if label.strip()]
        for row in rows:
            words += [score["label"] for target in row.targets for score in target.get("scores") or ()]
            words += row.corrected.values()
        names = [name for name in dict.fromkeys([*words, *examples]) if name != "unknown"]
        thumbnails = {row.sha256: row.thumbnail for row in rows}
        pairs = [
            (said, target["verdict"])
            for row in rows
            for target in row.targets
            if "verdict" in target and (said := row.corrected.get(target["name"]))
        ]
        said_all = any(row.corrected for row in rows)
        link = '<a class="maemi-view" href="sorted.csv" download>Download what you said (CSV)</a>' if said_all else ""
        shown = labels_table([asdict(row) for row in rows], names, thumbnails.get)
        return f'{confusion_table(pairs)}<p class="maemi-views">{link}</p>{shown}'

    def _summary(self, owner: str) -> str:
        return ", ".join(f"{name}: {len(paths)}" for name, paths in self._kept.examples(owner).items())

    def _download(self, request: Request) -> Response:
        """What a person says of each picture and what was predicted, a line per target."""
        buffer = io.StringIO()
        table = csv.writer(buffer)
        table.writerow(["picture", "sha256", "target", "said", "predicted"])
        for row in self._kept.listed(_keeper(request)):
            for target in row.targets:
                said = row.corrected.get(target["name"])
                if said:
                    predicted = target["verdict"] if "verdict" in target else target["value"]
                    cells = (row.name, row.sha256, target["name"], said, predicted)
                    table.writerow([csv_cell(cell) for cell in cells])
        headers = {"content-disposition": 'attachment; filename="sorted.csv"', "cache-control": "no-store"}
        return Response("\ufeff" + buffer.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def classify_tab(blocks: Blocks, page: Classify) -> None:
    """Files, labels and examples to the left, the table to the right."""
    ways = [BY_LABELS, BY_RUN] if page.fitted is not None else [BY_LABELS]
    with gr.Row(elem_classes="maemi-columns"):
        with gr.Column(scale=3, min_width=280):
            files = picture_files("Micrographs")
            by = gr.Radio(ways, value=ways[-1], label="Sort by", visible=len(ways) > 1)
            with gr.Column(visible=ways[-1] == BY_LABELS) as typed:
                labels = gr.Textbox(label="Labels, separated by commas", placeholder="particles, fibres, porous sponge")
                with gr.Accordion("Examples (few-shot)", open=False):
                    gr.Markdown(
                        "A few pictures of each label let the model compare instead of guess. Without examples it "
                        "goes by the words alone."
                    )
                    label = gr.Textbox(label="Label", max_lines=1, max_length=200)
                    shots = picture_files("Pictures of this label")
                    add = gr.Button("Add examples", size="sm")
                    have = gr.Textbox(label="Examples so far", interactive=False, max_lines=3)
                    with gr.Row():
                        adopt = gr.Button("Add all corrected", size="sm")
                        forget = gr.Button("Forget examples", size="sm")
            size = pixel_size()
            start = gr.Button("Classify", variant="primary")
            with gr.Row():
                following = gr.Button("Label these next", size="sm")
                clear = gr.Button("Clear all", size="sm", variant="stop")
        with gr.Column(scale=8, min_width=300, elem_classes="maemi-results"):
            suggested = gr.HTML("", visible=False, elem_classes="maemi-card")
            shown = gr.HTML(EMPTY, elem_classes="maemi-card")
    told = gr.Textbox("", visible="hidden", show_label=False, elem_classes="maemi-told-correction")
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    by.change(lambda way: gr.Column(visible=way == BY_LABELS), by, typed, queue=False, **quiet)
    add.click(page.add_examples, [label, shots], [have, shots], api_name="add_examples")
    adopt.click(page.adopt, None, have, **quiet)
    forget.click(page.forget_examples, None, have, show_progress="hidden", api_name="forget_examples")
    start.click(page.classify, [files, by, labels, size], shown, show_progress="minimal", api_name="classify")
    told.change(page.correct, told, shown, show_progress="hidden", api_name="correct_label")
    following.click(page.next, None, suggested, show_progress="minimal", api_name="label_next")
    clear.click(page.clear, None, [labels, have, shown], js=_SURE, **quiet)
    blocks.load(page.restore, None, [labels, have, shown], **quiet)


_SURE = (
    "(...given) => { if (!confirm('Delete pictures, examples and corrections for good?')) throw 'kept'; return given; }"
)


def _keeper(request: gr.Request | Request) -> str:
    return keeper_of(request) or owner_of(request)


def _sureness(row: Sorted) -> float:
    """Probability of the verdict: 0 for unknown."""
    first = row.targets[0]
    known = {score["label"]: score["probability"] for score in first["scores"]}
    return 0.0 if first["verdict"] == "unknown" else cast("float", known.get(first["verdict"], 0.0))

"""The page: chat about micrographs, caption many, classify them; and the server application it is mounted in.

Self-hosted to the last byte. Knows nothing about models beyond the Answerer behind the desk, and never hands a
browser anything but pictures we made and text that is escaped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_upload_folder

from assistant.chat import CAPTION_PROMPT, Message
from assistant.errors import ConfigError, MicrographError
from serve.batch.caption_rows import CaptionRow, write_rows
from serve.desk.answering import Proof, Question, classify_files, parse_labels, parse_pixel_size, read_images
from serve.desk.desk import Desk
from serve.http.api import build_api
from serve.http.guard import App, Credentials, Guard
from serve.page.mounting import Blocks, as_text, mount
from serve.page.panel import EMPTY, caption_table, class_table, panel, thumbnail
from serve.page.sessions import MAX_FILES, owner_of
from serve.page.uploads import LIFETIME_S, PICTURES, SIDECARS, Workspace

if TYPE_CHECKING:
    from assistant.micrograph import Micrograph

MAX_QUESTION = 2000
REFRESH_S = 0.05
"""Shortest time between two updates of an answer that is being written [s]."""
SUGGESTIONS = (
    CAPTION_PROMPT,
    "How many structures are there?",
    "How large are the structures?",
    "What does the surface look like?",
)
PLACEHOLDER = (
    "**Ask about a micrograph**\n\nDrop a TIFF, PNG, JPEG or BMP here, 8 to 32 bit, with its side-car file if it has "
    "one. Everything stays on this machine."
)


@dataclass(frozen=True)
class Talk:
    """One conversation, kept on the server."""

    pictures: tuple[Path, ...] = ()
    turns: tuple[Message, ...] = ()
    """Finished turns, then the question that waits for its answer."""
    shown: tuple[dict[str, Any], ...] = ()
    """The messages on the page."""


class Page:
    """What the buttons do; every method yields the new values of its outputs."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.workspace = Workspace(get_upload_folder())

    def take(
        self, typed: Mapping[str, Any], talk: Talk, size: str, request: gr.Request
    ) -> Iterator[tuple[gr.MultimodalTextbox, list[Any], Talk]]:
        """Take a question and its files into the conversation: text field, chat, talk."""
        text, owner = (typed.get("text") or "").strip(), owner_of(request)
        new = self._stage(typed.get("files") or [], owner)
        if not new and not talk.pictures:
            raise ConfigError("no_picture", "Add a micrograph first, with the clip beside the text field.")
        if len(text) > MAX_QUESTION:
            raise ConfigError("too_long", f"The question has more than {MAX_QUESTION} characters. Make it shorter.")
        content = [
            {"path": str(self.workspace.picture(m, owner)), "alt_text": path.name}
            for path, m in zip(new, self._read(new, size), strict=True)
        ]
        turns, waiting = talk.turns, 0
        if turns and turns[-1].role == "user":  # its answer failed or was stopped: its pictures stay, it goes
            turns, waiting = turns[:-1], turns[-1].images
        question = Message("user", text or CAPTION_PROMPT, images=len(new) + waiting)
        shown = (*talk.shown, {"role": "user", "content": [*content, as_text(question.text)]})
        box = gr.MultimodalTextbox(value={"text": "", "files": []}, submit_btn=False, stop_btn=True)
        yield box, list(shown), Talk((*talk.pictures, *new), (*turns, question), shown)

    def respond(self, talk: Talk, size: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Answer the question that waits: chat, talk, panel."""
        if not talk.turns:
            raise ConfigError("no_question", "Ask something about a micrograph first.")
        micrographs = self._read(talk.pictures, size)
        *history, question = talk.turns
        said, told_at = "", time.monotonic()
        proof: Proof | None = None
        with self._desk.gate.turn():
            cards = self._cards(talk.pictures, micrographs)
            yield list(talk.shown), talk, panel(cards)
            for item in self._desk.answer(Question(micrographs, question.text, tuple(history)), user=_user(request)):
                if isinstance(item, Proof):
                    proof = item
                    continue
                said += item
                if time.monotonic() - told_at > REFRESH_S:
                    told_at = time.monotonic()
                    yield [*talk.shown, _answer(said)], gr.skip(), gr.skip()
        shown = (*talk.shown, _answer(said or "(no answer)"))
        answered = replace(talk, turns=(*talk.turns, Message("assistant", said)), shown=shown)
        beside_pictures = {text for m in micrographs for text in m.warnings}
        warnings = [text for text in proof.warnings if text not in beside_pictures] if proof else []
        yield list(shown), answered, panel(cards, warnings, proof.statements if proof else [])

    def recalibrate(self, talk: Talk, size: str) -> Iterator[str]:
        """Show the panel with another pixel size."""
        micrographs = self._read(talk.pictures, size)
        with self._desk.gate.turn():
            yield panel(self._cards(talk.pictures, micrographs))

    def captions(self, files: list[str] | None, size: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Caption files one after another: table, two files to download."""
        paths = self._stage(files or [], owner_of(request))
        if not paths:
            raise ConfigError("no_picture", "Add micrographs first.")
        rows: list[tuple[CaptionRow, str]] = []
        waiting = gr.DownloadButton(interactive=False)
        for path in paths:
            yield caption_table(rows, of=len(paths)), waiting, waiting
            try:
                (micrograph,) = self._read([path], size)
            except MicrographError as error:
                rows.append((CaptionRow(path.name, None, None, None, None, str(error)), ""))
                continue
            with self._desk.gate.turn():
                (caption,) = self._desk.answerer.caption([micrograph])
            asked = Question([micrograph], CAPTION_PROMPT)
            self._desk.record(asked, caption, user=_user(request), outcome="answered")
            known = micrograph.calibration
            nm, confidence = (known.nm_per_pixel, known.confidence) if known else (None, None)
            row = CaptionRow(path.name, micrograph.sha256, caption, nm, confidence, None)
            rows.append((row, thumbnail(micrograph)))
        folder = self.workspace.folder(owner_of(request))
        for name in ("captions.csv", "captions.jsonl"):
            write_rows(folder / name, (row for row, _ in rows))
        ready = (
            gr.DownloadButton(value=str(folder / f"captions.{kind}"), interactive=True) for kind in ("csv", "jsonl")
        )
        yield caption_table(rows, of=len(paths)), *ready

    def add_examples(
        self, label: str, files: list[str] | None, examples: dict[str, tuple[Path, ...]], request: gr.Request
    ) -> Iterator[tuple[dict[str, tuple[Path, ...]], str, None]]:
        """Remember example files of a label: examples, their summary, the emptied file field."""
        new = self._stage(files or [], owner_of(request))
        if not label.strip() or not new:
            raise ConfigError("no_example", "Name the label and add its pictures, then press the button.")
        examples = examples | {label.strip(): (*examples.get(label.strip(), ()), *new)}
        yield examples, ", ".join(f"{name}: {len(paths)}" for name, paths in examples.items()), None

    def classify(
        self,
        files: list[str] | None,
        labels: str,
        examples: dict[str, tuple[Path, ...]],
        size: str,
        request: gr.Request,
    ) -> Iterator[str]:
        """Classify files one after another: table."""
        paths, names = self._stage(files or [], owner_of(request)), parse_labels(labels)
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
                    read=self._desk.read,
                )
        yield class_table(results, of=len(paths))

    def _stage(self, files: Sequence[str], owner: str) -> list[Path]:
        if len(files) > MAX_FILES:
            raise ConfigError("too_many", f"More than {MAX_FILES} files at once. Use `maemi caption FOLDER` for many.")
        return self.workspace.stage(files, owner)

    def _read(self, paths: Sequence[Path], size: str) -> list[Micrograph]:
        """Read pictures; the given pixel size counts for those whose metadata carry none."""
        nm = parse_pixel_size(size)
        try:
            found = read_images(paths, read=self._desk.read)
            for number, (path, m) in enumerate(zip(paths, found, strict=True)):
                if nm is not None and (m.calibration is None or m.calibration.source == "banner"):
                    (found[number],) = read_images([path], pixel_size_nm=nm, read=self._desk.read)
            return found
        except FileNotFoundError:
            raise ConfigError("expired", "The pictures of this conversation were cleared. Add them again.") from None

    def _cards(self, paths: Sequence[Path], micrographs: Sequence[Micrograph]) -> list[tuple[str, Micrograph, Any]]:
        facts = map(self._desk.answerer.facts_of, micrographs)
        return list(zip((path.name for path in paths), micrographs, facts, strict=True))


def build_page(desk: Desk) -> Blocks:
    """The three tabs, wired."""
    page = Page(desk)
    blocks = Blocks(page.workspace, title="MAEMI", delete_cache=(3600, LIFETIME_S))
    with blocks:
        gr.HTML(
            '<header class="maemi-head"><h1>MAEMI</h1><p>Ask about electron micrographs. Nothing leaves this machine.'
            "</p></header>",
            elem_classes="maemi-bare",
        )
        with gr.Tabs():
            with gr.Tab("Chat"):
                _chat_tab(page)
            with gr.Tab("Captions"):
                _captions_tab(page)
            with gr.Tab("Classify"):
                _classify_tab(page)
        gr.HTML(
            f'<footer class="maemi-foot"><p>Model <b>{escape(desk.answerer.name)}</b>. Sizes and counts come from '
            "measurement, sentences from a language model that can be wrong: check an answer against the measured "
            "values before you rely on it. Not for safety-critical decisions.</p></footer>",
            elem_classes="maemi-bare",
        )
    return blocks


def build_app(desk: Desk, *, credentials: Credentials | None = None) -> App:
    """The whole server: API and page behind the guard."""
    api = build_api(desk)
    return Guard(mount(api, build_page(desk)), credentials=credentials, metrics=desk.metrics)


def _chat_tab(page: Page) -> None:
    talk = gr.State(Talk())
    with gr.Row(elem_classes="maemi-columns"):
        with gr.Column(scale=7, min_width=360):
            chat = gr.Chatbot(
                show_label=False,
                height="calc(100vh - 330px)",
                min_height=380,
                placeholder=PLACEHOLDER,
                buttons=["copy"],
                feedback_options=None,
                allow_file_downloads=False,
                allow_tags=False,
                render_markdown=False,
                latex_delimiters=[],
                elem_classes="maemi-chat",
            )
            box = gr.MultimodalTextbox(
                show_label=False,
                placeholder="Ask about the micrograph …",
                file_types=[*PICTURES, *SIDECARS],
                file_count="multiple",
                sources=["upload"],
                autofocus=True,
                elem_classes="maemi-box",
            )
            with gr.Row(elem_classes="maemi-suggestions"):
                suggestions = [gr.Button(text, size="sm", variant="secondary", min_width=60) for text in SUGGESTIONS]
        with gr.Column(scale=4, min_width=300):
            card = gr.HTML(EMPTY, elem_classes="maemi-card")
            size = gr.Textbox(label="Pixel size, for pictures that carry none", placeholder="4.2 nm", max_lines=1)
            clear = gr.Button("New conversation", size="sm")
    asked = box.submit(page.take, [box, talk, size], [box, chat, talk], show_progress="hidden", api_name="take")
    answering = asked.success(
        page.respond,
        [talk, size],
        [chat, talk, card],
        show_progress="minimal",
        show_progress_on=card,
        api_name="respond",
    )
    quiet: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    ready = {"fn": lambda: gr.MultimodalTextbox(submit_btn=True, stop_btn=False), "outputs": box, **quiet}
    answering.then(**ready, show_progress="hidden")
    box.stop(cancels=[answering], **ready, show_progress="hidden")
    for button, text in zip(suggestions, SUGGESTIONS, strict=True):
        button.click(None, box, box, js=f"typed => ({{text: {json.dumps(text)}, files: typed?.files ?? []}})")
    size.submit(page.recalibrate, [talk, size], card, api_name="recalibrate")
    clear.click(lambda: ([], Talk(), EMPTY), None, [chat, talk, card], cancels=[answering], **quiet)


def _captions_tab(page: Page) -> None:
    with gr.Row(elem_classes="maemi-columns"):
        with gr.Column(scale=3, min_width=280):
            files = _files("Micrographs")
            size = gr.Textbox(label="Pixel size, for pictures that carry none", placeholder="4.2 nm", max_lines=1)
            start = gr.Button("Write captions", variant="primary")
            with gr.Row():
                table = gr.DownloadButton("Download CSV", interactive=False, size="md")
                lines = gr.DownloadButton("Download JSONL", interactive=False, size="md")
        with gr.Column(scale=8, min_width=400):
            shown = gr.HTML(caption_table([], of=0), elem_classes="maemi-card")
    start.click(page.captions, [files, size], [shown, table, lines], show_progress="minimal", api_name="captions")


def _classify_tab(page: Page) -> None:
    examples = gr.State({})
    with gr.Row(elem_classes="maemi-columns"):
        with gr.Column(scale=3, min_width=280):
            files = _files("Micrographs")
            labels = gr.Textbox(label="Labels, separated by commas", placeholder="particles, fibres, porous sponge")
            with gr.Accordion("Examples (few-shot)", open=False):
                gr.Markdown(
                    "A few pictures of each label let the model compare instead of guess. Without examples it goes by "
                    "the words alone."
                )
                label = gr.Textbox(label="Label", max_lines=1)
                shots = _files("Pictures of this label")
                add = gr.Button("Add examples", size="sm")
                have = gr.Textbox(label="Examples so far", interactive=False, max_lines=3)
            size = gr.Textbox(label="Pixel size, for pictures that carry none", placeholder="4.2 nm", max_lines=1)
            start = gr.Button("Classify", variant="primary")
        with gr.Column(scale=8, min_width=400):
            shown = gr.HTML(class_table([], of=0), elem_classes="maemi-card")
    add.click(page.add_examples, [label, shots, examples], [examples, have, shots], api_name="add_examples")
    start.click(page.classify, [files, labels, examples, size], shown, show_progress="minimal", api_name="classify")


def _files(label: str) -> gr.File:
    return gr.File(label=label, file_count="multiple", file_types=[*PICTURES, *SIDECARS], height=170)


def _answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": as_text(text)}


def _user(request: gr.Request) -> str:
    return str(request.request.scope.get("state", {}).get("user", "local")) if request.request else "local"

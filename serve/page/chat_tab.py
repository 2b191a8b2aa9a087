"""Where the chat's controls stand and what each of them calls. Knows nothing about what happens then."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from assistant.chat import CAPTION_PROMPT
from serve.page.beside import Beside
from serve.page.chat import Chat
from serve.page.intake import pixel_size
from serve.page.mounting import Blocks
from serve.page.panel import EMPTY
from serve.page.uploads import PICTURES, SIDECARS

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
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
NAMES_OF_FILES = "typed => JSON.stringify((typed?.files ?? []).map(file => file.path))"
_SURE = (
    "(...given) => { if (!confirm('Delete this conversation and its pictures for good?')) throw 'kept'; return given; }"
)


def chat_tab(blocks: Blocks, page: Chat, aside: Beside) -> None:
    """Conversations to the left, the open one in the middle, what is known of its pictures to the right."""
    talk, page_id, dropped = gr.State(""), _hidden(), _hidden()
    with gr.Row(elem_classes="maemi-columns"):
        with gr.Column(scale=2, min_width=190, elem_classes="maemi-drawer"):
            new = gr.Button("New conversation", size="sm")
            with gr.Accordion("Conversations", open=True, elem_classes="maemi-list"):
                search = gr.Textbox(show_label=False, placeholder="Search", max_lines=1, container=False)
                headings = gr.Radio([], show_label=False, container=False, elem_classes="maemi-headings")
                with gr.Column(visible=False, elem_classes="maemi-open") as about:
                    title = gr.Textbox(label="Title", max_lines=1, max_length=80)
                    links = gr.HTML(elem_classes="maemi-bare")
                    remove = gr.Button("Delete this conversation", size="sm", variant="stop")
        with gr.Column(scale=7, min_width=340):
            chat = gr.Chatbot(
                show_label=False,
                height="calc(100vh - 330px)",
                min_height=380,
                placeholder=PLACEHOLDER,
                buttons=["copy"],
                editable="user",
                feedback_options=["Like", "Dislike"],
                group_consecutive_messages=False,
                allow_file_downloads=False,
                allow_tags=False,
                render_markdown=False,
                latex_delimiters=[],
                elem_classes="maemi-chat",
            )
            with gr.Group(visible=False, elem_classes="maemi-correction") as form:
                corrected = gr.State(0)
                words = gr.Textbox(label="What should this answer have said?", lines=2, max_length=2000)
                with gr.Row():
                    keep = gr.Button("Keep the correction", size="sm", variant="primary")
                    drop = gr.Button("Close", size="sm")
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
        with gr.Column(scale=4, min_width=280):
            # A viewer of the open picture stands here, above what is known of it.
            card = gr.HTML(EMPTY, elem_classes="maemi-card")
            size = pixel_size()
            beside_answers(aside, talk, page_id, box)

    opened = [chat, talk, page_id, card, size, title, headings, links, about, form]
    asked = box.submit(
        page.take, [box, talk, size, page_id], [box, chat, talk], show_progress="hidden", api_name="take"
    )
    again = (
        chat.edit(page.edit, [talk, page_id], [chat, talk], **QUIET),
        chat.retry(page.ask_again, [talk, page_id], [chat, talk], **QUIET),
    )
    answers = [
        question.success(
            page.respond,
            [talk, size, page_id],
            [chat, talk, card],
            show_progress="minimal",
            show_progress_on=card,
            api_name="respond" if question is asked else None,
            api_visibility="public" if question is asked else "private",
        )
        for question in (asked, *again)
    ]
    ready: dict[str, Any] = {"fn": lambda: gr.MultimodalTextbox(submit_btn=True, stop_btn=False), "outputs": box}
    for answer in answers:
        answer.then(**ready, queue=False, **QUIET)
        answer.then(page.asked, [talk, search], [page_id, title, headings, links, about], **QUIET)
    box.stop(cancels=answers, **ready, queue=False, **QUIET)
    box.change(None, box, dropped, js=NAMES_OF_FILES)
    dropped.change(page.preview, [box, talk, size], card, **QUIET)
    for button, text in zip(suggestions, SUGGESTIONS, strict=True):
        button.click(None, box, box, js=f"typed => ({{text: {json.dumps(text)}, files: typed?.files ?? []}})")
    size.submit(page.recalibrate, [talk, size], card, api_name="recalibrate")

    chat.like(page.rate, [talk, page_id], [chat, corrected, form, words], **QUIET)
    keep.click(page.correct, [talk, page_id, corrected, words], [chat, form], **QUIET)
    drop.click(lambda: gr.Group(visible=False), None, form, queue=False, **QUIET)

    for begin in (new.click, chat.clear):
        begin(page.begin, [search], opened, cancels=answers, **QUIET)
    headings.input(page.show, [headings, search], opened, cancels=answers, **QUIET)
    search.change(page.listed, [search, talk], headings, **QUIET)
    title.submit(page.retitle, [talk, title, search], headings, **QUIET)
    remove.click(page.delete, [talk, search], opened, js=_SURE, cancels=answers, **QUIET)
    blocks.load(page.restore, None, opened, **QUIET)


def beside_answers(aside: Beside, talk: gr.State, page_id: gr.Textbox, box: gr.MultimodalTextbox) -> None:
    """Buttons for pictures like the newest one and for what the last answer rests on, with what they show."""
    with gr.Row(elem_classes="maemi-actions"):
        similar = gr.Button("Similar pictures", size="sm", min_width=110, visible=aside.archive is not None)
        evidence = gr.Button("What the answer rests on", size="sm", min_width=110, visible=aside.explains)
    where = gr.Textbox(
        "",
        label="Similar ones only where",
        placeholder="magnification > 5000, class = fibres",
        max_lines=1,
        max_length=200,
        visible=aside.archive is not None,
    )
    found = gr.HTML(elem_classes="maemi-card")
    one_at_a_time: dict[str, Any] = {
        "concurrency_id": "aside",
        "concurrency_limit": 1,
        "show_progress": "hidden",
    }
    looking = [
        similar.click(aside.similar, [talk, page_id, where], found, **one_at_a_time, api_name="similar"),
        where.submit(aside.similar, [talk, page_id, where], found, **one_at_a_time, api_visibility="private"),
        evidence.click(aside.evidence, [talk, page_id], found, **one_at_a_time, api_name="evidence"),
    ]
    for gone in (talk.change, box.submit):
        gone(lambda: "", None, found, cancels=looking, queue=False, **QUIET)


def _hidden() -> gr.Textbox:
    """A value that the browser holds and nobody sees."""
    return gr.Textbox("", visible="hidden", show_label=False)

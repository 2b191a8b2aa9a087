"""The page: chat about micrographs, caption and classify many, fine-tune; and the server that it is mounted in.

Self-hosted to the last byte. Knows nothing about what a tab does, and never hands a browser anything but pictures we
made and text that is escaped.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

from serve.batch.background import Batches
from serve.batch.roots import Roots
from serve.desk.desk import Desk
from serve.desk.workbench import Workbench
from serve.http.api import build_api
from serve.http.guard import App, Credentials, Guard
from serve.page.beside import Beside
from serve.page.captions_tab import Captions, captions_tab
from serve.page.chat import Chat
from serve.page.chat_tab import chat_tab
from serve.page.classify_tab import Classify, classify_tab
from serve.page.intake import Intake
from serve.page.mounting import Blocks, mount
from serve.page.review import ReviewPage, Shelf, review_tab
from serve.page.saved import routes_of
from serve.page.tuning_tab import tuning_tab
from serve.page.uploads import LIFETIME_S, Workspace
from serve.page.viewer.routes import viewer_routes


def build_page(
    desk: Desk,
    *,
    bench: Workbench | None = None,
    archive: Path | None = None,
    batches: Batches | None = None,
    roots: Roots = Roots(),  # noqa: B008  (frozen)
) -> Blocks:
    """The tabs, wired; those that train only where there is a `bench` for it.

    Similar pictures are looked for in `archive`; `roots` are folders of the server that the page may name for its
    `batches`.
    """
    intake = Intake(desk, Workspace(get_upload_folder()))
    chat, captions, classify = Chat(intake), Captions(intake, batches, roots), Classify(intake)
    routes = [*routes_of(chat.find), *viewer_routes(desk, chat.picture), *captions.routes, *classify.routes]
    blocks = Blocks(intake.workspace, routes=routes, title="MAEMI", delete_cache=(3600, LIFETIME_S))
    with blocks:
        gr.HTML(
            '<header class="maemi-head"><h1>MAEMI</h1><p>Ask about electron micrographs. Nothing leaves this machine.'
            "</p></header>",
            elem_classes="maemi-bare",
        )
        with gr.Tabs():
            with gr.Tab("Chat"):
                chat_tab(blocks, chat, Beside(chat, intake, archive))
            with gr.Tab("Captions"):
                captions_tab(blocks, captions)
            with gr.Tab("Classify"):
                classify_tab(blocks, classify)
            if bench is not None:
                with gr.Tab("Fine-tune"):
                    tuning_tab(blocks, bench)
                with gr.Tab("Review"):
                    shelf = Shelf(bench.datasets, bench.dataset)
                    review_tab(blocks, ReviewPage(shelf, chat.corrections), corrections=True)
        gr.HTML(
            f'<footer class="maemi-foot"><p>Model <b>{escape(desk.answerer.name)}</b>. Sizes and counts come from '
            "measurement, sentences from a language model that can be wrong: check an answer against the measured "
            "values before you rely on it. Not for safety-critical decisions.</p></footer>",
            elem_classes="maemi-bare",
        )
    return blocks


def build_app(
    desk: Desk,
    *,
    credentials: Credentials | None = None,
    bench: Workbench | None = None,
    archive: Path | None = None,
    batches: Batches | None = None,
    roots: Roots = Roots(),  # noqa: B008  (frozen)
) -> App:
    """The whole server: API and page behind the guard, with what `build_page` takes."""
    page = build_page(desk, bench=bench, archive=archive, batches=batches, roots=roots)
    return Guard(mount(build_api(desk), page), credentials=credentials, metrics=desk.metrics)

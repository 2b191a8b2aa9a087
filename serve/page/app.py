"""The page: chat about micrographs, caption many, classify them; and the server application it is mounted in.

Self-hosted to the last byte. Knows nothing about what a tab does, and never hands a browser anything but pictures we
made and text that is escaped.
"""

from __future__ import annotations

from html import escape

import gradio as gr
from gradio.utils import get_upload_folder

from serve.batch.background import Batches
from serve.batch.roots import Roots
from serve.desk.desk import Desk
from serve.http.api import build_api
from serve.http.guard import App, Credentials, Guard
from serve.page.captions_tab import Captions, captions_tab
from serve.page.chat import Chat
from serve.page.chat_tab import chat_tab
from serve.page.classify_tab import Classify, classify_tab
from serve.page.intake import Intake
from serve.page.mounting import Blocks, mount
from serve.page.saved import routes_of
from serve.page.uploads import LIFETIME_S, Workspace
from serve.page.viewer.routes import viewer_routes


def build_page(desk: Desk, batches: Batches | None = None, roots: Roots = Roots()) -> Blocks:  # noqa: B008  (frozen)
    """The three tabs, wired. `roots` are folders of the server that the page may name for its `batches`."""
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
                chat_tab(blocks, chat)
            with gr.Tab("Captions"):
                captions_tab(blocks, captions)
            with gr.Tab("Classify"):
                classify_tab(blocks, classify)
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
    batches: Batches | None = None,
    roots: Roots = Roots(),  # noqa: B008  (frozen)
) -> App:
    """The whole server: API and page behind the guard."""
    api = build_api(desk)
    return Guard(mount(api, build_page(desk, batches, roots)), credentials=credentials, metrics=desk.metrics)

"""A Gradio page inside our server: its looks, its inputs checked in one place, its errors in words.

Knows nothing about what a page does.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from assistant.errors import ConfigError, MaemiError
from serve.page.marked import as_text
from serve.page.sessions import MAX_FILE, Sessions, owner_of

if TYPE_CHECKING:
    from serve.page.uploads import Workspace

STYLE, SCRIPT = (Path(__file__).with_name(f"page.{kind}") for kind in ("css", "js"))
QUEUE, CONCURRENT = 32, 8
"""Calls that wait, and calls of one endpoint that run."""
_POLL_S = 0.05
"""Time between two looks of Gradio's queue for work; its own 1 ms costs an idle server 5 % of a core [s]."""
DEEPEST = 8
"""Deepest nesting of an input."""
SESSIONS = 1000
"""Conversations kept; each holds a copy of the page's settings."""
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", "Consolas", "monospace")
_TEAL = (
    "#eef6f6", "#d8eae9", "#b3d6d4", "#85bcba", "#529c9b", "#2b8081", "#0f6e73", "#0d5a5f", "#0d484c", "#0d3b3f",
    "#062427",
)  # fmt: skip
_GREY = (
    "#f7f8f8", "#eef1f1", "#e0e5e5", "#c9d0d1", "#98a3a6", "#6b777c", "#4d585d", "#384146", "#262e32", "#1a2024",
    "#12171a",
)  # fmt: skip
"""From light to dark."""

_log = logging.getLogger("maemi.page")


class Blocks(gr.Blocks):
    """Gradio's blocks behind our own walls: a file that a client names must be one that it uploaded."""

    def __init__(self, workspace: Workspace | None = None, *, routes: Sequence[Route] = (), **settings: Any) -> None:
        super().__init__(analytics_enabled=False, fill_width=True, **settings)
        self.workspace = workspace
        self.routes = routes
        """What the page's own addresses answer, beside Gradio's."""
        self.state_session_capacity = SESSIONS
        self.has_launched = True  # mounted pages forget it, and Gradio's own check of named files hangs on it

    async def process_api(
        self, block_fn: Any, inputs: list[Any], *, request: gr.Request, iterator: Any = None, **rest: Any
    ) -> Any:
        """The one way to every handler. What we know how to say is said, anything else becomes a number in the log."""
        try:
            if iterator is None:
                inputs = self._own(inputs, owner_of(request))
            return await super().process_api(block_fn, inputs, request=request, iterator=iterator, **rest)
        except gr.Error:
            raise
        except MaemiError as error:
            raise gr.Error(as_text(error.message), title="That did not work", print_exception=False) from None
        except Exception:
            number = secrets.token_hex(4)
            _log.exception("page request failed, id %s", number)
            message = f"Something went wrong (id {number}). The log has the details."
            raise gr.Error(message, print_exception=False) from None

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any) -> Any:
        try:
            return await super().preprocess_data(block_fn, inputs, *rest)
        except gr.Error as error:
            error.message, error.print_exception = as_text(error.message), False
            raise
        except Exception as error:
            _log.info("a call of %s does not fit: %s", block_fn.api_name, type(error).__name__)
            raise _bad_call() from None

    def _own(self, value: Any, owner: str, depth: int = 0) -> Any:
        """A value from a client, its files reduced to paths that were handed out to this owner."""
        if depth > DEEPEST:
            raise _bad_call()
        if isinstance(value, list):
            return [self._own(item, owner, depth + 1) for item in value]
        if not isinstance(value, dict):
            return value
        if "path" not in value:
            return {key: self._own(item, owner, depth + 1) for key, item in value.items()}
        if self.workspace is None or not self.workspace.owns(owner, value["path"]):
            raise ConfigError("not_uploaded", "A file of this request was not uploaded here. Add it again.")
        return {"path": value["path"], "meta": {"_type": "gradio.FileData"}}


def mount(server: Starlette, page: Blocks) -> Starlette:
    """A page at `/` of a server, in the house's looks, with nothing of Gradio's own beside it.

    The page's files go when the server stops.
    """
    if page.workspace is not None:
        for block in page.blocks.values():
            block.GRADIO_CACHE = str(page.workspace.root)  # a file field leaves an empty file there at every call
    page.queue(max_size=QUEUE, default_concurrency_limit=CONCURRENT, api_open=False)
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = _POLL_S
    mounted: Starlette = gr.mount_gradio_app(
        server,
        page,
        path="/",
        theme=theme(),
        js=SCRIPT.read_text(encoding="utf-8"),
        css=STYLE.read_text(encoding="utf-8"),
        show_error=False,
        max_file_size=MAX_FILE,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    (route,) = (route for route in mounted.routes if isinstance(route, Mount))
    route.app = Sessions(route.app, page)
    lifespan = mounted.router.lifespan_context

    @asynccontextmanager
    async def closing(server: Any) -> AsyncIterator[Any]:
        try:
            async with lifespan(server) as state:
                yield state
        finally:
            if page.workspace is not None:
                page.workspace.close()

    mounted.router.lifespan_context = closing
    return mounted


def theme() -> gr.themes.Base:
    """Calm, with the fonts the reader's system already has."""
    base = gr.themes.Base(
        primary_hue=gr.themes.Color(*_TEAL),
        secondary_hue=gr.themes.Color(*_TEAL),
        neutral_hue=gr.themes.Color(*_GREY),
        radius_size=gr.themes.sizes.radius_lg,
        font=SANS,
        font_mono=MONO,
    )
    return base.set(
        body_background_fill="#f7f8f8",
        body_background_fill_dark="#12171a",
        block_background_fill="#ffffff",
        block_background_fill_dark="#191f23",
        block_border_color="#e4e8e8",
        block_border_color_dark="#2a3237",
        block_label_text_color="#5d6870",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#eef2f2",
        button_secondary_background_fill_dark="#20272c",
        button_secondary_background_fill_hover_dark="#293238",
        button_secondary_border_color="#d5dbdb",
        button_secondary_border_color_dark="#343d43",
        button_border_width="1px",
        input_background_fill="#fbfcfc",
        input_background_fill_dark="#14191c",
        input_border_color="#dfe4e4",
        input_border_width="1px",
        block_shadow="none",
    )


def _bad_call() -> ConfigError:
    return ConfigError("bad_call", "The request does not fit the page. Reload the page and try again.")

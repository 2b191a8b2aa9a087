"""A real server on a free loopback port for the tests of the page and the API."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serve.http.server import make_server


@contextmanager
def running(app: Any, **options: Any) -> Iterator[str]:
    """Serve an application in a thread; yields its base URL."""
    server = make_server(app, **options)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 300
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(15)
        assert not thread.is_alive()


@contextmanager
def page_running(build: Callable[[], Any], uploads: Path) -> Iterator[str]:
    """Serve a page that `build` makes, its uploads in a folder; yields its base URL."""

    async def within_a_loop() -> Any:
        return build()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        with running(asyncio.run(within_a_loop())) as url:
            yield url


def data_uri(path: Path, kind: str = "image/tiff") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def user(text: str, *urls: str) -> dict[str, Any]:
    """A message with pictures, then words."""
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}

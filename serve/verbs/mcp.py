"""`maemi mcp`: the tools for other assistants, over stdio or HTTP. Knows nothing about what the tools do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assistant.errors import ConfigError
from serve.verbs import terminal
from serve.verbs.command import RunOption, app, load, usage

if TYPE_CHECKING:
    from serve.desk.desk import Desk
    from serve.mcp_tools import Tools

PATH = "/mcp"


@app.command(short_help="Be a tool of other assistants.")
def mcp(
    root: Annotated[
        list[Path] | None, typer.Option(help="Folder whose pictures may be read by path; repeatable.")
    ] = None,
    run: RunOption = None,
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve over HTTP instead of stdin and stdout.")
    ] = None,
    auth: Annotated[Path | None, typer.Option(help="For --http: file with one user:password or key per line.")] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where answers are kept, as for `maemi serve`."),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="For --http: proxy that may name the client's address.")
    ] = None,
) -> None:
    """Offer read, measure, ask, classify and similar to any assistant that speaks the Model Context Protocol.

    \b
    Example:
      maemi mcp --root ~/micrographs
      maemi mcp --root /data/lots --http 0.0.0.0:7861 --auth logins.txt
    """
    if http is None and (auth or trusted_proxy):
        usage("--auth and --trusted-proxy go with --http.")
    roots = [folder.expanduser().absolute() for folder in root or ()]
    for folder in roots:
        if not folder.is_dir():
            raise ConfigError("no_folder", f"{folder} is not a folder. Name one after --root.")
    try:
        from serve.mcp_tools import Tools
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("mcp", "mcp_types"):
            raise
        message = "The tools need the extra. Install it with: pip install 'maemi[mcp]'."
        raise ConfigError("needs_extra", message) from None
    logging.getLogger("maemi").setLevel(logging.WARNING)
    if http is None:
        _over_stdio(Tools, roots, run, store)
    else:
        _over_http(Tools, roots, run, store, parse_address(http), auth, trusted_proxy or ())


def _over_stdio(tools: type[Tools], roots: Sequence[Path], run: Path | None, store: str | None) -> None:
    from serve.desk.desk import Desk
    from serve.desk.gate import Gate
    from serve.desk.sandbox import Sandbox
    from serve.desk.store import AnswerStore

    gate, lock = Gate(), threading.Lock()
    with Sandbox() as sandbox, closing(AnswerStore(store)) if store else nullcontext() as book:

        @cache
        def loaded() -> Desk:
            return Desk(load(run), gate, len, book, sandbox.read)

        def desk() -> Desk:
            with lock:  # else two calls would load it twice
                return loaded()

        # The other side waits for its first reply, not for a model that it may never ask.
        threading.Thread(target=desk, daemon=True, name="maemi-load").start()
        tools(desk, gate, sandbox.read, roots).server().run("stdio")


def _over_http(
    tools: type[Tools],
    roots: Sequence[Path],
    run: Path | None,
    store: str | None,
    address: tuple[str, int],
    auth: Path | None,
    trusted_proxy: Sequence[str],
) -> None:
    from serve.desk.database import default_place
    from serve.desk.desk import Desk
    from serve.desk.gate import Gate
    from serve.desk.sandbox import Sandbox
    from serve.desk.store import AnswerStore
    from serve.http.guard import Guard
    from serve.http.server import admit, bind, parse_proxies, run_server, signals_last
    from serve.mcp_tools import BODY_LIMIT

    host, port = address
    credentials, proxies = admit(host, auth), parse_proxies(trusted_proxy)
    book = AnswerStore(store or default_place())
    told = f"MCP at http://{f'[{host}]' if ':' in host else host}:{port}{PATH}  (Ctrl-C stops)"
    with bind(host, port) as listener, signals_last(), closing(book), Sandbox() as sandbox:
        desk = Desk(load(run), Gate(), len, book, sandbox.read)
        application = tools(lambda: desk, desk.gate, sandbox.read, roots).application()
        guarded = Guard(application, credentials=credentials, body_limit=BODY_LIMIT, metrics=desk.metrics)
        run_server(guarded, listener, proxies=proxies, ready=lambda: terminal.note(told))


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, of which the host may be left out. Raises ConfigError `bad_address`."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError("bad_address", f"{text!r} is no HOST:PORT. Write it as in 127.0.0.1:7861.")
    return host, int(port)

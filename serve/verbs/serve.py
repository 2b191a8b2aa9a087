"""`maemi serve`: the page and the API on one port. Knows nothing about what either does."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from serve.verbs import terminal
from serve.verbs.command import RunOption, app, load


@app.command(short_help="Serve the page and the API.")
def serve(
    run: RunOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on. Any but loopback needs --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 7860,
    auth: Annotated[Path | None, typer.Option(help="File with one user:password or key per line.")] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where every answer is kept: a file, or postgresql://USER@HOST/DATABASE."),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", exists=True, file_okay=False, help="Where similar pictures are looked for."),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Data sets and runs: opens the tabs Fine-tune and Review to all logins."),
    ] = None,
    folders: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Folder that everyone at the page may have captioned, with all in it."),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Proxy, or network of proxies, that may name the client's address."),
    ] = None,
) -> None:
    """Serve the page at /, the OpenAI-compatible API at /v1, /healthz and /metrics.

    \b
    Example:
      maemi serve --host 0.0.0.0 --auth logins.txt --folders /data/sem --trusted-proxy 10.0.0.2
    """
    from serve.batch.background import Batches
    from serve.batch.roots import Roots
    from serve.desk.conversations import Conversations, beside_the_book
    from serve.desk.database import default_place
    from serve.desk.sortings import Sortings
    from serve.desk.store import AnswerStore
    from serve.desk.workbench import Workbench
    from serve.http.server import admit, bind, parse_proxies, require_known_visitors, run_server, signals_last

    credentials, proxies, roots = admit(host, auth), parse_proxies(trusted_proxy or ()), Roots.of(folders or ())
    bench = Workbench(training) if training else None
    if bench:
        require_known_visitors(credentials, proxies, "--training")
    logging.getLogger("maemi").setLevel(logging.WARNING)
    # A database that does not answer and a port that is taken are told before the model is loaded.
    book = AnswerStore(store or default_place())
    place, pictures = beside_the_book(store or default_place())
    kept, sorted_ = Conversations(place, pictures), Sortings(place, pictures.with_suffix(".sorted"))
    batches = Batches(pictures.with_suffix(".captions"))
    with (
        bind(host, port) as listener,
        signals_last(),
        closing(book),
        closing(kept),
        closing(sorted_),
        closing(batches),
        tempfile.TemporaryDirectory(prefix="maemi-") as private,
    ):
        tempfile.tempdir = private  # whatever anyone uploads goes when the server stops
        os.environ["GRADIO_TEMP_DIR"] = private  # the default is a folder that all users of the machine share
        from serve.desk.desk import Desk, measured_false_rate
        from serve.desk.gate import Gate
        from serve.desk.sandbox import Sandbox
        from serve.page.app import build_app

        assistant = load(run)
        tokenizer = assistant.processor.tokenizer
        told = f"{assistant.name} at http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C stops)"

        def count(text: str) -> int:
            return len(tokenizer.encode(text, add_special_tokens=False))

        with Sandbox() as sandbox:
            rate = measured_false_rate(assistant.run.path)
            desk = Desk(
                assistant, Gate(), count, book, sandbox.read, conversations=kept, false_rate=rate, sortings=sorted_
            )
            page = build_app(desk, credentials=credentials, bench=bench, archive=archive, batches=batches, roots=roots)
            run_server(page, listener, proxies=proxies, ready=lambda: terminal.note(told))

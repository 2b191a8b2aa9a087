"""The `maemi` command: every verb reads its arguments, calls one function and prints what came out.

Knows nothing about images, models or servers; what does is imported inside the verb that needs it, so `maemi --help`
is instant.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import Abort, Exit, TyperException
from typer.main import get_command

from assistant.errors import MaemiError
from serve import asking, learning, terminal  # the import hangs their verbs on the application
from serve.command import ENVIRONMENT, Json, Run, app, finish, load, quiet

__all__ = ["app", "asking", "learning", "main"]


@app.command(short_help="Serve the page and the API.")
def serve(
    run: Run = None,
    host: Annotated[str, typer.Option(help="Address to bind to; other than loopback only with --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 7860,
    auth: Annotated[Path | None, typer.Option(help="File with one user:password or key per line.")] = None,
    store: Annotated[Path | None, typer.Option(help="SQLite file that keeps every answer.")] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Proxy that tells the clients' addresses; a network too."),
    ] = None,
) -> None:
    """Serve the page at /, the OpenAI-compatible API at /v1, /healthz and /metrics.

    \b
    Example:
      maemi serve --host 0.0.0.0 --auth logins.txt --trusted-proxy 10.0.0.2
    """
    from serve.server import admit, bind, parse_proxies, run_server, signals_last

    credentials, proxies = admit(host, auth), parse_proxies(trusted_proxy or ())
    logging.getLogger("maemi").setLevel(logging.WARNING)
    listener = bind(host, port)  # a port that is taken is told before the model is loaded
    with listener, signals_last(), tempfile.TemporaryDirectory(prefix="maemi-") as private:
        tempfile.tempdir = private  # whatever anyone uploads goes when the server stops
        os.environ["GRADIO_TEMP_DIR"] = private  # the default is a folder that all users of the machine share
        from serve.api import Desk
        from serve.app import build_app
        from serve.gate import Gate
        from serve.sandbox import Sandbox
        from serve.store import AnswerStore

        assistant = load(run)
        book = AnswerStore(store or _state_folder() / "answers.sqlite")
        count = partial(_count_tokens, assistant.processor.tokenizer)
        told = f"{assistant.name} at http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C stops)"
        with Sandbox() as sandbox:
            application = build_app(Desk(assistant, Gate(), count, book, sandbox.read), credentials=credentials)
            run_server(application, listener, proxies=proxies, ready=lambda: terminal.note(told))


@app.command(short_help="Check this machine, with the network cut.")
def doctor(run: Run = None, json: Json = False) -> None:
    """Check the machine and run every feature with the network cut.

    \b
    Example:
      maemi doctor
    """
    from serve.doctor import examine

    with quiet(json):
        checks = list(examine(run))
    if json:
        terminal.print_json([vars(check) for check in checks])
    else:
        rows = [("ok" if c.ok else "FAILED", c.name, c.found, f"{c.seconds:.1f} s") for c in checks]
        terminal.print_table("", ("", "check", "found", ">time"), rows)
    finish(sum(not check.ok for check in checks))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command; whatever goes wrong becomes one line on stderr and an exit code."""
    os.environ.update(ENVIRONMENT)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("maemi").setLevel(logging.INFO)
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    if "--online" in arguments:
        arguments.remove("--online")
        arguments.insert(0, "--online")
    try:
        command = get_command(app)
        with command.make_context("maemi", arguments or ["--help"]) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except Exit as done:
        return done.exit_code
    except MaemiError as error:
        terminal.print_error(error.code, error.message)
        return error.exit_code
    except TyperException as error:
        terminal.print_error("usage", f"{error.format_message()} See: maemi --help")
    except (KeyboardInterrupt, Abort):
        terminal.print_error("interrupted", "Stopped. The same command goes on where it stopped.")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        return 0
    except OSError as error:
        terminal.print_error("os", f"{error.filename or 'A file'}: {error.strerror or type(error).__name__}.")
    except Exception as error:  # the boundary of the program: a fault of ours is one line too, unless asked for more
        if os.environ.get("MAEMI_TRACEBACK"):
            raise
        told = f"{type(error).__name__}: {error}. This is a fault in maemi; MAEMI_TRACEBACK=1 shows where."
        terminal.print_error("internal", told)
    return 2


def _count_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def _state_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "maemi"


if __name__ == "__main__":
    main()

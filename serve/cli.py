"""The `maemi` command: every verb reads its arguments, calls one function and prints what came out.

Knows nothing about images, models or servers; what does is imported inside the verb that needs it, so `maemi --help`
is instant.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from typer.exceptions import Abort, Exit, TyperException
from typer.main import get_command

from assistant.errors import MaemiError
from serve.verbs import terminal
from serve.verbs.command import ENVIRONMENT, app

# Each of these hangs its verb on the application; their order is that of `maemi --help`.
# isort: off
from serve.verbs import (
    info,
    ask,
    caption,
    classify,
    synth,
    teach,
    train,
    evaluate,
    fit,
    predict,
    next_labels,
    drift,
    similar,
    plan,
    export,
    merge,
    demo,
    serve,
)
from serve.verbs import mcp, base, answers, doctor
# isort: on

VERBS = (
    info,
    ask,
    caption,
    classify,
    synth,
    teach,
    train,
    evaluate,
    fit,
    predict,
    next_labels,
    drift,
    similar,
    plan,
    export,
    merge,
    demo,
    serve,
    mcp,
    base,
    answers,
    doctor,
)


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


if __name__ == "__main__":
    main()

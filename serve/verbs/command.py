"""What the verbs of `maemi` share: the application they hang on, their common options, how they end.

Knows nothing about what any verb does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import Exit

from assistant.errors import ConfigError, Stopped
from serve.verbs import terminal

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",  # nobody reads its statistics, and each costs a table
    "TRANSFORMERS_VERBOSITY": "error",
    "BITSANDBYTES_NOWELCOME": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
ONLINE = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}

ALL_FAILED = -1

app = typer.Typer(
    name="maemi",
    help="Ask about electron micrographs, caption and classify them, and fine-tune, all on this machine.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

RunOption = Annotated[Path | None, typer.Option(help="Run directory or model. Without it: the bundled student.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
PixelSize = Annotated[str | None, typer.Option(help="Pixel size, such as '4.2 nm', instead of what the file says.")]
Data = Annotated[Path, typer.Option(help="Data set directory written by `maemi teach`.")]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file. Settings that it does not name keep their defaults.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a setting, such as training.steps=50.")]


def print_version(wanted: bool) -> None:
    """`maemi --version`: the installed version, and nothing else."""
    if wanted:
        from importlib.metadata import version

        terminal.say(f"maemi {version('maemi')}")
        raise Exit


@app.callback()
def everywhere(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    online: Annotated[bool, typer.Option("--online", help="Allow downloads of models that a config names.")] = False,
) -> None:
    """Ask about electron micrographs, caption and classify them, and fine-tune, all on this machine."""
    os.environ.update(ENVIRONMENT | (ONLINE if online else {}))


@contextmanager
def quiet(json: bool) -> Iterator[None]:
    """Keep what libraries print away from the JSON on stdout."""
    with redirect_stdout(sys.stderr) if json else nullcontext():
        yield


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end a verb with one line and its exit code, also where nothing waits for it."""

    def stop(number: int, frame: object) -> NoReturn:
        raise Stopped(signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def finish(failed: int) -> None:
    """Leave with 0 when nothing failed, 1 when something did, 2 when `failed` says that everything did."""
    if failed:
        raise Exit(2 if failed == ALL_FAILED else 1)


def usage(message: str) -> NoReturn:
    raise ConfigError("usage", message)


def print_result(document: Any, json: bool, text: str) -> None:
    terminal.print_json(document) if json else terminal.say(text)


def load(run: Path | None) -> Any:
    """The assistant of a run; of what `maemi fit` wrote, the bundled student with that head before its own."""
    from assistant.inference import Assistant

    if run is None or not (run / "head").is_dir():
        return Assistant.load(run)
    from training.applied import Applied

    return Assistant.load(judge=Applied.load(run))

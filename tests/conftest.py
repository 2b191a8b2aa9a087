"""Shared by all tests: offline, seeded, nothing left open."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from postgres import Server, postgres_server

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.update(OFFLINE)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """Folder of real micrographs beside the checkout; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder of real micrographs is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PostgreSQL server for the tests of one file, which are marked `needs_server`."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def maemi(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, stdout, stderr."""
    from serve import cli

    monkeypatch.setattr(sys, "warnoptions", ["default"])  # the command must not switch the tests' filter off

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import random

    import numpy as np

    random.seed(0)
    np.random.seed(0)

"""Shared by all tests: offline, seeded, nothing left open."""

import os
from pathlib import Path

import pytest

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
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


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import random

    import numpy as np

    random.seed(0)
    np.random.seed(0)

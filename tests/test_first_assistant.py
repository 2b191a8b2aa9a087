"""The page from a folder of TIFFs to an assistant: its commands, as they stand there, work one after another."""

import glob
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from data_gen.drawing.synth import write_synthetic

ROOT = Path(__file__).parents[1]
QUICKER = {"train": ("--set", "training.steps=2"), "evaluate": ("--limit", "1", "--no-baselines")}
"""What the test adds: the page trains for minutes."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # as in a process of its own
def test_the_commands_of_the_page(
    maemi: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_synthetic(tmp_path / "drawn", classes=["nanowires", "powder"], per_class=8, seed=0)
    for label in ("nanowires", "powder"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for n, file in enumerate(sorted((tmp_path / "drawn").rglob(f"{label}*.tif")), 1):
            file.rename(tmp_path / "images" / label / f"wafer{(n + 1) // 2}-{2 - n % 2:02}.tif")
    page = (ROOT / "docs" / "first-assistant.md").read_text(encoding="utf-8")
    commands = [line for line in page.split("```")[1].splitlines() if line.startswith("maemi ")]
    assert len(commands) == 6
    for command in commands:
        _, verb, *arguments = shlex.split(command)
        spread = [file for part in arguments for file in (sorted(glob.glob(part)) if "*" in part else [part])]
        code, out, err = maemi(verb, *spread, *QUICKER.get(verb, ()))
        assert code == 0, (command, err)
        assert out.strip()
    assert "<h2>Worst answers</h2>" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "runs" / "first" / "README.md").is_file()

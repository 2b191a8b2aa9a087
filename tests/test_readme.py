"""README and docs are true: the map is the tree on the disk, and the commands exist."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAP = (ROOT / "docs" / "map.md").read_text()
FOLDERS = ("assistant", "data_gen", "training", "serve", "configs", "benchmarks", "docs", "examples")
LISTED_BY_FOLDER = ("data_gen/questions/prompts", "assistant/weights", "docs/images", "examples/LICENSES")
"""Folders whose files are listed as one."""


def listed() -> dict[str, str]:
    """Path -> purpose, as the map tells them."""
    block = MAP.split("```")[1]
    found: dict[str, str] = {}
    folders: list[tuple[int, str]] = []
    for line in filter(str.strip, block.splitlines()):
        indent = len(line) - len(line.lstrip())
        name, _, purpose = line.strip().partition("  ")
        while folders and folders[-1][0] >= indent:
            folders.pop()
        path = "".join(folder for _, folder in folders) + name
        if name.endswith("/"):
            folders.append((indent, name))
        found[path] = purpose.strip()
    return found


def on_disk() -> set[str]:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    paths = {path for path in tracked if (ROOT / path).exists() and not path.endswith(("__init__.py", "py.typed"))}
    grouped = {f"{folder}/" for path in paths for folder in LISTED_BY_FOLDER if path.startswith(f"{folder}/")}
    return {path for path in paths if not path.startswith(LISTED_BY_FOLDER)} | grouped


def test_the_tree_is_the_tree_on_the_disk() -> None:
    inside = {path for path in listed() if path.split("/")[0] in FOLDERS}
    files = {path for path in inside if not path.endswith("/") or path.rstrip("/") in LISTED_BY_FOLDER}
    assert files - on_disk() == set(), "on the map but not on the disk"
    assert on_disk() - files == set(), "on the disk but not on the map"


def test_every_file_has_a_purpose_without_and() -> None:
    assert not [path for path, purpose in listed().items() if not purpose and not path.endswith("/")]


def test_the_commands_exist() -> None:
    verbs = set(re.findall(r"^\s*(?:\.venv/bin/)?maemi ([a-z]+)", README, re.MULTILINE))
    shown = subprocess.run([sys.executable, "-m", "serve.cli", "--help"], cwd=ROOT, capture_output=True, text=True)
    missing = {verb for verb in verbs if verb not in shown.stdout}
    assert verbs
    assert not missing
    targets = set(re.findall(r"^\s*make ([a-z]+)", README, re.MULTILINE))
    assert targets <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (ROOT / target.split("#")[0]).exists(), target

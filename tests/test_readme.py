"""README and docs are true: the map is the tree on the disk, links lead somewhere, and every command exists."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAP = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = (*sorted(ROOT.glob("*.md")), *GUIDES, ROOT / "examples" / "README.md", ROOT / "assistant/weights/README.md")
FOLDERS = ("assistant", "data_gen", "training", "serve", "configs", "benchmarks", "docs", "examples")
LISTED_BY_FOLDER = (
    "data_gen/questions/bank",
    "data_gen/questions/prompts",
    "assistant/weights",
    "configs/ablations",
    "configs/accelerate",
    "docs/images",
    "examples/LICENSES",
)
"""Folders whose files are listed as one."""
LONGEST_README = 140
EXISTING = re.compile(r"(?:examples|configs|benchmarks|docs|tests)/\S+")
"""Arguments that name a file of the checkout."""


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
    within = tuple(f"{folder}/" for folder in LISTED_BY_FOLDER)
    return {path for path in paths if not path.startswith(within)} | grouped


def test_the_tree_is_the_tree_on_the_disk() -> None:
    inside = {path for path in listed() if path.split("/")[0] in FOLDERS}
    files = {path for path in inside if not path.endswith("/") or path.rstrip("/") in LISTED_BY_FOLDER}
    assert files - on_disk() == set(), "on the map but not on the disk"
    assert on_disk() - files == set(), "on the disk but not on the map"


def test_every_file_has_a_purpose() -> None:
    assert not [path for path, purpose in listed().items() if not purpose and not path.endswith("/")]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= LONGEST_README


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `maemi` command in a page's code blocks and inline code, without its comment."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if not language for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    for line in (*lines, *re.findall(r"`(maemi [^`]+)`", re.sub(r"\s+", " ", text))):
        if re.match(r"\s*maemi\s", line):
            yield re.sub(r"\s#.*| >.*", "", re.sub(r'"[^"]*"|\'[^\']*\'', "QUOTED", line)).split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_commands_exist_with_their_options(page: Path) -> None:
    """Fails for a verb or an option that `maemi VERB --help` does not know, and for a file that is not there."""
    from serve.cli import app

    verbs = get_command(app).commands
    found = list(commands(page.read_text(encoding="utf-8")))
    assert found or page.name != "README.md" or page.parent != ROOT
    for words in found:
        known = {option for parameter in get_command(app).params for option in parameter.opts} | {"--help"}
        if not words[1].startswith("-"):
            assert words[1] in verbs, " ".join(words)
            known = known | {o for p in verbs[words[1]].params for o in (*p.opts, *p.secondary_opts)}
        unknown = {word for word in words[1:] if word.startswith("-")} - known
        assert not unknown, f"{' '.join(words)}: no such option"
        for word in filter(EXISTING.fullmatch, words):
            assert list(ROOT.glob(word)), f"{word} is not there"


def test_its_targets_of_make_exist() -> None:
    targets = {target for page in PAGES for target in re.findall(r"^make ([a-z]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test", "install"} <= targets
    assert targets <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """The names that headings of a page have as link targets."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text) + re.findall(
        r'(?:src|href)="(?!https?:)([^"]+)"', text
    ):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_index_links_every_guide() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert {guide.name for guide in GUIDES} - {"index.md"} == set(re.findall(r"\]\(([\w-]+\.md)\)", index))

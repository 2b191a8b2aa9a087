"""Imports point one way, leaf parts stay leaves, and heavy libraries stay out of the way."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("assistant", "data_gen", "training", "serve")
ALLOWED = {
    "assistant": {"assistant"},
    "data_gen": {"data_gen", "assistant"},
    "training": {"training", "assistant"},
    "serve": {"serve", "training", "data_gen", "assistant"},
}
LEAVES = ("micrograph", "measure", "chat", "vit", "hnf", "grounding", "decoder", "adapters", "classifier")
TEACHER_MAY_USE = {"errors", "config", "micrograph", "measure", "chat"}
FORBIDDEN_NAMES = {"utils.py", "common.py", "helpers.py"}


def imported_modules(file: Path) -> set[str]:
    """Modules a file imports at run time; imports for type checking only do not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text()))
    return found


def ours(file: Path) -> set[str]:
    return {name for name in imported_modules(file) if name.split(".")[0] in PACKAGES}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sources(package)
        for name in ours(file)
        if name.split(".")[0] not in ALLOWED[package]
    }
    assert not wrong


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_parts_import_no_sibling(leaf: str) -> None:
    """A leaf may use the exception tree and its own sub-package, nothing else of the assistant."""
    own = {"errors", leaf, "readers", "measurements"} if leaf in {"micrograph", "measure"} else {"errors", leaf}
    files = [ROOT / "assistant" / f"{leaf}.py", *(ROOT / "assistant" / leaf).rglob("*.py")]
    wrong = {
        f"{file.name} imports {name}"
        for file in files
        if file.exists()
        for name in ours(file)
        if name != "assistant" and name.split(".")[1] not in own
    }
    assert not wrong


def test_the_teacher_needs_no_torch() -> None:
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sources("data_gen")
        for name in imported_modules(file)
        if name.split(".")[0] in {"torch", "transformers", "peft"}
        or (name.startswith("assistant.") and name.split(".")[1] not in TEACHER_MAY_USE)
    }
    assert not wrong


def test_no_grab_bag_modules() -> None:
    assert not [file for package in PACKAGES for file in sources(package) if file.name in FORBIDDEN_NAMES]


def test_help_is_instant() -> None:
    """A cold `maemi --help` must not import torch, gradio or skimage: best of three under 0.5 s."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "serve.cli", "--help"], check=True, capture_output=True, cwd=ROOT)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5

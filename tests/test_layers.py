"""Imports point one way, leaf parts stay leaves, and heavy libraries stay out of the way."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
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
LEAVES = ("micrograph", "measure", "chat", "vit", "hnf", "grounding", "decoder", "adapters", "fusion", "encoders")
LEAVES += ("evidence", "conformal")
TEACHER_MAY_USE = frozenset(
    [
        "answers",
        "arrays",
        "chat",
        "config",
        "database",
        "disk",
        "errors",
        "handbook",
        "measure",
        "micrograph",
        "orphans",
        "progress",
        "quantities",
        "questions",
    ]
)
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


def rooms(package: str) -> dict[str, set[str]]:
    """Room -> rooms it imports from; a room is a folder of the package, or a file beside the folders."""
    found: dict[str, set[str]] = {}
    for file in sources(package):
        room = file.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        used = {name.split(".")[1] for name in ours(file) if name.startswith(f"{package}.")}
        found.setdefault(room, set()).update(used - {room})
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_arrow_runs_back_up_between_folders(package: str) -> None:
    """Seen failing with the ledger importing from `hosted`, whose desk keeps its accounts in the ledger."""
    TopologicalSorter(rooms(package)).prepare()  # raises CycleError


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_parts_import_no_sibling(leaf: str) -> None:
    """A leaf may use the exception tree and its own sub-package, nothing else of the assistant."""
    own = {"adapter_kinds", "arrays", "attention", "disk", "errors", "families", "quantities", "remarks", "retired"}
    own |= {leaf} | ({"readers", "measurements"} if leaf in {"micrograph", "measure"} else set())
    files = [ROOT / "assistant" / f"{leaf}.py", *(ROOT / "assistant" / leaf).rglob("*.py")]
    wrong = {
        f"{file.name} imports {name}"
        for file in files
        if file.exists()
        for name in ours(file)
        if name != "assistant" and name.split(".")[1] not in own
    }
    assert not wrong


def test_attention_is_written_once() -> None:
    """The fields of the neural ODE take theirs out of a wider layer. Seen failing with five copies."""
    calls = {file.name for file in sources("assistant") if "F.scaled_dot_product_attention(" in file.read_text()}
    assert calls == {"attention.py", "hnf.py"}


def test_the_teacher_needs_no_torch() -> None:
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sources("data_gen")
        for name in imported_modules(file)
        if name.split(".")[0] in {"torch", "transformers", "peft"}
        or (name.startswith("assistant.") and name.split(".")[1] not in TEACHER_MAY_USE)
    }
    assert not wrong


SURVIVAL = {"flock", "fsync", "rename", "create_engine", "connect_sqlite3"}
"""Calls that only the rooms for what must survive may make."""


def survival_calls(file: Path) -> set[str]:
    """Which of these a file makes; `path.replace(other)` renames, `text.replace(a, b)` does not."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = "connect_sqlite3" if called == "sqlite3.connect" else called.rpartition(".")[2]
            renames = isinstance(node.func, ast.Attribute) and len(node.args) == 1 and not node.keywords
            if name == "replace" and (renames or called == "os.replace"):
                name = "rename"
            found.add(name)
    return found & SURVIVAL


def test_what_must_survive_is_written_in_one_room() -> None:
    """Seen failing with the 3 locks, 11 atomic writers of files and 3 openers of databases that there were."""
    found = {file.relative_to(ROOT).as_posix(): survival_calls(file) for p in PACKAGES for file in sources(p)}
    assert {file: calls for file, calls in found.items() if calls} == {
        "assistant/disk.py": {"flock", "fsync", "rename"},
        "assistant/database.py": {"create_engine"},
    }


def test_files_survive_without_torch_or_a_database() -> None:
    """Whoever only writes a file loads neither: SQLAlchemy comes when a database is opened, or has failed."""
    program = "import sys, assistant.disk; assert not {'torch', 'sqlalchemy', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_no_grab_bag_modules() -> None:
    assert not [file for package in PACKAGES for file in sources(package) if file.name in FORBIDDEN_NAMES]


HEAVY = {"torch", "transformers", "peft", "gradio", "skimage", "scipy", "sklearn", "datasets", "pandas", "rapidocr"}


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["plan"]], ids=" ".join)
def test_what_needs_no_model_imports_no_heavy_library(arguments: list[str]) -> None:
    """`maemi --help` answers in under half a second, and a plan is arithmetic: what is imported decides, not the clock.

    Seen failing for `plan` while it counted parameters by building the student.
    """
    program = (
        "import sys\nfrom serve.cli import main\ntry: main(sys.argv[1:])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, capture_output=True, cwd=ROOT, text=True
    )
    assert not HEAVY & set(done.stderr.split())

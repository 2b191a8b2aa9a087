"""Run directories that want to run code, lie about themselves or ask for too much: refused by name, not executed."""

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from students import tiny_run
from test_checkpoint import sign

from assistant.checkpoint import BUNDLED, attach_adapter, load_run, save_model
from assistant.config import AdapterConfig
from assistant.disk import MANIFEST
from assistant.errors import MaemiError, RunError
from assistant.inspection import HEADER_LIMIT

ROOT = Path(__file__).parents[1]
EVIL = "import os\nos.system('touch OWNED')\n"


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch OWNED",)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_yaml(path: Path, section: str, **changes: object) -> None:
    tree = yaml.safe_load(path.read_text())
    tree[section] |= changes
    path.write_text(yaml.safe_dump(tree))


def code_for(part: str, file: str = "config.json") -> Callable[[Path], None]:
    def change(model: Path) -> None:
        code = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
        edit_json(model / part / file, auto_map=code)
        (model / part / "evil.py").write_text(EVIL)

    return change


def code_without_a_file(model: Path) -> None:
    edit_json(model / "base" / "config.json", auto_map={"AutoModelForCausalLM": "somebody/model--evil.Evil"})


def pickled(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).write_bytes(pickle.dumps(Bomb()))

    return change


def pickle_for_an_adapter(model: Path) -> None:
    (model / "adapter" / "adapter_model.safetensors").unlink()
    (model / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))


def long_header(model: Path) -> None:
    size = HEADER_LIMIT + 8
    (model / "student.safetensors").write_bytes(struct.pack("<Q", size) + b" " * size + b"1234")


def garbage(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).write_bytes(b"\x80\x04garbage{" * 7)

    return change


def cut(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[: len(content) // 2])

    return change


def a_link_out(model: Path) -> None:
    (model / "base" / "config.json").unlink()
    (model / "base" / "config.json").symlink_to("/etc/hostname")


HOSTILE: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "code in the base": (code_for("base"), {"code_in_run"}),
    "code in the tokenizer": (code_for("tokenizer", "tokenizer_config.json"), {"code_in_run"}),
    "code in the adapter": (code_for("adapter", "adapter_config.json"), {"code_in_run"}),
    "code elsewhere": (code_without_a_file, {"code_in_run"}),
    "a pickle beside": (pickled("optimizer.pt"), {"code_in_run"}),
    "a pickle as weights": (pickled("student.safetensors"), {"damaged_run"}),
    "a pickle as adapter": (pickled("adapter/adapter_model.safetensors"), {"damaged_run"}),
    "a pickle as base": (pickled("base/model.safetensors"), {"damaged_run"}),
    "adapter_model.bin": (pickle_for_an_adapter, {"code_in_run"}),
    "a header of 16 MiB": (long_header, {"damaged_run"}),
    "a vit as wide as memory": (lambda m: edit_yaml(m / "config.yaml", "vit", dim=2_000_000), {"bad_value"}),
    "a vit of other width": (lambda m: edit_yaml(m / "config.yaml", "vit", dim=8192), {"wrong_shapes"}),
    "an adapter of rank 10^9": (
        lambda model: edit_json(model / "adapter" / "adapter_config.json", r_max=10**9),
        {"damaged_run"},
    ),
    "an adapter of other rank": (
        lambda model: edit_json(model / "adapter" / "adapter_config.json", r_max=8),
        {"damaged_run"},
    ),
    "an adapter of no kind": (
        lambda model: edit_json(model / "adapter" / "adapter_config.json", peft_type="EVIL"),
        {"damaged_run"},
    ),
    "an adapter with a library": (
        lambda model: edit_json(
            model / "adapter" / "adapter_config.json", auto_mapping={"base_model_class": "E", "parent_library": "evil"}
        ),
        {"code_in_run"},
    ),
    "an adapter with a pattern": (
        lambda model: edit_json(model / "adapter" / "adapter_config.json", target_modules="(a+)+$"),
        {"damaged_run"},
    ),
    "a kernel from a hub": (
        lambda model: edit_json(model / "base" / "config.json", _attn_implementation="somebody/kernel"),
        {"code_in_run"},
    ),
    "a base beyond belief": (
        lambda model: edit_json(model / "base" / "config.json", vocab_size=2**40),
        {"damaged_run"},
    ),
    "a base of other width": (lambda m: edit_json(m / "base" / "config.json", hidden_size=8192), {"no_model"}),
    "a base that is cut": (cut("base/model.safetensors"), {"no_model"}),
    "weights that are cut": (cut("student.safetensors"), {"wrong_shapes", "damaged_run"}),
    "an adapter that is cut": (cut("adapter/adapter_model.safetensors"), {"damaged_run"}),
    "garbage as tokenizer": (garbage("tokenizer/tokenizer.json"), {"no_model"}),
    "garbage as config.yaml": (garbage("config.yaml"), {"bad_yaml"}),
    "garbage as base/config.json": (garbage("base/config.json"), {"damaged_run"}),
    "a link out": (a_link_out, {"damaged_run"}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hostile")
    run = tiny_run(place / "base")
    attach_adapter(run.student, AdapterConfig(r_min=2, r_max=4))
    save_model(run, place / "model")
    return place / "model"


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_run_is_refused_by_name(model: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a manifest that an attacker has made true. Never "internal", and nothing is asked or executed."""
    change, codes = HOSTILE[kind]
    change(model)
    sign(model)
    monkeypatch.chdir(model.parent)
    with pytest.raises(MaemiError) as caught:
        load_run(model, device="cpu")
    assert caught.value.code in codes
    assert not (model.parent / "OWNED").exists()


@pytest.mark.parametrize(
    ("manifest", "code"),
    [
        ({"format": 2, "files": {}}, "unknown_format"),
        ({"files": {"config.yaml": {}}}, "unknown_format"),
        ({"format": 1, "files": {}}, "damaged_run"),
        ({"format": 1, "files": []}, "damaged_run"),
        ({"format": 1}, "damaged_run"),
        ([], "unknown_format"),
        ({"format": 1, "files": {"../outside": {"bytes": 0, "sha256": ""}}}, "damaged_run"),
        ({"format": 1, "files": {"/etc/hostname": {"bytes": 0, "sha256": ""}}}, "damaged_run"),
    ],
)
def test_a_manifest_that_protects_nothing_is_refused(model: Path, manifest: object, code: str) -> None:
    (model / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RunError) as caught:
        load_run(model, device="cpu")
    assert caught.value.code == code


def test_a_file_that_is_not_listed_is_refused(model: Path) -> None:
    (model / "notes.md").write_text("not ours")
    with pytest.raises(RunError, match=r"notes\.md is not in the manifest"):
        load_run(model, device="cpu")


AUDITED = f"""
import sys
seen = []
def hook(event, arguments):
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class"):
        seen.append(event)
    if event in ("exec", "compile", "import") and "evil" in repr(arguments[:2])[:2000]:
        seen.append(event)
from serve.cli import main
import assistant.inference, bitsandbytes, transformers
sys.path.insert(0, {str(ROOT / "tests")!r})
sys.addaudithook(hook)
try:
    main(sys.argv[1:])
finally:
    print("SEEN", seen, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_of_a_hostile_run_is_executed(model: Path, kind: str) -> None:
    """The whole command in a process of its own, with an audit hook, and somebody who answers every question with y."""
    change, codes = HOSTILE[kind]
    change(model)
    sign(model)
    asked = ["ask", str(ROOT / "docs" / "images" / "chat.png"), "What?", "--run", str(model)]
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, *asked], input="y\n" * 20, capture_output=True, text=True, cwd=model.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert any(f"error: {code}:" in done.stderr for code in codes), done.stderr
    assert "SEEN []" in done.stderr, done.stderr
    assert not (model.parent / "OWNED").exists()


def test_a_base_that_asks_for_code_is_refused_too(tmp_path: Path) -> None:
    """A base outside a run, named by `decoder.base`, is looked at before it is loaded."""
    from assistant.checkpoint import new_run

    run = tiny_run(tmp_path / "base")
    edit_json(tmp_path / "base" / "config.json", auto_map={"AutoModelForCausalLM": "evil.Evil"})
    (tmp_path / "base" / "evil.py").write_text(EVIL)
    with pytest.raises(RunError, match="code_in_run"):
        new_run(run.config, device="cpu")


def test_the_bundled_student_passes() -> None:
    from assistant.checkpoint import resolve_run

    assert resolve_run(None) == BUNDLED

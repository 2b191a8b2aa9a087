"""Run directories: what is saved comes back, what is damaged is refused, what is interrupted leaves the old."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from students import conversation, picture, tiny_run

from assistant import disk
from assistant.adapter_kinds import DyQLoRAFASettings
from assistant.checkpoint import Run, attach_adapter, load_run, save_model
from assistant.disk import MANIFEST, recover, verify_directory, write_directory
from assistant.errors import RunError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A student whose adapter, gates and encoders all differ from their initial values."""
    run = tiny_run(tmp_path_factory.mktemp("base"), "decoder.quantization=nf4")
    attach_adapter(run.student, DyQLoRAFASettings(r_min=2, r_max=4))
    with torch.no_grad():
        for name, parameter in run.student.named_parameters():
            if "lora_B" in name or name.endswith("gate"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return replace(run, config=run.config.model_copy(update={"adapter": DyQLoRAFASettings(r_min=2, r_max=4)}))


def answer(run: Run) -> torch.Tensor:
    with torch.no_grad():
        return run.student(**run.processor([conversation("Size?", "Big.")], [[picture(0)]])).logits


def test_a_saved_student_answers_the_same(run: Run, tmp_path: Path) -> None:
    save_model(run, tmp_path / "run" / "model", card="# Card")
    again = load_run(tmp_path / "run", device="cpu")
    torch.testing.assert_close(answer(again), answer(run), atol=1e-6, rtol=1e-5)
    assert again.name == "run"
    assert again.config == run.config
    assert (tmp_path / "run" / "model" / "README.md").read_text() == "# Card"


def test_a_run_holds_no_pickle_and_carries_its_base(run: Run, tmp_path: Path) -> None:
    save_model(run, tmp_path / "model")
    kinds = {path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert kinds <= {".json", ".yaml", ".safetensors", ".md", ".jinja"}
    assert (tmp_path / "model" / "base" / "model.safetensors").exists()


@pytest.mark.parametrize("file", ["student.safetensors", "config.yaml", "adapter/adapter_model.safetensors", MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damage_is_refused(run: Run, tmp_path: Path, file: str, damage: str) -> None:
    save_model(run, tmp_path / "model")
    path = tmp_path / "model" / file
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    if file == MANIFEST and damage == "flip":
        pytest.skip("a flipped bit of the manifest may leave it true")
    with pytest.raises(RunError) as caught:
        load_run(tmp_path / "model", device="cpu")
    assert caught.value.code in {"damaged_run", "no_run"}


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no_run"):
        load_run(tmp_path / "absent")
    with pytest.raises(RunError, match="no_run"):
        load_run(tmp_path)


def test_weights_of_another_shape_are_refused(run: Run, tmp_path: Path) -> None:
    save_model(run, tmp_path / "model")
    config = tmp_path / "model" / "config.yaml"
    config.write_text(config.read_text().replace("grounded_depth: 1", "grounded_depth: 2"))
    sign(tmp_path / "model")
    with pytest.raises(RunError, match="wrong_shapes"):
        load_run(tmp_path / "model", device="cpu")


def sign(model: Path) -> None:
    """Write the manifest that an attacker would: every file is as the manifest says."""
    files = sorted(path for path in model.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {path.relative_to(model).as_posix(): disk._entry(path) for path in files}
    (model / MANIFEST).write_text(json.dumps({"format": 1, "files": entries}))


def test_a_failed_write_leaves_the_old_directory(tmp_path: Path) -> None:
    def good(staging: Path) -> None:
        (staging / "a").write_text("old")

    def bad(staging: Path) -> None:
        (staging / "a").write_text("new")
        raise OSError("disk full")

    write_directory(tmp_path / "d", good)
    with pytest.raises(OSError, match="disk full"):
        write_directory(tmp_path / "d", bad)
    verify_directory(tmp_path / "d")
    assert (tmp_path / "d" / "a").read_text() == "old"


def write_until(fatal: int, place: Path) -> bool:
    """Replace `place/d` in a child that dies at its `fatal`-th fsync, rename or rmtree; True if it finished."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    calls = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    disk.fsync = deadly(disk.fsync)
    disk.shutil.rmtree = deadly(disk.shutil.rmtree)  # type: ignore[assignment]
    Path.rename = deadly(Path.rename)  # type: ignore[method-assign]
    write_directory(place / "d", lambda staging: fill(staging, "new"))
    os._exit(0)


def fill(staging: Path, text: str) -> None:
    for name in ("a", "b"):
        (staging / name).write_text(text)


def test_kills_between_any_two_steps_leave_old_or_new(tmp_path: Path) -> None:
    """SIGKILL at the k-th fsync, rename or rmtree, for every k until the write completes untouched.

    Without `recover`, a kill between the two renames would leave no directory at all.
    """
    for fatal in range(1, 40):
        place = tmp_path / str(fatal)
        write_directory(place / "d", lambda staging: fill(staging, "old"))
        finished = write_until(fatal, place)
        recover(place / "d")
        verify_directory(place / "d")
        assert {(place / "d" / name).read_text() for name in ("a", "b")} in ({"old"}, {"new"})
        if finished:
            assert fatal > 8
            return
    pytest.fail("the write never completed")

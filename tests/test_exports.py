"""The data set leaves for other trainers and comes back the same; TRL's own trainer takes it as it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from assistant.config import TeachConfig
from assistant.errors import DatasetError
from data_gen.dataset.decisions import Reviews
from data_gen.dataset.exports import FORMATS, SPEAKERS, Format, export_dataset
from data_gen.drawing.synth import write_synthetic
from data_gen.pipeline import teach


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set about a few drawn micrographs."""
    folder, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("taught")
    write_synthetic(folder, classes=("particles", "tips", "fibres"), per_class=12, size=(64, 96), workers=1)
    teach(folder, out, config=TeachConfig(questions_per_image=2), workers=1)
    return out


@pytest.fixture(scope="module")
def rows(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    return load_dataset(str(taught), cache_dir=str(tmp_path_factory.mktemp("cache")))


def canonical(data: Any, split: str) -> list[tuple[str, list[tuple[str, str]], list[str]]]:
    """Id, turns and picture digests of every row, from the parquet file."""
    from datasets import Image, List

    return [
        (
            row["id"],
            [
                (message["role"], "\n".join(part["text"] or "<image>" for part in message["content"]))
                for message in row["messages"]
            ],
            [hashlib.sha256(image["bytes"]).hexdigest() for image in row["images"]],
        )
        for row in data[split].cast_column("images", List(Image(decode=False)))
    ]


def read_back(folder: Path, split: str, form: Format) -> list[tuple[str, list[tuple[str, str]], list[str]]]:
    """The same from an export."""
    roles = {name: role for role, name in SPEAKERS.items()}
    found = []
    for row in json.loads((folder / f"{split}.json").read_text()):
        shown = row["image"] if form == "llava" else row["images"]
        paths = [shown] if isinstance(shown, str) else shown
        turns = [(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]
        found.append((row["id"], turns, [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in paths]))
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_says_what_the_data_set_says(taught: Path, rows: Any, form: Format) -> None:
    """Ids, turns and pixels come back in order. Seen failing with the second picture of pairs left out."""
    folder = export_dataset(taught, form)
    for split in rows:
        assert read_back(folder, split, form) == canonical(rows, split)
    assert len({len(row["messages"]) for row in rows["train"]}) > 1, "conversations of several turns are there"


@pytest.mark.parametrize("form", FORMATS)
def test_markers_and_pictures_are_as_many(taught: Path, form: Format) -> None:
    """LLaMA-Factory refuses a row whose image markers are not as many as its images."""
    folder = export_dataset(taught, form)
    for row in json.loads((folder / "train.json").read_text()):
        shown = row["image"] if form == "llava" else row["images"]
        count = 1 if isinstance(shown, str) else len(shown)
        assert "".join(turn["value"] for turn in row["conversations"]).count("<image>") == count
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * (len(row["conversations"]) // 2)


def test_llama_factory_finds_the_files(taught: Path, rows: Any) -> None:
    """`dataset_info.json` names every split, its form and the columns that its rows really have."""
    folder = export_dataset(taught, "sharegpt")
    info = json.loads((folder / "dataset_info.json").read_text())
    assert set(info) == {f"maemi_{split}" for split in rows}
    for entry in info.values():
        assert entry["formatting"] == "sharegpt"
        first = json.loads((folder / entry["file_name"]).read_text())[0]
        assert all(column in first for column in entry["columns"].values())


def test_an_export_is_repeatable_and_leaves_nothing_old(taught: Path) -> None:
    """The same bytes a second time; a picture that no row shows any more is deleted with what is half written."""
    folder = export_dataset(taught, "llava")
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for stray in ("0" * 24 + ".png", ".torn.png.partial"):
        (folder / "images" / stray).write_bytes(b"old")
    export_dataset(taught, "llava")
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_decisions_of_people_are_exported(taught: Path, rows: Any) -> None:
    """A rejected row is gone, an edited one has the person's words, at once and without teaching again."""
    first, second = rows["test"][0], rows["test"][1]
    with Reviews(taught) as reviews:
        reviews.decide(first, "rejected", reviewer="Ada")
        reviews.decide(second, "edited", reviewer="Ada", answer="It shows something else.")
    exported = {row["id"]: row for row in json.loads((export_dataset(taught, "sharegpt") / "test.json").read_text())}
    assert first["id"] not in exported
    assert exported[second["id"]]["conversations"][-1]["value"] == "It shows something else."
    (taught / "review.sqlite").unlink()


def test_no_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no_dataset"):
        export_dataset(tmp_path, "llava")


# --------------------------------------------------------------------------------------------------------------- TRL


def tiny_processor(texts: list[str]) -> Any:
    """LLaVA's processor on a word-level tokenizer of these texts and pictures of 28 px."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    template = (
        "{% for message in messages %}{{ message.role }} : {% for part in message.content %}"
        "{% if part.type == 'image' %}<image>{% else %}{{ part.text }} {% endif %}{% endfor %}</s>{% endfor %}"
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def tiny_llava(processor: Any) -> Any:
    """A stock LLaVA of two layers of width 16, from a config alone."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = processor.tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=image))


@pytest.mark.filterwarnings("ignore")
def test_trl_trains_on_the_data_set_as_it_is(rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's own SFTTrainer learns from the columns as `load_dataset` gives them: the loss falls, pictures included.

    Seen failing (placeholders without images) with the column `images` renamed.
    """
    import trl

    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    texts = [part["text"] or "" for row in rows["train"] for message in row["messages"] for part in message["content"]]
    processor = tiny_processor(["user : assistant :", *texts])
    settings = trl.SFTConfig(
        output_dir=str(tmp_path), max_length=None, max_steps=40, per_device_train_batch_size=4, learning_rate=1e-2,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = trl.SFTTrainer(tiny_llava(processor), settings, train_dataset=rows["train"], processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape[1:] == (3, 28, 28), "no images in the batch"
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])

"""SmolLM2-135M itself, where `make models` has brought it: it is itself untrained; trains, resumes and answers."""

import shutil
from pathlib import Path

import pytest
import torch
from instruction_data import write_dataset
from students import conversation, picture
from transformers import AutoModelForCausalLM

from assistant.chat import Conversation, Message
from assistant.checkpoint import load_run, new_run
from assistant.config import Config, load_config
from assistant.disk import MANIFEST, fingerprint, models_folder
from assistant.inference import Assistant
from training.data import TrainingSet, load_split
from training.trainer import train

STUDENT = Path(__file__).parents[1] / "configs" / "student.yaml"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _here() -> None:
    if not (models_folder() / "smollm2-135m" / MANIFEST).is_file():
        pytest.skip("smollm2-135m is not here: make models")


def configured(*overrides: str) -> Config:
    small = ["training.batch_size=2", "training.steps=2", "training.save_every=1", "training.precision=fp32"]
    alone = ["training.language_steps=0", "training.alignment_steps=0"]
    return load_config(STUDENT, [*small, *alone, *overrides])


def test_untrained_it_is_its_base() -> None:
    run = new_run(configured("init=null"), device="cpu")
    base = AutoModelForCausalLM.from_pretrained(run.base.directory, dtype=torch.float32).eval()
    first = Message("user", "Which is finer?", images=2, aux="{count} = 24")
    talk = Conversation((first, Message("assistant", "The second."), *conversation("And now?", "Both.").messages))
    batch = run.processor([talk], [[picture(seed, run.config.image_size) for seed in range(3)]])
    run.student.eval()
    with torch.inference_mode():
        expected = base(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert torch.equal(run.student(**batch).logits, expected)


def test_a_conversation_is_what_its_own_template_makes_of_it() -> None:
    """With pictures and references: training, serving and the template of the base write the same tokens."""
    processor = new_run(configured("init=null"), device="cpu").processor
    question, answer = "<image> <image> ({count} = 24) Which is finer?", "{count} were counted."
    said = [("user", question), ("assistant", answer), ("user", "And?"), ("assistant", "No.")]
    turns = [{"role": role, "content": content} for role, content in said]
    text = processor.tokenizer.apply_chat_template(turns, tokenize=False)
    talk = Conversation(
        (
            Message("user", "Which is finer?", images=2, aux="{count} = 24"),
            Message("assistant", answer),
            Message("user", "And?"),
            Message("assistant", "No."),
        )
    )
    taught = processor.encode(talk)
    assert processor.tokenizer.decode(taught.input_ids) + "\n" == text
    asked = processor.encode(Conversation(talk.messages[:3]))
    assert taught.input_ids[: len(asked.input_ids)] == asked.input_ids
    replies = [token for token, mine in zip(taught.input_ids, taught.is_answer, strict=True) if mine]
    assert processor.tokenizer.decode(replies) == f"{answer}<|im_end|>No.<|im_end|>"


def test_in_nf4_it_trains_resumes_and_answers(tmp_path: Path) -> None:
    """Two steps on four pictures, straight and with a stop between them, end in the same weights."""
    data = write_dataset(tmp_path / "data", per_class=2)
    config = configured("decoder.quantization=nf4")
    rows = TrainingSet(
        load_split(data, "train"), image_size=config.image_size, settings=config.training, seed=0, references=True
    )
    assert any("{count} = 12" in rows[i].conversation.messages[0].aux for i in range(len(rows)))
    train(config, data, tmp_path / "straight", device="cpu")

    def stop(part: int, *rest: object) -> None:
        if part >= 2:  # a step is saved after it was told
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, data, tmp_path / "resumed", device="cpu", progress=stop)
    assert [path.name for path in (tmp_path / "resumed" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-1"]
    train(config, data, tmp_path / "resumed", device="cpu")
    for name in ("student.safetensors", "adapter/adapter_model.safetensors"):
        ours, theirs = (tmp_path / kind / "model" / name for kind in ("straight", "resumed"))
        assert fingerprint(ours) == fingerprint(theirs), name
    shutil.rmtree(tmp_path / "straight")
    run = load_run(tmp_path / "resumed", device="cpu", dense=True)
    assert run.base.name == "smollm2-135m"
    pictured = Path(__file__).parents[1] / "examples" / "powder.png"
    assert "".join(Assistant(run).ask([pictured], "What is seen here?", max_new_tokens=12))

"""The wiring: an untrained student is its language model, an image matters, batch-mates and padding do not."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from students import conversation, picture, tiny_run, tiny_student
from transformers import AutoModelForImageTextToText, AutoProcessor

from assistant.adapters import set_rank
from assistant.chat import Conversation, Message
from assistant.checkpoint import attach_adapter
from assistant.errors import ConfigError
from assistant.model import MaemiForConditionalGeneration, MaemiProcessor


@pytest.fixture(scope="module")
def parts() -> tuple[MaemiForConditionalGeneration, MaemiProcessor]:
    return tiny_student()


def open_gates(student: MaemiForConditionalGeneration) -> None:
    for name, parameter in student.named_parameters():
        if "gate" in name and "decoder.blocks" in name:
            parameter.data.fill_(0.5)


def test_an_untrained_student_equals_its_language_model(parts) -> None:
    student, processor = tiny_student()
    batch = processor([conversation("What is it?", "Wires.")], [[picture(0)]])
    with torch.no_grad():
        seen = student(**batch).logits
        alone = student.decoder.lm(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(seen, alone)


def test_the_image_reaches_the_answer(parts) -> None:
    student, processor = parts
    open_gates(student)
    losses = [
        student(**processor([conversation("What is it?", "Wires.")], [[picture(seed)]])).loss.item() for seed in (0, 1)
    ]
    assert losses[0] != losses[1]


def test_gradients_reach_every_part_of_an_opened_student() -> None:
    student, processor = tiny_student()
    open_gates(student)
    for name, parameter in student.named_parameters():
        if "gate" in name:
            parameter.data.fill_(0.5)
    student.train().requires_grad_(True)
    batch = processor(
        [conversation("What is it?", "Wires."), conversation("Size?", "Big.")], [[picture(0)], [picture(1)]]
    )
    student(**batch).loss.backward()
    untouched = {name for name, p in student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    matching = {name for name in untouched if name.startswith(("matching", "image_match", "text_match"))}
    assert untouched == matching


def test_padding_changes_no_loss(parts) -> None:
    """A short conversation beside a long one: neither sees the other's padding, images or questions."""
    student, processor = parts
    short = conversation("Size?", "Big.")
    long = Conversation(
        (
            Message("user", "Compare the two images, please.", 2, "5 kV"),
            Message("assistant", "The first is finer."),
            Message("user", "And the surface?"),
            Message("assistant", "Rough."),
        )
    )
    images = [[picture(0)], [picture(1), picture(2)]]
    both = processor([short, long], images)
    with torch.no_grad():
        together = student(**both).logits
        for row, (talk, shown) in enumerate(zip([short, long], images, strict=True)):
            one = processor([talk], [shown])
            alone = student(**one).logits
            length = one["input_ids"].shape[1]
            torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=1e-4)


def test_greedy_answers_are_equal_alone_and_left_padded(parts) -> None:
    student, processor = parts
    asks = [Conversation((Message("user", text, 1),)) for text in ("Size?", "What kind of material is this, please?")]
    images = [[picture(3)], [picture(4)]]
    batch = processor(asks, images, padding_side="left")
    together = student.generate(**batch, max_new_tokens=12, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for row, (ask, shown) in enumerate(zip(asks, images, strict=True)):
        one = processor([ask], [shown], padding_side="left")
        alone = student.generate(**one, max_new_tokens=12, do_sample=False)[0, one["input_ids"].shape[1] :]
        assert together[row].tolist()[: len(alone)] == alone.tolist()


def test_beams_keep_their_own_image(parts) -> None:
    student, processor = parts
    batch = processor([Conversation((Message("user", "Size?", 1),))], [[picture(0)]], padding_side="left")
    beams = student.generate(**batch, max_new_tokens=4, num_beams=3, num_return_sequences=3, do_sample=False)
    assert len(beams) == 3


def test_a_student_round_trips_through_the_auto_classes(parts, tmp_path: Path) -> None:
    student, processor = parts
    student.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    words = AutoProcessor.from_pretrained(tmp_path)
    batch = processor([conversation("Size?", "Big.")], [[picture(0)]])
    repeated = words([conversation("Size?", "Big.")], [[picture(0)]])
    assert all(torch.equal(batch[name], repeated[name]) for name in batch)
    with torch.no_grad():
        torch.testing.assert_close(student(**batch).logits, again(**repeated).logits, atol=1e-6, rtol=1e-5)


def test_markers_and_images_must_agree(parts) -> None:
    _, processor = parts
    with pytest.raises(ConfigError, match="image_count"):
        processor([conversation("Size?", "Big.")], [[]])


def test_training_and_evaluation_have_one_loss() -> None:
    """Training goes without logits: its loss equals cross-entropy on the logits of evaluation, answer tokens alone.

    Seen failing with labels that are not moved by one token.
    """
    student, processor = tiny_student()
    open_gates(student)
    batch = processor(
        [conversation("What is it?", "Wires."), conversation("Size?", "It is rough.")], [[picture(0)], [picture(1)]]
    )
    evaluated, trained = student.eval()(**batch), student.train()(**batch)
    assert trained.logits is None
    expected = F.cross_entropy(evaluated.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(evaluated.loss, expected)
    torch.testing.assert_close(trained.loss, expected)


def trained_student(directory: Path, kind: str) -> tuple[MaemiForConditionalGeneration, MaemiProcessor]:
    """A whole student on an NF4 base with an adapter, every gate open and every B away from zero."""
    run = tiny_run(directory, "decoder.quantization=nf4", f"adapter.kind={kind}")
    attach_adapter(run.student, run.config.adapter)
    torch.manual_seed(5)
    for name, parameter in run.student.named_parameters():
        if "gate" in name and "gate_proj" not in name:
            parameter.data.fill_(0.5)
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    return run.student.train(), run.processor


def gradients(student: MaemiForConditionalGeneration, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    student.zero_grad()
    student(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def two_conversations(processor: MaemiProcessor) -> dict[str, torch.Tensor]:
    talks = [conversation("What is it?", "Wires."), conversation("Size?", "It is rough.")]
    return processor(talks, [[picture(0)], [picture(1)]])


@pytest.mark.parametrize("kind", ["dyqlora_fa", "dya_mope"])
def test_checkpointing_changes_no_gradient_of_a_whole_student(kind: str, tmp_path: Path) -> None:
    """At a rank of its own. Seen failing with the rank reset before backward, as a context manager would."""
    student, processor = trained_student(tmp_path, kind)
    batch = two_conversations(processor)
    set_rank(student.decoder.lm, 6)
    plain = gradients(student, batch)
    student.decoder.lm.activation_checkpointing_enable()
    recomputed = gradients(student, batch)
    assert plain.keys() == recomputed.keys()
    assert sum("lora_B" in name for name in plain) == 14
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


@pytest.mark.parametrize("kind", ["dyqlora_fa", "dya_mope"])
def test_generating_changes_no_gradient_of_a_whole_student(kind: str, tmp_path: Path) -> None:
    """bitsandbytes repacks 4-bit weights on the first pass without gradients. Seen failing with that left on."""
    student, processor = trained_student(tmp_path, kind)
    batch = two_conversations(processor)
    before = gradients(student, batch)
    asked = processor([Conversation((Message("user", "Size?", 1),))], [[picture(2)]], padding_side="left")
    student.eval().generate(**asked, max_new_tokens=4, do_sample=False)
    after = gradients(student.train(), batch)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

"""The prompt template: one encoding for training and inference, loss on answers only, markers counted."""

import pytest

from assistant.chat import (
    Conversation,
    Message,
    auxiliary_text,
    class_answer,
    encode_conversation,
    number_lines,
)


class Letters:
    """A tokenizer with one token per character."""

    bos_token_id = 1
    eos_token_id = 2

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens, "special tokens are the template's business"
        return [ord(letter) for letter in text]


def text_of(ids: list[int]) -> str:
    return "".join({1: "<s>", 2: "</s>"}.get(i, chr(i)) for i in ids)


TALK = Conversation(
    (
        Message("user", "What is it?", images=1, aux="5 kV"),
        Message("assistant", "Wires."),
        Message("user", "And this?", images=2),
        Message("assistant", "Pores."),
    )
)


def test_the_template_reads_as_documented() -> None:
    encoded = encode_conversation(TALK, Letters(), question_tokens=99)
    assert text_of(encoded.input_ids) == (
        "<s>[INST] <image> (5 kV) What is it? [/INST] Wires.</s>[INST] <image> <image> And this? [/INST] Pores.</s>"
    )


def test_only_answers_and_their_ends_carry_loss() -> None:
    encoded = encode_conversation(TALK, Letters(), question_tokens=99)
    learned = [i for i, answer in zip(encoded.input_ids, encoded.is_answer, strict=True) if answer]
    assert text_of(learned) == " Wires.</s> Pores.</s>"


def test_a_prompt_is_the_prefix_of_what_is_trained() -> None:
    """Guards against a boundary that moves when the answer is tokenised along: inference would leave training."""
    whole = encode_conversation(TALK, Letters(), question_tokens=99)
    prompt = encode_conversation(Conversation(TALK.messages[:3]), Letters(), question_tokens=99)
    assert whole.input_ids[: len(prompt.input_ids)] == prompt.input_ids
    assert text_of(prompt.input_ids).endswith("[/INST]")


def test_indices_count_markers_and_turns() -> None:
    encoded = encode_conversation(TALK, Letters(), question_tokens=99)
    by_token = dict(zip(range(len(encoded.input_ids)), encoded.image_index, strict=True))
    text = [chr(i) if i > 2 else "#" for i in encoded.input_ids]
    first = "".join(text).index("W")
    assert by_token[0] == 0
    assert by_token[first] == 1
    assert encoded.image_index[-1] == 3
    assert encoded.turn_index[first] == 1
    assert encoded.turn_index[-1] == 2
    assert encoded.image_index == sorted(encoded.image_index)


def test_the_text_encoder_reads_question_then_facts_and_is_bounded() -> None:
    encoded = encode_conversation(TALK, Letters(), question_tokens=14)
    assert [text_of(q) for q in encoded.questions] == [" What is it? (", " And this?"]


def test_speakers_must_alternate() -> None:
    with pytest.raises(ValueError, match="must alternate"):
        Conversation((Message("assistant", "Hello."),))


def test_lines_are_joined_and_numbered() -> None:
    assert auxiliary_text("5 kV ", "", "count 3") == "5 kV; count 3"
    assert number_lines(["a"]) == "a"
    assert number_lines(["a", "", "c"]) == "image 1: a; image 3: c"
    assert number_lines([]) == ""
    assert class_answer("mems_devices_electrodes") == "It shows mems devices electrodes."

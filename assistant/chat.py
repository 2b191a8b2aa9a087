"""The prompt: a conversation about images -> ids, loss mask, image and turn indices.

Training and inference share it, so the student is asked as it was taught. Knows nothing about pixels, measurement
or torch: a tokenizer is anything with `encode`, `bos_token_id` and `eos_token_id`.

What stands around the words is the chat template of the language model's tokenizer or, where that has none, of its
family. In Llama 2's a conversation reads

    <s>[INST] <image> (auxiliary text) question [/INST] answer</s>[INST] next question [/INST] next answer</s>

It is tokenised piece by piece, so the boundary between question and answer never moves with the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from assistant.families import LLAMA_2, Family, Template

IMAGE_MARKER = "<image>"
CAPTION_PROMPT = "Describe this micrograph."
CLASSIFY_PROMPT = "Which class does this micrograph belong to?"


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that the template needs."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> Any: ...


@dataclass(frozen=True)
class Message:
    """One turn of one speaker; a user's `images` new images and their auxiliary text stand before the words."""

    role: Literal["user", "assistant"]
    text: str
    images: int = 0
    aux: str = ""


@dataclass(frozen=True)
class Conversation:
    """Alternating user and assistant messages, the user first."""

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        expected = ("user", "assistant")
        for position, message in enumerate(self.messages):
            if message.role != expected[position % 2]:
                raise ValueError(f"message {position} is by {message.role!r}; user and assistant must alternate")

    @property
    def images(self) -> int:
        """Images shown so far."""
        return sum(message.images for message in self.messages)


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation and, for every token, what the student needs to know about it."""

    input_ids: list[int]
    is_answer: list[bool]
    """True where the token is part of an answer, its end included: only these carry loss."""
    image_index: list[int]
    """Number of image markers up to and including the token: k binds it to the k-th image, 0 to none."""
    turn_index: list[int]
    """Turn of the token, from 1."""
    questions: list[list[int]]
    """Per turn, the token ids the text encoder reads: question, then auxiliary text."""


def auxiliary_text(*parts: str) -> str:
    """Join metadata, measured facts and the user's own words into one auxiliary line; empty parts vanish."""
    return "; ".join(part.strip() for part in parts if part.strip())


def number_lines(lines: Sequence[str]) -> str:
    """Auxiliary lines of several images as one: numbered as the images are, a single one as it is."""
    if len(lines) == 1:
        return lines[0]
    return auxiliary_text(*(f"image {number}: {line}" for number, line in enumerate(lines, start=1) if line))


def class_answer(label: str) -> str:
    """The sentence that names a class, in training and in classification."""
    return f"It shows {label.replace('_', ' ')}."


def question_text(message: Message) -> str:
    """What the text encoder reads of a user's message."""
    return f"{message.text} ({message.aux})" if message.aux else message.text


def encode_conversation(
    conversation: Conversation, tokenizer: Tokenizer, *, question_tokens: int, template: Template = LLAMA_2
) -> Encoded:
    """Apply the template; a conversation that ends with the user ends ready for the answer.

    `question_tokens` bounds what the text encoder reads of a turn; a longer text is cut at its end, where the
    auxiliary text stands.
    """
    encoded = Encoded([], [], [], [], [])
    start, end = ([] if token is None else [token] for token in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    images = turn = 0

    def add(ids: Sequence[int], *, answer: bool) -> None:
        encoded.input_ids.extend(ids)
        encoded.is_answer.extend([answer] * len(ids))
        encoded.image_index.extend([images] * len(ids))
        encoded.turn_index.extend([turn] * len(ids))

    def tokens(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    for message in conversation.messages:
        if message.role == "assistant":
            add(tokens(f"{template.reply_gap}{message.text}") + end, answer=True)
            continue
        turn += 1
        add(start if turn == 1 and template.begins else [], answer=False)
        add(tokens(template.first if turn == 1 else template.following), answer=False)
        gap = template.gap
        for _ in range(message.images):
            images += 1
            add(tokens(f"{gap}{IMAGE_MARKER}"), answer=False)
            gap = " "
        add(tokens(f"{gap}({message.aux}) {message.text}" if message.aux else f"{gap}{message.text}"), answer=False)
        add(tokens(template.answer), answer=False)
        encoded.questions.append(tokens(f" {question_text(message)}")[:question_tokens])
    return encoded


def template_of(tokenizer: Any, family: Family) -> Template:
    """The chat template a tokenizer brings, taken apart; the family's where it brings none or loses words in it.

    The template is rendered once around three words that stand for a question, its reply and the next question.
    """
    if not getattr(tokenizer, "chat_template", None):
        return family.template
    said = (("user", QUESTION), ("assistant", REPLY), ("user", NEXT))
    turns = [{"role": role, "content": content} for role, content in said]
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, **dict(family.template_arguments)
    )
    if [text.count(word) for _, word in said] != [1, 1, 1]:
        return family.template
    first, rest = text.split(QUESTION)
    replied, rest = rest.split(REPLY)
    between, answer = rest.split(NEXT)
    reply_gap = replied[len(answer) :] if replied.startswith(answer) else ""
    # Llama 2 puts a space before the token that ends a reply; ours follows the words at once, as in training before.
    whole = [*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens]  # one token wherever they stand
    end = max((word for word in whole if between.lstrip().startswith(word)), key=len, default=None)
    following = between if end is None else between.lstrip().removeprefix(end)
    return Template(first, following, answer, end, reply_gap=reply_gap, begins=False)


QUESTION, REPLY, NEXT = "QUESTION", "REPLY", "NEXT"

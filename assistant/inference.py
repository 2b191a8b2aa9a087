"""Assistant: read, measure and encode a micrograph once, then ask, caption and classify. Knows nothing about servers.

assistant = Assistant.load()
print("".join(assistant.ask(["wafer.tif"], "What is the pitch of the lines?")))
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assistant.chat import (
    CAPTION_PROMPT,
    CLASSIFY_PROMPT,
    Conversation,
    Message,
    auxiliary_text,
    class_answer,
    number_lines,
)
from assistant.checkpoint import Run, load_run
from assistant.decoder import VisualContext
from assistant.errors import ConfigError
from assistant.measure import Facts, Known, corrected_stream, disagreements, measure
from assistant.micrograph import Micrograph, read_micrograph, to_model_input

Image = Path | str | bytes | Micrograph
CACHED_LOOKS = 64
ENCODING_BATCH = 16
UNKNOWN_BELOW = 0.05
"""A class is "unknown" when the student itself would say any of the given labels with less than this probability."""


@dataclass(frozen=True)
class Look:
    """Everything that is computed once per image."""

    micrograph: Micrograph
    facts: Facts
    aux: str
    memory: Tensor  # [N, D]
    summary: Tensor  # [D']

    @property
    def known(self) -> Known:
        """What an answer about this image may quote."""
        instrument, calibration = self.micrograph.instrument, self.micrograph.calibration
        return Known(
            self.facts,
            hv_kv=instrument.hv_kv,
            wd_mm=instrument.wd_mm,
            magnification=instrument.magnification,
            nm_per_pixel=calibration.nm_per_pixel if calibration else None,
        )


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Assistant:
    """A loaded student that answers about micrographs; safe to share between threads."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.student = run.student
        self.processor = run.processor
        self.device = next(run.student.parameters()).device
        self._looks: OrderedDict[tuple[str, int, float | None], Look] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, run: Path | None = None, device: str = "auto") -> Assistant:
        """Load a run, or the bundled tiny student. Raises RunError."""
        return cls(load_run(run, device=device))

    @property
    def name(self) -> str:
        """Name of the student."""
        return self.run.name

    def look(self, image: Image) -> Look:
        """Read, measure and encode an image, or recall it. Raises MicrographError."""
        return self.look_all([image])[0]

    def look_all(self, images: Sequence[Image]) -> list[Look]:
        """`look` at several images with one pass through the encoders."""
        micrographs = [image if isinstance(image, Micrograph) else read_micrograph(_source(image)) for image in images]
        keys = [_key(m) for m in micrographs]
        with self._lock:
            known = {key: self._looks[key] for key in keys if key in self._looks}
        fresh = {key: m for key, m in zip(keys, micrographs, strict=True) if key not in known}
        known |= dict(zip(fresh, self._look_anew(list(fresh.values())), strict=True))
        with self._lock:
            for key in keys:
                self._looks[key] = known[key]
                self._looks.move_to_end(key)
            while len(self._looks) > CACHED_LOOKS:
                self._looks.popitem(last=False)
        return [known[key] for key in keys]

    def facts_of(self, image: Image) -> Facts:
        """Measured facts of an image."""
        return self.look(image).facts

    def ask(
        self,
        images: Sequence[Image],
        question: str,
        *,
        history: Sequence[Message] = (),
        aux: str | None = None,
        max_new_tokens: int = 128,
        sampling: Sampling = Sampling(),
    ) -> Iterator[str]:
        """Stream the answer to a question in pieces of text.

        About a single image, numbers that contradict metadata or measurement are replaced by what is known.
        `images` are all images of the conversation in order; those that `history` does not count stand before the
        new question. `aux` is the user's own description, added to metadata and measured facts.
        Raises MicrographError, and ConfigError `empty_question` or `too_long`, before the first piece.
        """
        if not question.strip():
            raise ConfigError("empty_question", "The question is empty. Ask something about the image.")
        looks = self.look_all(images)
        conversation = self._fit(_compose(looks, question, history, aux or ""), max_new_tokens)
        tokens = self._generate([conversation], [looks], max_new_tokens, sampling)
        pieces = self._text(row[0] for row in tokens)
        yield from corrected_stream(pieces, looks[0].known) if len(looks) == 1 else pieces

    def caption(self, images: Sequence[Image], *, max_new_tokens: int = 128) -> list[str]:
        """One caption per image, in order. Raises MicrographError for the first image that cannot be read."""
        captions: list[str] = []
        for start in range(0, len(images), ENCODING_BATCH):
            looks = self.look_all(images[start : start + ENCODING_BATCH])
            captions += self.answer_all([(look, CAPTION_PROMPT) for look in looks], max_new_tokens=max_new_tokens)
        return captions

    def answer_all(
        self, asked: Sequence[tuple[Look, str]], *, max_new_tokens: int = 128, with_aux: bool = True
    ) -> list[str]:
        """Greedy answers to one question per look, in one padded batch, their numbers put right.

        `with_aux=False` withholds the facts from the student.
        """
        conversations = [
            _compose([look if with_aux else replace(look, aux="")], question, (), "") for look, question in asked
        ]
        texts = self.complete(conversations, [[look] for look, _ in asked], max_new_tokens=max_new_tokens)
        return ["".join(corrected_stream([text], look.known)) for text, (look, _) in zip(texts, asked, strict=True)]

    def complete(
        self,
        conversations: Sequence[Conversation],
        looks: Sequence[Sequence[Look]],
        *,
        max_new_tokens: int = 128,
    ) -> list[str]:
        """Greedy continuations of several conversations, in one padded batch, as the student words them."""
        columns = list(self._generate(conversations, looks, max_new_tokens, Sampling()))
        rows = zip(*columns, strict=True)
        return ["".join(self._text(iter(row))).strip() for row in rows]

    def classify(
        self,
        images: Sequence[Image],
        labels: Sequence[str],
        *,
        examples: Mapping[str, Sequence[Image]] | None = None,
        top: int = 5,
    ) -> list[list[tuple[str, float]]]:
        """The `top` most probable labels of each image with their probabilities, best first.

        Zero-shot: the likelihood of each label as the student's answer. Few-shot, with `examples` per label: cosine
        distance to the labels' prototypes on the frozen encoders. "unknown" leads the list when the student would
        itself rather say something else; its probability is what the labels leave over.
        Raises ConfigError `too_few_labels`, and MicrographError.
        """
        if len(set(labels)) < 2:
            raise ConfigError("too_few_labels", "Fewer than two different labels were given. Give at least two.")
        looks = self.look_all(images)
        if examples is None:
            scores = [self._label_likelihoods(look, labels) for look in looks]
        else:
            prototypes = self._prototypes(labels, examples)
            scores = [prototype_scores(look.summary, prototypes) for look in looks]
        return [rank_labels(labels, score)[:top] for score in scores]

    def warnings_for(self, answer: str, images: Sequence[Image]) -> list[str]:
        """What a reader must know beside the answer: reader warnings, and numbers that measurement contradicts."""
        looks = self.look_all(images)
        found = [warning for look in looks for warning in look.micrograph.warnings]
        known = "; ".join(look.aux for look in looks)
        return found + disagreements(answer, [look.facts for look in looks], known)

    def encode(self, micrographs: Sequence[Micrograph]) -> tuple[Tensor, Tensor]:
        """Memory [I, N, D] and summary [I, D'] of micrographs, without measuring them."""
        inputs = np.stack([to_model_input(m, self.processor.image_size)[0] for m in micrographs])
        return self.encode_pixels(torch.from_numpy(inputs)[:, None])

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Memory [I, N, D] and summary [I, D'] of model inputs [I, 1, S, S]."""
        with torch.inference_mode(), self._autocast():
            states = self.student.encode_images(pixels.to(self.device))
        return states.memory, states.summary

    def label_probabilities(self, look: Look, labels: Sequence[str]) -> np.ndarray:
        """Probability [C] of each label among the labels, by the student's likelihood of naming it."""
        return self._label_likelihoods(look, labels).softmax(-1).double().numpy()

    def _look_anew(self, micrographs: Sequence[Micrograph]) -> list[Look]:
        looks = []
        for start in range(0, len(micrographs), ENCODING_BATCH):
            batch = micrographs[start : start + ENCODING_BATCH]
            for m, memory, summary in zip(batch, *self.encode(batch), strict=True):
                facts = measure(m)
                looks.append(Look(m, facts, auxiliary_text(m.metadata_line(), facts.line()), memory, summary))
        return looks

    def _context(self, batch: Mapping[str, Tensor], looks: Sequence[Sequence[Look]]) -> VisualContext | None:
        shown = [look.memory for row in looks for look in row]
        if not shown:
            return None
        return self.student.visual_context(
            None,
            batch["image_mask"],
            batch["question_ids"],
            batch["question_mask"],
            batch["turn_images"],
            image_memory=torch.stack(shown),
        )

    def _batch(self, conversations: Sequence[Conversation], padding_side: str) -> dict[str, Tensor]:
        batch = self.processor(conversations, padding_side=padding_side)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _generate(
        self,
        conversations: Sequence[Conversation],
        looks: Sequence[Sequence[Look]],
        max_new_tokens: int,
        sampling: Sampling,
    ) -> Iterator[list[int]]:
        """Yield, step by step, the next token of every row; rows that ended repeat the end token."""
        from transformers import DynamicCache

        generator = torch.Generator(device=self.device).manual_seed(sampling.seed)
        end = self.processor.tokenizer.eos_token_id
        with torch.inference_mode(), self._autocast():
            batch = self._batch(conversations, "left")
            context = self._context(batch, looks)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        done = torch.zeros(len(ids), dtype=torch.bool, device=self.device)
        cache = DynamicCache(config=self.student.config.text_config)
        for _ in range(max_new_tokens):
            # inference mode is left before every yield, so a paused stream never changes its caller's mode
            with torch.inference_mode(), self._autocast():
                positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                output = self.student(
                    ids,
                    attention_mask=mask,
                    position_ids=positions,
                    image_index=batch["image_index"],
                    turn_index=batch["turn_index"],
                    context=context,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                token = next_token(output.logits[:, -1], sampling, generator).masked_fill(done, end)
                done |= token == end
                ids, mask = token[:, None], torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            yield token.tolist()
            if done.all():
                return

    def _text(self, tokens: Iterator[int]) -> Iterator[str]:
        """Decode a stream of tokens into pieces of text, holding back bytes of an unfinished character."""
        tokenizer, ids, told = self.processor.tokenizer, [], ""
        for token in tokens:
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
            text = tokenizer.decode(ids, skip_special_tokens=True).lstrip()
            if len(text) > len(told) and not text.endswith("\ufffd"):
                yield text[len(told) :]
                told = text

    def _label_likelihoods(self, look: Look, labels: Sequence[str]) -> Tensor:
        """Log-probability [C] that the student answers the class question with each label."""
        asked = _compose([look], CLASSIFY_PROMPT, (), "").messages
        conversations = [Conversation((*asked, Message("assistant", class_answer(label)))) for label in labels]
        with torch.inference_mode(), self._autocast():
            batch = self._batch(conversations, "right")
            labelled = batch.pop("labels")[:, 1:]
            context = self._context(batch, [[look]] * len(labels))
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "image_index", "turn_index")}
            logits = self.student(**inputs, context=context).logits[:, :-1]
        chosen = logits.float().log_softmax(-1).gather(-1, labelled.clamp(min=0)[..., None])[..., 0]  # [C, T - 1]
        total: Tensor = (chosen * (labelled >= 0)).sum(-1).cpu()
        return total

    def _prototypes(self, labels: Sequence[str], examples: Mapping[str, Sequence[Image]]) -> Tensor:
        missing = [label for label in labels if not examples.get(label)]
        if missing:
            raise ConfigError("no_examples", f"Label {missing[0]!r} has no example images. Add a folder of that name.")
        vectors = [torch.stack([look.summary for look in self.look_all(list(examples[label]))]) for label in labels]
        return torch.stack([torch.nn.functional.normalize(v, dim=-1).mean(0) for v in vectors])  # [C, D']

    def _fit(self, conversation: Conversation, max_new_tokens: int) -> Conversation:
        """Forget the oldest questions, never the images, until prompt and answer fit the language model."""
        limit = self.student.config.text_config.max_position_embeddings - max_new_tokens
        while len(self.processor.encode(conversation).input_ids) > limit:
            if len(conversation.messages) < 3:
                raise ConfigError("too_long", f"Question and facts exceed {limit} tokens. Ask a shorter question.")
            first, _, following, *rest = conversation.messages
            aux = auxiliary_text(first.aux, following.aux)
            merged = replace(following, images=first.images + following.images, aux=aux)
            conversation = Conversation((merged, *rest))
        return conversation

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()


def next_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Logits [B, V] -> tokens [B]: the best one, or a draw from the smallest set of tokens that holds `top_p`."""
    if sampling.temperature <= 0.0:
        return logits.argmax(-1)
    probabilities, order = (logits.float() / sampling.temperature).softmax(-1).sort(-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    kept[:, 0] = probabilities[:, 0]
    return order.gather(-1, torch.multinomial(kept, 1, generator=generator))[:, 0]


def prototype_scores(summary: Tensor, prototypes: Tensor, temperature: float = 0.05) -> Tensor:
    """Log-probability [C] of each prototype [C, D'] for one image vector [D'], by cosine similarity."""
    similarity = torch.nn.functional.cosine_similarity(summary[None], prototypes, dim=-1)
    return (similarity / temperature).log_softmax(-1).cpu()


def rank_labels(labels: Sequence[str], log_likelihood: Tensor) -> list[tuple[str, float]]:
    """Labels and "unknown" by probability, best first.

    While the labels together are likely answers, "unknown" holds what they leave over; below `UNKNOWN_BELOW` they
    share that little, and "unknown" leads.
    """
    likelihood = log_likelihood.double().exp()
    total = float(likelihood.sum())
    known = likelihood / total if total >= UNKNOWN_BELOW else likelihood
    ranked = sorted(zip(labels, known.tolist(), strict=True), key=lambda pair: -pair[1])
    return ranked if total >= UNKNOWN_BELOW else [("unknown", max(0.0, 1.0 - total)), *ranked]


def _compose(looks: Sequence[Look], question: str, history: Sequence[Message], aux: str) -> Conversation:
    """History and question as a conversation, each user's message with the facts of the images it brings."""
    remaining = list(looks)
    messages = []
    for message in history:
        if message.role == "user":
            shown, remaining = remaining[: message.images], remaining[message.images :]
            message = replace(message, images=len(shown), aux=auxiliary_text(message.aux, _facts_line(shown)))
        messages.append(message)
    described = auxiliary_text(_facts_line(remaining), aux)
    return Conversation((*messages, Message("user", question.strip(), len(remaining), described)))


def _facts_line(looks: Sequence[Look]) -> str:
    return number_lines([look.aux for look in looks])


def _source(image: Path | str | bytes) -> Path | bytes:
    return Path(image) if isinstance(image, str) else image


def _key(micrograph: Micrograph) -> tuple[str, int, float | None]:
    calibration = micrograph.calibration
    return micrograph.sha256, micrograph.page, calibration.nm_per_pixel if calibration else None

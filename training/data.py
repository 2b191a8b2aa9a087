"""Instruction data set on disk -> conversations about images, deterministic in seed, epoch and image. Knows no model.

All rows about the same images become one conversation of several turns, so an image is encoded once and asked often.
Which turns, whether the auxiliary text is shown, and the augmentation are drawn from a counter-based generator
f(seed, epoch, image), so a resumed run sees exactly what an uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assistant.chat import Conversation, Message
from assistant.config import Config, MatchText, TrainingConfig
from assistant.errors import DatasetError
from assistant.measure import Known
from assistant.micrograph import Calibration, Instrument, Micrograph, to_model_input
from assistant.model import MaemiProcessor
from training.quoting import digest, draw_prompt, known_of_pictures, taught_answer

CACHE_BYTES = 2 * 1024**3
PAIR_EVERY = 6
SHIFT_PX = 6
"""Largest random shift of the augmentation [px of the model input]."""


@dataclass(frozen=True)
class Example:
    """One row of the data set: images, a question, its answer and what is known about them."""

    id: str
    images: tuple[bytes, ...]
    question: str
    answer: str
    references: tuple[str, ...]
    aux: str
    task: str
    facet: str
    label: str | None
    group: str
    source: str
    history: tuple[tuple[str, str], ...] = ()
    """Earlier turns of the conversation: question, answer."""
    known: tuple[Known, ...] = ()
    """What is known of each picture."""
    states: Mapping[str, str] = field(default_factory=dict)
    """What the answer states, by slot: `{"surface": "rough"}`, of the second of two pictures `{"surface_2": ...}`."""

    @property
    def images_key(self) -> str:
        """Rows about the same images share this key."""
        return hashlib.sha256(b"".join(map(digest, self.images))).hexdigest()

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """Question and answer of every turn, the earlier ones first."""
        return (*self.history, (self.question, self.answer))


@dataclass(frozen=True)
class TrainingItem:
    """One conversation to train on, with the model inputs of its images."""

    conversation: Conversation
    images: tuple[np.ndarray, ...]
    matched: str
    """The text of the first turn that image-text matching holds against the image."""
    wordings: frozenset[str]
    """Every known wording of what that text says: items that share one say the same."""
    label: str | None


_ROWS_AT_ONCE = 64


def load_split(directory: Path, split: str) -> list[Example]:
    """All rows of a split, read where they lie: `load_dataset` would leave a copy of every picture in its cache.

    Raises DatasetError `no_dataset`, `damaged_dataset`, `disk` or `empty_split`.
    """
    import pyarrow.parquet as parquet

    files = sorted(directory.glob(f"data/{split}-*.parquet"))
    if not files:
        raise DatasetError(
            "no_dataset", f"{directory} has no {split} split (data/{split}-*.parquet). Run `maemi teach`."
        )
    known: dict[bytes, bytes] = {}
    examples, rows = list[Example](), 0
    try:
        for file in files:
            with parquet.ParquetFile(file, page_checksum_verification=True) as stored:
                for batch in stored.iter_batches(batch_size=_ROWS_AT_ONCE):
                    examples += [_example(row, known) for row in batch.to_pylist()]
                rows += stored.metadata.num_rows
        if len(examples) != rows:  # no checksum covers the list of the parts of a file
            raise ValueError(f"{len(examples)} of {rows} rows are there")
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        if isinstance(error, OSError) and error.errno:
            raise DatasetError("disk", f"{directory} ({split}): {reason}. Free space or mend the disk.") from None
        raise DatasetError(
            "damaged_dataset", f"{directory} ({split}) cannot be read: {reason}. Teach it again."
        ) from None
    if not examples:
        raise DatasetError("empty_split", f"{directory} has an empty {split} split. Teach with more images or groups.")
    return examples


def held_out_split(directory: Path, split: str) -> list[Example]:
    """All rows of a split that a data set need not have; none where it has not. Raises DatasetError as `load_split`."""
    try:
        return load_split(directory, split)
    except DatasetError as error:
        if error.code not in ("no_dataset", "empty_split"):
            raise
        return []


def data_fingerprint(directory: Path) -> str:
    """Hash of the data files' bytes, to tell whether a run resumes on the data it began with."""
    digest = hashlib.sha256()
    for file in sorted(directory.glob("data/*.parquet")):
        with file.open("rb") as data:
            digest.update(f"{file.name}:{hashlib.file_digest(data, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def decode_image(png: bytes) -> Micrograph:
    """The image of a data set row as a Micrograph: already without its info bar, windowed to 8 bit.

    Raises DatasetError `unreadable_picture`.
    """
    from PIL import Image

    digest = hashlib.sha256(png).hexdigest()
    try:
        with Image.open(io.BytesIO(png), formats=["PNG", "JPEG"]) as image:
            pixels = np.asarray(image.convert("L"))
    except (OSError, ValueError, SyntaxError) as error:  # a decoder raises any of them for bytes that are torn
        raise DatasetError(
            "unreadable_picture",
            f"the picture of SHA-256 {digest[:12]} cannot be read: {error}. `maemi train --check` names its rows.",
        ) from None
    no_calibration: Calibration | None = None
    return Micrograph(pixels, digest, None, 0, no_calibration, Instrument(), None, ())


class TrainingSet(torch.utils.data.Dataset[TrainingItem]):
    """Conversations over the images of a split; `set_epoch` changes turns, pairs and augmentation.

    An epoch sees every single image once, and every `PAIR_EVERY`-th comparison of several images, each in its turn.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        image_size: int,
        settings: TrainingConfig,
        seed: int,
        match_text: MatchText = "question_answer",
        references: bool = False,
    ) -> None:
        """`references`: the facts stand in the prompt by name, and answers quote them by name."""
        rows: dict[str, list[Example]] = {}
        for example in examples:
            rows.setdefault(example.images_key, []).append(example)
        self.rows = rows
        self.singles = sorted(key for key, row in rows.items() if len(row[0].images) == 1)
        self.pairs = sorted(set(rows) - set(self.singles))
        self.image_size = image_size
        self.settings = settings
        self.match_text = match_text
        self.references = references
        self.known = known_of_pictures(examples) if references else {}
        self.seed = seed
        self.epoch = 0
        self._cache: dict[bytes, np.ndarray] = {}

    @classmethod
    def configured(cls, examples: Sequence[Example], config: Config) -> TrainingSet:
        """TrainingSet as a configuration wants them."""
        return cls(
            examples,
            image_size=config.image_size,
            settings=config.training,
            seed=config.seed,
            match_text=config.loss.itm.text,
            references=config.prompt.facts == "references",
        )

    def __len__(self) -> int:
        return len(self.singles) + -(-len(self.pairs) // (PAIR_EVERY if self.singles else 1))

    def set_epoch(self, epoch: int) -> None:
        """Draw anew: called by the data loader at the start of every epoch."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> TrainingItem:
        conversation, opening, random = self.conversation(index)
        pixels = tuple(self._pixels(image) for image in opening.images)
        if self.settings.augment:
            pixels = tuple(augment(image, random) for image in pixels)
        told = opening
        if self.match_text == "caption":
            captions = [row for row in self.rows[opening.images_key] if row.task == "caption"]
            told = captions[random.integers(len(captions))] if captions else opening
        matched, wordings = matched_text(told, self.match_text)
        return TrainingItem(conversation, pixels, matched, wordings, self.rows[opening.images_key][0].label)

    def conversation(self, index: int) -> tuple[Conversation, Example, np.random.Generator]:
        """What is said in this epoch, the row that opens it, and the generator that augmentation goes on with."""
        if index < len(self.singles):
            key = self.singles[index]
        else:
            stride = PAIR_EVERY if self.singles else 1
            key = self.pairs[((index - len(self.singles)) * stride + self.epoch) % len(self.pairs)]
        rows, settings = self.rows[key], self.settings
        random = counter_generator(self.seed, self.epoch, key)
        drawn = [rows[i] for i in random.permutation(len(rows))[: settings.turns]]
        hide = random.random() < settings.aux_dropout
        aux = "" if hide else drawn[0].aux
        if self.references:
            known = [self.known[digest(image)] for image in drawn[0].images]
            prompt = draw_prompt(known, hide=hide, thin=settings.fact_dropout, random=random)
            aux = prompt.line
        messages: list[Message] = []
        for row, (question, answer) in ((asked, turn) for asked in drawn for turn in asked.turns):
            opening = not messages
            answer = taught_answer(row, question, answer, prompt) if self.references else answer
            messages.append(Message("user", question, len(drawn[0].images) * opening, aux * opening))
            messages.append(Message("assistant", answer))
        return Conversation(tuple(messages)), drawn[0], random

    def _pixels(self, png: bytes) -> np.ndarray:
        """Model input [S, S] of an image, kept as 8 bit while the cache has room."""
        key = digest(png)
        if key not in self._cache:
            pixels, _ = to_model_input(decode_image(png), self.image_size)
            if len(self._cache) * pixels.size >= CACHE_BYTES:
                return pixels
            self._cache[key] = np.round(pixels * 255).astype(np.uint8)
        return self._cache[key].astype(np.float32) / 255


def augment(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """What another session at the microscope would change: gamma, contrast, brightness, noise and a small shift.

    Never a rotation, flip or zoom: orientations and sizes in the answers stay true. [S, S] -> [S, S] in 0..1.
    """
    rows, columns = random.integers(-SHIFT_PX, SHIFT_PX + 1, size=2)
    padded = np.pad(image, SHIFT_PX, mode="reflect")
    size = len(image)
    image = padded[SHIFT_PX + rows :, SHIFT_PX + columns :][:size, :size]
    image = image ** random.uniform(0.75, 1.33)
    image = (image - 0.5) * random.uniform(0.8, 1.2) + 0.5 + random.uniform(-0.08, 0.08)
    image = image + random.normal(0.0, random.uniform(0.0, 0.05), image.shape)
    return np.clip(image, 0.0, 1.0).astype(np.float32)


def counter_generator(seed: int, epoch: int, key: str) -> np.random.Generator:
    """A generator that depends on nothing but its three counters."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


class Collator:
    """Items -> the batch of a training stage; conversations beyond `max_tokens` lose their last turns."""

    def __init__(self, processor: MaemiProcessor, *, max_tokens: int, labels: Sequence[str] = ()) -> None:
        self.processor = processor
        self.max_tokens = max_tokens
        self.labels = list(labels)

    def __call__(self, items: Sequence[TrainingItem]) -> dict[str, Tensor]:
        batch = self.processor([self.cut(item.conversation) for item in items], [item.images for item in items])
        matched = [self.processor.tokenizer.encode(f" {item.matched}", add_special_tokens=False) for item in items]
        width = self.processor.question_tokens
        batch["match_ids"], batch["match_mask"] = pad_rows([ids[:width] for ids in matched])
        batch["match_key"] = torch.tensor(keys_of_the_same([item.wordings for item in items]))
        batch["class_index"] = torch.tensor(
            [self.labels.index(item.label) if item.label in self.labels else -100 for item in items]
        )
        return batch

    def cut(self, conversation: Conversation) -> Conversation:
        """A conversation without the last turns that would take it beyond `max_tokens`; the first always stays."""
        messages = conversation.messages
        while len(messages) > 2 and len(self.processor.encode(Conversation(messages)).input_ids) > self.max_tokens:
            messages = messages[:-2]
        return Conversation(messages)


def matched_text(row: Example, kind: MatchText) -> tuple[str, frozenset[str]]:
    """What image-text matching reads of a row's first turn, and every wording that says the same."""
    if kind == "auxiliary":
        return row.aux, frozenset([_normalised(row.aux)])
    question, answer = row.turns[0]
    wordings = (answer,) if row.history else (answer, *row.references)
    return f"{question} {answer}" if kind == "question_answer" else answer, frozenset(map(_normalised, wordings))


def keys_of_the_same(wordings: Sequence[frozenset[str]]) -> list[int]:
    """One key per text; texts that share a wording, with each other or through a third, have the same key."""
    keys = list(range(len(wordings)))
    for later, mine in enumerate(wordings):
        for earlier in range(later):
            if mine & wordings[earlier]:
                keys = [keys[earlier] if key == keys[later] else key for key in keys]
    return keys


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Lists of token ids -> ids [B, T] padded with 0, and their mask [B, T]."""
    width = max(map(len, rows), default=0)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return ids, mask


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())


def _example(row: dict[str, Any], known: dict[bytes, bytes]) -> Example:
    """A row as an Example; `known` makes rows about the same image share its bytes."""
    said = [" ".join(part["text"] for part in turn["content"] if part.get("text")) for turn in row["messages"]]
    *history, (question, answer) = zip(said[::2], said[1::2], strict=True)
    # Data sets that were taught before there were such columns say nothing of their pictures.
    measured, instrument = json.loads(row["measured"] or "{}"), json.loads(row.get("instrument") or "{}")
    if not isinstance(measured, list):
        measured, instrument = [measured], [instrument]
    instrument = instrument or [{}] * len(measured)
    return Example(
        id=row["id"],
        images=tuple(known.setdefault(image["bytes"], image["bytes"]) for image in row["images"]),
        question=question,
        answer=answer,
        references=tuple(row["references"] or [answer]),
        aux=row["aux"] or "",
        task=row["task"],
        facet=row["facet"],
        label=row["label"] or None,
        group=row["group"],
        source=row["source"],
        history=tuple(history),
        known=tuple(map(Known.from_record, measured, instrument)),
        states=json.loads(row["provenance"] or "{}").get("states", {}),
    )

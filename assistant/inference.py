"""Assistant: read, measure and encode a micrograph once, then ask, caption and classify. Knows nothing about servers.

assistant = Assistant.load()
print("".join(assistant.ask(["wafer.tif"], "What is the pitch of the lines?")))
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from assistant.answers import NO_PICTURE, checked, pictures_meant
from assistant.chat import (
    CAPTION_PROMPT,
    Conversation,
    Encoded,
    Message,
    auxiliary_text,
    number_lines,
)
from assistant.checkpoint import Run, load_run
from assistant.config import TOWER_SIDE
from assistant.decoder import VisualContext
from assistant.demonstrations import Shots
from assistant.errors import ConfigError
from assistant.explain import Explanation, Turn, explain
from assistant.families import FAMILIES
from assistant.generation import GREEDY, Token, advance, complete, computing, likelihoods, next_token, observed, read
from assistant.generation import Sampling as Sampling
from assistant.grounding import CLS
from assistant.handbook import entry_for, is_entry
from assistant.heads import Heads, Judge, Judgement, NumberTold, first_sure, load_heads, verdicts
from assistant.labelling import Labeller
from assistant.labels import matched
from assistant.measure import (
    Fact,
    Facts,
    Known,
    Statement,
    disagreements,
    fact_line,
    known_of,
    measure,
    quoted,
    read_statements,
)
from assistant.micrograph import Micrograph, read_micrograph, to_model_input
from assistant.questions import asked_for, follows_on
from assistant.recall import Recall
from assistant.starts import BUNDLED
from assistant.towers import load_tower, see

Image = Path | str | bytes | Micrograph
_Key = tuple[str, int, float | None]
Watch = Callable[[Token], None]
Posed = tuple[Conversation, Sequence["Look"]]
"""A conversation that waits for its answer, and its images in order."""
CACHED_LOOKS = 64
ENCODING_BATCH = 16
_ENTRY = re.compile(r"; (?=image \d+: |\{)")
"""Between the facts of two pictures that were shown together, or two facts that are quoted by name."""
RESERVED = 128
"""Tokens kept free for an answer; a longer one may take what the prompt leaves."""


@dataclass(frozen=True)
class Look:
    """Everything that is computed once per image."""

    micrograph: Micrograph
    facts: Facts
    aux: str
    memory: Tensor  # [N, D]
    summary: Tensor  # [D']
    features: np.ndarray | None = None  # [Df] of the frozen tower, None where there is none
    verdicts: tuple[Judgement, ...] = ()
    """What is said of it: by a fitted run, else by the heads."""
    judged: tuple[Judgement, ...] = ()
    """What the fitted run says of it, said or withheld."""
    numbers: tuple[NumberTold, ...] = ()
    """The numbers that the fitted run tells of it, said or withheld."""

    @property
    def key(self) -> _Key:
        """What two looks at one image share: file, page and calibration."""
        return _key(self.micrograph)

    @property
    def known(self) -> Known:
        """What an answer about this image may quote."""
        return known_of(self.micrograph, self.facts, tuple(verdict.fact() for verdict in self.verdicts))


def _numbers_asked(question: str, looks: Sequence[Look], about: Sequence[int]) -> list[tuple[str, tuple[int, Fact]]]:
    """The numbers of a fitted run that a question names: each as a sentence, with its picture, from 1, and its fact."""
    found = []
    for number in about or range(1, len(looks) + 1):
        for told in looks[number - 1].numbers:
            if told.named_in(question):
                said = told.sentence if len(looks) == 1 else f"Image {number}: {told.sentence}"
                found.append((said, (number, told.fact())))
    return found


def heads_of(run: Run) -> list[Heads]:
    """The heads of a run before the bundled ones; after them where it has no class that they lack.

    A run knows its own classes best. Where it was taught those of the bundled heads over again, it knows less of them:
    one that had seen drawn pictures alone was sure that a cathode is a coated surface. Raises RunError `damaged_run`.
    """
    folders = [folder / "heads" for folder in dict.fromkeys((run.path or BUNDLED, BUNDLED))]
    heads = [load_heads(folder) for folder in folders if folder.is_dir()]
    own, known = (heads[place].head("class") if heads else None for place in (0, -1))
    if own and known and all(matched(word, known.words) for word in own.words if word):
        heads.reverse()
    return heads


class Assistant:
    """A loaded student that answers about micrographs; safe to share between threads."""

    def __init__(self, run: Run, judge: Judge | None = None) -> None:
        self.run, self.judge = run, judge
        self.student = run.student
        self.processor = run.processor
        self.device = next(run.student.parameters()).device
        self.heads = heads_of(run)
        self._looks: OrderedDict[_Key, Look] = OrderedDict()
        self._recall = Recall()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, run: Path | None = None, device: str = "auto", judge: Judge | None = None) -> Assistant:
        """Load a run, or the bundled tiny student, with a head that was fitted beside it. Raises RunError."""
        return cls(load_run(run, device=device, dense=True), judge)

    @property
    def name(self) -> str:
        """Name of the student."""
        return self.run.name

    def look(self, image: Image) -> Look:
        """Read, measure and encode an image, or recall it. Raises MicrographError."""
        return self.look_all([image])[0]

    def look_all(self, images: Sequence[Image]) -> list[Look]:
        """`look` at several images with one pass through the encoders."""
        files = [Path(image) if isinstance(image, str) else image for image in images]
        micrographs = [file if isinstance(file, Micrograph) else read_micrograph(file) for file in files]
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
        """What heads are sure of in an image, and what was measured in it."""
        look = self.look(image)
        return replace(look.facts, items=(*look.known.predicted, *look.facts.items))

    def ask(
        self,
        images: Sequence[Image],
        question: str,
        *,
        history: Sequence[Message] = (),
        aux: str | None = None,
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        watch: Watch | None = None,
        top: int = 0,
    ) -> Iterator[str]:
        """Stream the answer to a question sentence by sentence: what of the student's draft is fact, or the facts.

        `images` are all images of the conversation in order; those that `history` does not count stand before the
        new question. `aux` is the user's own description, added to metadata and measured facts. `watch` is called with
        every token of the draft and its `top` likeliest alternatives.
        Raises MicrographError, and ConfigError `empty_question` or `too_long`, before the first piece.
        """
        _require_question(question)
        looks = self.look_all(images)
        if not looks:
            if entry := entry_for(question):
                yield entry.answer
            elif self.converses:
                yield from self.converse(question, history=history, max_new_tokens=max_new_tokens, sampling=sampling)
            else:
                yield NO_PICTURE
            return
        pieces = self.draft(
            [look.micrograph for look in looks],
            question,
            history=history,
            aux=aux,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            watch=watch,
            top=top,
        )
        question = _whole(question, history)
        about = pictures_meant(question, len(looks), len(looks) - _shown(history))
        numbers = _numbers_asked(question, looks, about)
        if not numbers or asked_for(question):
            yield from checked(pieces, question, [look.known for look in looks], about=about)
        for n, (said, _) in enumerate(numbers):
            yield f" {said}" if n or asked_for(question) else said

    def statements(
        self, answer: str, images: Sequence[Image], question: str = "", history: Sequence[Message] = ()
    ) -> list[Statement]:
        """What an answer states of the pictures of a conversation, each statement with the fact behind it."""
        if (entry := entry_for(question)) and answer.strip() == entry.answer:
            written = Fact("handbook", None, "", "written", 1.0, source="handbook", text=entry.questions[0])
            return [Statement(answer, 0, len(answer), None, "true", None, written)]
        looks, question = self.look_all(images), _whole(question, history)
        about = pictures_meant(question, len(looks), len(looks) - _shown(history))
        known = [look.known for look in looks]
        numbers = _numbers_asked(question, looks, about)
        place = answer.find(" ".join(said for said, _ in numbers)) if numbers else -1
        if place < 0:
            return read_statements(answer, known, about=about)
        stated = read_statements(answer[:place], known, about=about) if answer[:place].strip() else []
        for said, (number, fact) in numbers:
            verdict: Literal["true", "withheld"] = "true" if fact.applies else "withheld"
            stated.append(Statement(said, place, place + len(said), fact.name, verdict, number, fact))
            place += len(said) + 1
        return stated

    def draft(
        self,
        images: Sequence[Image],
        question: str,
        *,
        history: Sequence[Message] = (),
        aux: str | None = None,
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        watch: Watch | None = None,
        top: int = 0,
    ) -> Iterator[str]:
        """What the student itself words, piece by piece, held against nothing. Arguments and errors as of `ask`."""
        _require_question(question)
        looks = self.look_all(images)
        conversation = self._fit(self._compose(looks, question, history, aux or ""), min(max_new_tokens, RESERVED))
        keys, encoded = tuple(look.key for look in looks), self.processor.encode(conversation)
        left = self._room - len(encoded.input_ids)
        max_new_tokens = min(max_new_tokens, left)  # what is asked for is a limit, not a need
        with computing(self.device):
            prepared = self._prepare([(conversation, looks)])
        yield from self._text(self._continued(encoded, keys, max_new_tokens, sampling, prepared, watch, top))

    @property
    def converses(self) -> bool:
        """Whether the language model was taught to talk: its tokenizer brings a chat template of its own."""
        return bool(getattr(self.processor.tokenizer, "chat_template", None))

    def converse(
        self, text: str, *, history: Sequence[Message] = (), max_new_tokens: int = 128, sampling: Sampling = GREEDY
    ) -> Iterator[str]:
        """What the language model says to a text without pictures, as it did before it was taught anything here.

        Its adapter rests, so what the base knew is not forgotten. Raises ConfigError `too_long`.
        """
        turns = [{"role": m.role, "content": m.text} for m in (*history, Message("user", text))]
        ids = self.processor.tokenizer.apply_chat_template(
            turns,
            add_generation_prompt=True,
            return_dict=False,
            **FAMILIES[self.processor.family].template_arguments,
        )
        self._require_room(len(ids) + 1)
        max_new_tokens = min(max_new_tokens, self._room - len(ids))
        encoded = Encoded(ids, [False] * len(ids), [0] * len(ids), [1] * len(ids), [[]])
        row = torch.tensor([ids], device=self.device)
        batch = {
            "input_ids": row,
            "attention_mask": torch.ones_like(row),
            "image_index": torch.zeros_like(row),
            "turn_index": torch.ones_like(row),
        }
        yield from self._text(self._continued(encoded, (), max_new_tokens, sampling, (batch, None), taught=False))

    def caption(self, images: Sequence[Image], *, max_new_tokens: int = 128) -> list[str]:
        """One caption per image, in order. Raises MicrographError for the first image that cannot be read.

        Images are read as slots become free, so memory does not grow with their number.
        """

        def pose(numbers: Sequence[int]) -> list[tuple[Look, str]]:
            return [(look, CAPTION_PROMPT) for look in self.look_all([images[n] for n in numbers])]

        return self._answer(len(images), pose, max_new_tokens=max_new_tokens)

    def answer_all(
        self, asked: Sequence[tuple[Look, str]], *, max_new_tokens: int = 128, with_aux: bool = True
    ) -> list[str]:
        """Greedy answers to one question per look, continued together, their numbers put right.

        `with_aux=False` withholds the facts from the student.
        """
        return self._answer(
            len(asked), lambda numbers: [asked[n] for n in numbers], max_new_tokens=max_new_tokens, with_aux=with_aux
        )

    def complete(
        self,
        conversations: Sequence[Conversation],
        looks: Sequence[Sequence[Look]],
        *,
        max_new_tokens: int = 128,
    ) -> list[str]:
        """Greedy continuations of several conversations, continued together, as the student words them.

        Raises ConfigError `too_long`.
        """
        texts = [""] * len(looks)
        for group in ([n for n, row in enumerate(looks) if row], [n for n, row in enumerate(looks) if not row]):

            def pose(numbers: Sequence[int], group: Sequence[int] = group) -> list[Posed]:
                return [(conversations[group[n]], looks[group[n]]) for n in numbers]

            for number, text in zip(group, self._complete(len(group), pose, max_new_tokens), strict=True):
                texts[number] = text
        return texts

    def classify(
        self,
        images: Sequence[Image],
        labels: Sequence[str],
        *,
        examples: Mapping[str, Sequence[Image]] | None = None,
        shots: Shots | None = None,
        top: int = 5,
    ) -> list[list[tuple[str, float]]]:
        """The `top` most probable labels of each image and "unknown", with probabilities; the verdict stands first.

        Without `examples` the class head decides, where it knows the labels. With them its code is fitted to the
        frozen features of the examples; with `shots` as well, the likelihood of each label is compared after some
        examples as demonstrations in the same conversation. "unknown" leads wherever no label is sure enough.
        Raises ConfigError `too_few_labels`, `no_examples`, `too_many_shots` or `too_long`, and MicrographError.
        """
        return [ranked[:top] for ranked in self._labeller.ranked(images, labels, examples, shots)]

    def explain_label(
        self,
        image: Image,
        labels: Sequence[str],
        *,
        examples: Mapping[str, Sequence[Image]] | None = None,
        turn: Turn = nullcontext,
    ) -> Explanation:
        """Which parts of an image carry its likeliest label, as `classify` sees it; `turn` as `explain` takes it.

        Raises MicrographError, ConfigError `no_examples`, or `not_known` without a head that knows a label, and
        RunError `no_tower`.
        """
        with turn():
            look, labeller = self.look(image), self._labeller
        if examples is None and labeller.asks_own(labels):
            message = "The fitted run that knows these labels explains itself: maemi predict --explain --overlay."
            raise ConfigError("not_known", message)
        chosen = int(labeller.scores([look], labels, examples)[0].argmax())

        def score(squares: Sequence[np.ndarray]) -> np.ndarray:
            looks = [replace(look, features=row, verdicts=()) for row in see(squares, self.device)]
            column: np.ndarray = labeller.scores(looks, labels, examples)[:, chosen]
            return column

        square = to_model_input(look.micrograph, TOWER_SIDE)[0]
        return explain(square, score, what=f"log-odds of {labels[chosen]}", turn=turn)

    def explain_answer(self, image: Image, question: str, answer: str, *, turn: Turn = nullcontext) -> Explanation:
        """Which parts of an image the student's own wording of an answer rests on, its facts held as they are.

        Raises MicrographError, and ConfigError `too_long`.
        """
        with turn():
            look = self.look(image)
        asked = self._compose([look], question, (), "")
        said = quoted(answer, [look.known]) if self.by_reference else answer

        def score(squares: Sequence[np.ndarray]) -> np.ndarray:
            memories, _ = self.encode_pixels(torch.from_numpy(np.stack(squares))[:, None])
            return np.array([float(self._likelihoods([replace(look, memory=m)], asked, [said])[0]) for m in memories])

        square = to_model_input(look.micrograph, self.processor.image_size)[0]
        return explain(square, score, what="log-probability of the answer", turn=turn)

    def labels_not_known(self, labels: Sequence[str]) -> list[str]:
        """The labels that no head knows: without examples no image is given one of them."""
        return self._labeller.not_known(labels)

    def warnings_for(self, answer: str, images: Sequence[Image]) -> list[str]:
        """What a reader must know beside the answer: reader warnings, and numbers that measurement contradicts."""
        looks = self.look_all(images)
        found = [warning for look in looks for warning in look.micrograph.warnings]
        if is_entry(answer):
            return found
        known = "; ".join(look.aux for look in looks)
        return found + disagreements(answer, [look.facts for look in looks], known)

    def encode(self, micrographs: Sequence[Micrograph]) -> tuple[Tensor, Tensor]:
        """Memory [I, N, D] and summary [I, D'] of micrographs, without measuring them."""
        inputs = np.stack([to_model_input(m, self.processor.image_size)[0] for m in micrographs])
        return self.encode_pixels(torch.from_numpy(inputs)[:, None])

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Memory [I, N, D] and summary [I, D'] of model inputs [I, 1, S, S]."""
        with computing(self.device):
            states = self.student.encode_images(pixels.to(self.device))
        return states.memory, states.summary

    def embed(self, *, images: Sequence[Image] = (), texts: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors [I, D] of images and [T, D] of texts in the space of image-text matching.

        Both go through the projections of the contrastive loss (MVaEMa); how near an image lies to a text that fits it
        is as good as that loss was trained. Raises MicrographError.
        """
        looks, student = self.look_all(images), self.student
        with computing(self.device):
            seen = [student.image_match(look.summary[: student.vit.dim][None]) for look in looks]
            read_ = []
            for text in texts:
                ids = self.processor.tokenizer.encode(f" {text}", add_special_tokens=False)
                row = torch.tensor([ids[: student.text_encoder.max_tokens]], device=self.device)
                states = student.text_encoder(row, torch.ones_like(row, dtype=torch.bool))
                read_.append(student.text_match(states[:, CLS]))
        size = student.text_match.out_features

        def stacked(vectors: Sequence[Tensor]) -> np.ndarray:
            if not vectors:
                return np.zeros((0, size), np.float32)
            return torch.nn.functional.normalize(torch.cat(list(vectors)).float(), dim=-1).cpu().numpy()

        return stacked(seen), stacked(read_)

    def blind_look(self) -> Look:
        """A look at plain grey: the student sees that there is an image, and nothing in it."""
        grey = Micrograph(np.zeros((2, 2), np.uint8), sha256="")
        size = self.processor.image_size
        memory, summary = self.encode_pixels(torch.full((1, 1, size, size), 0.5))
        return Look(grey, Facts("", ()), "", memory[0], summary[0])

    def ranked_labels(self, look: Look, labels: Sequence[str]) -> list[tuple[str, float]]:
        """What `classify` says of a look without examples: all labels and "unknown", the verdict first."""
        return self._labeller.by_heads(look, labels)

    def label_likelihoods(self, look: Look, labels: Sequence[str]) -> np.ndarray:
        """Share [C] of each label by how likely the student itself is to say it; `classify` never goes by that."""
        return self._labeller.by_likelihood(look, labels)

    def _look_anew(self, micrographs: Sequence[Micrograph]) -> list[Look]:
        looks = []
        for start in range(0, len(micrographs), ENCODING_BATCH):
            batch = micrographs[start : start + ENCODING_BATCH]
            for m, memory, summary in zip(batch, *self.encode(batch), strict=True):
                facts = measure(m)
                looks.append(Look(m, facts, auxiliary_text(m.metadata_line(), facts.line()), memory, summary))
        if self.judge is not None:
            told = [(self.judge.verdicts(m), self.judge.numbers(m)) for m in micrographs]
            looks = [
                replace(look, verdicts=own, judged=own, numbers=numbers)
                for look, (own, numbers) in zip(looks, told, strict=True)
            ]
        features = self.see(micrographs)
        if features is None or not looks:
            return looks
        rows = zip(looks, features, verdicts(self.heads, features), strict=True)
        return [replace(look, features=f, verdicts=first_sure((*look.judged, *v))) for look, f, v in rows]

    def see(self, micrographs: Sequence[Micrograph]) -> np.ndarray | None:
        """Features [I, Df] of micrographs by the frozen tower, None where its package is not installed."""
        if load_tower() is None:
            return None
        return see([to_model_input(m, TOWER_SIDE)[0] for m in micrographs], self.device)

    def _prepare(self, posed: Sequence[Posed]) -> tuple[dict[str, Tensor], VisualContext | None]:
        batch = self.processor([conversation for conversation, _ in posed], padding_side="left")
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        shown = [look.memory for _, looks in posed for look in looks]
        if not shown:
            return batch, None
        context = self.student.visual_context(
            None,
            batch["image_mask"],
            batch["question_ids"],
            batch["question_mask"],
            batch["turn_images"],
            image_memory=torch.stack(shown),
        )
        return batch, context

    def _token_text(self, token: int) -> str:
        text: str = self.processor.tokenizer.decode([token])
        return text

    def _continued(
        self,
        encoded: Encoded,
        images: tuple[_Key, ...],
        max_new_tokens: int,
        sampling: Sampling,
        prepared: tuple[dict[str, Tensor], VisualContext | None],
        watch: Watch | None = None,
        top: int = 0,
        *,
        taught: bool = True,
    ) -> Iterator[int]:
        """Yield the tokens that follow a prompt as they come, without the end; keep what was read for the next.

        Where it is not the student that was `taught`, the base answers.
        """
        adapted = nullcontext if taught else self._base_alone
        generator = torch.Generator(device=self.device).manual_seed(sampling.seed)
        said: list[int] = []
        # inference mode is left before every yield, so a paused stream never changes its caller's mode
        with computing(self.device), adapted():
            rows, logits = read(self.student, *prepared, self._recall.take(images, encoded))
        try:
            while len(said) < max_new_tokens:
                token = next_token(logits, sampling, generator)
                if watch is not None:
                    watch(observed(logits, int(token), top, self._token_text))
                if int(token) == self.processor.tokenizer.eos_token_id:
                    return
                said.append(int(token))
                yield said[-1]
                if len(said) < max_new_tokens:
                    with computing(self.device), adapted():
                        rows, logits = advance(self.student, rows, token)
        finally:
            self._recall.keep(images, encoded, said, rows.cache)

    @contextmanager
    def _base_alone(self) -> Iterator[None]:
        lm = self.student.decoder.lm
        if not hasattr(lm, "peft_config"):
            yield
            return
        from assistant.adapters import base_alone

        with base_alone(lm):
            yield

    def _complete(self, count: int, pose: Callable[[Sequence[int]], list[Posed]], max_new_tokens: int) -> list[str]:
        """Greedy continuations, as text, of conversations that `pose` gives when their turn comes."""

        def prepare(numbers: Sequence[int]) -> tuple[dict[str, Tensor], VisualContext | None]:
            return self._prepare([(self._fit(talk, max_new_tokens), looks) for talk, looks in pose(numbers)])

        end = self.processor.tokenizer.eos_token_id
        said = complete(self.student, count, prepare, max_new_tokens=max_new_tokens, end=end)
        return ["".join(self._text(iter(tokens))).strip() for tokens in said]

    def _answer(
        self,
        count: int,
        pose: Callable[[Sequence[int]], Sequence[tuple[Look, str]]],
        *,
        max_new_tokens: int,
        with_aux: bool = True,
    ) -> list[str]:
        """Greedy answers to single questions, their numbers put right; of each image its facts alone stay in memory."""
        known: dict[int, tuple[str, Known]] = {}

        def posed(numbers: Sequence[int]) -> list[Posed]:
            asked = pose(numbers)
            known.update((n, (question, look.known)) for n, (look, question) in zip(numbers, asked, strict=True))
            return [
                (self._compose([look if with_aux else replace(look, aux="")], question, (), ""), [look])
                for look, question in asked
            ]

        texts = self._complete(count, posed, max_new_tokens)
        return ["".join(checked([text], known[n][0], [known[n][1]])) for n, text in enumerate(texts)]

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

    @property
    def _labeller(self) -> Labeller:
        shots = self.run.config.decoder.max_images - 1
        return Labeller(
            self.look_all,
            self._likelihoods,
            self.blind_look,
            self.heads,
            self.student.vit.dim,
            most_shots=shots,
            own=self.judge.words.get("class", ()) if self.judge else (),
        )

    def _likelihoods(self, looks: Sequence[Look], asked: Conversation, replies: Sequence[str]) -> Tensor:
        """Log-probability [C] of each reply to a conversation. Raises ConfigError `too_long`."""
        prompt = len(self.processor.encode(asked).input_ids)
        answered = [Conversation((*asked.messages, Message("assistant", reply))) for reply in replies]
        answers = [self.processor.encode(conversation).input_ids[prompt:] for conversation in answered]
        self._require_room(prompt + max(map(len, answers)))
        with computing(self.device):
            rows, logits = read(self.student, *self._prepare([(asked, looks)]))
            return likelihoods(self.student, rows, logits, answers).cpu()

    def _compose(self, looks: Sequence[Look], question: str, history: Sequence[Message], aux: str) -> Conversation:
        """History and question as a conversation, each user's message with the facts of the images it brings."""
        messages, before = [], 0
        for message in history:
            if message.role == "user":
                shown = looks[before : before + message.images]
                told = auxiliary_text(message.aux, self._facts_line(shown, before))
                message, before = replace(message, images=len(shown), aux=told), before + len(shown)
            elif self.by_reference:  # what was filled when it was shown is read as it was written
                message = replace(message, text=quoted(message.text, [look.known for look in looks[:before]]))
            messages.append(message)
        described = auxiliary_text(self._facts_line(looks[before:], before), aux)
        return Conversation((*messages, Message("user", question.strip(), len(looks) - before, described)))

    @property
    def by_reference(self) -> bool:
        """Whether the student was taught to quote facts by name."""
        return self.run.config.prompt.facts == "references"

    def _facts_line(self, looks: Sequence[Look], before: int) -> str:
        """The facts of images shown together, after `before` others, as the student was taught to read them."""
        if self.by_reference:
            return fact_line([look.known for look in looks], before=before) if any(look.aux for look in looks) else ""
        return number_lines([look.aux for look in looks])

    def _fit(self, conversation: Conversation, max_new_tokens: int) -> Conversation:
        """Forget the oldest questions, then the oldest facts, never the images, until all fits the language model."""
        while (length := len(self.processor.encode(conversation).input_ids) + max_new_tokens) > self._room:
            if len(conversation.messages) < 3:
                first, *rest = conversation.messages
                newer = _ENTRY.split(first.aux, maxsplit=1)[1:] or first.aux.split("; ", 1)[1:]
                if not newer or first.images < 2:  # a picture alone keeps its facts
                    self._require_room(length)
                conversation = Conversation((replace(first, aux=newer[0]), *rest))
                continue
            first, _, following, *rest = conversation.messages
            aux = auxiliary_text(first.aux, following.aux)
            merged = replace(following, images=first.images + following.images, aux=aux)
            conversation = Conversation((merged, *rest))
        return conversation

    @property
    def _room(self) -> int:
        room: int = self.student.config.text_config.max_position_embeddings
        return room

    def _require_room(self, tokens: int) -> None:
        if tokens > self._room:
            raise ConfigError(
                "too_long",
                f"Prompt and answer need {tokens} tokens; the language model has {self._room}. "
                "Ask a shorter question, show fewer images or allow a shorter answer.",
            )


def _require_question(question: str) -> None:
    if not question.strip():
        raise ConfigError("empty_question", "The question is empty. Ask something about the image.")


def _whole(question: str, history: Sequence[Message]) -> str:
    """A question with the one before it, where it only asks for a unit."""
    before = next((message.text for message in reversed(history) if message.role == "user"), "")
    return f"{before} {question}" if before and follows_on(question) else question


def _shown(history: Sequence[Message]) -> int:
    """Pictures that came before the question."""
    return sum(message.images for message in history)


def _key(micrograph: Micrograph) -> _Key:
    calibration = micrograph.calibration
    return micrograph.sha256, micrograph.page, calibration.nm_per_pixel if calibration else None

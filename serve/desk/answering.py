"""A question about micrographs -> pictures read, facts measured, warnings raised: what every way in shares.

Knows nothing about HTTP, terminals or how the model works; an `Answerer` is anything with the methods below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from assistant.errors import ConfigError, MicrographError
from assistant.handbook import entry_for
from assistant.quantities import converted, read_amounts
from serve.desk.housekeeping import answer_without_picture

if TYPE_CHECKING:
    from assistant.chat import Message
    from assistant.demonstrations import Shots
    from assistant.generation import Token
    from assistant.inference import Sampling
    from assistant.measure import Facts, Statement
    from assistant.micrograph import Micrograph


class Answerer(Protocol):
    """What the ways in need of a model; `assistant.inference.Assistant` is one."""

    @property
    def name(self) -> str:
        """Name of the model."""

    def ask(
        self,
        images: Sequence[Any],
        question: str,
        *,
        history: Sequence[Message] = ...,
        aux: str | None = ...,
        max_new_tokens: int = ...,
        sampling: Sampling = ...,
    ) -> Iterator[str]:
        """Yield the answer in pieces; `images` are all of the conversation, the last ones belong to the question."""

    def caption(self, images: Sequence[Any]) -> list[str]:
        """One caption per image."""

    def classify(
        self,
        images: Sequence[Any],
        labels: Sequence[str],
        *,
        examples: Mapping[str, Sequence[Any]] | None = ...,
        shots: Shots | None = ...,
        top: int = ...,
    ) -> list[list[tuple[str, float]]]:
        """Per image the `top` labels with their probabilities, best first."""

    def embed(self, *, images: Sequence[Any] = ..., texts: Sequence[str] = ...) -> tuple[Any, Any]:
        """Unit vectors [I, D] of images and [T, D] of texts."""

    def facts_of(self, image: Any) -> Facts:
        """What is recognised and measured in an image."""

    def statements(
        self, answer: str, images: Sequence[Any], question: str = ..., history: Sequence[Message] = ...
    ) -> list[Statement]:
        """What an answer states, each statement with the fact behind it."""

    def warnings_for(self, answer: str, images: Sequence[Any]) -> list[str]:
        """What the reader of an answer must know: doubts of the file reader, numbers that measurement contradicts."""


@dataclass(frozen=True)
class Proof:
    """What a person needs beside an answer: what the reader found, what was measured, what to be careful about."""

    images: list[dict[str, Any]]
    facts: list[dict[str, Any]]
    statements: list[dict[str, Any]]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape: one entry of `images` and of `facts` per picture, in the order given."""
        return dict(vars(self))


@dataclass(frozen=True)
class Question:
    """What is asked, with everything said and shown before it."""

    images: Sequence[Micrograph]
    """All pictures of the conversation; the last ones belong to this question."""
    text: str
    history: tuple[Message, ...] = ()
    aux: str | None = None
    """The asker's own description of the sample."""
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int = 0
    watch: Callable[[Token], None] | None = None
    """Called with every token that the model chooses."""
    top_logprobs: int = 0


def parse_pixel_size(text: str | None) -> float | None:
    """Read `4.2 nm`, `4,2 nm`, `0.5um/px` or `4.2` (nm) as nanometres per pixel; empty text is None.

    Raises ConfigError `bad_pixel_size`.
    """
    if text is None or not (text := text.strip().removesuffix("/px").rstrip()):
        return None
    amounts = read_amounts(text)
    alone = len(amounts) == 1 and (amounts[0].start, amounts[0].stop) == (0, len(text))
    alone = alone and not re.search(r"\d,\d{3}(?!\d)", text)  # "1,250" could be either
    size = converted(amounts[0].value, amounts[0].unit or "nm", "nm") if alone else None
    if size is None or amounts[0].low != amounts[0].high or not 1e-4 <= size <= 1e7:
        raise ConfigError(
            "bad_pixel_size", f"{text[:40]!r} is not a pixel size. Write a number and a unit, as in '4.2 nm'."
        )
    return size


class Reader(Protocol):
    """`assistant.micrograph.read_micrograph`, or the same in another process."""

    def __call__(
        self, source: Path | bytes, *, page: int | None = ..., pixel_size_nm: float | None = ...
    ) -> Micrograph: ...


def read_images(
    sources: Sequence[Path | bytes], *, pixel_size_nm: float | None = None, read: Reader | None = None
) -> list[Micrograph]:
    """Read every source; the first that cannot be read raises MicrographError with its name."""
    from assistant.micrograph import read_micrograph

    return [(read or read_micrograph)(source, pixel_size_nm=pixel_size_nm) for source in sources]


UNGROUNDED = "The language model says this by itself: it rests on no picture and on nothing written, and may be wrong."


def answer(answerer: Answerer, question: Question) -> Iterator[str | Proof]:
    """Yield the answer piece by piece, and last of all the evidence it is to be held against.

    Without a picture the handbook answers, or the model converses where it can; else one honest sentence is the answer.
    """
    if not question.images:
        warnings = list[str]()
        if entry := entry_for(question.text):
            pieces = iter([entry.answer])
        elif getattr(answerer, "converses", False):
            warnings.append(UNGROUNDED)
            pieces = answerer.converse(  # type: ignore[attr-defined]  # only models that say so have it
                question.text, history=question.history, max_new_tokens=question.max_new_tokens, **_sampling(question)
            )
        else:
            earlier = next((turn.text for turn in question.history if turn.role == "user"), "")
            pieces = iter([answer_without_picture(question.text, earlier)])
        yield from until_stop(pieces, question.stop)
        yield Proof([], [], [], warnings)
        return
    pieces = answerer.ask(
        question.images,
        question.text,
        history=question.history,
        aux=question.aux,
        max_new_tokens=question.max_new_tokens,
        **_sampling(question),
    )
    said = []
    for piece in until_stop(pieces, question.stop):
        said.append(piece)
        yield piece
    yield gather_evidence(answerer, question, "".join(said))


def _sampling(question: Question) -> dict[str, Any]:
    """The arguments that make `ask` draw tokens or tell them; none for greedy answers, which need no torch here."""
    if question.temperature <= 0.0 and question.watch is None:
        return {}
    from assistant.inference import Sampling

    drawn = {"sampling": Sampling(question.temperature, question.top_p, question.seed)}
    return drawn | ({"watch": question.watch, "top": question.top_logprobs} if question.watch else {})


def until_stop(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass pieces on until one of `stops` appears; holds back only what could be the start of one."""
    held, starts = "", {stop[:length] for stop in stops for length in range(1, len(stop))}
    for piece in pieces:
        held += piece
        found = [position for stop in stops if (position := held.find(stop)) >= 0]
        if found:
            held = held[: min(found)]
            break
        ready = len(held) - max((len(start) for start in starts if held.endswith(start)), default=0)
        if ready:
            yield held[:ready]
            held = held[ready:]
    if held:
        yield held


def gather_evidence(answerer: Answerer, question: Question, said: str) -> Proof:
    """Collect info and facts of the pictures, what was stated of them, and the warnings about both."""
    pictures = question.images
    statements = answerer.statements(said, pictures, question.text, question.history)
    return Proof(
        images=[micrograph.info() for micrograph in pictures],
        facts=[answerer.facts_of(micrograph).as_dict() for micrograph in pictures],
        statements=[statement.as_dict() for statement in statements],
        warnings=list(dict.fromkeys(answerer.warnings_for(said, pictures))),
    )


def classify_files(
    answerer: Answerer,
    paths: Sequence[Path],
    labels: Sequence[str],
    *,
    examples: Mapping[str, Sequence[Path]] | None = None,
    shots: Shots | None = None,
    top: int = 5,
    pixel_size_nm: float | None = None,
    read: Reader | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one `{"path", "scores", "verdict", "error"}` per file, in order; a file that fails carries its error."""
    shown = {label: read_images(files, read=read) for label, files in examples.items()} if examples else None
    for path in paths:
        try:
            micrographs = read_images([path], pixel_size_nm=pixel_size_nm, read=read)
            scores = answerer.classify(micrographs, labels, examples=shown, shots=shots, top=top)[0]
        except MicrographError as error:
            yield {"path": str(path), "scores": [], "verdict": None, "error": error_dict(error)}
            continue
        yield {
            "path": str(path),
            "scores": [{"label": label, "probability": probability} for label, probability in scores],
            "verdict": scores[0][0],
            "error": None,
        }


def error_dict(error: MicrographError) -> dict[str, str]:
    """The JSON shape of an error of one file."""
    return {"code": error.code, "message": error.message}


def parse_labels(text: str) -> list[str]:
    """Split `a, b, c`; raises ConfigError `bad_labels` for fewer than two, doubles or empty ones."""
    labels = [label.strip() for label in text.replace("\n", ",").split(",") if label.strip()]
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ConfigError("bad_labels", f"{text[:60]!r} does not name two or more different labels. Write 'a,b,c'.")
    return labels

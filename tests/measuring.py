"""An assistant without a model: it answers, captions and classifies from what it measures. Built like the real one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from assistant.explain import Explanation, Turn, explain
from assistant.measure import Fact, Facts, Known, Statement, measure, read_statements
from assistant.micrograph import Micrograph, read_micrograph, to_model_input


class MeasuringAssistant:
    """Says only what measurement says, word by word; `pause_s` slows it down, `fails_on` breaks it on a label."""

    name = "measuring"

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.words = 0
        """Words said so far, by all answers."""
        self.asked: list[tuple[int, str, tuple[Any, ...], str | None]] = []
        """Images, question, history and description of every question."""

    def ask(
        self,
        images: Sequence[Any],
        question: str,
        *,
        history: Sequence[Any] = (),
        aux: str | None = None,
        max_new_tokens: int = 128,
        sampling: Any = None,
        watch: Any = None,
        top: int = 0,
    ) -> Iterator[str]:
        from assistant.generation import Token

        self.asked.append((len(images), question, tuple(history), aux))
        facts = [self.facts_of(image) for image in images]
        told = f"Turn {len(history) // 2 + 1}, {len(images)} image(s). " + " ".join(f.line() for f in facts)
        for word in told.split()[:max_new_tokens]:
            time.sleep(self.pause_s)
            self.words += 1
            if watch:
                watch(Token(word + " ", -0.5, ((word + " ", -0.5), ("the", -1.5))[:top]))
            yield word + " "

    def embed(self, *, images: Sequence[Any] = (), texts: Sequence[str] = ()) -> tuple[Any, Any]:
        grey = [[float(micrograph(i).pixels.mean()), 1.0, 0.0] for i in images]
        words = [[float(len(text)), 0.0, 1.0] for text in texts]
        return tuple(np.array(rows, np.float32).reshape(-1, 3) for rows in (grey, words))  # type: ignore[return-value]

    def caption(self, images: Sequence[Any]) -> list[str]:
        return [f"{micrograph(i).metadata_line()}; {self.facts_of(i).line()}" for i in images]

    def classify(
        self,
        images: Sequence[Any],
        labels: Sequence[str],
        *,
        examples: Mapping[str, Sequence[Any]] | None = None,
        shots: Any = None,
        top: int = 5,
    ) -> list[list[tuple[str, float]]]:
        """By the name of what the picture looks like, or by the mean grey of the examples."""
        return [self._scores(image, labels, examples)[:top] for image in images]

    def facts_of(self, image: Any) -> Facts:
        return measure(micrograph(image))

    def statements(
        self, answer: str, images: Sequence[Any], question: str = "", history: Sequence[Any] = ()
    ) -> list[Statement]:
        return read_statements(answer, [Known(self.facts_of(image)) for image in images])

    def warnings_for(self, answer: str, images: Sequence[Any]) -> list[str]:
        return [warning for image in images for warning in micrograph(image).warnings]

    def _scores(
        self, image: Any, labels: Sequence[str], examples: Mapping[str, Sequence[Any]] | None
    ) -> list[tuple[str, float]]:
        if examples:
            centres = {label: np.mean([grey(i) for i in examples[label]]) for label in labels}
            closeness = {label: -abs(grey(image) - centre) * 20 for label, centre in centres.items()}
        else:
            kind = self.facts_of(image).kind
            closeness = {label: 3.0 if label == kind else 0.0 for label in labels}
        total = sum(map(math.exp, closeness.values()))
        return sorted(((label, math.exp(c) / total) for label, c in closeness.items()), key=lambda pair: -pair[1])


class KnowingAssistant(MeasuringAssistant):
    """Sure of a class wherever there are nine discs; it is the contrast that tells it."""

    def facts_of(self, image: Any) -> Facts:
        facts = super().facts_of(image)
        if (count := facts.get("count")) is None or count.value != 9:
            return facts
        label = Fact("class", None, "", "calibrated head", 0.97, source="predicted", text="discs")
        return replace(facts, items=(label, *facts.items))

    def explain_label(self, image: Any, labels: Sequence[str], *, turn: Turn) -> Explanation:
        square = to_model_input(micrograph(image), 64)[0]
        square[:, 32:] = 0.5
        return explain(square, lambda squares: np.array([s.std() for s in squares]), what=labels[0], turn=turn)


def micrograph(image: Any) -> Micrograph:
    return image if isinstance(image, Micrograph) else read_micrograph(image)


def grey(image: Any) -> float:
    pixels = micrograph(image).content.astype(float)
    return float(pixels.mean() / np.iinfo(micrograph(image).pixels.dtype).max)


def discs(seed: int = 0, size: tuple[int, int] = (96, 128), *, level: int = 20000) -> np.ndarray:
    """A 16-bit frame with nine bright discs on a grey ground."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    frame = np.full(size, level, np.float64)
    for k in range(9):
        y, x = size[0] * (1 + k // 3) / 4, size[1] * (1 + k % 3) / 4
        frame[(rows - y) ** 2 + (columns - x) ** 2 < 64] = 52000
    frame += np.random.default_rng(seed).normal(0, 900, size)
    return frame.clip(0, 65535).astype(np.uint16)


def write_tiff(path: Path, seed: int = 0, *, nm: float | None = 4.2, level: int = 20000) -> Path:
    """A 16-bit TIFF of discs, calibrated the way ImageJ does it, or not at all."""
    if nm is None:
        tifffile.imwrite(path, discs(seed, level=level), photometric="minisblack")
    else:
        tifffile.imwrite(
            path, discs(seed, level=level), imagej=True, resolution=(1 / nm, 1 / nm), metadata={"unit": "nm"}
        )
    return path

"""Which of a few labels an image has: by likelihood, by prototypes, after demonstrations. Knows nothing about files.

A student is two functions here: one that looks at images, one that says how likely it is to reply something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from assistant.chat import Conversation, class_answer
from assistant.demonstrations import Labelled, Shots, choose, demonstrate
from assistant.errors import ConfigError
from assistant.labels import prototype_scores

if TYPE_CHECKING:
    from assistant.inference import Image, Look

Examples = Mapping[str, Sequence["Image"]]


@dataclass(frozen=True)
class Labeller:
    """Scores the labels of images."""

    look_all: Callable[[Sequence[Image]], list[Look]]
    likelihoods: Callable[[Sequence[Look], Conversation, Sequence[str]], Tensor]
    """Log-probability [C] of each of some replies to a conversation about some looks."""
    class_width: int
    """Width of the class token h_cls, with which a summary begins."""
    most_shots: int
    """Demonstrations that fit beside the image that is asked about."""

    def scores(
        self, images: Sequence[Image], labels: Sequence[str], examples: Examples | None, shots: Shots | None
    ) -> list[Tensor]:
        """Log-probabilities [C] of the labels of each image.

        Raises ConfigError `too_few_labels`, `no_examples`, `too_many_shots` or `too_long`, and MicrographError.
        """
        if len(set(labels)) < 2:
            raise ConfigError("too_few_labels", "Fewer than two different labels were given. Give at least two.")
        looks = self.look_all(images)
        if examples is None:
            return [self.zero_shot(look, labels) for look in looks]
        if shots is None:
            prototypes = self._prototypes(labels, examples)
            return [prototype_scores(look.summary, prototypes) for look in looks]
        return self._few_shot(looks, labels, examples, shots)

    def zero_shot(self, look: Look, labels: Sequence[str]) -> Tensor:
        """Log-probability [C] that the student would name each label."""
        return self.likelihoods([look], demonstrate([], look.aux), _answers(labels))

    def _prototypes(self, labels: Sequence[str], examples: Examples) -> Tensor:
        rows = [self.look_all(_examples_of(label, examples)) for label in labels]
        vectors = [torch.stack([look.summary for look in row]) for row in rows]
        return torch.stack([torch.nn.functional.normalize(v, dim=-1).mean(0) for v in vectors])  # [C, D']

    def _few_shot(self, looks: Sequence[Look], labels: Sequence[str], examples: Examples, shots: Shots) -> list[Tensor]:
        """Log-probabilities [C] of the labels of each image, after demonstrations chosen for it."""
        if shots.count > self.most_shots:
            raise ConfigError(
                "too_many_shots", f"{shots.count} demonstrations; the student holds {self.most_shots}. Ask for fewer."
            )
        shown = [
            Demonstration(label, look.key[0], self._class_token(look), look)
            for label in labels
            for look in self.look_all(_examples_of(label, examples))
        ]
        scores = []
        for look in looks:
            chosen = choose(shown, shots, target=look.key[0], vector=self._class_token(look))
            asked = demonstrate([demonstration.label for demonstration in chosen], look.aux)
            scores.append(self.likelihoods([*(c.look for c in chosen), look], asked, _answers(labels)))
        return scores

    def _class_token(self, look: Look) -> np.ndarray:
        vector: np.ndarray = look.summary[: self.class_width].float().cpu().numpy()  # [Dv]
        return vector


@dataclass(frozen=True)
class Demonstration(Labelled):
    """A candidate with what was seen of it."""

    look: Look


def _answers(labels: Sequence[str]) -> list[str]:
    return [class_answer(label) for label in labels]


def _examples_of(label: str, examples: Examples) -> Sequence[Image]:
    if not examples.get(label):
        raise ConfigError("no_examples", f"Label {label!r} has no example images. Add a folder of that name.")
    return examples[label]

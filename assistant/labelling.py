"""Which of a few labels an image has: by heads, by a few examples, after demonstrations. Knows nothing about files.

A student is two functions here: one that looks at images, one that says how likely it is to reply something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from assistant.chat import Conversation, class_answer
from assistant.demonstrations import LabelledImage, Shots, choose, demonstrate
from assistant.errors import ConfigError
from assistant.heads import Heads, Judgement, few_shot, log_odds
from assistant.labels import UNKNOWN_BELOW, matched, rank_labels

if TYPE_CHECKING:
    from assistant.inference import Image, Look

Examples = Mapping[str, Sequence["Image"]]
Ranked = list[tuple[str, float]]
_LEAST = 1e-9
"""Probability below which log-odds tell no difference."""


@dataclass(frozen=True)
class Labeller:
    """Ranks the labels of images."""

    look_all: Callable[[Sequence[Image]], list[Look]]
    likelihoods: Callable[[Sequence[Look], Conversation, Sequence[str]], Tensor]
    """Log-probability [C] of each of some replies to a conversation about some looks."""
    blind: Callable[[], Look]
    """A look at nothing."""
    heads: Sequence[Heads]
    class_width: int
    """Width of the class token h_cls, with which a summary begins."""
    most_shots: int
    """Demonstrations that fit beside the image that is asked about."""
    own: Sequence[str] = ()
    """Classes of a fitted run, which stand in what looks say of themselves."""

    def ranked(
        self, images: Sequence[Image], labels: Sequence[str], examples: Examples | None, shots: Shots | None
    ) -> list[Ranked]:
        """The labels of each image and "unknown", with probabilities that sum to 1; the verdict stands first.

        Raises ConfigError `too_few_labels`, `no_examples`, `too_many_shots` or `too_long`, and MicrographError.
        """
        if len(set(labels)) < 2:
            raise ConfigError("too_few_labels", "Fewer than two different labels were given. Give at least two.")
        looks = self.look_all(images)
        if examples is None:
            return [self.by_heads(look, labels) for look in looks]
        if shots is None:
            return self._by_examples(looks, labels, examples)
        return self._by_demonstrations(looks, labels, examples, shots)

    def not_known(self, labels: Sequence[str]) -> list[str]:
        """The labels that no head knows, which therefore no picture gets without examples."""
        words = self._head_words(labels)
        return [label for label in labels if words.get(label) is None]

    def asks_own(self, labels: Sequence[str]) -> bool:
        """Whether the fitted run knows as many of the labels as the heads do."""
        heads = self._class_heads(labels)
        known = sum(map(bool, _matches(heads, labels))) if heads else 0
        own = sum(matched(label, self.own) is not None for label in labels)
        return own > 0 and own >= known

    def scores(self, looks: Sequence[Look], labels: Sequence[str], examples: Examples | None = None) -> np.ndarray:
        """Log-odds [N, C] of the labels: of the class head, or after examples. Raises ConfigError `not_known`."""
        if examples is not None:
            return log_odds(np.stack([shares for shares, _ in self._few_shot(looks, labels, examples)]), _LEAST)
        words = self._head_words(labels)
        verdicts = [self._class_verdict(look, labels) for look in looks] if any(words.values()) else []
        if not verdicts or None in verdicts:
            raise ConfigError(
                "not_known", f"No head knows {', '.join(labels)}, so nothing can be explained. Show examples of each."
            )
        shares = [[v.probabilities.get(words[label] or "", 0.0) for label in labels] for v in verdicts if v]
        return log_odds(np.asarray(shares), _LEAST)

    def by_likelihood(self, look: Look, labels: Sequence[str]) -> np.ndarray:
        """Shares [C] of the labels, one of which it is, by how likely the student is to say each; nobody is told so."""
        return self._gained([look], demonstrate([], look.aux), labels)[0]

    def by_heads(self, look: Look, labels: Sequence[str]) -> Ranked:
        """What the class head says, where it knows the labels; else the picture is unknown to it."""
        words = self._head_words(labels)
        verdict = self._class_verdict(look, labels) if any(words.values()) else None
        if verdict is None:
            return rank_labels(labels, np.zeros(len(labels)), 0.0, sure=False)
        shares = np.asarray([verdict.probabilities.get(words[label] or "", 0.0) for label in labels])
        said = verdict.word in words.values()
        return rank_labels(
            labels,
            shares / max(shares.sum(), 1e-12),
            verdict.confidence if said else 0.0,
            sure=said and not verdict.reason,
        )

    def _by_examples(self, looks: Sequence[Look], labels: Sequence[str], examples: Examples) -> list[Ranked]:
        told = self._few_shot(looks, labels, examples)
        return [rank_labels(labels, shares, known, sure=known >= 0.5) for shares, known in told]

    def _few_shot(
        self, looks: Sequence[Look], labels: Sequence[str], examples: Examples
    ) -> list[tuple[np.ndarray, float]]:
        shown = {label: self.look_all(_examples_of(label, examples)) for label in labels}
        space = self.heads[-1].space if self.heads else None
        return few_shot({label: _vectors(rows) for label, rows in shown.items()}, _vectors(looks), space)

    def _by_demonstrations(
        self, looks: Sequence[Look], labels: Sequence[str], examples: Examples, shots: Shots
    ) -> list[Ranked]:
        """The labels of each image after demonstrations chosen for it."""
        if shots.count > self.most_shots:
            raise ConfigError(
                "too_many_shots", f"{shots.count} demonstrations; the student holds {self.most_shots}. Ask for fewer."
            )
        shown = [
            Demonstration(label, look.key[0], self._class_token(look), look)
            for label in labels
            for look in self.look_all(_examples_of(label, examples))
        ]
        rows = []
        for look in looks:
            chosen = choose(shown, shots, target=look.key[0], vector=self._class_token(look))
            asked = demonstrate([demonstration.label for demonstration in chosen], look.aux)
            shares, total = self._gained([*(c.look for c in chosen), look], asked, labels)
            sure = total >= UNKNOWN_BELOW
            rows.append(rank_labels(labels, shares, 1.0 if sure else total, sure=sure))
        return rows

    def _gained(self, looks: Sequence[Look], asked: Conversation, labels: Sequence[str]) -> tuple[np.ndarray, float]:
        """Shares [C] of the labels by what the last picture adds to their likelihood; and how likely they are at all.

        What the same student says when it is shown nothing is no finding: a taught wording is always likely.
        """
        replies = [class_answer(label) for label in labels]
        seen = self.likelihoods(looks, asked, replies)
        unseen = self.likelihoods([*looks[:-1], self.blind()], asked, replies)
        return (seen - unseen).double().softmax(-1).numpy(), min(1.0, float(seen.double().exp().sum()))

    def _class_heads(self, labels: Sequence[str]) -> Heads | None:
        """The heads whose classes match most of the labels; those of the run before the bundled ones."""
        with_class = [heads for heads in self.heads if heads.head("class") is not None]
        return max(with_class, key=lambda heads: sum(map(bool, _matches(heads, labels))), default=None)

    def _class_verdict(self, look: Look, labels: Sequence[str]) -> Judgement | None:
        """What those heads say of an image; None where there are none, or no tower has seen it."""
        if self.asks_own(labels):
            return next((verdict for verdict in look.judged if verdict.name == "class"), None)
        heads = self._class_heads(labels)
        if heads is None or look.features is None:
            return None
        return next(verdict for verdict in heads.verdicts(look.features[None])[0] if verdict.name == "class")

    def _head_words(self, labels: Sequence[str]) -> dict[str, str | None]:
        if self.asks_own(labels):
            return {label: matched(label, self.own) for label in labels}
        heads = self._class_heads(labels)
        return dict(zip(labels, _matches(heads, labels) if heads else [None] * len(labels), strict=True))

    def _class_token(self, look: Look) -> np.ndarray:
        vector: np.ndarray = look.summary[: self.class_width].float().cpu().numpy()  # [Dv]
        return vector


@dataclass(frozen=True)
class Demonstration(LabelledImage):
    """A candidate with what was seen of it."""

    look: Look


def _matches(heads: Heads, labels: Sequence[str]) -> list[str | None]:
    head = heads.head("class")
    return [matched(label, head.words) if head else None for label in labels]


def _vectors(looks: Sequence[Look]) -> np.ndarray:
    """Features [N, D] of looks: of the tower, else of the student's own encoders."""
    rows = [look.summary.float().cpu().numpy() if look.features is None else look.features for look in looks]
    vectors: np.ndarray = np.stack(rows)
    return vectors


def _examples_of(label: str, examples: Examples) -> Sequence[Image]:
    if not examples.get(label):
        raise ConfigError("no_examples", f"Label {label!r} has no example images. Add a folder of that name.")
    return examples[label]

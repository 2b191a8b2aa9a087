"""Few-shot prompting: which labelled images to show before the one that is asked about. Knows nothing about models.

Demonstrations are earlier turns of the same conversation, image by image with its label as the answer, so the text
sees all of them (MAEMI, arXiv 2408.13248; in-context sampling as ablated there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from assistant.chat import CLASSIFY_PROMPT, Conversation, Message, class_answer


@dataclass(frozen=True)
class Shots:
    """How many demonstrations stand before a question, and how they are chosen."""

    count: int
    choice: Literal["similar", "random", "balanced"] = "balanced"
    """`similar`: nearest by cosine of h_cls; `random`: uniform; `balanced`: uniform, the labels in turn.

    Of the bundled student's twenty answers 0.71 are right after balanced ones, 0.70 and 0.43 after the others
    (benchmarks/ablations.json, five seeds).
    """
    seed: int = 0


@dataclass(frozen=True)
class LabelledImage:
    """A labelled image that may be shown."""

    label: str
    identity: str
    """What two copies of one image share."""
    vector: np.ndarray  # [Dv] its class token h_cls


C = TypeVar("C", bound=LabelledImage)


def choose(candidates: Sequence[C], shots: Shots, *, target: str, vector: np.ndarray) -> list[C]:
    """At most `shots.count` candidates in the order they are shown, none twice and never the target itself.

    The most similar stands last, next to the question. A random draw depends on the seed and the target alone.
    """
    unique = {c.identity: c for c in candidates if c.identity != target}
    fresh = [unique[identity] for identity in sorted(unique)]
    if shots.choice == "similar":
        return sorted(fresh, key=lambda c: _cosine(c.vector, vector))[max(0, len(fresh) - shots.count) :]
    random = np.random.default_rng([shots.seed, *target.encode()])
    drawn = [fresh[i] for i in random.permutation(len(fresh))]
    if shots.choice == "balanced":
        seen: dict[str, int] = {}
        turns = []
        for candidate in drawn:
            turns.append(seen.get(candidate.label, 0))
            seen[candidate.label] = turns[-1] + 1
        drawn = [candidate for _, candidate in sorted(zip(turns, drawn, strict=True), key=lambda pair: pair[0])]
    return drawn[: shots.count]


def demonstrate(labels: Sequence[str], aux: str) -> Conversation:
    """A conversation of one demonstration per label, then the class question about a last image with its `aux`.

    Demonstrations carry no auxiliary text: it would be longer than what they show.
    """
    shown = [
        message
        for label in labels
        for message in (Message("user", CLASSIFY_PROMPT, 1), Message("assistant", class_answer(label)))
    ]
    return Conversation((*shown, Message("user", CLASSIFY_PROMPT, 1, aux)))


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))

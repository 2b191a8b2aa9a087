"""What is asked of which picture or pair, by whom, in a fixed order: the same run gives the same requests.

Knows nothing about asking, and nothing about what becomes of the answers.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from assistant.chat import number_lines
from data_gen.catalogue import pair_up
from data_gen.hosted.hosted_teacher import HostedTeacher
from data_gen.hosted.redaction import shareable
from data_gen.passes.lesson import Lesson
from data_gen.questions.evidence import Evidence, known_text
from data_gen.questions.tasks import PER_IMAGE, conversation_about, questions_about, questions_comparing
from data_gen.teacher import OfflineTeacher, Request, Teacher

if TYPE_CHECKING:
    from assistant.config import TeachConfig

FACTUAL_TASKS = frozenset({"classification", "metadata", "conversation"})
"""Answered from facts whoever the teacher is: there is nothing to see."""
Asked = tuple[tuple[Evidence, ...], Request, Teacher]
"""What is known of the pictures of a request, the request, and who answers it."""


def request_about(
    shown: Sequence[Evidence], task: str, *, config: TeachConfig, looks: bool, labels: Mapping[str, int] | None = None
) -> Request | None:
    """The request of one task about a picture or pair; None where nothing can be asked.

    `looks`: the teacher sees the pictures. `labels` are the classes of the data set with their numbers of pictures.
    """
    count = config.questions_per_image if task == "vqa" else PER_IMAGE.get(task, 1)
    ask = questions_comparing if len(shown) == 2 else functools.partial(questions_about, task=task, labels=labels)
    questions = ask(*shown, seed=config.seed, count=count, paraphrases=config.paraphrases, looking=looks)
    known = number_lines([known_text(evidence) for evidence in shown])
    images = tuple(evidence.sha256 for evidence in shown)
    return Request(images, task, tuple(questions), known, config.paraphrases) if questions else None


def conversation_request(evidence: Evidence, *, config: TeachConfig) -> Request | None:
    """The request for a conversation about one picture; None where the facts give none."""
    turn = conversation_about(evidence, seed=config.seed, paraphrases=config.paraphrases)
    if turn is None:
        return None
    return Request((evidence.sha256,), "conversation", (turn,), known_text(evidence), config.paraphrases)


class Requests:
    """Every request of a data set, picture by picture, with who is to answer it."""

    def __init__(self, lesson: Lesson) -> None:
        self._lesson = lesson
        self._offline = OfflineTeacher()

    def __call__(self, teacher: Teacher) -> Iterator[Asked]:
        """The requests where `teacher` answers what this machine may not, or need not, answer from facts."""
        lesson, tasks = self._lesson, self._lesson.config.tasks
        pairs = pair_up(lesson.taught, seed=lesson.config.seed) if "comparison" in tasks else {}
        labels = Counter(label for _, _, label in lesson.taught if label)
        for done, (position, _, _) in enumerate(lesson.taught, start=1):
            evidence = lesson.evidence(position)
            for task in tasks:
                if task != "comparison":
                    yield from self._requests((evidence,), task, teacher, labels)
                elif position in pairs:
                    yield from self._requests((evidence, lesson.evidence(pairs[position])), task, teacher, labels)
            if "vqa" in tasks and (request := conversation_request(evidence, config=lesson.config)):
                yield (evidence,), request, self._offline
            lesson.progress(done, len(lesson.taught), "asking")

    def _requests(
        self, shown: tuple[Evidence, ...], task: str, teacher: Teacher, labels: Mapping[str, int]
    ) -> Iterator[Asked]:
        config = self._lesson.config
        stays = any(evidence.path in self._lesson.staying for evidence in shown)
        by = self._offline if stays or task in FACTUAL_TASKS else teacher
        said = shown if by is self._offline else tuple(shareable(evidence, config.redact) for evidence in shown)
        if request := request_about(said, task, config=config, looks=by.looks, labels=labels):
            for sample in range(config.samples if isinstance(by, HostedTeacher) else 1):
                yield shown, replace(request, sample=sample), by

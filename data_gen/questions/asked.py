"""Questions as people ask them of one picture, answered as serving answers them from the facts; general ones beside.

Pictures of the train split are asked in wordings of the train half of the bank, the others in those of the test half.
Knows nothing about pixels, teachers or the files of a data set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from assistant.answers import composed
from assistant.errors import DatasetError
from assistant.handbook import entries
from assistant.measure import Known
from assistant.quantities import QUANTITIES
from data_gen.questions.bank import Wording, wordings
from data_gen.questions.evidence import Evidence, chance
from data_gen.questions.tasks import TaughtQuestion

OF_SEVERAL = frozenset({"compare"})


def questions_as_asked(evidence: Evidence, *, seed: int, count: int, kept: Path | None = None) -> list[TaughtQuestion]:
    """`count` questions about a picture, each of another intent, and one general question.

    `kept` is a file of answers of the base itself (`python -m serve.batch.keep`), drawn as often as ours.
    Raises DatasetError `bad_kept`.
    """
    known, rng = known_from(evidence), chance(seed, evidence.sha256, "asked")
    by_part: dict[str, list[Wording]] = {}
    for wording in wordings("train" if evidence.split == "train" else "test"):
        if not OF_SEVERAL.intersection(wording.intents):
            by_part.setdefault(wording.part, []).append(wording)
    chosen = [rng.choice(by_part[part]) for part in rng.sample(sorted(by_part), min(count, len(by_part)))]
    states = {fact.name: fact.text for fact in known.predicted}
    asked = [
        _question(f"asked_{number}", wording.text, answer, "asked", states)
        for number, wording in enumerate(chosen)
        if (answer := " ".join(text for _, text in composed(wording.text, [known])))
    ]
    general = [(text, entry.answer) for entry in entries() for text in entry.questions]
    question, answer = rng.choice(general if kept is None or rng.random() < 0.5 else kept_answers(kept))
    return [*asked, _question("general", question, answer, "general", {})]


def known_from(evidence: Evidence) -> Known:
    """What is known of a picture, its true class and words as a head would say them."""
    predicted = [name for name, quantity in QUANTITIES.items() if quantity.source == "predicted"]
    words = {name: text for name in predicted if isinstance(text := evidence.truth.get(name), str)}
    if evidence.label:
        words["class"] = evidence.label.replace("_", " ")
    return Known.from_record(evidence.facts, evidence.reading).with_words(words, "truth")


@cache
def kept_answers(file: Path) -> tuple[tuple[str, str], ...]:
    """What a base said itself: JSON lines {"question", "answer"}. Raises DatasetError `bad_kept`."""
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return tuple((row["question"], row["answer"]) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            "bad_kept", f"{file} holds no kept answers ({error}). Make it by `python -m serve.batch.keep`."
        ) from None


def _question(item: str, text: str, answer: str, facet: str, states: Mapping[str, str]) -> TaughtQuestion:
    return TaughtQuestion(
        id=item, task="vqa", facet=facet, text=text, canonical="", answers=(answer,), canonical_answer="", states=states
    )

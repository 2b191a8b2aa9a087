"""What is asked about a micrograph, and what the known facts answer: evidence + prompt files -> questions + answers.

A prompt file (see prompts/README.txt) holds wordings with `{slots}`; the evidence fills them. Where nothing is known
nothing is asked, unless the teacher sees the picture. Knows nothing about pixels, teachers or the files of a data set.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from assistant.errors import DatasetError
from assistant.quantities import QUANTITIES
from data_gen.questions.evidence import PROMPTS, Evidence, chance, pair_slots, prompt_lines, slots_of

PER_IMAGE = {"caption": 2, "classification": 2, "metadata": 2}
"""Questions of one picture by task; of captions and classes the item that serving asks is always among them."""
SERVED = frozenset({"caption", "classification"})
ASKED = frozenset(name for name, quantity in QUANTITIES.items() if quantity.asked)
"""Quantities that are also asked for where they could not be measured."""
TURNS = 4
"""Most turns of a conversation."""
_SPECIAL = frozenset({"README", "again", "classes", "sheet", "teacher"})
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Case:
    """Answer wordings for one state of the facts."""

    conditions: Mapping[str, str]
    wordings: tuple[str, ...] = ()

    def holds(self, slots: Mapping[str, str]) -> bool:
        """True where the conditions are met and every word that the wordings need is known."""
        met = all(slots.get(name) == value for name, value in self.conditions.items())
        return met and all(name in slots for name in _named(self.wordings))


@dataclass
class QuestionTemplate:
    """One thing that can be asked: wordings of the question, and cases of answers."""

    name: str
    facet: str
    task: str = "vqa"
    look: bool = False
    """A teacher that sees the picture may answer where no fact is known."""
    fixed: bool = False
    """Every picture has the same answer on purpose."""
    after: tuple[str, ...] = ()
    """Items that this one goes on from in a conversation."""
    questions: list[str] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    clauses: dict[str, list[Case]] = field(default_factory=dict)
    """Parts of sentences that the answers of this file share; a name that ends in "?" may stay empty."""

    @property
    def reads(self) -> frozenset[str]:
        """Names of all slots that questions, conditions or answers mention."""
        cases = [*self.cases, *(case for clause in self.clauses.values() for case in clause)]
        named = _named(self.questions) | {name for case in cases for name in case.conditions}
        named |= {name for case in cases for name in _named(case.wordings)}
        return frozenset(named - {name.rstrip("?") for name in self.clauses})


@dataclass(frozen=True)
class TaughtQuestion:
    """A question as it is asked of one picture or pair, with the answers that the facts give."""

    id: str
    """Name of the item, unique within a request."""
    task: str
    facet: str
    text: str
    canonical: str
    """The question apart from its wording: what the blind test holds fixed; empty where it is not to judge."""
    answers: tuple[str, ...]
    """Wordings of the same answer, the target first; empty where only a teacher that sees can tell."""
    canonical_answer: str
    states: Mapping[str, str]
    """Slots whose values the answers state."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier turns of the conversation: question, answer."""


@cache
def items() -> tuple[QuestionTemplate, ...]:
    """Every item of every prompt file, in a fixed order."""
    paths = sorted(path for path in PROMPTS.glob("*.txt") if path.stem not in _SPECIAL)
    return tuple(item for path in paths for item in _parse(path))


def by_facet(scores: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Sums of scores per item (rows, right) over the items of each facet."""
    sums: dict[str, tuple[int, int]] = {}
    for item in items():
        rows, right = sums.get(item.facet, (0, 0))
        more, better = scores.get(item.name, (0, 0))
        sums[item.facet] = (rows + more, right + better)
    return sums


@cache
def prompts_version() -> str:
    """Digest of all prompt files: a changed prompt is a new question to a teacher."""
    digest = hashlib.sha256()
    for path in sorted(PROMPTS.glob("*.txt")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def questions_about(
    evidence: Evidence,
    task: str,
    *,
    seed: int,
    count: int = 1,
    paraphrases: int = 5,
    looking: bool = False,
    labels: Mapping[str, int] | None = None,
) -> list[TaughtQuestion]:
    """The questions of one task about one picture, at most `count` of them, spread over the facets.

    With `looking` the teacher sees the picture, so visible qualities are asked though no fact tells them. `labels` are
    the classes of the data set with their numbers of pictures; without them no candidates can be named.
    """
    about = (seed, evidence.sha256, task)
    asked = _askable(task, slots_of(evidence, seed=seed, labels=labels), about, paraphrases, looking)
    rng = chance(*about, "choice")
    if task in SERVED:
        return [*asked[:1], *rng.sample(asked[1:], min(count, len(asked)) - 1)] if asked else []
    return _spread(_rationed(asked, rng), count, rng)


def conversation_about(evidence: Evidence, *, seed: int, paraphrases: int = 5) -> TaughtQuestion | None:
    """The last turn of a conversation about one picture, with the turns before it; None where the facts give none.

    It opens with any question that another goes on from, and each turn goes on from one before it, the latest first.
    """
    about = (seed, evidence.sha256, "conversation")
    slots = slots_of(evidence, seed=seed)
    single = [item for item in items() if item.task in {"caption", "vqa", "metadata", "conversation"}]
    found = {
        item.name: ask_template(item, slots, rng=chance(*about, item.name), paraphrases=paraphrases) for item in single
    }
    turns = {name: question for name, question in found.items() if question is not None and question.answers}
    follows = {item.name: item.after for item in single if item.after and item.name in turns}
    rng = chance(*about, "choice")
    openers = sorted({name for after in follows.values() for name in after if name in turns and name not in follows})
    if not openers:
        return None
    path = [rng.choice(openers)]
    while len(path) < TURNS and (following := _next_turns(path, follows)):
        path.append(rng.choice(following))
    *earlier, last = (turns[name] for name in path)
    return replace(
        last,
        id="conversation",
        task="vqa",
        facet="conversation",
        canonical="",
        states={name: text for turn in (*earlier, last) for name, text in turn.states.items()},
        history=tuple((turn.text, turn.answers[0]) for turn in earlier),
    )


def _next_turns(path: Sequence[str], follows: Mapping[str, Sequence[str]]) -> list[str]:
    """What goes on from the latest turn that anything goes on from."""
    for turn in reversed(path):
        if following := [name for name, after in follows.items() if turn in after and name not in path]:
            return following
    return []


def questions_comparing(
    first: Evidence, second: Evidence, *, seed: int, count: int = 1, paraphrases: int = 5, looking: bool = False
) -> list[TaughtQuestion]:
    """Questions that need both pictures."""
    about = (seed, first.sha256, second.sha256)
    asked = _askable("comparison", pair_slots(first, second, seed=seed), about, paraphrases, looking)
    return _spread(asked, count, chance(*about, "choice"))


def ask_template(
    item: QuestionTemplate, slots: Mapping[str, str], *, rng: random.Random, paraphrases: int
) -> TaughtQuestion | None:
    """One question of an item; None where a slot of the question, or of every answer, is not known.

    An item that can be answered by looking is asked all the same, with no answers of its own.
    """
    if not _named(item.questions) <= slots.keys():
        return None
    # The first wording of these two is what serving asks, so it is the commonest in training.
    first = item.task in {"caption", "classification"} and rng.random() < 0.5
    chosen = 0 if first else rng.randrange(len(item.questions))
    case, stated = _case(item, slots)
    if case is None and not item.look:
        return None
    wordings = () if case is None else case.wordings
    answers = [_answer(item, text, slots, i) for i, text in enumerate(wordings)]
    # Wording i of the question has wording i of the answer, so greedy decoding can reach it.
    target = chosen % len(answers) if answers else 0
    return TaughtQuestion(
        id=item.name,
        task=item.task,
        facet=item.facet,
        text=_filled(item.questions[chosen], slots),
        canonical="" if item.fixed else f"{item.name}: {_filled(item.questions[0], slots)}",
        answers=tuple(dict.fromkeys([*answers[target:], *answers[:target]]))[:paraphrases],
        canonical_answer=answers[0] if answers else "",
        states={name: slots[name] for name in sorted(stated)},
    )


def _askable(
    task: str, slots: Mapping[str, str], about: Sequence[object], paraphrases: int, looking: bool
) -> list[TaughtQuestion]:
    asked = (
        ask_template(item, slots, rng=chance(*about, item.name), paraphrases=paraphrases)
        for item in items()
        if item.task == task
    )
    return [question for question in asked if question is not None and (question.answers or looking)]


def _rationed(questions: list[TaughtQuestion], rng: random.Random) -> list[TaughtQuestion]:
    """At most one question that no picture answers, and one about a quantity that this picture does not have."""
    fixed = {item.name for item in items() if item.fixed}
    unmeasured = {q.id for q in questions if any(q.states.get(f"has_{name}") == "no" for name in ASKED)}
    for rare in (fixed, unmeasured):
        chosen = rng.choice([question.id for question in questions if question.id in rare] or [""])
        questions = [question for question in questions if question.id not in rare or question.id == chosen]
    return questions


def _spread(questions: Sequence[TaughtQuestion], count: int, rng: random.Random) -> list[TaughtQuestion]:
    """Draw from all facets; one with n items comes up about sqrt(n) times as often, so that it crowds out no other."""
    facets: dict[str, list[TaughtQuestion]] = {}
    for question in rng.sample(list(questions), len(questions)):
        facets.setdefault(question.facet, []).append(question)
    dealt = []
    for row in facets.values():
        start, pace = rng.random(), len(row) ** -0.5
        dealt += [((start + turn) * pace, question) for turn, question in enumerate(row)]
    return [question for _, question in sorted(dealt, key=lambda pair: pair[0])[:count]]


def _case(item: QuestionTemplate, slots: Mapping[str, str]) -> tuple[Case | None, set[str]]:
    """The case that holds, and the names of the slots it states, those of its clauses included."""
    held = {name.rstrip("?"): _first(cases, slots) for name, cases in item.clauses.items()}
    named = dict(slots) | {name: "" for name in item.clauses if name.endswith("?")}
    named = {name.rstrip("?"): text for name, text in named.items()}
    named |= {name: "" for name, clause in held.items() if clause is not None}
    case = _first(item.cases, named)
    if case is None:
        return None, set()
    parts = [case, *(held[name] for name in _named(case.wordings) & held.keys())]
    stated = {name for part in parts if part for name in {*part.conditions, *_named(part.wordings)}}
    return case, stated & slots.keys()


def _first(cases: Sequence[Case], slots: Mapping[str, str]) -> Case | None:
    return next((case for case in cases if case.holds(slots)), None)


def _answer(item: QuestionTemplate, template: str, slots: Mapping[str, str], wording: int) -> str:
    clauses = {}
    for name, cases in item.clauses.items():
        case = _first(cases, slots)
        text = "" if case is None else case.wordings[wording % len(case.wordings)]
        clauses[name.rstrip("?")] = _filled(text, slots)
    return " ".join(_filled(template, {**slots, **clauses}).split())


def _filled(template: str, slots: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda match: slots[match[1]], template)


def _named(texts: Sequence[str]) -> set[str]:
    return {name for text in texts for name in _SLOT.findall(text)}


def _parse(path: Path) -> Iterator[QuestionTemplate]:
    item = QuestionTemplate("", path.stem)
    found: list[QuestionTemplate] = []
    clauses: dict[str, list[Case]] = {}
    cases = item.cases
    for line in prompt_lines(path):
        mark, text = line[0], line[1:].strip()
        if line.startswith("[."):
            cases = clauses.setdefault(line.strip("[.]"), [])
        elif mark == "[":
            item = QuestionTemplate(line.strip("[]"), path.stem, clauses=clauses)
            cases = item.cases
            found.append(item)
        elif mark == "?":
            item.questions.append(text)
        elif mark == "!":
            cases[-1:] = [Case(cases[-1].conditions, (*cases[-1].wordings, text)) if cases else Case({}, (text,))]
        elif line == "otherwise" or line.startswith("when "):
            cases.append(Case(dict(part.split("=", 1) for part in line.split()[1:])))
        else:
            _set(item, line, path)
    yield from found


def _set(item: QuestionTemplate, line: str, path: Path) -> None:
    key, _, value = (part.strip() for part in line.partition(":"))
    match key:
        case "facet":
            item.facet = value
        case "task":
            item.task = value
        case "look":
            item.look = value == "yes"
        case "fixed":
            item.fixed = value == "yes"
        case "after":
            item.after = tuple(name.strip() for name in value.split(","))
        case _:
            raise DatasetError("bad_prompt", f"{path.name}: {line!r} is not understood. See prompts/README.txt.")

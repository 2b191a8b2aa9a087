"""Where a person accepts, edits or rejects rows of a data set, on a page or a tab; every decision is kept at once.

Pictures and texts go to the browser from memory, so no file of the data set is served. Knows nothing about teachers.
"""

from __future__ import annotations

import base64
import getpass
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.applications import Starlette

from assistant.errors import ConfigError, DatasetError
from data_gen.catalogue import SPLITS
from data_gen.dataset.decisions import Reviews, ReviewVerdict, answer_of
from data_gen.dataset.reader import files_to_review, parquet_file
from data_gen.passes.corrections import Correction, publish_corrections, queue_corrections
from serve.http.guard import App, Guard
from serve.page.intake import user_of
from serve.page.mounting import Blocks, mount
from serve.page.sessions import NO_LOGIN

OPEN, ALL = "to review", "all"
_STATES = (OPEN, "accepted", "edited", "rejected", ALL)
ANY = "any"
_NOTHING = ("", '<div class="review-done"><p>No row is left in this choice.</p></div>', "", "")
_HEADER = (
    '<header class="maemi-head"><h1>MAEMI</h1><p>Review of instruction data. Nothing leaves this machine.</p></header>'
)
FOOTER = (
    '<footer class="maemi-foot"><p>Decisions are kept with name and time in <b>review.sqlite</b>. Give the '
    "<b>maemi teach</b> command of the data set again to write them into it; exports apply them at once.</p></footer>"
)


CorrectionsOf = Callable[[gr.Request], Iterable[Correction]]
"""The answers that whoever asks has corrected."""


@dataclass(frozen=True)
class RowPlace:
    """Where a row lies, and what it can be chosen by."""

    id: str
    file: Path
    group: int
    offset: int
    split: str
    task: str
    facet: str


class Book:
    """The rows of a data set directory, opened one row group at a time.

    Raises DatasetError `no_dataset` or `damaged_dataset`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stamps = _stamps(directory)
        self.places = list(self._index())
        self.position = {place.id: position for position, place in enumerate(self.places)}
        self.tasks = sorted({place.task for place in self.places})
        self.read = lru_cache(maxsize=2)(_read_group)

    def _index(self) -> Iterator[RowPlace]:
        for split, paths in files_to_review(self.directory).items():
            for path in paths:
                with parquet_file(path) as file:
                    for group in range(file.num_row_groups):
                        known = file.read_row_group(group, columns=["id", "task", "facet"]).to_pylist()
                        for offset, row in enumerate(known):
                            yield RowPlace(row["id"], path, group, offset, split, row["task"], row["facet"])

    def row(self, place: RowPlace) -> dict[str, Any]:
        """The row with its pictures. Raises DatasetError `changed` where the data set was written anew meanwhile."""
        rows = self.read(place.file, place.group)
        if place.offset >= len(rows) or rows[place.offset]["id"] != place.id:
            raise _changed()
        return rows[place.offset]


def _read_group(path: Path, group: int) -> list[dict[str, Any]]:
    with parquet_file(path) as file:
        rows: list[dict[str, Any]] = file.read_row_group(group).to_pylist()
        return rows


class ReviewDesk:
    """What the page does: choose rows, show one, keep a decision."""

    def __init__(self, book: Book, reviews: Reviews) -> None:
        self.book, self.reviews = book, reviews

    def chosen(self, split: str, task: str, state: str) -> list[int]:
        """Positions of the rows that the three choices leave."""
        latest = self.reviews.latest()
        found = []
        for position, place in enumerate(self.book.places):
            verdict = latest[place.id].verdict if place.id in latest else OPEN
            if split in {ANY, place.split} and task in {ANY, place.task} and state in {ALL, verdict}:
                found.append(position)
        return found

    def ids(self, split: str, task: str, state: str) -> list[str]:
        """Ids of the rows that the three choices leave."""
        return [self.book.places[position].id for position in self.chosen(split, task, state)]

    def position(self, id: str) -> int:
        """Where a row stands. Raises DatasetError `changed` where it is there no more."""
        if id not in self.book.position:
            raise _changed()
        return self.book.position[id]

    def progress(self) -> str:
        """How far the review is."""
        latest = self.reviews.latest()
        known = [latest[place.id].verdict for place in self.book.places if place.id in latest]
        counts = ", ".join(f"{known.count(verdict)} {verdict}" for verdict in _STATES[1:-1] if verdict in known)
        return f"{len(known)} of {len(self.book.places)} rows decided{f': {counts}' if counts else ''}"

    def shown(self, position: int | None) -> tuple[str, str, str, str]:
        """A row as HTML of pictures, of its head, of the turns before the answer, and its answer."""
        if position is None:
            return _NOTHING
        place = self.book.places[position]
        row = self.book.row(place)
        decision = self.reviews.latest().get(place.id)
        answer = decision.answer if decision and decision.answer else answer_of(row)
        sources = (base64.b64encode(image["bytes"]).decode() for image in row["images"])
        images = "".join(f'<img alt="micrograph" src="data:image/png;base64,{source}">' for source in sources)
        turns = ""
        for message in row["messages"][:-1]:
            words = " ".join(part["text"] for part in message["content"] if part["text"])
            who = "Question" if message["role"] == "user" else "Answer"
            turns += f'<p class="review-turn"><b>{who}</b>{escape(words)}</p>'
        badge = ""
        if decision is not None:
            tone = "amber" if decision.verdict == "rejected" else "teal"
            told = f"by {decision.reviewer}, {decision.decided_at}" + (
                f": {decision.reason}" if decision.reason else ""
            )
            badge = f'<p class="maemi-badge maemi-{tone}">{escape(decision.verdict)} <span>{escape(told)}</span></p>'
        named = f"{place.task} / {place.facet}".replace("_", " ")
        about = " · ".join(filter(None, [place.split, row["label"], row["source"], f"by {row['teacher']}"]))
        head = (
            f'<div class="review-head"><h3>{escape(named)}</h3><span>{escape(about)}</span></div>{badge}'
            f'<p class="review-known">Known: {escape(row["aux"] or "nothing")}</p>'
        )
        return f'<div class="review-pictures">{images}</div>', head, turns, answer

    def decide(self, position: int, verdict: ReviewVerdict, answer: str, reason: str, reviewer: str) -> None:
        """Keep a decision; an accepted row whose text was changed is an edited one.

        Raises DatasetError.
        """
        row = self.book.row(self.book.places[position])
        if verdict == "accepted" and answer.strip() != answer_of(row):
            verdict = "edited"
        self.reviews.decide(row, verdict, reviewer=reviewer, answer=answer, reason=reason)


class Shelf:
    """The data sets that can be reviewed, by name; each is opened when somebody first asks for it.

    Raises ConfigError `no_dataset` for another name, and DatasetError.
    """

    def __init__(self, names: Callable[[], Sequence[str]], find: Callable[[str], Path], **opened: ReviewDesk) -> None:
        self.names, self._find = names, find
        self._open = dict(opened)
        self._turn = threading.Lock()

    def desk(self, name: str) -> ReviewDesk:
        """The rows of a data set and the decisions about them, as they are now."""
        directory = self._find(name)
        with self._turn:
            kept = self._open.get(name)
            if kept is None or kept.book.stamps != _stamps(directory):
                reviews = kept.reviews if kept else Reviews(directory)
                kept = self._open[name] = ReviewDesk(Book(directory), reviews)
            return kept

    def close(self) -> None:
        """Close what was opened."""
        for desk in self._open.values():
            desk.reviews.close()


class ReviewPage:
    """What the controls do; every answer fills row, queue, progress, pictures, head, turns, answer and remark.

    Rows are named by their ids: a data set may be written anew while somebody reviews it.
    """

    def __init__(self, shelf: Shelf, corrected: CorrectionsOf | None = None) -> None:
        self._shelf, self._corrected = shelf, corrected

    def names(self) -> Sequence[str]:
        """The data sets there are."""
        return self._shelf.names()

    def arrive(self, request: gr.Request) -> tuple[Any, ...]:
        """What there is to review, and who reviews: data sets, reviewer."""
        names, user = self.names(), user_of(request)
        chosen = gr.Dropdown(choices=list(names), value=next(iter(names), None))
        return chosen, _user() if user == NO_LOGIN else user

    def select(self, data: str | None) -> tuple[Any, ...]:
        """Open a data set: tasks, then the first row that is to be reviewed."""
        tasks = self._shelf.desk(data).book.tasks if data else []
        return gr.Dropdown(choices=[ANY, *tasks], value=ANY), *self.choose(data, ANY, ANY, OPEN)

    def choose(self, data: str | None, split: str, task: str, state: str) -> tuple[Any, ...]:
        """Open the first row of a choice."""
        if not data:
            return None, [], "", *_NOTHING, ""
        desk = self._shelf.desk(data)
        found = desk.ids(split, task, state)
        return self._opened(desk, found, found[0] if found else None)

    def back(self, data: str | None, queue: list[str], row: str | None) -> tuple[Any, ...]:
        """Open the row before, round the end."""
        return self._step(data, queue, row, -1)

    def skip(self, data: str | None, queue: list[str], row: str | None) -> tuple[Any, ...]:
        """Open the next row and decide nothing."""
        return self._step(data, queue, row, 1)

    def accept(self, data: str | None, queue: list[str], row: str | None, *words: str) -> tuple[Any, ...]:
        """Keep the row as its words stand; `words`: answer, remark, reviewer, then the choice."""
        return self._decide("accepted", data, queue, row, words)

    def reject(self, data: str | None, queue: list[str], row: str | None, *words: str) -> tuple[Any, ...]:
        """Take the row out."""
        return self._decide("rejected", data, queue, row, words)

    def take(self, data: str | None, request: gr.Request) -> str:
        """Let the asker's corrected answers wait for review in a data set: what became of them."""
        if not data or self._corrected is None:
            raise ConfigError("no_dataset", "Choose a data set first.")
        counts = queue_corrections(self._shelf.desk(data).book.directory, self._corrected(request))
        waiting = counts.pop("waiting", 0)
        left = "".join(f"; {count} left out: {escape(reason)}" for reason, count in counts.items())
        return f'<p class="maemi-progress" role="status">{waiting} corrected answers wait for review{left}.</p>'

    def publish(self, data: str | None) -> str:
        """Write accepted corrections into the training split: what became of them."""
        if not data:
            raise ConfigError("no_dataset", "Choose a data set first.")
        count = publish_corrections(self._shelf.desk(data).book.directory)
        return f'<p class="maemi-progress" role="status">{count} reviewed corrections are in the training split.</p>'

    def _decide(
        self, verdict: ReviewVerdict, data: str | None, queue: list[str], row: str | None, words: Sequence[str]
    ) -> tuple[Any, ...]:
        if row is None or not data:
            return self._step(data, queue, row, 0)
        answer, remark, reviewer, split, task, state = words
        desk = self._shelf.desk(data)
        at = desk.position(row)
        desk.decide(at, verdict, answer, remark, reviewer)
        found = desk.ids(split, task, state)
        after = (id for id in found if desk.position(id) > at)
        return self._opened(desk, found, next(after, found[0] if found else None))

    def _step(self, data: str | None, queue: list[str], row: str | None, by: int) -> tuple[Any, ...]:
        if not data:
            return None, [], "", *_NOTHING, ""
        if row in queue:
            row = queue[(queue.index(row) + by) % len(queue)]
        return self._opened(self._shelf.desk(data), queue, row)

    def _opened(self, desk: ReviewDesk, queue: Sequence[str], row: str | None) -> tuple[Any, ...]:
        told = f"{desk.progress()}; {len(queue)} in this choice"
        shown = desk.shown(None if row is None else desk.position(row))
        return row, list(queue), f'<p class="maemi-progress">{escape(told)}</p>', *shown, ""


def review_tab(blocks: Blocks, page: ReviewPage, *, corrections: bool = False) -> None:
    """One row at a time: pictures to the left, words and decisions to the right."""
    bare = "maemi-bare"
    with gr.Row():
        data = gr.Dropdown(list(page.names()), value=None, label="Data set")
        split = gr.Dropdown([ANY, *SPLITS], value=ANY, label="Split")
        task = gr.Dropdown([ANY], value=ANY, label="Task")
        state = gr.Dropdown(list(_STATES), value=OPEN, label="Rows")
        reviewer = gr.Textbox(label="Reviewer", max_length=80)
    progress = gr.HTML(elem_classes=bare)
    with gr.Row(elem_classes="maemi-columns"):
        with gr.Column(scale=5):
            pictures = gr.HTML(elem_classes=bare)
        with gr.Column(scale=5, elem_classes="maemi-card"):
            head, turns = gr.HTML(elem_classes=bare), gr.HTML(elem_classes=bare)
            answer = gr.Textbox(label="Answer", lines=3, max_lines=8, info="Change the words to edit the row.")
            remark = gr.Textbox(label="Remark", max_length=300, placeholder="Why, if you like")
            with gr.Row():
                accept = gr.Button("Accept", variant="primary", min_width=80)
                reject = gr.Button("Reject", variant="stop", min_width=80)
                back, skip = gr.Button("Back", min_width=80), gr.Button("Skip", min_width=80)
    row, queue = gr.State(None), gr.State([])
    outputs = [row, queue, progress, pictures, head, turns, answer, remark]
    choice, at = [data, split, task, state], [data, queue, row]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    for button, decide in ((accept, page.accept), (reject, page.reject)):
        button.click(decide, [*at, answer, remark, reviewer, *choice[1:]], outputs, **quiet)
    back.click(page.back, at, outputs, **quiet)
    skip.click(page.skip, at, outputs, **quiet)
    for control in choice[1:]:
        control.input(page.choose, choice, outputs, **quiet)
    data.change(page.select, data, [task, *outputs], **quiet)
    if corrections:
        with gr.Accordion("Corrected answers of the chat", open=False):
            with gr.Row(elem_classes="maemi-actions"):
                take = gr.Button("Take up mine for review", size="sm", min_width=110)
                publish = gr.Button("Write reviewed ones into the training split", size="sm", min_width=110)
            told = gr.HTML(elem_classes=bare)
        take.click(page.take, data, told, **quiet).then(page.choose, choice, outputs, **quiet)
        publish.click(page.publish, data, told, **quiet)
    blocks.load(page.arrive, None, [data, reviewer], **quiet)


def build_review_app(book: Book, reviews: Reviews) -> App:
    """The review of one data set as a page of its own, behind the guard."""
    name = book.directory.name or str(book.directory)
    shelf = Shelf(lambda: [name], lambda _: book.directory, **{name: ReviewDesk(book, reviews)})
    blocks = Blocks(title="MAEMI review")
    with blocks:
        gr.HTML(_HEADER, elem_classes="maemi-bare")
        review_tab(blocks, ReviewPage(shelf))
        gr.HTML(FOOTER, elem_classes="maemi-bare")
    return Guard(mount(Starlette(), blocks), credentials=None)


def _stamps(directory: Path) -> list[tuple[str, int, int]]:
    """Changes with the files that rows are read from."""
    files = (path for paths in files_to_review(directory).values() for path in paths)
    return [(str(path), (known := path.stat()).st_mtime_ns, known.st_size) for path in files]


def _changed() -> DatasetError:
    return DatasetError("changed", "The data set was written anew meanwhile. Choose it again; decisions are kept.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""

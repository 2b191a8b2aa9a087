"""The page on which a person accepts, edits or rejects rows of a data set; every decision is kept at once.

Pictures and texts go to the page from memory, so no file of the data set is served. Knows nothing about teachers.
"""

from __future__ import annotations

import base64
import getpass
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.applications import Starlette

from data_gen.catalogue import SPLITS
from data_gen.dataset.decisions import Reviews, ReviewVerdict, answer_of
from data_gen.dataset.reader import files_to_review, parquet_file
from serve.http.guard import App, Guard
from serve.page.mounting import Blocks, mount

OPEN, ALL = "to review", "all"
_STATES = (OPEN, "accepted", "edited", "rejected", ALL)
ANY = "any"
LOOKS = """
.review-pictures { display: flex; gap: .75rem; } .review-pictures img { max-width: 100%; min-width: 0; flex: 1;
  max-height: 30rem; object-fit: contain; background: #000; border-radius: .5rem; }
.review-turn { margin: 0 0 .5rem; } .review-turn b { color: var(--m-soft); font-weight: 600; margin-right: .5rem; }
.review-known { color: var(--m-soft); font-size: .85rem; margin: .8rem 0 0; }
.review-head { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem; flex-wrap: wrap; }
.review-head span { color: var(--m-soft); font-size: .85rem; } .review-head h3 { margin: 0; font-size: 1rem; }
.review-done { padding: 4rem 1rem; text-align: center; color: var(--m-soft); }
"""


_HEADER = (
    '<header class="maemi-head"><h1>MAEMI</h1><p>Review of instruction data. Nothing leaves this machine.</p></header>'
)
FOOTER = (
    '<footer class="maemi-foot"><p>Decisions are kept with name and time in <b>review.sqlite</b>. Give the '
    "<b>maemi teach</b> command of the data set again to write them into it; exports apply them at once.</p></footer>"
)


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
        self.places = list(self._index())
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
        """The row with its pictures."""
        return self.read(place.file, place.group)[place.offset]


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

    def progress(self) -> str:
        """How far the review is."""
        latest = self.reviews.latest()
        known = [latest[place.id].verdict for place in self.book.places if place.id in latest]
        counts = ", ".join(f"{known.count(verdict)} {verdict}" for verdict in _STATES[1:-1] if verdict in known)
        return f"{len(known)} of {len(self.book.places)} rows decided{f': {counts}' if counts else ''}"

    def shown(self, position: int | None) -> tuple[str, str, str, str]:
        """A row as HTML of pictures, of its head, of the turns before the answer, and its answer."""
        if position is None:
            return "", '<div class="review-done"><p>No row is left in this choice.</p></div>', "", ""
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


class ReviewPage:
    """What the controls do; every answer fills position, queue, progress, pictures, head, turns, answer and remark."""

    def __init__(self, desk: ReviewDesk) -> None:
        self._desk = desk

    def choose(self, split: str, task: str, state: str) -> tuple[Any, ...]:
        """Open the first row of a choice."""
        found = self._desk.chosen(split, task, state)
        return self._open(found, found[0] if found else None)

    def back(self, queue: list[int], place: int | None) -> tuple[Any, ...]:
        """Open the row before, round the end."""
        return self._step(queue, place, -1)

    def skip(self, queue: list[int], place: int | None) -> tuple[Any, ...]:
        """Open the next row and decide nothing."""
        return self._step(queue, place, 1)

    def accept(self, queue: list[int], place: int | None, *words: str) -> tuple[Any, ...]:
        """Keep the row as its words stand; `words`: answer, remark, reviewer, then the choice."""
        return self._decide("accepted", queue, place, words)

    def reject(self, queue: list[int], place: int | None, *words: str) -> tuple[Any, ...]:
        """Take the row out."""
        return self._decide("rejected", queue, place, words)

    def _decide(
        self, verdict: ReviewVerdict, queue: list[int], place: int | None, words: Sequence[str]
    ) -> tuple[Any, ...]:
        if place is None:
            return self._open(queue, place)
        answer, remark, reviewer, split, task, state = words
        self._desk.decide(place, verdict, answer, remark, reviewer)
        found = self._desk.chosen(split, task, state)
        return self._open(found, next((at for at in found if at > place), found[0] if found else None))

    def _step(self, queue: list[int], place: int | None, by: int) -> tuple[Any, ...]:
        if place is None or place not in queue:
            return self._open(queue, place)
        return self._open(queue, queue[(queue.index(place) + by) % len(queue)])

    def _open(self, queue: Sequence[int], place: int | None) -> tuple[Any, ...]:
        told = f"{self._desk.progress()}; {len(queue)} in this choice"
        return place, list(queue), f'<p class="maemi-progress">{escape(told)}</p>', *self._desk.shown(place), ""


def build_review_page(desk: ReviewDesk) -> Blocks:
    """One row at a time: pictures to the left, words and decisions to the right."""
    page, bare = ReviewPage(desk), "maemi-bare"
    blocks = Blocks(title="MAEMI review")
    with blocks:
        gr.HTML(_HEADER, elem_classes=bare)
        with gr.Row():
            split = gr.Dropdown([ANY, *SPLITS], value=ANY, label="Split")
            task = gr.Dropdown([ANY, *desk.book.tasks], value=ANY, label="Task")
            state = gr.Dropdown(list(_STATES), value=OPEN, label="Rows")
            reviewer = gr.Textbox(value=_user(), label="Reviewer", max_length=80)
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
        gr.HTML(FOOTER, elem_classes=bare)
        place, queue = gr.State(None), gr.State([])
        outputs = [place, queue, progress, pictures, head, turns, answer, remark]
        choice, at = [split, task, state], [queue, place]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        for button, decide in ((accept, page.accept), (reject, page.reject)):
            button.click(decide, [*at, answer, remark, reviewer, *choice], outputs, **quiet)
        back.click(page.back, at, outputs, **quiet)
        skip.click(page.skip, at, outputs, **quiet)
        for control in choice:
            control.change(page.choose, choice, outputs, **quiet)
        blocks.load(page.choose, choice, outputs, **quiet)
    return blocks


def build_review_app(book: Book, reviews: Reviews) -> App:
    """The page behind the guard."""
    page = build_review_page(ReviewDesk(book, reviews))
    return Guard(mount(Starlette(), page, looks=LOOKS), credentials=None)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""

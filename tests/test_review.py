"""Review: decisions are kept with who and when, survive anything, and change the data set as the person said."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from measuring import write_tiff
from serving import running

from assistant.config import TeachConfig
from assistant.errors import DatasetError
from assistant.micrograph import read_micrograph
from data_gen.dataset.decisions import Reviews, answer_of, applied, decisions_about
from data_gen.dataset.exports import reviewed_rows
from data_gen.drawing.synth import write_synthetic
from data_gen.passes.corrections import publish_corrections
from data_gen.pipeline import teach
from serve.cli import main
from serve.desk.conversations import Conversations, NewPicture, beside_the_book
from serve.http.guard import App
from serve.page.review import ALL, ANY, OPEN, Book, ReviewDesk, ReviewPage, Shelf, build_review_app
from training.data import load_split

ROOT = Path(__file__).parents[1]
CONFIG = TeachConfig(questions_per_image=2)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_synthetic(folder, classes=("particles", "tips"), per_class=12, size=(64, 96), workers=1)
    return folder


@pytest.fixture(scope="module")
def fresh(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fresh")
    teach(images, out, config=CONFIG, workers=1)
    return out


@pytest.fixture
def taught(fresh: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fresh, tmp_path / "data"))


@pytest.fixture
def desk(taught: Path) -> Iterator[ReviewDesk]:
    with Reviews(taught) as reviews:
        yield ReviewDesk(Book(taught), reviews)


def row_of(book: Book, id_: str) -> dict[str, Any] | None:
    return next((book.row(place) for place in book.places if place.id == id_), None)


def test_a_decision_tells_who_and_when(desk: ReviewDesk) -> None:
    """The latest decision counts, and the ones before it stay on record."""
    row = desk.book.row(desk.book.places[0])
    desk.decide(0, "accepted", answer_of(row), "", "Ada")
    desk.decide(0, "rejected", answer_of(row), "wrong shape", "Grace")
    latest = desk.reviews.latest()[row["id"]]
    assert (latest.verdict, latest.reviewer, latest.reason) == ("rejected", "Grace", "wrong shape")
    assert latest.decided_at.endswith("+00:00")
    assert [decision.reviewer for decision in desk.reviews.history(row["id"])] == ["Ada", "Grace"]


def test_teaching_again_writes_the_decisions(desk: ReviewDesk, images: Path, taught: Path) -> None:
    """Edited words become the target, rejected rows leave with a reason, and a third run changes nothing.

    Seen failing with decisions that are not asked for when rows are written.
    """
    edited, rejected, accepted = (desk.book.row(desk.book.places[at]) for at in (0, 1, 2))
    desk.decide(0, "accepted", "It shows something that a person knows.", "", "Ada")
    desk.decide(1, "rejected", answer_of(rejected), "blurred", "Ada")
    desk.decide(2, "accepted", answer_of(accepted), "", "Ada")
    before = len(desk.book.places)
    report = teach(images, taught, config=CONFIG, workers=1)
    assert report.rejected["reviewer"] == 1
    book = Book(taught)
    assert len(book.places) == before - 1
    assert row_of(book, rejected["id"]) is None
    row = row_of(book, edited["id"])
    assert row is not None
    assert answer_of(row) == row["references"][0] == "It shows something that a person knows."
    told = json.loads(row["provenance"])["review"]
    assert (told["verdict"], told["by"], told["taught"]) == ("edited", "Ada", answer_of(edited))
    kept = row_of(book, accepted["id"])
    assert kept is not None
    assert kept["references"] == accepted["references"]
    card = (taught / "README.md").read_text()
    assert "* 1 edited by Ada" in card
    assert "* 1 reviewer: rejected by a person" in card
    files = {path.name: path.read_bytes() for path in taught.glob("data/*")}
    teach(images, taught, config=CONFIG, workers=1)
    assert {path.name: path.read_bytes() for path in taught.glob("data/*")} == files


def test_an_edited_row_can_be_edited_again(desk: ReviewDesk, images: Path, taught: Path) -> None:
    """The second edit refers to what the teacher wrote, so it is not taken for one about another text."""
    desk.decide(0, "accepted", "First words.", "", "Ada")
    teach(images, taught, config=CONFIG, workers=1)
    again = ReviewDesk(Book(taught), desk.reviews)
    assert again.shown(0)[3] == "First words."
    again.decide(0, "accepted", "Second words.", "", "Grace")
    teach(images, taught, config=CONFIG, workers=1)
    assert answer_of(Book(taught).row(Book(taught).places[0])) == "Second words."


def test_a_decision_about_another_text_changes_nothing(desk: ReviewDesk) -> None:
    """New prompts write new answers under the same id: nobody has judged those."""
    row = desk.book.row(desk.book.places[0])
    decision = desk.reviews.decide(row, "rejected", reviewer="Ada")
    *earlier, last = row["messages"]
    other = {**row, "messages": [*earlier, {**last, "content": [{"type": "text", "text": "Other words."}]}]}
    assert applied(row, decision) is None
    assert applied(other, decision) == other


@pytest.mark.parametrize(
    "answer",
    ["", "  ", "<script>alert(1)</script>", "![x](http://e.example)", "=cmd|' /C calc'!A0", "x" * 601, "see www.e.org"],
)
def test_an_edit_is_plain_text(desk: ReviewDesk, answer: str) -> None:
    """A person can be tricked into pasting; markup, links and formulas are no answers."""
    with pytest.raises(DatasetError, match="bad_answer"):
        desk.reviews.decide(desk.book.row(desk.book.places[0]), "edited", reviewer="Ada", answer=answer)


def test_an_edit_is_cleaned_and_has_an_author(desk: ReviewDesk) -> None:
    row = desk.book.row(desk.book.places[0])
    decision = desk.reviews.decide(row, "edited", reviewer="Ada\u200b", answer="A\u200b round\u2060 body of 3 µm.\n")
    assert (decision.answer, decision.reviewer) == ("A round body of 3 um.", "Ada")
    with pytest.raises(DatasetError, match="no_reviewer"):
        desk.reviews.decide(row, "accepted", reviewer=" \u200b")


def test_a_choice_leaves_what_it_names(desk: ReviewDesk) -> None:
    """Split, task and state select; decided rows leave the pile of those to review."""
    everything = desk.chosen(ANY, ANY, ALL)
    assert everything == list(range(len(desk.book.places)))
    captions = desk.chosen("train", "caption", OPEN)
    assert {(desk.book.places[at].split, desk.book.places[at].task) for at in captions} == {("train", "caption")}
    desk.decide(captions[0], "rejected", "", "", "Ada")
    assert desk.chosen("train", "caption", OPEN) == captions[1:]
    assert desk.chosen(ANY, ANY, "rejected") == captions[:1]
    assert desk.progress().startswith(f"1 of {len(everything)} rows decided")


def test_the_page_escapes_what_it_shows(desk: ReviewDesk) -> None:
    """File names and labels are somebody else's words. Seen failing with the source unescaped."""
    row = desk.book.row(desk.book.places[0])
    row["source"], row["aux"], row["label"] = "<script>1</script>", "<img onerror=x>", "<b>"
    row["messages"][0]["content"][-1]["text"] = "<iframe>?"
    html = "".join(desk.shown(0)[1:3])
    assert "&lt;script&gt;" in html
    assert not any(tag in html for tag in ("<script", "<img", "<b>&", "<iframe"))


def test_the_page_serves_itself(taught: Path, desk: ReviewDesk) -> None:
    """A real server shows the first row, names no other host, and turns a foreign host name away."""

    async def build() -> App:
        return build_review_app(desk.book, desk.reviews)

    # Built inside a loop: outside of one Gradio opens loops that it never closes.
    with running(asyncio.run(build())) as base:
        page = httpx.get(base)
        assert page.status_code == 200
        assert "MAEMI review" in page.text
        assert not re.findall(r'(?:src|href)="https?://(?!127\.0\.0\.1)[^"]+"', page.text)
        assert httpx.get(base, headers={"host": "evil.example"}).status_code >= 400
        config = httpx.get(f"{base}/config").json()
        (split,) = [c["id"] for c in config["components"] if c["props"].get("label") == "Split"]
        opened = next(e["id"] for e in config["dependencies"] if e["targets"] == [[split, "input"]])
        call = {"data": [taught.name, ANY, ANY, OPEN], "fn_index": opened, "session_hash": "a"}
        assert httpx.post(f"{base}/gradio_api/queue/join", json=call).status_code == 200
        told = httpx.get(f"{base}/gradio_api/queue/data?session_hash=a").text
        assert '"success":true' in told
        assert "rows decided" in told
        for path in ("upload", "file=/etc/passwd", "upload_progress?upload_id=a"):  # it takes no files, and gives none
            assert httpx.get(f"{base}/gradio_api/{path}").status_code == 404, path


def test_the_controls_walk_through_the_rows(taught: Path) -> None:
    """Skip and back go round, a decision opens the next open row, and the last one says that nothing is left."""
    page = ReviewPage(Shelf(lambda: ["data"], lambda _: taught))
    row, queue, told, *_ = page.choose("data", "test", "caption", OPEN)
    assert row == queue[0]
    assert f"{len(queue)} in this choice" in told
    assert page.skip("data", queue, row)[0] == queue[1]
    assert page.back("data", queue, row)[0] == queue[-1]
    words = ("It shows a thing.", "", "Ada", "test", "caption", OPEN)
    for number in range(len(queue)):
        row, left, *_ = page.accept("data", queue, row, *words)
        assert len(left) == len(queue) - number - 1
    assert row is None
    assert "No row is left" in page.choose("data", "test", "caption", OPEN)[4]
    with pytest.raises(DatasetError, match="A decision needs a name"):
        page.reject("data", queue, queue[0], "", "", "", "test", "caption", OPEN)


def test_a_decision_meets_its_row_where_the_data_set_is_written_anew_meanwhile(images: Path, taught: Path) -> None:
    """By positions, the row that had moved to the place would be decided, not the one that was shown."""
    page = ReviewPage(Shelf(lambda: ["data"], lambda _: taught))
    first, second, third, *_ = page.choose("data", ANY, ANY, OPEN)[1]
    with Reviews(taught) as reviews:
        ReviewDesk(Book(taught), reviews).decide(0, "rejected", "", "", "Ada")
    teach(images, taught, config=CONFIG, workers=1)  # the first row is gone, and the others move up
    page.reject("data", [first, second, third], second, "", "", "Ada", ANY, ANY, OPEN)
    with Reviews(taught) as reviews:
        assert reviews.latest().keys() == {first, second}
    with pytest.raises(DatasetError, match="changed"):
        page.reject("data", [first], first, "", "", "Ada", ANY, ANY, OPEN)


def test_no_rows_to_review_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no_dataset"):
        Book(tmp_path)


def test_what_was_decided_survives_a_kill(taught: Path) -> None:
    """SIGKILL right after a decision was told: every decision that was told is there."""
    script = (
        "import sys; from pathlib import Path; from data_gen.dataset.decisions import Reviews\n"
        "from serve.page.review import Book\n"
        "book = Book(Path(sys.argv[1])); reviews = Reviews(Path(sys.argv[1]))\n"
        "for place in book.places:\n"
        "    reviews.decide(book.row(place), 'accepted', reviewer='Ada'); print(place.id, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(taught)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ}
    )
    assert process.stdout is not None
    with process.stdout as told:
        seen = [next(told).strip() for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        seen += [line.strip() for line in told if line.endswith("\n")]
    assert process.wait() == -signal.SIGKILL
    assert set(seen) <= decisions_about(taught).keys()


def test_corrections_become_training_rows_once_a_reviewer_accepts_them(
    images: Path, taught: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From a chat to what a run trains on: nothing that nobody judged, no picture that models are tested on."""
    store = tmp_path / "answers.sqlite"
    kept = Conversations(*beside_the_book(store))
    asked = [answered(kept, tmp_path / f"{n}.tif", n, f"There are {n} discs, corrected.") for n in range(4)]
    kept.correct("ada", asked[3], 0, "<script>x</script>")
    held = next(row for row in reviewed_rows([*taught.glob("data/test-*.parquet")], {}) if len(row["images"]) == 1)
    answered(kept, images / json.loads(held["provenance"])["files"][0], None, "Leaks.")
    kept.close()
    before = ids_of(taught)
    with pytest.raises(SystemExit) as done:
        main(["teach", "--out", str(taught), "--corrections", str(store)])
    assert done.value.code == 0
    told = capfd.readouterr().err
    assert "3 corrections of answers can be reviewed" in told
    assert "1 x markup" in told
    assert "1 x its picture is in the validation or test split" in told
    assert publish_corrections(taught) == 0
    assert ids_of(taught) == before
    book = Book(taught)
    waiting = [place for place in book.places if place.facet == "correction"]
    assert len(waiting) == 3
    with Reviews(taught) as reviews:
        desk = ReviewDesk(book, reviews)
        for place, verdict in zip(waiting, ("accepted", "edited", "rejected"), strict=True):
            position = book.places.index(place)
            words = answer_of(book.row(place)) if verdict != "edited" else "There is one disc."
            desk.decide(position, "accepted" if verdict == "edited" else verdict, words, "", "ada")  # type: ignore[arg-type]
    assert publish_corrections(taught) == 2
    examples = [example for example in load_split(taught, "train") if example.facet == "correction"]
    assert [example.answer for example in examples] == ["There are 0 discs, corrected.", "There is one disc."]
    assert all(
        example.question == "How many?" and example.images and "discs" not in example.aux for example in examples
    )
    assert len(Book(taught).places) == len(book.places)  # no row is listed twice


def answered(kept: Conversations, path: Path, drawn: int | None, correction: str) -> str:
    """A conversation about a picture, one that is there or one to be drawn, whose answer was corrected."""
    if drawn is not None:
        write_tiff(path, seed=drawn)
    micrograph = read_micrograph(path)
    shown = NewPicture(path, [], b"", micrograph.info(), {"items": []})
    id = kept.ask("ada", None, "How many?", [shown])
    kept.answer("ada", id, "None.", model="m")
    kept.correct("ada", id, 0, correction)
    return id


def ids_of(directory: Path) -> list[str]:
    return [example.id for split in ("train", "validation", "test") for example in load_split(directory, split)]

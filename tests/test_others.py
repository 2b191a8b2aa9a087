"""Other models asked the same and scored alike: a real server of our API, a stranger far away, published answers."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from instruction_data import write_dataset
from PIL import Image as Picture
from serving import running
from students import tiny_run
from teacher_server import says, status, teacher_server

from assistant.config import TeachConfig
from assistant.errors import DatasetError, EgressError, TeacherError
from assistant.inference import Assistant
from assistant.measure import Fact, Facts, Known
from serve.batch.others import ask_endpoint, read_answers
from serve.verbs.evaluate import print_scores
from training.data import Example, load_split
from training.evaluate import sample_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), per_class=1)


@pytest.fixture
def rows(data: Path, monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return sample_rows(load_split(data, "test"), 1)


def at(url: str, model: str = "maemi") -> TeachConfig:
    return TeachConfig(base_url=url, model=model, batch_poll_s=0.01)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Our own API over a tiny untrained student, as a server of its own."""
    from test_api import make_desk

    from serve.http.api import build_api
    from serve.http.guard import Guard

    student = Assistant(tiny_run(tmp_path_factory.mktemp("base")))
    with running(Guard(build_api(make_desk(student)))) as url:
        yield f"{url}/v1"


def test_our_own_api_is_asked_and_scored_as_a_stranger_is(
    ours: str, rows: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row in three conditions; loopback needs no leave and no key, and what is sent is listed all the same."""
    monkeypatch.delenv("OPENAI_API_KEY")
    told = ask_endpoint(rows, at(ours), manifest=tmp_path / "list.jsonl", allow=False)
    assert told["asked"] == 3 * len(rows)
    assert told["answered"] > 0
    assert {"bleu2", "bleu2_without_aux", "bleu2_blind"} <= told["caption"].keys()
    assert told["statements"]["drafted"].items() <= told["statements"].items()
    listed = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text().splitlines()]
    assert {item["to"] for item in listed} == {ours}


def test_what_is_answered_is_what_is_scored(data: Path, rows: list[Example], tmp_path: Path) -> None:
    """Right words score fully and wrong ones do not; classes are read from the words."""
    rows = [replace(row, answer="It shows powder. Rough.", references=()) for row in load_split(data, "test")]
    with teacher_server(says("It shows powder. Rough.")) as server:
        told = ask_endpoint(rows, at(server.url), manifest=tmp_path / "list.jsonl", allow=False)
    assert told["caption"]["bleu2"] == told["caption"]["bleu2_blind"] == 1.0, "it is blind, and the table says so"
    assert told["classification"]["top1"] == 0.5
    assert told["classification"]["confusion"] == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert "ece" not in told["classification"]
    assert told["statements"]["false"] == 3, "of the picture of nanowires, once a row"


def test_lengths_in_pixels_are_true_of_a_picture_that_was_sent_without_its_scale(
    rows: list[Example], tmp_path: Path
) -> None:
    """Of one that was sent smaller too, and to the digits that they have; without a scale they stay what they are."""
    (shown,) = (row for row in rows if row.task == "caption")
    wide = io.BytesIO()
    Picture.new("L", (2048, 64)).save(wide, "PNG")
    facts = Facts("fibres", (Fact("mean_diameter", 312.0, "nm", "test", 0.9),))
    told = []
    for said, nm, images in (
        ("10", 31.0, shown.images),
        ("10.0", 31.0, shown.images),
        ("10.06", 31.0, shown.images),
        ("10", 15.5, (wide.getvalue(),)),
        ("10", None, shown.images),
    ):
        row = replace(shown, images=images, known=(Known(facts, nm_per_pixel=nm),))
        with teacher_server(says(f"The mean diameter is {said} px.")) as server:
            told.append(ask_endpoint([row], at(server.url), manifest=tmp_path / "list.jsonl", allow=False))
    assert [(one["statements"]["true"], one["statements"]["false"]) for one in told] == [
        (1, 0),
        (0, 1),
        (1, 0),
        (1, 0),
        (0, 1),
    ]


def test_nothing_leaves_for_another_machine_without_leave(rows: list[Example], tmp_path: Path) -> None:
    config = at("https://models.example/v1")
    with pytest.raises(EgressError, match=r"denied: .* would leave this machine .*; nothing was sent") as denied:
        ask_endpoint(rows, config, manifest=tmp_path / "list.jsonl", allow=False)
    assert "--allow-egress --manifest" in denied.value.message
    with pytest.raises(EgressError, match="denied: The leave is for another manifest"):
        ask_endpoint(rows, config, manifest=tmp_path / "list.jsonl", allow="0" * 64)
    with pytest.raises(EgressError, match="insecure"):
        ask_endpoint(rows, at("http://models.example/v1"), manifest=tmp_path / "list.jsonl", allow=False)


def test_an_endpoint_that_never_answers_is_named(rows: list[Example], tmp_path: Path) -> None:
    with teacher_server(status(503)) as server, pytest.raises(TeacherError, match=r"unreachable: .* answered none of"):
        ask_endpoint(rows, at(server.url), manifest=tmp_path / "list.jsonl", allow=False)


def test_published_answers_are_scored_in_the_same_table(
    data: Path,
    rows: list[Example],
    tmp_path: Path,
    maemi: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Half of them right, one missing; in the JSON of the command and in its report, beside ours."""
    monkeypatch.setattr("training.evaluate.ANSWER_TOKENS", 3)
    from assistant.checkpoint import save_model

    run = tiny_run(tmp_path / "base")
    save_model(run, tmp_path / "run" / "model")
    file = tmp_path / "theirs.csv"
    with file.open("w", newline="") as lines:
        table = csv.writer(lines)
        table.writerow(["id", "answer", "model"])
        table.writerows([row.id, row.answer, "LLaVA (published)"] for row in rows[1:])
    command = ("evaluate", "--run", tmp_path / "run", "--data", data, "--limit", 1, "--no-baselines", "--json")
    code, out, _ = maemi(*command, "--answers", file, "--report", tmp_path / "r.html")
    assert code == 0
    (other,) = json.loads(out)["others"]
    assert (other["model"], other["answered"], other["asked"]) == ("LLaVA (published)", len(rows) - 1, len(rows))
    assert 0 < other["vqa"]["bleu2"] <= 1
    print_scores(json.loads(out))
    table = capsys.readouterr().out.partition("LLaVA (published)")[2]
    assert f"{other['vqa']['bleu2']:.3f}" in table, "others have no score of matching, and are shown all the same"
    assert "LLaVA (published)" in (tmp_path / "r.html").read_text()
    file.write_text("id,answer\nnone,It shows powder.\n")
    with pytest.raises(DatasetError, match=r"bad_answers: .* has no answer to any"):
        read_answers(file, rows)
    file.write_text("what,ever\n1,2\n")
    with pytest.raises(DatasetError, match=r"bad_answers: .* lacks the columns id and answer"):
        read_answers(file, rows)
    code, _, err = maemi("evaluate", "--data", data, "--open-protocol", "http://127.0.0.1:9/v1")
    assert code == 2
    assert "--model" in err

"""A hosted teacher that misbehaves in fourteen ways in three of ten attempts: every item comes to an end of its own."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from teacher_server import (
    Handler,
    Mode,
    answers_to,
    completion,
    drip,
    hang,
    raw,
    reset,
    says,
    status,
    teacher_server,
)  # fmt: skip
from tiny_micrographs import draw_tiny

from assistant.config import PriceConfig, TeachConfig
from data_gen.hosted import correspondence as desk_module
from data_gen.hosted.correspondence import OPEN_VERDICTS
from data_gen.pipeline import TeachReport, teach
from data_gen.tables import ACCEPTED

FAULTY = 0.3
REFUSAL = "I'm sorry, but I can't help with that image."
ODD_WAITS: list[dict[str, str]] = [
    {"retry_after": "0.01"},
    {"retry_after_ms": "20"},
    {"retry_after": "-3"},
    {"retry_after": "NaN"},
    {"retry_after": "Thu, 01 Jan 1970 00:00:00 GMT"},
    {"retry_after": "1e400"},
    {"retry_after": "3600"},
]
FAULTS: dict[str, Mode] = {
    "429": lambda h: status(429, **random.Random(id(h)).choice(ODD_WAITS))(h),
    "5xx": lambda h: status(random.Random(id(h)).choice([500, 502, 503, 529]))(h),
    "hang": hang,
    "drip": drip,
    "reset": reset,
    "html": raw(b"<!doctype html><title>Sign in to the guest network</title>", "text/html"),
    "truncated JSON": lambda h: h.reply(json.dumps(completion(answers_to(h.prompt))).encode()[:-40]),
    "wrong types": says('{"answers": [{"id": "caption", "answers": 5}]}'),
    "refusal": says(REFUSAL),
    "content filter": says("The particles", finish="content_filter"),
    "length cut": lambda h: says(answers_to(h.prompt, text="The particles lie on"), finish="length")(h),
    "wrong model": lambda h: says(answers_to(h.prompt, text="By another model."), model="other-7b")(h),
    "redirect": status(302, location="http://127.0.0.1:1/elsewhere"),
    "50 MB": lambda h: h.reply(b" " * 50_000_000),
}


def word(picture: bytes) -> str:
    """A word of letters that stands for a picture."""
    return word_of(hashlib.sha256(picture).hexdigest())


def word_of(digest: str) -> str:
    return digest[:16].translate(str.maketrans("0123456789", "ghijklmnop"))


def tells_the_picture(handler: Handler) -> None:
    """A good answer: it names the picture that it is about; some are refusals in good form."""
    name = word(handler.pictures[0])
    text = REFUSAL if name.startswith("a") else f"The picture is {name}."
    handler.reply(completion(answers_to(handler.prompt, text=text)))


class Unreliable:
    """Chooses what happens to each attempt, and remembers it by request."""

    def __init__(self) -> None:
        self.rng = random.Random(5)
        self.done: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()

    def __call__(self, number: int) -> Mode:
        fault = self.rng.choice(sorted(FAULTS)) if number > 8 and self.rng.random() < FAULTY else None
        self.done[fault or "good"] += 1
        return FAULTS[fault] if fault else self._good

    def _good(self, handler: Handler) -> None:
        self.answered[handler.headers["idempotency-key"]] += 1
        tells_the_picture(handler)


def taught_under_faults(folder: Path, count: int) -> tuple[list[TeachReport], Unreliable, list[Handler]]:
    """Give the same command until nothing is open."""
    images = draw_tiny(folder / "images", count)
    reports: list[TeachReport] = []
    with teacher_server(tells_the_picture) as server:
        server.mode = unreliable = Unreliable()
        deadline_s = 5.0  # enough for an attempt to reach the server on a busy machine
        config = TeachConfig(
            teacher="openai", model="m", base_url=server.url, api_key_env="MAEMI_TEST_KEY", tasks=("caption",),
            deadline_s=deadline_s, concurrency=32, near_duplicate_bits=0,
            price_per_million=PriceConfig(input=1, output=1),
        )  # fmt: skip
        while not reports or reports[-1].unanswered:
            assert len(reports) < 6
            reports.append(teach(images, folder / "out", config=config, allow_egress=True, budget_usd=1e3, workers=1))
            assert reports[-1].stopped is None
        assert server.strays == []
        return reports, unreliable, server.seen


def check_ends(folder: Path, count: int) -> None:
    """Everything that the issue asks of `count` items under faults."""
    reports, unreliable, seen = taught_under_faults(folder, count)
    with sqlite3.connect(folder / "out" / "ledger.sqlite") as ledger:
        rows = ledger.execute(
            "select key, verdict, attempts, reply, images from exchanges where teacher = 'openai:m'"
        ).fetchall()
    ledger.close()
    # Every item has one end, and is in the data set or among the rejections.
    assert len(rows) == count
    assert not {verdict for _, verdict, *_ in rows} & OPEN_VERDICTS
    items = [json.loads(line) for line in (folder / "out" / "egress.jsonl").read_text().splitlines()]
    named = {item["path"]: item["sha256"] for item in items}
    lines = (folder / "out" / "rejected.jsonl").read_text().splitlines()
    rejected = [row for row in map(json.loads, lines) if row["reason"] != "blind_answerable"]
    out_of_it = {image for row in rejected for image in row.get("images") or map(named.get, row["files"])}
    targets = taught_texts(folder / "out")
    assert len(targets) + len(out_of_it) == len(targets.keys() | out_of_it) == count
    # No answer of another item, no refusal, no half sentence.
    names = {item["sha256"]: f"The picture is {word_of(item['sent_sha256'])}." for item in items}
    assert all(text == names[image] for image, text in targets.items())
    for _, verdict, _, reply, image in rows:
        if verdict == ACCEPTED:
            assert {text for told in json.loads(reply).values() for text in told} in ({names[image]}, {REFUSAL})
    assert sum(row["reason"] == "refusal" for row in rejected) > count / 40
    # The attempts: as many as came, one good answer at most, and no more than the policy allows.
    came = Counter(handler.headers["idempotency-key"] for handler in seen)
    assert {key: attempts for key, _, attempts, *_ in rows} == came
    assert max(unreliable.answered.values()) == 1
    assert max(came.values()) <= len(reports) * (1 + TeachConfig().max_retries) + desk_module.MAX_WAITS
    assert set(unreliable.done) >= {*FAULTS, "good"} or count < 500


def taught_texts(out: Path) -> dict[str, str]:
    """sha256 of the micrograph -> the answer that is taught, over all splits."""
    import pyarrow.parquet as parquet

    rows: list[dict[str, Any]] = []
    for path in sorted(out.glob("data/*.parquet")):
        rows += parquet.read_table(path, columns=["provenance", "references"]).to_pylist()
    return {json.loads(row["provenance"])["sha256"][0]: row["references"][0] for row in rows}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAEMI_TEST_KEY", "sk-sentinel-0123456789abcdef")
    monkeypatch.setattr(desk_module, "BACKOFF_S", (0.01, 0.02))


def test_a_hundred_items_under_faults_come_to_their_ends(tmp_path: Path) -> None:
    """100 of the 2 000 below. Seen failing where an answer that was cut is taken."""
    check_ends(tmp_path, 100)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_thousand_items_under_faults_come_to_their_ends(tmp_path: Path) -> None:
    """14 kinds of misbehaviour in 30 % of the attempts: 2 000 ends, each about its own picture."""
    check_ends(tmp_path, 2_000)

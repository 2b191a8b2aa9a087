"""The batch queue against a real server that speaks its protocol: resumed, never asked twice, misbehaviour named."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from batch_server import BatchServer, batch_server, well
from teacher_server import completion
from tiny_micrographs import draw_tiny

from assistant.config import PriceConfig, TeachConfig
from data_gen.hosted import batches as batches_module
from data_gen.passes.consultation import PROBES
from data_gen.pipeline import TeachReport, teach

ROOT = Path(__file__).parents[1]
IMAGES = 12
KINDS = ("refusal", "form", "expired", "failed", "well", "garbage")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAEMI_TEST_KEY", "sk-sentinel-0123456789abcdef")


def settings(server: BatchServer, **changes: Any) -> TeachConfig:
    given: dict[str, Any] = {
        "teacher": "openai", "model": "m", "base_url": server.url, "api_key_env": "MAEMI_TEST_KEY", "batch": True,
        "batch_poll_s": 0.05, "deadline_s": 20.0, "tasks": ("caption",), "near_duplicate_bits": 0,
        "price_per_million": PriceConfig(input=1.0, output=1.0),
    }  # fmt: skip
    return TeachConfig(**{**given, **changes})


def taught(server: BatchServer, folder: Path, *, budget: float | None = None, **changes: Any) -> TeachReport:
    images = folder / "images"
    if not images.exists():
        draw_tiny(images, IMAGES)
    config = settings(server, **changes)
    return teach(images, folder / "out", config=config, allow_egress=True, workers=1, budget_usd=budget)


def exchanges(folder: Path) -> dict[str, tuple[str, int, float]]:
    """Verdict, attempts and cost of every request to the hosted teacher, by key."""
    with sqlite3.connect(folder / "out" / "ledger.sqlite") as ledger:
        rows = ledger.execute("select key, verdict, attempts, cost_usd from exchanges where teacher = 'openai:m'")
        found = {key: (verdict, attempts, cost) for key, verdict, attempts, cost in rows}
    ledger.close()
    return found


def asked(server: BatchServer) -> Counter[str]:
    """How often each request reached the provider, alone or in a batch."""
    alone = [handler.headers["idempotency-key"] for handler in server.seen]
    return Counter([*alone, *(line["custom_id"] for line in server.queue.lines)])


def test_everything_but_the_probes_goes_through_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches, each picture once, the replies of each item its own; the files are deleted at the provider."""
    monkeypatch.setattr(batches_module, "REQUESTS", 3)
    with batch_server() as server:
        report = taught(server, tmp_path, budget=5.0)
        assert (report.unanswered, report.stopped) == (0, None)
        assert len(server.seen) == PROBES
        assert len(server.queue.batches) == 3
        assert set(asked(server).values()) == {1}
        assert len(asked(server)) == IMAGES
        assert server.queue.files == {}
        assert {(verdict, attempts) for verdict, attempts, _ in exchanges(tmp_path).values()} == {("accepted", 1)}
        assert report.cost_usd == pytest.approx(IMAGES * 1100 / 1e6)
        assert report.estimate_usd == pytest.approx(report.cost_usd)
        listed = [json.loads(line) for line in (tmp_path / "out" / "egress.jsonl").read_text().splitlines()]
        trail = [json.loads(line) for line in (tmp_path / "out" / "egress-audit.jsonl").read_text().splitlines()]
        assert {line["sent_sha256"] for line in trail} == {item["sent_sha256"] for item in listed}
        again = taught(server, tmp_path, budget=5.0)
        assert again.rows == report.rows
        assert set(asked(server).values()) == {1}


def test_a_lost_reply_to_the_order_makes_no_second_order(tmp_path: Path) -> None:
    """The provider took the batch and the line broke: it is found again by our own name. Seen failing without that."""
    with batch_server() as server:
        server.queue.lose_replies_to = {"batches", "files", "look"}
        report = taught(server, tmp_path)
        assert (report.unanswered, report.stopped) == (0, None)
        assert len(server.queue.batches) == 1
        assert set(asked(server).values()) == {1}


def test_what_comes_back_wrong_is_named_and_asked_as_policy_says(tmp_path: Path) -> None:
    """A refusal is final, a wrong form is mended once, what expired or failed stays open and costs nothing."""
    kinds: dict[str, str] = {}

    def mixed(line: dict[str, Any]) -> dict[str, Any] | None:
        number = len(kinds)
        kind = kinds.setdefault(
            line["custom_id"], ["refusal", "form", "expired", "failed", "well", "garbage"][number % 6]
        )
        if len(line["body"]["messages"]) == 3:
            assert "wrong" not in line["body"]["messages"][2]["content"]
            return well(line)
        match kind:
            case "refusal":
                return {"status_code": 200, "body": completion("I cannot help with that.")}
            case "form":
                return {"status_code": 200, "body": completion('{"answers": 1}')}
            case "expired":
                return None
            case "failed":
                return {"status_code": 503, "body": {}}
            case "garbage":
                return {"status_code": 200, "body": "<html>"}
        return well(line)

    with batch_server(mixed) as server:
        report = taught(server, tmp_path)
        found = exchanges(tmp_path)
        ends = {kind: {found[key][:2] for key, other in kinds.items() if other == kind} for kind in kinds.values()}
        assert ends == {
            "refusal": {("refusal", 1)}, "form": {("accepted", 2)}, "expired": {("expired", 1)},
            "failed": {("server_error", 1)}, "well": {("accepted", 1)}, "garbage": {("wrong_type", 1)},
        }  # fmt: skip
        free = [key for key, kind in kinds.items() if kind in {"expired", "failed"}]
        assert all(found[key][2] == 0.0 for key in free)
        assert report.unanswered == len(free)
        server.queue.work = well
        assert taught(server, tmp_path).unanswered == 0


def test_the_budget_bounds_a_batch_too(tmp_path: Path) -> None:
    """The worst case of every request of a batch is set aside before it is handed in."""
    with batch_server() as server:
        report = taught(server, tmp_path, budget=0.08, max_output_tokens=6000)
        assert report.stopped is None
        # Four of the seven fit at first; what they did not use pays for the others.
        assert [batch["size"] for batch in server.queue.batches.values()] == [4, 3]
        report = taught(server, tmp_path, budget=0.081, max_output_tokens=7000)
        assert report.stopped is not None
        assert report.stopped.startswith("budget: ")
        assert report.cost_usd <= 0.081
        assert taught(server, tmp_path, budget=5.0, max_output_tokens=7000).unanswered == 0
        assert set(asked(server).values()) == {1}


def test_a_provider_without_a_queue_is_told(tmp_path: Path) -> None:
    """404 for /batches ends the job with what to set."""
    with batch_server() as server:
        server.queue.create = lambda order: (_ for _ in ()).throw(AssertionError)  # type: ignore[method-assign]
        handler = type(server.RequestHandlerClass.__name__, (server.RequestHandlerClass,), {})
        answer = handler.do_POST

        def refuse(self: Any) -> None:
            if self.path == "/v1/batches":
                self.rfile.read(int(self.headers["content-length"]))
                self.reply({"error": {"message": "no such route"}}, status=404)
            else:
                answer(self)

        handler.do_POST = refuse
        server.RequestHandlerClass = handler
        report = taught(server, tmp_path)
        assert report.stopped is not None
        assert report.stopped.startswith("no_batches: ")
        assert "teach.batch=false" in report.stopped


COMMAND = """
import json, sys
from pathlib import Path
from assistant.config import TeachConfig
from data_gen.pipeline import teach

teach(Path(sys.argv[1]), Path(sys.argv[2]), config=TeachConfig(**json.loads(sys.argv[3])), allow_egress=True, workers=1)
"""


@pytest.mark.parametrize("when", ["created", "worked off"])
def test_kill_while_a_batch_is_out(tmp_path: Path, when: str) -> None:
    """SIGKILL once the provider has the batch, before or after it is done: the same command takes its replies."""
    with batch_server(polls=10**6) as server:
        draw_tiny(tmp_path / "images", IMAGES)
        told = settings(server).model_dump_json()
        run = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(tmp_path / "images"), str(tmp_path / "out"), told],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + 60
        while not any(batch["polls"] for batch in server.queue.batches.values()) and time.monotonic() < until:
            time.sleep(0.02)
        if when == "worked off":
            server.queue._finish(server.queue.batches["batch_0"])
            server.queue.polls = 1
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        server.queue.polls = 1
        report = taught(server, tmp_path)
        assert (report.unanswered, report.stopped) == (0, None)
        assert len(server.queue.batches) == 1
        assert set(asked(server).values()) == {1}


def test_a_batch_that_never_arrived_costs_nothing_and_is_asked_anew(tmp_path: Path) -> None:
    """Killed between the ledger and the provider: the provider knows no such name, so its requests are open again."""
    from data_gen.ledger import Ledger
    from data_gen.tables import Batch, Visit

    with batch_server() as server:
        taught(server, tmp_path, tasks=("metadata",))
        stray = Visit(key="k", images="x", prompt="p", teacher="openai:m", cost_usd=0.0)
        with Ledger(tmp_path / "out" / "ledger.sqlite") as ledger:
            ledger.begin_batch(Batch(name="maemi-lost", keys="k", provider_id="", done=False), [(stray, 1.0, [])])
        report = taught(server, tmp_path)
        assert report.stopped is None
        assert exchanges(tmp_path)["k"] == ("expired", 1, 0.0)
        with Ledger(tmp_path / "out" / "ledger.sqlite") as ledger:
            assert ledger.open_batches() == []

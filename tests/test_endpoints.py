"""Endpoints as they come: what they refuse is left out once, answers are taken out of their wrapping, reasons are told.

Every test of the whole runs `maemi teach` against a real server on loopback.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from batch_server import batch_server, well
from refused_bodies import BLIND, LIMIT, PARAMETERS, RESPONSE_FORMAT, openai
from teacher_server import Handler, Mode, TeacherServer, answers_to, completion, good, says, status, teacher_server
from tiny_micrographs import draw_tiny

from assistant.config import PriceConfig, TeachConfig, parse_config
from assistant.errors import ConfigError, EgressError, TeacherError
from data_gen.hosted.correspondence import OPEN_VERDICTS
from data_gen.hosted.dialect import Dialect
from data_gen.hosted.egress import Permit, destination_of
from data_gen.hosted.hosted_teacher import HostedTeacher, same_model
from data_gen.hosted.refusals import REASON_CHARS, EndpointRefusal, verdict_of
from data_gen.hosted.replies import read_reply
from data_gen.hosted.unwrap import MOST_STARTS, unwrap
from data_gen.ledger import Ledger
from data_gen.passes.teach_report import TeachReport
from data_gen.pipeline import teach
from data_gen.tables import Adaptation
from data_gen.teacher import Rejection, Request

Maemi = Callable[..., tuple[int, str, str]]
KEY = "sk-sentinel-0123456789abcdef"
IMAGES = 8
ROWS = 2 * IMAGES
"""A caption is asked for in two ways."""
IDS = ("shape", "surface")
GOOD = answers_to("- shape: x\n- surface: y")
SENT = {
    RESPONSE_FORMAT: {"type": "json_schema"}, "temperature": 0, "seed": 0, LIMIT: 800, "logprobs": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAEMI_TEST_KEY", KEY)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and the ledger that holds what was measured on them: no test is about measuring."""
    folder = tmp_path_factory.mktemp("measured")
    draw_tiny(folder / "images", IMAGES)
    config = TeachConfig(tasks=("caption",), near_duplicate_bits=0)
    teach(folder / "images", folder / "out", config=config, workers=1)
    return folder


@pytest.fixture
def folder(measured: Path, tmp_path: Path) -> Path:
    """A copy of them, without any answer."""
    (tmp_path / "out").mkdir()
    shutil.copytree(measured / "images", tmp_path / "images")
    shutil.copy(measured / "out" / "ledger.sqlite", tmp_path / "out")
    return tmp_path


def refusal(code: int, body: Any) -> EndpointRefusal:
    return EndpointRefusal(code, {}, body if isinstance(body, str) else json.dumps(body))


def settings(server: TeacherServer, **changes: Any) -> dict[str, Any]:
    return {
        "teacher": "openai", "model": "m", "base_url": server.url, "api_key_env": "MAEMI_TEST_KEY",
        "tasks": ["caption"], "near_duplicate_bits": 0, "deadline_s": 20.0, **changes,
    }  # fmt: skip


def taught(server: TeacherServer, folder: Path, **changes: Any) -> TeachReport:
    config = TeachConfig(**settings(server, **changes))
    return teach(folder / "images", folder / "out", config=config, allow_egress=True, workers=1)


def hosted_rows(folder: Path) -> list[dict[str, Any]]:
    """The provenance of every row that the hosted teacher answered."""
    tables = [
        pq.read_table(path, columns=["teacher", "provenance"]) for path in (folder / "out/data").glob("*.parquet")
    ]
    rows = [row for table in tables for row in table.to_pylist() if "offline" not in row["teacher"]]
    return [json.loads(row["provenance"]) for row in rows]


def verdicts(folder: Path) -> Counter[str]:
    with Ledger(folder / "out" / "ledger.sqlite") as ledger:
        assert ledger.damaged == 0
        with ledger._session() as session:
            from sqlalchemy import select

            from data_gen.tables import Visit

            query = select(Visit.verdict).where(Visit.teacher == "openai:m")
            return Counter(session.scalars(query))


def picky(*refused: str, limit: str = LIMIT) -> Mode:
    """Answers well, unless a body holds one of these; the format `json_object` is the string of its type."""

    def mode(handler: Handler) -> None:
        body = dict(handler.request_body)
        kind = body.get(RESPONSE_FORMAT, {}).get("type")
        for name in refused:
            if name in body or name == kind:
                parameter = RESPONSE_FORMAT if name == kind else name
                told = openai(
                    f"Unsupported parameter: '{parameter}' is not supported with this model.", param=parameter
                )
                handler.reply(told, status=400)
                return
        good(handler)

    return mode


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("code", "body", "names"), [row[1:] for row in PARAMETERS], ids=[row[0] for row in PARAMETERS])
def test_the_refused_parameter_is_found_in_the_words_of_every_maker(code: int, body: Any, names: list[str]) -> None:
    """A field that names it, a validator's list, or a sentence; a value out of range and other trouble name none."""
    assert refusal(code, body).parameters(SENT) == names


@pytest.mark.parametrize(("code", "body"), [row[1:] for row in BLIND], ids=[row[0] for row in BLIND])
def test_an_endpoint_that_takes_no_pictures_is_named(code: int, body: Any) -> None:
    """A picture is not left out: an answer without looking would be made up. Words alone are another matter."""
    told = {"host": "https://h/v1", "model": "m", "api_key_env": "K"}
    end = verdict_of(refusal(code, body), pictures=True, **told)
    assert end.code == "no_pictures"
    assert "teach.model" in end.message
    assert verdict_of(refusal(code, body), pictures=False, **told).code != "no_pictures"


def test_a_reason_is_one_short_line_without_secrets() -> None:
    """Escapes for what moves a cursor or hides, the key's shape and a token gone, 300 characters, a page as words."""
    hostile = (
        "\x1b]0;x\x07 \u202e sk-proj-abcdef123456 Bearer abc.def AIzaSyA1234567890 https://u:p@h/ " + "long " * 200
    )
    shown = refusal(400, openai(hostile)).reason
    assert len(shown) == REASON_CHARS
    assert shown.isprintable()
    assert "\\x1b]0;x\\x07 \\u202e [secret]" in shown
    for secret in ("abcdef123456", "abc.def", "AIzaSy", "u:p"):
        assert secret not in shown
    assert refusal(502, "<html><style>p{}</style><b>Bad</b> Gateway").reason == "Bad Gateway"
    assert refusal(400, "").reason == "it gives no reason"
    assert refusal(400, '{"error":' * 900 + "1" + "}" * 900).reason == "it gives no reason"


DIALECTS: dict[str, tuple[tuple[str, ...], dict[str, str], int]] = {
    "seed and temperature": (("seed", "temperature"), {"seed": "", "temperature": ""}, 2),
    "json_schema": (("json_schema",), {RESPONSE_FORMAT: "json_object"}, 1),
    "everything": (
        (LIMIT, "json_schema", "json_object", "seed", "temperature"),
        {LIMIT: "max_tokens", RESPONSE_FORMAT: "", "seed": "", "temperature": ""}, 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIALECTS)
def test_what_is_refused_is_left_out_once_and_remembered(folder: Path, name: str) -> None:
    """All rows come, for as many requests more as there are refusals; a resumed run asks in vain not once."""
    refused, adapted, extra = DIALECTS[name]
    with teacher_server(picky(*refused)) as server:
        report = taught(server, folder)
        assert (report.stopped, report.unanswered, report.refused) == (None, 0, False)
        assert len(server.seen) == IMAGES + extra
        rows = hosted_rows(folder)
        assert len(rows) == ROWS
        assert all(row["teacher"]["adapted"] == adapted for row in rows)
        told = [warning for warning in report.warnings if "refused by the endpoint" in warning]
        assert len(told) == len(adapted)
        card = (folder / "out" / "README.md").read_text()
        assert all(warning.partition(" (")[0] in card for warning in told)
        for handler in server.seen:
            assert {LIMIT, "max_tokens"} & handler.request_body.keys(), "a request without a limit has no worst case"
        with Ledger(folder / "out" / "ledger.sqlite") as ledger:
            assert {one.parameter: one.instead for one in ledger.adaptations(server.url, "m")} == adapted
            assert ledger.adaptations(server.url + "?api-version=2", "m") == []
            assert ledger.adaptations(server.url, "other") == []
        draw_tiny(folder / "images", IMAGES + 4)
        again = taught(server, folder)
        assert len(server.seen) == IMAGES + extra + 4
        assert [warning for warning in again.warnings if "refused by the endpoint" in warning] == told


def test_a_request_that_was_paid_for_is_not_asked_again_under_its_new_form(folder: Path) -> None:
    """The endpoint begins to refuse a parameter halfway: the keys stay, so nothing is paid twice."""
    with teacher_server(good) as server:
        taught(server, folder)
        draw_tiny(folder / "images", IMAGES + 2)
        server.mode = lambda _: picky("seed")
        taught(server, folder)
        taught(server, folder)
        paid = {handler.headers["idempotency-key"] for handler in server.seen[:IMAGES]}
        later = [handler.headers["idempotency-key"] for handler in server.seen[IMAGES:]]
        assert len(paid) == IMAGES
        assert paid.isdisjoint(later)
        assert len(later) == 3


def test_a_dialect_comes_to_an_end() -> None:
    """Both names of the limit refused: nothing bounds the cost any longer, so there is no way out."""
    learned: list[Adaptation] = []
    dialect = Dialect(learned=learned.append)
    assert dialect.adapt([LIMIT], {LIMIT: 9}, "r")
    assert dialect.adapt([LIMIT], {LIMIT: 9}, "r"), "it was under way before that was known"
    assert dialect.spoken({LIMIT: 9}) == {"max_tokens": 9}
    assert not dialect.adapt(["max_tokens"], {"max_tokens": 9}, "r")
    assert not dialect.adapt([], {}, "r")
    assert len(learned) == 1


def test_a_parameter_of_ones_own_that_is_refused_is_left_out_too(folder: Path) -> None:
    with teacher_server(picky("logprobs")) as server:
        report = taught(server, folder, extra_body={"logprobs": True, "reasoning_effort": "low", "seed": None})
        assert report.stopped is None
        assert "logprobs is refused by the endpoint, so it is left out" in str(report)
        bodies = [handler.request_body for handler in server.seen]
        assert [body.get("logprobs") for body in bodies] == [True, *[None] * IMAGES]
        assert {body["reasoning_effort"] for body in bodies} == {"low"}
        assert all("seed" not in body for body in bodies)


# ------------------------------------------------------------------------------------------------- wrapped replies

WRAPPED: dict[str, dict[str, Any]] = {
    "fence": {"content": f"```json\n{GOOD}\n```"},
    "fence without language": {"content": f"```\n{GOOD}\n```"},
    "fence that never closes": {"content": f"```json\n{GOOD}"},
    "fence in prose": {"content": f"Here it is:\n\n```JSON\n{GOOD}\n```\nLet me know if [more] is {{needed}}."},
    "prose": {"content": f"Sure! {GOOD} Hope this helps."},
    "mark of byte order": {"content": f"\ufeff{GOOD}"},
    "thinking": {"content": f"<think>The answer is {{\"answers\": []}}? No.</think>\n{GOOD}"},
    "thinking without its beginning": {"content": f"I look at it. {GOOD.replace('shown', 'guessed')}</think>{GOOD}"},
    "thinking that never ends": {"content": f"<think>\n{GOOD}"},
    "thinking of another make": {"content": f"[THINK]so[/THINK]{GOOD}"},
    "harmony": {"content": f"<|channel|>analysis<|message|>so<|end|><|channel|>final<|message|>{GOOD}"},
    "thinking beside it": {"content": GOOD, "reasoning_content": "I think {\"answers\": 1}"},
    "all taken for thinking": {"content": None, "reasoning_content": GOOD},
    "parts": {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": GOOD}]},
    "parts of one text": {"content": [{"type": "text", "text": GOOD[:30]}, {"type": "output_text", "text": GOOD[30:]}]},
    "a string in JSON": {"content": json.dumps(GOOD)},
    "answers as a string": {"content": json.dumps({"answers": json.dumps(json.loads(GOOD)["answers"])})},
    "a list of one": {"content": f"[{GOOD}]"},
    "without its key": {"content": json.dumps(json.loads(GOOD)["answers"])},
    "a last brace lost": {"content": GOOD[:-1]},
    "twice the same": {"content": f"{GOOD}\n```json\n{GOOD}\n```"},
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_an_answer_is_taken_out_of_what_was_wrapped_around_it(name: str) -> None:
    reply = read_reply(json.dumps(completion(None, message=WRAPPED[name])), IDS)
    assert reply.answers == dict.fromkeys(IDS, ("The structures are shown.",))


AMBIGUOUS: dict[str, tuple[dict[str, Any], str]] = {
    "two that differ": ({"content": f"{GOOD} or {GOOD.replace('shown', 'round')}"}, "bad_reply"),
    "cut": ({"content": f"```json\n{GOOD[:-20]}"}, "bad_reply"),
    "only part of it is whole": ({"content": GOOD[: GOOD.index("}") + 1]}, "bad_reply"),
    "only in the thinking": ({"content": f"<think>{GOOD}</think>"}, "empty"),
    "thinking with prose": ({"content": None, "reasoning_content": f"Maybe {GOOD}?"}, "empty"),
    "a refusal": ({"content": "I'm sorry, I can't assist with {that}."}, "refusal"),
    "other questions": ({"content": f"```json\n{answers_to('- colour: x')}\n```"}, "wrong_item"),
    "trailing comma": ({"content": GOOD[:-2] + ",]}"}, "bad_reply"),
    "the wrong form": ({"content": '{"answers": {"shape": ["a"]}}'}, "wrong_type"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_nothing_is_made_up_where_it_is_not_clear(name: str) -> None:
    """Two answers, a cut one, a thought or half of it are no answer."""
    message, verdict = AMBIGUOUS[name]
    with pytest.raises(Rejection) as caught:
        read_reply(json.dumps(completion(None, message=message)), IDS)
    assert caught.value.code == verdict


def test_a_page_of_brackets_takes_no_minutes() -> None:
    """So many are tried and no more."""
    tried: list[Any] = []

    def read(document: Any) -> Any:
        tried.append(document)
        raise ValueError

    with pytest.raises(ValueError, match="0 documents"):
        unwrap("[1] " * 10 * MOST_STARTS, read)
    assert len(tried) == MOST_STARTS
    with pytest.raises(ValueError, match="0 documents"):
        unwrap("[" * 100_000, read)


# ------------------------------------------------------------------------------------------ what is lost, and told


def used(reasoning: int | None = None, tokens: int = 400) -> dict[str, Any]:
    details = {} if reasoning is None else {"completion_tokens_details": {"reasoning_tokens": reasoning}}
    return {"prompt_tokens": 1000, "completion_tokens": tokens, "total_tokens": 1000 + tokens, **details}


NO_ROOM: dict[str, dict[str, Any]] = {
    "empty": completion("", finish="length"),
    "null": completion(None, finish="length", usage=used(400)),
    "says it stopped": completion("", usage=used(390)),
    "thinking cut": completion("<think>I look at the", finish="length", usage=None),
    "by another name": completion("", finish="MAX_TOKENS"),
}


@pytest.mark.parametrize("name", NO_ROOM)
def test_a_budget_that_thinking_ate_is_named(name: str) -> None:
    with pytest.raises(Rejection) as caught:
        read_reply(json.dumps(NO_ROOM[name]), IDS, limit=400)
    assert caught.value.code == "no_room"
    assert not caught.value.again
    if name == "null":
        assert (
            caught.value.raw
            == "finish_reason length, no answer: 400 output tokens of 400 used, 400 of them for reasoning"
        )


@pytest.mark.parametrize(
    ("mode", "first"),
    [
        (says("", finish="length", usage=used(400)), "no_room"),
        (says("The structures are round."), "bad_reply"),
    ],
    ids=["no room", "prose"],
)
def test_a_job_that_loses_all_ends_after_a_handful(maemi: Maemi, folder: Path, mode: Mode, first: str) -> None:
    """Exit 1 with the first reason and its remedy as the last line; a rerun buys nothing, another setting asks anew.

    Seen failing: all of them were asked and paid for, and the exit code was 0.
    """
    with teacher_server(mode) as server:
        command = commanded(server, folder)
        code, _, told = maemi(*command())
        asked = {handler.headers["idempotency-key"] for handler in server.seen}
        assert (code, len(asked)) == (1, 5)
        assert told.splitlines()[-1].startswith(
            f"error: nothing_usable: None of 5 replies of {server.url} can be used."
        )
        assert f"The first: {first} (" in told
        assert ("teach.max_output_tokens" in told[-200:]) == (first == "no_room")
        before = len(server.seen)
        assert maemi(*command())[0] == 1
        assert len(server.seen) == before, "what is lost is not bought again"
        server.mode = lambda _: good
        code, _, told = maemi(*command("--set", "teach.max_output_tokens=900"))
        assert code == 0, told
        assert len(server.seen) == before + IMAGES
    assert len(hosted_rows(folder)) == ROWS


def test_patience_is_a_setting_and_a_good_start_is_no_reason_to_stop(folder: Path) -> None:
    lost = says("I cannot help with that.")
    with teacher_server(good, lost) as server:
        report = taught(server, folder)
        assert (report.stopped, len(server.seen)) == (None, IMAGES)
    with teacher_server(lost) as server:
        changed = {"max_output_tokens": 900, "give_up_after": 2, "concurrency": 1}
        assert "None of 2 replies" in str(taught(server, folder, **changed).stopped)
        assert len(server.seen) == 2
        report = taught(server, folder, max_output_tokens=901, give_up_after=20)
        assert f"None of {IMAGES} replies" in str(report.stopped), "fewer than anyone has patience for, and all lost"


def commanded(server: TeacherServer, folder: Path, **changes: Any) -> Callable[..., list[Any]]:
    """The whole command with leave for the manifest that it writes."""
    config = folder / "teach.yaml"
    config.write_text(json.dumps({"teach": settings(server, **changes)}))
    start = ["teach", folder / "images", "--out", folder / "out", "--config", config, "--allow-egress", "--manifest"]
    teach_offer(folder, config)

    def command(*more: str) -> list[Any]:
        return [*start, hashlib.sha256((folder / "out" / "egress.jsonl").read_bytes()).hexdigest(), *more]

    return command


def teach_offer(folder: Path, config: Path) -> None:
    """Have the manifest written."""
    from assistant.config import load_config

    with pytest.raises(EgressError, match="denied"):
        teach(folder / "images", folder / "out", config=load_config(config).teach, workers=1)


REFUSED = [
    (400, openai("The gizmo is wrong.\x1b[31m"), "bad_request", 5),
    (401, openai(f"Incorrect API key provided: {KEY}."), "unauthorised", 1),
    (404, {"error": {"message": "No endpoints found that support image input"}}, "no_pictures", 1),
    (422, {"detail": [{"type": "missing", "loc": ["body", "prompt"], "msg": "Field required"}]}, "bad_request", 5),
]


@pytest.mark.parametrize(("code", "body", "end", "asked"), REFUSED, ids=[f"{row[0]} {row[2]}" for row in REFUSED])
def test_what_no_waiting_mends_is_told_at_once_in_the_endpoints_words(
    maemi: Maemi, folder: Path, code: int, body: Any, end: str, asked: int
) -> None:
    """Exit 2 after a handful of requests and no rest; the reason is in the error and in rejected.jsonl, never the key.

    Seen failing: 17 requests, three rests, "unavailable ... Run the same command later".
    """
    with teacher_server(status(code, json.dumps(body).encode())) as server:
        ended, _, told = maemi(*commanded(server, folder, concurrency=1)())
        assert (ended, len(server.seen)) == (2, asked)
    last = told.splitlines()[-1]
    reason = refusal(code, json.dumps(body).replace(KEY, "[key]")).reason
    assert last.startswith(f"error: {end}: ")
    assert f"HTTP {code}: {reason}" in last
    assert "later" not in last
    rejected = [json.loads(line) for line in (folder / "out" / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == asked
    assert all(reason in line["raw"] and line["open"] for line in rejected)
    for path in filter(Path.is_file, (folder / "out").rglob("*")):
        assert KEY.encode() not in path.read_bytes()
    assert KEY not in told
    assert "\x1b" not in told


def test_an_endpoint_that_is_down_may_be_asked_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 to everything: rests, then `unavailable` with the last reason, and the requests stay open."""
    from data_gen.hosted import correspondence as desk

    monkeypatch.setattr(desk, "BACKOFF_S", (0.001, 0.002))
    monkeypatch.setattr(desk.CircuitBreaker.__init__, "__defaults__", (3, 0.01, 1, 0, 0))
    with teacher_server(status(503, b'{"error": {"message": "Overloaded"}}')) as server:
        report = taught(server, folder)
    assert report.stopped is not None
    assert report.stopped.startswith("unavailable: ")
    assert "HTTP 503: Overloaded" in report.stopped
    assert not report.refused
    assert set(verdicts(folder)) <= OPEN_VERDICTS


def test_an_address_that_is_no_api_is_told(folder: Path) -> None:
    """A web page with status 200 comes from a wrong address: no rest mends that."""
    with teacher_server(lambda handler: handler.reply(b"<html>Welcome", kind="text/html")) as server:
        report = taught(server, folder, max_retries=0)
    assert report.refused
    assert "no_api" in str(report.stopped)
    assert "teach.base_url" in str(report.stopped)


def test_a_reply_without_usage_costs_the_most_it_can_and_says_so(folder: Path) -> None:
    """No usage, or one that is nonsense: the answers count, each at its worst case."""
    price = PriceConfig(input=1.0, output=1.0)
    odd: list[Any] = [None, {"prompt_tokens": None, "completion_tokens": "many"}, {}]

    def mode(handler: Handler) -> None:
        handler.reply(completion(answers_to(handler.prompt), usage=odd[len(handler.server.seen) % 3]))

    with teacher_server(mode) as server:
        report = taught(server, folder, price_per_million=price)
    assert (report.stopped, len(hosted_rows(folder))) == (None, ROWS)
    assert report.cost_usd > IMAGES * 50_000 / 1e6
    assert f"{IMAGES} answers came without usage" in str(report)


def test_dated_snapshots_of_one_model_are_told_and_no_failure(folder: Path) -> None:
    def mode(handler: Handler) -> None:
        date = "2024-08-06" if len(handler.server.seen) % 2 else "2024-11-20"
        handler.reply(completion(answers_to(handler.prompt), model=f"gpt-4o-{date}"))

    with teacher_server(mode) as server:
        report = taught(server, folder)
        assert (report.stopped, len(hosted_rows(folder)), len(server.seen)) == (None, ROWS, IMAGES)
    assert "gpt-4o-2024-08-06 (4 answers), gpt-4o-2024-11-20 (4 answers)" in str(report)
    assert {row["teacher"]["model"] for row in hosted_rows(folder)} == {"gpt-4o-2024-08-06", "gpt-4o-2024-11-20"}


@pytest.mark.parametrize(
    ("said", "before", "pinned", "same"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o-2024-11-20", "gpt-4o", True),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-11-20", "gpt-4o-2024-11-20", False),
        ("gpt-4-0613", "gpt-4-0314", "gpt-4", True),
        ("claude-x-20250514", "claude-x-latest", "claude-x", True),
        ("gemini-2.5-flash-preview-05-20", "gemini-2.5-flash-preview-04-17", "gemini-2.5-flash-preview", True),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-2024-08-06", "gpt-4o", False),
        ("m-2027", "m-2026-01-01", "m", False),
        ("llama-3-8b", "llama-3-70b", "llama-3", False),
    ],
)
def test_what_a_snapshot_is(said: str, before: str, pinned: str, same: bool) -> None:
    assert same_model(said, before, pinned=pinned) is same


# ------------------------------------------------------------------------------------------------- the configuration


def test_azure_and_others_work_from_the_configuration(folder: Path) -> None:
    """A deployment's path with a query, another header for the key, further headers, the old name of the limit."""
    with teacher_server(good) as server:
        root = server.url.removesuffix("/v1")
        report = taught(
            server, folder, base_url=f"{root}/openai/deployments/d?api-version=2024-06-01", auth_header="api-key",
            headers={"X-Team": "fab 7"}, limit_parameter="max_tokens", extra_body={"reasoning_effort": "low"},
        )  # fmt: skip
        assert (report.stopped, report.unanswered) == (None, 0)
        assert len(server.seen) == IMAGES
        for handler in server.seen:
            assert handler.path == "/openai/deployments/d/chat/completions?api-version=2024-06-01"
            assert handler.headers["api-key"] == KEY
            assert handler.headers["authorization"] is None
            assert handler.headers["x-team"] == "fab 7"
            assert handler.request_body["max_tokens"] == 800
            assert LIMIT not in handler.request_body
            assert handler.request_body["reasoning_effort"] == "low"
        assert server.strays == []


@pytest.mark.parametrize(
    ("header", "name", "value"),
    [
        ("Authorization: Bearer", "authorization", f"Bearer {KEY}"),
        ("Authorization: Token", "authorization", f"Token {KEY}"),
        ("authorization", "authorization", KEY),
        ("x-api-key", "x-api-key", KEY),
    ],
)
def test_the_header_of_the_key(header: str, name: str, value: str) -> None:
    with teacher_server(good) as server:
        attempt(server, auth_header=header)
        assert server.seen[0].headers.get_all(name) == [value]
        assert str(server.seen[0].headers).count(KEY) == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("auth_header", "api key"),
        ("auth_header", "api-key: x\r\ny: z"),
        ("headers", {"Authorization": "Bearer sk-1"}),
        ("headers", {"X-Api-Key": "sk-1"}),
        ("headers", {"Cookie": "a=b"}),
        ("headers", {"Host": "elsewhere"}),
        ("headers", {"X-A": "a\r\nX-B: c"}),
        ("extra_body", {"messages": []}),
        ("extra_body", {"max_tokens": 9}),
        ("extra_body", {"n": 8}),
        ("extra_body", {"stream": True}),
        ("limit_parameter", "limit"),
        ("give_up_after", 0),
    ],
)
def test_no_key_and_nothing_of_ours_in_a_setting(setting: str, value: Any) -> None:
    """Keys come from the environment only, and no setting undoes the limit, the pictures or the address."""
    with pytest.raises(ConfigError) as caught:
        parse_config({"teach": {setting: value}}, origin="t")
    assert setting in caught.value.message
    assert "sk-1" not in caught.value.message


@pytest.mark.parametrize("query", ["key=sk-1", "api_key=sk-1", "access_token=t", "code=t", "api-version=1#x"])
def test_no_key_in_the_address(query: str) -> None:
    """It would stand in the manifest, in every message and in the provider's log."""
    with pytest.raises(EgressError, match="bad_url") as caught:
        destination_of(f"https://t.example/v1?{query}")
    assert "sk-1" not in caught.value.message
    assert destination_of("https://t.example/v1?api-version=1") == "https://t.example/v1?api-version=1"


def test_headers_and_query_go_to_no_other_host() -> None:
    """A redirect elsewhere carries nothing there: it is not followed, on the same machine or off it."""
    with teacher_server(good) as other, teacher_server(status(307, location=f"{other.url}/chat/completions")) as server:
        with pytest.raises(Rejection, match="redirect"):
            attempt(server, base_url=f"{server.url}?api-version=1", auth_header="api-key", headers={"X-Team": "fab"})
        assert (len(server.seen), len(other.seen), other.handshakes) == (1, 0, 0)


def attempt(server: TeacherServer, **changes: Any) -> Any:
    """One attempt of a hosted teacher, with no picture."""
    config = TeachConfig(**settings(server, **changes))

    async def run() -> Any:
        teacher = HostedTeacher(Permit(destination_of(config.base_url), frozenset()), config)
        try:
            return await teacher.answer(asked(), ())
        finally:
            await teacher.close()

    return asyncio.run(run())


def asked() -> Request:
    from data_gen.knowledge import sheet_request

    return sheet_request("powder")


# ----------------------------------------------------------------------------------------------------- the batch queue


def test_the_batch_queue_speaks_the_same_way(folder: Path) -> None:
    """What the probes learnt holds for the batches; what only the queue refuses is handed in once more without it."""
    seen: list[dict[str, Any]] = []

    def work(line: dict[str, Any]) -> dict[str, Any]:
        seen.append(line["body"])
        if "seed" in line["body"]:
            return {"status_code": 400, "body": openai("Unrecognized request argument supplied: seed")}
        return well(line)

    with batch_server(work, mode=picky("temperature")) as server:
        report = taught(server, folder, batch=True, batch_poll_s=0.02)
        assert (report.stopped, report.unanswered) == (None, 0)
        assert len(hosted_rows(folder)) == ROWS
        assert all("temperature" not in body for body in seen)
        assert ["seed" in body for body in seen] == [True] * 3 + [False] * 3
        assert len(server.queue.batches) == 2
    with Ledger(folder / "out" / "ledger.sqlite") as ledger:
        assert {one.parameter for one in ledger.adaptations(server.url, "m")} == {"temperature", "seed"}


def test_a_batch_that_is_refused_throughout_tells_why(folder: Path) -> None:
    def work(line: dict[str, Any]) -> dict[str, Any]:
        return {"status_code": 400, "body": openai("The gizmo is wrong.")}

    with batch_server(work) as server:
        report = taught(server, folder, batch=True, batch_poll_s=0.02)
        assert report.stopped is not None
        assert "HTTP 400: The gizmo is wrong." in report.stopped
        assert report.unanswered == IMAGES - 5


def test_a_queue_that_fails_or_refuses_tells_why_in_its_own_words(folder: Path) -> None:
    """A batch that was taken back, and a queue that answers 400: no retry, no "later", the reason."""
    with batch_server() as server:
        create = server.queue.create
        failed = {"object": "list", "data": [{"code": "e", "message": "Line 1: no such model", "line": 1}]}
        server.queue.create = lambda order: create(order) | {"status": "failed", "errors": failed}  # type: ignore[method-assign]
        server.queue.look = lambda name: create_failed(server.queue.batches[name], failed)  # type: ignore[method-assign]
        report = taught(server, folder, batch=True, batch_poll_s=0.02)
        assert "batch_failed: " in str(report.stopped)
        assert "Line 1: no such model" in str(report.stopped)
        assert report.unanswered == IMAGES - 5
    with batch_server() as server:
        handler = type("Refusing", (server.RequestHandlerClass,), {"_tell": refuse_files})
        server.RequestHandlerClass = handler
        report = taught(server, folder, max_output_tokens=900, batch=True, batch_poll_s=0.02)
        assert "bad_request: " in str(report.stopped)
        assert "purpose is not for you" in str(report.stopped)


def create_failed(batch: dict[str, Any], errors: dict[str, Any]) -> dict[str, Any]:
    return batch | {"status": "failed", "errors": errors}


def refuse_files(handler: Any, endpoint: str, body: dict[str, Any]) -> None:
    told = openai("This purpose is not for you") if endpoint == "files" else body
    handler.reply(told, status=400 if endpoint == "files" else 200)


def test_an_error_of_the_teacher_is_one() -> None:
    """Every end is a TeacherError with a remedy."""
    told = {"host": "https://h/v1", "model": "m", "api_key_env": "K", "pictures": False}
    for code in (400, 401, 402, 403, 404, 405, 413, 422):
        end = verdict_of(refusal(code, openai("Why.")), **told)  # type: ignore[arg-type]
        end = getattr(end, "end", None) or end
        assert isinstance(end, TeacherError)
        assert f"HTTP {code}: Why." in end.message

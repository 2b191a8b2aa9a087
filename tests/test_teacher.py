"""The hosted teacher against a real server that misbehaves; the offline and replayed teachers; the egress guard."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import logging
import ssl
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from teacher_server import (
    USAGE,
    Mode,
    TeacherServer,
    answers_to,
    completion,
    drip,
    echo_picture,
    good,
    half,
    hang,
    raw,
    reset,
    says,
    status,
    teacher_server,
)  # fmt: skip

from assistant.config import PriceConfig, TeachConfig
from assistant.errors import DatasetError, EgressError, TeacherError
from data_gen.hosted import correspondence as desk_module
from data_gen.hosted.budget import Budget
from data_gen.hosted.correspondence import PARKED, CircuitBreaker, Correspondence, ask_all
from data_gen.hosted.egress import Permit, destination_of, grant, redact
from data_gen.hosted.hosted_teacher import HostedTeacher
from data_gen.hosted.replies import retry_after
from data_gen.knowledge import SHEET_FACETS, knowledge_sheets, write_sheet
from data_gen.ledger import Ledger
from data_gen.questions.tasks import TaughtQuestion
from data_gen.tables import ACCEPTED, Visit
from data_gen.teacher import OfflineTeacher, Rejection, ReplayTeacher, Request, request_key

KEY = "sk-sentinel-0123456789abcdef"
PICTURE = b"\x89PNG not really"


def question(name: str = "shape") -> TaughtQuestion:
    return TaughtQuestion(name, "vqa", "morphology", "What shape?", f"{name}: What shape?", (), "", {})


def request(number: int = 0, *, images: Sequence[str] = ()) -> Request:
    return Request(tuple(images) or (f"sha{number}",), "vqa", (question(), question("surface")), "class: tips")


def config(server: TeacherServer, **changes: Any) -> TeachConfig:
    price = PriceConfig(input=1.0, output=10.0)
    given = {"teacher": "openai", "model": "m", "base_url": server.url, "deadline_s": 60.0, "price_per_million": price}
    return TeachConfig(**{**given, "api_key_env": "MAEMI_TEST_KEY", **changes})


def permit_for(url: str, *pictures: bytes) -> Permit:
    return Permit(url, frozenset(hashlib.sha256(picture).hexdigest() for picture in pictures or (PICTURE,)))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAEMI_TEST_KEY", KEY)
    monkeypatch.setattr(desk_module, "BACKOFF_S", (0.01, 0.02))


class Office:
    """A desk with its teacher, ledger and budget, over one event loop."""

    def __init__(self, server: TeacherServer, folder: Path, *, budget: float | None = None, **changes: Any) -> None:
        self.server, self.path = server, folder / "ledger.sqlite"
        self.settings = config(server, **changes)
        self.budget_usd = budget
        self._keys = HostedTeacher(permit_for(server.url), self.settings)

    def ask(self, *requests: Request, breaker: CircuitBreaker | None = None, concurrency: int = 4) -> Correspondence:
        async def run() -> Correspondence:
            with Ledger(self.path) as ledger:
                teacher = HostedTeacher(
                    permit_for(self.server.url), self.settings, answers_as=ledger.model_of("openai:m")
                )
                budget = Budget(self.budget_usd, spent_usd=ledger.spent_usd())
                desk = Correspondence(teacher, ledger, budget, max_retries=self.settings.max_retries, breaker=breaker)
                try:
                    await ask_all(desk, self._errands(requests), concurrency=concurrency)
                finally:
                    await teacher.close()
                return desk

        return asyncio.run(run())

    async def _errands(self, requests: Sequence[Request]) -> Any:
        async def pictures() -> list[bytes]:
            return [PICTURE]

        for asked in requests:
            yield asked, pictures

    def exchange(self, asked: Request) -> Visit:
        return self.exchanges(asked)[0]

    def exchanges(self, *requests: Request) -> list[Visit]:
        with Ledger(self.path) as ledger:
            found = [ledger.exchange(request_key(self._keys, asked)) for asked in requests]
        assert None not in found
        return [row for row in found if row is not None]


def attempt(server: TeacherServer, asked: Request | None = None, **changes: Any) -> Any:
    """One attempt of a hosted teacher."""

    async def run() -> Any:
        teacher = HostedTeacher(permit_for(server.url), config(server, **changes))
        try:
            return await teacher.answer(asked or request(), [PICTURE])
        finally:
            await teacher.close()

    return asyncio.run(run())


# --------------------------------------------------------------------------------------------------- one attempt


def test_a_good_reply_is_bound_to_its_questions() -> None:
    """The reply holds every question by id, the model that answered and what it used."""
    with teacher_server(good) as server:
        reply = attempt(server)
        assert reply.answers == dict.fromkeys(("shape", "surface"), ("The structures are shown.",))
        assert (reply.model, reply.usage) == ("m-2026-01-01", (1000, 100))
        sent = server.seen[0]
        assert sent.pictures == [PICTURE]
        assert sent.headers["authorization"] == f"Bearer {KEY}"
        assert len(sent.headers["idempotency-key"]) == 64
        assert "openai-organization" not in {name.lower() for name in sent.headers}
        assert sent.request_body["temperature"] == 0
        assert server.strays == []


GOOD = json.dumps(completion(answers_to("- shape: x\n- surface: y"))).encode()
MODES: list[tuple[str, Mode, str, bool]] = [
    ("html", raw(b"<html>Sign in to the guest network</html>", "text/html"), "html", True),
    ("empty body", raw(b""), "bad_reply", True),
    ("truncated JSON", raw(GOOD[:100]), "bad_reply", True),
    ("deep JSON", raw(b"[" * 100_000), "bad_reply", True),
    ("no choices", raw(b'{"model": "m", "choices": []}'), "wrong_type", True),
    ("null", raw(b"null"), "wrong_type", True),
    ("wrong types", raw(b'{"model": 1, "choices": "x"}'), "wrong_type", True),
    ("content is a list", says([{"type": "text"}]), "wrong_type", True),  # type: ignore[arg-type]
    ("50 MB", raw(b" " * 2_000_000 + GOOD), "bad_reply", True),
    ("packed", raw(gzip.compress(b" " * 5_000_000 + GOOD), content_encoding="gzip"), "bad_reply", True),
    ("half a body", half, "connection", True),
    ("reset", reset, "connection", True),
    ("refusal field", says(None, message={"refusal": "no"}), "refusal", False),
    ("no content", says(None), "refusal", False),
    ("refusal in words", says("I'm sorry, I can't assist with that image."), "refusal", False),
    ("content filter", says("", finish="content_filter"), "filtered", False),
    ("filter as 400", status(400, b'{"error": {"code": "content_filter"}}'), "filtered", False),
    ("cut at the limit", says('{"answers": [{"id": "sha', finish="length"), "truncated", False),
    ("whole but cut", says(answers_to("- shape: x\n- surface: y"), finish="length"), "truncated", False),
    ("blank", says("  "), "empty", True),
    ("prose", says("The structures are round."), "bad_reply", True),
    ("wrong schema", says('{"answers": {"shape": "round"}}'), "wrong_type", True),
    ("numbers as answers", says('{"answers": [{"id": "shape", "answers": [1]}]}'), "wrong_type", True),
    ("a question is missing", says(answers_to("- shape: x")), "wrong_item", True),
    ("another question", says(answers_to("- shape: x\n- colour: y")), "wrong_item", True),
    ("503", status(503), "server_error", True),
    ("529", status(529), "server_error", True),
    ("400", status(400), "bad_request", False),
    ("429", status(429, retry_after="2"), "rate_limited", True),
    ("redirect", status(302, location="http://127.0.0.1:1/elsewhere"), "redirect", True),
    ("redirect within", status(307, location="/v1/elsewhere"), "redirect", True),
]


@pytest.mark.parametrize(("mode", "verdict", "again"), [m[1:] for m in MODES], ids=[m[0] for m in MODES])
def test_a_bad_reply_is_a_named_rejection(mode: Mode, verdict: str, again: bool) -> None:
    """HTML with status 200 is a plain string to the SDK, a cut is ordinary text: neither may become a label."""
    with teacher_server(mode) as server:
        with pytest.raises(Rejection) as caught:
            attempt(server)
        assert (caught.value.code, caught.value.again) == (verdict, again)
        assert len(caught.value.raw) <= 4000
        assert (len(server.seen), server.strays) == (1, [])


@pytest.mark.parametrize("mode", [hang, drip], ids=["hang", "drip"])
def test_the_deadline_is_total(mode: Mode) -> None:
    """The SDK's timeout is per read: a server that drips a byte now and then would hold an attempt for ever."""
    with teacher_server(mode) as server:

        async def run() -> float:
            teacher = HostedTeacher(permit_for(server.url), config(server, deadline_s=0.4))
            started = time.perf_counter()
            with pytest.raises(Rejection) as caught:
                await teacher.answer(request(), [PICTURE])
            assert (caught.value.code, caught.value.billed) == ("deadline", None)
            taken = time.perf_counter() - started
            await teacher.close()
            return taken

        assert asyncio.run(run()) < 5  # the server goes on for 10 s


ENDS = [
    (status(401), "unauthorised"),
    (status(403), "unauthorised"),
    (status(404), "no_model"),
    (status(429, b'{"error": {"code": "insufficient_quota"}}'), "quota"),
]


@pytest.mark.parametrize(("mode", "code"), ENDS)
def test_what_no_attempt_can_mend_ends_the_job(mode: Mode, code: str) -> None:
    """A wrong key is not worth a second picture."""
    with teacher_server(mode) as server:
        with pytest.raises(TeacherError) as caught:
            attempt(server)
        assert not isinstance(caught.value, Rejection)
        assert caught.value.code == code
        assert (len(server.seen), server.strays) == (1, [])


def test_a_key_that_the_endpoint_echoes_is_not_written_down(caplog: pytest.LogCaptureFixture) -> None:
    """The key shows in no rejection, error text, repr or debug log."""
    caplog.set_level(logging.DEBUG)
    for mode in (status(400, KEY.encode()), raw(f"<p>{KEY}</p>".encode()), says(f"{KEY} is not JSON"), status(401)):
        with teacher_server(mode) as server, pytest.raises(TeacherError) as caught:
            attempt(server)
        assert KEY not in f"{caught.value} {caught.value!r} {getattr(caught.value, 'raw', '')}"
        assert caught.value.__cause__ is None
    echo = says(answers_to("- shape: x\n- surface: y", text=f"The key is {KEY}."))
    with teacher_server(echo) as server:
        assert KEY not in str(attempt(server))
    assert caplog.text
    assert KEY not in caplog.text


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable, before anything is sent."""
    monkeypatch.delenv("MAEMI_TEST_KEY")
    with teacher_server(good) as server:
        with pytest.raises(TeacherError, match=r"no_key: .*MAEMI_TEST_KEY"):
            attempt(server)
        assert server.seen == []


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "3600"}, 3600.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "NaN"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    """Seconds, milliseconds and dates are understood at the epoch's 60th second; nonsense is no wait."""
    assert retry_after(headers, now=60.0) == (expected if expected is None else pytest.approx(expected))


# --------------------------------------------------------------------------------------------------- at the desk


def test_failures_are_retried_and_booked(tmp_path: Path) -> None:
    """Two failures and a good reply: one answer, three attempts, and only what may have been billed is booked."""
    with teacher_server(status(500), raw(b"<html>"), good) as server:
        office = Office(server, tmp_path)
        desk = office.ask(request())
        row = office.exchange(request())
        assert desk.stopped is None
        assert (row.verdict, row.attempts, row.model) == (ACCEPTED, 3, "m-2026-01-01")
        # 500 is free; the HTML body may hide a billed reply, so its worst case is kept; the good one costs 2e-3.
        worst = (len(request().prompt.encode()) + 50_000) / 1e6
        assert worst < row.cost_usd - 0.002 < 1.1 * worst + 0.008
        assert len(server.seen) == 3


def test_rejected_after_the_last_retry_keeps_the_raw_reply_and_is_not_asked_again(tmp_path: Path) -> None:
    """A teacher that only sends HTML is quarantined with what it said; a rerun does not pay for it again."""
    with teacher_server(raw(b"<html>captive portal")) as server:
        office = Office(server, tmp_path, max_retries=1)
        office.ask(request())
        row = office.exchange(request())
        assert (row.verdict, row.attempts, row.reply) == ("html", 2, "<html>captive portal")
        office.ask(request())
        assert len(server.seen) == 2


def test_a_refusal_is_never_asked_twice_and_never_an_answer(tmp_path: Path) -> None:
    """At temperature 0 the same question is refused again; the verdict is final."""
    with teacher_server(says("I cannot help with that.")) as server:
        office = Office(server, tmp_path)
        office.ask(request())
        office.ask(request())
        row = office.exchange(request())
        assert (row.verdict, row.attempts, len(server.seen)) == ("refusal", 1, 1)


def test_a_rate_limit_pauses_everyone_and_costs_nothing(tmp_path: Path) -> None:
    """429 is honoured to the moment, does not use up the retries, and is not money."""
    limits = [status(429, retry_after_ms="150")] * 5
    with teacher_server(*limits, good) as server:
        office = Office(server, tmp_path, max_retries=0)
        started = time.perf_counter()
        office.ask(request(0), concurrency=1)
        assert time.perf_counter() - started >= 5 * 0.15
        row = office.exchange(request(0))
        assert (row.verdict, row.attempts, row.cost_usd) == (ACCEPTED, 6, pytest.approx(0.002))


def test_a_long_wait_parks_the_request_and_the_job_goes_on(tmp_path: Path) -> None:
    """`Retry-After: 3600` must not hold the night's job; the next run asks again."""
    with teacher_server(status(429, retry_after="3600"), good) as server:
        office = Office(server, tmp_path)
        desk = office.ask(request(0), request(1), concurrency=1)
        assert desk.stopped is None
        assert office.exchange(request(0)).verdict == PARKED
        assert office.exchange(request(1)).verdict == ACCEPTED
        office.ask(request(0))
        assert office.exchange(request(0)).verdict == ACCEPTED


def test_the_breaker_rests_then_gives_up_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """A dead endpoint is not hammered: 4 failures, a rest, one probe, and the end; nothing is lost."""
    with teacher_server(*[status(500)] * 5, good) as server:
        office = Office(server, tmp_path, max_retries=20)
        breaker = CircuitBreaker(threshold=4, rest_s=0.2, rests=1)
        started = time.perf_counter()
        desk = office.ask(*map(request, range(6)), breaker=breaker, concurrency=1)
        assert time.perf_counter() - started >= 0.2
        assert desk.stopped is not None
        assert desk.stopped.code == "unavailable"
        assert len(server.seen) == 5
        desk = office.ask(*map(request, range(6)))
        assert desk.stopped is None
        assert [row.verdict for row in office.exchanges(*map(request, range(6)))] == [ACCEPTED] * 6


def test_a_burst_of_errors_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """60 requests, every third attempt a failure of some kind: every request ends answered, once each."""
    faults = [status(500), status(503), raw(b"<html>"), raw(b"{"), status(429, retry_after_ms="5"), reset]
    with teacher_server(good) as server:
        server.mode = lambda number: faults[number // 3 % len(faults)] if number % 3 == 0 else good
        office = Office(server, tmp_path, max_retries=6)
        requests = [request(i) for i in range(60)]
        desk = office.ask(*requests, concurrency=16)
        assert desk.stopped is None
        rows = office.exchanges(*requests)
        assert {row.verdict for row in rows} == {ACCEPTED}
        assert sum(row.attempts for row in rows) == len(server.seen)


def test_every_answer_belongs_to_its_picture(tmp_path: Path) -> None:
    """60 pictures at once, answered late and out of order by a server that echoes the picture's hash."""
    pictures = [f"picture {i}".encode() for i in range(60)]
    with teacher_server(echo_picture) as server:

        async def run() -> list[Any]:
            teacher = HostedTeacher(permit_for(server.url, *pictures), config(server))
            asked = (teacher.answer(request(i), [picture]) for i, picture in enumerate(pictures))
            replies = await asyncio.gather(*asked)
            await teacher.close()
            return replies

        replies = asyncio.run(run())
    for picture, reply in zip(pictures, replies, strict=True):
        assert reply.answers["shape"] == (f"sha {hashlib.sha256(picture).hexdigest()}.",)


def test_the_budget_stops_before_the_request_that_could_pass_it(tmp_path: Path) -> None:
    """The limit is hard: at no time does the money that is spent pass it, and a larger one goes on where it stopped."""
    with teacher_server(good) as server:
        one = (USAGE["prompt_tokens"] * 1.0 + USAGE["completion_tokens"] * 10.0) / 1e6
        office = Office(server, tmp_path, budget=0.075)
        desk = office.ask(*map(request, range(40)), concurrency=8)
        assert desk.stopped is not None
        assert desk.stopped.code == "budget"
        with Ledger(office.path) as ledger:
            spent = ledger.spent_usd()
        assert spent == pytest.approx(one * len(server.seen))
        assert spent <= 0.075

        # The next request, at its worst case, would not have fitted: the stop is neither early nor late.
        async def worst_case() -> float:
            teacher = HostedTeacher(permit_for(server.url), office.settings)
            teacher._image_tokens = [1000.0] * 3
            return teacher.worst_case_usd(request(0))

        assert spent + asyncio.run(worst_case()) > 0.075
        before = len(server.seen)
        office.budget_usd = 1.0
        assert office.ask(*map(request, range(40))).stopped is None
        assert len(server.seen) == 40
        assert before < 40


def test_a_budget_too_small_for_one_request_sends_nothing(tmp_path: Path) -> None:
    """Until the endpoint has told what a picture costs, a generous worst case must fit."""
    with teacher_server(good) as server:
        desk = Office(server, tmp_path, budget=0.01).ask(request())
        assert desk.stopped is not None
        assert desk.stopped.code == "budget"
        assert server.seen == []


def test_another_model_string_is_not_an_answer_and_ends_the_job_where_it_stays(tmp_path: Path) -> None:
    """Half a data set by another model is not what its card says; one stray reply costs one more attempt."""
    other = says(answers_to("- shape: x\n- surface: y"), model="m-2027")
    with teacher_server(good, other, good, other) as server:
        office = Office(server, tmp_path)
        assert office.ask(request(0)).stopped is None
        assert office.ask(request(1)).stopped is None
        assert [row.model for row in office.exchanges(request(0), request(1))] == ["m-2026-01-01"] * 2
        desk = office.ask(*map(request, range(2, 12)), concurrency=1)
        assert desk.stopped is not None
        assert desk.stopped.code == "model_changed"
        assert "m-2027" in desk.stopped.message
        assert len(server.seen) == 3 + desk_module.PATIENCE
        assert office.exchange(request(2)).verdict == "wrong_model"


def test_an_endpoint_that_only_redirects_ends_the_job(tmp_path: Path) -> None:
    """A captive portal: nothing follows the redirect, and after a few the job stops and says where it was sent."""
    with teacher_server(status(302, location="http://127.0.0.1:1/login")) as server:
        desk = Office(server, tmp_path).ask(*map(request, range(10)), concurrency=1)
        assert desk.stopped is not None
        assert desk.stopped.code == "redirect"
        assert (len(server.seen), server.strays) == (desk_module.PATIENCE, [])


def impostors() -> dict[str, tuple[trustme.CA, trustme.LeafCert]]:
    """Authorities to trust, and certificates that they did not give to this machine at this time."""
    ours, theirs = trustme.CA(), trustme.CA()
    ended = datetime(2020, 1, 1, tzinfo=UTC)
    return {
        "self-signed": (ours, theirs.issue_cert("127.0.0.1")),
        "another host": (ours, ours.issue_cert("teacher.example")),
        "expired": (ours, ours.issue_cert("127.0.0.1", not_before=ended - timedelta(days=9), not_after=ended)),
    }


def tls_of(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.mark.parametrize("impostor", ["self-signed", "another host", "expired"])
def test_an_endpoint_that_does_not_prove_who_it_is_gets_nothing(tmp_path: Path, impostor: str) -> None:
    """The first handshake ends the job: no byte of a request leaves, nothing is paid, and the error says what to do."""
    authority, certificate = impostors()[impostor]
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with teacher_server(good, tls=tls_of(certificate)) as server:
        office = Office(server, tmp_path, ca_file=str(tmp_path / "ca.pem"))
        desk = office.ask(*map(request, range(10)), concurrency=1)
        assert desk.stopped is not None
        assert desk.stopped.code == "untrusted"
        assert "teach.ca_file" in desk.stopped.message
        assert server.handshakes == 1
        assert server.seen == []
        assert (office.exchange(request(0)).verdict, office.exchange(request(0)).cost_usd) == (PARKED, 0.0)


def test_a_sites_own_authority_is_trusted_where_it_is_named(tmp_path: Path) -> None:
    """What the system does not know is refused, and answered once `ca_file` vouches for it."""
    ours = trustme.CA()
    ours.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with teacher_server(good, tls=tls_of(ours.issue_cert("127.0.0.1"))) as server:
        stopped = Office(server, tmp_path).ask(request()).stopped
        assert stopped is not None
        assert stopped.code == "untrusted"
        office = Office(server, tmp_path, ca_file=str(tmp_path / "ca.pem"))
        assert office.ask(request()).stopped is None
        assert (office.exchange(request()).verdict, len(server.seen)) == (ACCEPTED, 1)


@pytest.mark.parametrize("content", [None, b"", b"not a certificate"], ids=["missing", "empty", "no certificate"])
def test_a_file_without_certificates_is_named(tmp_path: Path, content: bytes | None) -> None:
    """One sentence with the name of the file and the setting."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TeacherError, match=r"bad_ca_file: teach.ca_file: .*ca.pem") as caught:
        HostedTeacher(
            permit_for("https://127.0.0.1:1/v1"), TeachConfig(api_key_env="MAEMI_TEST_KEY", ca_file=str(path))
        )
    assert "None" not in caught.value.message


WRONG_FORMS = {
    "wrong types": ('{"answers": [{"id": "shape", "answers": "round"}]}', "wrong_type", "answers.0.answers"),
    "prose": ("The structures are round.", "bad_reply", "not JSON"),
    "another question": (answers_to("- colour: x"), "wrong_item", "shape, surface"),
    "blank": (" ", "empty", "empty"),
}


@pytest.mark.parametrize("form", WRONG_FORMS)
def test_a_reply_in_the_wrong_form_is_asked_again_once_with_what_was_wrong(tmp_path: Path, form: str) -> None:
    """The second request shows the model its reply and the fault; a second fault is final. Fails if nothing is told."""
    said, verdict, fault = WRONG_FORMS[form]
    with teacher_server(says(said), good, says(said)) as server:
        office = Office(server, tmp_path, max_retries=5)
        office.ask(request(0))
        office.ask(request(1))
        first, second = office.exchanges(request(0), request(1))
        assert (first.verdict, first.attempts) == (ACCEPTED, 2)
        assert (second.verdict, second.attempts, second.reply) == (verdict, 2, said)
        asked, told, mend = server.seen[1].request_body["messages"]
        assert asked == server.seen[0].request_body["messages"][0]
        assert told == {"role": "assistant", "content": said}
        assert fault in mend["content"]
        assert len(server.seen) == 4


# ------------------------------------------------------------------------------------------------------- egress


def manifest(folder: Path, *pictures: bytes, to: str) -> Path:
    path = folder / "egress.jsonl"
    rows = [{"sent_sha256": hashlib.sha256(p).hexdigest(), "bytes": len(p), "to": to} for p in pictures]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_default_is_deny(tmp_path: Path) -> None:
    """Without leave there is no permit, hence no client; the message says how much would leave, and where."""
    path = manifest(tmp_path, b"abc", b"de", to="https://teacher.example/v1")
    with pytest.raises(EgressError, match=r"denied: 2 pictures \(0.0 MB\).*teacher.example.*egress.jsonl"):
        grant(path, destination="https://teacher.example/v1", allow=False)
    with pytest.raises(EgressError, match="bad_manifest"):
        grant(path, destination="https://other.example/v1", allow=True)
    permit = grant(path, destination="https://teacher.example/v1", allow=True)
    permit.check(b"abc")
    with pytest.raises(EgressError, match="not_in_manifest"):
        permit.check(b"abcd")


def test_a_picture_outside_the_manifest_is_not_sent() -> None:
    """The permit is checked at the last moment, with the bytes that would leave."""
    with teacher_server(good) as server:

        async def run() -> None:
            teacher = HostedTeacher(permit_for(server.url), config(server))
            try:
                await teacher.answer(request(), [b"another picture"])
            finally:
                await teacher.close()

        with pytest.raises(EgressError, match="not_in_manifest"):
            asyncio.run(run())
        assert server.seen == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://teacher.example/v1", "insecure"),
        ("https://user:secret@teacher.example/v1", "bad_url"),
        ("file:///etc/passwd", "bad_url"),
        ("teacher.example", "bad_url"),
    ],
)
def test_bad_destinations_are_refused(url: str, code: str) -> None:
    """No clear text to another machine, and no password in a setting; the message does not repeat one."""
    with pytest.raises(EgressError) as caught:
        destination_of(url)
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


def test_proxies_and_base_url_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy or an address in the environment would carry pictures where nobody allowed them to go."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-sentinel")
    with teacher_server(good) as server:
        attempt(server)
        assert "org-sentinel" not in str(server.seen[0].headers)
    assert destination_of(None) == "https://api.openai.com/v1"


def test_redaction_leaves_pixels_and_nothing_else() -> None:
    """The banner with lot and operator, every tag and the name stay behind; the longest side is bounded."""
    from PIL import Image

    from assistant.micrograph import Calibration, Instrument, Micrograph

    pixels = np.zeros((60, 80), np.uint16)
    pixels[:50] = np.arange(80, dtype=np.uint16) * 700
    pixels[50:] = 12345
    m = Micrograph(
        pixels, "0" * 64, Path("lot-7.tif"), 0, Calibration(1.0, "tag", 1.0), Instrument(model="M"), (50, 60), ()
    )
    sent = redact(m, longest=40)
    with Image.open(io.BytesIO(sent)) as picture:
        assert picture.size == (40, 25)
        assert picture.mode == "L"
        assert picture.info == {}
    chunks = {sent[i : i + 4] for i in range(len(sent)) if sent[i : i + 4] in {b"tEXt", b"iTXt", b"eXIf", b"tIME"}}
    assert chunks == set()
    with Image.open(io.BytesIO(redact(m))) as whole:
        assert whole.size == (80, 50)
        assert np.all(np.diff(np.asarray(whole).astype(int), axis=1) >= 0)


# ------------------------------------------------------------------------------------- offline, replayed, knowledge


def test_importing_the_teacher_loads_no_client_and_no_model() -> None:
    """The package starts without torch, and without the HTTP client until a permit is there."""
    import subprocess

    modules = (
        "teacher, ledger, pipeline, knowledge, hosted.hosted_teacher, hosted.egress, questions.tasks, drawing.synth"
    )
    names = ", ".join(f"data_gen.{module}" for module in modules.split(", "))
    command = f"import sys, {names}; print(sorted({{'torch', 'openai', 'datasets'}} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", command], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_recorded_replies_are_replayed(tmp_path: Path) -> None:
    """What a hosted teacher answered once can be taught again without it."""
    with teacher_server(good) as server:
        office = Office(server, tmp_path)
        office.ask(request(0))
        with Ledger(office.path) as ledger:
            assert ledger.export_replies(tmp_path / "replies.jsonl") == 1
    replay = ReplayTeacher(tmp_path / "replies.jsonl")
    assert asyncio.run(replay.answer(request(0), ())).answers["shape"] == ("The structures are shown.",)
    with pytest.raises(Rejection, match="no_recording"):
        asyncio.run(replay.answer(request(1), ()))
    (tmp_path / "bad.jsonl").write_text('{"images": []}\n')
    with pytest.raises(DatasetError, match=r"bad_recording: .*line 1"):
        ReplayTeacher(tmp_path / "bad.jsonl")


def test_the_offline_teacher_says_what_the_facts_say() -> None:
    """Its reply is the composed answers, unchanged."""
    asked = Request(
        ("a",), "vqa", (TaughtQuestion("shape", "vqa", "f", "?", "c", ("round.", "a circle."), "round.", {}),), ""
    )
    assert asyncio.run(OfflineTeacher().answer(asked, ())).answers == {"shape": ("round.", "a circle.")}


def test_every_class_has_a_sheet_of_eight_facets() -> None:
    """The classifier attends over all classes: one without text would be told by its absence."""
    from data_gen.drawing.synth import CLASSES

    sheets = knowledge_sheets(CLASSES)
    assert set(sheets) == set(CLASSES)
    for sheet in sheets.values():
        assert list(sheet) == list(SHEET_FACETS)
        assert all(60 < len(text) < 400 for text in sheet.values())
    texts = [text for sheet in sheets.values() for text in sheet.values()]
    assert len(set(texts)) == len(texts)


def test_a_sheet_of_ones_own(tmp_path: Path) -> None:
    """A hosted teacher writes a sheet for a new class; names that leave the folder are refused."""
    with teacher_server(good) as server:

        async def run() -> Path:
            teacher = HostedTeacher(permit_for(server.url), config(server))
            try:
                return await write_sheet("grain_boundary", teacher, tmp_path)
            finally:
                await teacher.close()

        path = asyncio.run(run())
        assert "grain boundary" in server.seen[0].prompt
    assert (
        knowledge_sheets(["grain_boundary"], folder=tmp_path)["grain_boundary"]["safety"] == "The structures are shown."
    )
    path.write_text("introduction: only this\n")
    with pytest.raises(DatasetError, match=r"bad_sheet: .*structure"):
        knowledge_sheets(["grain_boundary"], folder=tmp_path)
    with pytest.raises(DatasetError, match="no_sheet"):
        knowledge_sheets(["../README"])


def test_worst_case_falls_once_the_endpoint_has_told_what_pictures_cost() -> None:
    """Reserving 50 000 tokens a picture for ever would end a budget after a few requests."""
    with teacher_server(good) as server:

        async def run() -> list[float]:
            teacher = HostedTeacher(permit_for(server.url), config(server))
            costs = [teacher.worst_case_usd(request())]
            for number in range(3):
                await teacher.answer(request(number), [PICTURE])
                costs.append(teacher.worst_case_usd(request()))
            await teacher.close()
            return costs

        before, *between, after = asyncio.run(run())
    assert between == [before, before]
    assert after < before - 0.04
    assert after > (USAGE["prompt_tokens"] + 10 * USAGE["completion_tokens"]) / 1e6

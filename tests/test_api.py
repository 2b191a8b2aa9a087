"""The OpenAI-compatible API through a real server on loopback, with the official client and with hostile ones."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import httpx
import pytest
from measuring import MeasuringAssistant, write_tiff
from openai import BadRequestError, NotFoundError, OpenAI
from serving import data_uri, running, user

from assistant.errors import ServerError
from serve.desk.answering import until_stop
from serve.desk.desk import Desk
from serve.desk.gate import Gate
from serve.desk.store import AnswerStore
from serve.http import api, server
from serve.http.api import build_api
from serve.http.conversation import ApiError
from serve.http.guard import Guard, read_credentials

LEAKS = re.compile(rf"0x[0-9a-f]{{6,}}|{re.escape(gettempdir())}|Traceback|File \"|site-packages", re.IGNORECASE)


def count_words(text: str) -> int:
    return len(text.split())


def make_desk(assistant: Any = None, **gate: Any) -> Desk:
    return Desk(assistant or MeasuringAssistant(), Gate(**gate), count_words)


@pytest.fixture(scope="module")
def desk() -> Desk:
    return make_desk()


@pytest.fixture(scope="module")
def url(desk: Desk) -> Iterator[str]:
    with running(Guard(build_api(desk))) as base:
        yield base


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    return data_uri(write_tiff(tmp_path_factory.mktemp("api") / "discs.tif"))


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as openai:
        yield openai


def post(url: str, **body: Any) -> httpx.Response:
    content = json.dumps({"model": "maemi"} | body)  # escapes what is no text, as a hostile client would
    return httpx.post(f"{url}/v1/chat/completions", content=content, timeout=300)


# ------------------------------------------------------------------------------------------- answers


def test_the_official_client_gets_an_answer_with_its_evidence(client: OpenAI, picture: str) -> None:
    """16-bit TIFF as a data URI in, the answer, what was read and what was measured out."""
    reply = client.chat.completions.create(model="measuring", messages=[user("How many?", picture)])
    choice = reply.choices[0]
    said = choice.message.content or ""
    assert said.startswith("Turn 1, 1 image(s).")
    assert choice.finish_reason == "stop"
    assert reply.usage
    assert reply.usage.completion_tokens == count_words(said)
    extra = (reply.model_extra or {})["x-micrograph"]
    assert extra["images"][0]["dtype"] == "uint16"
    assert extra["images"][0]["pixel_size_nm"] == pytest.approx(4.2)
    assert extra["facts"]
    assert {"true"} <= {statement["verdict"] for statement in extra["statements"]}
    assert extra["warnings"] == []


def test_streaming_says_the_same_and_ends_as_the_protocol_wants(url: str, client: OpenAI, picture: str) -> None:
    asked = [user("How many?", picture)]
    whole = client.chat.completions.create(model="maemi", messages=asked).choices[0].message.content
    chunks = list(
        client.chat.completions.create(
            model="maemi", messages=asked, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 5
    assert chunks[-1].usage
    assert not chunks[-1].choices
    assert (chunks[-2].model_extra or {})["x-micrograph"]["facts"]
    raw = post(url, messages=asked, stream=True)
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.text.endswith("data: [DONE]\n\n")


def test_later_turns_bring_the_earlier_ones_and_all_pictures(
    desk: Desk, client: OpenAI, picture: str, tmp_path: Path
) -> None:
    """A follow-up question must reach the model with its history, and pictures in the order they were shown."""
    second = data_uri(write_tiff(tmp_path / "b.tif", seed=1))
    messages = [
        {"role": "system", "content": "You are helpful."},
        user("First?", picture),
        {"role": "assistant", "content": "Nine discs."},
        user("And these two together?", second),
    ]
    reply = client.chat.completions.create(model="maemi", messages=messages)  # type: ignore[arg-type]
    assert (reply.choices[0].message.content or "").startswith("Turn 2, 2 image(s).")
    images, question, history, _ = desk.answerer.asked[-1]  # type: ignore[attr-defined]
    assert (images, question) == (2, "And these two together?")
    assert [(m.role, m.text, m.images) for m in history] == [("user", "First?", 1), ("assistant", "Nine discs.", 0)]
    assert any("system messages" in w for w in (reply.model_extra or {})["x-micrograph"]["warnings"])


def test_the_extension_describes_the_sample_and_calibrates(desk: Desk, url: str, tmp_path: Path) -> None:
    bare = data_uri(write_tiff(tmp_path / "bare.tif", nm=None))
    plain = post(url, messages=[user("?", bare)]).json()["x-micrograph"]
    assert plain["images"][0]["pixel_size_nm"] is None
    assert any("pixel size" in warning for warning in plain["warnings"])
    extension = {"pixel_size_nm": 2.5, "description": "annealed twice"}
    told = post(url, messages=[user("?", bare)], **{"x-micrograph": extension}).json()["x-micrograph"]
    assert told["images"][0]["pixel_size_nm"] == 2.5
    assert not any("pixel size" in warning for warning in told["warnings"])
    assert desk.answerer.asked[-1][3] == "annealed twice"  # type: ignore[attr-defined]


def test_limits_of_length_and_stop_words(client: OpenAI, picture: str) -> None:
    asked = [user("?", picture)]
    short = client.chat.completions.create(model="maemi", messages=asked, max_completion_tokens=3)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("Turn 1, 1 ", "length")
    stopped = client.chat.completions.create(model="maemi", messages=asked, stop=["image"])
    assert stopped.choices[0].message.content == "Turn 1, 1 "


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_stop_word_is_found_however_the_text_is_cut(size: int) -> None:
    """A stop word that spans pieces must neither pass nor swallow what stands before it."""
    text = "abc END def"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(until_stop(iter(pieces), ["END"])) == "abc "
    assert "".join(until_stop(iter(pieces), ["ENX", "cab"])) == text


def test_models_and_health(url: str, client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["measuring"]
    assert client.models.retrieve("measuring").id == "measuring"
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}


# ------------------------------------------------------------------------------------------- refusals

PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n not really").decode()
SHOWN = {"type": "image_url", "image_url": {"url": PIXEL}}
BODIES: dict[str, Any] = {
    "http image": {"messages": [user("?", "http://169.254.169.254/latest")]},
    "https image": {"messages": [user("?", "https://example.org/a.tif")]},
    "file image": {"messages": [user("?", "file:///etc/passwd")]},
    "path image": {"messages": [user("?", "/etc/passwd")]},
    "html data": {"messages": [user("?", "data:text/html;base64,AAAA")]},
    "bad base64": {"messages": [user("?", "data:image/png;base64,@@@@")]},
    "not an image": {"messages": [user("?", PIXEL)]},
    "no messages": {"messages": []},
    "no user": {"messages": [{"role": "system", "content": "x"}]},
    "too many images": {"messages": [user("?", *[PIXEL] * 17)]},
    "many choices": {"messages": [user("?", PIXEL)], "n": 200},
    "pictures by the assistant": {"messages": [user("?"), {"role": "assistant", "content": [SHOWN]}, user("?")]},
    "alternatives": {"messages": [user("?", PIXEL)], "logprobs": True, "top_logprobs": 21},
    "hot": {"messages": [user("?", PIXEL)], "temperature": 9},
    "text for a number": {"messages": [user("?", PIXEL)], "max_tokens": "5"},
    "negative length": {"messages": [user("?", PIXEL)], "max_tokens": -1},
    "schema": {"messages": [user("?", PIXEL)], "response_format": {"type": "json_schema"}},
    "surrogate": {"messages": [{"role": "user", "content": [SHOWN, {"type": "text", "text": "\ud800"}]}]},
    "nul": {"messages": [{"role": "user", "content": [SHOWN, {"type": "text", "text": "a\0b"}]}]},
    "unknown part": {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
    "messages is text": {"messages": "hello"},
    "long text": {"messages": [{"role": "user", "content": [SHOWN, {"type": "text", "text": "x" * 20000}]}]},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_bad_request_is_refused_in_the_shape_clients_read(url: str, body: dict[str, Any]) -> None:
    """Every bad body gets 400 with code and sentence: never a 5xx, a path, an address or a stack."""
    reply = post(url, **body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"]
    assert error["message"]
    assert not LEAKS.search(reply.text)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"model": NaN}', b'{"model": 1e999}', b"[" * 100_000, b"\xff\xfe", b'"' + b"a" * 99],
)
def test_a_body_that_is_no_json_object_is_refused(url: str, body: bytes) -> None:
    reply = httpx.post(f"{url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] in {"bad_json", "invalid_value"}


def test_no_picture_is_ever_fetched(url: str) -> None:
    """SSRF: an image URL that points to a listener on this machine must never be opened."""
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.3)
        port = canary.getsockname()[1]
        for address in (f"http://127.0.0.1:{port}/a.png", f"HTTP://localhost:{port}/", f"//127.0.0.1:{port}/a"):
            assert post(url, messages=[user("?", address)]).status_code == 400
        with pytest.raises(TimeoutError):
            canary.accept()


def test_the_client_raises_its_own_errors(client: OpenAI, picture: str) -> None:
    with pytest.raises(BadRequestError, match="not fetched"):
        client.chat.completions.create(model="maemi", messages=[user("?", "https://example.org/a.png")])
    with pytest.raises(NotFoundError, match="one model"):
        client.chat.completions.create(model="gpt-4o", messages=[user("?", picture)])


def test_paths_and_methods_that_do_not_exist(url: str) -> None:
    for method, path, status, allowed in (
        ("GET", "/v1/secret", 404, None),
        ("GET", "/docs", 404, None),
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("HEAD", "/v1/chat/completions", 405, "POST"),
        ("TRACE", "/v1/chat/completions", 405, "POST"),
        ("POST", "/healthz", 405, "GET, HEAD"),
        ("DELETE", "/v1/models/measuring", 405, "GET, HEAD"),
        ("POST", "/metrics", 405, "GET, HEAD"),
    ):
        reply = httpx.request(method, url + path)
        assert (reply.status_code, reply.headers.get("allow")) == (status, allowed), (method, path)
        if method != "HEAD" and path != "/docs":
            assert reply.json()["error"]["message"]


def test_a_head_is_a_get_without_its_body(url: str) -> None:
    for path in ("/healthz", "/v1/models", "/metrics"):
        head, get = httpx.head(url + path), httpx.get(url + path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]


# ------------------------------------------------------------------------------------------- load


def test_a_full_queue_says_so_and_recovers(picture: str) -> None:
    """Overload must end in 429 with Retry-After, not in a pile of waiting requests."""
    desk = make_desk(MeasuringAssistant(pause_s=0.03), places=1, waiting=1)
    with running(Guard(build_api(desk))) as url:
        replies: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: replies.append(post(url, messages=[user("?", picture)]))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {reply.status_code for reply in replies} == {200, 429}
        assert all(int(r.headers["retry-after"]) > 0 for r in replies if r.status_code == 429)
        assert desk.gate.inside == 0
        assert post(url, messages=[user("?", picture)]).status_code == 200


def test_a_wait_that_is_too_long_is_503(picture: str) -> None:
    desk = make_desk(patience_s=0.05)
    with running(Guard(build_api(desk))) as url, desk.gate.turn():
        reply = post(url, messages=[user("?", picture)])
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "timeout"
    assert reply.headers["retry-after"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(picture: str, stream: bool) -> None:
    """The model must stop within a second of a disconnect, streamed or not."""
    assistant = MeasuringAssistant(pause_s=0.1)
    desk = make_desk(assistant)
    with running(Guard(build_api(desk))) as url:
        body = {"model": "maemi", "messages": [user("?", picture)], "stream": stream}
        address = f"{url}/v1/chat/completions"
        if stream:
            with httpx.stream("POST", address, json=body) as reply:
                next(reply.iter_text())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(address, json=body, timeout=0.6)
        assert assistant.words < 12  # it has left in the middle
        deadline = time.monotonic() + 60.0
        while desk.gate.inside and time.monotonic() < deadline:
            time.sleep(0.02)
        assert desk.gate.inside == 0
        said = assistant.words
        time.sleep(0.3)
        assert assistant.words == said


def test_nobody_waits_while_a_large_body_is_parsed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser stands still until /healthz has answered: on the event loop neither would ever end."""
    begun, answered = threading.Event(), threading.Event()

    def parse(body: bytes) -> Any:
        begun.set()
        assert answered.wait(20)
        raise ApiError(418, "parsed", f"{len(body)} bytes")

    monkeypatch.setattr(api, "parse_request", parse)
    replies: list[httpx.Response] = []
    body = b" " * 2**20
    large = threading.Thread(
        target=lambda: replies.append(httpx.post(f"{url}/v1/chat/completions", content=body, timeout=30))
    )
    large.start()
    assert begun.wait(20)
    assert httpx.get(f"{url}/healthz", timeout=10).status_code == 200
    answered.set()
    large.join()
    assert replies[0].status_code == 418


def test_a_body_of_a_million_messages_is_not_even_parsed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing it takes half a second in which nothing else in the process runs."""
    monkeypatch.setattr(api, "parse_request", lambda body: pytest.fail("parsed"))
    body = b'{"model": "m", "messages": [' + b'{"role":"user","content":"a"},' * 300_000 + b"{}]}"
    reply = httpx.post(f"{url}/v1/chat/completions", content=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


class _Broken(MeasuringAssistant):
    """Fails on the first question only."""

    def ask(self, images: Any, question: str, **rest: Any) -> Iterator[str]:
        if not self.asked:
            self.asked.append((0, question, (), None))
            raise RuntimeError("cuda error at 0x7f3a2b1c9d00")
        return super().ask(images, question, **rest)


def test_a_model_that_breaks_gives_a_number_and_no_secret(picture: str, caplog: pytest.LogCaptureFixture) -> None:
    """An internal failure: 500 with an id that is in the log, nothing else, and the next request is served."""
    with running(Guard(build_api(make_desk(_Broken())))) as url:
        reply = post(url, messages=[user("?", picture)])
        assert reply.status_code == 500
        number = re.search(r"id ([0-9a-f]{8})", reply.json()["error"]["message"])
        assert number
        assert number[1] in caplog.text
        assert not LEAKS.search(reply.text)
        assert post(url, messages=[user("?", picture)]).status_code == 200


# ------------------------------------------------------------------------------------------- the door


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "logins.txt"
    file.write_text("# people\nada:correct horse\n\nkey-of-a-program-1234\n")
    with running(Guard(build_api(make_desk()), credentials=read_credentials(file))) as base:
        yield base


def basic(pair: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


WRONG = {
    "none": {},
    "empty": {"authorization": ""},
    "empty bearer": {"authorization": "Bearer"},
    "other key": {"authorization": "Bearer key-of-a-program-1235"},
    "prefix": {"authorization": "Bearer key-of-a-program"},
    "password alone": {"authorization": "Bearer correct horse"},
    "wrong password": basic("ada:wrong horse"),
    "no password": basic("ada:"),
    "broken base64": {"authorization": "Basic %%%"},
    "digest": {"authorization": "Digest ada"},
    "key as name": basic("key-of-a-program-1234:"),
}
PATHS = (
    "/",
    "/v1/models",
    "//v1/models",
    "/v1/../v1/models",
    "/v1/chat/completions",
    "/openapi.json",
    "/healthz/",
    "/x",
)


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG.keys())
def test_nothing_is_open_without_a_login(locked: str, headers: dict[str, str]) -> None:
    """Deny by default: every path and method but /healthz, whether it exists or not, answers 401 (429 when guessed)."""
    with httpx.Client(headers=headers) as http:
        for path in PATHS:
            for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT"):
                assert http.request(method, locked + path).status_code in {401, 429}, (method, path)
        assert http.get(locked + "/healthz").status_code == 200


def test_logins_that_hold(locked: str) -> None:
    key = "key-of-a-program-1234"
    for headers in (basic("ada:correct horse"), {"authorization": f"Bearer {key}"}, basic(f"x:{key}")):
        assert httpx.get(locked + "/v1/models", headers=headers).status_code == 200
    assert httpx.get(locked + "/openapi.json", headers=basic("ada:correct horse")).status_code == 200


@pytest.mark.parametrize("host", ["a/?x=", "a/#", "@x", "a b", "", "127.0.0.1, evil", "[::1"])
def test_a_poisoned_host_header_opens_nothing(locked: str, host: str) -> None:
    """The Host-header bypass of 2026: a path rebuilt from Host must play no part in the decision."""
    name, _, port = locked.removeprefix("http://").partition(":")
    with socket.create_connection((name, int(port)), timeout=5) as raw:
        raw.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        status = raw.makefile("rb").readline().split()[1]
    assert status in {b"400", b"401"}


def test_other_sites_and_other_names_are_refused(url: str) -> None:
    """CSRF and DNS rebinding against a server without logins on a workstation."""
    body = {"content": b"{}", "headers": {"origin": "https://evil.example"}}
    assert httpx.post(f"{url}/v1/chat/completions", **body).status_code == 403
    assert httpx.get(f"{url}/v1/models", headers={"origin": "null"}).status_code == 403
    assert httpx.get(f"{url}/v1/models", headers={"origin": "http://localhost:1"}).status_code == 403
    assert httpx.get(f"{url}/v1/models", headers={"origin": url}).status_code == 200
    assert httpx.get(f"{url}/v1/models", headers={"host": "evil.example"}).status_code == 400


def test_replies_carry_security_headers_and_no_version(url: str) -> None:
    for path in ("/healthz", "/v1/models", "/nothing"):
        headers = httpx.get(url + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers


def test_bodies_are_bounded(picture: str) -> None:
    """Declared or chunked, a body over the limit is cut off with 413."""
    with running(Guard(build_api(make_desk()), body_limit=50_000)) as url:
        address = f"{url}/v1/chat/completions"
        assert httpx.post(address, content=b"x" * 60_000).status_code == 413
        endless = (b"x" * 10_000 for _ in range(100))
        assert httpx.post(address, content=endless).status_code == 413
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_an_open_door_needs_a_lock(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "example.org"):
        with pytest.raises(ServerError, match="auth_needed"):
            server.admit(host, None)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert server.admit(host, None) is None
    for text in ("", "# nobody\n", "ada:short\n"):
        (tmp_path / "logins").write_text(text)
        with pytest.raises(ServerError, match="bad_auth_file"):
            server.admit("0.0.0.0", tmp_path / "logins")


# ------------------------------------------------------------------------------------------- the book


def test_every_answer_is_in_the_book(picture: str, tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "answers.sqlite")
    desk = Desk(MeasuringAssistant(), Gate(), count_words, store)
    with running(Guard(build_api(desk))) as url:
        said = post(url, messages=[user("How many?", picture)]).json()
    (entry,) = store.entries()
    assert (entry.question, entry.model, entry.outcome, entry.user) == ("How many?", "measuring", "answered", "local")
    assert entry.answer == said["choices"][0]["message"]["content"]
    assert entry.images == [said["x-micrograph"]["images"][0]["sha256"]]
    store.close()


def test_the_description_is_served_behind_the_same_login(url: str, locked: str) -> None:
    assert httpx.get(f"{url}/openapi.json").status_code == 200
    assert httpx.get(f"{locked}/openapi.json").status_code == 401
    schema = json.loads(httpx.get(f"{locked}/openapi.json", headers=basic("ada:correct horse")).text)
    assert "/v1/chat/completions" in schema["paths"]

"""Slow peers and crowds of them, on a real server: they are closed, others are served, and the log stays short."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from serve.http.connections import SWEEP_S, Crowd, Limits, client_of
from serve.http.guard import Guard
from serve.http.tally import Tally

QUICK = {"header_s": 0.8, "window_s": 0.8, "young_s": 0.3, "body_rate": 10_000.0}
"""Deadlines that a test can wait for."""


async def healthz(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


async def take(request: Request) -> PlainTextResponse:
    """Takes a body whole."""
    return PlainTextResponse(str(sum([len(piece) async for piece in request.stream()])))


async def large(request: Request) -> PlainTextResponse:
    return PlainTextResponse("x" * 2**24)


async def events(request: Request) -> StreamingResponse:
    async def beat() -> Any:
        while True:
            yield b"data: " + b"x" * 2**16 * ("fast" in request.query_params) + b"\n\n"
            await asyncio.sleep(0.01)
            if "broken" in request.query_params:
                raise RuntimeError

    return StreamingResponse(beat(), media_type="text/event-stream")


@contextmanager
def serving(*, proxies: tuple[str, ...] = (), **limits: Any) -> Iterator[str]:
    routes = [Route("/healthz", healthz), Route("/take", take, methods=["POST"]), Route("/large", large)]
    routes += [Route("/page/events/{name}", events)]
    with running(Guard(Starlette(routes=routes)), limits=Limits(**QUICK | limits), proxies=proxies) as url:
        yield url


def connect(url: str, *, source: str = "127.0.0.1") -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10, source_address=(source, 0))


def ask(url: str, head: str, **options: Any) -> socket.socket:
    raw = connect(url, **options)
    raw.sendall(f"{head} HTTP/1.1\r\nHost: localhost\r\n".encode())
    return raw


def upload(url: str, path: str = "/take", length: int = 10**6, **options: Any) -> socket.socket:
    raw = ask(url, f"POST {path}", **options)
    raw.sendall(f"Content-Length: {length}\r\n\r\n".encode())
    return raw


def drips_until_closed(raw: socket.socket, drop: bytes = b"x") -> bytes:
    """What came back to a peer that sends a byte now and then; fails if it is never closed."""
    came = b""
    raw.settimeout(0.1)
    for _ in range(80):
        try:
            raw.sendall(drop)
            piece = raw.recv(4096)
            came += piece
            if not piece:
                return came
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return came
    pytest.fail("the connection was never closed")


def is_open(raw: socket.socket) -> bool:
    raw.settimeout(0)
    try:
        while raw.recv(4096):
            continue
        return False
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


# --------------------------------------------------------------------------------------- one slow peer


@pytest.mark.parametrize("path", ["/take", "/nowhere"])
def test_a_dripping_body_is_closed(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each piece used to buy 20 s more; after a reply that needed no body, nobody watched at all."""
    with serving() as url, upload(url, path) as raw:
        came = drips_until_closed(raw)
    assert (b"408" if path == "/take" else b"404") in came.splitlines()[0]
    assert "Traceback" not in caplog.text
    assert len(caplog.records) <= 2


def test_a_dripping_header_is_closed_on_the_second_request_too() -> None:
    with serving() as url:
        for before in (b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            with connect(url) as raw:
                raw.sendall(before)
                drips_until_closed(raw, b"G")


def test_a_silent_connection_is_closed() -> None:
    with serving() as url, connect(url) as raw:
        assert raw.recv(1) == b""


@pytest.mark.parametrize("path", ["/large", "/page/events/a?fast"])
def test_a_reply_that_nobody_reads_is_closed(path: str) -> None:
    with serving() as url:
        with ask(url, f"GET {path}") as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.sendall(b"\r\n")
            for held in (1, 0):
                deadline = time.monotonic() + 20
                while _held(url) != held and time.monotonic() < deadline:
                    time.sleep(0.05)
            assert not _held(url)
        with httpx.stream("GET", url + "/large") as reply:  # who reads slowly but reads is left alone
            came = 0
            for piece in reply.iter_raw(2**17):
                came += len(piece)
                time.sleep(0.01)
            assert came == 2**24


def test_a_steady_upload_is_none_of_them() -> None:
    with serving() as url, upload(url, length=40_000) as raw:
        for _ in range(20):  # twice the deadlines, at twice the least rate
            raw.sendall(b"x" * 2000)
            time.sleep(0.1)
        assert b"200" in raw.recv(4096)


def test_nobody_is_blamed_while_the_process_is_held_up() -> None:
    crowd = Crowd(Limits())
    crowd._looked -= 3600
    crowd.sweep()
    assert crowd.now <= 2 * SWEEP_S


def test_replies_that_break_off_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """The client sees that its reply is torn, the log has one traceback, however many there are."""
    with serving() as url:
        for _ in range(5):
            with pytest.raises(httpx.RemoteProtocolError), httpx.stream("GET", f"{url}/page/events/a?broken") as reply:
                reply.read()
    assert [record.name for record in caplog.records if "lifespan" not in record.getMessage()][:3] == [
        "maemi.door",
        "maemi.guard",
    ]


# --------------------------------------------------------------------------------------- crowds


def test_a_crowd_of_slow_peers_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    """At one address with them, whole requests and an upload that gets on are served; the slowest go, the oldest first.

    The deadlines are too long to help.
    """
    slow = {"header_s": 60.0, "window_s": 60.0}
    with serving(total=40, per_client=20, **slow) as url, ExitStack() as stack, upload(url, length=80_000) as honest:
        crowd = []
        for number in range(60):
            raw = upload(url) if number % 2 else ask(url, "GET /healthz")
            crowd.append(stack.enter_context(raw))
            if number % 4 == 0:
                honest.sendall(b"x" * 5000)
                assert httpx.get(f"{url}/healthz", timeout=5).status_code == 200
            time.sleep(0.04)
        honest.sendall(b"x" * 5000)
        assert b"200" in honest.recv(4096)
        still = [is_open(raw) for raw in crowd]
        assert sum(still) <= 20
        assert not any(still[:30])
    assert len(caplog.records) < 10
    assert "Traceback" not in caplog.text


def test_event_streams_are_bounded() -> None:
    with serving(streams=4, streams_per_client=2) as url, ExitStack() as stack:

        def opened(name: str, source: str = "127.0.0.1") -> tuple[int, httpx.Response]:
            transport = httpx.HTTPTransport(local_address=source)
            client = stack.enter_context(httpx.Client(transport=transport))
            reply = stack.enter_context(client.stream("GET", f"{url}/page/events/{name}"))
            return reply.status_code, reply

        kept = [opened(name) for name in "abc"]
        assert [status for status, _ in kept] == [200, 200, 503]
        assert [opened(name, "127.0.0.2")[0] for name in "abc"] == [200, 200, 503]
        assert opened("d", "127.0.0.3")[0] == 503
        assert httpx.get(f"{url}/healthz").status_code == 200
        kept[0][1].close()
        deadline = time.monotonic() + 10
        while (status := opened("e")[0]) == 503 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert status == 200


def test_where_nobody_is_slow_the_next_is_refused_but_healthz_answers() -> None:
    with serving(total=6, per_client=6, reserve=4, streams=10, streams_per_client=10) as url, ExitStack() as stack:
        for name in range(6):
            stack.enter_context(httpx.stream("GET", f"{url}/page/events/{name}"))
        refused = httpx.get(f"{url}/large")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.headers["connection"] == "close"
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_behind_a_proxy_a_client_is_its_forwarded_address() -> None:
    """And without one that is named, whatever a stranger says of its address is ignored."""

    def statuses(url: str, *clients: str) -> list[int]:
        with ExitStack() as stack:
            return [
                stack.enter_context(
                    httpx.stream("GET", f"{url}/page/events/a", headers={"x-forwarded-for": f"9.9.9.9, {client}"})
                ).status_code
                for client in clients
            ]

    limits = {"streams": 10, "streams_per_client": 1}
    with serving(proxies=("127.0.0.0/8",), **limits) as url:
        assert statuses(url, "10.0.0.1", "10.0.0.2", "10.0.0.1", "2001:db8::1", "2001:db8::2") == [
            200,
            200,
            503,
            200,
            503,
        ]
    with serving(**limits) as url:
        assert statuses(url, "10.0.0.1", "10.0.0.2") == [200, 503]


def test_clients_behind_a_proxy_share_no_limit_of_connections() -> None:
    with serving(proxies=("127.0.0.1/32",), total=20, per_client=2, streams=20, streams_per_client=20) as url:

        def status(stack: ExitStack, client: str) -> int:
            headers = {"x-forwarded-for": client}
            return stack.enter_context(httpx.stream("GET", f"{url}/page/events/a", headers=headers)).status_code

        with ExitStack() as stack:
            assert [status(stack, f"10.0.0.{n}") for n in (1, 2, 3, 1, 1, 4)] == [200, 200, 200, 200, 503, 200]


def test_a_network_of_one_subscriber_is_one_client() -> None:
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:2") != client_of("2001:db8:0:1::1")
    assert client_of("::ffff:10.0.0.1") == client_of("10.0.0.1") == "10.0.0.1"
    assert client_of("unix") == "unix"


STARVED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
sys.path[:0] = [{root!r}, {tests!r}]
from starlette.applications import Starlette
from test_connections import Limits, Route, healthz
from serve.http.guard import Guard
from serve.http.server import bind, make_server
listener = bind("127.0.0.1", 0)
ready = lambda: print(listener.getsockname()[1], flush=True)
app = Guard(Starlette(routes=[Route("/healthz", healthz)]))
make_server(app, limits=Limits(header_s=3.0), ready=ready).run(sockets=[listener])
"""


def test_running_out_of_files_is_one_line() -> None:
    """asyncio tries once for every place in the backlog, reports each, and goes on: 275 000 lines in 50 s."""
    script = STARVED.format(root=str(Path(__file__).parents[1]), tests=str(Path(__file__).parent))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        with ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(connect(url))
            assert httpx.get(f"{url}/healthz", timeout=20).status_code == 200  # once the silent ones have been closed
    finally:
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert "limit of open files" in said
    assert len(said.splitlines()) < 10


# --------------------------------------------------------------------------------------- limits and log


def test_limits_fit_the_files() -> None:
    """A body on its way may need a second file, and what is accepted in one go comes on top."""
    for files in (256, 1024, 4096, 10**6):
        limits = Limits.for_files(files, spare=128, backlog=64)
        assert 2 * limits.total + 2 * 64 + 128 <= max(files, 400)
        assert limits.streams_per_client < limits.streams < limits.per_client < limits.total
    assert Limits.for_files(1024, spare=128, backlog=64).per_client > 100
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 400


def test_the_log_tells_a_kind_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    tally = Tally(logging.getLogger("maemi.test"), clock=lambda: now[0])
    for number in range(1000):
        tally("slow")
        tally(f"login of {number}")
    assert len(caplog.records) < 50
    caplog.clear()
    now[0] = 61.0
    tally.flush()
    assert [record.message for record in caplog.records] == ["slow (999 more within a minute)", *caplog.messages[1:]]
    assert len(caplog.records) == 2
    tally("slow")
    assert caplog.messages[-1] == "slow"


def _held(url: str) -> int:
    """Connections that the server in this process holds."""
    import psutil

    port = int(url.rpartition(":")[2])
    return sum(c.laddr.port == port and bool(c.raddr) for c in psutil.Process().net_connections("tcp"))

"""A real OpenAI-compatible HTTP server on loopback that answers, or misbehaves, as it is told per request."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

Mode = Callable[["Handler"], None]
USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}


def completion(content: str | None, *, finish: str = "stop", **changes: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": content, **changes.pop("message", {})}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m-2026-01-01", "choices": [choice]} | {
        "usage": USAGE,
        **changes,
    }


def answers_to(prompt: str, *, text: str = "The structures are shown.") -> str:
    """A well-formed reply to every question of a prompt."""
    ids = re.findall(r"^- (\w+): ", prompt, re.MULTILINE)
    return json.dumps({"answers": [{"id": name, "answers": [text]} for name in ids]})


class Handler(BaseHTTPRequestHandler):
    """Keeps what was sent; `mode` of the server decides what comes back."""

    protocol_version = "HTTP/1.1"
    server: TeacherServer
    request_body: dict[str, Any]

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        self.request_body = json.loads(raw)
        with self.server.lock:
            # A connection serves many requests with one handler: keep this request as it is now.
            self.server.seen.append(copy.copy(self))
            number = len(self.server.seen)
        self.server.mode(number)(self)

    def do_GET(self) -> None:
        self.server.strays.append(self.path)
        self.send_error(404)

    @property
    def prompt(self) -> str:
        content = self.request_body["messages"][0]["content"]
        return str(content if isinstance(content, str) else content[0]["text"])

    @property
    def pictures(self) -> list[bytes]:
        content = self.request_body["messages"][0]["content"]
        parts = [] if isinstance(content, str) else content[1:]
        return [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in parts]

    def reply(
        self, body: bytes | dict[str, Any], *, status: int = 200, kind: str = "application/json", **headers: str
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class TeacherServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    handler: type[Handler] = Handler

    def __init__(self, mode: Callable[[int], Mode], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), self.handler)
        self.scheme = "https" if tls else "http"
        self.socket = tls.wrap_socket(self.socket, server_side=True) if tls else self.socket
        self.handshakes = 0
        self.mode = mode
        self.seen: list[Handler] = []
        self.strays: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/v1"

    def get_request(self) -> tuple[socket.socket, Any]:
        self.handshakes += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


@contextmanager
def teacher_server(*modes: Mode, tls: ssl.SSLContext | None = None) -> Iterator[TeacherServer]:
    """A server that runs through the modes, one a request, and stays with the last."""
    with serving(TeacherServer(lambda number: modes[min(number, len(modes)) - 1], tls)) as server:
        yield server


S = TypeVar("S", bound=TeacherServer)


@contextmanager
def serving(server: S) -> Iterator[S]:
    """Run a server in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# ------------------------------------------------------------------------------------------------------------ modes


def good(handler: Handler) -> None:
    handler.reply(completion(answers_to(handler.prompt)))


def status(code: int, body: bytes = b"{}", **headers: str) -> Mode:
    return lambda handler: handler.reply(body, status=code, **headers)


def says(content: str | None, *, finish: str = "stop", **changes: Any) -> Mode:
    return lambda handler: handler.reply(completion(content, finish=finish, **changes))


def raw(body: bytes, kind: str = "application/json", **headers: str) -> Mode:
    return lambda handler: handler.reply(body, kind=kind, **headers)


def hang(handler: Handler) -> None:
    handler.connection.settimeout(10)
    with suppress(OSError):
        handler.connection.recv(1)
    handler.close_connection = True


def drip(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", "100000")
    handler.end_headers()
    with suppress(OSError):
        for _ in range(200):
            handler.wfile.write(b" ")
            time.sleep(0.05)
    handler.close_connection = True


def half(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"id": "c", "choi')
    handler.close_connection = True


def reset(handler: Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    handler.connection.close()
    handler.close_connection = True


def echo_picture(handler: Handler) -> None:
    """Answers with the hash of the picture, late and out of order."""
    digest = hashlib.sha256(handler.pictures[0]).hexdigest()
    time.sleep(int(digest[:2], 16) / 4000)
    handler.reply(completion(answers_to(handler.prompt, text=f"sha {digest}.")))

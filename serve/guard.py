"""The door of the server: who may come in, how much they may bring, which headers every reply carries.

Pure ASGI, denies by default and looks only at `scope["path"]`, never at a URL rebuilt from the Host header.
Knows nothing about chat, pages or models.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from assistant.errors import ServerError

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz"})
BODY_LIMIT = 512 * 2**20
"""Largest request body, a page upload of several files included [byte]."""
CHUNK_DEADLINE_S = 20.0
"""Longest wait for the next piece of a body [s]."""
FAILURES_PER_MINUTE = 10
FAILURES_PER_MINUTE_AND_CLIENT = 100
TRACKED = 4096
SHORTEST_PASSWORD, SHORTEST_KEY = 8, 16
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.\-]+)(:\d{1,5})?")
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; media-src 'self' blob:; "
    "worker-src 'self' blob:; frame-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
SECURITY_HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), usb=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

log = logging.getLogger("maemi.guard")


@dataclass(frozen=True)
class Credentials:
    """The lines of an `--auth` file as digests: `user:password` for people, a bare key for programs."""

    digests: tuple[tuple[str, bytes], ...]
    """(name to log, SHA-256 of the secret line)."""

    def owner(self, presented: str) -> str | None:
        """Name of the owner of a secret, compared in constant time against every line."""
        digest, owner = _digest(presented), None
        for name, expected in self.digests:
            if hmac.compare_digest(digest, expected):
                owner = name
        return owner


def read_credentials(path: Path) -> Credentials:
    """Read an `--auth` file; blank lines and `#` comments are skipped. Raises ServerError `bad_auth_file`."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError("bad_auth_file", f"{path} cannot be read ({type(error).__name__}). Check --auth.") from None
    secrets_ = [line for line in lines if line and not line.startswith("#")]
    if not secrets_:
        raise ServerError("bad_auth_file", f"{path} names nobody. Write one user:password or key per line.")
    for number, line in enumerate(secrets_, 1):
        _, colon, password = line.partition(":")
        if len(password if colon else line) < (SHORTEST_PASSWORD if colon else SHORTEST_KEY):
            raise ServerError(
                "bad_auth_file",
                f"Entry {number} of {path} is too short. Passwords need {SHORTEST_PASSWORD} characters, keys "
                f"{SHORTEST_KEY}.",
            )
    return Credentials(tuple((_name(line, number), _digest(line)) for number, line in enumerate(secrets_, 1)))


def is_loopback(host: str) -> bool:
    """Whether an address to bind to, or the name in a Host header, means this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def presented_secrets(authorization: str) -> tuple[str, list[str]]:
    """The account an Authorization header names (to throttle it) and the secrets it offers, best first."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return "", [value.strip()]
    if scheme.lower() != "basic":
        return "", []
    try:
        pair = base64.b64decode(value.strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return "", []
    user, _, password = pair.partition(":")
    return user[:64], [pair, password]


class Throttle:
    """Counts failed logins of the last minute per client and account; the table never grows past a bound."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._failures: OrderedDict[tuple[str, ...], deque[float]] = OrderedDict()

    def blocked(self, *key: str) -> bool:
        """Whether this key has used up its failures of the last minute."""
        times = self._failures.get(key)
        while times and self._clock() - times[0] > 60.0:
            times.popleft()
        return bool(times) and len(times or ()) >= self._limit

    def failed(self, *key: str) -> None:
        """Remember one failure."""
        self._failures.setdefault(key, deque(maxlen=self._limit)).append(self._clock())
        self._failures.move_to_end(key)
        while len(self._failures) > TRACKED:
            self._failures.popitem(last=False)


@dataclass(frozen=True)
class Refusal:
    """Why a request goes no further."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Guard:
    """ASGI middleware around the whole application, the mounted page included."""

    def __init__(self, app: App, *, credentials: Credentials | None = None, body_limit: int = BODY_LIMIT) -> None:
        self._app = app
        self._credentials = credentials
        self._body_limit = body_limit
        self._accounts = Throttle(FAILURES_PER_MINUTE)
        self._clients = Throttle(FAILURES_PER_MINUTE_AND_CLIENT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(receive, send, self._body_limit)
        refusal = self._refusal(scope)
        if refusal:
            await exchange.refuse(refusal)
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:  # the one boundary: whatever went wrong inside, the client gets an id and nothing else
            if exchange.refused:
                return
            number = secrets.token_hex(4)
            log.exception("request failed, id %s", number)
            await exchange.refuse(Refusal(500, "internal", f"The request failed (id {number}). Look it up in the log."))

    def _refusal(self, scope: Scope) -> Refusal | None:
        """The first reason to refuse, or None. Sets `scope["state"]["user"]`."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"")
        if not scope["path"].startswith("/") or not HOST.fullmatch(host) or _repeated(scope["headers"], b"host"):
            return Refusal(400, "bad_request", "The request line or its Host header is malformed.")
        if self._credentials is None and not is_loopback(_hostname(host)):
            return Refusal(400, "bad_host", "Without logins this server answers only to localhost.")
        if b"origin" in headers and not _same_origin(headers[b"origin"], host):
            return Refusal(403, "foreign_origin", "Requests from other web sites are refused.")
        if _declared_length(headers) > self._body_limit:
            return Refusal(413, "too_large", f"The body is larger than {self._body_limit // 2**20} MiB.")
        scope.setdefault("state", {})["user"] = "local"
        if self._credentials is None or scope["path"] in OPEN_PATHS:
            return None
        return self._login(scope, headers.get(b"authorization", b"").decode("latin-1"), self._credentials)

    def _login(self, scope: Scope, authorization: str, credentials: Credentials) -> Refusal | None:
        client = (scope.get("client") or ("?", 0))[0]
        account, offered = presented_secrets(authorization)
        if not offered:
            return _unauthorized(scope["path"])
        if self._clients.blocked(client) or (account and self._accounts.blocked(client, account)):
            return Refusal(429, "too_many_logins", "Too many failed logins. Wait a minute.", ((b"retry-after", b"60"),))
        owner = next(filter(None, map(credentials.owner, offered)), None)
        if owner is None:
            self._clients.failed(client)
            if account:  # a key names no account: many programs behind one proxy must not lock one another out
                self._accounts.failed(client, account)
            return _unauthorized(scope["path"])
        scope["state"]["user"] = owner
        return None


class _Exchange:
    """One request and its reply: counts the body, times its pieces, adds the headers."""

    def __init__(self, receive: Receive, send: Send, limit: int) -> None:
        self._receive, self._send, self._limit = receive, send, limit
        self._received = 0
        self._complete = self._started = self.refused = False

    async def receive(self) -> Event:
        """The next event; a body that is too long or too slow becomes a refusal and a disconnect."""
        if self.refused:
            return {"type": "http.disconnect"}
        if self._complete:
            return await self._receive()
        try:
            event = await asyncio.wait_for(self._receive(), CHUNK_DEADLINE_S)
        except TimeoutError:
            await self.refuse(Refusal(408, "too_slow", "The body came too slowly. Try again."))
            return {"type": "http.disconnect"}
        self._received += len(event.get("body", b""))
        self._complete = not event.get("more_body", False)
        if self._received > self._limit:
            await self.refuse(Refusal(413, "too_large", f"The body is larger than {self._limit // 2**20} MiB."))
            return {"type": "http.disconnect"}
        return event

    async def send(self, event: Event) -> None:
        """Pass an event on with the security headers; silent after a refusal."""
        if self.refused:
            return
        if event["type"] == "http.response.start":
            self._started = True
            event["headers"] = _with_security(event.get("headers", ()))
        await self._send(event)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an OpenAI-shaped error, unless the reply has already begun."""
        if not self._started:
            body = error_body(refusal.message, code=refusal.code, kind=kind_of(refusal.status))
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            start = {
                "type": "http.response.start",
                "status": refusal.status,
                "headers": [*headers, *refusal.headers],
            }
            await self.send(start)
            await self.send({"type": "http.response.body", "body": body})
        self.refused = True


def error_body(message: str, *, code: str, kind: str, param: str | None = None) -> bytes:
    """An error as the OpenAI protocol writes it."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def kind_of(status: int) -> str:
    """The OpenAI error type of a status."""
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    return kinds.get(status, "invalid_request_error" if status < 500 else "server_error")


def _unauthorized(path: str) -> Refusal:
    scheme = b'Bearer realm="maemi"' if path.startswith("/v1") else b'Basic realm="maemi", charset="UTF-8"'
    message = "Log in: send a key as 'Authorization: Bearer ...', or user and password as Basic."
    return Refusal(401, "unauthorized", message, ((b"www-authenticate", scheme),))


def _with_security(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    ours = {name for name, _ in SECURITY_HEADERS} | {b"server", b"access-control-allow-origin"}
    return [(name, value) for name, value in headers if name.lower() not in ours] + list(SECURITY_HEADERS)


def _declared_length(headers: dict[bytes, bytes]) -> int:
    text = headers.get(b"content-length", b"0")
    return int(text) if text.isdigit() and len(text) < 20 else 0


def _same_origin(origin: bytes, host: bytes) -> bool:
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower() == host.decode("latin-1").lower()
    except ValueError:
        return False


def _hostname(host: bytes) -> str:
    match = HOST.fullmatch(host)
    return match[1].decode("latin-1") if match else ""


def _repeated(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bool:
    return sum(key == name for key, _ in headers) > 1


def _name(line: str, number: int) -> str:
    user, colon, _ = line.partition(":")
    return user if colon else f"key-{number}"


def _digest(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()

"""The door of the server: who may come in, how much they may bring, which headers every reply carries.

Pure ASGI, denies by default and looks only at `scope["path"]`, never at a URL rebuilt from the Host header. How slow a
peer may be is a matter of its connection. Knows nothing about chat, pages or models.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from assistant.errors import ServerError
from serve.http.connections import Connection, client_of
from serve.http.tally import Tally
from serve.http.throttle import Throttle, account_of

if TYPE_CHECKING:
    from serve.desk.monitoring import Metrics

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz"})
_BODY_LIMIT = 512 * 2**20
"""Largest request body, a page upload of several files included [byte]."""
DEVICE_COOKIE = "maemi-device"
"""Tells a browser that has logged in from others at its address."""
COOKIE_LIFE_S = 30 * 24 * 3600
SHORTEST_PASSWORD, SHORTEST_KEY = 8, 16
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.\-]+)(:\d{1,5})?")
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; media-src 'self' blob:; "
    "worker-src 'self' blob:; frame-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
FRAMED = "/viewer"
"""A page that our own page may show in a frame. All its scripts are files, so that none that slips in runs."""
FRAMED_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
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
FRAMED_HEADERS = (
    (b"content-security-policy", FRAMED_POLICY.encode()),
    (b"x-frame-options", b"SAMEORIGIN"),
    *(header for header in SECURITY_HEADERS if header[0] not in (b"content-security-policy", b"x-frame-options")),
)

_log = logging.getLogger("maemi.guard")


@dataclass(frozen=True)
class Credentials:
    """The lines of an `--auth` file as digests: `user:password` for people, a bare key for programs."""

    digests: tuple[tuple[str, bytes], ...]
    """(name to log, SHA-256 of the secret line)."""
    accounts: frozenset[str] = frozenset()
    """What guesses at each of them are counted under."""

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
    names = (line.partition(":")[0] if ":" in line else f"key-{number}" for number, line in enumerate(secrets_, 1))
    digests = tuple((name, _digest(line)) for name, line in zip(names, secrets_, strict=True))
    return Credentials(digests, frozenset(map(account_of, secrets_)))


def is_loopback(host: str) -> bool:
    """Whether an address to bind to, or the name in a Host header, means this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def presented_secrets(authorization: str) -> list[str]:
    """The secrets an Authorization header offers, best first."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return [value.strip()]
    if scheme.lower() != "basic":
        return []
    try:
        pair = base64.b64decode(value.strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return []
    return [pair, pair.partition(":")[2]]


@dataclass(frozen=True)
class Refusal:
    """Why a request goes no further."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Guard:
    """ASGI middleware around the whole application, the mounted page included."""

    def __init__(
        self,
        app: App,
        *,
        credentials: Credentials | None = None,
        body_limit: int = _BODY_LIMIT,
        metrics: Metrics | None = None,
    ) -> None:
        self._app = app
        self._credentials = credentials
        self._body_limit = body_limit
        self._metrics = metrics
        self._throttle = Throttle(credentials.accounts if credentials else ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        started = time.monotonic()
        visit = _Visit(scope)
        exchange = _Exchange(visit, receive, send, self._body_limit)
        # The page's routes know no HEAD: they answer it as a GET, whose body goes no further.
        inner = {**scope, "method": "GET" if visit.head else scope["method"]}
        try:
            refusal = self._refusal(inner, visit)
            if refusal:
                await exchange.refuse(refusal)
            else:
                await self._app(inner, exchange.receive, exchange.send)
        except Exception as error:  # the one boundary: whatever goes wrong inside, the client gets an id, nothing else
            # In the log a client can cause a line a minute, or one with a number.
            name = type(error).__name__
            if exchange.over or exchange.left:
                visit.tally(f"requests that ended in {name} after their client had left")
            elif exchange.started:
                if visit.tally(f"replies broken off by {name}"):
                    _log.exception("the first of them")
                visit.break_off()
            else:
                number = secrets.token_hex(4)
                _log.exception("request failed, id %s", number)
                message = f"The request failed (id {number}). Look it up in the log."
                await exchange.refuse(Refusal(500, "internal", message))
        finally:
            exchange.close()
            if self._metrics:
                self._metrics.request(inner, exchange.status, time.monotonic() - started)

    def _refusal(self, scope: Scope, visit: _Visit) -> Refusal | None:
        """The first reason to refuse, or None. Sets `scope["state"]["user"]`."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"")
        named, hosts = HOST.fullmatch(host), sum(key == b"host" for key, _ in scope["headers"])
        if not scope["path"].startswith("/") or not named or hosts > 1:
            return Refusal(400, "bad_request", "The request line or its Host header is malformed.")
        if not visit.has_room() and scope["path"] not in OPEN_PATHS:
            visit.tally("requests refused: too many connections are open")
            retry = ((b"retry-after", b"5"), (b"connection", b"close"))
            return Refusal(503, "crowded", "Too many connections are open. Try again in a few seconds.", retry)
        if self._credentials is None and not is_loopback(named[1].decode("latin-1")):
            return Refusal(400, "bad_host", "Without logins this server answers only to localhost.")
        if b"origin" in headers and not _same_origin(headers[b"origin"], host):
            return Refusal(403, "foreign_origin", "Requests from other web sites are refused.")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and len(length) < 20 and int(length) > self._body_limit:
            return Refusal(413, "too_large", f"The body is larger than {self._body_limit // 2**20} MiB.")
        visit.state["user"] = "local"
        if self._credentials is None or scope["path"] in OPEN_PATHS:
            return None
        return self._login(scope["path"], visit, headers.get(b"authorization", b"").decode("latin-1"))

    def _login(self, path: str, visit: _Visit, authorization: str) -> Refusal | None:
        assert self._credentials is not None
        offered = presented_secrets(authorization)
        if not offered:
            return _unauthorized(path)
        checked = [secret for secret in offered if self._throttle.admits(account_of(secret), visit.places)]
        right = next((secret for secret in checked if self._credentials.owner(secret)), None)
        if right is None:
            user, colon, _ = offered[0].partition(":")
            visit.tally(f"failed login {f'of {user[:64]!a}' if colon else 'with a key'} from {visit.address!a}")
            for secret in checked:
                self._throttle.failed(account_of(secret), visit.places)
            slow_down = offered[0] not in checked
            if not colon:  # however often wrong keys are tried from here, a right one still gets in
                slow_down |= not self._throttle.admits(f"address {visit.client}", visit.places)
                self._throttle.failed(f"address {visit.client}", visit.places)
            if not slow_down:
                return _unauthorized(path)
            return Refusal(429, "too_many_logins", "Too many failed logins. Wait a minute.", ((b"retry-after", b"60"),))
        visit.state["user"] = self._credentials.owner(right)
        if not path.startswith("/v1") and authorization[:6].lower() == "basic ":
            visit.give_cookie()
        self._throttle.succeeded(account_of(right), visit.places)
        return None


class _Visit:
    """Where a request comes from, and the connection it came on."""

    def __init__(self, scope: Scope) -> None:
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self.path: str = scope["path"]
        self.head: bool = scope["method"] == "HEAD"
        self.address = str((scope.get("client") or ("?", 0))[0])[:64]
        self.client = client_of(self.address)
        self.cookie: str | None = None
        """A cookie to set with the reply."""
        self._connection: Connection | None = self.state.get("connection")
        self._device = _device(dict(scope["headers"]).get(b"cookie", b""))
        self._secure = scope.get("scheme") == "https"

    @property
    def places(self) -> tuple[str, ...]:
        """What a login is known by: its client, then its browser."""
        return (self.client, f"device {self._device}") if self._device else (self.client,)

    def give_cookie(self) -> None:
        """Make this browser one that can be known again."""
        if not self._device:
            self._device = secrets.token_urlsafe(32)
            flags = f"Path=/; Max-Age={COOKIE_LIFE_S}; HttpOnly; SameSite=Lax{'; Secure' * self._secure}"
            self.cookie = f"{DEVICE_COOKIE}={self._device}; {flags}"

    def has_room(self) -> bool:
        """Whether there is a place for this client's request; without a connection of ours there always is."""
        return self._connection is None or self._connection.admits(self.address)

    def tally(self, kind: str) -> bool:
        """Have an event counted; whether it is the first of its kind."""
        return (self._connection.crowd.tally if self._connection else _TALLY)(kind)

    def break_off(self) -> None:
        """End a reply that cannot be finished: a connection that closes in the middle is the only way to say so."""
        if self._connection is not None:
            self._connection.break_off()

    def open_stream(self) -> Callable[[], None] | None:
        """Take a place for an event stream: what gives it back, or None if all are taken."""
        if self._connection is None:
            return lambda: None
        crowd = self._connection.crowd
        kind, who = "/".join(self.path.split("/")[:3]), f"{self.state.get('user')} {self.client}"
        return (lambda: crowd.close_stream(kind, who)) if crowd.open_stream(kind, who) else None


class _Exchange:
    """One request and its reply: counts the body, adds the headers, bounds event streams."""

    def __init__(self, visit: _Visit, receive: Receive, send: Send, limit: int) -> None:
        self._visit, self._receive, self._send, self._limit = visit, receive, send, limit
        self._received = 0
        self.started = False
        """Whether the client has been told a status."""
        self.close: Callable[[], None] = lambda: None
        """Gives back what the reply holds."""
        self.over = self.left = False
        """Whether nothing more is to be said; whether the client has gone."""
        self.status = 0

    async def receive(self) -> Event:
        """The next event; a body that is too long becomes a refusal and a disconnect."""
        if self.over:
            return {"type": "http.disconnect"}
        event = await self._receive()
        if event["type"] != "http.request":
            self.left = True
            return event
        self._received += len(event.get("body", b""))
        if self._received > self._limit:
            await self.refuse(Refusal(413, "too_large", f"The body is larger than {self._limit // 2**20} MiB."))
            return {"type": "http.disconnect"}
        return event

    async def send(self, event: Event) -> None:
        """Pass an event on with the security headers; silent once the reply is over."""
        if self.over:
            return
        if event["type"] != "http.response.start":
            await self._send(event)
            return
        headers = event.get("headers", ())
        if any(n.lower() == b"content-type" and v.startswith(b"text/event-stream") for n, v in headers):
            release = self._visit.open_stream()
            if release is None:
                retry = ((b"retry-after", b"60"), (b"connection", b"close"))
                await self.refuse(Refusal(503, "too_many_streams", "Too many event streams are open.", retry))
                return
            self.close = release
        await self._start(event)
        if self._visit.head:
            await self._send({"type": "http.response.body", "body": b""})
            self.over = True

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an OpenAI-shaped error, unless the reply has already begun."""
        if not self.started and not self.over:
            body = error_body(refusal.message, code=refusal.code, kind=error_kind(refusal.status))
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await self._start(
                {
                    "type": "http.response.start",
                    "status": refusal.status,
                    "headers": [*headers, *refusal.headers],
                }
            )
            await self._send({"type": "http.response.body", "body": body})
        self.over = True

    async def _start(self, event: Event) -> None:
        self.started, self.status = True, event["status"]
        ours = {name for name, _ in SECURITY_HEADERS} | {b"server", b"access-control-allow-origin"}
        kept = [(name, value) for name, value in event.get("headers", ()) if name.lower() not in ours]
        framed = self._visit.path == FRAMED
        event["headers"] = [*kept, *(FRAMED_HEADERS if framed else SECURITY_HEADERS)]
        if self._visit.cookie:
            event["headers"].append((b"set-cookie", self._visit.cookie.encode()))
        await self._send(event)


_TALLY = Tally(_log)


def error_body(message: str, *, code: str, kind: str, param: str | None = None) -> bytes:
    """An error as the OpenAI protocol writes it."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def error_kind(status: int) -> str:
    """The OpenAI error type of a status."""
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    return kinds.get(status, "invalid_request_error" if status < 500 else "server_error")


def _unauthorized(path: str) -> Refusal:
    scheme = b'Bearer realm="maemi"' if path.startswith(("/v1", "/mcp")) else b'Basic realm="maemi", charset="UTF-8"'
    message = "Log in: send a key as 'Authorization: Bearer ...', or user and password as Basic."
    return Refusal(401, "unauthorized", message, ((b"www-authenticate", scheme),))


def _same_origin(origin: bytes, host: bytes) -> bool:
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower() == host.decode("latin-1").lower()
    except ValueError:
        return False


def _device(cookies: bytes) -> str:
    try:
        found = SimpleCookie(cookies.decode("latin-1")).get(DEVICE_COOKIE)
    except CookieError:
        return ""
    return found.value[:64] if found else ""


def _digest(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()

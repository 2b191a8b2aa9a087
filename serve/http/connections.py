"""Open connections: how many there may be, how slow a peer may be, and who goes first when they run short.

A peer is judged by the progress of its request, not by its address alone: behind a proxy, or on loopback, honest and
hostile ones share one. What is slow is closed at a deadline; what is slow *and* in the way is closed sooner, the oldest
first, so that a crowd of dripping peers makes room for those who come with a whole request. Time is what this process
had to look: while it is held up nobody is blamed for the silence. Knows nothing about what is asked or answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.http.tally import Tally

SWEEP_S = 0.5
"""Time between two looks at all connections [s]."""
LATE = (
    b'{"error": {"message": "The body came too slowly. Try again.", "type": "invalid_request_error", "param": null, '
    b'"code": "too_slow"}}'
)
LATE_HEADERS = [("content-type", "application/json"), ("content-length", str(len(LATE))), ("connection", "close")]

_log = logging.getLogger("maemi.door")


@dataclass(frozen=True)
class Limits:
    """What one peer, and all of them together, may take."""

    total: int = 4096
    """Open connections in all."""
    per_client: int = 2048
    """Open connections of one address; a proxy that is named counts for none."""
    reserve: int = 32
    """Connections beyond `total` that are still answered: /healthz as ever, anything else with 503."""
    streams: int = 1024
    """Event streams at one time, of one kind."""
    streams_per_client: int = 512
    header_s: float = 10.0
    """Longest time to a complete request header, from connecting or from the end of the request before [s]."""
    body_s: float = 900.0
    """Longest time for a whole body: 512 MiB at 600 KiB/s [s]."""
    window_s: float = 10.0
    """Time within which a body, or a reply that is not read, must get on [s]."""
    body_rate: float = 64 * 2**10
    """Least rate of a body within every window [byte/s]."""
    reply_rate: float = 4 * 2**10
    """Least rate at which a peer takes a reply within every window [byte/s]."""
    young_s: float = 1.0
    """Age up to which a request that is not whole is nobody's fault [s]."""

    @classmethod
    def for_files(cls, files: int, *, spare: int, backlog: int) -> Limits:
        """What a limit of open files leaves: every upload needs a second file, and a burst is accepted unseen."""
        total = max(32, min(cls.total, (files - spare - 3 * backlog) // 2))
        return cls(total=total, per_client=total // 2, streams=total // 4, streams_per_client=total // 8)


class Crowd:
    """All open connections of a server."""

    def __init__(self, limits: Limits, *, shared: Callable[[str], bool] = lambda address: False) -> None:
        self.limits, self.tally = limits, Tally(_log)
        self.now = 0.0
        """Time as this process had it to look; it stands still while the process is held up [s]."""
        self._looked = time.monotonic()
        self._shared = shared  # whether many clients stand behind an address: a proxy's
        self._open: dict[Connection, str] = {}
        """Connections in order of arrival -> whose they are."""
        self._of: dict[str, dict[Connection, None]] = {}
        self._streams: dict[tuple[str, ...], int] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def streams(self) -> int:
        """Event streams that are open."""
        return sum(count for key, count in self._streams.items() if len(key) == 1)

    def place(self, connection: Connection, address: str) -> bool:
        """Count a connection as a client's and make room for it; whether there is room."""
        self.remove(connection)
        client, shared = client_of(address), self._shared(address)
        self._open[connection] = client
        mine = self._of.setdefault(client, {})
        mine[connection] = None
        if not shared:
            self._make_room(mine, self.limits.per_client)
        self._make_room(self._open, self.limits.total)
        if len(self._open) > self.limits.total + self.limits.reserve:
            connection.cut("no place")
        return len(self._open) <= self.limits.total and (shared or len(mine) <= self.limits.per_client)

    def owner(self, connection: Connection) -> str | None:
        """Whose a connection is."""
        return self._open.get(connection)

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""
        client = self._open.pop(connection, None)
        if client is not None:
            mine = self._of[client]
            del mine[connection]
            if not mine:
                del self._of[client]

    def sweep(self, seconds: float | None = None) -> None:
        """Close what is overdue; called every `SWEEP_S`, or by tests with the time that has passed [s]."""
        looked, self._looked = self._looked, time.monotonic()
        self.now += min(self._looked - looked, 2 * SWEEP_S) if seconds is None else seconds
        for connection in list(self._open):
            reason = connection.overdue(self.now)
            if reason:
                connection.cut(reason)
        self.tally.flush()

    def open_stream(self, kind: str, client: str) -> bool:
        """Take a place for an event stream, if there is one; `close_stream` gives it back."""
        limits = self.limits
        of_client, of_kind = self._streams.get((kind, client), 0), self._streams.get((kind,), 0)
        if of_client >= limits.streams_per_client or of_kind >= limits.streams or self.streams >= 2 * limits.streams:
            self.tally("event streams refused: too many are open")
            return False
        self._streams |= {(kind, client): of_client + 1, (kind,): of_kind + 1}
        return True

    def close_stream(self, kind: str, client: str) -> None:
        """Give the place of an event stream back."""
        for key in ((kind, client), (kind,)):
            self._streams[key] -= 1
            if not self._streams[key]:
                del self._streams[key]

    def _make_room(self, group: dict[Connection, Any], limit: int) -> None:
        """Close some of a group that is too large: who is slow, then who is idle, the oldest first."""
        if len(group) <= limit:
            return
        slow = sorted((c for c in group if c.slow(self.now)), key=lambda c: (c.idle, c.since))
        for connection in slow[: max(len(group) - limit, limit // 16)]:
            connection.cut("in the way of others")


def client_of(address: str) -> str:
    """The one client an address belongs to: a whole /64 of IPv6 is one's own."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or ip_network((parsed, 64), strict=False))
    return str(parsed)


class Connection(H11Protocol):
    """HTTP/1.1 that knows how its peer gets on."""

    def __init__(self, crowd: Crowd, **given: Any) -> None:
        super().__init__(**given)
        self.app_state = {**given["app_state"], "connection": self}  # every request's `state` tells its connection
        self.crowd = crowd
        self.since = crowd.now
        """Begin of the present phase [s]."""
        self._phase: tuple[str, Any] = ("header", None)
        """What the peer owes, and the request it belongs to."""
        self._received = self._begun = 0
        """Bytes in all, and those before the present phase."""
        self._body: tuple[float, int] = (self.since, 0)
        """When a body last got on, and how far [s, byte]."""
        self._reply: tuple[float, int] | None = None
        """When a reply that waits to be read last got on, and how much was left [s, byte]."""
        self._surplus = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._surplus = not self.crowd.place(self, self.client[0] if self.client else "?")

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.remove(self)
        super().connection_lost(exc)

    def admits(self, address: str) -> bool:
        """Whether a request from this address may be served; behind a proxy every request has its own."""
        if self.transport.is_closing():  # it is counted no more, and nobody hears the reply
            return True
        if self._surplus or self.crowd.owner(self) != client_of(address):
            self._surplus = not self.crowd.place(self, address)
        return not self._surplus

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)

    def resume_writing(self) -> None:
        self._reply = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self.crowd.tally("malformed requests")
        super().send_400_response(msg)

    @property
    def idle(self) -> bool:
        """Whether the peer has all it asked for and has not asked again."""
        return self._phase[0] == "idle"

    def overdue(self, now: float) -> str | None:
        """Why this connection must go, if it must."""
        limits = self.crowd.limits
        self._look(now)
        if self._reply and now - self._reply[0] > limits.window_s:
            return "its reply is not read"
        phase, age = self._phase[0], now - self.since
        if phase in ("header", "idle") and age > limits.header_s:
            return "silent" if phase == "idle" else "no whole request header came"
        if phase != "body":
            return None
        if self.cycle is not None and self.cycle.response_complete and age > limits.window_s:
            return "a body came after its reply"
        late = now - self._body[0] > limits.window_s or age > limits.body_s
        return "its body came too slowly" if late else None

    def slow(self, now: float) -> bool:
        """Whether the peer is what is waited for: its request is not whole and comes slowly, or it reads too slowly."""
        self._look(now)
        age = now - self.since
        if self._phase[0] in ("header", "idle"):
            return age > self.crowd.limits.young_s
        if self._phase[0] == "body" and age > self.crowd.limits.young_s and not self.flow.read_paused:
            return self._received - self._begun < self.crowd.limits.body_rate * age
        return self._reply is not None and now - self._reply[0] > self.crowd.limits.young_s

    def cut(self, reason: str) -> None:
        """Close at once; who has not been answered is told that the body came too slowly."""
        if reason != "silent":
            self.crowd.tally(f"connections closed: {reason}")
        self.crowd.remove(self)
        if self._phase[0] == "body" and self.conn.our_state is h11.SEND_RESPONSE:
            start = h11.Response(status_code=408, headers=LATE_HEADERS)
            for event in (start, h11.Data(data=LATE), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.abort()

    def break_off(self) -> None:
        """Close once what was said has gone out."""
        self.cycle.disconnected = True
        self.transport.close()

    def _look(self, now: float) -> None:
        """Note how far the peer has come."""
        # What the peer owes: a `header`, a `body`, the next request (`idle`), or nothing (`answer`).
        if self.conn.their_state is h11.IDLE:
            owed = "header" if self.cycle is None or self.conn.trailing_data[0] else "idle"
        else:
            owed = "body" if self.conn.their_state is h11.SEND_BODY else "answer"
        phase = (owed, self.cycle)
        if phase != self._phase:
            self._phase, self.since, self._begun = phase, now, self._received
            self._body = (now, self._received)
        limits = self.crowd.limits
        got_on = self._received - self._body[1] >= limits.body_rate * limits.window_s
        if got_on or self.flow.read_paused:  # while we do not read, nobody can get on
            self._body = (now, self._received)
        left = self.transport.get_write_buffer_size()
        if not left:
            self._reply = None
        elif self._reply is None or self._reply[1] - left >= limits.reply_rate * limits.window_s:
            self._reply = (now, left)

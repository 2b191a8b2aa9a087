"""Runs the server application: where it may bind, how long a silent client may hold a connection, how it stops.

Knows nothing about what the application does.
"""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from assistant.errors import ServerError
from serve.guard import App, Credentials, is_loopback, read_credentials

REQUEST_DEADLINE_S = 10.0
"""Longest time from connecting to a complete request header [s]."""
SPARE_FILES = 128
"""File descriptors kept free for models, uploads and the log."""
GRACE_S = 5
"""Time that running requests have to finish when the server stops [s]."""


def admit(host: str, auth: Path | None) -> Credentials | None:
    """The credentials to serve with. Raises ServerError `auth_needed` for an open door to the network."""
    if auth is None and not is_loopback(host):
        raise ServerError(
            "auth_needed", f"Host {host} can be reached from other machines. Give --auth FILE, or bind to 127.0.0.1."
        )
    return read_credentials(auth) if auth else None


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes connections which never finish a request, the oldest first when files run short."""

    unfinished: dict[PatientProtocol, None] = {}  # noqa: RUF012  # one table for all connections, in order of arrival
    limit = 512

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(REQUEST_DEADLINE_S, self._give_up)
        self.unfinished[self] = None
        while len(self.unfinished) > self.limit:
            next(iter(self.unfinished))._give_up()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and self.unfinished.pop(self, self) is None:
            self._deadline.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        self.unfinished.pop(self, None)
        super().connection_lost(exc)

    def _give_up(self) -> None:
        self._deadline.cancel()
        self.unfinished.pop(self, None)
        self.transport.abort()


def make_server(app: App, *, host: str, port: int, log_level: str = "warning") -> uvicorn.Server:
    """A server that is ready to run."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    PatientProtocol.limit = max(32, min(4096, files // 2 - SPARE_FILES))
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=PatientProtocol,
            ws="none",
            loop="asyncio",
            log_level=log_level,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=GRACE_S,
            limit_concurrency=max(64, files - SPARE_FILES),
        )
    )


def run_server(app: App, *, host: str, port: int) -> None:
    """Serve until told to stop. Raises ServerError `port_taken`."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = error.strerror or "it cannot be bound"
        raise ServerError("port_taken", f"Port {port} on {host}: {reason}. Choose another --port.") from None
    server: Any = make_server(app, host=host, port=port)
    with listener:
        server.run(sockets=[listener])

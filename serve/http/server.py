"""Runs the server application: where it may bind, what of connections it holds, how it stops.

Knows nothing about what the application does.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import uvicorn

from assistant.errors import ServerError
from serve.http.connections import SWEEP_S, Connection, Crowd, Limits
from serve.http.guard import App, Credentials, is_loopback, read_credentials

SPARE_FILES = 128
"""File descriptors kept free for models, readers and the log."""
BACKLOG = 64
"""Connections accepted in one go, before any of them can be counted."""
KEEP_ALIVE_S = 10
GRACE_S = 5
"""Time that running requests have to finish when the server stops [s]."""
_TICKS = round(SWEEP_S / 0.1)
"""Ticks of uvicorn between two looks at the connections."""


def admit(host: str, auth: Path | None) -> Credentials | None:
    """The credentials to serve with. Raises ServerError `auth_needed` for an open door to the network."""
    if auth is None and not is_loopback(host):
        raise ServerError(
            "auth_needed", f"Host {host} can be reached from other machines. Give --auth FILE, or bind to 127.0.0.1."
        )
    return read_credentials(auth) if auth else None


def require_known_visitors(credentials: Credentials | None, proxies: Sequence[str], what: str) -> None:
    """Raise ServerError `auth_needed` where strangers could use what only people known to the site may."""
    if credentials is None and proxies:
        raise ServerError("auth_needed", f"{what} is not for strangers, whom a proxy lets in. Give --auth FILE.")


def parse_proxies(addresses: Sequence[str]) -> list[str]:
    """Addresses and networks of proxies as they are compared. Raises ServerError `bad_proxy`."""
    try:
        return [str(ip_network(address, strict=False)) for address in addresses]
    except ValueError as error:
        raise ServerError(
            "bad_proxy", f"{error}. Name a proxy by its address, or its network as in 10.0.0.0/24."
        ) from None


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address that is free. Raises ServerError `port_taken`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _taken(host, port, error) from None
    return listener


def make_server(
    app: App,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    proxies: Sequence[str] = (),
    limits: Limits | None = None,
    ready: Callable[[], None] = lambda: None,
) -> Server:
    """A server that is ready to run; `ready` is called when it answers."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = limits or Limits.for_files(files, spare=SPARE_FILES, backlog=BACKLOG)
    crowd = Crowd(limits, shared=partial(_within, [ip_network(proxy) for proxy in proxies]))
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=partial(Connection, crowd),
        ws="none",
        loop="asyncio",
        log_level="error",  # a line for every malformed request is more than a log can bear
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    return Server(config, crowd, ready)


def run_server(
    app: App, listener: socket.socket, *, proxies: Sequence[str] = (), ready: Callable[[], None] = lambda: None
) -> None:
    """Serve on a bound socket until told to stop. Raises ServerError `port_taken`."""
    host, port = listener.getsockname()[:2]
    with listener:
        try:
            make_server(app, host=host, port=port, proxies=proxies, ready=ready).run(sockets=[listener])
        except OSError as error:  # somebody else began to listen after our `bind`
            raise _taken(host, port, error) from None


@contextmanager
def signals_last() -> Iterator[None]:
    """A signal that stops the server ends this process only after everything inside has been put away."""
    caught: list[int] = []

    def unwind(number: int, _: Any) -> None:
        caught.append(number)
        if len(caught) == 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, unwind) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        if not caught:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])


class Server(uvicorn.Server):
    """uvicorn that looks after its connections and says when it answers."""

    def __init__(self, config: uvicorn.Config, crowd: Crowd, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.crowd, self._ready = crowd, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._tell)
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS == 0:
            self.crowd.sweep()
        return bool(await super().on_tick(counter))

    def _tell(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """When files have run out, asyncio reports every attempt to accept: count them instead."""
        if "accept" in context["message"]:
            self.crowd.tally("connections not accepted: the limit of open files is reached")
        else:
            loop.default_exception_handler(context)


def _within(networks: Sequence[Any], address: str) -> bool:
    try:
        return any(ip_address(address) in network for network in networks)
    except ValueError:  # a name, as of a socket on disk
        return False


def _taken(host: str, port: int, error: OSError) -> ServerError:
    reason = error.strerror or "it cannot be bound"
    return ServerError("port_taken", f"Port {port} on {host}: {reason}. Choose another --port.")

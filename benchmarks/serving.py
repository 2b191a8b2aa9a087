"""What the server bears: many clients, many requests, large bodies, and crowds of peers that never finish one.

    python benchmarks/serving.py [--parts load growth large slow] [--seconds 60] [--clients 100] [--requests 10000]
        [--peers 1100] [--per-second 80] [--files 1024] [--run RUN] [--out benchmarks/serving.json]

Every part starts `maemi serve` anew, with the bundled student unless another is named, at a limit of open files, and
talks to it over loopback from processes of their own. Meanwhile one more process, the others, asks /healthz ten times a
second, each time on a new connection, and in `slow` a question with every tenth; its times are what honest users see.

load    clients ask about one drawn micrograph, 64 tokens at most, and come back when the server says so
growth  4 clients ask the same question about the same micrograph, 8 tokens at most; memory after 1 000 and at the end
large   one body of 50 MB of each kind
slow    peers of each kind, so many new ones a second, each then sending one byte in 8 s; none is told from the others
        by its address. `sockets` tells when the server closed them; 25 s after the last came, the rest counts as open
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import platform
import resource
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

from assistant.micrograph import find_micrographs, read_micrograph
from data_gen.drawing.synth import write_synthetic

EVERY_S, DRIP_S, AFTER_S = 0.1, 8.0, 25.0
LARGE = 50 * 10**6
PARTS = ("load", "growth", "large", "slow")
BOUNDARY = "b0undary"
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="a.tif"\r\n'
    "Content-Type: image/tiff\r\n\r\nII*"
)
HEADS: dict[str, str] = {
    "header": "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    "body": "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{",
    "upload": "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n"
    f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n{FORM}",
    "heartbeat": "GET /gradio_api/heartbeat/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "events": "GET /gradio_api/queue/data?session_hash={name} HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
"""What a slow peer of each kind begins with."""


def main() -> None:
    options = parse_options()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        picture = drawn_picture(Path(folder))
    report = machine() | {"files": options.files}
    for part in options.parts:
        report[part] = {"load": load, "growth": growth, "large": large, "slow": slow}[part](options, picture, context)
        print(json.dumps({part: report[part]}, indent=1), flush=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


# --------------------------------------------------------------------------------------- the four parts


def load(options: argparse.Namespace, picture: str, context: Any) -> dict[str, Any]:
    """Codes and times of many clients, and what /healthz took meanwhile."""
    with served(options) as server, watched(context, server.url, None) as others:
        told = pool_of_clients(context, server.url, picture, options.clients, seconds=options.seconds, tokens=64)
    return {"clients": options.clients, "seconds": options.seconds, **told, "healthz": others(), **server.after()}


def growth(options: argparse.Namespace, picture: str, context: Any) -> dict[str, Any]:
    """Resident memory of the server as requests add up; its reader processes are not counted."""
    rows, done, codes = [], 0, Counter[str]()
    with served(options) as server:
        for target in sorted({min(1000, options.requests), *range(0, options.requests + 1, 1000)} - {0}):
            told = pool_of_clients(context, server.url, picture, 4, requests=target - done, tokens=8)
            done = target
            codes.update(told["codes"])
            rows.append({"requests": done, "rss_mib": round(server.process.memory_info().rss / 2**20, 1)})
            print(rows[-1], flush=True)
    ratio = round(rows[-1]["rss_mib"] / rows[0]["rss_mib"], 3)
    what = "chat completions, one 256 px PNG, always the same question, 8 tokens at most, 4 clients"
    return {"requests": what, "codes": dict(codes), "rows": rows, "last_over_first": ratio}


def large(options: argparse.Namespace, picture: str, context: Any) -> dict[str, Any]:
    """What /healthz took while one large body was taken in, of each kind."""
    message = b'{"role":"user","content":"a"},'
    url = b'{"model":"maemi","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/'
    bodies: dict[str, Callable[[], bytes]] = {
        "messages": lambda: b'{"model":"maemi","messages":[' + message * (LARGE // len(message)) + b"{}]}",
        "spaces": lambda: b'{"model":"maemi","messages":[' + b" " * LARGE + b"]}",
        "base64": lambda: url + b"png;base64," + b"A" * (LARGE // 4 * 4) + b'"}}]}]}',
        "brackets": lambda: b"[" * LARGE,
    }
    found = {}
    with served(options) as server:
        for kind, body in bodies.items():
            with watched(context, server.url, None) as others:
                reply = httpx.post(f"{server.url}/v1/chat/completions", content=body(), timeout=60)
                time.sleep(1.0)
            found[kind] = {"code": reply.status_code, "healthz": others()}
    return found | server.after()


def slow(options: argparse.Namespace, picture: str, context: Any) -> dict[str, Any]:
    """Slow peers of every kind, one kind at a time, each against a fresh server."""
    found: dict[str, Any] = {"peers": options.peers, "per_second": options.per_second}
    for kind in options.kinds:
        with served(options) as server, watched(context, server.url, picture) as others:
            queue: Any = context.Queue()
            crowd = context.Process(target=peers, args=(server.url, kind, options.peers, options.per_second, queue))
            most = 0
            crowd.start()
            while crowd.is_alive():
                most = max(most, server.process.num_fds())
                time.sleep(0.2)
            told = queue.get(timeout=10)
        found[kind] = {"sockets": told, "others": others(), "most_files": most} | server.after()
        print(kind, json.dumps(found[kind]), flush=True)
    return found


# --------------------------------------------------------------------------------------- the server


@dataclass
class Served:
    """A server that runs."""

    url: str
    process: psutil.Process
    log: list[str] = field(default_factory=list)
    """Lines it has written, the one with its address first; there once it has stopped."""

    def after(self) -> dict[str, Any]:
        """What is left to say once it has stopped."""
        return {"log_lines": len(self.log) - 1, "log": self.log[1:13]}


@contextmanager
def served(options: argparse.Namespace) -> Iterator[Served]:
    """`maemi serve` in a process of its own, at a limit of open files."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "serve.cli", "serve", "--port", str(port), "--store", f"{folder}/answers"]
        command += ["--run", str(options.run)] if options.run else []
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                stdout=sink,
                stderr=sink,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (options.files, options.files)),
            )
        try:
            url = f"http://127.0.0.1:{port}"
            while url.encode() not in log.read_bytes():
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.1)
            server = Served(url, psutil.Process(process.pid))
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        server.log += log.read_text(errors="replace").splitlines()


# --------------------------------------------------------------------------------------- the others


@contextmanager
def watched(context: Any, url: str, picture: str | None) -> Iterator[Callable[[], dict[str, Any]]]:
    """Others ask in a process of their own; afterwards the yielded function tells how they fared."""
    stop, queue = context.Event(), context.Queue()
    process = context.Process(target=ask_as_others, args=(url, picture, stop, queue))
    process.start()
    found: dict[str, Any] = {}
    queue.get(timeout=60)  # it has begun
    try:
        yield lambda: found
    finally:
        stop.set()
        found |= queue.get(timeout=90)
        process.join()


def ask_as_others(url: str, picture: str | None, stop: Event, queue: Any) -> None:
    """Ask until told to stop, each time on a new connection."""
    times: dict[str, list[float]] = {"healthz": [], "question": []}
    codes: dict[str, Counter[str]] = {"healthz": Counter(), "question": Counter()}
    queue.put("begun")
    number = 0
    while not stop.is_set():
        kind = "question" if picture and number % 10 == 9 else "healthz"
        number += 1
        started = time.perf_counter()
        try:
            with httpx.Client(base_url=url, timeout=30, verify=False) as http:
                code = str((ask(http, picture or "", 8) if kind == "question" else http.get("/healthz")).status_code)
        except httpx.TransportError as error:
            code = type(error).__name__
        taken = time.perf_counter() - started
        times[kind].append(taken)
        codes[kind][code] += 1
        time.sleep(max(0.0, EVERY_S - taken))
    queue.put({kind: {"codes": dict(codes[kind])} | spread(times[kind]) for kind in times if times[kind]})


# --------------------------------------------------------------------------------------- clients


def pool_of_clients(
    context: Any, url: str, picture: str, clients: int, *, tokens: int, seconds: float = 1e9, requests: int = 10**9
) -> dict[str, Any]:
    """So many clients at once, in a process of their own, for some time or a number of requests."""
    queue: Any = context.Queue()
    process = context.Process(target=run_clients, args=(url, picture, clients, tokens, seconds, requests, queue))
    process.start()
    told: dict[str, Any] = queue.get()
    process.join()
    return told


def run_clients(url: str, picture: str, clients: int, tokens: int, seconds: float, requests: int, queue: Any) -> None:
    codes: Counter[str] = Counter()
    times: dict[str, list[float]] = {}
    left, end = [requests], time.monotonic() + seconds

    async def client(http: httpx.AsyncClient) -> None:
        while left[0] > 0 and time.monotonic() < end:
            left[0] -= 1
            started, wait = time.perf_counter(), 0.0
            try:
                reply = await ask(http, picture, tokens)
                code, wait = str(reply.status_code), float(reply.headers.get("retry-after", 0))
            except httpx.TransportError as error:
                code = type(error).__name__
            codes[code] += 1
            times.setdefault(code, []).append(time.perf_counter() - started)
            await asyncio.sleep(min(wait, max(0.0, end - time.monotonic())))

    async def all_of_them() -> None:
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
            await asyncio.gather(*(client(http) for _ in range(clients)))

    asyncio.run(all_of_them())
    queue.put({"codes": dict(codes), "times": {code: spread(taken) for code, taken in times.items()}})


def ask(http: Any, picture: str, tokens: int) -> Any:
    """One question about a picture, by a blocking client or an asynchronous one."""
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "What is shown?"}]
    messages = [{"role": "user", "content": content}]
    return http.post("/v1/chat/completions", json={"model": "maemi", "messages": messages, "max_tokens": tokens})


# --------------------------------------------------------------------------------------- slow peers


def peers(url: str, kind: str, count: int, per_second: float, queue: Any) -> None:
    """Open so many connections, so many a second; tell when they were closed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    closed: list[float] = []
    refused = [0]
    port = int(url.rpartition(":")[2])

    async def peer() -> None:
        started = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            refused[0] += 1
            return
        try:
            writer.write(HEADS[kind].replace("{name}", secrets.token_hex(6)).encode())
            while True:
                try:
                    if not await asyncio.wait_for(reader.read(2**16), DRIP_S):
                        break
                except TimeoutError:
                    writer.write(b"x" if kind in ("header", "body", "upload") else b"")
            closed.append(time.monotonic() - started)
        except OSError:
            closed.append(time.monotonic() - started)
        finally:
            writer.close()

    async def crowd() -> None:
        tasks = []
        for _ in range(count):
            tasks.append(asyncio.create_task(peer()))
            await asyncio.sleep(1 / per_second)
        await asyncio.wait(tasks, timeout=AFTER_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(crowd())
    told = {"opened": count - refused[0], "not_accepted": refused[0], "closed": len(closed)}
    queue.put(told | {"open_at_the_end": count - refused[0] - len(closed), "seconds_until_closed": spread(closed)})


# --------------------------------------------------------------------------------------- figures


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Count, median, 99th percentile and largest [s]."""
    ordered = sorted(seconds)
    if not ordered:
        return {"count": 0}
    at = {"p50_s": 0.5, "p99_s": 0.99, "max_s": 1.0}
    return {"count": len(ordered)} | {
        k: round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 3) for k, q in at.items()
    }


def drawn_picture(folder: Path) -> str:
    """A drawn micrograph as a data: URI."""
    write_synthetic(folder, per_class=1, seed=5)
    image = Image.fromarray(read_micrograph(find_micrographs(folder)[0]).to_display())
    image.thumbnail((256, 256))
    image.save(folder / "small.png")
    return f"data:image/png;base64,{base64.b64encode((folder / 'small.png').read_bytes()).decode()}"


def machine() -> dict[str, Any]:
    return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kinds", nargs="+", choices=tuple(HEADS), default=tuple(HEADS), help="of slow peers")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--peers", type=int, default=1100)
    parser.add_argument("--per-second", type=float, default=80.0)
    parser.add_argument("--files", type=int, default=1024)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

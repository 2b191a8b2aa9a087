"""What the server tells a Prometheus that asks: requests, seconds, queue, answers, connections, memory.

Routes are told by their template, never by what a client wrote, so that nobody can make the table grow. Knows nothing
about what is asked or answered.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from starlette.requests import Request
from starlette.responses import Response

from serve.desk.gate import Gate

BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
NO_ROUTE = "none"
"""The route of a request that was refused at the door, or that asked for nothing we have."""


class Metrics:
    """The counters of one server; `reply` is the endpoint that tells them."""

    def __init__(self, gate: Gate) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("maemi_requests", "Requests.", ("route", "method", "code"), registry=registry)
        self._seconds = Histogram(
            "maemi_request_seconds", "Time to the end of the reply.", ("route",), buckets=BUCKETS_S, registry=registry
        )
        self._answers = Counter("maemi_answers", "Answers and captions.", ("outcome",), registry=registry)
        self._connections = Gauge("maemi_connections", "Open connections.", registry=registry)
        self._streams = Gauge("maemi_event_streams", "Open event streams.", registry=registry)
        _gauge(registry, "maemi_queue_running", "Questions that are being answered.", lambda: gate.running)
        _gauge(registry, "maemi_queue_waiting", "Questions that wait for a place.", lambda: gate.waiting)
        _gauge(registry, "maemi_host_memory_available_bytes", "Memory that the machine has left.", _host_memory)
        _gauge(registry, "maemi_gpu_memory_bytes", "GPU memory this process holds.", lambda: _gpu_memory("reserved"))
        _gauge(registry, "maemi_gpu_memory_free_bytes", "GPU memory that is free.", lambda: _gpu_memory("free"))
        ProcessCollector(registry=registry)

    def request(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """Count one request; status 0 is a client that left before its reply began."""
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def answer(self, outcome: str) -> None:
        """Count one answer by how it ended."""
        self._answers.labels(outcome).inc()

    async def reply(self, request: Request) -> Response:
        """All of it in Prometheus' text format."""
        connection = getattr(request.state, "connection", None)
        if connection is not None:
            self._connections.set(len(connection.crowd))
            self._streams.set(connection.crowd.streams)
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


def _gauge(registry: CollectorRegistry, name: str, what: str, value: Any) -> None:
    Gauge(name, what, registry=registry).set_function(value)


def _host_memory() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return float("nan")


def _gpu_memory(which: str) -> float:
    """Memory of the GPU in use [byte]; 0 without one. Never the reason that torch is loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return 0.0
    return float(torch.cuda.memory_reserved() if which == "reserved" else torch.cuda.mem_get_info()[0])

"""What a Prometheus is told, read back by its own parser from a real server."""

from __future__ import annotations

from pathlib import Path

import httpx
from measuring import MeasuringAssistant, write_tiff
from prometheus_client.parser import text_string_to_metric_families
from serving import data_uri, running, user

from serve.desk.desk import Desk
from serve.desk.gate import Gate
from serve.http.api import build_api
from serve.http.guard import Guard, read_credentials


def samples(url: str, **options: object) -> dict[tuple[str, ...], float]:
    """(name, values of its labels) -> value."""
    reply = httpx.get(f"{url}/metrics", **options)  # type: ignore[arg-type]
    assert reply.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(reply.text)
    return {(s.name, *(v for _, v in sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def test_requests_answers_and_memory_are_told(tmp_path: Path) -> None:
    desk = Desk(MeasuringAssistant(), Gate(places=2), len)
    picture = data_uri(write_tiff(tmp_path / "discs.tif"))
    with running(Guard(build_api(desk), metrics=desk.metrics)) as url:
        chat = {"model": "maemi", "messages": [user("?", picture)]}
        for body in (chat, chat, {}):
            httpx.post(f"{url}/v1/chat/completions", json=body)
        httpx.get(f"{url}/healthz")
        httpx.get(f"{url}/healthz", headers={"host": "evil.example"})
        with desk.gate.turn(), desk.gate.turn():
            told = samples(url)
    route = "/v1/chat/completions"
    assert told["maemi_requests_total", "200", "POST", route] == 2
    assert told["maemi_requests_total", "400", "POST", route] == 1
    assert told["maemi_requests_total", "200", "GET", "/healthz"] == 1
    assert told["maemi_requests_total", "400", "GET", "none"] == 1
    assert told["maemi_request_seconds_count", route] == 3
    assert told["maemi_answers_total", "answered"] == 2
    assert (told["maemi_queue_running",], told["maemi_queue_waiting",]) == (2, 0)
    assert told["maemi_connections",] >= 1
    assert told["process_resident_memory_bytes",] > 2**20
    assert told["maemi_host_memory_available_bytes",] > 2**20
    assert told["maemi_gpu_memory_bytes",] >= 0


def test_strangers_cannot_make_it_grow(tmp_path: Path) -> None:
    desk = Desk(MeasuringAssistant(), Gate(), len)
    with running(Guard(build_api(desk), metrics=desk.metrics)) as url:
        with httpx.Client(base_url=url) as http:
            http.request("BREW", "/healthz")
            before = len(samples(url))
            for number in range(50):
                http.request(f"M{number}", f"/v1/models/{number}")
                http.get(f"/v1/{number}")
                http.get(f"/{number}")
        assert len(samples(url)) < before + 40


def test_it_is_behind_the_login(tmp_path: Path) -> None:
    (tmp_path / "logins.txt").write_text("ada:correct horse\n")
    desk = Desk(MeasuringAssistant(), Gate(), len)
    guard = Guard(build_api(desk), credentials=read_credentials(tmp_path / "logins.txt"), metrics=desk.metrics)
    with running(guard) as url:
        assert httpx.get(f"{url}/metrics").status_code == 401
        assert samples(url, auth=("ada", "correct horse"))

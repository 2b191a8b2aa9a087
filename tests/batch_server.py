"""OpenAI's files and batches endpoints on loopback: a queue that really works its batches off, and may misbehave."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from teacher_server import Handler, TeacherServer, answers_to, completion, good, serving

Work = Callable[[dict[str, Any]], dict[str, Any] | None]
"""One line of a batch -> its response, or None for a request that expires."""


def well(line: dict[str, Any]) -> dict[str, Any]:
    """A good reply."""
    prompt = line["body"]["messages"][0]["content"][0]["text"]
    return {"status_code": 200, "body": completion(answers_to(prompt))}


class Queue:
    """What a provider keeps: files, batches, and how often each was touched."""

    def __init__(self, work: Work, *, polls: int) -> None:
        self.work, self.polls = work, polls
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.lines: list[dict[str, Any]] = []
        """Every request that was worked off, as it was handed in."""
        self.lose_replies_to: set[str] = set()
        """Endpoints whose next reply is cut: the work is done, and the caller does not learn of it."""

    def create(self, order: dict[str, Any]) -> dict[str, Any]:
        name = f"batch_{len(self.batches)}"
        self.batches[name] = {
            "id": name, "object": "batch", "endpoint": order["endpoint"], "input_file_id": order["input_file_id"],
            "completion_window": order["completion_window"], "created_at": 0, "status": "in_progress",
            "metadata": order.get("metadata"), "polls": 0, "output_file_id": None, "error_file_id": None,
        }  # fmt: skip
        return self.batches[name]

    def look(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        batch["polls"] += 1
        if batch["status"] == "in_progress" and batch["polls"] >= self.polls:
            self._finish(batch)
        return batch

    def _finish(self, batch: dict[str, Any]) -> None:
        done, failed = [], []
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        batch["size"] = len(lines)
        for line in lines:
            self.lines.append(line)
            response = self.work(line)
            told = {"id": "r", "custom_id": line["custom_id"], "response": response, "error": None}
            (done if response and response["status_code"] == 200 else failed).append(told)
        expired = [told for told in failed if told["response"] is None]
        for told in expired:
            told["error"] = {"code": "batch_expired", "message": "too late"}
        batch["status"] = "expired" if expired else "completed"
        for kind, told in (("output", done), ("error", [one for one in failed if one not in expired])):
            if told:
                batch[f"{kind}_file_id"] = f"file_{kind}_{batch['id']}"
                self.files[batch[f"{kind}_file_id"]] = "\n".join(map(json.dumps, told)).encode()


class BatchHandler(Handler):
    server: BatchServer

    def do_POST(self) -> None:
        if self.path == "/v1/chat/completions":
            super().do_POST()
            return
        raw = self.rfile.read(int(self.headers["content-length"]))
        queue = self.server.queue
        if self.path == "/v1/files":
            name = f"file_{len(queue.files)}"
            queue.files[name] = re.search(rb'filename="[^"]+"\r\n.*?\r\n\r\n(.*)\r\n--', raw, re.S)[1]  # type: ignore[index]
            self._tell("files", {
                "id": name, "object": "file", "bytes": len(raw), "created_at": 0, "filename": "x", "purpose": "batch",
                "status": "processed",
            })  # fmt: skip
        else:
            self._tell("batches", queue.create(json.loads(raw)))

    def do_GET(self) -> None:
        queue = self.server.queue
        path = self.path.partition("?")[0].removeprefix("/v1/").split("/")
        match path:
            case ["batches"]:
                page = {"object": "list", "data": list(queue.batches.values()), "has_more": False}
                self._tell("list", page)
            case ["batches", name]:
                self._tell("look", queue.look(name))
            case ["files", name, "content"]:
                self.reply(queue.files[name], kind="application/octet-stream")
            case _:
                super().do_GET()

    def do_DELETE(self) -> None:
        name = self.path.rsplit("/", 1)[1]
        self.server.queue.files.pop(name, None)
        self._tell("delete", {"id": name, "object": "file", "deleted": True})

    def _tell(self, endpoint: str, body: dict[str, Any]) -> None:
        if endpoint in self.server.queue.lose_replies_to:
            self.server.queue.lose_replies_to.remove(endpoint)
            self.close_connection = True
            self.connection.close()
            return
        self.reply(body)


class BatchServer(TeacherServer):
    handler = BatchHandler

    def __init__(self, queue: Queue, mode: Any) -> None:
        super().__init__(mode)
        self.queue = queue


@contextmanager
def batch_server(work: Work = well, *, polls: int = 2, mode: Any = None) -> Iterator[BatchServer]:
    """A server whose batches are done at the `polls`-th look."""
    with serving(BatchServer(Queue(work, polls=polls), lambda _number: mode or good)) as server:
        yield server

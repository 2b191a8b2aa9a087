"""Reads uploaded micrographs in a process of its own, with a limit on memory, time and files it may write.

A decoder that crashes, hangs or eats the memory takes that process down, not the server; the next picture gets a fresh
one. Bytes and JSON go between the two, never a pickle: a decoder that was taken over must not be able to answer with
code. Knows nothing about HTTP.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant.errors import MicrographError

if TYPE_CHECKING:
    from assistant.micrograph import Micrograph

_DEADLINE_S = 20.0
"""Longest time for one picture, the start of a worker and the reading of its scale bar included [s]."""
MEMORY = 2**30
"""Most memory of a worker [byte]."""
WORKERS = 2
PROGRAM = (sys.executable, "-B", "-m", "serve.desk.sandbox")
_ROOT = Path(__file__).parents[2]
_MOST_BYTES = 2**30  # of one message: a page has at most 2**28 decoded bytes
_SPARE_CPU_S = 5  # on top of the deadline, for a worker whose server is gone
_HEAD = struct.Struct("<QQ")  # lengths of the JSON and of the bytes behind it


class Sandbox:
    """A few workers, started when first needed; `read` may be called from any thread."""

    def __init__(
        self,
        *,
        workers: int = WORKERS,
        deadline_s: float = _DEADLINE_S,
        memory: int = MEMORY,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._deadline_s, self._memory, self._program = deadline_s, memory, tuple(program)
        self._workers: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._workers.put(None)

    def read(self, source: Path | bytes, *, page: int | None = None, pixel_size_nm: float | None = None) -> Micrograph:
        """`read_micrograph` in a worker.

        Raises MicrographError: its codes, or `reader_died`, or `too_slow`.
        """
        deadline = time.monotonic() + self._deadline_s
        kept = self._workers.get()
        try:
            how = {"page": page, "pixel_size_nm": pixel_size_nm}
            reply, pixels = self._ask(kept, source, how, deadline)
        except (OSError, ValueError) as error:
            late = isinstance(error, TimeoutError)
            code, what = ("too_slow", "took too long") if late else ("reader_died", "failed")
            raise MicrographError(
                code, f"Reading this picture {what}, and was stopped. Save it again as TIFF or PNG."
            ) from None
        if "error" in reply:
            raise MicrographError(*reply["error"])
        return _unpacked(reply, pixels, None if isinstance(source, bytes) else Path(source))

    def _ask(
        self, worker: _Worker | None, source: Path | bytes, how: Mapping[str, Any], deadline: float
    ) -> tuple[dict[str, Any], bytearray]:
        """The reply of a worker, which then waits for the next picture; one that failed is stopped."""
        fresh = worker is None
        try:
            worker = worker or _Worker(self._program, memory=self._memory)
            reply = worker.ask(source, how, deadline)
        except BaseException as error:
            if worker is not None:
                worker.stop()
            if isinstance(error, OSError) and not isinstance(error, TimeoutError) and not fresh:
                return self._ask(None, source, how, deadline)  # it may have died of anything while it waited
            self._workers.put(None)  # the next picture starts a fresh worker
            raise
        self._workers.put(worker)
        return reply

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers that are idle; `read` starts new ones."""
        for _ in range(self._workers.qsize()):
            with contextlib.suppress(queue.Empty):
                worker = self._workers.get_nowait()
                if worker is not None:
                    worker.stop()
                self._workers.put(None)


class _Worker:
    """One process and the socket to it."""

    def __init__(self, program: Sequence[str], *, memory: int) -> None:
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*program, str(theirs.fileno()), str(memory)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path])},
            )
        self._end = weakref.finalize(self, _end, self._process, self._line)

    def ask(self, source: Path | bytes, how: Mapping[str, Any], deadline: float) -> tuple[dict[str, Any], bytearray]:
        """The worker's reply. Raises TimeoutError, or another OSError or ValueError where the worker is gone or mad."""
        path = None if isinstance(source, bytes) else os.fspath(source)
        question = {"path": path, "how": how, "seconds": deadline - time.monotonic()}
        _send(self._line, question, source if isinstance(source, bytes) else b"", deadline)
        text, data = _HEAD.unpack(_exactly(self._line, _HEAD.size, deadline))
        reply = json.loads(_exactly(self._line, text, deadline))
        return reply, _exactly(self._line, data, deadline)

    def stop(self) -> None:
        self._end()


def _end(process: subprocess.Popen[bytes], line: socket.socket) -> None:
    line.close()
    process.kill()
    process.wait()


def _send(line: socket.socket, document: dict[str, Any], data: Any, deadline: float | None) -> None:
    text = json.dumps(document).encode()
    for part in (_HEAD.pack(len(text), len(data)) + text, data):
        line.settimeout(_left(deadline))
        line.sendall(part)


def _exactly(line: socket.socket, size: int, deadline: float | None) -> bytearray:
    if size > _MOST_BYTES:
        raise ValueError("the message is too long")
    data, place = bytearray(size), 0
    while place < size:
        line.settimeout(_left(deadline))
        got = line.recv_into(memoryview(data)[place:])
        if not got:
            raise ConnectionError("the other side is gone")
        place += got
    return data


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(1e-3, deadline - time.monotonic())


def _packed(m: Micrograph) -> dict[str, Any]:
    import base64
    from dataclasses import asdict

    import numpy as np

    return {
        "dtype": m.pixels.dtype.str,
        "shape": m.pixels.shape,
        "sha256": m.sha256,
        "page": m.page,
        "pages": m.pages,
        "calibration": None if m.calibration is None else asdict(m.calibration),
        "instrument": asdict(m.instrument),
        "banner": m.banner,
        "sample": None if m.sample is None else base64.b64encode(np.packbits(m.sample).tobytes()).decode(),
        "warnings": m.warnings,
    }


def _unpacked(reply: dict[str, Any], pixels: bytearray, source: Path | None) -> Micrograph:
    import base64

    import numpy as np

    from assistant.micrograph import Calibration, Instrument, Micrograph

    sample = None
    if reply["sample"] is not None:
        bits = np.frombuffer(base64.b64decode(reply["sample"]), np.uint8)
        sample = np.unpackbits(bits, count=math.prod(reply["shape"])).reshape(reply["shape"]).astype(bool)
    return Micrograph(
        pixels=np.frombuffer(pixels, np.dtype(reply["dtype"])).reshape(reply["shape"]),
        sha256=reply["sha256"],
        source=source,
        page=reply["page"],
        calibration=None if reply["calibration"] is None else Calibration(**reply["calibration"]),
        instrument=Instrument(**reply["instrument"]),
        banner=None if reply["banner"] is None else (reply["banner"][0], reply["banner"][1]),
        warnings=tuple(reply["warnings"]),
        pages=reply["pages"],
        sample=sample,
    )


def main(descriptor: int, memory: int) -> None:
    """The worker: one picture after another, until the server hangs up."""
    from assistant.micrograph import read_micrograph

    m: Micrograph | None
    source: Path | bytes | None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no decoder has anything to write
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    threading.stack_size(2**20)
    with contextlib.suppress(OSError, struct.error), socket.socket(fileno=descriptor) as line:  # until it hangs up
        asked = line.makefile("rb")
        while True:
            text, size = _HEAD.unpack(asked.read(_HEAD.size))
            question = json.loads(asked.read(text))
            # A signal ends this process once it has worked so long, whether or not anyone waits for it.
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(used.ru_utime + used.ru_stime + question["seconds"] + _SPARE_CPU_S)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
            source = asked.read(size) if question["path"] is None else Path(question["path"])
            try:
                m = read_micrograph(source, **question["how"])
                _send(line, _packed(m), m.pixels.reshape(-1).view("u1").data, None)
            except MicrographError as error:
                _send(line, {"error": [error.code, error.message]}, b"", None)
            except MemoryError:
                _send(line, {"error": ["too_large", "The image needs too much memory. Crop or bin it."]}, b"", None)
            m = source = None  # a large picture must be gone before the next comes in


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

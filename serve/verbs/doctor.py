"""Checks the machine and runs every feature with the network blocked: what works here works in an air gap.

Knows nothing about how the features work; it calls them as the commands do.
"""

from __future__ import annotations

import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from assistant.bases import describe_base
from assistant.errors import MaemiError, ServerError
from serve.verbs import terminal
from serve.verbs.command import Json, RunOption, app, finish, quiet
from serve.verbs.command import load as load_student

if TYPE_CHECKING:
    from serve.desk.answering import Answerer

_LIBRARIES = (
    "torch", "transformers", "peft", "bitsandbytes", "datasets", "gradio", "fastapi", "starlette", "tifffile",
    "imagecodecs", "scikit-image", "pillow", "SQLAlchemy",
)  # fmt: skip
FLOORS = {"starlette": (1, 3), "gradio": (6, 25), "pillow": (12, 3)}
"""Versions below which a published weakness is open."""
NEEDED_DISK_GIB = 2.0
_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    ok: bool
    found: str
    seconds: float


@contextmanager
def no_network() -> Iterator[None]:
    """Make every attempt to reach another machine, by address or by name, an error; this machine stays reachable."""
    from serve.http.guard import is_loopback

    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not is_loopback(str(address[0])):
            _refuse(str(address[0]))
        connect(self, address)

    def guarded_resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if host is not None and not is_loopback(name):
            _refuse(name)
        return resolve(host, *args, **kwargs)

    socket.socket.connect = guarded_connect  # type: ignore[method-assign,assignment]
    socket.getaddrinfo = guarded_resolve
    try:
        yield
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]
        socket.getaddrinfo = resolve


@app.command(short_help="Check this machine with the network blocked.")
def doctor(run: RunOption = None, json: Json = False) -> None:
    """Check the machine and run every feature with the network blocked.

    \b
    Example:
      maemi doctor
    """
    with quiet(json):
        checks = list(check_machine(run))
    if json:
        terminal.print_json([vars(check) for check in checks])
    else:
        rows = [("ok" if c.ok else "FAILED", c.name, c.found, f"{c.seconds:.1f} s") for c in checks]
        terminal.print_table("", ("", "check", "found", ">time"), rows)
    finish(sum(not check.ok for check in checks))


def check_machine(run: Path | None = None, *, load: Callable[[Path | None], Answerer] | None = None) -> Iterator[Check]:
    """Yield the checks as they finish: the machine, then the features on a micrograph drawn for the purpose."""
    yield _timed("python", lambda: f"{platform.python_version()} on {platform.machine()}")
    for library in _LIBRARIES:
        yield _timed(library, lambda library=library: _library(library))  # type: ignore[misc]
    yield _timed("processor", _processor)
    yield _timed("graphics card", _graphics)
    yield _timed("disk", _disk)
    yield _timed("smollm2-135m", lambda: describe_base("smollm2-135m"))
    with no_network(), tempfile.TemporaryDirectory(prefix="maemi-doctor-") as folder:
        yield from _features(Path(folder), run, load or load_student)


def _features(folder: Path, run: Path | None, load: Callable[[Path | None], Answerer]) -> Iterator[Check]:
    kept = _Kept()

    def keep(name: str, value: Any, told: str) -> str:
        kept[name] = value
        return told

    def draw() -> str:
        from assistant.micrograph import find_micrographs
        from data_gen.drawing.synth import write_synthetic

        truth = write_synthetic(folder / "synthetic", classes=("particles",), per_class=1, size=(240, 320))
        return keep(
            "file", next(truth.parent.rglob("*.tif*"), None) or find_micrographs(truth.parent)[0], "1 micrograph"
        )

    def read() -> str:
        from assistant.micrograph import read_micrograph

        micrograph = read_micrograph(kept["file"])
        return keep("micrograph", micrograph, micrograph.metadata_line())

    def measure() -> str:
        from assistant.measure import measure

        return measure(kept["micrograph"]).line()

    def weights() -> str:
        answerer = load(run)
        return keep("answerer", answerer, answerer.name)

    def ask() -> str:
        said = "".join(kept["answerer"].ask([kept["micrograph"]], "How many structures are there?", max_new_tokens=32))
        return said or _fail("the answer is empty")

    def caption() -> str:
        (said,) = kept["answerer"].caption([kept["micrograph"]])
        return str(said) or _fail("the caption is empty")

    def classify() -> str:
        scores = kept["answerer"].classify([kept["micrograph"]], ["particles", "fibres"], top=2)[0]
        return ", ".join(f"{label} {probability:.2f}" for label, probability in scores)

    steps = {
        "synth": draw, "info": read, "measure": measure, "weights": weights, "ask": ask, "caption": caption,
        "classify": classify, "network": _network_is_cut,
    }  # fmt: skip
    for name, step in steps.items():
        yield _timed(name, step)


class _Kept(dict[str, Any]):
    """What earlier checks made for later ones."""

    def __missing__(self, name: str) -> NoReturn:
        _fail("not run, because an earlier check failed")


def _timed(name: str, check: Callable[[], str]) -> Check:
    start = time.monotonic()
    try:
        ok, found = True, check()
    except MaemiError as error:
        ok, found = False, str(error)
    except Exception as error:  # a check that breaks is a finding, and must not keep the others from running
        ok, found = False, f"{type(error).__name__}: {error}"
    return Check(name, ok, found, time.monotonic() - start)


def _library(name: str) -> str:
    try:
        found = version(name)
    except PackageNotFoundError:
        return _fail("not installed")
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
    floor = FLOORS.get(name)
    return _fail(f"{found} is older than {'.'.join(map(str, floor))}") if floor and numbers < floor else found


def _processor() -> str:
    import os

    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} cores, {pages / _GIB:.0f} GiB memory"


def _graphics() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none: everything runs on the processor"
    card = torch.cuda.get_device_properties(0)
    return f"{card.name}, {card.total_memory / _GIB:.0f} GiB"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    return f"{free:.0f} GiB free" if free >= NEEDED_DISK_GIB else _fail(f"only {free:.1f} GiB free here")


def _network_is_cut() -> str:
    """Prove that the block is in force: a check that cannot fail would prove nothing."""
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    except ServerError:
        return "blocked, and nothing above needed it"
    return _fail("the block is not in force")


def _refuse(host: str) -> NoReturn:
    raise ServerError("network_blocked", f"Something tried to reach {host}. It must work without.")


def _fail(reason: str) -> NoReturn:
    raise ServerError("check_failed", reason)

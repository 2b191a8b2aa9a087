"""Uploads are read in a process of their own: same result, and whatever a decoder does, only that picture fails."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from assistant.errors import MicrographError
from assistant.micrograph import read_micrograph
from serve.desk.sandbox import Sandbox

# A worker whose PNG decoder obeys the picture: what a bug in a C library can do, on demand.
HOSTILE = """
import os, signal, sys, tempfile, time
from assistant.readers import raster
def decode(data, kind, page, limits):
    order = data[8:12]
    if order == b"SEGV": os.kill(os.getpid(), signal.SIGSEGV)
    if order == b"HANG": time.sleep(600)
    if order == b"SPIN":
        while True: pass
    if order == b"GROW": bytearray(2**31); bytearray(2**31)
    if order == b"EXIT": os._exit(0)
    if order == b"TALK": os.write(int(sys.argv[1]), b"\\xff" * 64)
    if order == b"FILE": tempfile.TemporaryFile(buffering=0).write(b"x")
    return real(data, kind, page, limits)
real, raster.decode = raster.decode, decode
from serve.desk.sandbox import main
main(int(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1) as started:
        yield started


@pytest.fixture(scope="module")
def hostile() -> Iterator[Sandbox]:
    with Sandbox(workers=1, deadline_s=3, program=(sys.executable, "-c", HOSTILE)) as started:
        yield started


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.tif"
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 4096, (70, 90)).astype(np.uint16))
    path.with_suffix(".txt").write_text(
        "$CM_FULL_SIZE 90 70\n$$SM_MICRON_BAR 20\n$$SM_MICRON_MARKER 100nm\n$CM_MAG 500\n"
    )
    return path


def test_same_as_in_this_process(sandbox: Sandbox, picture: Path) -> None:
    for source in (picture, picture.read_bytes()):
        for nm in (None, 4.5):
            ours, theirs = read_micrograph(source, pixel_size_nm=nm), sandbox.read(source, pixel_size_nm=nm)
            assert theirs.info() == ours.info()
            assert theirs.source == ours.source
            np.testing.assert_array_equal(theirs.pixels, ours.pixels)


def test_refusals_come_through(sandbox: Sandbox, tmp_path: Path) -> None:
    for source, code in ((tmp_path / "none.tif", "not_found"), (b"", "empty_file"), (b"%PDF", "unsupported_format")):
        with pytest.raises(MicrographError) as caught:
            sandbox.read(source)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("order", "code"),
    [
        ("SEGV", "reader_died"),
        ("EXIT", "reader_died"),
        ("HANG", "too_slow"),
        ("SPIN", "too_slow"),
        ("GROW", "too_large"),
        ("TALK", "reader_died"),
        ("FILE", "reader_died"),
    ],
)
def test_only_that_picture_fails(hostile: Sandbox, picture: Path, order: str, code: str) -> None:
    """Fails without the fresh worker (reader_died for the next picture), the deadline, or the limits of the worker."""
    start = time.monotonic()
    with pytest.raises(MicrographError) as caught:
        hostile.read(b"\x89PNG\r\n\x1a\n" + order.encode())
    assert caught.value.code == code
    assert time.monotonic() - start < 60  # HANG would take 600 s
    assert hostile.read(picture).calibration is not None


def test_a_worker_that_died_waiting_is_replaced(picture: Path) -> None:
    """Killed between two pictures, as by a kernel short of memory: the next picture is not to blame."""
    with Sandbox(workers=1) as sandbox:
        sandbox.read(picture)
        for _ in range(2):
            worker = sandbox._workers.get()
            assert worker is not None
            sandbox._workers.put(worker)
            worker._process.kill()
            worker._process.wait()
            assert sandbox.read(picture).calibration is not None


def test_workers_end_with_the_sandbox(picture: Path) -> None:
    with Sandbox(workers=1) as sandbox:
        sandbox.read(picture)
        worker = sandbox._workers.get()
        assert worker is not None
        sandbox._workers.put(worker)
        assert worker._process.poll() is None
    assert worker._process.poll() is not None


def test_a_worker_sees_its_server_go() -> None:
    """Killed with -9, the server closes no socket by itself; the kernel does, and the worker ends on that."""
    import socket
    import subprocess

    ours, theirs = socket.socketpair()
    with theirs:
        program = [sys.executable, "-m", "serve.desk.sandbox", str(theirs.fileno()), str(2**30)]
        process = subprocess.Popen(program, pass_fds=(theirs.fileno(),))
    ours.close()
    assert process.wait(20) == 0

"""Nothing leaves but what the manifest lists: every socket and every byte of the real command is recorded."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from teacher_server import TeacherServer, good, teacher_server
from tiny_micrographs import tiny_picture

from assistant.errors import EgressError
from data_gen.dataset.forget import forget_micrograph
from data_gen.hosted.egress import Permit, grant
from data_gen.hosted.redaction import check_words, redact_words, shareable
from data_gen.questions.evidence import Evidence

ROOT = Path(__file__).parents[1]
WATCH = """
import json, os, sys

def record(event, arguments):
    if event in {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
                 "socket.gethostbyname", "os.system", "os.exec", "os.posix_spawn", "ftplib.connect"}:
        told = [str(a) for a in arguments if not hasattr(a, "fileno")]
        with open(os.environ["WATCHED"], "a") as stream:
            stream.write(json.dumps([event, *told]) + "\\n")

sys.addaudithook(record)
"""
SECRET = "XQSENTINEL"
BAR = np.tile(np.frombuffer(hashlib.sha512(SECRET.encode()).digest(), np.uint8), (12, 2))[:, :96]  # [12, 96]
"""The pixels of an info bar that must not leave."""


def site(folder: Path) -> Path:
    """Micrographs of a site: secrets in tags, side-cars, names and info bars, and one lot that must stay."""
    for number in range(6):
        lot = "open" if number < 4 else f"{SECRET}-keep"
        path = folder / lot / f"{SECRET}_lot4711_{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.kron(tiny_picture(number), np.ones((2, 2), np.uint8))  # [96, 96]
        bar = np.concatenate([np.full((8, 96), 255, np.uint8), BAR])
        barred = np.concatenate([pixels, bar])
        zeiss = f"AP_MAG\r\nMag = 5.00 K X\r\nSV_USER_NAME\r\nUser Name = {SECRET} Miller\r\n"
        tifffile.imwrite(
            path, barred, description=f"{SECRET} wafer 7", extratags=[(34118, 2, None, zeiss, True)], metadata=None
        )
        path.with_name(path.name + ".txt").write_text(f"$CM_TITLE {SECRET}\n$$SM_USER {SECRET}\n$CM_MAG 5000\n")
    return folder


def evidence(**changes: Any) -> Evidence:
    given: dict[str, Any] = {
        "path": "a.tif", "sha256": "0" * 64, "label": "particles", "group": "g", "split": "train", "size": (8, 8),
        "truth": {}, "true_nm_per_pixel": None, "nm_per_pixel": 2.0, "instrument": {}, "facts": {}, "metadata_line": "",
        "facts_line": "",
    }  # fmt: skip
    return Evidence(**{**given, **changes})


class Watched:
    """The real command in a process of its own, with every socket of it and of its workers written down."""

    def __init__(self, folder: Path, server: TeacherServer) -> None:
        self.images, self.out, self.log = site(folder / "images"), folder / "out", folder / "sockets.jsonl"
        self.server = server
        hook = folder / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(WATCH)
        config = {
            "teacher": "openai", "model": "m", "base_url": server.url, "api_key_env": "MAEMI_TEST_KEY",
            "tasks": ["caption", "vqa", "comparison"], "keep": [f"{SECRET}-keep/*"], "redact": [SECRET],
        }  # fmt: skip
        (folder / "teach.yaml").write_text(json.dumps({"teach": config}))
        self.config = folder / "teach.yaml"
        self.environment = os.environ | {
            "PYTHONPATH": f"{hook}{os.pathsep}{ROOT}",
            "WATCHED": str(self.log),
            "MAEMI_TEST_KEY": "sk-sentinel-0123456789abcdef",
            "OPENAI_LOG": "debug",
        }

    def run(self, *extra: str, stdin: int | None = subprocess.DEVNULL) -> tuple[int, str]:
        command = [sys.executable, "-m", "serve.cli", "teach", str(self.images), "--out", str(self.out)]
        done = subprocess.run(
            [*command, "--config", str(self.config), *extra],
            env=self.environment, cwd=ROOT, stdin=stdin, capture_output=True, text=True, check=False, timeout=500,
        )  # fmt: skip
        return done.returncode, done.stderr + done.stdout

    def sockets(self) -> list[list[str]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines]

    def manifest_sha256(self) -> str:
        return hashlib.sha256((self.out / "egress.jsonl").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Denied first, then allowed by the manifest's hash."""
    with teacher_server(good) as server:
        watched = Watched(tmp_path_factory.mktemp("site"), server)
        watched.denied = watched.run("--allow-egress")  # type: ignore[attr-defined]
        watched.sockets_denied = watched.sockets()  # type: ignore[attr-defined]
        watched.wrong = watched.run("--allow-egress", "--manifest", "0" * 64)  # type: ignore[attr-defined]
        watched.seen_before = len(server.seen)  # type: ignore[attr-defined]
        watched.allowed = watched.run("--allow-egress", "--manifest", watched.manifest_sha256())  # type: ignore[attr-defined]
        yield watched


def test_without_the_manifests_hash_no_socket_is_opened(watched: Any) -> None:
    """`--allow-egress` alone, in a script: exit 2, one line that names the manifest and its hash, no socket at all."""
    code, told = watched.denied
    assert code == 2, told
    assert "error: denied: 4 pictures" in told
    assert f"--manifest {watched.manifest_sha256()}" in told
    assert watched.sockets_denied == []
    code, told = watched.wrong
    assert code == 2
    assert "another manifest" in told
    assert watched.seen_before == 0


def test_with_it_only_the_teacher_is_spoken_to(watched: Any) -> None:
    """Every connect, lookup, bind or started program of the command and its workers is the teacher's address."""
    code, told = watched.allowed
    assert code == 0, told
    assert watched.server.seen
    events = {(event, *rest) for event, *rest in watched.sockets()}
    address = f"('127.0.0.1', {watched.server.server_address[1]})"
    assert {event for event, *_ in events} <= {"socket.connect", "socket.getaddrinfo"}
    assert ("socket.connect", address) in events
    for event, *rest in events:
        assert rest[0] in ({address} if event == "socket.connect" else {"127.0.0.1"})


def test_no_secret_word_or_pixel_is_in_any_byte_that_left(watched: Any) -> None:
    """Bodies and headers, plain and base64-decoded: no tag, name, side-car, lot or info bar; nothing of the lot kept.

    Seen failing with the info bar left in the copy.
    """
    rows = {
        lot.name: np.concatenate([tifffile.imread(path)[: 96 + 8 * (lot.name != "open")] for path in lot.glob("*.tif")])
        for lot in watched.images.iterdir()
    }
    forbidden, seen = np.concatenate([BAR, rows[f"{SECRET}-keep"]]), 0
    for handler in watched.server.seen:
        sent = json.dumps(handler.request_body) + str(handler.headers)
        decoded = [base64.b64decode(part.partition(",")[2]) for part in _urls(handler.request_body)]
        for text in (sent, *(data.decode("latin-1") for data in decoded)):
            for word in (SECRET, "Miller", "4711", "wafer 7", str(watched.images), ".tif"):
                assert word.lower() not in text.lower()
        for data in decoded:
            with Image.open(io.BytesIO(data)) as picture:
                assert picture.info == {}
                pixels = np.asarray(picture)
            assert pixels.shape[1] == 96
            assert likeness(pixels, forbidden) < 0.997
            seen += likeness(pixels, rows["open"]) > 0.999
    assert seen == sum(len(handler.pictures) for handler in watched.server.seen)


def test_every_picture_that_left_has_its_audit_line(watched: Any) -> None:
    """When, which file, which bytes, where to, and for which request; as many lines as pictures in the bodies."""
    lines = [json.loads(line) for line in (watched.out / "egress-audit.jsonl").read_text().splitlines()]
    left = [picture for handler in watched.server.seen for picture in handler.pictures]
    sent = sorted(hashlib.sha256(picture).hexdigest() for picture in left)
    assert sorted(line["sent_sha256"] for line in lines) == sent
    items = map(json.loads, (watched.out / "egress.jsonl").read_text().splitlines())
    listed = {item["sent_sha256"]: item for item in items}
    assert len(listed) == 4
    for line in lines:
        assert listed[line["sent_sha256"]]["sha256"] == line["sha256"]
        assert (line["bytes"], line["destination"]) == (listed[line["sent_sha256"]]["bytes"], watched.server.url)
        assert line["at"].endswith("+00:00")
    requests = {handler.headers["idempotency-key"] for handler in watched.server.seen}
    assert {line["request"] for line in lines} == requests


def test_the_key_is_written_nowhere(watched: Any) -> None:
    """Not in the ledger, the data, the audit trail or what the command printed with the SDK's debug log on."""
    for path in filter(Path.is_file, watched.out.rglob("*")):
        assert b"sk-sentinel" not in path.read_bytes(), path
    assert all("sk-sentinel" not in told for _, told in (watched.denied, watched.wrong, watched.allowed))


def test_a_person_types_the_hash_on_a_terminal(watched: Any, tmp_path: Path) -> None:
    """On a terminal the list is shown and its hash asked for; anything else stops."""
    for typed, code in (("yes", 2), (watched.manifest_sha256()[:8], 0)):
        ours, theirs = pty.openpty()
        os.write(ours, f"{typed}\n".encode())
        try:
            ended, told = watched.run("--allow-egress", stdin=theirs)
        finally:
            os.close(ours)
            os.close(theirs)
        assert ended == code, told
        assert "Type the first 8 characters" in told


def test_a_forgotten_micrograph_is_in_no_file(watched: Any) -> None:
    """Its name, words, pixels and answers are gone from the whole tree; its hash and its audit lines stay."""
    lost = next((watched.images / "open").glob("*_2.tif"))
    sha256 = hashlib.sha256(lost.read_bytes()).hexdigest()
    assert any(lost.name.encode() in path.read_bytes() for path in filter(Path.is_file, watched.out.rglob("*")))
    assert forget_micrograph(watched.out, lost) == sha256
    for again in (False, True):
        if again:
            code, told = watched.run("--teacher", "offline")
            assert code == 0, told
        for path in filter(Path.is_file, watched.out.rglob("*")):
            content = path.read_bytes()
            assert lost.name.encode() not in content, path
            if path.name not in {"ledger.sqlite", "egress-audit.jsonl"}:
                assert sha256[:12].encode() not in content, path
    assert sha256 in (watched.out / "egress-audit.jsonl").read_text()


def likeness(pixels: np.ndarray, rows: np.ndarray) -> float:
    """The greatest correlation of a row of pixels [H, W] with one of the rows [N, W]: a grey window changes nothing."""
    a, b = (picture - picture.mean(axis=1, keepdims=True) for picture in (pixels.astype(float), rows.astype(float)))
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return float((a @ b.T / np.maximum(lengths, 1e-9)).max())


def _urls(body: dict[str, Any]) -> list[str]:
    parts = body["messages"][0]["content"]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


# ------------------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("lot 7731A of the run", "[redacted] of the run"),
        ("Wafer: W07-3, edge", "[redacted], edge"),
        ("user=j.miller", "[redacted]"),
        ("mail miller@fab.example.com", "mail [redacted]"),
        (r"C:\users\miller\a.tif", "[redacted]"),
        ("host 10.1.22.3", "host [redacted]"),
        ("Helios 5 UX 9922481", "Helios 5 UX [redacted]"),
        ("TL2019X7 tool", "[redacted] tool"),
        ("porous sponge", "porous sponge"),
        ("JSM-7800F", "[redacted]"),
        ("Acme grade", "[redacted] grade"),
    ],
)
def test_identifiers_are_taken_out_of_words(text: str, left: str) -> None:
    """Lots, wafers, users, machines, serial numbers and the words of `teach.redact`."""
    assert redact_words(text, ["acme"]) == left


def test_what_is_said_of_a_picture_holds_no_identifier() -> None:
    """A folder named after a lot is no class for others; measured numbers stay, entries of a truth file are judged."""
    told = shareable(
        evidence(
            label="lot 4711",
            instrument={"model": "Helios 5 UX 9922481", "hv_kv": 5.0},
            metadata_line="Thermo Helios 5 UX 9922481; 5 kV; mag 250000x; 2 nm/px",
            truth={"surface": "rough", "wafer_id": "W7", "count": 12, "shape": "tool TL20 mark"},
        )
    )
    assert told.label is None
    assert told.metadata_line == "Thermo Helios 5 UX [redacted]; 5 kV; mag 250000x; 2 nm/px"
    assert told.truth == {"surface": "rough", "count": 12, "shape": "[redacted] mark"}
    assert shareable(evidence()).label == "particles"


def test_a_named_word_in_a_question_stops_everything() -> None:
    """The last look, at the words that would leave."""
    check_words("What shape are the particles?", ["acme"])
    with pytest.raises(EgressError, match="not_redacted") as caught:
        check_words("What did ACME order?", ["acme"])
    assert "acme" not in str(caught.value).lower()


def test_leave_is_for_exactly_one_list(tmp_path: Path) -> None:
    """One line more in the manifest is another manifest."""
    manifest = tmp_path / "egress.jsonl"
    line = {"sent_sha256": hashlib.sha256(b"abc").hexdigest(), "bytes": 3, "to": "https://t.example/v1"}
    manifest.write_text(json.dumps(line) + "\n")
    leave = hashlib.sha256(manifest.read_bytes()).hexdigest()
    permit = grant(manifest, destination="https://t.example/v1", allow=leave.upper())
    assert isinstance(permit, Permit)
    manifest.write_text(manifest.read_text() * 2)
    with pytest.raises(EgressError, match="denied: The leave is for another manifest"):
        grant(manifest, destination="https://t.example/v1", allow=leave)

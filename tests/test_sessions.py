"""What a client of the page may name: only what it uploaded itself, whatever endpoint, spelling or login it takes."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from measuring import MeasuringAssistant, write_tiff
from PIL import Image
from serving import running

from serve.desk.desk import Desk
from serve.desk.gate import Gate
from serve.http.guard import App, read_credentials
from serve.page.app import build_app
from serve.page.uploads import LIFETIME_S, Workspace

SECRET = "carol:correct-horse-battery"
ADA, BOB = ("ada", "correct horse"), ("bob", "battery staple")
META = {"_type": "gradio.FileData"}
FILE_FIELDS = ("file", "multimodaltextbox", "uploadbutton", "image", "gallery", "imageeditor")


def built(logins: Path | None) -> App:
    """The application, built inside a loop: outside of one Gradio opens loops that it never closes."""

    async def build() -> App:
        desk = Desk(MeasuringAssistant(), Gate(), lambda text: len(text.split()))
        return build_app(desk, credentials=read_credentials(logins) if logins else None)

    return asyncio.run(build())


@dataclass
class Visitor:
    """A browser: one login, one cookie, and everything it was told."""

    url: str
    login: tuple[str, str] | None
    http: httpx.Client = field(init=False)
    settings: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, auth=self.login, timeout=30)
        self.http.get("/")
        self.settings = self.http.get("/config").json()

    def upload(self, *files: Path) -> list[str]:
        parts = [("files", (file.name, file.read_bytes())) for file in files]
        paths: list[str] = self.http.post("/gradio_api/upload", files=parts).raise_for_status().json()
        return paths

    def endpoints(self) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """Every endpoint that runs on the server, with the kinds of its inputs: from the page's own settings."""
        known = {component["id"]: component for component in self.settings["components"]}
        labels = {"Pixel size, for pictures that carry none": "size", "Or a folder on the server": "folder"}
        kinds = {n: labels.get(str(c["props"].get("label")), c["type"]) for n, c in known.items()}
        for endpoint in self.settings["dependencies"]:
            if endpoint["backend_fn"]:
                yield endpoint, [kinds[number] for number in endpoint["inputs"]]

    def number(self, name: str) -> int:
        return int(next(e["id"] for e, _ in self.endpoints() if e["api_name"] == name))

    def join(self, number: int, data: list[Any], session: str) -> httpx.Response:
        call = {"data": data, "fn_index": number, "session_hash": session}
        return self.http.post("/gradio_api/queue/join", json=call)

    def told(self, session: str) -> str:
        return self.http.get("/gradio_api/queue/data", params={"session_hash": session}).text

    def ask(self, name: str, *data: Any, session: str) -> str:
        assert self.join(self.number(name), list(data), session).status_code == 200
        return self.told(session)

    def replies(self, endpoint: dict[str, Any], data: list[Any], session: str) -> Iterator[str]:
        """What each of Gradio's ways to call an endpoint answers, and every file that an answer points to."""
        if self.join(endpoint["id"], data, session).status_code == 200:
            yield from self._with_files(self.told(session))
        for way in ("run", "api", "call"):
            name, call = endpoint["api_name"] or "predict", {"data": data, "session_hash": f"{session}-{way}"}
            reply = self.http.post(f"/gradio_api/{way}/{name}", json=call | ({} if way == "call" else call))
            yield from self._with_files(reply.text)
            if way == "call" and reply.status_code == 200:
                yield from self._with_files(self.http.get(f"/gradio_api/call/{name}/{reply.json()['event_id']}").text)

    def _with_files(self, text: str) -> Iterator[str]:
        yield text
        for path in set(re.findall(r'"(?:path|url)": ?"([^"]+)"', text)):
            yield self.http.get(f"/gradio_api/file={path.partition('/gradio_api/file=')[2] or path}").text


@pytest.fixture(scope="module", params=["open", "logins"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    logins = folder / "logins.txt"
    logins.write_text("\n".join(map(":".join, (ADA, BOB))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "cache"))
        with running(built(logins if request.param == "logins" else None)) as base:
            yield base


@pytest.fixture
def visit(url: str) -> Iterator[Any]:
    """Opens browsers: without logins they differ by their cookie alone, with logins by the login alone."""
    visitors: list[Visitor] = []
    locked = httpx.get(url).status_code == 401

    def open_(login: tuple[str, str] = ADA) -> Visitor:
        visitors.append(Visitor(url, login if locked else None))
        if locked:
            visitors[-1].http.cookies = visitors[0].http.cookies
        return visitors[-1]

    yield open_
    for visitor in visitors:
        visitor.http.close()


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, Path]:
    """Real files of the server's user, readable by it, of every kind that the page takes."""
    text, picture, tiff = tmp_path / "logins.txt", tmp_path / "secret.png", tmp_path / "secret.tif"
    text.write_text(f"{SECRET}\n$CM_FORMAT {SECRET}\n")
    write_tiff(tiff, seed=5)
    Image.effect_noise((96, 64), 50).save(picture)
    return {"text": text, "picture": picture, "tiff": tiff}


def spellings(secret: Path, own: str) -> Iterator[Any]:
    """Ways to name a file that was not uploaded, as the values of a file field."""
    link = Path(own).parent / f"link{secret.suffix}"
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    folder = Path(own).parent / "folder"
    folder.unlink(missing_ok=True)
    folder.symlink_to(secret.parent)
    dots = f"{Path(own).parent}/{os.path.relpath(secret, Path(own).parent)}"
    for path in (
        str(secret),
        str(link),
        f"{folder}/{secret.name}",
        dots,
        os.path.relpath(secret),
        f"/{secret}",
        f"{secret}\0{own}",
        f"file://{secret}",
        f"/gradio_api/file={secret}",
        f"http://127.0.0.1:9/gradio_api/file={secret}",
    ):
        yield {"path": path, "meta": META}
        yield {"path": path}
    yield {"path": str(secret), "url": f"/gradio_api/file={secret}", "orig_name": Path(own).name, "meta": META}
    yield spelled_own(own, secret)
    yield {"path": "", "url": str(secret), "meta": META}
    yield {"path": [str(secret)], "meta": META}
    yield {"file": {"path": str(secret), "meta": META}}
    yield [{"path": str(secret), "meta": META}]
    yield str(secret)


def spelled_own(own: str, secret: Path) -> dict[str, Any]:
    """An upload that claims to be found elsewhere: taken, but from where it lies."""
    return {"path": own, "url": str(secret), "is_stream": True, "meta": META}


def answered(reply: str) -> bool:
    return any(sign in reply for sign in ('"success":true', "event: complete", "event: generating", '"data":'))


def filled(kinds: list[str], file: Any) -> list[Any]:
    """Inputs of an endpoint with one file in every field that takes one."""
    values = {"multimodaltextbox": {"text": "What?", "files": [file]}, "state": None, "size": "2 nm"}
    values |= {"folder": "", "radio": "Labels"}
    return [values.get(kind, [file] if kind in FILE_FIELDS else "particles, powder") for kind in kinds]


def test_only_an_upload_can_be_named(visit: Any, secrets: dict[str, Path], tmp_path: Path) -> None:
    """No endpoint gives or reads a file of the server that was named instead of sent.

    The former test named files that do not exist or whose suffix is refused anyway: it could not fail.
    """
    visitor: Visitor = visit()
    (own,) = visitor.upload(write_tiff(tmp_path / "own.tif"))
    reached = 0
    for kind, secret in secrets.items():
        digest = sha256(secret.read_bytes()).hexdigest()
        every = kind == "text" and visitor.login is None  # a login changes whose a file is, not how it is spelled
        for number, named in enumerate([*spellings(secret, own)][: None if every else 4]):
            for endpoint, kinds in visitor.endpoints():
                if not set(kinds) & set(FILE_FIELDS):
                    continue
                reached += 1
                session = f"{kind}{number}-{endpoint['id']}"
                for reply in visitor.replies(endpoint, filled(kinds, named), session):
                    assert SECRET not in reply, (endpoint["api_name"], named)
                    assert digest not in reply, (endpoint["api_name"], named)
                    assert secret.name not in reply, (endpoint["api_name"], named)
                    assert not answered(reply) or named == spelled_own(own, secret), (endpoint["api_name"], named)
    assert reached > 50


def test_every_endpoint_takes_what_was_uploaded(visit: Any, tmp_path: Path) -> None:
    """The other side of the test above: the same calls with an own upload are answered."""
    visitor: Visitor = visit()
    (own,) = visitor.upload(write_tiff(tmp_path / "own.tif"))
    fields = [(e, kinds) for e, kinds in visitor.endpoints() if set(kinds) & set(FILE_FIELDS)]
    assert len(fields) >= 4
    for endpoint, kinds in fields:
        data = filled(kinds, {"path": own, "meta": META})
        if endpoint["api_name"] == "captions":  # files, or a folder of the server
            data[1] = ""
        told = "".join(visitor.replies(endpoint, data, f"own-{endpoint['id']}"))
        assert '"success":true' in told, (endpoint["api_name"], told[-500:])
        assert "event: complete" in told, (endpoint["api_name"], told[-500:])


def test_files_are_given_to_their_owner_alone(visit: Any, secrets: dict[str, Path], tmp_path: Path) -> None:
    """What exists and is somebody else's looks like what does not exist."""
    ada, bob = visit(), visit(BOB)
    (own,) = ada.upload(write_tiff(tmp_path / "own.tif"))
    get = partial(ada.http.get, headers={"accept-encoding": "identity"})
    assert get(f"/gradio_api/file={own}").content == (tmp_path / "own.tif").read_bytes()
    assert ada.http.head(f"/gradio_api/file={own}").status_code == 200
    nothing = bob.http.get("/gradio_api/file=/nowhere.png")
    assert nothing.status_code == 404
    replies = [bob.http.get(f"/gradio_api/file={own}")]
    for secret in secrets.values():
        named = [item["path"] for item in spellings(secret, own) if isinstance(item, dict) and "path" in item]
        paths = [str(path).replace("\0", "%00") for path in named if path not in (own, "")]
        replies += [ada.http.get(f"/gradio_api/file={path}") for path in paths]
        replies += [ada.http.get(f"/gradio_api/file/{path}") for path in paths[:2]]
    assert {(reply.status_code, reply.content) for reply in replies} == {(404, nothing.content)}
    for way in ("take", "captions", "classify"):
        endpoint, kinds = next((e, k) for e, k in bob.endpoints() if e["api_name"] == way)
        for reply in bob.replies(endpoint, filled(kinds, {"path": own, "meta": META}), f"theft-{way}"):
            assert "own.tif" not in reply
            assert not answered(reply)


def test_a_conversation_is_its_owners_alone(visit: Any, tmp_path: Path) -> None:
    """Another login that knows the session's name finds an empty conversation, and disturbs nothing."""
    ada, bob = visit(), visit(BOB)
    (own,) = ada.upload(write_tiff(tmp_path / "own.tif"))
    asked = {"text": "Ada's own question?", "files": [{"path": own, "meta": META}]}
    assert "Ada's own question?" in ada.ask("take", asked, None, "", "", session="shared")
    assert "own question" not in (told := bob.ask("respond", None, "", "", session="shared"))
    assert "Ask something about a micrograph first." in told
    assert "Add a micrograph first" in bob.ask("take", {"text": "?", "files": []}, None, "", "", session="shared")
    assert "4.2 nm/px" in ada.ask("respond", None, "", "", session="shared")


def test_an_answer_is_its_owners_alone(visit: Any) -> None:
    """Streams, events and cancelling: knowing their names opens nothing, and looks like a name that nobody uses."""
    ada, bob = visit(), visit(BOB)
    size = ada.number("recalibrate")
    event = ada.join(size, [None, ""], "stream").json()["event_id"]
    call = ada.http.post("/gradio_api/call/recalibrate", json={"data": [""]}).json()["event_id"]
    cancel = {"session_hash": "stream", "fn_index": size, "event_id": event}
    thefts = [
        bob.http.get("/gradio_api/queue/data?session_hash=stream"),
        bob.http.get("/gradio_api/queue/data?session_hash=unknown"),
        bob.http.get(f"/gradio_api/call/recalibrate/{call}"),
        bob.http.get(f"/gradio_api/call/recalibrate/{event}"),
        bob.http.get("/gradio_api/call/recalibrate/unknown"),
        bob.http.post("/gradio_api/cancel", json=cancel),
        bob.http.post("/gradio_api/cancel", json=cancel | {"session_hash": "unknown"}),
    ]
    assert {(theft.status_code, theft.content) for theft in thefts} == {(404, thefts[1].content)}
    assert "process_completed" in ada.told("stream")
    assert "event: complete" in ada.http.get(f"/gradio_api/call/recalibrate/{call}").text


WRONG_CALLS = (
    b"", b"{", b"[]", b"null", b"{}", b'{"data": 1}', b'{"data": [NaN]}', b'{"data": ["\\ud800"]}', b"[" * 100000,
    b'{"data": [], "fn_index": "a"}', b'{"data": [], "fn_index": [1]}', b'{"data": [], "fn_index": -1}',
    b'{"data": [], "session_hash": 5}', b'{"data": [], "session_hash": "../x"}', b"\xff\xfe", b" " * 2**21,
)  # fmt: skip


WRONG_VALUES: tuple[Any, ...] = (
    5, [], {}, {"a": {}}, [[[[[[[[[[[]]]]]]]]]]], {"path": 1}, {"text": [], "files": 1},
)  # fmt: skip


def test_a_wrong_call_is_told_why(visit: Any, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    """An honest status and a sentence, never `{"error": null}`; nothing of it in the log."""
    visitor: Visitor = visit()
    caplog.clear()
    paths = ("queue/join", "run/take", "call/take", "run/unknown", "call/unknown", "cancel")
    for path in paths:
        for body in WRONG_CALLS:
            if path == "call/take" and b"fn_index" in body:  # it goes by the name alone
                continue
            reply = visitor.http.post(f"/gradio_api/{path}", content=body)
            assert 400 <= reply.status_code < 500, (path, body[:40], reply.text)
            assert len(reply.json()["error"]["message"]) > 10
    unread = ("deep_link?session_hash=a", "custom_component/a/client/b/c", "dev/reload", "proxy=http://127.0.0.1:9/")
    for path in (*unread, "process_recording", "component_server", "vibe-code/", "run-history/buckets", "upload"):
        assert visitor.http.get(f"/gradio_api/{path}").status_code in (404, 405), path
        assert visitor.http.get(f"/gradio_api/{path}").json()["error"]["message"]
    for endpoint, kinds in visitor.endpoints():
        wrong = [[value] * len(kinds) for value in WRONG_VALUES[: 2 if visitor.login else None]]
        for data in (*wrong, wrong[0][:-1]) if kinds else ():
            if visitor.join(endpoint["id"], data, "wrong").status_code == 200:
                told = visitor.told("wrong")
                assert '"error":null' not in told
                assert "Something went wrong" not in told, (endpoint["api_name"], data)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_upload_that_fails_leaves_nothing(
    visit: Any, url: str, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    """Cut, malformed or too many: told in a sentence where anybody still listens, no file and no line in the log."""
    visitor: Visitor = visit()
    before = stored()
    caplog.clear()
    many = [("files", (f"{n}.tif", b"x")) for n in range(65)]
    refused = [
        visitor.http.post("/gradio_api/upload", files=many),
        visitor.http.post("/gradio_api/upload", data={"files": "text"}),
        visitor.http.post("/gradio_api/upload", data={"files": "text"}, files={"other": b"x"}),
        visitor.http.post("/gradio_api/upload", json={}),
        visitor.http.post("/gradio_api/upload", content=b"x", headers={"content-type": "multipart/form-data"}),
        visitor.http.post(
            "/gradio_api/upload", content=b"x", headers={"content-type": "multipart/form-data; boundary=b"}
        ),
        visitor.http.post("/gradio_api/upload?upload_id=../x", files={"files": b"x"}),
    ]
    for reply in refused:
        assert 400 <= reply.status_code < 500, reply.text
        assert len(reply.json()["error"]["message"]) > 10
    head = visitor.http.build_request(
        "POST", "/gradio_api/upload?upload_id=cut", files={"files": ("a.tif", b"x" * 9999)}
    )
    login = httpx.BasicAuth(*ADA).auth_flow(head)
    next(login)
    headers = "".join(f"{key}: {value}\r\n" for key, value in head.headers.items())
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as peer:
            peer.sendall(f"POST {head.url.raw_path.decode()} HTTP/1.1\r\n{headers}\r\n".encode() + head.read()[:5000])
    deadline = time.monotonic() + 60
    while stored() != before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert stored() == before
    assert visitor.http.get("/healthz").status_code == 200
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def stored() -> set[str]:
    """Names of all files in folders of owners."""
    found = os.walk(os.environ["GRADIO_TEMP_DIR"])
    return {name for folder, _, names in found for name in names if not Path(folder).name.startswith("maemi-")}


def test_streams_that_are_cut_leave_no_line(visit: Any, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    visitor: Visitor = visit()
    caplog.clear()
    for number in range(5):
        visitor.join(visitor.number("recalibrate"), [None, ""], f"cut{number}")
        for path in (f"queue/data?session_hash=cut{number}", f"heartbeat/cut{number}"):
            with visitor.http.stream("GET", f"/gradio_api/{path}") as reply:
                next(reply.iter_raw())
    assert visitor.http.get("/healthz").status_code == 200
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_cookie_is_given_once_and_kept_from_scripts(visit: Any) -> None:
    visitor: Visitor = visit()

    def given(reply: httpx.Response) -> list[str]:
        return [cookie for cookie in reply.headers.get_list("set-cookie") if cookie.startswith("maemi-session=")]

    (cookie,) = given(httpx.get(visitor.url, auth=visitor.login))
    assert re.fullmatch(r"maemi-session=[\w-]{43}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax", cookie)
    assert not given(visitor.http.get("/"))
    assert not given(httpx.get(f"{visitor.url}/healthz"))
    forged = httpx.get(visitor.url, auth=visitor.login, headers={"cookie": "maemi-session=../../x"})
    assert given(forged)


def test_the_progress_of_an_upload_is_told(visit: Any, tmp_path: Path) -> None:
    """The browser waits for this stream to end."""
    visitor: Visitor = visit()
    parts = {"files": ("own.tif", write_tiff(tmp_path / "own.tif").read_bytes())}
    visitor.http.post("/gradio_api/upload?upload_id=mine", files=parts)
    told = visitor.http.get("/gradio_api/upload_progress?upload_id=mine").text
    assert '"msg": "done"' in told


def test_the_files_go_when_the_server_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is stopped leaves no micrograph behind: the page cleans up as its application shuts down."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))

    async def live() -> list[Path]:
        app, sent = built_here(), [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        there: list[Path] = []

        async def receive() -> Any:
            there.extend(tmp_path.glob("maemi-*"))
            return sent.pop(0)

        async def send(event: Any) -> None:
            assert "failed" not in event["type"], event

        await app({"type": "lifespan", "state": {}}, receive, send)
        return there

    def built_here() -> App:
        return build_app(Desk(MeasuringAssistant(), Gate(), lambda text: len(text.split())))

    (folder, *_) = asyncio.run(live())
    assert not folder.exists()


def test_a_workspace_gives_nobody_elses_files(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "new")
    own = workspace.folder("ada") / "a.txt"
    own.write_text("x")
    assert workspace.owns("ada", str(own))
    for owner, path in (("ad", own), ("bob", own), ("", own), ("ada", own.parent), ("ada", own.with_name("b.txt"))):
        assert not workspace.owns(owner, str(path)), (owner, path)
    assert not workspace.owns("ada", own)
    assert not workspace.owns("ada", f"{own}\0")
    (workspace.root / "tmp1").touch()
    for old in workspace.root.iterdir():
        os.utime(old, (time.time() - LIFETIME_S - 1,) * 2)
    new = workspace.folder("bob")
    assert list(workspace.root.iterdir()) == [new]
    workspace.close()
    assert not workspace.root.exists()

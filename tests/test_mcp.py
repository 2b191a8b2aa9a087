"""MAEMI as a tool: a real client over stdio and over HTTP, pictures both ways, and nothing that was not allowed."""

import asyncio
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from measuring import MeasuringAssistant, write_tiff
from PIL import Image
from serving import data_uri, running

from assistant.errors import ConfigError
from serve.desk.desk import Desk
from serve.desk.gate import Gate
from serve.desk.sandbox import Sandbox
from serve.desk.store import AnswerStore
from serve.http.guard import Guard, read_credentials
from serve.verbs.mcp import parse_address

pytest.importorskip("mcp", reason="the extra [mcp] is not installed")

from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from serve.mcp_tools import Tools

ROOT = Path(__file__).parents[1]
TOOLS = {"read", "measure", "ask", "classify", "similar"}
KEY = "a-key-of-sixteen-letters"
Maemi = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An allowed folder with three pictures, beside one that is not allowed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "lots" / "a").mkdir(parents=True)
    for number in range(3):
        write_tiff(tmp_path / "lots" / "a" / f"discs_{number}.tif", number)
    write_tiff(tmp_path / "secret.tif")
    (tmp_path / "lots" / "out.tif").symlink_to(tmp_path / "secret.tif")
    (tmp_path / "lots" / "up").symlink_to(tmp_path)
    return tmp_path / "lots"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


def tools(lots: Path, sandbox: Sandbox, store: AnswerStore | None = None, **assistant: Any) -> Tools:
    desk = Desk(MeasuringAssistant(**assistant), Gate(), len, store, sandbox.read)
    return Tools(lambda: desk, desk.gate, sandbox.read, [lots])


def called(tools: Tools, name: str, **arguments: Any) -> Any:
    """The result of a tool, by a client in this process."""

    async def call() -> Any:
        async with Client(tools.server(), mode="legacy") as client:
            return await client.call_tool(name, arguments)

    return asyncio.run(call())


def failure(result: Any) -> str:
    assert result.is_error
    assert "Traceback" not in result.content[0].text
    return str(result.content[0].text.partition(": ")[2])


def pictures(result: Any) -> list[Image.Image]:
    sent = [part for part in result.content if part.type == "image"]
    assert {part.mime_type for part in sent} <= {"image/png"}
    return [Image.open(io.BytesIO(base64.b64decode(part.data))) for part in sent]


# ---- what the tools do


def test_read_tells_what_info_tells_and_shows_the_picture(lots: Path, sandbox: Sandbox) -> None:
    result = called(tools(lots, sandbox), "read", image="a/discs_0.tif")
    assert not result.is_error
    told = json.loads(result.content[0].text)
    assert told == result.structured_content
    assert (told["path"], told["dtype"], told["pixel_size_nm"]) == ("a/discs_0.tif", "uint16", pytest.approx(4.2))
    (shown,) = pictures(result)
    assert shown.size == (128, 96)
    assert np.ptp(np.asarray(shown)) > 200  # 16 bit, windowed
    whole = called(tools(lots, sandbox), "read", image=str(lots / "a/discs_0.tif"), pixel_size="2 nm")
    assert whole.structured_content["pixel_size_nm"] == pytest.approx(2)


@pytest.mark.parametrize("way", ["uri", "base64"])
def test_a_picture_can_be_sent_instead_of_named(lots: Path, sandbox: Sandbox, way: str) -> None:
    uri = data_uri(lots / "a" / "discs_0.tif")
    result = called(tools(lots, sandbox), "measure", image=uri if way == "uri" else uri.partition(",")[2])
    told = result.structured_content
    facts = {fact["name"]: fact for fact in told["facts"]}
    assert facts["count"]["value"] == 9
    assert facts["mean_diameter"]["unit"] == "nm"
    assert facts["mean_diameter"]["value"] == pytest.approx(16 * 4.2, rel=0.08)
    assert told["figure"] == told["figures"][0]
    assert pictures(result)[0].size == (1024, 768)
    assert set(told["not_known"]).isdisjoint(facts)


def test_a_figure_can_be_chosen(lots: Path, sandbox: Sandbox) -> None:
    mine = tools(lots, sandbox)
    assert called(mine, "measure", image="a/discs_0.tif", figure="grey").structured_content["figure"] == "grey"
    assert failure(called(mine, "measure", image="a/discs_0.tif", figure="moon")).startswith("no_figure: ")


def test_an_answer_comes_with_its_proof_and_is_kept(lots: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    with contextlib.closing(AnswerStore(tmp_path / "book.sqlite")) as book:
        mine = tools(lots, sandbox, book)
        shown = ["a/discs_0.tif", data_uri(lots / "a/discs_1.tif")]
        result = called(mine, "ask", images=shown, question="How many?")
        (entry,) = book.entries(limit=5)
    told = result.structured_content
    assert told.keys() == {"answer", "images", "facts", "statements", "warnings"}
    assert "2 image(s)" in told["answer"]
    assert [image["path"] for image in told["images"]] == ["a/discs_0.tif", None]
    assert (entry.user, entry.question) == ("local", "How many?")
    assert entry.answer.strip() == told["answer"]


def test_classify_and_similar(lots: Path, sandbox: Sandbox) -> None:
    mine = tools(lots, sandbox)
    labels = ["particles", "lines"]
    told = called(mine, "classify", image="a/discs_0.tif", labels=labels).structured_content
    assert told["verdict"] == "particles"
    assert sum(score["probability"] for score in told["scores"]) == pytest.approx(1)
    assert failure(called(mine, "classify", image="a/discs_0.tif", labels=["a", "a"])).startswith("bad_labels: ")
    result = called(mine, "similar", image="a/discs_0.tif", folder=".", top=5, where=["count = 9"])
    found = result.structured_content
    assert {one["path"] for one in found["similar"]} == {"a/discs_1.tif", "a/discs_2.tif"}
    assert [failed["code"] for failed in found["failed"]] == ["not_a_file"]  # the link is not followed
    assert len(pictures(result)) == 2


# ---- what is not allowed


@pytest.mark.parametrize(
    "image",
    ["../secret.tif", "{outside}", "out.tif", "up/secret.tif", "a/../../secret.tif", "none.tif", "a\0b", "~/x.tif", ""],
)
def test_no_path_leaves_the_allowed_folders(lots: Path, sandbox: Sandbox, image: str) -> None:
    """Seen failing for the linked folder while paths were compared before links were followed."""
    result = called(tools(lots, sandbox), "read", image=image.format(outside=lots.parent / "secret.tif"))
    assert failure(result).partition(":")[0] in ("not_allowed", "not_found", "not_a_file")
    assert str(lots) not in result.content[0].text


def test_without_a_folder_only_sent_pictures_are_read(lots: Path, sandbox: Sandbox) -> None:
    closed = Tools(tools(lots, sandbox).desk, Gate(), sandbox.read)
    assert failure(called(closed, "read", image=str(lots / "a" / "discs_0.tif"))).startswith("not_allowed: ")
    assert not called(closed, "read", image=data_uri(lots / "a" / "discs_0.tif")).is_error
    assert failure(called(closed, "read", image="http://127.0.0.1/x.tif")).startswith("not_allowed: ")


def test_a_fault_of_ours_is_told_by_its_number_alone(
    lots: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr("serve.mcp_tools.found_in", broken)
    told = failure(called(tools(lots, sandbox), "measure", image="a/discs_0.tif"))
    assert told.startswith("internal: ")
    assert "swordfish" not in told
    assert "swordfish" in caplog.text


def test_wrong_arguments_are_told(lots: Path, sandbox: Sandbox) -> None:
    refused = called(tools(lots, sandbox), "classify", image="a/discs_0.tif", labels=["one"])
    assert "labels" in refused.content[0].text
    assert called(tools(lots, sandbox), "ask", images=[], question="?").is_error
    assert failure(called(tools(lots, sandbox), "read", image="a/discs_0.tif", pixel_size="big")).startswith(
        "bad_pixel_size: "
    )


# ---- over stdio


def environment(tmp_path: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from students import tiny_run

    from assistant.checkpoint import save_model

    folder = tmp_path_factory.mktemp("student")
    save_model(tiny_run(folder / "base"), folder / "run")
    return folder / "run"


def test_a_client_starts_it_over_stdio_and_asks(lots: Path, student: Path, tmp_path: Path) -> None:
    """A real process with a real student; the handshake of today's clients."""
    arguments = ["-m", "serve.cli", "mcp", "--root", str(lots), "--run", str(student)]
    parameters = StdioServerParameters(command=sys.executable, args=arguments, env=environment(tmp_path), cwd=ROOT)

    async def talk() -> dict[str, Any]:
        async with Client(parameters, mode="legacy", read_timeout_seconds=570) as client:
            listed = await client.list_tools()
            assert {tool.name for tool in listed.tools} == TOOLS
            assert all(tool.description and tool.annotations.read_only_hint for tool in listed.tools)
            image = {"image": "a/discs_0.tif"}
            return {
                "read": await client.call_tool("read", image),
                "measure": await client.call_tool("measure", image),
                "ask": await client.call_tool("ask", {"images": ["a/discs_0.tif"], "question": "How many are there?"}),
                "gone": await client.call_tool("read", {"image": "gone.tif"}),
            }

    results = asyncio.run(talk())
    assert failure(results.pop("gone")).startswith("not_allowed: ")
    assert {name for name, result in results.items() if result.is_error} == set()
    assert "9" in results["ask"].structured_content["answer"]


def test_stdout_carries_the_protocol_and_nothing_else(lots: Path, student: Path, tmp_path: Path) -> None:
    """It ends with its stdin, and what is not JSON is answered and not died of."""
    client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    lines = [
        json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": client}),
        json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        "this is no JSON",
        json.dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.cli", "mcp", "--run", str(student)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment(tmp_path),
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in lines:
            process.stdin.write(line + "\n")
        process.stdin.flush()
        replies: dict[int, Any] = {}
        while 2 not in replies:
            reply = json.loads(process.stdout.readline())
            assert reply["jsonrpc"] == "2.0"
            replies[reply.get("id")] = reply
        rest, errors = process.communicate(timeout=120)
    assert {tool["name"] for tool in replies[2]["result"]["tools"]} == TOOLS
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in rest.splitlines())
    assert process.returncode == 0
    assert "Traceback" not in errors


# ---- over HTTP


@asynccontextmanager
async def connected(url: str, key: str | None, mode: str = "legacy") -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=120) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


@pytest.fixture
def site(lots: Path, sandbox: Sandbox, tmp_path: Path) -> Iterator[tuple[str, AnswerStore]]:
    """A server with one key, as the verb puts it together, but for the model."""
    logins = tmp_path / "logins.txt"
    logins.write_text(f"{KEY}\nana:correct horse\n")
    with contextlib.closing(AnswerStore(tmp_path / "book.sqlite")) as book:
        application = tools(lots, sandbox, book).application()
        with running(Guard(application, credentials=read_credentials(logins))) as url:
            yield url, book


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_a_client_with_a_key_uses_it_over_http(site: tuple[str, AnswerStore], lots: Path, mode: str) -> None:
    url, book = site

    async def talk() -> Any:
        async with connected(url, KEY, mode) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            uri = data_uri(lots / "a" / "discs_0.tif")
            assert not (await client.call_tool("measure", {"image": uri})).is_error
            return await client.call_tool("ask", {"images": [uri], "question": "How many?"})

    assert not asyncio.run(talk()).is_error
    (entry,) = book.entries(limit=5)
    assert entry.user == "key-1"  # the book says who asked


@pytest.mark.parametrize("key", [None, "a-wrong-key-of-many-letters"])
def test_without_a_key_nobody_comes_in(site: tuple[str, AnswerStore], key: str | None) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {"accept": "application/json, text/event-stream"} | ({"authorization": f"Bearer {key}"} if key else {})
    reply = httpx2.post(f"{site[0]}/mcp", json=body, headers=headers)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert httpx2.get(f"{site[0]}/healthz").json() == {"status": "ok"}


def test_another_web_site_and_another_name_are_refused(lots: Path, sandbox: Sandbox) -> None:
    """DNS rebinding: without logins only loopback names are answered."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accept = {"accept": "application/json, text/event-stream"}
    with running(Guard(tools(lots, sandbox).application())) as url:
        for headers, status in (({"host": "evil.example"}, 400), ({"origin": "https://evil.example"}, 403)):
            assert httpx2.post(f"{url}/mcp", json=body, headers=accept | headers).status_code == status


# ---- the command


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7861", ("127.0.0.1", 7861)),
        (":80", ("127.0.0.1", 80)),
        ("[::1]:9", ("::1", 9)),
        ("host:0", None),
        ("7861", None),
        ("host:http", None),
        ("host:99999", None),
    ],
)
def test_an_address(text: str, address: tuple[str, int] | None) -> None:
    if address is not None:
        assert parse_address(text) == address
        return
    with pytest.raises(ConfigError) as raised:
        parse_address(text)
    assert raised.value.code == "bad_address"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--http", "0.0.0.0:7861"], "auth_needed"),
        (["--http", "nonsense"], "bad_address"),
        (["--root", "nowhere"], "no_folder"),
        (["--auth", "logins.txt"], "usage"),
    ],
)
def test_what_cannot_be_done_is_one_line(maemi: Maemi, arguments: list[str], code: str) -> None:
    exit_code, out, err = maemi("mcp", *arguments)
    assert (exit_code, out) == (2, "")
    assert err.startswith(f"error: {code}: ")
    assert err.count("\n") == 1

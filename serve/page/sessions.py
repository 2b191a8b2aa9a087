"""What of a page belongs to whom: every upload, conversation and answer stays with the login and browser that made it.

Stands in front of a mounted Gradio page and lets through the routes the page needs, nothing else. Names that a client
chooses (session, upload) are led by the owner's own before the page sees them, so that nobody can reach another's by
knowing them; no table of names is kept. Knows nothing about what the page does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from gradio.route_utils import upload_fn
from gradio.routes import file_upload_statuses
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from serve.http.guard import App, Event, Receive, Scope, Send, error_body, error_kind
from serve.page.uploads import remove

if TYPE_CHECKING:
    import gradio as gr

    from serve.page.mounting import Blocks

SESSION_COOKIE = "maemi-session"
KEPT_S = 365 * 24 * 3600
"""Time that a browser keeps the cookie, without which nobody finds their conversations again [s]."""
NO_LOGIN = "local"
TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MAX_FILE = 256 * 2**20
"""Largest uploaded file [byte]."""
MAX_FILES = 64
"""Most files of one upload or one call."""
CALL_LIMIT = 2**20
"""Largest body of a call; files travel as uploads [byte]."""
WATCHED_S = 5.0
"""Time that the progress of a finished upload stays known [s]."""
CODES = {400: "bad_call", 404: "not_found", 405: "wrong_method", 413: "too_large"}
NOT_FOUND = "There is nothing here, or it belongs to somebody else."
PAGES = ("/", "/config")
"""Where a browser or a Gradio client begins; the cookie is given out here."""
ASSETS = ("/theme.css", "/favicon.ico", "/assets/{path:path}", "/static/{path:path}", "/gradio_api/info")

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a malformed upload is told to who sent it

PrepareSession = Callable[[Scope, Receive], Awaitable[Receive]]
"""Puts the owner into a request before the page sees it; returns where its body comes from.

Raises HTTPException.
"""


def owner_of(request: gr.Request | Request) -> str:
    """Who a request comes from, as the beginning of a folder's name."""
    scope: Scope = getattr(request, "request", request).scope
    return str(scope["state"]["owner"])


def keeper_of(request: gr.Request | Request) -> str | None:
    """Whose conversations a request may see: those of its login, else of its browser; None where it has neither."""
    scope: Scope = getattr(request, "request", request).scope
    keeper: str | None = scope["state"]["keeper"]
    return keeper


class Sessions:
    """ASGI application around a page; without a workspace it takes no files and gives none."""

    def __init__(self, app: App, page: Blocks) -> None:
        self._page, self._workspace = page, page.workspace
        through = partial(_Through, app)
        routes = [
            *(Route(path, through(), methods=["GET"]) for path in (*PAGES, *ASSETS)),
            Route("/gradio_api/heartbeat/{session}", through(_own_path), methods=["GET"]),
            Route("/gradio_api/queue/join", through(self._own_call), methods=["POST"]),
            Route("/gradio_api/queue/data", through(self._own_stream), methods=["GET"]),
            Route("/gradio_api/run/{name}", through(self._own_call), methods=["POST"]),
            Route("/gradio_api/call/{name}", through(self._own_call), methods=["POST"]),
            Route("/gradio_api/call/{name}/{event}", through(self._own_event), methods=["GET"]),
            Route("/gradio_api/cancel", through(self._own_cancel), methods=["POST"]),
            Route("/gradio_api/reset", through(), methods=["POST"]),
            *page.routes,
        ]
        if self._workspace is not None:
            routes += [
                Route("/gradio_api/upload", _Through(self._upload), methods=["POST"]),
                Route("/gradio_api/upload_progress", through(_own_upload), methods=["GET"]),
                Route("/gradio_api/file={path:path}", through(self._own_file), methods=["GET"]),
            ]
        self._router = Router(routes, redirect_slashes=False, default=_nothing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        token = Request(scope).cookies.get(SESSION_COOKIE, "")
        token = token if TOKEN.fullmatch(token) else ""
        user = state.get("user", NO_LOGIN)
        state["owner"] = sha256(f"{user}\n{token}".encode()).hexdigest()[:24]
        login = sha256(f"{user}\nconversations".encode()).hexdigest()[:24]
        state["keeper"] = login if user != NO_LOGIN else state["owner"] if token else None
        if not token and scope["path"] in PAGES:
            send = partial(_send_with_cookie, send, scope.get("scheme") == "https")
        try:
            await self._router(scope, receive, send)
        except ClientDisconnect:
            return
        except HTTPException as refusal:
            status, message = refusal.status_code, refusal.detail
            body = error_body(message, code=CODES.get(status, "refused"), kind=error_kind(status))
            reply = Response(body, status, headers=refusal.headers, media_type="application/json")
            await reply(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take files into a fresh folder of their owner; nothing of an upload that is refused or cut stays."""
        assert self._workspace is not None
        request = Request(scope, receive)
        folder = await asyncio.to_thread(self._workspace.folder, owner_of(request))
        try:
            files = await _receive_files(request, folder)
        except BaseException:
            remove(folder)
            raise
        await JSONResponse(files)(scope, receive, send)

    async def _own_call(self, scope: Scope, receive: Receive) -> Receive:
        call = await _read_call(scope, receive)
        if not isinstance(call.get("data"), list):
            raise HTTPException(400, "The call has no list `data`.")
        named = (n for n, fn in self._page.fns.items() if fn.api_name == scope["path_params"].get("name"))
        given = None if "/call/" in scope["path"] else call.get("fn_index")
        number, trigger = self._endpoint(next(named, None) if given is None else given), call.get("trigger_id")
        if "/run/" in scope["path"] and self._page.fns[number].queue:
            raise HTTPException(
                404, "This endpoint is reached through /gradio_api/queue/join or /gradio_api/call/NAME."
            )
        session = _owned(scope, call.get("session_hash") or secrets.token_urlsafe(16))
        known = {"data": call["data"], "fn_index": number, "session_hash": session}
        known["event_data"] = _plain_event(call.get("event_data"))
        return _replayed(known | {"trigger_id": trigger if isinstance(trigger, int) else None}, scope, receive)

    async def _own_cancel(self, scope: Scope, receive: Receive) -> Receive:
        call = await _read_call(scope, receive)
        event, session = str(call.get("event_id")), _owned(scope, call.get("session_hash"))
        if event not in self._page._queue.pending_event_ids_session.get(session, ()):
            raise HTTPException(404, NOT_FOUND)
        number = self._endpoint(call.get("fn_index"))
        return _replayed({"event_id": event, "session_hash": session, "fn_index": number}, scope, receive)

    def _endpoint(self, number: object) -> int:
        """The number of an endpoint that the page has and that runs here, not in the browser."""
        if not isinstance(number, int) or number not in self._page.fns or self._page.fns[number].fn is None:
            raise HTTPException(404, "The page has no such endpoint.")
        return number

    async def _own_event(self, scope: Scope, receive: Receive) -> Receive:
        event, prefix = scope["path_params"]["event"], f"{scope['state']['owner']}-"
        waiting = self._page._queue.pending_event_ids_session.items()
        if not any(event in events for session, events in waiting if session.startswith(prefix)):
            raise HTTPException(404, NOT_FOUND)
        return receive

    async def _own_stream(self, scope: Scope, receive: Receive) -> Receive:
        session = _own_query(scope, "session_hash")
        if session not in self._page._queue.pending_messages_per_session:
            raise HTTPException(404, NOT_FOUND)
        return receive

    async def _own_file(self, scope: Scope, receive: Receive) -> Receive:
        assert self._workspace is not None
        if not self._workspace.owns(scope["state"]["owner"], scope["path_params"]["path"]):
            raise HTTPException(404, NOT_FOUND)
        return receive


class _Through:
    """A request that goes on to the page once `prepare` has put its owner's names into it."""

    def __init__(self, app: App, prepare: PrepareSession | None = None) -> None:
        self._app, self._prepare = app, prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._prepare is not None:
            receive = await self._prepare(scope, receive)
        await self._app(scope, receive, send)


async def _receive_files(request: Request, folder: Path) -> list[str]:
    name = request.query_params.get("upload_id")
    upload = _owned(request.scope, name) if name else None
    progress = file_upload_statuses if upload else None
    try:
        files, *_ = await upload_fn(request, folder, MAX_FILE, upload, upload_progress=progress)
    except MultiPartException as error:
        raise HTTPException(413 if "maximum allowed size" in error.message else 400, error.message) from None
    except TypeError:
        raise HTTPException(400, "The field `files` holds text. Send files.") from None
    finally:
        if upload:
            file_upload_statuses.set_done(upload)
            asyncio.get_running_loop().call_later(WATCHED_S, _forget_upload, upload)
    if not 1 <= len(files) <= MAX_FILES:
        raise HTTPException(400, f"Send 1 to {MAX_FILES} files in the field `files`.")
    return list(files)


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404, NOT_FOUND)


async def _own_path(scope: Scope, receive: Receive) -> Receive:
    scope["path"] = f"/gradio_api/heartbeat/{_owned(scope, scope['path_params']['session'])}"
    scope["raw_path"] = scope["path"].encode()
    return receive


async def _own_upload(scope: Scope, receive: Receive) -> Receive:
    _own_query(scope, "upload_id")
    return receive


def _own_query(scope: Scope, key: str) -> str:
    name = _owned(scope, dict(parse_qsl(scope["query_string"].decode("latin-1"))).get(key))
    scope["query_string"] = urlencode({key: name}).encode()
    return name


def _owned(scope: Scope, name: object) -> str:
    """A name that a client chose, led by its owner's."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise HTTPException(400, "The name of the session or the upload is missing or malformed.")
    return f"{scope['state']['owner']}-{name}"


async def _read_call(scope: Scope, receive: Receive) -> dict[str, Any]:
    body = bytearray()
    async for piece in Request(scope, receive).stream():
        body += piece
        if len(body) > CALL_LIMIT:
            raise HTTPException(413, f"The call is larger than {CALL_LIMIT // 2**10} KiB. Upload files first.")
    try:
        call = json.loads(body)
        json.dumps(call, ensure_ascii=False, allow_nan=False).encode()  # no half characters, no NaN
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is not JSON in UTF-8.") from None
    if not isinstance(call, dict):
        raise HTTPException(400, "The body is no JSON object.")
    return call


def _plain_event(event: object) -> dict[str, Any]:
    """Of what a browser tells about an event, what the page reads: which message, its words, a thumb."""
    told = event if isinstance(event, dict) else {}
    place = told.get("index")
    if isinstance(place, list):  # of a message with several parts
        place = next(iter(place), None)
    words, liked = told.get("value"), told.get("liked")
    return {
        "index": place if isinstance(place, int) else None,
        "value": words if isinstance(words, str) else "",
        "previous_value": "",
        "liked": liked if isinstance(liked, bool) else "",
    }


def _replayed(call: Mapping[str, Any], scope: Scope, receive: Receive) -> Receive:
    """A body anew, then whatever the client sends."""
    content = json.dumps(call).encode()
    ours = {b"content-type": b"application/json", b"content-length": str(len(content)).encode()}
    scope["headers"] = [*((name, value) for name, value in scope["headers"] if name not in ours), *ours.items()]
    body: list[Event] = [{"type": "http.request", "body": content, "more_body": False}]

    async def replay() -> Event:
        return body.pop() if body else await receive()

    return replay


async def _send_with_cookie(send: Send, secure: bool, event: Event) -> None:
    if event["type"] == "http.response.start":
        # Lax, not Strict: after a link from another site a Strict cookie would be missing, and replaced.
        token = f"{SESSION_COOKIE}={secrets.token_urlsafe(32)}"
        cookie = f"{token}; Path=/; Max-Age={KEPT_S}; HttpOnly; SameSite=Lax{'; Secure' * secure}"
        event["headers"] = [*event.get("headers", ()), (b"set-cookie", cookie.encode())]
    await send(event)


def _forget_upload(upload: str) -> None:
    file_upload_statuses.stop_tracking(upload)
    file_upload_statuses._signals.pop(upload, None)

"""The viewer's pages, pictures and tiles over HTTP, each only for the owner of the file. Knows Starlette, no Gradio."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from assistant.errors import ConfigError, MaemiError, ServerError
from assistant.micrograph import Micrograph
from assistant.readers.window import Window
from serve.desk.answering import parse_pixel_size
from serve.desk.desk import Desk
from serve.http.guard import error_body, error_kind
from serve.page.viewer.album import Album, Opened, PictureKey
from serve.page.viewer.records import Measured, compared_record, evidence_record, measured, picture_record

STATIC = Path(__file__).with_name("static")
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".txt": "text/plain"}
_LONGEST = 1024
"""Most characters of a parameter."""
TILE_LIFE_S = 600
"""Time that a browser keeps a tile; the file behind its address never changes [s]."""
_WHOLE = re.compile(r"[0-9]{1,6}")
MISSING = ("not_found", "no_such_page", "no_such_tile")

_Endpoint = Callable[[Request], Awaitable[Response]]
Find = Callable[[Request, str], Path | None]
"""The file that a request may see under a name; None where there is none, or it belongs to somebody else."""


def viewer_routes(desk: Desk, find: Find) -> list[Route]:
    """Everything under `/viewer`."""
    viewer = Viewer(desk, find)
    answers = {name: getattr(viewer, name) for name in ("picture", "tile", "measured", "compared", "evidence")}
    files = {
        f"/viewer/{path.name}": path
        for path in sorted(STATIC.iterdir())
        if path.suffix in _KINDS and path.suffix != ".html"
    }
    files["/viewer"] = STATIC / "viewer.html"
    return [
        *(Route(f"/viewer/{name}", _refusing(answer), methods=["GET"]) for name, answer in answers.items()),
        *(Route(place, _file(path), methods=["GET"]) for place, path in files.items()),
    ]


class Viewer:
    """What the viewer's addresses answer."""

    def __init__(self, desk: Desk, find: Find) -> None:
        self._desk, self._find = desk, find
        self._album = Album(desk.reader, desk.gate)

    async def picture(self, request: Request) -> Response:
        """The frame, the calibration and the grey values of a picture."""
        path, _, _ = key = await self._named(request)
        return _json(picture_record(path.name, await self._album.open(key)))

    async def tile(self, request: Request) -> Response:
        """One tile as a PNG."""
        opened = await self._album.open(await self._named(request))
        level, column, row = (_whole(request, name) for name in ("level", "x", "y"))
        window = Window(_number(request, "low"), _number(request, "high"))
        png = await self._album.run(opened.pyramid.tile, level, column, row, window)
        return Response(png, media_type="image/png", headers={"cache-control": f"private, max-age={TILE_LIFE_S}"})

    async def measured(self, request: Request) -> Response:
        """What was measured in a picture, and where."""
        opened = await self._album.open(await self._named(request))
        return Response((await self._measured(opened)).record, media_type="application/json")

    async def compared(self, request: Request) -> Response:
        """Two pictures, quantity by quantity."""
        pair = [await self._named(request), await self._named(request, "with", "2")]
        known = [(await self._measured(await self._album.open(key))).known for key in pair]
        return _json(compared_record(*known))

    async def evidence(self, request: Request) -> Response:
        """Which parts of a picture its class rests on, and where they lie."""
        opened = await self._album.open(await self._named(request))
        label = (await self._measured(opened)).known.get("class")
        answerer: Any = self._desk.answerer
        if label is None or not hasattr(answerer, "explain_label"):
            raise ConfigError("no_evidence", "No class of this picture is known, so there is nothing to explain.")

        def look(micrograph: Micrograph) -> dict[str, Any]:
            found = answerer.explain_label(micrograph, [label.text], turn=self._desk.gate.patient_turn)
            return evidence_record(micrograph, found)

        return _json(await self._album.found(opened, "evidence", look, by_turns=True))

    async def _measured(self, opened: Opened) -> Measured:
        return await self._album.found(
            opened, "measured", lambda micrograph: measured(micrograph, self._desk.answerer.facts_of(micrograph))
        )

    async def _named(self, request: Request, name: str = "file", number: str = "") -> PictureKey:
        """The file that a request names, which must be its owner's; its page; the pixel size for files without one."""
        page, size = f"page{number}", f"size{number}"
        path = await self._album.run(self._find, request, request.query_params.get(name, "")[:_LONGEST])
        if path is None:
            raise ConfigError("not_found", "There is nothing here, or it belongs to somebody else.")
        nm = parse_pixel_size(request.query_params.get(size, "")[:_LONGEST])
        return path, _whole(request, page) if page in request.query_params else None, nm


def _refusing(answer: _Endpoint) -> _Endpoint:
    """The same, its errors as replies that say what is wrong."""

    async def answered(request: Request) -> Response:
        try:
            return await answer(request)
        except MaemiError as error:
            status = 503 if isinstance(error, ServerError) else 404 if error.code in MISSING else 400
            body = error_body(error.message, code=error.code, kind=error_kind(status))
            return Response(body, status, media_type="application/json")

    return answered


def _file(path: Path) -> _Endpoint:
    async def answered(_: Request) -> Response:
        return FileResponse(path, media_type=_KINDS[path.suffix], headers={"cache-control": "no-cache"})

    return answered


def _json(record: object) -> Response:
    return Response(json.dumps(record, allow_nan=False), media_type="application/json")


def _whole(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if not _WHOLE.fullmatch(text):
        raise ConfigError("bad_parameter", f"The parameter `{name}` is no whole number from 0 to 999999.")
    return int(text)


def _number(request: Request, name: str) -> float:
    try:
        number = float(request.query_params.get(name, "")[:_LONGEST])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError("bad_parameter", f"The parameter `{name}` is no number.")
    return number

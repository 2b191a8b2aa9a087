"""A conversation to keep elsewhere: one HTML file that needs nothing else, or Markdown with its pictures in a zip.

Knows nothing about how a conversation came about.
"""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from assistant.errors import MaemiError
from serve import wording
from serve.page.marked import model_line

if TYPE_CHECKING:
    from jinja2 import Template

    from serve.desk.conversations import Dialogue, KeptPicture

VERSIONS = ("maemi", "torch", "transformers", "onnxruntime", "scikit-image")


@dataclass(frozen=True)
class SavedPicture:
    """A picture with what is known of it, in words."""

    name: str
    file: str
    """Where it lies in the zip."""
    png: bytes
    calibration: str
    sha256: str
    found: list[tuple[str, str]]
    facts: list[tuple[str, str, str]]
    """Name, value, method."""
    warnings: list[str]

    @property
    def uri(self) -> str:
        """The picture as a `data:` URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def routes_of(find: Callable[[Request, str], Dialogue]) -> list[Route]:
    """The addresses of saved conversations; `find` gives one that a request may see, or raises MaemiError."""

    def reply(request: Request, form: str) -> Response:
        try:
            conversation = find(request, request.path_params["id"])
        except MaemiError as error:
            return JSONResponse({"error": {"code": error.code, "message": error.message}}, 404)
        content = as_html(conversation).encode() if form == "html" else as_markdown_zip(conversation)
        kind = "text/html; charset=utf-8" if form == "html" else "application/zip"
        headers = {
            "content-disposition": f"attachment; filename*=UTF-8''{quote(f'{file_stem(conversation)}.{form}')}",
            "cache-control": "no-store",
        }
        return Response(content, media_type=kind, headers=headers)

    return [
        Route(f"/conversations/{{id}}.{form}", partial(reply, form=form), methods=["GET"]) for form in ("html", "zip")
    ]


def as_html(conversation: Dialogue) -> str:
    """One HTML file with everything in it."""
    return template("saved.html.j2").render(**_content(conversation))


def as_markdown_zip(conversation: Dialogue) -> bytes:
    """`conversation.md` and the pictures it shows."""
    content, buffer = _content(conversation), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for picture in content["pictures"]:
            archive.writestr(picture.file, picture.png, zipfile.ZIP_STORED)
        archive.writestr("conversation.md", template("saved.md.j2").render(**content))
    return buffer.getvalue()


def file_stem(conversation: Dialogue) -> str:
    """A title as the name of a file."""
    return re.sub(r"[^\w.-]+", "-", conversation.title).strip("-.")[:60] or "conversation"


def versions() -> str:
    """What wrote a file, in words."""
    return ", ".join(f"{name} {version(name)}" for name in VERSIONS)


def _content(conversation: Dialogue) -> dict[str, Any]:
    """What both templates say."""
    shown = {
        id(picture): _saved(picture, f"pictures/{number}.png")
        for number, picture in enumerate(conversation.pictures, 1)
    }
    said = [
        {
            "exchange": exchange,
            "pictures": [shown[id(picture)] for picture in exchange.pictures],
            "model": model_line(exchange),
            "statements": [wording.statement_row(statement) for statement in exchange.statements],
        }
        for exchange in conversation.exchanges
    ]
    return {"conversation": conversation, "said": said, "pictures": list(shown.values()), "versions": versions()}


def _saved(picture: KeptPicture, file: str) -> SavedPicture:
    info = picture.info
    return SavedPicture(
        name=picture.name,
        file=file,
        png=picture.shown.read_bytes(),
        calibration=wording.calibration_words(info),
        sha256=info["sha256"],
        found=[row for row in wording.reading(info) if row[0] != "Pixel size"],
        facts=wording.fact_rows(picture.facts),
        warnings=list(info["warnings"]),
    )


@lru_cache
def template(name: str) -> Template:
    """A template beside this file; HTML is escaped, and so is what Markdown would take for markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = lambda words: re.sub(
        r"([\\`*_{}\[\]<>#|!~&])", r"\\\1", " ".join(str(words).split())
    )
    return environment.get_template(name)

"""MAEMI as a tool of other assistants, by the Model Context Protocol: read, measure, ask, classify, similar.

Pictures come in as paths under allowed folders or as data in the call, and go out beside the facts. Knows nothing
about transports, logins or how an answer is made.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import CallToolResult, ContentBlock, ImageContent, TextContent, ToolAnnotations
from PIL import Image
from pydantic import Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from assistant.conditions import read_condition
from assistant.errors import ConfigError, MaemiError, MicrographError
from assistant.measure import figures, found_in, measure
from assistant.micrograph import Micrograph
from assistant.readers.window import windowed
from assistant.similar import find_similar
from serve.desk.answering import Proof, Question, Reader, parse_pixel_size, read_images
from serve.desk.gate import Gate
from serve.http.conversation import ApiError, image_bytes

if TYPE_CHECKING:
    from serve.desk.desk import Desk

BODY_LIMIT = 96 * 2**20
"""Largest request over HTTP, pictures included [byte]."""
MOST_IMAGES = 8
"""Pictures of one question, or of each label."""
MOST_SIMILAR = 20
SHOWN_SIMILAR = 3
"""Pictures that `similar` sends along."""
_LOOKED_AT = 200
"""New pictures of a folder that one call of `similar` looks at."""
_SIDE = 768
"""Longest side of a picture that is sent along [px]."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\s_-]{120,}={0,2}\s*")
_INSTRUCTIONS = (
    "Reads and measures electron micrographs (SEM, TEM) on this machine. Numbers come with unit, method and "
    "confidence: quote them as they are. What is not known is said; do not fill it in."
)
_log = logging.getLogger("maemi.mcp")

ImageText = Annotated[
    str, Field(description="A path under an allowed folder, or the picture as data:image/...;base64,... (TIFF too).")
]
PixelSizeText = Annotated[str | None, Field(description="Pixel size, such as '4.2 nm', instead of what the file says.")]


@dataclass(frozen=True)
class Tools:
    """The tools over one desk; each waits for its turn at the gate and answers with JSON and pictures."""

    desk: Callable[[], Desk]
    """The model with all that stands behind it; called when a tool first needs it."""
    gate: Gate
    read_file: Reader
    roots: Sequence[Path] = ()
    """Folders whose pictures may be read by path."""

    def server(self) -> MCPServer[Any]:
        """The tools as a server without a transport."""
        server: MCPServer[Any] = MCPServer(
            "maemi", instructions=_INSTRUCTIONS, version=version("maemi"), log_level="WARNING", subscriptions=False
        )
        hints = ToolAnnotations(read_only_hint=True, open_world_hint=False)
        for tool in (self.read, self.measure, self.ask, self.classify, self.similar):
            server.add_tool(tool, annotations=hints, structured_output=False)
        return server

    def application(self) -> Starlette:
        """The same over streamable HTTP, at `/mcp`, with `/healthz` beside it; Host and logins are the guard's.

        Every request stands for itself, so there is no session of one login that another could take over.
        """
        server = self.server()

        @server.custom_route("/healthz", methods=["GET"])  # type: ignore[untyped-decorator]
        async def healthz(_: Request) -> Response:
            return JSONResponse({"status": "ok"})

        return server.streamable_http_app(
            json_response=True,
            stateless_http=True,
            max_request_body_size=BODY_LIMIT,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )

    async def read(self, image: ImageText, pixel_size: PixelSizeText = None) -> CallToolResult:
        """Read a micrograph: size, pixel size with its source and confidence, voltage, working distance, magnification,
        detector, date, warnings; with the picture as it is seen, without its info bar."""

        def work() -> CallToolResult:
            m = self._pictures([image], pixel_size)[0]
            return _result(m.info() | {"path": self._named(m.source)}, [_shown(m)])

        return await self._in_turn(work)

    async def measure(
        self,
        image: ImageText,
        pixel_size: PixelSizeText = None,
        figure: Annotated[
            str | None, Field(description="Which figure to send along; the first one if not named.")
        ] = None,
    ) -> CallToolResult:
        """Measure a micrograph: count and size of objects, spacing, coverage, porosity, period, line and fibre width,
        direction, each with unit, method and confidence; with what was measured drawn over the picture."""

        def work() -> CallToolResult:
            m = self._pictures([image], pixel_size)[0]
            found = found_in(m)
            facts, drawn = measure(m, found), figures(m, found)
            if figure is not None and figure not in drawn:
                raise ConfigError("no_figure", f"There is no figure {figure!r}. There is {', '.join(drawn) or 'none'}.")
            chosen = figure or next(iter(drawn), None)
            document = {
                "kind": facts.kind,
                "kind_confidence": facts.kind_confidence,
                "facts": [vars(fact) for fact in facts.applicable()],
                "not_known": [fact.name for fact in facts.items if not fact.applies],
                "figure": chosen,
                "figures": list(drawn),
                "warnings": list(m.warnings),
            }
            return _result(document, [drawn[chosen]] if chosen else [])

        return await self._in_turn(work)

    async def ask(
        self,
        ctx: Context[Any, Any],
        images: Annotated[list[ImageText], Field(min_length=1, max_length=MOST_IMAGES)],
        question: Annotated[str, Field(min_length=1, max_length=4000)],
        pixel_size: PixelSizeText = None,
        context: Annotated[str | None, Field(description="What is known of the sample, in words.")] = None,
    ) -> CallToolResult:
        """Ask a question about one or more micrographs. The answer comes with every statement in it, the fact behind
        each, and warnings."""

        def work() -> CallToolResult:
            pictures = self._pictures(images, pixel_size)
            said = ""
            proof = Proof([], [], [], [])
            for item in self.desk().answer(Question(pictures, question, aux=context), user=_user(ctx)):
                if isinstance(item, str):
                    said += item
                else:
                    proof = item
            for record, picture in zip(proof.images, pictures, strict=True):
                record["path"] = self._named(picture.source)
            return _result({"answer": said.strip(), **proof.as_dict()}, [])

        return await self._in_turn(work)

    async def classify(
        self,
        image: ImageText,
        labels: Annotated[list[str], Field(min_length=2, max_length=50)],
        examples: Annotated[
            dict[str, list[ImageText]] | None, Field(description="For each label a few pictures that show it.")
        ] = None,
        explain: Annotated[
            bool, Field(description="Send along what the label rests on, drawn over the picture.")
        ] = False,
    ) -> CallToolResult:
        """Tell which of some labels a micrograph has, with probabilities; "unknown" where none is sure enough."""

        def work() -> CallToolResult:
            if len(set(labels)) != len(labels):
                raise ConfigError("bad_labels", "One of the labels stands twice. Name each once.")
            m = self._pictures([image], None)[0]
            shown = {label: self._pictures(some, None) for label, some in examples.items()} if examples else None
            answerer = self.desk().answerer
            scores = answerer.classify([m], labels, examples=shown)[0]
            told = [{"label": label, "probability": probability} for label, probability in scores]
            document: dict[str, Any] = {"verdict": scores[0][0], "scores": told}
            if not explain:
                return _result(document, [])
            from assistant.explain import drawn_over

            found = answerer.explain_label(m, labels, examples=shown)  # type: ignore[attr-defined]
            return _result(document | {"explanation": found.as_dict()}, [drawn_over(m, found)])

        return await self._in_turn(work)

    async def similar(
        self,
        image: ImageText,
        folder: Annotated[str, Field(description="A path under an allowed folder, or that folder itself.")],
        top: Annotated[int, Field(ge=1, le=MOST_SIMILAR)] = 5,
        where: Annotated[
            list[str] | None, Field(description="Conditions that must hold, such as 'magnification > 5000'.")
        ] = None,
    ) -> CallToolResult:
        """Find the micrographs of a folder that are most like one, with distance and what is known of each."""

        def work() -> CallToolResult:
            m, place = self._pictures([image], None)[0], self._allowed(folder)
            if not place.is_dir():
                raise ConfigError("no_folder", f"{folder!r} is not a folder. Name the one to search.")
            conditions = [read_condition(text) for text in where or ()]
            found = find_similar(m, place, top=top, where=conditions, most_new=_LOOKED_AT, read=self.read_file)
            document = {
                "similar": [one.as_dict() | {"path": self._named(one.path)} for one in found.pictures],
                "failed": [
                    {"path": self._named(path), "code": error.code, "message": error.message}
                    for path, error in found.failed.items()
                ],
                "left_out": found.undecided,
                "not_looked_at": found.left,
            }
            nearest = [_shown(self.read_file(one.path)) for one in found.pictures[:SHOWN_SIMILAR]]
            return _result(document, nearest)

        return await self._in_turn(work)

    async def _in_turn(self, work: Callable[[], CallToolResult]) -> CallToolResult:
        """Do something once there is a place; whatever goes wrong is told in words. Raises ToolError."""
        try:
            await self.gate.enter()
            return await asyncio.to_thread(partial(_held, self.gate, work))
        except (MaemiError, ApiError) as error:
            raise ToolError(f"{error.code}: {error.message}") from None
        except Exception:
            number = secrets.token_hex(4)
            _log.exception("a tool failed, id %s", number)
            raise ToolError(f"internal: The tool failed (id {number}). The log has the details.") from None

    def _pictures(self, images: Sequence[str], pixel_size: str | None) -> list[Micrograph]:
        """Pictures as they were named or sent. Raises ConfigError, MicrographError and ApiError."""
        sources: list[Path | bytes] = []
        for text in images:
            if text.lstrip()[:5].lower() == "data:":
                sources.append(image_bytes(text))
            elif _BASE64.fullmatch(text):
                sources.append(image_bytes(f"data:image/unknown;base64,{text}"))
            else:
                sources.append(self._allowed(text))
        return read_images(sources, pixel_size_nm=parse_pixel_size(pixel_size), read=self.read_file)

    def _allowed(self, text: str) -> Path:
        """A path under one of the folders, links followed. Raises ConfigError `not_allowed`, MicrographError."""
        if not self.roots:
            raise ConfigError("not_allowed", "No folder was opened by --root. Send the picture as a data: URI.")
        for root in self.roots:
            try:
                path = (root / text).resolve()
                inside = path.is_relative_to(root.resolve())
                if inside and path.exists():
                    return path
            except (OSError, ValueError, RuntimeError):  # a zero byte, a name too long, a loop of links
                raise MicrographError("not_found", "The path does not exist. Check it.") from None
        # Whether a file exists elsewhere is nobody's business: both cases read the same.
        raise ConfigError(
            "not_allowed", f"{text[:80]!r} is in none of the folders opened by --root, or does not exist."
        )

    def _named(self, path: Path | None) -> str | None:
        """A path as a caller may name it: relative to the folder where there is one, else whole."""
        if path is None:
            return None
        inside = len(self.roots) == 1 and path.is_relative_to(self.roots[0].resolve())
        return path.relative_to(self.roots[0].resolve()).as_posix() if inside else str(path)


def _held(gate: Gate, work: Callable[[], CallToolResult]) -> CallToolResult:
    try:
        return work()
    finally:
        gate.leave()


def _result(document: Mapping[str, Any], pictures: Sequence[Image.Image]) -> CallToolResult:
    """JSON as text and as structured content, then pictures as PNG."""
    plain = json.loads(json.dumps(document, default=str))
    content: list[ContentBlock] = [TextContent(type="text", text=json.dumps(plain, ensure_ascii=False))]
    for picture in pictures:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        data = base64.b64encode(stream.getvalue()).decode()
        content.append(ImageContent(type="image", data=data, mime_type="image/png"))
    return CallToolResult(content=content, structured_content=plain)


def _shown(m: Micrograph) -> Image.Image:
    """The sample, windowed, at most `_SIDE` px a side."""
    shown = Image.fromarray(np.rint(windowed(m.specimen, m.window()) * 255).astype(np.uint8))
    shown.thumbnail((_SIDE, _SIDE))
    return shown


def _user(ctx: Context[Any, Any]) -> str:
    """Whose call it is: the login of an HTTP request, else this machine's own user."""
    request = ctx.request_context.request
    return str(getattr(getattr(request, "state", None), "user", "local"))

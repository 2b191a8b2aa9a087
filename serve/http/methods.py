"""A path that is there, asked by a method that it does not take: 405 with what it does take, instead of "nothing here".

Knows nothing about what the routes do.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from serve.http.guard import error_body, error_kind


class WrongMethod(BaseRoute):
    """Stands behind the routes it is told and before whatever catches the rest."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = tuple(routes)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Takes a request whose path fits one of the routes."""
        return (Match.FULL if self._allowed(scope) else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 405."""
        body = error_body("This path does not take that method.", code="wrong_method", kind=error_kind(405))
        allowed = {"allow": ", ".join(sorted(self._allowed(scope)))}
        await Response(body, 405, headers=allowed, media_type="application/json")(scope, receive, send)

    def _allowed(self, scope: Scope) -> set[str]:
        if scope["type"] != "http":
            return set()
        partial = (route for route in self._routes if route.matches(scope)[0] is Match.PARTIAL)
        methods = {method for route in partial for method in getattr(route, "methods", None) or ()}
        return methods | {"HEAD"} if "GET" in methods else methods

"""Request bodies: read within limits, and made sense of outside the event loop.

JSON is parsed in one go while everything else in this process stands still, so what may take long is refused before:
pictures travel as long strings, and what is left of a body that has more structure than any conversation is an attack.
Knows nothing about what is in a body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from serve.http.conversation import ApiError

_T = TypeVar("_T")

API_BODY_LIMIT = 96 * 2**20
"""Largest JSON body [byte]: four frames of 4k x 3k and 16 bit in base64."""
BUFFER_LIMIT = 512 * 2**20
"""Largest sum of the bodies being read or parsed at one time [byte]."""
BODY_DEADLINE_S = 60.0
MOST_COMMAS = 200_000
"""Most commas in a body, those in texts included: they bound what it can be made of. base64 has none."""
SMALL = 256 * 2**10
"""Size up to which a body is parsed at once [byte]."""
PARSERS = ThreadPoolExecutor(1, thread_name_prefix="maemi-parse")
"""One at a time: two would keep the event loop waiting twice as long."""


class Bodies:
    """Reads request bodies within limits on each, on the time they take, and on all of them together."""

    def __init__(self) -> None:
        self._held = 0

    async def parse(self, request: Request, parse: Callable[[bytes], _T]) -> _T:
        """What a blocking function makes of the whole body. Raises its errors, and ApiError 400, 408, 413 or 503."""
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_DEADLINE_S):
                async for chunk in request.stream():
                    body += chunk
                    self._held += len(chunk)
                    if len(body) > API_BODY_LIMIT:
                        raise ApiError(413, "too_large", f"The body is larger than {API_BODY_LIMIT // 2**20} MiB.")
                    if self._held > BUFFER_LIMIT:
                        raise ApiError(503, "busy", "Too much is being uploaded at once. Try again in a few seconds.")
            if len(body) <= SMALL:
                return _parsed(body, parse)
            return await asyncio.get_running_loop().run_in_executor(PARSERS, _parsed, body, parse)
        except TimeoutError:
            raise ApiError(408, "too_slow", "The body came too slowly. Try again.") from None
        except ClientDisconnect:
            raise ApiError(400, "disconnected", "The client went away before the body was complete.") from None
        finally:
            self._held -= len(body)


def _parsed(body: bytearray, parse: Callable[[bytes], _T]) -> _T:
    if body.count(b",") > MOST_COMMAS:
        raise ApiError(413, "too_large", f"The body has more than {MOST_COMMAS} parts. Make the conversation shorter.")
    return parse(bytes(body))

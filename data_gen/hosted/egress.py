"""The only way out of the machine: what would leave, who allowed it, and the one client that may carry it.

Default deny. A picture leaves only as a redacted copy (banner cropped, tags stripped, re-encoded, perhaps smaller) that
stands in the manifest, and the HTTP client cannot be built without a permit for that manifest. Knows nothing about
prompts, replies or money.
"""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import os
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from assistant.errors import EgressError, TeacherError

if TYPE_CHECKING:
    import numpy as np
    from openai import AsyncOpenAI

    from assistant.config import TeachConfig
    from assistant.micrograph import Micrograph

OPENAI_URL = "https://api.openai.com/v1"
EGRESS_LIST = "egress.jsonl"
"""The list of what would leave, in the directory of the data set."""
_SECRET = re.compile(r".*(?:key|token|secret|passw|auth).*|sig|code", re.IGNORECASE)
"""Names of query parameters that carry keys; a query is shown in the manifest and in messages."""
MAX_REPLY_BYTES = 2**20
"""A reply of a few sentences is a few kilobytes; a larger body is not a reply."""


@dataclass(frozen=True)
class ManifestItem:
    """One JSON line of the manifest: a picture that would leave, as it would leave."""

    path: str
    sha256: str
    """Of the file as it lies on disk."""
    sent_sha256: str
    """Of the redacted PNG."""
    bytes: int
    """Size of the redacted PNG."""
    words: str
    """Everything said about the picture beside the question: class, metadata, measured facts."""
    to: str


@dataclass(frozen=True)
class Offer:
    """What a person is asked to allow: the manifest, and how much it lists."""

    manifest: Path
    sha256: str
    """Of the manifest's bytes: leave is given to exactly this list."""
    pictures: int
    bytes: int
    destination: str

    def __str__(self) -> str:
        return f"{self.pictures} pictures ({self.bytes / 1e6:.1f} MB) would leave this machine for {self.destination}"


Consent = bool | str
"""Who allows it: nobody (False), whoever gives the manifest's sha256, or the Python caller (True)."""


class Denied(EgressError):
    """Nobody allowed what the offer says."""

    def __init__(self, offer: Offer, message: str) -> None:
        super().__init__("denied", message)
        self.offer = offer


class Permit:
    """Leave to send exactly the pictures of one manifest to one host; only `grant` makes one."""

    def __init__(self, destination: str, allowed: frozenset[str]) -> None:
        self.destination = destination
        self._allowed = allowed

    def check(self, picture: bytes) -> None:
        """Raises EgressError `not_in_manifest` for bytes that were not shown to the person who allowed the rest."""
        if hashlib.sha256(picture).hexdigest() not in self._allowed:
            raise EgressError(
                "not_in_manifest",
                "A picture differs from the one in the manifest, so it was not sent. Run the same command again "
                "to list what would leave now.",
            )


def display_content(m: Micrograph) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The picture without its banner, and without what was written over it: uint8 [H', W']."""
    return replace(m, pixels=m.specimen, banner=None, sample=None).to_display()


def redact(m: Micrograph, *, longest: int | None = None) -> bytes:
    """A PNG that holds pixels and nothing else: no banner, no tags, no name, no date.

    `longest` bounds the longer side [px]; smaller pictures keep their size.
    """
    from PIL import Image

    picture = Image.fromarray(display_content(m))
    if longest is not None and max(picture.size) > longest:
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=None)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=3)
    return stream.getvalue()


def destination_of(base_url: str | None) -> str:
    """The address a hosted teacher is asked at.

    Raises EgressError `bad_url` for an address that is not plain http(s) or carries a password, and `insecure` for
    http to anything but this machine.
    """
    url = base_url or OPENAI_URL
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise EgressError("bad_url", "teach.base_url must read https://host/path and hold no user name. Correct it.")
    if parts.fragment or any(_SECRET.fullmatch(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise EgressError(
            "bad_url",
            "teach.base_url must hold no # and no key: a query like ?api-version=... is all. Export the key in the "
            "variable that teach.api_key_env names.",
        )
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise EgressError(
            "insecure", f"{url} would carry the pictures in the clear. Use https, or a teacher on this machine."
        )
    return url


def grant(manifest: Path, *, destination: str, allow: Consent) -> Permit:
    """Turn the person's leave for a manifest (JSON lines of `Item`) into a permit.

    Raises Denied without it or with leave for another manifest, and `bad_manifest` where the manifest
    names another destination.
    """
    allowed: set[str] = set()
    size, digest = 0, hashlib.sha256()
    with manifest.open("rb") as stream:
        for line in stream:
            digest.update(line)
            item = json.loads(line)
            if item["to"] != destination:
                raise EgressError("bad_manifest", f"{manifest} was made for {item['to']}. Run teach again to renew it.")
            allowed.add(item["sent_sha256"])
            size += item["bytes"]
    offer = Offer(manifest, digest.hexdigest(), len(allowed), size, destination)
    if isinstance(allow, str) and allow.strip().lower() != offer.sha256:
        raise Denied(
            offer,
            f"The leave is for another manifest: {offer}; its sha256 is {offer.sha256}, and nothing was sent. "
            f"Read {manifest}, then give the new sha256.",
        )
    if not allow:
        raise Denied(
            offer,
            f"{offer}; nothing was sent. Read {manifest}, then allow it with --allow-egress --manifest {offer.sha256}",
        )
    return Permit(destination, frozenset(allowed))


def open_client(
    permit: Permit, config: TeachConfig, *, max_reply_bytes: int = MAX_REPLY_BYTES, keyless: bool = False
) -> AsyncOpenAI:
    """The one HTTP client of the package: no redirects, no proxies from the environment, no retries of its own.

    The query of the destination goes along with every request, and the key in the header that `config` names.
    `keyless`: an endpoint that may want no key, as one on this machine; without one it gets a word that is none.

    Raises TeacherError `no_key` where the environment variable is not set, `bad_ca_file` where the file of certificates
    holds none.
    """
    key = os.environ.get(config.api_key_env, "").strip() or ("none" if keyless else "")
    if not key:
        raise TeacherError(
            "no_key", f"The environment variable {config.api_key_env} is not set. Export the API key in it."
        )

    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    parts = urlsplit(permit.destination)
    header, _, scheme = config.auth_header.partition(":")
    client = AsyncOpenAI(
        api_key=key,
        base_url=urlunsplit(parts._replace(query="")),
        default_query=dict(parse_qsl(parts.query, keep_blank_values=True)),
        default_headers=config.headers,
        max_retries=0,
        http_client=DefaultAsyncHttpxClient(
            follow_redirects=False,
            trust_env=False,
            transport=_transport(
                max_reply_bytes,
                _trust(permit.destination, config.ca_file),
                (header.strip(), f"{scheme.strip()} {key}".strip()),
            ),
        ),
    )
    client.organization = client.project = None  # never taken from the environment
    return client


def _trust(destination: str, ca_file: str | None) -> ssl.SSLContext | bool:
    """Whose certificates are believed; True for the authorities that the system knows."""
    if not destination.startswith("https:"):
        # A teacher on this machine speaks plain HTTP; a context without certificates trusts nobody, and loads at once.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise TeacherError(
            "bad_ca_file", f"teach.ca_file: {ca_file} cannot be used ({error.strerror}). Name a PEM file."
        ) from None


def _transport(most: int, trust: ssl.SSLContext | bool, key_header: tuple[str, str]) -> Any:
    """A transport whose replies end with an error where they pass that many bytes, before they fill the memory.

    The key goes into the one header that carries it here, behind everything that logs headers.
    """
    import httpx2

    class BoundedStream(httpx2.AsyncByteStream):
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            received = 0
            async for chunk in self._stream:
                received += len(chunk)
                if received > most:
                    raise httpx2.DecodingError("the reply is too long")
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    class BoundedTransport(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: Any) -> Any:
            # An unpacked reply could outgrow any bound on the bytes received.
            request.headers["accept-encoding"] = "identity"
            del request.headers["authorization"]
            request.headers[key_header[0]] = key_header[1]
            response = await super().handle_async_request(request)
            if response.headers.get("content-encoding", "identity") != "identity":
                await response.aclose()
                raise httpx2.DecodingError("the reply is packed")
            response.stream = BoundedStream(response.stream)
            return response

    return BoundedTransport(trust_env=False, verify=trust)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

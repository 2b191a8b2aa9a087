"""What an HTTP error of an endpoint says: its own reason in words, which parameters it refuses, what becomes of it.

Knows the shapes in which OpenAI, Azure, vLLM, llama.cpp, Ollama, LiteLLM, Mistral, Groq and the compatible addresses of
Anthropic and Gemini say it. Knows nothing about sending, nor about what is sent instead.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from assistant.errors import TeacherError
from data_gen.hosted.replies import retry_after
from data_gen.teacher import Rejection

REASON_CHARS = 300
_DEPTH = 8
"""As far as the body of an error is looked into."""
LIMITS = {"max_completion_tokens": "max_tokens", "max_tokens": "max_completion_tokens"}
"""The two names of the limit of output tokens, each with the other."""
ADAPTABLE = frozenset({400, 404, 422, 500, 501})
"""Statuses with which endpoints refuse a parameter."""
_REFUSES = re.compile(
    r"unsupported|n[o']t\s+(?:\w+\s+)?(?:support|permit|allow|available|recogni)|un(?:recogni|known|expected|available)|"
    r"invalid|extra|deprecated|only|must be|should be|cannot|can't|forbidden|disabled|fail|range|refus",
    re.IGNORECASE,
)
_OUT_OF_RANGE = re.compile(
    r"too (?:large|big|high|long|many)|at most|at least|exceed|(?:greater|less) than|maximum|minimum|context|"
    r"[<>]=?\s*\d",
    re.IGNORECASE,
)
_NAMES = {
    "response_format": r"response[ _]?format|response[ _]schema|json[ _]?schema|json[ _]object|json mode|"
    r"structured[ _]outputs?|grammar|guided[ _]\w+|invalid format",
}
"""How a parameter is spelt in the words of endpoints, where not by its name."""
_ELSEWHERE = frozenset({"messages", "model", "prompt", "input"})
"""Fields that an error may be about, and that nothing can be sent in place of."""
_LOCATION = re.compile(r"""["']loc["']:\s*[(\[]\s*["']body["'],\s*["'](\w+)["']""")
_BLIND = re.compile(
    r"n[o']t support(?:ed|s)?[^.]{0,40}(?:image|vision|multimodal)|not a multimodal|found that support image|"
    r"(?:image|vision)\w*(?: inputs?)? (?:is|are) not supported|unknown variant `?image_url|at most 0 images?|"
    r"content\W[^.]{0,40}(?:must be|expected|should be)(?: a)?(?: valid)? string|unmarshal array into [\w. ]*content|"
    r"invalid type: sequence, expected a string|expected a string, but got an array",
    re.IGNORECASE,
)
_FILTER = re.compile(
    r"content_filter|content_policy|content management policy|content filtering policy|data_?inspection_?failed",
    re.IGNORECASE,
)
_OUT_OF_MONEY = re.compile(r"insufficient_quota|insufficient balance|exceeded your current quota", re.IGNORECASE)
_SECRET = re.compile(
    r"(?:\b(?:sk|gsk|pk|key|xai|hf|pat)[-_][\w*.-]{6,})|\bAIza[\w-]{10,}|\beyJ[\w-]+\.[\w-]+(?:\.[\w-]+)?|"
    r"(?<=bearer )[^\s\"',]+|(?<=://)[^/\s@]+(?=@)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class EndpointRefusal:
    """An HTTP error, its body without the key that was sent."""

    status: int
    headers: Mapping[str, str]
    body: str

    @cached_property
    def reason(self) -> str:
        """The endpoint's own words: one line, no secrets, control characters escaped, 300 characters at most."""
        words = _SECRET.sub("[secret]", " ".join(" ".join(dict.fromkeys(_messages(self._parsed))).split()))
        shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)
        return shown[:REASON_CHARS] or "it gives no reason"

    def __str__(self) -> str:
        return f"HTTP {self.status}: {self.reason}"

    def parameters(self, sent: Mapping[str, Any]) -> list[str]:
        """Which of the parameters sent (by name) this refuses; none where it is about something else."""
        if self.status not in ADAPTABLE or _FILTER.search(self.body):
            return []
        words = " ".join(_messages(self._parsed))
        places = [*_places(self._parsed), *_LOCATION.findall(words)]
        if not _ELSEWHERE.isdisjoint(places):
            return []
        named = [name for name in dict.fromkeys(places) if name in sent]
        if not named and _REFUSES.search(words):  # the parameter that the sentence names first
            found = {}
            for name in sent:
                spelling = _NAMES.get(name, re.escape(name))
                if match := re.search(rf"(?<!\w)(?:{spelling})(?!\w)", words, re.IGNORECASE):
                    found[name] = match.start()
            named = sorted(found, key=found.__getitem__)[:1]
        return [name for name in named if name not in LIMITS or not _OUT_OF_RANGE.search(words)]

    @cached_property
    def _parsed(self) -> Any:
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            # A page of a proxy: its words without its markup.
            return re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", self.body[:4_000], flags=re.DOTALL)


def verdict_of(refusal: EndpointRefusal, *, host: str, model: str, api_key_env: str, pictures: bool) -> TeacherError:
    """A refusal as a rejection of one attempt, or as the end of the job."""
    raw, wait = str(refusal), retry_after(refusal.headers, now=time.time())
    match refusal.status:
        case 401 | 403:
            told = f"{host} refused the key in {api_key_env} ({refusal}). Check the key and teach.auth_header."
            return TeacherError("unauthorised", told)
        case 402:
            return TeacherError("quota", f"The quota at {host} is used up ({refusal}). Raise it, then run this again.")
        case 429 if _OUT_OF_MONEY.search(refusal.body):
            return TeacherError("quota", f"The quota at {host} is used up ({refusal}). Raise it, then run this again.")
        case 429:
            return Rejection("rate_limited", raw, again=True, wait_s=wait, billed=False)
        case _ if pictures and 400 <= refusal.status <= 501 and _BLIND.search(refusal.reason):
            told = f"{model!r} at {host} takes no pictures ({refusal}). Set teach.model to one that sees."
            return TeacherError("no_pictures", told)
        case 404:
            told = f"{host} has no model {model!r} ({refusal}). Set teach.model or teach.base_url."
            return TeacherError("no_model", told)
        case status if 300 <= status < 400:
            end = TeacherError(
                "redirect", f"{host} answers with redirects, which are never followed. Set teach.base_url."
            )
            return Rejection("redirect", raw, again=True, billed=False, end=end)
        case 400 | 422 if _FILTER.search(refusal.body):
            return Rejection("filtered", raw, billed=False)
        case 400 if "json_validate_failed" in refusal.body:
            return Rejection("bad_reply", raw, again=True, billed=None, problem="it was not JSON")
        case 408 | 409 | 425:
            return Rejection("server_error", raw, again=True, wait_s=wait, billed=False)
        case status if status >= 500:
            return Rejection("server_error", raw, again=True, wait_s=wait, billed=False)
        case _:
            much = "token" in refusal.reason and _OUT_OF_RANGE.search(refusal.reason)
            remedy = "Lower teach.max_output_tokens" if much else "Correct the setting that it names"
            end = TeacherError("bad_request", f"{host} refuses what it is sent ({refusal}). {remedy}.")
            return Rejection("bad_request", raw, billed=False, end=end)


def _messages(said: Any, depth: int = _DEPTH) -> Iterator[str]:
    """The words in the body of an error, outermost first."""
    match said:
        case str():
            yield said
        case list() if depth:
            for part in said[:8]:
                yield from _messages(part, depth - 1)
        case {"loc": [*place], "msg": str(words)}:
            yield f"{'.'.join(map(str, place))}: {words}"
        case dict() if depth:
            for key in ("message", "msg", "error", "detail", "errors", "title", "metadata", "raw"):
                yield from _messages(said.get(key), depth - 1)


def _places(said: Any, depth: int = _DEPTH) -> Iterator[str]:
    """The parameters that the body of an error names in fields of their own."""
    match said:
        case list() if depth:
            for part in said[:20]:
                yield from _places(part, depth - 1)
        case dict() if depth:
            if isinstance(said.get("param"), str) and said["param"]:
                yield re.split(r"[.\[]", said["param"])[0]
            match said.get("loc"):
                case ["body", str(name), *_]:
                    yield name
            for key in ("error", "detail", "message", "errors"):
                yield from _places(said.get(key), depth - 1)

"""The answers of others to our questions: of any OpenAI-compatible endpoint, or published ones from a CSV.

Nothing leaves this machine without a person's leave for exactly the list of what would; what is on it needs none.
Knows nothing about how answers are scored.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from assistant.disk import write_file
from assistant.errors import DatasetError, TeacherError
from assistant.progress import Progress
from data_gen.hosted.egress import Consent, ManifestItem, destination_of, grant, open_client, redact
from serve.http.guard import is_loopback
from training.data import Example, decode_image
from training.evaluate import ANSWER_TOKENS, labelled_pictures
from training.fact_check import first_choice
from training.scores import CONDITIONS, class_report, score_answers

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from assistant.config import TeachConfig

AT_ONCE = 4
ATTEMPTS = 3
_DEADLINE_S = 180.0
"""Time one attempt may take [s]."""
_LONGEST = 1024
"""Longest side of a picture that is sent [px]."""
CLASS_QUESTION = "Which class does this micrograph belong to?"
_PIXELS = re.compile(r"\b(\d+(?:\.\d+)?)\s*(?:px|pixels?)\b(?!\s*(?:\^|²))", re.IGNORECASE)
NONE = "(none named)"
"""Stands for the class where an answer names none, so that it counts as wrong."""


def ask_endpoint(
    rows: Sequence[Example],
    config: TeachConfig,
    *,
    manifest: Path,
    allow: Consent,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask the endpoint `config.base_url` every row three times, as our own student is asked, and score its answers.

    Its classes are asked for with all of them named. `manifest` is written first; nothing is sent to another machine
    unless `allow` gives leave for it. An answer that does not come counts as an empty one.
    Raises EgressError `denied`, `bad_url` or `insecure`, and TeacherError `no_key` or `unreachable`.
    """
    destination = destination_of(config.base_url)
    grey = redact(decode_image(_grey()))
    sent = {png: redact(decode_image(png), longest=_LONGEST) for row in rows for png in row.images}
    items = [_item(row, png, sent[png], destination) for row in rows for png in row.images]
    items.append(ManifestItem("(a grey picture)", "", hashlib.sha256(grey).hexdigest(), len(grey), "", destination))
    write_file(manifest, "".join(json.dumps(asdict(item)) + "\n" for item in dict.fromkeys(items)))
    here = is_loopback(urlsplit(destination).hostname or "")
    permit = grant(manifest, destination=destination, allow=here or allow)
    pictures, labels = labelled_pictures(rows)
    words = ", ".join(label.replace("_", " ") for label in labels)
    told = {"role": "system", "content": f"The classes are: {words}. Answer with one of them alone."}
    posed = [
        *(_messages(row, row.aux, [sent[png] for png in row.images]) for row in rows),
        *(_messages(row, "", [sent[png] for png in row.images]) for row in rows),
        *(_messages(row, "", [grey] * len(row.images)) for row in rows),
        *([told, *_posed([sent[png]], CLASS_QUESTION)] for png in pictures if len(labels) > 1),
    ]
    texts = asyncio.run(_ask_all(posed, open_client(permit, config, keyless=here), config, progress))
    if not any(texts):
        raise TeacherError(
            "unreachable", f"{destination} answered none of {len(posed)} questions. Is {config.model} up?"
        )
    answers = {
        name: [_calibrated(text, row) for text, row in zip(texts[n * len(rows) :], rows, strict=False)]
        for n, (_, name) in enumerate(CONDITIONS)
    }
    named = [first_choice(text, labels) or NONE for text in texts[len(CONDITIONS) * len(rows) :]]
    about = {"model": config.model, "source": destination, "answered": sum(map(bool, texts)), "asked": len(texts)}
    return about | score_answers(rows, answers) | {"classification": _classes(named, list(pictures.values()), labels)}


def read_answers(file: Path, rows: Sequence[Example]) -> dict[str, Any]:
    """Score published answers: a CSV with the columns `id` (of a row), `answer` and, if it is known, `model`.

    A row without an answer counts as an empty one. Raises DatasetError `bad_answers`.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            told = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError("bad_answers", f"{file} cannot be read: {error}. Give a CSV file in UTF-8.") from None
    if not told or not {"id", "answer"} <= told[0].keys():
        raise DatasetError("bad_answers", f"{file} lacks the columns id and answer. Name them in its first line.")
    by_id = {line["id"]: line["answer"] or "" for line in told}
    answers = [by_id.get(row.id, "") for row in rows]
    if not any(answers):
        raise DatasetError("bad_answers", f"{file} has no answer to any of the {len(rows)} rows. Compare the ids.")
    about = {"model": told[0].get("model") or file.stem, "source": file.name, "answered": sum(map(bool, answers))}
    return about | {"asked": len(rows)} | score_answers(rows, {"seen": answers}) | {"classification": {"n": 0}}


def _calibrated(text: str, row: Example) -> str:
    """An answer with its pixels as nanometres, where the row's pictures have one scale: they are sent without any.

    A rounded number of pixels stands for all that round to it, so it becomes a range.
    """
    scales = {known.nm_per_pixel for known in row.known}
    longest = {max(decode_image(png).pixels.shape) for png in row.images}
    scale = scales.pop() if len(scales) == 1 else None
    if scale is None or len(longest) != 1:
        return text
    scale *= max(1.0, longest.pop() / _LONGEST)

    def range_of(length: re.Match[str]) -> str:
        value, half = float(length[1]), 0.5 / 10 ** len(length[1].partition(".")[2])
        return f"{(value - half) * scale:.10g} to {(value + half) * scale:.10g} nm"

    return _PIXELS.sub(range_of, text)


def _item(row: Example, png: bytes, sent: bytes, destination: str) -> ManifestItem:
    said = " / ".join([row.aux, *(text for turn in row.history for text in turn), row.question])
    before, after = (hashlib.sha256(one).hexdigest() for one in (png, sent))
    return ManifestItem(row.source, before, after, len(sent), said, destination)


def _messages(row: Example, aux: str, pictures: Sequence[bytes]) -> list[dict[str, Any]]:
    """A row as a chat: its pictures and their facts stand in the first turn, as in our own prompt."""
    first, *later = [*(question for question, _ in row.history), row.question]
    messages = _posed(pictures, f"({aux}) {first}" if aux else first)
    for (_, answer), question in zip(row.history, later, strict=True):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
    return messages


def _posed(pictures: Sequence[bytes], text: str) -> list[dict[str, Any]]:
    uris = (f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in pictures)
    shown = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


async def _ask_all(
    posed: Sequence[list[dict[str, Any]]], client: AsyncOpenAI, config: TeachConfig, progress: Progress | None
) -> list[str]:
    """The answer to each chat, "" where none came."""
    import openai

    turn, done = asyncio.Semaphore(AT_ONCE), 0

    async def ask(messages: Any) -> str:
        nonlocal done
        options: dict[str, Any] = {"temperature": 0, "max_completion_tokens": ANSWER_TOKENS}
        text = ""
        async with turn:
            for attempt in range(ATTEMPTS):
                try:
                    call = client.chat.completions.create(model=config.model, messages=messages, **options)
                    reply = await asyncio.wait_for(call, _DEADLINE_S)
                    text = (reply.choices[0].message.content or "").strip() if reply.choices else ""
                    break
                except openai.BadRequestError:
                    options = {}  # it does not know one of them
                except (openai.APIError, TimeoutError, ValueError):
                    await asyncio.sleep(attempt * config.batch_poll_s / 30)
        done += 1
        if progress:
            progress(done, len(posed), config.model)
        return text

    async with client:
        return list(await asyncio.gather(*map(ask, posed)))


def _classes(named: Sequence[str], rows: Sequence[Example], labels: Sequence[str]) -> dict[str, Any]:
    """Scores of classes that were named without any confidence: neither calibration nor risk can be told."""
    if not named:
        return {"n": 0}
    classes = [*labels, NONE]
    chosen = np.eye(len(classes))[[classes.index(name) for name in named]]
    truth, groups = [labels.index(row.label or "") for row in rows], [row.group for row in rows]
    scores = class_report(chosen, truth, classes, groups)
    kept = ("top1", "top1_interval", "macro_precision", "macro_recall", "macro_f1", "n", "labels", "confusion")
    return {name: scores[name] for name in kept}


def _grey() -> bytes:
    """The picture of the blind question: as our own student's, without anything to see."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (256, 256), 128).save(stream, "PNG")
    return stream.getvalue()

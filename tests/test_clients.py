"""What the usual clients send by default, one shape at a time: Open WebUI, LM Studio, LibreChat, Continue ..."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from measuring import MeasuringAssistant, write_tiff
from openai import OpenAI
from serving import data_uri, running, user
from test_api import make_desk, post

from assistant.measure import Fact, Facts
from serve.desk.answering import UNGROUNDED
from serve.desk.desk import Desk
from serve.desk.housekeeping import NO_PICTURE, answer_without_picture
from serve.http.api import build_api
from serve.http.conversation import ApiError, image_bytes, parse_request
from serve.http.guard import Guard
from serve.http.structured import Unknown, as_object, as_schema


@pytest.fixture(scope="module")
def desk() -> Desk:
    return make_desk()


@pytest.fixture(scope="module")
def url(desk: Desk) -> Iterator[str]:
    with running(Guard(build_api(desk))) as base:
        yield base


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    return data_uri(write_tiff(tmp_path_factory.mktemp("clients") / "discs.tif"))


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as openai:
        yield openai


def warned(reply: httpx.Response) -> str:
    return " ".join(reply.json()["x-micrograph"]["warnings"])


# ---------------------------------------------------------------------------------- what is taken

TAKEN: dict[str, dict[str, Any]] = {
    "the default of many": {"max_tokens": 4096},
    "one above ours": {"max_tokens": 1025},
    "reasoning budgets": {"max_completion_tokens": 32_000},
    "absurd": {"max_tokens": 10**12},
    "Open WebUI": {
        "stream": False, "session_id": "x", "chat_id": "y", "id": "z", "features": {"web_search": False},
        "background_tasks": {"title_generation": True}, "variables": {"{{USER_NAME}}": "Ada"},
        "model_item": {"id": "m"}, "params": {}, "tool_servers": [], "stream_options": {"include_usage": True},
    },
    "LM Studio": {"temperature": 0.7, "top_p": 0.95, "top_k": 40, "repeat_penalty": 1.1, "min_p": 0.05, "n": 1},
    "LibreChat": {"user": "65f", "frequency_penalty": 0, "presence_penalty": 0, "stop": None, "temperature": 1},
    "LangChain": {"n": 1, "logprobs": False, "logit_bias": {}, "seed": None, "parallel_tool_calls": False},
    "Continue": {"tools": [{"type": "function", "function": {"name": "read_file"}}], "tool_choice": "auto"},
    "agents": {"functions": [], "tools": [], "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
    "reasoning": {"reasoning_effort": "low", "verbosity": "low", "prompt_cache_key": "k"},
    "text": {"response_format": {"type": "text"}, "stop": ["###"], "modalities": ["text"]},
}  # fmt: skip


@pytest.mark.parametrize("extra", TAKEN.values(), ids=TAKEN.keys())
def test_what_clients_add_is_taken(url: str, picture: str, extra: dict[str, Any]) -> None:
    reply = post(url, messages=[user("How many?", picture)], **extra)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"]


def test_what_has_no_effect_is_said(url: str, picture: str) -> None:
    extra = {"max_tokens": 5000, "tools": [{"type": "function"}], "presence_penalty": 0.5, "logit_bias": {"1": 2}}
    told = warned(post(url, messages=[{"role": "system", "content": "Be brief."}, user("?", picture)], **extra))
    for word in ("1024 tokens", "tools", "presence_penalty", "logit_bias", "system messages"):
        assert word in told


def messages_of(picture: str) -> dict[str, list[dict[str, Any]]]:
    shown = {"type": "image_url", "image_url": {"url": picture, "detail": "auto"}}
    text = {"type": "text", "text": "How many?"}
    ends = {"role": "user", "content": [shown, text]}
    return {
        "picture first": [ends],
        "picture last": [{"role": "user", "content": [text, shown]}],
        "picture alone": [{"role": "user", "content": [shown]}],
        "empty text": [{"role": "user", "content": [{"type": "text", "text": ""}, shown]}],
        "null content": [ends, {"role": "assistant", "content": None}, {"role": "user", "content": "And now?"}],
        "no content": [ends, {"role": "assistant"}, {"role": "user", "content": "And now?"}],
        "tool call": [
            ends,
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
            {"role": "tool", "tool_call_id": "1", "content": "42"},
            {"role": "user", "content": "And now?"},
        ],
        "greeting": [{"role": "assistant", "content": "Hello! How can I help?"}, ends],
        "two systems": [{"role": "system", "content": "A"}, {"role": "developer", "content": [text]}, ends],
        "named": [{**ends, "name": "ada"}],
        "plain address": [{"role": "user", "content": [{"type": "image_url", "image_url": picture}, text]}],
        "refusal": [ends, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, ends],
        "beginning of the answer": [ends, {"role": "assistant", "content": "There are"}],
    }


@pytest.mark.parametrize("shape", messages_of(""))
def test_conversations_in_every_shape(url: str, picture: str, shape: str) -> None:
    reply = post(url, messages=messages_of(picture)[shape])
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,", "data:image/png;charset=utf-8;base64,", "DATA:IMAGE/PNG;BASE64,", "data:;base64,",
        "data:image/png;name=a.png;base64,", " data:image/jpeg;base64,", "data:application/octet-stream;base64,",
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", ["plain", "lines", "windows lines", "unpadded", "url-safe", "spaces", "escaped lines"])
def test_data_uris_as_clients_write_them(head: str, body: str) -> None:
    data = bytes(range(256)) + b"\xfb\xef\xff\x00"
    text = base64.b64encode(data).decode()
    lines = [text[i : i + 76] for i in range(0, len(text), 76)]
    forms = {
        "plain": text, "lines": "\n".join(lines), "windows lines": "\r\n".join(lines), "unpadded": text.rstrip("="),
        "url-safe": base64.urlsafe_b64encode(data).decode(), "spaces": " ".join(lines),
        "escaped lines": "%0A".join(lines),
    }  # fmt: skip
    assert image_bytes(head + forms[body]) == data


@pytest.mark.parametrize(
    ("url_", "code"),
    [
        ("https://example.org/a.png", "image_url_refused"),
        ("file:///etc/passwd", "image_url_refused"),
        ("data:text/html;base64,AAAA", "not_an_image"),
        ("data:image/png,AAAA", "not_an_image"),
        ("data:image/png;base64,A", "bad_base64"),
        ("data:image/png;base64,@@@@", "bad_base64"),
    ],
)
def test_what_is_no_picture_is_named_as_what_it_is(url_: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        image_bytes(url_)
    assert caught.value.code == code


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG", "JPEG", "BMP"])
def test_formats_of_browsers(url: str, kind: str) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    grey = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(grey).convert("RGB" if kind == "WEBP" else "L").save(buffer, kind)
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    reply = post(url, messages=[user("?", uri)])
    assert reply.status_code == 200, reply.text
    assert reply.json()["x-micrograph"]["images"][0]["width"] == 64


def test_files_that_a_client_stored_are_no_part_of_the_question(url: str, picture: str, desk: Desk) -> None:
    """Open WebUI puts names of its own before the question; the student read them as the asker's words."""
    note = '<attached_files>\n<file type="image" url="abc" name="wafer.png"/>\n</attached_files>\n\nHow many?'
    assert post(url, messages=[user(note, picture)]).status_code == 200
    assert desk.answerer.asked[-1][1] == "How many?"  # type: ignore[attr-defined]


def test_a_whole_number_is_an_integer_however_it_is_written(url: str, picture: str) -> None:
    content = json.dumps({"model": "maemi", "messages": [user("?", picture)], "max_tokens": 8}).replace(
        ": 8}", ": 8.0}"
    )
    assert httpx.post(f"{url}/v1/chat/completions", content=content, timeout=300).status_code == 200


# ---------------------------------------------------------------------------------- without a picture

HISTORY = "### Chat History:\n<chat_history>\nUSER: What is the pitch?\nASSISTANT: 120 nm.\n</chat_history>"
TASKS = {
    "title": '### Task:\nGenerate a concise title.\n### Output:\nJSON format: { "title": "your title" }\n' + HISTORY,
    "tags": '### Task:\nGenerate 1-3 broad tags.\nJSON format: { "tags": ["tag1", "tag2"] }\n' + HISTORY,
    "follow_ups": '### Task:\nSuggest follow-ups.\nJSON format: { "follow_ups": ["Question 1?"] }\n' + HISTORY,
    "queries": '### Task:\nAnalyze.\n{ "queries": ["query1"] }\n' + HISTORY,
    "text": '### Task:\nYou are an autocompletion system. { "text": "<completion>" }\n' + HISTORY,
}


@pytest.mark.parametrize("key", TASKS)
@pytest.mark.parametrize("stream", [False, True])
def test_tasks_of_a_chat_client_get_json_of_their_shape(url: str, key: str, stream: bool) -> None:
    reply = post(url, messages=[{"role": "user", "content": TASKS[key]}], stream=stream)
    assert reply.status_code == 200, reply.text
    if stream:
        chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    else:
        text = reply.json()["choices"][0]["message"]["content"]
    answer = json.loads(text)
    assert list(answer) == [key]
    if key == "title":
        assert answer["title"] == "What is the pitch"


def test_a_greeting_gets_one_honest_sentence(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="maemi", messages=[{"role": "user", "content": "hi"}])
    assert reply.choices[0].message.content == NO_PICTURE
    assert answer_without_picture("Your task is to find one emoji for this message.") == "\N{MICROSCOPE}"
    assert (
        answer_without_picture("Give this conversation a title.", "How wide are the lines?") == "How wide are the lines"
    )


def test_a_model_that_can_talk_talks(url: str) -> None:
    class Talking(MeasuringAssistant):
        converses = True

        def converse(self, text: str, **_: Any) -> Iterator[str]:
            yield f"You said {text!r}."

    with running(Guard(build_api(make_desk(Talking())))) as base:
        reply = post(base, messages=[{"role": "user", "content": "hi"}])
    assert reply.json()["choices"][0]["message"]["content"] == "You said 'hi'."
    assert reply.json()["x-micrograph"]["warnings"] == [UNGROUNDED]


# ---------------------------------------------------------------------------------- choices, tokens, JSON


def test_several_choices(client: OpenAI, picture: str, desk: Desk) -> None:
    asked = [user("?", picture)]
    reply = client.chat.completions.create(model="maemi", messages=asked, n=3)  # type: ignore[arg-type]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert all(choice.message.content for choice in reply.choices)
    chunks = list(client.chat.completions.create(model="maemi", messages=asked, n=2, stream=True))  # type: ignore[arg-type]
    assert {c.choices[0].index for c in chunks if c.choices} == {0, 1}
    assert sum(c.choices[0].finish_reason is not None for c in chunks if c.choices) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client: OpenAI, picture: str, stream: bool) -> None:
    asked: Any = {"model": "maemi", "messages": [user("?", picture)], "logprobs": True, "top_logprobs": 2}
    if stream:
        parts = [c.choices[0].logprobs for c in client.chat.completions.create(**asked, stream=True) if c.choices]
        tokens = [token for part in parts if part for token in part.content or []]
    else:
        tokens = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert len(tokens) > 5
    assert tokens[0].token == "Turn "
    assert tokens[0].logprob == -0.5
    assert [t.token for t in tokens[0].top_logprobs] == ["Turn ", "the"]


def test_log_probabilities_are_those_of_the_tokens(tmp_path: Path) -> None:
    """Of a real student: greedy takes the likeliest, and the likeliest twenty are sorted."""
    from students import tiny_run

    from assistant.inference import Assistant

    assistant, seen = Assistant(tiny_run(tmp_path / "base")), []
    list(assistant.draft([write_tiff(tmp_path / "a.tif")], "Size?", max_new_tokens=4, watch=seen.append, top=20))
    assert len(seen) == 4
    for token in seen:
        scores = [score for _, score in token.top]
        assert scores == sorted(scores, reverse=True)
        assert token.logprob == pytest.approx(scores[0])
        assert sum(map(np.exp, scores)) <= 1 + 1e-6


def test_any_json_is_the_answer_with_its_facts(client: OpenAI, picture: str) -> None:
    reply = client.chat.completions.create(
        model="maemi",
        messages=[user("?", picture)],
        response_format={"type": "json_object"},  # type: ignore[arg-type]
    )
    answer = json.loads(reply.choices[0].message.content or "")
    assert answer["answer"].startswith("Turn 1")
    assert answer["facts"]["count"]["value"] > 0


SCHEMA = {
    "type": "object",
    "properties": {
        "description": {"type": "string"},
        "count": {"type": ["integer", "null"]},
        "mean_diameter_um": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "porosity": {"type": ["number", "null"]},
        "notes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["description", "count", "mean_diameter_um", "porosity", "notes"],
    "additionalProperties": False,
}


def test_a_schema_is_filled_with_facts(client: OpenAI, picture: str) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "m", "schema": SCHEMA, "strict": True}}
    reply = client.chat.completions.create(model="maemi", messages=[user("?", picture)], response_format=form)  # type: ignore[arg-type]
    answer = json.loads(reply.choices[0].message.content or "")
    facts = {f["name"]: f for f in (reply.model_extra or {})["x-micrograph"]["facts"][0]["items"]}
    assert answer["count"] == facts["count"]["value"]
    assert answer["mean_diameter_um"] == pytest.approx(facts["mean_diameter"]["value"] / 1000)
    assert answer["porosity"] is None
    assert answer["notes"] == []


def test_words_and_numbers_come_from_what_may_be_stated() -> None:
    """A class is a word; a number that an answer would withhold fills nothing. Seen failing for both."""
    label = Fact("class", None, "", "calibrated head", 0.97, source="predicted", text="fibres")
    doubtful = Fact("count", 9.0, "", "threshold", 0.3)
    facts = [Facts("bodies", (label, doubtful)).as_dict()]

    def filled(**properties: Any) -> Any:
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        return json.loads(as_schema(schema, "It shows fibres.", facts))

    assert filled(**{"class": {"type": "string"}}) == {"class": "fibres"}
    assert filled(**{"class": {"enum": ["powder", "fibres"]}}) == {"class": "fibres"}
    assert json.loads(as_object("It is so.", facts))["facts"] == {"class": {"value": "fibres", "unit": ""}}
    for wanted in ({"class": {"enum": ["powder"]}}, {"count": {"type": "integer"}}, {"surface": {"type": "string"}}):
        with pytest.raises(Unknown):
            filled(**wanted)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"material": {"enum": ["gold", "silver"]}}, "required": ["material"]},
        {"type": "object", "properties": {"porosity": {"type": "number"}}, "required": ["porosity"]},
        {"type": "object", "properties": {"text": {"type": "string", "pattern": "(a+)+$"}}, "required": ["text"]},
        {"type": "object", "properties": {"a": {"$ref": "http://169.254.169.254/x"}}, "required": ["a"]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": 7},
    ],
    ids=["a guess", "not measured", "a pattern", "a reference outside", "a circle", "no schema"],
)
def test_a_schema_that_wants_a_guess_is_refused(client: OpenAI, picture: str, schema: dict[str, Any]) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "m", "schema": schema}}
    message = (
        client.chat.completions.create(model="maemi", messages=[user("?", picture)], response_format=form)  # type: ignore[arg-type]
        .choices[0].message
    )  # fmt: skip
    assert message.content is None
    assert "cannot be filled with facts" in (message.refusal or "")
    with pytest.raises(Unknown):
        as_schema(schema, "It is so.", [])


# ---------------------------------------------------------------------------------- vectors, classes, side-cars


def test_embeddings_of_texts_and_pictures(client: OpenAI, url: str, picture: str) -> None:
    reply = client.embeddings.create(model="maemi", input=["four", picture, "sixsix"])
    assert [len(one.embedding) for one in reply.data] == [3, 3, 3]
    assert [one.embedding[0] for one in reply.data][::2] == [4.0, 6.0]
    body = {"model": "maemi", "input": [{"image": picture}], "encoding_format": "float"}
    (one,) = httpx.post(f"{url}/v1/embeddings", json=body).json()["data"]
    assert one["embedding"] == pytest.approx(reply.data[1].embedding)
    packed = httpx.post(f"{url}/v1/embeddings", json=body | {"encoding_format": "base64"}).json()["data"][0][
        "embedding"
    ]
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == pytest.approx(one["embedding"])
    wrong = httpx.post(f"{url}/v1/embeddings", json=body | {"dimensions": 7})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "dimensions")


def test_vectors_of_a_real_student_are_unit_and_do_not_depend_on_their_neighbours(tmp_path: Path) -> None:
    from students import tiny_run

    from assistant.inference import Assistant

    assistant, file = Assistant(tiny_run(tmp_path / "base")), write_tiff(tmp_path / "a.tif")
    images, texts = assistant.embed(images=[file], texts=["Round grains.", "x" * 500])
    assert images.shape[1] == texts.shape[1]
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([images, texts]), axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(assistant.embed(texts=["Round grains."])[1][0], texts[0], atol=1e-6)


def test_classifications(url: str, picture: str) -> None:
    body = {"model": "maemi", "images": [picture, picture], "labels": ["particles", "fibres"]}
    reply = httpx.post(f"{url}/v1/classifications", json=body)
    assert reply.status_code == 200, reply.text
    first = reply.json()["data"][0]
    assert first["verdict"] in {"particles", "fibres", "unknown"}
    assert {score["label"] for score in first["scores"]} >= {"particles", "fibres"}
    few = httpx.post(
        f"{url}/v1/classifications", json=body | {"examples": {"particles": [picture], "fibres": [picture]}}
    )
    assert few.status_code == 200, few.text
    twice = httpx.post(f"{url}/v1/classifications", json=body | {"labels": ["a", "a"]})
    assert twice.status_code == 400


def test_a_side_car_comes_with_its_picture(url: str) -> None:
    """JEOL, SEC and Hitachi keep their metadata beside the picture; the API took none."""
    from PIL import Image

    from data_gen.drawing.vendor_files import write_vendor  # noqa: F401 - the formats are those of its side-cars

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (240, 320), np.uint8)).save(buffer, "BMP")
    sidecar = "$CM_FORMAT JEOL\n$CM_MAG 20000\n$CM_ACCEL_VOLT 15.00\n$$SM_MICRON_BAR 100\n$$SM_MICRON_MARKER 1um\n"
    uri = "data:image/bmp;base64," + base64.b64encode(buffer.getvalue()).decode()
    part = {
        "type": "image_url",
        "image_url": {"url": uri},
        "x-micrograph": {"sidecar": {"name": "a.bmp.txt", "text": sidecar}},
    }
    reply = post(url, messages=[{"role": "user", "content": [part, {"type": "text", "text": "?"}]}])
    assert reply.status_code == 200, reply.text
    (info,) = reply.json()["x-micrograph"]["images"]
    assert (info["hv_kv"], info["magnification"]) == (15.0, 20000.0)
    assert info["path"] is None


# ---------------------------------------------------------------------------------- the description


def test_the_description_holds_every_body_and_every_error(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/classifications"):
        operation = document["paths"][path]["post"]
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert reference.rsplit("/", 1)[1] in document["components"]["schemas"]
        assert {"200", "400", "401", "404", "408", "413", "429", "500", "503"} <= operation["responses"].keys()
    text = json.dumps(document)
    for reference in set(re.findall(r"#/components/schemas/([\w-]+)", text)):
        assert reference in document["components"]["schemas"], reference


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_fuzzer_finds_no_fault(url: str, tmp_path: Path) -> None:
    """schemathesis: no 5xx, no status or body that the description does not name, in 500 cases of every route."""
    import subprocess
    import sys

    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed")
    done = subprocess.run(
        [program, "run", f"{url}/openapi.json", "--max-examples", "500", "--workers", "2",
         "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.parametrize(
    "body", [b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}', b'{"model":"m","messages":[]}']
)
def test_a_body_is_parsed_as_bytes(body: bytes) -> None:
    if b"hi" in body:
        assert parse_request(body).text == "hi"
    else:
        with pytest.raises(ApiError):
            parse_request(body)

"""Bodies with which endpoints refuse a request, in the shapes of their makers, and what each is about."""

from __future__ import annotations

import json
from typing import Any

RESPONSE_FORMAT, LIMIT = "response_format", "max_completion_tokens"


def openai(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}}


def pydantic(*names: str, kind: str = "extra_forbidden") -> list[dict[str, Any]]:
    told = "Extra inputs are not permitted"
    return [{"type": kind, "loc": ["body", name], "msg": told, "input": 0, "url": "https://errors"} for name in names]


PARAMETERS: list[tuple[str, int, Any, list[str]]] = [
    (
        "openai temperature", 400,
        openai("Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is "
               "supported.", param="temperature", code="unsupported_value"), ["temperature"],
    ),
    (
        "openai limit", 400,
        openai("Unsupported parameter: 'max_completion_tokens' is not supported with this model. Use 'max_tokens' "
               "instead.", param="max_completion_tokens", code="unsupported_parameter"), [LIMIT],
    ),
    ("openai unknown", 400, openai("Unrecognized request argument supplied: seed"), ["seed"]),
    (
        "openai schema", 400,
        openai("Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model. Learn "
               "more about supported models at the Structured Outputs guide."), [RESPONSE_FORMAT],
    ),
    (
        "openai nested param", 400,
        openai("Invalid schema for response_format 'answers'.", param="response_format.json_schema.schema"),
        [RESPONSE_FORMAT],
    ),
    (
        "openai logprobs", 400,
        openai("You are not allowed to request logprobs from this model.", param="logprobs"), ["logprobs"],
    ),
    ("azure limit", 400, openai("Unrecognized request argument supplied: max_completion_tokens"), [LIMIT]),
    (
        "azure schema", 400,
        {"error": {"code": "BadRequest", "message": "response_format value as json_schema is enabled only for api "
                   "versions 2024-08-01-preview and later"}}, [RESPONSE_FORMAT],
    ),
    (
        "vllm", 400,
        {"object": "error", "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'max_completion_tokens'), 'msg': "
         "'Extra inputs are not permitted', 'input': 800}]", "type": "BadRequestError", "param": None, "code": 400},
        [LIMIT],
    ),
    (
        "vllm grammar", 400,
        {"error": {"message": "The provided JSON schema contains features not supported by xgrammar.",
                   "type": "BadRequestError", "param": None, "code": 400}}, [RESPONSE_FORMAT],
    ),
    (
        "ollama format", 400,
        openai("json: cannot unmarshal object into Go struct field ChatCompletionRequest.response_format of type "
               "string"), [RESPONSE_FORMAT],
    ),
    ("ollama plain", 400, {"error": "invalid format: expected \"json\" or a JSON schema"}, [RESPONSE_FORMAT]),
    (
        "llama.cpp", 400,
        {"error": {"code": 400, "message": "response_format type must be one of \"text\" or \"json_object\", but got: "
                   "json_schema", "type": "invalid_request_error"}}, [RESPONSE_FORMAT],
    ),
    (
        "llama.cpp grammar", 400,
        {"error": {"code": 400, "message": "Failed to initialize samplers: failed to parse grammar",
                   "type": "invalid_request_error"}}, [RESPONSE_FORMAT],
    ),
    (
        "litellm", 400,
        {"error": {"message": "litellm.UnsupportedParamsError: vertex_ai does not support parameters: ['seed'], for "
                   "model=x. To drop these, set `litellm.drop_params=True`", "type": "None", "param": "None",
                   "code": "400"}}, ["seed"],
    ),
    (
        "litellm as 500", 500,
        {"error": {"message": "litellm.UnsupportedParamsError: ollama does not support parameters: {'temperature': 0}",
                   "type": "None", "param": "None", "code": "500"}}, ["temperature"],
    ),
    (
        "anthropic", 400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": "seed: Extra inputs are not permitted"},
         "request_id": "r"},
        ["seed"],
    ),
    ("anthropic deprecated", 400, openai("`temperature` is deprecated for this model."), ["temperature"]),
    (
        "gemini", 400,
        [{"error": {"code": 400, "message": "Invalid JSON payload received. Unknown name \"seed\": Cannot find field.",
                    "status": "INVALID_ARGUMENT", "details": [{"@type": "google.rpc.BadRequest"}]}}],
        ["seed"],
    ),
    (
        "gemini schema", 400,
        [{"error": {"code": 400, "message": "Unable to submit request because response_schema is not supported.",
                    "status": "INVALID_ARGUMENT"}}], [RESPONSE_FORMAT],
    ),
    (
        "mistral", 422,
        {"object": "error", "message": {"detail": pydantic("seed", LIMIT)}, "type": "invalid_request_error",
         "param": None, "code": None}, ["seed", LIMIT],
    ),
    ("fastapi", 422, {"detail": pydantic("seed")}, ["seed"]),
    (
        "groq", 400,
        openai("This model does not support response format `json_schema`. See supported models at https://x"),
        [RESPONSE_FORMAT],
    ),
    ("groq property", 400, openai("property 'max_completion_tokens' is unsupported"), [LIMIT]),
    ("deepseek", 400, openai("This response_format type is unavailable now", code="invalid_request_error"),
     [RESPONSE_FORMAT]),
    (
        "tgi", 422,
        {"error": "Failed to deserialize the JSON body into the target type: response_format: unknown variant "
         "`json_schema`, expected `json_object`", "error_type": "validation"}, [RESPONSE_FORMAT],
    ),
    ("xai", 400, {"code": "Client specified an invalid argument", "error": "Argument not supported: seed"},
     ["seed"]),
    ("bedrock", 400, {"message": "Malformed input request: #: extraneous key [seed] is not permitted"}, ["seed"]),
    (
        "openrouter", 400,
        {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": json.dumps(
            openai("Unsupported parameter: 'temperature'", param="temperature"))}}}, ["temperature"],
    ),
    (
        "only the supported ones after it", 400,
        openai("Unsupported parameter: seed. Supported: temperature, response_format, max_completion_tokens"), ["seed"],
    ),
    # None of these is about a parameter that could be left out.
    (
        "limit too high", 400,
        openai("max_completion_tokens is too large: 3200. This model supports at most 2048 completion tokens.",
               param="max_completion_tokens", code="invalid_value"), [],
    ),
    ("anthropic too high", 400, openai("max_completion_tokens: 9000 > 8192, which is the maximum allowed number"), []),
    (
        "context", 400,
        openai("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4200 in the "
               "messages, 800 in the completion).", param="messages", code="context_length_exceeded"), [],
    ),
    ("model", 400, openai("Invalid model: m", param="model", code="model_not_found"), []),
    ("message part", 400, openai("Invalid type for 'messages[0].content'.", param="messages[0].content"), []),
    ("filter", 400, openai("The response was filtered: seed.", param="prompt", code="content_filter"), []),
    ("seed crystals", 400, openai("The picture of seed crystals is broken"), []),
    ("no body", 400, "", []),
    ("a page", 400, "<html><title>Bad Request</title><body>Bad seed</body></html>", []),
    ("down", 503, openai("temperature is not supported"), []),
    ("deep", 400, "[" * 100_000, []),
]  # fmt: skip

BLIND: list[tuple[str, int, Any]] = [
    ("llama.cpp", 500, {"error": {"code": 500, "message": "image input is not supported - hint: if this is unexpected, "
                                  "you may need to provide the mmproj", "type": "server_error"}}),
    ("openrouter", 404, {"error": {"message": "No endpoints found that support image input", "code": 404}}),
    ("deepseek", 400, openai("Failed to deserialize the JSON body into the target type: messages[0]: unknown variant "
                             "`image_url`, expected `text` at line 1 column 300")),
    ("vllm", 400, {"object": "error", "message": "At most 0 image(s) may be provided in one request.", "code": 400}),
    ("vllm text model", 400, {"object": "error", "message": "m is not a multimodal model", "code": 400}),
    ("string only", 400, openai("Invalid type for 'messages[0].content': expected a string, but got an array instead.",
                                param="messages[0].content", code="invalid_type")),
    ("ollama", 400, openai("json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type "
                           "string")),
    ("groq", 400, openai("'messages.0' : for 'role:user' the following must be satisfied[('messages.0.content' : value "
                         "must be a string)]")),
    ("words", 400, openai("This model does not support image input.")),
]  # fmt: skip

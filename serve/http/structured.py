"""Facts in the JSON that a client asks for: an object of its own, or one that fits a schema.

A field is filled with the answer or with a fact of its name, never with a guess; a schema that asks for what is not
known is refused. Knows nothing about models or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema
from referencing import Registry

from assistant.measurements.facts import LIKELY
from assistant.quantities import QUANTITIES, converted

ANSWER_FIELDS = frozenset(
    {"answer", "caption", "description", "summary", "text", "response", "content", "message", "result", "title"}
)
_DEEPEST = 6
MOST_NODES = 5000
NOT_FOLLOWED = ("pattern", "patternProperties", "$dynamicRef", "$recursiveRef", "$id")
UNIT_SUFFIXES = {"nm": "nm", "um": "um", "mm": "mm", "px": "px", "percent": "%", "pct": "%", "deg": "deg", "kv": "kV"}


Known = Mapping[str, tuple[float | str, str]]
"""What may be stated of a picture: value and unit by name."""


class Unknown(Exception):
    """A field that nothing known can fill."""


def as_object(answer: str, facts: Sequence[Mapping[str, Any]]) -> str:
    """`{"answer", "facts"}` with every applicable fact by name; a list of such for several pictures."""
    listed = [{name: {"value": v, "unit": u} for name, (v, u) in _known(one).items()} for one in facts]
    return json.dumps({"answer": answer, "facts": listed[0] if len(listed) == 1 else listed}, ensure_ascii=False)


def as_schema(schema: Mapping[str, Any], answer: str, facts: Sequence[Mapping[str, Any]]) -> str:
    """A document that fits a schema, of the first picture's facts. Raises Unknown where it needs what is not known."""
    known = _known(facts[0]) if facts else {}
    try:
        _refuse_what_is_not_followed(schema)
        document = _fill(schema, schema, "", answer, known, 0)
        jsonschema.Draft202012Validator(schema, registry=Registry()).validate(document)  # an empty one fetches nothing
    except (jsonschema.ValidationError, jsonschema.SchemaError, RecursionError, TypeError, ValueError) as error:
        reason = error.message if isinstance(error, jsonschema.ValidationError | jsonschema.SchemaError) else str(error)
        raise Unknown(reason.splitlines()[0][:200] if reason else "the schema cannot be followed") from None
    return json.dumps(document, ensure_ascii=False)


def _refuse_what_is_not_followed(schema: Any) -> None:
    """A client's patterns could run for ever, and its references could point anywhere. Raises Unknown."""
    waiting, seen = [schema], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > MOST_NODES:
            raise Unknown("the schema is too large")
        if isinstance(node, Mapping):
            reference = node.get("$ref", "#/")
            odd = next((key for key in NOT_FOLLOWED if key in node), None)
            if odd or not isinstance(reference, str) or not reference.startswith("#/"):
                raise Unknown(f"{odd or reference} is not followed here")
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _known(facts: Mapping[str, Any]) -> Known:
    likely = (item for item in facts.get("items", ()) if item["confidence"] >= LIKELY)
    values = {item["name"]: (item.get("text") or item["value"], item["unit"]) for item in likely}
    return {name: (value, unit) for name, (value, unit) in values.items() if value is not None}


def _fill(
    root: Mapping[str, Any],
    schema: Mapping[str, Any],
    name: str,
    answer: str,
    known: Known,
    depth: int,
) -> Any:
    """A value for one place of a schema. Raises Unknown."""
    if depth > _DEEPEST or not isinstance(schema, Mapping):
        raise Unknown(f"{name or 'the schema'} is nested too deep")
    if "$ref" in schema:
        return _fill(root, _referred(root, schema["$ref"]), name, answer, known, depth + 1)
    if "const" in schema:
        return schema["const"]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return _first_that_fits(root, schema[key], name, answer, known, depth)
    kinds = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kinds, list):
        return _first_that_fits(root, [{**schema, "type": kind} for kind in kinds], name, answer, known, depth)
    if kinds == "null":
        return None
    if kinds == "object":
        return _filled_object(root, schema, answer, known, depth)
    if kinds in ("number", "integer"):
        value = _fact(name, known)
        return round(value) if kinds == "integer" and float(value).is_integer() else value
    if kinds == "array":
        if schema.get("minItems", 0) == 0:
            return []
        raise Unknown(f"{name} asks for a list of what is not known")
    only_text = name.lower() in ANSWER_FIELDS or name == ""
    if kinds == "string" and "enum" not in schema and only_text:
        return answer
    word = known.get(name.lower(), (None, ""))[0]
    if kinds == "string" and isinstance(word, str) and word in schema.get("enum", (word,)):
        return word
    raise Unknown(f"{name or 'the schema'} asks for what is not known of the picture")


def _filled_object(
    root: Mapping[str, Any],
    schema: Mapping[str, Any],
    answer: str,
    known: Known,
    depth: int,
) -> dict[str, Any]:
    properties, required = schema.get("properties", {}), set(schema.get("required", ()))
    strings = [name for name, part in properties.items() if isinstance(part, Mapping) and part.get("type") == "string"]
    document = {}
    for name, part in properties.items():
        only = strings == [name] and "enum" not in part and name.lower() not in QUANTITIES
        try:
            document[name] = answer if only else _fill(root, part, name, answer, known, depth + 1)
        except Unknown:
            if name in required:
                raise
    return document


def _first_that_fits(
    root: Mapping[str, Any],
    options: Sequence[Mapping[str, Any]],
    name: str,
    answer: str,
    known: Known,
    depth: int,
) -> Any:
    failed: Unknown | None = None
    for option in sorted(options, key=lambda option: option.get("type") == "null"):
        try:
            return _fill(root, option, name, answer, known, depth + 1)
        except Unknown as unknown:
            failed = unknown
    raise failed or Unknown(f"{name} has no form that can be filled")


def _fact(name: str, known: Known) -> float:
    """The number of a field's name, in the unit that its ending names: `mean_diameter_um`."""
    plain = name.lower()
    value, unit = known.get(plain, ("", ""))
    if not isinstance(value, str):
        return value
    stem, _, suffix = plain.rpartition("_")
    value, unit = known.get(stem, ("", ""))
    if not isinstance(value, str) and suffix in UNIT_SUFFIXES:
        same = converted(value, unit, UNIT_SUFFIXES[suffix])
        if same is not None:
            return same
    raise Unknown(f"{name} was not measured")


def _referred(root: Mapping[str, Any], reference: str) -> Mapping[str, Any]:
    node: Any = root
    for step in reference.removeprefix("#/").split("/"):
        if not isinstance(node, Mapping) or step not in node:
            raise Unknown(f"{reference} is not in the schema")
        node = node[step]
    return node if isinstance(node, Mapping) else {}

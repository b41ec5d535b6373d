"""The description of the server's HTTP interface in OpenAPI 3.1, made from the columns of the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
STATUSES = {
    200: "An answer for each row, in their order.",
    400: "The request is not HTTP, or its body is not the JSON that is described here.",
    404: "There is no such path.",
    405: "The path does not answer this method. Allow names those that it answers.",
    408: "The headers or the body did not arrive within `timeout`.",
    413: "The body is larger than `max_bytes`, or has more rows than `max_rows`.",
    415: "The body is not declared as application/json, or it is compressed.",
    422: "None of the rows could be used.",
    431: "The headers are too large.",
    500: "The model or the server has a fault, which its log describes.",
    503: "More rows than `max_waiting` are waiting. Try again after the seconds in Retry-After.",
    504: "The answers took longer than `timeout`, after which a call of the model ends.",
}
"""The meaning of each HTTP status of the server."""

_ERRORS = [status for status in STATUSES if status not in (200, 404, 405)]
"""The errors of /predict."""

_ENTITY = {
    "type": {"type": "string"},
    "start": {"type": "integer"},
    "end": {"type": "integer", "description": "the place after the entity"},
    "probability": {"type": "number", "minimum": 0, "maximum": 1},
}
_TEXT = {"text": {"type": "string"}}

_ANSWERS: dict[str, dict[str, Any]] = {
    "classes": {"label": {"type": "string"}, "probability": {"type": "number"}, "probabilities": {"type": "object"}},
    "labels": {"labels": {"type": "array", "items": {"type": "string"}}, "probabilities": {"type": "object"}},
    "values": {"value": {"type": ["number", "array"], "items": {"type": "number"}}},
    "embeddings": {"embedding": {"type": "array", "items": {"type": "number"}}},
    "tags": {
        "words": {"type": "array", "items": {"type": "string"}},
        "tags": {"type": "array", "items": {"type": ["string", "null"]}},
        "entities": {"type": "array", "items": {"type": "object", "properties": _ENTITY}},
    },
    "spans": {
        **_TEXT,
        "entities": {
            "type": "array",
            "items": {"type": "object", "properties": _ENTITY | _TEXT},
        },
    },
    "masked": {"text": {"type": "string"}, "filled": {"type": "array", "items": {"type": ["object", "null"]}}},
    "next_tokens": {"next": {"type": "array", "items": {"type": "object"}}, "perplexity": {"type": ["number", "null"]}},
}


def openapi(model: Mapping[str, Any], version: str, max_rows: int) -> dict[str, Any]:
    """Return the description.

    Args:
        model: The result of `ServedModel.describe`.
        version: The version of this package.
        max_rows: Largest number of rows of a request.
    """
    answer = {"type": "object", "properties": {**_ANSWERS[model["answers"]], "error": {"type": "string"}}}
    request = _request_schema(model, max_rows)
    shown = {
        "description": "an answer for each row; if the request has columns: a list of each field, null where an answer "
        "has no such field",
        "oneOf": [{"type": "array", "items": answer}, {"type": "object", "additionalProperties": {"type": "array"}}],
    }
    answers = {"type": "object", "properties": {"answers": shown}}
    example = model["example"]
    answered = _response(STATUSES[200], answers)
    if example:
        answered["content"]["application/json"]["example"] = {"answers": example["answers"]}
    predict = {
        "summary": "Answer rows.",
        "description": 'A row that cannot be used has {"error": ...} in its place; the others are answered.'
        ' Many rows of a table take less time in "columns": the answers are the same, in columns too.',
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": request} | ({"example": {"rows": example["rows"]}} if example else {})
            },
        },
        "responses": {"200": answered} | {str(status): _response(STATUSES[status], _ERROR) for status in _ERRORS},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": model["name"], "version": version, "description": f"{model['rows']} to {model['answers']}"},
        "paths": {
            "/predict": {"post": predict},
            "/model": {"get": _get("Describe what the model reads and answers.", "application/json")},
            "/health": {"get": _get("Say that the server answers; 503 while it stops.", "application/json")},
            "/metrics": {"get": _get("Counts and durations in the text format of Prometheus.", "text/plain")},
        },
    }


def _request_schema(model: Mapping[str, Any], max_rows: int) -> dict[str, Any]:
    """Return the schema of a request."""
    cells = _cell_schemas(model)
    return {
        "type": "object",
        "oneOf": [{"required": ["rows"]}, {"required": ["columns"]}],
        "additionalProperties": False,
        "properties": {
            "rows": {"type": "array", "minItems": 1, "maxItems": max_rows, "items": _row_schema(model, cells)},
            "columns": {
                "type": "object",
                "description": "in the place of rows: a list of the cells of each column, in the order of the rows",
                "required": list(cells),
                "additionalProperties": {"type": "array", "minItems": 1, "maxItems": max_rows},
            },
            "top": {
                "type": "integer",
                "minimum": 1,
                "default": 1,
                "description": "number of most likely classes or tokens to show, with their probabilities",
            },
        },
    }


def _cell_schemas(model: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the schema of a cell of each column."""
    kinds: dict[str, dict[str, Any]] = {
        "text": {"type": ["string", "number"]},
        "words": {"type": ["array", "string"], "items": {"type": "string"}},
        "image": {"type": "string", "contentEncoding": "base64"},
        "number": {"type": ["number", "string", "boolean", "null"]},
    }
    return {
        column["name"]: kinds.get(column["kind"], {"type": ["string", "number", "boolean", "null"]})
        | ({"examples": column["categories"]} if column.get("categories") else {})
        for column in model["columns"]
    }


def _row_schema(model: Mapping[str, Any], cells: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "object", "required": list(cells), "properties": dict(cells)}
    return row if model["rows"] == "tables" else {"oneOf": [{"type": "string"}, row]}


def _response(text: str, schema: Mapping[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"description": text, "content": {kind: {"schema": dict(schema)}}}


def _get(summary: str, kind: str) -> dict[str, Any]:
    schema = {"type": "object" if kind == "application/json" else "string"}
    return {"summary": summary, "responses": {"200": _response(summary, schema, kind)}}

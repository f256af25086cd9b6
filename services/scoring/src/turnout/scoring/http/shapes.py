"""What bodies and replies look like, for the OpenAPI document; `body` and `tensors` check them."""

from __future__ import annotations

from typing import Any

SCORE_BODY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "rows": {
            "type": "array",
            "maxItems": 1000,
            "items": {"type": "object", "additionalProperties": {"type": ["number", "string", "boolean", "null"]}},
            "description": "One object per row, the raw columns by name. What is missing is imputed by the graph.",
        },
        "entities": {
            "type": "array",
            "maxItems": 1000,
            "items": {"type": "string"},
            "description": "Whose features to take from the online store; with rows, the rows' values win.",
        },
        "version": {"type": ["string", "integer"], "description": "Ask this version alone: it answers or errs."},
        "timeout_ms": {"type": "number", "exclusiveMinimum": 0, "description": "Sooner than the SLO, in ms."},
        "mode": {"enum": ["sync", "async"]},
    },
    "additionalProperties": False,
    "examples": [{"rows": [{"age": 63, "sex": "1", "cp": 1}]}],
}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string"},
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object"},
    },
}
INFER_BODY: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "Comes back in the reply."},
        "parameters": {"type": "object", "properties": {"timeout": {"type": "number", "description": "In µs."}}},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        },
    },
    "examples": [{"inputs": [{"name": "age", "shape": [1, 1], "datatype": "FP64", "data": [63]}]}],
}
_OUTCOME: dict[str, Any] = {
    "type": "object",
    "required": ["score_id", "outcome"],
    "properties": {
        "score_id": {"type": "string"},
        "outcome": {"type": ["string", "number", "boolean"]},
        "time": {"type": "string", "format": "date-time", "description": "When it was observed; default: now."},
    },
    "additionalProperties": False,
    "examples": [{"score_id": "019ad0…", "outcome": "yes", "time": "2026-01-31T08:15:00Z"}],
}
OUTCOME_BODY: dict[str, Any] = {"oneOf": [_OUTCOME, {"type": "array", "maxItems": 1000, "items": _OUTCOME}]}
SCORE_REPLY = {
    "rows": [
        {
            "score_id": "019ad0f2-6f1c-7b1a-9c7e-2d4f5a6b7c8d",
            "entity": None,
            "value": "true",
            "probabilities": {"false": 0.25, "true": 0.75},
            "version": "2",
            "served_by": "previous",
            "reason": "deadline",
            "attempts": [
                {"version": "3", "outcome": "late", "milliseconds": None, "detail": "ended after 30 ms"},
                {"version": "2", "outcome": "ok", "milliseconds": 1.5, "detail": None},
            ],
        }
    ]
}
INFER_REPLY = {
    "model_name": "heart-disease",
    "model_version": "2",
    "parameters": {
        "score_id": "019ad0f2-6f1c-7b1a-9c7e-2d4f5a6b7c8d",
        "served_by": "champion",
        "fallback": False,
        "attempted": "2",
    },
    "outputs": [
        {"name": "label", "shape": [1], "datatype": "BYTES", "data": ["true"]},
        {"name": "probabilities", "shape": [1, 2], "datatype": "FP64", "data": [0.25, 0.75]},
    ],
}
OUTCOME_REPLY = {
    "accepted": 1,
    "outcomes": [
        {
            "score_id": "019ad0f2-6f1c-7b1a-9c7e-2d4f5a6b7c8d",
            "event_id": "5f0c2a53-57c2-5b0e-8a3e-6b1f1c1d9a10",
        }
    ],
}
PROTOCOL_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Why there is no answer, in a sentence.",
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
            }
        },
    }
}


def example(description: str, content: object) -> dict[str, Any]:
    """A response, described and shown."""
    return {"description": description, "content": {"application/json": {"example": content}}}

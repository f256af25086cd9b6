"""Errors over HTTP: problem documents (RFC 9457), and under `/v2` the Open Inference Protocol's `{"error": …}`.

Which status an error becomes is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from turnout.common.errors import Invalid, Unavailable, Unknown

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
PROTOCOL = "/v2"
# For an app's OpenAPI document: what every error is. FastAPI's own 422 is left out where a route has this.
RESPONSES: Mapping[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem document (RFC 9457)",
        "content": {
            MEDIA_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string", "description": "What is wrong, in a sentence."},
                        "field": {"type": "string", "description": "Where."},
                        "fix": {"type": "string", "description": "What to do about it."},
                    },
                }
            }
        },
    }
}


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document, unless the app has a handler of its own for it."""
    handlers: Mapping[Any, Any] = {
        Unknown: _answer,
        Invalid: _answer,
        Unavailable: _answer,
        HTTPException: _answer,
        RequestValidationError: _answer,
        Exception: _answer,
    }
    for kind, handler in handlers.items():
        if app.exception_handlers.get(kind) in (None, *_DEFAULTS):
            app.add_exception_handler(kind, handler)


def of(error: Exception, path: str = "") -> Response:
    """The response that an error becomes; `path` is the request's."""
    match error:
        case Unknown():
            return problem(HTTPStatus.NOT_FOUND, error.problem, path, field=error.field, fix=error.fix)
        case Invalid():
            return problem(HTTPStatus.UNPROCESSABLE_ENTITY, error.problem, path, field=error.field, fix=error.fix)
        case Unavailable():
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), path, headers={"retry-after": "1"})
        case HTTPException():
            return problem(HTTPStatus(error.status_code), str(error.detail), path, headers=error.headers)
        case RequestValidationError():
            return _validation(error, path)
        case _:
            return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "this is a fault of ours; it has been logged", path)


def problem(
    status: HTTPStatus,
    detail: str,
    path: str = "",
    *,
    field: str | None = None,
    fix: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document, or the inference protocol's error where `path` lies under `/v2`."""
    if path.startswith(PROTOCOL):
        sentence = (f"{field}: " if field else "") + detail + (f"; {fix}" if fix else "")
        return _json({"error": sentence}, status, "application/json", headers)
    content = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail}
    extensions = {name: text for name, text in (("field", field), ("fix", fix)) if text is not None}
    return _json(content | extensions, status, MEDIA_TYPE, headers)


async def _answer(request: Request, error: Exception) -> Response:
    return of(error, request.url.path)


def _validation(error: RequestValidationError, path: str) -> Response:
    found = list(error.errors())
    if any(detail["type"] == "json_invalid" for detail in found):
        return problem(HTTPStatus.BAD_REQUEST, "the body is not JSON", path, field="body")
    first = found[0] if found else {"loc": ("body",), "msg": "is not valid"}
    field = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).removeprefix(".")
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    message = str(first["msg"])
    return problem(
        HTTPStatus.UNPROCESSABLE_ENTITY, f"{message[0].lower()}{message[1:]}{others}", path, field=field or "body"
    )


def _json(content: Any, status: HTTPStatus, media_type: str, headers: Mapping[str, str] | None) -> Response:
    # Text that a client sent may hold a lone surrogate, which is no UTF-8.
    try:
        body = orjson.dumps(content)
    except TypeError:
        body = orjson.dumps(
            {k: v.encode(errors="replace").decode() if isinstance(v, str) else v for k, v in content.items()}
        )
    return Response(body, status, dict(headers or {}), media_type)


_DEFAULTS = tuple(
    handler for kind, handler in FastAPI().exception_handlers.items() if kind in (HTTPException, RequestValidationError)
)

"""A request's body: read whole, parsed strictly, each surprise answered in words."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from turnout.common.errors import Invalid
from turnout.common.runtime.direct import ARRIVED, TRIED
from turnout.scoring.domain.signature import unknown
from turnout.scoring.reactions.answering import Tried

MAX_TIMEOUT_MS = 60_000.0


async def read(scope: Scope, receive: Receive) -> bytes:
    """The whole body (the runtime bounds it). Raises 415 if it says that it is no JSON, `ClientDisconnect`."""
    for name, value in scope["headers"]:
        if name == b"content-type" and b"json" not in value.lower():
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON: `Content-Type: application/json`")
    message = await receive()
    body = message.get("body", b"")
    while message.get("more_body", False):
        message = await receive()
        body += message.get("body", b"")
    if message["type"] != "http.request":
        raise ClientDisconnect
    return body


def before(scope: Scope) -> tuple[float, Tried | None]:
    """When the request arrived (monotonic clock), and who was asked already, if it was tried to answer it directly."""
    state: Mapping[str, Any] = scope.get("state") or {}
    return state.get(ARRIVED) or time.monotonic(), state.get(TRIED)


def traceparent(scope: Scope) -> str | None:
    """The caller's place in a trace (W3C Trace Context), if it says so."""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            return value.decode("latin-1")
    return None


def parse(body: bytes) -> Any:
    """The JSON in a body. Raises 400 if there is none.

    NaN, Infinity and numbers beyond 64 bits are no JSON; they are let through here as what no field accepts, so that
    the answer names the field.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        why = str(error)
    try:
        parsed = json.loads(body, parse_int=_integer)
    except (ValueError, RecursionError):
        parsed = None
    if parsed is None or not _has_wild_number(parsed):
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {why}")
    return parsed


def an_object(parsed: Any, fields: Iterable[str]) -> Mapping[str, Any]:
    """`parsed` as an object that has no other than these fields. Raises `Invalid` with the nearest name."""
    if not isinstance(parsed, dict):
        raise Invalid("body", "an object is expected", fix='begin with {"rows": …}')
    known = frozenset(fields)
    for name in parsed:
        if name not in known:
            raise unknown(name, "field", name, known)
    return parsed


def query(scope: Scope, fields: Iterable[str]) -> Mapping[str, str]:
    """The query's parameters. Raises `Invalid` for one that is none of `fields`."""
    text: bytes = scope["query_string"]
    if not text:
        return {}
    found = dict(parse_qsl(text.decode("latin-1"), keep_blank_values=True))
    for name in found:
        if name not in frozenset(fields):
            raise unknown(name, "parameter", name, fields)
    return found


def version(value: object) -> str | None:
    """A version as a client may write it: `"3"` or `3`. Raises `Invalid`."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and 1 <= len(value) <= 200:
        return value
    raise Invalid("version", "a version is a text", fix='for example "3"')


def milliseconds(value: object, field: str, per_millisecond: float = 1.0) -> float | None:
    """A time limit in milliseconds, from a number of `per_millisecond` a millisecond. Raises `Invalid`."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise Invalid(field, f"{value[:40]!r} is not a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise Invalid(field, "a number above zero is expected")
    return min(float(value) / per_millisecond, MAX_TIMEOUT_MS)


def _integer(text: str) -> float | int:
    return int(text) if len(text) < 20 else float(text)


def _has_wild_number(value: Any) -> bool:
    """Whether NaN or an infinite number is what orjson did not like."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, float) and not math.isfinite(found):
            return True
        if isinstance(found, dict):
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)
    return False

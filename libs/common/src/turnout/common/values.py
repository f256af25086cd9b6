"""What a cell means, the same in a file, on the bus and in a request.

A column has one of three kinds. In the lake a `number` is a float64 (missing: null), a `category` a string
(missing: null), a `timestamp` is microseconds in UTC. A model's graph takes them as one tensor `[rows, 1]`
a column: FP64 (missing: NaN), string (missing: the empty string), FP64 seconds since 1970 (missing: NaN).
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Literal

from turnout.common.errors import Invalid

Kind = Literal["number", "category", "timestamp"]
Cell = float | int | str | bool | datetime | None

# Integral numbers written with a decimal part: "63.0" in one hospital's file is "63" in the other's.
_INTEGRAL = re.compile(r"[+-]?\d{1,15}\.0*")
MAX_TEXT = 10_000


def category(value: Cell) -> str | None:  # noqa: PLR0911 (one return a type)
    """A category's canonical text: `3`, `3.0` and `"3.0"` are `"3"`, `True` is `"true"`, blank is missing."""
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            if math.isnan(value):
                return None
            return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
        case datetime():
            return value.isoformat()
        case str():
            text = value.strip()
            if _INTEGRAL.fullmatch(text):
                return str(int(float(text)))
            return text or None


def number(value: Cell, field: str) -> float | None:
    """A number, from a number or its text; infinite and not-a-number are refused, blank is missing.

    Raises `Invalid` naming `field`.
    """
    match value:
        case None:
            return None
        case bool():
            return float(value)
        case int() | float():
            found = _float(value, field)
        case str():
            if not value.strip():
                return None
            try:
                found = float(value)
            except ValueError:
                raise Invalid(field, f"{value[:40]!r} is not a number") from None
        case datetime():
            raise Invalid(field, "a time is not a number")
    if not math.isfinite(found):
        raise Invalid(field, f"{found} is not a finite number", fix="leave it out if it is missing")
    return found


def timestamp(value: Cell, field: str) -> datetime | None:
    """A moment in UTC, from ISO 8601 text (no zone means UTC) or seconds since 1970. Raises `Invalid`."""
    match value:
        case None:
            return None
        case datetime():
            moment = value
        case bool():
            raise Invalid(field, "true/false is not a time")
        case int() | float():
            try:
                moment = datetime.fromtimestamp(value, UTC)
            except (ValueError, OverflowError, OSError):
                raise Invalid(field, f"{value} is no time in seconds since 1970") from None
        case str():
            if not value.strip():
                return None
            moment = _moment(value, field)
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise Invalid(field, f"{moment} lies outside the years 1 to 9999 in UTC") from None


def cell(value: Cell, kind: Kind, field: str) -> float | str | datetime | None:
    """`value` as a cell of `kind`: number, category text or moment; None where missing. Raises `Invalid`."""
    match kind:
        case "number":
            return number(value, field)
        case "category":
            if isinstance(value, str) and len(value) > MAX_TEXT:
                raise Invalid(field, f"text of {len(value)} characters", fix=f"at most {MAX_TEXT}")
            return category(value)
        case "timestamp":
            return timestamp(value, field)


def _moment(text: str, field: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip().replace("/", "-"))
    except ValueError:
        raise Invalid(field, f"{text[:40]!r} is not a time", fix="write it as 2026-01-31T08:15:00Z") from None


def _float(value: float, field: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise Invalid(field, "the number is too large", fix="at most 1.8e308") from None

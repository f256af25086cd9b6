"""Columns of a source as columns of the lake.

What a cell means is decided by `turnout.common.values.cell` alone. The fast ways here take only cells of which it is
known that they mean the same to Arrow; every other cell, once per distinct value, is asked of `cell` itself.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from turnout.common.errors import Invalid
from turnout.common.values import MAX_TEXT, Cell, Kind, cell

LAKE_TYPES: Mapping[Kind, pa.DataType] = {
    "number": pa.float64(),
    "category": pa.string(),
    "timestamp": pa.timestamp("us", "UTC"),
}
# A category that is its own canonical text: printable ASCII, no blank at either end, and nothing that could be an
# integral number with a decimal part (`63.0`).
_CANONICAL = r"^[!-~]([ -~]*[!-~])?$"
_MAYBE_INTEGRAL = r"\.0*$"
_NUMBER_LETTERS, _TIME_LETTERS = np.zeros((2, 256), np.bool_)
_NUMBER_LETTERS[list(b"0123456789.+-eE")] = True
_TIME_LETTERS[list(b"0123456789.+-:/ TZ")] = True
# A stretch of times with a wrong one in it that is not divided further.
_SMALL = 64
_PLAIN_NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_SHOWN = 40
# From the year 1 to the year 9999, what Python's datetime holds; nanoseconds do not reach that far.
_TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000}
_FIRST_SECOND = int(datetime(1, 1, 1, tzinfo=UTC).timestamp())
_LAST_SECOND = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) + 86_400


@dataclass(frozen=True)
class Converted:
    """A column in its lake type; null where missing or bad. `bad` says per row why a cell does not fit."""

    values: pa.Array
    bad: Mapping[int, str]


def convert(column: pa.Array, kind: Kind, field: str, null_values: Collection[str] = ()) -> Converted:
    """Any flat Arrow column as a lake column. Bytes are taken for UTF-8 text; what is not is bad."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    undecodable: Mapping[int, str] = {}
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        column, undecodable = _decoded(column, field)
    if pa.types.is_dictionary(column.type):
        if kind == "category" and pa.types.is_string(column.type.value_type):
            return canonical(column, field, null_values)
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        converted = _text(column.cast(pa.string()), kind, field, null_values)
    else:
        converted = _typed(column, kind, field)
    return Converted(converted.values, {**converted.bad, **undecodable}) if undecodable else converted


def convert_cells(cells: Sequence[Any], kind: Kind, field: str, null_values: Collection[str] = ()) -> Converted:
    """The same for Python values, as JSON has them."""
    try:
        whole = pa.array(cells, pa.float64() if kind == "number" else pa.string())
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return _one_by_one(cells, kind, field, null_values)
    return convert(whole, kind, field, null_values)


def _one_by_one(cells: Sequence[Any], kind: Kind, field: str, null_values: Collection[str]) -> Converted:
    missing = frozenset(null_values)
    values: list[object] = []
    bad: dict[int, str] = {}
    for row, value in enumerate(cells):
        found: object = None
        if isinstance(value, dict | list):
            bad[row] = f"{field}: nested values are not supported"
        elif not (isinstance(value, str) and value.strip() in missing):
            found = _cell(value, kind, field, row, bad)
        values.append(found)
    return Converted(pa.array(values, LAKE_TYPES[kind]), bad)


def canonical(column: pa.DictionaryArray, field: str, null_values: Collection[str]) -> Converted:
    """Text that is already dictionary-encoded, as categories: each distinct text is looked at once."""
    found = _text_categories(column.dictionary, field, null_values)
    if not found.bad and found.values is column.dictionary:
        return Converted(column.dictionary_decode(), {})
    return _spread(column, found)


def _text(text: pa.Array, kind: Kind, field: str, null_values: Collection[str]) -> Converted:
    if kind == "category":
        return canonical(text.dictionary_encode(), field, null_values)
    # What is odd, or stays null because it is blank or means missing, is asked of `cell` once per distinct text.
    plain = _without(text, _odd_rows(text, _NUMBER_LETTERS if kind == "number" else _TIME_LETTERS))
    if null_values:
        meant = pc.is_in(plain, value_set=pa.array(sorted(null_values), pa.string()))
        plain = pc.if_else(meant, pa.scalar(None, pa.string()), plain)
    return _patched((_easy_numbers if kind == "number" else _easy_times)(plain), text, kind, field, null_values)


def _easy_numbers(text: pa.Array) -> pa.Array:
    try:
        numbers = pc.cast(text, pa.float64())
    except pa.ArrowInvalid:
        plain = pc.fill_null(pc.match_substring_regex(text, _PLAIN_NUMBER), False)
        numbers = pc.cast(pc.if_else(plain, text, pa.scalar(None, pa.string())), pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))


def _easy_times(text: pa.Array) -> pa.Array:
    """Moments; null where Arrow finds none, with some right ones around it."""
    dashed = pc.replace_substring(text, "/", "-")
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return _times(pc.cast(dashed, kind), "").values
        except pa.ArrowInvalid:
            continue
    if len(text) <= _SMALL:
        return pa.nulls(len(text), LAKE_TYPES["timestamp"])
    half = len(text) // 2
    return pa.concat_arrays([_easy_times(text.slice(0, half)), _easy_times(text.slice(half))])


def _odd_rows(text: pa.Array, letters: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows that hold a letter which is not among `letters`, or none at all."""
    if not len(text):
        return np.array([], np.int64)
    _, ends, content = text.buffers()
    offsets = np.frombuffer(ends, np.int32)[text.offset : text.offset + len(text) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    odd = np.flatnonzero(~letters[np.frombuffer(content, np.uint8)[first:last]]) if last > first else np.array([], int)
    rows = np.searchsorted(offsets, odd + first, side="right") - 1
    return np.union1d(rows, np.flatnonzero(offsets[1:] == offsets[:-1]))


def _without(text: pa.Array, rows: NDArray[np.int64]) -> pa.Array:
    if not len(rows):
        return text
    mask = np.zeros(len(text), np.bool_)
    mask[rows] = True
    return pc.if_else(pa.array(mask), pa.scalar(None, pa.string()), text)


def _patched(values: pa.Array, text: pa.Array, kind: Kind, field: str, null_values: Collection[str]) -> Converted:
    """`values`, with those that are null though there is a text asked of `cell`."""
    open_rows = pc.and_(pc.is_null(values), pc.is_valid(text))
    if not pc.any(open_rows).as_py():
        return Converted(values, {})
    rows = np.flatnonzero(open_rows.to_numpy(zero_copy_only=False))
    asked = text.filter(open_rows).dictionary_encode()
    found = _one_by_one(asked.dictionary.to_pylist(), kind, field, null_values)
    spread = _spread(asked, found)
    patched = pc.replace_with_mask(values, open_rows, spread.values)
    return Converted(patched, {int(rows[at]): reason for at, reason in spread.bad.items()})


def _text_categories(texts: pa.Array, field: str, null_values: Collection[str]) -> Converted:
    plain = pc.and_(
        pc.match_substring_regex(texts, _CANONICAL),
        pc.and_not(
            pc.less_equal(pc.binary_length(texts), MAX_TEXT),
            pc.match_substring_regex(texts, _MAYBE_INTEGRAL),
        ),
    )
    if null_values:
        plain = pc.and_not(plain, pc.is_in(texts, value_set=pa.array(sorted(null_values), pa.string())))
    plain = pc.fill_null(plain, True)
    if pc.all(plain).as_py():
        return Converted(texts, {})
    asked = pc.invert(plain)
    rows = np.flatnonzero(asked.to_numpy(zero_copy_only=False))
    found = _one_by_one(texts.filter(asked).to_pylist(), "category", field, null_values)
    return Converted(
        pc.replace_with_mask(texts, asked, found.values), {int(rows[at]): why for at, why in found.bad.items()}
    )


def _spread(encoded: pa.DictionaryArray, distinct: Converted) -> Converted:
    """What was found for the distinct values, for each row."""
    values = distinct.values.take(encoded.indices)
    if not distinct.bad:
        return Converted(values, {})
    bad_rows = pc.fill_null(
        pc.is_in(encoded.indices, value_set=pa.array(list(distinct.bad), encoded.indices.type)), False
    )
    rows = np.flatnonzero(bad_rows.to_numpy(zero_copy_only=False))
    indices = encoded.indices.take(pa.array(rows)).to_pylist()
    return Converted(values, {int(row): distinct.bad[index] for row, index in zip(rows, indices, strict=True)})


def _typed(column: pa.Array, kind: Kind, field: str) -> Converted:
    """A column that is no text. Not-a-number in a column of floats is how such columns say that a value is missing."""
    if pa.types.is_null(column.type):
        return Converted(pa.nulls(len(column), LAKE_TYPES[kind]), {})
    if pa.types.is_floating(column.type):
        column = pc.cast(column, pa.float64())
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    if kind == "number" and not pa.types.is_temporal(column.type):
        numbers = pc.cast(column, pa.float64(), safe=False)
        finite = pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))
        return _patched(finite, pc.cast(numbers, pa.string()), kind, field, ())
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        times = _times(column, field)
        if kind == "timestamp":
            return times
        encoded = times.values.dictionary_encode()
        texts = _spread(encoded, _one_by_one(encoded.dictionary.to_pylist(), kind, field, ()))
        return Converted(texts.values, {**texts.bad, **times.bad})
    if not pa.types.is_primitive(column.type) or pa.types.is_temporal(column.type):
        return _text(pc.cast(column, pa.string()), kind, field, ())
    encoded = column.dictionary_encode()
    return _spread(encoded, _one_by_one(encoded.dictionary.to_pylist(), kind, field, ()))


def _times(column: pa.Array, field: str) -> Converted:
    """Moments in UTC; nanoseconds are cut off. What lies outside the years 1 to 9999 is bad."""
    if pa.types.is_date(column.type):
        column = pc.cast(column, pa.timestamp("ms"))
    if column.type.unit == "ns":
        return Converted(_in_utc(pc.cast(column, pa.timestamp("us", column.type.tz), safe=False)), {})
    ticks = pc.cast(column, pa.int64())
    per_second = _TICKS[column.type.unit]
    fits = pc.and_(pc.greater_equal(ticks, _FIRST_SECOND * per_second), pc.less(ticks, _LAST_SECOND * per_second))
    rows = np.flatnonzero(pc.invert(pc.fill_null(fits, True)).to_numpy(zero_copy_only=False))
    column = pc.if_else(fits, column, pa.scalar(None, column.type))
    moments = pc.cast(column, pa.timestamp("us", column.type.tz), safe=False)
    return Converted(_in_utc(moments), {int(row): f"{field}: a time outside the years 1 to 9999" for row in rows})


def _in_utc(moments: pa.Array) -> pa.Array:
    """Microseconds in UTC; a moment without a zone is one in UTC."""
    if moments.type.tz is None:
        return pc.assume_timezone(moments, "UTC")
    return pc.cast(moments, LAKE_TYPES["timestamp"])


def _decoded(column: pa.Array, field: str) -> tuple[pa.Array, Mapping[int, str]]:
    try:
        return pc.cast(column, pa.string()), {}
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        bad: dict[int, str] = {}
        for row, value in enumerate(column.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(None)
                bad[row] = f"{field}: is not UTF-8 text"
        return pa.array(texts, pa.string()), bad


def _cell(value: Cell, kind: Kind, field: str, row: int, bad: dict[int, str]) -> float | str | datetime | None:
    try:
        found = cell(value, kind, field)
    except Invalid as error:
        bad[row] = str(error)
        return None
    if isinstance(found, str):
        try:
            found.encode()
        except UnicodeEncodeError:
            bad[row] = f"{field}: {found[:_SHOWN]!r} is not valid Unicode text"
            return None
    return found.astimezone(UTC) if isinstance(found, datetime) else found

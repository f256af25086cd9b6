"""A batch of raw columns, as a file or the lake has them, to a graph's arrays: the same cells as a request's.

Whole columns at a time: distinct texts are read once each. A row with a cell that does not fit is refused with its
reason, the others go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from turnout.common import values
from turnout.common.errors import Invalid
from turnout.common.events import Column
from turnout.common.values import Kind
from turnout.scoring.domain.signature import Feeds


@dataclass(frozen=True)
class Decoded:
    """The graph's arrays of the rows at `good`, and the reasons why the others have none, by place."""

    feeds: Feeds
    good: NDArray[np.int64]
    refused: Mapping[int, str]


def decode(columns: Mapping[str, pa.Array], inputs: Sequence[Column], rows: int) -> Decoded:
    """Decode `rows` rows; an input that `columns` lacks is missing everywhere."""
    refused: dict[int, str] = {}
    arrays: Feeds = {}
    given = np.zeros(rows, dtype=bool)
    for column in inputs:
        array = columns.get(column.name)
        if array is None:
            arrays[column.name] = _missing(column.kind, rows)
            continue
        cells, there = _cells(array, column, refused)
        arrays[column.name] = cells
        given |= there
    for place in np.flatnonzero(~given):
        refused.setdefault(int(place), "has no value for any input")
    good = np.array([place for place in range(rows) if place not in refused], dtype=np.int64)
    feeds = {name: (cells if len(good) == rows else cells[good]).reshape(-1, 1) for name, cells in arrays.items()}
    return Decoded(feeds, good, refused)


def _cells(array: pa.Array, column: Column, refused: dict[int, str]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A column's cells and where there is one."""
    if column.kind == "number" and (numbers := _numbers(array)) is not None:
        there = ~np.isnan(numbers)
        for place in np.flatnonzero(np.isinf(numbers)):
            refused.setdefault(int(place), f"{column.name}: {numbers[place]} is not a finite number")
        return numbers, there
    encoded = array.dictionary_encode()
    missing = _missing(column.kind, 1)[0]
    cells: list[float | str] = []
    wrong: dict[int, str] = {}
    for place, value in enumerate(encoded.dictionary.to_pylist()):
        try:
            cell = values.cell(_scalar(value), column.kind, column.name)
        except Invalid as error:
            wrong[place], cell = str(error), None
        cells.append(missing if cell is None else cell.timestamp() if isinstance(cell, datetime) else cell)
    table = np.array([*cells, missing], dtype=object if column.kind == "category" else np.float64)
    places = encoded.indices.fill_null(len(cells)).to_numpy(zero_copy_only=False).astype(np.int64)
    if wrong:
        for place in np.flatnonzero(np.isin(places, list(wrong))):
            refused.setdefault(int(place), wrong[int(places[place])])
    found = table[places]
    return found, (found != "") if column.kind == "category" else ~np.isnan(found.astype(np.float64))


def _numbers(array: pa.Array) -> NDArray[np.float64] | None:
    """The column as numbers at once, or None where a cell needs a closer look."""
    kind = array.type
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            array = pc.cast(pc.call_function("utf8_trim_whitespace", [array]), pa.float64())
            # The text "nan" is a number to Arrow; to us it is none.
            if pc.call_function("any", [pc.call_function("is_nan", [array])]).as_py():
                return None
        elif pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            array = pc.cast(array, pa.float64(), safe=False)
        else:
            return None
    except pa.ArrowInvalid:
        return None
    return array.to_numpy(zero_copy_only=False).astype(np.float64)


def _scalar(value: Any) -> values.Cell:
    if value is None or isinstance(value, str | int | float | bool | datetime):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)


def _missing(kind: Kind, rows: int) -> NDArray[Any]:
    return np.full(rows, "", dtype=object) if kind == "category" else np.full(rows, np.nan)

"""Columns in memory: Arrow arrays by name, and what they look like to arithmetic.

A `number` is float64 with null for missing, a `category` a string with null for missing, a `timestamp` microseconds
in UTC with null for missing. Arithmetic sees numbers and timestamps as float64 arrays with NaN for missing;
timestamps as seconds since 1970, as the model's graph does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from turnout.common import values
from turnout.common.errors import Invalid
from turnout.common.values import Kind

Floats = NDArray[np.float64]
# Arrow columns of one length, by name.
Columns = Mapping[str, pa.Array]
Kinds = Mapping[str, Kind]

TYPES: Mapping[Kind, pa.DataType] = {
    "number": pa.float64(),
    "category": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
MICROSECONDS = 1e6
# What a feature set adds to a row; see `turnout.common.events.FeaturesGenerated`.
BATCH, ROW, LABEL, EVENT_TIME, ENTITY = "_batch", "_row", "_label", "_event_time", "_entity"
# The raw column that says train or test, carried for segregation's `custom` strategy.
FOLD = "_fold"
RESERVED = frozenset({BATCH, ROW, LABEL, EVENT_TIME, ENTITY, FOLD})
RAW = "in:"


def kind_of(type_: pa.DataType) -> Kind | None:
    """The kind that the lake writes as `type_`, None for a type it does not write."""
    return next((kind for kind, written in TYPES.items() if written == type_), None)


def floats(array: pa.Array) -> Floats:
    """A number or timestamp column as float64; missing and not finite are NaN, a timestamp counts seconds."""
    if pa.types.is_timestamp(array.type):
        micros = pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        found = micros.astype(np.float64) / MICROSECONDS
    else:
        found = pc.fill_null(array, np.nan).to_numpy(zero_copy_only=False).astype(np.float64)
    return np.where(present(array) & np.isfinite(found), found, np.nan)


def numbers(array: Floats) -> pa.Array:
    """float64 with NaN for missing as an Arrow column."""
    return pa.array(array, pa.float64(), mask=~np.isfinite(array))


def present(array: pa.Array) -> NDArray[np.bool_]:
    """Where the column has a value."""
    return cast("NDArray[np.bool_]", array.is_valid().to_numpy(zero_copy_only=False))


def texts(array: pa.Array) -> pa.Array:
    """Any column as canonical category text (`turnout.common.values.category`), missing null."""
    encoded = array.dictionary_encode()
    canonical = [values.category(value) for value in encoded.dictionary.to_pylist()]
    return pa.array(canonical, pa.string()).take(encoded.indices)


def replaced(columns: Columns, name: str, array: pa.Array) -> dict[str, pa.Array]:
    """`columns` with `name` set; a new column comes last."""
    return {**columns, name: array}


def without(columns: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """`columns` without `names`; a name that is not there is no error."""
    gone = frozenset(names)
    return {name: array for name, array in columns.items() if name not in gone}


def quoted(name: str) -> str:
    """The column's name as an expression writes it. Raises `Invalid` for a name with a backtick."""
    if "`" in name:
        raise Invalid(
            f"column {name!r}", "a name with a backtick cannot stand in an expression", fix="rename the column"
        )
    return f"`{name}`"

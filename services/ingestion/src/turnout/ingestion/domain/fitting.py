"""Rows that fit the schema, and rows that do not with the reason."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from turnout.ingestion.domain.convert import LAKE_TYPES, Converted, convert, convert_cells
from turnout.ingestion.domain.schema import Schema

QUARANTINE = pa.schema([("_row", pa.int64()), ("_reason", pa.string()), ("_text", pa.string())])


@dataclass(frozen=True)
class Rejected:
    """A row that does not fit: its line (or number) in the source, why, and what stood there."""

    row: int
    reason: str
    text: str


@dataclass(frozen=True)
class Fitted:
    """A piece of a source: `good` in the lake's types with `_row`, and the rest. No row is in neither."""

    good: pa.Table
    rejected: Sequence[Rejected]

    @property
    def rows_read(self) -> int:
        """How many rows the piece had."""
        return self.good.num_rows + len(self.rejected)


def lake_schema(schema: Schema) -> pa.Schema:
    """The columns of a raw batch: the source's, then `_row`."""
    return pa.schema([*((c.name, LAKE_TYPES[c.kind]) for c in schema.columns), ("_row", pa.int64())])


def fit(
    columns: Mapping[str, pa.Array | Sequence[Any]],
    rows: NDArray[np.int64],
    schema: Schema,
    null_values: Collection[str],
    text: Callable[[int], str],
) -> Fitted:
    """Convert each column of the schema; a column that is not there is missing in every row.

    `rows[i]` is where row `i` stands in the source, `text(i)` what stands there (asked of rejected rows only).
    """
    converted: dict[str, Converted] = {}
    for column in schema.columns:
        cells = columns.get(column.name)
        if cells is None:
            cells = pa.nulls(len(rows))
        done = convert if isinstance(cells, pa.Array | pa.ChunkedArray) else convert_cells
        converted[column.name] = done(cells, column.kind, column.name, null_values)
    return gather(converted, rows, schema, text)


def gather(
    converted: Mapping[str, Converted], rows: NDArray[np.int64], schema: Schema, text: Callable[[int], str]
) -> Fitted:
    """The table of the rows whose every cell fits, and the others with their first reason."""
    table = pa.table([*(converted[c.name].values for c in schema.columns), pa.array(rows)], schema=lake_schema(schema))
    reasons: dict[int, str] = {}
    for column in schema.columns:
        for row, reason in converted[column.name].bad.items():
            reasons.setdefault(row, reason)
    if not reasons:
        return Fitted(table, ())
    keep = np.ones(len(rows), np.bool_)
    keep[list(reasons)] = False
    rejected = [Rejected(int(rows[row]), reasons[row], text(row)) for row in sorted(reasons)]
    return Fitted(table.filter(pa.array(keep)), rejected)


def quarantine(rejected: Sequence[Rejected]) -> pa.Table:
    """Rejected rows as the lake keeps them."""
    return pa.table(
        [[r.row for r in rejected], [r.reason for r in rejected], [r.text for r in rejected]], schema=QUARANTINE
    )

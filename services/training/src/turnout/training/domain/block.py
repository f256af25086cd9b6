"""Rows in memory as the learned steps and the estimator see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from turnout.common.events import Column

Floats = NDArray[np.float64]
Texts = NDArray[np.object_]

MICROSECONDS = 1e6
# A feature set keeps the raw value of an input that a row-wise step changed under this prefix.
RAW = "in:"


@dataclass(frozen=True)
class Block:
    """`numbers` is FP64 `[rows, len(names)]` with NaN for missing; `texts` holds `[rows]` strings, "" for missing.

    `flags` are names of columns that are only ever 0 or 1.
    """

    numbers: Floats
    names: tuple[str, ...]
    texts: Mapping[str, Texts] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        """How many rows."""
        return len(self.numbers)

    def at(self, columns: Sequence[str]) -> list[int]:
        """Where `columns` lie in `numbers`; one that is no longer there is left out."""
        where = {name: index for index, name in enumerate(self.names)}
        return [where[name] for name in columns if name in where]

    def with_numbers(self, numbers: Floats) -> Block:
        """The same columns with other values."""
        return replace(self, numbers=numbers)

    @classmethod
    def of(cls, table: pa.Table, columns: Sequence[Column]) -> Block:
        """The `columns` of a feature set's rows; numbers and times first, in order."""
        numeric = [c.name for c in columns if c.kind != "category"]
        numbers = np.empty((table.num_rows, len(numeric)), dtype=np.float64)
        for index, name in enumerate(numeric):
            numbers[:, index] = floats(table.column(name))
        texts = {c.name: strings(table.column(c.name)) for c in columns if c.kind == "category"}
        return cls(numbers, tuple(numeric), texts)


def floats(column: pa.ChunkedArray) -> Floats:
    """A number or timestamp column as FP64 `[rows]`: missing NaN, a timestamp in seconds since 1970."""
    if pa.types.is_timestamp(column.type):
        micros = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
        seconds = pc.fill_null(micros, 0).to_numpy().astype(np.float64) / MICROSECONDS
        return np.where(column.is_null().to_numpy(), np.nan, seconds)
    return pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy().astype(np.float64)


def strings(column: pa.ChunkedArray) -> Texts:
    """A category column as strings `[rows]`, missing the empty string."""
    found: Texts = pc.fill_null(column.cast(pa.string()), "").to_numpy()
    return found.astype(object)


def raw(table: pa.Table, inputs: Sequence[Column]) -> dict[str, NDArray[np.generic]]:
    """What a model's graph is fed: one tensor `[rows, 1]` a raw input, from a feature set's rows."""
    fed: dict[str, NDArray[np.generic]] = {}
    for column in inputs:
        name = RAW + column.name if RAW + column.name in table.column_names else column.name
        values = strings(table.column(name)) if column.kind == "category" else floats(table.column(name))
        fed[column.name] = values.reshape(-1, 1)
    return fed

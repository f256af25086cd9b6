"""Rows of a raw batch as what the online store keeps: each entity's newest values, with the time of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from turnout.common.online.port import Put
from turnout.preparation.domain.columns import Columns, present

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def newest(entities: pa.Array, times: pa.Array, columns: Columns, without: Collection[str]) -> Iterator[Put]:
    """Each entity's newest value of each column, one item for each time; entities in `without` are left out.

    A missing value is no value; of two with one time the later row's counts. A row without an entity or a time tells
    nothing.
    """
    rows = np.flatnonzero(present(entities) & present(times))
    known = entities.take(pa.array(rows)).dictionary_encode()
    codes = known.indices.to_numpy(zero_copy_only=False)
    stamps = times.cast(pa.int64()).take(pa.array(rows)).to_numpy(zero_copy_only=False)
    order = np.lexsort((stamps, codes))  # stable: rows of one time stay in their order
    rows, codes, stamps = rows[order], codes[order], stamps[order]
    names = known.dictionary.to_pylist()
    found = [(name, *_of(column, rows, codes, stamps, len(names))) for name, column in columns.items()]
    for index, entity in enumerate(names):
        if entity in without:
            continue
        together: dict[int, dict[str, float | str]] = {}
        for name, values, when in found:
            value = values[index]
            if value is not None:
                together.setdefault(when[index], {})[name] = value
        for stamp, values in together.items():
            yield entity, values, _moment(stamp)


def _of(
    column: pa.Array,
    rows: NDArray[np.int64],
    codes: NDArray[np.int64],
    stamps: NDArray[np.int64],
    entities: int,
) -> tuple[list[float | str | None], list[int]]:
    """The column's newest value of each entity and its time, of `rows` in the order of entities, then times."""
    there = np.flatnonzero(present(column)[rows])
    last = np.full(entities, -1)
    np.maximum.at(last, codes[there], there)
    taken = column.take(pa.array(rows[last], pa.int64(), mask=last < 0))
    when = stamps[last].tolist()
    if not pa.types.is_timestamp(taken.type):
        return taken.to_pylist(), when
    # Not by way of Arrow's datetimes, each of which looks its time zone up.
    micros = taken.cast(pa.int64()).to_pylist()
    return [None if at is None else _moment(at).isoformat() for at in micros], when


def _moment(stamp: int) -> datetime:
    return _EPOCH + timedelta(microseconds=stamp)

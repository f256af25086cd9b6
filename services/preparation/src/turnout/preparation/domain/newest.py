"""Rows of a raw batch as what the online store keeps: each entity's newest values, with the time of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from turnout.common.events import Values
from turnout.preparation.domain.asof import History
from turnout.preparation.domain.columns import Columns, present

_AT = "at:"
# Values measured together: whose, which, when.
Placed = tuple[str, Values, datetime]


def newest(entities: pa.Array, times: pa.Array, columns: Columns, without: Collection[str]) -> Iterator[Placed]:
    """Each entity's newest value of each column, one item for each time; entities in `without` are left out.

    A missing value is no value. A row without an entity or a time tells nothing.
    """
    asked = entities.filter(pa.array(present(entities) & present(times))).unique()
    if without:
        asked = pa.array([entity for entity in asked.to_pylist() if entity not in without], pa.string())
    when = {
        f"{_AT}{name}": pc.call_function("if_else", [pa.array(present(column)), times, pa.scalar(None, times.type)])
        for name, column in columns.items()
    }
    history = History(entities, times, {**columns, **when})
    latest = pa.array(np.full(len(asked), np.iinfo(np.int64).max), pa.int64()).cast(times.type)
    found = {name: history.newest(name, asked, latest).to_pylist() for name in history.columns}
    for index, entity in enumerate(asked.to_pylist()):
        together: dict[datetime, dict[str, float | str]] = {}
        for name in columns:
            value, at = found[name][index], found[f"{_AT}{name}"][index]
            if value is not None:
                kept = value.isoformat() if isinstance(value, datetime) else value
                together.setdefault(at, {})[name] = kept
        for at, values in together.items():
            yield entity, values, at

"""The as-of join: what was newest about an entity at a moment, never a later value.

A sorted search per row (feature stores call it a point-in-time join; pandas' `merge_asof` and DuckDB's
`ASOF JOIN` mean the same), not a cross join filtered by time: the cost is (left + right) × log(right).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from turnout.preparation.domain.columns import present

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class History:
    """Values of entities over time: `entities` (text), `times` (timestamp), and columns of the same length."""

    entities: pa.Array
    times: pa.Array
    columns: Mapping[str, pa.Array]

    def newest(self, name: str, entities: pa.Array, times: pa.Array) -> pa.Array:
        """For each row the value of `name` that was newest at its time; missing if there was none.

        The newest value that is not missing counts, as in the online store, where a missing value overwrites
        nothing. Of two values with one time the later row's counts.
        """
        known = present(self.columns[name]) & present(self.entities) & present(self.times)
        values = self.columns[name].filter(pa.array(known))
        found = _search(self.entities.filter(pa.array(known)), self.times.filter(pa.array(known)), entities, times)
        return values.take(pa.array(found, pa.int64(), mask=found < 0))


def _search(entities: pa.Array, times: pa.Array, asked: pa.Array, when: pa.Array) -> Integers:
    """Index of the row of (`entities`, `times`) that answers each of (`asked`, `when`); -1 where none does."""
    encoded = entities.dictionary_encode()
    codes = _integers(encoded.indices)
    moments, ranks = np.unique(_integers(times.cast(pa.int64())), return_inverse=True)
    # One sortable number per row: entities apart, inside an entity by time. Rank 0 is "before everything".
    width = len(moments) + 1
    keys = codes * width + ranks + 1
    order = np.argsort(keys, kind="stable")
    asked_codes = _integers(pc.call_function("index_in", [asked], pc.SetLookupOptions(value_set=encoded.dictionary)))
    asked_ranks = np.searchsorted(moments, _integers(when.cast(pa.int64())), side="right")
    at = np.searchsorted(keys[order], asked_codes * width + asked_ranks, side="right") - 1
    if not len(order):
        return np.full(len(asked), -1)
    candidates = order[np.maximum(at, 0)]
    good = (at >= 0) & (asked_codes >= 0) & (codes[candidates] == asked_codes) & present(when)
    return np.where(good, candidates, -1)


def _integers(array: pa.Array) -> Integers:
    """Integers with -1 for missing; where a missing time would count, `present` is asked as well."""
    return pc.fill_null(array, -1).to_numpy(zero_copy_only=False).astype(np.int64)

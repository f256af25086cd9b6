"""The as-of join against looking at every row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.preparation.domain.asof import History
from turnout.preparation.domain.columns import TYPES

ENTITIES = st.none() | st.sampled_from(["a", "b", "c"])
TIMES = st.none() | st.integers(-3, 8)
KNOWN = st.lists(st.tuples(ENTITIES, TIMES, st.none() | st.integers(0, 99).map(float)), max_size=20)
ASKED = st.lists(st.tuples(ENTITIES, TIMES), max_size=12)


def newest(known: list[tuple[Any, Any, Any]], entity: str | None, time: int | None) -> float | None:
    """Brute force: of the entity's values that are there, not later than `time`, the latest; the later row on a tie."""
    if entity is None or time is None:
        return None
    found = [
        (when, index, value)
        for index, (who, when, value) in enumerate(known)
        if who == entity and when is not None and when <= time and value is not None
    ]
    return max(found)[2] if found else None


@settings(max_examples=300, deadline=None)
@given(KNOWN, ASKED)
def test_the_newest_value_and_never_a_later_one(
    known: list[tuple[Any, Any, Any]], asked: list[tuple[Any, Any]]
) -> None:
    history = History(
        pa.array([k[0] for k in known], pa.string()),
        pa.array([k[1] for k in known], TYPES["timestamp"]),
        {"v": pa.array([k[2] for k in known], pa.float64())},
    )
    found = history.newest(
        "v", pa.array([a[0] for a in asked], pa.string()), pa.array([a[1] for a in asked], TYPES["timestamp"])
    )
    assert found.to_pylist() == [newest(known, *a) for a in asked]

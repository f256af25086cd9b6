"""A summary does not depend on how the data were cut, and says what numpy says of the whole."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.common.values import Kind
from turnout.preparation.domain import summary as under_test
from turnout.preparation.domain.columns import TYPES
from turnout.preparation.domain.summary import Summary, profile, row_keys, summarise

KINDS: dict[str, Kind] = {"x": "number", "c": "category", "t": "timestamp"}
ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(-5, 5).map(float) | st.floats(-1e6, 1e6, width=32),
        st.none() | st.sampled_from(["a", "b", "c"]) | st.text(max_size=2),
        st.none() | st.integers(0, 10**15),
    ),
    min_size=1,
    max_size=60,
)


def of(rows: list[tuple[Any, ...]], start: int = 0, so_far: Summary | None = None) -> Summary:
    columns = {name: pa.array([row[i] for row in rows], TYPES[kind]) for i, (name, kind) in enumerate(KINDS.items())}
    keys = row_keys("batch", np.arange(start, start + len(rows)))
    return summarise(columns, KINDS, keys=keys, so_far=so_far)


def cut(rows: list[tuple[Any, ...]], cuts: list[int]) -> list[tuple[int, list[tuple[Any, ...]]]]:
    at = sorted({0, *(c % len(rows) for c in cuts)})
    return [(start, rows[start:stop]) for start, stop in zip(at, [*at[1:], len(rows)], strict=True)]


def near(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one == other
    return one == pytest.approx(other, rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(ROWS, st.lists(st.integers(0, 1000), max_size=5))
def test_parts_add_up_to_the_whole(rows: list[tuple[Any, ...]], cuts: list[int]) -> None:
    whole = profile(of(rows), list(KINDS))
    parts = [of(part, start) for start, part in cut(rows, cuts)]
    streamed = reduce(lambda so_far, part: of(part[1], part[0], so_far), cut(rows, cuts), Summary(0, {}))
    for merged in (reduce(add, parts), reduce(add, reversed(parts)), streamed):
        for one, other in zip(whole, profile(merged, list(KINDS)), strict=True):
            left, right = one.model_dump(), other.model_dump()
            for key in ("mean", "std"):
                assert near(left.pop(key), right.pop(key))
            skews = left.pop("skew"), right.pop("skew")
            # Where all rows are equal but for rounding, so is their skew.
            assert near(*skews) or (one.std or 0) < 1e-6 * max(abs(one.minimum or 0), abs(one.maximum or 0))
            assert left == right


@settings(deadline=None)
@given(ROWS)
def test_a_profile_says_what_numpy_says(rows: list[tuple[Any, ...]]) -> None:
    x, c, _ = profile(of(rows), list(KINDS))
    values = np.array([row[0] for row in rows if row[0] is not None])
    assert x.rows == len(rows)
    assert x.missing == len(rows) - len(values)
    assert x.distinct == len({float(v) for v in values})
    assert x.histogram is not None
    assert sum(x.histogram.counts) == len(values)
    if len(values):
        assert x.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-9)
        assert x.std == pytest.approx(values.std(), rel=1e-6, abs=1e-6)
        assert (x.minimum, x.maximum) == (values.min(), values.max())
        assert len(x.histogram.edges) == len(x.histogram.counts) + 1
        assert list(x.histogram.edges) == sorted(x.histogram.edges)
    texts = [row[1] for row in rows if row[1] is not None]
    assert c.distinct == len(set(texts))
    assert c.histogram is not None
    for name, count in zip(c.histogram.categories, c.histogram.counts, strict=True):
        assert count == texts.count(name)


def test_beyond_the_sketch_the_estimates_are_near() -> None:
    rows, distinct = 200_000, 60_000
    x = pa.array((np.arange(rows) % distinct).astype(float))
    c = pa.array([f"v{i % distinct}" for i in range(rows)])
    kinds: dict[str, Kind] = {"x": "number", "c": "category"}
    whole = None
    for start in range(0, rows, 50_000):
        part = {"x": x.slice(start, 50_000), "c": c.slice(start, 50_000)}
        whole = summarise(part, kinds, keys=row_keys("b", np.arange(start, start + 50_000)), so_far=whole)
    assert whole is not None
    number, text = profile(whole, ["x", "c"])
    assert number.distinct == pytest.approx(distinct, rel=0.04)
    assert text.distinct == pytest.approx(distinct, rel=0.04)
    assert number.histogram is not None
    assert sum(number.histogram.counts) == rows
    assert max(number.histogram.counts) < 1.2 * rows / len(number.histogram.counts)
    assert whole.sample is not None
    assert whole.sample.num_rows == under_test.SAMPLED


@pytest.mark.parametrize("values", [[1e308, -1e308, 1e308], [5e-324, 0.0], [1e-127, 0.0], [-0.0, 0.0], [1e200, 1.0]])
def test_extremes_give_no_infinity(values: list[float]) -> None:
    found = of([(value, None, None) for value in values]) + of([(value, None, None) for value in values], 10)
    (x,) = profile(found, ["x"])
    dumped = x.model_dump_json()
    assert "Infinity" not in dumped
    assert "NaN" not in dumped
    assert x.histogram is not None
    assert sum(x.histogram.counts) == 2 * len(values)

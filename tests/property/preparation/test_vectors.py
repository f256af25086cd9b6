"""Expressions over columns and row by row give the same."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from turnout.common import expression
from turnout.common.expression import FUNCTIONS, OPERATORS, Apply, Column, Literal, Node
from turnout.preparation.domain import vectors
from turnout.preparation.domain.columns import TYPES

SPECIAL = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 0.1, 86_400.0, -0.5, 5e-324, 1.7e308, -1.7e308, 2.0**53, 1e16, math.pi]
)
NUMBERS = st.none() | SPECIAL | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.none() | st.sampled_from(["", "a", "b", "1", "😀"]) | st.text(max_size=3)
MICROSECONDS = st.integers(-2_200_000_000_000_000, 7_200_000_000_000_000)
TIMES = st.none() | MICROSECONDS.map(lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us))
ROWS = st.lists(
    st.fixed_dictionaries({"x": NUMBERS, "z": NUMBERS, "t": TIMES, "c": TEXTS, "d": TEXTS}), min_size=1, max_size=8
)
KINDS: dict[str, Any] = {"x": "number", "z": "number", "t": "timestamp", "c": "category", "d": "category"}

leaves = st.builds(Column, st.sampled_from([*KINDS, "gone"])) | st.builds(
    Literal, SPECIAL | st.sampled_from(["a", "", "1", math.inf])
)


def grown(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    two = st.tuples(inner, inner)
    unary = st.builds(Apply, st.sampled_from(sorted(FUNCTIONS)), st.tuples(inner))
    return unary | st.builds(Apply, st.sampled_from([*sorted(OPERATORS), "==", "!="]), two)


def columns(rows: list[dict[str, Any]]) -> dict[str, pa.Array]:
    return {name: pa.array([row[name] for row in rows], TYPES[kind]) for name, kind in KINDS.items()}


def python(found: Any) -> list[float | str | None]:
    if isinstance(found, np.ndarray):
        return [None if np.isnan(value) else float(value) for value in found]
    return found.to_pylist()


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        # log and exp may differ in the last bit between the C library and numpy, and what follows may enlarge that.
        return one == other or math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
    return one == other


def transcendental(node: Node) -> bool:
    match node:
        case Apply(function, arguments):
            return function in ("log", "exp") or any(map(transcendental, arguments))
        case _:
            return False


@settings(max_examples=500, deadline=None)
@given(st.recursive(leaves, grown, max_leaves=8), ROWS)
@example(Apply("weekday", (Column("x"),)), [{"x": 86_400.0 * 2.0**53, "z": None, "t": None, "c": None, "d": None}])
@example(Apply("hour", (Column("x"),)), [{"x": -5e-324, "z": None, "t": None, "c": None, "d": None}])
@example(Apply(">", (Literal(math.inf), Column("x"))), [{"x": 1.0, "z": None, "t": None, "c": None, "d": None}])
def test_columns_agree_with_rows(node: Node, rows: list[dict[str, Any]]) -> None:
    found = python(vectors.evaluate(node, columns(rows), len(rows)))
    expected = [expression.evaluate(node, row) for row in rows]
    if transcendental(node):
        # A last bit may decide a comparison or the border to infinity: only one level of log and exp is comparable.
        match node:
            case Apply("log" | "exp", (Column() | Literal(),)):
                pass
            case _:
                return
    assert all(map(alike, found, expected)), (found, expected)


@given(st.recursive(leaves, grown, max_leaves=6), ROWS)
def test_what_is_checked_as_a_number_is_one(node: Node, rows: list[dict[str, Any]]) -> None:
    try:
        kind = vectors.check(node, {**KINDS, "gone": "number"}, "here")
    except expression.Invalid:
        return
    found = vectors.evaluate(node, columns(rows), len(rows))
    assert isinstance(found, np.ndarray) == (kind == "number")

"""Row-wise steps as nodes of a graph mean what `turnout.common.expression` says, row by row."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from splits import step

from turnout.common import expression
from turnout.common.errors import Invalid
from turnout.common.events import Column, Plan, Step
from turnout.training.domain import rowwise
from turnout.training.domain.block import raw
from turnout.training.domain.graph import Graph
from turnout.training.domain.model import session_of

INPUTS = (
    Column(name="a", kind="number"),
    Column(name="b [m]", kind="number"),
    Column(name="t", kind="timestamp"),
    Column(name="s", kind="category"),
    Column(name="u", kind="category"),
)
ROWS: list[dict[str, Any]] = [
    {"a": 1.0, "b [m]": 2.0, "t": datetime(2026, 1, 31, 8, 15, tzinfo=UTC), "s": "x", "u": "x"},
    {"a": 0.0, "b [m]": 0.0, "t": datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), "s": "y", "u": "x"},
    {"a": -3.5, "b [m]": None, "t": None, "s": None, "u": ""},
    {"a": None, "b [m]": 1.0, "t": datetime(1970, 1, 1, tzinfo=UTC), "s": "3", "u": "3"},
    {"a": 1e308, "b [m]": 1e308, "t": datetime(2262, 1, 1, 5, tzinfo=UTC), "s": "é 日本", "u": None},
    {"a": 750.0, "b [m]": -0.0, "t": datetime(1900, 2, 28, 17, 3, tzinfo=UTC), "s": " ", "u": "y"},
]
EXPRESSIONS = [
    "a + `b [m]`", "a - `b [m]`", "a * `b [m]`", "a / `b [m]`", "a > `b [m]`", "a >= 0", "a < 1", "a <= `b [m]`",
    "a == 0", "a != `b [m]`", "s == 'x'", "s != 'x'", "s == u", "s != u", "s == 3", "s != 3", "a == 'x'",
    "a and `b [m]`", "a or `b [m]`", "not a", "-a", "abs(a)", "log(a)", "sqrt(a)", "exp(a)", "hour(t)", "weekday(t)",
    "hour(t) >= 18 or weekday(t) > 4", "log(a) / 0", "1 + 1", "-(a * 2) / (`b [m]` - 1)", "(s == 'x') + (u == 'y')",
    "t - 86400 * 2", "not (a > 0 and s == 'x')", "s == ''", "True", "hour(a)", "weekday(a)",
]  # fmt: skip


def table() -> pa.Table:
    types = {"number": pa.float64(), "timestamp": pa.timestamp("us", tz="UTC"), "category": pa.string()}
    return pa.table({c.name: pa.array([row[c.name] or None if c.kind == "category" else row[c.name] for row in ROWS],
                                      types[c.kind]) for c in INPUTS})  # fmt: skip


def evaluated(*steps: Step, feature: str, kind: Any = "number") -> list[Any]:
    plan = Plan(inputs=INPUTS, rowwise=steps, features=(Column(name=feature, kind=kind),))
    graph = Graph(INPUTS)
    cells = rowwise.write(graph, plan)
    to = 11 if kind == "number" else 8
    model = graph.model("out", cells.tensors[feature], to, [None, 1], {})
    (found,) = session_of(model.SerializeToString()).run(None, raw(table(), INPUTS))
    return [None if one == "" or one != one else one for one in np.asarray(found).ravel().tolist()]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_an_expression_means_the_same_in_the_graph(text: str) -> None:
    node = expression.parse(text, "derive 'new'")
    wanted = [expression.evaluate(node, {**row, "u": row["u"] or None}) for row in ROWS]
    found = evaluated(step("derive", column="new", as_=text), feature="new")
    assert [one is None for one in found] == [one is None for one in wanted]
    assert [one for one in found if one is not None] == pytest.approx(
        [one for one in wanted if one is not None], rel=1e-12
    )


def test_a_number_outside_its_range_is_missing_or_clipped() -> None:
    def rectified(otherwise: str) -> list[Any]:
        options = {"column": "a", "range": [0.0, 100.0], "otherwise": otherwise, "values": {}}
        return evaluated(step("rectify", **options), feature="a")

    assert rectified("missing") == [1.0, 0.0, None, None, None, None]
    assert rectified("clip") == [1.0, 0.0, 0.0, None, 100.0, 100.0]


def test_texts_are_replaced_all_at_once() -> None:
    values = {"x": "y", "y": "x", "3": "", "é 日本": "z"}
    options = {"column": "s", "range": None, "otherwise": "missing", "values": values}
    assert evaluated(step("rectify", **options), feature="s", kind="category") == ["y", "x", None, None, "z", " "]


def test_steps_build_on_each_other() -> None:
    steps = (
        step("rectify", column="a", range=[-10.0, 1e6], otherwise="missing", values={}),
        step("derive", column="twice", as_="a * 2"),
        step("drop", columns=["a", "t"]),
        step("derive", column="a", as_="twice + 1"),
    )
    assert evaluated(*steps, feature="a") == [3.0, 1.0, -6.0, None, None, 1501.0]


def test_a_joined_column_is_an_input() -> None:
    steps = (step("drop", columns=["a"]), step("join", pipeline="other", columns=["a"]))
    assert evaluated(*steps, feature="a") == [row["a"] for row in ROWS]


def test_what_a_graph_cannot_hold_is_refused() -> None:
    with pytest.raises(Invalid, match="unknown step 'rectfy'; did you mean 'rectify'"):
        evaluated(step("rectfy"), feature="a")
    with pytest.raises(Invalid, match="the feature 'z' comes from no input"):
        evaluated(feature="z")
    with pytest.raises(Invalid, match="unknown column 'aa'"):
        evaluated(step("derive", column="n", as_="aa + 1"), feature="n")
    with pytest.raises(Invalid, match="gives a text"):
        evaluated(step("derive", column="n", as_="s"), feature="n")

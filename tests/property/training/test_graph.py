"""What holds for every expression and every plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from splits import step

from turnout.common import expression
from turnout.common.events import Column, Plan, Target
from turnout.training.domain import rowwise
from turnout.training.domain.algorithms import LIBRARY, build
from turnout.training.domain.block import raw
from turnout.training.domain.graph import Graph
from turnout.training.domain.model import agreement, fit, session_of
from turnout.training.domain.trees import not_above

COLUMNS = (Column(name="a", kind="number"), Column(name="b", kind="number"), Column(name="s", kind="category"))
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3).map(float)
TEXTS = st.none() | st.sampled_from(["x", "y", "3", "é", " "])
# exp, log and friends differ from Python's in the last bit, and a comparison of two of them may see it.
SMOOTH = ("log", "sqrt", "exp")


@st.composite
def numeric(draw: st.DrawFn, depth: int = 3) -> str:
    kind = draw(st.integers(0, 6 if depth else 2))
    if kind == 0:
        return draw(st.sampled_from(["a", "b"]))
    if kind == 1:
        return repr(draw(st.sampled_from([0.0, 1.0, 2.5, 1e9, 86_400.0])))
    if kind == 2:
        return f"(s {draw(st.sampled_from(['==', '!=']))} 'x')"
    inner = numeric(depth - 1)  # pyright: ignore[reportCallIssue]
    if kind == 3:
        name = draw(st.sampled_from([f for f in expression.FUNCTIONS if f not in ("negative", "not", *SMOOTH)]))
        return f"{name}({draw(inner)})"
    if kind == 4:
        return f"({draw(st.sampled_from(['-', 'not ']))}{draw(inner)})"
    operators = [*expression.OPERATORS, *expression.EQUALITIES]
    return f"({draw(inner)} {draw(st.sampled_from(operators))} {draw(inner)})"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(numeric(), st.lists(st.fixed_dictionaries({"a": NUMBERS, "b": NUMBERS, "s": TEXTS}), min_size=1, max_size=6))
def test_an_expression_in_the_graph_is_the_expression(text: str, rows: list[dict[str, Any]]) -> None:
    node = expression.parse(text, "derive 'new'")
    wanted = [expression.evaluate(node, row) for row in rows]
    plan = Plan(
        inputs=COLUMNS, rowwise=(step("derive", column="new", as_=text),),
        features=(Column(name="new", kind="number"),),
    )  # fmt: skip
    graph = Graph(COLUMNS)
    model = graph.model("out", rowwise.write(graph, plan).tensors["new"], 11, [None, 1], {})
    types = {"number": pa.float64(), "category": pa.string()}
    table = pa.table({c.name: pa.array([row[c.name] for row in rows], types[c.kind]) for c in COLUMNS})
    (found,) = session_of(model.SerializeToString()).run(None, raw(table, COLUMNS))
    got = [None if np.isnan(one) else one for one in np.asarray(found).ravel().tolist()]
    assert got == wanted


@settings(max_examples=300)
@given(st.floats(width=64, allow_nan=False), st.floats(width=32, allow_nan=False))
def test_a_threshold_in_fp32_tells_fp32_values_apart_as_before(threshold: float, value: float) -> None:
    single = np.float32(not_above(np.array([threshold]))[0])
    assert (np.float32(value) <= single) == (value <= threshold)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(sorted(LIBRARY)),
    st.sampled_from(["median", "mean", "most_frequent", "constant"]),
    st.sampled_from(["standard", "minmax", "robust", None]),
    st.sampled_from(["one_hot", "ordinal"]),
    st.sampled_from([1e-3, 1.0, 1e6, 5e8]),
)
def test_every_plan_and_algorithm_agree_with_their_graph(
    seed: int, which: tuple[str, Any], fill: str, scale: str | None, code: str, size: float
) -> None:
    name, task = which
    draw = np.random.default_rng(seed)
    count = 60
    numbers = {c: draw.normal(0, size, count) for c in ("a", "b")}
    table = pa.table(
        {
            **{c: pa.array(values, mask=draw.random(count) < 0.1) for c, values in numbers.items()},
            "s": pa.array(draw.choice(["x", "y", "zz", ""], count), mask=draw.random(count) < 0.1),
            "_label": pa.array(np.where(numbers["a"] > 0, "yes", "no") if task == "classification" else numbers["a"]),
        }
    )
    learned = [
        step("impute", columns=["a", "b"], with_=fill, value=None),
        step("impute", columns=["s"], with_="constant", value="missing"),
        *([step("scale", columns=["a", "b"], by=scale)] if scale else []),
        step("encode", columns=["s"], by=code, max_categories=3),
    ]
    plan = Plan(inputs=COLUMNS, features=COLUMNS, learned=tuple(learned))
    target = Target(task=task, classes=("no", "yes") if task == "classification" else ())
    small = {"random_forest": {"n_estimators": 5}, "gradient_boosting": {"max_iter": 5}}.get(name, {})
    estimator = build(LIBRARY[which], small, seed, "candidate")
    model = fit(plan, target, table.slice(0, 40), algorithm=LIBRARY[which], estimator=estimator, seed=seed)
    found = agreement(model, model.onnx(), table.slice(40))
    assert found.holds, found

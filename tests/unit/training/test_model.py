"""Every named algorithm for every task: fitted, written as one graph, and held against itself."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from splits import COLUMNS, NUMBERS, PLAN, TARGETS, TEXT, UNSCALED, rows, step

from turnout.common.errors import Invalid
from turnout.common.events import Column, Plan, Target
from turnout.training.domain.algorithms import LIBRARY, build
from turnout.training.domain.block import raw
from turnout.training.domain.model import Model, agreement, answer_of, fit, session_of

EVERY = pytest.mark.parametrize(("name", "task"), [pytest.param(*key, id="-".join(key)) for key in LIBRARY])
SMALL: dict[str, dict[str, Any]] = {"random_forest": {"n_estimators": 10}, "gradient_boosting": {"max_iter": 20}}


def fitted(
    name: str, task: str, table: pa.Table, plan: Plan = PLAN, target: Target | None = None, **more: Any
) -> Model:
    algorithm = LIBRARY[name, task]  # pyright: ignore[reportArgumentType]
    estimator = build(algorithm, {**SMALL.get(name, {}), **more}, 7, "training.candidates[0]")
    return fit(plan, target or TARGETS[task], table, algorithm=algorithm, estimator=estimator, seed=7)


def run(model: bytes, table: pa.Table, columns: tuple[Column, ...] = COLUMNS) -> np.ndarray[Any, Any]:
    return np.asarray(session_of(model).run(None, raw(table, columns))[0])


@EVERY
@pytest.mark.parametrize("plan", [PLAN, UNSCALED], ids=["scaled", "unscaled"])
def test_the_graph_agrees_with_the_model_on_rows_it_never_saw(name: str, task: str, plan: Plan) -> None:
    table = rows(task, 300)
    model = fitted(name, task, table.slice(0, 200), plan)
    found = agreement(model, model.onnx(), table.slice(200))
    assert found.difference < 1e-5, found


@EVERY
def test_the_same_seed_gives_the_same_bytes_and_leaves_the_rows_alone(name: str, task: str) -> None:
    table, same = rows(task, 150), rows(task, 150)
    assert fitted(name, task, table).onnx() == fitted(name, task, same).onnx()
    assert table.equals(rows(task, 150))


@EVERY
def test_missing_unknown_and_huge_values_get_an_answer(name: str, task: str) -> None:
    onnx_file = fitted(name, task, rows(task, 150)).onnx()
    odd = pa.table(
        {
            **{column: pa.array([None, 1e300, -1e300, 0.0, 5e8], pa.float64()) for column in NUMBERS},
            TEXT: pa.array([None, "never seen", "", "red", "x" * 9_000]),
        }
    )
    found = run(onnx_file, odd)
    assert len(found) == 5
    # What no number can hold is not a number, and the router takes it for an error; all else is an answer.
    sane = found[[0, 3, 4]]
    assert np.isfinite(sane.astype(np.float64)).all()
    if task == "classification":
        assert found.dtype == np.float32
        assert np.allclose(sane.sum(axis=1), 1, atol=1e-6)


@EVERY
def test_one_row_at_a_time_gives_what_many_rows_give(name: str, task: str) -> None:
    table = rows(task, 150)
    onnx_file = fitted(name, task, table).onnx()
    together = run(onnx_file, table.slice(0, 5))
    alone = np.concatenate([run(onnx_file, table.slice(index, 1)) for index in range(5)])
    assert np.allclose(together, alone, rtol=1e-6, atol=1e-7)


@EVERY
def test_inputs_and_output_are_as_the_contract_says(name: str, task: str) -> None:
    model = onnx.load_from_string(fitted(name, task, rows(task, 150)).onnx())
    inputs = {i.name: (i.type.tensor_type.elem_type, len(i.type.tensor_type.shape.dim)) for i in model.graph.input}
    assert inputs == {
        **dict.fromkeys(NUMBERS, (onnx.TensorProto.DOUBLE, 2)), TEXT: (onnx.TensorProto.STRING, 2),
    }  # fmt: skip
    (output,) = model.graph.output
    shape = [d.dim_value for d in output.type.tensor_type.shape.dim]
    assert (output.name, output.type.tensor_type.elem_type, shape) == {
        "classification": ("probabilities", onnx.TensorProto.FLOAT, [0, 2]),
        "regression": ("score", onnx.TensorProto.FLOAT, [0, 1]),
        "clustering": ("cluster", onnx.TensorProto.INT64, [0]),
    }[task]


@pytest.mark.parametrize("name", ["logistic_regression", "decision_tree", "random_forest", "gradient_boosting"])
def test_three_classes_and_one_that_the_training_part_lacks(name: str) -> None:
    table = rows("classification", 300)
    labels = np.array(table["_label"].to_pylist(), dtype=object)
    labels[::3] = "perhaps"
    table = table.set_column(table.column_names.index("_label"), "_label", pa.array(labels.tolist()))
    for classes in (("no", "perhaps", "yes"), ("a", "no", "perhaps", "yes")):
        target = Target(task="classification", label="y", classes=classes)
        model = fitted(name, "classification", table, target=target)
        onnx_file = model.onnx()
        assert agreement(model, onnx_file, table).difference < 1e-5
        found = run(onnx_file, table)
        assert found.shape == (300, len(classes))
        if len(classes) == 4:
            assert (found[:, 0] == 0).all()


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_boosting_takes_missing_values_as_they_are(task: str) -> None:
    numbers = tuple(column for column in COLUMNS if column.kind == "number")
    plan = Plan(inputs=numbers, features=numbers)
    table = rows(task, 300, missing=0.3)
    model = fitted("gradient_boosting", task, table.slice(0, 200), plan)
    assert agreement(model, model.onnx(), table.slice(200)).difference < 1e-5
    # Nothing was missing when it was fitted, and something is now.
    whole = rows(task, 300, missing=0)
    model = fitted("gradient_boosting", task, whole.slice(0, 200), plan)
    assert agreement(model, model.onnx(), table.slice(200)).difference < 1e-5


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "poisson", "gamma", "quantile"])
def test_boosting_by_every_loss(loss: str) -> None:
    table = rows("regression", 200)
    label = pa.array(np.abs(np.array(table["_label"].to_pylist())) / 1e4 + 1)
    table = table.set_column(table.column_names.index("_label"), "_label", label)
    more = {"quantile": 0.7} if loss == "quantile" else {}
    model = fitted("gradient_boosting", "regression", table, loss=loss, **more)
    assert agreement(model, model.onnx(), table).difference < 1e-5


def test_others_than_boosting_say_that_a_value_is_missing() -> None:
    with pytest.raises(Invalid, match=r"'age \[years\]' has missing values; impute it"):
        fitted("ridge", "regression", rows("regression"), Plan(inputs=COLUMNS, features=COLUMNS[:1]))


def test_a_column_may_be_called_like_the_output_or_like_a_tensor() -> None:
    names = ("score", "score_", "t1", "t", "t_2")
    columns = tuple(Column(name=name, kind="number") for name in names)
    draw = np.random.default_rng(0)
    table = pa.table({name: draw.normal(size=50) for name in (*names, "_label")})
    model = fitted("ridge", "regression", table, Plan(inputs=columns, features=columns))
    onnx_file = model.onnx()
    assert agreement(model, onnx_file, table).difference < 1e-6
    assert [output.name for output in session_of(onnx_file).get_outputs()] == ["score__"]


def test_two_thousand_columns_do_not_explode() -> None:
    columns = tuple(Column(name=f"column {index}", kind="number") for index in range(2_000))
    draw = np.random.default_rng(0)
    table = pa.table({**{c.name: draw.normal(size=40) for c in columns}, "_label": draw.normal(size=40)})
    names = [column.name for column in columns]
    learned = (step("impute", columns=names, with_="mean"), step("scale", columns=names, by="robust"))
    model = fitted("ridge", "regression", table, Plan(inputs=columns, features=columns, learned=learned))
    onnx_file = model.onnx()
    assert agreement(model, onnx_file, table).difference < 1e-6
    assert len(onnx.load_from_string(onnx_file).graph.node) < 30


def test_many_categories() -> None:
    texts = pa.array([f"postcode {index % 700}" for index in range(1_400)])
    columns = (Column(name="postcode", kind="category"),)
    table = pa.table({"postcode": texts, "_label": pa.array([float(index % 7) for index in range(1_400)])})
    for by in ("one_hot", "ordinal"):
        learned = (step("encode", columns=["postcode"], by=by, max_categories=1_000),)
        model = fitted("decision_tree", "regression", table, Plan(inputs=columns, features=columns, learned=learned))
        assert agreement(model, model.onnx(), table).difference < 1e-6


def test_the_prior_is_the_training_parts_own_answer() -> None:
    table = rows("classification", 100)
    prior = fitted("decision_tree", "classification", table).prior(table)
    assert prior.probabilities == {"no": 0.5, "yes": 0.5}
    assert prior.value == "no"
    table = rows("regression", 100)
    assert fitted("ridge", "regression", table).prior(table).value == pytest.approx(
        np.mean(table["_label"].to_pylist())
    )
    table = rows("clustering", 100)
    prior = fitted("k_means", "clustering", table, n_clusters=3).prior(table)
    assert sum(prior.probabilities.values()) == pytest.approx(1)
    assert prior.probabilities[str(int(float(prior.value)))] == max(prior.probabilities.values())


def test_a_graph_that_answers_otherwise_is_found_and_the_row_is_named() -> None:
    table = rows("regression", 100)
    model, other = fitted("ridge", "regression", table), fitted("ridge", "regression", rows("regression", 100, seed=1))
    found = agreement(model, other.onnx(), table)
    assert not found.holds
    assert found.where.startswith("row ")
    assert "in the graph" in found.where


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["yes"] * 10, "every row of the training part says 'yes'"),
        (["yes", "no"] * 4 + ["maybe"] * 2, "the class 'maybe' is none of the target's"),
        ([], "the training part has no rows"),
    ],
)
def test_a_label_that_cannot_be_learned(labels: list[str], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        answer_of(pa.table({"_label": pa.array(labels, pa.string())}), TARGETS["classification"])


def test_what_does_not_converge_is_a_note_and_no_failure() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fitted("logistic_regression", "classification", rows(), UNSCALED, max_iter=1)
    assert any("converge" in note for note in model.notes)

"""One candidate: fitted on the training part, written as one graph, and checked against itself on rows it never saw."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
import pyarrow as pa
from numpy.typing import NDArray
from onnx import TensorProto
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning

from turnout.common.errors import Invalid
from turnout.common.events import Plan, Prior, Target
from turnout.training.domain import rowwise, trees
from turnout.training.domain.algorithms import Algorithm
from turnout.training.domain.block import Block, Floats, floats, raw, strings
from turnout.training.domain.graph import OPSETS, Graph
from turnout.training.domain.steps import Answer, Fitted, Sketch, fit_all

LABEL = "_label"
# The largest difference between graph and native way: absolute for probabilities, relative for large numbers.
ALLOWED = 1e-4
LARGEST_FP32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Model:
    """A fitted plan and estimator: the native way from the feature set to the answer."""

    plan: Plan
    target: Target
    algorithm: Algorithm
    steps: Sequence[Fitted]
    estimator: Any
    notes: tuple[str, ...] = ()

    def answer(self, table: pa.Table) -> NDArray[Any]:
        """For rows of the feature set: probabilities `[rows, classes]` in the target's order, numbers `[rows]`, or
        clusters `[rows]`."""
        block = Block.of(table, self.plan.features)
        for step in self.steps:
            block = step.apply(block)
        seen = _seen(block.numbers, self.algorithm)
        if self.target.task != "classification":
            return np.asarray(self.estimator.predict(seen)).ravel()
        found = np.zeros((block.rows, len(self.target.classes)))
        found[:, _classes(self.estimator)] = self.estimator.predict_proba(seen)
        return found

    def onnx(self) -> bytes:
        """The whole way from raw columns to the answer as one ONNX file; the same model gives the same bytes.

        Raises `Invalid` if there is no converter for the estimator.
        """
        graph = Graph(self.plan.inputs)
        cells = rowwise.write(graph, self.plan)
        numbers = [c.name for c in self.plan.features if c.kind != "category"]
        texts = {c.name: cells.tensors[c.name] for c in self.plan.features if c.kind == "category"}
        sketch = Sketch(graph, None, (), texts)
        if numbers:
            sketch = sketch.joined([cells.tensors[name] for name in numbers], numbers)
        for step in self.steps:
            sketch = step.write(sketch)
        assert sketch.numbers is not None
        tensor = _seen_in(graph, sketch.numbers, self.algorithm)
        written = _estimator(
            graph, self.estimator, tensor, self.algorithm, width=len(sketch.names), task=self.target.task
        )
        return _finished(graph, written, self.estimator, self.target)

    def prior(self, table: pa.Table) -> Prior:
        """What the training part itself answers."""
        if self.target.task == "clustering":
            counts = np.bincount(np.asarray(self.answer(table), dtype=np.int64))
            shares = {str(index): float(count / counts.sum()) for index, count in enumerate(counts) if count}
            return Prior(value=float(counts.argmax()), probabilities=shares)
        values = answer_of(table, self.target).values
        assert values is not None
        if self.target.task == "regression":
            return Prior(value=float(values.mean()))
        shares = np.bincount(values, minlength=len(self.target.classes)) / len(values)
        by_class = dict(zip(self.target.classes, shares.tolist(), strict=True))
        return Prior(value=self.target.classes[int(shares.argmax())], probabilities=by_class)


@dataclass(frozen=True)
class Agreement:
    """The largest difference between the graph and the native way; `where` describes that row, if there is one."""

    difference: float
    where: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is small enough. NaN never is."""
        return self.difference <= ALLOWED


def fit(
    plan: Plan, target: Target, table: pa.Table, *, algorithm: Algorithm, estimator: BaseEstimator, seed: int
) -> Model:
    """Fit the plan's learned steps, then the estimator, on the rows of the training part.

    The same rows, parameters and seed give the same model. Raises `Invalid` where they do not go together.
    """
    answer = answer_of(table, target)
    notes: tuple[str, ...] = ()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        steps, block = fit_all(plan.learned, Block.of(table, plan.features), answer, seed)
        if not algorithm.missing and np.isnan(block.numbers).any():
            name = block.names[int(np.isnan(block.numbers).any(axis=0).argmax())]
            raise Invalid("preparation", f"'{name.partition(chr(0))[0]}' has missing values", fix="impute it")
        seen = _seen(block.numbers, algorithm)
        fitted: Any = algorithm.sized(estimator, block.rows)
        fitted.fit(seen) if answer.values is None else fitted.fit(seen, answer.values)
    notes = tuple(
        dict.fromkeys(" ".join(str(w.message).split())[:300] for w in caught if w.category is ConvergenceWarning)
    )
    return Model(plan, target, algorithm, steps, fitted, notes)


def answer_of(table: pa.Table, target: Target) -> Answer:
    """What the rows' label says. Raises `Invalid` for one that the target does not know, or only one class."""
    if target.task == "clustering":
        return Answer(None, classes=False)
    if table.num_rows == 0:
        raise Invalid("segregation.ratio", "the training part has no rows", fix="a larger ratio, or more data")
    if target.task == "regression":
        return Answer(floats(table.column(LABEL)), classes=False)
    places = {name: index for index, name in enumerate(target.classes)}
    labels = strings(table.column(LABEL))
    unknown = set(labels) - set(places)
    if unknown:
        raise Invalid("label", f"the class {min(unknown)!r} is none of the target's")
    found = np.array([places[name] for name in labels], dtype=np.int64)
    if len(np.unique(found)) < 2:
        raise Invalid(
            "source.label", f"every row of the training part says {labels[0]!r}", fix="more data, or another label"
        )
    return Answer(found, classes=True)


def agreement(model: Model, onnx: bytes, table: pa.Table) -> Agreement:
    """The graph from the raw columns of `table` against the native way through its features."""
    if table.num_rows == 0:
        return Agreement(0.0)
    session = session_of(onnx)
    (got,) = session.run(None, raw(table, model.plan.inputs))
    native = model.answer(table)
    apart = _apart(model, table, np.asarray(got), native)
    worst = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
    difference = float(apart[worst])
    where = f"row {worst + 1}: {_short(np.asarray(got)[worst])} in the graph, {_short(native[worst])} natively"
    return Agreement(difference, where)


def session_of(onnx: bytes) -> ort.InferenceSession:
    """The graph ready to run, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def _apart(model: Model, table: pa.Table, got: NDArray[Any], native: NDArray[Any]) -> Floats:
    match model.target.task:
        case "classification":
            return np.abs(got.astype(np.float64) - native).max(axis=1)
        case "regression":
            return np.abs(got.ravel().astype(np.float64) - native) / np.maximum(1.0, np.abs(native))
        case _:
            return _further(model, table, got.astype(np.int64), native.astype(np.int64))


def _further(model: Model, table: pa.Table, got: NDArray[np.int64], native: NDArray[np.int64]) -> Floats:
    """How much further the graph's cluster is than the native one: two centres may be equally near."""
    centers = getattr(model.estimator, "cluster_centers_", None)
    if centers is None:
        return (got != native).astype(np.float64)
    block = Block.of(table, model.plan.features)
    for step in model.steps:
        block = step.apply(block)
    seen = _seen(block.numbers, model.algorithm).astype(np.float64)
    chosen, nearest = (np.linalg.norm(seen - centers[labels], axis=1) for labels in (got, native))
    return np.abs(chosen - nearest) / np.maximum(1.0, nearest)


def _seen(numbers: Floats, algorithm: Algorithm) -> NDArray[Any]:
    """The numbers as the estimator sees them: FP64, or FP32 with the ends of its range for what is beyond."""
    if algorithm.double:
        return numbers
    return np.clip(numbers, -LARGEST_FP32, LARGEST_FP32).astype(np.float32)


def _seen_in(graph: Graph, tensor: str, algorithm: Algorithm) -> str:
    if algorithm.double:
        return tensor
    # Clip loses NaN in onnxruntime; a comparison with NaN is false and keeps it.
    for bound, operator in ((LARGEST_FP32, "Greater"), (-LARGEST_FP32, "Less")):
        tensor = graph.where(graph.node(operator, tensor, graph.number(bound)), graph.number(bound), tensor)
    return graph.cast(tensor, TensorProto.FLOAT)


def _estimator(graph: Graph, estimator: Any, tensor: str, algorithm: Algorithm, *, width: int, task: str) -> str:
    if trees.writable(estimator):
        return trees.write(graph, estimator, tensor)
    kind = DoubleTensorType if algorithm.double else FloatTensorType
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted: Any = convert_sklearn(
                estimator,
                initial_types=[("X", kind([None, width]))],
                options={id(estimator): {"zipmap": False}} if task == "classification" else None,
                target_opset=dict(OPSETS),
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise Invalid(
            "algorithm",
            f"{type(estimator).__name__} cannot be written as an ONNX graph ({reason})",
            fix="choose one that skl2onnx has a converter for",
        ) from error
    outputs: Mapping[str, int] = {output.name: index for index, output in enumerate(converted.graph.output)}
    chosen = "probabilities" if "probabilities" in outputs else next(iter(outputs))
    return graph.include(converted, tensor, chosen)


def _finished(graph: Graph, written: str, estimator: Any, target: Target) -> bytes:
    shape: Sequence[int | None]
    match target.task:
        case "classification":
            kind, shape = TensorProto.FLOAT, [None, len(target.classes)]
            known = _classes(estimator)
            written = graph.cast(written, kind)
            if len(known) < len(target.classes):
                # A class without a row in the training part has probability 0.
                spread = np.zeros((len(known), len(target.classes)), dtype=np.float32)
                spread[np.arange(len(known)), known] = 1.0
                written = graph.node("MatMul", written, graph.constant(spread))
        case "regression":
            kind, shape = TensorProto.FLOAT, [None, 1]
            column = graph.constant(np.array([-1, 1], dtype=np.int64))
            written = graph.node("Reshape", graph.cast(written, kind), column)
        case _:
            kind, shape = TensorProto.INT64, [None]
            flat = graph.constant(np.array([-1], dtype=np.int64))
            written = graph.node("Reshape", graph.cast(written, kind), flat)
    notes = {"turnout.task": target.task, "turnout.classes": orjson.dumps(target.classes).decode()}
    model = graph.model(target.output(graph.inputs), written, kind, shape, notes)
    return model.SerializeToString(deterministic=True)


def _classes(estimator: Any) -> list[int]:
    """Indices of the target's classes that the estimator knows, in the order of its probabilities."""
    return [int(index) for index in estimator.classes_]


def _short(value: Any) -> str:
    return np.array2string(np.asarray(value), precision=6, threshold=8)

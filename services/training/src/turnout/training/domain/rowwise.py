"""The row-wise steps of a plan as ONNX nodes: what preparation did to the feature set, done again for a request.

The same meaning as `turnout.common.expression.evaluate`: missing in, missing out; what is not finite is missing. A
missing number is NaN and a missing text is "", so a comparison, which would say "no" to NaN, is masked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
from onnx import TensorProto

from turnout.common import expression
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import Plan, Step
from turnout.common.expression import Apply, Column, Literal, Node
from turnout.common.values import Kind
from turnout.training.domain.graph import ML, Graph

# Stands for "not in the table" while texts are replaced; no file's text holds a NUL.
_UNCHANGED = "\0"
_COMPARISONS = {">": "Greater", ">=": "GreaterOrEqual", "<": "Less", "<=": "LessOrEqual"}
_ARITHMETIC = {"+": "Add", "-": "Sub", "*": "Mul", "/": "Div"}
_UNARY = {"negative": "Neg", "abs": "Abs", "log": "Log", "sqrt": "Sqrt", "exp": "Exp"}
SECONDS_AN_HOUR = 3600.0


class Cells:
    """The columns at a point of the graph: a tensor `[rows, 1]` and a kind by name."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors = {column.name: column.name for column in graph.inputs}
        self.kinds: dict[str, Kind] = {column.name: column.kind for column in graph.inputs}
        self._inputs = dict(self.kinds)

    def set(self, name: str, tensor: str, kind: Kind) -> None:
        """Give a column a value, or a new one."""
        self.tensors[name] = tensor
        self.kinds[name] = kind

    def drop(self, name: str) -> None:
        """Take a column away, if it is there."""
        self.tensors.pop(name, None)
        self.kinds.pop(name, None)

    def restore(self, name: str) -> None:
        """The column as the request brought it (a joined column is an input of the graph)."""
        if name in self._inputs:
            self.set(name, name, self._inputs[name])


def write(graph: Graph, plan: Plan) -> Cells:
    """The plan's row-wise steps; the columns after them. Raises `Invalid` for a step that a graph cannot hold."""
    cells = Cells(graph)
    for step in plan.rowwise:
        match step.name:
            case "rectify":
                _rectify(cells, step)
            case "derive":
                _derive(cells, step)
            case "drop":
                for name in _columns(step):
                    cells.drop(name)
            case "join":
                for name in _columns(step):
                    cells.restore(name)
            case _:
                raise Unknown.name("plan.rowwise", "step", step.name, ("rectify", "derive", "drop", "join"))
    for feature in plan.features:
        if feature.name not in cells.tensors:
            raise Invalid("plan", f"the feature '{feature.name}' comes from no input and no step")
    return cells


def _columns(step: Step) -> list[str]:
    return cast("list[str]", step.options["columns"])


def _rectify(cells: Cells, step: Step) -> None:
    graph, name = cells.graph, str(step.options["column"])
    tensor = cells.tensors[name]
    if bounds := cast("list[float] | None", step.options.get("range")):
        low, high = graph.number(bounds[0]), graph.number(bounds[1])
        below, above = graph.node("Less", tensor, low), graph.node("Greater", tensor, high)
        if step.options.get("otherwise") == "clip":
            tensor = graph.where(below, low, graph.where(above, high, tensor))
        else:
            tensor = graph.where(graph.node("Or", below, above), graph.number(np.nan), tensor)
    if texts := cast("Mapping[str, str]", step.options.get("values") or {}):
        found = graph.node(
            "LabelEncoder", tensor, domain=ML,
            keys_strings=list(texts), values_strings=list(texts.values()), default_string=_UNCHANGED,
        )  # fmt: skip
        tensor = graph.where(graph.node("Equal", found, graph.text(_UNCHANGED)), tensor, found)
    cells.set(name, tensor, cells.kinds[name])


def _derive(cells: Cells, step: Step) -> None:
    name = str(step.options["column"])
    node = expression.parse(str(step.options["as"]), f"derive '{name}'")
    written = _Expression(cells, f"derive '{name}'")
    tensor, kind = written.write(node)
    if kind == "category":
        raise Invalid(f"derive '{name}'", "gives a text", fix="derive gives numbers; compare texts with == or !=")
    if written.one_row or not expression.columns(node):
        tensor = cells.graph.node("Expand", tensor, cells.graph.node("Shape", cells.graph.inputs[0].name))
    cells.set(name, written.finite(tensor), "number")


class _Expression:
    def __init__(self, cells: Cells, field: str) -> None:
        self._cells = cells
        self._graph = cells.graph
        self._field = field
        # Whether something in it is a constant where a column was expected: it has one row, not all.
        self.one_row = False

    def write(self, node: Node) -> tuple[str, Kind]:
        """The tensor and its kind. A number that is missing is NaN, a text ""."""
        graph = self._graph
        match node:
            case Literal(str(value)):
                return graph.text(value), "category"
            case Literal(value):
                return graph.number(float(value)), "number"
            case Column(name):
                return self._column(name)
            case Apply(function, arguments):
                written = [self.write(argument) for argument in arguments]
                if function in expression.EQUALITIES:
                    return self._same(function, arguments, written), "number"
                if any(kind == "category" for _, kind in written):
                    self.one_row = True
                    return graph.number(np.nan), "number"
                return self.finite(self._apply(function, [tensor for tensor, _ in written])), "number"

    def _column(self, name: str) -> tuple[str, Kind]:
        if name not in self._cells.tensors:
            raise Unknown.name(self._field, "column", name, self._cells.tensors)
        tensor = self._cells.tensors[name]
        if self._cells.kinds[name] == "category":
            return tensor, "category"
        return self.finite(tensor), "number"

    def _apply(self, function: str, tensors: list[str]) -> str:  # noqa: PLR0911 (one return a form)
        graph = self._graph
        if function in _ARITHMETIC:
            return graph.node(_ARITHMETIC[function], *tensors)
        if function in _UNARY:
            return graph.node(_UNARY[function], *tensors)
        if function in _COMPARISONS:
            return self._masked(graph.node(_COMPARISONS[function], *tensors), tensors)
        zero = graph.number(0.0)
        match function:
            case "and" | "or":
                sides = [graph.node("Not", graph.node("Equal", tensor, zero)) for tensor in tensors]
                return self._masked(graph.node("And" if function == "and" else "Or", *sides), tensors)
            case "not":
                return self._masked(graph.node("Equal", tensors[0], zero), tensors)
            case "hour":
                return graph.node("Floor", graph.node("Div", self._remainder(tensors[0], expression.SECONDS_A_DAY),
                                                      graph.number(SECONDS_AN_HOUR)))  # fmt: skip
            case "weekday":
                days = graph.node("Floor", graph.node("Div", tensors[0], graph.number(expression.SECONDS_A_DAY)))
                shifted = graph.node("Add", self._remainder(days, 7.0), graph.number(expression.EPOCH_WEEKDAY))
                return self._remainder(shifted, 7.0)
            case _:
                raise Unknown.name(self._field, "function", function, expression.FUNCTIONS)

    def _remainder(self, tensor: str, divisor: float) -> str:
        """The remainder that is never negative, as Python's `%`: exact, as C's fmod is."""
        graph = self._graph
        by = graph.number(divisor)
        left = graph.node("Mod", tensor, by, fmod=1)
        return graph.where(graph.node("Less", left, graph.number(0.0)), graph.node("Add", left, by), left)

    def _same(self, function: str, arguments: tuple[Node, ...], written: list[tuple[str, Kind]]) -> str:
        graph = self._graph
        (left, first), (right, second) = written
        if first != second:
            # A text is never a number: known now, whatever the rows hold, but for rows where one is missing.
            self.one_row = self.one_row or any(isinstance(argument, Literal) for argument in arguments)
            same = graph.constant(np.array([[False]]))
        else:
            same = graph.node("Equal", left, right)
        if function == "!=":
            same = graph.node("Not", same)
        found = graph.cast(same, TensorProto.DOUBLE)
        for argument, (tensor, kind) in zip(arguments, written, strict=True):
            if isinstance(argument, Literal):
                continue
            missing = graph.node("IsNaN", tensor) if kind == "number" else graph.node("Equal", tensor, graph.text(""))
            found = graph.where(missing, graph.number(np.nan), found)
        return found

    def _masked(self, truth: str, tensors: list[str]) -> str:
        graph = self._graph
        found = graph.cast(truth, TensorProto.DOUBLE)
        for tensor in tensors:
            found = graph.where(graph.node("IsNaN", tensor), graph.number(np.nan), found)
        return found

    def finite(self, tensor: str) -> str:
        """The tensor with NaN where it is infinite."""
        return self._graph.where(self._graph.node("IsInf", tensor), self._graph.number(np.nan), tensor)

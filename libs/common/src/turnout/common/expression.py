"""The small language of `derive` and `positive`: arithmetic, comparisons and a few functions over columns.

    distance / duration        num > 0        `Torque [Nm]` * 2        hour(pickup) >= 18        log(fare)

A column whose name is no plain word stands in backticks. The text is parsed into a tree of the dataclasses below;
three places walk that tree: here for one row, preparation over Arrow columns, training as ONNX nodes.

Missing in, missing out. So is a result that is not finite: x / 0, log(-1).
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from turnout.common.errors import Invalid, Unknown
from turnout.common.values import Cell


@dataclass(frozen=True)
class Literal:
    """A number or a text."""

    value: float | str


@dataclass(frozen=True)
class Column:
    """A column's value; a time counts as seconds since 1970 in UTC."""

    name: str


@dataclass(frozen=True)
class Apply:
    """`function` of `OPERATORS` or `FUNCTIONS` over its arguments. Comparisons and logic give 1 or 0."""

    function: str
    arguments: tuple[Node, ...]


Node = Literal | Column | Apply

SECONDS_A_DAY = 86_400.0
# The first of January 1970 was a Thursday; Monday is 0.
EPOCH_WEEKDAY = 3

OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    ">": lambda a, b: float(a > b),
    ">=": lambda a, b: float(a >= b),
    "<": lambda a, b: float(a < b),
    "<=": lambda a, b: float(a <= b),
    "and": lambda a, b: float(bool(a) and bool(b)),
    "or": lambda a, b: float(bool(a) or bool(b)),
}
# == and != also compare texts.
EQUALITIES = ("==", "!=")
FUNCTIONS: dict[str, Callable[[float], float]] = {
    "negative": operator.neg,
    "not": lambda a: float(not a),
    "abs": abs,
    "log": math.log,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "hour": lambda t: math.floor((t % SECONDS_A_DAY) / 3600),
    "weekday": lambda t: (math.floor(t / SECONDS_A_DAY) + EPOCH_WEEKDAY) % 7,
}

_QUOTED = re.compile(r"`([^`]+)`")
_BINARY: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
MAX_LENGTH = 1_000
MAX_DEPTH = 32


def parse(text: str, field: str) -> Node:
    """The tree of `text`. Raises `Invalid` naming `field` if it is not of the language."""
    if len(text) > MAX_LENGTH:
        raise Invalid(field, f"an expression of {len(text)} characters", fix=f"at most {MAX_LENGTH}")
    quoted: list[str] = []

    def placeholder(match: re.Match[str]) -> str:
        quoted.append(match.group(1))
        return f"__column_{len(quoted) - 1}__"

    try:
        tree = ast.parse(_QUOTED.sub(placeholder, text).strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Invalid(
            field, f"cannot read the expression {text!r}", fix="put a column name with spaces in backticks"
        ) from None
    return _node(tree.body, quoted, field, 0)


def columns(node: Node) -> frozenset[str]:
    """Names of the columns that the expression reads."""
    match node:
        case Literal():
            return frozenset()
        case Column(name):
            return frozenset({name})
        case Apply(_, arguments):
            return frozenset[str]().union(*(columns(a) for a in arguments))


def evaluate(node: Node, row: Mapping[str, Cell]) -> float | str | None:
    """The expression's value for one row; None where it is missing."""
    match node:
        case Literal(value):
            return value
        case Column(name):
            return _operand(row.get(name))
        case Apply(function, arguments):
            return _apply(function, [evaluate(a, row) for a in arguments])


def _apply(function: str, values: list[float | str | None]) -> float | None:
    if any(v is None for v in values):
        return None
    if function in EQUALITIES:
        same = values[0] == values[1]
        return float(same == (function == "=="))
    numbers = [v for v in values if isinstance(v, float)]
    if len(numbers) < len(values):
        return None
    try:
        found = FUNCTIONS[function](*numbers) if function in FUNCTIONS else OPERATORS[function](*numbers)
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
    return float(found) if math.isfinite(found) else None


def _operand(value: Cell) -> float | str | None:
    match value:
        case None:
            return None
        case str():
            return value
        case datetime():
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        case _:
            found = float(value)
            return found if math.isfinite(found) else None


def _node(  # noqa: C901, PLR0911, PLR0912 (one return a form)
    tree: ast.expr, quoted: list[str], field: str, depth: int
) -> Node:
    if depth > MAX_DEPTH:
        raise Invalid(field, "the expression is nested too deeply", fix=f"at most {MAX_DEPTH} levels")

    def inner(child: ast.expr) -> Node:
        return _node(child, quoted, field, depth + 1)

    match tree:
        case ast.Constant(value=bool(value)):
            return Literal(float(value))
        case ast.Constant(value=int(value) | float(value)):
            return Literal(float(value))
        case ast.Constant(value=str(value)):
            return Literal(value)
        case ast.Name(id=name):
            match = re.fullmatch(r"__column_(\d+)__", name)
            return Column(quoted[int(match.group(1))] if match else name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return Apply("negative", (inner(operand),))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return Apply("not", (inner(operand),))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return Apply(_BINARY[type(op)], (inner(left), inner(right)))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return Apply(_COMPARE[type(op)], (inner(left), inner(right)))
        case ast.BoolOp(op=op, values=[first, *rest]):
            node = inner(first)
            for value in rest:
                node = Apply("and" if isinstance(op, ast.And) else "or", (node, inner(value)))
            return node
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
            if name not in FUNCTIONS:
                raise Unknown.name(field, "function", name, FUNCTIONS)
            return Apply(name, (inner(argument),))
        case _:
            raise Invalid(
                field,
                f"{ast.unparse(tree)!r} is not understood here",
                fix="use + - * /, comparisons, and/or/not, " + ", ".join(sorted(FUNCTIONS)),
            )

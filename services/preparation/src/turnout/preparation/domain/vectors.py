"""The expressions of `derive` and `positive` over whole columns: the same answers as `expression.evaluate` row by row.

A vector is float64 with NaN for missing, or an Arrow string array with null for missing. Missing in, missing out;
a result that is not finite is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal as OneOf

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from turnout.common import expression
from turnout.common.errors import Invalid, Unknown
from turnout.common.expression import Apply, Column, Literal, Node
from turnout.preparation.domain.columns import Columns, Floats, Kinds, floats, present

Vector = Floats | pa.Array

_BINARY: dict[str, Callable[[Floats, Floats], Floats]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    ">": lambda a, b: (a > b).astype(np.float64),
    ">=": lambda a, b: (a >= b).astype(np.float64),
    "<": lambda a, b: (a < b).astype(np.float64),
    "<=": lambda a, b: (a <= b).astype(np.float64),
    "and": lambda a, b: ((a != 0) & (b != 0)).astype(np.float64),
    "or": lambda a, b: ((a != 0) | (b != 0)).astype(np.float64),
}
_UNARY: dict[str, Callable[[Floats], Floats]] = {
    "negative": np.negative,
    "not": lambda a: (a == 0).astype(np.float64),
    "abs": np.abs,
    "log": np.log,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "hour": lambda t: np.floor(np.mod(t, expression.SECONDS_A_DAY) / 3600),
    # The remainder first: a day's number near 1e16 would lose the added 3.
    "weekday": lambda t: np.mod(np.mod(np.floor(t / expression.SECONDS_A_DAY), 7) + expression.EPOCH_WEEKDAY, 7),
}


def evaluate(node: Node, columns: Columns, rows: int) -> Vector:
    """The expression for each of `rows` rows. A column that is not in `columns` is missing everywhere."""
    with np.errstate(all="ignore"):
        return _evaluate(node, columns, rows)


def check(node: Node, kinds: Kinds, field: str) -> OneOf["number", "text"]:
    """What the expression gives, from the kinds of its columns.

    Raises `Unknown` for a column that is not there, `Invalid` for arithmetic with texts and for a text compared with
    a number: both would only ever give missing or never.
    """
    match node:
        case Literal(value):
            return "text" if isinstance(value, str) else "number"
        case Column(name):
            if name not in kinds:
                raise Unknown.name(field, "column", name, kinds)
            return "text" if kinds[name] == "category" else "number"
        case Apply(function, arguments):
            found = {check(argument, kinds, field) for argument in arguments}
            if function in expression.EQUALITIES and len(found) == 2:
                raise Invalid(
                    field, "compares a text with a number", fix="quote the number, or declare the kind in schema"
                )
            if function not in expression.EQUALITIES and "text" in found:
                texts = ", ".join(sorted(name for name in expression.columns(node) if kinds[name] == "category"))
                fix = "compare texts with == or !=, or declare the column a number in schema"
                raise Invalid(field, f"{function!r} needs numbers, and {texts or 'a text'} is a category", fix=fix)
            return "number"


def _evaluate(node: Node, columns: Columns, rows: int) -> Vector:
    match node:
        case Literal(str(value)):
            return pa.repeat(pa.scalar(value, pa.string()), rows)
        case Literal(value):
            return np.full(rows, value)
        case Column(name):
            array = columns.get(name)
            if array is None:
                return np.full(rows, np.nan)
            return array if pa.types.is_string(array.type) else floats(array)
        case Apply(function, arguments):
            vectors = [_evaluate(argument, columns, rows) for argument in arguments]
            found = _same(function, *vectors) if function in expression.EQUALITIES else _apply(function, vectors, rows)
            return np.where(np.isfinite(found), found, np.nan)


def _apply(function: str, vectors: list[Vector], rows: int) -> Floats:
    numbers = [vector for vector in vectors if isinstance(vector, np.ndarray)]
    if len(numbers) < len(vectors):
        return np.full(rows, np.nan)
    found = _UNARY[function](numbers[0]) if function in _UNARY else _BINARY[function](numbers[0], numbers[1])
    missing = np.logical_or.reduce([np.isnan(vector) for vector in numbers])
    return np.where(missing, np.nan, found)


def _same(function: str, first: Vector, second: Vector) -> Floats:
    there = _there(first) & _there(second)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        same = first == second
    elif isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        same = np.zeros(len(there), dtype=np.bool_)
    else:
        same = pc.fill_null(pc.call_function("equal", [first, second]), False).to_numpy(zero_copy_only=False)
    return np.where(there, (same == (function == "==")).astype(np.float64), np.nan)


def _there(vector: Vector) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return ~np.isnan(vector) if isinstance(vector, np.ndarray) else present(vector)

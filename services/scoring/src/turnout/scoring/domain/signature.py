"""A version's inputs: from a request's named values to rows, from rows to the graph's arrays.

A row is one tuple of cells in the order of the inputs, missing as the graph wants it (NaN, the empty string), so that
rows of many requests become arrays in one step.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from math import isfinite
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turnout.common import values
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import Column
from turnout.common.values import Kind

Row = tuple[float | str, ...]
Feeds = dict[str, NDArray[Any]]

_NAN = math.nan
_ABSENT = object()
_SCALARS = (str, int, float, bool, type(None))
_NUMBERS = frozenset((float, int))
# Texts up to this length are kept with their canonical form.
_SHORT = 100


class Signature:
    """The raw columns a version takes, in order, with the way from JSON values to its arrays laid out once."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        self.names = tuple(c.name for c in columns)
        self._fields: tuple[tuple[str, Kind, float | str], ...] = tuple(
            (c.name, c.kind, "" if c.kind == "category" else _NAN) for c in columns
        )
        self._cells = itemgetter(*self.names) if len(columns) > 1 else lambda found: (found[self.names[0]],)
        self._texts = tuple(index for index, c in enumerate(columns) if c.kind == "category")
        self._simple = bool(columns) and all(c.kind != "timestamp" for c in columns)

    def same(self, other: Signature) -> bool:
        """Whether a row decoded for one serves the other."""
        return self.columns == other.columns

    def row(self, found: Mapping[str, Any], where: str = "", also: Container[str] = ()) -> Row:
        """The row in `found`. A missing field is missing data; the graph imputes it.

        `where` is put before a field's name in errors (`rows[3].`), `also` are names another version knows: they
        are passed over. Raises `Invalid` naming the field for a value that does not fit, for a field that
        nobody knows (with the nearest name), and for a row without a single value.
        """
        row: list[float | str] = []
        seen = given = 0
        for name, kind, missing in self._fields:
            value = found.get(name, _ABSENT)
            if value is _ABSENT:
                row.append(missing)
                continue
            seen += 1
            # The common cases first: a number that is one, a text that is a category needs its canonical form.
            if kind == "number" and type(value) is float and value - value == 0.0:
                cell: float | str | None = value
            else:
                cell = _cell(value, kind, where, name)
            if cell is None:
                row.append(missing)
            else:
                given += 1
                row.append(cell)
        if seen != len(found):
            self._refuse_unknown(found, where, also)
        if not given:
            raise Invalid(where.rstrip(".") or "the row", "has no value for any input", fix=self._fix())
        return tuple(row)

    def plain(self, found: Mapping[str, Any]) -> Row | None:
        """The row in `found` where every field is there and is what it should be; None: look closer, with `row`.

        Most requests are of this kind, and this costs a sixth of `row`.
        """
        if not self._simple or len(found) != len(self.names):
            return None
        try:
            cells: tuple[Any, ...] = self._cells(found)
            if not self._texts:
                # A sum is finite where every number is; an overflow of the sum alone is looked at closer.
                return cells if _NUMBERS.issuperset(map(type, cells)) and isfinite(sum(cells)) else None
        except (KeyError, OverflowError):
            return None
        row = list(cells)
        for index in self._texts:
            cell = row[index]
            if type(cell) is not str or len(cell) > _SHORT:
                return None
            row[index] = _canonical(cell)
        for index, cell in enumerate(cells):
            if index not in self._texts and not (type(cell) is float and isfinite(cell)):
                return None
        return tuple(row) if any(cell != "" for cell in row) else None

    def lenient(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Only what this signature knows of `found`; for values that come from a store, not from a caller."""
        return {name: found[name] for name in self.names if name in found}

    def feeds(self, rows: Sequence[Row]) -> Feeds:
        """The graph's inputs: one array `[rows, 1]` per column, FP64 or text."""
        count = len(rows)
        if not self._texts:
            block = np.array(tuple(zip(*rows, strict=True)), dtype=np.float64)
            return dict(zip(self.names, block.reshape(len(self.names), count, 1), strict=True))
        feeds: Feeds = {}
        for (name, kind, _), cells in zip(self._fields, zip(*rows, strict=True), strict=True):
            dtype = object if kind == "category" else np.float64
            feeds[name] = np.array(cells, dtype=dtype).reshape(count, 1)
        return feeds

    def _refuse_unknown(self, found: Mapping[str, Any], where: str, also: Container[str]) -> None:
        for name in found:
            if name not in self.names and name not in also:
                raise unknown(f"{where}{name}", "field", name, self.names)

    def _fix(self) -> str:
        names = ", ".join(self.names[:8])
        return f"give at least one of: {names}{' …' if len(self.names) > 8 else ''}"


@lru_cache(maxsize=4096)
def _canonical(text: str) -> str:
    return values.category(text) or ""


def known_names(signatures: Iterable[Signature]) -> frozenset[str]:
    """Every name that one of the signatures takes."""
    return frozenset(name for signature in signatures for name in signature.names)


def unknown(field: str, kind: str, found: object, valid: Iterable[object]) -> Invalid:
    """A name inside of a request that nothing has: the request is wrong, not the address it went to."""
    error = Unknown.name(field, kind, found, valid)
    return Invalid(error.field, error.problem, fix=error.fix)


def _cell(value: object, kind: Kind, where: str, name: str) -> float | str | None:
    field = f"{where}{name}"
    if not isinstance(value, _SCALARS):
        raise Invalid(field, f"a {kind} is expected, found {_name_of(value)}")
    cell = values.cell(value, kind, field)
    return cell.timestamp() if isinstance(cell, datetime) else cell


def _name_of(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else type(value).__name__

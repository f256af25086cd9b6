"""The steps that need no fitting, by name. Each looks at one row only, so a batch of one is a batch.

A strategy resolves its options against the columns that are there (raising `Unknown` or `Invalid`), says which
columns there are afterwards, and applies the resolved step. Applying a step does not change the columns it was given.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from turnout.common import expression, pipeline, values
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import Step
from turnout.common.values import Kind
from turnout.preparation.domain import vectors
from turnout.preparation.domain.asof import History
from turnout.preparation.domain.columns import (
    ENTITY,
    EVENT_TIME,
    RAW,
    RESERVED,
    TYPES,
    Columns,
    Kinds,
    floats,
    numbers,
    replaced,
    without,
)  # fmt: skip


@dataclass(frozen=True)
class Context:
    """What a step may know beside the columns.

    `raw` are the source's columns, `label` is the one no step may read, `entity` and `event_time` are what a join
    goes by, `others` the columns that other pipelines bring to it.
    """

    raw: frozenset[str] = frozenset()
    label: str | None = None
    entity: str | None = None
    event_time: str | None = None
    others: Mapping[str, Kinds] = field(default_factory=dict)


class RowStrategy(Protocol):
    """One kind of row-wise step."""

    def resolve(self, options: Any, kinds: Kinds, context: Context, /) -> Step:
        """The step with every option filled in. Raises `Unknown` or `Invalid`."""
        ...

    def outcome(self, step: Step, kinds: Kinds, context: Context, /) -> dict[str, Kind]:
        """The columns after the step."""
        ...

    def reads(self, step: Step, /) -> frozenset[str]:
        """Columns whose values the step needs."""
        ...

    def writes(self, step: Step, /) -> frozenset[str]:
        """Columns that have another value afterwards."""
        ...

    def apply(self, step: Step, columns: Columns, histories: Mapping[str, History], /) -> dict[str, pa.Array]:
        """The columns after the step. `histories` are other pipelines' values, for a join."""
        ...


class Rectify:
    """A number outside a range becomes missing or the nearest bound; a text is replaced by another.

    Options: `column`, `range` ([low, high] in the column's own unit, both finite, or null), `otherwise`
    ("missing" or "clip"), `values` (text to text; an empty text means missing).
    """

    def resolve(self, options: pipeline.Rectify, kinds: Kinds, context: Context, /) -> Step:
        """See `RowStrategy`."""
        name = options.column
        _known("rectify.column", name, kinds, context)
        kind = kinds[name]
        if kind == "timestamp" or (options.range is not None and kind != "number"):
            raise Invalid("rectify.column", f"'{name}' is a {kind}", fix="range is for numbers, values for categories")
        if options.values and kind != "category":
            raise Invalid(
                "rectify.values", f"'{name}' is a number", fix="use range, or declare it a category in schema"
            )
        if options.range is None and not options.values:
            raise Invalid("rectify", f"nothing to do for '{name}'", fix="give it a range or values")
        found: dict[str, Any] = {
            "column": name,
            "range": _bounds(options.range),
            "otherwise": options.otherwise,
            "values": {_text(k): _text(v) for k, v in options.values.items()},
        }
        return Step(name="rectify", options=found)

    def outcome(self, _step: Step, kinds: Kinds, _context: Context, /) -> dict[str, Kind]:
        """See `RowStrategy`."""
        return dict(kinds)

    def reads(self, step: Step, /) -> frozenset[str]:
        """See `RowStrategy`."""
        return frozenset({str(step.options["column"])})

    def writes(self, step: Step, /) -> frozenset[str]:
        """See `RowStrategy`."""
        return self.reads(step)

    def apply(self, step: Step, columns: Columns, _histories: Mapping[str, History], /) -> dict[str, pa.Array]:
        """See `RowStrategy`."""
        name = str(step.options["column"])
        array = columns[name]
        if bounds := cast("list[float] | None", step.options["range"]):
            low, high = bounds
            found = floats(array)
            outside = (found < low) | (found > high)
            instead = np.clip(found, low, high) if step.options["otherwise"] == "clip" else np.nan
            array = numbers(np.where(outside, instead, found))
        if texts := cast("Mapping[str, str]", step.options["values"]):
            array = _replace(array, texts)
        return replaced(columns, name, array)


class Derive:
    """A number computed from the row's other columns. Options: `column` (its name), `as` (the expression)."""

    def resolve(self, options: pipeline.Derive, kinds: Kinds, context: Context, /) -> Step:
        """See `RowStrategy`."""
        name, where = options.column, f"derive '{options.column}'"
        if name in RESERVED or name.startswith(RAW) or name in (context.label, context.entity, context.event_time):
            raise Invalid("derive.column", f"the name '{name}' is taken", fix="choose another name")
        node = expression.parse(options.expression, where)
        for read in sorted(expression.columns(node)):
            _known(where, read, kinds, context)
        if vectors.check(node, kinds, where) != "number":
            raise Invalid(where, "gives a text", fix="derive gives numbers; compare texts with == or !=")
        return Step(name="derive", options={"column": name, "as": options.expression})

    def outcome(self, step: Step, kinds: Kinds, _context: Context, /) -> dict[str, Kind]:
        """See `RowStrategy`."""
        return {**kinds, str(step.options["column"]): "number"}

    def reads(self, step: Step, /) -> frozenset[str]:
        """See `RowStrategy`."""
        return expression.columns(self._node(step))

    def writes(self, step: Step, /) -> frozenset[str]:
        """See `RowStrategy`."""
        return frozenset({str(step.options["column"])})

    def apply(self, step: Step, columns: Columns, _histories: Mapping[str, History], /) -> dict[str, pa.Array]:
        """See `RowStrategy`."""
        rows = len(next(iter(columns.values()))) if columns else 0
        found = vectors.evaluate(self._node(step), columns, rows)
        assert isinstance(found, np.ndarray)
        return replaced(columns, str(step.options["column"]), numbers(found))

    @staticmethod
    def _node(step: Step) -> expression.Node:
        return expression.parse(str(step.options["as"]), f"derive '{step.options['column']}'")


class Drop:
    """Columns that no model shall see; a later step cannot read them either. Options: `columns`."""

    def resolve(self, options: pipeline.Drop, kinds: Kinds, context: Context, /) -> Step:
        """See `RowStrategy`."""
        for name in options.columns:
            if name != context.label:
                _known("drop.columns", name, kinds, context)
        return Step(name="drop", options={"columns": list(dict.fromkeys(options.columns))})

    def outcome(self, step: Step, kinds: Kinds, _context: Context, /) -> dict[str, Kind]:
        """See `RowStrategy`."""
        return without(kinds, names_of(step))

    def reads(self, _step: Step, /) -> frozenset[str]:
        """See `RowStrategy`."""
        return frozenset()

    def writes(self, step: Step, /) -> frozenset[str]:
        """See `RowStrategy`."""
        return frozenset(names_of(step))

    def apply(self, step: Step, columns: Columns, _histories: Mapping[str, History], /) -> dict[str, pa.Array]:
        """See `RowStrategy`."""
        return without(columns, names_of(step))


class Join:
    """Columns of another pipeline's source: the entity's value that was newest at the row's event time.

    Options: `pipeline` and `columns`. A model's graph takes the joined columns as inputs: at scoring they come
    from the online store or the request.
    """

    def resolve(self, options: pipeline.Join, kinds: Kinds, context: Context, /) -> Step:
        """See `RowStrategy`."""
        if context.entity is None or context.event_time is None:
            missing = "source.entity" if context.entity is None else "source.event_time"
            raise Invalid(missing, "a join needs the entity and the event time of each row", fix=f"declare {missing}")
        if options.pipeline not in context.others:
            raise Unknown.name("join.pipeline", "pipeline", options.pipeline, context.others)
        offered = context.others[options.pipeline]
        for name in options.columns:
            if name not in offered:
                raise Unknown.name("join.columns", f"column of {options.pipeline}", name, offered)
            if name in context.raw or name in kinds or name in RESERVED or name.startswith(RAW):
                raise Invalid(
                    "join.columns", f"'{name}' is there already", fix="drop it first, or rename it in the source"
                )
        return Step(
            name="join", options={"pipeline": options.pipeline, "columns": list(dict.fromkeys(options.columns))}
        )

    def outcome(self, step: Step, kinds: Kinds, context: Context, /) -> dict[str, Kind]:
        """See `RowStrategy`."""
        offered = context.others[str(step.options["pipeline"])]
        return {**kinds, **{name: offered[name] for name in names_of(step)}}

    def reads(self, _step: Step, /) -> frozenset[str]:
        """See `RowStrategy`."""
        return frozenset()

    def writes(self, _step: Step, /) -> frozenset[str]:
        """See `RowStrategy`."""
        return frozenset()

    def apply(self, step: Step, columns: Columns, histories: Mapping[str, History], /) -> dict[str, pa.Array]:
        """See `RowStrategy`."""
        history = histories[str(step.options["pipeline"])]
        joined = {name: history.newest(name, columns[ENTITY], columns[EVENT_TIME]) for name in names_of(step)}
        return {**columns, **joined}


ROWWISE: Mapping[str, RowStrategy] = {"rectify": Rectify(), "derive": Derive(), "drop": Drop(), "join": Join()}


def names_of(step: Step) -> list[str]:
    """The step's `columns`."""
    return cast("list[str]", step.options["columns"])


def _known(where: str, name: str, kinds: Kinds, context: Context) -> None:
    if name == context.label:
        raise Invalid(
            where, f"'{name}' is the label, and nobody knows it when a score is asked for", fix="leave it out"
        )
    if name not in kinds:
        raise Unknown.name(where, "column", name, without(kinds, [context.label or ""]))


def _bounds(found: tuple[float, float] | None) -> list[float] | None:
    if found is None:
        return None
    low, high = found
    if math.isnan(low) or math.isnan(high) or low > high:
        raise Invalid("rectify.range", f"[{low}, {high}] is no range", fix="the smaller number first")
    # An open end is the largest number there is: JSON has no infinity.
    largest = sys.float_info.max
    return [max(low, -largest), min(high, largest)]


def _text(value: str) -> str:
    return values.category(value) or ""


def _replace(array: pa.Array, texts: Mapping[str, str]) -> pa.Array:
    at = pc.call_function("index_in", [array], pc.SetLookupOptions(value_set=pa.array(list(texts), TYPES["category"])))
    instead = pa.array([text or None for text in texts.values()], TYPES["category"]).take(at)
    return pc.call_function("if_else", [at.is_valid(), instead, array])

"""Rows of a live stream: checked against the pipeline's schema, gathered into a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from turnout.common.errors import Invalid, Unknown
from turnout.common.events import ObservationReceived
from turnout.common.pipeline import PipelineFile, Source
from turnout.common.values import Cell, cell
from turnout.ingestion.domain.fitting import fit
from turnout.ingestion.domain.schema import Schema

# Where a batch of observations says that it comes from.
URI = "topic:ObservationReceived"


def schema_for(file: PipelineFile, kept: Schema | None) -> Schema:
    """The schema that observations go through: the one that the first batch fixed, or else the declared one.

    Raises `Invalid` where there is neither.
    """
    if kept is not None:
        return kept
    if not file.columns:
        raise Invalid(
            "values", f"pipeline '{file.pipeline}' has no schema yet",
            fix="announce a file first, or declare `schema` in the pipeline file",
        )  # fmt: skip
    return Schema.of(file.columns)


def row(event: ObservationReceived, schema: Schema, source: Source) -> Mapping[str, object]:
    """The observation as a row of the schema; a column that it does not bring is missing.

    Raises `Invalid` or `Unknown` naming the value that does not fit.
    """
    values: dict[str, Cell] = dict(event.values)
    for name in values:
        if name not in schema.kinds:
            raise Unknown.name(f"values.{name}", "column", name, schema.names)
    if source.entity is not None:
        values[source.entity] = event.entity
    if source.event_time is not None:
        values[source.event_time] = event.event_time
    return {c.name: cell(_known(values.get(c.name), source), c.kind, f"values.{c.name}") for c in schema.columns}


def row_number(event: ObservationReceived) -> int:
    """Where the observation stands: a number from its id, the same at every delivery (63 bits of SHA-256)."""
    return int.from_bytes(hashlib.sha256(event.id.encode()).digest()[:8]) >> 1


def fitting(
    events: Sequence[ObservationReceived], schema: Schema, source: Source
) -> tuple[dict[int, Mapping[str, object]], list[tuple[ObservationReceived, Invalid]]]:
    """The rows that fit, by row number, and those that do not, each with what is wrong with it."""
    rows: dict[int, Mapping[str, object]] = {}
    wrong: list[tuple[ObservationReceived, Invalid]] = []
    for event in events:
        try:
            rows[row_number(event)] = row(event, schema, source)
        except Invalid as error:
            wrong.append((event, error))
    return rows, wrong


def table(rows: Mapping[int, Mapping[str, object]], schema: Schema) -> pa.Table:
    """Rows that fit, as those of a raw batch."""
    numbers = np.array(list(rows), np.int64)
    columns = {name: [r[name] for r in rows.values()] for name in schema.names}
    return fit(columns, numbers, schema, (), str).good


def _known(value: Cell, source: Source) -> Cell:
    return None if isinstance(value, str) and value.strip() in source.null_values else value

"""A raw batch as a part of a feature set: which columns it has, and its rows.

Order of the columns: `_batch`, `_row`, then `_label`, `_event_time`, `_entity` and `_fold` where there are such,
the features in the plan's order, and `in:NAME` for each input that the features no longer hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from turnout.common.events import Column, DataSetRef, Plan
from turnout.common.ids import content_id
from turnout.common.pipeline import PipelineFile
from turnout.common.values import Kind
from turnout.preparation.domain.asof import History
from turnout.preparation.domain.columns import (
    BATCH,
    ENTITY,
    EVENT_TIME,
    FOLD,
    LABEL,
    RAW,
    ROW,
    TYPES,
    floats,
    kind_of,
    numbers,
    texts,
)  # fmt: skip
from turnout.preparation.domain.plan import changed
from turnout.preparation.domain.rowwise import ROWWISE, names_of
from turnout.preparation.domain.summary import KEY, Summary, row_keys, summarise
from turnout.preparation.domain.target import label_column, labels

# Grows when the same plan over the same rows would give another part.
REVISION = 1


@dataclass(frozen=True)
class Other:
    """Another pipeline whose columns are joined: its columns, which of them say whose and when, and its batches."""

    kinds: Mapping[str, Kind]
    entity: str
    event_time: str
    batches: Sequence[DataSetRef]

    @property
    def content(self) -> object:
        """What the joined values follow from."""
        return [self.entity, self.event_time, sorted(ref.id for ref in self.batches)]


@dataclass(frozen=True)
class Recipe:
    """All that a part is made by, beside its raw batch; plain data that crosses a process border.

    `raw` are the raw columns that are read, `kinds` of all columns that are summarised. `others` are the
    pipelines that a join reads: their batches are part of what the rows become.
    """

    plan: Plan
    raw: Mapping[str, Kind]
    task: str
    label: str | None
    positive: str | None
    entity: str | None
    event_time: str | None
    fold: str | None
    others: Mapping[str, Other]

    @property
    def schema(self) -> pa.Schema:
        """The columns of every part."""
        fields = [pa.field(BATCH, pa.string()), pa.field(ROW, pa.int64())]
        if self.label is not None:
            fields.append(pa.field(LABEL, TYPES["number" if self.task == "regression" else "category"]))
        if self.event_time is not None:
            fields.append(pa.field(EVENT_TIME, TYPES["timestamp"]))
        fields += [pa.field(n, pa.string()) for n, of in ((ENTITY, self.entity), (FOLD, self.fold)) if of is not None]
        fields += [pa.field(column.name, TYPES[column.kind]) for column in self.plan.features]
        fields += [pa.field(f"{RAW}{column.name}", TYPES[column.kind]) for column in changed(self.plan)]
        return pa.schema(fields)

    @property
    def summarised(self) -> dict[str, Kind]:
        """The columns whose summary is kept: the features and the label."""
        kinds: dict[str, Kind] = {column.name: column.kind for column in self.plan.features}
        if self.label is not None:
            kinds[LABEL] = "number" if self.task == "regression" else "category"
        return kinds

    def part_id(self, batch_id: str) -> str:
        """Names the part that `batch_id` becomes."""
        plan = self.plan
        return content_id(
            "part", REVISION, batch_id, plan.inputs, plan.rowwise, plan.features, dict(self.raw), self.task, self.label,
            self.positive, self.entity, self.event_time, self.fold,
            {name: other.content for name, other in self.others.items()},
        )  # fmt: skip


def recipe(file: PipelineFile, plan: Plan, columns: Sequence[Column], others: Mapping[str, Other]) -> Recipe:
    """How the file's feature set is made from raw `columns` by `plan`."""
    label = label_column(file, columns)
    fold = file.segregation.column if file.segregation.strategy == "custom" else None
    kinds: dict[str, Kind] = {column.name: column.kind for column in columns}
    read = {column.name for column in plan.inputs} | {label, fold, file.source.entity, file.source.event_time}
    return Recipe(
        plan=plan,
        raw={name: kind for name, kind in kinds.items() if name in read},
        task=file.task,
        label=label,
        positive=file.source.positive if label is not None else None,
        entity=file.source.entity,
        event_time=file.source.event_time,
        fold=fold,
        others=others,
    )


def feature_set_id(recipe: Recipe, batch_ids: Iterable[str]) -> str:
    """Names the set that these batches become, in whatever order they came."""
    return content_id("fs", recipe.plan.learned, sorted(recipe.part_id(batch_id) for batch_id in batch_ids))


def fits(schema: pa.Schema, raw: Mapping[str, Kind]) -> bool:
    """Whether a batch was read with these kinds; a column that it lacks is missing in all its rows."""
    return all(name not in schema.names or kind_of(schema.field(name).type) == kind for name, kind in raw.items())


def rows(
    batch: pa.RecordBatch, batch_id: str, recipe: Recipe, histories: Mapping[str, History]
) -> tuple[pa.RecordBatch, int]:
    """The rows of a raw batch as rows of its part, and how many were left out because they have no label."""
    raw = {name: _column(batch, name, kind) for name, kind in recipe.raw.items()}
    kept = batch.column(ROW)
    unlabelled = 0
    label = None
    if recipe.label is not None:
        label = labels(raw[recipe.label], task=recipe.task, positive=recipe.positive)
        if label.null_count:
            unlabelled = label.null_count
            there = label.is_valid()
            raw = {name: array.filter(there) for name, array in raw.items()}
            kept, label = kept.filter(there), label.filter(there)
    made = {BATCH: pa.repeat(batch_id, len(kept)), ROW: kept, LABEL: label}
    if recipe.event_time is not None:
        made[EVENT_TIME] = raw[recipe.event_time]
    for name, source in ((ENTITY, recipe.entity), (FOLD, recipe.fold)):
        if source is not None:
            made[name] = texts(raw[source])
    columns = {**{name: made[name] for name in (ENTITY, EVENT_TIME) if name in made}, **raw}
    # A row has columns even where it reads none, for `derive: {column: one, as: 1}`.
    columns = columns or {ROW: kept}
    for step in recipe.plan.rowwise:
        columns = ROWWISE[step.name].apply(step, columns, histories)
        if step.name == "join":
            raw = {**raw, **{name: columns[name] for name in names_of(step)}}
    made |= {column.name: columns[column.name] for column in recipe.plan.features}
    made |= {f"{RAW}{column.name}": raw[column.name] for column in changed(recipe.plan)}
    schema = recipe.schema
    return pa.RecordBatch.from_arrays([made[name] for name in schema.names], schema=schema), unlabelled


def summarised(part: pa.RecordBatch, recipe: Recipe, so_far: Summary | None) -> Summary:
    """The summary of `so_far` and a part's rows, all of one batch."""
    kinds = recipe.summarised
    columns = {name: part.column(name) for name in kinds}
    batch_id = part.column(BATCH)[0].as_py()
    keys = row_keys(batch_id, part.column(ROW).to_numpy())
    return summarise(columns, kinds, keys=keys, so_far=so_far)


def empty(recipe: Recipe) -> Summary:
    """The summary of no row."""
    kinds = recipe.summarised
    fields = [*(pa.field(name, TYPES[kind]) for name, kind in kinds.items()), pa.field(KEY, pa.uint64())]
    return Summary(0, {}, pa.schema(fields).empty_table())


def _column(batch: pa.RecordBatch, name: str, kind: Kind) -> pa.Array:
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows, TYPES[kind])
    array = batch.column(name)
    return numbers(floats(array)) if kind == "number" else array

"""What reads and writes the lake, in a worker process or a thread; each piece of work can be done again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

import pyarrow as pa

from turnout.common.errors import Invalid
from turnout.common.events import Column, DataSetRef, Warn
from turnout.common.ids import content_id
from turnout.common.lake.port import Lake, Manifest
from turnout.common.online.port import Put
from turnout.common.pipeline import Join, PipelineFile
from turnout.common.values import Kind
from turnout.preparation.domain import feature_set
from turnout.preparation.domain.asof import History
from turnout.preparation.domain.columns import ROW, TYPES, floats, kind_of, numbers, texts
from turnout.preparation.domain.feature_set import Other, Recipe
from turnout.preparation.domain.newest import newest
from turnout.preparation.domain.rowwise import names_of
from turnout.preparation.domain.summary import Summary, summarise


@dataclass(frozen=True)
class Material:
    """The raw batches that a feature set is made of, in the order of their arrival, and what other pipelines bring."""

    batches: Sequence[DataSetRef]
    others: Mapping[str, Other]
    warnings: Sequence[Warn]


@dataclass(frozen=True)
class Part:
    """A part of a feature set that lies in the lake."""

    ref: DataSetRef
    rows: int
    unlabelled: int
    summary: Summary


def warm(lake: Lake) -> None:
    """In a worker: import this module, and connect to the lake. Raises `Unavailable`."""
    lake.warm()


def gather(lake: Lake, file: PipelineFile, columns: Sequence[Column], joined: Mapping[str, PipelineFile]) -> Material:
    """Which batches belong to the pipeline's feature set now. Raises `Invalid` if there are none.

    Left out, each with a warning: a batch whose file was read again in another way (the later reading counts), and
    one that was read with other kinds of columns.
    """
    batches, warnings = _newest_readings(lake.manifests("raw", file.pipeline))
    kinds: dict[str, Kind] = {column.name: column.kind for column in columns}
    kept: list[DataSetRef] = []
    for ref in batches:
        if feature_set.fits(lake.schema(ref), kinds):
            kept.append(ref)
        else:
            message = f"batch {ref.id} was read with another schema and is left out; announce its file again"
            warnings.append(Warn(code="other_schema", message=message))
    if not kept:
        raise Invalid("batches", f"no raw batch of {file.pipeline} fits its schema", fix="announce its files again")
    return Material(kept, {name: _other(lake, other) for name, other in joined.items()}, warnings)


def joins(file: PipelineFile) -> list[str]:
    """The pipelines that a file's joins name."""
    steps = [step.options for step in file.preparation or ()]
    return list(dict.fromkeys(options.pipeline for options in steps if isinstance(options, Join)))


def raw_kinds(lake: Lake, pipeline: str) -> dict[str, Kind]:
    """Kinds of a pipeline's raw columns as its newest batch has them; none if there is no batch."""
    manifests = list(lake.manifests("raw", pipeline))
    return _kinds(lake.schema(manifests[-1].ref)) if manifests else {}


def survey(lake: Lake, ref: DataSetRef, kinds: Mapping[str, Kind]) -> Summary:
    """What a raw batch's columns look like."""
    found = Summary(0, {})
    there = {name: kind for name, kind in kinds.items() if name in lake.schema(ref).names}
    for batch in lake.scan(ref, columns=list(there)) if there else ():
        columns = {name: _or_missing(batch, name, kind) for name, kind in kinds.items()}
        found = summarise(columns, kinds, so_far=found if found.rows else None)
    return found


def make_part(lake: Lake, raw: DataSetRef, recipe: Recipe, at: datetime) -> Part:
    """The part that a raw batch becomes, written unless it is there already."""
    ref = DataSetRef(kind="features", pipeline=raw.pipeline, id=recipe.part_id(raw.id))
    manifest = lake.manifest(ref)
    if manifest is not None:
        return _read_part(lake, manifest, recipe)
    histories = {name: _history(lake, name, other, recipe) for name, other in recipe.others.items()}
    summary, unlabelled = feature_set.empty(recipe), 0
    columns = [name for name in (*recipe.raw, ROW) if name in lake.schema(raw).names]
    with lake.writer(ref, recipe.schema) as writer:
        for batch in lake.scan(raw, columns=columns):
            rows, without = feature_set.rows(batch, raw.id, recipe, histories)
            unlabelled += without
            if rows.num_rows:
                writer.write(rows)
                summary = feature_set.summarised(rows, recipe, summary)
        manifest = writer.commit(lineage={"batch": raw.id, "rows_unlabelled": unlabelled}, at=at)
    return Part(ref, manifest.rows, unlabelled, summary)


@dataclass(frozen=True)
class Source:
    """A raw batch that feeds a pipeline's entities: which of its columns, and who and when a row is about.

    `name` tells it from the others, also of the same batch.
    """

    name: str
    ref: DataSetRef
    created: datetime
    columns: Mapping[str, Kind]
    entity: str
    event_time: str | None


def sources(lake: Lake, file: PipelineFile, joined: Mapping[str, PipelineFile]) -> list[Source]:
    """What the online store can be filled from: the newest feature set's batches, and those of joined pipelines."""
    found = _sources(lake, file, _batches_of_newest_set(lake, file.pipeline), _known_kinds(lake, file))
    for step in file.preparation or ():
        if isinstance(step.options, Join) and (other := joined.get(step.options.pipeline)) is not None:
            there = _known_kinds(lake, other)
            wanted: dict[str, Kind] = {name: there[name] for name in step.options.columns if name in there}
            refs, _ = _newest_readings(lake.manifests("raw", other.pipeline))
            found += _sources(lake, other, refs, wanted)
    return found


def newest_values(lake: Lake, source: Source, without: Collection[str]) -> Iterator[Sequence[Put]]:
    """Entities' newest values in a batch, a piece of it at a time: one entity may come in several pieces."""
    there = set(lake.schema(source.ref).names)
    if source.entity not in there:
        return
    read = {*source.columns, source.entity, source.event_time} & there
    for batch in lake.scan(source.ref, columns=sorted(name for name in read if name is not None)):
        if source.event_time is None:
            # When it was measured nobody knows: older than any observation, in the order of the batches.
            unknown = pa.scalar(int(source.created.timestamp()), TYPES["timestamp"])
            times = pa.repeat(unknown, batch.num_rows)
        else:
            times = _or_missing(batch, source.event_time, "timestamp")
        columns = {name: _or_missing(batch, name, kind) for name, kind in source.columns.items()}
        yield list(newest(texts(batch.column(source.entity)), times, columns, without))


def _sources(lake: Lake, file: PipelineFile, refs: Iterable[DataSetRef], kinds: Mapping[str, Kind]) -> list[Source]:
    of = file.source
    if of.entity is None:
        return []
    # As in an observation, neither label nor entity is kept.
    columns: dict[str, Kind] = {name: kind for name, kind in kinds.items() if name not in {of.label, of.entity}}
    manifests = [manifest for ref in refs if (manifest := lake.manifest(ref)) is not None]
    shape = content_id("source", sorted(columns.items()), of.entity, of.event_time)
    return [
        Source(f"{m.ref.pipeline}/{m.ref.id}/{shape}", m.ref, m.created, columns, of.entity, of.event_time)
        for m in manifests
    ]


def _known_kinds(lake: Lake, file: PipelineFile) -> dict[str, Kind]:
    declared: dict[str, Kind] = dict(file.columns or {})
    return {**raw_kinds(lake, file.pipeline), **declared}


def _batches_of_newest_set(lake: Lake, pipeline: str) -> list[DataSetRef]:
    sets = [manifest for manifest in lake.manifests("features", pipeline) if manifest.event is not None]
    ids = cast("list[str]", sets[-1].lineage["batches"]) if sets else []
    return [DataSetRef(kind="raw", pipeline=pipeline, id=ident) for ident in ids]


def _read_part(lake: Lake, manifest: Manifest, recipe: Recipe) -> Part:
    summary = feature_set.empty(recipe)
    for rows in lake.scan(manifest.ref):
        summary = feature_set.summarised(rows, recipe, summary)
    return Part(manifest.ref, manifest.rows, cast("int", manifest.lineage["rows_unlabelled"]), summary)


def _newest_readings(manifests: Iterable[Manifest]) -> tuple[list[DataSetRef], list[Warn]]:
    newest: dict[str, DataSetRef] = {}
    warnings: list[Warn] = []
    for manifest in manifests:
        # The same bytes read in two ways are the same rows; which bytes they were is in the lineage.
        content = str(manifest.lineage.get("sha256") or manifest.ref.id)
        before = newest.pop(content, None)
        if before is not None:
            message = f"batch {before.id} is left out: {manifest.ref.id} is a later reading of the same file"
            warnings.append(Warn(code="read_again", message=message))
        newest[content] = manifest.ref
    return list(newest.values()), warnings


def _other(lake: Lake, file: PipelineFile) -> Other:
    source = file.source
    if source.entity is None or source.event_time is None:
        raise Invalid("join.pipeline", f"{file.pipeline} declares no entity or no event time", fix="declare both there")
    refs, _ = _newest_readings(lake.manifests("raw", file.pipeline))
    kinds: dict[str, Kind] = _kinds(lake.schema(refs[-1])) if refs else dict(file.columns or {})
    for name in (source.entity, source.event_time):
        kinds.pop(name, None)
    return Other(kinds, source.entity, source.event_time, refs)


def _history(lake: Lake, pipeline: str, other: Other, recipe: Recipe) -> History:
    """All that the other pipeline knows of its entities; held in memory, unlike the rows that it is joined to."""
    joined = [step for step in recipe.plan.rowwise if step.name == "join" and step.options["pipeline"] == pipeline]
    names = [name for step in joined for name in names_of(step)]
    kinds: dict[str, Kind] = {name: other.kinds[name] for name in names}
    fields = [("entity", pa.string()), ("time", pa.timestamp("us", tz="UTC"))]
    schema = pa.schema([*fields, *((name, TYPES[kind]) for name, kind in kinds.items())])
    tables = [schema.empty_table()]
    for ref in other.batches:
        there = [name for name in (other.entity, other.event_time, *names) if name in lake.schema(ref).names]
        for batch in lake.scan(ref, columns=there):
            entity = texts(batch.column(other.entity))
            time = _or_missing(batch, other.event_time, "timestamp")
            values = [_or_missing(batch, name, kind) for name, kind in kinds.items()]
            tables.append(pa.table([entity, time, *values], schema=schema))
    table = pa.concat_tables(tables).combine_chunks()
    columns = {name: _whole(table, name) for name in table.schema.names}
    return History(columns.pop("entity"), columns.pop("time"), columns)


def _whole(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)


def _kinds(schema: pa.Schema) -> dict[str, Kind]:
    kinds: dict[str, Kind | None] = {field.name: kind_of(field.type) for field in schema if field.name != ROW}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _or_missing(batch: pa.RecordBatch, name: str, kind: Kind) -> pa.Array:
    """The column, all missing where the batch lacks it or has it in another kind."""
    if name not in batch.schema.names or kind_of(batch.schema.field(name).type) != kind:
        return pa.nulls(batch.num_rows, TYPES[kind])
    array = batch.column(name)
    return numbers(floats(array)) if kind == "number" else array

"""An announcement's files into the lake: all of them, or none.

1. Every file is hashed, its schema decided and its rows written aside; a bad file does not hide what is wrong with
   the next one.
2. Only when all files are good do their manifests follow, the quarantine's before the batch's.

Run again, a file whose batch exists is not read a second time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import JsonValue

from turnout.common.errors import Invalid
from turnout.common.events import Batch, Column, DataSetRef, RawDataExtracted, SourceDataAvailable, Warn
from turnout.common.ids import content_id
from turnout.common.lake.port import Lake, Manifest, Writer
from turnout.common.pipeline import Format, Source
from turnout.common.runtime.crash import crash_point
from turnout.ingestion.adapters.columnar import ColumnarSource
from turnout.ingestion.adapters.csv import CsvSource
from turnout.ingestion.adapters.files import SourceFile, examine, find
from turnout.ingestion.adapters.json import JsonSource
from turnout.ingestion.domain.fitting import QUARANTINE, Fitted, Rejected, lake_schema, quarantine
from turnout.ingestion.domain.schema import Schema, decide
from turnout.ingestion.ports import Limits, Piece, RowSource, Task

_MAX_NAMED = 20
_ROW_GROUP = 131_072


@dataclass(frozen=True)
class _Draft:
    """A file's batch, read and waiting for its manifest."""

    batch: Batch
    schema: Schema
    warnings: Sequence[Warn]
    writer: Writer
    quarantine: Writer | None
    decoding: Mapping[str, object]


def extract(lake: Lake, task: Task) -> RawDataExtracted:
    """Read what the announcement names into the lake. Raises `Invalid` naming every file that cannot be read."""
    pipeline = task.cause.pipeline
    schema = kept_schema(lake, pipeline)
    done: dict[str, Batch] = {}
    drafts: list[_Draft] = []
    errors: list[Invalid] = []
    with ExitStack() as stack:
        for path in find(task.cause.uri, task.roots):
            try:
                file = examine(path, task.cause.format or task.file.source.format, task.limits)
                if file.sha256 in done:
                    continue
                found = _one(lake, task, file, schema, stack)
            except Invalid as error:
                errors.append(error)
                continue
            if isinstance(found, _Draft):
                drafts.append(found)
                schema = schema or found.schema
                done[file.sha256] = found.batch
            else:
                done[file.sha256], schema = _batch_of(found), schema or _schema_of(found)
        if errors:
            raise _together(errors)
        assert schema is not None  # `find` gives a file or raises
        event = _event(task, tuple(done.values()), schema, [w for d in drafts for w in d.warnings])
        for draft in drafts:
            _commit(draft, task, event)
    return event


def kept_schema(lake: Lake, pipeline: str) -> Schema | None:
    """What the pipeline's newest batch has; every batch of a pipeline has the columns of its first."""
    manifests = list(lake.manifests("raw", pipeline))
    return _schema_of(manifests[-1]) if manifests else None


def open_source(file: SourceFile, source: Source, limits: Limits) -> RowSource:
    """The file as rows. Raises `Invalid` where it holds none."""
    match file.format:
        case "csv":
            return CsvSource(file, source, limits)
        case "json":
            return JsonSource(file, source, limits)
        case "parquet" | "arrow":
            return ColumnarSource(file, source, limits)


def _one(lake: Lake, task: Task, file: SourceFile, kept: Schema | None, stack: ExitStack) -> _Draft | Manifest:
    spec = task.file.source
    source = open_source(file, spec, task.limits)
    schema, warnings = decide(source.sample(), task.file, kept, file.name)
    decoding = _decoding(file.format, spec, schema)
    batch_id = content_id("batch", task.cause.pipeline, file.sha256, decoding)
    ref = DataSetRef(kind="raw", pipeline=task.cause.pipeline, id=batch_id)
    existing = lake.manifest(ref)
    if existing is not None:
        return existing
    aside = DataSetRef(kind="quarantine", pipeline=ref.pipeline, id=ref.id)
    writer = stack.enter_context(lake.writer(ref, lake_schema(schema), partition_by=spec.partition_by))
    rejects = stack.enter_context(lake.writer(aside, QUARANTINE))
    written, rejected, first = 0, 0, None
    for rows, refused in _read(source.pieces(schema), writer, schema, task, split=bool(spec.partition_by)):
        written, rejected = written + rows, rejected + len(refused)
        if refused:
            first = first or refused[0]
            rejects.write(quarantine(refused))
    if first is not None:
        told = f"for example line {first.row}: {first.reason}"
        if written == 0:
            raise Invalid(file.name, f"none of its {rejected:,} rows fits the schema; {told}")
        message = f"{file.name}: {rejected:,} of {written + rejected:,} rows are in quarantine; {told}"
        warnings = [*warnings, Warn(code="quarantined", message=message)]
    batch = Batch(
        batch_id=batch_id, uri=file.path.as_uri(), sha256=file.sha256,
        rows_read=written + rejected, rows_written=written, rows_quarantined=rejected,
        data=ref, quarantine=aside if rejected else None,
    )  # fmt: skip
    crash_point("ingestion-rows-written")
    return _Draft(batch, schema, [*source.warnings, *warnings], writer, rejects if rejected else None, decoding)


def _decoding(format_: Format, spec: Source, schema: Schema) -> Mapping[str, object]:
    """Everything that changes what the same bytes become."""
    return {
        "format": format_,
        "columns": [c.model_dump() for c in schema.columns],
        "null_values": sorted(spec.null_values),
        "delimiter": spec.delimiter,
        "names": list(spec.columns or ()),
    }


def _read(
    pieces: Iterator[Piece], writer: Writer, schema: Schema, task: Task, *, split: bool
) -> Iterator[tuple[int, Sequence[Rejected]]]:
    """Work on a few pieces at a time, give their counts in order. Threads: Arrow works outside Python's lock."""
    texts = [c.name for c in schema.columns if c.kind == "category"]
    folder = writer.scratch()
    waiting: deque[Future[tuple[Fitted, Path | None]]] = deque()
    with ThreadPoolExecutor(task.limits.threads, "ingestion") as threads:
        try:
            for number, piece in enumerate(pieces):
                path = None if split else folder / f"piece-{number:06d}.parquet"
                waiting.append(threads.submit(_fit, piece, path, texts))
                if len(waiting) > task.limits.threads:
                    yield _take(waiting.popleft(), writer)
            while waiting:
                yield _take(waiting.popleft(), writer)
        finally:
            for future in waiting:
                future.cancel()


def _fit(piece: Piece, path: Path | None, texts: list[str]) -> tuple[Fitted, Path | None]:
    fitted = piece()
    if path is None or fitted.good.num_rows == 0:
        return fitted, None
    # Without the Arrow schema beside it a text column is read as text, whatever it was encoded as.
    with pq.ParquetWriter(path, fitted.good.schema, use_dictionary=texts, store_schema=False) as file:  # pyright: ignore[reportArgumentType]
        file.write_table(fitted.good, row_group_size=_ROW_GROUP)
    return Fitted(fitted.good.slice(0, 0), fitted.rejected), path


def _take(future: Future[tuple[Fitted, Path | None]], writer: Writer) -> tuple[int, Sequence[Rejected]]:
    fitted, path = future.result()
    if path is None:
        writer.write(fitted.good)
        return fitted.good.num_rows, fitted.rejected
    rows = pq.read_metadata(path).num_rows
    writer.adopt(path)
    return rows, fitted.rejected


def _commit(draft: _Draft, task: Task, event: RawDataExtracted) -> None:
    batch = draft.batch
    lineage: dict[str, JsonValue] = {
        "uri": batch.uri,
        "sha256": batch.sha256,
        "rows_read": batch.rows_read,
        "rows_quarantined": batch.rows_quarantined,
        "columns": [{"name": c.name, "kind": c.kind} for c in draft.schema.columns],
        "decoding": content_id("decoding", draft.decoding),
        "cause": task.cause.id,
    }
    if draft.quarantine is not None:
        draft.quarantine.commit(lineage=lineage, at=task.now)
        crash_point("ingestion-quarantine-committed")
    draft.writer.commit(lineage=lineage, at=task.now, event=event)
    crash_point("ingestion-batch-committed")


def _event(task: Task, batches: Sequence[Batch], schema: Schema, warnings: Sequence[Warn]) -> RawDataExtracted:
    cause: SourceDataAvailable = task.cause
    return RawDataExtracted.caused_by(
        cause, source="/ingestion", at=task.now,
        batches=tuple(batches), columns=schema.columns,
        rows_read=sum(b.rows_read for b in batches),
        rows_written=sum(b.rows_written for b in batches),
        rows_quarantined=sum(b.rows_quarantined for b in batches),
        warnings=tuple(warnings), spec_id=task.spec_id, train=cause.train,
    )  # fmt: skip


def _schema_of(manifest: Manifest) -> Schema:
    columns = manifest.lineage["columns"]
    assert isinstance(columns, list)  # we wrote it
    return Schema(tuple(Column.model_validate(column) for column in columns))


def _batch_of(manifest: Manifest) -> Batch:
    """The batch as it was extracted, from its manifest; rows that were erased since are counted as written."""
    told = manifest.lineage
    read, quarantined = int(str(told["rows_read"])), int(str(told["rows_quarantined"]))
    ref = manifest.ref
    return Batch(
        batch_id=ref.id, uri=str(told["uri"]), sha256=str(told["sha256"]),
        rows_read=read, rows_written=read - quarantined, rows_quarantined=quarantined, data=ref,
        quarantine=DataSetRef(kind="quarantine", pipeline=ref.pipeline, id=ref.id) if quarantined else None,
    )  # fmt: skip


def _together(errors: Sequence[Invalid]) -> Invalid:
    first, *others = errors
    if not others:
        return first
    told = [str(first).removeprefix(f"{first.field}: "), *map(str, others[:_MAX_NAMED])]
    more = f"; and {len(others) - _MAX_NAMED} more files" if len(others) > _MAX_NAMED else ""
    return Invalid(first.field, "; ".join(told) + more, fix="nothing of this announcement was taken; announce it again")

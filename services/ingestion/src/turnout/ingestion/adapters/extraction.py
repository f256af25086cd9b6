"""An announcement's files into the lake: all of them, or none.

1. Every file is hashed, its schema decided and its rows written aside; a bad file does not hide what is wrong with
   the next one.
2. Only when all files are good do their manifests follow, the quarantine's before the batch's.

Run again, a file whose batch exists is not read a second time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
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
from turnout.ingestion.domain.fitting import QUARANTINE, Rejected, lake_schema, quarantine
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


def warm(lake: Lake) -> None:
    """In a worker: import this module, and connect to the lake. Raises `Unavailable`."""
    lake.warm()


def extract(lake: Lake, task: Task) -> RawDataExtracted:
    """Read what the announcement names into the lake. Raises `Invalid` naming every file that cannot be read."""
    schema = kept_schema(lake, task.cause.pipeline)
    done: dict[str, Batch] = {}
    drafts: list[_Draft] = []
    errors: list[Invalid] = []
    with ExitStack() as stack:
        for path in find(task.cause.uri, task.roots):
            try:
                file = examine(path, task.cause.format or task.file.source.format, task.limits)
                found = _one(lake, task, file, schema, stack)
            except Invalid as error:
                errors.append(error)
                continue
            if isinstance(found, Manifest):
                batch, of_file = _batch_of(found), _schema_of(found)
            else:
                batch, of_file = found.batch, found.schema
                if batch.sha256 not in done:
                    drafts.append(found)
            done.setdefault(batch.sha256, batch)
            schema = schema or of_file
        if errors:
            raise _together(errors)
        assert schema is not None  # `find` gives a file or raises
        event = _event(task, tuple(done.values()), schema, [w for d in drafts for w in d.warnings])
        for draft in drafts:
            _commit(draft, task, event)
    return event


def kept_schema(lake: Lake, pipeline: str) -> Schema | None:
    """What the pipeline's batches have, None where there is none: every batch has the columns of the first.

    Where observations come there are many batches, so the newest are asked first.
    """
    for ref in reversed(lake.recent("raw", pipeline)):
        if (manifest := lake.manifest(ref)) is not None:
            return _schema_of(manifest)
    manifests = list(lake.manifests("raw", pipeline))
    return _schema_of(manifests[-1]) if manifests else None


def open_source(file: SourceFile, source: Source, limits: Limits) -> RowSource:
    """The file as rows. Raises `Invalid` where it holds none, or where columns are named that the file names itself."""
    if source.columns is not None and file.format != "csv":
        raise Invalid("source.columns", f"{file.name} has column names of its own", fix="leave them out")
    match file.format:
        case "csv":
            return CsvSource(file, source, limits)
        case "json":
            return JsonSource(file, source, limits)
        case "parquet" | "arrow":
            return ColumnarSource(file, source, limits)


def _one(lake: Lake, task: Task, file: SourceFile, kept: Schema | None, stack: ExitStack) -> _Draft | Manifest:
    """Read one file. Its id needs the hash of all its bytes, so that is taken while the first pieces are read."""
    spec, pipeline = task.file.source, task.cause.pipeline
    with ThreadPoolExecutor(task.limits.threads + 1, "ingestion") as threads:
        digest = threads.submit(file.sha256)
        source = open_source(file, spec, task.limits)
        schema, warnings = decide(source.sample(), task.file, kept, file.name)
        decoding = _decoding(file.format, spec, schema)
        if spec.partition_by:
            wait([digest])
        # Only the scratch folder of this writer is used: it is there before the id is.
        staging = stack.enter_context(lake.writer(DataSetRef(kind="raw", pipeline=pipeline, id="read"), QUARANTINE))
        work = partial(_fit, folder=None if spec.partition_by else staging.scratch(), schema=schema)
        fitted = _in_order(source.pieces(schema), work, threads, task.limits.threads, ready=digest.done)
        counts = _Counts()
        target: _Target | None = None
        with closing(fitted):
            for piece in fitted:
                if target is None:
                    ident = content_id("batch", pipeline, digest.result(), decoding)
                    existing = lake.manifest(DataSetRef(kind="raw", pipeline=pipeline, id=ident))
                    if existing is not None:
                        return existing
                    target = _opened(lake, pipeline, ident, schema, spec, stack)
                target.take(piece, counts)
    if target is None:
        raise Invalid(file.name, "the file holds no row")
    if counts.first is not None:
        warnings = [*warnings, _quarantined(file, counts)]
    batch = Batch(
        batch_id=target.data.id, uri=file.path.as_uri(), sha256=digest.result(),
        rows_read=counts.written + counts.rejected, rows_written=counts.written, rows_quarantined=counts.rejected,
        data=target.data, quarantine=target.quarantine if counts.rejected else None,
    )  # fmt: skip
    crash_point("ingestion-rows-written")
    return _Draft(
        batch, schema, [*source.warnings, *warnings], target.rows, target.rejects if counts.rejected else None, decoding
    )


@dataclass(frozen=True)
class _Done:
    """A piece that is read: its good rows in a file, or as a table where they go to several folders."""

    rows: int
    path: Path | None
    table: pa.Table
    rejected: Sequence[Rejected]


@dataclass
class _Counts:
    written: int = 0
    rejected: int = 0
    first: Rejected | None = None


@dataclass(frozen=True)
class _Target:
    """The two data sets that a file becomes."""

    data: DataSetRef
    quarantine: DataSetRef
    rows: Writer
    rejects: Writer

    def take(self, piece: _Done, counts: _Counts) -> None:
        """Append a piece."""
        if piece.path is not None:
            self.rows.adopt(piece.path)
        elif piece.rows:
            self.rows.write(piece.table)
        counts.written += piece.rows
        if piece.rejected:
            self.rejects.write(quarantine(piece.rejected))
            counts.rejected += len(piece.rejected)
            counts.first = counts.first or piece.rejected[0]


def _opened(lake: Lake, pipeline: str, ident: str, schema: Schema, spec: Source, stack: ExitStack) -> _Target:  # noqa: PLR0917
    data, aside = (
        DataSetRef.model_validate({"kind": k, "pipeline": pipeline, "id": ident}) for k in ("raw", "quarantine")
    )
    rows = stack.enter_context(lake.writer(data, lake_schema(schema), partition_by=spec.partition_by))
    return _Target(data, aside, rows, stack.enter_context(lake.writer(aside, QUARANTINE)))


def _quarantined(file: SourceFile, counts: _Counts) -> Warn:
    """What to tell of rejected rows. Raises `Invalid` where there are no others."""
    assert counts.first is not None
    told = f"for example line {counts.first.row}: {counts.first.reason}"
    if counts.written == 0:
        raise Invalid(file.name, f"none of its {counts.rejected:,} rows fits the schema; {told}")
    read = counts.written + counts.rejected
    message = f"{file.name}: {counts.rejected:,} of {read:,} rows are in quarantine; {told}"
    return Warn(code="quarantined", message=message)


def _decoding(format_: Format, spec: Source, schema: Schema) -> Mapping[str, object]:
    """Everything that changes what the same bytes become."""
    return {
        "format": format_,
        "columns": [c.model_dump() for c in schema.columns],
        "null_values": sorted(spec.null_values),
        "delimiter": spec.delimiter,
        "names": list(spec.columns or ()),
    }


def _in_order(
    pieces: Iterator[Piece],
    work: Callable[[Piece], _Done],
    threads: ThreadPoolExecutor,
    most: int,
    *,
    ready: Callable[[], bool],
) -> Generator[_Done]:
    """Work on a few pieces at a time, give them in order as soon as `ready`. Arrow works outside Python's lock.

    A piece that is done is on disk, so any number of them may wait; only those at work take memory.
    """
    waiting: deque[Future[_Done]] = deque()
    try:
        for piece in pieces:
            waiting.append(threads.submit(work, piece))
            while len(busy := [f for f in waiting if not f.done()]) > most:
                wait(busy, return_when=FIRST_COMPLETED)
            while waiting and waiting[0].done() and ready():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _fit(piece: Piece, folder: Path | None, schema: Schema) -> _Done:
    fitted = piece()
    rows = fitted.good.num_rows
    if folder is None or rows == 0:
        return _Done(rows, None, fitted.good, fitted.rejected)
    path = folder / f"{uuid4().hex}.parquet"
    texts = [c.name for c in schema.columns if c.kind == "category"]
    # Without the Arrow schema beside it a text column is read as text, whatever it was encoded as.
    with pq.ParquetWriter(path, fitted.good.schema, use_dictionary=texts, store_schema=False) as file:  # pyright: ignore[reportArgumentType]
        file.write_table(fitted.good, row_group_size=_ROW_GROUP)
    return _Done(rows, path, fitted.good.schema.empty_table(), fitted.rejected)


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

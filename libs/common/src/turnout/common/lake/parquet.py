"""What a lake of Parquet files does wherever they lie: read in constant memory, rewrite without some rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from itertools import chain
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs, ipc
from pydantic import JsonValue, TypeAdapter, ValidationError

from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import DataSetRef, Event
from turnout.common.lake import names, staging
from turnout.common.lake.arrow import ds
from turnout.common.lake.port import DataFile, Manifest, Writer

_IDS = TypeAdapter(list[str])


class PlacingWriter(Writer, Protocol):
    """A writer whose files can be put where a manifest may name them, without a manifest of its own."""

    def place(self, *, keep_schema: bool = True) -> tuple[DataFile, ...]:
        """Put all files there; still nobody sees them."""
        ...


class ParquetLake(ABC):
    """The reading half of a `Lake`; where manifests and files lie is its adapter's business."""

    @abstractmethod
    def manifest(self, ref: DataSetRef) -> Manifest | None:
        """See `Lake.manifest`."""

    @abstractmethod
    def manifests(self, kind: str, pipeline: str) -> Iterable[Manifest]:
        """See `Lake.manifests`."""

    @abstractmethod
    def writer(
        self, ref: DataSetRef, schema: pa.Schema, *, partition_by: Sequence[str] = ()
    ) -> AbstractContextManager[PlacingWriter]:
        """See `Lake.writer`."""

    @abstractmethod
    def _ids(self, kind: str, pipeline: str) -> Iterable[str]:
        """Ids that data sets have, or once had."""

    @abstractmethod
    def _recent(self, kind: str, pipeline: str) -> list[str] | None:
        """The list of the newest, None where there is none."""

    @abstractmethod
    def _base(self, ref: DataSetRef) -> str:
        """Where a data set lies, as the file system below names it."""

    @property
    @abstractmethod
    def _filesystem(self) -> fs.FileSystem:
        """Where the Parquet files are read."""

    @property
    @abstractmethod
    def _form(self) -> ds.ParquetFileFormat:
        """How they are read."""

    @abstractmethod
    def _reaching(self) -> AbstractContextManager[None]:
        """What the place raises becomes `Unavailable`."""

    def recent(self, kind: str, pipeline: str) -> Sequence[DataSetRef]:
        """See `Lake.recent`."""
        ids = self._recent(kind, pipeline)
        if ids is None:
            ids = self.newest(kind, pipeline)
        return [DataSetRef.model_validate({"kind": kind, "pipeline": pipeline, "id": ident}) for ident in ids]

    def newest(self, kind: str, pipeline: str) -> list[str]:
        """What a list of the newest begins with, found among all."""
        return [manifest.ref.id for manifest in self.manifests(kind, pipeline)][-names.MAX_RECENT :]

    def schema(self, ref: DataSetRef) -> pa.Schema:
        """See `Lake.schema`."""
        manifest = self._existing(ref)
        if manifest.files or not manifest.parts:
            return self._dataset(manifest).schema
        return self.schema(manifest.parts[0])

    def scan(
        self,
        ref: DataSetRef,
        *,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        batch_rows: int = 65_536,
    ) -> Iterator[pa.RecordBatch]:
        """See `Lake.scan`."""
        manifest = self._existing(ref)
        own = self._batches(manifest, columns, where, batch_rows) if manifest.files else iter(())
        parts = (self.scan(p, columns=columns, where=where, batch_rows=batch_rows) for p in manifest.parts)
        return chain(chain.from_iterable(parts), own)

    def read(
        self, ref: DataSetRef, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table:
        """See `Lake.read`."""
        schema = self.schema(ref)
        if columns is not None:
            schema = pa.schema([_field(schema, name) for name in columns])
        return pa.Table.from_batches(self.scan(ref, columns=columns, where=where), schema)

    def required(self, parts: Sequence[DataSetRef]) -> int:
        """The rows of the parts together. Raises `Unknown` if one is not there."""
        rows = 0
        for part in parts:
            manifest = self.manifest(part)
            if manifest is None:
                raise Unknown("parts", f"there is no {part.kind} data set {part.id}", fix="write the parts first")
            rows += manifest.rows
        return rows

    def _existing(self, ref: DataSetRef) -> Manifest:
        manifest = self.manifest(ref)
        if manifest is None:
            others = self._ids(ref.kind, ref.pipeline)
            raise Unknown.name("data set", f"{ref.kind} data set of {ref.pipeline}", ref.id, others)
        return manifest

    def _dataset(self, manifest: Manifest) -> ds.FileSystemDataset:
        with self._reaching():
            schema, partitions = _columns(self._first_schema(manifest))
            base = self._base(manifest.ref)
            folders = ds.HivePartitioning(partitions)
            # Told its size, a file is opened in one request instead of two.
            fragments = [
                self._form.make_fragment(
                    f"{base}/{file.path}", self._filesystem, folders.parse(f"/{file.path}"), file_size=file.bytes
                )
                for file in manifest.files
            ]
            return ds.FileSystemDataset(fragments, schema, self._form, self._filesystem)

    def _first_schema(self, manifest: Manifest) -> pa.Schema:
        """The schema of the first of the data set's own files, with its metadata."""
        return pq.read_schema(f"{self._base(manifest.ref)}/{manifest.files[0].path}", filesystem=self._filesystem)

    def _batches(
        self, manifest: Manifest, columns: Sequence[str] | None, where: pc.Expression | None, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        dataset = self._dataset(manifest)
        for name in columns or ():
            _field(dataset.schema, name)
        try:
            with self._reaching():
                for piece in _row_groups(dataset, where):
                    scanner = piece.scanner(
                        dataset.schema,
                        columns=None if columns is None else list(columns),
                        filter=where,
                        batch_size=batch_rows,
                    )
                    for batch in scanner.to_batches():
                        if batch.num_rows:
                            yield batch
        except pa.ArrowInvalid as error:
            raise Invalid("where", str(error)) from error

    def _without(self, manifest: Manifest, where: pc.Expression) -> Manifest:
        """The manifest of what `where` does not match; the very same one where it matches nothing."""
        with self._reaching():
            files = self._rewritten(manifest, where) if manifest.files else manifest.files
        rows = sum(f.rows for f in files) + sum(self._existing(part).rows for part in manifest.parts)
        return manifest if rows == manifest.rows else manifest.model_copy(update={"files": files, "rows": rows})

    def _rewritten(self, manifest: Manifest, where: pc.Expression) -> tuple[DataFile, ...]:
        """The files of what `where` does not match; the very same files where it matches nothing."""
        keep = ~where | where.is_null()
        dataset = self._dataset(manifest)
        try:
            if not dataset.count_rows(filter=where):
                return manifest.files
        except pa.ArrowInvalid as error:
            raise Invalid("where", str(error)) from error
        partitions = _columns(self._first_schema(manifest))[1].names
        with self.writer(manifest.ref, dataset.schema, partition_by=partitions) as writer:
            for batch in self._batches(manifest, None, keep, staging.ROW_GROUP):
                writer.write(batch)
            return writer.place()


def own_rows(manifest: Manifest) -> int:
    """Rows in the data set's own files, without its parts'."""
    return sum(file.rows for file in manifest.files)


def draft(
    ref: DataSetRef,
    schema: pa.Schema,
    files: tuple[DataFile, ...],
    *,
    parts: Sequence[DataSetRef],
    rows_of_parts: int,
    lineage: Mapping[str, JsonValue],
    at: datetime,
    event: Event | None,
) -> Manifest:
    """The manifest of a data set that is about to exist."""
    return Manifest(
        ref=ref,
        files=files,
        parts=tuple(parts),
        rows=sum(f.rows for f in files) + rows_of_parts,
        schema_text=schema.to_string(show_schema_metadata=False),
        lineage=lineage,
        created=at.astimezone(UTC),
        topic=event.topic() if event else None,
        event=event.model_dump_json() if event else None,
    )


def parse(content: bytes, ref_id: str) -> Manifest:
    """A manifest from its bytes. Raises `Unavailable` where they are none."""
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise Unavailable("the lake", f"{ref_id} has a manifest that cannot be read") from error


def parse_recent(content: bytes, where: str) -> list[str]:
    """A list of the newest from its bytes. Raises `Unavailable` where they are none."""
    try:
        return _IDS.validate_json(content)
    except ValidationError as error:
        raise Unavailable("the lake", f"{where} is a list that cannot be read") from error


def by_time(manifests: Iterable[Manifest]) -> list[Manifest]:
    """As `Lake.manifests` lists them."""
    return sorted(manifests, key=lambda m: (m.created, m.ref.id))


def _columns(stored: pa.Schema) -> tuple[pa.Schema, pa.Schema]:
    """The columns of the data set of a file with this schema, and those of them that its folder's name holds."""
    full = (stored.metadata or {}).get(staging.FULL_SCHEMA)
    if full is None:
        return stored.remove_metadata(), pa.schema([])
    schema = ipc.read_schema(pa.py_buffer(full))
    return schema, pa.schema([field for field in schema if field.name not in stored.names])


def _field(schema: pa.Schema, name: str) -> pa.Field:
    if name not in schema.names:
        raise Unknown.name("columns", "column", name, schema.names)
    return schema.field(name)


def _row_groups(dataset: ds.FileSystemDataset, where: pc.Expression | None) -> Iterator[ds.ParquetFileFragment]:
    """The row groups that may hold rows `where` asks for, in order.

    A scanner reads ahead of a slow consumer without end; over one row group at a time it can get no further than that.
    """
    for fragment in dataset.get_fragments(where):
        yield from fragment.split_by_row_group(where, schema=dataset.schema)

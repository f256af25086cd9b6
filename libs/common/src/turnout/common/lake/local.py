"""The lake in a folder of this machine.

    <root>/<kind>/<pipeline>/<id>/manifest.json      what exists
    <root>/<kind>/<pipeline>/<id>/<token>/…parquet   its files; each writer has a token of its own
    <root>/models/<pipeline>/<sha256>.onnx           model files
    <root>/.aside/<token>/                           being written; nobody reads here

Two writers of one data set cannot overwrite each other, because each has a folder of its own; whose manifest
is linked first wins, because a hard link never replaces a name that is there (link(2), EEXIST).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import re
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO, get_args
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import ipc
from pydantic import JsonValue, ValidationError

from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import DataSetRef, Event, ModelFile
from turnout.common.lake.port import DataFile, Manifest
from turnout.common.runtime.crash import crash_point

KINDS: tuple[str, ...] = get_args(DataSetRef.model_fields["kind"].annotation)
ROW_GROUP = 131_072
# Rows kept back while they wait for a row group of their partition, over all partitions.
PENDING = 4 * ROW_GROUP
# A file name holds 255 bytes on every common file system; `column=value` is one.
MAX_NAME = 255
MAX_PARTITIONS = 1_000
MAX_MODEL = 2**30

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_MODEL_URI = re.compile(r"models/(?P<pipeline>[^/]+)/(?P<name>[0-9a-f]{64}\.onnx)")
_FORMAT = ds.ParquetFileFormat(default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=False))
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# In a partitioned file's metadata: the schema with the columns that only the folder's name holds.
_FULL_SCHEMA = b"turnout:schema"


class LocalLake:
    """A `Lake` under `root`, made when first written to. Safe for several processes; can be pickled."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @contextmanager
    def writer(self, ref: DataSetRef, schema: pa.Schema, *, partition_by: Sequence[str] = ()) -> Generator[LocalWriter]:
        """See `Lake.writer`. Raises `Invalid` for a partition column that `schema` lacks."""
        for column in partition_by:
            if column not in schema.names:
                raise Unknown.name("partition_by", "column", column, schema.names)
        writer = LocalWriter(self.root, self._folder(ref), ref, schema.remove_metadata(), tuple(partition_by))
        try:
            yield writer
        except OSError as error:
            raise _unavailable(error) from error
        finally:
            writer.close()

    def manifest(self, ref: DataSetRef) -> Manifest | None:
        """See `Lake.manifest`."""
        return _load_manifest(self._folder(ref))

    def manifests(self, kind: str, pipeline: str) -> Iterable[Manifest]:
        """See `Lake.manifests`."""
        found = [_load_manifest(folder) for folder in _folders(self._pipeline_folder(kind, pipeline))]
        return sorted((m for m in found if m is not None), key=lambda m: (m.created, m.ref.id))

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

    def put_model(self, pipeline: str, content: bytes) -> ModelFile:
        """See `Lake.put_model`."""
        sha256 = hashlib.sha256(content).hexdigest()
        target = self._pipeline_folder("models", pipeline) / f"{sha256}.onnx"
        try:
            if not target.exists():
                aside = _aside(self.root) / f"{sha256}.{uuid4().hex}"
                _write_durably(aside, content)
                crash_point("lake-model-written")
                _make_folder(target.parent)
                aside.replace(target)
                _sync_folder(target.parent)
        except OSError as error:
            raise _unavailable(error) from error
        return ModelFile(uri=f"models/{pipeline}/{target.name}", sha256=sha256, size=len(content))

    def get_model(self, file: ModelFile) -> bytes:
        """See `Lake.get_model`."""
        match = _MODEL_URI.fullmatch(file.uri)
        if match is None:
            raise Invalid("file.uri", f"{file.uri[:100]!r} is no model file of the lake")
        path = self._pipeline_folder("models", match["pipeline"]) / match["name"]
        try:
            if path.stat().st_size > MAX_MODEL:
                raise Invalid("file.uri", f"the model file is larger than {MAX_MODEL:,} bytes")
            content = path.read_bytes()
        except FileNotFoundError:
            raise Invalid("file.uri", f"{file.uri} is not in the lake") from None
        except OSError as error:
            raise _unavailable(error) from error
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise Invalid("file.sha256", f"{file.uri} holds other bytes than were registered")
        return content

    def erase(self, ref: DataSetRef, where: pc.Expression) -> int:
        """See `Lake.erase`. New files lie beside the old ones until the manifest changes over at once."""
        with _locked(self.root):
            return self._erase(ref, where)

    def _erase(self, ref: DataSetRef, where: pc.Expression) -> int:
        manifest = self._existing(ref)
        gone = sum(self._erase(part, where) for part in manifest.parts)
        try:
            files = self._rewritten(manifest, where) if manifest.files else manifest.files
        except OSError as error:
            raise _unavailable(error) from error
        gone += sum(f.rows for f in manifest.files) - sum(f.rows for f in files)
        rows = sum(f.rows for f in files) + sum(self._existing(p).rows for p in manifest.parts)
        if rows == manifest.rows:
            return gone
        folder = self._folder(ref)
        try:
            aside = _aside(self.root) / f"{uuid4().hex}.json"
            _write_durably(aside, manifest.model_copy(update={"files": files, "rows": rows}).model_dump_json().encode())
            crash_point("lake-erased")
            aside.replace(folder / "manifest.json")
            _sync_folder(folder)
            for old in {Path(f.path).parts[0] for f in manifest.files} - {Path(f.path).parts[0] for f in files}:
                shutil.rmtree(folder / old, ignore_errors=True)
        except OSError as error:
            raise _unavailable(error) from error
        return gone

    def remove(self, pipeline: str, before: datetime | None = None) -> None:
        """See `Lake.remove`. Each data set first leaves its name at once, then its files go."""
        limit = before.timestamp() if before is not None else math.inf
        for kind in KINDS:
            folder = self._pipeline_folder(kind, pipeline)
            for entry in _entries(folder):
                manifest = _load_manifest(entry)
                if (manifest.created.timestamp() if manifest else _newest(entry)) >= limit:
                    continue
                aside = _aside(self.root) / uuid4().hex
                with suppress(FileNotFoundError):
                    entry.rename(aside)
                crash_point("lake-removing")
                _delete(aside)
            with suppress(OSError):
                folder.rmdir()

    def sweep(self, older_than: datetime) -> int:
        """See `Lake.sweep`."""
        limit = older_than.timestamp()
        dead = [entry for entry in _entries(self.root / ".aside") if _newest(entry) < limit]
        for folder in (d for kind in KINDS for p in _folders(self.root / kind) for d in _folders(p)):
            manifest = _load_manifest(folder)
            named = {Path(f.path).parts[0] for f in manifest.files} if manifest else set[str]()
            dead += [d for d in _folders(folder) if d.name not in named and _newest(d) < limit]
        return sum(_delete(entry) for entry in dead)

    def _folder(self, ref: DataSetRef) -> Path:
        return self._pipeline_folder(ref.kind, ref.pipeline) / _name(ref.id, "id")

    def _pipeline_folder(self, kind: str, pipeline: str) -> Path:
        if kind not in KINDS:
            raise Unknown.name("kind", "kind of data set", kind, KINDS)
        return self.root / kind / _name(pipeline, "pipeline")

    def _existing(self, ref: DataSetRef) -> Manifest:
        manifest = self.manifest(ref)
        if manifest is None:
            others = (folder.name for folder in _folders(self._pipeline_folder(ref.kind, ref.pipeline)))
            raise Unknown.name("data set", f"{ref.kind} data set of {ref.pipeline}", ref.id, others)
        return manifest

    def _dataset(self, manifest: Manifest) -> ds.FileSystemDataset:
        folder = self._folder(manifest.ref)
        paths = [str(folder / file.path) for file in manifest.files]
        try:
            schema, partitions = _schema_of(paths[0])
            return ds.dataset(
                paths,
                schema=schema,
                format=_FORMAT,
                partitioning=ds.HivePartitioning(partitions),
                partition_base_dir=str(folder),
            )
        except OSError as error:
            raise _unavailable(error) from error

    def _batches(
        self, manifest: Manifest, columns: Sequence[str] | None, where: pc.Expression | None, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        dataset = self._dataset(manifest)
        for name in columns or ():
            _field(dataset.schema, name)
        try:
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
        except OSError as error:
            raise _unavailable(error) from error

    def _rewritten(self, manifest: Manifest, where: pc.Expression) -> tuple[DataFile, ...]:
        """The files of what `where` does not match; the very same files where it matches nothing."""
        keep = ~where | where.is_null()
        dataset = self._dataset(manifest)
        try:
            if not dataset.count_rows(filter=where):
                return manifest.files
        except pa.ArrowInvalid as error:
            raise Invalid("where", str(error)) from error
        partitions = _schema_of(str(self._folder(manifest.ref) / manifest.files[0].path))[1].names
        with self.writer(manifest.ref, dataset.schema, partition_by=partitions) as writer:
            for batch in self._batches(manifest, None, keep, ROW_GROUP):
                writer.write(batch)
            return writer.place()


class LocalWriter:
    """One data set being written, in a folder of its own under `.aside`."""

    def __init__(
        self, root: Path, folder: Path, ref: DataSetRef, schema: pa.Schema, partition_by: tuple[str, ...]
    ) -> None:
        self._root = root
        self._folder = folder
        self._ref = ref
        self._schema = schema
        self._token = uuid4().hex
        self._aside = root / ".aside" / self._token
        self._data = self._aside / self._token
        self._partitioning = ds.HivePartitioning(pa.schema([schema.field(name) for name in partition_by]))
        self._stored = schema
        if partition_by:
            left = [field for field in schema if field.name not in partition_by]
            self._stored = pa.schema(left, {_FULL_SCHEMA: schema.serialize().to_pybytes()})
        self._open: dict[str, pq.ParquetWriter] = {}
        self._pending: dict[str, list[pa.Table]] = {}
        self._adopted: list[DataFile] = []
        self._files = 0
        self._committed = False

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """See `Writer.write`. Raises `Invalid` where the columns are not the schema's."""
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        if table.schema.names != self._schema.names:
            raise Invalid("columns", f"{table.schema.names} are not the data set's {self._schema.names}")
        for folder, rows in self._partitioned(table.cast(self._schema)):
            pending = self._pending.setdefault(folder, [])
            pending.append(rows)
            if _rows(pending) >= ROW_GROUP:
                self._flush(folder)
        while sum(map(_rows, self._pending.values())) > PENDING:
            self._flush(max(self._pending, key=lambda f: _rows(self._pending[f])))

    def scratch(self) -> Path:
        """See `Writer.scratch`."""
        folder = self._aside / "scratch"
        _make_folder(folder)
        return folder

    def adopt(self, path: Path) -> None:
        """See `Writer.adopt`."""
        found = pq.read_schema(path).remove_metadata()
        if self._partitioning.schema.names or not found.equals(self._schema):
            raise Invalid("columns", f"{found} are not the data set's {self._schema}")
        _make_folder(self._data)
        self._close_files()
        target = self._data / self._next_name()
        path.rename(target)
        # Flushed and hashed now, while the engine is busy with its next file.
        self._adopted.append(_describe(target, self._data))

    def commit(
        self,
        *,
        lineage: Mapping[str, JsonValue],
        at: datetime,
        event: Event | None = None,
        parts: Sequence[DataSetRef] = (),
    ) -> Manifest:
        """See `Writer.commit`."""
        files = self.place(keep_schema=not parts)
        lake = LocalLake(self._root)
        manifest = Manifest(
            ref=self._ref,
            files=files,
            parts=tuple(parts),
            rows=sum(f.rows for f in files) + sum(_required(lake, part).rows for part in parts),
            schema_text=self._schema.to_string(show_schema_metadata=False),
            lineage=lineage,
            created=at.astimezone(UTC),
            topic=event.topic() if event else None,
            event=event.model_dump_json() if event else None,
        )
        _make_folder(self._folder)
        _make_folder(self._aside)
        aside = self._aside / "manifest.json"
        _write_durably(aside, manifest.model_dump_json().encode())
        crash_point("lake-manifest-written")
        try:
            os.link(aside, self._folder / "manifest.json")
        except FileExistsError:
            shutil.rmtree(self._folder / self._token, ignore_errors=True)
            manifest = lake.manifest(self._ref) or manifest
        _sync_folder(self._folder)
        self._committed = True
        crash_point("lake-committed")
        return manifest

    def place(self, *, keep_schema: bool = True) -> tuple[DataFile, ...]:
        """Flush all files to disk and move them where a manifest may name them; still nobody sees them.

        A data set without a row keeps one empty file, so that its columns are known, unless `keep_schema` is
        false.
        """
        if keep_schema and not self._files and not self._pending:
            self._writer(".")
        self._close_files()
        if not self._data.exists():
            return ()
        crash_point("lake-data-written")
        described = {file.path: file for file in self._adopted}
        paths = sorted(self._data.rglob("*.parquet"))
        files = tuple(described.get(_relative(path, self._data)) or _describe(path, self._data) for path in paths)
        for folder in (self._data, *self._data.rglob("*/")):
            _sync_folder(folder)
        crash_point("lake-data-flushed")
        _make_folder(self._folder)
        self._data.rename(self._folder / self._token)
        _sync_folder(self._folder)
        crash_point("lake-data-renamed")
        return files

    def close(self) -> None:
        """Leave nothing behind that is not committed."""
        for writer in self._open.values():
            with suppress(OSError, pa.ArrowException):
                writer.close()
        self._open.clear()
        shutil.rmtree(self._aside, ignore_errors=True)

    def _partitioned(self, table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        names = self._partitioning.schema.names
        if not names:
            yield ".", table
            return
        for key in table.select(names).group_by(names).aggregate([]).to_pylist():
            rows = table.filter(_equal(key)).drop_columns(names)
            yield self._folder_of(key), rows

    def _folder_of(self, key: Mapping[str, object]) -> str:
        for column, value in key.items():
            if value == _HIVE_NULL:
                raise Invalid("partition_by", f"{column} holds {value!r}, which folders use for a missing value")
        folder = self._partitioning.format(_equal(key))[0]
        if max(len(part.encode()) for part in folder.split("/")) > MAX_NAME:
            raise Invalid("partition_by", f"a value is too long for a folder's name: {folder[:60]}…")
        return folder

    def _flush(self, folder: str) -> None:
        tables = self._pending.pop(folder)
        self._writer(folder).write_table(pa.concat_tables(tables).combine_chunks(), row_group_size=ROW_GROUP)

    def _close_files(self) -> None:
        for folder in list(self._pending):
            self._flush(folder)
        for writer in self._open.values():
            writer.close()
        self._open.clear()

    def _writer(self, folder: str) -> pq.ParquetWriter:
        if folder not in self._open:
            if len(self._open) >= MAX_PARTITIONS:
                raise Invalid(
                    "partition_by",
                    f"more than {MAX_PARTITIONS} different values",
                    fix="partition by a column with few values",
                )
            path = self._data / folder
            _make_folder(path)
            self._open[folder] = pq.ParquetWriter(path / self._next_name(), self._stored)
        return self._open[folder]

    def _next_name(self) -> str:
        self._files += 1
        return f"part-{self._files - 1:05d}.parquet"


def _name(name: str, field: str) -> str:
    if not _NAME.fullmatch(name):
        raise Invalid(field, f"{name[:60]!r} is no name", fix="letters, digits, '.', '_' and '-', at most 200")
    return name


def _field(schema: pa.Schema, name: str) -> pa.Field:
    if name not in schema.names:
        raise Unknown.name("columns", "column", name, schema.names)
    return schema.field(name)


def _equal(key: Mapping[str, object]) -> pc.Expression:
    result = pc.scalar(True)
    for column, value in key.items():
        result = result & (pc.field(column).is_null() if value is None else pc.field(column) == value)
    return result


def _row_groups(dataset: ds.FileSystemDataset, where: pc.Expression | None) -> Iterator[ds.ParquetFileFragment]:
    """The row groups that may hold rows `where` asks for, in order.

    A scanner reads ahead of a slow consumer without end; over one row group at a time it can get no further than that.
    """
    for fragment in dataset.get_fragments(where):
        yield from fragment.split_by_row_group(where, schema=dataset.schema)


def _rows(tables: Sequence[pa.Table]) -> int:
    return sum(table.num_rows for table in tables)


def _schema_of(path: str) -> tuple[pa.Schema, pa.Schema]:
    """The columns of the data set that the file at `path` belongs to, and those its folder's name holds."""
    stored = pq.read_schema(path)
    full = (stored.metadata or {}).get(_FULL_SCHEMA)
    if full is None:
        return stored.remove_metadata(), pa.schema([])
    schema = ipc.read_schema(pa.py_buffer(full))
    return schema, pa.schema([field for field in schema if field.name not in stored.names])


def _required(lake: LocalLake, ref: DataSetRef) -> Manifest:
    manifest = lake.manifest(ref)
    if manifest is None:
        raise Unknown("parts", f"there is no {ref.kind} data set {ref.id}", fix="write the parts first")
    return manifest


def _load_manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise Unavailable("the lake", f"{folder.name} has a manifest that cannot be read") from error
    except OSError as error:
        raise _unavailable(error) from error


def _relative(path: Path, base: Path) -> str:
    """`path` as the manifest names it: from the writer's own folder on."""
    return (Path(base.name) / path.relative_to(base)).as_posix()


def _describe(path: Path, base: Path) -> DataFile:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return DataFile(
        path=_relative(path, base),
        rows=pq.read_metadata(path).num_rows,
        bytes=path.stat().st_size,
        sha256=sha256,
    )


def _unavailable(error: OSError) -> Unavailable:
    if error.errno == errno.ENOSPC:
        return Unavailable("the lake", "the disk is full")
    return Unavailable("the lake", error.strerror or str(error))


def _aside(root: Path) -> Path:
    folder = root / ".aside"
    _make_folder(folder)
    return folder


def _make_folder(folder: Path) -> None:
    """Make the folder; its name is on disk before anything in it counts."""
    if folder.exists():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(root: Path) -> Generator[None]:
    """One erasure at a time: two from one manifest would each bring back what the other took out."""
    with (_aside(root).parent / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def _newest(entry: Path) -> float:
    """When something in `entry` was last written; a writer at work keeps its folder young."""
    times = [0.0]
    for path in (entry, *entry.rglob("*")):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def _delete(entry: Path) -> int:
    if entry.is_dir():
        files = sum(1 for path in entry.rglob("*") if path.is_file())
        shutil.rmtree(entry, ignore_errors=True)
        return files
    entry.unlink(missing_ok=True)
    return 1

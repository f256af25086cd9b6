"""The half of writing a data set that every lake does alike: Parquet files put together on this machine.

<root>/.aside/<token>/<token>/…parquet   the files, as the data set will name them
<root>/.aside/<token>/scratch/           an engine's own files
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from turnout.common.errors import Invalid, Unknown
from turnout.common.lake.arrow import ds
from turnout.common.lake.disk import delete, entries, make_folder, newest
from turnout.common.lake.port import DataFile

ROW_GROUP = 131_072
# Rows kept back while they wait for a row group of their partition, over all partitions.
PENDING = 4 * ROW_GROUP
# A file name holds 255 bytes on every common file system; `column=value` is one.
MAX_NAME = 255
MAX_PARTITIONS = 1_000
# In a partitioned file's metadata: the schema with the columns that only the folder's name holds.
FULL_SCHEMA = b"turnout:schema"

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


class Staging:
    """The files of one data set being put together, in a folder of their own under `root`.

    `durable`: a file that is described is on disk, whatever happens to the machine.
    """

    def __init__(self, root: Path, schema: pa.Schema, partition_by: Sequence[str], *, durable: bool) -> None:
        for column in partition_by:
            if column not in schema.names:
                raise Unknown.name("partition_by", "column", column, schema.names)
        self.schema = schema.remove_metadata()
        self.token = uuid4().hex
        self.folder = root / ".aside" / self.token
        self.data = self.folder / self.token
        self._durable = durable
        self._partitioning = ds.HivePartitioning(pa.schema([self.schema.field(name) for name in partition_by]))
        self._stored = self.schema
        if partition_by:
            left = [field for field in self.schema if field.name not in partition_by]
            self._stored = pa.schema(left, {FULL_SCHEMA: self.schema.serialize().to_pybytes()})
        self._open: dict[str, pq.ParquetWriter] = {}
        self._pending: dict[str, list[pa.Table]] = {}
        self._adopted: list[DataFile] = []
        self._files = 0

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """See `Writer.write`. Raises `Invalid` where the columns are not the schema's."""
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        if table.schema.names != self.schema.names:
            raise Invalid("columns", f"{table.schema.names} are not the data set's {self.schema.names}")
        for folder, rows in self._partitioned(table.cast(self.schema)):
            pending = self._pending.setdefault(folder, [])
            pending.append(rows)
            if _rows(pending) >= ROW_GROUP:
                self._flush(folder)
        while sum(map(_rows, self._pending.values())) > PENDING:
            self._flush(max(self._pending, key=lambda f: _rows(self._pending[f])))

    def scratch(self) -> Path:
        """See `Writer.scratch`."""
        folder = self.folder / "scratch"
        make_folder(folder)
        return folder

    def adopt(self, path: Path) -> None:
        """See `Writer.adopt`."""
        found = pq.read_schema(path).remove_metadata()
        if self._partitioning.schema.names or not found.equals(self.schema):
            raise Invalid("columns", f"{found} are not the data set's {self.schema}")
        make_folder(self.data)
        self._close_files()
        target = self.data / self._next_name()
        path.rename(target)
        # Flushed and hashed now, while the engine is busy with its next file.
        self._adopted.append(self._describe(target))

    def finish(self, *, keep_schema: bool) -> bool:
        """Write what is pending; whether there is any file.

        A data set without a row keeps one empty file, so that its columns are known, unless `keep_schema` is
        false.
        """
        if keep_schema and not self._files and not self._pending:
            self._writer(".")
        self._close_files()
        return self.data.exists()

    def describe(self) -> tuple[DataFile, ...]:
        """All files, by path."""
        described = {file.path: file for file in self._adopted}
        paths = sorted(self.data.rglob("*.parquet"))
        return tuple(described.get(self._relative(path)) or self._describe(path) for path in paths)

    def close(self) -> None:
        """Leave nothing behind."""
        for writer in self._open.values():
            with suppress(OSError, pa.ArrowException):
                writer.close()
        self._open.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

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
            path = self.data / folder
            make_folder(path)
            self._open[folder] = pq.ParquetWriter(path / self._next_name(), self._stored)
        return self._open[folder]

    def _next_name(self) -> str:
        self._files += 1
        return f"part-{self._files - 1:05d}.parquet"

    def _relative(self, path: Path) -> str:
        """`path` as the manifest names it: from the writer's own folder on."""
        return path.relative_to(self.folder).as_posix()

    def _describe(self, path: Path) -> DataFile:
        with path.open("rb") as file:
            if self._durable:
                os.fsync(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return DataFile(
            path=self._relative(path),
            rows=pq.read_metadata(path).num_rows,
            bytes=path.stat().st_size,
            sha256=sha256,
        )


def sweep(root: Path, limit: float) -> int:
    """Remove what writers that died before `limit` (seconds since 1970) left under `root`; how many files went."""
    return sum(delete(entry) for entry in entries(root / ".aside") if newest(entry) < limit)


def _equal(key: Mapping[str, object]) -> pc.Expression:
    result = pc.scalar(True)
    for column, value in key.items():
        result = result & (pc.field(column).is_null() if value is None else pc.field(column) == value)
    return result


def _rows(tables: Sequence[pa.Table]) -> int:
    return sum(table.num_rows for table in tables)

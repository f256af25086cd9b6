"""Parquet and Arrow IPC (file and stream), taken in small steps: what a row weighs is known only once it is decoded.

A Parquet footer does not tell the decoded size (one value in a dictionary page may stand for a million rows), so text
columns stay dictionary-encoded until their true weight is known.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import BinaryIO, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import ipc

from turnout.common.errors import Invalid
from turnout.common.events import Warn
from turnout.common.pipeline import Source
from turnout.ingestion.adapters.files import SourceFile
from turnout.ingestion.domain.fitting import Fitted, fit
from turnout.ingestion.domain.schema import SAMPLE_ROWS, Schema, check_names
from turnout.ingestion.ports import Limits, Piece

_STEP = 2_048
_MOST_ROWS = 131_072
_FILE_MAGIC = b"ARROW1"


@dataclass
class ColumnarSource:
    """See `RowSource`. Raises `Invalid` for a file that is not what it says, is nested, or holds no row."""

    file: SourceFile
    source: Source
    limits: Limits
    warnings: list[Warn] = field(default_factory=list)

    def sample(self) -> Mapping[str, pa.Array]:
        """See `RowSource.sample`."""
        taken: list[pa.RecordBatch] = []
        with self._batches(None) as batches:
            for batch in batches:
                taken.append(batch)
                rows, weight = sum(b.num_rows for b in taken), sum(map(_weight, taken))
                if rows >= SAMPLE_ROWS or weight >= self.limits.piece_bytes:
                    break
        if not sum(batch.num_rows for batch in taken):
            raise Invalid(self.file.name, "the file holds no row")
        table = _joined(taken)
        return {name: _flat(table[name]) for name in table.column_names}

    def pieces(self, schema: Schema) -> Iterator[Piece]:
        """See `RowSource.pieces`."""
        row, decoded = 1, 0
        taken: list[pa.RecordBatch] = []
        weight = rows = 0
        with self._batches(schema.names) as batches:
            for batch in chain(batches, [None]):
                if batch is not None:
                    taken.append(batch)
                    weight, rows = weight + _weight(batch), rows + batch.num_rows
                    if decoded + weight > self.file.limit:
                        raise self._too_large()
                if rows and (batch is None or weight >= self.limits.piece_bytes or rows >= _MOST_ROWS):
                    yield partial(_fit, taken, row, schema, self.source.null_values)
                    row, decoded = row + rows, decoded + weight
                    taken, weight, rows = [], 0, 0

    @contextmanager
    def _batches(self, columns: list[str] | None) -> Generator[Iterator[pa.RecordBatch]]:
        with self.file.open() as stream, _seekable(stream, self.file) as whole:
            try:
                yield (_parquet if self.file.format == "parquet" else _arrow)(whole, self.file.name, columns)
            except (pa.ArrowException, OSError, EOFError) as error:
                what = {"parquet": "a Parquet", "arrow": "an Arrow"}[self.file.format]
                told = f"it is not {what} file, or a damaged one ({str(error)[:200]})"
                raise Invalid(self.file.name, told, fix="write it again, or say what it is in source.format") from None

    def _too_large(self) -> Invalid:
        return Invalid(
            self.file.name, f"{self.file.size:,} bytes decode to more than {self.file.limit:,}",
            fix="split the file, if it is meant to be so",
        )  # fmt: skip


def _parquet(stream: BinaryIO, what: str, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    schema = pq.read_schema(stream)
    _check_columns(schema, what)
    texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_binary(f.type)]
    stream.seek(0)
    with pq.ParquetFile(stream, read_dictionary=texts, pre_buffer=False) as file:
        for batch in file.iter_batches(_STEP, columns=columns, use_threads=False):
            batch.validate(full=True)
            yield batch


def _arrow(stream: BinaryIO, what: str, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    is_file = stream.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    stream.seek(0)
    with ipc.open_file(stream) if is_file else ipc.open_stream(stream) as reader:
        _check_columns(reader.schema, what)
        of_file = (reader.get_batch(at) for at in range(reader.num_record_batches)) if is_file else iter(reader)
        for batch in of_file:
            batch.validate(full=True)
            wanted = batch if columns is None else batch.select(columns)
            for at in range(0, wanted.num_rows, _STEP * 8):
                yield wanted.slice(at, _STEP * 8)


def _check_columns(schema: pa.Schema, what: str) -> None:
    check_names(schema.names, what)
    refused = [f"'{f.name}' ({str(f.type)[:40]})" for f in schema if not _flat_type(f.type)]
    if refused:
        raise Invalid(
            f"{what}: columns", f"{', '.join(refused[:10])}: neither numbers, texts nor times",
            fix="write the parts as columns of their own",
        )  # fmt: skip


def _flat_type(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _flat_type(kind.value_type) and not types.is_dictionary(kind.value_type)
    fit_ = (
        types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal, types.is_date,
        types.is_timestamp, types.is_time, types.is_string, types.is_large_string, types.is_string_view,
        types.is_binary, types.is_large_binary,
    )  # fmt: skip
    return any(of(kind) for of in fit_)


def _weight(batch: pa.RecordBatch) -> int:
    """Bytes of the rows with every dictionary decoded."""
    total = 0
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and not pa.types.is_primitive(column.type.value_type):
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            total += (pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0) + 8 * len(column)
        else:
            total += column.nbytes
    return total


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(batches).unify_dictionaries()


def _flat(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.dictionary_decode() if pa.types.is_dictionary(whole.type) else whole


def _fit(batches: Sequence[pa.RecordBatch], row: int, schema: Schema, null_values: Sequence[str]) -> Fitted:
    table = _joined(batches)

    def text(at: int) -> str:
        return orjson.dumps(table.slice(at, 1).to_pylist()[0], default=str).decode()

    columns = {name: table[name].combine_chunks() for name in table.column_names}
    return fit(columns, np.arange(row, row + table.num_rows), schema, null_values, text)


@contextmanager
def _seekable(stream: BinaryIO, file: SourceFile) -> Generator[BinaryIO]:
    """`stream` itself, or where it is being decompressed, its bytes in a temporary file."""
    if file.compression is None:
        yield stream
        return
    with tempfile.TemporaryFile() as whole:
        while block := stream.read(2**20):
            whole.write(block)
        whole.seek(0)
        yield cast("BinaryIO", whole)

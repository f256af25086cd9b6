"""Reads foreign tables slice by slice: CSV, newline-delimited JSON, Parquet, Arrow, and raw batches of the lake.

Only the columns that a version takes are read. `_row` of a file is the row's number in it, from 1, the header line
not counted; files of a folder are numbered one after the other.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import ipc

from turnout.common.errors import Invalid
from turnout.scoring.ports import BatchTask

ROWS = 16_384
BLOCK_BYTES = 4 * 1024 * 1024
MAX_LINE = 1024 * 1024

# A row's number, why it is refused, what stood there.
Refused = tuple[int, str, str]


@dataclass(frozen=True)
class Slice:
    """Some rows: their numbers, the columns there are, and rows that could not even be read."""

    numbers: NDArray[np.int64]
    columns: Mapping[str, pa.Array]
    refused: Sequence[Refused] = ()

    def text(self, at: int) -> str:
        """The row at a place, as JSON, for the quarantine."""
        row = {name: array[at].as_py() for name, array in self.columns.items()}
        return orjson.dumps(row, default=str, option=orjson.OPT_PASSTHROUGH_DATETIME).decode()


def slices(task: BatchTask) -> Iterator[Slice]:
    """The task's rows. Raises `Invalid` for what cannot be read."""
    names = [column.name for column in task.ready.inputs]
    if task.data is not None:
        there = [name for name in names if name in task.lake.schema(task.data).names]
        for batch in task.lake.scan(task.data, columns=["_row", *there], batch_rows=ROWS):
            numbers = batch.column("_row").to_numpy(zero_copy_only=False).astype(np.int64)
            yield Slice(numbers, {name: batch.column(name) for name in there})
        return
    before = 0
    for name in task.files:
        last = before
        for part in _file(Path(name), task, names):
            numbers = part.numbers + before
            last = max(last, int(numbers.max(initial=before)), *(row + before for row, _, _ in part.refused), before)
            yield Slice(numbers, part.columns, [(row + before, why, text) for row, why, text in part.refused])
        before = last


def _file(path: Path, task: BatchTask, names: Sequence[str]) -> Iterator[Slice]:
    readers: Mapping[str, Callable[[Path, BatchTask, Sequence[str]], Iterator[Slice]]] = {
        "csv": _csv, "parquet": _parquet, "arrow": _arrow, "json": _json,
    }  # fmt: skip
    kind = task.format or _format_of(path)
    try:
        yield from readers[kind](path, task, names)
    except (pa.ArrowException, OSError, EOFError) as error:
        why = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise Invalid("uri", f"{path.name} cannot be read as {kind}: {why}") from None


def _format_of(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    for ending, kind in (
        (".csv", "csv"), (".tsv", "csv"), (".data", "csv"), (".parquet", "parquet"), (".arrow", "arrow"),
        (".feather", "arrow"), (".json", "json"), (".jsonl", "json"), (".ndjson", "json"),
    ):  # fmt: skip
        if name.endswith(ending):
            return kind
    raise Invalid("format", f"{path.name} does not say what it is", fix="csv, parquet, arrow or json")


def _csv(path: Path, task: BatchTask, names: Sequence[str]) -> Iterator[Slice]:
    wrong: list[Refused] = []

    def keep(row: pcsv.InvalidRow) -> str:
        why = f"{row.actual_columns} cells, the header has {row.expected_columns}"
        wrong.append((row.number or 0, why, row.text or ""))
        return "skip"

    given = list(task.column_names) or None
    header = given or _header(path, task.delimiter)
    there = [name for name in names if name in header]
    if not there:
        raise Invalid("uri", f"{path.name} has none of the version's inputs", fix=f"for example '{names[0]}'")
    reader = pcsv.open_csv(
        path,
        read_options=pcsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=given),
        parse_options=pcsv.ParseOptions(
            delimiter=task.delimiter, newlines_in_values=True, invalid_row_handler=keep
        ),
        convert_options=pcsv.ConvertOptions(
            column_types=dict.fromkeys(there, pa.string()), include_columns=there, strings_can_be_null=True,
            null_values=["", *task.null_values],
        ),
    )  # fmt: skip
    following = 1
    first = 0 if given else 1  # the reader counts the header line
    for batch in reader:
        refused = [(row - first, why, text) for row, why, text in wrong]
        wrong.clear()
        gone = {row for row, _, _ in refused}
        span = range(following, following + batch.num_rows + len(gone))
        numbers = np.array([n for n in span if n not in gone][: batch.num_rows], dtype=np.int64)
        following = span.stop
        yield Slice(numbers, {name: batch.column(name) for name in there}, refused)
    if wrong:
        refused = [(row - first, why, text) for row, why, text in wrong]
        yield Slice(np.array([], dtype=np.int64), {name: pa.array([], pa.string()) for name in there}, refused)


def _header(path: Path, delimiter: str) -> list[str]:
    """The names in the first line, as the reader sees them."""
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rb") as file:
        head = file.read(MAX_LINE)
    if not head.strip():
        raise Invalid("uri", f"{path.name} is empty")
    block = pcsv.read_csv(
        pa.BufferReader(head.splitlines()[0] + b"\n"), parse_options=pcsv.ParseOptions(delimiter=delimiter)
    )
    return block.column_names


def _parquet(path: Path, _: BatchTask, names: Sequence[str]) -> Iterator[Slice]:
    with pq.ParquetFile(path) as file:
        there = [name for name in names if name in file.schema_arrow.names]
        yield from _numbered(file.iter_batches(batch_size=ROWS, columns=there), there)


def _arrow(path: Path, _: BatchTask, names: Sequence[str]) -> Iterator[Slice]:
    with pa.memory_map(str(path)) as source:
        try:
            file = ipc.open_file(source)
            batches: Iterator[pa.RecordBatch] = (file.get_batch(at) for at in range(file.num_record_batches))
            schema = file.schema
        except pa.ArrowInvalid:
            source.seek(0)
            stream = ipc.open_stream(source)
            batches, schema = iter(stream), stream.schema
        there = [name for name in names if name in schema.names]
        parts = (batch.slice(at, ROWS) for batch in batches for at in range(0, batch.num_rows, ROWS))
        yield from _numbered(parts, there)


def _numbered(batches: Iterator[pa.RecordBatch], there: Sequence[str]) -> Iterator[Slice]:
    following = 1
    for batch in batches:
        batch.validate(full=True)
        numbers = np.arange(following, following + batch.num_rows, dtype=np.int64)
        following += batch.num_rows
        yield Slice(numbers, {name: batch.column(batch.schema.get_field_index(name)) for name in there})


def _json(path: Path, _: BatchTask, names: Sequence[str]) -> Iterator[Slice]:
    """Each line by itself: a column may be a number in one and a text in the next."""
    opener = gzip.open if path.name.endswith(".gz") else open
    rows: list[tuple[int, Mapping[str, Any]]] = []
    refused: list[Refused] = []
    with opener(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            if not line.strip():
                continue
            number += 1
            row = _object(line)
            if isinstance(row, str):
                refused.append((number, row, line[:500].decode(errors="replace").rstrip()))
            else:
                rows.append((number, row))
            if len(rows) + len(refused) >= ROWS:
                yield _json_slice(rows, refused, names)
                rows, refused = [], []
    if rows or refused:
        yield _json_slice(rows, refused, names)


def _object(line: bytes) -> Mapping[str, Any] | str:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"the line is not JSON: {error}"
    return row if isinstance(row, dict) else "the line is JSON, but not an object"


def _json_slice(
    rows: Sequence[tuple[int, Mapping[str, Any]]], refused: Sequence[Refused], names: Sequence[str]
) -> Slice:
    columns = {name: pa.array([_text(row.get(name)) for _, row in rows], pa.string()) for name in names}
    return Slice(np.array([number for number, _ in rows], dtype=np.int64), columns, list(refused))


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return orjson.dumps(value).decode()

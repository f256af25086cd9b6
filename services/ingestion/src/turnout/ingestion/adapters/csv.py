"""CSV, read in pieces that end with a record, each parsed by Arrow in a thread of its own.

The fast way parses a piece straight into the lake's types. When a cell of it does not convert, the piece is parsed
again as bytes and each column converted with reasons; the columns at fault are taken as bytes from then on.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from turnout.common.errors import Invalid
from turnout.common.events import Column, Warn
from turnout.common.pipeline import Source
from turnout.ingestion.adapters.files import SourceFile
from turnout.ingestion.domain import records
from turnout.ingestion.domain.convert import Converted, canonical, convert
from turnout.ingestion.domain.fitting import Fitted, Rejected, gather, lake_schema
from turnout.ingestion.domain.schema import (
    SAMPLE_ROWS,
    Schema,
    check_names,
    header,
    looks_like_data,
    names_among_cells,
    no_header,
)  # fmt: skip
from turnout.ingestion.ports import Limits, Piece

_BOM = b"\xef\xbb\xbf"
_SNIFF_BYTES = 4 * 2**20
_SNIFF_LINES = 20
# A record longer than this is a quote that was never closed.
_MAX_RECORD = 64 * 2**20
_FAST_TYPES: Mapping[str, pa.DataType] = {
    "number": pa.float64(),
    "category": pa.dictionary(pa.int32(), pa.string()),
    "timestamp": pa.timestamp("us"),
}


@dataclass(frozen=True)
class Layout:
    """How the text is to be read: all names of the file in order, and where its first record starts."""

    names: tuple[str, ...]
    delimiter: str
    skip: int
    first_line: int


@dataclass
class CsvSource:
    """See `RowSource`. Raises `Invalid` for a file that holds no rows or is no UTF-8 text."""

    file: SourceFile
    source: Source
    limits: Limits
    warnings: list[Warn] = field(default_factory=list)

    def __post_init__(self) -> None:
        with self.file.open() as stream:
            self._head = stream.read(_SNIFF_BYTES)
            self._whole = not stream.peek(1) if hasattr(stream, "peek") else False
        self.layout = self._layout(self._head)

    def sample(self) -> Mapping[str, pa.Array]:
        """See `RowSource.sample`."""
        data = self._head[self.layout.skip :]
        if not self._whole:
            data = data[: records.cut(data, self.layout.delimiter)] or data
        if not _is_text(data):
            data, _, _ = _sound(data, self.layout.delimiter)
        table, _ = _parse(data or b"\n", self.layout, {name: pa.binary() for name in self.layout.names})
        found = {name: _whole(table[name].slice(0, SAMPLE_ROWS)) for name in self.layout.names}
        if self.source.columns is None and len(among := names_among_cells(found)) >= max(2, len(found) / 4):
            raise no_header(among, self.file.name)
        return found

    def pieces(self, schema: Schema) -> Iterator[Piece]:
        """See `RowSource.pieces`."""
        reading = _Reading(self.layout, schema, self.source.null_values, set())
        with self.file.open() as stream:
            for segment in self._segments(stream):
                yield partial(_fit, segment, reading)

    def _segments(self, stream: BinaryIO) -> Iterator[_Segment]:
        rest = stream.read(self.layout.skip)[self.layout.skip :]
        line = self.layout.first_line
        while block := stream.read(self.limits.piece_bytes):
            piece, rest = self._cut(rest, block)
            if not piece and len(rest) > _MAX_RECORD:
                raise self._unclosed(rest, line)
            lines = records.lines_in(piece)
            if piece.strip(b"\r\n"):
                yield _Segment(piece, line, lines)
            line += lines
        if rest.strip(b"\r\n"):
            if records.unclosed(rest, self.layout.delimiter) is not None:
                raise self._unclosed(rest, line)
            yield _Segment(rest, line, records.lines_in(rest))

    def _cut(self, rest: bytes, block: bytes) -> tuple[bytes, bytes]:
        """`rest + block` up to where its last record ends, and what is left; copied once where no quote is near."""
        if b'"' not in block and b'"' not in rest and (end := block.rfind(b"\n") + 1):
            return b"".join((rest, memoryview(block)[:end])), block[end:]
        data = rest + block
        end = records.cut(data, self.layout.delimiter)
        return data[:end], data[end:]

    def _unclosed(self, data: bytes, line: int) -> Invalid:
        at = records.unclosed(data, self.layout.delimiter) or 0
        return Invalid(
            f"{self.file.name}: line {line + at}", "a quote is opened here and never closed",
            fix="close it, or double a quote that is meant literally",
        )  # fmt: skip

    def _layout(self, head: bytes) -> Layout:
        what = self.file.name
        _check_encoding(head, what)
        start = len(_BOM) if head.startswith(_BOM) else 0
        found = records.records(head[start:], ",")
        if not len(found.starts):
            raise Invalid(what, "the file holds no line of text")
        delimiter = self.source.delimiter or self._sniffed(head[start:], found)
        if len(delimiter.encode()) != 1 or delimiter in '"\r\n':
            raise Invalid("source.delimiter", f"{delimiter!r} cannot delimit", fix="one ASCII character")
        found = records.records(head[start:], delimiter)
        first = head[start + int(found.starts[0]) : start + int(found.ends[0])]
        try:
            cells = records.fields(first.decode(), delimiter)
        except UnicodeDecodeError:
            raise Invalid(f"{what}: header", "it is not UTF-8 text", fix="save the file as UTF-8") from None
        if self.source.columns is not None:
            names = list(self.source.columns)
            check_names(names, what)
            if len(cells) != len(names):
                raise Invalid("source.columns", f"{len(names)} names, but {what} has {len(cells)} columns")
            return Layout(tuple(names), delimiter, start, 1)
        if len(found.starts) == 1 and self._whole and not looks_like_data(cells):
            raise Invalid(what, "the file has a header and no row")
        names, warnings = header(cells, what)
        self.warnings.extend(warnings)
        # The header ends where the next record starts; blank lines between them are skipped with it.
        second = int(found.starts[1]) if len(found.starts) > 1 else len(head) - start
        line = int(found.lines[1]) if len(found.starts) > 1 else 1
        return Layout(tuple(names), delimiter, start + second, line + 1)

    def _sniffed(self, head: bytes, found: records.Records) -> str:
        lines = [found.text(head, at) for at in range(min(len(found.starts) - (not self._whole), _SNIFF_LINES))]
        return records.sniff_delimiter(lines or [found.text(head, 0)])


def _check_encoding(head: bytes, what: str) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Invalid(what, "it is UTF-16 text", fix="save the file as UTF-8")
    first = head.split(b"\n", 1)[0]
    if b"\0" in first:
        raise Invalid(what, "its first line holds NUL bytes: it is no text", fix="name its format in source.format")


@dataclass(frozen=True)
class _Segment:
    """Whole records of a file: the line that the first stands in, and how many lines end in it."""

    data: bytes
    line: int
    lines: int

    @property
    def most(self) -> int:
        """How many records there can be: one a line."""
        return self.lines + (not self.data.endswith((b"\n", b"\r")))


@dataclass(frozen=True)
class _Reading:
    """What all pieces of a file have in common; `suspects` grows by columns with cells that Arrow did not take."""

    layout: Layout
    schema: Schema
    null_values: Sequence[str]
    suspects: set[str]


def _fit(segment: _Segment, reading: _Reading) -> Fitted:
    """One piece of the file. Records that are no text are set apart first, Arrow parses the rest."""
    if _is_text(segment.data):
        return _parsed(segment, reading)
    line = segment.line
    rest, found, sound = _sound(segment.data, reading.layout.delimiter)
    torn = [
        Rejected(line + int(found.lines[at]), "the row is not UTF-8 text", found.text(segment.data, int(at)))
        for at in np.flatnonzero(~sound)
    ]
    if not rest:
        return Fitted(lake_schema(reading.schema).empty_table(), torn)
    fitted = _parsed(_Segment(rest, line, 0), reading, lines=line + found.lines[sound])
    return Fitted(fitted.good, sorted([*fitted.rejected, *torn], key=lambda r: r.row))


def _sound(data: bytes, delimiter: str) -> tuple[bytes, records.Records, NDArray[np.bool_]]:
    """The records that are UTF-8 text, all records, and which of them are."""
    found = records.records(data, delimiter)
    texts = [data[start:end] for start, end in zip(found.starts.tolist(), found.ends.tolist(), strict=True)]
    sound = np.array([_is_text(text) for text in texts], np.bool_)
    return b"".join(text + b"\n" for text, good in zip(texts, sound, strict=True) if good), found, sound


def _parsed(segment: _Segment, reading: _Reading, *, lines: NDArray[np.int64] | None = None) -> Fitted:
    """`lines`: where each record stands, if not one after the other."""
    suspects, columns = reading.suspects, reading.schema.columns
    types = {c.name: pa.string() if c.name in suspects else _FAST_TYPES[c.kind] for c in columns}
    try:
        table, ragged = _parse(segment.data, reading.layout, types, ["", *reading.null_values])
        converted = {c.name: _converted(_whole(table[c.name]), c, reading) for c in columns}
    except (pa.ArrowInvalid, _NotFinite):
        table, ragged = _parse(segment.data, reading.layout, dict.fromkeys(types, pa.string()))
        converted = {c.name: _converted(_whole(table[c.name]), c, reading) for c in columns}
    return _numbered(segment, converted, ragged, reading, lines)


def _converted(cells: pa.Array, column: Column, reading: _Reading) -> Converted:
    """A column as Arrow parsed it: in its fast type, or as bytes."""
    name, null_values = column.name, reading.null_values
    if pa.types.is_dictionary(cells.type):
        return canonical(cells, name, null_values)
    if pa.types.is_timestamp(cells.type):
        return Converted(pc.assume_timezone(cells, "UTC"), {})
    if pa.types.is_floating(cells.type):
        if not pc.all(pc.is_finite(cells)).as_py():
            raise _NotFinite
        return Converted(cells, {})
    found = convert(cells, column.kind, name, null_values)
    if name not in reading.suspects and (found.bad or not _converts(cells, column.kind, null_values)):
        reading.suspects.add(name)
    return found


class _NotFinite(Exception):  # noqa: N818 (it never leaves this module)
    pass


def _converts(cells: pa.Array, kind: str, null_values: Sequence[str]) -> bool:
    """Whether Arrow's CSV reader would take the column in its fast type."""
    if kind == "category":
        return True
    blank = pc.is_in(cells, value_set=pa.array(["", *null_values], pa.string()))
    try:
        pc.cast(pc.if_else(blank, pa.scalar(None, pa.string()), cells), _FAST_TYPES[kind])
    except pa.ArrowInvalid:
        return False
    return True


def _numbered(
    segment: _Segment,
    converted: Mapping[str, Converted],
    ragged: Sequence[csv.InvalidRow],
    reading: _Reading,
    lines: NDArray[np.int64] | None,
) -> Fitted:
    """Give each row its line. One line a row needs no close look at the text."""
    data, line, schema = segment.data, segment.line, reading.schema
    count = len(next(iter(converted.values())).values) + len(ragged)
    if lines is None and not ragged and count == segment.most:
        wrong = sorted({row for column in converted.values() for row in column.bad})
        texts = records.texts_of_lines(data, wrong) if wrong else {}
        return gather(converted, np.arange(line, line + count), schema, texts.__getitem__)
    found = records.records(data, reading.layout.delimiter)
    if len(found.starts) != count:
        raise RuntimeError(f"{count} records parsed, {len(found.starts)} found from line {line}")
    lines = line + found.lines if lines is None else lines
    apart = np.array([row.number - 1 for row in ragged], np.int64)
    whole: NDArray[np.int64] = np.delete(np.arange(count), apart)
    fitted = gather(converted, lines[whole], schema, lambda row: found.text(data, int(whole[row])))
    if not ragged:
        return fitted
    torn = [
        Rejected(
            int(lines[at]),
            f"{row.actual_columns} fields instead of {row.expected_columns}",
            found.text(data, int(at)),
        )
        for at, row in zip(apart, ragged, strict=True)
    ]
    return Fitted(fitted.good, sorted([*fitted.rejected, *torn], key=lambda r: r.row))


def _is_text(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parse(
    data: bytes, layout: Layout, types: Mapping[str, pa.DataType], null_values: Sequence[str] | None = None
) -> tuple[pa.Table, list[csv.InvalidRow]]:
    """The columns in `types`, and the rows that have another number of fields."""
    ragged: list[csv.InvalidRow] = []

    def skip(row: csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"

    if data.startswith(_BOM):
        # Arrow would take it for the mark of a file's start; behind an empty line it is a letter of the first cell.
        data = b"\n" + data
    table = csv.read_csv(
        pa.BufferReader(data),
        csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=list(layout.names)),
        csv.ParseOptions(delimiter=layout.delimiter, newlines_in_values=True, invalid_row_handler=skip),
        csv.ConvertOptions(
            column_types=dict(types),
            include_columns=list(types),
            null_values=list(null_values or ()),
            strings_can_be_null=null_values is not None,
            timestamp_parsers=[csv.ISO8601],
            check_utf8=False,  # the whole piece is
        ),
    )
    return table, ragged


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

"""JSON: one object a line, or one array of objects."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, NoReturn, cast

import numpy as np
import orjson
import pyarrow as pa

from turnout.common.errors import Invalid
from turnout.common.events import Warn
from turnout.common.pipeline import Source
from turnout.common.values import category
from turnout.ingestion.adapters.files import SourceFile
from turnout.ingestion.domain.fitting import Fitted, Rejected, fit
from turnout.ingestion.domain.schema import FITTING, SAMPLE_ROWS, Schema, check_names
from turnout.ingestion.ports import Limits, Piece

_BOM = b"\xef\xbb\xbf"
_MAX_RECORD = 16 * 2**20
_ARRAY_ROWS = 20_000
_BLOCK = 2**20
_GAP = re.compile(r"[ \t\r\n,]*")


@dataclass(frozen=True)
class Item:
    """One row's JSON: where it stands, and the object or what is wrong with it."""

    row: int
    value: Mapping[str, Any]
    wrong: str | None = None
    text: str = ""


@dataclass
class JsonSource:
    """See `RowSource`. Rows of an array are numbered, rows of lines have their line."""

    file: SourceFile
    source: Source
    limits: Limits
    warnings: list[Warn] = field(default_factory=list)

    def sample(self) -> Mapping[str, pa.Array]:
        """See `RowSource.sample`."""
        cells: dict[str, list[Any]] = {}
        rows = 0
        for items in self._items():
            good = [item.value for item in items if item.wrong is None]
            for name in dict.fromkeys(key for value in good for key in value):
                cells.setdefault(name, [None] * rows).extend(value.get(name) for value in good)
            rows += len(good)
            for values in cells.values():
                values.extend([None] * (rows - len(values)))
            if rows >= SAMPLE_ROWS:
                break
        if not rows:
            raise Invalid(
                self.file.name, "the file holds no JSON object", fix="one object a line, or one array of them"
            )
        check_names(list(cells), self.file.name)
        return {name: _as_column(values, f"{self.file.name}: column '{name}'") for name, values in cells.items()}

    def pieces(self, schema: Schema) -> Iterator[Piece]:
        """See `RowSource.pieces`."""
        for items in self._items():
            yield partial(_fit, items, schema, self.source.null_values)

    def _items(self) -> Iterator[list[Item]]:
        with self.file.open() as stream:
            head = stream.read(len(_BOM))
            rest = b"" if head == _BOM else head
            while rest.strip() == b"" and (block := stream.read(64)):
                rest += block
            reading = self._array if rest.lstrip().startswith(b"[") else self._lines
            yield from reading(rest, stream)

    def _lines(self, rest: bytes, stream: BinaryIO) -> Iterator[list[Item]]:
        line = 1
        while True:
            # Python objects take some ten times the room of their text.
            block = stream.read(self.limits.piece_bytes // 8)
            data = rest + block
            end = data.rfind(b"\n") + 1 if block else len(data)
            if end == 0 and len(data) > _MAX_RECORD:
                raise Invalid(f"{self.file.name}: line {line}", f"a line of more than {_MAX_RECORD:,} bytes")
            if data[:end].strip():
                yield _objects(data[:end], line)
            if not block:
                return
            line += data.count(b"\n", 0, end)
            rest = data[end:]

    def _array(self, rest: bytes, stream: BinaryIO) -> Iterator[list[Item]]:
        row = 1
        found: list[Item] = []
        for row, value in enumerate(self._values(rest, stream), 1):
            found.append(_item(row, value))
            if len(found) >= _ARRAY_ROWS:
                yield found
                found = []
        if found:
            yield found

    def _values(self, rest: bytes, stream: BinaryIO) -> Iterator[Any]:
        """What stands in the array, one after the other, with never more than a block of text in memory."""
        decode = codecs.getincrementaldecoder("utf-8")()
        parser = json.JSONDecoder(parse_constant=_no_constant)
        text, at, row = "", 0, 1
        block = rest.lstrip()[1:] or stream.read(_BLOCK)
        while block:
            try:
                text, at = text[at:] + decode.decode(block), 0
            except UnicodeDecodeError:
                raise Invalid(f"{self.file.name}: row {row}", "it is not UTF-8", fix="save the file as UTF-8") from None
            while True:
                at = _gap(text, at)
                if text.startswith("]", at):
                    return
                try:
                    value, end = parser.raw_decode(text, at)
                except json.JSONDecodeError:
                    break
                if end == len(text):
                    # A number at the very end may go on in the next block.
                    break
                yield value
                at, row = end, row + 1
            if len(text) - at > _MAX_RECORD:
                break
            block = stream.read(_BLOCK)
        raise self._torn(row)

    def _torn(self, row: int) -> Invalid:
        return Invalid(f"{self.file.name}: row {row}", "the array is no valid JSON here, or is cut off")


def _gap(text: str, at: int) -> int:
    """Where the next value starts."""
    match = _GAP.match(text, at)
    return match.end() if match else at


def _objects(data: bytes, line: int) -> list[Item]:
    items: list[Item] = []
    for at, text in enumerate(data.split(b"\n"), line):
        if not text.strip():
            continue
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            shown = text.decode("utf-8", errors="backslashreplace")
            items.append(Item(at, {}, f"the line is no valid JSON ({error.msg})", shown))
            continue
        items.append(_item(at, value))
    return items


def _item(row: int, value: Any) -> Item:
    if isinstance(value, dict):
        return Item(row, cast("Mapping[str, Any]", value))
    return Item(row, {}, "the row is no object", json.dumps(value))


def _fit(items: Sequence[Item], schema: Schema, null_values: Sequence[str]) -> Fitted:
    good = [item for item in items if item.wrong is None]
    columns = {name: [item.value.get(name) for item in good] for name in schema.names}
    rows = np.array([item.row for item in good], np.int64)
    fitted = fit(columns, rows, schema, null_values, lambda at: json.dumps(good[at].value))
    wrong = [Rejected(item.row, item.wrong, item.text) for item in items if item.wrong is not None]
    return Fitted(fitted.good, sorted([*fitted.rejected, *wrong], key=lambda r: r.row)) if wrong else fitted


def _as_column(cells: Sequence[Any], what: str) -> pa.Array:
    """The cells as one Arrow column; where kinds are mixed, numbers if nearly all are, else texts."""
    kinds = Counter(
        "number" if isinstance(c, int | float) and not isinstance(c, bool) else type(c).__name__ for c in cells
    )
    nested = kinds["dict"] + kinds["list"]
    filled = len(cells) - kinds["NoneType"]
    if nested > filled / 2:
        raise Invalid(what, "its values are nested", fix="write the parts as fields of their own")
    if filled and kinds["number"] >= FITTING * filled:
        numbers = [c if isinstance(c, int | float) and not isinstance(c, bool) else None for c in cells]
        whole = all(isinstance(c, int) for c in numbers if c is not None)
        try:
            return pa.array(numbers, pa.int64() if whole else pa.float64())
        except (pa.ArrowInvalid, OverflowError):
            return pa.array([category(c) for c in numbers], pa.string())
    return pa.array([category(c) if not isinstance(c, dict | list) else None for c in cells], pa.string())


def _no_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no JSON", name, 0)

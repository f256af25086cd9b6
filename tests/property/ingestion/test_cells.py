"""A cell of a file means what the same cell means in a request, and no row is lost."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from builders import AT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from turnout.common.errors import Invalid
from turnout.common.events import RawDataExtracted, SourceDataAvailable
from turnout.common.lake.local import LocalLake
from turnout.common.pipeline import PipelineFile
from turnout.common.values import Kind, cell
from turnout.ingestion.adapters.extraction import extract
from turnout.ingestion.domain.convert import convert, convert_cells
from turnout.ingestion.ports import Limits, Task

MISSING = ("?", "-999", "63.0", "2026-02-01")
KINDS: list[Kind] = ["number", "category", "timestamp"]
NUMBERS = st.one_of(
    st.floats().map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.text(st.sampled_from("0123456789.eE+-_ "), max_size=8),
    st.sampled_from(
        ["nan", "inf", "-Infinity", "1e400", "1e-400", "63.0", "+63.", "007", " 5 ", "1_000", "0x10", "١٢"]
    ),
)
# ruff: noqa: DTZ001 (texts without a zone are meant)
TIMES = st.one_of(
    st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(str),
    st.datetimes(datetime(1900, 1, 1), timezones=st.timezones()).map(datetime.isoformat),
    st.datetimes(datetime(1900, 1, 1)).map(lambda t: t.strftime("%Y/%m/%d %H:%M")),
    st.sampled_from(
        [
            "2026-01-01T10Z",
            "2026-01-01 10:00:00.1234567",
            "20260101",
            "0001-01-01T00:00:00+01:00",
            "2026-02-30",
            "24:00",
        ]
    ),
)
TEXTS = st.one_of(
    NUMBERS,
    TIMES,
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "?", " ? ", "a\x00b", "\ufeff", "\u2003x\u2003", "\x1cx", "x" * 10_001, "é", "😀", "true"]
    ),
)


def expected(text: str, kind: Kind, null_values: tuple[str, ...] = ()) -> object:
    if text.strip() in null_values:
        return None
    try:
        return cell(text, kind, "c")
    except Invalid as error:
        return str(error)


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, max_size=6))
@example(texts=["-999", " -999", "63.0", "63", "2026-02-01", "2026-02-02", " ", "x"])
@example(texts=["1", "NaN(1)", "1_0", "1e400"])
@example(texts=[f"2026-01-01 00:{i % 60:02}" + ("Z" if i % 7 else "") for i in range(300)])
@example(texts=["63.0", "63.", "-0.0", "0000000000000001.0"])
def test_columns_convert_as_cells_do(kind: Kind, texts: list[str]) -> None:
    try:
        encoded = [t.encode() for t in texts]
    except UnicodeEncodeError:
        return
    want = [expected(t, kind, MISSING) for t in texts]
    for column in (pa.array(texts, pa.string()), pa.array(encoded, pa.binary()), pa.array(texts).dictionary_encode()):
        if pa.types.is_null(column.type):
            continue
        found = convert(column, kind, "c", MISSING)
        assert [found.bad.get(i, v) for i, v in enumerate(found.values.to_pylist())] == want
    found = convert_cells(texts, kind, "c", MISSING)
    assert [found.bad.get(i, v) for i, v in enumerate(found.values.to_pylist())] == want


JSON_CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), TEXTS
)


@pytest.mark.parametrize("kind", KINDS)
@given(cells=st.lists(JSON_CELLS, max_size=6))
def test_json_cells_convert_as_cells_do(kind: Kind, cells: list[Any]) -> None:
    want: list[object] = []
    for value in cells:
        try:
            want.append(cell(value, kind, "c"))
        except Invalid as error:
            want.append(str(error))
    found = convert_cells(cells, kind, "c")
    assert [found.bad.get(i, v) for i, v in enumerate(found.values.to_pylist())] == want


def written(rows: list[list[str]], **options: Any) -> bytes:
    text = io.StringIO()
    for row in rows:
        # Python's writer leaves a lone CR unquoted where lines end with LF.
        quoting = csv.QUOTE_ALL if any("\r" in cell for cell in row) else options["quoting"]
        csv.writer(text, **{**options, "quoting": quoting}).writerow(row)
    return text.getvalue().encode()


def run(
    content: bytes, columns: Mapping[str, Kind], piece_bytes: int, **source: Any
) -> tuple[RawDataExtracted, Any, Any]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        path.write_bytes(content)
        lake = LocalLake(Path(folder) / "lake")
        file = PipelineFile.model_validate(
            {"pipeline": "p", "task": "features", "schema": columns, "source": {"columns": list(columns), **source}}
        )
        event = SourceDataAvailable.first(source="/test", at=AT, pipeline="p", uri=str(path))
        task = Task(event, file, "spec", (Path(folder),), AT, Limits(piece_bytes=piece_bytes))
        extracted = extract(lake, task)
        (batch,) = extracted.batches
        rejected = lake.read(batch.quarantine).to_pylist() if batch.quarantine else []
        return extracted, lake.read(batch.data).to_pylist(), rejected


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    rows=st.lists(st.tuples(NUMBERS, st.text(max_size=6), TIMES), min_size=1, max_size=12),
    piece=st.sampled_from([1, 7, 64, 2**20]),
    ending=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_csv_rows_are_in_the_lake_or_in_quarantine(
    rows: list[tuple[str, str, str]], piece: int, ending: str, quoting: Any
) -> None:
    rows = [("1", "first", "2026-01-01"), *rows]
    try:
        content = written([list(row) for row in rows], lineterminator=ending, quoting=quoting)
    except UnicodeEncodeError:
        return
    columns: dict[str, Kind] = {"n": "number", "c": "category", "t": "timestamp"}
    event, good, bad = run(content, columns, piece, delimiter=",")

    assert event.rows_read == len(rows) == event.rows_written + event.rows_quarantined
    assert (event.rows_written, event.rows_quarantined) == (len(good), len(bad))
    want, refused, line = [], [], 1
    for row in rows:
        cells = {name: expected(text, kind) for (name, kind), text in zip(columns.items(), row, strict=True)}
        text = written([list(row)], lineterminator=ending, quoting=quoting).decode().removesuffix(ending)
        if any(isinstance(v, str) and v.startswith("c: ") for v in cells.values()):
            refused.append((line, text))
        else:
            want.append({**cells, "_row": line})
        line += 1 + text.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    assert good == want
    assert [(b["_row"], b["_text"]) for b in bad] == refused


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=80).map(lambda b: b"1,a\n" + b), piece=st.sampled_from([1, 16, 2**20]))
@example(content="1,a\n\ufeff2,\ufeffb\n".encode(), piece=1)
@example(content="1,a\n\ufeff".encode(), piece=1)
def test_any_bytes_are_counted_or_refused(content: bytes, piece: int) -> None:
    try:
        event, good, bad = run(content, {"n": "number", "c": "category"}, piece, delimiter=",")
    except Invalid:
        return
    assert event.rows_read == len(good) + len(bad)
    assert len({r["_row"] for r in [*good, *bad]}) == event.rows_read
    assert good[0] == {"n": 1.0, "c": "a", "_row": 1}
    for value in good:
        assert value["n"] is None or abs(value["n"]) < float("inf")
        assert value["c"] is None or value["c"] == value["c"].strip()


def test_utc_is_meant() -> None:
    assert expected("2026-01-01", "timestamp") == datetime(2026, 1, 1, tzinfo=UTC)

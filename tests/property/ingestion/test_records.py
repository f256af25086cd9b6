"""Records of a CSV text: what we find is what a plain reading, letter by letter, and Arrow find."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import csv

from turnout.ingestion.domain import records

TEXTS = st.text(st.sampled_from('ab,"\n\r é'), max_size=40).map(str.encode)


def plain(data: bytes, delimiter: int = ord(",")) -> tuple[list[tuple[int, int]], int | None]:
    """(start, end) of each record that is not empty, and where a quote is opened that nothing closes."""
    found: list[tuple[int, int]] = []
    at = start = 0
    field_start, opened = True, None
    while at < len(data):
        letter = data[at]
        if opened is not None:
            if letter == ord('"'):
                if data[at + 1 : at + 2] == b'"':
                    at += 1
                else:
                    opened = None
        elif letter == ord('"') and field_start:
            opened, field_start = at, False
        elif letter in (10, 13):
            if at > start:
                found.append((start, at))
            if letter == 13 and data[at + 1 : at + 2] == b"\n":
                at += 1
            start, field_start = at + 1, True
        else:
            field_start = letter == delimiter
        at += 1
    if start < len(data):
        found.append((start, len(data)))
    return found, opened


@given(TEXTS)
@example(b'a,5" p\nb,"q"z"\n')
@example(b'"a""b",c\n"a"b"",c"d\n')
@example(b'""""\n"\n')
def test_records_are_those_of_a_plain_reading(data: bytes) -> None:
    expected, opened = plain(data)
    assert (records.unclosed(data, ",") is None) == (opened is None)
    if opened is not None:
        return
    found = records.records(data, ",")
    assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == expected
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    before = [data[:start].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") for start, _ in expected]
    assert found.lines.tolist() == before
    assert records.lines_in(data) == lines.count(b"\n")


@given(TEXTS)
def test_a_cut_falls_between_records(data: bytes) -> None:
    end = records.cut(data, ",")
    assert 0 <= end <= len(data)
    expected, _ = plain(data)
    assert all(not start < end <= stop for start, stop in expected)
    assert plain(data[:end])[1] is None


@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_pieces_have_the_records_of_the_whole(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    expected, opened = plain(whole)
    if opened is not None:
        return
    rest, texts = b"", []
    for part in parts:
        data = rest + part
        end = records.cut(data, ",")
        texts += [data[start:stop] for start, stop in plain(data[:end])[0]]
        rest = data[end:]
    texts += [rest[start:stop] for start, stop in plain(rest)[0]]
    assert texts == [whole[start:stop] for start, stop in expected]


@given(TEXTS)
def test_arrow_finds_as_many(data: bytes) -> None:
    expected, opened = plain(data)
    if opened is not None or not data.strip(b"\r\n"):
        return
    torn: list[int] = []

    def skip(row: csv.InvalidRow) -> str:
        torn.append(row.number)
        return "skip"

    found = csv.read_csv(
        pa.BufferReader(data),
        csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=["a", "b"]),
        csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
        csv.ConvertOptions(column_types={"a": pa.binary(), "b": pa.binary()}),
    )
    assert found.num_rows + len(torn) == len(expected)
    assert torn == sorted(torn)


@given(st.lists(st.text(st.sampled_from('ab,;"é \t'), max_size=6), min_size=1, max_size=5))
def test_fields_are_those_that_were_written(cells: list[str]) -> None:
    line = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    assert records.fields(line, ",") == cells


@given(st.lists(st.text(st.sampled_from("ab é"), max_size=5), min_size=1, max_size=30), st.data())
def test_single_lines_are_found(lines: list[str], data: st.DataObject) -> None:
    wanted = sorted(data.draw(st.sets(st.integers(0, len(lines) - 1))))
    stretch, records._STRETCH = records._STRETCH, data.draw(st.integers(1, 50))
    try:
        found = records.texts_of_lines("\r\n".join(lines).encode(), wanted)
    finally:
        records._STRETCH = stretch
    assert found == {at: lines[at] for at in wanted}

"""Every kind of file, and every way in which one can be wrong: what it becomes, or what is said of it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import AT
from pyarrow import ipc

from turnout.common.errors import Invalid
from turnout.common.events import RawDataExtracted, SourceDataAvailable
from turnout.common.lake.local import LocalLake
from turnout.common.pipeline import PipelineFile
from turnout.ingestion.adapters import extraction, files
from turnout.ingestion.adapters.extraction import extract
from turnout.ingestion.ports import Limits, Task

CSV = b"id,n,c\n1,1.5,x\n2,,y\n"


def run(
    path: Path | str, *, lake: LocalLake | None = None, limits: Limits | None = None, **spec: Any
) -> RawDataExtracted:
    folder = Path(str(path).split("*", maxsplit=1)[0]).parent
    file = PipelineFile.model_validate({"pipeline": "p", "task": "features", **spec})
    event = SourceDataAvailable.first(source="/test", at=AT, pipeline="p", uri=str(path))
    return extract(lake or LocalLake(folder / "lake"), Task(event, file, "spec", (folder,), AT, limits or Limits()))


def rows(path: Path, event: RawDataExtracted, at: int = 0) -> list[dict[str, Any]]:
    return LocalLake(path.parent / "lake").read(event.batches[at].data).to_pylist()


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


WHOLE = [{"id": 1.0, "n": 1.5, "c": "x", "_row": 2}, {"id": 2.0, "n": None, "c": "y", "_row": 3}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", CSV),
        ("without-last-line-end.csv", CSV[:-1]),
        ("windows.csv", CSV.replace(b"\n", b"\r\n")),
        ("old-mac.csv", CSV.replace(b"\n", b"\r")),
        ("byte-order-mark.csv", b"\xef\xbb\xbf" + CSV),
        ("spaces.csv", b"id, n , c\n1, 1.5 , x \n2, , y\n"),
        ("semicolons.csv", CSV.replace(b",", b";")),
        ("tabs.tsv", CSV.replace(b",", b"\t")),
        ("bars.txt", CSV.replace(b",", b"|")),
        ("quoted.csv", b'"id","n","c"\n"1","1.5","x"\n"2","","y"\n'),
        ("packed.csv.gz", gzip.compress(CSV, mtime=0)),
        ("two-members.csv.gz", gzip.compress(CSV[:9], mtime=0) + gzip.compress(CSV[9:], mtime=0)),
        ("packed.csv.bz2", bz2.compress(CSV)),
        ("packed.csv.xz", lzma.compress(CSV)),
        ("packed.csv.zst", pa.compress(CSV, "zstd", asbytes=True)),
        ("no ending", CSV),
        ("categories.csv", b"id,n,c\n1.0,1.5,  x\n2.,,y  \n"),
    ],
)
def test_csv_in_every_dress(tmp_path: Path, name: str, content: bytes) -> None:
    path = put(tmp_path, name, content)
    assert rows(path, run(path)) == WHOLE


def test_lines_and_quotes_in_fields(tmp_path: Path) -> None:
    path = put(tmp_path, "q.csv", b'id,c\n\n1,"a\nb"\n2,"say ""hi"""\n3,5" pipe\n"4\n",x\n5,y,z\n6\n7,last')
    event = run(path, limits=Limits(piece_bytes=5))

    assert [(r["_row"], r["c"]) for r in rows(path, event)] == [
        (3, "a\nb"), (5, 'say "hi"'), (6, '5" pipe'), (7, "x"), (11, "last"),
    ]  # fmt: skip
    assert event.batches[0].quarantine is not None
    assert LocalLake(tmp_path / "lake").read(event.batches[0].quarantine).to_pylist() == [
        {"_row": 9, "_reason": "3 fields instead of 2", "_text": "5,y,z"},
        {"_row": 10, "_reason": "1 fields instead of 2", "_text": "6"},
    ]


@pytest.mark.parametrize("piece", [1, 30, 10_000])
def test_pieces_give_the_same_as_the_whole(tmp_path: Path, piece: int) -> None:
    lines = [f"{i},{i / 7},c{i % 5},{'bad' if i % 31 == 30 else i}" for i in range(300)]
    path = put(tmp_path, "x.csv", "\n".join(["id,n,c,m", *lines]).encode())
    event = run(path, limits=Limits(piece_bytes=piece))

    assert (event.rows_read, event.rows_quarantined) == (300, 9)
    found = rows(path, event)
    assert [r["_row"] for r in found] == [i + 2 for i in range(300) if i % 31 != 30]
    assert found[5] == {"id": 5.0, "n": 5 / 7, "c": "c0", "m": 5.0, "_row": 7}


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "2.5", "-3e4"], "number"),
        (["1", "2", ""], "number"),
        (["007", "012", "100"], "category"),
        (["9007199254740993", "1", "2"], "category"),
        (["true", "false", "true"], "category"),
        (["2026-01-01", "2026/02/01", "2026-03-01 08:00"], "timestamp"),
        (["2026-01-01T00:00:00Z", "2026-01-01T00:00:00+02:00"], "timestamp"),
        (["", "", ""], "category"),
        (["a", "1", "2"], "category"),
        ([*map(str, range(60)), "oops"], "number"),
    ],
)
def test_kinds_are_told_from_the_cells(tmp_path: Path, cells: list[str], kind: str) -> None:
    path = put(tmp_path, "k.csv", ("c,d\n" + "\n".join(f"{cell},x" for cell in cells)).encode())
    event = run(path)
    assert event.columns[0].kind == kind
    assert event.rows_quarantined == ("oops" in cells)


def table() -> pa.Table:
    return pa.table(
        {
            "i": pa.array([1, 2, None], pa.int16()),
            "f": [1.5, float("nan"), float("inf")],
            "b": [True, False, None],
            "s": ["x", " 63.0 ", ""],
            "d": pa.array(["x", "y", "x"]).dictionary_encode(),
            "t": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * 3, pa.timestamp("ns", "Europe/Zurich")),
            "day": pa.array([date(2026, 1, 1)] * 3),
            "money": pa.array(["1.25", "2.50", None]).cast(pa.decimal128(10, 2)),
            "big": pa.array([2**60, 1, 2]),
        }
    )


def write_parquet(path: Path) -> None:
    pq.write_table(table(), path)


def write_file(path: Path) -> None:
    with ipc.new_file(path, table().schema) as writer:
        writer.write_table(table())


def write_stream(path: Path) -> None:
    with ipc.new_stream(path, table().schema) as writer:
        writer.write_table(table())


@pytest.mark.parametrize(
    ("write", "name"),
    [(write_parquet, "x.parquet"), (write_parquet, "x"), (write_file, "x.arrow"), (write_stream, "x.arrow")],
)
def test_typed_columns(tmp_path: Path, write: Any, name: str) -> None:
    path = tmp_path / name
    write(path)
    event = run(path)

    assert {c.name: c.kind for c in event.columns} == {
        "i": "number", "f": "number", "b": "category", "s": "category", "d": "category", "t": "timestamp",
        "day": "timestamp", "money": "number", "big": "category",
    }  # fmt: skip
    first, second = rows(path, event)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert first == {
        "i": 1.0, "f": 1.5, "b": "true", "s": "x", "d": "x", "t": moment, "day": moment, "money": 1.25,
        "big": str(2**60), "_row": 1,
    }  # fmt: skip
    assert (second["f"], second["s"], second["b"]) == (None, "63", "false")
    assert event.batches[0].quarantine is not None
    (refused,) = LocalLake(tmp_path / "lake").read(event.batches[0].quarantine).to_pylist()
    assert (refused["_row"], refused["_reason"][:8]) == (3, "f: inf i")


def test_parquet_in_pieces_and_packed(tmp_path: Path) -> None:
    many = pa.table({"n": list(range(10_000)), "c": ["x" * (i % 50) for i in range(10_000)]})
    pq.write_table(many, tmp_path / "x.parquet", row_group_size=700)
    packed = put(tmp_path, "y.parquet.gz", gzip.compress((tmp_path / "x.parquet").read_bytes()))
    event = run(packed, limits=Limits(piece_bytes=5_000))

    found = rows(packed, event)
    assert [r["_row"] for r in found] == list(range(1, 10_001))
    assert found[77] == {"n": 77.0, "c": "x" * 27, "_row": 78}


@pytest.mark.parametrize("piece", [2**16, 2**24])
def test_json_lines(tmp_path: Path, piece: int) -> None:
    lines = [
        '{"n": 1, "c": "x", "t": "2026-01-01"}', "", '{"n": null, "c": true, "more": 1}', "not json", "[1]",
        '{"n": "oops", "c": "y"}', '{"n": 1e999, "c": "z"}', '{"n": {"a": 1}}', '{"n": NaN}', '{"n": 7}',
        *['{"n": 2, "c": "é"}'] * 40,
    ]  # fmt: skip
    path = put(tmp_path, "x.jsonl", "\n".join(lines).encode())
    event = run(path, limits=Limits(piece_bytes=piece))

    found = rows(path, event)
    assert [r["_row"] for r in found[:3]] == [1, 3, 10]
    assert found[1] == {"n": None, "c": "true", "t": None, "more": 1.0, "_row": 3}
    assert found[-1]["c"] == "é"
    assert event.batches[0].quarantine is not None
    refused = LocalLake(tmp_path / "lake").read(event.batches[0].quarantine).to_pylist()
    assert [r["_row"] for r in refused] == [4, 5, 6, 7, 8, 9]
    assert refused[2]["_text"] == '{"n": "oops", "c": "y"}'


def test_json_array_larger_than_a_block(tmp_path: Path) -> None:
    items = ",\n ".join(f'{{"n": {i}, "c": "é{i % 3}"}}' for i in range(60_000))
    path = put(tmp_path, "x.json", f"[{items}]\n".encode())
    event = run(path)

    found = rows(path, event)
    assert (len(found), found[-1]) == (60_000, {"n": 59_999.0, "c": "é2", "_row": 60_000})


def nested(path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "l": [[1, 2]], "s": [{"x": 1}]}), path)


def bomb(path: Path) -> None:
    codes = pa.array(np.zeros(100_000, np.int32))
    column = pa.DictionaryArray.from_arrays(codes, pa.array(["x" * 8_000]))
    pq.write_table(pa.table({"a": column}), path, compression="gzip")


def cut_parquet(path: Path) -> None:
    write_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def torn_parquet(path: Path) -> None:
    pq.write_table(pa.table({"a": list(range(50_000))}), path)
    content = bytearray(path.read_bytes())
    content[1_000:90_000] = os.urandom(89_000)
    path.write_bytes(bytes(content))


def large_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 2_000_000))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "the file is empty"),
        ("blank.csv", b"\n\n\r\n", "holds no line"),
        ("header.csv", b"a,b,c\n", "a header and no row"),
        ("header-no-end.csv", b"a,b,c", "a header and no row"),
        ("twice.csv", b"a,b,a,b\n1,2,3,4\n", "'a', 'b' stands there more than once"),
        ("headerless.csv", b"1,2.5,x\n2,3.5,y\n3,4.5,z\n", "looks like data"),
        ("texts.csv", b"39,clerk,single\n40,cook,married\n41,clerk,single\n39,clerk,x\n", "looks like data"),
        ("numbers.csv", b"1,2,3\n4,5,6\n", "looks like data"),
        ("dates.csv", b"2026-01-01,1.5,x\n2026-01-02,2.5,y\n", "looks like data"),
        ("ours.csv", b"a,_row\n1,2\n", "used by Turnout itself"),
        ("control.csv", b'"a\nb",c\n1,2\n', "control character"),
        ("long.csv", b"x" * 300 + b",b\n1,2\n", "a name of 300 characters"),
        ("utf16.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("latin-header.csv", "größe,b\n1,2\n".encode("latin-1"), "save the file as UTF-8"),
        ("latin-rows.csv", "a,b\ngröße,1\n".encode("latin-1"), "none of its 1 rows fits.*not UTF-8 text"),
        ("binary.csv", b"\x00\x01\x02\n\x00", "it is no text"),
        ("open-quote.csv", b'a,b\n1,"x\n2,y\n3,z\n', "open-quote.csv: line 2: a quote is opened here and never closed"),
        ("zip.csv", b"PK\x03\x04....", "zip archive"),
        ("cut.csv.gz", gzip.compress(CSV * 1000, mtime=0)[:-20], "cut off or damaged"),
        ("cut.csv.bz2", bz2.compress(CSV * 1000)[:-20], "cut off or damaged"),
        ("cut.csv.xz", lzma.compress(CSV * 1000)[:-20], "cut off or damaged"),
        ("cut.csv.zst", pa.compress(CSV * 1000, "zstd", asbytes=True)[:-20], "cut off or damaged"),
        ("flipped.csv.gz", gzip.compress(CSV * 1000, mtime=0)[:50] + b"\xff" * 30, "cut off or damaged"),
        ("large.csv.gz", large_gzip, "unpack to more than"),
        ("no.parquet", CSV, "not a Parquet file"),
        ("cut.parquet", cut_parquet, "not a Parquet file"),
        ("torn.parquet", torn_parquet, "a damaged one"),
        ("bomb.parquet", bomb, "decode to more than"),
        ("nested.parquet", nested, r"'l' \(list.*'s' \(struct"),
        ("no.arrow", CSV, "not an Arrow file"),
        ("empty.json", b"  \n", "no JSON object"),
        ("text.json", b"hello\nworld\n", "no JSON object"),
        ("cut.json", b'[{"a": 1}, {"a": 2', "cut off"),
        ("nested.jsonl", b'{"a": {"b": 1}}\n{"a": {"b": 2}}\n', "its values are nested"),
        ("latin.json", '[{"a": "größe"}]'.encode("latin-1"), "not UTF-8"),
    ],
)
def test_wrong_files_are_refused_and_leave_nothing(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    limits = Limits(expansion_floor=2**20)
    with pytest.raises(Invalid, match=message) as caught:
        run(path, limits=limits)
    assert path.name in str(caught.value)
    assert not [p for p in (tmp_path / "lake").rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"source": {"label": "nn"}}, r"source.label: unknown column 'nn'; did you mean 'n'"),
        ({"source": {"entity": "idd"}}, "source.entity: unknown column 'idd'; did you mean 'id'"),
        ({"source": {"event_time": "when"}}, "source.event_time: unknown column 'when'"),
        ({"source": {"partition_by": ["cc"]}}, "source.partition_by"),
        ({"schema": {"id": "number", "m": "number"}}, "schema: unknown column 'm'"),
        ({"source": {"columns": ["a", "b"]}}, "2 names, but x.csv has 3 columns"),
        ({"source": {"delimiter": "é"}}, "cannot delimit"),
        ({"source": {"format": "parquet"}}, "not a Parquet file"),
    ],
)
def test_specs_that_do_not_fit_the_data(tmp_path: Path, spec: Mapping[str, Any], message: str) -> None:
    path = put(tmp_path, "x.csv", CSV)
    with pytest.raises(Invalid, match=message):
        run(path, **spec)


def test_header_that_stands_there_again_is_no_row(tmp_path: Path) -> None:
    path = put(tmp_path, "x.csv", CSV + b"".join(b"%d,1,z\n" % i for i in range(40)) + CSV)
    assert (run(path).rows_written, run(path).rows_quarantined) == (44, 1)


def test_declared_kinds_are_enforced(tmp_path: Path) -> None:
    path = put(tmp_path, "x.csv", CSV + b"3,4,5\n")
    event = run(path, schema={"id": "category", "c": "number"}, source={"null_values": ["x"]})

    assert [(r["id"], r["c"]) for r in rows(path, event)] == [("1", None), ("3", 5.0)]
    assert event.rows_quarantined == 1


def test_later_files_keep_the_first_schema(tmp_path: Path) -> None:
    lake = LocalLake(tmp_path / "lake")
    run(put(tmp_path, "a.csv", CSV), lake=lake)
    later = put(tmp_path, "b.csv", b"c,new,n,id\nz,9,x,5\nz,9,2.0,6\n")
    event = run(later, lake=lake)

    assert [c.name for c in event.columns] == ["id", "n", "c"]
    assert rows(later, event) == [{"id": 6.0, "n": 2.0, "c": "z", "_row": 3}]
    assert event.rows_quarantined == 1
    assert [(w.code, w.column) for w in event.warnings] == [("extra_column", "new"), ("quarantined", None)]
    with pytest.raises(Invalid, match="the file lacks 'n', which the pipeline has; one of: c, id, m"):
        run(put(tmp_path, "c.csv", b"id,m,c\n1,2,x\n"), lake=lake)


def test_folders_and_globs_are_one_announcement(tmp_path: Path) -> None:
    folder = tmp_path / "many" / "deep"
    folder.mkdir(parents=True)
    for name, content in (("a.csv", CSV), ("b.csv", CSV + b"3,4,z\n"), ("copy.csv", CSV), (".hidden", b"x")):
        put(folder, name, content)
    event = run(folder.parent, lake=LocalLake(tmp_path / "lake"))
    assert [Path(b.uri).name for b in event.batches] == ["a.csv", "b.csv"]
    assert (event.rows_read, event.rows_written) == (5, 5)
    again = run(folder / "[ab].csv", lake=LocalLake(tmp_path / "lake"))
    assert again.batches == event.batches
    with pytest.raises(Invalid, match="no file matches"):
        run(folder / "*.json", lake=LocalLake(tmp_path / "lake"))


def test_partitions(tmp_path: Path) -> None:
    path = put(tmp_path, "x.csv", CSV)
    event = run(path, source={"partition_by": ["c"]})
    assert sorted(rows(path, event), key=lambda r: r["_row"]) == WHOLE
    assert list((tmp_path / "lake").rglob("c=x"))


def test_unnamed_column_and_many_columns(tmp_path: Path) -> None:
    wide = [f"c{i}" for i in range(10_000)]
    path = put(tmp_path, "x.csv", ("," + ",".join(wide) + "\n" + ",".join(["1"] * 10_001) + "\n").encode())
    event = run(path)
    assert (len(event.columns), event.columns[0].name) == (10_001, "column 1")
    assert [w.code for w in event.warnings] == ["unnamed_column"]


def test_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = put(tmp_path, "x.csv", CSV)
    file = files.examine(path, None, Limits())
    with pytest.raises(Invalid, match="changed while it was read"), file.open():
        path.write_bytes(CSV + b"3,4,z\n")
    path.unlink()
    with pytest.raises(Invalid, match="changed while it was read"), file.open():
        pass


def test_roots(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    path = put(inside, "a b.csv", CSV)
    (inside / "link.csv").symlink_to("/etc/hostname")
    (inside / "up").symlink_to("/etc")
    assert files.find(path.as_uri(), [inside]) == [path]
    for uri in (
        "/etc/hostname", f"{inside}/../../../etc/hostname", f"{inside}/link.csv", f"{inside}/up/hostname",
        f"{inside}/up/host*", "/etc/*", f"file://{tmp_path}/nothing",
    ):  # fmt: skip
        with pytest.raises(Invalid, match="outside the folders"):
            files.find(uri, [inside])
    for uri, message in {
        "https://example.org/x.csv": "https:// cannot be read yet",
        "file://host/x.csv": "another machine",
        f"{inside}/a.csv": "did you mean 'a b.csv'",
        f"{inside}/\0": "NUL",
    }.items():
        with pytest.raises(Invalid, match=message):
            files.find(uri, [inside])


class Died(BaseException):
    pass


@pytest.mark.parametrize(
    "point", ["ingestion-rows-written", "ingestion-quarantine-committed", "ingestion-batch-committed"]
)
def test_dying_between_two_steps_and_running_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    put(folder, "a.csv", CSV + b"x,2,3\n" + CSV[7:] * 20)
    put(folder, "b.csv", CSV + b"x,2,4\n" + CSV[7:] * 20)
    lake = LocalLake(tmp_path / "lake")
    expected = run(folder, lake=LocalLake(tmp_path / "other"))

    def die(name: str) -> None:
        if name == point:
            raise Died

    monkeypatch.setattr(extraction, "crash_point", die)
    with pytest.raises(Died):
        run(folder, lake=lake)
    monkeypatch.undo()
    event = run(folder, lake=lake)

    assert event.batches == expected.batches
    assert (event.rows_read, event.rows_quarantined) == (86, 2)
    for batch in event.batches:
        assert batch.quarantine is not None
        assert lake.read(batch.data).num_rows + lake.read(batch.quarantine).num_rows == batch.rows_read

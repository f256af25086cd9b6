"""What every lake keeps; the fixture's parameters are the adapters."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import sleep

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from builders import AT, raw_extracted

from turnout.common.errors import Invalid, Unknown
from turnout.common.events import DataSetRef, ModelFile, RawDataExtracted
from turnout.common.lake.local import LocalLake
from turnout.common.lake.port import Lake, Manifest

SCHEMA = pa.schema(
    [
        ("a", pa.float64()),
        ("c", pa.string()),
        ("t", pa.timestamp("us", "UTC")),
        ("_row", pa.int64()),
    ]
)


@pytest.fixture(params=["local"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    match request.param:
        case "local":
            return LocalLake(tmp_path / "lake")
        case other:
            raise AssertionError(other)


def ref(ident: str = "x", kind: str = "raw", pipeline: str = "p") -> DataSetRef:
    return DataSetRef.model_validate({"kind": kind, "pipeline": pipeline, "id": ident})


def table(start: int, rows: int) -> pa.Table:
    numbers = list(range(start, start + rows))
    return pa.table(
        {
            "a": [None if n % 7 == 0 else n / 2 for n in numbers],
            "c": [None if n % 5 == 0 else f"c{n % 3}" for n in numbers],
            "t": [AT + timedelta(microseconds=n) for n in numbers],
            "_row": numbers,
        },
        schema=SCHEMA,
    )


def write(
    lake: Lake, *tables: pa.Table, to: DataSetRef | None = None, at: datetime = AT, **options: object
) -> Manifest:
    partition_by = options.pop("partition_by", ())
    with lake.writer(to or ref(), SCHEMA, partition_by=partition_by) as writer:  # pyright: ignore[reportArgumentType]
        for each in tables:
            writer.write(each)
        return writer.commit(lineage={"from": "test"}, at=at, **options)  # pyright: ignore[reportArgumentType]


def test_what_is_committed_is_read_back_in_order(lake: Lake) -> None:
    manifest = write(lake, table(0, 10), table(10, 5).to_batches()[0])

    assert lake.read(ref()) == table(0, 15)
    assert lake.schema(ref()) == SCHEMA
    assert lake.manifest(ref()) == manifest
    assert (manifest.rows, manifest.lineage) == (15, {"from": "test"})
    assert sum(f.rows for f in manifest.files) == 15


def test_nothing_is_there_before_the_commit_or_without_it(lake: Lake) -> None:
    with lake.writer(ref(), SCHEMA) as writer:
        writer.write(table(0, 10))
        assert lake.manifest(ref()) is None
    assert lake.manifest(ref()) is None
    with pytest.raises(ZeroDivisionError), lake.writer(ref(), SCHEMA) as writer:
        writer.write(table(0, 10 // 0))
    with pytest.raises(Unknown, match="unknown raw data set of p 'x'"):
        lake.scan(ref())
    assert lake.sweep(datetime.now(UTC) + timedelta(days=1)) == 0


def test_empty_data_set_has_columns(lake: Lake) -> None:
    write(lake)

    assert lake.read(ref()) == table(0, 0)
    assert lake.schema(ref()) == SCHEMA


def test_other_columns_are_refused(lake: Lake) -> None:
    with lake.writer(ref(), SCHEMA) as writer, pytest.raises(Invalid, match="are not the data set's"):
        writer.write(table(0, 3).drop_columns("a"))


def test_first_manifest_wins(lake: Lake) -> None:
    with lake.writer(ref(), SCHEMA) as slow:
        slow.write(table(100, 3))
        fast = write(lake, table(0, 10))
        assert slow.commit(lineage={}, at=AT) == fast

    assert lake.read(ref()) == table(0, 10)
    assert lake.sweep(datetime.now(UTC) + timedelta(days=1)) == 0


def test_many_writers_at_once_make_one_data_set(lake: Lake) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: write(lake, table(number, 5)), range(16)))

    assert {m.model_dump_json() for m in found} == {found[0].model_dump_json()}
    first = lake.read(ref())["_row"][0].as_py()
    assert lake.read(ref()) == table(first, 5)


def test_manifest_carries_the_event(lake: Lake) -> None:
    event = raw_extracted()
    manifest = write(lake, table(0, 1), event=event)

    assert manifest.topic == "RawDataExtracted"
    assert RawDataExtracted.model_validate_json(manifest.event or "") == event


def test_columns_and_filter_are_pushed_down(lake: Lake) -> None:
    write(lake, table(0, 1000))

    found = lake.read(ref(), columns=["_row"], where=pc.field("_row") >= 990)

    assert found.to_pydict() == {"_row": list(range(990, 1000))}
    with pytest.raises(Unknown, match="did you mean '_row'"):
        list(lake.scan(ref(), columns=["_rov"]))
    with pytest.raises(Invalid):
        list(lake.scan(ref(), where=pc.field("nowhere") == 1))


def test_filter_reads_less_than_everything(lake: Lake, tmp_path: Path) -> None:
    manifest = write(lake, *(table(n * 100_000, 100_000) for n in range(4)))
    with pq.ParquetFile(next(tmp_path.rglob("part-*.parquet"))) as file:
        assert file.num_row_groups > 1
        statistics = file.metadata.row_group(0).column(3).statistics
    assert (statistics.min, manifest.rows) == (0, 400_000)


def test_partitions_are_folders_and_keep_every_value(lake: Lake, tmp_path: Path) -> None:
    odd = ["a/b", "", "..", "ü=1", "a%2Fb", " x\n", None, "plain"]
    rows = pa.table(
        {"a": [1.5] * 16, "c": odd * 2, "t": [AT] * 16, "_row": list(range(16))}, schema=SCHEMA
    )  # fmt: skip
    write(lake, rows, partition_by=("c", "t"))

    assert lake.schema(ref()) == SCHEMA
    found = lake.read(ref())
    assert found.sort_by("_row") == rows
    for value in odd:
        where = pc.field("c").is_null() if value is None else pc.field("c") == value
        (index,) = [i for i, v in enumerate(odd) if v == value]
        assert lake.read(ref(), columns=["_row"], where=where)["_row"].to_pylist() == [index, index + 8]
    assert list(tmp_path.rglob("c=plain"))


def test_too_many_partitions_are_refused(lake: Lake) -> None:
    with pytest.raises(Invalid, match="more than 1000 different values"):
        write(lake, table(0, 2_000), partition_by=("_row",))
    with pytest.raises(Unknown, match="unknown column 'd'"):
        write(lake, table(0, 1), partition_by=("d",))
    long = table(1, 1).set_column(1, "c", [["x" * 300]])
    with pytest.raises(Invalid, match="too long"):
        write(lake, long, partition_by=("c",))
    assert lake.manifest(ref()) is None


def test_rows_of_parts_come_first(lake: Lake) -> None:
    write(lake, table(0, 3), to=ref("a"))
    write(lake, table(3, 3), to=ref("b"))
    manifest = write(lake, to=ref("ab", "features"), parts=[ref("a"), ref("b")])

    assert (manifest.rows, manifest.files) == (6, ())
    assert lake.read(ref("ab", "features")) == table(0, 6)
    assert lake.schema(ref("ab", "features")) == SCHEMA
    assert lake.read(ref("ab", "features"), columns=["a"], where=pc.field("_row") > 4).num_rows == 1
    with pytest.raises(Unknown):
        write(lake, to=ref("none", "features"), parts=[ref("c")])


def test_manifests_are_listed_by_time(lake: Lake) -> None:
    for ident, hour in (("b", 2), ("a", 1), ("c", 3), ("d", 1)):
        write(lake, to=ref(ident), at=AT + timedelta(hours=hour))

    assert [m.ref.id for m in lake.manifests("raw", "p")] == ["a", "d", "b", "c"]
    assert list(lake.manifests("raw", "q")) == []
    assert list(lake.manifests("split", "p")) == []


def test_adopted_files_are_rows_in_order(lake: Lake) -> None:
    with lake.writer(ref(), SCHEMA) as writer:
        for start in (0, 5):
            path = writer.scratch() / f"{start}.parquet"
            pq.write_table(table(start, 5), path)
            writer.adopt(path)
        writer.write(table(10, 2))
        last = writer.scratch() / "last.parquet"
        pq.write_table(table(12, 1), last)
        writer.adopt(last)
        other = writer.scratch() / "other.parquet"
        pq.write_table(table(0, 1).drop_columns("c"), other)
        with pytest.raises(Invalid, match="are not the data set's"):
            writer.adopt(other)
        manifest = writer.commit(lineage={}, at=AT)

    assert manifest.rows == 13
    assert lake.read(ref()) == table(0, 13)


@pytest.mark.parametrize("partition_by", [(), ("c",)])
def test_scan_needs_little_memory_however_slow_its_reader_is(lake: Lake, partition_by: tuple[str, ...]) -> None:
    numbers = pa.array(range(1_000_000), pa.int64())
    whole = pa.table(
        {
            "a": numbers.cast(pa.float64()),
            "c": pa.array(["c"] * len(numbers)),
            "t": numbers.cast(SCHEMA.field("t").type),
            "_row": numbers,
        }
    )
    write(lake, whole, partition_by=partition_by)
    size, before = whole.nbytes, pa.total_allocated_bytes()
    peak = rows = 0
    for batch in lake.scan(ref(), where=pc.field("_row") >= 0):
        rows += batch.num_rows
        peak = max(peak, _settled() - before)
        del batch

    assert rows == 1_000_000
    assert peak < size / 4


def _settled() -> int:
    """Bytes allocated once nothing is read any more, for as long as a reader sleeps."""
    now = pa.total_allocated_bytes()
    while True:
        before = now
        sleep(0.03)
        now = pa.total_allocated_bytes()
        if now <= before:
            return now


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "x\0", "-x" * 200, "a b"])
def test_names_cannot_leave_the_lake(lake: Lake, name: str) -> None:
    for bad in (
        DataSetRef.model_construct(kind="raw", pipeline="p", id=name),
        DataSetRef.model_construct(kind="raw", pipeline=name, id="x"),
        DataSetRef.model_construct(kind=name, pipeline="p", id="x"),
    ):
        with pytest.raises(Invalid):
            lake.manifest(bad)
        with pytest.raises(Invalid), lake.writer(bad, SCHEMA):
            pass
    for call in (lake.remove, lambda n: lake.put_model(n, b""), lambda n: lake.manifests("raw", n)):
        with pytest.raises(Invalid):
            call(name)


def test_model_files(lake: Lake) -> None:
    file = lake.put_model("p", b"onnx")

    assert lake.put_model("p", b"onnx") == file
    assert lake.get_model(file) == b"onnx"
    assert file.size == 4
    for bad in (
        file.model_copy(update={"uri": "models/../../etc/passwd"}),
        file.model_copy(update={"uri": "/etc/passwd"}),
        file.model_copy(update={"uri": "models/q/" + "0" * 64 + ".onnx"}),
        file.model_copy(update={"sha256": "0" * 64}),
        ModelFile(uri="https://example.org/x.onnx", sha256=file.sha256, size=4),
    ):
        with pytest.raises(Invalid):
            lake.get_model(bad)


@pytest.mark.parametrize("partition_by", [(), ("c",)])
def test_erased_rows_are_gone_and_the_manifest_is_right(
    lake: Lake, tmp_path: Path, partition_by: tuple[str, ...]
) -> None:
    write(lake, table(0, 100), partition_by=partition_by, event=raw_extracted())
    write(lake, table(100, 10), to=ref("other"))
    write(lake, to=ref("both", "features"), parts=[ref(), ref("other")])
    matching = table(0, 100).filter(pc.field("c") == "c1").num_rows

    assert lake.erase(ref(), pc.field("c") == "c1") == matching
    assert lake.erase(ref(), pc.field("c") == "c1") == 0

    manifest = lake.manifest(ref())
    assert manifest is not None
    assert manifest.rows == sum(f.rows for f in manifest.files) == 100 - matching
    assert manifest.event is not None
    left = lake.read(ref()).sort_by("_row")
    assert left["_row"].to_pylist() == [n for n in range(100) if n % 5 == 0 or n % 3 != 1]
    assert b"c1" not in b"".join(p.read_bytes() for p in tmp_path.rglob("x/*/**/*.parquet"))
    assert lake.erase(ref("both", "features"), pc.field("_row") == 105) == 1
    both = lake.manifest(ref("both", "features"))
    assert both is not None
    assert both.rows == lake.read(ref("both", "features")).num_rows == 109 - matching
    with pytest.raises(Invalid):
        lake.erase(ref(), pc.field("nowhere") == 1)


def test_removed_pipeline_is_gone_and_others_stay(lake: Lake) -> None:
    write(lake, table(0, 1))
    write(lake, table(0, 1), to=ref(pipeline="q"))
    file = lake.put_model("p", b"onnx")

    lake.remove("p")
    lake.remove("p")

    assert lake.manifest(ref()) is None
    assert list(lake.manifests("raw", "p")) == []
    assert lake.read(ref(pipeline="q")).num_rows == 1
    with pytest.raises(Invalid):
        lake.get_model(file)
    assert write(lake, table(0, 2)).rows == 2


def test_removal_leaves_what_came_later(lake: Lake) -> None:
    write(lake, table(0, 1), to=ref("old"), at=AT)
    write(lake, table(0, 1), to=ref("new"), at=AT + timedelta(hours=2))

    lake.remove("p", AT + timedelta(hours=1))

    assert [m.ref.id for m in lake.manifests("raw", "p")] == ["new"]


def test_lake_crosses_a_process_border(lake: Lake) -> None:
    write(lake, table(0, 3))

    assert pickle.loads(pickle.dumps(lake)).read(ref()) == table(0, 3)

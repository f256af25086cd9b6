"""What every lake keeps; the fixture's parameters are the adapters."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import sleep
from uuid import uuid4

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from builders import AT, raw_extracted
from pydantic import SecretStr

from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import DataSetRef, ModelFile, RawDataExtracted
from turnout.common.lake.bucket import PIECE, Bucket
from turnout.common.lake.local import LocalLake
from turnout.common.lake.port import Lake, Manifest
from turnout.common.lake.s3 import S3Lake
from turnout.common.lake.settings import LakeSettings
from turnout.devstack.server import free_port
from turnout.devstack.stack import Stack
from turnout.devstack.web import s3

SCHEMA = pa.schema(
    [
        ("a", pa.float64()),
        ("c", pa.string()),
        ("t", pa.timestamp("us", "UTC")),
        ("_row", pa.int64()),
    ]
)


def bucket_at(endpoint: str) -> LakeSettings:
    """A bucket of its own."""
    name = f"lake-{uuid4().hex}"
    settings = LakeSettings(
        uri=f"s3://{name}/in/here", endpoint=endpoint, access_key="any", secret_key=SecretStr("any")
    )
    Bucket(settings)._client.create_bucket(Bucket=name)
    return settings


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.stack)])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    match request.param:
        case "local":
            return LocalLake(tmp_path / "lake")
        case "s3":
            return S3Lake(bucket_at(request.getfixturevalue("stack").s3), tmp_path / "staging")
        case other:
            raise AssertionError(other)


@pytest.fixture
def stored(lake: Lake, tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """Every file that is there now, by its name from the lake's root on; staging counts too."""

    def files() -> dict[str, bytes]:
        there = {str(p.relative_to(tmp_path / "lake")): p for p in tmp_path.glob("lake/**/*") if p.is_file()}
        there |= {f"staging/{p.name}": p for p in tmp_path.glob("staging/**/*") if p.is_file()}
        found = {name: path.read_bytes() for name, path in there.items()}
        if isinstance(lake, S3Lake):
            for entry in lake._bucket.list(""):
                content = lake._bucket.get(entry.key)
                assert content is not None
                found[entry.key] = content.content
        return found

    return files


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


def test_filter_reads_less_than_everything(lake: Lake, stored: Callable[[], dict[str, bytes]]) -> None:
    manifest = write(lake, *(table(n * 100_000, 100_000) for n in range(4)))
    (content,) = (content for name, content in stored().items() if name.endswith(".parquet"))
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        assert file.num_row_groups > 1
        statistics = file.metadata.row_group(0).column(3).statistics
    assert (statistics.min, manifest.rows) == (0, 400_000)


def test_partitions_are_folders_and_keep_every_value(lake: Lake, stored: Callable[[], dict[str, bytes]]) -> None:
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
    assert any("/c=plain/" in name for name in stored())


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


# So many that what a reader holds at once is little beside them.
ROWS = 3_000_000


@pytest.mark.parametrize("partition_by", [(), ("c",)])
def test_scan_needs_little_memory_however_slow_its_reader_is(lake: Lake, partition_by: tuple[str, ...]) -> None:
    numbers = pa.array(range(ROWS), pa.int64())
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

    assert rows == ROWS
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
    lake: Lake, stored: Callable[[], dict[str, bytes]], partition_by: tuple[str, ...]
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
    left_there = [content for name, content in stored().items() if "/x/" in name and name.endswith(".parquet")]
    assert left_there
    assert b"c1" not in b"".join(left_there)
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


def test_the_newest_are_known_by_name(lake: Lake) -> None:
    assert lake.recent("raw", "p") == []
    for ident in ("old", "older"):
        write(lake, table(0, 1), to=ref(ident), at=AT - timedelta(days=len(ident)))
    assert [found.id for found in lake.recent("raw", "p")] == ["older", "old"], "nothing was committed as recent"
    for number in range(70):
        # The order is that of the commits, whatever the clocks of their writers say.
        write(lake, table(number, 1), to=ref(f"n{number}"), at=AT - timedelta(days=number), recent=True)
        write(lake, table(number, 1), to=ref(f"n{number}"), recent=True)
    write(lake, table(0, 1), to=ref("other"))
    assert lake.recent("raw", "p") == [ref(f"n{number}") for number in range(6, 70)]
    assert lake.recent("raw", "q") == lake.recent("features", "p") == []
    assert len(list(lake.manifests("raw", "p"))) == 73


def test_what_was_there_before_the_first_recent_one_stays_among_the_newest(lake: Lake) -> None:
    write(lake, table(0, 1), to=ref("old"))
    write(lake, table(0, 1), to=ref("new"), recent=True)
    assert lake.recent("raw", "p") == [ref("old"), ref("new")]


def test_two_that_are_committed_at_once_are_both_among_the_newest(lake: Lake) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: write(lake, table(n, 1), to=ref(f"n{n}"), recent=True), range(16)))
    assert {found.id for found in lake.recent("raw", "p")} == {f"n{n}" for n in range(16)}


def test_a_removed_pipelines_newest_are_gone_and_what_came_later_is_found(lake: Lake) -> None:
    write(lake, table(0, 1), to=ref("old"), at=AT, recent=True)
    lake.remove("p")
    assert lake.recent("raw", "p") == []
    write(lake, table(0, 1), to=ref("new"), at=AT + timedelta(hours=2), recent=True)
    lake.remove("p", AT + timedelta(hours=1))
    lake.sweep(datetime.now(UTC) + timedelta(hours=1))
    assert lake.recent("raw", "p") == [ref("new")]


def test_warmed_up_it_is_as_it_was(lake: Lake, stored: Callable[[], dict[str, bytes]]) -> None:
    lake.warm()
    lake.warm()
    assert stored() == {}


def test_lake_crosses_a_process_border(lake: Lake) -> None:
    write(lake, table(0, 3))

    assert pickle.loads(pickle.dumps(lake)).read(ref()) == table(0, 3)


def test_two_erasures_at_once_take_out_what_both_were_asked_for(lake: Lake) -> None:
    write(lake, table(0, 1_000))
    write(lake, to=ref("all", "features"), parts=[ref()])

    with ThreadPoolExecutor(4) as pool:
        gone = sum(pool.map(lambda n: lake.erase(ref("all", "features"), pc.field("_row") == n), range(4)))

    assert gone == 4
    for one in (ref(), ref("all", "features")):
        manifest = lake.manifest(one)
        assert manifest is not None
        assert (manifest.rows, lake.read(one)["_row"].to_pylist()[:2]) == (996, [4, 5])
    assert lake.sweep(datetime.now(UTC) + timedelta(days=1)) == 0


WRITER = """
import pickle, sys
from datetime import UTC, datetime
lake, ref, table = pickle.loads(sys.stdin.buffer.read())
with lake.writer(ref, table.schema) as writer:
    writer.write(table)
    writer.commit(lineage={}, at=datetime(2026, 3, 1, tzinfo=UTC))
"""
BEFORE = {"local": ["data-written", "data-flushed", "data-renamed", "manifest-written"],
          "s3": ["data-written", "data-uploading", "data-uploaded", "manifest-written"]}  # fmt: skip


@pytest.mark.parametrize("step", [0, 1, 2, 3, None])
def test_killed_writer_leaves_all_or_nothing_and_is_swept(
    lake: Lake, stored: Callable[[], dict[str, bytes]], step: int | None
) -> None:
    steps = BEFORE["s3" if isinstance(lake, S3Lake) else "local"]
    point = f"lake-{'committed' if step is None else steps[step]}"
    task = pickle.dumps((lake, ref(), table(0, 5)))
    environment = {**os.environ, "TURNOUT_CRASH_POINT": point}
    dead = subprocess.run([sys.executable, "-c", WRITER], input=task, env=environment, check=False)
    assert dead.returncode == -signal.SIGKILL

    left = stored()
    assert left
    if step is None:
        assert lake.read(ref()) == table(0, 5)
    else:
        assert lake.manifest(ref()) is None
        assert lake.sweep(datetime.now(UTC) - timedelta(hours=1)) == 0
        assert stored() == left
        write(lake, table(10, 5))
        assert lake.read(ref()) == table(10, 5)
    lake.sweep(datetime.now(UTC) + timedelta(days=1))
    manifest = lake.manifest(ref())
    assert manifest is not None
    expected = {f"raw/p/x/{name}" for name in ["manifest.json", *(f.path for f in manifest.files)]}
    assert set(stored()) == expected


def test_killed_before_it_exists_one_of_the_newest_is_a_name_of_nothing_until_it_is_written_again(lake: Lake) -> None:
    task = pickle.dumps((lake, ref(), table(0, 5)))
    environment = {**os.environ, "TURNOUT_CRASH_POINT": "lake-remembered"}
    recently = WRITER.replace("lineage={}", "lineage={}, recent=True")
    dead = subprocess.run([sys.executable, "-c", recently], input=task, env=environment, check=False)
    assert dead.returncode == -signal.SIGKILL
    assert lake.recent("raw", "p") == [ref()]
    assert lake.manifest(ref()) is None

    write(lake, table(0, 5), recent=True)
    assert lake.recent("raw", "p") == [ref()]
    assert lake.read(ref()) == table(0, 5)


CHANGER = """
import pickle, sys
import pyarrow.compute as pc
lake, ref, change = pickle.loads(sys.stdin.buffer.read())
lake.remove(ref.pipeline) if change == "remove" else lake.erase(ref, pc.field("_row") < 3)
"""


@pytest.mark.parametrize(("change", "point"), [("erase", "lake-erased"), ("remove", "lake-removing")])
def test_killed_change_is_whole_when_it_is_done_again(
    lake: Lake, stored: Callable[[], dict[str, bytes]], change: str, point: str
) -> None:
    write(lake, table(0, 5))
    environment = {**os.environ, "TURNOUT_CRASH_POINT": point}
    task = pickle.dumps((lake, ref(), change))
    dead = subprocess.run([sys.executable, "-c", CHANGER], input=task, env=environment, check=False)
    assert dead.returncode == -signal.SIGKILL

    if change == "erase":
        assert lake.read(ref()) == table(0, 5)
        assert lake.erase(ref(), pc.field("_row") < 3) == 3
        assert lake.read(ref()) == table(3, 2)
    else:
        assert lake.manifest(ref()) is None
        lake.remove("p")
    lake.sweep(datetime.now(UTC) + timedelta(days=1))
    manifest = lake.manifest(ref())
    named = [f"raw/p/x/{f.path}" for f in manifest.files] if manifest else []
    assert set(stored()) - {".lock"} == {*named, *(["raw/p/x/manifest.json"] if manifest else [])}


@pytest.mark.stack
def test_upload_that_a_dead_writer_began_is_given_up(stack: Stack, tmp_path: Path) -> None:
    settings = bucket_at(stack.s3)
    lake, bucket = S3Lake(settings, tmp_path), Bucket(settings)
    begun = {"Bucket": bucket.name, "Key": "in/here/raw/p/x/token/part-00000.parquet"}
    bucket._client.create_multipart_upload(**begun)

    assert lake.sweep(datetime.now(UTC) + timedelta(days=1)) == 1

    assert not bucket._client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")


@pytest.mark.stack
def test_file_larger_than_one_piece_is_the_same_file_there(stack: Stack, tmp_path: Path) -> None:
    bucket = Bucket(bucket_at(stack.s3))
    (tmp_path / "large").write_bytes(content := random.Random(7).randbytes(PIECE + 12_345_678))

    bucket.upload(tmp_path / "large", "large")

    found = bucket.get("large")
    assert found is not None
    assert found.content == content


def calls(lake: S3Lake) -> list[Callable[[], object]]:
    """Everything that asks the server for something."""
    file = ModelFile(uri=f"models/p/{'0' * 64}.onnx", sha256="0" * 64, size=4)
    return [
        lambda: lake.manifest(ref()),
        lambda: list(lake.manifests("raw", "p")),
        lambda: lake.recent("raw", "p"),
        lambda: write(lake, table(0, 1), recent=True),
        lake.warm,
        lambda: write(lake, table(0, 1)),
        lambda: lake.put_model("p", b"onnx"),
        lambda: lake.get_model(file),
        lambda: lake.remove("p"),
        lambda: lake.sweep(AT),
        lambda: lake._bucket.filesystem.get_file_info(lake._bucket.path("x")),
    ]


def failures(lake: S3Lake) -> list[str]:
    """What each of them raises, as it is written to a log."""
    found: list[str] = []
    for call in calls(lake):
        with pytest.raises(Unavailable) as caught, lake._reaching():
            call()
        found.append("".join(traceback.format_exception(caught.value)))
    return found


def test_server_that_is_away_is_named_soon(tmp_path: Path) -> None:
    at = f"http://127.0.0.1:{free_port()}"
    settings = LakeSettings(uri="s3://lake", endpoint=at, access_key="any", secret_key=SecretStr("s3cret"))
    lake = S3Lake(settings, tmp_path)
    for failure in failures(lake):
        assert f"the lake at {at}, bucket lake is not available: no answer" in failure
        assert "TURNOUT_LAKE_ENDPOINT" in failure
        assert "s3cret" not in failure


@pytest.mark.stack
def test_bucket_that_is_not_there_is_named(stack: Stack, tmp_path: Path) -> None:
    settings = LakeSettings(uri="s3://nobodys/x", endpoint=stack.s3, access_key="any", secret_key=SecretStr("any"))
    lake = S3Lake(settings, tmp_path)
    with pytest.raises(Unavailable, match=r"bucket nobodys is not available: there is no such bucket; .*TURNOUT_LAKE_"):
        lake.manifest(ref())
    with pytest.raises(Unavailable, match="no such bucket"):
        write(lake, table(0, 1))


@pytest.mark.stack
def test_wrong_key_is_named_by_its_setting_and_never_told(tmp_path: Path) -> None:
    server = s3(tmp_path / "server", free_port())
    server.start()
    try:
        server.wait()
        at = f"http://{server.address}"
        good = bucket_at(at)
        write(S3Lake(good, tmp_path / "staging"), table(0, 1))
        # From here on this server asks who is there.
        httpx.post(f"{at}/moto-api/reset-auth", content=b"0").raise_for_status()
        wrong = good.model_copy(update={"access_key": "AKIANOBODY", "secret_key": SecretStr("s3cret")})
        for failure in failures(S3Lake(wrong, tmp_path / "staging")):
            assert "refuses the key" in failure
            assert "TURNOUT_LAKE_SECRET_KEY" in failure
            assert "s3cret" not in failure
        assert "s3cret" not in repr(wrong)
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"uri": "gs://b/x"}, "TURNOUT_LAKE_URI: does not name a bucket"),
        ({"uri": "s3:///x"}, "TURNOUT_LAKE_URI: does not name a bucket"),
        ({"uri": "s3://[x"}, "TURNOUT_LAKE_URI: is no URI"),
        ({"uri": "s3://me:s3cret@b/x"}, "TURNOUT_LAKE_URI: holds a key; set TURNOUT_LAKE_ACCESS_KEY"),
        ({"uri": "s3://b/x?regoin=eu"}, "did you mean 'region'"),
        ({"uri": "s3://b", "endpoint": "ftp://x"}, "TURNOUT_LAKE_ENDPOINT: is no URL"),
        ({"uri": "s3://b", "endpoint": "http://me:s3cret@x"}, "TURNOUT_LAKE_ENDPOINT: is no URL"),
        ({"uri": "s3://b", "access_key": "AKIA"}, "go together"),
        ({"uri": "s3://b", "secret_key": "s3cret"}, "go together"),
    ],
)
def test_wrong_settings_are_refused_and_not_repeated(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(Invalid, match=message) as caught:
        S3Lake(LakeSettings.model_validate(settings), tmp_path)
    assert "s3cret" not in str(caught.value)


@pytest.mark.stack
def test_server_and_region_can_stand_in_the_uri(stack: Stack, tmp_path: Path) -> None:
    settings = bucket_at(stack.s3)
    host = stack.s3.removeprefix("http://")
    uri = f"{settings.uri}?endpoint_override={host}&scheme=http&region=eu-west-1"
    lake = S3Lake(settings.model_copy(update={"uri": uri, "endpoint": None}), tmp_path)

    write(lake, table(0, 3))

    assert S3Lake(settings, tmp_path).read(ref()) == table(0, 3)

"""Whatever is written, erased, removed, and wherever the process dies: what a manifest names is whole."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from turnout.common.events import DataSetRef
from turnout.common.lake import local
from turnout.common.lake.local import LocalLake, LocalWriter

AT = datetime(2026, 3, 1, tzinfo=UTC)
SCHEMA = pa.schema([("c", pa.string()), ("_row", pa.int64())])
IDS = st.sampled_from(["a", "b"])
BEFORE = ["lake-data-written", "lake-data-flushed", "lake-data-renamed", "lake-manifest-written"]
REMEMBERED = "lake-remembered"
CRASHES = st.sampled_from([None, None, *BEFORE, REMEMBERED, "lake-committed"])


class Died(BaseException):
    """The process is gone: nothing of it runs any more, not even its clean-up."""


@contextmanager
def dying_at(name: str | None):
    def die(point: str) -> None:
        if point == name:
            raise Died

    crash_point, close = local.crash_point, LocalWriter.close
    local.crash_point = die
    LocalWriter.close = lambda self: close(self) if name is None else None
    try:
        yield
    except Died:
        pass
    finally:
        local.crash_point, LocalWriter.close = crash_point, close


class LakeMachine(RuleBasedStateMachine):
    """The lake beside a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lake-"))
        self.lake = LocalLake(self.folder)
        self.expected: dict[str, list[tuple[str, int]]] = {}
        self.recent: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(
        ident=IDS,
        values=st.lists(st.sampled_from(["x", "y/z", ""]), max_size=6),
        crash=CRASHES,
        split=st.booleans(),
        recent=st.booleans(),
    )
    def write(self, ident: str, values: list[str], crash: str | None, split: bool, recent: bool) -> None:
        rows = list(zip(values, range(len(values)), strict=True))
        table = pa.table([[c for c, _ in rows], [n for _, n in rows]], schema=SCHEMA)
        with dying_at(crash), self.lake.writer(ref(ident), SCHEMA, partition_by=("c",) if split else ()) as writer:
            writer.write(table)
            writer.commit(lineage={}, at=AT, recent=recent)
        if crash in BEFORE or (recent and crash == REMEMBERED):
            return
        self.expected.setdefault(ident, sorted(rows))
        self.recent |= {ident} if recent else set()

    @rule(ident=IDS)
    def leave_without_commit(self, ident: str) -> None:
        with self.lake.writer(ref(ident), SCHEMA) as writer:
            writer.write(pa.table([["x"], [1]], schema=SCHEMA))

    @rule(ident=IDS, value=st.sampled_from(["x", "y/z"]), crash=st.sampled_from([None, *BEFORE[:3], "lake-erased"]))
    def erase(self, ident: str, value: str, crash: str | None) -> None:
        if ident not in self.expected:
            return
        with dying_at(crash):
            self.lake.erase(ref(ident), pc.field("c") == value)
            self.expected[ident] = [row for row in self.expected[ident] if row[0] != value]

    @rule()
    def remove(self) -> None:
        self.lake.remove("p")
        self.expected.clear()
        self.recent.clear()

    @rule()
    def sweep(self) -> None:
        self.lake.sweep(datetime.now(UTC) + timedelta(hours=1))
        named = {
            self.folder / "raw" / "p" / m.ref.id / f.path for m in self.lake.manifests("raw", "p") for f in m.files
        }
        assert set(self.folder.rglob("*.parquet")) == named

    @invariant()
    def everything_named_is_whole(self) -> None:
        manifests = {m.ref.id: m for m in self.lake.manifests("raw", "p")}
        assert manifests.keys() == self.expected.keys()
        for ident, manifest in manifests.items():
            rows = [(row["c"], row["_row"]) for row in self.lake.read(ref(ident)).to_pylist()]
            assert sorted(rows) == self.expected[ident]
            assert manifest.rows == len(rows)
            for file in manifest.files:
                content = (self.folder / "raw" / "p" / ident / file.path).read_bytes()
                assert hashlib.sha256(content).hexdigest() == file.sha256
                assert len(content) == file.bytes

    @invariant()
    def the_newest_are_known(self) -> None:
        assert self.recent <= {found.id for found in self.lake.recent("raw", "p")}


def ref(ident: str) -> DataSetRef:
    return DataSetRef(kind="raw", pipeline="p", id=ident)


LakeMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)
TestLake: Callable[..., object] = LakeMachine.TestCase

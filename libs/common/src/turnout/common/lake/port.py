"""The lake port: immutable Parquet data sets, each named by its content, visible only through its manifest.

The order of a commit (the manifest is the outbox):

1. data files under a name nobody reads, flushed to disk,
2. renamed to their names,
3. the manifest, with counts, hashes, lineage and the event it leads to, flushed to disk,
4. renamed: from here on the data set exists.

On object storage there is no rename: files are uploaded under names that no manifest knows, and the manifest's PUT, on
the condition that there is none, is the commit.

Where whoever commits wants to know its newest data sets without looking through all, their names are in a list of
their own (`recent`). A name is there before step 4, so that the list misses nothing that exists; a writer that dies
before it leaves a name of nothing.

A reaction that is run again finds the manifest, writes nothing and returns `manifest.event`.

The methods block: call them from a worker process or a thread, never on the event loop. An adapter can be
pickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue

from turnout.common.events import DataSetRef, Event, ModelFile, Part, Sha256


class DataFile(Part):
    """One Parquet file of a data set; `path` is relative to the data set."""

    path: str
    rows: int
    bytes: int
    sha256: Sha256


class Manifest(Part):
    """What a data set is. `parts` names other data sets whose rows belong to it (a feature set's batches).

    `lineage` are ids of what it was made from. `event` is the JSON of the event to publish (with its
    attributes) and `topic` its class name.
    """

    ref: DataSetRef
    files: tuple[DataFile, ...]
    parts: tuple[DataSetRef, ...] = ()
    rows: int
    schema_text: str
    lineage: Mapping[str, JsonValue]
    created: datetime
    topic: str | None = None
    event: str | None = None


class Writer(Protocol):
    """A data set being written; nothing of it is visible before `commit`."""

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Append rows."""
        ...

    def scratch(self) -> Path:
        """A folder on this machine for an engine that writes Parquet itself; it goes away with the writer."""
        ...

    def adopt(self, path: Path) -> None:
        """Append the rows of the Parquet file at `path`, which lies in a writer's `scratch()`, without decoding.

        Its columns are the data set's, with their types and in their order, else `Invalid`. Not for a data
        set that is partitioned by columns.
        """
        ...

    def commit(
        self,
        *,
        lineage: Mapping[str, JsonValue],
        at: datetime,
        event: Event | None = None,
        parts: Sequence[DataSetRef] = (),
        recent: bool = False,
    ) -> Manifest:
        """Make the data set exist. If another writer was faster, its manifest is returned, ours goes away.

        `recent`: its name is among `Lake.recent` from now on, and what this costs does not grow with the lake.
        """
        ...


class Lake(Protocol):
    """Data sets and model files."""

    def warm(self) -> None:
        """Import and connect what the first use in this process would wait for. Raises `Unavailable`."""
        ...

    def writer(
        self, ref: DataSetRef, schema: pa.Schema, *, partition_by: Sequence[str] = ()
    ) -> AbstractContextManager[Writer]:
        """Write a data set; leaving the block without `commit` leaves nothing behind.

        `partition_by` puts rows of equal values into a folder `column=value` of their own, so that a filter
        on these columns opens only the folders that it needs. Rows keep their order within a folder.
        """
        ...

    def manifest(self, ref: DataSetRef) -> Manifest | None:
        """The data set's manifest, or None if it does not exist. Raises `Unavailable`."""
        ...

    def manifests(self, kind: str, pipeline: str) -> Iterable[Manifest]:
        """All data sets of a kind, by creation time, then id."""
        ...

    def recent(self, kind: str, pipeline: str) -> Sequence[DataSetRef]:
        """The newest data sets of a kind that were committed as `recent`, oldest first, the last 64.

        One may not be there: not yet, or no more. Where none was committed so: the newest of all, which are looked
        for among all.
        """
        ...

    def scan(
        self,
        ref: DataSetRef,
        *,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        batch_rows: int = 65_536,
    ) -> Iterator[pa.RecordBatch]:
        """The data set's rows in order, its parts' rows first, in constant memory; the filter is pushed down.

        Raises `Unknown` if there is no such data set.
        """
        ...

    def schema(self, ref: DataSetRef) -> pa.Schema:
        """The columns that `scan` gives. Raises `Unknown` if there is no such data set."""
        ...

    def read(
        self, ref: DataSetRef, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table:
        """All of `scan` as one table."""
        ...

    def put_model(self, pipeline: str, content: bytes) -> ModelFile:
        """Keep a model file under the name of its content."""
        ...

    def get_model(self, file: ModelFile) -> bytes:
        """The file's bytes. Raises `Invalid` if they are not what the sha256 says, or not there."""
        ...

    def erase(self, ref: DataSetRef, where: pc.Expression) -> int:
        """Take the rows that match out of the data set and of its parts (to forget somebody); how many went.

        The manifest's counts and hashes are those of what is left; its `event` still tells what once was.
        """
        ...

    def remove(self, pipeline: str, before: datetime | None = None) -> None:
        """Remove every data set and model file of a pipeline, or those that were there `before` a moment."""
        ...

    def sweep(self, older_than: datetime) -> int:
        """Remove what writers that died left behind before `older_than`; how many files went."""
        ...

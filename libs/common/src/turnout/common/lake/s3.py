"""The lake on an S3 server: the places of `names` are keys of a bucket, below a prefix.

There is no rename, so the manifest's PUT is the commit:

1. files are put together on this machine, in `staging`,
2. uploaded below a token of their writer, which no manifest names: nobody reads them,
3. (for a data set that is to be among `recent`, its name goes into that list: read, and replaced if it still is what
   was read,)
4. the manifest is PUT on the condition that there is none: from here on the data set exists, and the first wins.

A process killed between two steps leaves files that no manifest names; `sweep` finds them here and on the server.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from itertools import groupby
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs
from pydantic import JsonValue

from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import DataSetRef, Event, ModelFile
from turnout.common.lake import names, staging
from turnout.common.lake.arrow import ds
from turnout.common.lake.bucket import MAX_KEY, Bucket, Content, Entry
from turnout.common.lake.parquet import ParquetLake, by_time, draft, own_rows, parse, parse_recent
from turnout.common.lake.port import DataFile, Manifest
from turnout.common.lake.settings import LakeSettings
from turnout.common.lake.staging import Staging
from turnout.common.runtime.crash import crash_point

# Requests at a time where many objects are read or written.
PARALLEL = 8
# Parts of a key that name a data set or a model file, and those that name a data set's writer.
OF_PLACE = 3
OF_WRITER = 4
# Over a network, the bytes of a row group's columns are asked for together and ahead.
_FORM = ds.ParquetFileFormat(default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=True))


class S3Lake(ParquetLake):
    """A `Lake` in the bucket of `settings`; `folder` is where files of this machine's writers are put together.

    Safe for several processes and machines; can be pickled. Raises `Invalid` for a URI that names no bucket.
    """

    def __init__(self, settings: LakeSettings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder.absolute()
        self._bucket = Bucket(settings)

    def __reduce__(self) -> tuple[object, ...]:
        """Cross a process border without the connections."""
        return (type(self), (self._settings, self._folder))

    def warm(self) -> None:
        """See `Lake.warm`."""
        _ = self._bucket.filesystem
        self._bucket.exists("warm-up")

    @contextmanager
    def writer(self, ref: DataSetRef, schema: pa.Schema, *, partition_by: Sequence[str] = ()) -> Generator[S3Writer]:
        """See `Lake.writer`. Raises `Invalid` for a partition column that `schema` lacks."""
        place = names.place(ref)
        files = Staging(self._folder, schema, partition_by, durable=False)
        try:
            with self._reaching():
                yield S3Writer(self, self._bucket, place, ref, files)
        finally:
            files.close()

    def manifest(self, ref: DataSetRef) -> Manifest | None:
        """See `Lake.manifest`."""
        found = self._load(names.place(ref))
        return found[0] if found else None

    def manifests(self, kind: str, pipeline: str) -> Iterable[Manifest]:
        """See `Lake.manifests`."""
        within = names.pipeline_place(kind, pipeline)
        with ThreadPoolExecutor(PARALLEL) as pool:
            found = list(pool.map(lambda ident: self._load(f"{within}/{ident}"), self._bucket.folders(f"{within}/")))
        return by_time(one[0] for one in found if one is not None)

    def remember(self, ref: DataSetRef) -> None:
        """Put the data set's name into the list of the newest. Of two at once, one reads again what the other wrote."""
        key = names.recent_place(ref.kind, ref.pipeline)
        done = False
        while not done:
            found = self._bucket.get(key)
            if found is None:
                content = orjson.dumps(names.with_newest(self.newest(ref.kind, ref.pipeline), ref.id))
                done = self._bucket.create(key, content)
            else:
                ids = names.with_newest(parse_recent(found.content, key), ref.id)
                done = self._bucket.replace(key, orjson.dumps(ids), found.tag)

    def put_model(self, pipeline: str, content: bytes) -> ModelFile:
        """See `Lake.put_model`."""
        file = names.model_file(pipeline, content)
        key = names.model_place(file)
        if not self._bucket.exists(key):
            crash_point("lake-model-written")
            self._bucket.put(key, content)
        return file

    def get_model(self, file: ModelFile) -> bytes:
        """See `Lake.get_model`."""
        try:
            found = self._bucket.get(names.model_place(file), limit=names.MAX_MODEL)
        except ValueError:
            raise names.too_large() from None
        if found is None:
            raise names.no_model(file)
        names.check_content(file, found.content)
        return found.content

    def erase(self, ref: DataSetRef, where: pc.Expression) -> int:
        """See `Lake.erase`. Of two at once, the one that finds another manifest than it read begins again.

        A bucket that keeps old versions keeps what was erased, for as long as it keeps them.
        """
        gone = sum(self.erase(part, where) for part in self._existing(ref).parts)
        place = names.place(ref)
        while True:
            # Read before the parts' rows are counted: who changes those later replaces this one later.
            found = self._load(place)
            if found is None:
                return gone
            manifest, stored = found
            try:
                left = self._without(manifest, where)
            except Unavailable:
                # The files may have gone with the manifest that named them.
                now = self._load(place)
                if now is None or now[1].tag == stored.tag:
                    raise
                continue
            if left is manifest:
                return gone
            crash_point("lake-erased")
            if self._bucket.replace(f"{place}/{names.MANIFEST}", left.model_dump_json().encode(), stored.tag):
                self._delete_files(place, names.tokens(manifest) - names.tokens(left))
                return gone + own_rows(manifest) - own_rows(left)
            self._delete_files(place, names.tokens(left) - names.tokens(manifest))

    def remove(self, pipeline: str, before: datetime | None = None) -> None:
        """See `Lake.remove`. Each data set first leaves its name at once, then its files go."""
        for kind in names.KINDS:
            within = names.pipeline_place(kind, pipeline)
            for place, entries in _grouped(self._bucket.list(f"{within}/"), OF_PLACE):
                if before is not None and self._since(place, entries) >= before.timestamp():
                    continue
                self._bucket.delete(entry.key for entry in entries if _is_manifest(entry))
                crash_point("lake-removing")
                self._bucket.delete(entry.key for entry in entries if not _is_manifest(entry))

    def sweep(self, older_than: datetime) -> int:
        """See `Lake.sweep`."""
        limit = older_than.timestamp()
        gone = staging.sweep(self._folder, limit)
        for kind in names.KINDS:
            gone += self._bucket.abort_uploads(f"{kind}/", older_than)
            for place, entries in _grouped(self._bucket.list(f"{kind}/"), OF_PLACE):
                gone += self._bucket.delete(self._dead(place, entries, limit))
        return gone

    def _dead(self, place: str, entries: Sequence[Entry], limit: float) -> list[str]:
        """Keys of a data set's files that no manifest names and whose writer has written nothing since `limit`."""
        writers = dict(_grouped(entries, OF_WRITER))
        old = {writer for writer, files in writers.items() if max(file.modified for file in files) < limit}
        if not old:
            return []
        found = self._load(place)
        named = names.tokens(found[0]) if found else set[str]()
        dead = (writer for writer in sorted(old) if writer.rpartition("/")[2] not in named)
        return [file.key for writer in dead for file in writers[writer]]

    def _since(self, place: str, entries: Sequence[Entry]) -> float:
        found = self._load(place)
        return found[0].created.timestamp() if found else max(entry.modified for entry in entries)

    def _load(self, place: str) -> tuple[Manifest, Content] | None:
        found = self._bucket.get(f"{place}/{names.MANIFEST}")
        return (parse(found.content, place.rpartition("/")[2]), found) if found else None

    def _delete_files(self, place: str, tokens: Iterable[str]) -> None:
        for token in tokens:
            self._bucket.delete(entry.key for entry in self._bucket.list(f"{place}/{token}/"))

    def _ids(self, kind: str, pipeline: str) -> Iterable[str]:
        return self._bucket.folders(f"{names.pipeline_place(kind, pipeline)}/")

    def _recent(self, kind: str, pipeline: str) -> list[str] | None:
        key = names.recent_place(kind, pipeline)
        found = self._bucket.get(key)
        return parse_recent(found.content, key) if found else None

    def _base(self, ref: DataSetRef) -> str:
        return self._bucket.path(names.place(ref))

    @property
    def _filesystem(self) -> fs.FileSystem:
        return self._bucket.filesystem

    @property
    def _form(self) -> ds.ParquetFileFormat:
        return _FORM

    def _reaching(self) -> AbstractContextManager[None]:
        return self._bucket.reaching()


class S3Writer:
    """One data set being written; see the module for the order."""

    def __init__(self, lake: S3Lake, bucket: Bucket, place: str, ref: DataSetRef, files: Staging) -> None:
        self._lake = lake
        self._bucket = bucket
        self._place = place
        self._ref = ref
        self._files = files
        self.write = files.write
        self.scratch = files.scratch
        self.adopt = files.adopt

    def commit(
        self,
        *,
        lineage: Mapping[str, JsonValue],
        at: datetime,
        event: Event | None = None,
        parts: Sequence[DataSetRef] = (),
        recent: bool = False,
    ) -> Manifest:
        """See `Writer.commit`."""
        faster = self._lake.manifest(self._ref)
        if faster is not None:
            return faster
        rows_of_parts = self._lake.required(parts)
        files = self.place(keep_schema=not parts)
        manifest = draft(
            self._ref,
            self._files.schema,
            files,
            parts=parts,
            rows_of_parts=rows_of_parts,
            lineage=lineage,
            at=at,
            event=event,
        )
        crash_point("lake-manifest-written")
        if recent:
            self._lake.remember(self._ref)
            crash_point("lake-remembered")
        while not self._bucket.create(f"{self._place}/{names.MANIFEST}", manifest.model_dump_json().encode()):
            faster = self._lake.manifest(self._ref)
            # Ours, where the answer to the first of two attempts was lost.
            if faster == manifest:
                break
            # None, where it was removed meanwhile.
            if faster is not None:
                self._bucket.delete(self._key(file) for file in files)
                return faster
        crash_point("lake-committed")
        return manifest

    def place(self, *, keep_schema: bool = True) -> tuple[DataFile, ...]:
        """Upload all files under keys that a manifest may name; still nobody sees them.

        A data set without a row keeps one empty file, so that its columns are known, unless `keep_schema` is
        false. Raises `Invalid` for partitions whose names make a key too long.
        """
        if not self._files.finish(keep_schema=keep_schema):
            return ()
        crash_point("lake-data-written")
        files = self._files.describe()
        for file in files:
            if len(self._bucket.path(self._key(file)).encode()) > MAX_KEY:
                raise Invalid("partition_by", f"values are too long for a key: {file.path[:60]}…")
        with ThreadPoolExecutor(PARALLEL) as pool:
            for _ in pool.map(self._upload, files):
                crash_point("lake-data-uploading")
        crash_point("lake-data-uploaded")
        return files

    def _upload(self, file: DataFile) -> None:
        self._bucket.upload(self._files.folder / file.path, self._key(file))

    def _key(self, file: DataFile) -> str:
        return f"{self._place}/{file.path}"


def _grouped(entries: Iterable[Entry], depth: int) -> Iterator[tuple[str, list[Entry]]]:
    """Entries by the first `depth` parts of their keys; a data set's manifest is no writer's file.

    A listing is in the order of keys, so that those of one group are neighbours.
    """
    parts = ((entry, entry.key.split("/")) for entry in entries)
    deep = ((entry, "/".join(of[:depth])) for entry, of in parts if len(of) > depth or depth == OF_PLACE)
    for place, group in groupby(deep, lambda pair: pair[1]):
        yield place, [entry for entry, _ in group]


def _is_manifest(entry: Entry) -> bool:
    return entry.key.rpartition("/")[2] == names.MANIFEST

"""The lake in a folder of this machine: the places of `names` are its folders and files.

    <root>/.aside/<token>/   being written; nobody reads here

Two writers of one data set cannot overwrite each other, because each has a folder of its own; whose manifest
is linked first wins, because a hard link never replaces a name that is there (link(2), EEXIST).
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import shutil
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs
from pydantic import JsonValue

from turnout.common.errors import Unavailable
from turnout.common.events import DataSetRef, Event, ModelFile
from turnout.common.lake import names, staging
from turnout.common.lake.arrow import ds
from turnout.common.lake.disk import delete, entries, folders, make_folder, newest, sync_folder, write_durably
from turnout.common.lake.parquet import ParquetLake, by_time, draft, own_rows, parse, parse_recent
from turnout.common.lake.port import DataFile, Manifest
from turnout.common.lake.staging import Staging
from turnout.common.runtime.crash import crash_point

_FILESYSTEM = fs.LocalFileSystem()
_FORM = ds.ParquetFileFormat(default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=False))


class LocalLake(ParquetLake):
    """A `Lake` under `root`, made when first written to. Safe for several processes; can be pickled."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def warm(self) -> None:
        """Nothing: a folder is there."""

    @contextmanager
    def writer(self, ref: DataSetRef, schema: pa.Schema, *, partition_by: Sequence[str] = ()) -> Generator[LocalWriter]:
        """See `Lake.writer`. Raises `Invalid` for a partition column that `schema` lacks."""
        folder = self.root / names.place(ref)
        writer = LocalWriter(self, folder, ref, Staging(self.root, schema, partition_by, durable=True))
        try:
            with self._reaching():
                yield writer
        finally:
            writer.close()

    def manifest(self, ref: DataSetRef) -> Manifest | None:
        """See `Lake.manifest`."""
        return _load_manifest(self.root / names.place(ref))

    def manifests(self, kind: str, pipeline: str) -> Iterable[Manifest]:
        """See `Lake.manifests`."""
        found = [_load_manifest(folder) for folder in folders(self.root / names.pipeline_place(kind, pipeline))]
        return by_time(m for m in found if m is not None)

    def remember(self, ref: DataSetRef) -> None:
        """Put the data set's name into the list of the newest, on disk when this returns."""
        path = self.root / names.recent_place(ref.kind, ref.pipeline)
        with self._reaching(), _locked(self.root, ".recent.lock"):
            ids = self._recent(ref.kind, ref.pipeline)
            if ids is None:
                ids = self.newest(ref.kind, ref.pipeline)
            aside = _aside(self.root) / f"{uuid4().hex}.json"
            write_durably(aside, orjson.dumps(names.with_newest(ids, ref.id)))
            make_folder(path.parent)
            aside.replace(path)
            sync_folder(path.parent)

    def put_model(self, pipeline: str, content: bytes) -> ModelFile:
        """See `Lake.put_model`."""
        file = names.model_file(pipeline, content)
        target = self.root / names.model_place(file)
        with self._reaching():
            if not target.exists():
                aside = _aside(self.root) / f"{file.sha256}.{uuid4().hex}"
                write_durably(aside, content)
                crash_point("lake-model-written")
                make_folder(target.parent)
                aside.replace(target)
                sync_folder(target.parent)
        return file

    def get_model(self, file: ModelFile) -> bytes:
        """See `Lake.get_model`."""
        path = self.root / names.model_place(file)
        with self._reaching():
            try:
                names.check_size(path.stat().st_size)
                content = path.read_bytes()
            except FileNotFoundError:
                raise names.no_model(file) from None
        names.check_content(file, content)
        return content

    def erase(self, ref: DataSetRef, where: pc.Expression) -> int:
        """See `Lake.erase`. New files lie beside the old ones until the manifest changes over at once."""
        with _locked(self.root, ".lock"):
            return self._erase(ref, where)

    def _erase(self, ref: DataSetRef, where: pc.Expression) -> int:
        manifest = self._existing(ref)
        gone = sum(self._erase(part, where) for part in manifest.parts)
        left = self._without(manifest, where)
        if left is manifest:
            return gone
        folder = self.root / names.place(ref)
        with self._reaching():
            aside = _aside(self.root) / f"{uuid4().hex}.json"
            write_durably(aside, left.model_dump_json().encode())
            crash_point("lake-erased")
            aside.replace(folder / names.MANIFEST)
            sync_folder(folder)
            for old in names.tokens(manifest) - names.tokens(left):
                shutil.rmtree(folder / old, ignore_errors=True)
        return gone + own_rows(manifest) - own_rows(left)

    def remove(self, pipeline: str, before: datetime | None = None) -> None:
        """See `Lake.remove`. Each data set first leaves its name at once, then its files go."""
        limit = before.timestamp() if before is not None else math.inf
        for kind in names.KINDS:
            folder = self.root / names.pipeline_place(kind, pipeline)
            for entry in entries(folder):
                manifest = _load_manifest(entry)
                if (manifest.created.timestamp() if manifest else newest(entry)) >= limit:
                    continue
                aside = _aside(self.root) / uuid4().hex
                with suppress(FileNotFoundError):
                    entry.rename(aside)
                crash_point("lake-removing")
                delete(aside)
            with suppress(OSError):
                folder.rmdir()

    def sweep(self, older_than: datetime) -> int:
        """See `Lake.sweep`."""
        limit = older_than.timestamp()
        dead: list[Path] = []
        for folder in (d for kind in names.KINDS for p in folders(self.root / kind) for d in folders(p)):
            manifest = _load_manifest(folder)
            named = names.tokens(manifest) if manifest else set[str]()
            dead += [d for d in folders(folder) if d.name not in named and newest(d) < limit]
        return staging.sweep(self.root, limit) + sum(delete(entry) for entry in dead)

    def _ids(self, kind: str, pipeline: str) -> Iterable[str]:
        return (folder.name for folder in folders(self.root / names.pipeline_place(kind, pipeline)))

    def _recent(self, kind: str, pipeline: str) -> list[str] | None:
        path = self.root / names.recent_place(kind, pipeline)
        with self._reaching():
            try:
                return parse_recent(path.read_bytes(), path.name)
            except FileNotFoundError:
                return None

    def _base(self, ref: DataSetRef) -> str:
        return str(self.root / names.place(ref))

    @property
    def _filesystem(self) -> fs.FileSystem:
        return _FILESYSTEM

    @property
    def _form(self) -> ds.ParquetFileFormat:
        return _FORM

    @contextmanager
    def _reaching(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise _unavailable(error) from error


class LocalWriter:
    """One data set being written, in a folder of its own under `.aside`."""

    def __init__(self, lake: LocalLake, folder: Path, ref: DataSetRef, files: Staging) -> None:
        self._lake = lake
        self._folder = folder
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
        make_folder(self._folder)
        make_folder(self._files.folder)
        aside = self._files.folder / names.MANIFEST
        write_durably(aside, manifest.model_dump_json().encode())
        crash_point("lake-manifest-written")
        if recent:
            self._lake.remember(self._ref)
            crash_point("lake-remembered")
        try:
            os.link(aside, self._folder / names.MANIFEST)
        except FileExistsError:
            shutil.rmtree(self._folder / self._files.token, ignore_errors=True)
            manifest = self._lake.manifest(self._ref) or manifest
        sync_folder(self._folder)
        crash_point("lake-committed")
        return manifest

    def place(self, *, keep_schema: bool = True) -> tuple[DataFile, ...]:
        """Flush all files to disk and move them where a manifest may name them; still nobody sees them.

        A data set without a row keeps one empty file, so that its columns are known, unless `keep_schema` is
        false.
        """
        if not self._files.finish(keep_schema=keep_schema):
            return ()
        crash_point("lake-data-written")
        files = self._files.describe()
        for folder in (self._files.data, *self._files.data.rglob("*/")):
            sync_folder(folder)
        crash_point("lake-data-flushed")
        make_folder(self._folder)
        self._files.data.rename(self._folder / self._files.token)
        sync_folder(self._folder)
        crash_point("lake-data-renamed")
        return files

    def close(self) -> None:
        """Leave nothing behind that is not committed."""
        self._files.close()


def _load_manifest(folder: Path) -> Manifest | None:
    try:
        content = (folder / names.MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unavailable(error) from error
    return parse(content, folder.name)


def _unavailable(error: OSError) -> Unavailable:
    if error.errno == errno.ENOSPC:
        return Unavailable("the lake", "the disk is full")
    return Unavailable("the lake", error.strerror or str(error))


def _aside(root: Path) -> Path:
    folder = root / ".aside"
    make_folder(folder)
    return folder


@contextmanager
def _locked(root: Path, name: str) -> Generator[None]:
    """One at a time: two erasures from one manifest would each bring back what the other took out, two changes of a
    list would lose each other's name."""
    with (_aside(root).parent / name).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

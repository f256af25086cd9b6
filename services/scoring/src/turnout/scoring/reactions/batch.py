"""`BatchScoringRequested` → `BatchScored`: a file, a folder or a data set, through the same graph, into the lake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from glob import glob
from pathlib import Path
from urllib.parse import unquote, urlsplit

from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import BatchScored, BatchScoringRequested, DataSetRef, Event, ModelReady
from turnout.common.lake.port import Lake
from turnout.common.runtime.service import Clock
from turnout.common.runtime.views import Pipelines
from turnout.scoring.ports import BatchTask
from turnout.scoring.reactions.fleet import Fleet

LAKE = "lake"
MAX_FILES = 10_000


class Batches:
    """Scores one source in a worker process. `roots` are the folders that a file may lie under."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        lake: Callable[[], Lake],
        pipelines: Pipelines,
        executor: Callable[[], Executor],
        score: Callable[[BatchTask], BatchScored],
        roots: Sequence[Path],
        now: Clock,
    ) -> None:
        self._fleet = fleet
        self._lake = lake
        self._pipelines = pipelines
        self._executor = executor
        self._score = score
        self._roots = roots
        self._now = now

    async def __call__(self, events: Sequence[Event]) -> list[Event]:
        """The completion of each. Raises `Invalid` for a source that cannot be read, `Unavailable` while no version
        is there."""
        produced: list[Event] = []
        for event in events:
            if isinstance(event, BatchScoringRequested):
                task = await self._task(event)
                loop = asyncio.get_running_loop()
                produced.append(await loop.run_in_executor(self._executor(), self._score, task))
        return produced

    async def _task(self, event: BatchScoringRequested) -> BatchTask:
        ready = self._version(event)
        file = await self._pipelines.file(event.pipeline)
        source = file.source
        data = data_set_of(event.uri, event.pipeline)
        files = [] if data is not None else await asyncio.to_thread(files_at, event.uri, self._roots)
        return BatchTask(
            lake=self._lake(),
            ready=ready,
            cause=event,
            at=self._now(),
            data=data,
            files=files,
            format=event.format or (source.format if _has_no_ending(files) else None),
            column_names=source.columns or (),
            delimiter=source.delimiter or ",",
            null_values=source.null_values,
        )

    def _version(self, event: BatchScoringRequested) -> ModelReady:
        lineup = self._fleet.lineup(event.pipeline)
        version = event.version or (lineup.router.table.champion if lineup.router.table else None)
        if version is None:
            raise Unavailable(f"pipeline {event.pipeline}", "no version is routed yet")
        if version in lineup.refused:
            raise Invalid("version", f"version {version} was not admitted: {lineup.refused[version]}")
        return self._fleet.pinned(event.pipeline, version).ready


def data_set_of(uri: str, pipeline: str) -> DataSetRef | None:
    """The raw data set that `lake://raw/PIPELINE/ID` names; None for any other scheme. Raises `Invalid`."""
    parts = urlsplit(uri)
    if parts.scheme != LAKE:
        return None
    match [parts.netloc, *parts.path.strip("/").split("/")]:
        case ["raw", owner, ident] if owner == pipeline and ident:
            return DataSetRef(kind="raw", pipeline=owner, id=ident)
        case _:
            raise Invalid("uri", f"{uri[:200]!r} is no data set of {pipeline}", fix=f"lake://raw/{pipeline}/BATCH")


def files_at(uri: str, roots: Sequence[Path]) -> list[str]:
    """The file, the folder's files, or what the glob matches, sorted; all under one of `roots`. Raises `Invalid`."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        raise Invalid(
            "uri", f"the scheme '{parts.scheme}' is not read here", fix="a path, or lake://raw/PIPELINE/BATCH"
        )
    name = unquote(parts.path) if parts.scheme == "file" else uri
    path = Path(name)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(match) for match in glob(name) if Path(match).is_file())  # noqa: PTH207 (an absolute glob)
    if not found:
        raise Invalid("uri", f"there is no file at {uri[:200]!r}")
    if len(found) > MAX_FILES:
        raise Invalid("uri", f"{len(found)} files", fix=f"at most {MAX_FILES}")
    allowed = [root.resolve() for root in roots]
    for one in found:
        if not any(one.resolve().is_relative_to(root) for root in allowed):
            raise Invalid("uri", f"{one} lies under no allowed folder", fix="TURNOUT_SOURCE_ROOTS names them")
    return [str(one) for one in found]


def _has_no_ending(files: Sequence[str]) -> bool:
    return any(not Path(name).suffix for name in files)

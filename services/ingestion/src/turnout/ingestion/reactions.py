"""Announced files and live observations into the lake; what was asked to be forgotten or removed, out of it."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
import structlog

from turnout.common.errors import Invalid, Unknown
from turnout.common.events import (
    DataSetRef,
    EntityForgotten,
    Event,
    ObservationReceived,
    PipelineRemoved,
    RawDataExtracted,
    SourceDataAvailable,
)  # fmt: skip
from turnout.common.ids import content_id
from turnout.common.lake.port import Lake, Manifest
from turnout.common.pipeline import PipelineFile
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.service import Clock, Refused
from turnout.common.runtime.views import Pipelines
from turnout.common.values import category
from turnout.ingestion.domain import observations
from turnout.ingestion.domain.fitting import lake_schema
from turnout.ingestion.domain.schema import Schema
from turnout.ingestion.ports import Extract, KeptSchema, Limits, Task

log = structlog.get_logger()
# Row numbers that a process remembers of a pipeline.
_REMEMBERED = 20_000


class Extraction:
    """`SourceDataAvailable` → the files in the lake → `RawDataExtracted`. A long reaction: one event at a time."""

    def __init__(
        self,
        lake: Lake,
        pipelines: Pipelines,
        executor: Executor,
        extract: Extract,
        *,
        roots: Sequence[Path],
        limits: Limits,
        now: Clock,
    ) -> None:
        self._lake = lake
        self._pipelines = pipelines
        self._executor = executor
        self._extract = extract
        self._roots = tuple(roots)
        self._limits = limits
        self._now = now

    async def __call__(self, events: Sequence[Event]) -> list[Event]:
        """Extract each announcement. Raises `Invalid` naming the files that cannot be read; then nothing is kept."""
        produced: list[Event] = []
        for event in events:
            assert isinstance(event, SourceDataAvailable)
            declared = await self._pipelines.declared(event.pipeline, event.spec_id)
            task = Task(event, declared.spec, declared.spec_id, self._roots, self._now(), self._limits)
            loop = asyncio.get_running_loop()
            extracted: RawDataExtracted = await loop.run_in_executor(self._executor, self._extract, self._lake, task)
            for warning in extracted.warnings:
                log.warning("data want attention", pipeline=event.pipeline, code=warning.code, text=warning.message)
            produced.append(extracted)
        return produced


@dataclass
class _Known:
    """Observations that are in the lake: the newest row numbers, oldest first, and the batches that they are of."""

    rows: dict[int, None] = field(default_factory=dict)
    batches: set[str] = field(default_factory=set)

    def add(self, batch: str, rows: Iterable[int]) -> None:
        """A batch that was written or read."""
        self.batches.add(batch)
        self.rows.update(dict.fromkeys(rows))
        for number in list(self.rows)[:-_REMEMBERED]:
            del self.rows[number]


class Observing:
    """`ObservationReceived` → one batch of the lake for each pipeline and delivery.

    No event follows: the next feature set takes every batch that is there. An observation that was written and is
    delivered again, because the process died before the offset moved, is known by its row number.

    So that a trickle does not become a flood of small data sets, a delivery of fewer than `enough` observations waits
    until `pace` has passed since the one before; what comes meanwhile is in the next delivery.
    """

    def __init__(
        self,
        lake: Lake,
        pipelines: Pipelines,
        kept: KeptSchema,
        now: Clock,
        *,
        pace: timedelta = timedelta(),
        enough: int = 1,
    ) -> None:
        self._lake = lake
        self._pipelines = pipelines
        self._kept = kept
        self._now = now
        self._pace = pace.total_seconds()
        self._enough = enough
        self._last = -math.inf
        self._known: dict[str, _Known] = {}

    async def __call__(self, events: Sequence[Event]) -> list[Refused]:
        """Write the observations that fit; the others are refused."""
        await self._wait(len(events))
        by_pipeline: dict[str, list[ObservationReceived]] = {}
        for event in events:
            assert isinstance(event, ObservationReceived)
            by_pipeline.setdefault(event.pipeline, []).append(event)
        refused: list[Refused] = []
        for pipeline, received in by_pipeline.items():
            try:
                file = await self._pipelines.file(pipeline)
                refused += await asyncio.to_thread(self._write, file, received)
            except Invalid as error:
                refused += [Refused(event, error) for event in received]
        return refused

    async def _wait(self, rows: int) -> None:
        clock = asyncio.get_running_loop().time
        if rows < self._enough:
            await asyncio.sleep(max(0.0, self._last + self._pace - clock()))
        self._last = clock()

    async def check(self, events: Sequence[ObservationReceived]) -> None:
        """Raise `Invalid` or `Unknown` where an observation would not fit."""
        for pipeline in {event.pipeline for event in events}:
            file = await self._pipelines.file(pipeline)
            schema = await asyncio.to_thread(self.schema, file)
            for event in events:
                if event.pipeline == pipeline:
                    observations.row(event, schema, file.source)

    def schema(self, file: PipelineFile) -> Schema:
        """What the pipeline's observations go through. Reads the lake; raises `Invalid` where there is none yet."""
        return observations.schema_for(file, self._kept(self._lake, file.pipeline))

    def _write(self, file: PipelineFile, events: Sequence[ObservationReceived]) -> list[Refused]:
        schema = self.schema(file)
        fitting, wrong = observations.fitting(events, schema, file.source)
        known = self._known.setdefault(file.pipeline, _Known())
        self._catch_up(known, file.pipeline)
        new = {number: row for number, row in fitting.items() if number not in known.rows}
        if new:
            known.add(self._commit(file, schema, new), new)
        return [Refused(event, error) for event, error in wrong]

    def _commit(self, file: PipelineFile, schema: Schema, rows: Mapping[int, Mapping[str, object]]) -> str:
        ident = content_id("batch", file.pipeline, "observations", sorted(rows))
        ref = DataSetRef(kind="raw", pipeline=file.pipeline, id=ident)
        with self._lake.writer(ref, lake_schema(schema), partition_by=file.source.partition_by) as writer:
            writer.write(observations.table(rows, schema))
            crash_point("observations-written")
            writer.commit(
                lineage={
                    "uri": observations.URI,
                    "rows_read": len(rows),
                    "rows_quarantined": 0,
                    "columns": [{"name": c.name, "kind": c.kind} for c in schema.columns],
                    "observations": len(rows),
                },
                at=self._now(),
                recent=True,
            )
        crash_point("observations-committed")
        return ident

    def _catch_up(self, known: _Known, pipeline: str) -> None:
        """Look into the newest batches that were written elsewhere: only they can hold an observation that comes
        again, as a delivery is far smaller than all of them. Another process may have died, whose partitions are read
        here now."""
        recent = self._lake.recent("raw", pipeline)
        for ref in recent:
            manifest = self._lake.manifest(ref) if ref.id not in known.batches else None
            if manifest is not None:
                known.add(ref.id, self._rows(manifest) if "observations" in manifest.lineage else ())
        known.batches.intersection_update(ref.id for ref in recent)

    def _rows(self, manifest: Manifest) -> list[int]:
        return [n for batch in self._lake.scan(manifest.ref, columns=["_row"]) for n in batch.column(0).to_pylist()]


class Forgetting:
    """`EntityForgotten` → the entity's rows leave every data set of the pipeline."""

    def __init__(self, lake: Lake, pipelines: Pipelines) -> None:
        self._lake = lake
        self._pipelines = pipelines

    async def __call__(self, events: Sequence[Event]) -> list[Event]:
        """Erase each entity. A pipeline that is gone has nothing to erase."""
        for event in events:
            assert isinstance(event, EntityForgotten)
            try:
                file = await self._pipelines.file(event.pipeline)
            except Unknown:
                continue
            rows = await asyncio.to_thread(self._erase, file, event.entity)
            log.info("entity forgotten", pipeline=event.pipeline, rows=rows)
        return []

    def _erase(self, file: PipelineFile, entity: str) -> int:
        named = {file.source.entity, "_entity"} - {None}
        canonical = category(entity) or entity
        gone = 0
        for kind in ("raw", "features", "split", "scores"):
            for manifest in self._lake.manifests(kind, file.pipeline):
                gone += self._erase_rows(manifest, named, {entity, canonical})
        # A quarantined row is a text; it goes if the entity's name stands in it as a word.
        word = rf"(^|[^\w]){re.escape(entity)}($|[^\w])"
        for manifest in self._lake.manifests("quarantine", file.pipeline):
            gone += self._lake.erase(manifest.ref, pc.match_substring_regex(pc.field("_text"), word))  # pyright: ignore[reportAttributeAccessIssue]
            crash_point("ingestion-entity-erased")
        return gone

    def _erase_rows(self, manifest: Manifest, columns: set[str | None], names: set[str]) -> int:
        gone = 0
        for column in columns & set(self._lake.schema(manifest.ref).names):
            gone += self._lake.erase(manifest.ref, pc.field(column).isin(sorted(names)))
            crash_point("ingestion-entity-erased")
        return gone


class Removing:
    """`PipelineRemoved` → what the lake has of the pipeline from before goes."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    async def __call__(self, events: Sequence[Event]) -> list[Event]:
        """Remove each pipeline's data."""
        for event in events:
            assert isinstance(event, PipelineRemoved)
            # A pipeline of that name that came afterwards keeps its own.
            await asyncio.to_thread(self._lake.remove, event.pipeline, event.time)
        return []

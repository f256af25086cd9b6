"""Filling the online store from what is kept elsewhere: before a model needs it, and after the store lost it.

A note in the store says which raw batches it was filled from. Each feature set brings its new batches; where the note
is gone, so is the rest, and all batches are read again and then the observations that the bus still holds. Every value
comes with its own time, so a newer live one stays, and filling twice or by two processes at once changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import uuid4

import orjson
import structlog

from turnout.common.bus.port import Bus
from turnout.common.errors import Invalid
from turnout.common.events import EntityForgotten, Event, FeaturesGenerated, ObservationReceived, PipelineRemoved
from turnout.common.lake.port import Lake
from turnout.common.online.port import OnlineStore, Put
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.views import Pipelines
from turnout.preparation import materialise
from turnout.preparation.materialise import Source
from turnout.preparation.reactions import UpdateOnline, joining

log = structlog.get_logger()

# Seconds between looks whether the store still has what it was filled with.
LOOK_SECONDS = 15.0
# Values on their way to the store, and observations read from the bus at a time.
_AT_ONCE = 1_000
_FILLING = "filling "


@dataclass(frozen=True)
class _Gone:
    """When somebody asked to be forgotten, and pipelines were removed, by the bus's clock."""

    entities: Mapping[tuple[str, str], datetime]
    pipelines: Mapping[str, datetime]

    def forgotten(self, pipeline: str, since: datetime) -> set[str]:
        """Entities of the pipeline that were forgotten at or after `since`."""
        return {entity for (name, entity), at in self.entities.items() if name == pipeline and at >= since}

    def covers(self, pipeline: str, entity: str, at: datetime) -> bool:
        """Whether what came `at` that moment must not come back."""
        forgotten = self.entities.get((pipeline, entity))
        return self.removed(pipeline, at) or (forgotten is not None and at <= forgotten)

    def removed(self, pipeline: str, at: datetime) -> bool:
        """Whether the pipeline was removed at or after `at`."""
        removed = self.pipelines.get(pipeline)
        return removed is not None and at <= removed


@dataclass(frozen=True)
class Refill:
    """Fills the online store; `FeaturesGenerated` → the entities of new batches are known before they are asked for."""

    lake: Lake
    online: OnlineStore
    bus: Bus
    pipelines: Pipelines
    update: UpdateOnline
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __call__(self, events: Sequence[Event]) -> Sequence[Event]:
        """Nothing comes out; once more changes nothing."""
        files = {name: await self.pipelines.file(name) for name in self.pipelines.names()}
        for event in events:
            if isinstance(event, FeaturesGenerated) and event.pipeline in files:
                for name in (event.pipeline, *(name for name, _ in joining(files, event.pipeline))):
                    await self.fill(name)
        return []

    async def watch(self) -> None:
        """Fill again what the store lost, for ever; at once after the start. Raises `Unavailable`."""
        while True:
            for name in self.pipelines.names():
                try:
                    if _filled(await self.online.marked(name)) is None:
                        await self.fill(name)
                except Invalid as error:  # one pipeline's trouble is not the others'
                    log.warning("online store not filled", pipeline=name, why=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def fill(self, pipeline: str) -> None:
        """Put what the store does not have yet of a pipeline. Raises `Unavailable`, and `Unknown` for the pipeline."""
        async with self._one:
            await self._fill(pipeline)

    async def _fill(self, pipeline: str) -> None:
        before = await self.online.marked(pipeline)
        filled = _filled(before)
        file = await self.pipelines.file(pipeline)
        known = set(self.pipelines.names())
        others = {name: await self.pipelines.file(name) for name in materialise.joins(file) if name in known}
        gone = await self._gone()
        sources = [
            source
            for source in await asyncio.to_thread(materialise.sources, self.lake, file, others)
            if not gone.removed(source.ref.pipeline, source.created)
        ]
        new = [source for source in sources if source.name not in (filled or ())]
        if filled is not None and not new:
            return
        if filled is None:
            # If the store is emptied meanwhile this goes too, and nobody takes half for all.
            before = f"{_FILLING}{uuid4()}"
            await self.online.mark(pipeline, before)
        count = 0
        for source in new:
            count += await self._fill_from(source, pipeline, gone)
            crash_point("preparation-batch-refilled")
        if filled is None:
            count += await self._observed({pipeline, *others}, pipeline, gone)
        for entity in await self._forgotten_since(gone, {pipeline, *others}):
            await self.online.forget(pipeline, entity)
        if await self.online.marked(pipeline) == before:
            await self.online.mark(pipeline, orjson.dumps(sorted(source.name for source in sources)).decode())
        log.info("online store filled", pipeline=pipeline, batches=len(new), values=count, anew=filled is None)

    async def _fill_from(self, source: Source, pipeline: str, gone: _Gone) -> int:
        forgotten = gone.forgotten(source.ref.pipeline, source.created) | gone.forgotten(pipeline, source.created)
        chunks = materialise.newest_values(self.lake, source, forgotten)
        count = 0
        while (placed := await asyncio.to_thread(_next, chunks)) is not None:
            for start in range(0, len(placed), _AT_ONCE):
                await self.online.put_many(pipeline, placed[start : start + _AT_ONCE])
            count += len(placed)
        return count

    async def _observed(self, feeding: Collection[str], pipeline: str, gone: _Gone) -> int:
        """Put what was observed of the pipelines that feed this one."""
        waiting: list[ObservationReceived] = []
        count = 0
        async for received in self.bus.replay(ObservationReceived):
            try:
                event = received.event()
            except Invalid:
                continue
            if not isinstance(event, ObservationReceived) or event.pipeline not in feeding:
                continue
            if not any(gone.covers(name, event.entity, received.timestamp) for name in {event.pipeline, pipeline}):
                waiting.append(event)
            if len(waiting) >= _AT_ONCE:
                count += await self._place(waiting, pipeline)
                waiting = []
        return count + await self._place(waiting, pipeline)

    async def _place(self, observations: Sequence[ObservationReceived], pipeline: str) -> int:
        puts: list[Put] = []
        for observation in observations:
            try:
                some = await self.update.places([observation])
            except Invalid:
                continue  # it was a dead letter when it came
            puts += [(o.entity, values, o.event_time) for name, o, values in some if name == pipeline]
        await self.online.put_many(pipeline, puts)
        return len(puts)

    async def _gone(self) -> _Gone:
        entities: dict[tuple[str, str], datetime] = {}
        pipelines: dict[str, datetime] = {}
        async for received in self.bus.replay(EntityForgotten):
            event = received.event()
            if isinstance(event, EntityForgotten):
                entities[event.pipeline, event.entity] = received.timestamp
        async for received in self.bus.replay(PipelineRemoved):
            pipelines[received.event().pipeline] = received.timestamp
        return _Gone(entities, pipelines)

    async def _forgotten_since(self, before: _Gone, pipelines: Collection[str]) -> Collection[str]:
        """Entities that somebody asked to forget while the store was being filled with them."""
        now = await self._gone()
        return {key[1] for key, at in now.entities.items() if key[0] in pipelines and before.entities.get(key) != at}


def _filled(note: str | None) -> Sequence[str] | None:
    """The sources that a note names; None for none, and for one of a filling that has not ended."""
    return None if note is None or note.startswith(_FILLING) else orjson.loads(note)


def _next(chunks: Iterator[Sequence[Put]]) -> Sequence[Put] | None:
    return next(chunks, None)

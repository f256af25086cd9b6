"""A service's own view of a compacted topic: each key's newest event, followed as it changes."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

import structlog

from turnout.common.bus.port import Bus, Received
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import Event, PipelineDeclared, PipelineRemoved, RoutingChanged
from turnout.common.pipeline import PipelineFile

E = TypeVar("E", bound=Event)
log = structlog.get_logger()


class View(Generic[E]):
    """The newest event of each pipeline on a compacted topic; an older one never replaces a newer.

    A tombstone removes the pipeline, and so does a later `PipelineRemoved`.
    """

    def __init__(self, bus: Bus, kind: type[E]) -> None:
        self._bus = bus
        self._kind = kind
        self._newest: dict[str, tuple[int, E | None]] = {}
        self._removed: dict[str, PipelineRemoved] = {}
        self._ready = False

    @property
    def ready(self) -> bool:
        """Whether everything that was there at the start has been read."""
        return self._ready

    async def follow(self) -> None:
        """Keep the view up to date, for ever. Raises `Unavailable` when the bus goes away."""
        await self.refresh()
        async with asyncio.TaskGroup() as both:
            both.create_task(self._follow(self._kind))
            both.create_task(self._follow(PipelineRemoved))

    async def refresh(self) -> None:
        """Read the topic again."""
        for kind in (self._kind, PipelineRemoved):
            async for received in self._bus.replay(kind):
                self._take(received)
        self._ready = True

    def get(self, pipeline: str) -> E | None:
        """The newest event of a pipeline, as far as it is known here."""
        _, event = self._newest.get(pipeline, (-1, None))
        if event is None:
            return None
        removed = self._removed.get(pipeline)
        return None if removed is not None and removed.time >= event.time else event

    def known(self) -> list[str]:
        """Pipelines that have one, sorted."""
        return sorted(name for name in self._newest if self.get(name) is not None)

    async def _follow(self, kind: type[Event]) -> None:
        async for received in self._bus.follow(kind):
            self._take(received)

    def _take(self, received: Received) -> None:
        record = received.record
        if record.value is None:
            self._keep((record.key or b"").decode(errors="replace"), received.offset, None)
            return
        try:
            event = received.event()
        except Invalid as error:
            # A view has no offsets to stop at; the reactions of the topic send it to the dead letters.
            log.warning("event not understood", topic=record.topic, offset=received.offset, error=str(error))
            return
        if isinstance(event, self._kind):
            self._keep(event.pipeline, received.offset, event)
        elif isinstance(event, PipelineRemoved):
            self._removed[event.pipeline] = event

    def _keep(self, pipeline: str, offset: int, event: E | None) -> None:
        # One key lies in one partition, so its offsets tell old from new, whatever the clocks say.
        if offset >= self._newest.get(pipeline, (-1, None))[0]:
            self._newest[pipeline] = (offset, event)


class Pipelines:
    """Every declared pipeline. To be run in the background by the runtime (`follow`)."""

    def __init__(self, bus: Bus) -> None:
        self._view = View(bus, PipelineDeclared)

    @property
    def ready(self) -> bool:
        """Whether everything that was declared before the start is known."""
        return self._view.ready

    async def follow(self) -> None:
        """Keep the view up to date, for ever."""
        await self._view.follow()

    async def declared(self, pipeline: str, spec_id: str | None = None) -> PipelineDeclared:
        """The newest declaration. Reads the topic again before it says `Unknown`, and when `spec_id` was never seen.

        Raises `Unknown` naming the nearest pipeline.
        """
        found = self._view.get(pipeline)
        if found is None or (spec_id is not None and found.spec_id != spec_id):
            await self._view.refresh()
            found = self._view.get(pipeline)
        if found is None:
            raise Unknown.name("pipeline", "pipeline", pipeline, self.names())
        return found

    async def file(self, pipeline: str, spec_id: str | None = None) -> PipelineFile:
        """The newest pipeline file."""
        return (await self.declared(pipeline, spec_id)).spec

    def names(self) -> list[str]:
        """Pipelines known now (a removed one is not)."""
        return self._view.known()


class Routes:
    """Every pipeline's newest routing table. Same life as `Pipelines`."""

    def __init__(self, bus: Bus) -> None:
        self._view = View(bus, RoutingChanged)

    @property
    def ready(self) -> bool:
        """Whether every table that was there at the start is known."""
        return self._view.ready

    async def follow(self) -> None:
        """Keep the view up to date, for ever."""
        await self._view.follow()

    def now(self, pipeline: str) -> RoutingChanged | None:
        """The newest table as far as it is known here."""
        return self._view.get(pipeline)

    async def newest(self, pipeline: str) -> RoutingChanged | None:
        """The newest table, after reading the topic again. Raises `Unavailable`."""
        await self._view.refresh()
        return self._view.get(pipeline)

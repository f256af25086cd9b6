"""A service's own view of a compacted topic: each key's newest event, followed as it changes.

Routing tables are numbered, and two processes may write one with the same number at once. The log decides: one key is
one partition, so all see them in one order, and a table whose number is not greater than the newest before it counts
for nobody. Who published one waits until it comes back (`Routes.settled`) and so learns whether it counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import structlog

from turnout.common.bus.port import Bus, Received
from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import Event, PipelineDeclared, PipelineRemoved, RoutingChanged
from turnout.common.pipeline import PipelineFile

E = TypeVar("E", bound=Event)
log = structlog.get_logger()

# How long what is on the bus may take to come back to who follows it.
SETTLE_SECONDS = 10.0


class View(Generic[E]):
    """The newest event of each pipeline on a compacted topic; an older one never replaces a newer.

    A tombstone removes the pipeline, and so does a later `PipelineRemoved`. With `number`, an event counts only if its
    number is greater than that of the one before.
    """

    def __init__(self, bus: Bus, kind: type[E], *, number: Callable[[E], int] | None = None) -> None:
        self._bus = bus
        self._kind = kind
        self._number = number
        self._newest: dict[str, tuple[int, E | None]] = {}
        self._removed: dict[str, PipelineRemoved] = {}
        self._ends: dict[bytes | None, int] = {}
        self._offered: dict[str, asyncio.Event] = {}
        self._moved = asyncio.Event()
        self._following = False
        self._ready = False

    @property
    def ready(self) -> bool:
        """Whether everything that was there at the start has been read."""
        return self._ready

    async def follow(self) -> None:
        """Keep the view up to date, for ever. Raises `Unavailable` when the bus goes away."""
        await self.refresh()
        self._following = self._number is not None
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._follow(self._kind))
                both.create_task(self._follow(PipelineRemoved))
        finally:
            self._following = False

    async def refresh(self) -> None:
        """Read the topic again.

        A replay leaves out what was superseded. Where numbers count and the topic is followed, it only says how far
        the follower has to come.
        """
        ends: dict[bytes | None, int] = {}
        for kind in (self._kind, PipelineRemoved):
            async for received in self._bus.replay(kind):
                if self._following and kind is self._kind:
                    ends[received.record.key] = received.offset
                else:
                    self._take(received)
        if ends:
            await self._until(
                lambda: not self._following or all(self._ends.get(key, -1) >= end for key, end in ends.items())
            )
        self._ready = True

    async def publish(self, offered: E, *before: Event) -> E | None:
        """Publish the events, then wait until `offered` has come back; the newest then. Raises `Unavailable`."""
        came = self._offered.setdefault(offered.id, asyncio.Event())
        try:
            await self._bus.publish(*before, offered)
            if self._following:
                await self._until(lambda: came.is_set() or not self._following)
            if not came.is_set():
                await self.refresh()
        finally:
            self._offered.pop(offered.id, None)
        return self.get(offered.pipeline)

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

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the follower reads. Raises `Unavailable`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                while not condition():
                    self._moved.clear()
                    await self._moved.wait()
                return
        raise Unavailable("the bus", f"what is on {self._kind.topic()} was not read within {SETTLE_SECONDS:.0f} s")

    def _take(self, received: Received) -> None:
        self._understand(received)
        if received.record.topic == self._kind.topic():
            self._ends[received.record.key] = max(received.offset, self._ends.get(received.record.key, -1))
            self._moved.set()

    def _understand(self, received: Received) -> None:
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
            if (offered := self._offered.get(event.id)) is not None:
                offered.set()
        elif isinstance(event, PipelineRemoved):
            self._removed[event.pipeline] = event

    def _keep(self, pipeline: str, offset: int, event: E | None) -> None:
        # One key lies in one partition, so its offsets tell old from new, whatever the clocks say.
        read, newest = self._newest.get(pipeline, (-1, None))
        if offset <= read:
            return
        if event is not None and newest is not None and self._number is not None:
            event = event if self._number(event) > self._number(newest) else newest
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

    async def newest(self) -> Sequence[PipelineFile]:
        """Every pipeline's file, after reading the topic again. Raises `Unavailable`."""
        await self._view.refresh()
        return [found.spec for name in self.names() if (found := self._view.get(name)) is not None]

    def now(self, pipeline: str) -> PipelineFile | None:
        """The newest pipeline file as far as it is known here."""
        found = self._view.get(pipeline)
        return None if found is None else found.spec

    def names(self) -> list[str]:
        """Pipelines known now (a removed one is not)."""
        return self._view.known()


class Routes:
    """Every pipeline's newest routing table. Same life as `Pipelines`."""

    def __init__(self, bus: Bus) -> None:
        self._view = View(bus, RoutingChanged, number=lambda changed: changed.table.version)

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

    async def publish(self, changed: RoutingChanged, *before: Event) -> RoutingChanged | None:
        """Publish a table behind other events; the one that counts once it is on the bus. Raises `Unavailable`.

        Another one than `changed` came first: then who wrote `changed` has to decide again, and to write a higher
        number, for a compacted topic keeps the last record of a key and not the one that counts.
        """
        return await self._view.publish(changed, *before)

    async def newest(self, pipeline: str) -> RoutingChanged | None:
        """The newest table, after reading the topic again. Raises `Unavailable`."""
        await self._view.refresh()
        return self._view.get(pipeline)

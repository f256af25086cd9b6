"""Which versions are loaded, pipeline by pipeline, and the router over them.

A process follows the topics itself instead of sharing them with a group: every router obeys every `RoutingChanged`.
What routing names is loaded, and the newest version beside it, because it is likely to be named next; a version that a
caller pins is loaded when first asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from turnout.common.bus.port import Bus, Received
from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import (
    Event,
    ModelReady,
    PipelineDeclared,
    PipelineRemoved,
    Prior,
    RoutingChanged,
    VersionEjected,
    VersionRestored,
    VersionStats,
)
from turnout.common.lake.port import Lake
from turnout.common.runtime.service import Clock
from turnout.scoring.domain.router import Outcome, Router, Verdict
from turnout.scoring.domain.signature import Signature, known_names
from turnout.scoring.ports import Admission, BrokenError, ModelCache, Outbox, Refused, Runners
from turnout.scoring.reactions import meters
from turnout.scoring.reactions.lane import Hooks, Lane

log = structlog.get_logger()

SOURCE = "/scoring"
DECISIONS = 50
_RETRY_SECONDS = (0.2, 1.0, 5.0)


class Decision(NamedTuple):
    """One answer that was given, for people who look at the router."""

    score_id: str
    at: str
    version: str
    served_by: str
    reason: str | None
    milliseconds: float


@dataclass(slots=True)
class Lineup:
    """One pipeline: its router, the versions it knows and those that are loaded.

    `slo_ms` and `baseline` are the pipeline file's; `names` are all fields that a version of the chain takes.
    """

    pipeline: str
    router: Router
    slo_ms: float = 50.0
    baseline: bool = True
    known: dict[str, ModelReady] = field(default_factory=dict[str, ModelReady])
    lanes: dict[str, Lane] = field(default_factory=dict[str, Lane])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    loading: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, asyncio.Task[None]])
    spare: list[str] = field(default_factory=list[str])
    newest: str | None = None
    names: frozenset[str] = frozenset()
    decisions: deque[Decision] = field(default_factory=lambda: deque[Decision](maxlen=DECISIONS))

    def prior(self) -> Prior | None:
        """The answer of the day no version can give one: the champion's training prior, else the newest version's."""
        table = self.router.table
        ready = (self.known.get(table.champion) if table else None) or (
            self.known.get(self.newest) if self.newest else None
        )
        return ready.prior if ready else None

    def wanted(self) -> list[str]:
        """Versions that have to be loaded, the most urgent first."""
        table = self.router.table
        names = [table.champion, table.previous, table.challenger] if table else []
        return [v for v in dict.fromkeys([*names, self.newest]) if v is not None and v in self.known]

    def missing(self) -> list[str]:
        """Versions that routing names and that are neither loaded nor refused."""
        return [
            step.version
            for step in self.router.chain()
            if step.version not in self.lanes and step.version not in self.refused
        ]


class Fleet:
    """Every pipeline's lineup, kept as the topics say."""

    def __init__(
        self,
        *,
        bus: Bus,
        lake: Callable[[], Lake],
        outbox: Outbox,
        cache: ModelCache,
        admission: Admission,
        runners: Runners,
        now: Clock,
        name: str,
        spare: int,
    ) -> None:
        self._bus = bus
        self._lake = lake
        self._outbox = outbox
        self._cache = cache
        self._admission = admission
        self._runners = runners
        self._now = now
        self._name = name
        self._spare = spare
        self._lineups: dict[str, Lineup] = {}
        self._removed: dict[str, PipelineRemoved] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._replayed = False

    # --- what others ask ---------------------------------------------------------------------------------------

    def lineup(self, pipeline: str) -> Lineup:
        """A pipeline's lineup. Raises `Unknown` with the nearest name."""
        lineup = self._lineups.get(pipeline)
        if lineup is None:
            raise Unknown.name("pipeline", "pipeline", pipeline, self._lineups)
        return lineup

    def find(self, pipeline: str) -> Lineup | None:
        """A pipeline's lineup, if there is one."""
        return self._lineups.get(pipeline)

    def pipelines(self) -> Sequence[str]:
        """Every pipeline known here."""
        return list(self._lineups)

    def ready(self, pipeline: str, version: str) -> ModelReady:
        """What is known of a version. Raises `Unknown` with the nearest name."""
        lineup = self.lineup(pipeline)
        found = lineup.known.get(version)
        if found is None:
            raise Unknown.name("version", f"version of {pipeline}", version, lineup.known)
        return found

    def pinned(self, pipeline: str, version: str) -> Lane:
        """A version that a caller insists on; it is loaded if it is not. Raises `Unknown` or `Unavailable`."""
        lineup = self.lineup(pipeline)
        lane = lineup.lanes.get(version)
        if lane is not None and lane.available:
            return lane
        self.ready(pipeline, version)
        if version in lineup.refused:
            raise Unavailable(f"version {version} of {pipeline}", f"it was not admitted: {lineup.refused[version]}")
        if lane is None:
            self._keep_spare(lineup, version)
        raise Unavailable(f"version {version} of {pipeline}", "it is being loaded; ask again in a moment")

    def waiting_for(self) -> list[str]:
        """What scoring is not ready for."""
        waiting = [] if self._replayed else ["the topics of versions and routes to be read"]
        waiting += [
            f"version {version} of {lineup.pipeline} to be loaded"
            for lineup in self._lineups.values()
            for version in lineup.missing()
        ]
        return waiting

    def observe(
        self, lineup: Lineup, version: str, outcome: Outcome, milliseconds: float, *, probe: bool = False
    ) -> None:
        """One run of a version came to an end; what the router makes of it goes to the bus."""
        for verdict in lineup.router.observe(version, outcome, time.monotonic(), probe=probe):
            self._start(self._report(lineup, verdict))
        meters.ran(lineup.pipeline, version, outcome, milliseconds)

    # --- what the topics say -----------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Start from the copies on this machine, read the topics from their beginning, then follow them for ever."""
        for ready in await asyncio.to_thread(self._cache.known):
            self._know(ready)
        for route in await asyncio.to_thread(self._cache.routes):
            await self.route(route, keep=False)
        await self._patiently(self._replay)
        self._replayed = True
        for lineup in self._lineups.values():
            self._settle(lineup)
        async with asyncio.TaskGroup() as group:
            for topic, handle in self._handlers().items():
                group.create_task(self._follow(topic, handle))

    @property
    def follows(self) -> Sequence[type[Event]]:
        """The topics that `follow` reads."""
        return tuple(self._handlers())

    def _handlers(self) -> Mapping[type[Event], Callable[..., Awaitable[None]]]:
        return {
            PipelineRemoved: self.remove,
            PipelineDeclared: self.declare,
            ModelReady: self.learn,
            RoutingChanged: self.route,
        }

    async def declare(self, event: PipelineDeclared) -> None:
        """A pipeline exists; its file says how long an answer may take and whether the prior may answer."""
        if self._ended(event):
            return
        lineup = self._lineup(event.pipeline)
        lineup.slo_ms = event.spec.scoring.slo_ms
        lineup.baseline = event.spec.scoring.baseline
        for lane in lineup.lanes.values():
            lane.slo = lineup.slo_ms / 1000

    async def learn(self, event: ModelReady) -> None:
        """A version may answer: it is tried and loaded, for it may be routed next."""
        if self._know(event) and self._replayed:
            self._settle(self._lineup(event.pipeline))

    async def route(self, event: RoutingChanged, *, keep: bool = True) -> None:
        """The routing table is swapped whole; what it names is loaded, what nobody names any more is let go."""
        if self._ended(event):
            return
        lineup = self._lineup(event.pipeline)
        known = lineup.router.table
        lineup.router.obey(event.table)
        if lineup.router.table is known:
            return
        meters.routed(event.pipeline, known, event.table)
        if self._replayed:
            self._settle(lineup)
        if keep:
            await asyncio.to_thread(self._cache.keep_route, event)

    async def remove(self, event: PipelineRemoved) -> None:
        """A pipeline ended: nothing of it stays."""
        known = self._removed.get(event.pipeline)
        if known is not None and known.time >= event.time:
            return
        self._removed[event.pipeline] = event
        lineup = self._lineups.get(event.pipeline)
        if lineup is not None and all(ready.time <= event.time for ready in lineup.known.values()):
            del self._lineups[event.pipeline]
            await self._end(lineup)
        await self._outbox.erase(event.pipeline)
        await asyncio.to_thread(self._cache.remove, event.pipeline)

    async def close(self) -> None:
        """Let go of every version."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._end(lineup) for lineup in self._lineups.values()))

    # --- following ---------------------------------------------------------------------------------------------

    async def _replay(self) -> None:
        for topic, handle in self._handlers().items():
            async for received in self._bus.replay(topic):
                await _take(received, handle)

    async def _follow(self, topic: type[Event], handle: Callable[..., Awaitable[None]]) -> None:
        async def once() -> None:
            async for received in self._bus.follow(topic):
                await _take(received, handle)

        await self._patiently(once)

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """Again and again while what it needs is not available."""
        attempt = 0
        while True:
            try:
                return await work()
            except Unavailable as error:
                log.warning("waits", why=str(error))
            await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
            attempt += 1

    def _know(self, event: ModelReady) -> bool:
        """Take note of a version; whether it is new here."""
        if self._ended(event):
            return False
        lineup = self._lineup(event.pipeline)
        if event.version in lineup.known:
            return False
        lineup.known[event.version] = event
        newest = lineup.known.get(lineup.newest) if lineup.newest else None
        if newest is None or newest.time <= event.time:
            lineup.newest = event.version
        return True

    def _ended(self, event: Event) -> bool:
        removed = self._removed.get(event.pipeline)
        return removed is not None and event.time <= removed.time

    def _lineup(self, pipeline: str) -> Lineup:
        lineup = self._lineups.get(pipeline)
        if lineup is None:
            lineup = self._lineups[pipeline] = Lineup(pipeline, Router())
        return lineup

    # --- loading -----------------------------------------------------------------------------------------------

    def _settle(self, lineup: Lineup) -> None:
        """Load what is wanted; let go of the rest once all of that is there, so that somebody always answers."""
        self._renew(lineup)
        wanted = lineup.wanted()
        for version in wanted:
            if version not in lineup.lanes and version not in lineup.refused and version not in lineup.loading:
                task = self._start(self._load(lineup, lineup.known[version]))
                lineup.loading[version] = task
        if lineup.missing() or lineup.loading:
            return
        for version in [v for v in lineup.lanes if v not in wanted and v not in lineup.spare]:
            self._start(self._unload(lineup, version))

    async def _load(self, lineup: Lineup, ready: ModelReady) -> None:
        """From file to lane, with the trial between; a refusal is published."""
        try:
            lane = await self._loaded(lineup, ready)
        except (Invalid, BrokenError) as error:
            await self._refuse(lineup, ready, str(error))
        else:
            lineup.lanes[ready.version] = lane
            log.info("version loaded", pipeline=lineup.pipeline, version=ready.version)
        finally:
            lineup.loading.pop(ready.version, None)
        self._settle(lineup)

    async def _loaded(self, lineup: Lineup, ready: ModelReady) -> Lane:
        """Raises `Invalid` (the file is not what it should be) or `BrokenError` (refused at its trial)."""
        content = await asyncio.to_thread(self._cache.get, ready)
        expected = 1.0
        if content is None:
            content, expected = await self._admitted(ready)
        lane = Lane(
            ready,
            content,
            Signature(ready.inputs),
            self._runners,
            Hooks(
                observed=lambda version, outcome, ms: self.observe(lineup, version, outcome, ms),
                changed=lambda: self._renew(lineup),
                alone=lambda: (
                    not any(other.available and other.version != ready.version for other in lineup.lanes.values())
                ),
            ),
            slo=lineup.slo_ms / 1000,
            expected_ms=expected,
        )
        await self._open(lane)
        return lane

    async def _open(self, lane: Lane) -> None:
        """An admitted version's process may fail to start for reasons that are not the version's: tried again."""
        for pause in _RETRY_SECONDS:
            try:
                return await lane.open()
            except (BrokenError, TimeoutError, OSError) as error:
                log.warning("version does not start", version=lane.version, why=str(error) or type(error).__name__)
                await asyncio.sleep(pause)
        try:
            await lane.open()
        except (TimeoutError, OSError) as error:
            raise BrokenError(f"its process does not start: {error}") from None

    async def _admitted(self, ready: ModelReady) -> tuple[bytes, float]:
        attempt = 0
        while True:
            try:
                content = await asyncio.to_thread(self._lake().get_model, ready.file)
                verdict = await self._admission.admit(ready, content)
                if isinstance(verdict, Refused):
                    raise BrokenError(verdict.why)
                await asyncio.to_thread(self._cache.keep, ready, content)
            except Unavailable as error:
                log.warning("version waits", pipeline=ready.pipeline, version=ready.version, why=str(error))
            else:
                return content, verdict.milliseconds
            await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
            attempt += 1

    async def _refuse(self, lineup: Lineup, ready: ModelReady, why: str) -> None:
        lineup.refused[ready.version] = why
        log.warning("version refused", pipeline=lineup.pipeline, version=ready.version, why=why)
        await self._publish(
            VersionEjected.caused_by(
                ready, source=SOURCE, at=self._now(), of=f"{self._name}/refused",
                version=ready.version, router=self._name, why=why, admitted=False,
            )
        )  # fmt: skip

    async def _unload(self, lineup: Lineup, version: str) -> None:
        lane = lineup.lanes.pop(version, None)
        if lane is None:
            return
        lineup.router.loaded(version, False)
        self._renew(lineup)
        await lane.close()
        await asyncio.to_thread(self._cache.drop, lane.ready)
        log.info("version unloaded", pipeline=lineup.pipeline, version=version)

    def _keep_spare(self, lineup: Lineup, version: str) -> None:
        """Load a version that only a pin asks for; the one pinned longest ago makes room."""
        lineup.spare = [*(v for v in lineup.spare if v != version), version][-self._spare :]
        if version not in lineup.loading:
            lineup.loading[version] = self._start(self._load(lineup, lineup.known[version]))

    async def _end(self, lineup: Lineup) -> None:
        loading = tuple(lineup.loading.values())
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        for version in tuple(lineup.lanes):
            await lineup.lanes.pop(version).close()

    def _renew(self, lineup: Lineup) -> None:
        """What follows from which versions are there."""
        for version, lane in lineup.lanes.items():
            lineup.router.loaded(version, lane.available)
        signatures = {v: Signature(lineup.known[v].inputs) for v in lineup.wanted()}
        lineup.names = known_names([*signatures.values(), *(lane.signature for lane in lineup.lanes.values())])

    # --- telling -----------------------------------------------------------------------------------------------

    async def _report(self, lineup: Lineup, verdict: Verdict) -> None:
        at, fields = self._now(), {"pipeline": lineup.pipeline, "version": verdict.version, "router": self._name}
        if verdict.on:
            log.info("version asked again", why=verdict.why, **fields)
            event: Event = VersionRestored.first(source=SOURCE, at=at, why=verdict.why, **fields)
        else:
            log.warning("version taken off", why=verdict.why, **fields)
            lane = lineup.lanes.get(verdict.version)
            stats = VersionStats(
                requests=verdict.requests,
                late=verdict.late,
                errors=verdict.errors,
                p50=lane.waits.p50 if lane else None,
                p99=lane.waits.p99 if lane else None,
            )
            event = VersionEjected.first(source=SOURCE, at=at, why=verdict.why, stats=stats, **fields)
        await self._publish(event)

    async def _publish(self, event: Event) -> None:
        await self._patiently(lambda: self._outbox.add([event]))

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _take(received: Received, handle: Callable[..., Awaitable[None]]) -> None:
    """Give the event to `handle`; what is none stops nobody who follows."""
    try:
        event = received.event()
    except Invalid as error:
        log.warning("event passed over", topic=received.record.topic, offset=received.offset, why=str(error))
    else:
        await handle(event)

"""What monitoring does when something happens: it keeps what was scored and what came true, and it alone routes.

Any process keeps scores and outcomes. What is counted of a pipeline is keyed state: the process that reads the
pipeline's partition owns it, judges by it, and any may look at it. Any process may decide (a person asks whichever
there is), so every decision begins with what the bus and the audit trail say now.

A decision is made, published and put into the audit trail under one lock per pipeline, in this order, so that two
decisions of a process never start from the same table. Between processes the log decides: a table that came second is
none, and who wrote it decides again. The runtime would publish what a reaction returns only after the lock is gone;
therefore decisions are published here.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog

from turnout.common import telemetry
from turnout.common.bus.port import Bus, Record
from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import (
    EntityForgotten,
    Event,
    EvidenceDropped,
    ModelDegraded,
    ModelReady,
    ObservationReceived,
    OutcomeJoined,
    OutcomeObserved,
    PipelineDeclared,
    PipelineRemoved,
    RoutingChanged,
    RoutingTable,
    ScoreProduced,
    ScoreRequested,
    ScoresSummarised,
    VersionEjected,
    VersionRestored,
)
from turnout.common.history.port import Audit, HistoryStore, Joined, OutcomeKind
from turnout.common.ids import caused_event_id, content_id
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.service import Clock
from turnout.common.runtime.views import Pipelines, Routes
from turnout.common.summary import VERSIONLESS, micros, summarise
from turnout.monitoring.domain import routing, tally
from turnout.monitoring.domain.progress import MILESTONES, Progress
from turnout.monitoring.domain.routing import Decision
from turnout.monitoring.domain.standing import REMOVED, Standing
from turnout.monitoring.domain.tally import Tally
from turnout.monitoring.domain.verdict import Evidence, Signal
from turnout.monitoring.ports import KeyedState

E = TypeVar("E", bound=Event)
T = TypeVar("T")

SOURCE = "/monitoring"
AUTOMATION = "monitoring"
# Decisions of a pipeline that are read back at the start; far more than a year of daily deployments.
TRAIL = 10_000
# As many are looked at to see whether somebody else decided something.
RECENT = 50
# What was told again for a report, because nobody counts it now, is shown for so long.
SPARE = timedelta(seconds=10)
# Processes that write a table at once: each loss is somebody else's win, so a few rounds are enough.
ROUNDS = 5
# What the bus still holds of an entity goes at once; everything else goes by its own reaction.
OF_ENTITIES: Sequence[type[Event]] = (ObservationReceived, ScoreProduced, ScoreRequested)
DEAD = ".dead"
# What shows where a pipeline stands, and what every process has to know.
FOLLOWED: Sequence[type[Event]] = (*MILESTONES, PipelineRemoved, EntityForgotten)
# What is counted; one pipeline's are read by one process.
COUNTED: Sequence[type[Event]] = (ScoresSummarised, OutcomeJoined, EvidenceDropped)

log = structlog.get_logger()


class Watch:
    """What is known of all pipelines, and the only writer of `RoutingChanged`.

    What was decided is read from the bus and the history store when it is first needed, and again when somebody else
    decided; what was counted is in `state`.
    """

    def __init__(
        self, *, bus: Bus, history: HistoryStore, state: KeyedState, pipelines: Pipelines, routes: Routes, now: Clock
    ) -> None:
        self._bus = bus
        self._history = history
        self._state = state
        self._pipelines = pipelines
        self._routes = routes
        self._now = now
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._begun = False
        self._beginning = asyncio.Lock()
        self._standings: dict[str, Standing] = {}
        self._spare: dict[str, tuple[datetime, dict[str, Tally]]] = {}
        self._versions: defaultdict[str, dict[str, ModelReady]] = defaultdict(dict)
        self._removed: dict[str, datetime] = {}
        self._forgotten: dict[tuple[str, str], datetime] = {}

    # --- reactions ----------------------------------------------------------------------------------------------

    async def versions(self, events: Sequence[Event]) -> Sequence[Event]:
        """A version is ready, was refused, taken off or asked again by a router."""
        await self._begin()
        for event in events:
            if self._is_over(event):
                continue
            self.learn(event)
            async with self._locks[event.pipeline]:
                standing = await self._fresh(await self._standing(event.pipeline))
                match event:
                    case ModelReady():
                        await self._ready(standing, event)
                    case VersionEjected():
                        await self._ejected(standing, event)
                    case VersionRestored():
                        await self._restored(standing, event)
                    case _:
                        continue
        return ()

    async def scored(self, events: Sequence[Event]) -> Sequence[Event]:
        """Scores: kept once; one whose outcome came before it is joined."""
        await self._begin()
        kept = [score for score in _of(events, ScoreProduced) if not self._is_over(score, score.entity)]
        produced: list[Event] = []
        for pipeline, scores in _by_pipeline(kept).items():
            await self._history.add_scores(scores)
            crash_point("monitoring.scores-kept")
            # Of all, not of the new ones: an outcome that overtook its score may have been missed in a crash.
            produced += _told(await self._history.joined_of(pipeline, [s.score_id for s in scores]))
        return produced

    async def observed(self, events: Sequence[Event]) -> Sequence[Event]:
        """Outcomes: kept once, joined to their scores."""
        await self._begin()
        kept = [outcome for outcome in _of(events, OutcomeObserved) if not self._is_over(outcome)]
        produced: list[Event] = []
        for pipeline, outcomes in _by_pipeline(kept).items():
            kinds = await self._history.add_outcomes(outcomes)
            crash_point("monitoring.outcomes-kept")
            joined = await self._history.joined_of(pipeline, [o.score_id for o in outcomes])
            _count(outcomes, kinds, joined)
            produced += _told(joined)
        return produced

    async def counted(self, events: Sequence[Event]) -> Sequence[Event]:
        """Summaries and joined outcomes: each counted once, and the champion judged by them."""
        await self._begin()
        # First: of what is told beside it, what came before the end is left out anyhow.
        for dropped in _of(events, EvidenceDropped):
            await self._state.fold(lambda state, dropped=dropped: tally.drop(state, dropped.pipeline, dropped.time))
        kept = [event for event in events if not isinstance(event, EvidenceDropped) and not self._is_over(event)]
        for pipeline, told in _by_pipeline(kept).items():
            async with self._locks[pipeline]:
                standing = await self._standing(pipeline)
                await self._fold(standing, told)
                crash_point("monitoring.counted")
                await self._judge(standing)
        return ()

    async def removed(self, events: Sequence[Event]) -> Sequence[Event]:
        """A pipeline ended; who owns what was counted of it hears of that too."""
        await self._begin()
        ended = _of(events, PipelineRemoved)
        for event in ended:
            async with self._locks[event.pipeline]:
                await self._history.remove(event.pipeline)
                await self._end(event)
        return [EvidenceDropped.caused_by(event, source=SOURCE, at=event.time) for event in ended]

    async def forgotten(self, events: Sequence[Event]) -> Sequence[Event]:
        """A person asked to be forgotten."""
        await self._begin()
        for event in _of(events, EntityForgotten):
            async with self._locks[event.pipeline]:
                await self._history.forget(event.pipeline, event.entity)
                await self._forget(event)
        return ()

    # --- what a person decides ----------------------------------------------------------------------------------

    async def promote(self, pipeline: str, version: str, *, by: str, why: str = "") -> RoutingTable:
        """The version answers from now on and is pinned. Raises `Unknown`."""

        def decide(standing: Standing) -> Decision:
            known = standing.versions.keys()
            return routing.promote(standing.table, version, known=known, unfit=standing.unfit, last=standing.last_table)

        return await self._command(pipeline, decide, by=by, why=why or f"{by} promoted version {version}")

    async def rollback(self, pipeline: str, *, by: str, why: str = "") -> RoutingTable:
        """The version before answers from now on and is pinned. Raises `Unknown`, `Invalid`."""
        return await self._command(
            pipeline,
            lambda standing: routing.rollback(standing.table, pipeline),
            by=by,
            why=why or f"{by} went back to the version before",
        )

    async def unpin(self, pipeline: str, *, by: str, why: str = "") -> RoutingTable:
        """Automation decides again. Raises `Unknown`, `Invalid`."""
        return await self._command(
            pipeline,
            lambda standing: routing.unpin(standing.table, pipeline),
            by=by,
            why=why or f"{by} lets automation decide again",
        )

    async def remove(self, pipeline: str, *, by: str, why: str = "") -> PipelineRemoved:
        """End a pipeline: every service removes what it keeps of it. Raises `Unknown`."""
        async with self._locks[pipeline]:
            await self._known(pipeline)
            event = PipelineRemoved.first(source=SOURCE, at=self._now(), pipeline=pipeline, by=by)
            key = pipeline.encode()
            tombstones = [Record(topic.topic(), key, None) for topic in (RoutingChanged, PipelineDeclared)]
            await self._bus.publish(event, *tombstones)
            crash_point("monitoring.removal-published")
            await self._end(event, why)
            return event

    async def forget(self, pipeline: str, entity: str, *, by: str, why: str = "") -> EntityForgotten:
        """Forget a person: every service removes what it keeps of the entity, the bus at once. Raises `Unknown`.

        The audit trail names the entity by a hash: it stays longer than what it speaks of.
        """
        async with self._locks[pipeline]:
            await self._known(pipeline)
            event = EntityForgotten.first(source=SOURCE, at=self._now(), pipeline=pipeline, entity=entity, by=by)
            await self._bus.publish(event)
            crash_point("monitoring.forgetting-published")
            await self._forget(event, why)
            return event

    # --- what is asked ------------------------------------------------------------------------------------------

    async def names(self) -> list[str]:
        """Every pipeline that is declared, or has a version."""
        await self._begin()
        with_versions = (name for name, versions in self._versions.items() if versions)
        return sorted({*self._pipelines.names(), *with_versions, *self._standings})

    async def ask(self, pipeline: str, question: Callable[[Standing], T]) -> T:
        """What `question` says of the pipeline's state, while nothing changes it. Raises `Unknown`."""
        async with self._locks[pipeline]:
            standing = await self._fresh(await self._known(pipeline))
            standing.tallies = await self._tallies(standing)
            return question(standing)

    # --- how it is counted --------------------------------------------------------------------------------------

    async def _fold(self, standing: Standing, told: Sequence[Event]) -> None:
        """Take events in; what of the state was lost is rebuilt first."""
        pipeline, limits = standing.pipeline, standing.limits
        if await self._state.fold(lambda state: tally.next_missing(state, told)):
            found = await self._rebuilt_tallies(standing)
            await self._state.fold(lambda state: tally.begin(state, pipeline, found))
        champion = standing.table.champion if standing.table is not None else None
        touched = {event.version for event in told if isinstance(event, ScoresSummarised | OutcomeJoined)}
        refused: list[Invalid] = []

        def work(state: tally.State) -> tuple[list[Event], dict[str, Tally]]:
            new: list[Event] = []
            for event in told:
                try:
                    if tally.fold(state, event, limits):
                        new.append(event)
                except Invalid as error:
                    refused.append(error)
            names = touched | ({champion} if champion is not None else set())
            loaded = {name: tally.load(state, pipeline, name) for name in names}
            return new, {name: found for name, found in loaded.items() if found is not None}

        new, standing.tallies = await self._state.fold(work)
        self._spare.pop(pipeline, None)
        self._show(standing, new)
        if refused:
            raise refused[0]

    async def _tallies(self, standing: Standing) -> Mapping[str, Tally]:
        """What was counted, for a report: in whichever process owns it, or told again where it is lost."""
        found = await self._state.look(lambda state: tally.tallies(state, standing.pipeline))
        if found is None:
            made, found = self._spare.get(standing.pipeline, (None, {}))
            if made is None or self._now() - made > SPARE:
                found = await self._rebuilt_tallies(standing)
                self._spare[standing.pipeline] = (self._now(), found)
        ended = self._removed.get(standing.pipeline)
        return {v: t for v, t in found.items() if ended is None or t.until > micros(ended)}

    async def _rebuilt_tallies(self, standing: Standing) -> dict[str, Tally]:
        """Tallies from the summaries that the log still holds, and from the scores of the time before them."""
        pipeline, limits = standing.pipeline, standing.limits
        log_held = [
            event
            async for received in self._bus.replay(ScoresSummarised)
            if isinstance(event := _event(received.event), ScoresSummarised)
            and event.pipeline == pipeline
            and not self._is_over(event)
        ]
        made, since = await asyncio.to_thread(tally.rebuilt, log_held, limits)
        shapes = {version: standing.shape(version) for version in standing.versions}
        rows = 0
        async for page in self._history.all_scores(pipeline):
            before = [score for score in page if since is None or score.time < since]
            rows += len(before)
            for version, summary in (await asyncio.to_thread(summarise, before, shapes)).items():
                made.setdefault(version, Tally()).add(summary, max(s.time for s in before))
            if len(before) < len(page):
                break
        for version, found in made.items():
            for event in _told(await self._history.joined(pipeline, version=version, limit=limits.pairs)):
                found.joined(event, limits)
        log.info("counted again", pipeline=pipeline, summaries=len(log_held), scores=rows)
        return made

    def _show(self, standing: Standing, new: Sequence[Event]) -> None:
        joined = [event for event in new if isinstance(event, OutcomeJoined)]
        unreadable = sum(not standing.readable(e.version, e.predicted, e.outcome) for e in joined)
        if unreadable:
            telemetry.OUTCOMES.labels("unreadable").inc(unreadable)
        for version in {event.version for event in joined}:
            quality, reference = standing.quality(version), standing.reference(version)
            if quality is not None and reference is not None and quality.losses:
                live = reference.live(list(quality.losses.values()))
                telemetry.MODEL_QUALITY.labels(standing.pipeline, version, reference.metric).set(live)
        _show_times(standing)

    # --- how a decision is carried out --------------------------------------------------------------------------

    async def _ready(self, standing: Standing, ready: ModelReady) -> None:
        standing.know(ready)

        def decide(standing: Standing) -> Decision:
            automatic = standing.file is None or standing.file.deployment.approval == "automatic"
            return routing.deploy(
                standing.table, ready.version, automatic=automatic, unfit=standing.unfit, last=standing.last_table
            )

        if not await self._was_decided(standing, ready):
            await self._carry_out(standing, decide, cause=ready, subject=ready.version)

    async def _ejected(self, standing: Standing, event: VersionEjected) -> None:
        stats = event.stats.model_dump(mode="json") if event.stats else {}
        action = "ejected" if event.admitted else "refused"
        await self._audit(
            standing, _entry(event, action, event.version, event.why, who=event.router, detail={"stats": stats})
        )
        if event.admitted or standing.table is None or await self._was_decided(standing, event, recorded=False):
            return
        why = f"version {event.version} was not admitted by {event.router}: {event.why}"

        def decide(standing: Standing) -> Decision:
            if standing.table is None:
                return Decision(None, "recorded", why)
            return routing.switch_back(standing.table, event.version, why, unfit=standing.unfit)

        await self._carry_out(standing, decide, cause=event, subject=event.version, note=False)

    async def _restored(self, standing: Standing, event: VersionRestored) -> None:
        await self._audit(standing, _entry(event, "restored", event.version, event.why, who=event.router))

    async def _judge(self, standing: Standing) -> None:
        for signal in standing.recovered():
            await self._recover(standing, signal)
        if not standing.verdicts():
            return
        # Somebody else may have told it already, or have taken the version off.
        await self._fresh(standing)
        for evidence in standing.verdicts():
            before = standing.routing
            await self._degrade(standing, evidence)
            if standing.routing is not before:
                return

    async def _degrade(self, standing: Standing, evidence: Evidence) -> None:
        """Say that the champion is degraded and switch back, in one publication."""
        assert standing.routing is not None
        table = standing.routing.table
        version = table.champion
        # The table that put the version in charge is the cause: every attempt to say this makes the same event.
        degraded = ModelDegraded.caused_by(
            standing.routing,
            source=SOURCE,
            at=self._now(),
            of=f"{version}:{evidence.signal}:{standing.trouble(evidence.signal).told}",
            version=version,
            signal=evidence.signal,
            why=evidence.why,
            stats=evidence.stats,
        )
        decision = routing.switch_back(table, version, evidence.why, unfit=standing.unfit)
        changed = _changed(degraded, decision, at=self._now())
        crash_point("monitoring.verdict-found")
        counts = True
        if changed is None:
            await self._bus.publish(degraded)
        else:
            counts = await self._publish(standing, changed, degraded)
        crash_point("monitoring.verdict-published")
        why = evidence.why if changed and counts else decision.why
        entries = [_verdict_entry(degraded, table.version, why)]
        if changed is not None and counts:
            entries.append(_table_entry(changed, decision.action, version))
        await self._audit(standing, *entries)
        telemetry.MODEL_DEGRADED.labels(standing.pipeline, evidence.signal).inc()
        log.warning("model degraded", pipeline=standing.pipeline, version=version, signal=evidence.signal, why=why)
        if changed is not None and counts:
            self._obey(standing, changed)
        elif changed is not None:
            await self._put_back(standing, changed)

    async def _recover(self, standing: Standing, signal: Signal) -> None:
        assert standing.routing is not None
        version = standing.routing.table.champion
        told = standing.trouble(signal).told
        ident = caused_event_id(standing.routing.id, "recovered", f"{version}:{signal}:{told}")
        detail = {"signal": signal, "table_version": standing.routing.table.version, "cause": standing.routing.id}
        await self._audit(
            standing,
            Audit(
                ident,
                self._now(),
                standing.pipeline,
                AUTOMATION,
                "recovered",
                version,
                f"{signal} is well again",
                detail,
            ),
        )

    async def _carry_out(
        self,
        standing: Standing,
        decide: Callable[[Standing], Decision],
        *,
        cause: Event,
        subject: str,
        note: bool = True,
    ) -> None:
        """Publish automation's decision, or only write it down (if `note`)."""
        lost: RoutingChanged | None = None
        for again in range(ROUNDS):
            decision = decide(standing)
            changed = _changed(cause, decision, at=self._now(), again=again)
            if changed is None:
                if lost is not None:
                    await self._put_back(standing, lost)
                if note:
                    await self._audit(standing, _entry(cause, decision.action, subject, decision.why, who=AUTOMATION))
                return
            counts = await self._publish(standing, changed)
            crash_point("monitoring.routing-published")
            if counts:
                await self._audit(standing, _table_entry(changed, decision.action, subject))
                self._obey(standing, changed)
                return
            lost = changed
        raise Unavailable(f"the routing of {standing.pipeline}", "somebody else's table came first again and again")

    async def _command(
        self, pipeline: str, decide: Callable[[Standing], Decision], *, by: str, why: str
    ) -> RoutingTable:
        async with self._locks[pipeline]:
            standing = await self._fresh(await self._known(pipeline))
            lost: RoutingChanged | None = None
            for _ in range(ROUNDS):
                decision = decide(standing)
                if decision.table is None:
                    if lost is not None:
                        await self._put_back(standing, lost)
                    assert standing.table is not None
                    return standing.table
                changed = RoutingChanged.first(
                    source=SOURCE, at=self._now(), pipeline=pipeline, table=decision.table, why=why, by=by
                )
                counts = await self._publish(standing, changed)
                crash_point("monitoring.command-published")
                if counts:
                    await self._audit(standing, _table_entry(changed, decision.action, changed.table.champion))
                    self._obey(standing, changed)
                    return changed.table
                lost = changed
        raise Unavailable(f"the routing of {pipeline}", "somebody else's table came first again and again")

    async def _publish(self, standing: Standing, changed: RoutingChanged, *before: Event) -> bool:
        """Publish a table; whether it counts. If not, the state is what whoever came first made of it."""
        newest = await self._routes.publish(changed, *before)
        if newest is None or newest.id == changed.id:
            return True
        log.info("another table came first", pipeline=standing.pipeline, table=changed.table.version)
        await self._fresh(standing, whole=True)
        return False

    async def _put_back(self, standing: Standing, lost: RoutingChanged) -> None:
        """Write the table that counts once more, under a higher number: a compacted topic keeps a key's last record,
        and that is now one that does not count."""
        for again in range(ROUNDS):
            counting = standing.routing
            if counting is None or counting.table.version > lost.table.version:
                return
            table = counting.table.model_copy(update={"version": counting.table.version + 1})
            changed = RoutingChanged.caused_by(
                lost, source=SOURCE, at=self._now(), of=str(again), table=table, why=counting.why, by=counting.by
            )
            if await self._publish(standing, changed):
                await self._audit(standing, _table_entry(changed, "kept", table.champion))
                self._obey(standing, changed)
                return
            lost = changed

    async def _was_decided(self, standing: Standing, cause: Event, *, recorded: bool = True) -> bool:
        """Whether this event led to a table before; `recorded`: or to an entry of its own in the audit trail."""
        changed = [_changed_id(cause, again) for again in range(ROUNDS)]
        if standing.routing is not None and standing.routing.id in changed:
            return True
        return bool(await self._history.audited([*changed, cause.id] if recorded else changed))

    async def _audit(self, standing: Standing, *entries: Audit) -> None:
        await self._history.add_audit(*entries)
        for entry in entries:
            standing.recall(entry)

    def _obey(self, standing: Standing, changed: RoutingChanged) -> None:
        standing.obey(changed)
        telemetry.ROUTING_CHANGES.labels(standing.pipeline).inc()
        log.info(
            "routing changed",
            pipeline=standing.pipeline,
            champion=changed.table.champion,
            table=changed.table.version,
            why=changed.why,
        )

    # --- how the state comes about ------------------------------------------------------------------------------

    async def _standing(self, pipeline: str) -> Standing:
        """The pipeline's state; the caller holds its lock."""
        await self._begin()
        standing = self._standings.get(pipeline)
        if standing is None:
            return await self._rebuilt(pipeline)
        if pipeline in self._pipelines.names():
            declared = await self._pipelines.declared(pipeline)
            standing.declare(declared.spec, declared.time)
        for version, ready in self._versions.get(pipeline, {}).items():
            if version not in standing.versions:
                standing.know(ready)
        newest = self._routes.now(pipeline)
        if newest is not None and (standing.routing is None or newest.id != standing.routing.id):
            await self._fresh(standing, whole=True)
        return standing

    async def _known(self, pipeline: str) -> Standing:
        """Like `_standing`, but raises `Unknown` for a name that no pipeline has."""
        await self._begin()
        if pipeline not in self._standings and not self._versions.get(pipeline):
            await self._pipelines.declared(pipeline)
        return await self._standing(pipeline)

    async def _fresh(self, standing: Standing, *, whole: bool = False) -> Standing:
        """The state after reading what other processes decided since it was last read."""
        newest = self._routes.now(standing.pipeline)
        moved = newest is not None and (standing.routing is None or newest.id != standing.routing.id)
        recent = [] if whole or moved else await self._history.audit(standing.pipeline, limit=RECENT)
        if whole or moved or any(entry.id not in standing.recalled for entry in recent):
            standing.remember(await self._history.audit(standing.pipeline, limit=TRAIL))
            if newest is not None:
                standing.obey(newest)
        return standing

    async def _rebuilt(self, pipeline: str) -> Standing:
        standing = Standing(pipeline)
        try:
            declared = await self._pipelines.declared(pipeline)
            standing.declare(declared.spec, declared.time)
        except Unknown:
            log.debug("pipeline is not declared", pipeline=pipeline)
        for ready in self._versions.get(pipeline, {}).values():
            standing.know(ready)
        standing.remember(await self._history.audit(pipeline, limit=TRAIL))
        newest = await self._routes.newest(pipeline)
        if newest is not None:
            await self._catch_up(standing, newest)
            standing.obey(newest)
        self._standings[pipeline] = standing
        return standing

    async def _catch_up(self, standing: Standing, newest: RoutingChanged) -> None:
        """Write down a decision that was published when the process died before it could."""
        if await self._history.audited([newest.id]):
            return
        entries: list[Audit] = []
        async for received in self._bus.replay(ModelDegraded):
            degraded = _event(received.event)
            if isinstance(degraded, ModelDegraded) and degraded.id == newest.causation_id:
                entries = [_verdict_entry(degraded, newest.table.version - 1, degraded.why)]
        if newest.by != AUTOMATION:
            action = "promoted" if newest.table.pinned else "unpinned"
        else:
            action = "switched back" if entries else "deployed"
        await self._audit(standing, *entries, _table_entry(newest, action, newest.table.champion))

    async def _begin(self) -> None:
        """Read what ended and which versions there are, once."""
        if self._begun:
            return
        async with self._beginning:
            if self._begun:
                return
            for kind in (PipelineRemoved, EntityForgotten, ModelReady):
                async for received in self._bus.replay(kind):
                    self.learn(_event(received.event))
            self._begun = True

    def learn(self, event: Event | None) -> None:
        """Take note of what every process has to know, whoever reacts to it."""
        match event:
            case PipelineRemoved():
                self._removed[event.pipeline] = max(event.time, self._removed.get(event.pipeline, event.time))
                self._part(event.pipeline)
            case EntityForgotten():
                self._forgotten[event.pipeline, event.entity] = event.time
            case ModelReady() if not self._is_over(event):
                self._versions[event.pipeline][event.version] = event
            case _:
                return

    async def _end(self, event: PipelineRemoved, why: str = "") -> None:
        """Drop what came before the removal; a pipeline declared again by that name stays."""
        self.learn(event)
        entry = _entry(event, REMOVED, event.pipeline, why or f"{event.by} removed it", who=event.by)
        await self._history.add_audit(entry)
        if event.pipeline not in self._versions:
            # A service that starts later must not load what is gone.
            await self._bus.erase(ModelReady, event.pipeline)

    def _part(self, pipeline: str) -> None:
        """Let go of what came before the pipeline's removal."""
        known = self._versions.pop(pipeline, {})
        living = {version: ready for version, ready in known.items() if not self._is_over(ready)}
        if living:
            self._versions[pipeline] = living
        standing = self._standings.get(pipeline)
        if standing is not None and (standing.routing is None or self._is_over(standing.routing)):
            del self._standings[pipeline]
        self._spare.pop(pipeline, None)

    async def _forget(self, event: EntityForgotten, why: str = "") -> None:
        """Take the entity off the bus, and remember that what still comes of it from before is not to be kept."""
        self.learn(event)
        for topic in OF_ENTITIES:
            await self._bus.erase(topic, event.entity)
            await self._bus.erase(f"{topic.topic()}{DEAD}", event.entity)
        subject = content_id("entity", event.pipeline, event.entity)
        await self._history.add_audit(
            _entry(event, "forgotten", subject, why or f"{event.by} asked for it", who=event.by)
        )

    def _is_over(self, event: Event, entity: str | None = None) -> bool:
        """Whether the event comes from before its pipeline's removal, or its entity's wish to be forgotten."""
        ends = (self._removed.get(event.pipeline), self._forgotten.get((event.pipeline, entity)) if entity else None)
        return any(end is not None and event.time <= end for end in ends)


class Follow:
    """Keeps the view of where each pipeline stands, for people to look at."""

    def __init__(self, bus: Bus, progress: Progress, learn: Callable[[Event], None]) -> None:
        self._bus = bus
        self._progress = progress
        self._learn = learn

    async def milestones(self) -> None:
        """Read every milestone from the first on, for ever. Raises `Unavailable` when the bus goes away."""
        async with asyncio.TaskGroup() as group:
            for kind in FOLLOWED:
                group.create_task(self._follow(kind))

    async def _follow(self, kind: type[Event]) -> None:
        async for received in self._bus.follow(kind):
            event = _event(received.event) if received.record.value is not None else None
            if event is None:
                continue
            self._learn(event)
            if isinstance(event, PipelineRemoved):
                self._progress.forget(event.pipeline, event.time)
            else:
                self._progress.take(event)


class Expiry:
    """Removes what is older than the operator wants it kept."""

    def __init__(
        self,
        history: HistoryStore,
        *,
        keep: timedelta,
        every: timedelta,
        now: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._history = history
        self._keep = keep
        self._every = every
        self._now = now
        self._sleep = sleep

    async def run(self) -> None:
        """Look again and again; a store that is away is tried again next time."""
        while True:
            try:
                gone = await self._history.expire(self._now() - self._keep)
            except Unavailable as error:
                log.warning("history could not be expired", error=str(error))
            else:
                if gone:
                    log.info("history expired", rows=gone)
            await self._sleep(self._every.total_seconds())


def _of(events: Sequence[Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def _by_pipeline(events: Sequence[E]) -> Mapping[str, list[E]]:
    found: defaultdict[str, list[E]] = defaultdict(list)
    for event in events:
        found[event.pipeline].append(event)
    return found


def _event(read: Callable[[], Event]) -> Event | None:
    """The event, or None for one that cannot be understood: views skip it, a reaction puts it to the dead letters."""
    try:
        return read()
    except Invalid:
        return None


def _changed(cause: Event, decision: Decision, *, at: datetime, again: int = 0) -> RoutingChanged | None:
    """The table as an event; one that was decided `again` is another event than the one that lost."""
    if decision.table is None:
        return None
    return RoutingChanged.caused_by(
        cause, source=SOURCE, at=at, of=_round(again), table=decision.table, why=decision.why, by=AUTOMATION
    )


def _changed_id(cause: Event, again: int) -> str:
    return caused_event_id(cause.id, RoutingChanged.__name__, _round(again))


def _round(again: int) -> str:
    return str(again) if again else ""


def _told(joined: Sequence[Joined]) -> list[OutcomeJoined]:
    """Answers of versions beside what came true, as events; the same outcome always makes the same event."""
    return [
        OutcomeJoined.caused_by(
            pair.outcome,
            source=SOURCE,
            at=pair.outcome.time,
            pipeline=pair.score.pipeline,
            version=pair.score.version,
            score_id=pair.score.score_id,
            scored_at=pair.score.time,
            observed_at=pair.outcome.observed_at,
            predicted=pair.score.value,
            outcome=pair.outcome.outcome,
        )
        for pair in joined
        if pair.score.served_by not in VERSIONLESS
    ]


def _entry(
    event: Event, action: str, subject: str, why: str, *, who: str, detail: Mapping[str, Any] | None = None
) -> Audit:
    return Audit(event.id, event.time, event.pipeline, who, action, subject, why, {"cause": event.id, **(detail or {})})


def _table_entry(changed: RoutingChanged, action: str, subject: str) -> Audit:
    detail = {"cause": changed.causation_id, "table": changed.table.model_dump(mode="json")}
    return Audit(changed.id, changed.time, changed.pipeline, changed.by, action, subject, changed.why, detail)


def _verdict_entry(degraded: ModelDegraded, table_version: int, why: str) -> Audit:
    detail = {
        "cause": degraded.causation_id,
        "signal": degraded.signal,
        "table_version": table_version,
        "stats": degraded.stats.model_dump(mode="json"),
    }
    return Audit(degraded.id, degraded.time, degraded.pipeline, AUTOMATION, "degraded", degraded.version, why, detail)


def _count(outcomes: Sequence[OutcomeObserved], kinds: Sequence[OutcomeKind], joined: Sequence[Joined]) -> None:
    scored = {pair.score.score_id: pair.score.time for pair in joined}
    for outcome, kind in zip(outcomes, kinds, strict=True):
        telemetry.OUTCOMES.labels(kind).inc()
        if kind == "joined":
            delay = (outcome.time - scored[outcome.score_id]).total_seconds()
            telemetry.OUTCOME_DELAY_SECONDS.observe(max(delay, 0.0))


def _show_times(standing: Standing) -> None:
    if standing.table is None or standing.table.champion not in standing.summaries:
        return
    champion = standing.table.champion
    latency = standing.summaries[champion].latency
    for share in (0.5, 0.99):
        found = latency.quantile(share)
        if found is not None:
            telemetry.VERSION_LATENCY.labels(standing.pipeline, champion, f"{share:g}").set(found / 1000)

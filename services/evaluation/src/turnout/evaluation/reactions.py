"""Trained candidates to a version, or to refusals; routing tables to aliases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import orjson
import pyarrow as pa
import structlog
from pydantic import JsonValue

from turnout.common.bus.port import Bus
from turnout.common.errors import Invalid
from turnout.common.events import (
    CandidateRefused,
    ColumnProfile,
    Comparison,
    DataSetRef,
    Event,
    FeaturesGenerated,
    ModelFile,
    ModelReady,
    ModelTrained,
    PipelineRemoved,
    RoutingChanged,
)
from turnout.common.executor.port import WorkerLost
from turnout.common.ids import caused_event_id
from turnout.common.lake.port import Lake
from turnout.common.models.port import Registry
from turnout.common.pipeline import PipelineFile
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.service import Clock
from turnout.common.runtime.views import Pipelines, Routes
from turnout.evaluation import measuring
from turnout.evaluation.domain import rule
from turnout.evaluation.domain.rule import Entry
from turnout.evaluation.measuring import Measured

SOURCE = "/evaluation"
RAW = "in:"
T = TypeVar("T")
REMEMBERED = 1_000
# Fields that an event about the same decision has of its own.
_OF_THE_CAUSE = {"id", "source", "time", "correlation_id", "causation_id", "traceparent"}
log = structlog.get_logger()


@dataclass(frozen=True)
class Champion:
    """The version that answers now, and its file if anybody still knows it."""

    version: str
    file: ModelFile | None


@dataclass
class Evaluate:
    """`ModelTrained` → `ModelReady` for the best candidate and `CandidateRefused` for the others, once all are there.

    A decision is kept in the lake beside the models: deciding again gives the same events.
    """

    lake: Lake
    registry: Registry
    pipelines: Pipelines
    routes: Routes
    executor: Executor
    bus: Bus
    now: Clock
    parallel: int = 2
    _runs: dict[tuple[str, str | None], dict[int, ModelTrained]] = field(default_factory=dict)
    # Runs that were decided here lately: their other candidates, complete with them, say nothing more.
    _over: dict[tuple[str, str | None], str] = field(default_factory=dict)

    async def __call__(self, events: Sequence[Event]) -> Sequence[Event]:
        """The events of every run that is complete now."""
        produced: list[Event] = []
        for event in events:
            if not isinstance(event, ModelTrained):
                continue
            key = (event.run_id, event.causation_id)
            if self._over.get(key, event.id) == event.id and (run := await self._joined(event)) is not None:
                produced += await self._decided(run, event)
                self._over[key] = event.id
                self._runs.pop(key, None)
        while len(self._over) > REMEMBERED:
            self._over.pop(next(iter(self._over)))
        return produced

    async def _joined(self, event: ModelTrained) -> list[ModelTrained] | None:
        """Every candidate of the run, in order, or None while some are missing. A restart forgot some: read again."""
        key = (event.run_id, event.causation_id)
        if key not in self._runs:
            self._runs[key] = {}
            if event.candidates > 1:
                async for received in self.bus.replay(ModelTrained):
                    self._remember(key, _read(received.event))
        self._remember(key, event)
        known = self._runs[key]
        return [known[index] for index in sorted(known)] if len(known) >= event.candidates else None

    def _remember(self, key: tuple[str, str | None], event: Event | None) -> None:
        if isinstance(event, ModelTrained) and (event.run_id, event.causation_id) == key:
            self._runs[key][event.candidate] = event

    async def _decided(self, run: Sequence[ModelTrained], cause: ModelTrained) -> list[Event]:
        ref = DataSetRef(kind="models", pipeline=cause.pipeline, id=f"{cause.run_id}-decision")
        manifest = await asyncio.to_thread(self.lake.manifest, ref)
        if manifest is not None:
            kept = [_kept(text) for text in _texts(manifest.lineage.get("events"))]
            return await self._said_again(kept, cause)
        events = await self._decide(run, cause)
        crash_point("evaluation-decided")
        await asyncio.to_thread(self._keep, ref, events, cause)
        crash_point("evaluation-recorded")
        return events

    def _keep(self, ref: DataSetRef, events: Sequence[Event], cause: ModelTrained) -> None:
        texts = [orjson.dumps([event.topic(), event.model_dump_json()]).decode() for event in events]
        ready = next((event for event in events if isinstance(event, ModelReady)), None)
        lineage: dict[str, JsonValue] = {"run": cause.run_id, "split": cause.split_id, "events": list(texts)}
        with self.lake.writer(ref, pa.schema([])) as writer:
            writer.commit(lineage=lineage, at=self.now(), event=ready)

    async def _said_again(self, kept: Sequence[Event], cause: ModelTrained) -> list[Event]:
        """What was decided, for a run that came again: the same events for the same cause, else for this one.

        A version that another one has replaced since stays replaced: only a person takes it back.
        """
        if any(event.causation_id == cause.id for event in kept):
            return list(kept)
        if any(event.correlation_id == cause.correlation_id for event in kept):
            # Another candidate of the run brought the decision; its own job sees to it that it is published.
            return []
        ready = next((event for event in kept if isinstance(event, ModelReady)), None)
        champion = await self._champion(cause.pipeline)
        if ready is not None and champion is not None and _older(ready.version, champion.version):
            why = f"it was decided before: version {ready.version}, which version {champion.version} has replaced"
            refused = CandidateRefused.caused_by(cause, source=SOURCE, at=self.now(), run_id=cause.run_id, why=why)
            return [_named(refused, cause, "again")]
        return [_for_cause(event, cause, self.now) for event in kept]

    async def _decide(self, run: Sequence[ModelTrained], cause: ModelTrained) -> list[Event]:
        file = await self.pipelines.file(cause.pipeline, cause.spec_id)
        measured = await self._measured(run)
        entries = [
            Entry(one.candidate, one.algorithm, found.metrics, found.base_rate, found.failure)
            for one, found in zip(run, measured, strict=True)
        ]
        await asyncio.to_thread(self._log, run, measured)
        winner = rule.best(entries, file)
        whys = {entry.candidate: rule.alone(entry, file).why for entry in entries}
        ready: ModelReady | None = None
        if winner is not None:
            whys |= {
                entry.candidate: rule.behind(entry, winner, file)
                for entry in entries
                if entry is not winner and rule.alone(entry, file).accepted
            }
            chosen = next(one for one in run if one.candidate == winner.candidate)
            champion = await self._champion(cause.pipeline)
            comparison, note = await self._compared(chosen, champion, file)
            verdict = rule.against(comparison, file) if comparison is not None else None
            if verdict is not None:
                whys[winner.candidate] = f"{whys[winner.candidate]}; {verdict.why}"
            if note:
                whys[winner.candidate] = f"{whys[winner.candidate]}; {note}"
            if verdict is None or verdict.accepted:
                ready = await self._ready(chosen, winner, comparison, whys[winner.candidate], file)
        refused = [
            CandidateRefused.caused_by(
                cause, source=SOURCE, at=self.now(), of=f"{cause.run_id}/{entry.candidate}", run_id=cause.run_id,
                candidate=entry.candidate, algorithm=entry.algorithm, metrics=entry.metrics,
                base_rate=entry.base_rate, why=whys[entry.candidate],
            )
            for entry in entries
            if ready is None or entry is not winner
        ]  # fmt: skip
        return [*([ready] if ready is not None else []), *refused]

    async def _measured(self, run: Sequence[ModelTrained]) -> list[Measured]:
        places = asyncio.Semaphore(max(1, self.parallel))

        async def one(trained: ModelTrained) -> Measured:
            if trained.file is None:
                return Measured(failure=trained.failure or "it never became a model")
            async with places:
                try:
                    return await self._in_worker(measuring.measure, self.lake, trained)
                except WorkerLost:
                    log.warning("a worker died under a measurement, trying once more", candidate=trained.candidate)
                try:
                    return await self._in_worker(measuring.measure, self.lake, trained)
                except WorkerLost:
                    return Measured(failure="its graph took a process down twice")

        return await asyncio.gather(*(one(trained) for trained in run))

    def _log(self, run: Sequence[ModelTrained], measured: Sequence[Measured]) -> None:
        for trained, found in zip(run, measured, strict=True):
            self.registry.log_candidate(
                trained.pipeline,
                f"{trained.run_id}/{trained.candidate}",
                parameters={},
                metrics={**found.metrics, **{f"base_{name}": value for name, value in found.base_rate.items()}},
                tags={"failure": found.failure} if found.failure else {},
                artefacts=found.curves,
            )

    async def _champion(self, pipeline: str) -> Champion | None:
        table = await self.routes.newest(pipeline)
        if table is None:
            return None
        version = table.table.champion
        registered = await asyncio.to_thread(self.registry.version, pipeline, version)
        if registered is not None:
            return Champion(version, registered.file)
        # A version that was announced without the registry (by hand, from another installation).
        found: ModelFile | None = None
        async for received in self.bus.replay(ModelReady):
            event = _read(received.event)
            if isinstance(event, ModelReady) and (event.pipeline, event.version) == (pipeline, version):
                found = event.file
        return Champion(version, found)

    async def _compared(
        self, chosen: ModelTrained, champion: Champion | None, file: PipelineFile
    ) -> tuple[Comparison | None, str]:
        if champion is None:
            return None, "there is no champion yet"
        if champion.file is None:
            return None, f"version {champion.version}, the champion, is in no registry and could not be compared"
        compare = partial(measuring.compare, larger_is_better=file.larger_is_better)
        found = await self._in_worker(compare, self.lake, chosen, champion.version, champion.file, file.metric)
        return (None, found) if isinstance(found, str) else (found, "")

    async def _ready(
        self, chosen: ModelTrained, winner: Entry, comparison: Comparison | None, why: str, file: PipelineFile
    ) -> ModelReady:
        assert chosen.file is not None
        sample = await self._in_worker(measuring.sample, self.lake, chosen)
        profile = await asyncio.to_thread(self._profile, chosen)
        tags = {
            "run_id": chosen.run_id, "split_id": chosen.split_id, "feature_set_id": chosen.feature_set_id,
            "spec_id": chosen.spec_id, "algorithm": chosen.algorithm, "event": chosen.id, "verdict": why,
        }  # fmt: skip
        version = await asyncio.to_thread(
            partial(self.registry.register, tracking_id=chosen.tracking_id, tags=tags),
            chosen.pipeline, f"{chosen.run_id}/{chosen.candidate}", chosen.file,
        )  # fmt: skip
        crash_point("evaluation-registered")
        return ModelReady.caused_by(
            chosen, source=SOURCE, at=self.now(),
            version=version.version, file=chosen.file, inputs=chosen.plan.inputs, target=chosen.target,
            prior=chosen.prior, sample=sample, algorithm=chosen.algorithm, metrics=winner.metrics,
            base_rate=winner.base_rate, comparison=comparison, why=why, run_id=chosen.run_id,
            split_id=chosen.split_id, feature_set_id=chosen.feature_set_id, profile=profile,
            slo_ms=file.scoring.slo_ms, spec_id=chosen.spec_id,
        )  # fmt: skip

    def _profile(self, chosen: ModelTrained) -> tuple[ColumnProfile, ...]:
        """What the raw inputs looked like when the model was trained."""
        ref = DataSetRef(kind="features", pipeline=chosen.pipeline, id=chosen.feature_set_id)
        manifest = self.lake.manifest(ref)
        if manifest is None or manifest.event is None or manifest.topic != FeaturesGenerated.topic():
            return ()
        found = {one.name: one for one in FeaturesGenerated.model_validate_json(manifest.event).profile}
        # A feature that a row-wise step changed does not look like what a request brings.
        changed = {name.removeprefix(RAW) for name in self.lake.schema(ref).names if name.startswith(RAW)}
        profiles: list[ColumnProfile] = []
        for column in chosen.plan.inputs:
            if RAW + column.name in found:
                profiles.append(found[RAW + column.name].model_copy(update={"name": column.name}))
            elif column.name in found and column.name not in changed:
                profiles.append(found[column.name])
        return tuple(profiles)

    async def _in_worker(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *arguments)


@dataclass(frozen=True)
class Project:
    """`RoutingChanged` → the registry's aliases, its projection; `PipelineRemoved` → nothing left in the registry."""

    registry: Registry

    async def __call__(self, events: Sequence[Event]) -> Sequence[Event]:
        """Nothing comes out. Of several tables of a pipeline the newest counts."""
        newest: dict[str, RoutingChanged] = {}
        for event in events:
            match event:
                case RoutingChanged():
                    before = newest.get(event.pipeline)
                    if before is None or event.table.version >= before.table.version:
                        newest[event.pipeline] = event
                case PipelineRemoved():
                    newest.pop(event.pipeline, None)
                    await asyncio.to_thread(self.registry.remove, event.pipeline)
                case _:
                    pass
        for pipeline, event in newest.items():
            await asyncio.to_thread(self._set, pipeline, event)
        return ()

    def _set(self, pipeline: str, event: RoutingChanged) -> None:
        table = event.table
        wanted = {"champion": table.champion, "previous": table.previous, "challenger": table.challenger}
        known = {version.version for version in self.registry.versions(pipeline)}
        aliases: Mapping[str, str | None] = {name: one if one in known else None for name, one in wanted.items()}
        strangers = sorted({one for one in wanted.values() if one is not None and one not in known})
        if strangers:
            log.warning("routed versions are not in the registry", pipeline=pipeline, versions=strangers)
        self.registry.set_aliases(pipeline, aliases)


def _read(parse: Callable[[], Event]) -> Event | None:
    try:
        return parse()
    except Invalid:
        # It went to the dead letters where it was first read.
        return None


def _texts(value: object) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


def _kept(text: str) -> Event:
    topic, json = orjson.loads(text)
    kinds: Mapping[str, type[Event]] = {kind.topic(): kind for kind in (ModelReady, CandidateRefused)}
    return kinds[topic].model_validate_json(json)


def _for_cause(event: Event, cause: ModelTrained, now: Clock) -> Event:
    which = event.candidate if isinstance(event, CandidateRefused) else "ready"
    kept = event.model_dump(exclude=_OF_THE_CAUSE)
    return _named(type(event).caused_by(cause, source=SOURCE, at=now(), **kept), cause, str(which))


def _named(event: Event, cause: ModelTrained, which: str) -> Event:
    """With an id that is the same whichever candidate of the run came last."""
    ident = caused_event_id(cause.causation_id or cause.id, event.topic(), f"{cause.run_id}/{which}")
    return event.model_copy(update={"id": ident})


def _older(version: str, than: str) -> bool:
    return version.isdigit() and than.isdigit() and int(version) < int(than)

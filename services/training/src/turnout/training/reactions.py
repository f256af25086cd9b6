"""Splits, and people's wishes, to trained candidates."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import pyarrow as pa
import structlog
from pydantic import JsonValue

from turnout.common.errors import Invalid
from turnout.common.events import (
    DataSegregated,
    DataSetRef,
    Event,
    FeaturesGenerated,
    ModelTrained,
    Prior,
    TrainingRequested,
)
from turnout.common.executor.port import WorkerLost
from turnout.common.ids import content_id
from turnout.common.lake.port import Lake
from turnout.common.models.port import Registry
from turnout.common.pipeline import PipelineFile
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.service import Clock
from turnout.common.runtime.views import Pipelines
from turnout.training import fitting
from turnout.training.domain.candidates import Trial, overridden
from turnout.training.fitting import Fitted

SOURCE = "/training"
Publish = Callable[[Event], Awaitable[None]]
# Fields that an event about the same candidate has of its own.
_OF_THE_CAUSE = {"id", "source", "time", "correlation_id", "causation_id", "traceparent"}
log = structlog.get_logger()


@dataclass(frozen=True)
class Run:
    """One training run: its split, its candidates, and the event that asked for it."""

    run_id: str
    cause: Event
    split: DataSegregated
    file: PipelineFile
    spec_id: str
    trials: Sequence[Trial]


@dataclass(frozen=True)
class Train:
    """`DataSegregated`, `TrainingRequested` → one `ModelTrained` a candidate, each published when it is there.

    A candidate's manifest in the lake says that it is done: a run that is taken up again goes on behind it.
    `parallel` candidates are fitted at a time; `packages` may be imported from.
    """

    lake: Lake
    registry: Registry
    pipelines: Pipelines
    executor: Executor
    publish: Publish
    now: Clock
    parallel: int = 2
    packages: tuple[str, ...] = ("sklearn",)

    async def __call__(self, events: Sequence[Event]) -> Sequence[Event]:
        """Train what the events ask for. Raises `Invalid` where a run cannot be begun as it is declared."""
        for event in events:
            run = await self._run_for(event)
            if run is not None:
                await self._train(run)
        return ()

    async def _run_for(self, event: Event) -> Run | None:
        match event:
            case DataSegregated():
                file = await self.pipelines.file(event.pipeline, event.spec_id)
                if file.task == "features" or not await self._wanted(event, file):
                    return None
                return await self._run(event, event, file, event.spec_id)
            case TrainingRequested():
                split = await asyncio.to_thread(self._newest, event.pipeline)
                declared = await self.pipelines.declared(event.pipeline)
                file = overridden(declared.spec, event.payload)
                return await self._run(event, split, file, declared.spec_id)
            case _:
                return None

    async def _wanted(self, split: DataSegregated, file: PipelineFile) -> bool:
        """Whether a split is trained on: as asked for, else if the file says so or it is the first one."""
        if split.train is not None:
            return split.train
        if "new_data" in file.retraining.on:
            return True
        earlier = await asyncio.to_thread(self._splits, split.pipeline)
        return not earlier or earlier[0].split_id == split.split_id

    def _splits(self, pipeline: str) -> list[DataSegregated]:
        manifests = self.lake.manifests("split", pipeline)
        return [
            DataSegregated.model_validate_json(manifest.event)
            for manifest in manifests
            if manifest.topic == DataSegregated.topic() and manifest.event is not None
        ]

    def _newest(self, pipeline: str) -> DataSegregated:
        splits = self._splits(pipeline)
        if not splits:
            raise Invalid("pipeline", f"'{pipeline}' has no data yet", fix=f"turnout apply the file of {pipeline}")
        return splits[-1]

    async def _run(self, cause: Event, split: DataSegregated, file: PipelineFile, spec_id: str) -> Run:
        trials = await self._in_worker(fitting.choose, file, self.packages)
        # The same data tried in the same way are the same run; but a wish is a wish: asked for twice, it is two.
        wish = cause.id if isinstance(cause, TrainingRequested) else ""
        run_id = content_id("run", split.pipeline, split.split_id, file.training, wish)
        return Run(run_id, cause, split, file, spec_id, trials)

    async def _train(self, run: Run) -> None:
        places = asyncio.Semaphore(max(1, self.parallel))
        async with asyncio.TaskGroup() as candidates:
            for index in range(len(run.trials)):
                candidates.create_task(self._candidate(run, index, places))

    async def _candidate(self, run: Run, index: int, places: asyncio.Semaphore) -> None:
        async with places:
            ref = DataSetRef(kind="models", pipeline=run.split.pipeline, id=f"{run.run_id}-{index}")
            manifest = await asyncio.to_thread(self.lake.manifest, ref)
            if manifest is not None and manifest.event is not None:
                event = _again(ModelTrained.model_validate_json(manifest.event), run, self.now)
            else:
                fitted = await self._fitted(run, run.trials[index])
                crash_point("training-fitted")
                event = await asyncio.to_thread(self._keep, ref, run, index, fitted)
            crash_point("training-recorded")
            await self.publish(event)

    async def _fitted(self, run: Run, trial: Trial) -> Fitted:
        work = (self.lake, run.split, trial, run.file.training.seed, self.packages)
        try:
            return await self._in_worker(fitting.fit_candidate, *work)
        except WorkerLost:
            # Everything under way in the pool was lost with one worker: only who dies twice is to blame.
            log.warning("a worker died under a candidate, trying once more", algorithm=trial.algorithm)
        try:
            return await self._in_worker(fitting.fit_candidate, *work)
        except WorkerLost:
            return Fitted(
                trial.parameters, failure="its process was killed twice; it may need more memory than there is"
            )

    def _keep(self, ref: DataSetRef, run: Run, index: int, fitted: Fitted) -> ModelTrained:
        """Log the candidate, then record its event in the lake: from then on it is done."""
        trial, split = run.trials[index], run.split
        tracking_id = self.registry.log_candidate(
            split.pipeline,
            f"{run.run_id}/{index}",
            parameters={"algorithm": trial.algorithm, "seed": run.file.training.seed, **trial.parameters},
            metrics=_metrics(fitted, split),
            tags=_tags(run, index, fitted, self._batches(split)),
        )
        crash_point("training-logged")
        event = ModelTrained.caused_by(
            run.cause, source=SOURCE, at=self.now(), of=f"{run.run_id}/{index}",
            run_id=run.run_id, candidate=index, candidates=len(run.trials),
            algorithm=trial.algorithm, parameters=trial.parameters, tracking_id=tracking_id,
            split_id=split.split_id, feature_set_id=split.feature_set_id, parts=split.parts,
            plan=split.plan, target=split.target, prior=fitted.prior or _no_prior(split),
            file=fitted.file, agreement=fitted.agreement, seconds=fitted.total, failure=fitted.failure,
            spec_id=run.spec_id,
        )  # fmt: skip
        lineage: dict[str, JsonValue] = {"split": split.split_id, "run": run.run_id, "cause": run.cause.id}
        with self.lake.writer(ref, pa.schema([])) as writer:
            manifest = writer.commit(lineage=lineage, at=event.time, event=event)
        # Somebody else may have been faster with the same candidate.
        assert manifest.event is not None
        return _again(ModelTrained.model_validate_json(manifest.event), run, self.now)

    def _batches(self, split: DataSegregated) -> tuple[str, ...]:
        ref = DataSetRef(kind="features", pipeline=split.pipeline, id=split.feature_set_id)
        manifest = self.lake.manifest(ref)
        if manifest is None or manifest.event is None or manifest.topic != FeaturesGenerated.topic():
            return ()
        return FeaturesGenerated.model_validate_json(manifest.event).batch_ids

    async def _in_worker(self, function: Callable[..., fitting.T], *arguments: object) -> fitting.T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *arguments)


def _again(stored: ModelTrained, run: Run, now: Clock) -> ModelTrained:
    """The candidate's event: as it was for the same cause, else about the same candidate for this one."""
    if stored.causation_id == run.cause.id:
        return stored
    kept = stored.model_dump(exclude=_OF_THE_CAUSE)
    of = f"{stored.run_id}/{stored.candidate}"
    return ModelTrained.caused_by(run.cause, source=SOURCE, at=now(), of=of, **kept)


def _no_prior(split: DataSegregated) -> Prior:
    """A failed candidate may know none; nobody reads it."""
    return Prior(value=split.target.classes[0] if split.target.classes else 0.0)


def _metrics(fitted: Fitted, split: DataSegregated) -> Mapping[str, float]:
    rows = {f"rows_{part.name}": float(part.rows) for part in split.parts}
    seconds = {f"seconds_{name}": value for name, value in fitted.seconds.items()}
    agreement = {} if fitted.agreement is None else {"agreement": fitted.agreement}
    size = {} if fitted.file is None else {"bytes": float(fitted.file.size)}
    return {**rows, **seconds, **agreement, **size}


def _tags(run: Run, index: int, fitted: Fitted, batches: Sequence[str]) -> Mapping[str, str]:
    tags = {
        "run_id": run.run_id,
        "candidate": f"{index} of {len(run.trials)}",
        "split_id": run.split.split_id,
        "feature_set_id": run.split.feature_set_id,
        "batch_ids": ",".join(batches),
        "spec_id": run.spec_id,
        "cause": run.cause.id,
        "notes": "\n".join(fitted.notes),
        "failure": fitted.failure or "",
        "sha256": fitted.file.sha256 if fitted.file else "",
    }
    return {name: value for name, value in tags.items() if value}

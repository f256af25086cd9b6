"""Raw batches to feature sets, observations to the online store, and forgetting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime
from functools import reduce
from operator import add
from typing import TypeVar

from turnout.common import values
from turnout.common.events import (
    DataSetRef,
    EntityForgotten,
    Event,
    FeaturesGenerated,
    ObservationReceived,
    PipelineRemoved,
    RawDataExtracted,
    Values,
)  # fmt: skip
from turnout.common.history.port import HistoryStore
from turnout.common.lake.port import Lake
from turnout.common.online.port import OnlineStore, Put
from turnout.common.pipeline import Join, PipelineFile
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.service import Clock
from turnout.common.runtime.views import Pipelines
from turnout.common.values import Kind
from turnout.preparation import materialise
from turnout.preparation.domain import feature_set, plan
from turnout.preparation.domain.feature_set import Recipe
from turnout.preparation.domain.findings import findings
from turnout.preparation.domain.plan import Drawing
from turnout.preparation.domain.summary import profile
from turnout.preparation.domain.target import label_column, target
from turnout.preparation.materialise import Material, Part

Result = TypeVar("Result")
SOURCE = "/preparation"
# Fields that an event about the same set has of its own.
_OF_THE_CAUSE = {"id", "source", "time", "correlation_id", "causation_id", "traceparent", "spec_id", "train"}


@dataclass(frozen=True)
class _Made:
    """A feature set on its way into the lake."""

    ref: DataSetRef
    material: Material
    drawing: Drawing
    recipe: Recipe
    parts: Sequence[Part]


@dataclass(frozen=True)
class GenerateFeatures:
    """`RawDataExtracted` → `FeaturesGenerated`: all batches of the pipeline as one feature set."""

    lake: Lake
    pipelines: Pipelines
    executor: Executor
    now: Clock

    async def __call__(self, events: Sequence[Event]) -> Sequence[Event]:
        """One feature set for each event. Raises `Invalid` where the data cannot make one."""
        return [await self._generate(event) for event in events if isinstance(event, RawDataExtracted)]

    async def _generate(self, cause: RawDataExtracted) -> FeaturesGenerated:
        file = await self.pipelines.file(cause.pipeline, cause.spec_id)
        joined = {name: await self.pipelines.file(name) for name in materialise.joins(file)}
        # Said before hours are spent on the data.
        label_column(file, cause.columns)
        material = await asyncio.to_thread(materialise.gather, self.lake, file, cause.columns, joined)
        drawing = await self._draw(file, cause, material)
        recipe = feature_set.recipe(file, drawing.plan, cause.columns, material.others)
        ident = feature_set.feature_set_id(recipe, (ref.id for ref in material.batches))
        ref = DataSetRef(kind="features", pipeline=cause.pipeline, id=ident)
        manifest = await asyncio.to_thread(self.lake.manifest, ref)
        if manifest is not None and manifest.event is not None:
            return self._again(FeaturesGenerated.model_validate_json(manifest.event), cause)
        parts = await self._each(materialise.make_part, material.batches, recipe, self.now())
        crash_point("preparation-parts-written")
        made = _Made(ref, material, drawing, recipe, parts)
        event = await asyncio.to_thread(self._commit, made, file, cause)
        crash_point("preparation-set-written")
        return event

    async def _draw(self, file: PipelineFile, cause: RawDataExtracted, material: Material) -> Drawing:
        others = {name: other.kinds for name, other in material.others.items()}
        summary = None
        if file.preparation is None:
            taken = plan.roles(file)
            kinds: dict[str, Kind] = {c.name: c.kind for c in cause.columns if c.name not in taken}
            summary = reduce(add, await self._each(materialise.survey, material.batches, kinds))
        return plan.draw(file, cause.columns, others=others, survey=summary)

    async def _each(self, work: Callable[..., Result], batches: Sequence[DataSetRef], *rest: object) -> list[Result]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            *(loop.run_in_executor(self.executor, work, self.lake, ref, *rest) for ref in batches)
        )

    def _commit(self, made: _Made, file: PipelineFile, cause: RawDataExtracted) -> FeaturesGenerated:
        event = self._describe(made, file, cause)
        with self.lake.writer(made.ref, made.recipe.schema) as writer:
            manifest = writer.commit(
                lineage={"batches": [ref.id for ref in made.material.batches], "cause": cause.id},
                at=event.time,
                event=event,
                parts=[part.ref for part in made.parts],
            )
        # Somebody else may have been faster with the same set.
        assert manifest.event is not None
        return self._again(FeaturesGenerated.model_validate_json(manifest.event), cause)

    def _describe(self, made: _Made, file: PipelineFile, cause: RawDataExtracted) -> FeaturesGenerated:
        summary = reduce(add, [part.summary for part in made.parts])
        unlabelled = sum(part.unlabelled for part in made.parts)
        found = target(file, summary, unlabelled)
        drawn = made.drawing.plan
        return FeaturesGenerated.caused_by(
            cause,
            source=SOURCE,
            at=self.now(),
            feature_set_id=made.ref.id,
            data=made.ref,
            rows=summary.rows,
            rows_unlabelled=unlabelled,
            batch_ids=tuple(batch.id for batch in made.material.batches),
            plan=drawn,
            target=found,
            profile=profile(summary, [column.name for column in drawn.features]),
            warnings=(*made.material.warnings, *made.drawing.warnings, *findings(summary, drawn, found)),
            spec_id=cause.spec_id,
            train=False if file.task == "features" else cause.train,
        )

    def _again(self, stored: FeaturesGenerated, cause: RawDataExtracted) -> FeaturesGenerated:
        """The event of a set that is there: as it was for the same cause, else about the same set for this one."""
        if stored.causation_id == cause.id:
            return stored
        kept = stored.model_dump(exclude=_OF_THE_CAUSE)
        train = False if stored.target.task == "features" else cause.train
        return FeaturesGenerated.caused_by(
            cause, source=SOURCE, at=self.now(), **kept, spec_id=cause.spec_id, train=train
        )


@dataclass
class UpdateOnline:
    """`ObservationReceived` → the entity's newest features, in its pipeline and in those that join it."""

    lake: Lake
    online: OnlineStore
    history: HistoryStore
    pipelines: Pipelines
    _inferred: dict[str, Mapping[str, Kind]] = field(default_factory=dict)

    async def __call__(self, events: Sequence[Event]) -> Sequence[Event]:
        """Nothing comes out. Raises `Invalid` for a value that is not of its column's kind; then nothing is kept."""
        observations = [event for event in events if isinstance(event, ObservationReceived)]
        puts = await self.places(observations)
        by_pipeline: dict[str, list[Put]] = {}
        for name, o, some in puts:
            by_pipeline.setdefault(name, []).append((o.entity, some, o.event_time))
        await asyncio.gather(*(self.online.put_many(name, of_it) for name, of_it in by_pipeline.items()))
        crash_point("preparation-online-written")
        await self.history.add_features(observations)
        return []

    async def places(
        self, observations: Sequence[ObservationReceived]
    ) -> Sequence[tuple[str, ObservationReceived, Values]]:
        """Which values of an observation belong into which pipeline. Raises `Invalid` as the call does."""
        # Their own first: an unknown name makes the view read the topic again.
        names = [*dict.fromkeys(event.pipeline for event in observations)]
        files = {name: await self.pipelines.file(name) for name in names}
        files |= {name: await self.pipelines.file(name) for name in self.pipelines.names()}
        puts: list[tuple[str, ObservationReceived, Values]] = []
        for observation in observations:
            own = files[observation.pipeline]
            kept = stored_values(observation.values, await self._kinds(own), own)
            puts.append((observation.pipeline, observation, kept))
            for name, wanted in joining(files, observation.pipeline):
                joined = {column: value for column, value in kept.items() if column in wanted}
                puts.append((name, observation, joined))
        return [put for put in puts if put[2]]

    async def _kinds(self, file: PipelineFile) -> Mapping[str, Kind]:
        """Kinds of the raw columns, as declared, else as the lake has them; nothing while no row has come."""
        declared: dict[str, Kind] = dict(file.columns or {})
        if file.pipeline not in self._inferred:
            found = await asyncio.to_thread(materialise.raw_kinds, self.lake, file.pipeline)
            if not found:
                return declared
            self._inferred[file.pipeline] = found
        return {**self._inferred[file.pipeline], **declared}


@dataclass(frozen=True)
class Forget:
    """`PipelineRemoved` and `EntityForgotten` → what the online store kept goes.

    A pipeline that joins the entity's columns holds them too; there the whole entity goes, and the next observation
    brings the rest back.
    """

    online: OnlineStore
    pipelines: Pipelines

    async def __call__(self, events: Sequence[Event]) -> Sequence[Event]:
        """Nothing comes out; once more changes nothing."""
        for event in events:
            match event:
                case PipelineRemoved():
                    await self.online.remove(event.pipeline)
                case EntityForgotten():
                    for name in (event.pipeline, *await self._joined_by(event.pipeline)):
                        await self.online.forget(name, event.entity)
                case _:
                    pass
        return []

    async def _joined_by(self, source: str) -> list[str]:
        files = {name: await self.pipelines.file(name) for name in self.pipelines.names()}
        return [name for name, _ in joining(files, source)]


def stored_values(found: Values, kinds: Mapping[str, Kind], file: PipelineFile) -> Values:
    """The raw inputs in an observation, as the online store keeps them: numbers, canonical texts, ISO 8601 times.

    The label and the entity are left out, and so are values that are missing (they overwrite nothing) and columns that
    the pipeline does not know. While nothing is known of its columns, a number is a number and all else a category.
    Raises `Invalid` naming the column.
    """
    left_out = {file.source.label, file.source.entity}
    kept: dict[str, float | str] = {}
    for name, value in found.items():
        if name in left_out or (kinds and name not in kinds):
            continue
        guessed: Kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else "category"
        cell = values.cell(value, kinds.get(name, guessed), name)
        if cell is not None:
            kept[name] = cell.isoformat() if isinstance(cell, datetime) else cell
    return kept


def joining(files: Mapping[str, PipelineFile], source: str) -> list[tuple[str, frozenset[str]]]:
    """Pipelines that join columns of `source`, and which."""
    joins = [
        (name, step.options)
        for name, file in files.items()
        for step in file.preparation or ()
        if isinstance(step.options, Join)
    ]
    return [(name, frozenset(options.columns)) for name, options in joins if options.pipeline == source]

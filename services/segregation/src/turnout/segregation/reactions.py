"""Feature sets to splits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from turnout.common.events import DataSegregated, DataSetRef, Event, FeaturesGenerated
from turnout.common.ids import content_id
from turnout.common.lake.port import Lake
from turnout.common.pipeline import Segregation
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.service import Clock
from turnout.common.runtime.views import Pipelines
from turnout.segregation import parts
from turnout.segregation.parts import Done

SOURCE = "/segregation"
# Fields that an event about the same split has of its own.
_OF_THE_CAUSE = {"id", "source", "time", "correlation_id", "causation_id", "traceparent", "spec_id", "train"}


def split_id(feature_set_id: str, options: Segregation) -> str:
    """Names the split of a feature set by these options."""
    return content_id("split", feature_set_id, options)


@dataclass(frozen=True)
class Segregate:
    """`FeaturesGenerated` → `DataSegregated`; a set that only makes features (`task: features`) ends here."""

    lake: Lake
    pipelines: Pipelines
    executor: Executor
    now: Clock

    async def __call__(self, events: Sequence[Event]) -> Sequence[Event]:
        """One split for each event. Raises `Invalid` where the rows cannot be split as asked."""
        sets = [event for event in events if isinstance(event, FeaturesGenerated)]
        return [await self._segregate(event) for event in sets if event.target.task != "features"]

    async def _segregate(self, cause: FeaturesGenerated) -> DataSegregated:
        file = await self.pipelines.file(cause.pipeline, cause.spec_id)
        ident = split_id(cause.feature_set_id, file.segregation)
        ref = DataSetRef(kind="split", pipeline=cause.pipeline, id=ident)
        manifest = await asyncio.to_thread(self.lake.manifest, ref)
        if manifest is not None and manifest.event is not None:
            return self._again(DataSegregated.model_validate_json(manifest.event), cause)
        loop = asyncio.get_running_loop()
        done = await loop.run_in_executor(
            self.executor, parts.write, self.lake, cause, file.segregation, ident, self.now()
        )
        crash_point("segregation-parts-written")
        event = await asyncio.to_thread(self._commit, ref, cause, done)
        crash_point("segregation-split-written")
        return event

    def _commit(self, ref: DataSetRef, cause: FeaturesGenerated, done: Done) -> DataSegregated:
        event = DataSegregated.caused_by(
            cause,
            source=SOURCE,
            at=self.now(),
            split_id=ref.id,
            feature_set_id=cause.feature_set_id,
            parts=done.parts,
            plan=cause.plan,
            target=cause.target,
            warnings=done.warnings,
            spec_id=cause.spec_id,
            train=cause.train,
        )
        lineage = {"feature_set": cause.feature_set_id, "cause": cause.id}
        with self.lake.writer(ref, self.lake.schema(cause.data)) as writer:
            refs = [part.data for part in done.parts]
            manifest = writer.commit(lineage=lineage, at=event.time, event=event, parts=refs)
        # Somebody else may have been faster with the same split.
        assert manifest.event is not None
        return self._again(DataSegregated.model_validate_json(manifest.event), cause)

    def _again(self, stored: DataSegregated, cause: FeaturesGenerated) -> DataSegregated:
        """The event of a split that is there: as it was for the same cause, else about the same split for this one."""
        if stored.causation_id == cause.id:
            return stored
        kept = stored.model_dump(exclude=_OF_THE_CAUSE)
        return DataSegregated.caused_by(
            cause, source=SOURCE, at=self.now(), **kept, spec_id=cause.spec_id, train=cause.train
        )

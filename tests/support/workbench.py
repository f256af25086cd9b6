"""Raw batches laid in a real lake, and what preparation makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from builders import declared, raw_extracted

from turnout.common.events import Batch, Column, DataSetRef, FeaturesGenerated, RawDataExtracted
from turnout.common.pipeline import parse
from turnout.common.runtime.environment import Environment
from turnout.common.values import Kind
from turnout.preparation.domain.columns import TYPES
from turnout.preparation.reactions import GenerateFeatures, UpdateOnline


@dataclass
class Workbench:
    """Declares pipelines, lays raw batches and runs the reactions as functions."""

    environment: Environment
    kinds: dict[str, Mapping[str, Kind]] = field(default_factory=dict)

    async def declare(self, text: str) -> None:
        """Publish a pipeline file."""
        await self.environment.bus.publish(declared(parse(text)))

    def lay(
        self, pipeline: str, batch_id: str, kinds: Mapping[str, Kind], rows: Mapping[str, Sequence[Any]], **lineage: Any
    ) -> DataSetRef:
        """A raw batch as ingestion writes it."""
        self.kinds[pipeline] = kinds
        count = len(next(iter(rows.values())))
        arrays = {name: pa.array(rows[name], TYPES[kind]) for name, kind in kinds.items()}
        table = pa.table({**arrays, "_row": pa.array(range(2, count + 2), pa.int64())})
        ref = DataSetRef(kind="raw", pipeline=pipeline, id=batch_id)
        with self.environment.lake.writer(ref, table.schema) as writer:
            writer.write(table)
            writer.commit(lineage=lineage, at=self.environment.now())
        return ref

    def extracted(self, *refs: DataSetRef, **fields: Any) -> RawDataExtracted:
        """The event that these batches lead to."""
        manifests = [self.environment.lake.manifest(ref) for ref in refs]
        batches = [
            Batch(batch_id=m.ref.id, uri=f"file:///{m.ref.id}", sha256="0" * 64, rows_read=m.rows,
                  rows_written=m.rows, rows_quarantined=0, data=m.ref)
            for m in manifests if m is not None
        ]  # fmt: skip
        pipeline = refs[-1].pipeline
        columns = tuple(Column(name=name, kind=kind) for name, kind in self.kinds[pipeline].items())
        return raw_extracted(*batches, pipeline=pipeline, columns=columns, **fields)

    async def prepare(self, *refs: DataSetRef, **fields: Any) -> FeaturesGenerated:
        """The feature set after these batches came."""
        return await self.react(self.extracted(*refs, **fields))

    async def react(self, event: RawDataExtracted) -> FeaturesGenerated:
        """What preparation makes of the event."""
        env = self.environment
        (made,) = await GenerateFeatures(env.lake, env.pipelines, env.executor, env.now)([event])
        assert isinstance(made, FeaturesGenerated)
        return made

    def online(self) -> UpdateOnline:
        """The reaction to observations."""
        env = self.environment
        return UpdateOnline(env.lake, env.online, env.history, env.pipelines)

    def rows(self, made: FeaturesGenerated) -> list[dict[str, Any]]:
        """The rows of a feature set."""
        return self.environment.lake.read(made.data).to_pylist()

"""Feature sets laid in a real lake, and what segregation makes of them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from builders import declared, features_generated

from turnout.common.events import Column, DataSegregated, DataSetRef, FeaturesGenerated, Plan, Target
from turnout.common.pipeline import parse
from turnout.common.runtime.environment import Environment
from turnout.segregation.reactions import Segregate

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
COLUMNS = (Column(name="x", kind="number"), Column(name="colour", kind="category"))
SCHEMA = pa.schema([
    ("_batch", pa.string()), ("_row", pa.int64()), ("_label", pa.string()), ("_event_time", pa.timestamp("us", "UTC")),
    ("_entity", pa.string()), ("_fold", pa.string()), ("x", pa.float64()), ("colour", pa.string()),
    ("in:x", pa.float64()),
])  # fmt: skip


@dataclass
class Splitter:
    """Lays feature sets and runs the reaction as a function."""

    environment: Environment

    async def declare(self, segregation: str, task: str = "classification") -> None:
        """A pipeline with these options."""
        text = f"pipeline: p\ntask: {task}\nsource: {{label: y}}\nsegregation: {segregation}\n"
        await self.environment.bus.publish(declared(parse(text)))

    def lay(self, rows: int = 400, ident: str = "fs-1", **columns: Any) -> FeaturesGenerated:
        """A feature set of two parts; `columns` replace or (None) take away what it would have."""
        draw = random.Random(7)
        made: dict[str, Any] = {
            "_batch": ["b1"] * (rows // 2) + ["b2"] * (rows - rows // 2),
            "_row": list(range(2, rows // 2 + 2)) + list(range(2, rows - rows // 2 + 2)),
            "_label": [draw.choice(["no", "no", "yes"]) for _ in range(rows)],
            "_event_time": [T0 + timedelta(seconds=draw.randrange(10**6)) for _ in range(rows)],
            "_entity": [f"e{i}" for i in range(rows)],
            "_fold": [draw.choice(["train", "train", "test"]) for _ in range(rows)],
            "x": [draw.gauss(0, 1) for _ in range(rows)],
            "colour": [draw.choice(["red", "blue", None]) for _ in range(rows)],
            "in:x": [float(i) for i in range(rows)],
        } | columns
        schema = pa.schema([field for field in SCHEMA if made[field.name] is not None])
        table = pa.table({name: made[name] for name in schema.names}, schema=schema)
        refs: list[DataSetRef] = []
        lake = self.environment.lake
        for index, part in enumerate((table.slice(0, rows // 2), table.slice(rows // 2))):
            refs.append(DataSetRef(kind="features", pipeline="p", id=f"{ident}-part-{index}"))
            with lake.writer(refs[-1], schema) as writer:
                writer.write(part)
                writer.commit(lineage={}, at=T0)
        ref = DataSetRef(kind="features", pipeline="p", id=ident)
        with lake.writer(ref, schema) as writer:
            writer.commit(lineage={}, at=T0, parts=refs)
        classes = tuple(sorted(set(made["_label"]))) if made["_label"] is not None else ()
        target = Target(task="classification", label="y", classes=classes)
        plan = Plan(inputs=COLUMNS, features=COLUMNS)
        return features_generated(feature_set_id=ident, data=ref, rows=rows, plan=plan, target=target)

    async def split(self, cause: FeaturesGenerated) -> DataSegregated:
        """What segregation makes of the set."""
        (made,) = await self.react(cause)
        assert isinstance(made, DataSegregated)
        return made

    async def react(self, cause: FeaturesGenerated) -> list[Any]:
        """The events that come out."""
        env = self.environment
        return [*await Segregate(env.lake, env.pipelines, env.executor, env.now)([cause])]

    def rows(self, made: DataSegregated) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The rows of both parts."""
        train, test = (self.environment.lake.read(part.data).to_pylist() for part in made.parts)
        return train, test

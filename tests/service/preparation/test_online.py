"""Observations to the online store and the history; forgetting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from builders import observation
from environment import dead_letters, running
from workbench import Workbench

from turnout.common.errors import Invalid
from turnout.common.events import EntityForgotten, ObservationReceived, PipelineRemoved
from turnout.common.runtime.environment import Environment
from turnout.preparation.reactions import Forget
from turnout.preparation.service import build

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
DECLARED = """
pipeline: p
task: classification
source: {label: y, entity: id, event_time: at}
schema: {id: category, at: timestamp, age: number, colour: category, since: timestamp, y: number}
"""


async def features(bench: Workbench, entity: str = "e-1", pipeline: str = "p") -> dict[str, object]:
    found = await bench.environment.online.get_many(pipeline, [entity])
    return dict(found[entity].values) if entity in found else {}


def forgotten(entity: str) -> EntityForgotten:
    return EntityForgotten.first(source="/monitoring", at=T0, pipeline="p", entity=entity)


async def test_values_are_kept_as_the_schema_says(bench: Workbench) -> None:
    await bench.declare(DECLARED)
    values = {"id": "e-1", "age": "41", "colour": 3.0, "since": "2026-01-01 08:00", "y": 1, "extra": "x"}
    assert await bench.online()([observation(values=values)]) == []
    assert await features(bench) == {"age": 41.0, "colour": "3", "since": "2026-01-01T08:00:00+00:00"}


async def test_a_late_observation_never_overwrites_a_newer_one(bench: Workbench) -> None:
    await bench.declare(DECLARED)
    react = bench.online()
    await react([observation(values={"age": 2.0}, event_time=T0)])
    await react([observation(values={"age": 1.0, "colour": "red"}, event_time=T0 - timedelta(seconds=1))])
    assert await features(bench) == {"age": 2.0, "colour": "red"}


async def test_a_missing_value_overwrites_nothing(bench: Workbench) -> None:
    await bench.declare(DECLARED)
    react = bench.online()
    await react([observation(values={"age": 2.0, "colour": "red"}, event_time=T0)])
    await react([observation(values={"age": None, "colour": " "}, event_time=T0 + timedelta(seconds=1))])
    assert await features(bench) == {"age": 2.0, "colour": "red"}


async def test_twice_is_once(bench: Workbench) -> None:
    await bench.declare(DECLARED)
    seen = [observation(entity=f"e-{i}", values={"age": float(i)}) for i in range(50)]
    await bench.online()(seen)
    await bench.online()(seen)
    assert (await features(bench, "e-49")) == {"age": 49.0}
    assert len(await bench.environment.history.features("p", "e-49")) == 1


async def test_kinds_come_from_the_lake_where_no_schema_is_declared(bench: Workbench) -> None:
    await bench.declare("pipeline: p\ntask: classification\nsource: {label: y, entity: id}\n")
    react = bench.online()
    await react([observation(values={"age": 1.5, "colour": 2.0, "y": 1})])
    assert await features(bench) == {"age": 1.5, "colour": 2.0}
    bench.lay("p", "b1", {"id": "category", "age": "number", "colour": "category", "y": "number"},
              {"id": ["a"], "age": [1.0], "colour": ["red"], "y": [1.0]})  # fmt: skip
    await react([observation(values={"age": "2", "colour": 3.0, "new": 4.0})])
    assert await features(bench) == {"age": 2.0, "colour": "3"}


async def test_a_value_of_the_wrong_kind_is_refused_whole(bench: Workbench) -> None:
    await bench.declare(DECLARED)
    with pytest.raises(Invalid, match="age: 'old' is not a number"):
        await bench.online()([observation(values={"colour": "red", "age": "old"})])
    assert await features(bench) == {}


async def test_a_joining_pipeline_gets_the_columns_that_it_joins(bench: Workbench) -> None:
    await bench.declare(DECLARED)
    await bench.declare(
        "pipeline: q\ntask: classification\nsource: {label: y, entity: id, event_time: at}\n"
        "preparation: [{join: {pipeline: p, columns: [age]}}]\n"
    )
    await bench.online()([observation(values={"age": 5.0, "colour": "red"})])
    assert await features(bench, pipeline="q") == {"age": 5.0}
    await Forget(bench.environment.online, bench.environment.pipelines)([forgotten("e-1")])
    assert await features(bench, pipeline="q") == {}


async def test_forgetting_and_removing(bench: Workbench) -> None:
    await bench.declare(DECLARED)
    await bench.online()([observation(entity=name, values={"age": 1.0}) for name in ("e-1", "e-2")])
    forget = Forget(bench.environment.online, bench.environment.pipelines)
    for _ in range(2):
        assert await forget([forgotten("e-1")]) == []
    assert await features(bench, "e-1") == {}
    assert await features(bench, "e-2") == {"age": 1.0}
    await forget([PipelineRemoved.first(source="/monitoring", at=T0, pipeline="p")])
    assert await features(bench, "e-2") == {}


async def test_on_the_bus_a_bad_observation_is_a_dead_letter_and_the_others_are_kept(environment: Environment) -> None:
    bench = Workbench(environment)
    await bench.declare(DECLARED)
    bad = observation(entity="e-1", values={"age": "old"})
    good = [observation(entity="e-1", values={"age": float(i)}, event_time=T0 + timedelta(seconds=i)) for i in range(5)]
    async with running(environment, build(environment)):
        await environment.bus.publish(good[0], bad, *good[1:])
        while await features(bench) != {"age": 4.0} or not await dead_letters(environment.bus, ObservationReceived):
            await environment.bus.lag("preparation.online")
    (dead,) = await dead_letters(environment.bus, ObservationReceived)
    assert dead.record.key == b"e-1"

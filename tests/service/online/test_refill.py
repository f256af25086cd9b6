"""The online store is filled before it is asked, and again after it lost what it had."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from builders import observation
from environment import running
from redis_stand import command
from workbench import Workbench

from turnout.common.events import EntityForgotten, FeaturesGenerated, PipelineRemoved
from turnout.common.online.redis import RedisOnlineStore, RedisSettings
from turnout.common.runtime.environment import Environment
from turnout.devstack.redis import redis
from turnout.devstack.server import free_port
from turnout.preparation.refill import Refill
from turnout.preparation.service import build

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
KINDS = {"id": "category", "at": "timestamp", "age": "number", "colour": "category", "y": "number"}
DECLARED = """
pipeline: p
task: classification
source: {label: y, entity: id, event_time: at}
schema: {id: category, at: timestamp, age: number, colour: category, y: number}
"""
UNTIMED = "pipeline: p\ntask: classification\nsource: {label: y, entity: id}\n"


@pytest.fixture(params=["embedded", pytest.param("redis", marks=pytest.mark.stack)])
async def bench(request: pytest.FixtureRequest, environment: Environment, tmp_path: Path) -> AsyncIterator[Workbench]:
    environment.__dict__["executor"] = ThreadPoolExecutor(2)
    if request.param == "embedded":
        yield Workbench(environment)
        return
    server = redis(tmp_path / "redis", free_port())
    server.start()
    server.wait()
    store = RedisOnlineStore(RedisSettings(url=f"redis://{server.address}", prefix=uuid4().hex))
    environment.__dict__["online"] = store
    yield Workbench(environment)
    await store.close()
    server.kill()


async def flush(bench: Workbench) -> None:
    """What a restart without persistence or a FLUSHALL does."""
    online = bench.environment.online
    if isinstance(online, RedisOnlineStore):
        command(f"redis://{online.name.removeprefix('Redis at ')}", "FLUSHALL")
    else:
        await online.remove("p")
        await online.remove("q")


def refill(bench: Workbench) -> Refill:
    env = bench.environment
    return Refill(env.lake, env.online, env.bus, env.pipelines, bench.online())


async def known(bench: Workbench, *entities: str, pipeline: str = "p") -> dict[str, dict[str, object]]:
    found = await bench.environment.online.get_many(pipeline, entities)
    return {name: dict(features.values) for name, features in found.items()}


def at(**later: float) -> datetime:
    return T0 + timedelta(**later)


async def history(bench: Workbench) -> FeaturesGenerated:
    """e-1 has three rows out of order and a missing value, e-2 one, and one row has no time."""
    rows = {
        "id": ["e-1", "e-1", "e-1", "e-2", "e-3"],
        "at": [at(hours=1), at(hours=2), at(), at(), None],
        "age": [50.0, None, 49.0, 60.0, 1.0],
        "colour": ["red", "blue", "green", None, "x"],
        "y": [0.0, 1.0, 0.0, 1.0, 0.0],
    }
    return await bench.prepare(bench.lay("p", "b1", KINDS, rows))


WHOLE = {
    "e-1": {"age": 50.0, "colour": "blue", "at": at(hours=2).isoformat()},
    "e-2": {"age": 60.0, "at": at().isoformat()},
}


async def test_a_feature_sets_entities_are_known_with_the_newest_of_each_column(bench: Workbench) -> None:
    await bench.declare(DECLARED)
    made = await history(bench)
    await refill(bench)([made])
    assert await known(bench, "e-1", "e-2", "e-3") == WHOLE
    await refill(bench)([made])
    assert await known(bench, "e-1", "e-2", "e-3") == WHOLE


async def test_a_newer_live_value_stays_and_an_older_one_goes(bench: Workbench) -> None:
    await bench.declare(DECLARED)
    react = bench.online()
    # Newer than the row that has a colour, older than the one that has an age.
    await react([observation(entity="e-1", values={"colour": "live"}, event_time=at(hours=3))])
    await react([observation(entity="e-1", values={"age": 1.0}, event_time=at(minutes=30))])
    await refill(bench)([await history(bench)])
    assert await known(bench, "e-1") == {"e-1": WHOLE["e-1"] | {"colour": "live"}}


async def test_the_next_set_brings_its_new_batch_only(bench: Workbench) -> None:
    await bench.declare(DECLARED)
    first = await history(bench)
    await refill(bench)([first])
    await bench.environment.online.forget("p", "e-2")  # would come back if the first batch were read again
    rows = {"id": ["e-1"], "at": [at(hours=5)], "age": [55.0], "colour": [None], "y": [1.0]}
    refs = [*first.batch_ids]
    second = await bench.prepare(bench.lay("p", "b2", KINDS, rows))
    assert set(second.batch_ids) > set(refs)
    await refill(bench)([second])
    assert await known(bench, "e-1", "e-2") == {"e-1": WHOLE["e-1"] | {"age": 55.0, "at": at(hours=5).isoformat()}}


async def test_without_an_event_time_any_observation_is_newer(bench: Workbench) -> None:
    await bench.declare(UNTIMED)
    kinds = {name: kind for name, kind in KINDS.items() if name != "at"}
    await bench.online()([observation(entity="e-1", values={"age": 7.0}, event_time=datetime(1999, 1, 1, tzinfo=UTC))])
    made = await bench.prepare(
        bench.lay("p", "b1", kinds, {"id": ["e-1", "e-1"], "age": [1.0, 2.0], "colour": ["a", "b"], "y": [0.0, 1.0]})
    )
    await refill(bench)([made])
    assert await known(bench, "e-1") == {"e-1": {"age": 7.0, "colour": "b"}}


async def test_after_a_flush_files_and_observations_come_back_and_the_forgotten_do_not(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.preparation.refill.LOOK_SECONDS", 0.05)
    bus = bench.environment.bus
    await bench.declare(DECLARED)
    await bench.declare(
        "pipeline: q\ntask: classification\nsource: {label: y, entity: id, event_time: at}\n"
        "preparation: [{join: {pipeline: p, columns: [age]}}]\n"
    )
    made = await history(bench)
    live = [
        observation(entity="e-1", values={"colour": "live"}, event_time=at(hours=3)),
        observation(entity="e-9", values={"age": 9.0}, event_time=at(hours=3)),
        observation(entity="e-8", values={"age": 8.0}, event_time=at(hours=3)),
        observation(entity="e-1", values={"age": "not a number"}, event_time=at(hours=9)),
    ]
    whole = {**WHOLE, "e-1": WHOLE["e-1"] | {"colour": "live"}, "e-9": {"age": 9.0}}
    joined = {name: {"age": values["age"]} for name, values in whole.items()}
    gone = [EntityForgotten.first(source="/monitoring", at=T0, pipeline="p", entity=name) for name in ("e-8",)]
    names = ("e-1", "e-2", "e-3", "e-8", "e-9")
    async with running(bench.environment, build(bench.environment)):
        await bus.publish(made, *live)
        # An observation that comes after somebody was forgotten is a new one.
        while len(await known(bench, *names)) != 4 or sum((await bus.lag("preparation.online")).values()):
            await asyncio.sleep(0.01)
        await bus.publish(*gone)
        while await known(bench, *names) != whole:
            await asyncio.sleep(0.01)
        for _ in range(2):
            await flush(bench)
            while await known(bench, *names) != whole or await known(bench, *names, pipeline="q") != joined:
                await asyncio.sleep(0.01)


async def test_what_was_removed_does_not_come_back(bench: Workbench) -> None:
    await bench.declare(DECLARED)
    await bench.environment.bus.publish(observation(entity="e-9", values={"age": 9.0}, event_time=at()))
    removed = PipelineRemoved.first(source="/monitoring", at=T0 - timedelta(days=3650), pipeline="p")
    await bench.environment.bus.publish(removed)
    await bench.declare(DECLARED)
    await refill(bench).fill("p")
    assert await known(bench, "e-9") == {}


async def test_a_store_flushed_while_it_is_filled_is_filled_again(bench: Workbench) -> None:
    await bench.declare(DECLARED)
    await history(bench)
    filling = refill(bench)
    place = filling._observed

    async def flushed(*given: object) -> int:
        await flush(bench)
        return await place(*given)  # pyright: ignore[reportArgumentType]

    object.__setattr__(filling, "_observed", flushed)
    await filling.fill("p")
    assert await bench.environment.online.marked("p") is None
    await refill(bench).fill("p")
    assert await known(bench, "e-1", "e-2") == WHOLE

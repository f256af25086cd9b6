"""The features of scored rows on a topic that the pipeline file names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import builders
from environment import published, until
from scoring_stand import Stand, file

from turnout.common.bus.port import Received
from turnout.common.events import EntityForgotten, ObservationReceived, ScoreProduced, ScoreRequested
from turnout.common.runtime.environment import Environment
from turnout.scoring.adapters.outbox import SqliteOutbox
from turnout.scoring.reactions.feed import Feed

TOPIC = "their.feed"


async def fed(environment: Environment, count: int) -> list[Received]:
    """What is on the topic once there are `count`, at least."""
    async with asyncio.timeout(30):
        while True:
            found = [received async for received in environment.bus.replay(TOPIC)]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.02)


async def feeding(environment: Environment) -> None:
    spec = file()
    scoring = spec.scoring.model_copy(update={"feed": TOPIC})
    await environment.bus.publish(builders.declared(spec.model_copy(update={"scoring": scoring})))


async def test_every_scored_row_feeds_its_features(stand: Stand) -> None:
    environment = stand.environment
    await feeding(environment)
    while (known := environment.pipelines.now("p")) is None or known.scoring.feed is None:
        await asyncio.sleep(0.01)
    one = await stand.one({"age": 40.0, "colour": "red"}, entities=["e-1"])
    other = await stand.one({"age": 41.0, "colour": None})

    found = await fed(environment, 2)

    events = {event.entity: event for received in found if isinstance(event := received.event(), ObservationReceived)}
    assert events["e-1"].values == {"age": 40.0, "colour": "red"}
    assert events[other["score_id"]].values == {"age": 41.0, "colour": None}
    scores = {score.score_id: score for score in await published(environment.bus, ScoreProduced)}
    assert events["e-1"].event_time == scores[one["score_id"]].time
    assert events["e-1"].causation_id == scores[one["score_id"]].id
    assert {received.record.key for received in found} == {b"e-1", other["score_id"].encode()}


async def test_a_score_that_an_event_asked_for_feeds_too(stand: Stand) -> None:
    environment = stand.environment
    await feeding(environment)
    while (known := environment.pipelines.now("p")) is None or known.scoring.feed is None:
        await asyncio.sleep(0.01)
    asked = ScoreRequested.first(source="/test", at=builders.AT, pipeline="p", values={"age": 40.0, "colour": "red"})
    await environment.bus.publish(asked)

    (received,) = await fed(environment, 1)

    (score,) = await published(environment.bus, ScoreProduced)
    event = received.event()
    assert isinstance(event, ObservationReceived)
    assert (event.values, event.entity, event.causation_id) == (score.values, asked.id, score.id)


async def test_a_score_that_is_relayed_twice_feeds_the_same_event(tmp_path: Path, environment: Environment) -> None:
    """A relay that died after it had published, before it took note of it."""
    await feeding(environment)
    following = asyncio.create_task(environment.pipelines.follow())
    await until(lambda: environment.pipelines.ready)
    outbox = SqliteOutbox(tmp_path / "outbox.sqlite")
    other = builders.score_produced("other", pipeline="feeds-nothing")
    await outbox.add([builders.score_produced("one", entity="e-1"), other])
    for _ in range(2):
        taken = await outbox.take(10)
        await environment.bus.publish(*taken.records, *Feed(environment.pipelines).of(taken.records))
    first, second = await fed(environment, 2)
    assert first.event() == second.event()
    assert first.record.key == b"e-1"
    await outbox.close()
    following.cancel()


async def test_a_forgotten_entity_leaves_the_topic(stand: Stand) -> None:
    environment = stand.environment
    await feeding(environment)
    while (known := environment.pipelines.now("p")) is None or known.scoring.feed is None:
        await asyncio.sleep(0.01)
    for entity in ("gone", "stays", "gone"):
        await stand.one({"age": 40.0, "colour": "red"}, entities=[entity])
    await fed(environment, 3)
    await environment.bus.publish(EntityForgotten.first(source="/test", at=builders.AT, pipeline="p", entity="gone"))
    async with asyncio.timeout(30):
        while len(found := await fed(environment, 1)) > 1:
            await asyncio.sleep(0.02)
    assert [received.record.key for received in found] == [b"stays"]

"""The features of scored rows on a topic that the pipeline file names."""

from __future__ import annotations

import asyncio

import builders
from environment import dead_letters, published
from scoring_stand import Stand, file, standing

from turnout.common.bus.port import Received, Record
from turnout.common.events import EntityForgotten, ObservationReceived, ScoreProduced
from turnout.common.runtime.environment import Environment

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


async def test_a_score_that_comes_twice_feeds_the_same_event(environment: Environment) -> None:
    async with standing(environment):
        await feeding(environment)
        score = builders.score_produced(entity="e-1")
        await environment.bus.publish(score, score)
        first, second = await fed(environment, 2)
        assert first.event() == second.event()


async def test_what_feeds_nothing_is_passed_over_and_poison_is_not(environment: Environment) -> None:
    async with standing(environment):
        await environment.bus.publish(builders.score_produced(), builders.score_produced(pipeline="gone"))
        await feeding(environment)
        while (known := environment.pipelines.now("p")) is None or known.scoring.feed is None:
            await asyncio.sleep(0.01)
        bad = builders.score_produced(score_id="bad")
        await environment.bus.publish(builders.score_produced("good", entity="good"))

        from turnout.common.bus.cloudevents import encode

        encoded = encode(bad)
        await environment.bus.publish(Record(encoded.topic, encoded.key, b"{}", encoded.headers))
        found = await fed(environment, 1)
        assert [received.record.key for received in found] == [b"good"]
        async with asyncio.timeout(30):
            while not (letters := await dead_letters(environment.bus, ScoreProduced)):
                await asyncio.sleep(0.02)
        assert dict(letters[0].record.headers)["dead_group"] == b"scoring.feed"


async def test_a_forgotten_entity_leaves_the_topic(environment: Environment) -> None:
    async with standing(environment):
        await feeding(environment)
        for number, entity in enumerate(("gone", "stays", "gone")):
            await environment.bus.publish(builders.score_produced(str(number), entity=entity))
        await fed(environment, 3)
        await environment.bus.publish(
            EntityForgotten.first(source="/test", at=builders.AT, pipeline="p", entity="gone")
        )
        async with asyncio.timeout(30):
            while len(found := await fed(environment, 1)) > 1:
                await asyncio.sleep(0.02)
        assert [received.record.key for received in found] == [b"stays"]

"""Topics on Kafka: as the event classes say, or an error that says what to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from buses import foreign, kafka_settings, numbered, on_kafka

from turnout.common.bus.kafka.bus import KafkaBus
from turnout.common.bus.port import Record
from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import REGISTRY, RoutingChanged, SourceDataAvailable
from turnout.devstack.stack import Stack

pytestmark = pytest.mark.stack

Open = Callable[..., Awaitable[KafkaBus]]


@pytest.fixture
async def opened(stack: Stack, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens a bus of this test, with settings."""
    buses: list[KafkaBus] = []
    on_kafka(tmp_path, stack.kafka)

    async def make(**changes: object) -> KafkaBus:
        settings = kafka_settings(tmp_path).model_copy(update=changes)
        buses.append(KafkaBus(settings, home=tmp_path))
        return buses[-1]

    yield make
    for bus in buses:
        await bus.close()


@pytest.fixture
async def admin(stack: Stack) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=stack.kafka)
    await client.start()
    yield client
    await client.close()


@pytest.fixture
def prefix(opened: Open, tmp_path: Path) -> str:
    return kafka_settings(tmp_path).topic_prefix


async def make(admin: AIOKafkaAdminClient, name: str, partitions: int, **configs: str) -> None:
    await admin.create_topics(
        [NewTopic(name, partitions, 1, topic_configs={k.replace("_", "."): v for k, v in configs.items()})]
    )
    while not (await described(admin, "")).get(name):
        await asyncio.sleep(0.02)


async def described(admin: AIOKafkaAdminClient, prefix: str) -> Mapping[str, int]:
    found = await admin.describe_topics()
    return {t["topic"].removeprefix(prefix): len(t["partitions"]) for t in found if t["topic"].startswith(prefix)}


async def configs(admin: AIOKafkaAdminClient, name: str) -> Mapping[str, str]:
    [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    return {entry[0]: entry[1] for entry in answer.resources[0][4]}  # pyright: ignore[reportAttributeAccessIssue]


async def test_every_events_topic_is_made_as_its_class_says(
    opened: Open, admin: AIOKafkaAdminClient, prefix: str
) -> None:
    bus = await opened()
    await bus.ensure_topics()
    await bus.ensure_topics()
    found = await described(admin, prefix)
    events = {name: kind for name, kind in REGISTRY.items() if kind.__module__ == "turnout.common.events"}
    assert {name: n for name, n in found.items() if not name.endswith(".dead")} == {
        name: kind.partitions for name, kind in events.items()
    }
    assert {name.removesuffix(".dead") for name in found if name.endswith(".dead")} == set(events)
    routing = await configs(admin, prefix + "RoutingChanged")
    assert (routing["cleanup.policy"], routing["retention.ms"]) == ("compact", "-1")
    source = await configs(admin, prefix + "SourceDataAvailable")
    assert (source["cleanup.policy"], source["retention.ms"]) == ("delete", str(30 * 24 * 3600 * 1000))
    assert source["message.timestamp.type"] == "LogAppendTime"


async def test_too_few_partitions_are_an_error_that_says_how_to_get_more(
    opened: Open, admin: AIOKafkaAdminClient, prefix: str, stack: Stack
) -> None:
    name = prefix + "SourceDataAvailable"
    await make(admin, name, 1)
    bus = await opened()
    fix = f"kafka-topics.sh --bootstrap-server {stack.kafka} --alter --topic {name} --partitions 4"
    for attempt in (
        lambda: bus.publish(numbered(0)),
        lambda: anext(bus.consume(SourceDataAvailable, group="g")),
        lambda: anext(bus.replay(SourceDataAvailable)),
        bus.ensure_topics,
    ):
        with pytest.raises(Unavailable) as error:
            await attempt()
        assert name in str(error.value)
        assert "it has 1 partition(s), 4 are declared" in str(error.value)
        assert fix in str(error.value)


async def test_a_missing_compaction_is_an_error_that_says_how_to_get_it(
    opened: Open, admin: AIOKafkaAdminClient, prefix: str
) -> None:
    await make(admin, prefix + "RoutingChanged", 1, cleanup_policy="delete")
    bus = await opened()
    with pytest.raises(Unavailable, match=r"'delete', 'compact' is wanted.*--add-config cleanup.policy=compact"):
        _ = [r async for r in bus.replay(RoutingChanged)]


async def test_a_compaction_that_would_lose_events_is_an_error_too(
    opened: Open, admin: AIOKafkaAdminClient, prefix: str
) -> None:
    await make(admin, prefix + "SourceDataAvailable", 4, cleanup_policy="compact")
    bus = await opened()
    with pytest.raises(Unavailable, match=r"'compact', 'delete' is wanted"):
        await bus.publish(numbered(0))


async def test_more_partitions_than_declared_are_no_error(
    opened: Open, admin: AIOKafkaAdminClient, prefix: str
) -> None:
    await make(admin, prefix + "SourceDataAvailable", 6)
    bus = await opened()
    await bus.publish(*(numbered(0, f"k{n}") for n in range(60)))
    assert {r.partition for r in [r async for r in bus.replay(SourceDataAvailable)]} == set(range(6))


async def test_topics_are_only_checked_where_we_may_not_make_them(
    opened: Open, admin: AIOKafkaAdminClient, prefix: str
) -> None:
    bus = await opened(create_topics=False)
    with pytest.raises(Unavailable, match=r"TURNOUT_KAFKA_CREATE_TOPICS is false.*kafka-topics.sh .* --create"):
        await bus.publish(numbered(0))
    assert await described(admin, prefix) == {}
    await make(admin, prefix + "SourceDataAvailable", 4)
    async with asyncio.timeout(30):  # it is seen without a restart
        while True:
            try:
                await bus.publish(numbered(0))
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                break


async def test_a_wrong_topic_is_looked_at_less_than_once_in_a_second(
    opened: Open, admin: AIOKafkaAdminClient, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(admin, prefix + "SourceDataAvailable", 1)
    bus = await opened()
    looked: list[float] = []
    describe = AIOKafkaAdminClient.describe_topics

    async def counted(self: AIOKafkaAdminClient, *args: object) -> object:
        looked.append(time.monotonic())
        return await describe(self, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(AIOKafkaAdminClient, "describe_topics", counted)
    until = time.monotonic() + 4
    while time.monotonic() < until:
        with pytest.raises(Unavailable):
            await bus.publish(numbered(0))
        await asyncio.sleep(0.01)
    assert len(looked) >= 2
    assert min(later - before for before, later in pairwise(looked)) > 1


async def test_somebody_elses_topic_stays_as_it_is(opened: Open, admin: AIOKafkaAdminClient, prefix: str) -> None:
    theirs = foreign("orders")
    await make(admin, theirs, 2, cleanup_policy="compact", retention_ms="1000")
    bus = await opened()
    await bus.publish(Record(theirs, b"k", b"{}"), Record(f"{theirs}.dead", b"k", b"{}"))
    assert (await configs(admin, theirs))["cleanup.policy"] == "compact"
    assert f"{theirs}.dead" in await described(admin, prefix), "the dead letters are ours, under our prefix"


async def test_the_dead_letters_of_a_topic_with_large_messages_take_them(
    opened: Open, admin: AIOKafkaAdminClient, prefix: str
) -> None:
    theirs = foreign("films")
    await make(admin, theirs, 1, max_message_bytes=str(30_000_000))
    bus = await opened()
    film = Record(theirs, b"k", b"x" * 29_000_000)
    await bus.publish(film)
    letter = Record(f"{theirs}.dead", film.key, film.value, (("dead_error", b"too long"),))
    await bus.publish(letter)
    assert [r.record async for r in bus.replay(letter.topic)] == [letter]


async def test_what_does_not_fit_is_invalid_and_stops_nothing(opened: Open) -> None:
    bus = await opened()
    with pytest.raises(Invalid, match="the topic takes 16777216"):
        await bus.publish(Record("SourceDataAvailable", b"k", b"x" * 17_000_000))
    with pytest.raises(Invalid, match="a compacted topic needs one"):
        await bus.publish(Record("RoutingChanged", None, b"{}"))
    await bus.publish(numbered(0))
    assert len([r async for r in bus.replay(SourceDataAvailable)]) == 1

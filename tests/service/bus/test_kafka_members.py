"""Members on Kafka: long reactions, rebalances, restarts, a broker that goes away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import structlog
import uvloop
from buses import GROUP, answer, events_of, kafka_settings, numbered, on_kafka
from ports import forwarded, free_port, tried_again

from turnout.common.bus.kafka.bus import KafkaBus
from turnout.common.bus.kafka.connecting import SESSION_SECONDS
from turnout.common.bus.port import Delivery
from turnout.common.errors import Unavailable
from turnout.common.events import SourceDataAvailable, StageFailed
from turnout.devstack.kafka import kafka
from turnout.devstack.stack import Stack

pytestmark = pytest.mark.stack
SECONDS = 60
Open = Callable[[], KafkaBus]


@pytest.fixture
async def opened(stack: Stack, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the bus of this test, as often as asked: each is a process of its own as far as the bus can tell."""
    buses: list[KafkaBus] = []
    on_kafka(tmp_path, stack.kafka)

    def make() -> KafkaBus:
        buses.append(KafkaBus(kafka_settings(tmp_path), home=tmp_path))
        return buses[-1]

    yield make
    for bus in buses:
        await bus.close()


async def produced(bus: KafkaBus) -> list[str]:
    return sorted([received.event().causation_id or "" async for received in bus.replay(StageFailed)])


@pytest.mark.slow
async def test_a_reaction_longer_than_the_session_keeps_its_partition(opened: Open) -> None:
    bus = opened()
    await bus.publish(numbered(0))
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
        delivery = await anext(deliveries)
        polled = bus.polled(GROUP)
        assert polled is not None
        await asyncio.sleep(2 * SESSION_SECONDS)
        after = bus.polled(GROUP)
        assert after is not None
        assert after > polled + SESSION_SECONDS, "polls go on"
        await delivery.done(answer(numbered(0)))
    assert await produced(bus) == ["p-0"]


async def test_work_in_hand_outlives_a_rebalance_that_gives_the_partition_back(opened: Open) -> None:
    """A second member comes while eight partitions' worth of work is open: what stays ours is done once."""
    one, other = opened(), opened()
    keys = [f"key-{n}" for n in range(16)]
    await one.publish(*(numbered(0, key) for key in keys))
    held: dict[int, Delivery] = {}
    taken: dict[int, int] = {}

    async def second() -> None:
        async for delivery in other.consume(SourceDataAvailable, group=GROUP):
            partition = delivery.received[0].partition
            taken[partition] = taken.get(partition, 0) + len(delivery.received)
            await delivery.done(*map(answer, events_of([delivery])))

    async with asyncio.timeout(SECONDS), aclosing(one.consume(SourceDataAvailable, group=GROUP)) as deliveries:
        while len(held) < 4:
            delivery = await anext(deliveries)
            held[delivery.received[0].partition] = delivery
        joining = asyncio.create_task(second())
        while len(taken) < 2:
            await asyncio.sleep(0.05)
        kept = [delivery for partition, delivery in held.items() if partition not in taken]
        moved = [delivery for partition, delivery in held.items() if partition in taken]
        assert (len(kept), len(moved)) == (2, 2)
        for delivery in moved:
            with pytest.raises(Unavailable, match="the partition moved"):
                await delivery.done(*map(answer, events_of([delivery])))
        for delivery in kept:
            await delivery.done(*map(answer, events_of([delivery])))
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
    assert await produced(one) == sorted(f"{key}-0" for key in keys), "each once"
    assert await one.lag(GROUP) == {"SourceDataAvailable": 0}


async def test_a_restarted_process_has_its_partitions_back_at_once(opened: Open) -> None:
    first = opened()
    await first.publish(numbered(0))
    async with asyncio.timeout(SECONDS):
        delivery = await anext(first.consume(SourceDataAvailable, group=GROUP))
        assert delivery.received
        await first.close()
        again = opened()
        began = time.monotonic()
        async with aclosing(again.consume(SourceDataAvailable, group=GROUP)) as deliveries:
            assert [event.uri for event in events_of([await anext(deliveries)])] == ["0"]
    assert time.monotonic() - began < SESSION_SECONDS - 1, "nobody waited for the old session's end"


async def test_a_group_that_comes_to_read_more_topics_reads_them(opened: Open) -> None:
    """A broker gives a static member its old partitions back without asking what it reads now."""
    bus = opened()
    await bus.publish(numbered(0))
    async with asyncio.timeout(SECONDS):
        async with aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
            await (await anext(deliveries)).done()
        await bus.publish(answer(numbered(0)))
        async with aclosing(bus.consume(SourceDataAvailable, StageFailed, group=GROUP)) as deliveries:
            delivery = await anext(deliveries)
    assert delivery.received[0].record.topic == "StageFailed"


@pytest.mark.slow
async def test_a_broker_that_restarts_is_found_again(tmp_path: Path) -> None:
    port = free_port()
    broker = kafka(tmp_path / "broker", port)
    broker.start()
    try:
        await asyncio.to_thread(broker.wait)
        on_kafka(tmp_path, f"127.0.0.1:{port}")
        bus = KafkaBus(kafka_settings(tmp_path), home=tmp_path)
        with structlog.testing.capture_logs() as lines:
            await _through_a_restart(bus, broker.kill, broker.start)
        await bus.close()
    finally:
        await asyncio.to_thread(broker.kill)
    said = [line for line in lines if line["event"] == "the kafka client says"]
    assert 0 < len(said) < 25, "the client library floods nothing"


async def _through_a_restart(bus: KafkaBus, kill: Callable[[], None], start: Callable[[], None]) -> None:
    seen: set[str] = set()
    troubles: list[str] = []

    async def react() -> None:
        while True:
            try:
                async with aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
                    async for delivery in deliveries:
                        await delivery.done(*map(answer, events_of([delivery])))
                        seen.update(event.uri for event in events_of([delivery]))
            except Unavailable as error:
                troubles.append(str(error))
                await asyncio.sleep(0.2)

    reacting = asyncio.create_task(react())
    async with asyncio.timeout(110):
        await bus.publish(numbered(0))
        while "0" not in seen:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(kill)
        with pytest.raises(Unavailable):
            await bus.publish(numbered(1))
        while not troubles:  # a reader hears of it, though it has nothing to read
            await asyncio.sleep(0.05)
        with pytest.raises(Unavailable):
            await bus.lag(GROUP)
        await asyncio.to_thread(start)
        await tried_again(lambda: bus.publish(numbered(2)))
        while "2" not in seen:
            await asyncio.sleep(0.05)
    reacting.cancel()
    await asyncio.gather(reacting, return_exceptions=True)
    assert {f"p-{n}" for n in seen} <= set(await produced(bus))


async def test_a_closed_door_is_knocked_at_less_than_once_in_a_second(stack: Stack, tmp_path: Path) -> None:
    """Twenty readers and a writer, while something that is no broker listens."""
    silent = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = free_port()
    on_kafka(tmp_path, f"127.0.0.1:{port}")
    bus = KafkaBus(kafka_settings(tmp_path), home=tmp_path)
    said: set[str] = set()

    async def knock(number: int) -> None:
        while True:
            try:
                await anext(bus.consume(SourceDataAvailable, group=f"g{number}"))
            except Unavailable as error:
                said.add(str(error))
                await asyncio.sleep(0.02)

    async with forwarded(port, f"127.0.0.1:{silent.sockets[0].getsockname()[1]}") as made:
        readers = [asyncio.create_task(knock(n)) for n in range(20)]
        await asyncio.sleep(5)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    silent.close()
    await bus.close()
    assert 2 <= len(made) <= 5
    assert len(said) == 1
    assert f"Kafka at 127.0.0.1:{port}" in said.pop()


def test_it_runs_on_uvloop(stack: Stack, tmp_path: Path) -> None:
    on_kafka(tmp_path, stack.kafka)

    async def go() -> list[str]:
        bus = KafkaBus(kafka_settings(tmp_path), home=tmp_path)
        await bus.publish(*(numbered(n) for n in range(3)))
        async with asyncio.timeout(SECONDS), aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
            delivery = await anext(deliveries)
            await delivery.done(*map(answer, events_of([delivery])))
        found = await produced(bus)
        await bus.close()
        return found

    assert uvloop.run(go()) == ["p-0", "p-1", "p-2"]


async def test_processes_of_one_home_have_names_of_their_own_and_keep_them(opened: Open) -> None:
    one, other = opened(), opened()
    names = [bus._instance.name() for bus in (one, other)]
    assert len(set(names)) == 2
    await one.close()
    again = opened()
    several = await asyncio.gather(*(asyncio.to_thread(again._instance.name) for _ in range(20)))
    assert set(several) == {names[0]}, "readers that begin at once are one process"


def test_the_client_library_is_quiet() -> None:
    from turnout.common.bus.kafka.troubles import quieten

    quieten()
    with structlog.testing.capture_logs() as lines:
        for number in range(1000):
            logging.getLogger("aiokafka.conn").error("broken pipe %s", number)
    assert len(lines) <= 1

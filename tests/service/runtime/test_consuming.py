"""What a reaction is given while the deliveries before it are on their way: order, bounds, and how that ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
from buses import ADAPTERS, answer, numbered, on_kafka, open_bus
from environment import environment_in, published, running, until

from turnout.common.bus.port import Bus, Delivery, Received, Record, Topic
from turnout.common.errors import Unavailable
from turnout.common.events import Event, SourceDataAvailable, StageFailed
from turnout.common.runtime.consuming import OPEN, Consumer
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.handling import Handling
from turnout.common.runtime.health import Health, Progress
from turnout.common.runtime.service import Reaction, Service, utc_now

GROUP = "test.read"


@pytest.fixture(params=ADAPTERS)
async def environment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Environment]:
    """Everything embedded but the bus, which is one of the adapters."""
    if request.param == "kafka":
        on_kafka(tmp_path, request.getfixturevalue("stack").kafka)
    made = environment_in(tmp_path)
    made.__dict__["bus"] = bus = open_bus(request.param, tmp_path)
    yield made
    await bus.close()
    await made.close()


class Gate:
    """A bus whose deliveries of one key are held, or fail so many times, before they are done."""

    def __init__(self, bus: Bus, *, held: str = "", fails: int = 0) -> None:
        self._bus = bus
        self._held = held
        self._fails = fails
        self.open = asyncio.Event()
        self.reached: list[str] = []
        """Keys in the order of their `done`."""

    async def consume(self, *topics: Topic, group: str) -> AsyncGenerator[Delivery]:
        async with aclosing(self._bus.consume(*topics, group=group)) as deliveries:
            async for delivery in deliveries:
                yield Gated(delivery, self)

    def polled(self, group: str) -> float | None:
        return self._bus.polled(group)

    async def pass_by(self, key: str) -> None:
        self.reached.append(key)
        if key == self._held:
            await self.open.wait()
            if self._fails:
                self._fails -= 1
                raise Unavailable("the bus", "it is away")


class Gated:
    """A delivery behind a gate."""

    def __init__(self, delivery: Delivery, gate: Gate) -> None:
        self._delivery = delivery
        self._gate = gate

    @property
    def received(self) -> Sequence[Received]:
        return self._delivery.received

    async def done(self, *produced: Event | Record) -> None:
        await self._gate.pass_by((self.received[0].record.key or b"").decode())
        await self._delivery.done(*produced)


class Reading:
    """Answers each event; remembers them, and that it never was asked before it had answered."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._busy = False

    async def __call__(self, events: Sequence[Event]) -> list[Event]:
        assert not self._busy, "a reaction's function is not run beside itself"
        self._busy = True
        await asyncio.sleep(0.001)
        self._busy = False
        taken = [event for event in events if isinstance(event, SourceDataAvailable)]
        self.seen += [event.id for event in taken]
        return [answer(event) for event in taken]


def service(reading: Reading, gate: Gate) -> Service:
    return Service("test", [Reaction("read", [SourceDataAvailable], reading, source=gate)])


async def apart(bus: Bus, reading: Reading, *events: SourceDataAvailable) -> None:
    """Publish each when the one before was handled, so that each is a delivery of its own."""
    for event in events:
        await bus.publish(event)
        await until(lambda event=event: event.id in reading.seen)


async def lag(bus: Bus) -> int:
    return sum((await bus.lag(GROUP)).values())


async def answered(bus: Bus) -> list[str]:
    return [event.causation_id or "" for event in await published(bus, StageFailed)]


async def all_done(bus: Bus) -> None:
    async with asyncio.timeout(30):
        while await lag(bus):
            await asyncio.sleep(0.01)


async def test_the_next_is_handled_while_one_is_on_its_way(environment: Environment) -> None:
    bus, reading = environment.bus, Reading()
    gate = Gate(bus, held="p")
    async with running(environment, service(reading, gate)):
        await apart(bus, reading, *(numbered(n) for n in range(3)))
        assert await answered(bus) == []
        gate.open.set()
        await all_done(bus)
    assert await answered(bus) == reading.seen == ["p-0", "p-1", "p-2"]


async def test_no_more_than_so_many_are_open(environment: Environment) -> None:
    bus, reading = environment.bus, Reading()
    gate = Gate(bus, held="p")
    async with running(environment, service(reading, gate)):
        await apart(bus, reading, *(numbered(n) for n in range(OPEN)))
        await bus.publish(numbered(OPEN))
        await asyncio.sleep(0.3)
        assert len(reading.seen) == OPEN
        gate.open.set()
        await all_done(bus)
    assert await answered(bus) == reading.seen == [f"p-{n}" for n in range(OPEN + 1)]


async def test_nothing_overtakes_what_failed(environment: Environment) -> None:
    bus, reading = environment.bus, Reading()
    gate = Gate(bus, held="p", fails=1)
    async with running(environment, service(reading, gate)):
        await apart(bus, reading, *(numbered(n) for n in range(3)))
        gate.open.set()
        await all_done(bus)
    assert await answered(bus) == ["p-0", "p-1", "p-2"]
    assert sorted(reading.seen) == ["p-0", "p-0", "p-1", "p-1", "p-2", "p-2"], "all of them came again"


async def test_stopping_waits_for_what_is_on_its_way(environment: Environment) -> None:
    bus, reading = environment.bus, Reading()
    gate = Gate(bus, held="p")
    async with running(environment, service(reading, gate)) as (started, _):
        await apart(bus, reading, *(numbered(n) for n in range(3)))
        stopping = asyncio.create_task(started.halt())
        await asyncio.sleep(0.1)
        await bus.publish(numbered(3))
        assert not stopping.done()
        gate.open.set()
        await stopping
        assert await answered(bus) == reading.seen == ["p-0", "p-1", "p-2"]
        assert await lag(bus) == 1


async def test_what_cannot_end_in_time_comes_again(environment: Environment) -> None:
    bus, reading, again = environment.bus, Reading(), Reading()
    gate = Gate(bus, held="p")
    async with running(environment, service(reading, gate)):
        await apart(bus, reading, *(numbered(n) for n in range(2)))
    assert await answered(bus) == []
    assert await lag(bus) == 2
    gate.open.set()
    async with running(environment, service(again, gate)):
        await all_done(bus)
    assert await answered(bus) == again.seen == ["p-0", "p-1"]


async def test_one_that_does_not_end_is_stuck_although_others_do(environment: Environment) -> None:
    bus, reading, progress = environment.bus, Reading(), Progress(0.2)
    gate = Gate(bus, held="p")
    reaction = Reaction("read", [SourceDataAvailable], reading)
    handling = Handling("test", reaction, Health(Service("test", [reaction])), progress, utc_now)
    consumer = Consumer(gate, handling)
    running = asyncio.create_task(consumer.run())
    await apart(bus, reading, numbered(0))
    await until(lambda: bool(progress.stuck()))
    [stuck] = progress.stuck()
    assert stuck.startswith(f"{GROUP} SourceDataAvailable ")
    gate.open.set()
    await until(lambda: not progress.stuck())
    consumer.stop()
    await running

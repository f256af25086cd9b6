"""Reactions that come and go, that read records of their own kind, and that refuse single events of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from builders import source_available, stage_failed
from environment import dead_letters, published, running, until

from turnout.common.bus.port import Received, Record
from turnout.common.errors import Invalid
from turnout.common.events import Event, SourceDataAvailable, StageFailed
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Refused, Service

TOPIC = "their.topic"


class Taking:
    """Makes an event of every record that is not `pass`; refuses odd numbers."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def read(self, received: Received) -> Event | None:
        text = (received.record.value or b"").decode()
        if text == "pass":
            return None
        if not text.isdigit():
            raise Invalid("value", f"{text!r} is no number")
        return source_available(id=f"{received.partition}-{received.offset}", uri=text)

    async def __call__(self, events: Sequence[Event]) -> Sequence[Event | Record | Refused]:
        taken = [event for event in events if isinstance(event, SourceDataAvailable)]
        self.batches.append([event.uri for event in taken])
        answer: list[Event | Record | Refused] = []
        for event in taken:
            if int(event.uri) % 2:
                answer.append(Refused(event, Invalid("value", "it is odd")))
            else:
                answer += [stage_failed(error=event.uri), Record("their.other", b"k", event.uri.encode())]
        return answer


def record(text: str) -> Record:
    return Record(TOPIC, b"k", text.encode())


async def lines(environment: Environment, count: int) -> list[str]:
    """What the reaction produced, once it is so much."""
    async with asyncio.timeout(30):
        while len(found := await published(environment.bus, StageFailed)) < count:
            await asyncio.sleep(0.02)
    return [event.error for event in found]


async def test_refused_events_are_dead_letters_and_the_others_are_handled_once(environment: Environment) -> None:
    taking = Taking()
    await environment.bus.publish(*(record(text) for text in ("2", "3", "pass", "many", "4", "5")))
    service = Service("test", [Reaction("take", (TOPIC,), taking, read=taking.read)])
    async with running(environment, service):
        assert await lines(environment, 2) == ["2", "4"]
        await until(lambda: environment.bus.polled("test.take") is not None)
    letters = [(one.record.value, dict(one.record.headers)) for one in await dead_letters(environment.bus, TOPIC)]
    assert {(value, headers["dead_error"]) for value, headers in letters} == {
        (b"many", b"value: 'many' is no number"), (b"3", b"value: it is odd"), (b"5", b"value: it is odd"),
    }  # fmt: skip
    assert taking.batches == [["2", "3", "4", "5"]]
    assert [received.record.value async for received in environment.bus.replay("their.other")] == [b"2", b"4"]


async def test_reactions_come_and_go_without_the_service_starting_again(environment: Environment) -> None:
    taking = Taking()
    wanted: list[Reaction] = []
    async with running(environment, Service("test", passing=lambda: list(wanted))) as (started, _):
        await environment.bus.publish(record("2"))
        wanted.append(Reaction("take", (TOPIC,), taking, read=taking.read))
        assert await lines(environment, 1) == ["2"]
        assert "test.take" in {loop.group for loop in started.loops if hasattr(loop, "group")}

        wanted.clear()
        await until(lambda: environment.bus.polled("test.take") is None)
        await environment.bus.publish(record("4"))
        wanted.append(Reaction("take", (TOPIC,), taking, read=taking.read))
        assert await lines(environment, 2) == ["2", "4"]
    assert environment.bus.polled("test.take") is None


async def test_a_reaction_that_is_equal_goes_on(environment: Environment) -> None:
    taking = Taking()
    made: list[Reaction] = []

    def passing() -> Sequence[Reaction]:
        made.append(Reaction("take", (TOPIC,), taking, read=taking.read))
        return made[-1:]

    async with running(environment, Service("test", passing=passing)) as (started, _):
        await until(lambda: len(made) >= 3)
        assert [p.reaction for p in started.passing.values()] == made[:1]
        assert started.passing["test.take"].reaction is made[0]

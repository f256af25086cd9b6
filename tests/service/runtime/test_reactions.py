"""Poll, react, done: what happens to a batch, whatever the reaction does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
import structlog
from builders import raw_extracted, source_available
from environment import dead_letters, published, running, until, wait_for

from turnout.common.bus.port import Record
from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import Event, RawDataExtracted, SourceDataAvailable, StageFailed
from turnout.common.runtime.dead_letters import attempt_of, left_to_replay, replay_dead_letters
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service

MARK = "last"


def answer(event: Event) -> RawDataExtracted:
    return RawDataExtracted.caused_by(
        event, source="/test", at=event.time, batches=(), columns=(), rows_read=0, rows_written=0, rows_quarantined=0,
        spec_id="s",
    )  # fmt: skip


class Reading:
    """Answers each announcement; what it shall do instead is written in the uri."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.tries = Counter[str]()

    async def __call__(self, events: Sequence[Event]) -> list[Event]:
        uris = [event.uri for event in events if isinstance(event, SourceDataAvailable)]
        self.batches.append(uris)
        self.tries.update(uris)
        for uri in uris:
            match uri:
                case "invalid":
                    raise Invalid("uri", "is no good", fix="take another")
                case "bug":
                    raise KeyError("colour")
                case "several":
                    raise ExceptionGroup("both", [ExceptionGroup("inner", [Invalid("uri", "is one of two")])])
                case "huge":
                    return [answer(event).model_copy(update={"spec_id": "x" * 9_000_000}) for event in events]
                case "away" if self.tries[uri] < 4:
                    raise Unavailable("the lake", "it is away")
                case _:
                    pass
        return [answer(event) for event in events]


def service(reading: Reading, name: str = "ingestion") -> Service:
    return Service(name, [Reaction("read", [SourceDataAvailable], reading)])


async def handled(environment: Environment, *uris: str) -> tuple[Reading, list[str]]:
    """Publish announcements and wait until all are done with; which were answered."""
    reading = Reading()
    sent = [source_available(uri=uri) for uri in (*uris, MARK)]
    await environment.bus.publish(*sent)
    async with running(environment, service(reading)):
        await wait_for(environment.bus, RawDataExtracted, where=lambda e: e.causation_id == sent[-1].id)
        answers = {event.causation_id for event in await published(environment.bus, RawDataExtracted)}
    return reading, [event.uri for event in sent[:-1] if event.id in answers]


async def test_a_poll_is_one_call(environment: Environment) -> None:
    reading, answered = await handled(environment, "a", "b")
    assert reading.batches == [["a", "b", MARK]]
    assert answered == ["a", "b"]


@pytest.mark.parametrize("bad", ["invalid", "bug", "several", "huge"])
async def test_a_bad_event_does_not_take_the_others_with_it(environment: Environment, bad: str) -> None:
    reading, answered = await handled(environment, "a", bad, "b")
    assert answered == ["a", "b"]
    [letter] = await dead_letters(environment.bus, SourceDataAvailable)
    assert letter.event().uri == bad  # pyright: ignore[reportAttributeAccessIssue]
    assert reading.tries["a"] == reading.tries["b"] == 2, "once together, once alone"
    assert reading.tries[bad] == {"bug": 4}.get(bad, 2)


async def test_a_dead_letter_is_the_record_byte_for_byte_and_says_why(environment: Environment) -> None:
    value = b'{"pipeline": "p",   "uri": "invalid", "extra": 1}'
    headers = (("ce_id", b"e-1"), ("theirs", b"\xff\x00"), ("dead_error", b"an older death"))
    await environment.bus.publish(Record("SourceDataAvailable", b"a key", value, headers))
    await handled(environment)
    [letter] = await dead_letters(environment.bus, SourceDataAvailable)
    assert (letter.record.key, letter.record.value) == (b"a key", value)
    found = {name: text for name, text in letter.record.headers if name.startswith("dead_")}
    [lay] = [r for r in [r async for r in environment.bus.replay(SourceDataAvailable)] if r.record.key == b"a key"]
    assert dict(letter.record.headers)["theirs"] == b"\xff\x00"
    first_failure = found.pop("dead_first_failure")
    assert first_failure.startswith(b"20")
    assert found == {
        "dead_topic": b"SourceDataAvailable",
        "dead_partition": str(lay.partition).encode(),
        "dead_offset": str(lay.offset).encode(),
        "dead_timestamp": lay.timestamp.isoformat().encode(),
        "dead_timestamp_type": b"append",
        "dead_group": b"ingestion.read",
        "dead_service": b"ingestion",
        "dead_error_type": b"Invalid",
        "dead_error": b"uri: is no good; take another",
        "dead_field": b"uri",
        "dead_fix": b"take another",
        "dead_attempts": b"1",
    }


@pytest.mark.parametrize("value", [None, b"", b"not json", b"[]", b'{"pipeline": "p"}', b"\xff" * 100, b"[" * 10_000])
async def test_what_is_no_event_is_a_dead_letter_too(environment: Environment, value: bytes | None) -> None:
    await environment.bus.publish(Record("SourceDataAvailable", b"p", value))
    await handled(environment, "a")
    [letter] = await dead_letters(environment.bus, SourceDataAvailable)
    assert (letter.record.key, letter.record.value) == (b"p", value)


async def test_poison_stalls_nothing(environment: Environment) -> None:
    uris = ["invalid" if n % 10 == 0 else f"good-{n}" for n in range(300)]
    _, answered = await handled(environment, *uris)
    assert answered == [uri for uri in uris if uri != "invalid"]
    assert len(await dead_letters(environment.bus, SourceDataAvailable)) == 30


async def test_what_is_away_is_waited_for_and_the_service_is_not_ready(environment: Environment) -> None:
    reading, seen = Reading(), list[str]()

    async def asking(events: Sequence[Event]) -> list[Event]:
        reply = (await client.get("/readyz")).json()
        seen.extend(text for reasons in reply.get("waiting_for", {}).values() for text in reasons)
        return await reading(events)

    await environment.bus.publish(source_available(uri="away"))
    async with running(environment, Service("ingestion", [Reaction("read", [SourceDataAvailable], asking)])) as (
        _,
        client,
    ):
        await wait_for(environment.bus, RawDataExtracted)
        assert "ingestion.read: the lake is not available: it is away" in seen
        reply = await client.get("/readyz?verbose")
        assert (reply.status_code, reply.json()) == (200, {"status": "ready", "services": {"ingestion": "ready"}})
    assert reading.tries["away"] == 4
    assert await dead_letters(environment.bus, SourceDataAvailable) == []


async def test_duplicates_lead_to_one_event_id(environment: Environment) -> None:
    event = source_available(uri="a")
    await environment.bus.publish(*[event] * 5)
    await handled(environment)
    answers = [e for e in await published(environment.bus, RawDataExtracted) if e.causation_id == event.id]
    assert len(answers) == 5
    assert len({e.id for e in answers}) == 1


async def test_a_dead_letter_goes_back_once_with_its_id(environment: Environment) -> None:
    bus = environment.bus
    event = source_available(uri="invalid")
    await bus.publish(event, Record("SourceDataAvailable", b"p", b'{"pipeline": "p", "uri": "invalid"}'))
    await handled(environment)
    letters = await dead_letters(bus, SourceDataAvailable)
    assert await left_to_replay(bus, "SourceDataAvailable") == 2
    assert await replay_dead_letters(bus, "SourceDataAvailable") == 2
    assert await replay_dead_letters(bus, "SourceDataAvailable.dead") == 0
    again = [r async for r in bus.replay(SourceDataAvailable)][-2:]
    assert sorted((r.record.key, r.record.value) for r in again) == sorted(
        (r.record.key, r.record.value) for r in letters
    )
    assert event.id in {r.event().id for r in again}
    assert {r.event().id for r in again} == {
        r.event().id for r in [r async for r in bus.replay(SourceDataAvailable)][:2]
    }
    assert {attempt_of(r.record) for r in again} == {2}
    assert not [name for r in again for name, _ in r.record.headers if name.startswith("dead_")]

    await handled(environment)  # they die again, and go back again
    assert await replay_dead_letters(bus, "SourceDataAvailable") == 2
    assert {attempt_of(r.record) for r in [r async for r in bus.replay(SourceDataAvailable)][-2:]} == {3}
    died = [
        dict(letter.record.headers)["dead_first_failure"] for letter in await dead_letters(bus, SourceDataAvailable)
    ]
    assert sorted(died[:2]) == sorted(died[2:]), "when it failed first is not forgotten"


async def test_one_line_for_each_batch(environment: Environment) -> None:
    with structlog.testing.capture_logs() as lines:
        await handled(environment, "a")
    [line] = [line for line in lines if line["event"] == "events handled"]
    assert (line["service"], line["reaction"], line["records"], line["dead"]) == ("ingestion", "read", 2, 0)
    assert line["produced"] == {"RawDataExtracted": 2}


async def test_a_reaction_speaks_with_the_ids_of_its_event(environment: Environment) -> None:
    seen: list[dict[str, object]] = []

    async def speak(events: Sequence[Event]) -> list[Event]:
        seen.append(structlog.contextvars.get_contextvars())
        return [answer(event) for event in events]

    event = source_available(pipeline="heart")
    await environment.bus.publish(event)
    async with running(environment, Service("ingestion", [Reaction("read", [SourceDataAvailable], speak)])):
        await wait_for(environment.bus, RawDataExtracted)
    assert seen == [{
        "service": "ingestion", "reaction": "read", "pipeline": "heart",
        "correlation_id": event.correlation_id, "causation_id": event.id,
    }]  # fmt: skip


async def test_secrets_are_in_no_letter_and_no_log(environment: Environment) -> None:
    secret = "cAnArY-hunter2"

    async def leak(events: Sequence[Event]) -> list[Event]:
        if len(events) == 1 and events[0].pipeline == "bug":
            raise RuntimeError(f"cannot connect to redis://user:{secret}@host with password={secret}")
        raise Invalid("uri", f"s3://key:{secret}@bucket cannot be read, api_key: {secret}", fix=f"token={secret}")

    await environment.bus.publish(source_available(pipeline="bug"), source_available(pipeline="invalid"))
    async with running(environment, Service("ingestion", [Reaction("read", [SourceDataAvailable], leak)])):
        while len(await dead_letters(environment.bus, SourceDataAvailable)) < 2:
            await asyncio.sleep(0.01)
    for letter in await dead_letters(environment.bus, SourceDataAvailable):
        assert secret.encode() not in b"".join(value for _, value in letter.record.headers)


async def test_two_services_react_to_one_event(environment: Environment) -> None:
    one, other = Reading(), Reading()
    await environment.bus.publish(source_available(uri="a"))
    async with running(environment, service(one, "one"), service(other, "other")):
        await until(lambda: bool(one.batches and other.batches))


async def test_stopping_lets_what_is_handled_end(environment: Environment) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(events: Sequence[Event]) -> list[Event]:
        begun.set()
        await go_on.wait()
        return [answer(event) for event in events]

    await environment.bus.publish(source_available())
    async with running(environment, Service("ingestion", [Reaction("read", [SourceDataAvailable], slow)])) as (
        started,
        _,
    ):
        await begun.wait()
        stopping = asyncio.create_task(started.halt())
        await asyncio.sleep(0.05)
        go_on.set()
        await stopping
    assert len(await published(environment.bus, RawDataExtracted)) == 1
    assert await environment.bus.lag("ingestion.read") == {"SourceDataAvailable": 0}


async def test_a_topic_of_somebody_else(environment: Environment) -> None:
    seen: list[Event] = []

    async def take(events: Sequence[Event]) -> list[Event]:
        seen.extend(events)
        return []

    theirs = Record(
        "their.rows", None, b'{"pipeline": "p", "uri": "x"}', (("ce_type", b"turnout.SourceDataAvailable.v1"),)
    )
    await environment.bus.publish(theirs, Record("their.rows", None, b'{"a": 1}'))
    async with running(environment, Service("ingestion", [Reaction("read", ["their.rows"], take)])):
        await until(lambda: bool(seen))
        while not await dead_letters(environment.bus, "their.rows"):
            await asyncio.sleep(0.01)
    assert isinstance(seen[0], SourceDataAvailable)
    assert len(await dead_letters(environment.bus, "their.rows")) == 1


async def test_produced_events_are_there_before_the_offset_moves(environment: Environment) -> None:
    await environment.bus.publish(*(raw_extracted() for _ in range(3)))

    async def fail(events: Sequence[Event]) -> list[Event]:
        return [StageFailed.caused_by(event, source="/test", at=event.time, stage="s", error="e") for event in events]

    async with running(environment, Service("preparation", [Reaction("make", [RawDataExtracted], fail)])):
        await wait_for(environment.bus, StageFailed)
        while (await environment.bus.lag("preparation.make")) != {"RawDataExtracted": 0}:
            await asyncio.sleep(0.01)
    assert len(await published(environment.bus, StageFailed)) == 3

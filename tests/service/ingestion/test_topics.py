"""Topics as sources, taken as they come, on request or by a schedule: kept once, or a dead letter and the reason."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import builders
import pytest
from builders import AT
from environment import Clock, dead_letters, declare, environment_in, published, running, wait_for

from turnout.common.bus.cloudevents import encode
from turnout.common.bus.port import Record
from turnout.common.events import DataSetRef, ObservationReceived, PipelineRemoved, StageFailed, TopicPulled
from turnout.common.events import TopicPullRequested as Requested
from turnout.common.pipeline import parse
from turnout.common.runtime.dead_letters import replay_dead_letters
from turnout.common.runtime.environment import Environment
from turnout.ingestion.service import build
from turnout.preparation.service import build as preparation

TOPIC = "their.feed"
SPEC = """
pipeline: {name}
task: features
source: {{topic: their.feed, entity: patient, event_time: at{pull}}}
schema: {{patient: category, at: timestamp, pulse: number}}
"""


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_INGESTION_FLUSH_SECONDS", "0")


def row(number: int, **fields: object) -> Record:
    at = (AT + timedelta(seconds=number)).isoformat()
    value = {"patient": f"e{number % 7}", "at": at, "pulse": number, **fields}
    return Record(TOPIC, f"e{number % 7}".encode(), json.dumps(value).encode())


def requested(name: str = "p", **fields: object) -> Requested:
    return Requested.first(source="/test", at=AT, pipeline=name, **fields)


async def take(environment: Environment, name: str = "p", pull: str = "") -> None:
    await declare(environment, parse(SPEC.format(name=name, pull=pull)))


@asynccontextmanager
async def services(environment: Environment) -> AsyncIterator[None]:
    async with running(environment, build(environment), preparation(environment)):
        yield


async def kept(environment: Environment, count: int, name: str = "p") -> list[float]:
    """The numbers that the history store has, once the lake has `count` rows."""
    async with asyncio.timeout(60):
        while True:
            manifests = list(environment.lake.manifests("raw", name))
            rows = [r for m in manifests for r in environment.lake.read(DataSetRef(**dict(m.ref))).to_pylist()]
            found = await history(environment, name)
            if len(rows) >= count and len(found) >= count:
                assert sorted(r["pulse"] for r in rows) == found
                return found
            await asyncio.sleep(0.02)


async def history(environment: Environment, name: str = "p") -> list[float]:
    each = [await environment.history.features(name, f"e{n}", limit=10_000) for n in range(7)]
    return sorted(float(o.values["pulse"] or 0) for found in each for o in found)


async def until_standing(environment: Environment, name: str = "p") -> None:
    """Wait until nothing of the topic is left to take."""
    async with asyncio.timeout(60):
        while not all(
            at.next == at.end for at in (await environment.bus.standing(TOPIC, f"ingestion.topic.{name}")).values()
        ):
            await asyncio.sleep(0.02)


def numbers(count: int) -> list[float]:
    return [float(n) for n in range(count)]


async def test_messages_are_taken_as_they_come(environment: Environment) -> None:
    await environment.bus.publish(*(row(n) for n in range(30)))
    async with services(environment):
        await take(environment)
        await kept(environment, 30)
        fed = encode(builders.observation(entity="e1", values={"pulse": 30.0}))
        await environment.bus.publish(Record(TOPIC, fed.key, fed.value, fed.headers), *(row(n) for n in range(31, 60)))

        assert await kept(environment, 60) == numbers(60)
    assert await dead_letters(environment.bus, TOPIC) == []


async def test_every_pipeline_that_names_the_topic_gets_all_of_it(environment: Environment) -> None:
    async with services(environment):
        await take(environment, "one")
        await take(environment, "two")
        await environment.bus.publish(*(row(n) for n in range(20)))
        assert await kept(environment, 20, "one") == await kept(environment, 20, "two") == numbers(20)


async def test_what_does_not_fit_is_a_dead_letter_and_the_rest_goes_on(environment: Environment) -> None:
    bad = [Record(TOPIC, b"k", b"\xff"), row(3, pulse="high"), row(4, puls=1), Record(TOPIC, b"k", b"{}")]
    async with services(environment):
        await take(environment)
        await environment.bus.publish(row(0), *bad, row(1))
        assert await kept(environment, 2) == numbers(2)
        await until_standing(environment)
    found = await dead_letters(environment.bus, TOPIC)
    letters = {letter.record.value: dict(letter.record.headers) for letter in found}
    assert set(letters) == {record.value for record in bad}
    assert letters[bad[1].value]["dead_error"] == b"values.pulse: 'high' is not a number"
    assert b"did you mean 'pulse'" in letters[bad[2].value]["dead_error"]
    assert letters[b"{}"]["dead_error"] == b"patient: is missing; every message says whose row it is"
    assert {headers["dead_group"] for headers in letters.values()} == {b"ingestion.topic.p"}


async def test_dead_letters_go_back_once_the_file_fits(environment: Environment) -> None:
    async with services(environment):
        await take(environment)
        await environment.bus.publish(row(0, place="bed"))
        async with asyncio.timeout(30):
            while not await dead_letters(environment.bus, TOPIC):
                await asyncio.sleep(0.02)
        text = SPEC.format(name="p", pull="").replace("pulse: number", "pulse: number, place: category")
        await declare(environment, parse(text))
        while "place" not in (environment.pipelines.now("p") or parse(text)).columns:  # pyright: ignore[reportOperatorIssue]
            await asyncio.sleep(0.02)
        assert await replay_dead_letters(environment.bus, TOPIC) == 1
        assert await kept(environment, 1) == [0.0]


async def test_a_removed_pipeline_takes_no_more(environment: Environment) -> None:
    async with services(environment):
        await take(environment)
        await environment.bus.publish(row(0))
        await kept(environment, 1)
        await environment.bus.publish(PipelineRemoved.first(source="/test", at=datetime.now(UTC), pipeline="p"))
        async with asyncio.timeout(30):
            while environment.bus.polled("ingestion.topic.p") is not None:
                await asyncio.sleep(0.02)
        await environment.bus.publish(row(1))
        standing = await environment.bus.standing(TOPIC, "ingestion.topic.p")
    assert sum(at.end - at.next for at in standing.values()) == 1


# --- on request ---------------------------------------------------------------------------------------------------


async def test_a_request_takes_what_is_there_and_says_what_it_took(environment: Environment) -> None:
    await environment.bus.publish(*(row(n) for n in range(1200)), row(0, pulse="high"))
    async with services(environment):
        await take(environment, pull=", pull: on_request")
        first = requested()
        await environment.bus.publish(first)
        told = await wait_for(environment.bus, TopicPulled, where=lambda e: e.causation_id == first.id)
        assert (told.taken, told.refused, told.left, told.source_topic) == (1200, 1, 0, TOPIC)
        assert sum(part.last - part.first + 1 for part in told.parts) == 1201
        assert await kept(environment, 1200) == numbers(1200)

        await environment.bus.publish(*(row(n) for n in range(1200, 1210)))
        second = requested()
        await environment.bus.publish(second)
        told = await wait_for(environment.bus, TopicPulled, where=lambda e: e.causation_id == second.id)
        assert (told.taken, told.refused) == (10, 0)
        assert all(part.first > 0 for part in told.parts)
        assert await kept(environment, 1210) == numbers(1210)
    assert len(await dead_letters(environment.bus, TOPIC)) == 1


async def test_a_request_with_nothing_to_take_says_so(environment: Environment) -> None:
    async with services(environment):
        await take(environment, pull=", pull: on_request")
        await environment.bus.publish(requested())
        told = await wait_for(environment.bus, TopicPulled)
        assert (told.taken, told.refused, told.parts) == (0, 0, ())


async def test_a_stream_may_be_pulled_too_and_nothing_is_taken_twice(environment: Environment) -> None:
    async with services(environment):
        await take(environment)
        await environment.bus.publish(*(row(n) for n in range(300)), requested())
        await wait_for(environment.bus, TopicPulled)
        await until_standing(environment)
        assert await kept(environment, 300) == numbers(300)
    assert len({o.id for o in await published(environment.bus, ObservationReceived)}) == 300


async def test_a_request_for_a_pipeline_without_a_topic_fails_with_the_fix(environment: Environment) -> None:
    async with services(environment):
        await declare(environment, builders.pipeline_file())
        await environment.bus.publish(requested(), requested("q"))
        failed = await wait_for(environment.bus, StageFailed, where=lambda e: e.pipeline == "p")
        assert failed.stage == "ingestion.pull"
        assert failed.error == "pipeline: 'p' takes no topic; name one as source.topic in its file"
        unknown = await wait_for(environment.bus, StageFailed, where=lambda e: e.pipeline == "q")
        assert "did you mean 'p'" in unknown.error or "one of: p" in unknown.error


# --- by a schedule ------------------------------------------------------------------------------------------------


async def pulls(environment: Environment) -> Sequence[TopicPulled]:
    return await published(environment.bus, TopicPulled)


async def test_two_processes_that_ask_by_the_schedule_make_one_pull(tmp_path: Path) -> None:
    clock = Clock()
    one, other = (environment_in(tmp_path, now=clock) for _ in range(2))
    try:
        await one.bus.publish(*(row(n) for n in range(50)))
        await take(one, pull=", pull: {every: 1h}")
        async with services(one), running(other, build(other)):
            assert await kept(one, 50) == numbers(50)
            await wait_for(one.bus, TopicPulled)
            await one.bus.publish(*(row(n) for n in range(50, 60)))
            # Nothing happens before the next slot; then both ask.
            clock.advance(hours=1)
            assert await kept(one, 60) == numbers(60)
            await wait_for(one.bus, TopicPulled, where=lambda e: e.taken == 10)
        assert [told.taken for told in await pulls(one)] == [50, 10]
        asked = await published(one.bus, Requested)
        assert len({request.id for request in asked}) == 2
        assert {request.by for request in asked} == {"schedule"}
    finally:
        await one.close()
        await other.close()

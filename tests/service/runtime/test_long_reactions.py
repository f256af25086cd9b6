"""Long reactions: the offset moves when the job is recorded; the job runs under a lease."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from builders import raw_extracted
from environment import dead_letters, published, running, wait_for

from turnout.common.bus.port import Record
from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import Event, RawDataExtracted, StageFailed, TrainingRequested
from turnout.common.executor.port import WorkerLost
from turnout.common.runtime.dead_letters import replay_dead_letters
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Handle, Reaction, Service
from turnout.common.runtime.working import LARGEST_ATTEMPT

QUEUE = "training.fit"


def service(handle: Handle, parallel: int = 1) -> Service:
    return Service("training", [Reaction("fit", [RawDataExtracted], handle, long=True, parallel=parallel)])


def answer(event: Event) -> TrainingRequested:
    return TrainingRequested.caused_by(event, source="/test", at=event.time)


async def finished(environment: Environment) -> None:
    async with asyncio.timeout(30):
        while sum((await environment.bus.lag(QUEUE)).values()) or await environment.jobs.waiting(QUEUE):
            await asyncio.sleep(0.01)


async def test_each_event_is_a_job(environment: Environment) -> None:
    calls: list[int] = []

    async def fit(events: Sequence[Event]) -> list[Event]:
        calls.append(len(events))
        return [answer(event) for event in events]

    await environment.bus.publish(*(raw_extracted() for _ in range(4)))
    async with running(environment, service(fit)):
        await wait_for(environment.bus, TrainingRequested)
        await finished(environment)
    assert calls == [1, 1, 1, 1]
    assert len(await published(environment.bus, TrainingRequested)) == 4


async def test_the_offset_does_not_wait_for_the_job(environment: Environment) -> None:
    go_on = asyncio.Event()

    async def fit(events: Sequence[Event]) -> list[Event]:
        await go_on.wait()
        return [answer(event) for event in events]

    await environment.bus.publish(raw_extracted())
    async with running(environment, service(fit)):
        while await environment.bus.lag(QUEUE) != {"RawDataExtracted": 0}:
            await asyncio.sleep(0.01)
        assert await environment.jobs.waiting(QUEUE) == 1
        go_on.set()
        await finished(environment)


async def test_jobs_of_one_pipeline_run_in_order_and_others_beside_them(environment: Environment) -> None:
    now: list[str] = []
    together: set[frozenset[str]] = set()
    order: list[str] = []

    async def fit(events: Sequence[Event]) -> list[Event]:
        [event] = events
        now.append(event.pipeline)
        together.add(frozenset(now))
        assert now.count(event.pipeline) == 1
        await asyncio.sleep(0.05)
        now.remove(event.pipeline)
        order.append(event.id)
        return []

    sent = [raw_extracted(pipeline=name) for _ in range(3) for name in ("a", "b")]
    await environment.bus.publish(*sent)
    async with running(environment, service(fit, parallel=2)):
        while len(order) < 6:
            await asyncio.sleep(0.01)
    assert frozenset({"a", "b"}) in together
    for name in ("a", "b"):
        ids = [event.id for event in sent if event.pipeline == name]
        assert [ident for ident in order if ident in ids] == ids


@pytest.mark.parametrize(
    ("error", "says", "tries"),
    [
        (Invalid("training.candidates[0]", "has no converter", fix="take another"),
         "training.candidates[0]: has no converter; take another", 1),
        (ZeroDivisionError("x / 0"), "a fault of ours: ZeroDivisionError: x / 0", 3),
        (WorkerLost("a worker process", "it died under the work"),
         "a worker process is not available: it died under the work", 3),
    ],
)  # fmt: skip
async def test_what_is_given_up_is_told_and_kept(
    environment: Environment, error: Exception, says: str, tries: int
) -> None:
    calls = 0

    async def fit(_: Sequence[Event]) -> list[Event]:
        nonlocal calls
        calls += 1
        raise error

    event = raw_extracted(pipeline="heart")
    await environment.bus.publish(event)
    async with running(environment, service(fit)):
        failed = await wait_for(environment.bus, StageFailed)
        await finished(environment)
    assert (failed.pipeline, failed.stage, failed.error) == ("heart", QUEUE, says)
    assert (failed.causation_id, failed.correlation_id) == (event.id, event.correlation_id)
    if isinstance(error, Invalid):
        assert (failed.field, failed.fix) == (error.field, error.fix)
    assert calls == tries
    [letter] = await dead_letters(environment.bus, RawDataExtracted)
    assert letter.event() == event
    assert not [name for name, _ in letter.record.headers if name.startswith("job_")]


async def test_a_replayed_dead_letter_is_a_job_again(environment: Environment) -> None:
    broken = True

    async def fit(events: Sequence[Event]) -> list[Event]:
        if broken:
            raise Invalid("file", "is not there yet")
        return [answer(event) for event in events]

    bare = Record("RawDataExtracted", b"p", raw_extracted().model_dump_json().encode())
    await environment.bus.publish(raw_extracted(), bare)
    async with running(environment, service(fit)):
        await wait_for(environment.bus, StageFailed)
        await finished(environment)
        broken = False
        assert await replay_dead_letters(environment.bus, "RawDataExtracted") == 2
        await wait_for(environment.bus, TrainingRequested)
        await finished(environment)
    assert len(await published(environment.bus, TrainingRequested)) == 2
    assert len(await published(environment.bus, StageFailed)) == 2


async def test_what_is_away_is_waited_for(environment: Environment) -> None:
    calls = 0

    async def fit(events: Sequence[Event]) -> list[Event]:
        nonlocal calls
        calls += 1
        if calls < 5:
            raise Unavailable("the registry", "it is away")
        return [answer(event) for event in events]

    await environment.bus.publish(raw_extracted())
    async with running(environment, service(fit)):
        await wait_for(environment.bus, TrainingRequested)
    assert await published(environment.bus, StageFailed) == []


async def test_what_is_no_event_is_a_dead_letter(environment: Environment) -> None:
    async def fit(_: Sequence[Event]) -> list[Event]:
        raise AssertionError("not called")

    await environment.bus.publish(Record("RawDataExtracted", b"p", b"{}"))
    async with running(environment, service(fit)):
        while not await dead_letters(environment.bus, RawDataExtracted):
            await asyncio.sleep(0.01)
        await finished(environment)


async def test_stopped_under_way_the_job_is_given_back_at_once(environment: Environment) -> None:
    begun = asyncio.Event()

    async def never(_: Sequence[Event]) -> list[Event]:
        begun.set()
        await asyncio.Event().wait()
        return []

    async def fit(events: Sequence[Event]) -> list[Event]:
        return [answer(event) for event in events]

    await environment.bus.publish(raw_extracted())
    async with running(environment, service(never)):
        await begun.wait()
    assert await environment.jobs.waiting(QUEUE) == 1
    async with running(environment, service(fit)):
        await wait_for(environment.bus, TrainingRequested, seconds=5)


async def test_a_job_that_kills_its_process_is_given_up_in_the_end(environment: Environment) -> None:
    async def fit(_: Sequence[Event]) -> list[Event]:
        raise AssertionError("not called any more")

    async def nothing(_: Sequence[Event]) -> list[Event]:
        await asyncio.Event().wait()
        return []

    await environment.bus.publish(raw_extracted())
    async with running(environment, service(nothing)):
        while not await environment.jobs.waiting(QUEUE):
            await asyncio.sleep(0.01)
    for _ in range(LARGEST_ATTEMPT):  # it was running each time when the process died
        lease = await environment.jobs.claim(QUEUE, now=environment.now(), owner="dead")
        assert lease is not None
        await environment.jobs.release(lease, until=environment.now())
    async with running(environment, service(fit)):
        failed = await wait_for(environment.bus, StageFailed)
        await finished(environment)
    assert "the process died under this" in failed.error
    assert len(await dead_letters(environment.bus, RawDataExtracted)) == 1

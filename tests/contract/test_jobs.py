"""What every store of jobs keeps. An adapter joins as one more of `ADAPTERS`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from turnout.common.bus.port import Record
from turnout.common.errors import Unavailable
from turnout.common.jobs.port import Job, Jobs, Lease

ADAPTERS = ("embedded", pytest.param("cassandra", marks=pytest.mark.stack))
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
# Longer than any lease.
LONG = timedelta(minutes=5)

Open = Callable[[], Jobs]


def place_of(adapter: str, request: pytest.FixtureRequest, folder: Path) -> Open:
    """How to open the test's own jobs, none at first, as often as the test likes."""
    match adapter:
        case "embedded":
            from turnout.common.jobs.embedded import EmbeddedJobs

            return lambda: EmbeddedJobs(folder / "jobs.sqlite")
        case "cassandra":
            from keyspaces import emptied

            from turnout.common.jobs.cassandra import CassandraJobs

            settings = emptied(request.getfixturevalue("stack").cassandra, "contract_jobs")
            return lambda: CassandraJobs(settings)
        case _:
            raise ValueError(adapter)


@pytest.fixture(params=ADAPTERS)
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    place = place_of(request.param, request, tmp_path)
    made: list[Jobs] = []

    def make() -> Jobs:
        made.append(place())
        return made[-1]

    yield make
    for jobs in made:
        await jobs.close()


@pytest.fixture
def jobs(opened: Open) -> Jobs:
    return opened()


def job(ident: str = "j-1", *, queue: str = "q", key: bytes | None = b"k") -> Job:
    headers = (("ce_id", ident.encode()), ("raw", bytes(range(256))))
    return Job(ident, queue, Record("SourceDataAvailable", key, b'{"uri": "x"}', headers), 1)


async def claimed(jobs: Jobs, *, queue: str = "q", now: datetime = NOW, owner: str = "me") -> Lease:
    lease = await jobs.claim(queue, now=now, owner=owner)
    assert lease is not None
    return lease


async def test_a_job_comes_back_as_it_was_recorded(jobs: Jobs) -> None:
    await jobs.add(job())
    assert (await claimed(jobs)).job == job()


async def test_an_empty_queue_gives_nothing(jobs: Jobs) -> None:
    assert await jobs.claim("q", now=NOW, owner="me") is None
    assert await jobs.waiting("q") == 0


async def test_asking_twice_is_one_job(jobs: Jobs) -> None:
    await jobs.add(job(), job())
    await jobs.add(job())
    assert await jobs.waiting("q") == 1
    lease = await claimed(jobs)
    await jobs.add(job())
    assert await jobs.claim("q", now=NOW, owner="other") is None
    assert await jobs.finish(lease)
    await jobs.add(job())
    assert await jobs.waiting("q") == 0


async def test_jobs_run_in_the_order_of_their_recording(jobs: Jobs) -> None:
    await jobs.add(*(job(f"j-{n}", key=f"k-{n}".encode()) for n in range(5)))
    assert [(await claimed(jobs)).job.id for _ in range(5)] == [f"j-{n}" for n in range(5)]


async def test_jobs_with_one_key_do_not_overtake(jobs: Jobs) -> None:
    await jobs.add(
        job("a-1", key=b"a"), job("a-2", key=b"a"), job("b-1", key=b"b"), job("n-1", key=None), job("n-2", key=None)
    )
    first = await claimed(jobs)
    assert first.job.id == "a-1"
    assert [(await claimed(jobs)).job.id for _ in range(3)] == ["b-1", "n-1", "n-2"]
    assert await jobs.claim("q", now=NOW, owner="me") is None
    await jobs.finish(first)
    assert (await claimed(jobs)).job.id == "a-2"


async def test_queues_are_apart(jobs: Jobs) -> None:
    await jobs.add(job("j-1", queue="one"), job("j-2", queue="other"))
    assert (await claimed(jobs, queue="other")).job.id == "j-2"
    assert await jobs.waiting("one") == 1


async def test_a_job_whose_lease_ran_out_is_taken_up_again(jobs: Jobs) -> None:
    await jobs.add(job())
    lost = await claimed(jobs)
    assert await jobs.claim("q", now=NOW, owner="other") is None
    again = await claimed(jobs, now=NOW + LONG, owner="other")
    assert (again.job.id, again.job.attempt) == ("j-1", 2)
    assert not await jobs.renew(lost, now=NOW + LONG)
    assert not await jobs.finish(lost), "who was thought dead is refused"
    assert await jobs.waiting("q") == 1
    assert await jobs.finish(again)
    assert await jobs.waiting("q") == 0


async def test_a_heartbeat_keeps_the_lease(jobs: Jobs) -> None:
    await jobs.add(job())
    lease = await claimed(jobs)
    now = NOW
    for _ in range(5):
        now += timedelta(seconds=5)
        assert await jobs.renew(lease, now=now)
        assert await jobs.claim("q", now=now, owner="other") is None
    assert await jobs.finish(lease)


async def test_a_late_heartbeat_keeps_what_nobody_took(jobs: Jobs) -> None:
    await jobs.add(job())
    lease = await claimed(jobs)
    assert await jobs.renew(lease, now=NOW + LONG)
    assert await jobs.claim("q", now=NOW + LONG, owner="other") is None


async def test_a_released_job_waits_until_its_time(jobs: Jobs) -> None:
    await jobs.add(job())
    lease = await claimed(jobs)
    await jobs.release(lease, until=NOW + timedelta(seconds=30))
    assert await jobs.claim("q", now=NOW + timedelta(seconds=29), owner="me") is None
    assert (await claimed(jobs, now=NOW + timedelta(seconds=30))).job.attempt == 2
    assert not await jobs.finish(lease)


async def test_two_processes_never_hold_one_job(opened: Open) -> None:
    one, other = opened(), opened()
    await one.add(*(job(f"j-{n}", key=f"k-{n}".encode()) for n in range(40)))

    async def take(jobs: Jobs, owner: str) -> list[str]:
        taken: list[str] = []
        while (lease := await jobs.claim("q", now=NOW, owner=owner)) is not None:
            taken.append(lease.job.id)
        return taken

    first, second = await asyncio.gather(take(one, "one"), take(other, "other"))
    assert sorted(first + second) == sorted(f"j-{n}" for n in range(40))


async def test_finished_jobs_are_forgotten_in_the_end(jobs: Jobs) -> None:
    await jobs.add(job("done"), job("waits"))
    await jobs.finish(await claimed(jobs))
    assert await jobs.purge(NOW + timedelta(days=1)) == 0
    assert await jobs.purge(NOW + timedelta(days=60)) == 1
    assert await jobs.waiting("q") == 1


async def test_a_store_that_is_closed_or_away_is_not_available(jobs: Jobs, tmp_path: Path) -> None:
    await jobs.add(job())
    await jobs.close()
    with pytest.raises(Unavailable):
        await jobs.add(job("j-2"))

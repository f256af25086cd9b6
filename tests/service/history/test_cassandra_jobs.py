"""Jobs on Cassandra whose workers die between two writes, race each other, or come back from the dead."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from keyspaces import emptied

from turnout.common.bus.port import Record
from turnout.common.cassandra.settings import CassandraSettings
from turnout.common.jobs.cassandra import CassandraJobs
from turnout.common.jobs.port import Job
from turnout.devstack.stack import Stack

pytestmark = pytest.mark.stack

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
WORK = """
import asyncio, sys
from test_cassandra_jobs import NOW, job
from turnout.common.cassandra.settings import CassandraSettings
from turnout.common.jobs.cassandra import CassandraJobs

async def main():
    jobs = CassandraJobs(CassandraSettings(hosts=sys.argv[1], keyspace=sys.argv[2], timeout_seconds=30))
    await jobs.add(job("j-1"), job("j-2"))
    await jobs.finish(await jobs.claim("q", now=NOW, owner="me"))
    await jobs.close()

asyncio.run(main())
"""


@pytest.fixture
def settings(stack: Stack) -> CassandraSettings:
    return emptied(stack.cassandra, "service_jobs")


@pytest.fixture
async def jobs(settings: CassandraSettings) -> AsyncIterator[CassandraJobs]:
    opened = CassandraJobs(settings)
    yield opened
    await opened.close()


def job(ident: str, *, key: bytes | None = None) -> Job:
    return Job(ident, "q", Record("SourceDataAvailable", key, b"{}", (("ce_id", ident.encode()),)), 1)


def died(settings: CassandraSettings, point: str) -> None:
    """A worker recorded two jobs and finished the first, until it was killed at `point`."""
    here = Path(__file__).parent
    child = subprocess.run(
        [sys.executable, "-c", WORK, settings.hosts, settings.keyspace],
        env={
            **os.environ,
            "TURNOUT_CRASH_POINT": point,
            "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1] / 'support'}",
        },
        check=False,
        capture_output=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()


async def finished(jobs: CassandraJobs, *, now: datetime = NOW) -> list[str]:
    """Every job that may run, each finished before the next is taken."""
    done: list[str] = []
    while (lease := await jobs.claim("q", now=now, owner="me")) is not None:
        assert await jobs.finish(lease)
        done.append(lease.job.id)
    return done


async def test_a_job_whose_recorder_died_is_recorded_when_its_event_comes_again(
    settings: CassandraSettings, jobs: CassandraJobs
) -> None:
    await asyncio.to_thread(died, settings, "job-record-written")
    assert await jobs.claim("q", now=LATER, owner="me") is None
    await jobs.add(job("j-1"), job("j-2"))
    assert await finished(jobs, now=LATER) == ["j-1", "j-2"]


@pytest.mark.parametrize("point", ["job-marked-finished", "job-remembered"])
async def test_a_job_whose_worker_died_after_finishing_it_is_finished(
    settings: CassandraSettings, jobs: CassandraJobs, point: str
) -> None:
    await asyncio.to_thread(died, settings, point)
    assert await jobs.waiting("q") == 1
    await jobs.add(job("j-1"))
    assert await jobs.waiting("q") == 1
    assert await finished(jobs, now=LATER) == ["j-2"]
    await jobs.add(job("j-1"), job("j-2"))
    assert await jobs.waiting("q") == 0


async def test_a_job_of_a_dead_process_is_free_at_once(settings: CassandraSettings, jobs: CassandraJobs) -> None:
    await asyncio.to_thread(died, settings, "job-marked-finished")
    # The lease of a process of this machine that is gone need not run out.
    await jobs.add(job("j-3"))
    assert await finished(jobs) == ["j-2", "j-3"]


async def test_a_worker_that_was_thought_dead_changes_nothing(settings: CassandraSettings, jobs: CassandraJobs) -> None:
    other = CassandraJobs(settings)
    await jobs.add(job("j-1"))
    zombie = await jobs.claim("q", now=NOW, owner="zombie")
    assert zombie is not None
    heir = await other.claim("q", now=LATER, owner="heir")
    assert heir is not None
    await jobs.release(zombie, until=NOW)
    assert not await jobs.renew(zombie, now=LATER)
    assert not await jobs.finish(zombie)
    assert await other.claim("q", now=LATER, owner="third") is None
    assert await other.finish(heir)
    assert not await other.renew(heir, now=LATER)
    await other.close()


async def test_recorders_and_workers_at_once_lose_and_double_nothing(
    settings: CassandraSettings, jobs: CassandraJobs
) -> None:
    other = CassandraJobs(settings)
    all_of_them = [job(f"j-{n}", key=f"k-{n % 5}".encode()) for n in range(30)]
    done: list[str] = []

    async def record(where: CassandraJobs) -> None:
        for one in all_of_them:
            await where.add(one)

    async def work(where: CassandraJobs) -> None:
        while len(done) < len(all_of_them):
            lease = await where.claim("q", now=NOW, owner="me")
            if lease is None:
                await asyncio.sleep(0.02)
            else:
                done.append(lease.job.id)
                assert await where.finish(lease)

    async with asyncio.timeout(100):
        await asyncio.gather(record(jobs), record(other), work(jobs), work(other))
    assert sorted(done) == sorted(j.id for j in all_of_them)
    for key in range(5):
        of_key = [ident for ident in done if int(ident[2:]) % 5 == key]
        assert of_key == sorted(of_key, key=lambda ident: int(ident[2:])), "jobs of one key overtook each other"
    assert await jobs.waiting("q") == 0
    await other.close()


async def test_finished_jobs_are_not_read_over_and_over(jobs: CassandraJobs) -> None:
    await jobs.add(*(job(f"j-{n}") for n in range(150)))
    assert len(await finished(jobs)) == 150
    following, first = await jobs._bounds("q")
    assert following == 150
    assert 150 - first <= 64
    await jobs.add(job("later"))
    assert await finished(jobs) == ["later"]


async def test_nothing_blocks_the_loop(jobs: CassandraJobs) -> None:
    await jobs.waiting("q")
    with blockbuster_ctx("turnout"):
        await jobs.add(job("j-1", key=b"k"), job("j-2"))
        lease = await jobs.claim("q", now=NOW, owner="me")
        assert lease is not None
        assert await jobs.renew(lease, now=NOW)
        await jobs.release(lease, until=NOW)
        assert len(await finished(jobs)) == 2
        assert await jobs.purge(NOW + timedelta(days=60)) == 2
        await jobs.close()

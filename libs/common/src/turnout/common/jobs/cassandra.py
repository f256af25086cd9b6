"""Jobs on Cassandra, shared by workers on many machines.

`open_job` holds a queue's unfinished jobs in one partition, numbered in the order of their recording, each a few
hundred bytes; what the event says lies in `job_record` by the job's id, what is finished in `finished_job`. Every
change of the partition is a lightweight transaction, so that workers agree on one order of changes: a job is taken by
comparing what was seen of it, and kept, finished or given back by comparing the lease's token.

**The partition stays small.** It holds what waits or runs and nothing else: a few rows, thousands while a backlog is
worked off. A finished job's row is deleted, and a deleted row slows down reading until it is compacted away; so the
partition knows the lowest number that may be open (`first`) and is read from there, and its deletions are dropped
after an hour (`gc_grace_seconds`): a row that comes back from a node that was away longer is seen to be finished.

**Order of writes.** Recording: what the event says → number and place, in one transaction. Finishing: marked as
finished (from here on it is) → remembered as long as its event can come again → its record and its place deleted. A
process that dies in between leaves work that the next one who looks at the queue completes.

A lease is compared with the clock of whoever looks: clocks of the workers must agree to a few seconds.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import islice
from uuid import uuid4

from turnout.common.bus.log import pack_headers, to_micros, unpack_headers
from turnout.common.bus.port import Record
from turnout.common.cassandra.connection import Cassandra, Cql, Row, Tables
from turnout.common.cassandra.settings import CassandraSettings
from turnout.common.jobs.port import Job, Lease
from turnout.common.liveness import gone, host
from turnout.common.runtime.crash import crash_point

FORMAT = 1
LEASE = timedelta(seconds=10)
# A finished job is remembered as long as its event can come again.
KEEP = timedelta(days=30)
# Jobs placed by one transaction.
_TOGETHER = 100
# Deleted rows that may lie before the first open job until the partition is told to begin later.
_SLACK = 64
_FINISHED = "finished"

_CREATE = (
    """CREATE TABLE IF NOT EXISTS open_job (queue text, number bigint, next bigint static, first bigint static,
    id text, key blob, state text, attempt int, owner text, host text, pid int, lease text, until bigint,
    PRIMARY KEY (queue, number)) WITH gc_grace_seconds = 3600""",
    """CREATE TABLE IF NOT EXISTS job_record (id text PRIMARY KEY, topic text, key blob, value blob, headers blob)
    WITH gc_grace_seconds = 3600""",
    "CREATE TABLE IF NOT EXISTS finished_job (id text PRIMARY KEY, until bigint)",
    "CREATE INDEX IF NOT EXISTS finished_job_until ON finished_job (until) USING 'sai'",
)

_BOUNDS = Cql("SELECT DISTINCT queue, next, first FROM open_job WHERE queue = ?")
_OPEN = Cql(
    "SELECT number, id, key, state, attempt, host, pid, lease, until FROM open_job WHERE queue = ? AND number >= ?"
)
_LOWEST = Cql("SELECT number FROM open_job WHERE queue = ? AND number >= ? LIMIT 1")
_NUMBER = Cql("UPDATE open_job SET next = ? WHERE queue = ? IF next = ?", "once")
_PLACE = Cql(
    "INSERT INTO open_job (queue, number, id, key, state, attempt, until) VALUES (?, ?, ?, ?, 'waiting', ?, 0)", "once"
)
_TAKE = Cql(
    "UPDATE open_job SET state = 'running', attempt = ?, owner = ?, host = ?, pid = ?, lease = ?, until = ?"
    " WHERE queue = ? AND number = ? IF state = ? AND lease = ? AND until = ?",
    "once",
)
# With the lease's token these may be sent twice.
_RENEW = Cql("UPDATE open_job SET until = ? WHERE queue = ? AND number = ? IF lease = ? AND state = 'running'", "write")
_FINISH = Cql(
    "UPDATE open_job SET state = 'finished' WHERE queue = ? AND number = ?"
    " IF lease = ? AND state IN ('running', 'finished')",
    "write",
)
_RELEASE = Cql(
    "UPDATE open_job SET state = 'waiting', lease = null, owner = null, until = ? WHERE queue = ? AND number = ?"
    " IF lease = ? AND state = 'running'",
    "write",
)
_CLOSE = Cql("DELETE FROM open_job WHERE queue = ? AND number = ? IF EXISTS", "write")
_BEGIN_AT = Cql("UPDATE open_job SET first = ? WHERE queue = ? IF first = ?", "write")
_FIND = Cql("SELECT number, id, lease, until FROM open_job WHERE queue = ? AND number = ?")

_RECORD = Cql("INSERT INTO job_record (id, topic, key, value, headers) VALUES (?, ?, ?, ?, ?)", "write")
_RECORDED = Cql("SELECT topic, key, value, headers FROM job_record WHERE id = ?")
_DROP_RECORD = Cql("DELETE FROM job_record WHERE id = ?", "write")
_REMEMBER = Cql(f"INSERT INTO finished_job (id, until) VALUES (?, ?) USING TTL {int(KEEP.total_seconds())}", "write")  # noqa: S608 (a constant)
_KNOWN = Cql("SELECT id FROM finished_job WHERE id = ?")
_OLD = Cql("SELECT id FROM finished_job WHERE until < ?")
_DROP = Cql("DELETE FROM finished_job WHERE id = ?", "write")

_TABLES = Tables("jobs", FORMAT, _CREATE, tuple(cql for cql in globals().values() if isinstance(cql, Cql)))


class CassandraJobs:
    """`Jobs` in the keyspace that the settings name, opened at the first call."""

    def __init__(self, settings: CassandraSettings) -> None:
        self._db = Cassandra(settings, _TABLES)

    async def add(self, *jobs: Job) -> None:
        """Record jobs; one that is known stays as it is."""
        by_queue: defaultdict[str, dict[str, Job]] = defaultdict(dict)
        for job in jobs:
            by_queue[job.queue].setdefault(job.id, job)
        for queue, of_it in by_queue.items():
            rest = iter(of_it.values())
            while some := list(islice(rest, _TOGETHER)):
                await self._add(queue, some)

    async def _add(self, queue: str, jobs: Sequence[Job]) -> None:
        recorded: set[str] = set()
        while True:
            following, first = await self._bounds(queue)
            new = await self._unknown(queue, first, jobs)
            if not new:
                return
            await self._db.each(
                _RECORD,
                [
                    (j.id, j.record.topic, j.record.key, j.record.value, pack_headers(j.record.headers))
                    for j in new
                    if j.id not in recorded
                ],
            )
            recorded |= {job.id for job in new}
            crash_point("job-record-written")
            start = following or 0
            rows = [
                (_PLACE, (queue, number, job.id, job.record.key, job.attempt - 1))
                for number, job in enumerate(new, start)
            ]
            (answer, *_) = await self._db.together([(_NUMBER, (start + len(new), queue, following)), *rows], once=True)
            # Otherwise somebody recorded jobs meanwhile, perhaps these.
            if answer["[applied]"]:
                return

    async def _unknown(self, queue: str, first: int, jobs: Sequence[Job]) -> list[Job]:
        # Open ones first: a job is remembered as finished before it leaves them.
        known = {row["id"] for row in await self._db.rows(_OPEN, queue, first)}
        for (row,) in filter(None, await self._db.each(_KNOWN, [(job.id,) for job in jobs])):
            known.add(row["id"])
        return [job for job in jobs if job.id not in known]

    async def claim(self, queue: str, *, now: datetime, owner: str) -> Lease | None:
        """The oldest job that may run; its attempt grows by one."""
        while True:
            row = await self._next(queue, to_micros(now))
            if row is None:
                return None
            # It says where the job lies, so that whoever has the lease finds it.
            token = f"{row['number']} {uuid4()}"
            attempt = row["attempt"] + 1
            mine = (attempt, owner, host(), os.getpid(), token, to_micros(now + LEASE))
            seen = (row["state"], row["lease"], row["until"])
            (answer,) = await self._db.rows(_TAKE, *mine, queue, row["number"], *seen)
            if not answer["[applied]"]:
                continue
            found = await self._db.rows(_RECORDED, row["id"])
            if not found:
                # Finished long ago, and brought back by a node that had been away.
                await self._close(queue, row)
                continue
            record = found[0]
            of_it = Record(record["topic"], record["key"], record["value"], unpack_headers(record["headers"]))
            return Lease(Job(row["id"], queue, of_it, attempt), token)

    async def _next(self, queue: str, now: int) -> Row | None:
        """The oldest that may run, of those that have no older unfinished one with their key before them."""
        following, first = await self._bounds(queue)
        if following is None or first == following:
            return None
        busy: set[bytes] = set()
        async for page in self._db.pages(_OPEN, queue, first):
            for row in page:
                if row["state"] == _FINISHED:
                    # Whoever finished it died before this.
                    await self._close(queue, row)
                    continue
                if row["key"] is not None and row["key"] in busy:
                    continue
                if row["until"] <= now or _is_dead(row):
                    return row
                if row["key"] is not None:
                    busy.add(row["key"])
        return None

    async def renew(self, lease: Lease, *, now: datetime) -> bool:
        """Keep the lease, also one that ran out if nobody has taken the job."""
        return await self._held(_RENEW, lease, to_micros(now + LEASE))

    async def finish(self, lease: Lease) -> bool:
        """Remember that the job is finished; its record goes."""
        if not await self._held(_FINISH, lease):
            return False
        crash_point("job-marked-finished")
        for row in await self._db.rows(_FIND, lease.job.queue, _number(lease)):
            await self._close(lease.job.queue, row)
        return True

    async def release(self, lease: Lease, *, until: datetime) -> None:
        """Give the job back, to be tried again not before `until`."""
        await self._held(_RELEASE, lease, to_micros(until))

    async def waiting(self, queue: str) -> int:
        """Jobs not finished."""
        following, first = await self._bounds(queue)
        if following is None or first == following:
            return 0
        return sum(row["state"] != _FINISHED for row in await self._db.rows(_OPEN, queue, first))

    async def purge(self, now: datetime) -> int:
        """Forget jobs that finished long ago; how many went. Most have gone by themselves."""
        gone = 0
        async for page in self._db.pages(_OLD, to_micros(now - KEEP)):
            await self._db.each(_DROP, [(row["id"],) for row in page])
            gone += len(page)
        return gone

    async def close(self) -> None:
        """Let go of the cluster."""
        await self._db.close()

    async def _bounds(self, queue: str) -> tuple[int | None, int]:
        """The number of the next job, None before the first; the lowest that may be open."""
        rows = await self._db.rows(_BOUNDS, queue)
        return (rows[0]["next"], rows[0]["first"] or 0) if rows else (None, 0)

    async def _held(self, change: Cql, lease: Lease, *values: object) -> bool:
        (answer,) = await self._db.rows(change, *values, lease.job.queue, _number(lease), lease.token)
        return bool(answer["[applied]"])

    async def _close(self, queue: str, row: Row) -> None:
        """Take a finished job out of the open ones, and let these begin later."""
        await self._db.run(_REMEMBER, row["id"], row["until"])
        await self._db.run(_DROP_RECORD, row["id"])
        crash_point("job-remembered")
        await self._db.run(_CLOSE, queue, row["number"])
        # The bound is read first: a job that is recorded meanwhile has a number from there on.
        following, first = await self._bounds(queue)
        lowest = await self._db.rows(_LOWEST, queue, first)
        begin = lowest[0]["number"] if lowest else following
        if begin is not None and begin - first >= _SLACK:
            await self._db.run(_BEGIN_AT, begin, queue, first or None)


def _number(lease: Lease) -> int:
    return int(lease.token.partition(" ")[0])


def _is_dead(row: Row) -> bool:
    """A job of a process that is gone need not wait for its lease to run out."""
    return row["state"] == "running" and gone(row["host"], row["pid"])

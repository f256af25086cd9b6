"""Jobs in one SQLite file, shared by all processes that name it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from turnout.common.bus.log import pack_headers, to_micros, unpack_headers
from turnout.common.bus.port import Record
from turnout.common.errors import Unavailable
from turnout.common.jobs.port import Job, Lease
from turnout.common.liveness import gone, host
from turnout.common.wal import open_wal

T = TypeVar("T")

LEASE = timedelta(seconds=10)
# A finished job is remembered as long as its event can come again.
KEEP = timedelta(days=30)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, queue TEXT NOT NULL, topic TEXT NOT NULL, key BLOB,
    value BLOB, headers BLOB NOT NULL, state TEXT NOT NULL DEFAULT 'waiting', attempt INTEGER NOT NULL DEFAULT 0,
    owner TEXT, host TEXT, pid INTEGER, token TEXT, until INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS unfinished ON jobs (queue, number) WHERE state != 'finished';
"""
# The oldest that may run, of those that have no older unfinished one with their key before them.
_NEXT = """
SELECT number, id, topic, key, value, headers, attempt FROM jobs AS j
WHERE queue = ? AND state != 'finished' AND until <= ? AND (key IS NULL OR NOT EXISTS (
    SELECT 1 FROM jobs AS o WHERE o.queue = j.queue AND o.state != 'finished' AND o.key = j.key AND o.number < j.number
)) ORDER BY number LIMIT 1
"""


class EmbeddedJobs:
    """The jobs at `path`. Nothing is opened before the first call; one thread of its own touches the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "jobs")
        self._opened: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    async def add(self, *jobs: Job) -> None:
        """Record jobs in one transaction; one that is known stays as it is."""
        rows = [
            (j.id, j.queue, j.record.topic, j.record.key, j.record.value, pack_headers(j.record.headers), j.attempt - 1)
            for j in jobs
        ]

        def insert(db: sqlite3.Connection) -> None:
            db.executemany(
                "INSERT OR IGNORE INTO jobs (id, queue, topic, key, value, headers, attempt) VALUES (?,?,?,?,?,?,?)",
                rows,
            )

        await self._change(insert)

    async def claim(self, queue: str, *, now: datetime, owner: str) -> Lease | None:
        """The oldest job that may run; its attempt grows by one."""

        def take(db: sqlite3.Connection) -> Lease | None:
            _free_the_dead(db, queue)
            row = db.execute(_NEXT, (queue, to_micros(now))).fetchone()
            if row is None:
                return None
            number, ident, topic, key, value, headers, attempt = row
            token = str(uuid4())
            db.execute(
                "UPDATE jobs SET state = 'running', attempt = ?, owner = ?, host = ?, pid = ?, token = ?, until = ?"
                " WHERE number = ?",
                (attempt + 1, owner, host(), os.getpid(), token, to_micros(now + LEASE), number),
            )
            return Lease(Job(ident, queue, Record(topic, key, value, unpack_headers(headers)), attempt + 1), token)

        return await self._change(take)

    async def renew(self, lease: Lease, *, now: datetime) -> bool:
        """Keep the lease, also one that ran out if nobody has taken the job."""
        return await self._held(lease, "until = ?", to_micros(now + LEASE))

    async def finish(self, lease: Lease) -> bool:
        """Remember that the job is finished; its record goes."""
        return await self._held(lease, "state = 'finished', value = NULL, headers = ?, token = NULL", pack_headers(()))

    async def release(self, lease: Lease, *, until: datetime) -> None:
        """Give the job back, to be tried again not before `until`."""
        await self._held(lease, "state = 'waiting', token = NULL, owner = NULL, until = ?", to_micros(until))

    async def waiting(self, queue: str) -> int:
        """Jobs not finished."""

        def count(db: sqlite3.Connection) -> int:
            return db.execute("SELECT count(*) FROM jobs WHERE queue = ? AND state != 'finished'", (queue,)).fetchone()[
                0
            ]

        return await self._change(count)

    async def purge(self, now: datetime) -> int:
        """Forget jobs that finished long ago; how many went."""
        before = to_micros(now - KEEP)

        def delete(db: sqlite3.Connection) -> int:
            return db.execute("DELETE FROM jobs WHERE state = 'finished' AND until < ?", (before,)).rowcount

        return await self._change(delete)

    async def close(self) -> None:
        """Close the file."""
        await asyncio.to_thread(self._thread.shutdown)
        if self._opened is not None:
            await asyncio.to_thread(self._opened.close)
            self._opened = None

    async def _held(self, lease: Lease, change: str, value: object) -> bool:
        def update(db: sqlite3.Connection) -> bool:
            statement = f"UPDATE jobs SET {change} WHERE id = ? AND token = ?"  # noqa: S608 (literals of this class)
            return bool(db.execute(statement, (value, lease.job.id, lease.token)).rowcount)

        return await self._change(update)

    async def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work)
        except (sqlite3.Error, OSError, RuntimeError) as error:
            raise Unavailable(f"the jobs at {self._path}", str(error)) from error

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock, _transaction(self._connection()) as db:
            return work(db)

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            db = open_wal(self._path)
            db.executescript(_SCHEMA)
            self._opened = db
        return self._opened


def _free_the_dead(db: sqlite3.Connection, queue: str) -> None:
    """Jobs of a process that is gone need not wait for their lease to run out."""
    running = "queue = ? AND state = 'running'"
    for where, pid in db.execute(f"SELECT DISTINCT host, pid FROM jobs WHERE {running}", (queue,)).fetchall():  # noqa: S608
        if gone(where, pid):
            free = (
                f"UPDATE jobs SET state = 'waiting', token = NULL, until = 0 WHERE {running} AND host = ? AND pid = ?"  # noqa: S608
            )
            db.execute(free, (queue, where, pid))


@contextmanager
def _transaction(db: sqlite3.Connection) -> Generator[sqlite3.Connection]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")

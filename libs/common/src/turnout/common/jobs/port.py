"""The jobs port: long work that an event asked for, recorded before the offset moves, run under a lease.

A job is named by the event that asked for it and the reaction that does it, so asking twice is one job. Its lease
is renewed while it runs; when the process dies the lease runs out and another worker takes the job up again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from turnout.common.bus.port import Record


@dataclass(frozen=True)
class Job:
    """`queue` is the reaction's group, `record` the event that asked, `attempt` counts from 1."""

    id: str
    queue: str
    record: Record
    attempt: int


@dataclass(frozen=True)
class Lease:
    """The right to work on a job; `token` fences a holder that was thought dead."""

    job: Job
    token: str


class Jobs(Protocol):
    """Methods raise `Unavailable` while the store cannot be reached."""

    async def add(self, *jobs: Job) -> None:
        """Record jobs; one that is known (waiting, running or finished) stays as it is."""
        ...

    async def claim(self, queue: str, *, now: datetime, owner: str) -> Lease | None:
        """The oldest job of the queue that waits or whose lease ran out. Jobs with one record key run in order."""
        ...

    async def renew(self, lease: Lease, *, now: datetime) -> bool:
        """Keep the lease; False if somebody else has it now: stop working and write nothing more."""
        ...

    async def finish(self, lease: Lease) -> bool:
        """The job's effects are durable and published; False if the lease was lost."""
        ...

    async def release(self, lease: Lease, *, until: datetime) -> None:
        """Give the job back, to be tried again not before `until`."""
        ...

    async def waiting(self, queue: str) -> int:
        """Jobs not finished."""
        ...

    async def purge(self, now: datetime) -> int:
        """Forget jobs that finished so long ago that their event cannot come again; how many went."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...

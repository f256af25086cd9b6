"""Long reactions: the event becomes a job, the offset moves, the job runs under a lease with a heartbeat."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from uuid import uuid4

import structlog
from structlog.contextvars import bound_contextvars

from turnout.common.bus.port import Bus, Delivery, Received, Record
from turnout.common.errors import Invalid, TurnoutError, Unavailable
from turnout.common.events import StageFailed
from turnout.common.ids import content_id
from turnout.common.jobs.port import Job, Jobs, Lease
from turnout.common.runtime.consuming import Consumer, End, count, report
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.dead_letters import attempt_of
from turnout.common.runtime.handling import Handled, Handling, Item, context, until_available
from turnout.common.runtime.redaction import redact

log = structlog.get_logger()

HEARTBEAT = timedelta(seconds=3)
# How soon a job is noticed that another process recorded, or whose lease ran out.
LOOK_FOR_JOBS = 0.5
# A job that took its whole process down this often does it every time.
LARGEST_ATTEMPT = 100
_PLACE = ("job_partition", "job_offset", "job_timestamp")


@dataclass
class Backlog:
    """The jobs, and a bell that rings in this process when one was recorded or has ended."""

    jobs: Jobs
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Recorder(Consumer):
    """Takes deliveries for a long reaction: each event becomes a job, then the offset moves."""

    def __init__(self, bus: Bus, handling: Handling, backlog: Backlog) -> None:
        super().__init__(bus, handling)
        self._backlog = backlog

    async def _handle(self, delivery: Delivery) -> End:
        handled = Handled()
        items = self._handling.parse(delivery.received, handled)
        await self._backlog.jobs.add(*(job_of(item, self._handling.group) for item in items))
        return partial(self._recorded, delivery, handled)

    async def _recorded(self, delivery: Delivery, handled: Handled) -> None:
        crash_point("job-recorded")
        await delivery.done(*handled.dead)
        count(self._handling, handled)
        self._backlog.changed.set()


class Worker:
    """Runs the jobs of a long reaction under leases, `parallel` at a time."""

    def __init__(self, bus: Bus, handling: Handling, backlog: Backlog) -> None:
        self._bus = bus
        self._handling = handling
        self._backlog = backlog
        self._owner = str(uuid4())
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """For ever, or until `stop`; jobs that run when this is cancelled are given back."""
        self._task = asyncio.current_task()
        try:
            while not self._stopping:
                self._backlog.changed.clear()
                lease = await self._claim() if len(self._running) < self._handling.reaction.parallel else None
                if lease is not None:
                    task = asyncio.create_task(self._job(lease))
                    self._running.add(task)
                    task.add_done_callback(self._ended)
                    continue
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._backlog.changed.wait(), LOOK_FOR_JOBS)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    def stop(self) -> None:
        """Give running jobs back: another process, or this one when it starts again, takes them up."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._backlog.changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a job ended in a fault of the runtime", reaction=self._handling.group, exc_info=error)

    async def _claim(self) -> Lease | None:
        queue = self._handling.group
        claiming = asyncio.ensure_future(self._backlog.jobs.claim(queue, now=self._handling.now(), owner=self._owner))
        try:
            lease = await asyncio.shield(claiming)
        except Unavailable as error:
            self._handling.health.trouble(f"{queue} jobs", str(error))
            return None
        except asyncio.CancelledError:
            # Stopped meanwhile: a job that nobody here will run must not wait for its lease to run out.
            with contextlib.suppress(Unavailable):
                if (lease := await claiming) is not None:
                    await self._backlog.jobs.release(lease, until=self._handling.now())
            raise
        self._handling.health.well(f"{queue} jobs")
        return lease

    async def _job(self, lease: Lease) -> None:
        work = asyncio.create_task(self._work(lease))
        name = f"{self._handling.group} {lease.job.id}"
        try:
            while not work.done():
                self._handling.progress.beat(name)
                await asyncio.wait({work}, timeout=HEARTBEAT.total_seconds())
                if not work.done() and not await self._renewed(lease):
                    log.warning("the job's lease was lost", job=lease.job.id, reaction=self._handling.group)
                    work.cancel()
                    break
            await asyncio.gather(work, return_exceptions=True)
            if not work.cancelled():
                work.result()
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            with contextlib.suppress(Unavailable):
                await self._backlog.jobs.release(lease, until=self._handling.now())
            raise
        finally:
            self._handling.progress.rest(name)

    async def _renewed(self, lease: Lease) -> bool:
        try:
            return await self._backlog.jobs.renew(lease, now=self._handling.now())
        except Unavailable as error:
            # The lease may run out meanwhile; then somebody else has the job, and `finish` will say so.
            self._handling.health.trouble(f"{self._handling.group} jobs", str(error))
            return True

    async def _work(self, lease: Lease) -> None:
        began = time.perf_counter()
        received = received_of(lease.job.record)
        handled = Handled()
        items = self._handling.parse([received], handled)
        if items and lease.job.attempt > LARGEST_ATTEMPT:
            self._handling.give_up(items[0], _Deadly(), handled)
        elif items:
            handled = await self._handling.run(items)
        failures = [self._failure(item, error) for item, error in handled.failed]
        crash_point("job-before-publish")
        if not await self._renewed(lease):
            return
        await self._surely(lambda: self._bus.publish(*handled.produced, *handled.dead, *failures))
        crash_point("job-before-finish")
        await self._surely(lambda: self._backlog.jobs.finish(lease))
        with bound_contextvars(**context([i.event for i in items])):
            report(self._handling, 1, handled, time.perf_counter() - began)

    async def _surely(self, call: Callable[[], Awaitable[object]]) -> None:
        await until_available(call, f"{self._handling.group} jobs", self._handling.health)

    def _failure(self, item: Item, error: Exception) -> StageFailed:
        found = error if isinstance(error, Invalid) else None
        expected = isinstance(error, TurnoutError)
        return StageFailed.caused_by(
            item.event,
            source=f"/{self._handling.service}",
            at=self._handling.now(),
            of=f"{self._handling.group} {attempt_of(item.received.record)}",
            stage=self._handling.group,
            error=redact(str(error) if expected else f"a fault of ours: {type(error).__name__}: {error}"),
            field=redact(found.field) if found else None,
            fix=redact(found.fix) if found and found.fix else None,
        )


class _Deadly(Exception):  # noqa: N818 (its name is read in the dead letter)
    def __init__(self) -> None:
        super().__init__(f"the process died under this {LARGEST_ATTEMPT} times")


def job_of(item: Item, queue: str) -> Job:
    """The job that an event asks for; the same event sent again by `turnout replay` is another job."""
    received = item.received
    place = (str(received.partition), str(received.offset), received.timestamp.isoformat())
    headers = received.record.headers + tuple((name, text.encode()) for name, text in zip(_PLACE, place, strict=True))
    ident = content_id("job", queue, item.event.id, attempt_of(received.record))
    return Job(ident, queue, received.record._replace(headers=headers), 1)


def received_of(record: Record) -> Received:
    """The record of a job as it lay on the bus."""
    headers = dict(record.headers)
    kept = tuple((name, value) for name, value in record.headers if name not in _PLACE)
    partition, offset, moment = (headers[name].decode() for name in _PLACE)
    return Received(record._replace(headers=kept), int(partition), int(offset), datetime.fromisoformat(moment))

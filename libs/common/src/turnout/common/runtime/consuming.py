"""Poll, react, done: the loop behind a short reaction.

A reaction handles one delivery after the other. What came of those before it is meanwhile on its way: a delivery's
outputs are confirmed, then its offset moves. Deliveries of one partition end one after the other, so that nothing of an
entity overtakes what failed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Self

import structlog
from structlog.contextvars import bound_contextvars

from turnout.common import telemetry
from turnout.common.bus.port import Delivery, Source
from turnout.common.errors import Unavailable
from turnout.common.runtime.coming import Coming
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.handling import Handled, Handling, Item, context, pause

log = structlog.get_logger()

# Deliveries that were handled and are not done yet, at most: beyond it, handling more gains nothing and costs memory.
OPEN = 8

# What is left of a delivery once it was handled. Raises `Unavailable`.
End = Callable[[], Awaitable[None]]


class Consumer:
    """Takes deliveries for one reaction until it is stopped."""

    def __init__(self, bus: Source, handling: Handling) -> None:
        self._bus = bus
        self._handling = handling
        self._stopped = asyncio.Event()
        self._failures = 0

    @property
    def group(self) -> str:
        """The consumer group."""
        return self._handling.group

    @property
    def polled(self) -> float | None:
        """When it last looked for records (monotonic seconds), also in vain; None while it does not consume."""
        return self._bus.polled(self.group)

    async def run(self) -> None:
        """For ever, or until `stop`."""
        topics, group = self._handling.reaction.topics, self._handling.group
        told = asyncio.ensure_future(self._stopped.wait())
        try:
            while not self._stopped.is_set():
                try:
                    async with aclosing(self._bus.consume(*topics, group=group)) as deliveries:
                        await self._take(deliveries, told)
                except Unavailable as error:
                    # With nothing to take, that it polls again is all that tells that the bus is back.
                    self._handling.health.trouble(group, str(error), over=self._polls_after(time.monotonic()))
                    log.warning("the bus is not available", reaction=group, error=str(error))
                    self._failures += 1
                    await asyncio.wait({told}, timeout=pause(self._failures))
        finally:
            told.cancel()

    def stop(self) -> None:
        """Take nothing more; what is being handled may end, and so may what was handled."""
        self._stopped.set()

    def _polls_after(self, moment: float) -> Callable[[], bool]:
        return lambda: (self._bus.polled(self.group) or 0.0) > moment

    async def _take(self, deliveries: AsyncGenerator[Delivery], told: asyncio.Task[bool]) -> None:
        """One after the other, until `told` or until one did not end. Raises what that raised."""
        async with Coming(deliveries) as coming, _Ends() as ends:
            while not told.done() and not ends.failed:
                waiting = {told, *ends.tasks} if ends.full else {told, *ends.tasks, coming.next()}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not told.done() and not ends.failed and (delivery := coming.taken()) is not None:
                    self._handling.health.well(self.group)
                    ends.begin(delivery, await self._handled(delivery))

    async def _handled(self, delivery: Delivery) -> End:
        self._handling.progress.beat(self.group)
        try:
            handling = await self._handle(delivery)
        finally:
            self._handling.progress.rest(self.group)
        return partial(self._end, delivery, handling)

    async def _end(self, delivery: Delivery, end: End) -> None:
        first = delivery.received[0]
        # A name of its own: one that does not end is stuck, although others are handled meanwhile.
        name = f"{self.group} {first.record.topic} {first.partition}"
        self._handling.progress.beat(name)
        try:
            await end()
        finally:
            self._handling.progress.rest(name)
        self._failures = 0

    async def _handle(self, delivery: Delivery) -> End:
        """Everything but its end."""
        began = time.perf_counter()
        handled = Handled()
        items = self._handling.parse(delivery.received, handled)
        outcome = await self._handling.run(items)
        handled.produced += outcome.produced
        handled.dead += outcome.dead
        handled.outcomes += outcome.outcomes
        return partial(self._done, delivery, items, handled, began)

    async def _done(self, delivery: Delivery, items: list[Item], handled: Handled, began: float) -> None:
        crash_point("reaction-before-done")
        await delivery.done(*handled.produced, *handled.dead)
        crash_point("reaction-after-done")
        with bound_contextvars(**context([i.event for i in items])):
            report(self._handling, len(delivery.received), handled, time.perf_counter() - began)


class _Ends:
    """Deliveries that were handled, on their way to be done; those of one partition one after the other.

    Leaving waits for all and raises what the first that failed raised; a cancellation cancels them.
    """

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.failed = False
        """One was not done: none of its partition will be."""
        self._last: dict[tuple[str, int], asyncio.Task[None]] = {}

    @property
    def full(self) -> bool:
        """Whether there is no room for another one."""
        return len(self.tasks) >= OPEN

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            for task in self.tasks:
                task.cancel()
        for outcome in await asyncio.gather(*self.tasks, return_exceptions=True):
            if isinstance(outcome, BaseException) and kind is None:
                raise outcome

    def begin(self, delivery: Delivery, end: End) -> None:
        """Do `end` after those of the same partition."""
        place = delivery.received[0].record.topic, delivery.received[0].partition
        task = asyncio.create_task(_after(self._last.get(place), end))
        self._last[place] = task
        self.tasks.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is not None:
            self.failed = True
        else:
            self.tasks.remove(task)


async def _after(before: asyncio.Task[None] | None, end: End) -> None:
    if before is not None:
        await before  # what it raises is raised here too
    await end()


def report(handling: Handling, records: int, handled: Handled, seconds: float) -> None:
    """The one line and the metrics of a batch."""
    count(handling, handled)
    telemetry.REACTION_SECONDS.labels(handling.service, handling.reaction.name).observe(seconds)
    log.info(
        "events handled",
        service=handling.service, reaction=handling.reaction.name, records=records,
        produced=dict(Counter(record.topic for record in handled.produced)), dead=len(handled.dead),
        milliseconds=round(seconds * 1000, 1),
    )  # fmt: skip


def count(handling: Handling, handled: Handled) -> None:
    """The metrics of a batch."""
    for (kind, outcome), number in handled.outcomes.items():
        telemetry.EVENTS_PROCESSED.labels(handling.service, kind, outcome).inc(number)
    for record in handled.dead:
        telemetry.EVENTS_DEAD_LETTERED.labels(handling.service, record.topic.removesuffix(".dead")).inc()
